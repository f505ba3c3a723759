from pathlib import Path

import pytest
import samples


@pytest.fixture
def folder(tmp_path) -> Path:
    """Data folder in the NIH layout: 40 films of noise of 16 patients, 20 px."""
    return samples.write_folder(tmp_path / "nih")
