"""Where a graph is linear: chains of layers and of skip blocks with nothing but linear operations between them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import cast

from torch import fx, nn

from depthprune.capture import module_of, shape
from depthprune.fold import LAYERS, calls
from depthprune.surgery import is_add


@dataclass(eq=False)
class Single:
    """One convolution or linear layer."""

    node: fx.Node

    @property
    def source(self) -> fx.Node:
        """The node that it reads."""
        return self.node.args[0]  # type: ignore[return-value]


@dataclass(eq=False)
class Parallel:
    """An addition of two chains that start at the same tensor; an empty chain is an identity skip."""

    node: fx.Node
    source: fx.Node
    branches: tuple[Chain, Chain]


Element = Single | Parallel


@dataclass(eq=False)
class Chain:
    """Linear elements one after another, from the tensor of `source` to that of the last element's node."""

    source: fx.Node
    elements: list[Element] = field(default_factory=list)

    @property
    def tail(self) -> fx.Node:
        """The node whose tensor the chain makes."""
        return self.elements[-1].node if self.elements else self.source


@dataclass(frozen=True)
class Barrier:
    """Why a layer does not merge with what reads it."""

    layer: str
    reason: str


class Finder:
    """Reads the linear structure of one graph."""

    def __init__(self, gm: fx.GraphModule) -> None:
        self.gm = gm
        self.shared = calls(gm)
        self.memory: dict[fx.Node, Element | None] = {}
        self.axes = {node: _spatial_axes(gm, node) for node in gm.graph.nodes}

    def chains(self) -> list[Chain]:
        """Maximal chains, first to last; the branches of a `Parallel` are inside it."""
        used: set[fx.Node] = set()
        result = []
        for node in reversed(self.gm.graph.nodes):
            if node in used or self.element(node) is None:
                continue
            chain = self._back(node)
            result.append(chain)
            used |= set(_nodes(chain))
        return result[::-1]

    def _back(self, tail: fx.Node, stop: fx.Node | None = None) -> Chain:
        """The longest chain that ends at `tail` (and does not go back beyond `stop`)."""
        elements: list[Element] = []
        node = tail
        while node is not stop:
            element = self.element(node)
            if element is None or (elements and set(node.users) != _readers(elements[0])):
                break
            if elements and self._axes(element) != self._axes(elements[0]):
                break
            elements.insert(0, element)
            node = element.source
        return Chain(node, elements)

    def element(self, node: fx.Node) -> Element | None:
        """The node as a linear element, or None."""
        if node not in self.memory:
            self.memory[node] = None
            self.memory[node] = self._element(node)
        return self.memory[node]

    def _element(self, node: fx.Node) -> Element | None:
        if self.is_layer(node):
            return Single(node)
        if not is_add(node):
            return None
        left, right = cast("tuple[fx.Node, fx.Node]", node.args)
        if "get_attr" in (left.op, right.op):
            return None
        if len({shape(node), shape(left), shape(right)}) != 1 or left is right:
            return None
        for source in self._sources(left):
            if source in self._sources(right):
                branches = (self._back(left, source), self._back(right, source))
                readers = set[fx.Node]()
                for branch in branches:
                    readers |= _readers(branch.elements[0]) if branch.elements else {node}
                if all(b.source is source for b in branches) and all(not b.elements or set(b.tail.users) == {node} for b in branches):
                    return Parallel(node, source, branches) if set(source.users) == readers else None
        return None

    def _sources(self, node: fx.Node) -> list[fx.Node]:
        """The tensors from which a chain to `node` could start, nearest first."""
        found = [node]
        while True:
            element = self.element(found[-1])
            if element is None:
                return found
            found.append(element.source)

    def _axes(self, element: Element) -> int:
        if isinstance(element, Single):
            return self.axes[element.node]
        inner = [e for branch in element.branches for e in branch.elements]
        return self._axes(inner[0]) if inner else 0

    def is_layer(self, node: fx.Node) -> bool:
        """Whether a node calls a convolution or linear layer that belongs to it alone."""
        module = module_of(self.gm, node)
        if isinstance(module, nn.Sequential) and len(module) == 2 and isinstance(module[1], LAYERS):
            return self.shared[str(node.target)] == 1
        if not isinstance(module, LAYERS) or self.shared[str(node.target)] > 1:
            return False
        return getattr(module, "padding_mode", "zeros") == "zeros"

    def barriers(self) -> list[Barrier]:
        """For every layer that is followed by something that no merge can cross: what it is."""
        result = []
        for node in self.gm.graph.nodes:
            module = module_of(self.gm, node)
            if not isinstance(module, LAYERS):
                continue
            name = str(node.target)
            if self.shared[name] > 1:
                result.append(Barrier(name, f"its weights are used {self.shared[name]} times"))
            elif len(node.users) > 1:
                result.append(Barrier(name, f"{len(node.users)} operations read its output"))
            elif node.users:
                user = next(iter(node.users))
                if self.element(user) is None:
                    inner = module_of(self.gm, user)
                    what = type(inner).__name__ if inner is not None else str(getattr(user.target, "__name__", user.target))
                    result.append(Barrier(name, f"{what} follows" if user.op != "output" else "it is the output"))
        return result


def _nodes(chain: Chain) -> list[fx.Node]:
    found = []
    for element in chain.elements:
        found.append(element.node)
        if isinstance(element, Parallel):
            for branch in element.branches:
                found += _nodes(branch)
    return found


def _readers(element: Element) -> set[fx.Node]:
    """The nodes that read the input of an element."""
    if isinstance(element, Single):
        return {element.node}
    readers = set[fx.Node]()
    for branch in element.branches:
        readers |= _readers(branch.elements[0]) if branch.elements else {element.node}
    return readers


def _spatial_axes(gm: fx.GraphModule, node: fx.Node) -> int:
    """Axes that a layer slides over: 0 for a linear layer, which reads the last axis whatever stands before it."""
    module = module_of(gm, node)
    if isinstance(module, nn.Sequential) and len(module) == 2:
        module = module[1]
    return len(module.kernel_size) if isinstance(module, nn.modules.conv._ConvNd) else 0
