"""Any torch module to a `Network`: one record per call, from torch.export's graph of ATen operations."""

from __future__ import annotations

import warnings
from math import prod
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from edge_shared.errors import InputError
from edge_shared.network import Layer, Network, Tensor

if TYPE_CHECKING:
    from torch.export import ExportedProgram


_ACTIVATIONS = {
    "relu", "hardtanh", "relu6", "hardswish", "hardsigmoid", "gelu", "silu", "sigmoid", "tanh", "elu", "leaky_relu", "prelu", "mish",
    "softplus", "selu", "celu", "clamp", "clamp_min", "log_sigmoid", "softsign", "threshold",
}  # fmt: skip
_KINDS = {
    **dict.fromkeys(_ACTIVATIONS, "activation"),
    **dict.fromkeys(("conv1d", "conv2d", "conv3d", "convolution", "conv_transpose2d"), "conv"),
    "linear": "linear",
    **dict.fromkeys(("matmul", "bmm", "mm", "scaled_dot_product_attention", "einsum"), "matmul"),
    **dict.fromkeys(("batch_norm", "layer_norm", "group_norm", "instance_norm", "rms_norm"), "norm"),
    **dict.fromkeys(("max_pool2d", "avg_pool2d", "adaptive_avg_pool2d", "adaptive_max_pool2d", "max_pool1d", "avg_pool1d", "adaptive_avg_pool1d", "mean"), "pool"),
    **dict.fromkeys(("add", "sub", "rsub"), "add"),
    **dict.fromkeys(("mul", "div"), "mul"),
    **dict.fromkeys(("cat", "stack", "concat"), "concat"),
    **dict.fromkeys(("softmax", "log_softmax", "_softmax"), "softmax"),
    **dict.fromkeys(("dropout", "feature_dropout", "alpha_dropout"), "dropout"),
    "embedding": "embedding",
}  # fmt: skip
_VIEWS = {
    "view", "reshape", "flatten", "permute", "transpose", "slice", "select", "unsqueeze", "squeeze", "expand", "contiguous", "chunk", "split",
    "split_with_sizes", "unbind", "t", "unflatten", "movedim", "detach", "alias", "to", "narrow", "swapaxes", "numpy_T", "expand_as", "view_as",
    "reshape_as", "type_as", "float", "diagonal", "unfold", "lift_fresh_copy", "_to_copy", "clone",
}  # fmt: skip


def export(module: nn.Module, example: torch.Tensor | tuple[torch.Tensor, ...]) -> ExportedProgram:
    """torch.export in its tracing (non-strict) mode, with one clear error.

    Raises:
        InputError: if the module cannot be traced: control flow that depends on values, or inputs that do not fit.
    """
    arguments = example if isinstance(example, tuple) else (example,)
    if not isinstance(module, nn.Module):
        raise InputError(f"only a torch.nn.Module can be traced, not a {type(module).__name__}")
    fastpath = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # the fused encoder op would hide the layers inside
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.export.export(module, arguments, strict=False)
    except Exception as error:
        reason = " ".join(str(error).split())[:300]
        raise InputError(f"{type(module).__name__} cannot be traced with inputs {[tuple(a.shape) for a in arguments]}: {reason}") from error
    finally:
        torch.backends.mha.set_fastpath_enabled(fastpath)


def trace(module: nn.Module, example: torch.Tensor | tuple[torch.Tensor, ...], name: str = "") -> Network:
    """Record every call of one forward pass: shapes, parameters, and which tensors share storage.

    A module called twice gives two layers, a functional call gives one like a module's; the module's training flags are
    respected (batch statistics, active dropout). Nothing is executed on real data.

    Args:
        module: any torch module.
        example: its input, batch first, or a tuple of inputs.
        name: name of the network; the class name if omitted.

    Raises:
        InputError: if it cannot be traced.
    """
    program = export(module, example)
    return _Recorder(program, name or type(module).__name__).network()


