"""NVIDIA cards that this torch can or cannot use: one message each, with what to do."""

import pytest
import torch

from cxrlib import UserError
from cxrlib.training import devices, optim

BUILT = ["sm_75", "sm_80", "sm_86", "sm_90", "sm_100", "compute_120"]


@pytest.mark.parametrize(
    ("capability", "runs"),
    [
        ((6, 0), False),
        ((7, 0), False),
        ((7, 5), True),
        ((8, 9), True),
        ((9, 0), True),
        ((10, 3), True),
        ((12, 1), True),
    ],
)
def test_which_cards_a_build_has_code_for(capability, runs):
    assert devices.has_code(capability, BUILT) == runs
    assert devices.has_code(capability, [])


def test_an_old_driver_is_told_with_what_to_install(monkeypatch):
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    said = devices.why_unusable("The NVIDIA driver on your system is too old (found version 12020). Please update")
    assert "for CUDA 12.2 at most" in said
    assert "built for CUDA 13.0; install a newer driver, or torch and torchvision for CUDA 12.2" in said


def test_a_card_that_is_there_and_cannot_be_used_is_not_passed_over(monkeypatch, tmp_path):
    monkeypatch.delenv(devices.DEVICE, raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    monkeypatch.setattr(devices, "NODES", (str(tmp_path / "nvidiactl"),))
    assert devices.device() == torch.device("cpu")
    (tmp_path / "nvidiactl").touch()
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(devices, "_complaint", lambda: "CUDA unknown error")
    with pytest.raises(UserError, match="CUDA unknown error; see whether nvidia-smi lists it, or set CXR_DEVICE=cpu"):
        devices.device()
    monkeypatch.setattr(torch.version, "cuda", None)
    with pytest.warns(UserWarning, match="built for the CPU alone"):
        assert devices.device() == torch.device("cpu")
    monkeypatch.setenv(devices.DEVICE, "cpu")
    assert devices.device() == torch.device("cpu")


@pytest.fixture
def old_card(monkeypatch):
    devices._check_opens.cache_clear()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda at: "Tesla P100")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda at: (6, 0))
    monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: BUILT)
    yield
    devices._check_opens.cache_clear()


def test_a_card_without_code_for_it_is_told_which_build_to_take(old_card):
    with pytest.raises(UserError, match=r"has no code for Tesla P100, compute capability 6.0; .*torch-backend=cu126"):
        devices.device("cuda")


def test_a_device_that_is_not_there_is_named(old_card, monkeypatch):
    with pytest.raises(UserError, match="there is no cuda:3: this machine shows 1 cards"):
        devices.device("cuda:3")
    with pytest.raises(UserError, match="device 'gpu' is unknown; give cpu, cuda, cuda:1 or mps"):
        devices.device("gpu")
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(UserError, match="mps is not available"):
        devices.device("mps")


def test_a_card_in_use_by_another_says_so(old_card, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: ["sm_60"])

    def busy(*_, **__):
        raise RuntimeError("CUDA error: all CUDA-capable devices are busy or unavailable\nmore")

    monkeypatch.setattr(torch, "zeros", busy)
    with pytest.raises(
        UserError, match=r"Tesla P100 \(cuda\) cannot be used \(CUDA error: all .* unavailable\); see nv"
    ):
        devices.device("cuda")


def test_a_gpu_that_fails_is_told_and_nothing_more_is_asked_of_it():
    error = RuntimeError("CUDA error: unspecified launch failure\nCUDA kernel errors might be asynchronously reported")
    with (
        pytest.raises(
            UserError, match=r"stage 3: the GPU failed \(CUDA error: unspecified launch failure\); the last saved state"
        ),
        devices.explain_failures(torch.device("cpu"), "stage 3", 8),
    ):
        raise error

    class Dead(torch.nn.Module):
        """Network whose weights can be read once, before the card fails."""

        trainable = ("fc",)
        asked = 0

        def state_dict(self):
            self.asked += 1
            assert self.asked == 1, "copied on a card that has failed"
            return {"fc.weight": torch.ones(1)}

    with pytest.raises(RuntimeError, match="unspecified"), optim.given_back(Dead()):
        raise error


def test_what_is_no_failure_of_the_card_stays_what_it_is():
    assert not devices.is_gpu_failure(torch.OutOfMemoryError("CUDA out of memory"))
    assert not devices.is_gpu_failure(RuntimeError("CUDA error: out of memory"))
    assert not devices.is_gpu_failure(RuntimeError("shape mismatch"))
    assert devices.is_gpu_failure(RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"))
