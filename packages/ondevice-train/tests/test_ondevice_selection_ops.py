"""Selective layers: gradients of dense autograd, bytes as predicted, what is frozen stays to the bit (checks 4-12 of the notes)."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from edge_shared import architectures
from edge_shared.memory import measure
from hypothesis import given, settings
from hypothesis import strategies as st
from ondevice_train.ops import chain
from ondevice_train.ops.selective import Selective
from ondevice_train.selection.importance import Ranking
from ondevice_train.selection.install import SelectiveModel
from ondevice_train.selection.layers import Selection
from ondevice_train.selection.scheme import read_scheme, scheme_memory
from ondevice_train.selection.selector import Setting
from ondevice_train.selection.table import selector_class
from torch import nn
from torch.nn import functional as F

GEOMETRIES = [
    # in, out, kernel, stride, padding, dilation, groups
    (6, 8, 1, 1, 0, 1, 1),
    (6, 8, 3, 1, 1, 1, 1),
    (6, 8, 3, 2, 1, 1, 1),
    (6, 8, (3, 5), (2, 1), (1, 2), 1, 1),
    (6, 4, 3, 1, 2, 2, 1),
    (6, 6, 3, 1, 1, 1, 6),
    (6, 12, 3, 2, 1, 1, 6),
    (6, 6, 5, 2, 2, 1, 6),
    (6, 8, 3, 1, 1, 1, 2),
    (6, 9, 3, 2, 0, 1, 3),
]


def full_gradient_slice(module, selective):
    return module.weight.grad[selective._index()]


@pytest.mark.parametrize("geometry", GEOMETRIES)
@pytest.mark.parametrize("unit", ["input", "output"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_conv_gradients_equal_dense_autograd(geometry, unit, dtype):
    """Check 5."""
    torch.manual_seed(0)
    inside, outside, kernel, stride, padding, dilation, groups = geometry
    dense = nn.Conv2d(inside, outside, kernel, stride, padding, dilation, groups).to(dtype)
    selective = Selective(copy.deepcopy(dense))
    selective.bias.requires_grad_(True)
    channels = [0, 2, 5] if unit == "input" else [1, 3]
    selective.select(channels, unit)
    a = torch.randn(3, inside, 9, 8, dtype=dtype, requires_grad=True)
    b = a.detach().clone().requires_grad_()
    y, z = dense(a), selective(b)
    assert torch.equal(y, z)
    g = torch.randn_like(y)
    y.backward(g)
    z.backward(g)
    tolerance = {"rtol": 1e-12, "atol": 1e-12} if dtype == torch.float64 else {"rtol": 1e-5, "atol": 1e-5}
    torch.testing.assert_close(b.grad, a.grad, **tolerance)
    torch.testing.assert_close(selective.bias.grad, dense.bias.grad, **tolerance)
    torch.testing.assert_close(selective.slice.grad, full_gradient_slice(dense, selective), **tolerance)
    assert selective.weight.grad is None


@pytest.mark.parametrize("shape", [(4, 6), (2, 5, 6), (2, 3, 4, 6)])
@pytest.mark.parametrize("unit", ["input", "output"])
def test_linear_gradients_equal_dense_autograd(shape, unit):
    """Check 5."""
    torch.manual_seed(0)
    dense = nn.Linear(6, 5).double()
    selective = Selective(copy.deepcopy(dense))
    selective.select([1, 4], unit)
    a = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    b = a.detach().clone().requires_grad_()
    y, z = dense(a), selective(b)
    g = torch.randn_like(y)
    y.backward(g)
    z.backward(g)
    torch.testing.assert_close(b.grad, a.grad, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(selective.slice.grad, full_gradient_slice(dense, selective), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("groups", [1, 4, 2])
def test_gradcheck(groups):
    torch.manual_seed(0)
    selective = Selective(nn.Conv2d(4, 4, 3, padding=1, groups=groups, bias=False).double())
    selective.select([0, 3])

    def function(x, slice):
        selective.weight.data[selective._index()] = slice.detach()
        return chain._Chain.apply(x, (selective,), slice)

    x = torch.randn(2, 4, 4, 4, dtype=torch.float64, requires_grad=True)
    slice = selective.slice_of(selective.weight).requires_grad_()
    assert torch.autograd.gradcheck(function, (x, slice))


def test_saves_a_copy_of_the_selected_channels_only():
    """Check 6: 4·B·Σ k·H·W, and no saved tensor is a view of the whole activation."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 4, 1))
    for index, channels in enumerate(([0], [1, 5, 6], [2])):
        model[index] = Selective(model[index])
        model[index].select(channels)
    kept = []
    x = torch.randn(5, 3, 6, 7)
    own = {p.data_ptr() for p in [*model.parameters(), *model.buffers()]}

    def pack(tensor):
        if tensor.data_ptr() not in own:
            kept.append(tensor.untyped_storage().nbytes())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        model(x)
    assert sorted(kept) == sorted(4 * 5 * k * 6 * 7 for k in (1, 3, 1))


