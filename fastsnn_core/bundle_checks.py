"""What a bundle could not hold, said before it is written: hooks, other modules than the spec's, weights of NaN.

A bundle is a spec and tensors. What a model computes beyond them would be lost without a word, and what its spec does
not build could not be loaded again; both are refused with what to do. Wrappers are taken off first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import module as torch_module

from fastsnn_core.errors import FastSNNError

TABLES = ("_forward_hooks", "_forward_pre_hooks")
INSIDE = {"OptimizedModule": "_orig_mod", "DataParallel": "module", "DistributedDataParallel": "module"}
INSIDE |= {"AveragedModel": "module"}


class NotSavableError(FastSNNError):
    """What the model is that a bundle cannot hold, and what to do."""


def unwrapped(model: nn.Module) -> nn.Module:
    """The module inside torch.compile, DataParallel, DistributedDataParallel and AveragedModel, however deep."""
    while isinstance(inner := getattr(model, INSIDE.get(type(model).__name__, ""), None), nn.Module):
        model = inner
    return model


def remember(model: nn.Module) -> None:
    """Note the names and shapes that the model's spec builds, so that `check` need not build it again."""
    model.__dict__["_as_built"] = (model.spec, shapes(model))


def shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    """Of everything in its state dict."""
    return {name: tuple(t.shape) for name, t in model.state_dict().items()}


def check(model: nn.Module, twin: Callable[[], nn.Module]) -> None:
    """Raise `NotSavableError` where a bundle of `model` would compute something else, or could not be loaded.

    `twin` makes what loading the bundle would; it is called only where the model has been changed since it was built.
    """
    if not as_built(model):
        compare(shapes(model), shapes(twin()))
    refuse_hooks(model)
    for name, tensor in model.named_parameters():
        finite(name, tensor, bool(torch.isfinite(tensor).all()))
    for name, buffer in model.named_buffers():
        finite(name, buffer, not bool(buffer.isnan().any()))


def as_built(model: nn.Module) -> bool:
    """Are its tensors those that its spec built?"""
    spec, built = model.__dict__.get("_as_built", (None, None))
    return spec is not None and spec is model.spec and built == shapes(model)


def refuse_hooks(model: nn.Module) -> None:
    """Refuse what changes the numbers of a model beside its modules: forward hooks, and forwards of instances."""
    own = [name or "the model" for name, m in model.named_modules() if "forward" in m.__dict__]
    if own:
        raise NotSavableError(f"{listed(own)} has a forward of its own, which a bundle cannot hold: only the spec's")
    if changing := changing_hooks(model):
        raise NotSavableError(
            f"{listed(changing)} has a forward hook that changes what is computed, which a bundle cannot hold: remove "
            "it (handle.remove()), or make it a part of the network and convert that (fastsnn_convert.convert)"
        )


def finite(name: str, tensor: Tensor, good: bool) -> None:
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


def compare(mine: dict[str, tuple[int, ...]], theirs: dict[str, tuple[int, ...]]) -> None:
    """Refuse a model whose tensors are not those that its spec builds."""
    says = [f"{name} is not in what the spec builds" for name in mine if name not in theirs]
    says += [f"{name} of the spec is not in the model" for name in theirs if name not in mine]
    says += [
        f"{n} has shape {mine[n]}, the spec says {theirs[n]}" for n in mine if n in theirs and mine[n] != theirs[n]
    ]
    if says:
        more = f" (and {len(says) - 3} more)" if len(says) > 3 else ""
        raise NotSavableError(
            f"the model is not the one of its .spec, so its bundle could not be loaded: {'; '.join(says[:3])}{more}. "
            "Undo what was added (remove_weight_norm, parametrize.remove_parametrizations, peft's merge_and_unload), "
            "or build the model with a spec that has it"
        )


# -- hooks ---------------------------------------------------------------------------------------------------------


def changing_hooks(model: nn.Module) -> list[str]:
    """Modules with forward hooks that do more than look on: tried on the spec's example, where there are any hooks."""
    owners = [(name, m) for name, m in model.named_modules() if any(m.__dict__[table] for table in TABLES)]
    everywhere = any(getattr(torch_module, name) for name in ("_global_forward_hooks", "_global_forward_pre_hooks"))
    found = ["every module (register_module_forward_hook)"] if everywhere else []
    if not owners:
        return found
    quiet: dict[Any, bool] = {}
    before = {(name, table): dict(m.__dict__[table]) for name, m in owners for table in TABLES}
    training = [m for m in model.modules() if m.training]
    try:
        for name, m in owners:
            for table in TABLES:
                for key, hook in before[name, table].items():
                    m.__dict__[table][key] = watching(hook, quiet, (name, table, key))
        model.eval()
        with torch.no_grad(), torch.random.fork_rng():
            model(example_of(model))
    except Exception:  # a hook that fails on the example is none that only looks on
        quiet.clear()
    finally:
        for name, m in owners:
            for table in TABLES:
                m.__dict__[table].update(before[name, table])
        for m in training:
            m.training = True
    bad = [n for n, _ in owners if not all(quiet.get((n, t, k), False) for t in TABLES for k in before[n, t])]
    return found + [name or "the model" for name in bad]


def example_of(model: nn.Module) -> Any:
    """The spec's example, where the model is and in its number type."""
    spec: Any = model.spec
    like = next(model.parameters(), None)
    example = spec.example(1)
    if like is None or not isinstance(example, Tensor):
        return example
    return example.to(like.device, like.dtype) if example.is_floating_point() else example.to(like.device)


def watching(hook: Any, quiet: dict[Any, bool], where: Any) -> Any:
    """`hook`, noting in ``quiet[where]`` whether it returned nothing and left every tensor as it was."""

    def watched(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        before = [(t, t._version) for t in tensors((args, kwargs)) if not t.is_inference()]
        found = hook(module, *args, **kwargs)
        same = found is None and all(t._version == version for t, version in before)
        quiet[where] = quiet.get(where, True) and same
        return found

    return watched


def tensors(tree: Any) -> Iterator[Tensor]:
    """Every tensor in nested tuples, lists and dicts; of spikes their counts."""
    if isinstance(tree, Tensor):
        yield tree
    elif isinstance(tree, tuple | list):
        for item in tree:
            yield from tensors(item)
    elif isinstance(tree, dict):
        yield from tensors(list(tree.values()))
    elif isinstance(counts := getattr(tree, "counts", None), Tensor):
        yield counts
