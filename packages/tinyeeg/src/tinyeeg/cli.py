"""The `tinyeeg` command."""

from __future__ import annotations

from edge_shared.cli import application, run

app = application("tinyeeg", "Attention state from EEG: honest splits, C99 that fits a microcontroller.")


def main() -> int:
    """Run the command line; returns the exit code."""
    return run(app)
