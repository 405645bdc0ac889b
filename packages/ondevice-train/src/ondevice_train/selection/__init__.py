"""Choosing what to update under a hard memory budget.

* `layers`: which layers can be selected and what one channel costs; `budget`: the cost of a selection, and filling a budget.
* `saved`: bytes that a forward pass will keep, predicted; `install`: puts a selection into a model.
* `selector`: the interface of the methods, and the table of them. One file each: `sparse_update`, `velocity`, `neq`, `scotti`, `trady`,
  `medyate`, `full_random`, `det_rgn`, `last_k`, `bias_only`; `lora` is a baseline without selection.
* `importance`: gradient norms per channel, RGN, LaRa, layer rankings; `qas`: gradient scaling of int8 graphs.
"""
