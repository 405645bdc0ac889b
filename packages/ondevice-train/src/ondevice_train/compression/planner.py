"""From a model, an example batch and a budget to a `Plan`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from edge_shared.errors import InputError
from edge_shared.units import parse_bytes
from torch import Tensor, nn

from ondevice_train.compression._codec import Codec
from ondevice_train.compression._contract import Order
from ondevice_train.compression._geometry import ConvGeometry, geometry_of
from ondevice_train.compression._tucker import rank_for
from ondevice_train.compression.asi import ASI
from ondevice_train.compression.asi_paper import ASIPaper
from ondevice_train.compression.checkpointing import BlockCost, block_costs, blocks
from ondevice_train.compression.fixed_bases import FixedBases
from ondevice_train.compression.hosvd import HOSVD, hosvd_ranks, mode_energies
from ondevice_train.compression.pareto import Infeasible, front, select
from ondevice_train.compression.perplexity import EPSILONS, Judged, LayerTable, Option, judge, layers_of
from ondevice_train.compression.plans import LayerChoice, Plan
from ondevice_train.compression.predict import Prediction, predict
from ondevice_train.compression.prepare import prepare, restore
from ondevice_train.compression.quantise import Quantise
from ondevice_train.compression.recompute import is_attention
from ondevice_train.compression.svd import SVD
from ondevice_train.compression.wasi import factorise

METHODS = ("asi", "asi-paper", "hosvd", "svd", "wasi", "fixed-bases", "gradient-filter", "quantise", "checkpointing", "plain", "auto")


def trained_modules(model: nn.Module, names: Sequence[str]) -> tuple[str, ...]:
    """Modules that train when the named layers do: those, and everything registered after the first of them (norms, head)."""
    order = [name for name, module in model.named_modules() if any(True for _ in module.parameters(recurse=False))]
    if not names:
        return tuple(order)
    first = min(order.index(name) for name in names)
    return tuple(order[first:])


def plan(
    model: nn.Module,
    example: Tensor,
    budget: str | int | None = None,
    method: str = "asi",
    *,
    labels: Tensor | None = None,
    last: int | None = None,
    layers: Sequence[str] | None = None,
    head: str | None = None,
    epsilon: float = 0.8,
    ratio: float = 0.3,
    patch: int = 2,
    bits: int = 8,
    weight_epsilon: float = 0.8,
    basis: str = "calibrated",
    half_core: bool = False,
    pack: bool = True,
    smooth_bits: int = 8,
    max_error: float = 0.5,
) -> Plan:
    """Choose what each trained layer keeps.

    Args:
        model: a plain torch model (not prepared); it is left as it was.
        example: an input batch of the training batch size; HOSVD ranks and gradient errors are taken from it.
        budget: bytes (``"4MiB"``) that the whole model may keep for backward (parameters apart); None for no limit.
        method: one of `METHODS`; ``"auto"`` chooses per layer among exact, low rank, 8 and 4 bits and freezing, and per block to run it
            again, by measured milliseconds and bytes.
        labels: of the example, for the gradient errors.
        last: train the last so many convolutions (linear layers where the model has no others) and what follows them.
        layers: names of the layers to train and compress instead.
        head: the classifier: trains, is never compressed; by default the last linear layer.
        epsilon: explained variance for methods without a budget.
        ratio: share of rows and columns (per axis) that ``fixed-bases`` with a cosine basis keeps.
        patch, bits: of the gradient filter and of quantise.
        weight_epsilon: explained variance of WASI's factored weights.
        basis: ``"calibrated"`` or ``"cosine"`` for ``fixed-bases``.
        half_core: keep cores in bfloat16.
        pack, smooth_bits: see `Plan`.
        max_error: ``auto`` leaves out options whose gradient error exceeds this share of the gradient (freezing aside).

    Returns:
        A plan whose `predicted_bytes` never exceeds the budget. Without a budget, HOSVD and SVD choose their ranks at every step;
        the predicted bytes are then those of the example.

    Raises:
        InputError: unknown method, layer or setting.
        Infeasible: the budget cannot be met; says the smallest that can.
    """
    if method not in METHODS:
        raise InputError(f"method {method!r} is unknown; known: {', '.join(METHODS)}")
    check_settings(
        epsilon=epsilon, ratio=ratio, patch=patch, bits=bits, weight_epsilon=weight_epsilon, basis=basis, half_core=half_core, pack=pack,
        smooth_bits=smooth_bits, max_error=max_error,
    )  # fmt: skip
    limit = None if budget is None else _bytes(budget)
    found = layers_of(model, example)
    names = _chosen([name for name, *_ in found], found, last, layers, head)
    trained = None if last is None and layers is None else trained_modules(model, names)
    if pack and layers is None and method != "wasi":
        # Attention that is run again keeps its input alone, not those of its layers: there is nothing to compress but WASI's weights.
        again = [f"{name}." for name, module in model.named_modules() if is_attention(module)]
        names = [name for name in names if not name.startswith(tuple(again))] or names
    base = Plan(method, (), trained=trained, pack=pack, smooth_bits=smooth_bits, basis=basis, half_core=half_core, budget=limit)
    vanilla = _predicted(model, example, replace(base, pack=False))
    base = replace(base, vanilla_bytes=vanilla)
    if method in ("plain", "checkpointing"):
        made = replace(base, pack=False, blocks=_trained_blocks(model, trained) if method == "checkpointing" else ())
        return _finished(model, example, made)
    if not names:
        raise InputError(
            f"there is nothing for {method} to compress: the model has no Conv2d or Linear that runs once a pass, but its classifier"
        )
    image = {name for name, module, _, _ in found if isinstance(module, nn.Conv2d)}
    if method == "auto":
        return _automatic(model, example, labels, names, image, base, max_error)
    tables = judge(model, example, labels, names, _options(method, epsilon, ratio, patch, bits, base, limit is not None, image))
    picked = _within(model, example, base, tables, limit)
    choices = tuple(_choice(table, judged) for table, judged in zip(tables, picked, strict=True))
    if method == "wasi":
        modules = dict(model.named_modules())
        choices = tuple(
            replace(choice, weight_rank=factorise(modules[choice.name].weight, epsilon=weight_epsilon)[0].shape[1])  # type: ignore[arg-type]
            if choice.kind == "linear" and choice.ranks is not None
            else choice
            for choice in choices
        )
    return _finished(model, example, replace(base, layers=choices))


def check_settings(**values: Any) -> None:
    """Refuse a setting of `plan` of the wrong kind or out of range.

    Raises:
        InputError: naming the setting, what was given and what would be right.
    """
    shares = {"epsilon": "an explained variance", "weight_epsilon": "an explained variance", "ratio": "the share of rows and columns kept"}
    for name, meaning in shares.items():
        if not _number(values[name]) or not 0 < values[name] <= 1:
            raise InputError(f"{name} is {values[name]!r}; it is {meaning}, in (0, 1]")
    if not _number(values["max_error"]) or not values["max_error"] >= 0:
        raise InputError(f"max_error is {values['max_error']!r}; it is a share of the gradient, at least 0")
    if type(values["patch"]) is not int or values["patch"] < 1:
        raise InputError(f"patch is {values['patch']!r}; it is a side in pixels, a whole number of at least 1")
    choices = {"bits": (8, 4), "smooth_bits": (8, 4), "basis": ("calibrated", "cosine"), "half_core": (True, False), "pack": (True, False)}
    for name, allowed in choices.items():
        if not any(type(values[name]) is type(value) and values[name] == value for value in allowed):
            raise InputError(f"{name} is {values[name]!r}; choose {' or '.join(str(value).lower() for value in allowed)}")


def _number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _bytes(budget: str | int) -> int:
    try:
        return parse_bytes(budget)
    except InputError as error:
        raise InputError(f"budget: {error}") from error


def _chosen(
    names: list[str],
    found: list[tuple[str, nn.Module, tuple[int, ...], tuple[int, ...]]],
    last: int | None,
    layers: Sequence[str] | None,
    head: str | None,
) -> list[str]:
    linear = [name for name, module, _, _ in found if isinstance(module, nn.Linear)]
    head = head or (linear[-1] if linear else None)
    if layers is not None:
        if isinstance(layers, str) or not layers:
            raise InputError(f"layers is {layers!r}; it is a list of layer names")
        if unknown := [name for name in layers if name not in names]:
            raise InputError(f"layer {unknown[0]!r} is no Conv2d or Linear that runs once on the example; known: {', '.join(names)}")
        return [name for name in names if name in set(layers)]
    body = [name for name, *_ in found if name != head]
    if last is None:
        return body
    convs = [name for name, module, _, _ in found if isinstance(module, nn.Conv2d)]
    pool = convs if len(convs) > 1 else body
    if not pool:
        raise InputError(f"last is {last}; the model has no Conv2d or Linear that runs once a pass, apart from its classifier")
    if not 1 <= last <= len(pool):
        raise InputError(f"last is {last}; the model has {len(pool)} layers to choose from, so it is 1 to {len(pool)}")
    return pool[-last:]


def _trained_blocks(model: nn.Module, trained: tuple[str, ...] | None) -> tuple[str, ...]:
    return tuple(
        block for block in blocks(model) if trained is None or any(name == block or name.startswith(f"{block}.") for name in trained)
    )


def _options(
    method: str, epsilon: float, ratio: float, patch: int, bits: int, base: Plan, budgeted: bool, image: set[str]
) -> Callable[[str, nn.Module, Tensor], list[Option]]:
    epsilons = EPSILONS if budgeted else (epsilon,)

    def options(name: str, module: nn.Module, x: Tensor) -> list[Option]:
        geometry = geometry_of(module)
        conv = name in image
        if method == "quantise":
            return [Option("quantise", lambda: Quantise(bits, conv), bits=bits)]
        if method == "gradient-filter":
            if not isinstance(geometry, ConvGeometry):
                return []
            from ondevice_train.compression.gradient_filter import GradientFilter

            return [Option("filter", lambda: GradientFilter(patch, geometry), bits=patch)]
        if method == "svd":
            energies = mode_energies(x, 0)[0]
            widths = [rank_for(energies, value) for value in epsilons]
            return [Option("compress", lambda r=rank: SVD(rank=r), (rank,), value) for rank, value in zip(widths, epsilons, strict=True)]  # type: ignore[misc]
        choice, order = shape_choice(module)
        if method == "fixed-bases" and base.basis == "cosine":
            shares = (ratio, *(share for share in (0.5, 0.3, 0.2, 0.1) if share < ratio)) if budgeted else (ratio,)
            found = [cosine_ranks(tuple(x.shape), conv, share) for share in shares]
            return [
                Option(choice, lambda r=r: FixedBases(r, "cosine", order, base.half_core, conv), r)  # type: ignore[misc]
                for r in dict.fromkeys(found)
                if r != tuple(x.shape)
            ]
        ranks_of = zip(hosvd_ranks(x, epsilons), epsilons, strict=True)
        made = []
        for ranks, value in ranks_of:
            if ranks == tuple(x.shape) and method not in ("hosvd", "asi-paper"):
                continue
            made.append(
                Option("shortcut" if method in ("hosvd", "asi-paper") else choice, _tucker(method, ranks, order, base, conv), ranks, value)
            )
        return made

    return options


def _tucker(method: str, ranks: tuple[int, ...], order: Order, base: Plan, conv: bool) -> Callable[[], Codec]:
    if method == "hosvd":
        return lambda: HOSVD(ranks=ranks)
    if method == "asi-paper":
        return lambda: ASIPaper(ranks)
    if method == "fixed-bases":
        return lambda: FixedBases(ranks, "calibrated", order, base.half_core, conv)
    return lambda: ASI(ranks, order, base.half_core)


def shape_choice(module: nn.Module) -> tuple[str, Order]:
    """Rebuild the input where the contraction cannot pay: depthwise and other grouped spatial kernels; else the shortcut."""
    grouped = isinstance(module, nn.Conv2d) and module.groups > 1 and max(module.kernel_size) > 1
    return ("compress", "rebuild") if grouped else ("shortcut", "project")


def cosine_ranks(shape: tuple[int, ...], conv: bool, share: float) -> tuple[int, ...]:
    """Ranks of the cosine bases: the share of rows and columns (tokens) kept, batch and channels whole."""
    ranks = list(shape)
    modes = (2, 3) if conv else range(1, len(shape) - 1)
    for mode in modes:
        ranks[mode] = max(1, round(shape[mode] * share))
    return tuple(ranks)


def _choice(table: LayerTable, judged: Judged) -> LayerChoice:
    option = judged.option
    return LayerChoice(
        table.name,
        table.kind,
        table.shape,
        judged.choice,
        ranks=option.ranks if option else None,
        epsilon=option.epsilon if option else None,
        bits=option.bits if option and judged.choice == "quantise" else 8,
        patch=option.bits if option and judged.choice == "filter" else 2,
        bytes=judged.bytes,
        perplexity=judged.perplexity,
        milliseconds=judged.milliseconds,
    )


def _prediction(model: nn.Module, example: Tensor, made: Plan) -> Prediction:
    prepare(model, made)
    try:
        return predict(model, example)
    finally:
        restore(model)


def _predicted(model: nn.Module, example: Tensor, made: Plan) -> int:
    return _prediction(model, example, made).bytes


def _finished(model: nn.Module, example: Tensor, made: Plan) -> Plan:
    prediction = _prediction(model, example, made)
    if made.budget is not None and prediction.bytes > made.budget:
        raise Infeasible(made.budget, prediction.bytes)
    return replace(made, predicted_bytes=prediction.bytes, other_bytes=prediction.other)


def _rest(model: nn.Module, example: Tensor, base: Plan, tables: list[LayerTable]) -> int:
    """Bytes that the model keeps apart from the planned layers' inputs."""
    frozen = tuple(LayerChoice(table.name, table.kind, table.shape, "freeze") for table in tables)
    # A frozen first layer would end the graph before it: the layers must still pass gradients on.
    return _predicted(model, example, replace(base, layers=tuple(replace(choice, choice="quantise") for choice in frozen))) - sum(
        sum(Quantise(8, table.kind == "conv").footprint(table.shape, example.element_size()).values()) for table in tables
    )


