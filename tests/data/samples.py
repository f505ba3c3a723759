"""Small data folder in the NIH layout: 40 films of noise of 16 patients, 20 px, so that tests are fast."""

from pathlib import Path

import cv2
import numpy as np

HEADER = (
    "Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Gender,View Position,"
    "OriginalImage[Width,Height],OriginalImagePixelSpacing[x,y]"
)
CELLS = ("No Finding", "Effusion", "Mass|Nodule", "Hernia", "Effusion|Infiltration", "No Finding", "Edema")


def row(
    patient: int, follow_up: int, *, finding: str = "No Finding", age: str = "50", sex: str = "F", view: str = "PA"
) -> str:
    name = f"{patient:08d}_{follow_up:03d}.png"
    return f"{name},{finding},{follow_up},{patient},{age},{sex},{view},2500,2048,0.171,0.171"


def write_film(path: Path, seed: int, side: int = 20) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (side, side), dtype=np.uint8)
    cv2.imwrite(str(path), pixels)


def write_folder(folder: Path, films: int = 40, side: int = 20) -> Path:
    lines = []
    for i in range(films):
        patient, follow_up = 1 + i * 2 // 5, i % 5
        lines.append(row(patient, follow_up, finding=CELLS[i % len(CELLS)], sex="MF"[i % 2]))
        write_film(folder / "images" / lines[-1].split(",")[0], i, side)
    (folder / "Data_Entry_2017.csv").write_text("\n".join([HEADER, *lines]) + "\n")
    return folder
