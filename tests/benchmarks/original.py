"""The original's way of loading, written out plainly, to be measured against."""

import cv2
import numpy as np
import pandas as pd
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from cxrlib.data import records

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Films(Dataset):
    """Every film decoded in colour at its full size each time it is asked for, then made small by Pillow."""

    def __init__(self, films: pd.DataFrame, size: int = 224) -> None:
        self.paths = films["path"].tolist()
        self.labels = records.label_matrix(films).astype(np.float32)
        self.transform = transforms.Compose(
            [
                transforms.ToPILImage(),
                transforms.Resize(size),
                transforms.ToTensor(),
                transforms.Normalize(MEAN, STD),
            ]
        )

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, row: int) -> tuple:
        return self.transform(cv2.imread(self.paths[row])), self.labels[row]


def epoch(films: pd.DataFrame, workers: int = 0, batch_size: int = 32) -> int:
    """Go through all films once; give their number."""
    loader = DataLoader(Films(films), batch_size=batch_size, shuffle=True, num_workers=workers)
    return sum(len(labels) for _, labels in loader)
