"""What a bundle could not hold, said before it is written: hooks, other modules than the spec's, weights of NaN.

A bundle is a spec and tensors. What a model computes beyond them would be lost without a word, and what its spec does
not build could not be loaded again; both are refused with what to do. Wrappers are taken off first.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.modules import module as torch_module

from fastsnn_core.errors import FastSNNError
from fastsnn_core.moved import former

TABLES = ("_forward_hooks", "_forward_pre_hooks")
PARALLEL = ("DataParallel", "DistributedDataParallel", "AveragedModel")
INSIDE = dict.fromkeys(PARALLEL, "module") | {"OptimizedModule": "_orig_mod"}


class NotSavableError(FastSNNError):
    """What the model is that a bundle cannot hold, and what to do."""


def unwrapped(model: nn.Module) -> nn.Module:
    """The module inside torch.compile, DataParallel, DistributedDataParallel and AveragedModel, however deep."""
    while isinstance(inner := getattr(model, INSIDE.get(type(model).__name__, ""), None), nn.Module):
        model = inner
    return model


def remember(model: nn.Module) -> None:
    """Note the names and shapes that the model's spec builds, so that `check_savable` need not build it again."""
    model.__dict__["_as_built"] = (model.spec, tensor_shapes(model))


def tensor_shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    """Of everything in its state dict."""
    return {name: tuple(t.shape) for name, t in model.state_dict().items()}


def check_savable(model: nn.Module, twin: Callable[[], nn.Module]) -> None:
    """Raise `NotSavableError` where a bundle of `model` would compute something else, or could not be loaded.

    `twin` makes what loading the bundle would; it is called only where the model has been changed since it was built.
    """
    if not as_built(model):
        refuse_other_shapes(tensor_shapes(model), tensor_shapes(twin()))
    refuse_forward_hooks(model)
    for name, tensor in model.named_parameters():
        check_finite_weights(name, tensor, bool(torch.isfinite(tensor).all()))
    for name, buffer in model.named_buffers():
        check_finite_weights(name, buffer, not bool(buffer.isnan().any()))


def as_built(model: nn.Module) -> bool:
    """Are its tensors those that its spec built?"""
    spec, built = model.__dict__.get("_as_built", (None, None))
    return spec is not None and spec is model.spec and built == tensor_shapes(model)


def refuse_forward_hooks(model: nn.Module) -> None:
    """Refuse what changes the numbers of a model beside its modules: forward hooks, and forwards of instances."""
    own = [name or "the model" for name, m in model.named_modules() if "forward" in m.__dict__]
    if own:
        raise NotSavableError(f"{listed(own)} has a forward of its own, which a bundle cannot hold: only the spec's")
    if changing := changing_hooks(model):
        raise NotSavableError(
            f"{listed(changing)} has a forward hook that changes what is computed, which a bundle cannot hold: remove "
            "it (handle.remove()), or make it a part of the network and convert that (fastsnn_convert.convert)"
        )


def changing_hooks(model: nn.Module) -> list[str]:
    """Modules with forward hooks; of those that a library has watched (entry points ``fastsnn1.hooks``) and found to
    only look on, none."""
    everywhere = any(getattr(torch_module, f"_global{table}") for table in TABLES)
    found = ["every module (register_module_forward_hook)"] if everywhere else []
    hooked = [name for name, m in model.named_modules() if any(m.__dict__[table] for table in TABLES)]
    for point in importlib.metadata.entry_points(group="fastsnn1.hooks") if hooked else ():
        hooked = point.load()(model, hooked)
    return found + [name or "the model" for name in hooked]


def check_finite_weights(name: str, tensor: Tensor, good: bool) -> None:
    """Refuse weights that are no numbers."""
    if not good:
        bad = tensor.numel() - int(torch.isfinite(tensor).sum())
        raise NotSavableError(
            f"{name} holds {bad} of {tensor.numel()} values that are NaN or infinite: training diverged, or the "
            "checkpoint is damaged; such a model is not written"
        )


def listed(names: list[str]) -> str:
    """The first three, and how many more."""
    return ", ".join(names[:3]) + (f" (and {len(names) - 3} more)" if len(names) > 3 else "")


def refuse_other_shapes(mine: dict[str, tuple[int, ...]], theirs: dict[str, tuple[int, ...]]) -> None:
    """Refuse a model whose tensors are not those that its spec builds."""
    says = [f"{name} is not in what the spec builds" for name in mine if name not in theirs]
    says += [f"{name} of the spec is not in the model" for name in theirs if name not in mine]
    says += [f"{n} has shape {s}, the spec says {theirs[n]}" for n, s in mine.items() if theirs.get(n, s) != s]
    if says:
        more = f" (and {len(says) - 3} more)" if len(says) > 3 else ""
        raise NotSavableError(
            f"the model is not the one of its .spec, so its bundle could not be loaded: {'; '.join(says[:3])}{more}. "
            "Undo what was added (remove_weight_norm, parametrize.remove_parametrizations, peft's merge_and_unload), "
            "or build the model with a spec that has it"
        )


__getattr__ = former(__name__)  # what moved into fastsnn_modules
