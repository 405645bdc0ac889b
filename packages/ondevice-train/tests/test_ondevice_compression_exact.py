"""Full rank is vanilla; dX and db are exact at any rank; every order of contraction gives the same dW."""

from __future__ import annotations

import itertools

import pytest
import torch
from ondevice_train.compression import _contract
from ondevice_train.compression._codec import Codec, CompressedLayer
from ondevice_train.compression._geometry import ConvGeometry
from ondevice_train.compression.asi import ASI
from ondevice_train.compression.asi_paper import ASIPaper
from ondevice_train.compression.fixed_bases import FixedBases
from ondevice_train.compression.hosvd import HOSVD
from ondevice_train.compression.svd import SVD
from torch import nn

pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths:UserWarning")


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def every_order_as_asked(monkeypatch, request):
    """At ranks this wide the projection would give way to another order: here each order must itself be right."""
    if "cheapest" not in request.node.name:
        monkeypatch.setattr(_contract, "cheapest", lambda *shapes: "project")


CONVS = [
    {"kernel_size": kernel, "stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    for kernel, stride, padding, dilation, groups in itertools.product(
        [1, 3, (5, 3)], [1, 2, (2, 1)], [0, (2, 1), "asymmetric"], [1, 2], [1, 2, 4]
    )
]


def conv_of(settings: dict, bias: bool = True) -> nn.Conv2d:
    settings = dict(settings)
    if settings["padding"] == "asymmetric":
        # "same" with stride 1 and an even total is symmetric; an even kernel makes it lopsided.
        settings.update(padding="same", stride=1, kernel_size=(2, 4))
    return nn.Conv2d(4, 8, bias=bias, dtype=torch.float64, **settings)


def gradients(module: nn.Module, x: torch.Tensor, weights: torch.Tensor | None = None) -> list[torch.Tensor]:
    x = x.clone().requires_grad_()
    y = module(x)
    seed = torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view_as(y).sin()
    parameters = list(module.parameters())
    return [y.detach(), *torch.autograd.grad((y * seed).sum(), [x, *parameters])]


def codecs(shape: torch.Size, full: bool) -> list[Codec]:
    ranks = tuple(shape) if full else tuple(max(1, size // 2) for size in shape)
    epsilon = 1.0 if full else 0.6
    found: list[Codec] = [SVD(epsilon=epsilon)]
    for order in ("rebuild", "paper", "project"):
        found += [HOSVD(epsilon=epsilon, order=order), ASI(ranks, order=order), ASIPaper(ranks, order=order)]
        if not full or order == "project":
            found += [
                HOSVD(ranks=ranks, order=order, solver="svd"),
                FixedBases(ranks, order=order),
                FixedBases(ranks, basis="cosine", order=order),
            ]
    return found


@pytest.mark.parametrize("settings", CONVS, ids=lambda s: "-".join(str(value) for value in s.values()).replace(" ", ""))
def test_full_rank_convolution_is_vanilla(settings):
    torch.manual_seed(0)
    conv = conv_of(settings)
    x = torch.randn(3, 4, 9, 8, dtype=torch.float64)
    expected = gradients(conv, x)
    for codec in codecs(x.shape, full=True):
        for have, want in zip(gradients(CompressedLayer(conv, codec), x), expected, strict=True):
            assert torch.allclose(have, want, rtol=0, atol=1e-10), codec


@pytest.mark.parametrize("shape", [(7, 6), (3, 5, 6), (2, 3, 4, 6)])
def test_full_rank_linear_is_vanilla(shape):
    torch.manual_seed(0)
    linear = nn.Linear(6, 5, dtype=torch.float64)
    x = torch.randn(*shape, dtype=torch.float64)
    expected = gradients(linear, x)
    for codec in codecs(x.shape, full=True):
        for have, want in zip(gradients(CompressedLayer(linear, codec), x), expected, strict=True):
            assert torch.allclose(have, want, rtol=0, atol=1e-10), codec


@pytest.mark.parametrize("settings", CONVS[::7], ids=str)
def test_output_dx_and_db_are_exact_at_low_rank_and_orders_agree(settings):
    torch.manual_seed(1)
    conv = conv_of(settings)
    x = torch.randn(4, 4, 9, 8, dtype=torch.float64)
    y, dx, dw, db = gradients(conv, x)
    by_kind: dict[str, list[torch.Tensor]] = {}
    for codec in codecs(x.shape, full=False):
        have = gradients(CompressedLayer(conv, codec), x)
        assert torch.equal(have[0], y)
        assert torch.equal(have[1], dx)
        assert torch.allclose(have[3], db, rtol=1e-14, atol=1e-12)
        kind = f"{type(codec).__name__} {getattr(codec, 'basis', '')} {getattr(codec, 'solver', '')}"
        by_kind.setdefault(kind, []).append(have[2])
        if isinstance(codec, ASIPaper | SVD):
            assert (have[2] - dw).abs().max() > 1e-6  # low rank does change dW: the test would see a codec that keeps x
    for found in by_kind.values():
        for other in found[1:]:
            assert torch.allclose(found[0], other, rtol=0, atol=1e-10)


@pytest.mark.parametrize("groups", [1, 4])
def test_gradcheck_at_full_rank(groups):
    torch.manual_seed(0)
    conv = nn.Conv2d(4, 4, 3, stride=2, padding=1, groups=groups, dtype=torch.float64)
    layer = CompressedLayer(conv, ASI((2, 4, 5, 5)))
    x = torch.randn(2, 4, 5, 5, dtype=torch.float64, requires_grad=True)

    def function(x, weight, bias):
        return torch.func.functional_call(layer, {"weight": weight, "bias": bias}, (x,))

    assert torch.autograd.gradcheck(function, (x, conv.weight, conv.bias))


@pytest.mark.parametrize("groups", [1, 4])
def test_projection_gives_way_where_it_is_not_cheapest(groups, monkeypatch):
    """No temporary of the weight gradient outgrows the layer's own input and output, whatever the ranks; dW is the same."""
    torch.manual_seed(0)
    conv = nn.Conv2d(4, 8, 3, padding=1, groups=groups, dtype=torch.float64)
    geometry = ConvGeometry.of(conv)
    x, out = torch.randn(4, 4, 12, 12, dtype=torch.float64), (4, 8, 12, 12)
    narrow, wide = (4, 4, 1, 1), (4, 4, 10, 10)
    assert _contract.cheapest(tuple(x.shape), narrow, out, geometry) == "project"
    assert _contract.cheapest(tuple(x.shape), wide, out, geometry) != "project"
    sizes = []
    plain = _contract.multiply
    monkeypatch.setattr(_contract, "multiply", lambda x, m, mode: sizes.append((y := plain(x, m, mode)).numel()) or y)
    grad = torch.randn(*out, dtype=torch.float64)
    codec = ASI(wide)
    saved = codec.encode(x)
    have = codec.weight_gradient(saved, grad, geometry)
    assert max(sizes, default=0) <= max(x.numel(), grad.numel())
    core, *factors = saved
    assert torch.allclose(have, _contract._conv_project(core, tuple(factors), grad, geometry), rtol=0, atol=1e-10)
