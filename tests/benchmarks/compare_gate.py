"""What the gate refuses: films and pictures of many kinds, by their pixels, by the network's features, and by both.

``python -m tests.benchmarks.compare_gate --run real --data ../shared/nih-1k`` prints a table and writes it to
``outputs/bench/gate-<run>.csv``. The checkpoint is the best of the run's last stage, or ``--ckpt``; its gate is fitted
if it has none. Kinds whose files are not in ``--shared`` are left out, and so are photographs where scikit-image is not
installed.

Columns: ``n`` pictures · ``righted`` share that the pixel part turned or inverted · ``wrong`` share that was read in
another position than it was taken in, where that is known · ``pixels`` share refused by the pixel part ·
``pixels_auc`` AUROC of its distance from upright films · ``features`` share beyond the gate's threshold, as the picture
lies · ``features_auc`` AUROC of the gate's distance · ``both`` share refused in the end, after righting · ``both_auc``
AUROC of the distance after righting, infinite where the pixel part refuses. All AUROCs are against validation films.

``--model FOLDER`` prints instead the constants of the pixel model in ``data.film_quality``, from the films in FOLDER.
"""

import argparse
import sys
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
from PIL import Image, ImageDraw, ImageFont

from cxrlib import UserError, dataset, metrics, paths
from cxrlib.data import batches, film_quality, images
from cxrlib.evaluation import gate
from cxrlib.phantom import phantom
from cxrlib.training import checkpoint, lineage, network

Films = list[images.Film]
WORDS = ("chest", "pa", "study", "series", "window", "level", "measure", "report", "findings", "lungs", "heart")
NOT_TYPICAL = ("00017999_000.png", "00017625_000.png", "00003490_011.png")
"""Films of nih-1k that are negatives or lie upside down: no examples for the pixel model."""


def read(path: Path) -> images.Film:
    return images.decode_film(images.load(path), path)


def grey(pixels: np.ndarray) -> images.Film:
    return images.Film(np.ascontiguousarray(pixels), "L")


def picture(of: Image.Image) -> images.Film:
    """A picture as it would be read from a PNG file, with its colour."""
    file = BytesIO()
    of.save(file, "PNG")
    return images.decode_film(file.getvalue(), "picture.png")


