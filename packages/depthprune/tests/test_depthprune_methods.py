"""The six methods: golden numbers of budgets and fits, and one test for each defect of the published code."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from depthprune.capture import capture, sites
from depthprune.merging import merge
from depthprune.methods import METHODS, State, make, masks
from depthprune.methods.affine import unexplained
from depthprune.methods.budget import relevance, shares, whole
from depthprune.methods.layer_folding import Fold
from depthprune.methods.moments import Moments, gaussian_fit, measure
from depthprune.methods.tlc import Tlc, error_likelihood, mean_loss, neuron_statistics
from depthprune.surgery import ChannelAffine, remove
from edge_shared.errors import InputError
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn


def test_budget_golden_numbers() -> None:
    got = shares({"a": 0.1, "b": 0.2, "c": 0.4}, {"a": 100, "b": 1000, "c": 1000}, 0.5 * 2100)
    assert list(got.values()) == pytest.approx([100, 776.696, 173.304], abs=1e-3)
    got = shares({"a": 0.1, "b": 0.2, "c": 0.4}, {"a": 2000, "b": 1000, "c": 1000}, 0.25 * 4000)
    assert list(got.values()) == pytest.approx([965.77, 29.16, 5.07], abs=1e-2)
    R = relevance({"a": 0.1, "b": 0.2, "c": 0.4})
    weights = [math.exp(value - max(R.values())) for value in R.values()]
    assert [w / sum(weights) for w in weights] == pytest.approx([0.966, 0.029, 0.005], abs=1e-3)


layers = st.lists(st.tuples(st.floats(0.001, 10), st.integers(0, 500)), min_size=1, max_size=6)


@settings(max_examples=150, deadline=None)
@given(layers, st.floats(0.01, 1.0), st.floats(0.1, 100))
def test_budget_properties(layers, zeta, scale) -> None:
    I = {str(i): value for i, (value, _) in enumerate(layers)}
    N = {str(i): n for i, (_, n) in enumerate(layers)}
    budget = zeta * sum(N.values())
    got = shares(I, N, budget)
    assert sum(got.values()) == pytest.approx(budget, abs=1e-6)
    assert all(0 <= got[name] <= N[name] + 1e-9 for name in got)
    scaled = shares({name: value * scale for name, value in I.items()}, N, budget)
    assert [scaled[n] for n in got] == pytest.approx([got[n] for n in got], rel=1e-6, abs=1e-6)
    for a in I:
        for b in I:
            if I[a] < I[b] and N[a] >= N[b]:
                assert got[a] >= got[b] - 1e-6
    counts = whole(got, N)
    assert sum(counts.values()) == round(sum(got.values()))
    assert all(0 <= counts[name] <= N[name] for name in counts)


def test_budget_edges() -> None:
    assert shares({"a": 1.0, "b": 1.0}, {"a": 50, "b": 50}, 20) == {"a": 10.0, "b": 10.0}
    assert whole(shares({"a": 1.0, "b": 2.0}, {"a": 5, "b": 7}, 12), {"a": 5, "b": 7}) == {"a": 5, "b": 7}
    assert shares({"a": 0.0}, {"a": 5}, 3) == {"a": 0.0}
    with pytest.raises(InputError, match="zeta"):
        make("egp", zeta=0)


def test_masks_accumulate_and_stay_zero_through_momentum_and_weight_decay() -> None:
    torch.manual_seed(0)
    model = nn.Linear(8, 6)
    mask = masks.prune_smallest(model.weight, None, 10)
    assert int((mask == 0).sum()) == 10
    smallest = model.weight.abs().flatten().argsort()[:10]
    assert torch.equal((mask.flatten() == 0).nonzero().flatten(), smallest.sort().values)
    second = masks.prune_smallest(model.weight, mask, 7)
    assert int((second == 0).sum()) == 17
    assert bool((second <= mask).all())
    chosen = {"weight": second}
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5, momentum=0.9, weight_decay=0.1)
    for _ in range(5):
        model(torch.randn(4, 8)).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
        masks.apply(model, chosen)
        assert bool((model.weight[second == 0] == 0).all())
    with pytest.raises(InputError, match="another model"):
        masks.apply(nn.Linear(3, 3), chosen)


def test_masks_of_weights_in_any_memory_order() -> None:
    weight = torch.randn(4, 3, 3, 3, generator=torch.Generator().manual_seed(0)).to(memory_format=torch.channels_last)
    mask = masks.prune_smallest(weight, None, 20)
    assert torch.equal(mask, masks.prune_smallest(weight.contiguous(), None, 20))
    again = masks.prune_smallest(weight, mask.to(memory_format=torch.channels_last), 10)
    assert int((again == 0).sum()) == 30


def test_tlc_error_likelihood() -> None:
    mean = torch.tensor([0.0, 1.0, 2.0, -1.0, 3.0], dtype=torch.float64)
    std = torch.tensor([1.0, 1.0, 1.0, 2.0, 0.0], dtype=torch.float64)
    E = error_likelihood(mean, std)
    assert E.tolist() == pytest.approx([0.5, 0.158655, 0.022750, 0.308538, 0.0], abs=1e-6)
    torch.testing.assert_close(error_likelihood(mean, -std), E)
    generator = torch.Generator().manual_seed(0)
    samples = mean[:4] + std[:4] * torch.randn(200_000, 4, generator=generator, dtype=torch.float64)
    flips = ((samples > 0) != (mean[:4] > 0)).double().mean(0)
    torch.testing.assert_close(flips, E[:4], rtol=0, atol=5e-3)


def test_affine_golden_numbers_and_agreement_with_samples() -> None:
    def tensor(*values: float) -> torch.Tensor:
        return torch.tensor(values, dtype=torch.float64)

    a, c = gaussian_fit("relu", tensor(0, 1.5), tensor(1, 0.7))
    assert a.tolist() == pytest.approx([0.5, 0.983938], abs=1e-6)
    assert c.tolist() == pytest.approx([0.398942, 0.028113], abs=1e-6)
    a, c = gaussian_fit("gelu", tensor(0.3), tensor(2.0))
    assert float(a) == pytest.approx(0.563972, abs=1e-6)
    assert float(c + a * 0.3) == pytest.approx(0.873265, abs=1e-6)
    z = torch.randn(400_000, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    moments = Moments()
    for part in z.split(150_000):
        moments.add(part, part.relu(), 1)
    a, c, residual = moments.affine()
    assert float(a) == pytest.approx(0.5, abs=5e-3)
    assert float(c) == pytest.approx(0.398942, abs=5e-3)
    assert float(residual) == pytest.approx(0.090845, abs=1e-3)
    least = torch.linalg.lstsq(torch.cat([z, torch.ones_like(z)], 1), z.relu()).solution
    assert [float(a), float(c)] == pytest.approx(least.flatten().tolist(), abs=1e-9)
    with pytest.raises(InputError, match="closed form"):
        gaussian_fit("silu", tensor(0.0), tensor(1.0))


def test_gelu_is_never_linear_at_constant_sign() -> None:
    z = torch.linspace(0, 6, 600_001, dtype=torch.float64)
    bend = z - nn.functional.gelu(z)
    assert float(bend.max()) == pytest.approx(0.169971, abs=1e-6)
    assert float(z[bend.argmax()]) == pytest.approx(0.7518, abs=1e-3)
    assert float(nn.functional.gelu(-z).abs().max()) == pytest.approx(0.169971, abs=1e-6)


@pytest.mark.parametrize("kind", [nn.ReLU, nn.ReLU6, nn.GELU, nn.SiLU, nn.Hardswish])
def test_affine_replacement_beats_identity_and_zero(kind) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 8), kind(), nn.Linear(8, 3))
    x = torch.randn(500, 6)
    gm = capture(net.eval(), x)
    moments = measure(gm, [x])["1"]
    a, c, residual = moments.affine()
    with torch.no_grad():
        z = net[0](x)
    error = ((a * z + c) - net[1](z)).square().mean()
    assert float(error) == pytest.approx(float(residual.mean()), rel=1e-3)
    assert float(error) < float((z - net[1](z)).square().mean())
    assert float(error) < float(net[1](z).square().mean())
    assert 0 < unexplained(moments) < 1


class TwoBlocks(nn.Module):
    """conv-bn-relu-conv-bn, skip, relu, and a linear head: a post-add activation and a batch norm with a sign per channel."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1, self.relu1 = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU()
        self.conv2, self.bn2, self.relu2 = nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU()
        self.conv3, self.bn3, self.relu3 = nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU()
        self.head = nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.relu1(self.bn1(self.conv1(x)))
        z = self.relu2(self.bn2(self.conv2(y)))
        z = self.relu3(self.bn3(self.conv3(z)) + y)
        return self.head(z.mean((2, 3)))


