"""The whole job of `depthprune prune`: train (or load), shorten, merge, export, verify, time, report."""

from __future__ import annotations

import copy
import json
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from edge_shared.data.vision import ImageSet, load_images
from edge_shared.devices import Device
from edge_shared.devices import load as load_device
from edge_shared.errors import CheckFailed, InputError
from edge_shared.files import Run, read_json, write_json
from edge_shared.training import TrainConfig, fit
from torch import Tensor, fx, nn

from depthprune.capture import capture
from depthprune.device import Fit, choose_policy, keep_what_fits
from depthprune.entropy import count
from depthprune.finetune import Distill
from depthprune.fold import prepare
from depthprune.guard import judge
from depthprune.latency import Comparison
from depthprune.measure import Size, compare_onnx, compare_torch, size
from depthprune.merge.borders import Mode
from depthprune.merging import MergeResult, merge
from depthprune.methods import make
from depthprune.models import DEFAULT, build, load_weights
from depthprune.prices import Backend
from depthprune.prices import make as make_price
from depthprune.pruner import DepthPruner, Outcome, accuracy_of, removable
from depthprune.worth import worth_merging

# Beside the method's own accuracy test: samples that scores look at are enough for stable entropies.
CALIBRATION_IMAGES = 1024


@dataclass(frozen=True)
class PruneConfig:
    """Settings of a run; see ``depthprune prune --help`` for what each means."""

    data: str
    model: str = DEFAULT
    weights: str | None = None
    method: str = "easier"
    layers: int | None = None
    per_round: int | None = None
    candidates: str = "worth"
    tolerance: float = 0.01
    epochs: int = 16
    finetune_epochs: int = 5
    batch_size: int = 64
    lr: float = 0.05
    finetune_lr: float = 0.02
    size: int | None = None
    limit: int | None = None
    policy: str | None = None
    runtime: Backend = "onnxruntime"
    device: str | None = None
    padding: Mode = "auto"
    front_pad: bool = True
    threads: int = 1
    repeats: int = 300
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least in (("epochs", 0), ("finetune_epochs", 0), ("batch_size", 1), ("threads", 1), ("repeats", 10)):
            if getattr(self, name) < least:
                raise InputError(f"--{name.replace('_', '-')} is {getattr(self, name)}; it is at least {least}")
        for name in ("layers", "per_round"):
            value = getattr(self, name)
            if value is not None and value < (1 if name == "per_round" else 0):
                raise InputError(f"--{name.replace('_', '-')} is {value}; it is at least {1 if name == 'per_round' else 0}")
        for name in ("lr", "finetune_lr"):
            if not 0 < getattr(self, name) < 1e3:
                raise InputError(f"--{name.replace('_', '-')} is {getattr(self, name)}; it is above 0, such as 0.05")
        if not 0 <= self.tolerance <= 1:
            raise InputError(f"--tolerance is {self.tolerance}; it is a share of accuracy, 0 to 1 (0.01 = one point)")


@dataclass
class PruneResult:
    """What a run made.

    Attributes:
        dense, merged: the networks before and after (the latter of plain modules, in evaluation mode).
        outcome: the loop's account.
        merging: certificates, refusals, barriers.
        before, after: counts.
        accuracy_before, accuracy_after: on the test part, 0 to 1.
        latency: per runtime.
        onnx_error: largest difference between ONNX Runtime and torch, of the dense and the merged model.
        entropies: of every activation of the dense network, in bits.
        images: the data.
        refused: why the merged network was given up for the unmerged or the dense one, if it was.
        blocked: per activation what keeps its removal from merging layers, or None.
        fit: what the merged network needs on the device, if one was named.
        seconds: of the whole job.
    """

    dense: nn.Module
    merged: fx.GraphModule
    outcome: Outcome
    merging: MergeResult
    before: Size
    after: Size
    accuracy_before: float
    accuracy_after: float
    latency: dict[str, Comparison]
    onnx_error: dict[str, float]
    entropies: dict[str, float]
    images: ImageSet
    refused: str | None = None
    blocked: dict[str, str | None] = field(default_factory=dict)
    fit: Fit | None = None
    seconds: float = 0.0


@dataclass
class Setup:
    """What a run needs and has checked before its first training: settings, data, the model, the board."""

    config: PruneConfig
    images: ImageSet
    dense: nn.Module
    example: Tensor
    device: Device | None
    policy: str
    fresh: list[str]


