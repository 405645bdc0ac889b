"""An architecture as plain data: the graph that torch.fx traces, over modules and functions of an allow-list."""

from __future__ import annotations

import base64
import keyword
import math
import re
from typing import Any

import torch
from torch import fx, nn

from edge_shared.artifacts import allowed
from edge_shared.artifacts.builders import build
from edge_shared.errors import InputError

FORMAT = "edgewise-recipe-1"
_NAME = re.compile(r"\w+(\.\w+)*", re.ASCII)
_CONSTANT_BYTES = 64 * 2**20
_DTYPES = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in (
        torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool,
    )
}  # fmt: skip
_LAYOUTS = {"contiguous": torch.contiguous_format, "preserve": torch.preserve_format, "channels_last": torch.channels_last}


def to_recipe(model: nn.Module, builder: dict[str, Any] | None = None) -> dict[str, Any]:
    """Write the architecture of `model` down as plain data.

    The graph is that of evaluation mode; dropout, norms and stochastic depth are modules in it and train as before.

    Args:
        model: any module that torch.fx can trace; other code than the allow-list's is traced through.
        builder: name the architecture instead (see `register_builder`), for modules that torch.fx cannot trace.

    Raises:
        InputError: if the model cannot be traced, or uses a function that no recipe may name.
    """
    state = model.state_dict(keep_vars=True)
    first: dict[int, str] = {}
    aliases: dict[str, str] = {}
    for name, tensor in state.items():
        if not isinstance(tensor, torch.Tensor):
            raise InputError(f"the model keeps extra state in {name}, which is no tensor; a recipe cannot hold it")
        if id(tensor) in first:
            aliases[name] = first[id(tensor)]
        first.setdefault(id(tensor), name)
    recipe: dict[str, Any] = {
        "format": FORMAT,
        "tensors": {
            name: {"dtype": str(tensor.dtype).removeprefix("torch."), "shape": list(tensor.shape)}
            for name, tensor in state.items()
            if name not in aliases
        },
        "aliases": aliases,
        "frozen": [name for name, tensor in state.items() if isinstance(tensor, nn.Parameter) and not tensor.requires_grad],
    }
    if builder is not None:
        return {**recipe, "builder": builder}
    return {**recipe, **_Writer(model).recipe(state)}


def from_recipe(recipe: Any, weights: dict[str, torch.Tensor]) -> nn.Module:
    """Build the module again, in evaluation mode, on the CPU.

    Nothing is allocated beyond `weights` before all shapes are known to match them, and nothing of the graph is executed.

    Args:
        recipe: from `to_recipe`, possibly by way of a file.
        weights: the tensors of the state dict, aliases left out.

    Raises:
        InputError: if the recipe names anything unknown, or does not match the weights.
    """
    try:
        return _read(recipe, weights)
    except InputError:
        raise
    except RecursionError as error:
        raise InputError("the recipe is nested too deeply") from error
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError, IndexError, SyntaxError, OverflowError, AssertionError) as error:
        raise InputError(f"the recipe is broken: {type(error).__name__} {' '.join(str(error).split())[:160]}") from error


class _Tracer(fx.Tracer):
    """Stops at modules that a recipe can name, goes through all others."""

    def __init__(self) -> None:
        super().__init__()
        self.names = {cls: name for name, cls in allowed.modules().items()}

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return type(m) in self.names


