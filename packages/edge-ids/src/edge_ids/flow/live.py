"""Packets from a network interface to flows, through the same meter as a capture file, so that a model trained on captures fits. Linux, needs CAP_NET_RAW."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator

from edge_shared.errors import InputError

from edge_ids.flow.meter import FlowMeter, OpenFlow, flows_table
from edge_ids.flow.packets import Frame, decode
from edge_ids.flow.table import FlowTable

_ALL_PROTOCOLS = 3
_BUFFER = 8 << 20
_OUTGOING = 4


class LiveFlows:
    """Flows of an interface, as they end.

    Attributes:
        packets: frames received.
        dropped: frames that the kernel dropped because nobody fetched them in time, see packet(7).
    """

    def __init__(self, interface: str, idle: float = 30.0, active: float = 120.0) -> None:
        if not hasattr(socket, "AF_PACKET"):
            raise InputError("--interface needs Linux; capture to a file (tcpdump -w) and give --pcap")
        try:
            self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(_ALL_PROTOCOLS))
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER)
            self._socket.bind((interface, 0))
        except PermissionError as error:
            raise InputError(
                f"--interface {interface}: not permitted; run as root or give python CAP_NET_RAW (setcap cap_net_raw+ep)"
            ) from error
        except OSError as error:
            self._socket.close()
            raise InputError(f"--interface {interface}: {error.strerror or error}; `ip link` lists the interfaces") from error
        self._loopback = interface == "lo"
        self._meter = FlowMeter(idle, active)
        self.packets = 0
        self.dropped = 0

    def read(self, seconds: float | None = None) -> Iterator[FlowTable | None]:
        """Yield the flows that ended in the last half second; None where there were none, so that the caller can look at the clock.

        Args:
            seconds: stop after that long, reporting what is still open; None goes on for ever.
        """
        began = time.time()
        while seconds is None or time.time() - began < seconds:
            done = self._collect(time.time() + 0.5)
            self._count_drops()
            yield flows_table(done) if done else None
        rest = self._meter.flush()
        if rest:
            yield flows_table(rest)

    def _collect(self, until: float) -> list[OpenFlow]:
        done: list[OpenFlow] = []
        while (left := until - time.time()) > 0:
            self._socket.settimeout(left)
            try:
                data, address = self._socket.recvfrom(65_535)
            except TimeoutError:
                break
            # A loopback frame comes twice: going out, coming in.
            if self._loopback and address[2] == _OUTGOING:
                continue
            self.packets += 1
            packet = decode(Frame(time.time(), 1, data, len(data)))
            if packet is not None:
                done += self._meter.add(packet)
        return done + self._meter.expire(time.time())

    def _count_drops(self) -> None:
        # struct tpacket_stats {packets, drops}; reading resets it.
        statistics = self._socket.getsockopt(263, 6, 8)
        self.dropped += int.from_bytes(statistics[4:8], "little")

    def close(self) -> None:
        """Stop listening."""
        self._socket.close()
