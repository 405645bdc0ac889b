"""The last word on merges by latency or by memory: the whole network, before and after."""

from __future__ import annotations

import tempfile
from pathlib import Path

from edge_shared.artifacts import export_onnx
from torch import Tensor, nn

from depthprune.latency import Comparison
from depthprune.measure import compare_onnx, compare_torch, size
from depthprune.merging import Kept, MergeResult
from depthprune.prices import Backend

LIMIT_S = 20.0  # seconds that judging one merged network may take; at least 20 runs of each


def time_both(before: nn.Module, after: nn.Module, example: Tensor, backend: Backend, repeats: int = 200, threads: int = 1) -> Comparison:
    """Time two networks in turn in torch or, exported to a temporary folder, in ONNX Runtime, at batch 1."""
    if backend == "torch":
        return compare_torch(before, after, example, repeats, threads, LIMIT_S)
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder) / "before.onnx", Path(folder) / "after.onnx"]
        for model, file in zip((before, after), files, strict=True):
            export_onnx(model, example, file)
        return compare_onnx(files[0], files[1], example, repeats, threads, LIMIT_S)


def only_if_faster(
    result: MergeResult, example: Tensor, backend: Backend = "onnxruntime", repeats: int = 200, threads: int = 1
) -> str | None:
    """Undo all merges if the network with them is not faster than the one without; changes `result`.

    Layers are priced alone, where a cache is warm and neighbours do not compete, so a sum of gains can be a loss of the whole.

    Returns:
        Why the merges were undone, or None if they stand (or there are none).
    """
    if not result.certificates:
        return None
    timing = time_both(result.reference, result.model, example, backend, repeats, threads)
    if timing.ratio < 1:
        return None
    where = "torch" if backend == "torch" else "ONNX Runtime"
    return undo(
        result, f"the merged network took {timing.ratio:.2f} times as long as the unmerged one in {where}, so its layers stay apart"
    )


def only_if_smaller(result: MergeResult, example: Tensor) -> str | None:
    """Undo all merges if they raise the peak of live tensors (memory model D); changes `result`, returns why or None."""
    if not result.certificates:
        return None
    before, after = size(result.reference, example).peak_bytes, size(result.model, example).peak_bytes
    if after <= before:
        return None
    return undo(result, f"the merged network holds {after} bytes at its peak instead of {before}, so its layers stay apart")


def undo(result: MergeResult, reason: str) -> str:
    """Put the unmerged network back, with the reason at every merge; returns the reason."""
    result.kept += [Kept(certificate.layers, reason) for certificate in result.certificates]
    result.model, result.certificates = result.reference, []
    return reason


def judge(
    result: MergeResult, example: Tensor, policy: str, backend: Backend = "onnxruntime", repeats: int = 200, threads: int = 1
) -> str | None:
    """Hold the merges of a policy against the whole network: faster for `latency`, not larger for `memory`; others stand."""
    if policy == "latency":
        return only_if_faster(result, example, backend, repeats, threads)
    return only_if_smaller(result, example) if policy == "memory" else None
