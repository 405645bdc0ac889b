"""One command takes a network and data to a Raspberry Pi: search, shorten, audit, personalise, export."""