def test_backward_stops_below_the_shallowest_updated_layer():
    """Check 7: layers before it have no graph, and no bytes; it keeps its one channel, those after it nothing."""
    layers = [Selective(nn.Conv2d(4, 4, 3, padding=1, bias=False)) for _ in range(4)]
    layers[2].select([1])
    x = torch.randn(2, 4, 5, 5)
    outputs, kept = [], []
    for layer in layers:
        given = x
        kept.append(measure.saved_bytes(lambda layer=layer, given=given: layer(given), [*layer.parameters(), *layer.buffers()]).bytes)
        x = layer(x)
        outputs.append(x)
    assert [output.grad_fn is not None for output in outputs] == [False, False, True, True]
    assert kept == [0, 0, 4 * 2 * 25, 0]


def test_torch_keeps_the_input_of_a_frozen_convolution():
    """Check 8: the trap that makes an own operation necessary; if torch changes, we want to know."""
    conv = nn.Conv2d(4, 4, 3, padding=1)
    conv.weight.requires_grad_(False)
    x = torch.randn(2, 4, 5, 5).requires_grad_()
    assert measure.saved_bytes(lambda: conv(x * 1), conv.parameters()).bytes >= 4 * x.numel()
    frozen = Selective(nn.Conv2d(4, 4, 3, padding=1))
    assert measure.saved_bytes(lambda: frozen(x * 1), frozen.parameters()).bytes == 0


def test_an_output_neuron_needs_the_whole_input():
    """Why input channels are the unit of TraDy and MeDyate; a depthwise layer keeps its own channel only."""
    x = torch.randn(2, 6, 5, 5)
    for groups, expected in ((1, x.numel()), (6, 2 * 25)):
        layer = Selective(nn.Conv2d(6, 6, 3, padding=1, groups=groups))
        layer.select([3], "output")
        assert measure.saved_bytes(lambda layer=layer: layer(x * 1), [*layer.parameters(), *layer.buffers()]).bytes == 4 * expected


def small_model():
    torch.manual_seed(0)
    return architectures.module("mcunet-in0", resolution=32, classes=5)


@pytest.mark.parametrize("name", ["mcunet-in0", "mobilenet_v2", "resnet18"])
def test_predicted_bytes_are_the_measured_ones(name):
    torch.manual_seed(0)
    prepared = SelectiveModel(architectures.module(name, resolution=32, classes=5), torch.randn(3, 3, 32, 32), biases=4)
    generator = torch.Generator().manual_seed(0)
    for unit in ("input", "output"):
        for share in (0.0, 0.02, 0.3, 1.0):
            channels = {
                layer.name: tuple(torch.nonzero(torch.rand(layer.channels(unit), generator=generator) < share).flatten().tolist())
                for layer in prepared.layers
                if share == 1.0 or float(torch.rand(1, generator=generator)) < 0.5
            }
            prepared.apply(Selection(unit, {layer: chosen for layer, chosen in channels.items() if chosen}))
            assert prepared.predict().total == prepared.measure()


def test_scheme_bytes_without_torch_equal_measured_bytes():
    """The formula from a table and the process agree for a published scheme."""
    torch.manual_seed(0)
    scheme = read_scheme("49kb", "mcunet-5fps")
    memory = scheme_memory("mcunet-5fps", scheme, accounting="bytes", batch_size=2)
    model = architectures.module("mcunet-5fps", classes=1000)
    prepared = SelectiveModel(model, torch.randn(2, 3, 128, 128), biases=scheme["n_bias"])
    convs = architectures.network("mcunet-5fps").convs()
    kept = {convs[i].name: tuple(range(int(convs[i].in_channels * r))) for i, r in zip(scheme["convs"], scheme["ratios"], strict=True) if r}
    prepared.apply(Selection("input", kept))
    assert prepared.measure() == memory.total_bytes
    assert memory.details["saved_channels"] == 4 * 2 * 3840


