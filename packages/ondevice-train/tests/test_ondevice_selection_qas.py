"""An int8 graph: integers as they would run, gradients of its fp32 counterpart (check 25 end to end)."""

from __future__ import annotations

import numpy as np
import torch
from ondevice_train.selection import qas
from torch import nn
from torch.nn import functional as F


def network():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU6(),
        nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, 16), nn.ReLU(),
        nn.Linear(16, 4),
    )  # fmt: skip
    for value in (model[1].running_mean, model[1].running_var, model[1].weight.data, model[1].bias.data):
        value.uniform_(0.5, 1.5)
    return model


def test_a_layer_computes_on_integers():
    """Against numpy's int64 on the same levels; halves of an output level may round either way."""
    torch.manual_seed(1)
    x = torch.randn(4, 3, 6, 6)
    model = network()
    layers = qas.int8_graph(model, [x], head="9")
    layer = layers["0"]
    levels = (
        np.clip(np.rint(x.numpy() / np.float32(layer.inputs.scale) + layer.inputs.zero), -128, 127).astype(np.int64) - layer.inputs.zero
    )
    weight = layer.weight.detach().numpy().astype(np.int64)
    assert np.array_equal(weight, layer.weight.detach().numpy())
    assert np.abs(weight).max() == 127
    steps = F.conv2d(torch.from_numpy(levels).double(), torch.from_numpy(weight).double(), None, 2, 1).numpy()
    steps = steps + layer.bias.detach().double().numpy()[:, None, None]
    assert np.array_equal(steps, np.rint(steps))
    value = steps * (layer.scale.double().numpy()[:, None, None] * layer.inputs.scale)
    expected = np.clip(np.rint(value / layer.outputs.scale + layer.outputs.zero), -128, 127) - layer.outputs.zero
    got = layer(x).detach().double().numpy() / layer.outputs.scale
    assert np.abs(got - expected).max() <= 1 + 1e-3
    assert np.mean(np.abs(got - expected) > 1e-3) < 0.01


def test_the_graph_is_near_the_float_model_and_goes_back():
    x = torch.randn(16, 3, 12, 12)
    model = network().eval()
    expected = model(x)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    layers = qas.int8_graph(model, [x], head="9")
    assert float((model(x) - expected).detach().abs().max()) < 0.05 * float(expected.detach().abs().max())
    qas.to_float(model, layers)
    assert [type(module) for module in model] == [type(module) for module in network()]
    after = model.state_dict()
    for name, value in before.items():
        assert float((after[name] - value).abs().max()) <= 0.01 * float(value.abs().max()) + 1e-6, name


def test_gradients_are_those_of_the_float_model():
    """G̃_W s_W is the fp32 gradient, up to the rounding of the activations; unscaled it is s_W² of that."""
    x, y = torch.randn(64, 3, 12, 12), torch.arange(64) % 4
    plain = network().eval()
    F.cross_entropy(plain(x), y).backward()
    for scaled in (True, False):
        model = network()
        layers = qas.int8_graph(model, [x], head="9", scaled=scaled)
        F.cross_entropy(model(x), y).backward()
        layer = layers["7"]
        factor = layer.scale[:, None] if scaled else 1 / layer.scale[:, None]
        exact, ours = plain[7].weight.grad, layer.weight.grad * factor
        assert float((ours - exact).norm()) < 0.15 * float(exact.norm())


def train(model, x, y):
    for parameter in model[9].parameters():
        parameter.requires_grad_(False)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    losses = []
    for _ in range(12):
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses


def test_only_scaled_gradients_move_an_int8_graph():
    """A learning rate that suits fp32 trains the scaled graph as well, and leaves the other where it is."""
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(60, 3, 12, 12, generator=generator) + torch.eye(3).repeat(20, 1)[:, :, None, None]
    y = torch.arange(60) % 3
    plain = train(network().eval(), x, y)
    assert plain[0] - plain[-1] > 0.02
    for scaled in (True, False):
        model = network()
        layers = qas.int8_graph(model, [x], head="9", scaled=scaled)
        before = {name: layer.weight.detach().clone() for name, layer in layers.items()}
        losses = train(model, x, y)
        moved = any(not torch.equal(before[name].round(), layer.weight.detach().round()) for name, layer in layers.items())
        assert moved == scaled
        learned = (losses[0] - losses[-1]) / (plain[0] - plain[-1])
        assert 0.8 < learned < 1.2 if scaled else abs(learned) < 0.01
