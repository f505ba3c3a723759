"""Forecast of what a run will take on this machine, from a few steps of each kind on made-up films.

It is an estimate: clocks, other work and the length of an epoch's end change it by a third either way.
"""

import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from cxrlib import UserError, provenance
from cxrlib.data.batches import Batch
from cxrlib.labels import LABELS
from cxrlib.training import devices, fit, frozen, losses, network, optim, schedules
from cxrlib.training.processes import ProcessGroup
from cxrlib.training.schedules import HEAD, Stage

BUDGET = 5.0
"""Seconds after which a CPU measures no further kind of step; the rest is computed from their operations."""
PROBED = 8 * 224**2
"""Largest number of pixels in a measured step on a CPU. An accelerator uses the run's own batches."""
NOTEBOOK = 8.0
"""Seconds that a notebook takes besides training and prediction: figures, intervals, files."""
RESERVE = 0.8
"""Share of a card's free memory that ``films_that_fit`` counts on. An assumption: the rest is for what the formula
leaves out, cuDNN's workspaces, gradients of activations and gaps between blocks."""
COPIES = 5
"""Copies of the weights in float32: themselves, gradients, Adam's two moments, the moving average."""
Work = Callable[[], Any]


@dataclass(frozen=True)
class Films:
    """Numbers of films in the three parts."""

    train: int
    val: int
    test: int


@dataclass(frozen=True)
class Speeds:
    """Speeds in films/s: of training, by trained groups, and of prediction. ``memory``: peak bytes of a step."""

    training: dict[tuple[str, ...], float]
    reading: float
    memory: float


def seconds(recipes: Sequence[Stage], films: Films, speeds: Speeds, notebooks: int) -> float:
    """Seconds for these stages and the evaluation after them: training, validation, prediction, notebooks.

    Each stage's notebook predicts the validation films twice. The evaluation predicts validation and test films with
    every stage's checkpoint. The head alone, without augmentation, is trained on features that are computed once.
    """
    total = notebooks * NOTEBOOK
    for recipe in recipes:
        if recipe.epochs and recipe.groups == HEAD and recipe.augment == "none":
            total += (films.train + films.val) / speeds.reading
        else:
            passes = recipe.epochs and films.train / speeds.training[recipe.groups] + films.val / speeds.reading
            total += recipe.epochs * passes
        total += (3 * films.val + films.test) / speeds.reading
    return total


