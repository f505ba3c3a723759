"""What the tests of the training floor share."""

import pytest
import torch


@pytest.fixture(autouse=True)
def one_thread():
    """Nets of this size are no faster on two threads, and the same bits are asked for again and again."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