def train_steps(prepared, optimizer, steps, seed):
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        x = torch.randn(4, 3, 32, 32, generator=generator)
        y = torch.randint(0, 5, (4,), generator=generator)
        optimizer.zero_grad()
        F.cross_entropy(prepared.model(x), y).backward()
        optimizer.step()


def test_frozen_channels_survive_momentum_and_weight_decay():
    """Checks 10-12: never selected: the same bits; newly frozen: stop at once; the classifier always moves."""
    model = small_model()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    prepared = SelectiveModel(model, torch.randn(4, 3, 32, 32))
    first, second = prepared.layers[-2].name, prepared.layers[-1].name
    prepared.apply(Selection("input", {first: (0, 3), second: (1,)}))
    optimizer = torch.optim.SGD(prepared.parameters(), lr=0.05, momentum=0.9, weight_decay=0.1)
    train_steps(prepared, optimizer, 3, seed=1)
    middle = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    momentum = optimizer.state[prepared.modules[second].slice]["momentum_buffer"].clone()
    prepared.apply(Selection("input", {second: (1, 2)}), optimizer)
    carried = optimizer.state[prepared.modules[second].slice]["momentum_buffer"]
    assert torch.equal(carried[:, :1], momentum)
    assert torch.equal(carried[:, 1:], torch.zeros_like(carried[:, 1:]))
    train_steps(prepared, optimizer, 3, seed=2)
    prepared.restore()
    after = model.state_dict()
    moved = after[f"{second}.weight"] != before[f"{second}.weight"]
    assert set(torch.nonzero(moved.flatten(2).any(2).any(0)).flatten().tolist()) == {1, 2}
    assert torch.equal(after[f"{first}.weight"], middle[f"{first}.weight"])
    assert not torch.equal(middle[f"{first}.weight"], before[f"{first}.weight"])
    for name in before:
        if name not in (f"{first}.weight", f"{second}.weight") and not name.startswith("classifier"):
            assert torch.equal(after[name], before[name]), name
    assert not torch.equal(after["classifier.weight"], middle["classifier.weight"])
    assert not torch.equal(middle["classifier.weight"], before["classifier.weight"])


