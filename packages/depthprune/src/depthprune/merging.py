"""Merge the linear chains of a network, each with a certificate, and only where it pays."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, fx, nn

from depthprune.capture import capture, module_of, shape, shapes
from depthprune.chains import Barrier, Chain, Element, Finder, Parallel, Single
from depthprune.entropy import Counts
from depthprune.fold import LAYERS, as_conv, calls, constant, cut_out, finish, prepare
from depthprune.merge.borders import Merged, Mode, add_branches, join
from depthprune.merge.conv import Refused, to_module
from depthprune.merge.flatten import through_flatten
from depthprune.merge.parallel import identity
from depthprune.merge.pool import through_global_average
from depthprune.prices import Backend, Macs, Price, make
from depthprune.segments import best
from depthprune.surgery import producer

# A merged layer beyond this many weights never pays on a small device and would exhaust memory while planning.
LARGEST_WEIGHT = 2**26


@dataclass(frozen=True)
class Certificate:
    """What one merge did, and how well it was checked.

    Attributes:
        layers: the layers that became one.
        merged: name of the new layer.
        mode: exact, front-pad, bias-pad, const-pad, bias-map or approx.
        max_abs_random: largest difference to the layers it replaces on random inputs, float64.
        max_rel_random: the same over the largest output.
        max_abs_data: largest difference on calibration data in float32; None without data.
        max_rel_data: the same over the largest output.
        ring_share: share of the outputs, 0 to 1, that may differ at borders.
        margin: smallest |z| of the removed activations inside on calibration data; None if not measured.
        flip_bound: 95 % bound of the probability that an image flips a constant neuron, 3/n; None if not measured.
        macs_before, macs_after: multiply-accumulates per image.
        params_before, params_after: weights and biases.
        cost_before, cost_after: in the unit of the policy.
        unit: of these costs.
    """

    layers: tuple[str, ...]
    merged: str
    mode: str
    max_abs_random: float
    max_rel_random: float
    max_abs_data: float | None
    max_rel_data: float | None
    ring_share: float
    margin: float | None
    flip_bound: float | None
    macs_before: int
    macs_after: int
    params_before: int
    params_after: int
    cost_before: float
    cost_after: float
    unit: str


@dataclass(frozen=True)
class Kept:
    """A merge that was possible, or nearly, and was not done."""

    layers: tuple[str, ...]
    reason: str


@dataclass(eq=False)
class MergeResult:
    """A merged network.

    Attributes:
        model: graph of plain torch modules and functions, in evaluation mode.
        reference: the same network before merging (norms folded), which the certificates compare with.
        certificates: one per merge.
        kept: possible merges that would not pay or not be exact.
        barriers: layers that nothing can be merged across, and why.
        policy: macs, latency, memory or always.
        front_padded: layers whose padding was moved before fine-tuning.
        replaced: new nodes by the old nodes whose tensor they make (bookkeeping).
    """

    model: fx.GraphModule
    reference: fx.GraphModule
    certificates: list[Certificate] = field(default_factory=list)
    kept: list[Kept] = field(default_factory=list)
    barriers: list[Barrier] = field(default_factory=list)
    policy: str = "macs"
    front_padded: frozenset[str] = frozenset()
    replaced: dict[fx.Node, fx.Node] = field(default_factory=dict, repr=False)

    def now(self, node: fx.Node) -> fx.Node:
        """The node that makes this tensor after the merges so far."""
        return self.replaced.get(node, node)


@dataclass(eq=False)
class _Segment:
    start: int
    end: int
    merged: Merged | None  # None: stays as it is
    cost: float
    cost_apart: float
    inner: tuple[_Plan, ...] = ()


@dataclass(eq=False)
class _Plan:
    chain: Chain
    cost: float
    segments: list[_Segment]
    kept: list[Kept]


class _Planner:
    def __init__(self, gm: fx.GraphModule, price: Price, mode: Mode) -> None:
        self.gm, self.price, self.mode = gm, price, mode
        self.whole: dict[int, Merged | Refused] = {}

    def plan(self, chain: Chain, held: float = 0.0, waiting: float = 0.0) -> _Plan:
        """The cheapest way to run a chain.

        Args:
            chain: the chain.
            held: bytes that stay in memory meanwhile, for prices that take the largest.
            waiting: bytes of the chain's own input, if it stays in memory behind the first layer.
        """
        elements, n = chain.elements, len(chain.elements)
        inners = {i: self._branches(e, held + (waiting if i else 0.0)) for i, e in enumerate(elements) if isinstance(e, Parallel)}
        kept_alive = [held + (waiting if i else 0.0) for i in range(n)]
        apart = [kept_alive[i] + self._apart(e, inners.get(i, ()), kept_alive[i]) for i, e in enumerate(elements)]
        table: dict[tuple[int, int], Merged | Refused] = {}
        for i in range(n):
            so_far = self.one(elements[i])
            table[i, i + 1] = so_far
            for j in range(i + 2, n + 1):
                so_far = self._join(so_far, self.one(elements[j - 1]), elements[i])
                table[i, j] = so_far
        costs: dict[tuple[int, int], float] = {}
        alone: dict[int, float] = {}  # skip blocks as one layer

        def cost(i: int, j: int) -> float:
            if (i, j) not in costs:
                merged = table[i, j]
                single = j == i + 1
                as_one = math.inf
                if isinstance(merged, Merged) and not (single and isinstance(elements[i], Single)):
                    as_one = kept_alive[i] + self.price.layer(merged, shape(_source(elements[i])))
                if single:
                    alone[i] = as_one
                costs[i, j] = min(as_one, apart[i]) if single else as_one
            return costs[i, j]

        total, cuts = best(n, cost, self.price.combine)
        segments, kept = [], []
        for i, j in cuts:
            merged = table[i, j]
            as_is = j == i + 1 and (isinstance(elements[i], Single) or alone.get(i, math.inf) > apart[i])
            together = kept_alive[i] + self._sum([self._original(element) for element in elements[i:j]])
            takes = None if as_is or not isinstance(merged, Merged) else merged
            segments.append(_Segment(i, j, takes, costs[i, j], together, inners.get(i, ()) if as_is else ()))
        inside = {k for s in segments if s.merged is not None for k in range(s.start, s.end)}
        for i, element in enumerate(elements):
            if isinstance(element, Parallel) and i not in inside:
                kept.append(Kept(self._names([element]), self._reason(table[i, i + 1], element, apart[i], "this block")))
            if i + 1 < n and not any(s.start <= i and i + 1 < s.end for s in segments):
                pair = [element, elements[i + 1]]
                kept.append(Kept(self._names(pair), self._reason(table[i, i + 2], element, self._sum(apart[i : i + 2]), "these layers")))
        return _Plan(chain, total, segments, kept)

    def _branches(self, element: Parallel, held: float) -> tuple[_Plan, ...]:
        """Plans of the branches. In memory, the branch that runs keeps the block's input for the other one alive, then the first result."""
        plans, result = list[_Plan](), 0.0
        peaks = self.price.combine == "max"
        for branch in element.branches:
            if branch.elements:
                waiting = 4.0 * math.prod(shape(element.source)[1:]) if peaks and not plans else 0.0
                plans.append(self.plan(branch, held + result, waiting))
                result = 4.0 * math.prod(shape(element.node)[1:]) if peaks else 0.0
        return tuple(plans)

    def _sum(self, values: list[float]) -> float:
        return max(values) if self.price.combine == "max" else sum(values)

    def _reason(self, merged: Merged | Refused, first: Element, apart: float, what: str) -> str:
        if isinstance(merged, Refused):
            return str(merged)
        cost = self.price.layer(merged, shape(_source(first)))
        return f"merging {what} would take {cost:.4g} {self.price.unit} instead of {apart:.4g}"

    def _apart(self, element: Element, inner: tuple[_Plan, ...], held: float = 0.0) -> float:
        if isinstance(element, Single):
            return self.price.layer(Merged(as_conv(self.gm, element.node), "exact"), shape(element.source))
        return self._sum([*[plan.cost - held for plan in inner], self.price.addition(shape(element.node))])

    def _original(self, element: Element) -> float:
        """Cost of an element before any merge inside it."""
        if isinstance(element, Single):
            return self._apart(element, ())
        inside = [self._original(inner) for branch in element.branches for inner in branch.elements]
        return self._sum([*inside, self.price.addition(shape(element.node))])

    def one(self, element: Element) -> Merged | Refused:
        """An element as one layer, or why not."""
        if id(element) not in self.whole:
            self.whole[id(element)] = self._one(element)
        return self.whole[id(element)]

    def _one(self, element: Element) -> Merged | Refused:
        if isinstance(element, Single):
            return Merged(as_conv(self.gm, element.node), "exact")
        branches: list[Merged | None] = []
        for branch in element.branches:
            merged: Merged | Refused | None = None
            for inner in branch.elements:
                merged = self.one(inner) if merged is None else self._join(merged, self.one(inner), branch.elements[0])
            if isinstance(merged, Refused):
                return merged
            branches.append(merged)
        present = [branch for branch in branches if branch is not None]
        if not present:
            return Refused("both branches are identities")
        filled = [branch if branch is not None else Merged(identity(present[0].conv), "exact") for branch in branches]
        try:
            return add_branches(filled[0], filled[1])
        except Refused as reason:
            return reason

    def _join(self, first: Merged | Refused, second: Merged | Refused, start: Element) -> Merged | Refused:
        if isinstance(first, Refused) or isinstance(second, Refused):
            return first if isinstance(first, Refused) else second
        weights = math.prod(first.conv.kernel) * math.prod(second.conv.kernel) * first.conv.in_channels * second.conv.out_channels
        if weights > 4 * LARGEST_WEIGHT:
            return Refused(f"the merged layer could have {weights:,} weights")
        size = shape(_source(start))[2:] if first.conv.axes else None
        try:
            return join(first, second, self.mode, size)
        except Refused as reason:
            return reason

    def _names(self, elements: list[Element]) -> tuple[str, ...]:
        return tuple(name for element in elements for name in layer_names(element))