def state_of(net: nn.Module, batches: int = 2) -> State:
    generator = torch.Generator().manual_seed(1)
    data = [(torch.randn(16, 3, 6, 6, generator=generator), torch.randint(0, 4, (16,), generator=generator)) for _ in range(batches)]
    with torch.no_grad():
        net.train()
        for x, _ in data * 20:
            net(x)
    return State(capture(net.eval(), data[0][0]), data, data)


@pytest.fixture
def state() -> State:
    torch.manual_seed(0)
    net = TwoBlocks()
    for norm in (net.bn1, net.bn2, net.bn3):
        norm.bias.data.normal_()
    return state_of(net)


def test_tlc_uses_the_norm_only_where_it_feeds_the_activation(state) -> None:
    """The published code takes bn2's beta for the activation after the skip addition, whose mean is another."""
    statistics = neuron_statistics(state)
    torch.testing.assert_close(statistics["relu1"][0].float(), state.model.bn1.bias.detach())
    measured = measure(state.model, state.calibration)["relu3"]
    torch.testing.assert_close(statistics["relu3"][0], measured.mean)
    assert (statistics["relu3"][0].float() - state.model.bn3.bias.detach()).abs().max() > 0.05


def test_tlc_trials_leave_the_live_model_alone(state) -> None:
    """The published code masks the live model's convolution in the trial loop."""
    before = copy.deepcopy(state.model.state_dict())
    structure = str(state.model.code)
    scores = Tlc().score(state)
    assert str(state.model.code) == structure
    assert list(scores) == ["relu1", "relu2", "relu3"]
    assert len(sites(state.model)) == 3
    for name, value in state.model.state_dict().items():
        assert torch.equal(value, before[name])


