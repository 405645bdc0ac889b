"""Run a gateway: folder, pages, signals, supervisor."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from edge_shared.cli import say
from edge_shared.errors import InputError
from edge_shared.files import plain, write_json

from pi_gateway.source import Source
from pi_gateway.supervisor import Policy, Supervisor
from pi_gateway.web import Web


def run_gateway(
    sources: list[Source],
    out: Path | None = None,
    *,
    resumed: bool = False,
    serve: str | None = None,
    duration: float | None = None,
    hold: float = 0.0,
    policy: Policy | None = None,
    on_alert: Callable[[dict[str, Any]], None] | None = None,
    ready: Callable[[Supervisor, Web | None], None] | None = None,
) -> dict[str, Any]:
    """Watch sources until they end, a signal comes, or the time is over.

    Args:
        sources: what to watch.
        out: folder for ``alerts.jsonl``, ``state/`` and ``result.json``; None keeps nothing. It is written while the gateway
            runs (an alert must be on disk at once), so it is not replaced as a whole.
        resumed: go on in `out`; otherwise it must not hold an earlier run.
        serve: address of the pages.
        duration: seconds.
        hold: keep the pages up so long after the last file has ended.
        policy: of restarts.
        on_alert: called with every record.
        ready: called with the supervisor and its pages before the workers start.

    Returns:
        `Supervisor.summary`.

    Raises:
        InputError: missing files or models, an `out` that is taken or (resumed) is not there.
    """
    if out is not None:
        if resumed and not (out / "alerts.jsonl").is_file():
            raise InputError(f"--resume {out}: no alerts.jsonl there; start with --out")
        if not resumed and (out / "alerts.jsonl").exists():
            raise InputError(f"--out {out} holds an earlier run; go on with --resume {out} or give another folder")
        for source in sources:
            source.check()
        sources = [replace(source, state=out / "state" / f"{source.name}.npz") for source in sources]
    supervisor = Supervisor(sources, out / "alerts.jsonl" if out is not None else None, policy, on_alert)
    web = Web(supervisor, serve) if serve is not None else None
    if web is not None:
        say(f"dashboard at http://127.0.0.1:{web.port}/")
    stopped = threading.Event()

    def stop(*_: Any) -> None:
        stopped.set()
        supervisor.stop()

    before = {}
    if threading.current_thread() is threading.main_thread():
        before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        if out is not None:  # after all that can be refused: what is refused leaves no folder behind
            (out / "state").mkdir(parents=True, exist_ok=True)
        if ready is not None:
            ready(supervisor, web)
        summary = supervisor.run(duration)
        until = time.monotonic() + hold
        while web is not None and time.monotonic() < until and not stopped.wait(0.1):
            pass
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        if web is not None:
            web.close()
    if out is not None:
        write_json(out / "result.json", plain({"command": "pi-gateway run"} | summary))
    return summary