def _source(element: Element) -> fx.Node:
    return element.source


def layer_names(element: Element) -> list[str]:
    """Names of the layers inside an element."""
    if isinstance(element, Single):
        return [str(element.node.target)]
    return [name for branch in element.branches for inner in branch.elements for name in layer_names(inner)]


def merge(
    model: nn.Module,
    example: Tensor,
    *,
    mode: Mode = "auto",
    policy: str = "macs",
    calibration: Tensor | None = None,
    counts: Mapping[str, Counts] | None = None,
    backend: Backend = "onnxruntime",
    threads: int = 1,
    price: Price | None = None,
    front_padded: Collection[str] = (),
) -> MergeResult:
    """Merge every linear chain of a model where it pays.

    Args:
        model: any module in evaluation mode, or a captured graph with removed activations.
        example: one input, batch first; costs are per image at its size.
        mode: how zero padding between merged layers is treated (see `merge.borders.merge`); `auto` is exact or nothing.
        policy: `macs`, `latency` (measured), `memory` (peak), or `always` (fewest layers).
        calibration: inputs on which the certificates are checked as well.
        counts: of the sites, before their removal; give margins and flip bounds.
        backend: where latency is measured.
        threads: for the measurement.
        price: of the policy, if it exists already (a latency is measured once per price).
        front_padded: layers whose padding was moved before fine-tuning; only named in the certificates.

    Returns:
        The merged model and the account of it. Shared layers and tensors with several readers are never merged.

    Raises:
        InputError: a model in training mode or one that cannot be traced; an unknown policy.
    """
    price = price or make(policy, backend, threads)
    gm = prepare(capture(model, example), example)
    reference = copy.deepcopy(gm)
    finder = Finder(gm)
    result = MergeResult(gm, reference, barriers=finder.barriers(), policy=policy, front_padded=frozenset(front_padded))
    planner = _Planner(gm, price, mode)
    plans = [planner.plan(chain) for chain in finder.chains()]
    evidence = _evidence(model, counts or {})
    values = _values(gm, calibration)
    for plan in plans:
        _apply(gm, plan, result, price, evidence, values)
    finish(gm)
    _commute_average(gm, result, values)
    finish(gm)
    _absorb_flatten(gm, result, price, values)
    finish(gm)
    shapes(gm, example)
    return result


