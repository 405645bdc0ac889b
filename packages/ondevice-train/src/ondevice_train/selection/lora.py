"""LoRA baseline (PEFT extra): low-rank adapters on every linear layer and ungrouped convolution, the classifier trained whole.

Adapters cut gradients and optimizer state, not activations: each adapted layer still keeps its whole input.
"""

from __future__ import annotations

from edge_shared.errors import require
from edge_shared.memory import measure
from torch import Tensor, nn

from ondevice_train.methods import MethodOptions, Prepared


def prepare(model: nn.Module, example: Tensor, options: MethodOptions) -> Prepared:
    """Inject adapters in place; `restore` merges them into the weights.

    Options: ``rank`` (4) and ``alpha`` (2 x rank) of the adapters. `MethodOptions.last` limits them to the last layers. The saved bytes
    are those that were measured on the example: PEFT's own operations follow no rule of ours.
    """
    require("peft", "ondevice-train[peft]")
    from peft import LoraConfig, inject_adapter_in_model
    from peft.tuners.lora import LoraLayer

    rank = int(options.options.get("rank", 4))
    alpha = float(options.options.get("alpha", 2 * rank))
    head = options.head or ""
    names = [
        name
        for name, module in model.named_modules()
        if name != head and (type(module) is nn.Linear or (type(module) is nn.Conv2d and module.groups == 1))
    ]
    names = names[-options.last :] if options.last else names
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    config = LoraConfig(r=rank, lora_alpha=alpha, target_modules=names, lora_dropout=0.0)  # type: ignore[arg-type]
    inject_adapter_in_model(config, model)
    for parameter in model.get_submodule(head).parameters() if head else ():
        parameter.requires_grad_(True)

    def restore() -> None:
        for name, module in list(model.named_modules()):
            if isinstance(module, LoraLayer):
                module.merge()  # type: ignore[attr-defined]
                model.set_submodule(name, module.get_base_layer())
        for parameter in model.parameters():
            parameter.requires_grad_(True)

    return Prepared(measure.training_bytes(model, example).bytes, restore)
