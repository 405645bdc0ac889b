"""The default run of pi-adapt, from start to end in a process of its own, with its wall-clock and CPU time.

Run: python benchmarks/pi-adapt/main_job.py [FOLDER]      (FOLDER keeps the run; a temporary one if omitted)
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from edge_shared.files import write_json
from edge_shared.report import environment

OUT = Path(os.environ.get("EDGEWISE_RESULTS") or Path(__file__).parents[1] / "results") / "pi-adapt-main-job.json"


def main() -> None:
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(temporary) / "run"
        started = time.monotonic()
        command = [Path(sys.executable).with_name("pi-adapt"), "run", "--out", folder, "--json"]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        wall = time.monotonic() - started
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        document = json.loads(done.stdout)
        write_json(
            OUT,
            {
                "command": "pi-adapt run",
                "wall_seconds": wall,
                "cpu_seconds": used.ru_utime + used.ru_stime,
                "cores_allowed": len(os.sched_getaffinity(0)),
                "load_average": os.getloadavg()[0],
                "peak_rss_bytes": used.ru_maxrss * 1024,
                **{key: document[key] for key in ("metrics", "cost", "seed", "notes")},
                "environment": environment(),
            },
        )


if __name__ == "__main__":
    main()
