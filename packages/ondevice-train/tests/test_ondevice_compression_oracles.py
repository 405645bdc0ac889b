"""The oracles of the notes: error bounds, the free error meter, subspace iteration, tensorly, state and hygiene."""

from __future__ import annotations

import gc
import itertools
import weakref

import pytest
import tensorly
import torch
from edge_shared.memory import measure
from hypothesis import given, settings
from hypothesis import strategies as st
from ondevice_train.compression import wasi
from ondevice_train.compression._codec import CompressedLayer
from ondevice_train.compression._geometry import LinearGeometry
from ondevice_train.compression._tucker import expand, orthonormalise, project, rank_for, relative_error, spectrum, unfold
from ondevice_train.compression.asi import ASI
from ondevice_train.compression.asi_paper import ASIPaper
from ondevice_train.compression.bench import evaluation_norms
from ondevice_train.compression.fixed_bases import FixedBases, cosine_basis
from ondevice_train.compression.gradient_filter import GradientFilter
from ondevice_train.compression.hosvd import HOSVD, hosvd, hosvd_ranks
from ondevice_train.compression.max_pool import CompactMaxPool2d
from ondevice_train.compression.planner import plan
from ondevice_train.compression.prepare import codec_state, load_codec_state, prepare, restore
from ondevice_train.compression.quantise import Quantise, dequantise, quantise, quantised_bytes
from ondevice_train.compression.svd import SVD
from ondevice_train.ops.selective import Selective
from tensorly.decomposition import tucker
from torch import nn

F64 = torch.float64


