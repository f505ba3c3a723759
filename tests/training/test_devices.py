"""Memory, out of memory, and precision of the machine."""

import ctypes
import resource
import sys
from functools import partial
from pathlib import Path

import pytest
import tiny
import torch

from cxrlib import UserError
from cxrlib.training import devices

CPU = torch.device("cpu")
LARGE = 2**28
"""Bytes of a block that glibc by default returns to the system at once."""
GLIBC = pytest.mark.skipif(
    sys.platform != "linux" or not hasattr(ctypes.CDLL(None), "mallopt"), reason="the C library is not glibc"
)


def test_running_out_of_memory_says_what_to_try():
    guard = partial(devices.explain_failures, torch.device("cpu"), "stage 3", 8)
    with pytest.raises(UserError, match="stage 3 ran out of memory on cpu at batch size 8; try batch_size 4"), guard():
        raise torch.OutOfMemoryError("CUDA out of memory")
    with pytest.raises(RuntimeError, match="shape"), guard():
        raise RuntimeError("shape mismatch")


def test_half_precision_only_where_the_processor_has_it(monkeypatch):
    for name in devices.CPU_BF16:
        monkeypatch.setattr(torch.cpu, name, lambda: False, raising=False)
    assert not devices.has_bfloat16(torch.device("cpu"))
    monkeypatch.setattr(torch.cpu, devices.CPU_BF16[0], lambda: True, raising=False)
    assert devices.has_bfloat16(torch.device("cpu"))


def resident() -> int:
    """Bytes of this process in memory."""
    return 4096 * int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])


def faults(blocks: int) -> int:
    """Page faults while so many blocks are filled and freed, one after the other."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(blocks):
        torch.ones(LARGE, dtype=torch.uint8)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


@GLIBC
def test_a_training_keeps_the_memory_it_frees_and_gives_it_back_at_its_end():
    before, pages = resident(), LARGE / 4096
    with devices.keep_memory(CPU):
        faults(10)  # glibc allocates a few aligned blocks before it uses one of them again
        assert faults(10) < 0.01 * pages
        assert resident() - before > LARGE / 2
    assert resident() - before < LARGE / 2


@GLIBC
def test_memory_is_given_back_where_a_training_fails():
    def fail():
        with devices.keep_memory(CPU):
            torch.ones(LARGE, dtype=torch.uint8)
            raise ZeroDivisionError

    before = resident()
    with pytest.raises(ZeroDivisionError):
        fail()
    assert resident() - before < LARGE / 2


def test_where_the_c_library_is_another_nothing_changes(monkeypatch):
    monkeypatch.setattr(devices.ctypes, "CDLL", lambda name: object())
    with devices.keep_memory(CPU):
        pass


@GLIBC
def test_a_stage_trains_with_its_memory_kept(tmp_path, monkeypatch):
    asked, real = [], devices.keep_memory
    monkeypatch.setattr(devices, "keep_memory", lambda at: asked.append(at) or real(at))
    tiny.train(tmp_path, {"epochs": 1})
    assert asked == [CPU]


def test_a_step_cut_into_parts_keeps_its_films_where_they_divide():
    assert devices.in_parts(128, 48) == (32, 4)
    assert devices.in_parts(128, 64) == (64, 2)
    assert devices.in_parts(127, 48) == (48, 3), "a prime has no parts, so the step is a little larger"
    for batch in range(1, 140):
        for fits in range(batch + 1):
            size, parts = devices.in_parts(batch, fits)
            assert 1 <= size <= max(fits, 1)
            assert batch <= size * parts < batch + size
