"""The gateway's pages: dashboard, status as JSON, Prometheus metrics; GET only, small requests only, loopback by default."""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.resources import files
from typing import Any
from urllib.parse import parse_qs, urlsplit

from edge_shared.errors import InputError

LARGEST_HEAD = 16 * 1024
LONGEST_TARGET = 1024
CONNECTIONS = 32
_STATIC = {
    "/": ("dashboard.html", "text/html; charset=utf-8"),
    "/dashboard.js": ("dashboard.js", "text/javascript; charset=utf-8"),
    "/dashboard.css": ("dashboard.css", "text/css; charset=utf-8"),
}


class _Limited:
    """A reader that gives out so many bytes and then ends."""

    def __init__(self, stream: Any, limit: int):
        self._stream, self.left = stream, limit

    def readline(self, size: int = -1) -> bytes:
        if self.left <= 0:
            return b""
        line: bytes = self._stream.readline(min(size, self.left) if size >= 0 else self.left)
        self.left -= len(line)
        return line

    def close(self) -> None:
        self._stream.close()


class Web:
    """Serve a supervisor's pages in a background thread.

    Args:
        supervisor: has `status` and `page`.
        address: ``port``, ``:port`` or ``host:port``; loopback unless a host is given; port 0 takes a free one, see `port`.

    Raises:
        InputError: for an address that is none, or cannot be had.
    """

    def __init__(self, supervisor: Any, address: str = "127.0.0.1:8080"):
        host, _, port = address.rpartition(":")
        host = host.strip("[]") or "127.0.0.1"
        if not port.isdecimal() or int(port) > 65535:
            raise InputError(f"--serve {address!r}: write host:port, such as 127.0.0.1:8080")
        slots = threading.BoundedSemaphore(CONNECTIONS)
        local = host in ("127.0.0.1", "localhost", "::1")

        class Handler(BaseHTTPRequestHandler):
            timeout = 10
            server_version, sys_version = "pi-gateway", ""

            def setup(self) -> None:
                super().setup()
                self.rfile = _Limited(self.rfile, LARGEST_HEAD)  # type: ignore[assignment]

            def handle(self) -> None:
                if not slots.acquire(blocking=False):
                    self.wfile.write(b"HTTP/1.0 503 Busy\r\nContent-Length: 0\r\n\r\n")
                    return
                try:
                    super().handle()
                except OSError:
                    pass  # the other side went away
                finally:
                    slots.release()

            def do_GET(self) -> None:
                reason = self._refused()
                if reason:
                    self._send(reason[0], "text/plain; charset=utf-8", reason[1] + "\n")
                    return
                parts = urlsplit(self.path)
                if parts.path in _STATIC:
                    name, kind = _STATIC[parts.path]
                    self._send(200, kind, (files("pi_gateway") / "static" / name).read_text())
                elif parts.path == "/api/status":
                    text = parse_qs(parts.query).get("after", ["0"])[0]
                    after = int(text) if text.isdecimal() and len(text) < 16 else 0
                    self._send(200, "application/json", json.dumps(supervisor.status(after), allow_nan=False))
                elif parts.path == "/metrics":
                    self._send(200, "text/plain; version=0.0.4; charset=utf-8", supervisor.page())
                else:
                    self._send(404, "text/plain; charset=utf-8", "here are /, /api/status and /metrics\n")

            def _refused(self) -> tuple[int, str] | None:
                if self.rfile.left <= 0:  # type: ignore[attr-defined]
                    return 431, f"a request of at most {LARGEST_HEAD} bytes, please"
                if len(self.path) > LONGEST_TARGET:
                    return 414, f"an address of at most {LONGEST_TARGET} characters, please"
                if self.headers.get("Content-Length", "0") != "0" or "Transfer-Encoding" in self.headers:
                    return 413, "requests have no body here"
                named = self.headers.get("Host", "").rsplit(":", 1)[0].strip("[]").lower()
                if local and named not in ("", "127.0.0.1", "localhost", "::1"):
                    return 403, "this page is for this machine only"  # a foreign name that was made to point here
                return None

            def _send(self, code: int, kind: str, body: str) -> None:
                raw = body.encode()
                self.send_response(code)
                self.send_header("Content-Type", kind)
                self.send_header("Content-Length", str(len(raw)))
                self.send_header("Cache-Control", "no-store")
                self.send_header("Content-Security-Policy", "default-src 'self'; frame-ancestors 'none'")
                self.send_header("X-Content-Type-Options", "nosniff")
                self.end_headers()
                self.wfile.write(raw)

            def log_message(self, format: str, *args: Any) -> None:
                pass  # a request every second is no news

        try:
            self._server = ThreadingHTTPServer((host, int(port)), Handler)
        except OSError as error:
            raise InputError(f"--serve {address}: {error.strerror or error}") from error
        self._server.daemon_threads = True
        self.port: int = self._server.server_address[1]
        self._thread = threading.Thread(target=self._server.serve_forever, name="web", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop serving and free the port."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
