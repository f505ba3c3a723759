"""Exchange of values between processes, without starting any: the test passes the broadcast messages on."""

import re

import pytest
import tiny
import torch
from torch import nn

from cxrlib import UserError
from cxrlib.training import network, processes

CPU = torch.device("cpu")


@pytest.fixture
def told(monkeypatch):
    """Double of the broadcast: it stores the first process's message and gives it to the second."""
    heard = []

    def broadcast(values):
        if values == [None, None] and heard:
            return heard[0]
        heard[:] = [values]
        return values

    monkeypatch.setattr("accelerate.utils.broadcast_object_list", broadcast)
    return heard


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (UserError("no room"), UserError),
        (KeyboardInterrupt("stop"), KeyboardInterrupt),
        (OSError(28, "No space left on device"), RuntimeError),
        (ValueError("odd"), RuntimeError),
        (MemoryError("all gone"), RuntimeError),
    ],
)
def test_whatever_fails_in_the_first_process_ends_every_one(told, error, kind):
    def fail():
        raise error

    first, second = (processes.ProcessGroup(CPU, rank=rank, world=2) for rank in (0, 1))
    with pytest.raises(type(error)):
        first.from_first(fail)
    with pytest.raises(kind, match=re.escape(str(error))):
        second.from_first(lambda: pytest.fail("asked in the second process"))


def test_what_the_first_cannot_hold_no_process_goes_on_with(told):
    def taken():
        raise UserError("in use by process 7")

    for rank in (0, 1):
        with (
            pytest.raises(UserError, match="process 7"),
            processes.ProcessGroup(CPU, rank=rank, world=2).held_by_first(taken),
        ):
            pytest.fail("went on")


@pytest.mark.parametrize(("device", "shared"), [("cpu", processes.SharedBatchNorm), ("cuda", nn.SyncBatchNorm)])
def test_a_network_has_its_own_batchnorms_again_with_what_they_learnt(device, shared):
    model = network.train_only(tiny.net(), ("layer4", "fc"))
    own, before = dict(model.named_modules()), network.table(model)
    with processes.shared_statistics(model, processes.ProcessGroup(torch.device(device), world=2)):
        assert type(model.layer4[0].bn1) is shared
        assert type(model.layer1[0].bn1) is nn.BatchNorm2d
        model.layer4[0].bn1.running_mean = torch.ones(512)  # a new tensor object
        with torch.no_grad():
            model.layer4[0].bn1.weight.fill_(3)
    assert dict(model.named_modules()) == own
    assert network.table(model).equals(before)
    assert before.set_index("group")["batchnorm"]["layer4"] == "moves"
    assert model.layer4[0].bn1.running_mean.eq(1).all()
    assert model.layer4[0].bn1.weight.eq(3).all()


def test_they_are_given_back_after_an_error_too():
    model = tiny.net()
    with pytest.raises(ZeroDivisionError), processes.shared_statistics(model, processes.ProcessGroup(CPU, world=2)):
        _ = 1 / 0
    assert {type(module) for module in model.modules() if isinstance(module, nn.BatchNorm2d)} == {nn.BatchNorm2d}


def test_one_gpu_takes_batches_of_one_film():
    part = tiny.TinyBatches(1, batch_size=1)
    mine = processes.ProcessGroup(torch.device("cuda")).share(part)
    assert mine is part
    assert (mine.rank, mine.world) == (0, 1)
    with pytest.raises(UserError, match="2 processes share batches of 1 of 1 films"):
        processes.ProcessGroup(CPU, world=2).share(part)


def test_more_processes_than_cards_are_refused(monkeypatch):
    processes._launched.cache_clear()
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    with pytest.raises(UserError, match="4 processes were started on a machine with 2 GPUs; start at most one per GPU"):
        processes._launched(False)