def _apply(
    gm: fx.GraphModule,
    plan: _Plan,
    result: MergeResult,
    price: Price,
    evidence: dict[str, tuple[float, float]],
    values: dict[fx.Node, Tensor],
) -> None:
    result.kept += plan.kept
    for segment in plan.segments:
        elements = plan.chain.elements[segment.start : segment.end]
        for inner in segment.inner:
            _apply(gm, inner, result, price, evidence, values)
        if segment.merged is None:
            continue
        source, tail = result.now(elements[0].source), elements[-1].node
        names = tuple(name for element in elements for name in layer_names(element))
        name = f"merged_{len(result.certificates)}"
        certificate = _certify(gm, source, tail, segment, names, name, price, evidence, values)
        if certificate.mode == "exact" and result.front_padded.intersection(names):
            certificate = replace(certificate, mode="front-pad")
        new = _insert(gm, source, tail, segment.merged, name)
        result.replaced[tail] = new
        if tail in values:
            values[new] = values[tail]
        result.certificates.append(certificate)


def _insert(gm: fx.GraphModule, source: fx.Node, tail: fx.Node, merged: Merged, name: str) -> fx.Node:
    gm.add_submodule(name, to_module(merged.conv).eval())
    view = (1, -1, *[1] * merged.conv.axes)
    with gm.graph.inserting_after(tail):
        call = new = gm.graph.call_module(name, (source,))
    if merged.shift is not None:
        with gm.graph.inserting_before(call):
            shifted = gm.graph.call_function(torch.sub, (source, constant(gm, merged.shift.float().reshape(view))))
        call.args = (shifted,)
    if merged.map is not None:
        with gm.graph.inserting_before(call):
            fixed = constant(gm, merged.map.float()[None])
        with gm.graph.inserting_after(call):
            new = gm.graph.call_function(torch.add, (call, fixed))
    tail.replace_all_uses_with(new)
    for node in (call, new):
        node.meta = {key: value for key, value in tail.meta.items() if key != "site"}
    return new


