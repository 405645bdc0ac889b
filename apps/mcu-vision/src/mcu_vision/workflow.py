"""One build, stage by stage: network, int8, C, firmware, emulation. A stage that is done is not done again on resume."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from edge_shared.cli import say
from edge_shared.devices import load as load_device
from edge_shared.errors import CheckFailed, InputError
from edge_shared.files import Run, read_json, write_json
from numpy.typing import NDArray

from mcu_vision.board import Board, board_of
from mcu_vision.codegen import ALIGNMENT, arena_bytes, plan, write_sources
from mcu_vision.firmware import ANSWER, Emulated, Sizes, emulate, weigh
from mcu_vision.integer import IntegerNet, run

if TYPE_CHECKING:
    from edge_shared.artifacts.model import Artifact
    from edge_shared.data.vision import ImageSet
    from edge_shared.memory import Arena
    from moofa.workflow import Trained

CODE_RESERVE = 12 * 1024
"""Flash kept for code, tables and vectors while searching, in bytes; the linked size decides afterwards."""
CALIBRATION_IMAGES = 512


@dataclass(frozen=True)
class Build:
    """A finished build.

    Attributes:
        net: the int8 network.
        board: what it was built for.
        plan: the arena.
        sizes: of the linked firmware; None without a compiler.
        emulated: the run in QEMU; None without it.
        metrics, cost: for result.json.
        data: description of the images.
    """

    net: IntegerNet
    board: Board
    plan: Arena
    sizes: Sizes | None
    emulated: Emulated | None
    metrics: dict[str, Any]
    cost: dict[str, Any]
    data: dict[str, Any]


def board_for(device: str, ram: int | None, flash: int | None) -> Board:
    """The device's board, with tighter limits where given.

    Raises:
        InputError: for a device without a known core, or limits that it does not have.
    """
    board = board_of(load_device(device))
    for name, value, most in (("--budget", ram, board.ram), ("--flash", flash, board.flash)):
        if value is not None and not 0 < value <= most:
            raise InputError(f"{name} is {value:,} bytes; {board.name} has {most:,}")
    return Board(board.name, board.cpu, ram or board.ram, flash or board.flash, board.machine, board.emulated_cpu)


def build(folder: Run) -> Build:
    """Build the firmware in the run's folder.

    Args:
        folder: its `config` holds device, budget, flash, data, model, space, limit, epochs, networks, fine_tune, images, stack and seed.

    Raises:
        CheckFailed: if a budget is broken, or the emulated outputs differ from the reference in any bit.
        InputError: for a model or data that do not go together.
    """
    options = folder.config
    board = board_for(options["device"], options["budget"], options["flash"])
    artifact, images, notes = _network(folder.path, options, board)
    net = _quantised(artifact, images, board)
    found = plan(net)
    needed = arena_bytes(found) + ANSWER + options["stack"]
    if needed > board.ram:
        raise CheckFailed(
            f"{board.name}: the network needs {needed:,} bytes of RAM (arena {arena_bytes(found):,}, answer {ANSWER}, stack "
            f"{options['stack']:,}), the budget is {board.ram:,}"
        )
    if net.weight_bytes > board.flash:
        raise CheckFailed(f"{board.name}: constants alone take {net.weight_bytes:,} bytes of flash, the budget is {board.flash:,}")
    say(f"int8: {net.weight_bytes:,} bytes of constants, arena of {found.bytes:,} bytes, {net.macs:,} MACs")
    write_sources(folder.path / "firmware", net, board, options["stack"])
    sizes = weigh(folder.path / "firmware", board)
    if sizes is not None and sizes.data + sizes.bss != arena_bytes(found) + ANSWER:
        raise CheckFailed(
            f"the linked firmware holds {sizes.data + sizes.bss:,} bytes of variables, planned were {arena_bytes(found) + ANSWER:,}; please report it"
        )
    test_x, test_y = images.arrays("test")
    outputs = np.concatenate([run(net, test_x[start : start + 256]) for start in range(0, len(test_x), 256)])
    shown = test_x[: options["images"]]
    emulated = emulate(folder.path / "firmware", net, board, shown)
    if emulated is not None:
        _same_bits(emulated, outputs[: len(shown)], options["stack"])
    float_logits = _float_outputs(artifact, images)
    metrics = {
        "test_accuracy_float": float((float_logits.argmax(1) == test_y).mean()),
        "test_accuracy_int8": float((outputs.argmax(1) == test_y).mean()),
        "same_class_as_float": float((outputs.argmax(1) == float_logits.argmax(1)).mean()),
        "test_images": len(test_y),
        "emulated_images": 0 if emulated is None else len(shown),
        "emulated_outputs_equal": None if emulated is None else True,
        **notes["metrics"],
    }
    cost = {
        "macs": net.macs,
        "constants_bytes": net.weight_bytes,
        "arena_planned_bytes": found.bytes,
        "arena_lower_bound_bytes": found.lower_bound,
        "answer_bytes": ANSWER,
        "stack_reserved_bytes": options["stack"],
        "linked_flash_bytes": None if sizes is None else sizes.flash,
        "linked_data_bss_bytes": None if sizes is None else sizes.data + sizes.bss,
        "linked_ram_bytes": None if sizes is None else sizes.ram,
        "stack_high_water_bytes": None if emulated is None else emulated.stack_bytes,
        "instructions_per_image": None if emulated is None else emulated.instructions,
        "ram_budget_bytes": board.ram,
        "flash_budget_bytes": board.flash,
        **notes["cost"],
    }
    counts = {"train": len(images.train_y), "val": len(images.val_y), "test": len(images.test_y)}
    data = {"name": images.name, "fingerprint": images.fingerprint, "synthetic": images.synthetic, "counts": counts}
    return Build(net, board, found, sizes, emulated, metrics, cost, data)


def _same_bits(emulated: Emulated, expected: NDArray[np.int8], stack: int) -> None:
    if not np.array_equal(emulated.outputs, expected):
        wrong = int((emulated.outputs != expected).any(1).sum())
        raise CheckFailed(f"{wrong} of {len(expected)} emulated outputs differ from the reference; please report it")
    if emulated.stack_bytes >= stack:
        raise CheckFailed(f"the stack of {stack:,} bytes was used up; give it more with --stack")


def _network(path: Path, options: dict[str, Any], board: Board) -> tuple[Artifact, ImageSet, dict[str, Any]]:
    """The float network with its images: the user's, or one found in a supernet."""
    from edge_shared.artifacts.model import load_artifact

    notes: dict[str, Any] = {"metrics": {}, "cost": {}}
    model = options["model"]
    given = None if model is None else _artifact_folder(Path(model))
    if given is None:
        given = path / "model"
        if not (path / "network.json").is_file():
            _find(path, options, board)
        notes = read_json(path / "network.json", "network")
    artifact = load_artifact(given)
    _, channels, height, width = artifact.input_shape
    if height != width:
        raise InputError(f"{given} takes images of {height}x{width}; this takes square ones")
    images = _images(options, height)
    if (images.channels, len(images.classes)) != (channels, len(artifact.classes) or len(images.classes)):
        raise InputError(
            f"--data {options['data']} has {images.channels} channels and {len(images.classes)} classes; "
            f"the network has {channels} and {len(artifact.classes)}"
        )
    return artifact, images, notes