def setup(config: PruneConfig) -> Setup:
    """Load data and model and check every setting against them, so that bad input fails before anything is written.

    Raises:
        InputError: bad settings, model, weights or data.
    """
    device = None if config.device is None else load_device(config.device)
    policy = choose_policy(config.policy, device)
    make_price(policy, config.runtime)
    make(config.method)
    images = load_images(config.data, size=config.size, limit=config.limit, seed=config.seed)
    torch.manual_seed(config.seed)
    dense, fresh = build(config.model, images.shape, len(images.classes), config.seed), list[str]()
    if config.weights is not None:
        from edge_shared.artifacts import load_weights as read

        fresh = load_weights(dense, read(config.weights), config.weights)
    dense = dense.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    example = next(iter(images.loader("val", 1)))[0]
    graph = capture(copy.deepcopy(dense), example).eval()
    removable(graph, config.candidates, config.layers)
    with torch.no_grad():
        outputs = tuple(graph(example).shape[1:])
    if outputs != (len(images.classes),):
        raise InputError(f"--model {config.model} gives {outputs} outputs per image, {config.data} has {len(images.classes)} classes")
    return Setup(config, images, dense, example, device, policy, fresh)


def prune(ready: Setup, run: Run, say: Callable[[str], None] = lambda line: None) -> PruneResult:
    """Run the whole job in an open run folder; call `Run.commit` after the report is written.

    Every training in it is checkpointed and everything between is computed from its result, so an interrupted run that
    is opened again gives the same weights bit for bit on a CPU.

    Raises:
        InputError: data or weights that turn out to be unusable in training.
        CheckFailed: the layers asked for cannot go within the accuracy allowed, or the result does not fit the device.
    """
    start = time.monotonic()
    config, images, dense, example = ready.config, ready.images, ready.dense, ready.example
    torch.manual_seed(config.seed)
    checkpoints = run.path / "checkpoints"
    train = images.loader("train", config.batch_size, shuffle=True, seed=config.seed)
    val = images.loader("val", 512)
    if ready.fresh:
        say(f"not loaded, for another number of classes: {', '.join(ready.fresh)}")
    if config.epochs:
        say(
            f"{images.name}: {len(images.train_y)} training, {len(images.val_y)} validation, {len(images.test_y)} test images {images.shape}"
        )
        settings = TrainConfig(
            epochs=config.epochs, batch_size=config.batch_size, lr=config.lr, seed=config.seed, warmup_epochs=min(1, config.epochs / 4)
        )
        fit(
            dense,
            train,
            val,
            settings,
            checkpoint=checkpoints / "dense" / "checkpoint.safetensors",
            description="training the dense network",
        )
    accuracy = accuracy_of(val)
    say(f"dense network: validation accuracy {accuracy(dense):.4f}")
    calibration = _some(images, "train", CALIBRATION_IMAGES)
    graph = capture(copy.deepcopy(dense), example)
    counts = count(graph, calibration)
    entropies = {site: c.layer_entropy() for site, c in counts.items()}
    worth = _worth(graph, ready, checkpoints / "worth.json")
    outcome_pruner = DepthPruner(
        dense,
        example,
        make(config.method, tolerance=config.tolerance),
        calibration=calibration,
        held_out=_some(images, "val", 1024),
        evaluate=accuracy,
        finetune=Distill(
            dense,
            train,
            TrainConfig(epochs=config.finetune_epochs, batch_size=config.batch_size, lr=config.finetune_lr, seed=config.seed),
            checkpoints=checkpoints,
        ),
        per_round=config.per_round or 1,
        target=config.layers,
        candidates=worth if config.candidates == "worth" else config.candidates,
        front_pad=worth if config.front_pad else False,
        say=say,
    )
    if config.per_round is None:
        outcome_pruner.per_round = max(1, round((config.layers or len(outcome_pruner.state.open_sites())) / 3))
    outcome = outcome_pruner.run()
    result = finish(ready, outcome, run.path, entropies, outcome_pruner.blocked, say)
    result.seconds = time.monotonic() - start
    shutil.rmtree(checkpoints, ignore_errors=True)
    return result


