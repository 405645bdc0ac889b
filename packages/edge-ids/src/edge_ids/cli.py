"""The `edge-ids` command."""

from __future__ import annotations

from edge_shared.cli import application, run

app = application("edge-ids", "Intrusion detection for CAN buses and network flows at the edge.")


def main() -> int:
    """Run the command line; returns the exit code."""
    return run(app)
