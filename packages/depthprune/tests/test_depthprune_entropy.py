"""Counts and entropies: golden values, and what batching, layout, scaling and in-place activations must not change."""

from __future__ import annotations

import copy

import pytest
import torch
from depthprune.capture import capture, sites
from depthprune.entropy import Counts, binary_entropy, count
from edge_shared.errors import InputError
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn


def counts_of(z: torch.Tensor, axis: int = 1, upper: float | None = None) -> Counts:
    counts = Counts(z.shape[axis])
    counts.add(z, axis, upper)
    return counts


@pytest.mark.parametrize(("on", "total", "bits"), [(2, 4, 1.0), (1, 4, 0.811278), (1, 8, 0.543564), (0, 4, 0.0), (4, 4, 0.0)])
def test_golden_entropies(on, total, bits) -> None:
    z = torch.tensor([1.0] * on + [-1.0] * (total - on)).reshape(-1, 1)
    assert float(counts_of(z).entropy()[0]) == pytest.approx(bits, abs=1e-6)


def test_what_zero_counts_as() -> None:
    counts = counts_of(torch.tensor([[1.0], [-1.0], [0.0], [0.0]]))
    assert float(counts.entropy("ignored")[0]) == 1.0
    assert float(counts.entropy("off")[0]) == pytest.approx(0.811278, abs=1e-6)
    assert float(counts.entropy("on")[0]) == pytest.approx(0.811278, abs=1e-6)
    assert float(counts.probability("on")[0]) == 0.75
    only_zeros = counts_of(torch.zeros(3, 1))
    assert float(only_zeros.entropy("ignored")[0]) == 0.0


def test_layer_means() -> None:
    z = torch.tensor([[1.0, 1.0], [-1.0, 1.0]])  # neurons of entropy 1 and 0
    assert counts_of(z).layer_entropy("off", "all") == 0.5
    assert counts_of(z).layer_entropy("off", "mixed") == 1.0
    assert counts_of(torch.ones(2, 3)).layer_entropy("off", "mixed") == 0.0


def test_pooled_counts_see_what_the_mean_of_batches_hides() -> None:
    on, off = torch.ones(4, 1), -torch.ones(4, 1)
    pooled = Counts(1)
    for batch in (on, off):
        pooled.add(batch, 1)
    mean_of_batches = (counts_of(on).layer_entropy() + counts_of(off).layer_entropy()) / 2
    assert mean_of_batches == 0.0
    assert pooled.layer_entropy() == 1.0


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**31), st.lists(st.integers(1, 5), min_size=1, max_size=5), st.sampled_from([(), (3,), (2, 3)]))
def test_streaming_equals_one_shot_in_any_batching(seed, batches, positions) -> None:
    generator = torch.Generator().manual_seed(seed)
    z = torch.randint(-2, 9, (sum(batches), 4, *positions), generator=generator).float()
    streamed = Counts(4)
    for part in z.split(batches):
        streamed.add(part, 1, 6.0)
    once = counts_of(z, 1, 6.0)
    brute = z.movedim(1, -1).reshape(-1, 4)
    for got in (streamed, once):
        assert torch.equal(got.on, (brute > 0).sum(0))
        assert torch.equal(got.off, (brute < 0).sum(0))
        assert torch.equal(got.zero, (brute == 0).sum(0))
        assert torch.equal(got.upper, (brute >= 6).sum(0))
        mixed = bool(((brute > 0).any(0) & (brute < 0).any(0)).any())
        if mixed:
            assert got.margin == 0.0
        else:
            assert torch.equal(got.low, brute.amin(0))
            assert torch.equal(got.high, brute.amax(0))
        assert got.total == len(brute)
        assert got.images == len(z)
    last = counts_of(z.movedim(1, -1), z.ndim - 1, 6.0)  # channels last
    assert torch.equal(last.on, once.on)
    assert torch.equal(last.zero, once.zero)
    scaled = counts_of(z * torch.tensor([0.5, 1, 2, 30.0]).reshape(-1, *[1] * len(positions)))
    assert torch.equal(scaled.on, once.on)
    torch.testing.assert_close(binary_entropy(once.probability()), binary_entropy(1 - once.probability()))


def test_margin_and_flip_bound() -> None:
    counts = counts_of(torch.tensor([[2.0, -0.5], [3.0, -4.0]]))
    assert counts.margin == 0.5
    assert counts.flip_bound == 1.0
    many = counts_of(torch.ones(300, 1, 7))
    assert many.flip_bound == pytest.approx(0.01)  # images count, not positions
    assert many.margin == 1.0
    assert counts_of(torch.tensor([[1.0], [-1.0]])).margin == 0.0