def measure(
    recipes: Sequence[Stage],
    size: int,
    batch_size: int,
    device: torch.device,
    clock: Callable[[], float] = time.perf_counter,
) -> Speeds:
    """Measure the speed of a step for each set of trained groups, and of prediction, on images of noise.

    Raises ``fit.NoRoomError``, with the number of films that fit, where the batch is too large for the device.
    """
    films = batch_size if device.type != "cpu" else max(2, min(batch_size, PROBED // size**2))
    start, memory = clock(), _memory(device)
    training: dict[tuple[str, ...], float] = {}
    operations: dict[tuple[str, ...], float] = {}
    kinds = {recipe.groups: recipe for recipe in recipes if recipe.epochs}
    by_work = sorted(kinds.values(), key=lambda recipe: -len(recipe.groups))
    for recipe in by_work:
        model = network.train_only(network.build("none"), recipe.groups)
        model.to(device, memory_format=torch.channels_last)
        operations[recipe.groups] = frozen.training_flops(model, 1, size)
        if device.type != "cpu" or clock() - start < BUDGET or not training:
            training[recipe.groups] = _speed(_training_step(model, recipe, size, films, device), films, device, clock)
    measured = next(iter(training), None)
    for groups in operations.keys() - training.keys():
        training[groups] = training[measured] * operations[measured] / operations[groups]
    model = network.build("none").to(device)
    prediction = _speed(_prediction_step(model, recipes[0], size, films, device), films, device, clock)
    increase = (_memory(device) - memory) * batch_size / films
    return Speeds(training, prediction, memory + increase)


def bytes_per_film(recipe: Stage, size: int, dtype: torch.dtype) -> float:
    """Bytes that a training step keeps for each film: the activations that the backward pass needs.

    They are counted, not estimated: the network runs on torch's ``meta`` device, which has shapes and no numbers, and
    autograd hands over what it saves. A stage of all groups keeps 86 MB at 224 px in float32 and 252 MB at 384 px, half
    of it in 16 bits. It grows with the area of the image.
    """
    model = network.train_only(network.build("none"), recipe.groups).to("meta").train()
    saved: dict[int, int] = {}
    kept = []  # so that no address is used again while others are counted

    def note(tensor: torch.Tensor) -> torch.Tensor:
        if not isinstance(tensor, torch.nn.Parameter):
            kept.append(tensor)
            saved[tensor.untyped_storage()._cdata] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        model(torch.empty(2, 1, size, size, device="meta"))
    return sum(saved.values()) / 2 * dtype.itemsize / 4


def films_that_fit(recipes: Sequence[Stage], size: int, free: float, dtype: torch.dtype) -> int:
    """Films of a batch that fit into ``free`` bytes of a card in every stage that trains; 0 if not even one does.

    (``RESERVE`` · free - ``COPIES`` · weights) / ``bytes_per_film`` of the stage that keeps most. It is computed before
    anything is tried; ``measure`` then tries the run's own batch.
    """
    weights = sum(weight.nbytes for weight in network.build("none").parameters())
    most = max(bytes_per_film(recipe, size, dtype) for recipe in recipes if recipe.epochs)
    return max(int((RESERVE * free - COPIES * weights) / most), 0)


def _room(recipes: Sequence[Stage], size: int, device: torch.device, dtype: torch.dtype) -> str:
    """A sentence on the batch that the card's free memory holds at this size; "" without a card or training."""
    if device.type != "cuda" or not any(recipe.epochs for recipe in recipes):
        return ""
    free = torch.cuda.mem_get_info(device)[0]
    fits = films_that_fit(recipes, size, free, dtype)
    return f"{free / 1e9:.0f} GB of the card are free, by computation enough for about {fits:,} films of {size} px."


def _training_step(model: network.Network, recipe: Stage, size: int, films: int, device: torch.device) -> Work:
    dtype, process_group = devices.dtype(device, recipe.precision), ProcessGroup(device)
    optimizer = optim.make(model.train(), recipe)
    how = {"dtype": dtype, "known_of": lambda rows: len(rows) * len(LABELS)}
    step = fit.Step(model, losses.make(recipe.loss), recipe, optimizer, process_group, **how)
    images = torch.randn(films, 1, size, size, device=device)
    batch = Batch(images, torch.zeros(films, len(LABELS), device=device), torch.arange(films))
    varying = type("Varying", (), {"variant": staticmethod(lambda epoch: None)})
    features = frozen.FrozenFeatures(model, varying, process_group, dtype=dtype)

    def work() -> None:
        step.learn(batch, features.of, films, last=True)
        step.take(recipe.lr)

    return work


def _prediction_step(model: network.Network, recipe: Stage, size: int, films: int, device: torch.device) -> Work:
    reader = frozen.Inference(model, dtype=devices.inference_dtype(device, recipe.precision))
    images = torch.randn(films, 1, size, size, device=device)

    def work() -> None:
        with torch.inference_mode():
            reader(images)

    return work


def _speed(work: Work, films: int, device: torch.device, clock: Callable[[], float]) -> float:
    """Speed in films/s, after two warm-up calls. Waits for the card before each reading of the clock."""
    times = 2 if device.type == "cpu" else 10
    with devices.keep_memory(device):
        for _ in range(2):
            work()
        _wait(device)
        start = clock()
        for _ in range(times):
            work()
        _wait(device)
        return films * times / (clock() - start)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _memory(device: torch.device) -> float:
    """Peak memory so far in bytes: of a card's tensors, or of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        import resource
    except ImportError:  # Windows
        return 0.0
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def forecast_sentences(recipes: Sequence[Stage], films: Films, size: int, batch_size: int, notebooks: int) -> str:
    """The forecast in two lines; a line more, with the batch that fits, where the batch is too large.

    Then speed and duration are those of the batch that fits, so that they are known before anything is changed.
    """
    device = devices.device()
    dtype = devices.dtype(device, recipes[0].precision)
    where = f"Device: {provenance.device()}, {devices.dtype_name(dtype)}."
    where = " ".join(filter(None, [where, _room(recipes, size, device, dtype)]))
    try:
        return f"{where} {_told(recipes, films, measure(recipes, size, batch_size, device), notebooks, device)}"
    except fit.NoRoomError as error:
        smaller, parts = devices.in_parts(batch_size, error.fits)
    together = parts * max(recipe.accumulate for recipe in recipes)
    advice = f'try batch_size {smaller} with override="accumulate={together}"'
    refused = f"{where} A batch of {batch_size} films does not fit into its memory: {advice}."
    try:
        told = _told(recipes, films, measure(recipes, size, smaller, device), notebooks, device)
    except fit.NoRoomError:
        return refused
    return f"{refused}\nWith that: {told}"


def _told(recipes: Sequence[Stage], films: Films, speeds: Speeds, notebooks: int, device: torch.device) -> str:
    trained = [recipe for recipe in recipes if recipe.epochs]
    rates = ", ".join(rounded(speeds.training[recipe.groups]) for recipe in trained)
    numbers = ", ".join(str(recipe.number) for recipe in trained)
    duration = clock_words(seconds(recipes, films, speeds, notebooks))
    memory = f", with {speeds.memory / 1e9:.1f} GB of {'GPU ' * (device.type == 'cuda')}memory" if speeds.memory else ""
    prediction = f"prediction about {rounded(speeds.reading)} films/s"
    both = f"Training about {rates} films/s in stages {numbers}, {prediction}" if trained else prediction.capitalize()
    return f"{both}.\nFrom here on the chain takes about {duration}{memory}."


def rounded(value: float) -> str:
    """A number in two digits: 3,187 → 3,200."""
    digits = 1 - len(str(int(value))) + 1 if value >= 1 else 2
    return f"{round(value, min(digits, 0) if value >= 10 else 1):,g}" if value < 1e6 else f"{value:,.0f}"


def clock_words(took: float) -> str:
    """A duration from seconds: ``40 s``, ``12 min`` or ``3 h 20 min``."""
    if took < 90:
        return f"{max(round(took, -1), 10):.0f} s"
    minutes = round(took / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"


def print_forecast(given: str) -> None:
    """Print the forecast for settings in JSON: stages (arguments of ``schedules.recipe``), films, size and so on."""
    settings = json.loads(given)
    recipes = [schedules.recipe(**arguments) for arguments in settings.pop("stages")]
    try:
        print(forecast_sentences(recipes, Films(**settings.pop("films")), **settings))
    except UserError as error:
        print(error)
