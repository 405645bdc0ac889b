"""Weight and activation subspace iteration (WASI, arXiv 2510.09160), trained for real.

The published code keeps the dense weight, its gradient and its optimiser state and only counts as if it did not. Here a
Linear *is* its factors: W = L R with orthonormal L (O, K) and R = L^T W (K, I). The input is kept by ASI, whose Tucker form
gives dW = M U^T of low rank, never multiplied out:

    dR = L^T M U^T          dL = (1 - L L^T) M (U^T R^T) (R R^T + λ)^-1

With these, one SGD step on L and R is, to first order, the dense step projected on the tangent space of the rank-K
matrices; at full rank it *is* the dense step, momentum included (L then stands still). Any optimiser holds state for the
factors only. After a step L is orthonormalised again and R multiplied by the triangular factor, so that L R is unchanged:
the pairing that the paper's algorithm 1 gets wrong by using the new L with the old R.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from ondevice_train.compression._codec import Codec
from ondevice_train.compression._contract import linear_factored
from ondevice_train.compression._tucker import compact, orthonormalise, rank_for
from ondevice_train.compression._tucker_codec import TuckerCodec

_DAMPING = 1e-3  # of the mean eigenvalue of R R^T; keeps directions of vanishing singular value from exploding


def factorise(weight: Tensor, *, epsilon: float | None = None, rank: int | None = None) -> tuple[Tensor, Tensor]:
    """L (O, K) orthonormal and R = L^T W (K, I), from the SVD of the weight at an explained variance or a rank."""
    left, values, _ = torch.linalg.svd(weight.detach(), full_matrices=False)
    if rank is None:
        if epsilon is None:
            raise ValueError("give epsilon or rank")
        rank = rank_for(values.square(), epsilon)
    left = compact(left[:, :rank])
    return left, left.t() @ weight.detach()


def subspace_step(left: Tensor, right: Tensor, update_left: Tensor, update_right: Tensor) -> tuple[Tensor, Tensor]:
    """One subspace iteration on W' = L R + P Q^T without forming W': the new L' and R' = L'^T W'.

    Args:
        left, right: factors (O, K), (K, I), L orthonormal.
        update_left, update_right: P (O, r) and Q (I, r), such as -η M and U of the gradient.
    """
    transposed = right.t() + update_right @ (update_left.t() @ left)
    image = left @ (right @ transposed) + update_left @ (update_right.t() @ transposed)
    new = orthonormalise(image)
    return new, (new.t() @ left) @ right + (new.t() @ update_left) @ update_right.t()


class _FactoredLinear(torch.autograd.Function):
    """y = (x R^T) L^T + b; keeps the code of x and the parameters."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, left: Tensor, right: Tensor, bias: Tensor | None, codec: Codec) -> Tensor:
        device = x.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype
        with torch.autocast(device, enabled=False):
            y = (x.to(dtype) @ right.t().to(dtype)) @ left.t().to(dtype)
            if bias is not None:
                y += bias.to(dtype)
            saved = codec.encode(x if x.dtype == torch.float64 else x.float()) if ctx.needs_input_grad[1] else ()
        ctx.save_for_backward(left, right, *saved)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:  # type: ignore[override]
        left, right, *saved = ctx.saved_tensors
        dx = dl = dr = db = None
        with torch.autocast(grad.device.type, enabled=False):
            if ctx.needs_input_grad[0]:
                dx = (grad @ left.to(grad.dtype)) @ right.to(grad.dtype)
            wide = grad if grad.dtype == torch.float64 else grad.float()
            if ctx.needs_input_grad[1]:
                core, *factors = saved
                m, basis = linear_factored(core.to(wide.dtype), tuple(factors), wide)
                along = left.t() @ m
                inner = right if basis is None else right @ basis
                gram = right @ right.t()
                gram.diagonal().add_(_DAMPING * gram.diagonal().mean() + torch.finfo(gram.dtype).tiny)
                dl = (m - left @ along) @ torch.linalg.solve(gram, inner).t()
                dr = along if basis is None else along @ basis.t()
            if ctx.needs_input_grad[3]:
                db = wide.reshape(-1, wide.shape[-1]).sum(0)
        return dx, dl, dr, db, None


class FactoredLinear(nn.Module):
    """In place of a Linear: parameters `left` (O, K), `right` (K, I) and `bias`.

    Attributes:
        codec: keeps the input (a Tucker codec).
        original: a plain Linear with the present dense weight (computed on access).
    """

    bias: Tensor | None

    def __init__(self, original: nn.Linear, codec: TuckerCodec, *, epsilon: float | None = None, rank: int | None = None) -> None:
        super().__init__()
        left, right = factorise(original.weight, epsilon=epsilon, rank=rank)
        trains = original.weight.requires_grad
        self.left = nn.Parameter(left, trains)
        self.right = nn.Parameter(right, trains)
        self.register_parameter("bias", original.bias)
        self.codec = codec
        self._version = self.left._version
        self.training = original.training
        # The dense weight must not survive: only its description is kept.
        self._like = (original.in_features, original.out_features)

    @property
    def weight(self) -> Tensor:
        """The dense weight L R (O, I), made when it is asked for: torch's fused transformer layer does, in inference."""
        return self.left @ self.right

    @property
    def original(self) -> nn.Linear:
        """The dense layer with weight L R."""
        linear = nn.Linear(*self._like, bias=self.bias is not None, device="meta")
        linear.weight = nn.Parameter(self.left.detach() @ self.right.detach(), self.left.requires_grad)
        linear.bias = self.bias  # type: ignore[assignment]
        linear.training = self.training
        return linear

    @torch.no_grad()
    def orthonormalise(self) -> None:
        """Make L orthonormal again and carry its triangular factor to R; L R does not change."""
        q = orthonormalise(self.left)
        self.right.copy_((q.t() @ self.left) @ self.right)
        self.left.copy_(q)
        self._version = self.left._version

    def forward(self, x: Tensor) -> Tensor:
        """x (..., I) -> (..., O)."""
        if self.left._version != self._version:
            self.orthonormalise()
        if not torch.is_grad_enabled():
            return nn.functional.linear(nn.functional.linear(x, self.right), self.left, self.bias)
        return _FactoredLinear.apply(x, self.left, self.right, self.bias, self.codec)

    def extra_repr(self) -> str:
        """Show the sizes."""
        return f"{self._like[0]}, {self._like[1]}, rank={self.left.shape[1]}, {self.codec!r}"
