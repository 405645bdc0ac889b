"""What `depthprune analyze` says about every activation."""

from __future__ import annotations

from dataclasses import dataclass

from edge_shared.data.vision import load_images

from depthprune.capture import capture, sites
from depthprune.chains import Finder
from depthprune.entropy import count
from depthprune.fold import prepare
from depthprune.methods.affine import unexplained
from depthprune.methods.moments import measure
from depthprune.models import build, load_weights
from depthprune.padding import mergeable_sites


@dataclass(frozen=True)
class SiteReport:
    """One activation on data.

    Attributes:
        name, kind: see `capture.Site`.
        neurons: channels or features in front of it.
        entropy: mean ON/OFF entropy over all neurons in bits; z = 0 counts as OFF.
        entropy_mixed: mean over the neurons that switch, zeros left out (NEPENTHE).
        always_on, always_off, mixed: neurons.
        upper_share: share of values in the upper region of ReLU6 or h-swish.
        unexplained: share of the output variance that the best affine map per neuron leaves.
        margin: smallest |z| of constant neurons; 0 if some neuron switches.
        flip_bound: 95 % bound of the probability that an image flips a constant neuron, 3/n.
        barrier: None if removing it lets two layers merge, else what stands in the way.
    """

    name: str
    kind: str
    neurons: int
    entropy: float
    entropy_mixed: float
    always_on: int
    always_off: int
    mixed: int
    upper_share: float
    unexplained: float
    margin: float
    flip_bound: float
    barrier: str | None


@dataclass(frozen=True)
class Analysis:
    """All activations of a model, in the order of their calls."""

    model: str
    data: str
    part: str
    images: int
    sites: list[SiteReport]
    layer_barriers: list[tuple[str, str]]


def analyze(
    model: str, data: str, *, weights: str | None = None, size: int | None = None, limit: int | None = None, seed: int = 0
) -> Analysis:
    """Count, fit and trace; arguments as of the command.

    Raises:
        InputError: a model that cannot be traced or calls no activation, unknown names, unreadable files.
    """
    images = load_images(data, size=size, limit=limit, seed=seed)
    network = build(model, images.shape, len(images.classes), seed).eval()
    if weights is not None:
        from edge_shared.artifacts import load_weights as read

        load_weights(network, read(weights), weights)
    batches = list(images.loader("train", 256))[:8]
    example = batches[0][0][:1]
    gm = capture(network, example)
    counts, moments, barriers = count(gm, batches), measure(gm, batches), mergeable_sites(gm)
    reports = []
    for site in sites(gm):
        seen = counts[site.name]
        on, off = int(seen.always_on.sum()), int(seen.always_off.sum())
        reports.append(
            SiteReport(
                site.name, site.kind, site.channels, seen.layer_entropy(), seen.layer_entropy("ignored", "mixed"), on, off, site.channels - on - off,
                float(seen.upper.sum()) / max(1, seen.total * site.channels), unexplained(moments[site.name]), seen.margin, seen.flip_bound,
                barriers[site.name],
            )
        )  # fmt: skip
    found = Finder(prepare(gm, example)).barriers()
    return Analysis(model, data, "training part", next(iter(counts.values())).images, reports, [(b.layer, b.reason) for b in found])
