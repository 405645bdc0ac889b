"""SYNTHETIC flows for two cases that decide whether a graph model sees flows or pairs of hosts. Not real traffic: attacks are planted, and say so by class name.

``odd-flow``: one long upload inside a pair of hosts that exchange thousands of small benign flows. ``new-host``: a few probes from an address never
seen before against a busy server. Always score a raw-feature detector on them too: an easy generator shows there.
"""

from __future__ import annotations

import numpy as np

from edge_ids.flow.schema import NF_V2, SCHEMAS
from edge_ids.flow.table import Array, FlowTable

EXTRACTOR = "synthetic-1"
CLIENTS, SERVERS = 24, 4


def hard_cases(flows: int = 20_000, planted: int = 40, seed: int = 0) -> FlowTable:
    """Benign client-server traffic with `planted` flows of each case in the last fifth, in order of time.

    Args:
        flows: benign flows.
        planted: attack flows of each case.
        seed: of everything.
    """
    random = np.random.default_rng(seed)
    client = random.integers(0, CLIENTS, flows)
    # A client has one server for nine in ten of its flows: busy pairs.
    server = np.where(random.random(flows) < 0.9, client % SERVERS, random.integers(0, SERVERS, flows))
    benign = _features(random, server, random.lognormal(6, 0.6, flows), random.lognormal(8, 0.8, flows))
    odd_client = random.integers(0, CLIENTS, planted)
    odd = _features(random, odd_client % SERVERS, random.lognormal(13, 0.3, planted), random.lognormal(7, 0.3, planted))
    new_server = random.integers(0, SERVERS, planted)
    new = _features(random, new_server, np.full(planted, 60.0), np.full(planted, 44.0))
    for name, value in (("TCP_FLAGS", 22), ("CLIENT_TCP_FLAGS", 2), ("SERVER_TCP_FLAGS", 20), ("FLOW_DURATION_MILLISECONDS", 0)):
        new[:, NF_V2.index(name)] = value
    new[:, NF_V2.index("L4_DST_PORT")] = random.integers(1, 1024, planted)
    hosts = np.array(
        [f"10.0.0.{i + 1}" for i in range(CLIENTS)]
        + [f"10.0.1.{i + 1}" for i in range(SERVERS)]
        + [f"203.0.113.{i + 1}" for i in range(planted)]
    )
    start = np.concatenate([np.sort(random.random(flows)), 0.8 + 0.2 * random.random(2 * planted)]) * 3600 + 1.7e9
    order = np.argsort(start, kind="stable")
    features = np.concatenate([benign, odd, new])
    duration = features[:, NF_V2.index("FLOW_DURATION_MILLISECONDS")] / 1000
    table = FlowTable(
        SCHEMAS["nf-v2"], EXTRACTOR, hosts,
        np.concatenate([client, odd_client, CLIENTS + SERVERS + np.arange(planted)]).astype(np.int32),
        (CLIENTS + np.concatenate([server, odd_client % SERVERS, new_server])).astype(np.int32),
        features, np.repeat([0, 1, 1], [flows, planted, planted]).astype(np.int8),
        np.repeat(["Benign", "odd-flow", "new-host"], [flows, planted, planted]), start, start + duration,
    )  # fmt: skip
    return table.rows(order)


def replicate(table: FlowTable, flows: int, seed: int = 0, noise: float = 0.05) -> FlowTable:
    """SYNTHETIC: `flows` rows drawn from `table`, each feature times 1 plus noise; for timing and memory, never for quality."""
    random = np.random.default_rng(seed)
    drawn = table.rows(random.integers(0, len(table), flows))
    factor = 1 + noise * random.standard_normal(drawn.features.shape)
    return FlowTable(
        drawn.schema,
        drawn.extractor,
        drawn.hosts,
        drawn.src,
        drawn.dst,
        drawn.features * factor,
        drawn.label,
        drawn.attack,
        drawn.start,
        drawn.end,
    )


def _features(random: np.random.Generator, server: Array, up: Array, down: Array) -> Array:
    """Consistent v2 rows of TCP exchanges of `up` and `down` bytes with servers of four kinds."""
    count = len(server)
    up, down = np.round(np.maximum(up, 60)), np.round(np.maximum(down, 44))
    packets_up, packets_down = np.ceil(up / 1400) + 3, np.ceil(down / 1400) + 2
    milliseconds = np.round(random.lognormal(5, 1, count) + (up + down) / 1000)
    large = np.ceil(np.maximum(up, down) / 1400)
    small = packets_up + packets_down - large
    columns = {
        "L4_SRC_PORT": random.integers(32_768, 61_000, count), "L4_DST_PORT": np.array([443, 80, 1883, 22])[server], "PROTOCOL": 6,
        "L7_PROTO": np.array([91, 7, 222, 92])[server], "IN_BYTES": up, "IN_PKTS": packets_up, "OUT_BYTES": down, "OUT_PKTS": packets_down,
        "TCP_FLAGS": 27, "CLIENT_TCP_FLAGS": 27, "SERVER_TCP_FLAGS": 27, "FLOW_DURATION_MILLISECONDS": milliseconds,
        "DURATION_IN": milliseconds, "DURATION_OUT": milliseconds, "MIN_TTL": 64, "MAX_TTL": 64,
        "LONGEST_FLOW_PKT": np.minimum(np.maximum(up, down), 1500), "SHORTEST_FLOW_PKT": 40, "MIN_IP_PKT_LEN": 40,
        "MAX_IP_PKT_LEN": np.minimum(np.maximum(up, down), 1500), "SRC_TO_DST_SECOND_BYTES": up, "DST_TO_SRC_SECOND_BYTES": down,
        "SRC_TO_DST_AVG_THROUGHPUT": 8000 * up / milliseconds, "DST_TO_SRC_AVG_THROUGHPUT": 8000 * down / milliseconds,
        "NUM_PKTS_UP_TO_128_BYTES": small, "NUM_PKTS_1024_TO_1514_BYTES": large, "TCP_WIN_MAX_IN": 64_240, "TCP_WIN_MAX_OUT": 65_160,
    }  # fmt: skip
    rows = np.zeros((count, len(NF_V2)))
    for name, values in columns.items():
        rows[:, NF_V2.index(name)] = values
    return rows
