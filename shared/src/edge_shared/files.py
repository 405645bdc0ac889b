"""Files that are either whole or absent, and run folders that survive a crash.

Every write goes to a temporary name in the same folder, is flushed to disk, then renamed: a reader
never sees half a file, and a full disk or a kill leaves the old one.
"""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, is_dataclass
from pathlib import Path
from typing import Any

from edge_shared.errors import InputError


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; it replaces `path` when the block ends without error.

    Raises:
        InputError: if the folder cannot be written or the disk is full (the old file is kept).
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        with suppress(OSError):
            temporary.unlink()
        raise InputError(f"cannot write {path}: {error.strerror or error}") from error
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_bytes(path: str | Path, data: bytes) -> None:
    """Write `data` to `path` atomically."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(data)


def write_text(path: str | Path, text: str) -> None:
    """Write `text` (UTF-8) to `path` atomically."""
    write_bytes(path, text.encode())


def plain(value: Any) -> Any:
    """Turn dataclasses, pydantic models, numpy scalars and arrays, paths and tuples into plain JSON values.

    NaN and infinities become null: JSON has no word for them.
    """
    if is_dataclass(value) and not isinstance(value, type):
        return plain(asdict(value))
    if hasattr(value, "model_dump"):
        return plain(value.model_dump(mode="json"))
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(item) for item in value]
    if hasattr(value, "tolist"):
        return plain(value.tolist())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, str | int | bool):
        return value
    return str(value)


def write_json(path: str | Path, value: Any) -> None:
    """Write `value` as indented JSON, atomically; see `plain` for what is accepted."""
    write_text(path, json.dumps(plain(value), indent=2, allow_nan=False) + "\n")


def read_text(path: str | Path, what: str = "file") -> str:
    """Read a UTF-8 text file; the byte order mark that spreadsheets put in front is left out.

    Raises:
        InputError: if it is absent, a folder, unreadable or not UTF-8.
    """
    try:
        return Path(path).read_text(encoding="utf-8-sig")
    except OSError as error:
        raise InputError(f"cannot read {what} {path}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{what} {path} is not UTF-8 text (byte {error.start})") from error


def read_json(path: str | Path, what: str = "JSON file") -> Any:
    """Read a JSON file.

    Raises:
        InputError: with line and column, if it is absent or no JSON.
    """
    try:
        return json.loads(read_text(path, what))
    except json.JSONDecodeError as error:
        raise InputError(f"{what} {path}:{error.lineno}:{error.colno} is no JSON: {error.msg}") from error
    except RecursionError as error:
        raise InputError(f"{what} {path} is nested too deeply") from error


@dataclass(frozen=True)
class Run:
    """A run folder in the making: work in `path`, then `commit` moves it to `out` in one step."""

    out: Path
    path: Path
    config: dict[str, Any]
    resumed: bool

    def commit(self) -> Path:
        """Replace `out` by the finished folder; an earlier result is kept until that moment."""
        try:
            old = self.out.with_name(f"{self.out.name}.old")
            shutil.rmtree(old, ignore_errors=True)
            if self.out.exists():
                self.out.rename(old)
            self.path.rename(self.out)
            shutil.rmtree(old, ignore_errors=True)
        except OSError as error:
            raise InputError(f"cannot finish {self.out}: {error.strerror or error}; all is kept in {self.path}") from error
        return self.out


def open_run(out: str | Path | None, resume: str | Path | None, config: dict[str, Any]) -> Run:
    """Open the folder of a run: a fresh one for `--out`, or the interrupted one for `--resume`.

    The unfinished run lives in ``OUT.partial`` with its ``config.json``; a resumed run takes its settings
    from there, so that ``--resume OUT`` alone is enough.

    Args:
        out: folder to be made; an earlier *result* (it holds result.json) is replaced, anything else is not.
        resume: the `--out` of an interrupted run.
        config: the settings of this run, plain data.

    Raises:
        InputError: nothing to resume, a folder that is not ours, or no place to write.
    """
    if resume is not None:
        resume = Path(str(resume).removesuffix(".partial"))
        partial = resume.with_name(f"{resume.name}.partial")
        if not (partial / "config.json").is_file():
            done = " (it is finished)" if (resume / "result.json").is_file() else ""
            raise InputError(f"--resume {resume}: no interrupted run there{done}")
        return Run(resume, partial, read_json(partial / "config.json"), resumed=True)
    if out is None:
        raise InputError("give --out DIR for a new run or --resume DIR for an interrupted one")
    out = Path(out)
    if out.exists() and not (out / "result.json").is_file() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"--out {out} exists and is no earlier result; choose a new folder")
    partial = out.with_name(f"{out.name}.partial")
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
    except OSError as error:
        raise InputError(f"--out {out}: cannot write there: {error.strerror or error}") from error
    write_json(partial / "config.json", config)
    return Run(out, partial, plain(config), resumed=False)
