"""The `ondevice-train` command."""

from __future__ import annotations

from edge_shared.cli import application, run

app = application("ondevice-train", "Fine-tune on the device under a hard memory budget.")


def main() -> int:
    """Run the command line; returns the exit code."""
    return run(app)
