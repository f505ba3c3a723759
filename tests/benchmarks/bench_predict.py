"""Predictions of film files: films per second against the bare network, memory over the length of the list, and the
seconds that one film takes from the shell."""

import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch

from cxrlib import paths
from cxrlib.evaluation import film_reader, reference, thresholds
from cxrlib.training import checkpoint, devices, frozen, lineage, network, schedules
from tests.benchmarks.bench_data import FULLRES, SHARED
from tests.benchmarks.rows import Row, in_turns, machine, rate, spread

SIZE, BATCH = 224, 32


def stream(rounds: int = 3) -> list[Row]:
    """The stream over original films and over DICOM, decoding included, against the network on tensors in memory."""
    rows = []
    with _checkpoint() as path, _links(sorted((FULLRES / "images").iterdir()), 96) as png, _links(_dicom(), 96) as dcm:
        reader = film_reader.Reader.open(path)
        for name, films in (("1024² PNG", png), ("DICOM, JPEG inside", dcm)):
            took = in_turns(rounds, ours=lambda films=films: _drain(reader, films), bare=lambda: _bare(reader, 96))
            where = f"{SIZE} px, batch {BATCH}, {devices.dtype_name(film_reader.predict.dtype_of(reader.model))}, "
            where += f"{torch.get_num_threads()} threads of torch, {os.cpu_count()} cores, files in the page cache"
            rows.append(rate(f"predict: {name} against the bare network", took["ours"], len(films), took["bare"], 96,
                             ">= 0.8 x", where))  # fmt: skip
    return rows


def memory(short: int = 100, long: int = 2_000) -> list[Row]:
    """Highest memory of a process that reads a long list, beyond that for a short one; small films, tiny network."""
    code = """import resource, sys
from tests.benchmarks import bench_predict
bench_predict.read_many(sys.argv[1], int(sys.argv[2]))
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)"""
    with _checkpoint(layers=(1, 1, 1, 1)) as path:
        most = [_python(code, str(path), str(count)) for count in (short, long)]
    where = f"{long} films against {short}, answers kept and files written, links to 96 films of 1024²"
    name = "predict: memory of a long list beyond a short one"
    return [Row(name, round(most[1] - most[0], 1), "MB", target="<= 50 MB", n=long,
                conditions=f"{where}; {most[0]:.0f} MB for the short one")]  # fmt: skip


def read_many(path: str, count: int) -> None:
    """What ``cxr predict`` does with so many films, but for the page."""
    from unittest import mock

    from cxrlib.evaluation import prediction_files

    build = network.build
    with mock.patch.object(network, "build", lambda weights: build(weights, layers=(1, 1, 1, 1))):
        reader = film_reader.Reader.open(Path(path))
    with _links(sorted((FULLRES / "images").iterdir()), count) as films, tempfile.TemporaryDirectory() as folder:
        state = prediction_files.State(Path(folder), {}, films)
        for answer in reader.stream(state.pending()):
            state.add([answer])
        prediction_files.write(Path(folder), state.answers(), reader, reader.interpreter())


def shell(rounds: int = 3) -> list[Row]:
    """One film from the shell, and how much of it is not the import of torch."""
    film = str(sorted((FULLRES / "images").iterdir())[0])
    with _checkpoint() as path, tempfile.TemporaryDirectory() as bytecode:
        command = [sys.executable, "-m", "cxrlib.workbook.cli", "predict", film, "--ckpt", str(path)]
        alone = [sys.executable, "-c", "import torch"]
        for words in (alone, command):
            _run(words, bytecode)
        pairs = [(_run(alone, bytecode), _run(command, bytecode)) for _ in range(rounds)]
    rows = []
    for k, clock in enumerate(("seconds", "processor seconds")):
        beyond = [whole[k] - torch_alone[k] for torch_alone, whole in pairs]
        whole = statistics.median(pair[1][k] for pair in pairs)
        where = f"{clock}; {whole:.2f} in all, {statistics.median(pair[0][k] for pair in pairs):.2f} to import torch; "
        where += f"one 1024² PNG, ResNet-50 at {SIZE} px; {machine()}"
        rows.append(Row(f"predict: one film from the shell beyond importing torch, {clock}",
                        round(statistics.median(beyond), 2), "s", target="<= 3 s", n=rounds, spread=spread(beyond),
                        conditions=where))  # fmt: skip
    return rows


def _drain(reader: film_reader.Reader, films: list[str]) -> None:
    answers = list(reader.stream(films, batch_size=BATCH, anyway=True))
    assert sum(answer.network is not None for answer in answers) == len(films)


def _bare(reader: film_reader.Reader, films: int) -> None:
    """The folded network in batches, from tensors that are there."""
    images = torch.zeros(BATCH, 1, SIZE, SIZE, device=reader.model.device)
    with torch.inference_mode(), devices.keep_memory(reader.model.device):
        inference = frozen.Inference(reader.model, dtype=frozen.dtype_of(reader.model))
        for _ in range(films // BATCH):
            inference(images).cpu()


@contextmanager
def _checkpoint(layers: tuple[int, ...] = network.RESNET50) -> Iterator[Path]:
    """A checkpoint of random weights with all that travels with it, alone in an outputs folder."""
    rng = np.random.default_rng(0)
    known = (rng.random((500, 15)) < 0.2).astype(np.uint8)
    said = np.clip(0.3 + 0.1 * known + 0.4 * rng.random(known.shape), 0, 1)
    with tempfile.TemporaryDirectory() as folder:
        state = network.build("none", layers=layers).state_dict()
        line = lineage.of_stage(None, "none")
        path = checkpoint.save(Path(folder) / "base" / "stage1", state, schedules.recipe("scratch", 1), line, epoch=1,
                               metrics={})  # fmt: skip
        made = thresholds.fit_decisions(known, said, size=SIZE)
        thresholds.attach_decisions(path, made)
        reference.attach(path, reference.make(known, said, made))
        yield path


@contextmanager
def _links(films: list[Path], count: int) -> Iterator[list[str]]:
    """So many names for these films, each a link."""
    with tempfile.TemporaryDirectory() as folder:
        for i in range(count):
            film = films[i % len(films)]
            Path(folder, f"{i:06d}{film.suffix}").symlink_to(film)
        yield [str(path) for path in sorted(Path(folder).iterdir())]


def _dicom() -> list[Path]:
    return [SHARED / "dicom" / "cr_monochrome2_jpeg.dcm"]


def _run(words: list[str], bytecode: str) -> tuple[float, float]:
    """Seconds and processor seconds of a command whose modules were compiled before, as after any first call."""
    surroundings = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    surroundings["PYTHONPYCACHEPREFIX"] = bytecode
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run(words, check=True, capture_output=True, cwd=paths.project(), env=surroundings)
    passed, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    return passed, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def _python(code: str, *words: str) -> float:
    """Number that a program prints."""
    done = subprocess.run([sys.executable, "-c", code, *words], check=True, capture_output=True, text=True,
                          cwd=paths.project())  # fmt: skip
    return float(done.stdout.split()[-1])


BENCHES = (stream, memory, shell)