def _certify(
    gm: fx.GraphModule,
    source: fx.Node,
    tail: fx.Node,
    segment: _Segment,
    names: tuple[str, ...],
    name: str,
    price: Price,
    evidence: dict[str, tuple[float, float]],
    values: dict[fx.Node, Tensor],
) -> Certificate:
    merged = segment.merged
    assert merged is not None
    size = shape(source)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, *size[1:], generator=generator, dtype=torch.float64)
    abs_random, rel_random = _difference(_run_between(gm, source, tail, x, torch.float64), merged(x))
    abs_data = rel_data = None
    if source in values:
        x = values[source]
        layer = _as_float(merged)
        abs_data, rel_data = _difference(_run_between(gm, source, tail, x, torch.float32), layer(x))
    seen = [evidence[layer] for layer in names if layer in evidence]
    modules = [gm.get_submodule(layer) for layer in names]
    macs = Macs()
    before = sum(
        int(macs.layer(Merged(as_conv(gm, node), "exact"), shape(node.all_input_nodes[0]))) for node in _layers_between(gm, source, tail)
    )
    return Certificate(
        layers=names,
        merged=name,
        mode=merged.mode,
        max_abs_random=abs_random,
        max_rel_random=rel_random,
        max_abs_data=abs_data,
        max_rel_data=rel_data,
        ring_share=merged.ring_share,
        margin=min((margin for margin, _ in seen), default=None),
        flip_bound=max((flip for _, flip in seen), default=None),
        macs_before=before,
        macs_after=int(macs.layer(merged, size)),
        params_before=sum(p.numel() for module in modules for p in module.parameters()),
        params_after=merged.conv.weight.numel() + merged.conv.bias.numel(),
        cost_before=segment.cost_apart,
        cost_after=segment.cost,
        unit=price.unit,
    )


def _as_float(merged: Merged) -> Callable[[Tensor], Tensor]:
    conv = replace(merged.conv, weight=merged.conv.weight.float(), bias=merged.conv.bias.float())
    return replace(
        merged,
        conv=conv,
        shift=None if merged.shift is None else merged.shift.float(),
        map=None if merged.map is None else merged.map.float(),
    )


def _difference(expected: Tensor, actual: Tensor) -> tuple[float, float]:
    error = float((expected - actual).abs().max())
    return error, error / max(float(expected.abs().max()), 1e-30)


def _run_between(gm: fx.GraphModule, source: fx.Node, tail: fx.Node, x: Tensor, dtype: torch.dtype) -> Tensor:
    """Run the layers from one tensor to another."""
    known: dict[fx.Node, Tensor] = {source: x}

    def run(node: fx.Node) -> Tensor:
        if node not in known:
            inputs: list[Any] = [run(argument) if isinstance(argument, fx.Node) else argument for argument in node.args]
            module = module_of(gm, node)
            if module is not None:
                known[node] = copy.deepcopy(module).to(dtype)(*inputs)
            elif node.op == "get_attr":
                known[node] = getattr(gm, str(node.target)).to(dtype)
            else:
                known[node] = inputs[0] + inputs[1]
        return known[node]

    with torch.no_grad():
        return run(tail)


