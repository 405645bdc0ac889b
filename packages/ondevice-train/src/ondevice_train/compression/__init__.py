"""Low-rank activations and weights that truly save memory: one file per method.

* `svd`, `hosvd`: recomputed at every step at an explained variance (NeurIPS 2024).
* `asi_paper`: warm subspace iteration as published (ICML 2025); `asi`: our faster order of the same idea, the default.
* `wasi`: factored weights with ASI inputs; the dense weight, gradient and optimiser state never exist.
* `fixed_bases`, `gradient_filter`, `quantise`, `checkpointing`, `plain`: baselines.
* `planner`: ranks and choices per layer under a byte budget; `predict`: bytes of a whole model before it runs.
"""