def decaying(shape: tuple[int, ...], seed: int = 0, decay: float = 0.5) -> torch.Tensor:
    """A tensor whose unfoldings have geometric spectra."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(*shape, generator=generator, dtype=F64)
    for mode, size in enumerate(shape):
        basis = torch.linalg.qr(torch.randn(size, size, generator=generator, dtype=F64))[0]
        x = torch.movedim(torch.tensordot(basis * decay ** torch.arange(size), x, ([1], [mode])), 0, mode)
    return x


@settings(max_examples=25, deadline=None)
@given(epsilon=st.sampled_from([0.4, 0.5, 0.8, 0.9, 0.99]), seed=st.integers(0, 10_000), decay=st.floats(0.3, 1.0))
def test_hosvd_error_stays_below_the_discarded_energy(epsilon, seed, decay):
    x = decaying((4, 6, 5, 5), seed, decay)
    core, factors = hosvd(x, epsilon=epsilon)
    error = (x - expand(core, factors)).square().sum()
    tails = sum(torch.linalg.svdvals(unfold(x, mode))[core.shape[mode] :].square().sum() for mode in range(4))
    total = x.square().sum()
    assert error <= tails * (1 + 1e-9) + 1e-12 * total
    assert tails <= 4 * (1 - epsilon) * total * (1 + 1e-9)
    # The free error meter: orthonormal factors make the core's norm tell the error.
    assert abs(float(error / total) - relative_error(x, core)) < 1e-11
    split = hosvd(x, epsilon=epsilon, rule="total")
    assert (x - expand(*split)).square().sum() <= (1 - epsilon) * total * (1 + 1e-9)


def test_hosvd_ranks_and_bases_agree_with_the_thin_svd_and_with_tensorly():
    x = decaying((5, 7, 4, 6))
    for epsilon in (0.5, 0.8, 0.95):
        gram, thin = hosvd(x, epsilon=epsilon), hosvd(x, epsilon=epsilon, solver="svd")
        assert gram[0].shape == thin[0].shape == torch.Size(hosvd_ranks(x, [epsilon])[0])
        for left, right in zip(gram[1], thin[1], strict=True):
            assert torch.allclose(left @ left.T, right @ right.T, atol=1e-9)
    ranks = (2, 3, 2, 2)
    core, factors = hosvd(x, ranks=ranks)
    best = tucker(x.numpy(), rank=ranks, n_iter_max=200, tol=1e-12)
    optimum = float(((x.numpy() - tensorly.tucker_to_tensor(best)) ** 2).sum())
    ours = float((x - expand(core, factors)).square().sum())
    assert optimum <= ours * (1 + 1e-9) <= 4 * optimum
    asi = ASI(ranks)
    sequential = float((x - expand(*asi.decompose(x))).square().sum())
    assert optimum <= sequential * (1 + 1e-9)
    assert sequential <= 1.1 * ours
    assert torch.allclose(torch.as_tensor(tensorly.tucker_to_tensor((core.numpy(), [f.numpy() for f in factors]))), expand(core, factors))


def test_svd_loses_exactly_what_it_does_not_explain():
    x = decaying((6, 3, 4, 5), decay=0.7)
    codec = SVD(epsilon=0.8)
    left, right = codec.encode(x)
    error = (x.reshape(6, -1) - left @ right).square().sum() / x.square().sum()
    values = torch.linalg.svdvals(x.reshape(6, -1)).square()
    assert float(error) == pytest.approx(float(values[codec.rank :].sum() / values.sum()), abs=1e-12)
    assert error <= 0.2


def test_gradient_error_is_bounded_by_the_input_error():
    torch.manual_seed(0)
    x, grad = decaying((8, 6, 5, 5)), torch.randn(8, 4, 5, 5, dtype=F64)
    conv = nn.Conv2d(6, 4, 3, padding=1, dtype=F64)
    layer = CompressedLayer(conv, HOSVD(epsilon=0.8))
    exact = layer.geometry.weight_gradient(x, grad)
    approximate = layer.codec.weight_gradient(layer.codec.encode(x), grad, layer.geometry)
    error = (x - expand(*hosvd(x, epsilon=0.8))).norm()
    matrix = grad.transpose(0, 1).reshape(4, -1)
    assert (approximate - exact).norm() <= 3 * torch.linalg.matrix_norm(matrix, 2) * error
    # A linear layer reads each input once: the same bound with factor 1.
    x, grad = decaying((8, 9, 6)), torch.randn(8, 9, 4, dtype=F64)
    layer = CompressedLayer(nn.Linear(6, 4, dtype=F64), HOSVD(epsilon=0.8))
    approximate = layer.codec.weight_gradient(layer.codec.encode(x), grad, layer.geometry)
    error = (x - expand(*hosvd(x, epsilon=0.8))).norm()
    difference = (approximate - layer.geometry.weight_gradient(x, grad)).norm()
    assert 0 < difference <= torch.linalg.matrix_norm(grad.reshape(-1, 4), 2) * error * (1 + 1e-9)


def test_paper_asi_converges_to_hosvd_on_a_fixed_batch():
    x = decaying((6, 12, 8, 8), decay=0.25)
    ranks = (2, 3, 3, 3)
    codec, core = ASIPaper(ranks), None
    target = hosvd(x, ranks=ranks)[1]
    norms, distances, energies = [], [], []
    for _ in range(14):
        core, factors = codec.decompose(x)
        norms.append(float(core.norm()))
        energies.append([float((f.T @ unfold(x, mode)).norm()) for mode, f in enumerate(factors)])
        distances.append(max(float((f @ f.T - t @ t.T).norm(p=2)) for f, t in zip(factors, target, strict=True)))
    assert distances[-1] < 1e-10
    # Subspace iteration: the energy that each basis holds grows at every step, and the distance shrinks by the spectral gap.
    for earlier, later in itertools.pairwise(energies):
        assert all(new >= old * (1 - 1e-12) for old, new in zip(earlier, later, strict=True))
    assert all(later < 0.25 * earlier for earlier, later in itertools.pairwise(distances[:12]))
    assert norms[-1] == pytest.approx(float(hosvd(x, ranks=ranks)[0].norm()), rel=1e-12)
    assert norms[0] < norms[-1]


def test_warm_bases_beat_a_cold_sketch_on_a_stream_and_the_exact_batch_mode_beats_a_stale_one():
    generator = torch.Generator().manual_seed(3)
    bases = [torch.linalg.qr(torch.randn(size, 4, generator=generator, dtype=F64))[0] for size in (16, 8, 8)]
    ranks, errors = (6, 4, 4, 4), {"fast": [], "paper": [], "cold": []}
    fast, paper = ASI(ranks), ASIPaper(ranks)
    for step in range(8):
        core = torch.randn(12, 4, 4, 4, generator=generator, dtype=F64)
        x = expand(core, (None, *bases)) + 0.05 * torch.randn(12, 16, 8, 8, generator=generator, dtype=F64)
        for name, codec in {"fast": fast, "paper": paper, "cold": ASIPaper(ranks, seed=step)}.items():
            errors[name].append(relative_error(x, codec.decompose(x)[0]))
    mean = {name: sum(values[3:]) / 5 for name, values in errors.items()}
    assert mean["fast"] < mean["paper"] <= mean["cold"]
    assert fast.refreshes == 1  # the subspace did not move, so that the meter saw no drift


def test_bases_are_refreshed_when_the_error_meter_drifts_and_only_then():
    codec = ASI((4, 3, 3, 3), check_every=1)
    first, other = decaying((4, 10, 6, 6), 0), decaying((4, 10, 6, 6), 1)
    for _ in range(3):
        codec.decompose(first)
    assert codec.refreshes == 1
    core, _ = codec.decompose(other)
    assert codec.refreshes == 2
    assert relative_error(other, core) <= 1.3 * relative_error(other, hosvd(other, ranks=(4, 3, 3, 3))[0])


@settings(max_examples=30, deadline=None)
@given(
    rows=st.integers(3, 30),
    columns=st.integers(1, 3),
    scale=st.floats(1e-6, 1e6),
    seed=st.integers(0, 1000),
    dtype=st.sampled_from([F64, torch.float32]),
)
def test_orthonormalise_spans_the_columns_even_when_they_are_nearly_dependent(rows, columns, scale, seed, dtype):
    y = torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed), dtype=dtype)
    y[:, -1] = y[:, 0] + 1e-7 * y[:, -1] if columns > 1 else y[:, 0] * scale
    q = orthonormalise(y)
    assert torch.allclose(q.T @ q, torch.eye(columns, dtype=dtype), atol=1e-4 if dtype == torch.float32 else 1e-9)
    assert (y - q @ (q.T @ y)).norm() <= 1e-5 * y.norm()


def test_rank_for_takes_the_smallest_rank():
    energies = torch.tensor([6.0, 3.0, 1.0])
    assert [rank_for(energies, epsilon) for epsilon in (0.1, 0.6, 0.61, 0.9, 0.91, 1.0)] == [1, 1, 2, 2, 3, 3]
    assert rank_for(torch.tensor([5.0, 0.0, 0.0]), 1.0) == 1


def test_cosine_basis_is_orthonormal_and_holds_constants_in_its_first_vector():
    basis = cosine_basis(9, 4, F64, torch.device("cpu"))
    assert torch.allclose(basis.T @ basis, torch.eye(4, dtype=F64), atol=1e-14)
    assert torch.allclose(basis[:, 0], torch.full((9,), 1 / 3, dtype=F64))


def test_gradient_filter_is_exact_for_patch_one_and_pools_as_the_paper_says():
    torch.manual_seed(0)
    conv = nn.Conv2d(3, 4, 1, dtype=F64)
    x = torch.randn(2, 3, 5, 7, dtype=F64, requires_grad=True)
    grad = torch.randn(2, 4, 5, 7, dtype=F64)
    exact = torch.autograd.grad(conv(x), [x, conv.weight], grad)
    layer = CompressedLayer(conv, GradientFilter(1, CompressedLayer(conv, SVD()).geometry))
    for have, want in zip(torch.autograd.grad(layer(x), [x, conv.weight], grad), exact, strict=True):
        assert torch.allclose(have, want, atol=1e-12)
    # On inputs and gradients that are constant on patches a 1x1 convolution loses nothing at patch 2 either.
    x = torch.randn(2, 3, 2, 2, dtype=F64).repeat_interleave(2, 2).repeat_interleave(2, 3).requires_grad_()
    grad = torch.randn(2, 4, 2, 2, dtype=F64).repeat_interleave(2, 2).repeat_interleave(2, 3)
    exact = torch.autograd.grad(conv(x), [x, conv.weight], grad)
    layer.codec = GradientFilter(2, layer.geometry)
    for have, want in zip(torch.autograd.grad(layer(x), [x, conv.weight], grad), exact, strict=True):
        assert torch.allclose(have, want, atol=1e-12)


@pytest.mark.parametrize(("bits", "levels"), [(8, 255), (4, 15)])
@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_quantise_rounds_to_half_a_step(bits, levels, dtype):
    x = torch.randn(3, 5, 7, dtype=dtype) * torch.tensor([1.0, 1e-3, 1e3, 0.0, 1.0])[:, None]
    packed = quantise(x, 15, bits)
    step = (x.amax(-1) - x.amin(-1)) / levels
    assert ((dequantise(packed, 15, x.shape, dtype, bits) - x).abs() <= 0.5001 * step[..., None] + 1e-6 * x.abs() + 1e-8).all()
    assert (
        packed.untyped_storage().nbytes() == quantised_bytes(x.numel(), 15, x.itemsize, bits) == -(-x.numel() * bits // 8) + 30 * x.itemsize
    )


# -- WASI


def dense_and_factored(rank: int, seed: int = 0):
    torch.manual_seed(seed)
    dense = nn.Linear(12, 8, dtype=F64)
    x = torch.randn(6, 4, 12, dtype=F64)
    factored = wasi.FactoredLinear(dense, ASI(tuple(x.shape)), rank=rank)
    return dense, factored, x


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_wasi_at_full_rank_is_dense_sgd(momentum):
    dense, factored, x = dense_and_factored(8)
    target = torch.randn(6, 4, 8, dtype=F64)
    dense.bias = nn.Parameter(dense.bias.detach().clone())
    optimizers = [torch.optim.SGD(module.parameters(), lr=0.05, momentum=momentum) for module in (dense, factored)]
    for _ in range(6):
        for module, optimizer in zip((dense, factored), optimizers, strict=True):
            optimizer.zero_grad()
            (module(x) - target).square().mean().backward()
            optimizer.step()
        factored.orthonormalise()
        assert torch.allclose(factored.original.weight, dense.weight, atol=1e-10)


def test_wasi_gradients_are_the_tangent_projection_of_the_dense_one():
    _, factored, x = dense_and_factored(3)
    grad = torch.randn(6, 4, 8, dtype=F64)
    factored(x).backward(grad)
    full = LinearGeometry().weight_gradient(x, grad)
    left, right = factored.left.detach(), factored.right.detach()
    row = torch.linalg.pinv(right) @ right
    tangent = left @ left.T @ full + full @ row - left @ left.T @ full @ row
    change = factored.left.grad @ right + left @ factored.right.grad
    assert (change - tangent).norm() <= 5e-3 * tangent.norm()  # the damping of R R^T is all that differs
    assert torch.allclose(left.T @ factored.left.grad, torch.zeros(3, 3, dtype=F64), atol=1e-10)


def test_wasi_pairing_holds_at_every_step_where_the_papers_fails():
    torch.manual_seed(0)
    weight = decaying((40, 30), decay=0.85)
    left, right = wasi.factorise(weight, epsilon=0.8)
    optimum = torch.linalg.svdvals(weight)
    rank = left.shape[1]
    for step in range(4):
        p, q = 0.01 * torch.randn(40, 2, dtype=F64), torch.randn(30, 2, dtype=F64)
        dense = left @ right + p @ q.T
        old = left
        left, right = wasi.subspace_step(left, right, p, q)
        optimum = torch.linalg.svdvals(dense)[rank:].square().sum().sqrt()
        assert (dense - left @ right).norm() <= 1.05 * optimum + 1e-12
        assert torch.allclose(left @ right, left @ left.T @ dense, atol=1e-10)
        assert torch.allclose(left.T @ left, torch.eye(rank, dtype=F64), atol=1e-12)
        if step == 0:
            wrong = torch.linalg.qr(dense @ (dense.T @ old))[0] @ (old.T @ dense)
            assert (dense - wrong).norm() > 3 * optimum  # new L with the R of the old one: signs alone break it


def test_wasi_holds_no_dense_weight_gradient_or_optimiser_state():
    _, factored, x = dense_and_factored(3)
    optimizer = torch.optim.SGD(factored.parameters(), lr=0.1, momentum=0.9)
    factored(x).sum().backward()
    optimizer.step()
    tensors = [*factored.parameters(), *(parameter.grad for parameter in factored.parameters())]
    tensors += [value for state in optimizer.state.values() for value in state.values() if isinstance(value, torch.Tensor)]
    assert max(tensor.numel() for tensor in tensors) <= 12 * 3 < 12 * 8


# -- hygiene


def small() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU6(inplace=True),
        nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.BatchNorm2d(8), nn.Hardswish(),
        nn.Conv2d(8, 12, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 5),
    )  # fmt: skip


def small_plan(method: str = "asi", **settings):
    from ondevice_train.compression.planner import plan

    torch.manual_seed(1)
    return plan(small().train(), torch.randn(6, 3, 12, 12), method=method, epsilon=0.7, **settings)


@pytest.mark.parametrize("method", ["asi", "asi-paper", "hosvd", "svd", "fixed-bases", "quantise"])
def test_training_leaves_the_global_random_state_alone_takes_a_ragged_batch_and_keeps_no_graph(method):
    model = prepare(small(), small_plan(method))
    before = torch.get_rng_state()
    for batch in (6, 6, 2, 6, 1):
        x = torch.randn(batch, 3, 12, 12, generator=torch.Generator().manual_seed(batch))
        y = model(x)
        y.square().sum().backward()
        assert all(torch.isfinite(parameter.grad).all() for parameter in model.parameters() if parameter.requires_grad)
    assert torch.equal(torch.get_rng_state(), before)
    kept = weakref.ref(y)
    del y
    gc.collect()
    assert kept() is None
    assert not [value for value in gc.get_objects() if type(value).__name__ == "_CompressedLayerBackward"]


def test_measuring_keeps_no_graph():
    """ReLU keeps its own output: a hook that hands it back as it is ties the graph to itself."""
    layer, x = CompressedLayer(nn.Conv2d(4, 4, 3), ASI((2, 2, 3, 3))), torch.randn(4, 4, 9, 9)
    measure.saved_bytes(lambda: torch.relu(layer(x)), [*layer.parameters()])
    gc.collect()
    assert not [value for value in gc.get_objects() if type(value).__name__ == "_CompressedLayerBackward"]


def test_inputs_are_freed_after_the_forward_pass():
    layer = CompressedLayer(nn.Conv2d(4, 4, 3), ASI((2, 2, 3, 3)))
    x = torch.randn(4, 4, 9, 9, requires_grad=True) * 1.0
    gone = weakref.ref(x)
    y = layer(x)
    del x
    gc.collect()
    assert gone() is None
    y.sum().backward()


def test_prepare_is_undone_by_restore_with_trained_values():
    model = small()
    types, x = [type(module) for module in model.modules()], torch.randn(6, 3, 12, 12)
    keys, flags = list(model.state_dict()), [parameter.requires_grad for parameter in model.parameters()]
    prepare(model, small_plan())
    assert list(model.state_dict()) == keys
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    model(x).square().sum().backward()
    optimizer.step()
    model.eval()
    trained = model(x)
    restore(model)
    assert [type(module) for module in model.modules()] == types
    assert [parameter.requires_grad for parameter in model.parameters()] == flags
    assert torch.allclose(model.eval()(x), trained, atol=1e-5)


def test_warm_bases_survive_a_checkpoint():
    plan = small_plan()
    first, second = prepare(small(), plan), prepare(small(), plan)
    x = torch.randn(6, 3, 12, 12)
    for _ in range(3):
        first(x).sum().backward()
    state = codec_state(first)
    load_codec_state(second, state)
    first.zero_grad()
    other = torch.randn(6, 3, 12, 12)
    first(other).square().sum().backward()
    second(other).square().sum().backward()
    for left, right in zip(first.parameters(), second.parameters(), strict=True):
        if left.requires_grad:
            assert torch.equal(left.grad, right.grad)


def test_bfloat16_cores_round_to_2_to_the_minus_8():
    x = decaying((4, 6, 5, 5)).float()
    ranks = (3, 4, 3, 3)
    core, *_ = ASI(ranks).encode(x)
    half, *_ = ASI(ranks, half_core=True).encode(x)
    assert half.dtype == torch.bfloat16
    assert ((half.float() - core).abs() <= 2**-8 * core.abs()).all()


def test_autocast_trains_in_bfloat16_with_gradients_near_the_full_ones():
    torch.manual_seed(0)
    conv = nn.Conv2d(4, 6, 3, padding=1)
    x = torch.randn(4, 4, 8, 8, requires_grad=True)
    layer = CompressedLayer(conv, ASI((4, 4, 8, 8)))
    layer(x).square().sum().backward()
    full, conv.weight.grad = conv.weight.grad, None
    with torch.autocast("cpu", torch.bfloat16):
        y = layer(x)
    assert y.dtype == torch.bfloat16
    y.float().square().sum().backward()
    assert conv.weight.grad.dtype == torch.float32
    assert (conv.weight.grad - full).norm() <= 0.02 * full.norm()


def test_projection_on_identity_factors_is_the_tensor_itself():
    x = torch.randn(2, 3, 4)
    assert project(x, (None, None, None)) is x
    values, vectors = spectrum(torch.diag(torch.tensor([1.0, 3.0, 2.0])))
    assert values.tolist() == pytest.approx([3.0, 2.0, 1.0])
    assert vectors[:, 0].abs().tolist() == pytest.approx([0.0, 1.0, 0.0], abs=1e-6)


def test_a_fixed_basis_never_moves():
    codec = FixedBases((4, 3, 3, 3))
    codec.encode(decaying((4, 6, 5, 5), 0))
    kept = [basis if basis is None else basis.clone() for basis in codec.bases]
    codec.encode(decaying((4, 6, 5, 5), 1))
    assert all(old is None or torch.equal(old, new) for old, new in zip(kept, codec.bases, strict=True))


def test_quantised_layers_differ_from_exact_ones_by_their_rounding():
    torch.manual_seed(0)
    linear = nn.Linear(6, 5)
    x, grad = torch.randn(3, 4, 6), torch.randn(3, 4, 5)
    codec = Quantise(8, image=False)
    have = codec.weight_gradient(codec.encode(x), grad, LinearGeometry())
    want = LinearGeometry().weight_gradient(x, grad)
    linear(x)
    assert 0 < (have - want).norm() <= 0.01 * want.norm()


@settings(max_examples=40, deadline=None)
@given(
    kernel=st.integers(1, 4), stride=st.integers(1, 4), padding=st.integers(0, 2), dilation=st.integers(1, 2), ceil=st.booleans(),
    high=st.integers(7, 12), wide=st.integers(7, 12),
)  # fmt: skip
def test_max_pooling_keeps_a_byte_an_output_with_the_gradient_of_torch(kernel, stride, padding, dilation, ceil, high, wide):
    plain = nn.MaxPool2d(kernel, stride, min(padding, kernel // 2), dilation, ceil_mode=ceil)
    pool = CompactMaxPool2d(plain)
    x = torch.randn(2, 3, high, wide, dtype=F64, requires_grad=True)
    y = pool(x)
    grad = torch.randn_like(y)
    assert torch.equal(y, plain(x))
    torch.testing.assert_close(torch.autograd.grad(y, x, grad)[0], torch.autograd.grad(plain(x), x, grad)[0], rtol=0, atol=1e-12)
    assert measure.saved_bytes(lambda: pool(x), [x]).bytes == pool.saved_bytes(x.shape) == y.numel()


def test_frozen_convolutions_apply_their_norm_and_give_it_back():
    torch.manual_seed(0)
    block = nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(inplace=True))
    model = nn.Sequential(block, nn.Conv2d(8, 8, 1), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, 3)).double()
    norm, x = block[1], torch.randn(4, 3, 8, 8, dtype=F64)
    for values in (norm.running_mean, norm.running_var, norm.weight.data, norm.bias.data):
        values.uniform_(0.5, 1.5)
    evaluation_norms(model)
    expected, keys = model(x), list(model.state_dict())
    prepare(model, plan(model, x, method="quantise", last=1))
    assert isinstance(model[0][0], Selective)
    assert model[0][1].absorbed
    assert list(model.state_dict()) == keys
    torch.testing.assert_close(model(x), expected, rtol=0, atol=1e-12)
    model.load_state_dict({**model.state_dict(), "0.1.bias": norm.bias.detach() + 1})
    moved = model(x)
    restore(model)
    assert type(model[0][0]) is nn.Conv2d
    assert type(model[0][1]) is nn.BatchNorm2d
    torch.testing.assert_close(model(x), moved, rtol=0, atol=1e-12)
    assert not torch.allclose(moved, expected)
