import numpy as np
import pandas as pd
import pytest

from cxrlib.errors import UserError
from cxrlib.training import checkpoint, origin


def test_random_and_imagenet_weights_have_seen_no_patient():
    for weights in ("none", "IMAGENET1K_V2"):
        words, patients = origin.films_of(weights)
        assert words != origin.UNKNOWN
        assert len(patients) == 0


def test_a_file_without_a_list_is_of_unknown_origin(tmp_path):
    words, patients = origin.films_of(str(tmp_path / "w.pth"))
    assert words == origin.UNKNOWN
    assert len(patients) == 0


def test_the_list_beside_foreign_weights_goes_into_the_lineage(tmp_path):
    (tmp_path / "w.pth.films.txt").write_text("00000013_005.png\n00000013_006.png\n77\n\n")
    films = pd.DataFrame({"patient": [5, 6]})
    line = checkpoint.lineage(None, str(tmp_path / "w.pth"), films)
    np.testing.assert_array_equal(line.patients, [5, 6, 13, 77])
    assert "2 patients" in line.origin


def test_a_damaged_list_names_its_line(tmp_path):
    (tmp_path / "w.pth.films.txt").write_text("13\nHernia\n")
    with pytest.raises(UserError, match="line 2: 'Hernia'"):
        origin.films_of(str(tmp_path / "w.pth"))
