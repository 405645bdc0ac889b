"""Traced networks against tables, against torch's own counter, and against what runs really hold."""

from __future__ import annotations

import pytest
import torch
from edge_shared import architectures, flops
from edge_shared.errors import InputError
from edge_shared.memory import peak
from edge_shared.memory.measure import live_bytes, saved_bytes
from edge_shared.memory.measure import training_bytes as measured_training
from edge_shared.memory.training import training_bytes as predicted_training
from edge_shared.network import Network, deployed
from edge_shared.trace import trace
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

TABLES = {"mobilenet_v2": 64, "resnet18": 64, "resnet50": 64, "mcunet-in1": 96, "proxyless-w0.3": 64}
ZOO = [
    "mobilenet_v2",
    "mobilenet_v3_small",
    "resnet18",
    "resnet50",
    "vgg16_bn",
    "swin_t",
    "vit_b_32",
    "timm/vit_tiny_patch16_224",
    "timm/efficientnet_lite0",
]


def make(name: str) -> tuple[nn.Module, torch.Tensor]:
    torch.manual_seed(0)
    if name.startswith("timm/"):
        import timm

        return timm.create_model(name[5:]), torch.randn(1, 3, 224, 224)
    import torchvision

    size = 224 if name.startswith("vit") else 64
    return torchvision.models.get_model(name), torch.randn(1, 3, size, size)


@pytest.mark.parametrize(("name", "resolution"), TABLES.items())
def test_a_trace_equals_its_table(name: str, resolution: int) -> None:
    table = architectures.network(name, resolution=resolution)
    module = architectures.module(name).eval()
    traced = trace(module, torch.randn(1, 3, resolution, resolution))
    assert flops.macs(traced) == flops.macs(table)
    assert traced.params == table.params == sum(p.numel() for p in module.parameters())
    for net, other in ((traced, table), (deployed(traced), deployed(table))):
        for model in "ABCDE":
            assert peak(net, model).items == peak(other, model).items, model
    assert [layer.weights for layer in traced.weighted()] == [layer.weights for layer in table.weighted()]
    assert predicted_training(traced).bytes == predicted_training(table).bytes


@pytest.mark.parametrize("name", ZOO)
def test_macs_parameters_and_live_bytes(name: str) -> None:
    module, x = make(name)
    net = trace(module.eval(), x)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        module(x)
    assert 2 * flops.macs(net) == counter.get_total_flops()
    assert net.params == sum(p.numel() for p in module.parameters())
    assert live_bytes(module, x) == peak(net, "D").bytes
    assert Network.from_json(net.to_json()) == net


@pytest.mark.parametrize("name", ["mobilenet_v2", "resnet18", "mobilenet_v3_small", "swin_t", "vit_b_32"])
@pytest.mark.parametrize("norms", ["train", "eval"])
def test_saved_bytes_of_plain_training_are_predicted_exactly(name: str, norms: str) -> None:
    module, x = make(name)
    module.train()
    for layer in module.modules():
        if isinstance(layer, nn.modules.batchnorm._BatchNorm) and norms == "eval":
            layer.eval()
    x = torch.cat([x, x])
    predicted = predicted_training(trace(module, x))
    assert predicted.unknown == ()
    assert predicted.bytes == measured_training(module, x).bytes


def test_frozen_layers_still_keep_their_input() -> None:
    """PyTorch's trap: a frozen convolution behind a trained one saves its input all the same; a frozen linear layer does not."""
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Conv2d(4, 4, 3), nn.Flatten(), nn.Linear(16, 3))
    net[1].requires_grad_(False)
    net[3].requires_grad_(False)
    x = torch.randn(2, 1, 6, 6)
    traced = trace(net, x)
    first = traced.layers[0].name
    assert predicted_training(traced, {first}).bytes == measured_training(net, x).bytes == 4 * 2 * (36 + 4 * 16)
    net.requires_grad_(False)
    net[3].requires_grad_(True)
    assert predicted_training(traced, {traced.layers[-1].name}).bytes == measured_training(net, x).bytes == 4 * 2 * 16


class Twice(nn.Module):
    """One convolution and one ReLU module, each called twice, and a functional call between."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3, padding=1)
        self.act = nn.ReLU()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.act(self.conv(x))
        return self.act(self.conv(F.relu6(y))) + x


def test_call_sites_not_modules() -> None:
    module, x = Twice(), torch.randn(1, 4, 8, 8)
    net = trace(module, x)
    assert [layer.op for layer in net.layers] == ["conv2d", "relu", "relu6", "conv2d", "relu", "add"]
    assert len({layer.name for layer in net.layers}) == 6
    assert net.params == sum(p.numel() for p in module.parameters()) == 148
    assert flops.macs(net) == 2 * 8 * 8 * 9 * 16


def test_saved_bytes_count_the_whole_storage_of_a_slice() -> None:
    x = torch.randn(4, 1000, requires_grad=True)
    weight = torch.ones(4, 2, requires_grad=True)
    assert saved_bytes(lambda: (x * 1.0)[:, :2] * weight, [weight]).bytes == 4 * 4 * 1000


class Branches(nn.Module):
    """A random residual network: widths, strides, groups and where the skips go come from the test."""

    def __init__(self, plan: list[tuple[int, int, int, bool, bool]]) -> None:
        super().__init__()
        self.plan, channels = plan, 4
        layers = []
        for out, kernel, stride, grouped, _ in plan:
            layers.append(nn.Conv2d(channels, out, kernel, stride, kernel // 2, groups=2 if grouped else 1))
            channels = out
        self.layers = nn.ModuleList(layers)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer, (_, _, _, _, skip) in zip(self.layers, self.plan, strict=True):
            y = F.relu(layer(x), inplace=skip)
            x = y + x if skip and y.shape == x.shape else y
        return x.mean((2, 3))


@settings(max_examples=15, deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from([4, 8]), st.sampled_from([1, 3, 5]), st.sampled_from([1, 2]), st.booleans(), st.booleans()),
        min_size=1,
        max_size=5,
    )
)
def test_model_d_equals_measured_live_bytes(plan: list[tuple[int, int, int, bool, bool]]) -> None:
    module, x = Branches(plan), torch.randn(2, 4, 16, 16)
    net = trace(module, x)
    assert peak(net, "D").bytes == live_bytes(module, x)
    assert predicted_training(net).bytes == measured_training(module, x).bytes
    items = [peak(net, model).items for model in ("C", "B", "A")]
    assert items[1] <= items[2]
    assert peak(net, "C", bits=8).bytes == items[0]


class Undecided(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x if x.sum() > 0 else -x


def test_what_cannot_be_traced_is_one_line() -> None:
    with pytest.raises(InputError, match="Undecided cannot be traced") as caught:
        trace(Undecided(), torch.randn(1, 3))
    assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match="cannot be traced with inputs"):
        trace(nn.Linear(3, 2), torch.randn(1, 4))
    with pytest.raises(InputError, match=r"torch\.nn\.Module"):
        trace(lambda x: x, torch.randn(1))  # type: ignore[arg-type]
