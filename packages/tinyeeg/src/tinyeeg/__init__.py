"""Attention state from EEG: honest splits, C99 that fits a microcontroller.

`readers`     files to recordings: Aci .mat, Muse and EMOTIV CSV, XDF, and what MNE reads
`recording`   one recording as plain data, to and from MNE's `Raw`
`filters`     causal filters, the same in batch, stream and C
`chain`       preprocessing as plain data, `presets` by name
`features`    the same as scikit-learn transformers on (n_windows, n_channels, n_times)
`stream`      the chain sample by sample; `live` decides on replayed, LSL and BrainFlow streams
`table`       feature vectors with the raw samples that each depends on
`splits`      protocols that cannot leak; `audit` finds the leaks of others
`models`      classifiers by name; `protocols` and `training` score and fit them
`deployed`    a trained chain as plain numbers; `codegen` writes it as C99, `cost` and `boards` weigh it
`report`      plots and one HTML page
`synthetic`   a generator for tests and examples
"""