def _artifact_folder(model: Path) -> Path | None:
    """The folder of a saved model; None for a supernet."""
    for folder in (model, model / "model"):
        if (folder / "recipe.json").is_file():
            return folder
    if (model / "space.json").is_file():
        return None
    raise InputError(f"--model {model} holds neither a saved network (recipe.json) nor a supernet of `moofa train` (space.json)")


def _images(options: dict[str, Any], size: int | None) -> ImageSet:
    from edge_shared.data.vision import load_images

    return load_images(options["data"], size=size, limit=options["limit"], seed=options["seed"])


def _find(path: Path, options: dict[str, Any], board: Board) -> None:
    """Train a supernet (or take the user's), search it within the board, fine-tune and save what was found."""
    from moofa.budget import Budget, Target
    from moofa.costs import CostTable
    from moofa.search import search
    from moofa.workflow import Trained, specialise

    trained = _train(path / "supernet", options) if options["model"] is None else Trained.load(Path(options["model"]))
    # Model B (input, output, skip) of the deployed network is what the arena holds: convolutions write beside their input here.
    target = Target("B", 8)
    budget = Budget(ram=board.ram - options["stack"] - ANSWER - ALIGNMENT + 1, flash=board.flash - CODE_RESERVE)
    if min(budget.limits.values()) <= 0:
        raise CheckFailed(f"{board.name}: stack and code leave nothing of {board.ram:,} bytes of RAM and {board.flash:,} of flash")
    found = search(CostTable(trained.space, target), trained.predictor, budget, seed=options["seed"])
    say(f"found a network of {found.found.costs['macs']:,} MACs, predicted RAM {found.found.costs['ram']:,} bytes")
    done = specialise(trained, found.found.choice, path, epochs=options["fine_tune"], data=options["data"], target=target)
    write_json(
        path / "network.json",
        {
            "choice": found.found.choice.to_json(),
            "metrics": {"predicted_accuracy": found.found.score, "networks_looked_at": found.evaluated},
            "cost": {"arena_predicted_by_moofa_bytes": found.found.costs["ram"], "moofa_onnx_int8_bytes": done["cost"]["int8_onnx_bytes"]},
        },
    )


