"""The systemd unit: restarts, no more rights than listening needs, state under /var/lib."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

from edge_shared.errors import InputError

_UNIT = """[Unit]
Description=pi-gateway: CAN and network-flow intrusion detection
Documentation=https://github.com/edgewise/edgewise
After=network-online.target
Wants=network-online.target

[Service]
Type=exec
User={user}
StateDirectory=pi-gateway
WorkingDirectory=/var/lib/pi-gateway
ExecStart=/bin/sh -c 'if [ -e run/alerts.jsonl ]; then keep=--resume; else keep=--out; fi; exec {command} run {arguments} --serve 127.0.0.1:8080 $keep run'
Restart=on-failure
RestartSec=5
TimeoutStopSec=30
KillSignal=SIGTERM
KillMode=mixed
Environment=NUMBA_CACHE_DIR=/var/lib/pi-gateway/numba OMP_NUM_THREADS=1
MemoryMax=1G
AmbientCapabilities=CAP_NET_RAW
CapabilityBoundingSet=CAP_NET_RAW
NoNewPrivileges=yes
ProtectSystem=strict
ProtectHome=yes
PrivateTmp=yes
ProtectKernelModules=yes
ProtectControlGroups=yes
RestrictAddressFamilies=AF_INET AF_INET6 AF_UNIX AF_PACKET AF_CAN AF_NETLINK
RestrictNamespaces=yes
LockPersonality=yes

[Install]
WantedBy=multi-user.target
"""


def unit_file(arguments: str, user: str) -> str:
    """The text of ``pi-gateway.service``.

    Args:
        arguments: of ``pi-gateway run``, without --serve, --out and --resume.
        user: account.

    Raises:
        InputError: for arguments that no shell could split, or a character that systemd or the shell would interpret.
    """
    try:
        words = shlex.split(arguments)
    except ValueError as error:
        raise InputError(f"--arguments {arguments!r}: {error}") from error
    bad = sorted(set("".join(words) + user) & set("'\"%$\\\n;&|`<>"))
    if bad:
        raise InputError(f"--arguments and --user must not hold {' '.join(bad)}")
    command = Path(sys.executable).with_name("pi-gateway")
    return _UNIT.format(user=user, command=command, arguments=" ".join(words))
