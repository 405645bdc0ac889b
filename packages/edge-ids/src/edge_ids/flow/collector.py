"""Listen for NetFlow and IPFIX datagrams on a UDP port; loopback unless told otherwise."""

from __future__ import annotations

import ipaddress
import socket
import time
from collections.abc import Iterator

from edge_shared.errors import InputError

from edge_ids.flow.netflow_wire import Counts, Decoder, Flow, flows_table
from edge_ids.flow.table import FlowTable

BATCH = 16_384
_BUFFER = 4 << 20
_SO_MEMINFO, _DROPS = 55, 8  # Linux: nine 32-bit numbers, the last one counts datagrams that nobody fetched in time


class Collector:
    """Flows as exporters send them.

    Args:
        address: ``port`` (loopback) or ``host:port`` (``0.0.0.0:port``: every IPv4 interface), IPv6 in brackets; port 0 takes a free one.
        accept: the extractor id to take, see `netflow_wire.VERSIONS`; None takes the first version that comes.

    Attributes:
        port: the port listened on.
        packets: datagrams received.
        dropped: datagrams that the kernel dropped because nobody fetched them in time (0 where it does not tell).

    Raises:
        InputError: for an address that is none, or is taken.
    """

    def __init__(self, address: str, accept: str | None = None) -> None:
        head, _, tail = address.rpartition(":")
        host = head.strip("[]") or "127.0.0.1"
        if not tail.isdecimal() or int(tail) > 65_535:
            raise InputError(f"--netflow {address}: give a port such as 2055, or host:port")
        try:
            family = socket.getaddrinfo(host, int(tail), type=socket.SOCK_DGRAM)[0][0]
            self._socket = socket.socket(family, socket.SOCK_DGRAM)
        except OSError as error:
            raise InputError(f"--netflow {address}: {error.strerror or error}") from error
        try:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER)
            self._socket.bind((host, int(tail)))
        except OSError as error:
            self._socket.close()
            raise InputError(f"--netflow {address}: {error.strerror or error}") from error
        self.port: int = self._socket.getsockname()[1]
        self._decoder = Decoder(accept)

    @property
    def counts(self) -> Counts:
        """What was decoded, and what was not."""
        return self._decoder.counts

    @property
    def packets(self) -> int:
        """Datagrams received."""
        return self.counts.datagrams

    @property
    def dropped(self) -> int:
        """Datagrams that the kernel dropped."""
        try:
            memory = self._socket.getsockopt(socket.SOL_SOCKET, _SO_MEMINFO, 36)
        except OSError:
            return 0
        return int.from_bytes(memory[4 * _DROPS :], "little")

    def read(self, seconds: float | None = None) -> Iterator[FlowTable | None]:
        """Yield what came in the last half second, at most about `BATCH` flows; None where nothing did, so that the caller can look at the clock.

        Args:
            seconds: stop after that long; None goes on for ever.
        """
        began = time.time()
        while seconds is None or time.time() - began < seconds:
            flows = self._collect(time.time() + 0.5)
            yield flows_table(flows, str(self._decoder.accept)) if flows else None

    def _collect(self, until: float) -> list[Flow]:
        flows: list[Flow] = []
        while (left := until - time.time()) > 0 and len(flows) < BATCH:
            self._socket.settimeout(left)
            try:
                data, sender = self._socket.recvfrom(65_535)
            except TimeoutError:
                break
            flows += self._decoder.decode(data, _name(sender[0]), time.time())
        return flows

    def close(self) -> None:
        """Stop listening."""
        self._socket.close()


def _name(sender: str) -> str:
    """The exporter's address without an IPv6 zone."""
    return str(ipaddress.ip_address(sender.partition("%")[0]))
