"""Tucker arithmetic on dense tensors: bases, ranks, products, orthonormalisation. All functions run without autograd.

A Tucker form of x with modes d_0..d_{m-1} is a core S of sizes K_0..K_{m-1} and orthonormal factors U_i (d_i, K_i); a
factor of None stands for the identity (that mode is not compressed).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from edge_shared.errors import InputError
from torch import Tensor

Factors = tuple[Tensor | None, ...]
_UNFOLDED = 1 << 20  # elements copied at a time where an unfolding is no view
_NARROW = 12  # matrices of up to so many columns are multiplied lying down, measured: their kernels work on 16 at a time
_JOINT = 1 << 14  # elements of a Kronecker basis up to which, measured, one product with it beats one for rows and one for columns


def compact(x: Tensor) -> Tensor:
    """x with a storage of its own size: a contiguous slice would keep all that it was cut from alive."""
    x = x.contiguous()
    return x if x.untyped_storage().nbytes() == x.numel() * x.element_size() else x.clone()


def unfold(x: Tensor, mode: int) -> Tensor:
    """The mode-`mode` unfolding, (d_mode, n / d_mode)."""
    return x.movedim(mode, 0).reshape(x.shape[mode], -1)


def mode_gram(x: Tensor, mode: int) -> Tensor:
    """Gram matrix of an unfolding, (d, d), in the precision of x; inner modes are unfolded a few samples at a time."""
    if mode == x.ndim - 1:
        flat = x.reshape(-1, x.shape[-1])
        return flat.t() @ flat
    if mode == 0:
        flat = unfold(x, mode)
        return flat @ flat.t()
    gram = x.new_zeros(x.shape[mode], x.shape[mode])
    for part in x.split(max(1, _UNFOLDED * x.shape[0] // x.numel())):
        flat = unfold(part, mode)
        gram.addmm_(flat, flat.t())
    return gram


def rows_times(x: Tensor, matrix: Tensor) -> Tensor:
    """x (n, k) times the transposed `matrix` (r, k); contiguous.

    A CPU's matrix kernels work on 16 columns at a time; what is left over of few columns costs up to four times its arithmetic.
    """
    rank = matrix.shape[0]
    if x.device.type != "cpu" or not 1 < rank % 16 < 16:
        return x @ matrix.t()
    if rank <= 8:
        return (matrix @ x.t()).t().contiguous()
    if rank % 16 <= 8:
        return x @ matrix.t()
    return (x @ torch.nn.functional.pad(matrix, (0, 0, 0, -rank % 16)).t())[:, :rank].contiguous()


def multiply(x: Tensor, matrix: Tensor, mode: int) -> Tensor:
    """Mode product: replaces d_mode by the rows of `matrix` (r, d_mode). The result is contiguous."""
    shape = list(x.shape)
    before, size, after = math.prod(shape[:mode]), shape[mode], math.prod(shape[mode + 1 :])
    shape[mode] = matrix.shape[0]
    if after == 1:
        return rows_times(x.reshape(before, size), matrix).view(shape)
    if before > 1 and after <= _NARROW and after < matrix.shape[0] and x.device.type == "cpu":
        return torch.matmul(x.reshape(before, size, after).transpose(1, 2), matrix.t()).transpose(1, 2).contiguous().view(shape)
    return torch.matmul(matrix, x.reshape(before, size, after)).view(shape)


def joins(pixels: Sequence[int], ranks: Sequence[int]) -> bool:
    """Whether rows and columns (h, w) are projected on their bases of `ranks` (k, l) by one product."""
    return math.prod(pixels) * math.prod(ranks) <= _JOINT


def kronecker(rows: Tensor, columns: Tensor) -> Tensor | None:
    """The Kronecker product (h w, k l) of bases (h, k) and (w, l), where one product with it beats two; else None.

    Products with a side of 2 or 3 run far below a GEMM's speed.
    """
    (h, k), (w, l) = rows.shape, columns.shape
    if not joins((h, w), (k, l)):
        return None
    # Not torch.kron: it takes views that one-column bases do not allow.
    return (rows.reshape(h, 1, k, 1) * columns.reshape(1, w, 1, l)).reshape(h * w, k * l)


def project_order(modes: int) -> tuple[int, ...]:
    """Channels, rows, columns, batch of an image: whole planes of pixels are what a matrix kernel is best at. Else the last mode first."""
    return (1, 2, 3, 0) if modes == 4 else tuple(reversed(range(modes)))


def project(x: Tensor, factors: Factors) -> Tensor:
    """The core: x times U_i^T in every mode, as `project_order` has them (one pass over x, the rest on smaller tensors)."""
    joint = None
    if x.ndim == 4 and (rows := factors[2]) is not None and (columns := factors[3]) is not None:
        joint = kronecker(rows, columns)
    for mode in project_order(x.ndim):
        factor = factors[mode]
        if factor is None:
            continue
        if joint is None or mode < 2:
            x = multiply(x, factor.t(), mode)
        elif mode == 2:  # columns along with the rows
            x = rows_times(x.reshape(-1, joint.shape[0]), joint.t()).view(*x.shape[:2], factor.shape[1], -1)
    return x


def projection_macs(shape: Sequence[int], ranks: Sequence[int]) -> int:
    """Multiply-adds of `project`."""
    total, sizes = 0, list(shape)
    joint = len(shape) == 4 and all(ranks[mode] != shape[mode] for mode in (2, 3)) and joins(shape[2:], ranks[2:])
    for mode in project_order(len(shape)):
        if ranks[mode] == shape[mode]:
            continue
        if not joint or mode < 2:
            total += math.prod(sizes) * ranks[mode]
        elif mode == 2:
            total += math.prod(sizes) * math.prod(ranks[2:])
        sizes[mode] = ranks[mode]
    return total


def expand(core: Tensor, factors: Factors) -> Tensor:
    """Rebuild the dense tensor from its Tucker form; the smallest modes are grown first."""
    order = sorted(range(core.ndim), key=lambda mode: 1.0 if (f := factors[mode]) is None else f.shape[0] / f.shape[1])
    for mode in order:
        factor = factors[mode]
        if factor is not None:
            core = multiply(core, factor, mode)
    return core


def expansion_macs(shape: Sequence[int], ranks: Sequence[int]) -> int:
    """Multiply-adds of `expand`."""
    total, sizes = 0, list(ranks)
    for mode in sorted(range(len(shape)), key=lambda mode: shape[mode] / ranks[mode]):
        if ranks[mode] != shape[mode]:
            total += math.prod(sizes) * shape[mode]
            sizes[mode] = shape[mode]
    return total


def rank_for(energies: Tensor, epsilon: float, total: Tensor | float | None = None) -> int:
    """Smallest K whose leading `energies` (descending, >= 0) hold the share `epsilon` of their sum (or of `total`)."""
    cumulated = energies.clamp_min(0).double().cumsum(0)
    goal = epsilon * float(cumulated[-1] if total is None else total)
    # A relative slack of a few ulps: at epsilon = 1 rounding must not ask for energy that is not there.
    missing = int((cumulated < goal * (1 - 1e-12)).sum())
    return min(missing + 1, energies.numel())


def _eigen(gram: Tensor) -> tuple[Tensor, Tensor]:
    try:
        return torch.linalg.eigh(gram)
    except torch.linalg.LinAlgError as error:
        if not torch.isfinite(gram).all():
            raise InputError(
                "a layer's input is not finite, so it has no low-rank form: training has diverged, take a smaller --lr"
            ) from error
        values, vectors = torch.linalg.eigh(gram.double())
        return values.to(gram.dtype), vectors.to(gram.dtype)


def spectrum(gram: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues (descending, >= 0) and eigenvectors of a symmetric matrix."""
    values, vectors = _eigen(gram)
    return values.flip(0).clamp_min(0), vectors.flip(1)


