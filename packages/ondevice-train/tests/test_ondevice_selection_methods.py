"""Budgets and selectors (checks 1-3, 13-25 of the notes)."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from edge_shared import architectures
from edge_shared.errors import InputError
from edge_shared.network import Layer, Network, Tensor
from hypothesis import given, settings
from hypothesis import strategies as st
from ondevice_train.selection import qas
from ondevice_train.selection.budget import Budget, CostModel, fill
from ondevice_train.selection.importance import Ranking, lara, layer_rgn, layers_for_budget, prefix_holding, tail_index
from ondevice_train.selection.layers import Selection, selectable
from ondevice_train.selection.medyate import MeDyate, weighted_order
from ondevice_train.selection.neq import NEq
from ondevice_train.selection.scotti import SCoTTi, StraightThrough, threshold_gradient
from ondevice_train.selection.selector import Setting
from ondevice_train.selection.sparse_update import order_of
from ondevice_train.selection.table import NAMES, selector_class
from ondevice_train.selection.velocities import Velocities, similarity
from ondevice_train.selection.velocity import Velocity


class Fake:
    """Measurements by hand."""

    def __init__(self, norms=None, outputs=None):
        self.norms, self.values = norms or {}, outputs or {}

    def channel_norms(self):
        return self.norms

    def full_norms(self):
        return self.norms

    def outputs(self):
        return self.values


def network_of(*layers):
    tensors, made, shape = {"x": Tensor("x", layers[0][1])}, [], layers[0][1]
    for index, (kind, in_shape, out_shape, kernel, groups) in enumerate(layers):
        weights = out_shape[1 if kind == "conv" else -1] * in_shape[1 if kind == "conv" else -1] // groups * int(np.prod(kernel or (1,)))
        name = f"layer{index}"
        tensors[name] = Tensor(name, out_shape)
        source = "x" if index == 0 else f"layer{index - 1}"
        made.append(
            Layer(name, kind, kind, (source,), name, in_shape, out_shape, kernel=kernel, groups=groups, weights=weights, params=weights)
        )
    del shape
    return Network("hand", ("x",), (made[-1].output,), tuple(made), tensors)


def test_costs_of_hand_made_layers():
    """Check 2: Θ_space."""
    conv = selectable(network_of(("conv", (1, 4, 6, 6), (1, 8, 6, 6), (3, 3), 1)))[0]
    depthwise = selectable(network_of(("conv", (1, 4, 6, 6), (1, 4, 6, 6), (3, 3), 4)))[0]
    linear = selectable(network_of(("linear", (1, 5, 10), (1, 5, 3), (), 1)))[0]
    assert (conv.cost, depthwise.cost, linear.cost) == (108, 45, 8)
    assert conv.input_macs == 72 * 36
    assert (conv.neuron_weights, conv.shared_activations) == (36, 144)
    assert (depthwise.neuron_weights, depthwise.neuron_activations, depthwise.shared_activations) == (9, 36, 0)


def test_total_of_bert_in_the_papers():
    """Check 1: 12 layers of q, k, v, o and two MLP layers on 128 tokens, the pooler on one; this published total holds the biases."""
    block = [("linear", (1, 128, 768), (1, 128, 768), (), 1)] * 4
    block += [("linear", (1, 128, 768), (1, 128, 3072), (), 1), ("linear", (1, 128, 3072), (1, 128, 768), (), 1)]
    layers = selectable(network_of(*(block * 12), ("linear", (1, 1, 768), (1, 1, 768), (), 1)))
    model = CostModel(layers)
    assert model.total(range(len(model.per_channel))) + sum(layer.outputs for layer in layers) == 96_225_792


NETWORK = architectures.network("mcunet-in1", resolution=128)
LAYERS = selectable(NETWORK, exclude=["classifier"])
TOTAL = 1309808


def costs(unit="input", accounting="units"):
    return CostModel(LAYERS, unit, accounting)


def ranking(seed=0, layers=LAYERS):
    generator = np.random.default_rng(seed)
    return Ranking.of({layer.name: generator.lognormal(size=layer.inputs) for layer in layers}, layers)


def setting(amount=15936, seed=0, **more):
    return Setting(costs(), amount, seed, ranking(), **more)


def test_cost_is_linear():
    """Check 3."""
    model = costs()
    everything = range(len(model.per_channel))
    assert model.total(everything) == TOTAL
    assert model.total([]) == 0
    generator = np.random.default_rng(0)
    chosen = generator.choice(len(model.per_channel), 50, replace=False)
    assert model.total(chosen) == sum(model.total([index]) for index in chosen)
    assert model.total(chosen[:30]) < model.total(chosen)


@pytest.mark.parametrize("overshoot", ["skip", "stop"])
def test_a_budget_is_never_exceeded(overshoot):
    """Check 13: 1000 random pairs of seed and budget."""
    model = costs()
    for seed in range(1000):
        generator = np.random.default_rng(seed)
        amount = int(generator.integers(1, 60_000))
        order = generator.permutation(len(model.per_channel))[:400]
        chosen = fill(order.tolist(), model, amount, overshoot)
        spent = int(model.per_channel[chosen].sum())
        assert spent <= amount
        rest = [index for index in order.tolist() if index not in set(chosen)]
        if overshoot == "skip":
            assert not rest or spent + min(model.per_channel[rest]) > amount
        else:
            assert chosen == order[: len(chosen)].tolist()
            assert len(chosen) == len(order) or spent + model.per_channel[order[len(chosen)]] > amount


def test_a_budget_below_the_cheapest_channel_selects_nothing():
    assert fill(range(len(costs().per_channel)), costs(), int(costs().per_channel.min()) - 1) == []


@given(st.integers(0, 10_000), st.integers(1, 400))
@settings(max_examples=60, deadline=None)
def test_fill_with_costs_of_whole_layers(seed, amount):
    """Channels, layers and a base that depends on the touched set: the total is never over, and skip leaves nothing that fits."""
    layers = LAYERS[-4:]
    depth = {layer.name: 40 * (len(layers) - index) for index, layer in enumerate(layers)}
    model = CostModel(layers, "input", "bytes", base=lambda touched: max((depth[name] for name in touched), default=0) * 1000)
    order = np.random.default_rng(seed).permutation(len(model.per_channel))[:60].tolist()
    chosen = fill(order, model, amount * 1000)
    assert not chosen or model.total(chosen) <= amount * 1000
    for index in set(order) - set(chosen):
        assert model.total([*chosen, index]) > amount * 1000


@pytest.mark.parametrize("text", ["64kB", "1.5MiB", "27946units", "22410 params"])
def test_budgets_parse(text):
    expected = {"64kB": (64000, "bytes"), "1.5MiB": (1572864, "bytes"), "27946units": (27946, "units"), "22410 params": (22410, "params")}
    assert Budget.parse(text) == Budget(*expected[text])


@pytest.mark.parametrize("text", ["", "many", "-3kB", "5 slots", "0"])
def test_bad_budgets(text):
    with pytest.raises(InputError, match="--budget"):
        Budget.parse(text)


@pytest.mark.parametrize("name", ["full-random", "trady", "medyate"])
def test_seeds_decide_the_choice(name):
    """Check 14."""
    make = selector_class(name)
    one = make(setting(seed=3)).start(Fake())
    assert one == make(setting(seed=3)).start(Fake())
    assert one != make(setting(seed=4)).start(Fake())
    assert costs().total(flat(one)) <= 15936


def flat(selection):
    model = costs(selection.unit)
    start = dict(zip((layer.name for layer in LAYERS), model.starts, strict=True))
    return [start[name] + channel for name, channels in selection.channels.items() for channel in channels]


def test_epochs_differ_and_static_does_not():
    dynamic = selector_class("trady")(setting())
    first = dynamic.start(Fake())
    assert dynamic.after_epoch(0, Fake(), first) != first
    static = selector_class("trady")(setting(options={"static": True}))
    assert static.after_epoch(0, Fake(), static.start(Fake())) == static.start(Fake())


def equal_costs(count=64):
    """One layer whose channels all cost the same."""
    return CostModel(selectable(network_of(("conv", (1, count, 4, 4), (1, 4, 4, 4), (1, 1), 1))))


def test_inclusion_is_uniform():
    """Check 14: chi-square over 400 epochs, 16 of 64 channels each."""
    from scipy.stats import chisquare

    model = equal_costs()
    selector = selector_class("full-random")(Setting(model, 16 * int(model.per_channel[0]), 0))
    counts = np.zeros(64)
    for epoch in range(400):
        counts[list(selector.draw(epoch).channels["layer0"])] += 1
    assert counts.sum() == 400 * 16
    assert chisquare(counts).pvalue > 0.001


def test_coverage():
    """Check 15: the unseen share is about (1-α)^e; with optimistic initialisation not more."""
    model = equal_costs(200)
    amount = 40 * int(model.per_channel[0])
    layers = model.layers
    unseen = {}
    for name in ("full-random", "medyate"):
        shares = []
        for seed in range(20):
            options = {"layers": "lara", "alpha": 1.0} if name == "medyate" else {}
            selector = selector_class(name)(Setting(model, amount, seed, ranking(layers=layers), options=options))
            selection = selector.start(Fake())
            seen = set(selection.channels["layer0"])
            for epoch in range(5):
                norms = np.random.default_rng([seed, epoch]).uniform(0.1, 1, len(selection.channels["layer0"]))
                selection = selector.after_epoch(epoch, Fake({"layer0": norms}), selection)
                seen |= set(selection.channels["layer0"])
            shares.append(1 - len(seen) / 200)
        unseen[name] = np.mean(shares)
    assert abs(unseen["full-random"] - 0.8**6) < 0.02
    assert unseen["medyate"] < unseen["full-random"]


def test_medyate_norms():
    """Check 16: epoch 1 ignores norms, then unseen channels get the largest, later they keep it."""
    model = equal_costs(10)
    selector = MeDyate(Setting(model, 3 * int(model.per_channel[0]), 0, ranking(layers=model.layers), options={"alpha": 1.0}))
    first = selector.start(Fake())
    a = first.channels["layer0"]
    second = selector.after_epoch(0, Fake({"layer0": np.array([0.1, 0.5, 0.2])}), first)
    assert [selector.norms[i] for i in a] == [0.1, 0.5, 0.2]
    unseen = [i for i in range(10) if i not in a]
    assert all(selector.norms[i] == 0.5 for i in unseen)
    selector.after_epoch(1, Fake({"layer0": np.array([9.0, 9.0, 9.0])}), second)
    never = [i for i in range(10) if i not in a and i not in second.channels["layer0"]]
    assert all(selector.norms[i] == 0.5 for i in never)
    again = MeDyate(selector.setting)
    again.load_state_dict(selector.state_dict())
    assert np.array_equal(again.norms, selector.norms)


def test_weighted_order():
    """Check 16: without replacement, zeros last, scale free, first draw in proportion to the weights."""
    weights = np.array([1.0, 2.0, 0.0, 5.0, 0.0])
    counts = np.zeros(5)
    for seed in range(4000):
        order = weighted_order(weights, np.random.default_rng(seed))
        assert sorted(order) == [0, 1, 2, 3, 4]
        assert set(order[3:]) == {2, 4}
        counts[order[0]] += 1
        assert np.array_equal(order, weighted_order(weights * 1e-3, np.random.default_rng(seed)))
    assert np.abs(counts / 4000 - weights / 8).max() < 0.03
    assert sorted(weighted_order(np.zeros(4), np.random.default_rng(0))) == [0, 1, 2, 3]


def test_k_rule():
    """Check 17."""
    layer_costs = [100.0, 50.0, 200.0, 400.0, 1000.0]
    previous = 0
    for amount in range(1, 400, 7):
        k = layers_for_budget(layer_costs, amount, 0.2)
        if amount <= 0.2 * sum(layer_costs):
            assert amount / sum(layer_costs[:k]) <= 0.2
            assert k == 1 or amount / sum(layer_costs[: k - 1]) > 0.2
        else:
            assert k == 5
        assert k >= previous
        previous = k


@given(st.integers(0, 1000))
@settings(max_examples=30, deadline=None)
def test_score_identities(seed):
    """Check 18."""
    layer = LAYERS[seed % len(LAYERS)]
    norms = np.random.default_rng(seed).lognormal(size=layer.inputs)
    c = layer.inputs
    one, other = lara(norms, layer), layer_rgn(norms, layer)
    assert one == pytest.approx(np.linalg.norm(norms) / (c * layer.cost))
    assert c * one <= other * (1 + 1e-12)
    assert other <= c**1.5 * one * (1 + 1e-12)
    assert lara(3 * norms, layer) == pytest.approx(3 * one)
    assert layer_rgn(3 * norms, layer) == pytest.approx(3 * other)


def test_prefix_rule_is_the_smallest():
    values = [5.0, 3.0, 1.0, 0.5, 0.5]
    for share in (0.1, 0.5, 0.8, 0.9, 0.97, 1.0):
        k = prefix_holding(values, share)
        assert sum(values[:k]) >= share * 10 - 1e-9
        assert k == 1 or sum(values[: k - 1]) < share * 10
    top = ranking().top()
    scores = {row.name: row.rgn for row in ranking().layers}
    assert sum(scores[name] for name in top) >= 0.97 * sum(scores.values())
    assert sum(scores[name] for name in top[:-1]) < 0.97 * sum(scores.values())


def test_ranking_round_trip_and_errors():
    from edge_shared.files import plain

    assert Ranking.parse(plain(ranking())) == ranking()
    with pytest.raises(InputError, match="ondevice-train rank"):
        Ranking.parse({"layers": [{}]})


def test_tail_index():
    """Check 19."""
    generator = np.random.default_rng(0)
    assert tail_index(generator.standard_normal(1_000_000), 100) == pytest.approx(2.0, abs=0.05)
    assert tail_index(generator.standard_cauchy(1_000_000), 100) == pytest.approx(1.0, abs=0.05)


def test_similarity():
    """Check 20."""
    a = np.random.default_rng(0).standard_normal((4, 3, 9)).astype(np.float32)
    assert similarity(a, a) == pytest.approx(np.ones(3))
    assert similarity(5 * a, a) == pytest.approx(np.ones(3))
    assert similarity(-a, a) == pytest.approx(-np.ones(3))
    zero = np.zeros_like(a)
    assert similarity(zero, zero) == pytest.approx(np.ones(3))
    assert similarity(a, zero) == pytest.approx(np.zeros(3))


def test_equal_outputs_freeze():
    outputs = {layer.name: np.random.default_rng(0).standard_normal((2, layer.outputs, 3)).astype(np.float32) for layer in LAYERS}
    selector = NEq(Setting(CostModel(LAYERS, "output")))
    selection = selector.start(Fake(outputs=outputs))
    assert selection == Selection.everything("output", LAYERS)
    assert selector.after_epoch(0, Fake(outputs=outputs), selection).count == 0


@pytest.mark.parametrize(("recursion", "expected"), [("paper", [1, 0.5, 0.75]), ("official-code", [1, 0.5, 0.25])])
def test_recursions(recursion, expected):
    """Check 21."""
    velocities = Velocities(0.5, recursion)
    assert [float(velocities.advance("a", np.ones(1))[0]) for _ in range(3)] == expected


def test_depthwise_neuron_costs():
    """Check 22: k², and the released code's C·k² as a compatibility."""
    layers = selectable(network_of(("conv", (1, 6, 8, 8), (1, 6, 8, 8), (3, 3), 6)))
    model = CostModel(layers, "output", "params")
    assert set(model.per_channel) == {9}
    assert set(CostModel(layers, "output", "params", neuron_weights={"layer0": 54}).per_channel) == {54}


