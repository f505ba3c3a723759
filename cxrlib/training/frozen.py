"""Frozen layers used efficiently: folded BatchNorm, cached features, heads on them, and torch.compile where it pays.

Validation in ``fit`` and every later prediction read through ``Inference``, so that the same weights give the same
numbers. It is not compiled: reading 112,120 films of 224 px takes a card less time than compiling.

A head on fixed features is a convex problem (a logistic regression per label), so ``fit_head`` finds its optimum to the
end, and losses can be compared without asking how well each was optimised.
"""

import copy
import math
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torch.utils.flop_counter import FlopCounterMode
from torchvision.models.resnet import Bottleneck

from cxrlib import UserError, provenance
from cxrlib.data import batches
from cxrlib.data.batches import Batches
from cxrlib.training import checkpoint, devices, network
from cxrlib.training.losses import Loss
from cxrlib.training.processes import ProcessGroup
from cxrlib.training.schedules import Stage

COMPILE_SECONDS = 60.0
"""Time to compile a ResNet-50's training step: 24 to 55 s by stage on the host of an H200, more on slower processors.
Code compiled before, on the same machine, takes about 4 s."""
COMPILE_GAIN = 0.4
"""Smallest share of a step's time that compiling saves: 42 % if all layers train (H200, 224 px, batch 128, bfloat16,
torch 2.11, 2026-11-27), more if the upper groups train."""
UTILISATION = 0.09
"""Share of the card's peak that an uncompiled step reaches: 3,616 images/s of 24.5 GFLOP on an H200 of 989 TFLOP/s."""
PEAK = {(7, 0): 1024, (7, 5): 1024, (8, 0): 2048, (9, 0): 4096, (10, 0): 8192}
"""Half-precision operations per clock and multiprocessor, by compute capability (dense, tensor cores; NVIDIA's
architecture papers)."""
PEAK_OTHERS, PEAK_BEFORE = 1024, 256
"""The same for unlisted cards from capability 7 on, and for older cards, which have no tensor cores."""


def compiled_batch_size(recipe: Stage, train: Any, model: network.Network, device: torch.device, world: int = 1) -> int:
    """Batch size that a stage's code is compiled for; 0 where compiling is off or would not save time.

    ``train`` are the training batches of the stage, which ``world`` processes share.
    """
    if recipe.compile == "no" or (recipe.compile == "auto" and not _pays(recipe, train, model, device)):
        return 0
    require_cpp_compiler(device)
    torch.compiler.reset()  # torch compiles a function at most eight times; what earlier stages compiled is not needed
    return train.batch_size // world


def _pays(recipe: Stage, train: Any, model: network.Network, device: torch.device) -> bool:
    size = getattr(getattr(train, "store", None), "size", 0)
    films = sum(int(train.sizes(epoch).sum()) for epoch in range(recipe.epochs))
    return bool(size) and compiling_pays(device, lambda: training_flops(model, films, size))


def compiling_pays(device: torch.device, flops: Callable[[], float]) -> bool:
    """Whether compiling saves more time than it takes, in a training of so many floating-point operations.

    The estimate uses the card's properties, not a measured time, so a repeated stage gets the same answer. On a CPU no
    gain was measured, so the answer is False.
    """
    return device.type == "cuda" and COMPILE_GAIN * flops() / (UTILISATION * peak_flops(device)) > COMPILE_SECONDS


def peak_flops(device: torch.device) -> float:
    """Peak half-precision operations per second of a card, at its highest clock."""
    card = torch.cuda.get_device_properties(device)
    others = PEAK_OTHERS if card.major >= 7 else PEAK_BEFORE
    kilohertz = getattr(card, "clock_rate", 1_500_000)  # torch before 2.7 does not have it
    return card.multi_processor_count * kilohertz * 1e3 * PEAK.get((card.major, card.minor), others)


def training_flops(model: network.Network, films: int, size: int) -> float:
    """Floating-point operations of training on so many films: a forward pass through the whole network, and a backward
    pass of twice the cost through the trained part."""
    meta_model = copy.deepcopy(model).to("meta")
    with FlopCounterMode(display=False) as prefix, torch.no_grad():
        features = meta_model.prefix(torch.empty(1, 1, size, size, device="meta"))
    with FlopCounterMode(display=False) as suffix, torch.no_grad():
        meta_model.eval().suffix(features)
    return films * (prefix.get_total_flops() + 3 * suffix.get_total_flops())


