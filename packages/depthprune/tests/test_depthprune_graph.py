"""Merging whole networks: same outputs, the right refusals, and certificates that say what was checked."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from depthprune.capture import capture, sites
from depthprune.entropy import count
from depthprune.merging import count_layers, merge
from depthprune.methods import METHODS, make
from depthprune.models import Residual
from depthprune.padding import mergeable_sites, move_to_front
from depthprune.pruner import DepthPruner
from depthprune.surgery import remove
from edge_shared.errors import InputError
from torch import nn


def settle(net: nn.Module, seed: int = 0) -> nn.Module:
    """Norms with statistics that are not 0 and 1, in evaluation mode."""
    torch.manual_seed(seed)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.3)
            module.running_var.uniform_(0.5, 2)
            module.bias.data.normal_(0, 0.3)
            module.weight.data.uniform_(0.5, 1.5)
    return net.eval()


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    return float(((a - b).abs().max() / b.abs().max()).detach())


def linear_graph(net: nn.Module, x: torch.Tensor, chosen: list[str] | None = None):
    gm = capture(net, x)
    for name in [site.name for site in sites(gm)] if chosen is None else chosen:
        remove(gm, name)
    return gm


def test_inner_activations_of_our_network_merge_each_block_into_one_layer(tmp_path: Path) -> None:
    from edge_shared.artifacts import load_model, save_model

    net = settle(Residual())
    x = torch.randn(3, 1, 8, 8)
    gm = linear_graph(net, x, [name for name, reason in mergeable_sites(capture(net, x)).items() if reason is None])
    assert len(gm.graph.find_nodes(op="call_module", target="head")) == 1
    moved = move_to_front(gm, {f"blocks.{i}.relu{j}" for i in range(4) for j in (1, 2)})
    assert "blocks.0.expand" in moved
    expected = gm(x)
    before = count_layers(gm)
    result = merge(gm, x, policy="always", calibration=x, front_padded=moved)
    assert relative(result.model(x), expected) < 1e-5
    assert [c.mode for c in result.certificates] == ["front-pad"] * 4
    assert before == 15
    assert count_layers(result.model) == 6
    assert all(c.max_abs_random < 1e-10 for c in result.certificates)
    assert all(c.max_rel_data is not None and c.max_rel_data < 1e-4 for c in result.certificates)
    again = merge(result.model, x, policy="always")
    assert again.certificates == []
    assert count_layers(again.model) == 6
    saved = save_model(tmp_path / "m", result.model, x)
    assert saved["onnx_max_abs_error"] < 1e-4
    assert torch.equal(load_model(tmp_path / "m")(x), result.model(x))


@pytest.mark.parametrize("mode", ["auto", "bias-map"])
def test_exact_borders_without_retraining(mode) -> None:
    net = settle(Residual(expand=2))
    x = torch.randn(2, 1, 8, 8)
    gm = linear_graph(net, x, [f"blocks.{i}.relu{j}" for i in range(4) for j in (1, 2)])
    result = merge(gm, x, policy="always", mode=mode)
    assert relative(result.model(x), gm(x)) < 1e-5
    assert {c.mode for c in result.certificates} == {"bias-map"}
    assert count_layers(result.model) == 6


def test_number_of_layers_drops_by_the_number_merged() -> None:
    net = nn.Sequential(*[nn.Linear(6, 6) for _ in range(5)]).eval()
    x = torch.randn(3, 6)
    result = merge(net, x)
    assert count_layers(result.model) == 5 - sum(len(c.layers) - 1 for c in result.certificates) == 1
    assert relative(result.model(x), net(x)) < 1e-5


class Shared(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.c(self.a(self.b(self.a(x))))


class TwoReaders(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.a(x)
        return torch.cat([self.b(y), self.c(y)], -1)


def test_shared_layers_and_tensors_with_two_readers_are_never_merged() -> None:
    x = torch.randn(2, 4)
    for net, text in ((Shared().eval(), "used 2 times"), (TwoReaders().eval(), "2 operations read")):
        result = merge(net, x, policy="always")
        assert result.certificates == []
        assert torch.equal(result.model(x), net(x))
        assert any(text in barrier.reason for barrier in result.barriers)
    tied = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)).eval()
    tied[2].weight = tied[0].weight
    assert merge(tied, x, policy="always").certificates == []


def test_training_mode_is_an_error() -> None:
    net = settle(Residual()).train()
    with pytest.raises(InputError, match=r"model.eval\(\)"):
        merge(net, torch.randn(1, 1, 8, 8))
    net.eval()
    net.norm.train()
    with pytest.raises(InputError, match="training mode"):
        merge(net, torch.randn(1, 1, 8, 8))


def test_harmful_merges_are_refused_with_the_price() -> None:
    net = nn.Sequential(nn.Conv2d(16, 16, 3), nn.Conv2d(16, 16, 3)).eval()
    x = torch.randn(2, 16, 12, 12)
    result = merge(net, x, policy="macs")
    assert result.certificates == []
    assert "MACs instead of" in result.kept[0].reason
    always = merge(net, x, policy="always")
    assert len(always.certificates) == 1
    assert always.certificates[0].macs_after > always.certificates[0].macs_before
    assert relative(always.model(x), net(x)) < 1e-5
    mlp = nn.Sequential(nn.Linear(8, 32), nn.Linear(32, 8)).eval()
    for policy in ("macs", "memory"):
        result = merge(mlp, torch.randn(2, 8), policy=policy)
        assert result.certificates[0].cost_after < result.certificates[0].cost_before
    assert result.certificates[0].macs_before == 8 * result.certificates[0].macs_after


def test_padded_three_by_three_pairs_are_refused_or_named_approximate() -> None:
    net = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)).eval()
    x = torch.randn(2, 4, 8, 8)
    result = merge(net, x, policy="always")
    assert result.certificates == []
    assert "front-pad" in result.kept[0].reason
    approx = merge(net, x, policy="always", mode="approx")
    certificate = approx.certificates[0]
    assert certificate.mode == "approx"
    assert certificate.ring_share == pytest.approx(1 - (6 / 8) ** 2)
    assert certificate.max_rel_random > 1e-2
    torch.testing.assert_close(approx.model(x)[:, :, 1:-1, 1:-1], net(x)[:, :, 1:-1, 1:-1], atol=1e-5, rtol=1e-5)


class Scaled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.b(torch.add(self.a(x), x, alpha=2) + 1)


def test_scaled_additions_are_no_skips() -> None:
    net, x = Scaled().eval(), torch.randn(2, 4)
    result = merge(net, x, policy="always")
    assert result.certificates == []
    assert torch.equal(result.model(x), net(x))


class Dead(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.bn, self.b, self.head = (
            nn.Conv2d(4, 8, 3, padding=1),
            nn.BatchNorm2d(8),
            nn.Conv2d(8, 4, 3, padding=1),
            nn.Conv2d(4, 4, 1),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(torch.relu(self.b(torch.relu(self.bn(self.a(x)))) + x))


@pytest.mark.parametrize("padding", [0, 1])
def test_dead_branches_go_and_their_constant_stays(padding) -> None:
    net = settle(Dead())
    if not padding:
        net.b = nn.Conv2d(8, 4, 1)
    with torch.no_grad():
        net.a.weight.zero_()
    x = torch.randn(2, 4, 6, 6)
    result = merge(net, x)
    assert count_layers(result.model) == 1
    assert relative(result.model(x), net(x)) < 1e-5
    constants = [buffer for _, buffer in result.model.named_buffers()]
    assert [tuple(c.shape) for c in constants] == [(1, 4, 6, 6) if padding else (1, 4, 1, 1)]


class Head(nn.Module):
    def __init__(self, way: str) -> None:
        super().__init__()
        self.conv, self.fc, self.way = nn.Conv2d(3, 5, 1), nn.Linear(5, 2), way
        self.pool = nn.AdaptiveAvgPool2d(1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.conv(x)
        if self.way == "mean":
            return self.fc(x.mean([2, 3]))
        x = self.pool(x) if self.way == "module" else nn.functional.adaptive_avg_pool2d(x, (1, 1))
        return self.fc(torch.flatten(x, 1))


@pytest.mark.parametrize("way", ["mean", "module", "function"])
def test_one_by_one_moves_behind_the_global_average(way) -> None:
    net, x = Head(way).eval(), torch.randn(2, 3, 5, 5)
    result = merge(net, x, calibration=x)
    assert count_layers(result.model) == 1
    assert relative(result.model(x), net(x)) < 1e-5
    assert result.certificates[0].layers == ("conv", "fc")
    assert result.certificates[0].macs_after == 6


def test_certificates_carry_margin_and_flip_bound() -> None:
    net = nn.Sequential(nn.Linear(3, 6), nn.ReLU(), nn.Linear(6, 3)).eval()
    with torch.no_grad():
        net[0].weight.mul_(0.01)
        net[0].bias.fill_(2.0)
    x = torch.randn(300, 3)
    gm = capture(net, x)
    counts = count(gm, [x])
    remove(gm, "1")
    result = merge(gm, x, counts=counts, calibration=x)
    assert result.certificates[0].flip_bound == pytest.approx(0.01)
    assert result.certificates[0].margin == pytest.approx(counts["1"].margin)
    assert result.certificates[0].margin > 1.5
    assert relative(result.model(x), net(x)) < 1e-5


def test_sign_and_affine_replacements_fold_into_the_layer_before() -> None:
    net = settle(Residual())
    x = torch.randn(2, 1, 8, 8)
    gm = capture(net, x)
    keep = (torch.rand(96) > 0.5).float()
    remove(gm, "blocks.0.relu1", "sign", keep)
    remove(gm, "blocks.0.relu2", "affine", torch.rand(96), torch.randn(96))
    remove(gm, "blocks.0.relu3", "sign", torch.ones(16))
    result = merge(gm, x, policy="always")
    assert relative(result.model(x), gm(x)) < 1e-5
    assert not any(type(m).__module__.startswith("depthprune") for m in result.model.modules() if not isinstance(m, torch.fx.GraphModule))


class Encoder(nn.Module):
    """A BERT-like encoder for text: embeddings, post-norm blocks of attention and MLP, mean, classifier."""

    def __init__(self, pre: bool, words: int = 50, width: int = 16, depth: int = 3) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(words, width), nn.Parameter(torch.randn(1, 12, width))
        self.blocks = nn.ModuleList([EncoderBlock(width, pre) for _ in range(depth)])
        self.head = nn.Linear(width, 2)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.words(ids) + self.places
        for block in self.blocks:
            x = block(x)
        return self.head(x.mean(1))


class EncoderBlock(nn.Module):
    def __init__(self, width: int, pre: bool) -> None:
        super().__init__()
        self.pre, self.heads = pre, 2
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.up, self.act, self.drop, self.down = nn.Linear(width, 4 * width), nn.GELU(), nn.Dropout(0.1), nn.Linear(4 * width, width)

    def attend(self, x: torch.Tensor) -> torch.Tensor:
        b, n, w = x.shape
        q, k, v = self.qkv(x).reshape(b, n, 3, self.heads, w // self.heads).permute(2, 0, 3, 1, 4).unbind(0)
        mixed = nn.functional.scaled_dot_product_attention(q, k, v)
        return self.out(mixed.transpose(1, 2).reshape(b, n, w))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.pre:
            x = x + self.attend(self.norm1(x))
            return x + self.down(self.drop(self.act(self.up(self.norm2(x)))))
        x = self.norm1(x + self.attend(x))
        return self.norm2(x + self.down(self.drop(self.act(self.up(x)))))


@pytest.mark.parametrize("pre", [False, True])
def test_transformer_mlps_merge_and_layer_norms_fold(pre) -> None:
    torch.manual_seed(0)
    net = Encoder(pre).eval()
    for module in net.modules():
        if isinstance(module, nn.LayerNorm):
            module.weight.data.uniform_(0.5, 1.5)
            module.bias.data.normal_()
    ids = torch.randint(0, 50, (4, 12))
    gm = linear_graph(net, ids)
    expected = gm(ids)
    result = merge(gm, ids, calibration=ids)
    assert relative(result.model(ids), expected) < 1e-4
    assert len(result.certificates) == 3
    for certificate in result.certificates:
        assert certificate.macs_before == 8 * certificate.macs_after
    plain = [m for m in result.model.modules() if isinstance(m, nn.LayerNorm) and not m.elementwise_affine]
    assert len(plain) == (6 if pre else 0)


class Fused(nn.BatchNorm2d):
    """A norm with its activation inside, as timm writes them."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        self.drop, self.act = nn.Identity(), nn.ReLU(inplace=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.act(self.drop(super().forward(x)))


