"""The `fairnet` command."""

from __future__ import annotations

from edge_shared.cli import application, run

app = application("fairnet", "Find the shortcut in an image model, cut it out, prove it.")


def main() -> int:
    """Run the command line; returns the exit code."""
    return run(app)
