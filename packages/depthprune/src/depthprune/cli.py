"""The `depthprune` command."""

from __future__ import annotations

from edge_shared.cli import application, run

app = application("depthprune", "Take layers out of a trained network for real, with proof.")


def main() -> int:
    """Run the command line; returns the exit code."""
    return run(app)