def test_tlc_trials_look_at_every_held_out_batch(state) -> None:
    """The published code ranks by the first validation batch only."""
    whole = mean_loss(state.model, state)
    first = mean_loss(state.model, State(state.model, state.calibration, state.held_out[:1]))
    second = mean_loss(state.model, State(state.model, state.calibration, state.held_out[1:]))
    assert whole == pytest.approx((first + second) / 2, rel=1e-6)
    assert first != pytest.approx(second, rel=1e-3)


def test_tlc_prefix_stops_before_the_layer_that_makes_it_worse(monkeypatch) -> None:
    """The published loop removes the prefix that includes the layer which raised the loss."""
    method = Tlc()
    method._loss = 1.0
    losses = {1: 0.9, 2: 0.95, 3: 1.2, 4: 0.5}
    monkeypatch.setattr(method, "_trial", lambda state, chosen: losses[len(chosen)])
    scores = {"a": -0.1, "b": -0.05, "c": 0.2, "d": 0.3}
    assert method.choose(None, scores, 1) == ["a", "b"]
    assert method.choose(None, {"a": 0.1, "b": 0.2}, 1) == ["a"]


def test_tlc_removed_channels_stay_removed_in_fine_tuning(state) -> None:
    """In the published code a zeroed norm stays trainable and a linear layer keeps its bias: the channel comes back."""
    method = Tlc()
    method.score(state)
    keep = method._keep["relu1"]
    assert 0 < int(keep.sum()) < 8
    assert torch.equal(keep, (state.model.bn1.bias > 0).float())
    method.apply(state, ["relu1"])
    optimizer = torch.optim.SGD(state.model.parameters(), lr=0.5, momentum=0.9, weight_decay=0.01)
    x, y = state.calibration[0]
    for _ in range(3):
        nn.functional.cross_entropy(state.model(x), y).backward()
        optimizer.step()
        optimizer.zero_grad()
    node = next(n for n in state.model.graph.nodes if n.meta.get("site") == "relu1")
    replacement = state.model.get_submodule(str(node.target))
    seen = []
    replacement.register_forward_hook(lambda _, inputs, output: seen.append((inputs[0], output)))
    state.model(x)
    z, out = (t.detach() for t in seen[0])
    assert bool((out[:, keep == 0] == 0).all())
    assert float(z[:, keep == 0].abs().max()) > 0
    assert torch.equal(out[:, keep == 1], z[:, keep == 1])  # ON neurons are linear