def _worth(graph: fx.GraphModule, ready: Setup, file: Path) -> frozenset[str]:
    """Activations whose removal lets layers merge to advantage; kept in a file, because a latency is not measured twice alike.

    Raises:
        CheckFailed: if there are fewer than are to be removed.
    """
    config = ready.config
    if file.is_file():
        return frozenset(read_json(file, "activations"))
    names = removable(graph, "mergeable" if config.candidates == "worth" else config.candidates, None)
    found = worth_merging(graph, ready.example, names, ready.policy, config.runtime, config.threads)
    if config.candidates == "worth" and len(found) < max(config.layers or 0, 1):
        raise CheckFailed(
            f"of {len(names)} activations that stand between layers {len(found)} are worth removing by policy {ready.policy}: without "
            f"the others the layers would not be merged, or be slower merged; {config.layers or 'at least 1'} asked for. "
            "Use --candidates mergeable to remove them all the same, or --policy always"
        )
    file.parent.mkdir(parents=True, exist_ok=True)
    write_json(file, sorted(found))
    return found


def finish(
    ready: Setup,
    outcome: Outcome,
    folder: Path,
    entropies: dict[str, float],
    blocked: dict[str, str | None],
    say: Callable[[str], None],
) -> PruneResult:
    """Merge, save, verify and time. By the latency policy what comes out is never slower than the dense network: merges
    that do not make the whole faster are undone, and if the shortened network is not faster either, the dense one is written.
    """
    from edge_shared.artifacts import save_model

    config, images = ready.config, ready.images
    dense = ready.dense.to(memory_format=torch.contiguous_format).eval()  # type: ignore[call-overload]
    short = outcome.model.to(memory_format=torch.contiguous_format).eval()  # type: ignore[call-overload]
    example = next(iter(images.loader("val", 2)))[0]
    # The dense network as it would be deployed: norms folded, so that the comparison is fair.
    plain = prepare(capture(dense, example), example)
    sample = _some(images, "val", 256)[0][0]
    say(f"merging ({ready.policy})")
    merging = merge(
        short,
        example,
        mode=config.padding,
        policy=ready.policy,
        calibration=sample,
        counts=outcome.counts,
        backend=config.runtime,
        threads=config.threads,
        front_padded=outcome.front_padded,
    )
    refused = judge(merging, example, ready.policy, config.runtime, config.repeats, config.threads)
    fits = None if ready.device is None else keep_what_fits(merging, example, ready.device)
    normalisation = {"mean": list(images.mean), "std": list(images.std)}
    errors, files = {}, [folder / name / "model.onnx" for name in ("dense", "merged")]

    def save(name: str, model: nn.Module) -> None:
        say(f"writing {name} model and checking it in ONNX Runtime")
        saved = save_model(folder / name, model, example, classes=images.classes, normalisation=normalisation)
        errors[name] = saved["onnx_max_abs_error"]

    def clock() -> dict[str, Comparison]:
        say("timing both networks in turn")
        return {
            "ONNX Runtime": compare_onnx(files[0], files[1], example, config.repeats, config.threads),
            "torch": compare_torch(plain, merging.model, example, config.repeats, config.threads),
        }

    save("dense", plain)
    save("merged", merging.model)
    latency = clock()
    judged = latency["torch" if config.runtime == "torch" else "ONNX Runtime"]
    if ready.policy == "latency" and outcome.removals and judged.ratio >= 1:
        refused = f"the shortened network took {judged.ratio:.2f} times as long as the dense one, so the dense one is written"
        merging.model, merging.certificates = copy.deepcopy(plain), []
        outcome = replace(outcome, removals=[], counts={})
        save("merged", merging.model)
        latency = clock()
    if refused is not None:
        say(refused)
    test = accuracy_of(images.loader("test", 512))
    return PruneResult(
        dense, merging.model, outcome, merging, size(plain, example), size(merging.model, example), test(plain), test(merging.model),
        latency, errors, entropies, images, refused, blocked, fits,
    )  # fmt: skip


def _some(images: ImageSet, part: Any, limit: int) -> list[tuple[Tensor, Tensor]]:
    """The first batches of a part, about `limit` images, in memory."""
    batches, seen = [], 0
    for batch in images.loader(part, 256):
        batches.append((batch[0], batch[1]))
        seen += len(batch[1])
        if seen >= limit:
            break
    return batches


def settings(config: PruneConfig) -> dict[str, Any]:
    """The settings as plain data, as a run folder keeps them."""
    return json.loads(json.dumps(asdict(config)))
