"""What every record of this folder holds: the command, the machine, the rows."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from edge_shared.files import write_json
from edge_shared.report import environment

RESULTS = Path(os.environ.get("EDGEWISE_RESULTS") or Path(__file__).parents[1] / "results")
DATA = Path(__file__).parents[3] / "shared" / "data" / "vision"


def write(name: str, command: str, rows: Any, **more: Any) -> None:
    """Write ``results/depthprune-NAME.json``."""
    write_json(
        RESULTS / f"depthprune-{name}.json",
        {"command": command, **more, "load_average": os.getloadavg()[0], "environment": environment(), "rows": rows},
    )