def _layers_between(gm: fx.GraphModule, source: fx.Node, tail: fx.Node) -> list[fx.Node]:
    found: list[fx.Node] = []
    waiting = [tail]
    while waiting:
        node = waiting.pop()
        if node is source or node in found:
            continue
        found.append(node)
        waiting += node.all_input_nodes
    return [node for node in found if module_of(gm, node) is not None]


def _values(gm: fx.GraphModule, calibration: Tensor | None) -> dict[fx.Node, Tensor]:
    """Every tensor of the graph on the calibration inputs."""
    if calibration is None:
        return {}
    found: dict[fx.Node, Tensor] = {}

    class Reader(fx.Interpreter):
        def run_node(self, n: fx.Node) -> Any:
            result = super().run_node(n)
            if isinstance(result, Tensor):
                found[n] = result
            return result

    with torch.no_grad():
        Reader(gm).run(calibration)
    return found


def _evidence(model: nn.Module, counts: Mapping[str, Counts]) -> dict[str, tuple[float, float]]:
    """Margin and flip bound by the layer in front of each removed activation."""
    if not counts or not isinstance(model, fx.GraphModule):
        return {}
    found = {}
    for node in model.graph.nodes:
        name = node.meta.get("site")
        if name in counts:
            layer, _ = producer(model, name)
            if layer is not None:
                found[str(layer.target)] = (counts[name].margin, counts[name].flip_bound)
    return found