def test_nan_is_an_error() -> None:
    with pytest.raises(InputError, match="NaN"):
        counts_of(torch.tensor([[float("nan")]]))


class Net(nn.Module):
    """One shared in-place activation called three times, after a norm, after an addition, and on tokens."""

    def __init__(self, inplace: bool) -> None:
        super().__init__()
        self.conv, self.norm, self.conv2 = nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.Conv2d(6, 6, 3, padding=1)
        self.relu, self.linear = nn.ReLU(inplace=inplace), nn.Linear(6, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.relu(self.norm(self.conv(x)))
        x = self.relu(self.conv2(x) + x)
        return self.relu(self.linear(x.flatten(2).transpose(1, 2))).mean(1)


def test_call_sites_and_in_place_activations() -> None:
    torch.manual_seed(0)
    plain, in_place = Net(False), Net(True)
    in_place.load_state_dict(plain.state_dict())
    x = torch.randn(4, 3, 5, 5)
    results = [count(capture(net.eval(), x), [x]) for net in (plain, in_place)]
    assert list(results[0]) == ["relu", "relu#2", "relu#3"]
    for name, counts in results[0].items():
        assert torch.equal(counts.on, results[1][name].on)
        assert torch.equal(counts.zero, results[1][name].zero)
        assert counts.margin == results[1][name].margin
    assert [site.channel_axis for site in sites(capture(plain, x))] == [1, 1, 2]
    first = plain.norm(plain.conv(x))
    assert torch.equal(results[0]["relu"].on, (first > 0).sum((0, 2, 3)))
    third = results[0]["relu#3"]
    assert third.on.shape == (5,)
    assert third.total == 4 * 25


def test_layouts_and_batching_give_the_same_counts() -> None:
    torch.manual_seed(0)
    net, x = Net(True).eval(), torch.randn(11, 3, 5, 5)
    whole = count(capture(net, x), [x])
    pieces = count(capture(net, x), x.to(memory_format=torch.channels_last).split(2))
    for name, counts in whole.items():
        assert torch.equal(counts.on, pieces[name].on)
        assert torch.equal(counts.zero, pieces[name].zero)
        assert counts.images == pieces[name].images == 11


def test_more_rows_than_a_byte_can_count() -> None:
    z = torch.ones(700, 3)
    z[:, 1] = -1
    z[5, 2] = 0
    for values, axis in ((z, 1), (z.reshape(700, 3, 1, 1), 1), (z.double(), 1), (z.bfloat16(), 1)):
        counts = counts_of(values, axis)
        assert counts.on.tolist() == [700, 0, 699]
        assert counts.off.tolist() == [0, 700, 0]
        assert counts.zero.tolist() == [0, 0, 1]


def test_counting_changes_nothing_and_leaves_no_hook() -> None:
    torch.manual_seed(0)
    net = Net(True)
    x = torch.randn(2, 3, 5, 5)
    net.train()
    before = copy.deepcopy(net.state_dict())
    gm = capture(net, x)
    count(gm, [x])
    assert gm.training
    for name, value in net.state_dict().items():
        assert torch.equal(value, before[name])
    assert not any(module._forward_pre_hooks for module in gm.modules())


def test_norms_folded_while_counting_give_the_same_counts_and_come_back() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, groups=8), nn.BatchNorm2d(8), nn.ReLU6(),
        nn.ReLU(), nn.BatchNorm2d(8), nn.ReLU(),
    ).double()  # fmt: skip
    x = [torch.randn(5, 3, 9, 9, dtype=torch.float64) for _ in range(3)]
    for batch in x:
        net(batch)  # statistics that are not 0 and 1
    for norm in (net[1], net[4]):
        nn.init.normal_(norm.weight)
        nn.init.normal_(norm.bias)
    gm = capture(net.eval(), x[0])
    modules = dict(gm.named_modules())
    counts = count(gm, x)
    assert dict(gm.named_modules()) == modules
    expected, z = {name: torch.zeros(8, dtype=torch.int64) for name in counts}, torch.cat(x)
    for index, layer in enumerate(net):
        if str(index) in expected:
            expected[str(index)] = (z > 0).sum((0, 2, 3))
        z = layer(z)
    assert len(expected) == 4
    for name, on in expected.items():
        assert torch.equal(counts[name].on, on)


def test_empty_loader_and_other_batches() -> None:
    gm = capture(Net(False).eval(), torch.randn(1, 3, 5, 5))
    with pytest.raises(InputError, match="empty"):
        count(gm, [])
    with pytest.raises(InputError, match="dict"):
        count(gm, [({"x": 1}, 2)])