@given(st.integers(0, 500))
@settings(max_examples=30, deadline=None)
def test_velocity_takes_the_longest_prefix(seed):
    """Check 23: against brute force; equal scores go by index."""
    generator = np.random.default_rng(seed)
    layers = selectable(network_of(("conv", (1, 3, 4, 4), (1, 4, 4, 4), (1, 1), 1), ("conv", (1, 4, 4, 4), (1, 3, 4, 4), (3, 3), 1)))
    model = CostModel(layers, "output", "params")
    amount = int(generator.integers(0, 130))
    selector = Velocity(Setting(model, amount, seed))
    before, after = ({f"layer{i}": generator.integers(-2, 3, (2, n, 4)).astype(np.float32) for i, n in enumerate((4, 3))} for _ in range(2))
    start = selector.start(Fake(outputs=before))
    assert model.total(index(start, model)) <= amount
    chosen = index(selector.after_epoch(0, Fake(outputs=after), start), model)
    score = np.abs(np.concatenate([selector.velocities.values[f"layer{i}"] for i in range(2)])) / model.per_channel
    order = sorted(range(7), key=lambda i: (-score[i], i))
    best = max(k for k in range(8) if sum(model.per_channel[i] for i in order[:k]) <= amount)
    assert set(chosen) == set(order[:best])


