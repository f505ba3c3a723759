import numpy as np
import pytest
import torch

from cxrlib import paths
from cxrlib.errors import UserError
from cxrlib.training import network, relay


def test_only_the_first_stage_may_start_without_a_checkpoint():
    run = paths.Run("empty")
    assert relay.parent(run, 1) is None
    with pytest.raises(UserError, match="stage1 holds no finished stage"):
        relay.parent(run, 2)
    with pytest.raises(UserError, match=r"no checkpoint 'stage3_0\.001_6'"):
        relay.parent(run, 1, "stage3_0.001_6")
    with pytest.raises(UserError, match="no finished stage"):
        relay.line(run)


def test_distance_travelled_is_nothing_where_nothing_changed_and_relative_where_it_did():
    model = network.build("none")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with torch.no_grad():
        model.layer3[0].conv1.weight.mul_(2)
        model.fc.weight.mul_(3)
        model.fc.bias.mul_(3)
        model.bn1.running_var.mul_(2)
    far = relay.travelled(before, model.state_dict())
    assert far.loc["fc", "weights"] == pytest.approx(2)
    assert np.isnan(far.loc["fc", "statistics"])
    assert far.loc["layer3", "weights"] > 0
    assert far.loc["stem", "weights"] == 0
    assert far.loc["stem", "statistics"] > 0
    assert (far.loc[["layer1", "layer2", "layer4"]] == 0).all(axis=None)