class WholeBatches:
    """Compiled function for batches of ``films`` films. Other batch sizes run uncompiled.

    With ``graphs`` a card gets each pass as one CUDA graph in place of hundreds of kernels one by one, which on a fast
    card cost the processor more time than they take the card. The result's memory is used again in the next step.
    torch caches the compiled code for later stages and runs, in ``TORCHINDUCTOR_CACHE_DIR``.
    """

    def __init__(self, run: Callable[[Tensor], Tensor], films: int, *, graphs: bool = False) -> None:
        self.run, self.films = run, films
        self.compiled = torch.compile(run, dynamic=False, mode="reduce-overhead" if graphs else None)

    def __call__(self, values: Tensor) -> Tensor:
        return self.compiled(values) if len(values) == self.films else self.run(values)


def graphs_fit(process_group: ProcessGroup) -> bool:
    """Whether compiled code becomes CUDA graphs: on a card, in one process (several exchange gradients in between)."""
    return process_group.device.type == "cuda" and process_group.world == 1


def require_cpp_compiler(device: torch.device) -> None:
    """Raise UserError where torch.compile needs a C++ compiler for the CPU and there is none."""
    if device.type == "cpu" and not (shutil.which(os.environ.get("CXX", "g++")) or shutil.which("clang++")):
        raise UserError("compile=yes needs a C++ compiler on a CPU, and there is none; install g++, or set compile=no")


MEMORY = 2**30
"""Largest size in bytes of the features cached in memory, for one part of the data."""
CARD_SHARE = 0.1
"""Largest share of a card's free memory for cached features."""
DISK = 2**36
"""Largest size in bytes of the features cached in a file, if the disk has twice that free. Only for a CPU: an
accelerator computes features faster than a disk reads them."""


SHARED = "CXR_SHARED_FEATURES"
"""Environment variable: a folder in which trainings that follow each other keep features of the same frozen layers."""


def fold(model: network.Network, first: int = 0, last: int | None = None) -> nn.Sequential:
    """Copy of the steps ``first`` to ``last`` of ``network.STEPS``, with each BatchNorm folded into its convolution.

    By default it is the frozen prefix. The output is that of the network in eval mode up to rounding, with a third
    fewer passes over memory (formula: Jacob et al., Quantization and Training of Neural Networks, CVPR 2018, 3.2).
    """
    last = model.split if last is None else last
    names = [name for step in list(network.STEPS)[first:last] for name in network.STEPS[step]]
    modules = {name: copy.deepcopy(getattr(model, name)).eval().requires_grad_(False) for name in names}
    if "bn1" in modules:
        modules["conv1"] = fuse_conv_bn_eval(modules["conv1"], modules.pop("bn1"))
    modules = {name: _with_folded_blocks(module) for name, module in modules.items()}
    parts = [part for name, module in modules.items() for part in _with_flatten(name, module)]
    return nn.Sequential(*parts)


def _with_flatten(name: str, module: nn.Module) -> list[nn.Module]:
    return [module, nn.Flatten()] if name == "avgpool" else [module]


def _with_folded_blocks(module: nn.Module) -> nn.Module:
    """A layer group with its blocks folded; another module as it is."""
    blocks = isinstance(module, nn.Sequential) and isinstance(module[0], Bottleneck)
    return nn.Sequential(*map(FoldedBlock, module)) if blocks else module


class FoldedBlock(nn.Module):
    """A bottleneck with each BatchNorm folded into its convolution, for eval mode and without autograd."""

    def __init__(self, block: Bottleneck) -> None:
        super().__init__()
        self.conv1, self.conv2, self.conv3 = (
            fuse_conv_bn_eval(getattr(block, f"conv{n}"), getattr(block, f"bn{n}")) for n in "123"
        )
        self.downsample = None if block.downsample is None else fuse_conv_bn_eval(*block.downsample)

    def forward(self, values: Tensor) -> Tensor:
        """(B, C, H, W) to (B, D, h, w), 0 or more."""
        shortcut = values if self.downsample is None else self.downsample(values)
        return _convolve_relu(self.conv3, _convolve_relu(self.conv2, _convolve_relu(self.conv1, values)), shortcut)