def index(selection, model):
    start = dict(zip((layer.name for layer in model.layers), model.starts, strict=True))
    return [int(start[name] + channel) for name, channels in selection.channels.items() for channel in channels]


def test_straight_through():
    """Check 24: the gate and its gradient; ∂L/∂ε equals autograd's on a quadratic."""
    x = torch.tensor([-1.0, 0.0, 2.0], dtype=torch.float64, requires_grad=True)
    y = StraightThrough.apply(x)
    assert y.tolist() == [0, 1, 1]
    assert torch.autograd.grad(y.sum(), x)[0].tolist() == [1, 1, 1]

    torch.manual_seed(0)
    w, m, v = torch.randn(5).double(), torch.randn(5).double(), torch.tensor([0.9, 0.8, 0.7, 0.6, 0.5]).double()
    epsilon, lr = torch.tensor(0.1, dtype=torch.float64, requires_grad=True), 0.3
    moved = w - lr * m * StraightThrough.apply(v.abs() - epsilon)
    loss = (moved.square() * torch.arange(1, 6)).sum()
    expected = torch.autograd.grad(loss, epsilon)[0]
    gradient = 2 * moved.detach() * torch.arange(1, 6)
    assert threshold_gradient(lr, [(gradient, m)]) == pytest.approx(float(expected), rel=1e-12)


