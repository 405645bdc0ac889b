"""Network flows: GraphIDS and smaller detectors on NetFlow, pcap, Zeek and Suricata flows, trained and run on a CPU.

- `schema`, `table`: what a flow is; `netflow`, `packets`, `meter`, `textlog`, `sources`: where flows come from
- `scaling`, `splits`, `thresholds`, `metrics`: before and after a model
- `graph`, `graphids`, `edge_aware`, `simpleae`, `neural`, `presets`: the torch models
- `classical`: Isolation Forest, PCA, HBOS, CBLOF without torch
- `detector`, `fit`: a trained detector, and how it is made
- `horizon`, `stream`, `monitor`, `explain`, `drift`: flows as they come
"""