CHANGES = {
    "inverted": lambda p: 255 - p,
    "turned to the left": lambda p: np.rot90(p, 1),
    "upside down": lambda p: np.rot90(p, 2),
    "turned to the right": lambda p: np.rot90(p, 3),
    "inverted, turned to the left": lambda p: 255 - np.rot90(p, 1),
    "inverted, upside down": lambda p: 255 - np.rot90(p, 2),
    "turned by 45°": lambda p: slanted(p, 45),
    "mirrored": lambda p: p[:, ::-1],
    "left half": lambda p: p[:, : p.shape[1] // 2],
    "upper half": lambda p: p[: p.shape[0] // 2],
    "quarter (a corner)": lambda p: p[: p.shape[0] // 2, : p.shape[1] // 2],
    "quarter (the middle)": lambda p: p[p.shape[0] // 4 : -p.shape[0] // 4, p.shape[1] // 4 : -p.shape[1] // 4],
    "shifted by a quarter": lambda p: np.pad(p, ((0, 0), (p.shape[1] // 4, 0)))[:, : p.shape[1]],
}
"""Changes of a film. The first six can be undone to the last pixel."""
UNDONE = tuple(CHANGES)[:6]


def slanted(pixels: np.ndarray, degrees: float) -> np.ndarray:
    """Film turned by any angle inside its frame, with black corners."""
    height, width = pixels.shape
    turn = cv2.getRotationMatrix2D((width / 2, height / 2), degrees, 1)
    return cv2.warpAffine(pixels, turn, (width, height))


def page(rng: np.random.Generator) -> images.Film:
    """A page of text, dark on white or white on dark."""
    dark = rng.random() < 0.5
    made = Image.new("RGB", (1280, 800), (30, 30, 34) if dark else (250, 250, 250))
    pen = ImageDraw.Draw(made)
    for y in range(20, 770, 26):
        line = " ".join(rng.choice(WORDS, rng.integers(4, 16)))
        pen.text((30, y), line, (220,) * 3 if dark else (20,) * 3, ImageFont.load_default(16))
    return picture(made)


def viewer(film: np.ndarray, rng: np.random.Generator) -> images.Film:
    """The window of a film viewer, with a menu, a list of studies, and text over the film."""
    back = int(rng.integers(25, 70))
    made = Image.new("RGB", (1280, 800), (back,) * 3)
    pen = ImageDraw.Draw(made)
    left = int(rng.integers(220, 340))
    for x in range(10, 1220, 90):
        pen.text((x, 15), str(rng.choice(WORDS)), (220,) * 3, ImageFont.load_default(15))
    pen.rectangle((left, 60, 1270, 790), (0, 0, 0))
    for y in range(70, 770, 28):
        pen.text((12, y), " ".join(rng.choice(WORDS, 3)), (200,) * 3, ImageFont.load_default(14))
    made.paste(Image.fromarray(film).resize((710, 710)), (left + (1270 - left - 710) // 2, 70))
    for row in range(4):
        pen.text((left + 10, 70 + 20 * row), " ".join(rng.choice(WORDS, 3)), (230,) * 3, ImageFont.load_default(14))
    return picture(made)


def slide(film: np.ndarray, rng: np.random.Generator) -> images.Film:
    """A white slide of a talk with a title, a film, and a list beside it."""
    made = Image.new("RGB", (1000, 1000), (255, 255, 255))
    pen = ImageDraw.Draw(made)
    pen.text((60, 30), " ".join(rng.choice(WORDS, 4)), (0, 0, 120), ImageFont.load_default(40))
    made.paste(Image.fromarray(film).resize((560, 560)), (40, 150))
    for row in range(9):
        pen.text((630, 170 + 50 * row), "- " + " ".join(rng.choice(WORDS, 2)), (0, 0, 0), ImageFont.load_default(22))
    return picture(made)


def photographs() -> Films:
    """The photographs and pictures that scikit-learn and scikit-image have in their packages."""
    from sklearn.datasets import load_sample_images

    found = [picture(Image.fromarray(one)) for one in load_sample_images().images]
    try:
        import skimage
    except ImportError:
        return found
    for path in sorted((Path(skimage.__file__).parent / "data").iterdir()):
        if path.suffix in (".png", ".jpg"):
            found.append(read(path))
    return found


def digits(count: int = 200) -> Films:
    """scikit-learn's handwritten digits, enlarged from 8² to 256²."""
    from sklearn.datasets import load_digits

    small = (load_digits().images[:count] * 255 / 16).astype(np.uint8)
    return [grey(cv2.resize(one, (256, 256), interpolation=cv2.INTER_CUBIC)) for one in small]


def scans(folder: Path) -> Iterator[tuple[str, images.Film]]:
    """DICOM films, and the pixels of other DICOM files as if these were films."""
    import pydicom

    for path in sorted(folder.glob("*.dcm")):
        try:
            yield "DICOM films", read(path)
        except UserError:
            values = pydicom.dcmread(path).pixel_array.astype(np.float64)
            values = (values - values.min()) / np.ptp(values) * 255
            yield "CT (pixels forced)", grey(values.astype(np.uint8))


def kinds(test: Films, shared: Path, folder: Path) -> Iterator[tuple[str, Films, Films]]:
    """Kinds of pictures: name, pictures, and what they should be read as (empty where that is not known)."""
    rng = np.random.default_rng(0)
    pixels = [film.pixels for film in test]
    for name, change in CHANGES.items():
        yield name, [grey(change(one)) for one in pixels], test if name in UNDONE else []
    for name, source in (("nih-more", shared / "nih-more" / "images"), ("odd films", shared / "odd-films")):
        if source.is_dir():
            found = [read(path) for path in sorted(source.iterdir()) if path.suffix in images.SUFFIXES]
            yield name, found, found
    if (shared / "odd-films" / "turned").is_dir():
        found = [read(path) for path in sorted((shared / "odd-films" / "turned").iterdir())]
        yield "odd films, turned", found, [grey(np.rot90(film.pixels, 3)) for film in found]
    dicom = list(scans(shared / "dicom"))
    for name in dict.fromkeys(name for name, _ in dicom):
        yield name, [film for kind, film in dicom if kind == name], []
    for side in (64, 128, 224):
        drawn = folder / f"phantom-gate-{side}"
        place = drawn if drawn.is_dir() else phantom.write(drawn, 100, size=side, seed=1000)
        found = [read(path) for path in sorted((place / "images").iterdir())]
        yield f"phantoms, {side} px", found, found
    yield "photographs", photographs(), []
    yield "photographs, grey", [film._replace(colour=0.0) for film in photographs()], []
    yield "digits", digits(), []
    yield "noise", [grey(rng.integers(0, 256, (256, 256), dtype=np.uint8)) for _ in range(50)], []
    soft = [cv2.GaussianBlur(rng.integers(0, 256, (256, 256), dtype=np.uint8), (0, 0), 12) for _ in range(50)]
    yield "noise, soft", [grey(cv2.normalize(one, None, 0, 255, cv2.NORM_MINMAX)) for one in soft], []
    yield "pages of text", [page(rng) for _ in range(40)], []
    yield "viewer windows", [viewer(one, rng) for one in pixels[:40]], []
    yield "slides", [slide(one, rng) for one in pixels[:40]], []


class Measured:
    """Pixel and feature part on a list of pictures."""

    def __init__(self, films: Films, model: network.Network, size: int, door: gate.Gate) -> None:
        self.judged = [film_quality.judge(film) for film in films]
        self.refused = np.array([bool(one.refusal) for one in self.judged])
        self.righted = np.array([bool(one.righted) for one in self.judged])
        self.pixels = np.array([film_quality.distances(film.pixels)[0] for film in films])
        self.plain, changed = (
            door.distance(gate.features_of_pixels(model, np.stack([images.shrink(one.pixels, size) for one in these])))
            for these in (films, self.judged)
        )
        self.both = np.where(self.refused, np.inf, changed)

    def row(self, name: str, val: "Measured", threshold: float, right: Films) -> dict:
        wrong = [
            not one.refusal and not np.array_equal(one.pixels, film.pixels)
            for one, film in zip(self.judged, right or [], strict=bool(right))
        ]
        return {
            "kind": name,
            "n": len(self.judged),
            "righted": self.righted.mean(),
            "wrong": np.mean(wrong) if wrong else np.nan,
            "pixels": self.refused.mean(),
            "pixels_auc": auroc(val.pixels, self.pixels),
            "features": np.mean(self.plain > threshold),
            "features_auc": auroc(val.plain, self.plain),
            "both": np.mean(self.both > threshold),
            "both_auc": auroc(val.both, self.both),
        }


def auroc(usual: np.ndarray, foreign: np.ndarray) -> float:
    """Probability that a foreign picture has the larger distance; equal ones count half."""
    scores = pd.Series(np.concatenate([usual, foreign])).rank().to_numpy()  # ranks, since infinity is no score
    return metrics.roc_auc(np.repeat([0, 1], [len(usual), len(foreign)]), scores / len(scores))


def measure(run: str, ckpt: str, data: str, shared: Path) -> pd.DataFrame:
    folder = paths.Run(run)
    path = checkpoint.resolve(ckpt, folder) if ckpt else lineage.stage_checkpoints(folder)[-1]
    size = checkpoint.size(path)
    xrays = dataset.open(data, size, progress=False)
    model = network.build("none")
    checkpoint.load_into(model, path)
    train, val = (batches.Batches(xrays.store, part, batch_size=64) for part in (xrays.parts.train, xrays.parts.val))
    door = gate.fit_once(path, model, train, val)
    val, test = ([read(path) for path in part["path"]] for part in (xrays.parts.val, xrays.parts.test))
    print(f"{path.stem} of {run}, {len(train.films)} training films of {size} px; threshold {door.threshold:.3f}")
    usual = Measured(val, model, size, door)
    rows = [usual.row("validation films", usual, door.threshold, [])]
    rows.append(Measured(test, model, size, door).row("test films", usual, door.threshold, []))
    for name, films, right in kinds(test, shared, paths.outputs() / "bench"):
        rows.append(Measured(films, model, size, door).row(name, usual, door.threshold, right))
        print(".", end="", flush=True)
    print()
    return pd.DataFrame(rows)


def print_model(folder: Path, modes: int = 16) -> None:
    """Print the constants of ``film_quality`` from a folder's films and their mirror images."""
    found = [images.read(path) for path in sorted(folder.iterdir()) if path.name not in NOT_TYPICAL]
    side = film_quality.SIDE
    small = [cv2.resize(film_quality.without_frame(one), (side, side), interpolation=cv2.INTER_AREA) for one in found]
    films = np.array([film_quality.standardised(one) for one in small])
    films = np.concatenate([films, films[:, :, ::-1]]).reshape(-1, side * side)
    mean = films.mean(0)
    _, scales, directions = np.linalg.svd(films - mean, full_matrices=False)
    variances = scales**2 / len(films)
    print("_LEFT_HALF", np.rint(100 * mean).astype(int).reshape(side, side)[:, : side // 2].tolist())
    for direction, variance in zip(directions[:modes], variances, strict=False):
        mode = (100 * np.sqrt(variance) * direction).reshape(side, side)
        left, right = mode[:, : side // 2], mode[:, : side // 2 - 1 : -1]
        sign = 1 if np.abs(left - right).sum() < np.abs(left + right).sum() else -1
        print("EVEN" if sign > 0 else "ODD ", *np.rint((left + sign * right) / 2).astype(int).ravel())
    print("REST", round(float(variances[modes:].sum() / (side * side - modes)), 4))


def main() -> int:
    given = parser().parse_args()
    if given.model:
        print_model(paths.resolve(given.model))
        return 0
    table = measure(given.run, given.ckpt, given.data, paths.resolve(given.shared))
    file = paths.outputs() / "bench" / f"gate-{given.run}.csv"
    paths.write_text(file, table.to_csv(index=False, float_format="%.4f"))
    print(table.to_string(index=False, float_format=lambda value: f"{value:.3f}"))
    return 0


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(prog="python -m tests.benchmarks.compare_gate", description=__doc__,
                                   formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    made.add_argument("--run", default="demo", help="run whose checkpoint is asked")
    made.add_argument("--ckpt", default="", help="checkpoint; the best of the run's last stage if empty")
    made.add_argument("--data", default="", help="folder that the run was trained on; the phantom set if empty")
    made.add_argument("--shared", default="../shared", help="folder with nih-more, odd-films and dicom")
    made.add_argument("--model", default="", help="folder of films: print the pixel model's constants and stop")
    return made


if __name__ == "__main__":
    try:
        raise SystemExit(main())
    except UserError as error:
        print(error, file=sys.stderr)
        raise SystemExit(2) from None
