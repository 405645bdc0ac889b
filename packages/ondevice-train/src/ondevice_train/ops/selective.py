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

from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ondevice_train.compression._codec import Codec
from ondevice_train.compression._geometry import ConvGeometry
from ondevice_train.ops.conv_gradients import input_gradient, weight_gradient
from ondevice_train.ops.frozen_norm import FrozenBatchNorm2d

Unit = Literal["input", "output"]


def _quantise(kept: Tensor, axis: int) -> tuple[Tensor, Tensor]:
    """Round each channel to 256 levels between its extremes: uint8 codes, and (2, K) with the lowest value and the step."""
    dims = [dim for dim in range(kept.ndim) if dim != axis % kept.ndim]
    low, high = kept.amin(dims, keepdim=True), kept.amax(dims, keepdim=True)
    step = (high - low) / 255
    step = torch.where(step > 0, step, torch.ones_like(step))
    codes = ((kept - low) / step).round_().to(torch.uint8)
    return codes, torch.stack((low.flatten(), step.flatten()))


def _dequantise(codes: Tensor, grid: Tensor, axis: int) -> Tensor:
    shape = [1] * codes.ndim
    shape[axis] = -1
    return codes.to(grid.dtype) * grid[1].view(shape) + grid[0].view(shape)


class _SelectiveConv(torch.autograd.Function):
    """y = conv(x, W) + b; saves x[:, kept] (a copy) for the gradient of `slice`, nothing of x if there is no slice."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        slice: Tensor | None,
        channels: Tensor | None,
        unit: Unit,
        geometry: tuple,
        bits: int = 32,
        scale: Tensor | None = None,
        shift: Tensor | None = None,
        codec: Codec | None = None,
    ) -> Tensor:
        stride, padding, dilation, groups = geometry
        pieces: tuple[Tensor | None, ...] = ()
        if slice is not None and ctx.needs_input_grad[3]:
            assert channels is not None
            if unit == "input" or groups == x.shape[1] > 1:
                inputs = channels if unit == "input" else channels // (weight.shape[0] // groups)
                kept = x.index_select(1, inputs)
                pieces = (kept,) if codec is None and bits == 32 else _quantise(kept, 1) if codec is None else codec.encode(kept)
            else:
                pieces = (x,)
        ctx.save_for_backward(weight, channels, scale, *pieces)
        ctx.geometry, ctx.unit, ctx.x_shape, ctx.codec = geometry, unit, x.shape, codec
        # The scaled weight is made again in the backward pass: keeping it would cost as much as the weight.
        scaled = weight if scale is None else weight * scale.view(-1, 1, 1, 1)
        return F.conv2d(x, scaled, bias if scale is None else shift, stride, padding, dilation, groups)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:  # type: ignore[override]
        weight, channels, scale, *pieces = ctx.saved_tensors
        stride, padding, dilation, groups = ctx.geometry
        dx = dslice = None
        if ctx.needs_input_grad[0]:
            scaled = weight if scale is None else weight * scale.view(-1, 1, 1, 1)
            dx = input_gradient(grad, scaled, ctx.x_shape, stride, padding, dilation, groups)
        if pieces:
            if ctx.codec is not None:
                dslice = _coded_gradient(grad, ctx.codec, tuple(pieces), weight.shape[2:], channels, ctx.geometry)
            else:
                kept = pieces[0] if len(pieces) == 1 else _dequantise(pieces[0], pieces[1], 1)
                dslice = _slice_gradient(grad, kept, weight, channels, ctx.unit, ctx.geometry, ctx.x_shape[1])
            if scale is not None:
                rows, _ = slice_index(channels, ctx.unit, groups, ctx.x_shape[1], weight.shape[0])
                scales = scale[rows]
                dslice = dslice * (scales[..., None, None] if scales.ndim == 2 else scales.view(-1, 1, 1, 1))
        dbias = grad.sum((0, 2, 3)) if ctx.needs_input_grad[2] else None
        return dx, None, dbias, dslice, None, None, None, None, None, None, None


def _coded_gradient(grad: Tensor, codec: Codec, pieces: tuple, kernel: Any, channels: Tensor, geometry: tuple) -> Tensor:
    """Gradient of W[:, channels] from channels that a codec keeps: of an ungrouped convolution, or of a depthwise one."""
    stride, (high, wide), dilation, groups = geometry
    of_slice = ConvGeometry(tuple(kernel), stride, (high, high, wide, wide), dilation, 1 if groups == 1 else len(channels))
    if groups == 1:
        return codec.weight_gradient(pieces, grad, of_slice)
    return codec.weight_gradient(pieces, grad.index_select(1, channels), of_slice).transpose(0, 1)


def _slice_gradient(grad: Tensor, kept: Tensor, weight: Tensor, channels: Tensor, unit: Unit, geometry: tuple, in_channels: int) -> Tensor:
    """Gradient of W[:, channels] (input) or W[channels] (output) from the kept input; shapes as `slice_of`."""
    stride, padding, dilation, groups = geometry
    per_group, outputs, kernel = in_channels // groups, weight.shape[0] // groups, weight.shape[2:]
    if groups == 1:
        g = grad if unit == "input" else grad.index_select(1, channels)
        return weight_gradient(g, kept, kernel, stride, padding, dilation, 1)
    if per_group == 1:
        rows = _rows_of_inputs(channels, outputs) if unit == "input" else channels
        of_rows = grad.index_select(1, rows)
        if unit == "input":
            dw = weight_gradient(of_rows, kept, kernel, stride, padding, dilation, len(channels))
            return dw.view(len(channels), outputs, *kernel).transpose(0, 1)
        return weight_gradient(of_rows, kept, kernel, stride, padding, dilation, len(rows))
    if unit == "output":
        return weight_gradient(grad, kept, kernel, stride, padding, dilation, groups).index_select(0, channels)
    pieces = []
    for position, channel in enumerate(channels.tolist()):
        group = channel // per_group
        g = grad[:, group * outputs : (group + 1) * outputs]
        pieces.append(weight_gradient(g, kept[:, position : position + 1], kernel, stride, padding, dilation, 1))
    return torch.cat(pieces, 1)


def slice_index(channels: Tensor, unit: Unit, groups: int, in_channels: int, out_channels: int) -> tuple[Any, Any]:
    """Advanced index (rows, columns) of the slice that `channels` select in a weight."""
    if unit == "output":
        return channels, slice(None)
    if groups == 1:
        return slice(None), channels
    per_group, outputs = in_channels // groups, out_channels // groups
    if per_group == outputs == 1:
        return channels[None], torch.zeros_like(channels)[None]
    rows = (channels // per_group) * outputs + torch.arange(outputs, device=channels.device)[:, None]
    return rows, (channels % per_group).expand(outputs, -1)


def _rows_of_inputs(channels: Tensor, outputs: int) -> Tensor:
    """Output rows that read the given input channels of a depthwise layer with `outputs` outputs a channel."""
    if outputs == 1:
        return channels
    return (channels[:, None] * outputs + torch.arange(outputs, device=channels.device)).reshape(-1)


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
                kept, grid = _quantise(kept, -1)
        ctx.save_for_backward(kept, grid, weight, channels)
        ctx.unit = unit
        return F.linear(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:  # type: ignore[override]
        kept, grid, weight, channels = ctx.saved_tensors
        if grid is not None:
            kept = _dequantise(kept, grid, -1)
        dx = grad @ weight if ctx.needs_input_grad[0] else None
        flat = grad.reshape(-1, grad.shape[-1])
        dslice = None
        if kept is not None:
            if ctx.unit == "output":
                flat_selected = flat.index_select(1, channels)
            else:
                flat_selected = flat
            dslice = flat_selected.t() @ kept.reshape(-1, kept.shape[-1])
        dbias = flat.sum(0) if ctx.needs_input_grad[2] else None
        return dx, None, dbias, dslice, None, None, None


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
        self.bias = original.bias
        self.weight.requires_grad_(False)
        self.unit: Unit = "input"
        self.register_buffer("channels", None, persistent=False)
        self.register_buffer("scale", None, persistent=False)
        self.register_buffer("shift", None, persistent=False)
        self._norm: tuple[FrozenBatchNorm2d] | None = None
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

        Neither the norm nor this layer's bias may train. `release` undoes it.
        """
        norm.absorbed = True
        self._norm = (norm,)
        self.ready()

    def release(self) -> None:
        """Let the norm work again by itself."""
        if self._norm is not None:
            self._norm[0].absorbed = False
        self._norm, self.scale, self.shift = None, None, None

    def ready(self) -> None:
        """Make scale (O,) and shift (O,) of an absorbed norm unless they are there: once, and after new weights were loaded."""
        if self._norm is None or self._buffers["scale"] is not None:
            return
        norm = self._norm[0]
        with torch.no_grad():
            scale = norm.weight * torch.rsqrt(norm.running_var + norm.eps)
            bias = 0 if self.bias is None else self.bias
            self.scale, self.shift = scale, norm.bias + (bias - norm.running_mean) * scale

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
        self.sync()
        self.ready()
        # Looked up once and where they lie: a module searches three tables for an attribute, and small batches feel it.
        parameters, buffers = self._parameters, self._buffers
        weight: Tensor = parameters["weight"]  # type: ignore[assignment]
        bias, part, scale = self.bias, parameters["slice"], buffers["scale"]
        if part is None and not x.requires_grad and not (bias is not None and bias.requires_grad):
            if not self.is_conv:
                return F.linear(x, weight, bias)
            if scale is not None:
                weight, bias = weight * scale.view(-1, 1, 1, 1), self.shift
            return F.conv2d(x, weight, bias, *self.geometry)
        channels = None if part is None else buffers["channels"]
        if self.is_conv:
            shift = None if scale is None else buffers["shift"]
            codec = self.codec if self.unit == "input" else None
            return _SelectiveConv.apply(x, weight, bias, part, channels, self.unit, self.geometry, self.keep_bits, scale, shift, codec)
        return _SelectiveLinear.apply(x, weight, bias, part, channels, self.unit, self.keep_bits)

    def extra_repr(self) -> str:
        """Show the layer and how much of it trains."""
        count = 0 if self.channels is None else len(self.channels)
        return f"{self._original[0]}, trains {count} {self.unit} channels"
