"""The stages in order. Each writes one folder; a run that was killed goes on with the first stage that has no `stage.json`."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from edge_shared.errors import InputError
from edge_shared.files import Run, open_run, read_json, write_json

from pi_adapt.config import PI_SPACE, AdaptConfig

STAGES = ("data", "pick", "shorten", "audit", "personalise", "export")
RECORD = "stage.json"


@dataclass(frozen=True)
class Adapted:
    """What a run gave.

    Attributes:
        config: its settings.
        out: its folder.
        stages: the record of each stage, plain data; see the stages' files.
        seconds: of each stage, as it was run last.
    """

    config: AdaptConfig
    out: Path
    stages: dict[str, dict[str, Any]]
    seconds: dict[str, float]


def adapt(
    config: AdaptConfig,
    out: Path | None = None,
    *,
    resume: Path | None = None,
    say: Callable[[str], None] = lambda line: None,
    command: str = "pi-adapt run",
) -> Adapted:
    """Take a network and data to a Pi.

    Every stage is computed from the files of the stages before, with seeds of its own, so an interrupted run that is resumed gives the
    same networks and figures (times apart) as one that was not, on the same machine and number of threads.

    Args:
        config: settings; a resumed run takes its own.
        out: folder to be made.
        resume: the `out` of an interrupted run.
        say: gets lines of progress.
        command: for the report.

    Raises:
        InputError: settings, data or a model that cannot be used.
        CheckFailed: a budget that cannot be met, or an exported file that differs.
    """
    if resume is None:
        check(config)
    opened = open_run(out, resume, asdict(config))
    if opened.resumed:
        try:
            config = AdaptConfig(**opened.config)
        except TypeError as error:
            raise InputError(f"--resume {resume}: its config.json is of another command or version ({error})") from error
    stages, seconds = _stages(config, opened, say)
    adapted = Adapted(config, opened.out, stages, seconds)
    from pi_adapt.page import write

    write(opened.path, adapted, command)
    opened.commit()
    return adapted


def check(config: AdaptConfig) -> None:
    """Refuse what can be refused before anything is loaded or written.

    Raises:
        InputError: an unknown device, space, method, or a training budget that is no size.
    """
    from edge_shared.devices import load
    from moofa.space import load_space
    from ondevice_train.methods import method
    from ondevice_train.selection.budget import Budget

    load(config.device)
    method(config.method)
    Budget.parse(config.training_budget)
    if config.space != PI_SPACE:
        load_space(config.space)


def _stages(config: AdaptConfig, opened: Run, say: Callable[[str], None]) -> tuple[dict[str, dict[str, Any]], dict[str, float]]:
    folders = {name: opened.path / f"{number}-{name}" for number, name in enumerate(STAGES, 1)}
    for name, folder in folders.items():
        record = folder / RECORD
        if record.is_file():
            say(f"{name}: done before")
            continue
        folder.mkdir(exist_ok=True)
        say(f"{name} ...")
        started = time.monotonic()
        result = import_module(f"pi_adapt.stages.{name}").run(config, folders, say)
        write_json(record, {"result": result, "seconds": time.monotonic() - started})
    records = {name: read_json(folder / RECORD, "stage") for name, folder in folders.items()}
    return {name: value["result"] for name, value in records.items()}, {name: value["seconds"] for name, value in records.items()}