def _train(folder: Path, options: dict[str, Any]) -> Trained:
    from moofa.space import load_space
    from moofa.workflow import Trained, train

    if not (folder / "predictor.json").is_file():
        space = options["space"] or _space_for(_images(options, None).shape[1])
        settings = {
            "data": options["data"], "limit": options["limit"], "schedule": "sandwich", "source": "once-for-all", "epochs": options["epochs"],
            "batch_size": 64, "lr": 0.1, "networks": options["networks"], "accelerator": "cpu", "seed": options["seed"],
        }  # fmt: skip
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / "config.json", settings)
        train(Run(folder, folder, settings, resumed=False), load_space(space))
    return Trained.load(folder)


def _space_for(pixels: int) -> str:
    return "digits8" if pixels <= 12 else "mnist28" if pixels <= 28 else "c32"


def _quantised(artifact: Artifact, images: ImageSet, board: Board) -> IntegerNet:
    from mcu_vision.quantise import quantise

    batches = []
    for batch, _ in images.loader("train", 128):
        batches.append(batch)
        if len(batches) * 128 >= CALIBRATION_IMAGES:
            break
    return quantise(
        artifact.model, batches, input_shape=artifact.input_shape, normalisation=artifact.normalisation or _normalisation(images),
        classes=images.classes, name=f"{images.name} for {board.name}",
    )  # fmt: skip


def _normalisation(images: ImageSet) -> dict[str, Any]:
    return {"mean": images.mean, "std": images.std}


def _float_outputs(artifact: Artifact, images: ImageSet) -> NDArray[np.float32]:
    import torch

    given = artifact.normalisation or _normalisation(images)
    mean, std = (torch.tensor(given[key], dtype=torch.float32).view(1, -1, 1, 1) for key in ("mean", "std"))
    x, _ = images.arrays("test")
    outputs = []
    with torch.no_grad():
        for start in range(0, len(x), 256):
            pixels = torch.from_numpy(np.ascontiguousarray(x[start : start + 256].transpose(0, 3, 1, 2))).float() / 255
            outputs.append(artifact.model((pixels - mean) / std).numpy())
    return np.concatenate(outputs)


def plain_plan(build: Build) -> dict[str, Any]:
    """The arena as plain data: offset and size of each tensor, and its life in calls."""
    from edge_shared.memory import lifetimes

    spans = lifetimes(build.net.network())
    return {
        **{key: value for key, value in asdict(build.plan).items() if key in ("bytes", "lower_bound")},
        "tensors": [
            {"name": name, "offset": build.plan.offsets[name], "bytes": build.plan.sizes[name], "first_call": first, "last_call": last}
            for name, (first, last) in spans.items()
        ],
    }
