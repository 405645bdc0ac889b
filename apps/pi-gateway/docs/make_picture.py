"""Make dashboard.png: a gateway on synthetic traffic with attacks, seen by headless Chromium.

uv run python apps/pi-gateway/docs/make_picture.py
"""

from __future__ import annotations

import subprocess
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import polars as pl
from edge_ids.can.generate import generate
from edge_ids.can.inject import Attack, inject
from edge_ids.can.profile import train
from edge_ids.can.writers import write_frames
from edge_ids.cli import app
from edge_ids.flow.schema import NF_V2
from edge_ids.flow.synthetic import hard_cases
from edge_shared.cli import run
from pi_gateway.gateway import run_gateway
from pi_gateway.source import Source
from pi_gateway.supervisor import Policy, Supervisor
from pi_gateway.web import Web

SECONDS = 45  # of pace before the picture is taken


def main() -> None:
    """Run it."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        frames, _ = generate(400, seed=1)
        cut = frames.time_us < frames.time_us[0] + 310_000_000
        (folder / "can-model").mkdir()
        train(frames.take(cut)).save(folder / "can-model")
        drive = frames.take(~cut)
        for number, (kind, target) in enumerate(
            [("fabrication", 0x280), ("masquerade-constant", 0x120), ("fuzzing", None), ("suspension", 0x410)]
        ):
            drive = inject(drive, Attack(kind, 3 + 8 * number, 8 + 8 * number, target), seed=number).frames
        write_frames(drive, folder / "drive.log")
        table = hard_cases(6000, 40)
        columns = {"IPV4_SRC_ADDR": table.hosts[table.src], "IPV4_DST_ADDR": table.hosts[table.dst]}
        columns |= {feature: table.features[:, index] for index, feature in enumerate(NF_V2)}
        pl.DataFrame(columns | {"Label": table.label, "Attack": table.attack}).write_csv(folder / "flows.csv")
        arguments = ["--data", str(folder / "flows.csv"), "--model", "pca", "--split", "random", "--out", str(folder / "flow-model")]
        assert run(app, ["flow", "train", *arguments]) == 0
        (folder / "second.log").write_text("this trace is damaged\n")
        sources = [
            Source("can", "can-replay", str(folder / "drive.log"), folder / "can-model", speed=1.0),
            Source("flow", "flow-file", str(folder / "flows.csv"), folder / "flow-model"),
            Source("can-2", "can-replay", str(folder / "second.log"), folder / "can-model"),
        ]
        run_gateway(sources, serve="0", policy=Policy(first=5, longest=120), ready=_photograph)


def _photograph(supervisor: Supervisor, web: Web | None) -> None:
    assert web is not None

    def later(profile: str) -> None:
        began = time.monotonic()
        while time.monotonic() - began < SECONDS or not supervisor.watched[0].alerts:
            time.sleep(0.5)
        picture = Path(__file__).with_name("dashboard.png")
        command: list[Any] = [
            "/usr/bin/chromium", "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", f"--user-data-dir={profile}",
            "--window-size=1280,760", "--virtual-time-budget=15000", f"--screenshot={picture}", f"http://127.0.0.1:{web.port}/",
        ]  # fmt: skip
        subprocess.run(command, check=True, capture_output=True)
        supervisor.stop()

    threading.Thread(target=later, args=(tempfile.mkdtemp(),), daemon=True).start()


if __name__ == "__main__":
    main()
