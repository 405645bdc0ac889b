"""Write the figures of the network-flow part into packages/edge-ids/README.md, from the records; nobody types them.

python benchmarks/edge-ids/flow_readme.py [--check]
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from edge_shared.files import read_json

ROOT = Path(__file__).parents[2]
README = ROOT / "packages" / "edge-ids" / "README.md"
RESULTS = ROOT / "benchmarks" / "results"
BEGIN, END = "<!-- figures of flow_readme.py: begin -->", "<!-- figures of flow_readme.py: end -->"
SPLITS = ("random", "chronological", "unseen-host-pair")


def record(name: str) -> dict[str, Any]:
    return read_json(RESULTS / f"edge-ids-flow-{name}.json")


def spread(figure: dict[str, Any], digits: int = 3) -> str:
    return f"{figure['mean']:.{digits}f}±{figure['half_width_95']:.{digits}f}"


def quality() -> list[str]:
    rows = record("quality")["rows"]
    lines = ["### Quality on real flows", "",
             "NF-BoT-IoT-v2, 2,818 rows (`python benchmarks/edge-ids/flow_quality.py`, [JSON](../../benchmarks/results/edge-ids-flow-quality.json)); mean ± 95 % interval over five",
             "seeds, threshold by F1 on validation flows. The set is small, and few pairs of hosts make the last split vary much. *Untrained* is the same network with its first weights.", "",
             "| model (scaler) | random: PR-AUC / macro F1 | chronological: PR-AUC / macro F1 | unseen-host-pair: PR-AUC / macro F1 |", "|---|---|---|---|"]  # fmt: skip
    kinds = list(dict.fromkeys((row["model"], row["scaler"]) for row in rows))
    share = {}
    for model, scaler in kinds:
        cells = {row["split"]: row for row in rows if (row["model"], row["scaler"]) == (model, scaler)}
        lines.append(f"| {model} ({scaler}) | " + " | ".join(
            f"{spread(cells[s]['test']['pr_auc'])} / {spread(cells[s]['test']['macro_f1'])}" if s in cells else "-" for s in SPLITS) + " |")  # fmt: skip
        if any("untrained" in cell["controls"] for cell in cells.values()):
            lines.append(f"| &nbsp;&nbsp;untrained {model} | " + " | ".join(
                f"{spread(cells[s]['controls']['untrained']['pr_auc'])} / {spread(cells[s]['controls']['untrained']['macro_f1'])}" if s in cells else "-" for s in SPLITS) + " |")  # fmt: skip
        share |= {split: cells[split]["prevalence"]["mean"] for split in cells}
    lines += ["", "Share of attacks, which is a coin's PR-AUC: " + ", ".join(f"{split} {share[split]:.3f}" for split in SPLITS) + ".", ""]
    large = record("large")
    lines += [f"The larger set, {large['data']['flows']:,} rows of which {large['data']['benign']:,} are benign, random split, five seeds "
              "([JSON](../../benchmarks/results/edge-ids-flow-large.json)). With so many attacks a coin has a",
              f"PR-AUC of {large['rows'][0]['prevalence']['mean']:.4f}; ROC-AUC and the PR-AUC of finding the benign flows say more. The official code, one seed: PR-AUC 0.9973, macro F1 0.8805, after one epoch 0.883.",
              "What GraphIDS reaches depends on its first weights: some seeds learn, others end about where they began. Sets as small as these are trained in smaller batches (`--preset auto`),",
              "so that an epoch has several steps, and the cut lies in a wide gap between scores.", "",
              "| model | PR-AUC | ROC-AUC | benign PR-AUC | macro F1 | untrained: ROC-AUC / macro F1 | seconds to train and test |", "|---|---|---|---|---|---|---|"]  # fmt: skip
    for row in large["rows"]:
        test, control = row["test"], row["controls"].get("untrained")
        untrained = "-" if control is None else f"{spread(control['roc_auc'])} / {spread(control['macro_f1'])}"
        lines.append(f"| {row['model']} | {test['pr_auc']['mean']:.4f} | {spread(test['roc_auc'])} | {spread(test['benign_pr_auc'])} | {spread(test['macro_f1'])} | {untrained} | {row['fit_seconds']['mean']:.0f} |")  # fmt: skip
    return [*lines, ""]


def hard() -> list[str]:
    lines = ["### The two hard cases (synthetic)", "",
             "Share of planted flows above the 99 % quantile of benign ones, mean of three seeds (`python benchmarks/edge-ids/flow_hard_cases.py`). Simple detectors solve them too: the case shows what a",
             "model *can* see, not that it is hard for all.", "", "| model | odd flow in a busy pair | attack from a new host |", "|---|---|---|"]  # fmt: skip
    for row in record("hard-cases")["rows"]:
        means = [
            sum(row[case]["detected_at_1_percent_false_alarms"]) / len(row[case]["detected_at_1_percent_false_alarms"])
            for case in ("odd-flow", "new-host")
        ]
        lines.append(f"| {row['model']} | {means[0]:.2f} | {means[1]:.2f} |")
    return [*lines, ""]


def speed() -> list[str]:
    found = record("speed")
    lines = [
        "### Speed (synthetic flows)", "",
        "Rows replicated from NF-BoT-IoT-v2, two cores with little else to do; against the official code medians of three rounds with AVX2, one round with bfloat16, before attention was made faster ([JSON](../../benchmarks/results/edge-ids-flow-speed.json), `python benchmarks/edge-ids/flow_speed.py`).", "",
    ]  # fmt: skip
    if "against_official" in found:
        lines += ["GraphIDS, UNSW-v2 settings, batch 32,768, our training loop against the official one (branch PyG, its own `train_encoder` and `test`), in turns on the same flows and machine;",
                  "malloc as it is, and told to keep large blocks (both codes alike). In bfloat16, the default on a CPU that computes in it, and in float32, all that older CPUs have:", "",
                  "| processor, threads, malloc | training, flows per CPU second: official / float32 / bfloat16 | ratio: float32 / bfloat16 | inference: official / ours | ratio |", "|---|---|---|---|---|"]  # fmt: skip
        for cell in found["against_official"]["ratios"]:
            train, score = cell["training_flows_per_cpu_second"], cell["inference_flows_per_cpu_second"]
            if "ratio" not in train:
                continue
            kinds = [kind for kind in ("float32", "bfloat16") if kind in train]
            speeds = " / ".join(f"{train[kind]:,.0f}" for kind in ("official", *kinds))
            gains = " / ".join(f"{train[kind] / train['official']:.1f}" for kind in kinds)
            lines.append(
                f"| {cell['name']} | {speeds} | {gains} | {score['official']:,.0f} / {score[kinds[-1]]:,.0f} | {score['ratio']:.0f} |"
            )
        runs = found["against_official"]["runs"]
        peaks = {
            which: max(run["peak_rss_bytes"] for run in runs if run["which"] == which)
            for which in dict.fromkeys(run["which"] for run in runs)
        }
        lines += ["", "Peak memory: " + ", ".join(f"{which} {peak / 1e9:.2f} GB" for which, peak in peaks.items()) + ".", ""]
    if "arithmetic" in found:
        part = found["arithmetic"]
        lines += [f"What float32 allows on one thread ({part['cpu']}): each flow takes {part['flop_per_flow'] / 1e6:.2f} million floating-point operations in matrix products, forward and backward, in any",
                  f"program. This processor's best rate (two square matrices of 2,048) is {part['square_product_flop_per_second'] / 1e9:.0f} billion a second, so that {part['ceiling_flows_per_cpu_second']:,.0f} flows/s is the ceiling of a",
                  f"program that does nothing else. Ours trains {part['training']['flows_per_cpu_second']:,.0f} flows per CPU second; {part['products_share']:.0%} of that time is products, at {part['products_flop_per_second'] / 1e9:.0f} billion a second.", ""]  # fmt: skip
    one = next(run for run in found["models"] if run["threads"] == 1)
    lines += [
        f"All models, one thread, flows/s ({one['rows']['graphids unsw-v2']['precision']}):",
        "",
        "| | training | inference | inference, all host pairs differ |",
        "|---|---|---|---|",
    ]
    for name, row in one["rows"].items():
        figures = [row[key]["flows_per_second"] for key in ("training", "inference", "inference_all_pairs_differ")]
        lines.append(f"| {name} | " + " | ".join(f"{figure:,.0f}" for figure in figures) + " |")
    read = found["ingest"]
    lines += ["", "Reading NetFlow, flows/s: " + ", ".join(f"{kind} {row['flows_per_second']:,.0f}" for kind, row in read.items()) + ".", ""]  # fmt: skip
    if "stream_memory" in found:
        lines += ["Memory does not grow with the file: peak of anonymous memory of `flow run`, and of `flow train --sample 20000`, beside what the whole table would take:", "",
                  "| flows | table | " + " | ".join(dict.fromkeys(row["command"] for row in found["stream_memory"])) + " |",
                  "|---|---|" + "---|" * len({row["command"] for row in found["stream_memory"]})]  # fmt: skip
        for flows in dict.fromkeys(row["flows"] for row in found["stream_memory"]):
            cells = [row for row in found["stream_memory"] if row["flows"] == flows]
            lines.append(f"| {flows:,} | {cells[0]['table_bytes'] / 1e6:,.0f} MB | " + " | ".join(f"{row['peak_anonymous_bytes'] / 1e6:,.0f} MB" for row in cells) + " |")  # fmt: skip
        lines.append("")
    whole = found["whole_training"]
    lines += ["`flow train` with its controls and report on as many flows as the larger set has, while other programs kept both cores busy: "
              + ", ".join(f"{row['model']} {row['wall_seconds']:.0f} s" for row in whole) + " of wall time.", ""]  # fmt: skip
    return lines


def main() -> None:
    text = README.read_text()
    head, rest = text.split(BEGIN)
    tail = rest.split(END)[1]
    new = head + BEGIN + "\n" + "\n".join(quality() + hard() + speed()) + END + tail
    if "--check" in sys.argv:
        sys.exit(0 if new == text else f"{README}: not what the records say; run {Path(__file__).name}")
    README.write_text(new)


if __name__ == "__main__":
    main()
