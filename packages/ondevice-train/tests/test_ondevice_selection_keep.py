"""Selected channels that are compressed too: gradients of the projected input, bytes as predicted, one budget never exceeded."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from edge_shared import architectures
from edge_shared.architectures import mobile
from edge_shared.errors import InputError
from ondevice_train.compression._tucker import expand
from ondevice_train.ops.selective import Selective
from ondevice_train.selection.full_random import FullRandom
from ondevice_train.selection.install import SelectiveModel
from ondevice_train.selection.keep import Keep, plan_keeps
from ondevice_train.selection.layers import Selection
from ondevice_train.selection.selector import Setting
from torch import nn

NETWORK = {
    "resolution": 16, "stem": {"out": 8, "kernel": 3, "stride": 1}, "classes": 10, "name": "tiny",
    "blocks": [{"kernel": 3, "expand": 2, "out": 8, "stride": 1}, {"kernel": 5, "expand": 2, "out": 12, "stride": 2}],
}  # fmt: skip


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return mobile.module(mobile.MobileConfig.parse(NETWORK))


@pytest.fixture(scope="module")
def batch():
    """Smooth images: their rows and columns are nearly of low rank."""
    generator = torch.Generator().manual_seed(1)
    coarse = torch.randn(6, 3, 4, 4, generator=generator)
    return nn.functional.interpolate(coarse, size=16, mode="bilinear"), torch.arange(6) % 10


@pytest.fixture(scope="module")
def keeps(network, batch):
    found = plan_keeps(copy.deepcopy(network), *batch, compress="auto", max_error=0.5)
    assert {keep.form for keep in found.values()} == {"low-rank", "int8"}
    return found


@pytest.mark.parametrize(("kernel", "stride", "groups"), [(1, 1, 1), (3, 1, 1), (3, 2, 1), (3, 1, 6), (5, 2, 6)])
@pytest.mark.parametrize("fixed", [False, True])
def test_gradient_is_that_of_the_projected_input(kernel, stride, groups, fixed):
    """To 1e-12: the dense gradient of the layer if it had been given what the bases leave of its input; dX and db are exact."""
    torch.manual_seed(0)
    dense = nn.Conv2d(6, 6 if groups > 1 else 5, kernel, stride, kernel // 2, groups=groups).double()
    layer = Selective(copy.deepcopy(dense))
    layer.bias.requires_grad_(True)
    layer.codec = Keep("low-rank", (3, 4), (9, 8), fixed, groups > 1).codec()
    channels = [1, 2, 5]
    layer.select(channels)
    x = torch.randn(4, 6, 9, 8, dtype=torch.float64, requires_grad=True)
    y = layer(x)
    seed = torch.randn_like(y)
    y.backward(seed)
    core, *factors = layer.codec.encode(x.detach()[:, channels])
    assert core.shape == (4, 3, 3, 4)
    projected = torch.zeros_like(x)
    projected[:, channels] = expand(core, tuple(factors))
    assert (projected[:, channels] - x[:, channels]).norm() > 0.1 * x[:, channels].norm()
    dense(projected).backward(seed)
    torch.testing.assert_close(layer.slice.grad, dense.weight.grad[layer._index()], rtol=1e-12, atol=1e-12)
    assert torch.equal(y, dense(x))
    (dx,) = torch.autograd.grad(dense(x), x, seed)
    torch.testing.assert_close(x.grad, dx, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(layer.bias.grad, seed.sum((0, 2, 3)), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("seed", range(12))
def test_bytes_are_predicted_and_the_budget_holds(seed, network, batch, keeps):
    """Random budgets and selections: what is measured is what was predicted, and never more than the budget."""
    x, y = batch
    generator = np.random.default_rng(seed)
    prepared = SelectiveModel(copy.deepcopy(network), x, keeps=keeps)
    slots = int(generator.integers(0, 3))
    costs = prepared.costs("bytes", "input", slots)
    everything = costs.total(range(len(costs.per_channel)))
    amount = int(generator.integers(costs.smallest(), everything))
    selector = FullRandom(Setting(costs, amount, seed))
    selection = selector.start(None)
    for epoch in range(3):
        prepared.apply(selection)
        nn.functional.cross_entropy(prepared.model(x), y).backward()  # bases exist and have been warm
        measured = prepared.training_bytes()
        starts = dict(zip((layer.name for layer in prepared.layers), costs.starts, strict=True))
        total = costs.total(starts[name] + channel for name, channels in selection.channels.items() for channel in channels)
        assert prepared.predict().total == measured["saved"]
        assert total == measured["total"] + slots * measured["gradients"]
        assert total <= amount
        selection = selector.after_epoch(epoch, None, selection)


def test_the_same_budget_updates_more_channels(network, batch, keeps):
    x, _ = batch
    counts = []
    for forms in (None, keeps):
        prepared = SelectiveModel(copy.deepcopy(network), x, keeps=forms)
        costs = prepared.costs("bytes", "input")
        counts.append(FullRandom(Setting(costs, costs.smallest() + 60_000, 0)).start(None).count)
    assert counts[1] > 1.3 * counts[0]


def test_forms_stay_within_their_error(network, batch):
    strict = plan_keeps(copy.deepcopy(network), *batch, compress="asi", max_error=0.1)
    loose = plan_keeps(copy.deepcopy(network), *batch, compress="asi", max_error=0.6)
    assert all(keep.form == "low-rank" and keep.gradient_error <= 0.1 for keep in strict.values())
    assert all(keep.gradient_error <= 0.6 for keep in loose.values())
    assert set(strict) <= set(loose)
    for name, keep in strict.items():
        assert loose[name].channel_bytes(6, 256) <= keep.channel_bytes(6, 256)


def test_full_gradients_of_an_oracle_are_not_compressed(network, batch, keeps):
    from ondevice_train.selection.driver import accumulate_norms

    found = []
    for forms in (None, keeps):
        prepared = SelectiveModel(copy.deepcopy(network), batch[0], keeps=forms)
        prepared.apply(Selection("input", {prepared.layers[0].name: (0, 2)}))
        found.append(accumulate_norms(prepared, [batch]))
        assert all((module.codec is None) == (prepared.keeps[name].form != "low-rank") for name, module in prepared.modules.items())
    rounded = [name for name, keep in keeps.items() if keep.form == "int8"]
    for name, norms in found[0].items():
        np.testing.assert_allclose(found[1][name], norms, rtol=0.05 if name in rounded else 1e-5)


@pytest.mark.parametrize(("settings", "word"), [({"compress": "zip"}, "known: asi"), ({"max_error": 0.0}, "share")])
def test_bad_settings(settings, word, network, batch):
    with pytest.raises(InputError, match=word):
        plan_keeps(network, *batch, **settings)


def test_mobile_networks_of_the_papers():
    """MCUNet-in1: every layer that is planned has a form, and the prediction holds for all channels at once."""
    torch.manual_seed(0)
    model = architectures.module("mcunet-in0", resolution=48, classes=10)
    x = torch.randn(2, 3, 48, 48)
    keeps = plan_keeps(model, x, torch.tensor([0, 1]), compress="auto", max_error=0.8)
    prepared = SelectiveModel(model, x, keeps=keeps)
    prepared.apply(Selection.everything("input", prepared.layers))
    assert prepared.predict().total == prepared.measure()
