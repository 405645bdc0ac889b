"""Accuracy against latency on real small images: depth removal by every method, and width pruning by torch-pruning, equal training.

Run, in this order (each may be interrupted and goes on where it stopped):
    python benchmarks/depthprune/pareto.py train digits          # trains every cell, keeps the networks in a folder
    python benchmarks/depthprune/pareto.py time digits           # merges and times them, writes results/depthprune-pareto-digits.json
    python benchmarks/depthprune/pareto.py plot digits
`fashion-mnist` in place of `digits` is the MNIST-size set (1500 of its training images).

Each seed and family trains one dense network; every cell starts from it and gets the same epochs of distillation from it in all:
depth in two rounds, EGP and NEPENTHE in as many rounds as their amount says, width and the control in one. Accuracy is on the test part;
latency is the median ratio to the dense network (norms folded) in ONNX Runtime, one thread, batch 1, runs in turn.
"""

from __future__ import annotations

import copy
import itertools
import sys
import tempfile
import warnings
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import nets
import torch
from _record import DATA, RESULTS, write
from depthprune.capture import capture
from depthprune.finetune import Distill
from depthprune.fold import prepare
from depthprune.guard import only_if_faster
from depthprune.measure import compare_onnx, size
from depthprune.merging import merge
from depthprune.methods import make
from depthprune.pruner import DepthPruner, accuracy_of, removable
from depthprune.worth import worth_merging
from edge_shared.artifacts import export_onnx, load_model, save_model
from edge_shared.data.vision import ImageSet, load_images
from edge_shared.files import read_json, write_json
from edge_shared.training import TrainConfig, fit
from torch import nn

FAMILIES = ("resnet-like", "mobilenet-like")
FOLDER = Path(tempfile.gettempdir()) / "depthprune-pareto"


@dataclass(frozen=True)
class Study:
    """One data set: where it is, images per part, seeds, epochs of the dense network and of tuning in every cell."""

    source: str
    limit: int | None
    seeds: int
    epochs: int
    tuning: int


STUDIES = {
    "digits": Study("digits", None, 3, 14, 4),
    "fashion-mnist": Study(str(DATA / "fashion-mnist"), 1500, 3, 10, 4),
}


