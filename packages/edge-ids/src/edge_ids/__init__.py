"""Intrusion detection at the edge: `edge_ids.can` for vehicle buses, `edge_ids.flow` for network flows."""
