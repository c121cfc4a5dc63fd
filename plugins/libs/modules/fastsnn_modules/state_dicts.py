"""A state dict that does not fit a model: which names, which sizes, and what such names come from."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fastsnn_core.errors import ArgumentError, FastSNNError, shape_text

MOST = 4  # names that an error lists
PREFIXES = {
    "module.": "DataParallel or DistributedDataParallel",
    "_orig_mod.": "torch.compile",
    "model.": "a wrapper with the model inside",
}


class StateDictError(FastSNNError, RuntimeError):
    """A state dict that does not fit a model (a RuntimeError, as torch's own)."""


def check_is_state_dict(model: nn.Module, given: Any) -> None:
    """Raise `ArgumentError` for what is no state dict at all: a path, a module, a checkpoint that holds one."""
    name = type(model).__name__
    if isinstance(given, str | Path):
        raise ArgumentError(
            f"{name}.load_state_dict() takes tensors by name, got the path {str(given)!r}; "
            f"read it first: torch.load(path), safetensors.torch.load_file(path), or FastSNN.load(path) for a bundle"
        )
    if isinstance(given, nn.Module):
        raise ArgumentError(f"{name}.load_state_dict() takes tensors by name, got a module; pass its .state_dict()")
    if not isinstance(given, Mapping):
        raise ArgumentError(f"{name}.load_state_dict() takes tensors by name, got {type(given).__name__}")
    if {"param_groups", "state"} <= given.keys():
        raise ArgumentError(f"{name}.load_state_dict(): this is the state of an optimizer, not of a model")
    inside = [key for key, value in given.items() if isinstance(value, Mapping) and any_tensor(value)]
    if inside and not any_tensor(given):
        choices = " or ".join(f"[{key!r}]" for key in inside)
        raise ArgumentError(
            f"{name}.load_state_dict(): this is a checkpoint that holds state dicts; pass its {choices}"
        )


def any_tensor(given: Mapping[Any, Any]) -> bool:
    """Is one of the values a tensor?"""
    return any(isinstance(value, Tensor) for value in given.values())


def first_names(words: list[str]) -> str:
    """The first few, and how many more."""
    more = f" (and {len(words) - MOST} more)" if len(words) > MOST else ""
    return ", ".join(words[:MOST]) + more


def misfit(model: nn.Module, given: Mapping[str, Any]) -> StateDictError:
    """The error that says which names are missing, unknown or of another size, and where such names come from."""
    wanted = model.state_dict()
    missing = [name for name in wanted if name not in given]
    unknown = [name for name in given if name not in wanted]
    sizes = [
        f"{name} is {shape_text(given[name])}, the model's is {shape_text(wanted[name])}"
        for name in wanted
        if isinstance(given.get(name), Tensor) and given[name].shape != wanted[name].shape
    ]
    strange = [f"{n} is a {type(given[n]).__name__}" for n in wanted if n in given and not isinstance(given[n], Tensor)]
    says = [
        f"{what}: {first_names(names)}"
        for what, names in (
            ("missing", missing),
            ("not in this model", unknown),
            ("of another size", sizes),
            ("no tensor", strange),
        )
        if names
    ]
    says = says or ["the numbers of a part are refused by it"]
    hint = origin(wanted, given, bool(sizes) and not missing and not unknown)
    return StateDictError(f"the state dict does not fit {type(model).__name__}; {'; '.join(says)}. {hint}")


def origin(wanted: Mapping[str, Any], given: Mapping[str, Any], sizes_only: bool) -> str:
    """What such names, or such sizes, come from, and what to do about it."""
    for prefix, maker in PREFIXES.items():
        if given and all(name.startswith(prefix) and name.removeprefix(prefix) in wanted for name in given):
            cut = f"{{name.removeprefix({prefix!r}): t for name, t in state.items()}}"
            return f"Every name begins with {prefix!r}, as {maker} writes them: {cut}"
        if given and all(f"{prefix}{name}" in wanted for name in given):
            return f"The names of this model begin with {prefix!r}: load into the model inside it"
    if any("lora_" in name or ".base_layer." in name for name in given):
        return "These are low-rank adapters (peft): merge them first, merge_and_unload()"
    if any(".self_attn." in name or name.startswith(("model.layers.", "transformer.h.")) for name in given):
        return "These are names of a Hugging Face directory: FastSNN.convert(directory) reads it"
    narrow = any(isinstance(t, Tensor) and t.dtype in (torch.int8, torch.uint8) for t in given.values())
    if narrow and not any(t.dtype in (torch.int8, torch.uint8) for t in wanted.values() if isinstance(t, Tensor)):
        return "It holds the integer weights of an export (w8a, w4a): FastSNN.load(bundle) builds a model of that form"
    if sizes_only:
        return "It is of a model with other sizes: build this one with the spec that the other had (model.spec)"
    return "It is of a model built otherwise: compare the specs (model.spec); strict=False loads what has the same name"
