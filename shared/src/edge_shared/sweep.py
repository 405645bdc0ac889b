"""Grids of runs: each cell a JSON file, so that a sweep goes on where it was stopped."""

from __future__ import annotations

import hashlib
import inspect
import itertools
import json
import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from edge_shared.cli import progress, say
from edge_shared.errors import InputError, require
from edge_shared.files import plain, read_json, write_json

Cell = dict[str, Any]


def cells(grid: Mapping[str, Sequence[Any]] | Sequence[Mapping[str, Any]]) -> list[Cell]:
    """All combinations of a grid, the last parameter varying fastest; a list of cells is taken as it is.

    Raises:
        InputError: if the grid is empty, or a parameter has no values.
    """
    if not isinstance(grid, Mapping):
        result = [dict(cell) for cell in grid]
    else:
        if empty := [name for name, values in grid.items() if not len(values)]:
            raise InputError(f"the grid has no values for {empty[0]}")
        result = [dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())] if grid else []
    if not result:
        raise InputError("the grid is empty")
    return result


def run_grid(
    function: Callable[..., Any],
    grid: Mapping[str, Sequence[Any]] | Sequence[Mapping[str, Any]],
    *,
    out: str | Path | None = None,
    backend: Literal["joblib", "ray"] = "joblib",
    workers: int = 1,
) -> list[Cell]:
    """Call ``function(**cell)`` for every cell of a grid.

    A cell that is finished is kept in ``OUT/cells`` and not computed again; a cell that fails is reported, recorded with its
    error, and tried again the next time. Other cells go on.

    Args:
        function: takes the parameters by keyword, returns what JSON can say; importable from the workers.
        grid: parameter -> values, or a list of cells.
        out: folder of the results; None keeps nothing.
        backend: ``joblib`` (processes on this machine) or ``ray`` (a Ray cluster, or this machine if there is none).
        workers: cells at a time; with 1 and joblib all runs in this process.

    Returns:
        For each cell in order ``{"parameters": ..., "result": ...}``, or with ``"error"`` in place of the result.

    Raises:
        InputError: an empty grid, an unknown backend, a parameter that the function does not take.
    """
    if backend not in ("joblib", "ray"):
        raise InputError(f"backend is {backend!r}; choose joblib or ray")
    if workers < 1:
        raise InputError(f"workers is {workers}; it is at least 1")
    todo = cells(grid)
    for cell in todo:
        try:
            inspect.signature(function).bind(**cell)
        except TypeError as error:
            raise InputError(f"the grid does not fit {getattr(function, '__name__', function)}: {error}") from error
    folder = None if out is None else Path(out) / "cells"
    found: dict[int, Cell] = {}
    for index, cell in enumerate(todo):
        if folder is not None and (kept := _kept(folder, cell)) is not None:
            found[index] = kept
    missing = [(index, cell) for index, cell in enumerate(todo) if index not in found]
    start = _ray if backend == "ray" else _joblib
    with progress("cells", len(todo)) as advance:
        advance(len(found))
        for index, outcome in start(function, missing, workers):
            record = {"parameters": plain(todo[index]), **plain(outcome)}
            if "error" in outcome:
                say(f"cell {json.dumps(record['parameters'])} failed: {outcome['error']}")
            elif folder is not None:
                write_json(_file(folder, todo[index]), record)
            found[index] = record
            advance(1)
    return [found[index] for index in range(len(todo))]


def _file(folder: Path, cell: Cell) -> Path:
    key = json.dumps(plain(cell), sort_keys=True)
    return folder / f"{hashlib.sha256(key.encode()).hexdigest()[:16]}.json"


def _kept(folder: Path, cell: Cell) -> Cell | None:
    path = _file(folder, cell)
    if not path.is_file():
        return None
    record = read_json(path, "cell")
    if not isinstance(record, dict) or record.get("parameters") != plain(cell) or "result" not in record:
        raise InputError(f"cell {path} is not what was written there; delete it to compute it again")
    return record


def _attempt(function: Callable[..., Any], index: int, cell: Cell) -> tuple[int, Cell]:
    try:
        return index, {"result": plain(function(**cell))}
    except Exception as error:  # one bad cell does not end a night's sweep
        return index, {"error": f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"}


def _joblib(function: Callable[..., Any], missing: list[tuple[int, Cell]], workers: int) -> Iterator[tuple[int, Cell]]:
    if workers == 1 or len(missing) < 2:
        for index, cell in missing:
            yield _attempt(function, index, cell)
        return
    import joblib

    # As many threads in each worker as leave no core to two of them.
    threads = max(1, (os.cpu_count() or 1) // workers)
    with joblib.parallel_config(backend="loky", inner_max_num_threads=threads):
        pool = joblib.Parallel(n_jobs=workers, return_as="generator_unordered")
        yield from pool(joblib.delayed(_attempt)(function, index, cell) for index, cell in missing)


def _ray(function: Callable[..., Any], missing: list[tuple[int, Cell]], workers: int) -> Iterator[tuple[int, Cell]]:
    require("ray", "edge-shared[ray]")
    import ray

    started = not ray.is_initialized()
    if started:
        cluster = os.environ.get("RAY_ADDRESS")
        ray.init(
            address=cluster,
            num_cpus=None if cluster else workers,
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.ERROR,
        )
    try:
        task = ray.remote(num_cpus=1, max_retries=2)(_attempt)
        waiting = list(missing)
        running: list[Any] = []
        while waiting or running:
            while waiting and len(running) < workers:
                index, cell = waiting.pop(0)
                running.append(task.remote(function, index, cell))
            done, running = ray.wait(running)
            yield from ray.get(done)
    finally:
        if started:
            ray.shutdown()
