"""The `edge-ids` command."""

from __future__ import annotations

from edge_shared.cli import application, run

from edge_ids.can.commands import app as can_app
from edge_ids.flow.commands import app as flow_app

app = application("edge-ids", "Intrusion detection for CAN buses and network flows at the edge.")
app.add_typer(can_app, name="can")
app.add_typer(flow_app, name="flow")


def main() -> int:
    """Run the command line; returns the exit code."""
    return run(app)
