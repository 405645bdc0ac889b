"""Conv2d and Linear that keep for the backward pass only what their updated channels need.

The gradient of a weight slice W[:, c] needs the input channel x[:, c] alone (TraDy §3.1). So the forward pass saves a *copy* of the
selected channels (a view would keep the whole activation alive), and the backward pass makes the gradient of exactly these slices. A
slice is a small parameter of its own, in step with the full weight: gradient, momentum and weight decay exist only for it, and what is
not selected cannot move.

Two units: ``input`` channels (SparseUpdate, TraDy, MeDyate) and ``output`` neurons (NEq, Velocity, SCoTTi). A neuron needs the whole
input of its group, so that only a depthwise layer saves memory by neurons.

Shape suffixes: B batch, C input channels, O outputs, K selected, H W height and width, k kernel; * any leading dimensions.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from ondevice_train.compression._codec import Codec
from ondevice_train.ops import chain
from ondevice_train.ops.frozen_norm import FrozenBatchNorm2d
from ondevice_train.ops.masks import PackedActivation
from ondevice_train.ops.slices import Unit, dequantise, quantise, slice_index

__all__ = ["Selective", "Unit"]


class _SelectiveLinear(torch.autograd.Function):
    """y = x Wᵀ + b on (*, C); saves x[..., channels] (a copy) for input features, x for output neurons."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        slice: Tensor | None,
        channels: Tensor | None,
        unit: Unit,
        bits: int = 32,
    ) -> Tensor:
        kept = grid = None
        if slice is not None and ctx.needs_input_grad[3]:
            assert channels is not None
            kept = x.index_select(-1, channels) if unit == "input" else x
            if bits == 8 and unit == "input":
                kept, grid = quantise(kept, -1)
        ctx.save_for_backward(kept, grid, weight, channels)
        ctx.unit = unit
        return F.linear(x, weight, bias)

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, grad: Tensor) -> Any:
        kept, grid, weight, channels = ctx.saved_tensors
        if grid is not None:
            kept = dequantise(kept, grid, -1)
        dx = grad @ weight.to(grad.dtype) if ctx.needs_input_grad[0] else None
        flat = grad.reshape(-1, grad.shape[-1])
        dslice = None
        if kept is not None:
            selected = flat.index_select(1, channels) if ctx.unit == "output" else flat
            dslice = selected.t() @ kept.reshape(-1, kept.shape[-1]).to(grad.dtype)
        dbias = flat.sum(0) if ctx.needs_input_grad[2] else None
        return dx, None, dbias, dslice, None, None, None


def _average(parameter: Tensor) -> None:
    """The mean gradient over all processes."""
    assert parameter.grad is not None
    distributed.all_reduce(parameter.grad)
    parameter.grad.div_(distributed.get_world_size())


