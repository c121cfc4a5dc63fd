"""Which forward hooks change what a model computes, and which only look on: tried on the spec's example.

`fastsnn_core.bundle_checks` asks `changing` (entry point ``fastsnn1.hooks``) before a bundle is written, since a bundle
holds no hooks.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fastsnn_core.bundle_checks import TABLES


def changing(model: nn.Module, names: Sequence[str]) -> list[str]:
    """Those of the modules `names` whose hooks return something, write into a tensor, or fail on the spec's example.

    The model is run once in evaluation mode, without gradients; its mode, hooks and random state are as before.
    """
    owners = [(name, model.get_submodule(name)) for name in names]
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
    return [n for n, _ in owners if not all(quiet.get((n, t, k), False) for t in TABLES for k in before[n, t])]


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
        before = [(t, t._version) for t in tensors_in((args, kwargs)) if not t.is_inference()]
        found = hook(module, *args, **kwargs)
        same = found is None and all(t._version == version for t, version in before)
        quiet[where] = quiet.get(where, True) and same
        return found

    return watched


def tensors_in(tree: Any) -> Iterator[Tensor]:
    """Every tensor in nested tuples, lists and dicts; of spikes their counts."""
    if isinstance(tree, Tensor):
        yield tree
    elif isinstance(tree, tuple | list):
        for item in tree:
            yield from tensors_in(item)
    elif isinstance(tree, dict):
        yield from tensors_in(list(tree.values()))
    elif isinstance(counts := getattr(tree, "counts", None), Tensor):
        yield counts