def scotti_run(gradients, rate=1e-2):
    from edge_shared.training import Step

    layers = selectable(network_of(("conv", (1, 3, 4, 4), (1, 4, 4, 4), (1, 1), 1)))
    selector = SCoTTi(Setting(CostModel(layers, "output"), options={"rate": rate, "epsilon": 0.05}))
    parameter = torch.nn.Parameter(torch.zeros(4))
    optimizer = torch.optim.SGD([parameter], lr=0.1)
    for number, gradient in enumerate(gradients):
        parameter.grad = torch.full((4,), float(gradient))
        step = Step(0, number, 0.0, torch.nn.Identity(), optimizer, None)
        selector.after_step(step, Selection.everything("output", layers), [parameter])
    return selector.epsilon


def test_threshold_follows_the_gradients():
    """Check 24: agreement lowers ε, alternation raises it, rate 0 keeps it, and it is never negative."""
    assert scotti_run([1, 1, 1]) < 0.05 < scotti_run([1, -1, 1])
    assert scotti_run([1, 1, 1], rate=0) == 0.05
    assert scotti_run([100] * 5, rate=1.0) == 0.0


def test_qas_keeps_the_ratio_of_norms():
    """Check 25."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(6, 4, 3, 3, dtype=torch.float64, generator=generator)
    integers, scale = qas.quantise_weight(weight, bits=16)
    gradient = torch.randn(weight.shape, dtype=torch.float64, generator=generator)
    of_integers = gradient * scale.view(-1, 1, 1, 1)  # chain rule of W = s W̄
    scaled = qas.scale_weight_gradient(of_integers, scale)
    for channel in range(6):
        ratio = integers[channel].norm() / scaled[channel].norm()
        assert float(ratio) == pytest.approx(float(weight[channel].norm() / gradient[channel].norm()), rel=1e-3)
    bias = torch.randn(6, dtype=torch.float64, generator=generator)
    assert torch.equal(qas.scale_bias_gradient(bias, scale, 0.5), bias / (scale * 0.5) ** 2)
    effective = 0.5 * scale / 0.25
    torch.testing.assert_close(qas.weight_scale(effective, 0.5, 0.25), scale)


def test_sparse_update_counts_and_order():
    """int(56 · 0.125) = 7 channels of largest norm; ties by index."""
    norms = {layer.name: np.linspace(1, 2, layer.inputs) for layer in LAYERS}
    name = next(layer.name for layer in LAYERS if layer.inputs == 96)
    selector = selector_class("sparse-update")(Setting(costs(), weight_norms=lambda: norms, options={"ratios": {name: 0.125}}))
    assert selector.start(Fake()).channels == {name: tuple(range(84, 96))}
    generator = np.random.default_rng(0)
    assert order_of(np.array([1.0, 3.0, 3.0]), "magnitude+", generator).tolist() == [1, 2, 0]
    assert order_of(np.array([1.0, 3.0, 3.0]), "magnitude-", generator).tolist() == [0, 1, 2]


def test_det_rgn_takes_the_best_per_cost():
    layers = selectable(network_of(("conv", (1, 3, 4, 4), (1, 4, 4, 4), (1, 1), 1), ("conv", (1, 4, 4, 4), (1, 3, 4, 4), (3, 3), 1)))
    model = CostModel(layers)
    norms = {"layer0": np.array([1.0, 2.0, 3.0]), "layer1": np.array([4.0, 9.0, 1.0, 1.0])}
    selection = selector_class("det-rgn")(Setting(model, 20 + 43, 0)).start(Fake(norms))
    assert selection.channels == {"layer0": (2,), "layer1": (1,)}  # 9/43 > 3/20 > 2/20 > 4/43


def test_last_k_goes_back_from_the_end():
    make = selector_class("last-k")
    selection = make(Setting(costs(), options={"k": 2})).start(Fake())
    assert selection == Selection.everything("input", LAYERS[-2:])
    limited = make(Setting(costs(), LAYERS[-1].inputs * LAYERS[-1].cost)).start(Fake())
    assert limited == Selection.everything("input", LAYERS[-1:])


def test_every_method_is_in_the_table():
    from ondevice_train.methods import METHODS, SELECTION

    assert set(SELECTION) == set(NAMES)
    assert set(SELECTION) <= set(METHODS)
    for name, words in itertools.product(NAMES, [{"nosuch": 1}]):
        with pytest.raises(InputError, match="nosuch"):
            selector_class(name)(setting(options=words))