class Selective(nn.Module):
    """A Conv2d or Linear of which only chosen input channels or output neurons train.

    Shares weight and bias with `original`, which never gets a gradient; `slice` is the trained part of the weight, a parameter of shape
    (O, K, k, k) or (K, C, k, k) for a convolution, (O, K) or (K, C) for a linear layer, (m, K, k, k) by input channels of a depthwise one
    with m outputs a channel; K channels of a grouped one give (O / groups, K, k, k). None while nothing is selected.

    With `keep_bits` 8 the copied channels are rounded to 256 levels each (and 8 bytes for the grid): a quarter of the memory, the
    gradient of the slice off by the rounding; dx and the bias gradient stay exact.

    The state_dict is that of the original layer (the full weight, in step with the slice).

    Attributes:
        codec: keeps the selected channels of a convolution in another form (`ondevice_train.selection.keep`); None: as `keep_bits` says.
        is_conv: whether it stands for a convolution.
        geometry: stride, padding, dilation and groups of a convolution.
    """

    weight: Tensor
    bias: Tensor | None
    slice: nn.Parameter | None
    channels: Tensor | None
    scale: Tensor | None
    shift: Tensor | None

    def __init__(self, original: nn.Conv2d | nn.Linear, keep_bits: int = 32) -> None:
        super().__init__()
        if keep_bits not in (8, 32):
            raise ValueError(f"keep_bits is {keep_bits}; channels are kept in 32 or 8 bits")
        self.keep_bits = keep_bits
        self.codec: Codec | None = None
        if isinstance(original, nn.Conv2d) and (original.padding_mode != "zeros" or isinstance(original.padding, str)):
            raise ValueError("only zero padding given as numbers is supported")
        self._original: tuple[Any] = (original,)
        self.is_conv = isinstance(original, nn.Conv2d)
        self.geometry: tuple = (
            (original.stride, original.padding, original.dilation, original.groups) if isinstance(original, nn.Conv2d) else ()
        )
        self.weight = original.weight
        self.register_parameter("bias", original.bias)  # type: ignore[arg-type]
        self.weight.requires_grad_(False)
        self.unit: Unit = "input"
        self.register_buffer("channels", None, persistent=False)
        self.register_buffer("scale", None, persistent=False)
        self.register_buffer("shift", None, persistent=False)
        self._norm: tuple[FrozenBatchNorm2d, Tensor] | None = None  # and its bias; a tuple hides both from registration
        self._seen_bias = -1
        self._links: tuple[Selective, ...] = (self,)
        self._inside = False
        self.activation: PackedActivation | None
        object.__setattr__(self, "activation", None)
        self.register_parameter("slice", None)
        self._seen = -1
        self.register_state_dict_pre_hook(lambda module, *_: module.sync())
        self.register_load_state_dict_post_hook(lambda module, _: module._reread())

    @property
    def original(self) -> Any:
        """The torch layer, with the trained weight."""
        self.sync()
        layer = self._original[0]
        layer.weight, layer.bias = self.weight, self.bias
        return layer

    @property
    def in_channels(self) -> int:
        """Input channels or features."""
        layer = self._original[0]
        return layer.in_channels if self.is_conv else layer.in_features

    @property
    def out_channels(self) -> int:
        """Output neurons."""
        return self.weight.shape[0]

    def select(self, channels: Tensor | list[int] | None, unit: Unit = "input") -> None:
        """Train exactly these channels from now on; the rest of the weight stays as it is, to the bit.

        Args:
            channels: increasing indices of input channels or output neurons; None or empty freezes the weight.
            unit: ``"input"`` or ``"output"``.

        Raises:
            ValueError: if an index is out of range, repeated or out of order.
        """
        self.sync()
        self.unit = unit
        indices = torch.as_tensor([] if channels is None else channels, dtype=torch.long, device=self.weight.device)
        limit = self.in_channels if unit == "input" else self.out_channels
        if indices.numel() and (int(indices[0]) < 0 or int(indices[-1]) >= limit or bool((indices.diff() <= 0).any())):
            raise ValueError(f"channels must increase and lie between 0 and {limit - 1}")
        if indices.numel() == 0:
            self.channels, self.slice = None, None
            return
        self.channels = indices
        self.slice = nn.Parameter(self.slice_of(self.weight))
        self._seen = self.slice._version
        if distributed.is_available() and distributed.is_initialized():
            # DistributedDataParallel knows only what was there when it was made.
            self.slice.register_post_accumulate_grad_hook(_average)

    def exchange(self, state: tuple[Any, ...]) -> tuple[Any, ...]:
        """Swap what is selected, slice parameter included, for another state of this layer; returns the present one.

        For a look at other gradients in between: the weight must not have moved when the first state comes back.
        """
        self.sync()
        now = (self.unit, self.channels, self.slice, self._seen)
        self.unit, self.channels, self.slice, self._seen = state
        return now

    def slice_of(self, weight: Tensor) -> Tensor:
        """The selected part of a full weight, copied (the shape of `slice`)."""
        assert self.channels is not None
        rows, columns = self._index()
        return weight[rows, columns].detach().clone()

    def _index(self) -> tuple[Any, Any]:
        """Advanced index (rows, columns) of the slice in the weight."""
        assert self.channels is not None
        groups = self.geometry[3] if self.is_conv else 1
        return slice_index(self.channels, self.unit, groups, self.in_channels, self.out_channels)

    def absorb(self, norm: FrozenBatchNorm2d) -> None:
        """Apply the frozen norm that follows in this convolution: one pass less forward and backward.

        The norm's bias may train; neither its weight nor this layer's bias may. `release` undoes it.
        """
        norm.absorbed = True
        self._norm = (norm, norm.bias)
        self.ready()

    def join(self, others: Iterable[Selective]) -> None:
        """Run the convolutions that follow this one together with it, see `ops.chain`; `part` undoes it.

        Each of them reads what the one before gives (behind the norm and the activation that it absorbed), and nothing else reads it.
        """
        self._links = (self, *others)
        for other in self._links[1:]:
            other._inside = True

    def absorb_activation(self, activation: PackedActivation) -> None:
        """Apply the activation that follows as well; `part` undoes it."""
        activation.absorbed = True
        object.__setattr__(self, "activation", activation)

    def part(self) -> None:
        """Let each layer of the chain and each activation work by itself again."""
        for link in self._links:
            link._inside = False
        self._links = (self,)
        if self.activation is not None:
            self.activation.absorbed = False
            object.__setattr__(self, "activation", None)

    def release(self) -> None:
        """Let norm, activation and the layers behind work again by themselves."""
        self.part()
        if self._norm is not None:
            self._norm[0].absorbed = False
        self._norm, self.scale, self.shift = None, None, None

    @property
    def trained_bias(self) -> Tensor | None:
        """The bias that trains here: the layer's own, or that of the norm it applies."""
        bias = self._parameters["bias"] if self._norm is None else self._norm[1]
        return bias if bias is not None and bias.requires_grad else None

    def ready(self) -> None:
        """Make scale (O, 1, 1, 1) and shift (O,) of an absorbed norm: once, after new weights were loaded, and when its bias has moved."""
        if self._norm is None:
            return
        norm, norm_bias = self._norm
        if self._buffers["scale"] is not None and norm_bias._version == self._seen_bias:
            return
        with torch.no_grad():
            scale = norm.weight * torch.rsqrt(norm.running_var + norm.eps)
            bias = 0 if self.bias is None else self.bias
            self.scale, self.shift = scale.view(-1, 1, 1, 1), norm_bias + (bias - norm.running_mean) * scale
        self._seen_bias = norm_bias._version

    def sync(self) -> None:
        """Write the slice into the full weight if an optimizer changed it since."""
        part = self._parameters["slice"]
        if part is None or part._version == self._seen:
            return
        assert self.channels is not None
        with torch.no_grad():
            groups = self.geometry[3] if self.is_conv else 1
            if self.unit == "output":
                self.weight.index_copy_(0, self.channels, part)
            elif groups == 1:
                self.weight.index_copy_(1, self.channels, part)
            elif groups == self.in_channels == self.out_channels:
                self.weight.index_copy_(0, self.channels, part.transpose(0, 1))
            else:
                self.weight[self._index()] = part
        self._seen = part._version

    @torch.no_grad()
    def _reread(self) -> None:
        self.scale = self.shift = None
        if self.slice is not None:
            self.slice.copy_(self.slice_of(self.weight))
            self._seen = self.slice._version

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination.pop(f"{prefix}slice", None)

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *rest: Any) -> None:
        if self.slice is not None:
            state_dict = {**state_dict, f"{prefix}slice": self.slice}
        super()._load_from_state_dict(state_dict, prefix, *rest)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the layer to x (B, C, H, W) or (*, C); saves K·H·W (or K) elements per sample (token) if channels are selected."""
        if self._inside:
            return x
        if self.is_conv:
            return chain.run(self._links, x)
        self.sync()
        part, bias = self.slice, self.bias
        if part is None and not x.requires_grad and not (bias is not None and bias.requires_grad):
            return F.linear(x, self.weight, bias)
        return _SelectiveLinear.apply(x, self.weight, bias, part, self.channels, self.unit, self.keep_bits)

    def extra_repr(self) -> str:
        """Show the layer and how much of it trains."""
        count = 0 if self.channels is None else len(self.channels)
        return f"{self._original[0]}, trains {count} {self.unit} channels"
