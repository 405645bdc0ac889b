"""Take layers out of a trained network for real, with proof.

`capture` a model as a graph of call sites; `entropy` counts how often neurons are ON; `methods` choose what to remove;
`surgery` and `padding` take it out; `pruner` loops with fine-tuning; `merge` is the algebra of merging on plain tensors,
`merging` applies it to graphs where it pays, with certificates; `latency` and `measure` weigh the result; `job` does all of it.
"""
