"""The compression methods as `ondevice-train fit` calls them: one function per row of `ondevice_train.methods`."""

from __future__ import annotations

import inspect
from collections.abc import Callable

from edge_shared.errors import InputError
from torch import Tensor, nn

from ondevice_train.compression.planner import plan
from ondevice_train.compression.predict import predict
from ondevice_train.compression.prepare import codec_state, load_codec_state, prepare, restore
from ondevice_train.methods import MethodOptions, Prepared

Entry = Callable[[nn.Module, Tensor, MethodOptions], Prepared]
_SETTINGS = tuple(
    name
    for name, parameter in inspect.signature(plan).parameters.items()
    if parameter.kind is inspect.Parameter.KEYWORD_ONLY and name not in ("labels", "last", "head")
)


def _entry(method: str) -> Entry:
    def prepare_model(model: nn.Module, example: Tensor, options: MethodOptions) -> Prepared:
        if unknown := sorted(set(options.options) - set(_SETTINGS)):
            raise InputError(f"method {method} has no option {unknown[0]!r}; known: {', '.join(_SETTINGS)}")
        settings = dict(options.options)
        if isinstance(names := settings.get("layers"), str):
            settings["layers"] = [name.strip() for name in names.split(",") if name.strip()]
        made = plan(model, example, options.budget, method, last=options.last, head=options.head, **settings)
        prepare(model, made)

        def put_back() -> None:
            restore(model)

        return Prepared(
            made.predicted_bytes,
            restore=put_back,
            state_dict=lambda: codec_state(model),
            load_state_dict=lambda state: load_codec_state(model, state),
            predict=lambda: predict(model, example).bytes,
        )

    return prepare_model


asi = _entry("asi")
asi_paper = _entry("asi-paper")
hosvd = _entry("hosvd")
svd = _entry("svd")
wasi = _entry("wasi")
fixed_bases = _entry("fixed-bases")
gradient_filter = _entry("gradient-filter")
quantise = _entry("quantise")
checkpointing = _entry("checkpointing")
plain = _entry("plain")
auto = _entry("auto")