def _within(model: nn.Module, example: Tensor, base: Plan, tables: list[LayerTable], limit: int | None) -> list[Judged]:
    """The options that lose least within the limit; without one the option that was asked for, exact where there is none."""
    if limit is None:
        return [next((j for j in table.judged if j.option is not None), table.judged[0]) for table in tables]
    allowed = [[j for j in table.judged if j.choice != "freeze"] for table in tables]
    rest = _rest(model, example, base, tables)
    try:
        index = select([[j.bytes for j in row] for row in allowed], [[j.perplexity for j in row] for row in allowed], limit - rest)
    except Infeasible as error:
        raise Infeasible(limit, rest + error.smallest) from None
    return [row[at] for row, at in zip(allowed, index, strict=True)]


def _automatic(
    model: nn.Module, example: Tensor, labels: Tensor | None, names: list[str], image: set[str], base: Plan, max_error: float
) -> Plan:
    """Per layer the fastest mix within the budget, among options whose gradient error is tolerable."""

    def options(name: str, module: nn.Module, x: Tensor) -> list[Option]:
        conv, found = name in image, [Option("quantise", lambda b=b: Quantise(b, name in image), bits=b) for b in (8, 4)]  # type: ignore[misc]
        for ranks, epsilon in zip(hosvd_ranks(x, EPSILONS), EPSILONS, strict=True):
            if ranks != tuple(x.shape):
                found.append(Option("compress", _tucker("asi", ranks, "rebuild", base, conv), ranks, epsilon))
                found.append(Option("shortcut", _tucker("asi", ranks, "project", base, conv), ranks, epsilon))
        return found

    tables = judge(model, example, labels, names, options, timed=True)
    tolerable = [[j for j in table.judged if j.choice == "freeze" or j.perplexity <= max_error * table.norm] for table in tables]
    # Freezing is a last resort: it costs the whole gradient, so it enters only where nothing else fits.
    trained = [[j for j in row if j.choice != "freeze"] for row in tolerable]
    if base.budget is None:
        picked = [min(row, key=lambda j: j.milliseconds or 0.0) for row in trained]
        return _finished(model, example, replace(base, layers=tuple(_choice(t, j) for t, j in zip(tables, picked, strict=True))))
    rest = _rest(model, example, base, tables)
    smallest = float("inf")
    for rows, loss in ((trained, "milliseconds"), (tolerable, "perplexity")):
        # Blocks are run again where that is the cheaper way; only by milliseconds, since it loses no gradient.
        again = _run_again(model, example, base, tables) if loss == "milliseconds" else {}
        made, least = _mixed(model, example, base, tables, rows, loss, again, rest)
        if made is not None:
            return made
        smallest = min(smallest, least)
    exact = replace(base, pack=False, blocks=_trained_blocks(model, base.trained))
    size = _predicted(model, example, exact)
    if size <= base.budget:
        return replace(exact, predicted_bytes=size)
    raise Infeasible(base.budget, min(smallest, size))