def _convolve_relu(conv: nn.Conv2d, values: Tensor, shortcut: Tensor | None = None) -> Tensor:
    """relu(conv(values) + shortcut), one kernel where the card has it: 1.7 times the films/s of three (H200)."""
    if _has_fused_convolution(values):
        how = (conv.stride, conv.padding, conv.dilation, conv.groups)
        if shortcut is None:
            return torch.cudnn_convolution_relu(values, conv.weight, conv.bias, *how)
        return torch.cudnn_convolution_add_relu(values, conv.weight, shortcut, 1.0, conv.bias, *how)
    values = conv(values)
    return (values if shortcut is None else values.add_(shortcut)).relu_()


def _has_fused_convolution(values: Tensor) -> bool:
    """Whether cuDNN adds a shortcut and takes relu within a convolution of this kind of values, uncompiled.

    torch.compile fuses them itself, and does not know this operation.
    """
    if not values.is_cuda or torch.compiler.is_compiling():
        return False
    return _fuses(values.device, values.dtype)


@cache
def _fuses(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether a small fused convolution works on this card: tried in half precision, from Ampere cards on."""
    if dtype not in (torch.float16, torch.bfloat16) or torch.version.hip is not None:
        return False
    if torch.cuda.get_device_capability(device) < (8, 0):
        return False
    values = torch.zeros(1, 8, 8, 8, device=device, dtype=dtype).contiguous(memory_format=torch.channels_last)
    weight, bias = torch.zeros(8, 8, 1, 1, device=device, dtype=dtype), torch.zeros(8, device=device, dtype=dtype)
    how = ((1, 1), (0, 0), (1, 1), 1)
    try:
        torch.cudnn_convolution_relu(values, weight, bias, *how)
        torch.cudnn_convolution_add_relu(values, weight, values, 1.0, bias, *how)
    except RuntimeError:  # this cuDNN has no such kernel for this card
        return False
    return True


class FrozenFeatures:
    """Features of the frozen prefix for the films of one part, batch by batch.

    Features are cached if each film has a fixed number of variants (one without augmentation, see ``data.batches``)
    and all features fit into ``memory`` or ``disk`` bytes. They are then computed at the first batch, once per variant,
    in the films' order. The cache is on the card if it fits into ``CARD_SHARE`` of the free memory there, else in
    memory, else in a temporary file in ``folder``. Features on the card or in memory are taken from the folder in
    ``$CXR_SHARED_FEATURES`` if an earlier training left them there, as one of another seed does: the features of
    unvaried films depend on no seed. ``pause(done, all)`` is called after each batch of this work and may raise.
    ``dtype`` is the type of computation and cache. ``compiled`` is the compiled batch size, 0 for none.
    """

    def __init__(
        self,
        model: network.Network,
        part: Any,
        process_group: ProcessGroup,
        *,
        dtype: torch.dtype = torch.float32,
        compiled: int = 0,
        pause: Callable[[int, int], None] = lambda done, all: None,
        folder: Path | None = None,
        memory: int = MEMORY,
        disk: int = DISK,
    ) -> None:
        self.part, self.process_group, self.dtype, self.pause, self.folder = part, process_group, dtype, pause, folder
        self.memory, self.disk = memory, disk if process_group.device.type == "cpu" else 0
        self.prefix = None
        if model.split:
            self.prefix = fold(model).to(process_group.device, dtype).to(memory_format=torch.channels_last)
            if compiled:
                self.prefix = WholeBatches(self.prefix, compiled, graphs=graphs_fit(process_group))
        self.remembers = self.prefix is not None
        self.known: dict[int, Tensor] = {}  # (N, …) on the CPU or a card, by variant

    def batches(self, epoch: int = 0, start: int = 0) -> Iterator[Any]:
        """The epoch's batches on the device, without images where all features are cached."""
        if start < self.part.steps(epoch):  # no batch is left at the end of an epoch, so no cache is computed
            yield from self.part.epoch(epoch, start, on=self.process_group.device, images=not self.knows(epoch))

    def knows(self, epoch: int) -> bool:
        """Whether the features of this epoch's variant are cached. Computes the cache first, if there is room."""
        variant = self.part.variant(epoch)
        if self.remembers and variant is not None and variant not in self.known:
            self._fill_cache(variant)
        return variant in self.known

    def of(self, batch: Any, epoch: int = 0) -> Tensor:
        """Features of a batch on the device, the input of ``model.suffix``; its images where nothing is frozen."""
        if not self.knows(epoch):
            return self._compute(batch.images)
        cache = self.known[self.part.variant(epoch)]
        return _channels_last(
            batches.to_device(cache[batches.to_device(batch.rows, cache.device)], self.process_group.device)
        )

    @torch.no_grad()
    def _compute(self, images: Tensor) -> Tensor:
        images = _channels_last(images)  # (B, 1, S, S)
        return images if self.prefix is None else self.prefix(images.to(self.dtype))

    def _fill_cache(self, variant: int) -> None:
        """Compute and cache the features of every film in one variant. Without room for them, nothing is cached.

        Several processes share the work. Then each one holds all features, or all map the same file.
        """
        kept = self._kept_file()
        if kept is not None and (features := self._read_kept(kept)) is not None:
            self.known[variant] = features
            return
        in_order = copy.copy(self.part)
        in_order.shuffle, in_order.cap = False, 0
        cache, shared = None, False
        rows, values = torch.zeros(0, dtype=torch.int64), torch.zeros(0)
        own_share: list[tuple[Tensor, Tensor]] = []
        for number, batch in enumerate(in_order.epoch(variant, on=self.process_group.device), 1):
            rows, values = batch.rows, self._compute(batch.images)
            if cache is None:
                cache, shared = self._allocate(variant, values)
                if cache is None:
                    self.remembers = False
                    return
            cache[batches.to_device(rows, cache.device)] = values.to(cache.device)
            if not shared and self.process_group.world > 1:
                own_share.append((rows, values.cpu()))
            self.pause(number, in_order.steps(variant))
        for share in self.process_group.gather(own_share):
            for rows, values in share:
                cache[rows] = values.to(cache.device)
        self.known[variant] = cache
        if kept is not None and cache is not None and not shared:
            with suppress(UserError):  # a full disk does not stop the training
                checkpoint.write_tensors(kept.with_suffix(""), {"features": cache}, {})

    def _kept_file(self) -> Path | None:
        """File for these features in the shared folder, named by all that they depend on; None if they are not shared.

        Shared are features of unvaried films, computed by one process without compiling.
        """
        folder, store = os.environ.get(SHARED), getattr(self.part, "store", None)
        plain = isinstance(self.prefix, nn.Module) and not self.part.augment.varies and self.process_group.world == 1
        if not folder or store is None or not plain:
            return None
        weights = {name: value.float() for name, value in self.prefix.state_dict().items()}  # NumPy has no bfloat16
        made_by = [checkpoint.tensors_sha256(weights), store.pixels_of(self.part.films), store.size]
        made_by += [repr(self.part.augment), self.part.batch_size, str(self.dtype), str(self.process_group.device)]
        made_by += [provenance.code_version(__name__, batches), torch.__version__, torch.get_num_threads()]
        return Path(folder) / f"{provenance.digest(made_by)}{checkpoint.SUFFIX}"

    def _read_kept(self, file: Path) -> Tensor | None:
        """Features that another training left, where it would have put them; None if absent or damaged."""
        if not file.is_file():
            return None
        try:
            values = checkpoint.read_tensors(file)[0]["features"]
        except (UserError, KeyError):
            return None
        need = values.numel() * values.element_size()
        return values.to(self.process_group.device) if _fits_on_card(need, self.process_group.device) else values

    def _allocate(self, variant: int, values: Tensor) -> tuple[Tensor | None, bool]:
        """Memory for the features of all films, (N, …), and whether it is a file that all processes share."""
        shape = (len(self.part.films), *values.shape[1:])
        need = math.prod(shape) * values.element_size()
        variants = self.part.variants or 1
        if need * variants <= self.memory:
            where = values.device if _fits_on_card(need * variants, values.device) else "cpu"
            return torch.empty(shape, dtype=values.dtype, device=where), False
        if self.folder is None or not self.process_group.one_machine or need * variants > self.disk:
            return None, False
        if 2 * need * (variants - variant) > shutil.disk_usage(self.folder).free:
            return None, False
        path = self.folder / f".features-{id(self.part) if self.process_group.world == 1 else 'shared'}-{variant}.tmp"
        self.process_group.from_first(lambda: _reserve(path, need))
        features = torch.from_file(str(path), shared=True, size=math.prod(shape), dtype=values.dtype).view(shape)
        self.process_group.together()
        if self.process_group.first and os.name == "posix":  # a mapped file stays readable without its name
            path.unlink()
        return features, True


def _fits_on_card(need: int, device: torch.device) -> bool:
    """Whether so many bytes fit on a card beside a training."""
    return device.type == "cuda" and need <= CARD_SHARE * torch.cuda.mem_get_info(device)[0]


def _reserve(path: Path, size: int) -> None:
    """Create a file of so many bytes, with its space on the disk reserved."""
    with path.open("wb") as file:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file.fileno(), 0, size)
        else:
            file.truncate(size)


