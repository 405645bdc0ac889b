"""Flows measured by nfstream, from captures and live interfaces: an alternative to our own meter, under the extractor id `EXTRACTOR`.

nfstream tells which packets make a flow and when it ends. What NF-v2 wants and nfstream does not count (time to live, TCP window, sent again, packet sizes, ICMP, DNS,
FTP) comes from a plug-in that hands each packet to the record of our own meter. L7_PROTO is 0: nfstream names applications, nProbe numbers them.

nfstream starts processes and binds the one that asked to core 0, so it works in a process of its own, this file, and sends a line of JSON per flow.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from edge_shared.errors import InputError, require

from edge_ids.flow.meter import OpenFlow
from edge_ids.flow.packets import Frame, decode, read_frames
from edge_ids.flow.schema import SCHEMAS
from edge_ids.flow.table import FlowTable

EXTRACTOR = "nfstream-meter-1"
_RAW_IP = 101


class NfstreamFlows:
    """Flows of an interface, as they end; those that are still open when it stops are not reported.

    Attributes:
        packets: packets of the flows reported.
        dropped: 0: nfstream does not tell.
    """

    def __init__(self, interface: str, idle: int = 30, active: int = 120) -> None:
        self.packets = 0
        self.dropped = 0
        self._interface = interface
        self._process = _start(interface, idle, active)

    def read(self, seconds: float | None = None) -> Iterator[FlowTable | None]:
        """Yield the flows that ended in the last half second; None where there were none. `seconds`: stop after that long.

        Raises:
            InputError: if nfstream cannot listen there.
        """
        began = time.time()
        held = b""
        with selectors.DefaultSelector() as waiting:
            pipe = self._process.stdout
            assert pipe is not None
            waiting.register(pipe, selectors.EVENT_READ)
            while seconds is None or time.time() - began < seconds:
                lines: list[bytes] = []
                until = time.time() + 0.5
                while (left := until - time.time()) > 0 and waiting.select(left):
                    block = os.read(pipe.fileno(), 1 << 20)
                    if not block:
                        raise InputError(f"--interface {self._interface}: {_said(self._process)}")
                    *whole, held = (held + block).split(b"\n")
                    lines += whole
                table = _table(lines) if lines else None
                if table is not None:
                    self.packets += int(table.features[:, [5, 7]].sum())
                yield table

    def close(self) -> None:
        """Stop listening."""
        _stop(self._process)


def read_pcap(
    path: str | Path, batch: int = 200_000, *, allow_truncated: bool = False, idle: int = 30, active: int = 120
) -> Iterator[FlowTable]:
    """Read a capture as flows.

    Raises:
        InputError: if nfstream is missing, or for a capture that `packets.read_frames` refuses or that holds no flow.
    """
    # nfstream itself ends silently where a capture is damaged.
    frames = sum(1 for _ in read_frames(path, allow_truncated))
    process = _start(str(path), idle, active)
    found = 0
    lines: list[bytes] = []
    try:
        assert process.stdout is not None
        for line in process.stdout:
            lines.append(line)
            if len(lines) == batch:
                found += batch
                yield _table(lines)
                lines = []
        if process.wait():
            raise InputError(f"{path}: {_said(process)}")
    finally:
        _stop(process)
    if lines:
        yield _table(lines)
    elif not found:
        raise InputError(f"{path}: {frames} frames, of which nfstream makes no flow; capture Ethernet, raw IP or Linux cooked links")


def _start(source: str, idle: int, active: int) -> subprocess.Popen[bytes]:
    require("nfstream", "edge-ids[nfstream]")
    command = [sys.executable, "-m", __name__, source, str(idle), str(active)]
    # In a session of its own: Ctrl-C is ours to pass on.
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True)


def _stop(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        process.wait()
    for pipe in (process.stdout, process.stderr):
        if pipe is not None:
            pipe.close()


def _said(process: subprocess.Popen[bytes]) -> str:
    """The last line that nfstream wrote before it ended."""
    assert process.stderr is not None
    process.wait()
    lines = process.stderr.read().decode(errors="replace").strip().splitlines()
    return f"nfstream ended: {lines[-1][:160]}" if lines else "nfstream ended without a word"


def _table(lines: list[bytes]) -> FlowTable:
    flows = [json.loads(line) for line in lines]
    hosts, codes = np.unique(np.array([flow[0] for flow in flows] + [flow[1] for flow in flows]), return_inverse=True)
    src, dst = np.split(codes.astype(np.int32), 2)
    numbers = np.array([flow[2:] for flow in flows], float)
    return FlowTable(
        SCHEMAS["nf-v2"], EXTRACTOR, hosts, src, dst, np.ascontiguousarray(numbers[:, 2:]), start=numbers[:, 0], end=numbers[:, 1]
    )


def _send(source: str, idle: int, active: int) -> None:
    """Write the flows of `source` to stdout as they end."""
    out = os.fdopen(os.dup(1), "w", buffering=1)
    # nfstream prints warnings to stdout.
    os.dup2(2, 1)
    from nfstream import NFPlugin, NFStreamer  # type: ignore[import-not-found,unused-ignore]

    class Columns(NFPlugin):  # type: ignore[misc,unused-ignore]
        """Time to live, window, sizes and the rest of NF-v2 for each flow."""

        def on_init(self, packet: Any, flow: Any) -> None:
            flow.udps.record = None
            self.on_update(packet, flow)

        def on_update(self, packet: Any, flow: Any) -> None:
            found = decode(Frame(packet.time / 1000, _RAW_IP, packet.ip_packet, packet.ip_size))
            if found is None:
                return
            if flow.udps.record is None:
                flow.udps.record = OpenFlow(found, found.time, found.time)
            flow.udps.record.add(found, packet.direction == 0)

        def on_expire(self, flow: Any) -> None:
            record = flow.udps.record
            flow.udps.record = None if record is None else [record.first.src, record.first.dst, record.start, record.last, *record.row()]

    streamer = NFStreamer(
        source,
        decode_tunnels=False,
        idle_timeout=idle,
        active_timeout=active,
        udps=Columns(),
        n_meters=1,
        n_dissections=0,
        accounting_mode=1,
    )
    for flow in streamer:
        if flow.udps.record is not None:
            out.write(json.dumps([float(item) if not isinstance(item, str) else item for item in flow.udps.record]) + "\n")


if __name__ == "__main__":
    try:
        _send(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
    except (ValueError, OSError) as error:
        sys.exit(str(error))