def leading_eigenvectors(gram: Tensor, rank: int) -> Tensor:
    """The eigenvectors (d, rank) of the largest eigenvalues of a symmetric matrix, largest last, with a storage of their own."""
    return _eigen(gram)[1].narrow(1, gram.shape[0] - rank, rank).clone()


def leading_basis(x: Tensor, mode: int, rank: int) -> Tensor:
    """The `rank` leading left singular vectors of an unfolding, (d, rank), by the eigenvectors of the smaller Gram matrix."""
    if x.shape[mode] ** 2 <= x.numel():
        return compact(spectrum(mode_gram(x, mode))[1][:, :rank])
    matrix = unfold(x, mode)
    vectors = spectrum(matrix.t() @ matrix)[1][:, : min(rank, matrix.shape[1])]
    basis = orthonormalise(matrix @ vectors)
    if rank > basis.shape[1]:
        # More directions than the data has: any orthonormal completion keeps the bytes that were planned.
        fill = torch.eye(matrix.shape[0], dtype=x.dtype, device=x.device)[:, : rank - basis.shape[1]]
        basis = torch.linalg.qr(torch.cat((basis, fill), 1))[0]
    return basis


def orthonormalise(y: Tensor) -> Tensor:
    """Orthonormal basis of the columns of y (d, K), d >= K: CholeskyQR twice, Householder QR where that breaks down.

    The triangular factor has a positive diagonal in both cases, so that the result depends continuously on y.
    """
    q = y
    for _ in range(2):
        lower, info = torch.linalg.cholesky_ex(q.t() @ q)
        diagonal = lower.diagonal()
        limit = 30 * torch.finfo(y.dtype).eps ** 0.5
        if int(info) or not bool(diagonal.min() > limit * diagonal.max()):
            q, r = torch.linalg.qr(y)
            signs = torch.where(r.diagonal() < 0, -1.0, 1.0).to(y.dtype)
            return q * signs
        q = torch.linalg.solve_triangular(lower, q.t(), upper=False).t()
    return compact(q)


def clip_ranks(ranks: Sequence[int], shape: Sequence[int]) -> tuple[int, ...]:
    """Ranks that the shape allows: 1 <= K_i <= d_i."""
    return tuple(max(1, min(rank, size)) for rank, size in zip(ranks, shape, strict=True))


def tucker_elements(shape: Sequence[int], ranks: Sequence[int]) -> int:
    """Elements of a core and its factors: ΠK + Σ d_i K_i (notes of the paper: identity factors are not skipped here)."""
    return math.prod(ranks) + sum(size * rank for size, rank in zip(shape, ranks, strict=True))


def relative_error(x: Tensor, core: Tensor) -> float:
    """The free error meter: (|x|² - |S|²) / |x|² for orthonormal factors, in [0, 1]."""
    total = float(torch.linalg.vector_norm(x)) ** 2
    return max(0.0, 1.0 - float(torch.linalg.vector_norm(core)) ** 2 / total) if total > 0 else 0.0
