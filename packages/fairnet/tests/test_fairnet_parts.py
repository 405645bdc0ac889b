"""Geometry, information, gates, data: hand values, identities, and the faults of the official codes."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from edge_shared.errors import InputError
from fairnet.data.biased import COLOURS, biased_images, colour
from fairnet.data.parts import Part
from fairnet.data.planting import assign_groups
from fairnet.data.rows import equal_cells
from fairnet.data.table import read_image_table
from fairnet.gates import Gate, GatedNetwork, threshold, two_sigmoid
from fairnet.geometry import (
    Moment,
    alignment,
    alignment_weights,
    balanced_grid_weights,
    boundary_distances,
    centroids,
    group_weights,
    measure,
    revealing_moment,
)
from fairnet.information import InformationHead, bias_of_estimate, mutual_information
from fairnet.networks import MlpNet, SmallNet, Unit, extract, gate_sites, head_of
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

# --- geometry -------------------------------------------------------------------------------------------------------


def test_boundary_by_hand() -> None:
    centres = np.array([[0.0, 0.0], [4.0, 0.0]])
    features = np.array([[2.0, 7.0], [0.0, 0.0], [4.0, 1.0], [1.0, 0.0]])
    labels, predictions = np.array([0, 1, 0, 0]), np.array([1, 0, 1, 0])
    # the boundary is x = 2; distances 0, 2, 2; the last is right; mean norm of the two centroids is 2
    np.testing.assert_allclose(boundary_distances(features, labels, predictions, centres), [0, 1, 1, 0])


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000))
def test_invariances(seed: int) -> None:
    random = np.random.default_rng(seed)
    features, labels, predictions = random.normal(size=(40, 3)), random.integers(0, 4, 40), random.integers(0, 4, 40)
    predictions[:8] = labels[:8] = np.arange(8) % 4
    centres = centroids(features, labels, predictions, 4)
    distances = boundary_distances(features, labels, predictions, centres)
    rotation, _ = np.linalg.qr(random.normal(size=(3, 3)))
    turned = features @ rotation
    np.testing.assert_allclose(
        boundary_distances(turned, labels, predictions, centroids(turned, labels, predictions, 4)), distances, atol=1e-9
    )
    scaled = features * 7.3
    np.testing.assert_allclose(
        boundary_distances(scaled, labels, predictions, centroids(scaled, labels, predictions, 4)), distances, atol=1e-9
    )
    np.testing.assert_allclose(boundary_distances(features, predictions, labels, centres), distances, atol=1e-9)  # H_ij = H_ji


def test_centroids_use_every_sample() -> None:
    """The official code stops at about 700 samples of ten classes, where a product of counts overflows."""
    random = np.random.default_rng(0)
    features, labels = random.normal(size=(10_000, 2)), random.integers(0, 10, 10_000)
    expected = np.array([features[labels == label].mean(0) for label in range(10)])
    np.testing.assert_allclose(centroids(features, labels, labels, 10), expected, rtol=1e-9)


def test_the_revealing_moment() -> None:
    def moments(*measured: tuple[int, float]) -> list[Moment]:
        return [Moment(step, np.zeros(100, dtype=np.int64), wrong, depth) for step, (wrong, depth) in enumerate(measured)]

    nan = float("nan")
    assert revealing_moment(moments((5, 0.2), (5, 0.9), (5, 0.5)), 10) == 1
    assert revealing_moment(moments((5, 0.9), (5, 0.9)), 10) == 0
    assert revealing_moment(moments((5, nan), (5, 0.1)), 10) == 1
    # what an untrained network gets wrong does not count, neither while it learns nor on a plateau at chance
    assert revealing_moment(moments((90, 0.9), (44, 0.8), (10, 0.3), (9, 0.4)), 10) == 3
    assert revealing_moment(moments((50, 0.9), (50, 0.8), (10, 0.3), (9, 0.4)), 2) == 3
    for nothing in (moments((0, nan), (0, nan)), moments((50, 0.9), (20, 0.9), (0, nan), (0, nan)), []):
        with pytest.raises(InputError, match="no conflicting samples found"):
            revealing_moment(nothing, 2)
    with pytest.raises(InputError, match="has not learned"):
        revealing_moment(moments((50, nan)), 2)


def test_measure_of_a_perfect_network_is_nan_not_a_crash() -> None:
    labels = np.array([0, 1, 0, 1])
    found = measure(3, np.eye(4), labels, labels, 2)
    assert found.misclassified == 0
    assert np.isnan(found.depth)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=80))
def test_alignment_weights_balance_each_class(pairs: list[tuple[int, int]]) -> None:
    labels, seen = (np.array(column) for column in zip(*pairs, strict=True))
    found = alignment(labels, seen, 4)
    weights = alignment_weights(found, labels)
    for label in np.unique(labels):
        here = labels == label
        aligned, conflicting = weights[here & found.aligned].sum(), weights[here & ~found.aligned].sum()
        if aligned and conflicting:
            assert aligned == pytest.approx(here.sum())
            assert conflicting == pytest.approx(here.sum())
        else:
            assert aligned + conflicting == here.sum()


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3), st.booleans()), min_size=1, max_size=80))
def test_balanced_grid_weights_restore_the_mass_of_independence(pairs: list[tuple[int, bool]]) -> None:
    labels, follows = (np.array(column) for column in zip(*pairs, strict=True))
    weights = balanced_grid_weights(follows, labels, 4)
    for label in np.unique(labels):
        here = labels == label
        aligned, conflicting = weights[here & follows].sum(), weights[here & ~follows].sum()
        assert aligned + conflicting == pytest.approx(here.sum())
        if (here & follows).any() and (here & ~follows).any():
            assert aligned == pytest.approx(here.sum() / 4)  # one of four groups goes with the label


def test_group_weights_balance_the_cells() -> None:
    labels, groups = np.array([0, 0, 0, 1, 1]), np.array([0, 0, 1, 1, 1])
    weights = group_weights(labels, groups)
    assert weights.mean() == pytest.approx(1)
    assert weights[:2].sum() == pytest.approx(weights[2]) == pytest.approx(weights[3:].sum())


# --- information -----------------------------------------------------------------------------------------------------


def test_information_of_perfect_constant_and_independent_heads() -> None:
    labels = torch.arange(10).repeat(30)
    perfect = torch.nn.functional.one_hot(labels, 10).double() * 200
    assert float(mutual_information(labels, perfect)) == pytest.approx(1, abs=1e-9)
    assert float(mutual_information(labels, torch.ones(300, 10, dtype=torch.double))) == pytest.approx(0, abs=1e-9)
    assert float(mutual_information(labels, perfect.roll(1, 1))) == pytest.approx(1, abs=1e-9)  # names do not matter
    noise = torch.nn.functional.one_hot(labels[torch.randperm(300)], 10).double() * 200
    assert float(mutual_information(labels, noise)) == pytest.approx(bias_of_estimate(300, 10), rel=0.5)


def test_information_equals_a_float64_loop() -> None:
    torch.manual_seed(0)
    labels, logits = torch.randint(0, 3, (17,)), torch.randn(17, 3, dtype=torch.double)
    p = logits.softmax(1).numpy()
    joint = np.zeros((3, 3))
    for n in range(17):
        joint[int(labels[n])] += p[n] / 17
    expected = sum(
        joint[j, k] * np.log(joint[j, k] / (joint[j].sum() * joint[:, k].sum())) for j in range(3) for k in range(3) if joint[j, k] > 0
    ) / np.log(3)
    assert float(mutual_information(labels, logits)) == pytest.approx(expected, rel=1e-9)
    logits.requires_grad_(True)
    assert torch.autograd.gradcheck(lambda z: mutual_information(labels, z), (logits,))


@pytest.mark.parametrize("labels", [[], [2], [1, 1, 1]])
def test_information_of_degenerate_batches_is_zero(labels: list[int]) -> None:
    logits = torch.randn(len(labels), 4, requires_grad=True)
    value = mutual_information(torch.tensor(labels, dtype=torch.long), logits)
    value.backward()
    assert value.item() == pytest.approx(0, abs=1e-6)
    assert logits.grad is not None
    assert torch.isfinite(logits.grad).all()
    assert float(logits.grad.abs().sum()) == pytest.approx(0, abs=1e-5)


def test_the_network_and_the_head_never_train_each_other() -> None:
    torch.manual_seed(0)
    head, features = InformationHead(5, 3), torch.randn(12, 5, requires_grad=True)
    labels = torch.randint(0, 3, (12,))
    head.leak(features, labels).backward()
    assert features.grad is not None
    assert features.grad.abs().sum() > 0
    assert all(parameter.grad is None for parameter in head.parameters())
    features.grad = None
    head.learn(features, labels).backward()
    assert features.grad is None
    assert all(parameter.grad is not None for parameter in head.parameters())


# --- gates -----------------------------------------------------------------------------------------------------------


def test_the_gate_function() -> None:
    gate = torch.tensor([-2.0, -0.1, 0.0, 0.1, 3.0], dtype=torch.double)
    value = two_sigmoid(gate, 1.0)
    assert value[2:].tolist() == [1, 1, 1]
    assert 0 < value[0] < value[1] < 1
    assert two_sigmoid(gate, 1e-6)[:2].tolist() == pytest.approx([0, 0], abs=1e-9)
    below = torch.tensor([-1.3, -0.2], dtype=torch.double, requires_grad=True)
    assert torch.autograd.gradcheck(lambda g: two_sigmoid(g, 0.7), (below,))
    above = torch.tensor([0.0, 0.4], dtype=torch.double, requires_grad=True)
    two_sigmoid(above, 0.5).sum().backward()
    s = torch.sigmoid(above.detach() / 0.5)
    assert above.grad is not None
    torch.testing.assert_close(above.grad, 2 * s * (1 - s) / 0.5)  # an open gate can still close


def test_the_gate_that_is_always_hard() -> None:
    gate = torch.tensor([-0.3, 0.0, 0.4], dtype=torch.double, requires_grad=True)
    value = threshold(gate, 0.5)
    assert value.tolist() == [0, 1, 1]
    value.sum().backward()
    s = torch.sigmoid(gate.detach() / 0.5)
    assert gate.grad is not None
    torch.testing.assert_close(gate.grad, s * (1 - s) / 0.5)


@pytest.mark.parametrize("granularity", ["weights", "channels"])
def test_open_gates_change_nothing_and_closing_leaves_the_weights(granularity: str) -> None:
    torch.manual_seed(0)
    model, x = SmallNet(4).eval(), torch.randn(2, 3, 12, 12)
    before, state = model(x), {name: value.clone() for name, value in model.state_dict().items()}
    sites = [(unit, unit.gate_shape) for unit in gate_sites(model)] if granularity == "channels" else []
    gated = GatedNetwork(model, granularity, sites)  # type: ignore[arg-type]
    assert torch.equal(model(x), before)
    assert gated.kept_share() == 1
    with torch.no_grad():
        for parameter in gated.parameters():
            parameter.copy_(torch.randn_like(parameter))
    gated.set(tau=1e-9)
    soft = model(x)
    gated.set(hard=True)
    torch.testing.assert_close(soft, model(x))
    assert not torch.equal(soft, before)
    gated.close()
    assert torch.equal(model(x), before)
    assert all(torch.equal(model.state_dict()[name], value) for name, value in state.items())


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 1000), st.floats(0.0, 1.0))
def test_the_smaller_network_has_equal_logits(seed: int, share: float) -> None:
    torch.manual_seed(seed)
    model, x = SmallNet(5).eval(), torch.randn(3, 3, 16, 16)
    for unit in gate_sites(model):  # norms as after training
        assert isinstance(unit, Unit)
        nn.init.normal_(unit.norm.running_mean)  # type: ignore[arg-type]
        nn.init.uniform_(unit.norm.bias, -1, 1)
    masks = [torch.rand(unit.gate_shape) < share for unit in gate_sites(model)]
    gated = GatedNetwork(model, "channels", [(unit, unit.gate_shape) for unit in gate_sites(model)])
    gated.load_masks(masks)
    gated.set(hard=True)
    expected = model(x)
    gated.close()
    smaller = extract(model, masks)
    torch.testing.assert_close(smaller(x), expected, atol=1e-5, rtol=1e-5)
    assert sum(p.numel() for p in smaller.parameters()) <= sum(p.numel() for p in model.parameters())


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 1000), st.floats(0.0, 1.0))
def test_the_smaller_perceptron_has_equal_logits(seed: int, share: float) -> None:
    torch.manual_seed(seed)
    model, x = MlpNet(5, 48, widths=(9, 7, 6)).eval(), torch.randn(3, 3, 4, 4)
    masks = [torch.rand(unit.gate_shape) < share for unit in gate_sites(model)]
    gated = GatedNetwork(model, "channels", [(unit, unit.gate_shape) for unit in gate_sites(model)])
    gated.load_masks(masks)
    gated.set(hard=True)
    expected = model(x)
    gated.close()
    smaller = extract(model, masks)
    torch.testing.assert_close(smaller(x), expected, atol=1e-5, rtol=1e-5)
    widths = [max(int(mask.sum()), 1) for mask in masks]
    sizes = [48, *widths, 5]
    assert sum(p.numel() for p in smaller.parameters()) == sum(a * b + b for a, b in itertools.pairwise(sizes))


def test_a_planted_shortcut_is_cut() -> None:
    """Features = [about the label | about the bias], a frozen head that uses both: the learned mask drops the bias block only."""
    torch.manual_seed(0)
    y, b = torch.randint(0, 2, (600,)), torch.randint(0, 2, (600,))
    sign = torch.stack([2.0 * y - 1, 2.0 * b - 1], 1).repeat_interleave(4, 1)
    x = (sign + 0.3 * torch.randn(600, 8))[..., None, None]
    model = nn.Sequential(nn.Identity(), nn.Flatten(), nn.Linear(8, 2))
    with torch.no_grad():
        model[2].weight.copy_(torch.tensor([[-0.5] * 4 + [-1.0] * 4, [0.5] * 4 + [1.0] * 4]))
        model[2].bias.zero_()
    gated, head = GatedNetwork(model, "channels", [(model[0], (8, 1, 1))]), InformationHead(8, 2)
    optimizer, reader = torch.optim.Adam(gated.parameters(), lr=0.05), torch.optim.SGD(head.parameters(), lr=0.1)
    gated.set(tau=0.5)
    for _ in range(150):
        masked = model[0](x)
        features = masked.flatten(1)
        total = torch.nn.functional.cross_entropy(model[2](features), y) + 0.5 * head.leak(features, b)
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        reader.zero_grad()
        head.learn(features, b).backward()
        reader.step()
    kept = gated.masks()[0].flatten()
    assert kept[:4].all()
    assert not kept[4:].any()


def test_a_gate_broadcasts_over_images() -> None:
    gate = Gate((3, 1, 1))
    assert gate(torch.ones(2, 3, 4, 4)).shape == (2, 3, 4, 4)


def test_the_bottleneck_is_the_input_of_the_last_linear_layer() -> None:
    model = SmallNet(7)
    assert head_of(model) is model.head
    with pytest.raises(InputError, match="no linear layer"):
        head_of(nn.Conv2d(1, 1, 1))


# --- data ------------------------------------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 4), min_size=1, max_size=200), st.floats(0, 1), st.integers(0, 99))
def test_exact_counts(labels: list[int], rho: float, seed: int) -> None:
    y = np.array(labels)
    groups = assign_groups(y, 5, rho, np.random.default_rng(seed))
    for label in range(5):
        n = int((y == label).sum())
        aligned = int(((y == label) & (groups == label)).sum())
        assert aligned == int(np.floor(n * rho + 1e-9))
        others = [int(((y == label) & (groups == other)).sum()) for other in range(5) if other != label]
        assert max(others) <= -(-(n - aligned) // 4)
    assert np.array_equal(groups, assign_groups(y, 5, rho, np.random.default_rng(seed)))


def test_published_counts_of_biased_mnist() -> None:
    """Conflicting samples of the 60,000 training digits at the published shares."""
    per_class = [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    y = np.repeat(np.arange(10), per_class)
    counts = {rho: int((assign_groups(y, 10, rho, np.random.default_rng(0)) != y).sum()) for rho in (0.99, 0.995, 0.997, 0.999)}
    assert counts == {0.99: 606, 0.995: 305, 0.997: 184, 0.999: 63}


def test_colours() -> None:
    grey = np.zeros((1, 24, 24), dtype=np.uint8)
    grey[0, 1, 1] = 7
    image = colour(grey, np.array([3]))
    assert image[0, 1, 1].tolist() == [255, 255, 255]
    assert image[0, 0, 0].tolist() == [225, 225, 0] == COLOURS[3].tolist()
    with pytest.raises(InputError, match="rho is 1"):
        assign_groups(np.array([0]), 2, 1.5, np.random.default_rng(0))


def test_planted_digits() -> None:
    data = biased_images("digits", rho=0.9, seed=1)
    again = biased_images("digits", rho=0.9, seed=1)
    assert data.fingerprint == again.fingerprint != biased_images("digits", rho=0.9, seed=2).fingerprint
    assert data.synthetic
    smaller = biased_images("digits", train=600, val=100, balanced=1000)  # together more than there is: nothing grows for that
    assert (len(smaller.train), len(smaller.val)) == (600, 100)
    assert 100 < len(smaller.balanced) < 1000
    assert 0.88 < (data.train.y == data.train.b).mean() <= 0.9
    assert abs((data.test.y == data.test.b).mean() - 0.1) < 0.05
    strokes = [{image.tobytes() for image in part.x.min(-1) == 255} for part in (data.train, data.val, data.balanced, data.test)]
    shared = strokes[3] & (strokes[0] | strokes[1] | strokes[2])  # different scans may give the same 8 x 8 strokes
    assert len(shared) < 0.05 * len(data.test)


def images(folder: Path, rows: list[tuple[str, str, str]]) -> Path:
    from PIL import Image

    lines = ["path,label,group,split"]
    for index, (label, group, split) in enumerate(rows):
        Image.fromarray(np.full((9, 7, 3), index * 9 % 255, dtype=np.uint8)).save(folder / f"{index}.png")
        lines.append(f"{index}.png,{label},{group},{split}")
    (folder / "set.csv").write_text("\n".join(lines) + "\n")
    return folder / "set.csv"


ROWS = [
    (label, group, split) for split in ("train", "val", "test") for label in ("cat", "dog") for group in ("in", "out") for _ in range(2)
]


def test_own_images(tmp_path: Path) -> None:
    data = read_image_table(images(tmp_path, ROWS), size=8)
    assert data.train.x.shape == (8, 8, 8, 3)
    assert data.classes == ("cat", "dog")
    assert data.groups == ("in", "out")
    assert len(data.balanced) == 8
    assert not data.synthetic


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda text: text.replace("path,label", "file,label"), "no column 'path'"),
        (lambda text: text.replace(",train\n", ",nowhere\n", 1), "set.csv:2: split 'nowhere'"),
        (lambda text: text.replace("0.png", "gone.png"), "set.csv:2: cannot read image"),
        (lambda text: text.replace(",val", ",train"), "no rows of split val"),
        (lambda text: text.replace("dog", "cat"), "two classes"),
        (lambda text: text.replace("cat,in,test", "fish,in,test"), "label 'fish' does not occur"),
        (lambda text: text.replace("cat,in,train", "cat,,train"), "empty group"),
        (lambda text: text.replace("dog,out,test", "dog,moon,test"), "group 'moon' has no training image"),
        (lambda text: text + "0.png,cat,in,train,surplus\n", "more cells than the header"),
    ],
)
def test_bad_tables(tmp_path: Path, change, words: str) -> None:  # type: ignore[no-untyped-def]
    file = images(tmp_path, ROWS)
    file.write_text(change(file.read_text()))
    with pytest.raises(InputError, match=words):
        read_image_table(file, size=8)


def test_numbers_out_of_range_are_said() -> None:
    data = biased_images("digits", rho=0.9, train=300, val=40, balanced=60, seed=0)
    for part, field, words in (("train", "y", "labels of train run from 0 to 10"), ("test", "b", "groups of test run from 0 to 10")):
        old = getattr(data, part)
        changed = {"x": old.x, "y": old.y, "b": old.b, field: getattr(old, field).copy()}
        changed[field][0], changed[field][1] = 10, 0
        with pytest.raises(InputError, match=words):
            replace(data, **{part: Part(**changed)})
    with pytest.raises(InputError, match="the val part has no images"):
        replace(data, val=data.val.take(np.array([], dtype=np.int64)))
    only = replace(data, balanced=data.balanced.take(np.flatnonzero(data.balanced.b != 4)))
    with pytest.raises(InputError, match="colour 'magenta' has no image"):
        only.need_balance("ffw")


def test_equal_cells() -> None:
    y, b = np.array([0] * 5 + [1] * 3), np.array([0, 0, 0, 1, 1, 0, 1, 1])
    part = equal_cells(Part(np.zeros((8, 2, 2, 3), dtype=np.uint8), y, b))
    assert sorted(zip(part.y.tolist(), part.b.tolist(), strict=True)) == [(0, 0), (0, 1), (1, 0), (1, 1)]
