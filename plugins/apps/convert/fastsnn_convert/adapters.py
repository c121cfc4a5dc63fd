"""Adapters of peft (LoRA and its kin), merged into the weights that they change.

    W' = W + s · B A        (LoRA, Hu et al. 2021, arXiv 2106.09685), likewise for peft's other kinds

A merged network computes what the adapted one does, and its layers are plain ones that rules and bundles know.
"""

from __future__ import annotations

import copy
from typing import Any

from torch import nn

from fastsnn_conversion.context import ConversionError


def is_adapter(module: Any) -> bool:
    """A module of peft's own."""
    return isinstance(module, nn.Module) and type(module).__module__.startswith("peft.")


def without_adapters(model: nn.Module) -> nn.Module:
    """`model` itself with its adapters merged in place, out of peft's wrapper; as it is where it has none.

    Errors (ConversionError): adapters that are no change of weights (prompts, prefixes).
    """
    if not any(is_adapter(module) for module in model.modules()):
        return model
    try:
        if is_adapter(model):
            return model.merge_and_unload()  # type: ignore[operator]
        for name, module in list(model.named_modules()):
            if is_adapter(module) and hasattr(module, "get_base_layer"):
                module.merge()
                model.set_submodule(name, module.get_base_layer())
    except (AttributeError, NotImplementedError, ValueError, TypeError) as error:
        raise ConversionError(
            f"the adapter of {type(model).__name__} cannot be merged into the weights ({error}); convert takes LoRA "
            "and other adapters that change weights, or the network without one"
        ) from error
    return model


def merged_copy(source: Any) -> Any:
    """A language model of transformers in memory without adapters, in a copy; anything else as it is."""
    inside = source.get_base_model() if is_adapter(source) and hasattr(source, "get_base_model") else source
    if not type(inside).__module__.startswith("transformers.") or not any(map(is_adapter, source.modules())):
        return source
    plain = without_adapters(copy.deepcopy(source))
    plain._hf_peft_config_loaded = False  # type: ignore[assignment]  # or only the adapter would be saved
    return plain
