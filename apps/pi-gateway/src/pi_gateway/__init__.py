"""CAN and network-flow intrusion detection on one gateway: one alert stream, one dashboard."""