def test_tlc_removed_rows_of_a_linear_layer_do_not_leave_their_bias() -> None:
    """In the published code a masked row keeps its bias, which the identity then lets through."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)).eval()
    with torch.no_grad():
        net[0].bias.copy_(torch.tensor([3.0, -3.0, 3.0, -3.0]))
    x, y = torch.randn(50, 3), torch.zeros(50, dtype=torch.long)
    state = State(capture(net, x), [(x, y)], [(x, y)])
    method = Tlc()
    method.score(state)
    method.apply(state, ["1"])
    out = state.model.get_submodule("1")(state.model.get_submodule("0")(x)).detach()
    assert torch.equal(out[:, 1::2], torch.zeros(50, 2))
    assert torch.equal(out[:, ::2], net[0](x)[:, ::2])


def test_tlc_takes_a_saturated_relu6_for_the_constant_six() -> None:
    """The published code takes it for linear, which lets everything above 6 through."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 4), nn.ReLU6(), nn.Linear(4, 2)).eval()
    with torch.no_grad():
        net[0].weight.mul_(0.1)
        net[0].bias.copy_(torch.tensor([9.0, 3.0, -3.0, 9.0]))
    x, y = torch.randn(50, 3), torch.zeros(50, dtype=torch.long)
    state = State(capture(net, x), [(x, y)], [(x, y)])
    expected = net(x)
    method = Tlc()
    assert method.score(state)["1"] == pytest.approx(0.0, abs=1e-6)
    method.apply(state, ["1"])
    torch.testing.assert_close(state.model(x), expected)
    result = merge(state.model, x)
    assert len(result.certificates) == 1
    torch.testing.assert_close(result.model(x), expected)
    with pytest.raises(InputError, match="only where the factor is 0"):
        remove(capture(net, x), "1", "sign", torch.ones(4), torch.full((4,), 6.0))


def test_tlc_pays_for_the_bend_of_a_gelu_in_its_trial() -> None:
    """The published code treats a GELU as a ReLU; so must a straight piece, but the ranking sees what it costs."""
    scores = {}
    for kind in (nn.ReLU, nn.GELU):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(3, 4), kind(), nn.Linear(4, 2)).eval()
        with torch.no_grad():
            net[0].weight.mul_(0.02)
            net[0].bias.fill_(0.75)  # always ON, where the GELU is farthest from a line through 0
            net[2].weight.copy_(torch.tensor([[1.0] * 4, [-1.0] * 4]))
        x, y = torch.randn(50, 3), torch.ones(50, dtype=torch.long)
        scores[kind] = Tlc().score(State(capture(net, x), [(x, y)], [(x, y)]))["1"]
    assert scores[nn.ReLU] == pytest.approx(0.0, abs=1e-6)
    assert scores[nn.GELU] > 0.1


def test_tlc_beta_of_exactly_zero_is_off_and_masked_everywhere(state) -> None:
    """The published code masks the convolution but not the norm of such a channel."""
    with torch.no_grad():
        state.model.bn1.bias[2] = 0.0
    method = Tlc()
    method.score(state)
    assert method._keep["relu1"][2] == 0
    method.apply(state, ["relu1"])
    out = state.model.get_submodule(next(n for n in state.model.graph.nodes if n.meta.get("site") == "relu1").target)
    assert isinstance(out, ChannelAffine)
    assert out.a[2] == 0


def test_candidates_are_activations_and_never_norms_without_one() -> None:
    """The published MobileNetV2 script takes the norm of the linear bottleneck for a candidate and zeroes its signal."""
    import torchvision

    net = torchvision.models.mobilenet_v2(num_classes=4).eval()
    x = torch.randn(2, 3, 32, 32)
    state = State(capture(net, x), [(x, torch.zeros(2, dtype=torch.long))], [])
    names = [site.name for site in state.open_sites()]
    assert len(names) == 35
    norms = sum(isinstance(m, nn.BatchNorm2d) for m in net.modules())
    assert norms == 52
    statistics = neuron_statistics(state)
    assert set(statistics) == set(names)


def test_relu6_upper_region_keeps_a_layer_from_being_called_linear() -> None:
    """All published codes ignore that ReLU6 bends at 6."""
    net = nn.Sequential(nn.Linear(2, 2), nn.ReLU6(), nn.Linear(2, 2)).eval()
    with torch.no_grad():
        net[0].weight.zero_()
        net[0].bias.copy_(torch.tensor([7.0, 3.0]))
    x = torch.randn(5, 2)
    state = State(capture(net, x), [(x, torch.zeros(5, dtype=torch.long))], [])
    method = make("egp")
    scores = method.score(state)
    assert method._entropies == {"1": 0.0}
    assert method.choose(state, scores, 1) == []
    with torch.no_grad():
        net[0].bias[0] = 5.0
    assert method.choose(state, method.score(state), 1) == ["1"]