def _run_again(model: nn.Module, example: Tensor, base: Plan, tables: list[LayerTable]) -> dict[str, tuple[BlockCost, int]]:
    """Blocks that can be run again, what that costs, and the bytes of masks and norms inside that it frees."""
    inside = _prediction(model, example, base).layers
    found = {}
    for cost in block_costs(model, example, _trained_blocks(model, base.trained)):
        prefix = f"{cost.name}."
        if any(table.name.startswith(prefix) for table in tables):
            found[cost.name] = (cost, sum(size for name, size in inside.items() if name.startswith(prefix)))
    return found


def _mixed(
    model: nn.Module,
    example: Tensor,
    base: Plan,
    tables: list[LayerTable],
    rows: list[list[Judged]],
    loss: str,
    again: dict[str, tuple[BlockCost, int]],
    rest: int,
) -> tuple[Plan | None, float]:
    """The least loss within the budget over layers and, as wholes, over the blocks of `again`; else None and the bytes needed."""
    assert base.budget is not None
    groups: dict[str, list[int]] = {}
    for index, table in enumerate(tables):
        owner = next((name for name in again if table.name.startswith(f"{name}.")), f"{table.name} alone")
        groups.setdefault(owner, []).append(index)
    options: dict[str, list[tuple[float, float, tuple[int, ...]]]] = {}
    for owner, members in groups.items():
        options[owner] = front([[j.bytes for j in rows[i]] for i in members], [[getattr(j, loss) for j in rows[i]] for i in members])
        if owner in again:
            cost, freed = again[owner]
            exact = sum(rows[i][0].milliseconds or 0.0 for i in members)
            options[owner].append((cost.bytes - freed, exact + cost.milliseconds, ()))
    limit = float(base.budget - rest)
    for _ in range(4):
        try:
            at = select([[o[0] for o in row] for row in options.values()], [[o[1] for o in row] for row in options.values()], limit)
        except Infeasible as error:
            return None, base.budget - limit + error.smallest
        chosen = {owner: row[way][2] for (owner, row), way in zip(options.items(), at, strict=True)}
        picked = {i: rows[i][way] for owner, ways in chosen.items() if ways for i, way in zip(groups[owner], ways, strict=True)}
        layers = tuple(
            _choice(table, picked[i])
            if i in picked
            else LayerChoice(table.name, table.kind, table.shape, "checkpoint", perplexity=0.0, milliseconds=table.judged[0].milliseconds)
            for i, table in enumerate(tables)
        )
        made = replace(base, layers=layers, blocks=tuple(owner for owner, ways in chosen.items() if not ways))
        prediction = _prediction(model, example, made)
        if prediction.bytes <= base.budget:
            return replace(made, predicted_bytes=prediction.bytes, other_bytes=prediction.other), 0.0
        # What a block's neighbours share is only known of the whole plan: ask for that much less.
        limit -= prediction.bytes - base.budget
    return None, float("inf")