class _Writer:
    """Turns a traced graph into lists and dicts."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.function_names = {function: name for name, function in reversed(allowed.functions().items())}
        self.module_names = {cls: name for name, cls in allowed.modules().items()}

    def recipe(self, state: dict[str, Any]) -> dict[str, Any]:
        modes = {module: module.training for module in self.model.modules()}
        before = set(vars(self.model))
        self.model.eval()
        try:
            graph = _Tracer().trace(self.model)
            modules: dict[str, Any] = {}
            constants: dict[str, Any] = {}
            nodes = [self._node(node, modules, constants, state) for node in graph.nodes]
        except InputError:
            raise
        except Exception as error:
            reason = " ".join(str(error).split())[:160]
            raise InputError(f"torch.fx cannot trace {type(self.model).__name__} ({reason}); give a builder instead") from error
        finally:
            for module, mode in modes.items():
                module.training = mode
            for name in set(vars(self.model)) - before:  # the tracer leaves its tensor constants on the module
                delattr(self.model, name)
        covered = {f"{name}.{key}" for name in modules for key in self.model.get_submodule(name).state_dict()}
        bare = {
            name: "parameter" if isinstance(tensor, nn.Parameter) else "buffer" for name, tensor in state.items() if name not in covered
        }
        return {"modules": modules, "bare": bare, "constants": constants, "nodes": nodes}

    def _node(self, node: fx.Node, modules: dict[str, Any], constants: dict[str, Any], state: dict[str, Any]) -> dict[str, Any]:
        target: Any = node.target
        if node.op == "call_module":
            module = self.model.get_submodule(target)
            name = self.module_names[type(module)]
            modules[target] = {"class": name, "arguments": {key: _encode(value) for key, value in allowed.arguments(name, module).items()}}
        elif node.op == "call_function":
            if target not in self.function_names:
                raise InputError(f"the model calls {getattr(target, '__name__', target)}, which no recipe may name; give a builder instead")
            target = self.function_names[target]
        elif node.op == "call_method" and target not in allowed.METHODS:
            raise InputError(f"the model calls the tensor method {target}, which no recipe may name; give a builder instead")
        elif node.op == "get_attr" and target not in state:
            constants[target] = _constant(_attribute(self.model, target), target)
        return {
            "name": node.name,
            "op": node.op,
            "target": target,
            "args": [_encode(value) for value in node.args],
            "kwargs": {key: _encode(value) for key, value in node.kwargs.items()},
        }


def _attribute(model: nn.Module, target: str) -> Any:
    value: Any = model
    for part in target.split("."):
        value = getattr(value, part)
    return value


def _constant(value: Any, name: str) -> dict[str, Any]:
    if not isinstance(value, torch.Tensor):
        raise InputError(f"the model uses the attribute {name}, a {type(value).__name__}; a recipe holds tensors only")
    tensor = value.detach().cpu().contiguous()
    if tensor.numel() * tensor.element_size() > _CONSTANT_BYTES:
        raise InputError(f"the model's constant {name} has more than 64 MiB; make it a buffer")
    content = tensor.reshape(-1).view(torch.uint8).numpy().tobytes() if tensor.numel() else b""
    return {"dtype": str(tensor.dtype).removeprefix("torch."), "shape": list(tensor.shape), "base64": base64.b64encode(content).decode()}


def _encode(value: Any) -> Any:
    """Arguments of modules and nodes as JSON."""
    if isinstance(value, fx.Node):
        return {"node": value.name}
    if isinstance(value, tuple):  # torch.Size too
        return {"tuple": [_encode(item) for item in value]}
    if isinstance(value, list):
        return [_encode(item) for item in value]
    if isinstance(value, slice):
        return {"slice": [_encode(item) for item in (value.start, value.stop, value.step)]}
    if isinstance(value, torch.dtype):
        return {"dtype": str(value).removeprefix("torch.")}
    if isinstance(value, torch.memory_format):
        return {"layout": next(name for name, layout in _LAYOUTS.items() if layout == value)}
    if isinstance(value, torch.device):
        return {"device": "cpu"}
    if value is Ellipsis:
        return {"ellipsis": True}
    if isinstance(value, float) and not math.isfinite(value):
        return {"float": repr(value)}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise InputError(f"the model passes a {type(value).__name__} to a module or function; a recipe cannot hold it; give a builder instead")


def _decode(value: Any, nodes: dict[str, fx.Node]) -> Any:
    if isinstance(value, list):
        return [_decode(item, nodes) for item in value]
    if not isinstance(value, dict):
        return value
    if len(value) != 1:
        raise InputError(f"the recipe has an argument with {len(value)} kinds")
    ((kind, content),) = value.items()
    if kind == "node":
        if content not in nodes:
            raise InputError(f"the recipe uses the value {content!r} before it is made")
        return nodes[content]
    if kind == "tuple":
        return tuple(_decode(item, nodes) for item in content)
    if kind == "slice":
        start, stop, step = (_decode(item, nodes) for item in content)
        return slice(start, stop, step)
    if kind == "dtype":
        return _DTYPES[content]
    if kind == "layout":
        return _LAYOUTS[content]
    if kind == "device":
        return torch.device("cpu")
    if kind == "ellipsis":
        return Ellipsis
    if kind == "float":
        return float(content)
    raise InputError(f"the recipe has an argument of the unknown kind {kind!r}")


def _read(recipe: Any, weights: dict[str, torch.Tensor]) -> nn.Module:
    if not isinstance(recipe, dict) or recipe.get("format") != FORMAT:
        raise InputError(f"this is no recipe of format {FORMAT}")
    _match(recipe["tensors"], weights)
    with torch.device("meta"):
        model = build(recipe["builder"]) if "builder" in recipe else _graph(recipe)
    aliases: dict[str, str] = recipe["aliases"]
    expected = model.state_dict()
    if missing := sorted(set(expected) - set(weights) - set(aliases)):
        raise InputError(f"the weights lack {missing[0]} ({len(missing)} missing in all)")
    if unknown := sorted((set(weights) | set(aliases)) - set(expected)):
        raise InputError(f"the weights have {unknown[0]}, which the model does not ({len(unknown)} too many)")
    for name, tensor in expected.items():
        got = weights[aliases.get(name, name)]
        if tensor.shape != got.shape or tensor.is_floating_point() != got.is_floating_point():
            raise InputError(f"the weights of {name} are {_describe(got)}, the model needs {_describe(tensor)}")
    if "builder" in recipe:
        model = build(recipe["builder"])  # for real: whatever else it computes for itself is small, now that all shapes match
    model.load_state_dict({name: weights[aliases.get(name, name)] for name in expected}, assign=True)
    for name, original in aliases.items():
        _set(model, name, _get(model, original))
    for name in recipe["frozen"]:
        _get(model, name).requires_grad_(False)
    if stray := [name for name, tensor in (*model.named_parameters(), *model.named_buffers()) if tensor.is_meta]:
        raise InputError(f"the recipe gives no value for {stray[0]}")
    return model.eval()


def _match(tensors: dict[str, Any], weights: dict[str, torch.Tensor]) -> None:
    if difference := sorted(set(tensors) ^ set(weights)):
        raise InputError(
            f"recipe and weights do not belong together: {difference[0]} is only in the {'recipe' if difference[0] in tensors else 'weights'}"
        )
    for name, entry in tensors.items():
        if entry["dtype"] not in _DTYPES or _DTYPES[entry["dtype"]] != weights[name].dtype or list(weights[name].shape) != entry["shape"]:
            raise InputError(f"the weights of {name} are {_describe(weights[name])}, the recipe says {entry['dtype']} {entry['shape']}")


def _describe(tensor: torch.Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"


def _graph(recipe: dict[str, Any]) -> fx.GraphModule:
    """The graph as a module, its weights without memory yet."""
    classes, functions = allowed.modules(), allowed.functions()
    root = nn.Module()
    for path, entry in recipe["modules"].items():
        if entry["class"] not in classes:
            raise InputError(f"the recipe names the module {entry['class']!r}; no recipe may")
        known = allowed.fields(entry["class"])
        if unknown := sorted(set(entry["arguments"]) - set(known)):
            raise InputError(f"the recipe gives {entry['class']} the argument {unknown[0]!r}; it takes {', '.join(known)}")
        _place(root, path).add_module(path.rpartition(".")[2], classes[entry["class"]](**_arguments(entry["arguments"])))
    for path, kind in recipe["bare"].items():
        source = recipe["tensors"][recipe["aliases"].get(path, path)]
        tensor = torch.empty(source["shape"], dtype=_DTYPES[source["dtype"]])
        owner, leaf = _place(root, path), path.rpartition(".")[2]
        if kind == "parameter":
            owner.register_parameter(leaf, nn.Parameter(tensor, requires_grad=tensor.is_floating_point()))
        else:
            owner.register_buffer(leaf, tensor)
    for path, entry in recipe["constants"].items():
        _place(root, path).register_buffer(path.rpartition(".")[2], _constant_tensor(path, entry), persistent=False)
    graph = fx.Graph()
    nodes: dict[str, fx.Node] = {}
    for entry in recipe["nodes"]:
        op, target = entry["op"], entry["target"]
        args = tuple(_decode(value, nodes) for value in entry["args"])
        kwargs = {_identifier(key): _decode(value, nodes) for key, value in entry["kwargs"].items()}
        if op == "call_module":
            if target not in recipe["modules"]:
                raise InputError(f"the recipe calls the module {target!r}, which it does not have")
        elif op == "call_function":
            if target not in functions:
                raise InputError(f"the recipe calls {target!r}; no recipe may")
            if target == "getattr" and not (
                len(args) == 2 and isinstance(args[0], fx.Node) and args[1] in allowed.ATTRIBUTES and not kwargs
            ):
                raise InputError(f"the recipe reads the attribute {args[1:]!r}; no recipe may")
            target = functions[target]
        elif op == "call_method":
            if target not in allowed.METHODS:
                raise InputError(f"the recipe calls the tensor method {target!r}; no recipe may")
        elif op == "get_attr":
            if target not in recipe["bare"] and target not in recipe["constants"] and target not in recipe["tensors"]:
                raise InputError(f"the recipe reads {target!r}, which it does not have")
        elif op == "placeholder":
            target = _identifier(target)
        elif op != "output":
            raise InputError(f"the recipe has a step of the unknown kind {op!r}")
        nodes[entry["name"]] = graph.create_node(op, target, args, kwargs, name=_identifier(entry["name"]))
    if [entry["op"] for entry in recipe["nodes"]].index("output") != len(recipe["nodes"]) - 1:
        raise InputError("the recipe goes on after its output")
    graph.lint()
    module = fx.GraphModule(root, graph, class_name="Rebuilt")
    # GraphModule copies only what the graph uses and forgets which buffers are not saved; the state dict is to stay whole.
    for table in ("_modules", "_parameters", "_buffers", "_non_persistent_buffers_set"):
        setattr(module, table, getattr(root, table))
    return module


def _arguments(arguments: dict[str, Any]) -> dict[str, Any]:
    return {_identifier(key): _decode(value, {}) for key, value in arguments.items()}


def _identifier(name: Any) -> str:
    if not isinstance(name, str) or not name.isidentifier() or not name.isascii() or keyword.iskeyword(name) or name.startswith("__"):
        raise InputError(f"the recipe uses the name {name!r}, which is none")
    return name


def _place(root: nn.Module, path: str) -> nn.Module:
    """The module that holds the last part of `path`; empty ones are made on the way."""
    if not isinstance(path, str) or not _NAME.fullmatch(path) or "__" in path or path.count(".") > 32:
        raise InputError(f"the recipe uses the module name {path!r}, which is none")
    owner = root
    for part in path.split(".")[:-1]:
        if part not in owner._modules:
            owner.add_module(part, nn.Module())
        child = owner._modules[part]
        assert child is not None
        owner = child
    return owner


def _constant_tensor(name: str, entry: dict[str, Any]) -> torch.Tensor:
    content = base64.b64decode(entry["base64"], validate=True)
    dtype = _DTYPES[entry["dtype"]]
    if len(content) != math.prod(entry["shape"]) * dtype.itemsize or any(side < 0 for side in entry["shape"]):
        raise InputError(f"the recipe's constant {name} has {len(content)} bytes, not those of {entry['dtype']} {entry['shape']}")
    with torch.device("cpu"):
        if not content:
            return torch.empty(entry["shape"], dtype=dtype)
        return torch.frombuffer(bytearray(content), dtype=dtype).reshape(entry["shape"])


def _get(model: nn.Module, name: str) -> torch.Tensor:
    path, _, leaf = name.rpartition(".")
    owner = model.get_submodule(path)
    tensor = {**owner._buffers, **owner._parameters}.get(leaf)
    if tensor is None:
        raise InputError(f"the recipe speaks of {name}, which the model does not have")
    return tensor


def _set(model: nn.Module, name: str, tensor: torch.Tensor) -> None:
    path, _, leaf = name.rpartition(".")
    owner = model.get_submodule(path)
    place: dict[str, Any] = owner._parameters if leaf in owner._parameters else owner._buffers
    place[leaf] = tensor
