"""The command-line contract, written once: options, JSON on stdout, words on stderr, exit codes.

A package's ``cli.py`` imports only this module and typer at the top; commands import their work inside.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edge_shared.errors import CheckFailed, InputError
from edge_shared.files import plain

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

Json = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout, nothing else.")]
Out = Annotated[Path | None, typer.Option("--out", help="Folder to write: result.json, report.html, plots, artifacts.")]
Resume = Annotated[Path | None, typer.Option("--resume", help="Continue the interrupted run of this --out folder.")]
Seed = Annotated[int, typer.Option("--seed", help="Seed of every random choice.", min=0)]
Data = Annotated[str, typer.Option("--data", help="Data set by name, or a path to files of your own.")]
Device = Annotated[str | None, typer.Option("--device", help="Device profile: a name (`edge devices` lists them) or a TOML file.")]


_INTERRUPTED = 130
"""Typer's exit code after Ctrl-C."""


def application(name: str, help: str) -> typer.Typer:
    """Make the Typer application of one package, with ``--version`` and without tracebacks."""
    app = typer.Typer(name=name, help=help, no_args_is_help=True, pretty_exceptions_enable=False, rich_markup_mode=None)

    def version(show: bool) -> None:
        if show:
            from importlib.metadata import version

            typer.echo(f"{name} {version('edge-shared' if name == 'edge' else name)}")
            raise typer.Exit

    @app.callback()
    def options(
        version: bool = typer.Option(False, "--version", callback=version, is_eager=True, help="Print the version."),
        debug: bool = typer.Option(False, "--debug", help="Show tracebacks."),
    ) -> None:
        pass

    options.__doc__ = help
    return app


def run(app: typer.Typer, arguments: list[str] | None = None) -> int:
    """Run `app` and return its exit code: 0 done, 1 a check failed, 2 bad input, 130 interrupted.

    Every expected error is one line on stderr. ``--debug`` may stand anywhere and shows the traceback instead.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in arguments
    arguments = [argument for argument in arguments if argument != "--debug"]
    from typer.exceptions import Abort, TyperException

    try:
        code = app(arguments, standalone_mode=False)
        if code == _INTERRUPTED:
            fail("interrupted; what was finished is kept (an --out run continues with --resume)")
        return code if isinstance(code, int) else 0
    except TyperException as error:
        if type(error).__name__ == "NoArgsIsHelpError":
            typer.echo(error.format_message(), err=True)
        else:
            fail(error.format_message())
        return 2
    except CheckFailed as error:
        fail(str(error))
        return 1
    except Abort:
        fail("the input ended before the answer")
        return 2
    except Exception as error:
        if debug:
            raise
        if isinstance(error, InputError):
            fail(str(error))
            return 2
        if (
            isinstance(error, MemoryError) or "can't allocate memory" in str(error) or "bad_alloc" in str(error)
        ):  # torch has no class for it
            fail("out of memory; use a smaller batch, model or file")
            return 2
        if isinstance(error, OSError) and error.strerror:
            fail(f"{error.filename}: {error.strerror}" if error.filename else error.strerror)
            return 2
        fail(f"internal error, please report it ({type(error).__name__}: {' '.join(str(error).split())[:300]}); --debug shows where")
        return 70


def fail(message: str) -> None:
    """Print one error line on stderr."""
    print("error: " + " ".join(message.split()), file=sys.stderr)


def console() -> Console:
    """The console on stderr, for tables and progress."""
    from rich.console import Console

    return Console(stderr=True, highlight=False)


def say(message: str) -> None:
    """Print one line of progress on stderr."""
    print(message, file=sys.stderr, flush=True)


def emit(document: Any, as_json: bool, show: Callable[[Console], None] | None = None) -> None:
    """End a command: the JSON document on stdout if asked for, else the tables of `show` on stdout.

    Args:
        document: a dataclass, pydantic model, dict or list.
        as_json: the command's ``--json``.
        show: draws tables on the console it is given; without it the document is printed as JSON anyway.
    """
    if as_json or show is None:
        _print(_text(document, None if as_json else 2))
        return
    from rich.console import Console

    show(Console(highlight=False))


def emit_line(document: Any) -> None:
    """Print one JSON line of a stream on stdout at once."""
    _print(_text(document))


def _text(document: Any, indent: int | None = None) -> str:
    try:
        return json.dumps(document, allow_nan=False, default=plain, indent=indent)
    except (TypeError, ValueError):  # a NaN, or keys that are no text: only then every value is looked at
        return json.dumps(plain(document), allow_nan=False, indent=indent)


def _print(text: str) -> None:
    try:
        print(text, flush=True)
    except BrokenPipeError:
        # The reader went away (`| head`); stdout goes elsewhere, so that the interpreter's last flush is silent.
        with open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), sys.stdout.fileno())
        raise typer.Exit(0) from None


def table(title: str, columns: list[str], rows: list[list[Any]]) -> Table:
    """A rich table: the first column to the left, the others to the right; columns name their units."""
    from rich.table import Table

    result = Table(title=title, title_justify="left", title_style="bold")
    for index, column in enumerate(columns):
        result.add_column(column, justify="left" if index == 0 else "right")
    for row in rows:
        result.add_row(*map(_cell, row))
    return result


def _cell(item: Any) -> str:
    if isinstance(item, str):
        return item
    if item is None:
        return "-"
    if isinstance(item, bool):
        return "yes" if item else "no"
    return f"{item:,}" if isinstance(item, int) else f"{item:.4g}"


@contextmanager
def progress(description: str, total: float | None = None) -> Iterator[Callable[..., None]]:
    """Show a progress bar on stderr if it is a terminal; yields ``advance(steps=1, text=None)``."""
    screen = console()
    if not screen.is_terminal:
        yield lambda steps=1, text=None: None
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=screen, transient=True) as bars:
        task = bars.add_task(description, total=total)

        def advance(steps: float = 1, text: str | None = None) -> None:
            bars.update(task, advance=steps, description=text or description)

        yield advance