def test_selecting_everything_is_dense_training():
    """All channels selected, one step: the weights of plain PyTorch with frozen norms."""
    ours, theirs = small_model().double(), small_model().double()
    x, y = torch.randn(4, 3, 32, 32, dtype=torch.float64), torch.tensor([0, 1, 2, 3])
    prepared = SelectiveModel(ours, x, smooth_bits=32)
    prepared.apply(Selection.everything("input", prepared.layers))
    for parameter in theirs.parameters():
        parameter.requires_grad_(parameter.ndim > 1)
    theirs.classifier.bias.requires_grad_(True)
    theirs.train()
    for module in theirs.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    for model, parameters in ((ours, prepared.parameters()), (theirs, [p for p in theirs.parameters() if p.requires_grad])):
        optimizer = torch.optim.SGD(parameters, lr=0.1, momentum=0.9, weight_decay=0.01)
        for _ in range(2):
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            optimizer.step()
    prepared.restore()
    for (name, a), b in zip(ours.state_dict().items(), theirs.state_dict().values(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11, msg=name)


def test_state_dict_is_that_of_the_plain_model():
    model = small_model()
    keys = sorted(model.state_dict())
    prepared = SelectiveModel(model, torch.randn(4, 3, 32, 32))
    prepared.apply(Selection("input", {prepared.layers[3].name: (0, 1)}))
    optimizer = torch.optim.SGD(prepared.parameters(), lr=0.1)
    train_steps(prepared, optimizer, 1, seed=0)
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    assert sorted(state) == keys
    train_steps(prepared, optimizer, 1, seed=1)
    model.load_state_dict(state)
    module = prepared.modules[prepared.layers[3].name]
    assert torch.equal(module.slice_of(state[f"{prepared.layers[3].name}.weight"]), module.slice.detach())


@pytest.mark.parametrize("channels", [[3, 1], [0, 0], [-1], [6]])
def test_bad_channels_are_refused(channels):
    with pytest.raises(ValueError, match="increase"):
        Selective(nn.Conv2d(6, 4, 1)).select(channels)


@pytest.mark.parametrize("name", ["full-random", "trady", "medyate", "last-k"])
def test_a_budget_is_never_exceeded_by_measurement(name):
    """Check 13 on the process: 250 random pairs of seed and budget for each of four methods, three epochs each now and then."""
    model = architectures.mobile.module(architectures.mobile.MobileConfig.parse(TINY)).eval()
    x = torch.randn(2, 3, 16, 16)
    prepared = SelectiveModel(model, x)
    generator = np.random.default_rng(0)
    norms = {layer.name: generator.lognormal(size=layer.inputs) for layer in prepared.layers}
    scores = Ranking.of(norms, prepared.layers)
    for seed in range(250):
        slots = seed % 3
        costs = prepared.costs("bytes", "input", slots)
        amount = int(generator.integers(costs.smallest(), 1.1 * costs.total(range(len(costs.per_channel)))))
        selector = selector_class(name)(Setting(costs, amount, seed, scores))
        selection = selector.start(None)
        for epoch in range(3 if seed % 25 == 0 else 1):
            prepared.apply(selection)
            held = prepared.training_bytes()
            assert held["saved"] == prepared.predict().total
            assert held["total"] + slots * held["gradients"] <= amount
            selection = selector.after_epoch(epoch, Norms({k: norms[k][list(v)] for k, v in selection.channels.items()}), selection)


class Norms:
    """Gradient norms of the selected channels, by hand."""

    def __init__(self, norms):
        self.norms = norms

    def channel_norms(self):
        return self.norms


TINY = {
    "resolution": 16, "stem": {"out": 8, "stride": 2}, "classes": 4,
    "blocks": [{"kernel": 3, "expand": 2, "out": 8, "stride": 1}, {"kernel": 3, "expand": 2, "out": 8, "stride": 2}],
}  # fmt: skip


@given(st.integers(1, 4), st.integers(1, 3), st.sampled_from([1, 2]), st.data())
@settings(max_examples=25, deadline=None)
def test_bytes_scale_with_the_batch(batch, kernel, stride, data):
    """Check 4: kept activations are linear in the batch, gradients do not depend on it."""
    layer = Selective(nn.Conv2d(5, 3, kernel, stride=stride))
    chosen = sorted(data.draw(st.sets(st.integers(0, 4), min_size=1)))
    layer.select(chosen)
    x = torch.randn(batch, 5, 6, 6)
    kept = measure.saved_bytes(lambda: layer(x), [*layer.parameters(), *layer.buffers()]).bytes
    assert kept == 4 * batch * len(chosen) * 36
    layer(x).sum().backward()
    assert layer.slice.grad.shape == (3, len(chosen), kernel, kernel)


def test_channels_kept_in_8_bits():
    """A quarter of the bytes, predicted exactly; dx and db exact, dW off by the rounding of x only."""
    torch.manual_seed(0)
    prepared = SelectiveModel(small_model(), torch.randn(3, 3, 32, 32), keep_bits=8)
    chosen = {layer.name: tuple(range(0, layer.inputs, 2)) for layer in prepared.layers}
    prepared.apply(Selection("input", chosen))
    assert prepared.predict().total == prepared.measure()
    flat = [
        int(s) + c for s, layer in zip(prepared.costs("bytes", "input").starts, prepared.layers, strict=True) for c in chosen[layer.name]
    ]
    assert prepared.costs("bytes", "input").total(flat) == prepared.training_bytes()["total"]
    prepared.apply(Selection("output", {layer.name: (0, 1) for layer in prepared.layers if layer.depthwise}))
    assert prepared.predict().total == prepared.measure()

    exact = nn.Conv2d(4, 5, 3, padding=1).double()
    rounded, same = Selective(copy.deepcopy(exact), keep_bits=8), Selective(copy.deepcopy(exact))
    x = torch.randn(2, 4, 6, 6, dtype=torch.float64)
    gradients = []
    for layer in (rounded, same):
        layer.select([1, 3])
        a = x.clone().requires_grad_()
        layer(a).square().sum().backward()
        gradients.append((a.grad, layer.slice.grad))
    assert torch.equal(gradients[0][0], gradients[1][0])
    relative = (gradients[0][1] - gradients[1][1]).norm() / gradients[1][1].norm()
    assert 0 < relative < 0.01


def chained(dtype=torch.float64, act=nn.ReLU6):
    """Convolutions in a row with norms and activations, plain and as a chain; every statistic is a number of its own."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), act(),
        nn.Conv2d(8, 8, 5, padding=2, groups=8, bias=False), nn.BatchNorm2d(8), act(),
        nn.Conv2d(8, 6, 1, bias=False), nn.BatchNorm2d(6),
        nn.Conv2d(6, 6, 3, stride=2), act(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 4),
    ).to(dtype)  # fmt: skip
    for name, value in model.state_dict().items():
        if ".running_" in name or name.split(".")[0] in "147":
            value.copy_(torch.rand_like(value) + 0.5) if value.is_floating_point() else None
    return model


@pytest.mark.parametrize("act", [nn.ReLU6, nn.ReLU, nn.LeakyReLU, nn.Hardtanh])
@pytest.mark.parametrize("lowest", [0, 3, 6])
def test_a_chain_has_the_gradients_of_dense_autograd(lowest, act):
    """One node for the row of layers: every slice, every trained bias and dx to 1e-12; its bytes as predicted; undone to the bit."""
    dense, ours = chained(act=act), chained(act=act)
    x = torch.randn(3, 3, 8, 8, dtype=torch.float64)
    y = torch.tensor([0, 1, 2])
    prepared = SelectiveModel(ours, x, biases=3)
    assert [len(module._links) for module in prepared.modules.values()] == [4, 1, 1, 1]
    chosen = {name: (0, 2) for name in ("0", "3", "6", "8") if int(name) >= lowest}
    prepared.apply(Selection("input", chosen))
    assert prepared.measure() == prepared.predict().total
    dense.train()
    for module in dense:
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    a, b = x.clone().requires_grad_(), x.clone().requires_grad_()
    F.cross_entropy(dense(a), y).backward()
    F.cross_entropy(ours(b), y).backward()
    tolerance = {"rtol": 1e-12, "atol": 1e-12}
    torch.testing.assert_close(b.grad, a.grad, **tolerance)
    for name in chosen:
        module = prepared.modules[name]
        torch.testing.assert_close(module.slice.grad, dense[int(name)].weight.grad[module._index()], **tolerance)
    for norm in (4, 7):
        torch.testing.assert_close(ours[norm].bias.grad, dense[norm].bias.grad, **tolerance)
    torch.testing.assert_close(ours[8].bias.grad, dense[8].bias.grad, **tolerance)
    with torch.no_grad():
        ours[4].bias += 1
        dense[4].bias += 1
    torch.testing.assert_close(ours(x), dense(x), **tolerance)  # a bias that moved is seen
    prepared.restore()
    assert [type(module) for module in ours] == [type(module) for module in dense]
    assert all(torch.equal(p, q) for p, q in zip(ours.state_dict().values(), dense.state_dict().values(), strict=True))


def test_a_tensor_that_two_layers_read_ends_a_chain():
    class Residual(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c, self.act = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1), nn.ReLU()
            self.head = nn.Linear(3, 2)

        def forward(self, x):
            y = self.a(x)
            return self.head((y + self.c(self.act(self.b(y)))).mean((2, 3)))

    torch.manual_seed(0)
    model = Residual()
    x = torch.randn(2, 3, 4, 4)
    expected = model(x)
    prepared = SelectiveModel(model, x)
    assert {name: len(module._links) for name, module in prepared.modules.items() if not module._inside} == {"a": 1, "b": 2}
    torch.testing.assert_close(model(x), expected)


def test_hooks_see_each_layer_when_the_chain_is_parted():
    model, x = chained().eval(), torch.randn(2, 3, 8, 8, dtype=torch.float64)
    expected = model[:5](x)
    prepared = SelectiveModel(model, x)
    model.eval()
    prepared.unchain()
    seen = []
    prepared.modules["3"].register_forward_hook(lambda module, inputs, output: seen.append(output))
    before = model(x)
    torch.testing.assert_close(seen[0], expected)
    prepared.chain()
    torch.testing.assert_close(model(x), before)


def test_gradients_under_autocast():
    """bfloat16 where torch would use it: gradients in float32, near the exact ones."""
    x, y = torch.randn(4, 3, 8, 8), torch.tensor([0, 1, 2, 3])
    found = []
    for enabled in (False, True):
        prepared = SelectiveModel(chained(torch.float32), x, biases=2)
        prepared.apply(Selection("input", {"0": (1, 2), "3": (0, 4), "6": (3,), "8": (5,)}))
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            loss = F.cross_entropy(prepared.model(x), y)
        loss.backward()
        found.append([parameter.grad for parameter in prepared.parameters()])
    for exact, rounded in zip(*found, strict=True):
        assert rounded.dtype == torch.float32
        assert float((rounded - exact).norm()) <= 0.1 * float(exact.norm())