def test_identity_is_not_what_a_zero_entropy_layer_computes() -> None:
    """Identity everywhere changes OFF neurons; removal by sign is exact on the data."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)).eval()
    with torch.no_grad():
        net[0].weight.mul_(0.1)
        net[0].bias.copy_(torch.tensor([3.0, -3.0, 3.0, -3.0]))
    x = torch.randn(50, 3)
    expected = net(x)
    for how, exact in (("identity", False), ("sign", True)):
        state = State(capture(copy.deepcopy(net), x), [(x, torch.zeros(50, dtype=torch.long))], [])
        if how == "sign":
            method = make("egp")
            chosen = method.choose(state, method.score(state), 1)
            assert chosen == ["1"]
            method.apply(state, chosen)
        else:
            state.remove("1")
        error = float((state.model(x) - expected).detach().abs().max())
        assert (error < 1e-6) == exact


def test_egp_prunes_the_budget_and_masks_are_monotone(state) -> None:
    method = make("egp", zeta=0.5)
    previous: dict[str, torch.Tensor] = {}
    prunable = ["conv1.weight", "conv2.weight", "conv3.weight"]
    for _ in range(3):
        before = sum(int((state.model.get_parameter(n) != 0).sum()) for n in prunable)
        scores = method.score(state)
        open_now = [site for site, value in scores.items() if value > 0]
        names = {"relu1": "conv1.weight", "relu2": "conv2.weight", "relu3": "conv3.weight"}
        base = sum(int((state.model.get_parameter(names[s]) != 0).sum()) for s in open_now)
        chosen = method.choose(state, scores, 1)
        method.apply(state, chosen)
        after = sum(int((state.model.get_parameter(n) != 0).sum()) for n in prunable)
        if not chosen:
            assert before - after == round(0.5 * base)
        for name, mask in previous.items():
            assert bool((state.masks[name] <= mask).all())
        previous = {name: mask.clone() for name, mask in state.masks.items()}
    assert "head.weight" not in state.masks


def test_egp_with_zeta_one_empties_everything_without_a_crash(state) -> None:
    method = make("egp", zeta=1.0)
    method.apply(state, method.choose(state, method.score(state), 1))
    for name in ("conv1", "conv2", "conv3"):
        assert not bool(state.model.get_parameter(f"{name}.weight").any())
    chosen = method.choose(state, method.score(state), 1)
    assert "relu1" in chosen
    method.apply(state, chosen)


def test_nepenthe_leaves_zeros_out_and_takes_the_mean_over_switching_neurons() -> None:
    egp, nepenthe = make("egp"), make("nepenthe")
    assert (egp.over, egp.zero_is) == ("all", "off")
    assert (nepenthe.over, nepenthe.zero_is) == ("mixed", "ignored")


def test_easier_takes_the_lowest_and_all_zeros(state) -> None:
    method = make("easier")
    assert method.choose(state, {"a": 0.2, "b": 0.0, "c": 0.1, "d": 0.0}, 1) == ["b", "d"]
    assert method.choose(state, {"a": 0.2, "b": 0.3, "c": 0.1}, 2) == ["c", "a"]
    scores = method.score(state)
    assert set(scores) == {"relu1", "relu2", "relu3"}


def test_layer_folding_slopes_are_learned_by_the_penalty(state) -> None:
    method = make("layer-folding", strength=1.0)
    x, y = state.calibration[0]
    before = state.model(x)
    method.prepare(state)
    torch.testing.assert_close(state.model(x), before)  # alpha 0 is the activation itself
    penalty = method.penalty(state)
    assert float(penalty(state.model).detach()) == pytest.approx(3.0)
    slopes = [m.alpha for m in state.model.modules() if isinstance(m, Fold)]
    assert len(slopes) == 3
    with torch.no_grad():
        slopes[1].fill_(0.95)
    assert method.choose(state, method.score(state), 3) == ["relu2"]
    method.apply(state, ["relu2"])
    assert [removal.site for removal in state.removals] == ["relu2"]
    assert set(method.score(state)) == {"relu1", "relu3"}
    nn.functional.cross_entropy(state.model(x), y).backward()


@pytest.mark.parametrize("name", METHODS)
def test_every_method_stops_at_the_tolerance(name, state) -> None:
    method = make(name, tolerance=0.02)
    assert not method.stop(state, 0.881, 0.9)
    assert method.stop(state, 0.879, 0.9)


def test_unknown_names_and_foreign_masks() -> None:
    with pytest.raises(InputError, match="unknown method"):
        make("magic")
    with pytest.raises(InputError, match="easier"):
        make("easier", zeta=0.5)
    gm = capture(TwoBlocks().eval(), torch.randn(1, 3, 6, 6))
    with pytest.raises(InputError, match="another model"):
        remove(gm, "relu1", "sign", torch.ones(5))
    with pytest.raises(InputError, match="no activation is called"):
        remove(gm, "nothing")
    remove(gm, "relu1")
    with pytest.raises(InputError, match="already"):
        remove(gm, "relu1")


def test_trial_removals_need_labels(state) -> None:
    with pytest.raises(InputError, match="labels"):
        mean_loss(state.model, State(state.model, [], [torch.randn(2, 3, 6, 6)]))