def cells(sites: int, tuning: int) -> list[tuple[str, float]]:
    """Method and amount: sites removed, rounds of pruning (EGP, NEPENTHE), share of channels (torch-pruning)."""
    found: list[tuple[str, float]] = [("none", 0)]
    found += [(method, n) for method in ("easier", "affine", "tlc") for n in (sites // 2, sites)]
    found += [("layer-folding", sites)] + [(method, rounds) for method in ("egp", "nepenthe") for rounds in (tuning // 2, tuning)]
    return found + [("torch-pruning", ratio) for ratio in (0.25, 0.4, 0.55)]


def worthwhile(dense: nn.Module, images: ImageSet, file: Path) -> frozenset[str]:
    """The activations that `depthprune prune` would take by default: those whose layers the latency policy merges.

    Measured once and kept in `file`: a matter of shapes, so the same for every seed.
    """
    if file.is_file():
        return frozenset(read_json(file))
    example = next(iter(images.loader("val", 2)))[0]
    graph = capture(copy.deepcopy(dense).eval(), example)
    found = worth_merging(graph, example, removable(graph, "mergeable", None), "latency")
    write_json(file, sorted(found))
    return found


def shorten(
    dense: nn.Module, images: ImageSet, worth: frozenset[str], method: str, amount: int, tuning: int, seed: int
) -> tuple[nn.Module, dict[str, Any]]:
    """Remove `amount` layers whatever it costs (or prune for `amount` rounds); not merged yet.

    Not only those that are worth it, because the papers take any; but as in `depthprune prune` padding moves only at these.
    """
    example = next(iter(images.loader("val", 2)))[0]
    pruned = method in ("egp", "nepenthe")
    rounds = amount if pruned else 1 if method == "layer-folding" else 2
    options: dict[str, Any] = {"threshold": float("-inf")} if method == "layer-folding" else {}
    epochs = tuning // 2 if method == "layer-folding" else tuning // rounds  # its slopes are learned before the round
    loop = DepthPruner(
        dense, example, make(method, tolerance=1.0, **options), calibration=list(images.loader("train", 256))[:4],
        held_out=list(images.loader("val", 512))[:1], evaluate=accuracy_of(images.loader("val", 512)), per_round=-(-amount // rounds),
        front_pad=worth, target=None if pruned else amount, max_rounds=rounds,
        finetune=Distill(
            dense, images.loader("train", 64, shuffle=True, seed=seed), TrainConfig(epochs=epochs, batch_size=64, lr=0.02, seed=seed)
        ),
    )  # fmt: skip
    outcome = loop.run()
    sparsity = outcome.rounds[-1].sparsity if outcome.rounds else 0.0
    facts = {
        "removed": len(outcome.removals),
        "epochs": epochs * (2 if method == "layer-folding" else rounds),
        "sparsity": sparsity,
        "worth": sorted(worth),
        "front_padded": sorted(outcome.front_padded),
    }
    return outcome.model, facts


def narrow(dense: nn.Module, images: ImageSet, ratio: float, tuning: int, seed: int) -> tuple[nn.Module, dict[str, Any]]:
    """Prune channels by group magnitude with torch-pruning (ratio 0: the control, only tuned), then the same distillation."""
    model = copy.deepcopy(dense).to(memory_format=torch.contiguous_format).eval()
    example = next(iter(images.loader("val", 2)))[0]
    if ratio:
        import torch_pruning as tp

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tp.pruner.MagnitudePruner(
                model,
                example,
                importance=tp.importance.GroupMagnitudeImportance(p=2),
                pruning_ratio=ratio,
                ignored_layers=[model.head],
                round_to=4,
            ).step()
    graph = capture(model.to(memory_format=torch.channels_last), example)
    train = images.loader("train", 64, shuffle=True, seed=seed)
    Distill(dense, train, TrainConfig(epochs=tuning, batch_size=64, lr=0.02, seed=seed))(graph, 1, {}, None)
    return graph, {"removed": 0, "epochs": tuning, "sparsity": 0.0, "front_padded": []}


def folders(name: str, study: Study) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Where each cell is kept, and what it is; the dense network first."""
    for seed in range(study.seeds):
        for family in FAMILIES:
            sites = (4 if family == "resnet-like" else 8) if name == "digits" else (6 if family == "resnet-like" else 12)
            for method, amount in [("dense", 0), *cells(sites, study.tuning)]:
                cell = {"family": family, "seed": seed, "method": method, "amount": amount}
                yield FOLDER / name / f"{family}-{seed}-{method}-{amount}", cell


def train(name: str, study: Study) -> None:
    """Train every cell that is not there yet."""
    images = load_images(study.source, seed=0, limit=study.limit)
    dense: dict[tuple[str, int], nn.Module] = {}
    for folder, cell in folders(name, study):
        if (folder / "cell.json").is_file():
            continue
        family, seed, method, amount = cell["family"], cell["seed"], cell["method"], cell["amount"]
        if (family, seed) not in dense:  # the same weights again after an interruption
            model = nets.build(family, images.shape, len(images.classes), seed).to(memory_format=torch.channels_last)
            config = TrainConfig(epochs=study.epochs, batch_size=64, lr=0.05, warmup_epochs=1, seed=seed)
            fit(model, images.loader("train", 64, shuffle=True, seed=seed), None, config)
            dense[family, seed] = model.eval()
        start = dense[family, seed]
        facts: dict[str, Any] = {"removed": 0, "epochs": 0, "sparsity": 0.0, "front_padded": []}
        if method == "dense":
            model = capture(copy.deepcopy(start), next(iter(images.loader("val", 2)))[0])
        elif method in ("none", "torch-pruning"):
            model, facts = narrow(start, images, amount, study.tuning, seed)
        else:
            worth = worthwhile(start, images, FOLDER / name / f"worth-{family}.json")
            model, facts = shorten(start, images, worth, method, int(amount), study.tuning, seed)
        example = next(iter(images.loader("val", 2)))[0]
        plain = prepare(model.to(memory_format=torch.contiguous_format).eval(), example)
        cell |= facts | {"accuracy_before_merging": accuracy_of(images.loader("test", 512))(plain)}
        save_model(folder, plain, example, onnx=False)
        write_json(folder / "cell.json", cell)
        print(cell["family"], seed, method, amount, f"{cell['accuracy_before_merging']:.4f}", flush=True)


def clock(name: str, study: Study) -> None:
    """Merge what is merged by the default policy, time everything against the dense network, write the record."""
    images = load_images(study.source, seed=0, limit=study.limit)
    example = next(iter(images.loader("val", 2)))[0]
    test = accuracy_of(images.loader("test", 512))
    rows = []
    base, record = FOLDER / name / "dense.onnx", RESULTS / f"depthprune-pareto-{name}.json"
    known = read_json(record)["rows"] if record.is_file() else []
    for folder, _ in folders(name, study):
        if not (folder / "cell.json").is_file():
            continue
        cell = read_json(folder / "cell.json")
        model, merges = load_model(folder), 0
        if cell["method"] == "dense":
            export_onnx(model, example, base)
        same = [row for row in known if cell.items() <= row.items()]
        if same:  # the same training as in the record: its timing stands
            rows.append(same[0])
            continue
        if cell["method"] not in ("dense", "none", "torch-pruning"):
            result = merge(model.eval(), example, policy="latency", front_padded=cell["front_padded"])
            only_if_faster(result, example)
            model, merges = result.model, len(result.certificates)
        file = FOLDER / name / "model.onnx"
        export_onnx(model, example, file)
        timing = compare_onnx(base, file, example, 200)
        rows.append(
            {**cell, "accuracy": test(model), "merges": merges, "latency": asdict(timing), "latency_ratio": timing.ratio, "size": asdict(size(model, example))}
        )  # fmt: skip
        print(cell["family"], cell["seed"], cell["method"], cell["amount"], f"{rows[-1]['accuracy']:.4f} {timing.ratio:.3f}", flush=True)
        done = [{key: row[key] for key in ("family", "seed", "method", "amount")} for row in rows]
        rest = [row for row in known if not any(cell.items() <= row.items() for cell in done)]
        write(
            f"pareto-{name}", f"python benchmarks/depthprune/pareto.py time {name}", rows + rest, data=name, fingerprint=images.fingerprint,
            seeds=list(range(study.seeds)), study=asdict(study) | {"source": name}, summary=summary(rows + rest),
        )  # fmt: skip


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Per family: mean over seeds of each cell, and per depth cell its accuracy less that of width at the same latency.

    Width at a latency is read off the line through the seed's width cells, its control at ratio 1 included; beyond the
    fastest width cell there is nothing to compare with (None).
    """
    found: dict[str, Any] = {}
    for family in FAMILIES:
        means: dict[str, Any] = {}
        mine = [row for row in rows if row["family"] == family]
        for method, amount in dict.fromkeys((row["method"], row["amount"]) for row in mine):
            same = [row for row in mine if (row["method"], row["amount"]) == (method, amount)]
            gaps = [] if method in ("dense", "none", "torch-pruning") else [_gap(row, mine) for row in same]
            known = [gap for gap in gaps if gap is not None]
            name = f"{method}-{100 * amount:.0f}" if method == "torch-pruning" else f"{method}-{amount}"
            means[name] = {
                "method": method, "amount": amount, "seeds": len(same), "accuracy": sum(r["accuracy"] for r in same) / len(same),
                "latency_ratio": sum(r["latency_ratio"] for r in same) / len(same), "removed": sum(r["removed"] for r in same) / len(same),
                "sparsity": sum(r["sparsity"] for r in same) / len(same), "merges": sum(r["merges"] for r in same) / len(same),
                "accuracy_less_width": sum(known) / len(known) if known else None, "compared_seeds": len(known),
            }  # fmt: skip
        found[family] = means
    return found


def _gap(row: dict[str, Any], rows: list[dict[str, Any]]) -> float | None:
    width = sorted(
        (r["latency_ratio"], r["accuracy"]) for r in rows if r["seed"] == row["seed"] and r["method"] in ("none", "torch-pruning")
    )
    at = row["latency_ratio"]
    if not width or at < width[0][0]:
        return None
    if at >= width[-1][0]:
        return row["accuracy"] - width[-1][1]
    for (x0, y0), (x1, y1) in itertools.pairwise(width):
        if x0 <= at <= x1:
            return row["accuracy"] - (y0 + (y1 - y0) * (at - x0) / max(x1 - x0, 1e-9))
    return None


def plot(name: str) -> None:
    """Draw results/depthprune-pareto-NAME.json into docs/pictures."""
    from edge_shared.report import COLOURS, figure

    record = read_json(RESULTS / f"depthprune-pareto-{name}.json")
    marks = {"easier": "o", "affine": "s", "tlc": "^", "layer-folding": "D", "egp": "v", "nepenthe": "P"}
    folder = RESULTS.parents[1] / "docs" / "pictures"
    with figure(folder, f"depthprune-pareto-{name}", columns=2, size=(9, 4.4)) as axes:
        for plane, family in zip(axes, FAMILIES, strict=True):
            means = record["summary"][family].values()
            width = sorted((m["latency_ratio"], m["accuracy"]) for m in means if m["method"] in ("none", "torch-pruning"))
            plane.plot([x for x, _ in width], [100 * y for _, y in width], "-x", color=COLOURS[7], label="width (torch-pruning)")
            for colour, (method, mark) in zip(COLOURS, marks.items(), strict=False):
                points = sorted((m["latency_ratio"], m["accuracy"]) for m in means if m["method"] == method)
                plane.plot([x for x, _ in points], [100 * y for _, y in points], mark, linestyle=":", color=colour, label=method)
            plane.set_title(f"{name}, {family}, {len(record['seeds'])} seeds")
            plane.set_xlabel("latency in ONNX Runtime (dense = 1)")
        axes[0].set_ylabel("test accuracy (%)")
        axes[0].legend(fontsize=8)
    (folder / f"depthprune-pareto-{name}.svg").unlink()


if __name__ == "__main__":
    what, name = sys.argv[1], sys.argv[2]
    {"train": lambda: train(name, STUDIES[name]), "time": lambda: clock(name, STUDIES[name]), "plot": lambda: plot(name)}[what]()