def _commute_average(gm: fx.GraphModule, result: MergeResult, values: dict[fx.Node, Tensor]) -> None:
    """Move a 1x1 convolution behind a global average pool, into the linear layer if one follows: exact, and always cheaper."""
    shared = calls(gm)
    for node in list(gm.graph.nodes):
        conv_node = node.args[0] if node.args else None
        module = module_of(gm, conv_node)
        if not is_global_average(gm, node) or not isinstance(module, nn.Conv2d) or shared[str(conv_node.target)] > 1:  # type: ignore[union-attr]
            continue
        assert isinstance(conv_node, fx.Node)
        if len(conv_node.users) != 1 or len(node.users) != 1:
            continue
        flat = next(iter(node.users))
        flattens = isinstance(module_of(gm, flat), nn.Flatten) or flat.target in (torch.flatten, "flatten")
        linear = next(iter(flat.users)) if flattens and len(flat.users) == 1 else flat
        second = module_of(gm, linear)
        if not isinstance(second, nn.Linear) or shared[str(linear.target)] > 1:
            continue
        try:
            merged = Merged(through_global_average(as_conv(gm, conv_node), as_conv(gm, linear)), "exact")
        except Refused:
            continue
        source, macs = conv_node.args[0], Macs()
        assert isinstance(source, fx.Node)
        size = shape(source)
        pooled = (1, size[1])
        x = torch.randn(2, *size[1:], generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        axes = tuple(range(2, len(size)))
        first, last = as_conv(gm, conv_node), as_conv(gm, linear)
        names = (str(conv_node.target), str(linear.target))
        abs_random, rel_random = _difference(last(first(x).mean(axes)), merged(x.mean(axes)))
        abs_data = rel_data = None
        if source in values:
            x = values[source]
            single = [_as_float(Merged(conv, "exact")) for conv in (first, last, merged.conv)]
            abs_data, rel_data = _difference(single[1](single[0](x).mean(axes)), single[2](x.mean(axes)))
        name = f"merged_{len(result.certificates)}"
        before = int(macs.layer(Merged(first, "exact"), size) + macs.layer(Merged(last, "exact"), (1, first.out_channels)))
        after = int(macs.layer(merged, pooled))
        params = sum(p.numel() for layer in (module, second) for p in layer.parameters())
        certificate = Certificate(
            names, name, "exact", abs_random, rel_random, abs_data, rel_data, 0.0, None, None, before, after, params,
            merged.conv.weight.numel() + merged.conv.bias.numel(), float(before), float(after), "MACs",
        )  # fmt: skip
        result.certificates.append(certificate)
        cut_out(gm, conv_node)
        gm.add_submodule(name, to_module(merged.conv).eval())
        with gm.graph.inserting_after(linear):
            call = gm.graph.call_module(name, linear.args)
        linear.replace_all_uses_with(call)
        gm.graph.eliminate_dead_code()


def _absorb_flatten(gm: fx.GraphModule, result: MergeResult, price: Price, values: dict[fx.Node, Tensor]) -> None:
    """Merge a convolution into the linear layer that reads its flattened map, where the price says so; exact for this input size."""
    shared = calls(gm)
    for node in list(gm.graph.nodes):
        conv_node = node.args[0] if node.args else None
        if not is_flatten(gm, node) or not isinstance(conv_node, fx.Node) or len(node.users) != 1 or len(conv_node.users) != 1:
            continue
        module, linear = module_of(gm, conv_node), next(iter(node.users))
        second = module_of(gm, linear)
        if not isinstance(module, nn.Conv2d) or not isinstance(second, nn.Linear) or len(linear.args) != 1:
            continue
        if shared[str(conv_node.target)] > 1 or shared[str(linear.target)] > 1 or module.padding_mode != "zeros":
            continue
        source, first, last = conv_node.args[0], as_conv(gm, conv_node), as_conv(gm, linear)
        assert isinstance(source, fx.Node)
        size, names = shape(source), (str(conv_node.target), str(linear.target))
        features = math.prod(size[1:])
        if features * last.out_channels > LARGEST_WEIGHT or last.in_channels != math.prod(shape(conv_node)[1:]):
            continue
        merged = Merged(through_flatten(first, last, tuple(size[2:])), "exact")
        costs = [price.layer(Merged(first, "exact"), size), price.layer(Merged(last, "exact"), (1, last.in_channels))]
        before, after = (max(costs) if price.combine == "max" else sum(costs)), price.layer(merged, (1, features))
        if after >= before:
            result.kept.append(Kept(names, f"merging these layers would take {after:.4g} {price.unit} instead of {before:.4g}"))
            continue
        x = torch.randn(2, *size[1:], generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        abs_random, rel_random = _difference(last(first(x).flatten(1)), merged(x.flatten(1)))
        abs_data = rel_data = None
        if source in values:
            x = values[source]
            single = [_as_float(Merged(conv, "exact")) for conv in (first, last, merged.conv)]
            abs_data, rel_data = _difference(single[1](single[0](x).flatten(1)), single[2](x.flatten(1)))
        macs, name = Macs(), f"merged_{len(result.certificates)}"
        macs_before = int(macs.layer(Merged(first, "exact"), size) + macs.layer(Merged(last, "exact"), (1, last.in_channels)))
        result.certificates.append(
            Certificate(
                names, name, "exact", abs_random, rel_random, abs_data, rel_data, 0.0, None, None, macs_before,
                int(macs.layer(merged, (1, features))), sum(p.numel() for layer in (module, second) for p in layer.parameters()),
                merged.conv.weight.numel() + merged.conv.bias.numel(), before, after, price.unit,
            )
        )  # fmt: skip
        cut_out(gm, conv_node)
        gm.add_submodule(name, to_module(merged.conv).eval())
        with gm.graph.inserting_after(linear):
            call = gm.graph.call_module(name, linear.args)
        linear.replace_all_uses_with(call)
        gm.graph.eliminate_dead_code()


def is_flatten(gm: fx.GraphModule, node: fx.Node) -> bool:
    """Whether a node flattens everything but the batch."""
    module = module_of(gm, node)
    if isinstance(module, nn.Flatten):
        return (module.start_dim, module.end_dim) == (1, -1)
    if node.target not in (torch.flatten, "flatten"):
        return False
    given = dict(zip(("start_dim", "end_dim"), node.args[1:], strict=False)) | node.kwargs
    return (given.get("start_dim", 0), given.get("end_dim", -1)) == (1, -1)


def is_global_average(gm: fx.GraphModule, node: fx.Node) -> bool:
    """Whether a node averages over all positions of an image."""
    module = module_of(gm, node)
    if isinstance(module, nn.AdaptiveAvgPool2d):
        return module.output_size in (1, (1, 1))
    if node.target in (nn.functional.adaptive_avg_pool2d,):
        return node.args[1:] in ((1,), ((1, 1),), ([1, 1],))
    if node.target in (torch.mean, "mean"):
        dims = node.args[1:2] or (node.kwargs.get("dim"),)
        return dims in (((2, 3),), ([2, 3],), ((-2, -1),), ([-2, -1],))
    return False


def count_layers(model: nn.Module) -> int:
    """Convolution and linear layers that run."""
    if isinstance(model, fx.GraphModule):
        return sum(isinstance(_inner(module_of(model, node)), LAYERS) for node in model.graph.nodes)
    return sum(isinstance(module, LAYERS) for module in model.modules())


def _inner(module: nn.Module | None) -> nn.Module | None:
    return module[1] if isinstance(module, nn.Sequential) and len(module) == 2 else module
