"""Supernets that fill the memory they are given, and a search that is never over budget.

- `moofa.space`, `moofa.presets`: spaces and their networks; `moofa.design`: widths for a budget.
- `moofa.profile`, `moofa.costs`: what one network, or a hundred thousand, cost; `moofa.budget`: what they must fit into.
- `moofa.supernet`: the shared weights; `moofa.training`, `moofa.predictor`, `moofa.search`: train, predict, search.
- `moofa.specialise`: extract, fine-tune and export what was found.

Methods: MOOFA (Girard et al., CADL 2024, arXiv 2409.05900) on Once-For-All (Cai et al., ICLR 2020).
"""
