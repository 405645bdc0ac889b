"""Which numbers describe a flow, in which order, and who measured them.

A model is only valid for flows of the schema and the extractor it was trained on: the same column name can mean
something else when another program filled it (`SRC_TO_DST_SECOND_BYTES` of nProbe v2 concatenates digits).
"""

from __future__ import annotations

from dataclasses import dataclass

from edge_shared.errors import InputError

NF_V2 = (
    "L4_SRC_PORT", "L4_DST_PORT", "PROTOCOL", "L7_PROTO", "IN_BYTES", "IN_PKTS", "OUT_BYTES", "OUT_PKTS", "TCP_FLAGS",
    "CLIENT_TCP_FLAGS", "SERVER_TCP_FLAGS", "FLOW_DURATION_MILLISECONDS", "DURATION_IN", "DURATION_OUT", "MIN_TTL", "MAX_TTL",
    "LONGEST_FLOW_PKT", "SHORTEST_FLOW_PKT", "MIN_IP_PKT_LEN", "MAX_IP_PKT_LEN", "SRC_TO_DST_SECOND_BYTES",
    "DST_TO_SRC_SECOND_BYTES", "RETRANSMITTED_IN_BYTES", "RETRANSMITTED_IN_PKTS", "RETRANSMITTED_OUT_BYTES",
    "RETRANSMITTED_OUT_PKTS", "SRC_TO_DST_AVG_THROUGHPUT", "DST_TO_SRC_AVG_THROUGHPUT", "NUM_PKTS_UP_TO_128_BYTES",
    "NUM_PKTS_128_TO_256_BYTES", "NUM_PKTS_256_TO_512_BYTES", "NUM_PKTS_512_TO_1024_BYTES", "NUM_PKTS_1024_TO_1514_BYTES",
    "TCP_WIN_MAX_IN", "TCP_WIN_MAX_OUT", "ICMP_TYPE", "ICMP_IPV4_TYPE", "DNS_QUERY_ID", "DNS_QUERY_TYPE", "DNS_TTL_ANSWER",
    "FTP_COMMAND_RET_CODE",
)  # fmt: skip
NF_V3 = (
    *NF_V2,
    "SRC_TO_DST_IAT_MIN", "SRC_TO_DST_IAT_MAX", "SRC_TO_DST_IAT_AVG", "SRC_TO_DST_IAT_STDDEV",
    "DST_TO_SRC_IAT_MIN", "DST_TO_SRC_IAT_MAX", "DST_TO_SRC_IAT_AVG", "DST_TO_SRC_IAT_STDDEV",
)  # fmt: skip
CONN = (
    "SRC_PORT", "DST_PORT", "PROTOCOL", "DURATION", "IN_BYTES", "OUT_BYTES", "IN_PKTS", "OUT_PKTS", "BYTES_PER_PKT_IN",
    "BYTES_PER_PKT_OUT", "STATE_ESTABLISHED", "STATE_REJECTED",
)  # fmt: skip
"""What Zeek's conn.log, Suricata's EVE flow records and NetFlow exports have in common (DURATION in seconds)."""


@dataclass(frozen=True)
class Schema:
    """Names of the columns of a flow table, in order."""

    name: str
    features: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.features)

    def without(self, names: tuple[str, ...]) -> Schema:
        """This schema less some columns.

        Raises:
            InputError: if a name is no column of it, or none would be left.
        """
        for name in names:
            if name not in self.features:
                raise InputError(f"--exclude {name}: schema {self.name} has no such feature; it has {', '.join(self.features)}")
        left = tuple(feature for feature in self.features if feature not in names)
        if not left:
            raise InputError("--exclude leaves no feature; leave at least one")
        return Schema(self.name, left)


SCHEMAS = {schema.name: schema for schema in (Schema("nf-v2", NF_V2), Schema("nf-v3", NF_V3), Schema("conn", CONN))}


def netflow_schema(columns: list[str], where: str) -> Schema:
    """Tell v2, v3 and conn by the columns of a flow table, whatever the file is called.

    Raises:
        InputError: naming the columns that are missing.
    """
    present = set(columns)
    if {"IPV4_SRC_ADDR", "IPV4_DST_ADDR", *CONN} <= present:
        return SCHEMAS["conn"]
    best = SCHEMAS["nf-v3" if present.intersection(NF_V3[len(NF_V2) :]) else "nf-v2"]
    missing = [name for name in ("IPV4_SRC_ADDR", "IPV4_DST_ADDR", *best.features) if name not in present]
    if missing:
        raise InputError(
            f"{where}: no NF-v2/v3 flow table, it lacks {len(missing)} column{'s' * (len(missing) > 1)}: "
            f"{', '.join(missing[:5])}{', ...' * (len(missing) > 5)}"
        )
    return best
