"""Data without leaks: image sets by name or path, splits, windows of timed streams.

`edge_shared.data.vision`   `load_images` and `ImageSet`
`edge_shared.data.splits`   train/val/test and folds that no group, moment or duplicate can straddle
`edge_shared.data.windows`  fixed windows of a sampled stream, and the embargo between them
`edge_shared.data.cache`    where downloads are kept
"""
