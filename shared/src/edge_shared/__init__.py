"""The core that all Edgewise packages share.

Without torch: `network` (networks as plain data), `architectures` (published tables), `memory` and `flops` (arithmetic),
`devices` (profiles), `data` (image sets, leak-proof splits, windows), `sweep`, `report`, `cli`, `files`, `units`, `errors`.
With torch: `trace`, `memory.measure`, `training`, `artifacts`.
"""