def _channels_last(values: Tensor) -> Tensor:
    return values.contiguous(memory_format=torch.channels_last) if values.ndim == 4 else values


class Inference(nn.Module):
    """Copy of a network for predictions, from step ``first`` of ``network.STEPS`` on; by default the whole network.

    Call ``refresh`` after the network's weights have changed. ``dtype`` is the type of the convolutions. ``head`` takes
    pooled features (B, 2048) to logits (B, 15) in float32, so that rounding does not give two films equal logits.
    """

    def __init__(self, model: network.Network, *, first: int = 0, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.first, self.dtype = first, dtype
        self.body, self.head = self._folded(model)

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, 15) float32 of images (B, 1, S, S), or of features where ``first`` is above 0."""
        return self.head(self.features(images))

    def features(self, images: Tensor) -> Tensor:
        """Pooled features (B, 2048) float32 of images (B, 1, S, S), all 0 or more: the head's input.

        ``head(features(images))`` is ``forward(images)`` to the last bit, so one pass gives both.
        """
        images = images.contiguous(memory_format=torch.channels_last) if images.ndim == 4 else images
        return self.body(images.to(self.dtype)).float()

    @torch.no_grad()
    def refresh(self, model: network.Network) -> None:
        """Copy the network's present weights."""
        for old, new in zip((self.body, self.head), self._folded(model), strict=True):
            for weight, value in zip(old.parameters(), new.parameters(), strict=True):
                weight.copy_(value)

    def _folded(self, model: network.Network) -> tuple[nn.Module, nn.Module]:
        last = len(network.STEPS)
        body = fold(model, self.first, last - 1).to(model.device, self.dtype)
        return body.to(memory_format=torch.channels_last), fold(model, last - 1, last)


