"""CAN and network-flow intrusion detection on one gateway: `supervisor`, `worker`, `web`, `source`."""