class _Recorder:
    def __init__(self, program: ExportedProgram, name: str) -> None:
        self.program = program
        self.name = name
        signature = program.graph_signature
        self.parameters = {node: prod(program.state_dict[path].shape) for node, path in signature.inputs_to_parameters.items()}
        self.constants = {*signature.inputs_to_buffers, *signature.inputs_to_lifted_tensor_constants}
        self.inputs = tuple(signature.user_inputs)
        self.tensors: dict[str, Tensor] = {}
        self.layers: list[Layer] = []
        self.names: dict[str, int] = {}
        self.lists: dict[str, str] = {}  # a node that returns several views -> the tensor they look at

    def network(self) -> Network:
        outputs: list[str] = []
        for node in self.program.graph.nodes:
            if node.op == "placeholder" and node.name in self.inputs:
                self._tensor(node, None)
            elif node.op == "call_function":
                self._call(node)
            elif node.op == "output":
                wanted = {spec.arg.name for spec in self.program.graph_signature.output_specs if spec.kind.name == "USER_OUTPUT"}
                outputs = [item.name for item in node.args[0] if getattr(item, "name", None) in wanted & set(self.tensors)]
        inputs = tuple(name for name in self.inputs if name in self.tensors)
        return Network(self.name, inputs, tuple(outputs), tuple(self.layers), self.tensors)

    def _tensor(self, node: Any, alias_of: str | None) -> None:
        value = node.meta["val"]
        self.tensors[node.name] = Tensor(node.name, tuple(int(size) for size in value.shape), value.element_size(), alias_of)

    def _call(self, node: Any) -> None:
        overload = getattr(node.target, "__name__", str(node.target))
        base = overload.split(".")[0]
        in_place = base.endswith("_") and not base.startswith("__")
        op = base.rstrip("_") if in_place else base
        inputs = tuple(item.name for item in node.all_input_nodes if item.name in self.tensors)
        value = node.meta.get("val")
        if op == "getitem" and node.args[0].name in self.lists:
            source = self.lists[node.args[0].name]
            self._tensor(node, source)
            self._layer(node, "reshape", "getitem", (source,))
            return
        if isinstance(value, list | tuple):
            if inputs:
                self.lists[node.name] = inputs[0]
            return
        if not isinstance(value, torch.Tensor) or (in_place and not inputs):
            return  # bookkeeping: sizes, counters of the norms
        alias = inputs[0] if in_place else self._view_of(node, op, inputs)
        self._tensor(node, alias)
        self._layer(node, _KINDS.get(op, "reshape" if op in _VIEWS else "other"), op, inputs, in_place=in_place)

    def _view_of(self, node: Any, op: str, inputs: tuple[str, ...]) -> str | None:
        """The input whose storage the result shares, found by running the operation on tensors without data."""
        if op.endswith("dropout") and not (node.args[1] and node.args[2]):
            return inputs[0] if inputs else None
        if op not in _VIEWS or not inputs:
            return None

        arguments = torch.fx.map_arg(node.args, _without_data)
        result = node.target(*arguments, **torch.fx.map_arg(node.kwargs, _without_data))
        return inputs[0] if _share(result, arguments[0]) else None

    def _layer(self, node: Any, kind: str, op: str, inputs: tuple[str, ...], *, in_place: bool = False) -> None:
        parameters = [item.name for item in node.all_input_nodes if item.name in self.parameters]
        output = self.tensors[node.name]
        in_shape = self.tensors[inputs[0]].shape if inputs else output.shape
        settings: dict[str, Any] = {}
        if kind in ("linear", "matmul") and op != "scaled_dot_product_attention":
            operands = [item for item in node.args[:2] if getattr(item, "name", None) in self.tensors]
            settings["copied"] = tuple(item.name for item in operands if _is_copied(_without_data(item)))
        module = self._module(node)
        if kind == "conv":
            settings = self._conv(node)
        elif kind == "linear":
            weight = node.args[1].meta["val"]
            settings |= {"weights": weight.numel(), "bias": len(node.args) > 2 and node.args[2] is not None}
            if node.args[1].name not in self.parameters:
                kind = "matmul" if node.args[1].name in self.tensors else "linear"
        elif kind == "matmul" and op == "scaled_dot_product_attention":
            op = "attention"
            settings |= {"kernel": (node.args[1].meta["val"].shape[-2], node.args[2].meta["val"].shape[-1])}
        elif kind == "pool":
            settings = self._pool(node, op)
        elif kind == "norm" and op == "batch_norm":
            settings = {"training": bool(node.args[5])}
        elif kind == "dropout":
            settings = {"training": bool(node.args[1] and node.args[2])}
        elif op == "hardtanh" and tuple(node.args[1:3]) == (0.0, 6.0):
            op = "relu6"
        elif kind in ("add", "mul"):
            inputs = tuple(item.name for item in node.args[:2] if getattr(item, "name", None) in self.tensors)
        params = sum(self.parameters[name] for name in parameters)
        self.layers.append(
            Layer(self._unique(module, op), kind, op, inputs, node.name, in_shape, output.shape, params=params,
                  parameters=tuple(parameters), in_place=in_place, module=module or None, **settings)
        )  # fmt: skip

    def _conv(self, node: Any) -> dict[str, Any]:
        weight = node.args[1].meta["val"]
        schema = {argument.name: argument.default_value for argument in node.target._schema.arguments}
        given = dict(zip(schema, node.args, strict=False)) | dict(node.kwargs)
        value = {**schema, **given}
        axes = weight.dim() - 2

        def per_axis(setting: Any) -> tuple[int, ...]:
            if setting == "same":
                return tuple(d * (k - 1) // 2 for d, k in zip(per_axis(value["dilation"]), weight.shape[2:], strict=True))
            if setting == "valid":
                return (0,) * axes
            items = tuple(setting) if isinstance(setting, list | tuple) else (setting,)
            return items * axes if len(items) == 1 else items

        return {
            "kernel": tuple(weight.shape[2:]),
            "stride": per_axis(value["stride"]),
            "padding": per_axis(value["padding"]),
            "dilation": per_axis(value["dilation"]),
            "groups": value["groups"],
            "bias": value["bias"] is not None,
            "weights": weight.numel(),
        }

    def _pool(self, node: Any, op: str) -> dict[str, Any]:
        if op.startswith(("max_pool", "avg_pool")):
            kernel = tuple(node.args[1])
            stride = tuple(node.args[2]) if len(node.args) > 2 and node.args[2] else kernel
            padding = tuple(node.args[3]) if len(node.args) > 3 else (0,) * len(kernel)
            return {"kernel": kernel, "stride": stride, "padding": padding * (len(kernel) // len(padding)), "dilation": (1,) * len(kernel)}
        return {}

    def _module(self, node: Any) -> str:
        stack = list((node.meta.get("nn_module_stack") or {}).values())
        return stack[-1][0] if stack else ""

    def _unique(self, module: str, op: str) -> str:
        leaf = module.rsplit(".", 1)[-1] if module else ""
        name = (
            module
            if module and not any(layer.name == module for layer in self.layers) and op != "getitem"
            else f"{module}.{op}"
            if leaf
            else op
        )
        count = self.names.get(name, 0)
        self.names[name] = count + 1
        while count and any(layer.name == f"{name}.{count}" for layer in self.layers):
            count += 1
        return name if count == 0 else f"{name}.{count}"


def _without_data(item: Any) -> Any:
    """A tensor of the same shape and strides that holds nothing; other arguments as they are."""
    value = item.meta["val"] if hasattr(item, "meta") else item
    if not isinstance(value, torch.Tensor):
        return value
    return torch.empty_strided([int(s) for s in value.shape], [int(s) for s in value.stride()], dtype=value.dtype, device="meta")


def _share(left: torch.Tensor, right: torch.Tensor) -> bool:
    return left.untyped_storage()._cdata == right.untyped_storage()._cdata


def _is_copied(operand: torch.Tensor) -> bool:
    """Whether a batched product must copy its operand: torch flattens the batch axes, which strides may forbid."""
    return operand.dim() > 2 and not _share(operand.reshape(-1, *operand.shape[-2:]), operand)
