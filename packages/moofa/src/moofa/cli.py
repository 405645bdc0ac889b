"""The `moofa` command."""

from __future__ import annotations

from edge_shared.cli import application, run

app = application("moofa", "Supernets that fill the memory they are given, and a search that is never over budget.")


def main() -> int:
    """Run the command line; returns the exit code."""
    return run(app)
