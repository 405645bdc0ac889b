"""MobileNetV2 with the two inner activations of every block made linear: merged exactly, timed in ONNX Runtime at batch 1.

Run: python benchmarks/depthprune/inverted_residuals.py [SIDE]
Latency of the structure only (ImageNet weights where the file is present, never fine-tuned): no accuracy is claimed here.
"""

from __future__ import annotations

import copy
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path

import torch
import torchvision
from _record import DATA, write
from depthprune.capture import capture, sites
from depthprune.fold import prepare
from depthprune.guard import judge
from depthprune.measure import compare_onnx, compare_torch, size
from depthprune.merging import merge
from depthprune.padding import move_to_front
from depthprune.surgery import remove
from edge_shared.artifacts import export_onnx, load_weights


def main() -> None:
    rows = []
    torch.manual_seed(0)
    model = torchvision.models.mobilenet_v2().eval()
    file = DATA / "weights" / "mobilenet_v2-b0353104.pth"
    if file.is_file():
        model.load_state_dict(load_weights(file))
    for side in (int(sys.argv[1]) if len(sys.argv) > 1 else 96,):
        x = torch.randn(2, 3, side, side)
        dense = prepare(capture(copy.deepcopy(model), x), x)
        linear = capture(copy.deepcopy(model), x)
        inner = [site.name for site in sites(linear) if ".conv." in site.name]
        for site in inner:
            remove(linear, site)
        moved = move_to_front(linear, set(inner))
        for policy in ("latency", "macs"):
            with torch.no_grad():
                result = merge(linear, x, policy=policy, front_padded=moved)
                refused = judge(result, x, policy)
                error = float((result.model(x) - linear(x)).abs().max() / linear(x).abs().max())
            row = {
                "side": side, "policy": policy, "made_linear": len(inner), "merges": len(result.certificates), "kept_apart": len(result.kept), "guard": refused,
                "relative_logit_error_to_linearised": error, "dense": asdict(size(dense, x)), "merged": asdict(size(result.model, x)),
                "torch": asdict(compare_torch(dense, result.model, x, 60)),
            }  # fmt: skip
            with tempfile.TemporaryDirectory() as folder:
                files = [Path(folder) / f"{which}.onnx" for which in ("dense", "merged")]
                pairs = list(zip((dense, result.model), files, strict=True))
                row["onnx_max_abs_error"] = [export_onnx(m, x, f) for m, f in pairs]
                with torch.no_grad():
                    row["largest_logit"] = [float(m(x).abs().max()) for m, _ in pairs]
                row["onnxruntime"] = asdict(compare_onnx(files[0], files[1], x, 100))
            rows.append(row)
            print(side, policy, row["merges"], row["onnxruntime"]["ratio"], row["torch"]["ratio"], flush=True)
            write("inverted-residuals", "python benchmarks/depthprune/inverted_residuals.py", rows, weights=file.name, threads=1, batch=1)


if __name__ == "__main__":
    main()
