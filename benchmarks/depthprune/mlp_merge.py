"""Every MLP of a transformer made linear and merged: MACs of the MLPs, latency of the whole model, equality of the logits.

Run: python benchmarks/depthprune/mlp_merge.py [TIMM_MODEL@SIDE or torchvision.MODEL@SIDE ...]
Random weights: latency and equality do not depend on them; accuracy is not claimed here.
"""

from __future__ import annotations

import copy
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path

import timm
import torch
import torchvision
from _record import write
from depthprune.capture import capture, sites
from depthprune.fold import prepare
from depthprune.measure import compare_onnx, compare_torch, size
from depthprune.merging import merge
from depthprune.surgery import remove
from edge_shared.artifacts import export_onnx


def main() -> None:
    rows = []
    for name, side in (
        (n, int(s)) for n, s in (a.split("@") for a in sys.argv[1:] or ["vit_tiny_patch16_224@96", "torchvision.swin_t@96"])
    ):
        torch.manual_seed(0)
        kind = name.removeprefix("torchvision.")
        model = (timm.create_model(name, img_size=side) if kind == name else getattr(torchvision.models, kind)()).eval()
        x = torch.randn(2, 3, side, side)
        dense = prepare(capture(copy.deepcopy(model), x), x)
        linear = capture(model, x)
        chosen = [site.name for site in sites(linear)]  # their only activations are those of the MLPs
        for site in chosen:
            remove(linear, site)
        with torch.no_grad():
            result = merge(linear, x, policy="macs")
            error = float((result.model(x) - linear(x)).abs().max() / linear(x).abs().max())
        row = {
            "model": name, "side": side, "mlps": len(chosen), "merged": len(result.certificates),
            "mlp_macs_ratio": [c.macs_before / c.macs_after for c in result.certificates],
            "relative_logit_error_to_linearised": error, "torch": asdict(compare_torch(dense, result.model, x, 60)),
            "dense": asdict(size(dense, x)), "merged_size": asdict(size(result.model, x)),
        }  # fmt: skip
        with tempfile.TemporaryDirectory() as folder:
            files = [Path(folder) / f"{which}.onnx" for which in ("dense", "merged")]
            try:
                row["onnx_max_abs_error"] = [export_onnx(m, x, f) for m, f in zip((dense, result.model), files, strict=True)]
                row["onnxruntime"] = asdict(compare_onnx(files[0], files[1], x, 60))
            except Exception as error_:  # a model that the exporter does not take still has its torch figures
                row["onnxruntime"] = f"not exported: {error_}"[:200]
        rows.append(row)
        print(row, flush=True)
        write("mlp-merge", "python benchmarks/depthprune/mlp_merge.py", rows, weights="random", threads=1, batch=1)


if __name__ == "__main__":
    main()