def test_a_norm_with_its_activation_inside_is_no_barrier() -> None:
    net = nn.Sequential(nn.Conv2d(3, 6, 1), Fused(6), nn.Conv2d(6, 4, 3)).eval()
    settle(net)
    x = torch.randn(2, 3, 6, 6)
    gm = capture(net, x)
    assert torch.equal(gm(x), net(x))
    assert [site.kind for site in sites(gm)] == ["relu"]
    assert list(mergeable_sites(gm).values()) == [None]
    gm.train()
    net.train()
    gm(x)
    assert torch.equal(net[1].running_mean, gm.get_submodule("1").running_mean)  # the same statistics
    gm.eval()
    net.eval()
    remove(gm, sites(gm)[0].name)
    result = merge(gm, x, policy="always")
    assert relative(result.model(x), gm(x)) < 1e-5
    assert count_layers(result.model) == 1


@pytest.mark.parametrize("way", ["module", "function", "method"])
def test_a_convolution_merges_into_the_linear_layer_behind_its_flattened_map(way) -> None:
    class Flat(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.act, self.flat, self.fc = nn.Conv2d(2, 16, 3, 1, 1), nn.ReLU(), nn.Flatten(), nn.Linear(16 * 36, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.act(self.conv(x))
            return self.fc(self.flat(y) if way == "module" else torch.flatten(y, 1) if way == "function" else y.flatten(1))

    torch.manual_seed(0)
    net, x = Flat().eval(), torch.randn(3, 2, 6, 6)
    gm = capture(net, x)
    assert list(mergeable_sites(gm).values()) == [None]
    remove(gm, "act")
    result = merge(gm, x, calibration=x)
    assert count_layers(result.model) == 1
    assert relative(result.model(x), gm(x)) < 1e-5
    certificate = result.certificates[0]
    assert certificate.layers == ("conv", "fc")
    assert certificate.max_abs_random < 1e-10
    assert certificate.macs_after == 2 * 36 * 3 < certificate.macs_before
    narrow = nn.Sequential(nn.Conv2d(8, 1, 3, 2), nn.Flatten(), nn.Linear(4, 50)).eval()
    kept = merge(narrow, torch.randn(1, 8, 6, 6))
    assert kept.certificates == []
    assert "MACs instead of" in kept.kept[0].reason


class Odd(nn.Module):
    """Control flow that tracing cannot follow, in one submodule."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.a, self.act, self.b = Branchy(), nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.b(self.act(self.a(self.inner(x))))


class Branchy(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * 2 if x.sum() > 0 else x


def test_what_cannot_be_traced_stays_whole_or_is_a_clear_error() -> None:
    x = torch.randn(2, 4)
    net = Odd().eval()
    gm = linear_graph(net, x)
    result = merge(gm, x)
    assert len(result.certificates) == 1
    assert relative(result.model(x), gm(x)) < 1e-5
    with pytest.raises(InputError, match="cannot be traced"):
        capture(Branchy(), x)
    with pytest.raises(InputError, match="does not take an input of shape"):
        capture(nn.Linear(3, 3), x)


def test_unmergeable_activations_say_why() -> None:
    net = settle(Residual())
    reasons = mergeable_sites(capture(net, torch.randn(1, 1, 8, 8)))
    assert reasons["blocks.0.relu1"] is None
    assert "read its output" in reasons["relu"]
    assert "not from one layer" in reasons["blocks.3.relu3"]


def model_of_the_papers(name: str) -> nn.Module:
    """A network by name for inputs of 32 x 32 pixels and five classes, with random weights."""
    import timm
    import torchvision

    torch.manual_seed(0)
    vit = name.startswith("vit")
    net = settle(timm.create_model(name, img_size=32, num_classes=5) if vit else getattr(torchvision.models, name)(num_classes=5))
    if name == "vgg16_bn":
        net.classifier = nn.Sequential(
            nn.Linear(512 * 49, 32), nn.ReLU(), nn.Dropout(), nn.Linear(32, 32), nn.ReLU(), nn.Dropout(), nn.Linear(32, 5)
        ).eval()
    return net


@pytest.mark.parametrize(
    ("name", "activations", "removable"),
    [("resnet18", 17, 8), ("mobilenet_v2", 35, 35), ("vgg16_bn", 15, 10), ("swin_t", 12, 12), ("vit_tiny_patch16_224", 12, 12)],
)
def test_models_of_the_papers(name, activations, removable) -> None:
    net = model_of_the_papers(name)
    x = torch.randn(2, 3, 32, 32)
    gm = capture(net, x)
    assert torch.equal(gm(x), net(x))
    assert len(sites(gm)) == activations
    free = [site for site, reason in mergeable_sites(gm).items() if reason is None]
    assert len(free) == removable


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2", "vgg16_bn", "swin_t", "vit_tiny_patch16_224"])
def test_whole_networks_merge_to_the_same_logits(name) -> None:
    import timm
    import torchvision

    torch.manual_seed(0)
    side = 64
    net = timm.create_model(name, img_size=side) if name.startswith("vit") else getattr(torchvision.models, name)()
    net = settle(copy.deepcopy(net))
    x = torch.randn(2, 3, side, side)
    gm = linear_graph(net, x, [site for site, reason in mergeable_sites(capture(net, x)).items() if reason is None])
    move_to_front(
        gm, {node.meta["site"] for node in gm.graph.nodes if "site" in node.meta and node.meta["site"] not in {s.name for s in sites(gm)}}
    )
    result = merge(gm, x, policy="macs", calibration=x)
    assert relative(result.model(x), gm(x)) < 1e-4
    wanted = {"resnet18": 0, "mobilenet_v2": 14, "vgg16_bn": 1, "swin_t": 12, "vit_tiny_patch16_224": 12}[name]
    assert len(result.certificates) >= wanted


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2", "vgg16_bn", "swin_t", "vit_tiny_patch16_224", "bert-like"])
def test_every_method_shortens_every_model_of_the_papers(name, method) -> None:
    """Score, choose, apply, merge: on networks with norms, with ReLU6, with GELU and layer norms, on images and on text."""
    text = name == "bert-like"
    net = Encoder(pre=False).eval() if text else model_of_the_papers(name)
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(0, 50, (8, 12), generator=generator) if text else torch.randn(8, 3, 32, 32, generator=generator)
    data = [(x, torch.arange(8) % (2 if text else 5))]
    options = {"zeta": 1.0} if method in ("egp", "nepenthe") else {}  # one round that empties, one that removes
    loop = DepthPruner(
        net, x[:2], make(method, tolerance=1.0, **options), calibration=data, held_out=data, evaluate=lambda model: 1.0,
        finetune=lambda *arguments: None, per_round=2, max_rounds=2,
    )  # fmt: skip
    outcome = loop.run()
    assert outcome.removals
    assert {removal.site for removal in outcome.removals} <= {name for name, reason in loop.blocked.items() if reason is None}
    with torch.no_grad():
        expected = outcome.model(x)
        result = merge(outcome.model, x[:2], policy="macs", calibration=x, front_padded=outcome.front_padded)
        assert torch.isfinite(expected).all()
        # The norm behind an emptied layer divides by almost nothing, rounding included.
        assert relative(result.model(x), expected) < (1e-3 if options else 1e-4)
