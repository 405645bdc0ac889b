"""Counts real bytes: what a run keeps, tensor by tensor, by the storages that torch holds. Needs torch."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.fx import Interpreter, Node

from edge_shared.errors import InputError


@dataclass(frozen=True)
class SavedBytes:
    """What autograd keeps for the backward pass, each storage counted once, parameters and buffers left out."""

    bytes: int
    tensors: int


def saved_bytes(forward: Callable[[], Any], exclude: Iterable[torch.Tensor] = ()) -> SavedBytes:
    """Run `forward` and count the storages that it saves for backward.

    A slice counts as its whole storage: it keeps all of it alive.

    Args:
        forward: runs the forward pass; its result may be dropped.
        exclude: tensors whose storages do not count: parameters and buffers.
    """
    skip = {tensor.untyped_storage().data_ptr() for tensor in exclude}
    kept: dict[int, torch.UntypedStorage] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in skip and storage.nbytes() > 0:
            kept[storage.data_ptr()] = storage  # held, so that no later tensor gets the same address
        # Detached: an operation that keeps its own output (ReLU) would else hold itself, and the whole graph, for ever.
        return tensor.detach()

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        forward()
    return SavedBytes(sum(storage.nbytes() for storage in kept.values()), len(kept))


def training_bytes(module: nn.Module, example: torch.Tensor) -> SavedBytes:
    """Bytes that one forward pass of `module` on `example` keeps for backward, at the module's training flags."""
    return saved_bytes(lambda: module(example), [*module.parameters(), *module.buffers()])


def live_bytes(module: nn.Module, example: torch.Tensor) -> int:
    """Peak of the bytes of all activations alive at once in one forward pass, operation by operation.

    The traced graph runs on real tensors; a value is dropped after its last use. Parameters, buffers and the scratch
    memory inside one operation do not count.
    """
    from edge_shared.trace import export

    runner = _LiveBytes(export(module, example).module())
    with torch.no_grad():
        runner.run(example.clone())
    return runner.peak


class _LiveBytes(Interpreter):
    def __init__(self, graph: torch.nn.Module) -> None:
        super().__init__(graph, garbage_collect_values=True)  # type: ignore[arg-type]
        self.constants = {tensor.untyped_storage().data_ptr() for tensor in (*graph.parameters(), *graph.buffers())}
        self.peak = 0

    def run_node(self, n: Node) -> Any:
        result = super().run_node(n)
        if n.op == "get_attr" and isinstance(result, torch.Tensor):
            self.constants.add(result.untyped_storage().data_ptr())
        values: list[torch.Tensor] = []
        torch.utils._pytree.tree_map_only(torch.Tensor, values.append, (list(self.env.values()), result))
        storages = {value.untyped_storage().data_ptr(): value.untyped_storage().nbytes() for value in values}
        self.peak = max(self.peak, sum(size for address, size in storages.items() if address not in self.constants))
        return result if n.users else None  # a result that nobody reads is dropped at once, not at the end


def peak_rss(command: Sequence[str]) -> int:
    """Peak resident set of a fresh process, in bytes (Linux, macOS), children that it waited for included.

    Raises:
        InputError: if the command fails.
    """
    code = (
        "import resource, subprocess, sys\n"
        "done = subprocess.run(sys.argv[1:], stdout=subprocess.DEVNULL)\n"
        "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)\n"
        "sys.exit(done.returncode)"
    )
    done = subprocess.run([sys.executable, "-c", code, *command], capture_output=True, text=True, check=False)
    if done.returncode:
        raise InputError(
            f"{' '.join(command)[:200]} failed: {done.stderr.strip().splitlines()[-1] if done.stderr.strip() else done.returncode}"
        )
    return int(done.stdout.split()[-1]) * (1 if sys.platform == "darwin" else 1024)
