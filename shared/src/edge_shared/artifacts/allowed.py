"""What a recipe may name: modules with the arguments that make them again, functions, tensor methods and attributes.

Nothing outside of these tables is ever looked up, so a recipe from a stranger can build a network and nothing else. Left out on
purpose: whatever touches files, and whatever makes a tensor of a size that the recipe dictates.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn import functional

_CONV = "in_channels out_channels kernel_size stride padding dilation groups bias padding_mode"
_CONV_T = "in_channels out_channels kernel_size stride padding output_padding groups bias dilation padding_mode"
_BATCH_NORM = "num_features eps momentum affine track_running_stats"
_POOL = "kernel_size stride padding"
_RECURRENT = "input_size hidden_size num_layers bias batch_first dropout bidirectional"

_NN: dict[str, str] = {
    "Conv1d": _CONV, "Conv2d": _CONV, "Conv3d": _CONV,
    "ConvTranspose1d": _CONV_T, "ConvTranspose2d": _CONV_T, "ConvTranspose3d": _CONV_T,
    "Linear": "in_features out_features bias",
    "Bilinear": "in1_features in2_features out_features bias",
    "BatchNorm1d": _BATCH_NORM, "BatchNorm2d": _BATCH_NORM, "BatchNorm3d": _BATCH_NORM,
    "InstanceNorm1d": _BATCH_NORM, "InstanceNorm2d": _BATCH_NORM, "InstanceNorm3d": _BATCH_NORM,
    "LayerNorm": "normalized_shape eps elementwise_affine bias",
    "GroupNorm": "num_groups num_channels eps affine",
    "RMSNorm": "normalized_shape eps elementwise_affine",
    "ReLU": "inplace", "ReLU6": "inplace", "Hardswish": "inplace", "Hardsigmoid": "inplace", "SiLU": "inplace", "Mish": "inplace",
    "LeakyReLU": "negative_slope inplace", "ELU": "alpha inplace", "CELU": "alpha inplace", "SELU": "inplace", "PReLU": "num_parameters",
    "GELU": "approximate", "Sigmoid": "", "Tanh": "", "LogSigmoid": "", "Hardtanh": "min_val max_val inplace",
    "Softplus": "beta threshold", "Softmax": "dim", "LogSoftmax": "dim", "GLU": "dim",
    "Dropout": "p inplace", "Dropout1d": "p inplace", "Dropout2d": "p inplace", "AlphaDropout": "p inplace",
    "Identity": "", "Flatten": "start_dim end_dim",
    "MaxPool1d": f"{_POOL} dilation return_indices ceil_mode", "MaxPool2d": f"{_POOL} dilation return_indices ceil_mode",
    "MaxPool3d": f"{_POOL} dilation return_indices ceil_mode",
    "AvgPool1d": f"{_POOL} ceil_mode count_include_pad", "AvgPool2d": f"{_POOL} ceil_mode count_include_pad divisor_override",
    "AvgPool3d": f"{_POOL} ceil_mode count_include_pad divisor_override",
    "AdaptiveAvgPool1d": "output_size", "AdaptiveAvgPool2d": "output_size", "AdaptiveAvgPool3d": "output_size",
    "AdaptiveMaxPool1d": "output_size return_indices", "AdaptiveMaxPool2d": "output_size return_indices",
    "Embedding": "num_embeddings embedding_dim padding_idx max_norm norm_type scale_grad_by_freq sparse",
    "MultiheadAttention": "embed_dim num_heads dropout bias add_bias_kv add_zero_attn kdim vdim batch_first",
    "LSTM": f"{_RECURRENT} proj_size", "GRU": _RECURRENT, "RNN": f"{_RECURRENT} nonlinearity",
    "Upsample": "size scale_factor mode align_corners recompute_scale_factor",
    "UpsamplingNearest2d": "size scale_factor", "UpsamplingBilinear2d": "size scale_factor",
    "ZeroPad2d": "padding", "ReflectionPad2d": "padding", "ReplicationPad2d": "padding", "ConstantPad2d": "padding value",
    "ZeroPad1d": "padding", "ConstantPad1d": "padding value",
    "PixelShuffle": "upscale_factor", "PixelUnshuffle": "downscale_factor", "ChannelShuffle": "groups", "Unfold": "kernel_size dilation padding stride",
    "CosineSimilarity": "dim eps",
}  # fmt: skip

_SPECIAL: dict[tuple[str, str], Callable[[nn.Module], Any]] = {
    ("MultiheadAttention", "bias"): lambda module: module.in_proj_bias is not None,
    ("MultiheadAttention", "add_bias_kv"): lambda module: module.bias_k is not None,
    ("LSTM", "bias"): lambda module: module.bias,
    ("GRU", "bias"): lambda module: module.bias,
    ("RNN", "bias"): lambda module: module.bias,
}


def modules() -> dict[str, type[nn.Module]]:
    """Name in a recipe -> class."""
    table: dict[str, type[nn.Module]] = {f"torch.nn.{name}": getattr(nn, name) for name in _NN}
    try:
        from torchvision.ops import StochasticDepth
    except ImportError:
        return table
    return {**table, "torchvision.ops.StochasticDepth": StochasticDepth}


def fields(name: str) -> list[str]:
    """The arguments of a module of this name."""
    return ["p", "mode"] if name == "torchvision.ops.StochasticDepth" else _NN[name.removeprefix("torch.nn.")].split()


def arguments(name: str, module: nn.Module) -> dict[str, Any]:
    """The arguments that make a module like this one."""
    short = name.rsplit(".", 1)[1]
    result: dict[str, Any] = {}
    for field in fields(name):
        if (short, field) in _SPECIAL:
            result[field] = _SPECIAL[short, field](module)
        else:
            value = getattr(module, field)
            result[field] = (value is not None) if field == "bias" else value
    return result


_OPERATORS = """abs add and_ eq floordiv ge getitem gt iadd iand imul invert isub itruediv le lt matmul mod mul ne neg not_ or_ pos pow
    sub truediv xor"""
_TORCH = """abs adaptive_avg_pool1d add addmm amax amin argmax argmin atan bmm cat ceil channel_shuffle chunk clamp clip concat conv1d conv2d
    cos cumsum div einsum eq erf exp flatten flip floor floor_divide gather ge gelu gt index_select isnan layer_norm le log log1p log2
    log_softmax logical_and logical_not logical_or logsumexp lt masked_fill matmul max maximum mean min minimum movedim mul ne neg
    norm ones_like permute pow prod reciprocal relu reshape rms_norm roll round rsqrt sigmoid sign sin softmax split sqrt square squeeze
    stack std sub sum swapaxes tanh topk transpose tril triu unbind unflatten unsqueeze var where zeros_like baddbmm true_divide concatenate
    sym_int _assert"""
_FUNCTIONAL = """adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d adaptive_max_pool1d adaptive_max_pool2d avg_pool1d
    avg_pool2d avg_pool3d batch_norm celu conv1d conv2d conv3d conv_transpose1d conv_transpose2d cosine_similarity dropout dropout1d
    dropout2d elu embedding gelu glu group_norm interpolate hardsigmoid hardswish hardtanh instance_norm layer_norm leaky_relu linear
    log_softmax max_pool1d max_pool2d max_pool3d mish normalize pad pixel_shuffle prelu relu relu6 rms_norm
    scaled_dot_product_attention selu sigmoid silu softmax softplus softsign tanh unfold pixel_unshuffle"""
_TORCHVISION = {
    "torchvision.models.swin_transformer": (
        "_get_relative_position_bias",
        "shifted_window_attention",
        "shifted_window_attention_v2",
        "_patch_merging_pad",
    ),
    "torchvision.ops": ("stochastic_depth",),
}


def functions() -> dict[str, Callable[..., Any]]:
    """Name in a recipe -> function."""
    table: dict[str, Callable[..., Any]] = {"getattr": getattr}
    for prefix, home, listed in (
        ("operator", operator, _OPERATORS),
        ("torch", torch, _TORCH),
        ("torch.nn.functional", functional, _FUNCTIONAL),
    ):
        table |= {f"{prefix}.{name}": getattr(home, name) for name in listed.split() if hasattr(home, name)}
    import importlib

    for home_name, names in _TORCHVISION.items():
        try:
            module = importlib.import_module(home_name)
        except ImportError:
            continue
        table |= {f"{home_name}.{name}": getattr(module, name) for name in names if hasattr(module, name)}
    return table


_METHODS = """abs add add_ amax amin argmax argmin bmm bool chunk clamp clamp_ clone contiguous cos cumsum detach dim div div_ double eq exp
    expand expand_as flatten flip float floor ge gt half index_select int ndimension le log log_softmax logical_not long lt
    masked_fill masked_fill_ matmul max mean min movedim mul mul_ narrow ne neg numel permute pow prod reciprocal relu relu_ reshape
    reshape_as roll round rsqrt select sigmoid sigmoid_ sign sin size softmax split sqrt square squeeze std sub sub_ sum swapaxes t tanh
    to topk transpose tril triu type_as unbind unflatten unsqueeze unfold var view view_as where"""
METHODS = frozenset(_METHODS.split())

ATTRIBUTES = frozenset({"shape", "dtype", "device", "ndim", "T", "mT", "requires_grad"})