def dtype_of(model: network.Network, precision: str = "") -> torch.dtype:
    """The dtype of a network's predictions on its device. ``precision`` "" means that of its weights' recipe."""
    return devices.inference_dtype(model.device, precision or model.precision)


class HeadFeatures(NamedTuple):
    """Features of each film below the head, in the films' order, and the labels."""

    values: Tensor  # (N, 2048) float32, 0 or more
    labels: Tensor  # (N, 15) float32


def head_features(model: network.Network, batches: Batches) -> HeadFeatures:
    """Features of all films below the head, in eval mode. The network's own mode is restored.

    The batches should be neither shuffled nor augmented.
    """
    trainable, mode = model.trainable, model.training
    network.train_only(model, network.GROUPS[-1:]).eval()
    try:
        epoch = batches.epoch(0, on=model.device)
        pairs = [(model.prefix(batch.images).float().cpu(), batch.labels.cpu()) for batch in epoch]
    finally:
        network.train_only(model, trainable).train(mode)
    values, labels = zip(*pairs, strict=True)
    return HeadFeatures(torch.cat(values), torch.cat(labels))


def fit_head(seen: HeadFeatures, loss: Loss, *, decay: float = 1e-3, iterations: int = 100) -> nn.Module:
    """Head that minimises ``loss`` plus ``decay`` times the squared weights, by L-BFGS from zero, without randomness.

    Features are standardised by mean and standard deviation of the training films, which are part of the returned
    module: it takes (N, 2048) features and gives (N, 15) logits.
    """
    scale = nn.BatchNorm1d(seen.values.shape[1], affine=False).eval()
    scale.running_mean, scale.running_var = seen.values.mean(0), seen.values.var(0)
    linear = nn.Linear(seen.values.shape[1], seen.labels.shape[1])
    nn.init.zeros_(linear.weight)
    nn.init.zeros_(linear.bias)
    values = scale(seen.values)
    optimizer = torch.optim.LBFGS(linear.parameters(), max_iter=iterations, line_search_fn="strong_wolfe")

    def objective() -> Tensor:
        optimizer.zero_grad()
        value = loss(linear(values), seen.labels) + decay * linear.weight.square().sum() / linear.out_features
        value.backward()
        return value

    optimizer.step(objective)
    return nn.Sequential(scale, linear)


@torch.no_grad()
def head_probabilities(trained: nn.Module, unseen: HeadFeatures) -> np.ndarray:
    """Probabilities of a head for films: (N, 15) float64 from 0 to 1."""
    return torch.sigmoid(trained(unseen.values)).double().numpy()
