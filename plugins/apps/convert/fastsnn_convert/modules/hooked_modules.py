"""A module's forward hooks as a module around it, which tracing looks into; hooks that only look on are taken away."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from torch import nn

from fastsnn_modules.hooks import watching

HOOKS = (
    "_forward_hooks", "_forward_hooks_with_kwargs", "_forward_hooks_always_called",
    "_forward_pre_hooks", "_forward_pre_hooks_with_kwargs",
)  # fmt: skip


INNER = "_hooked_"  # a path segment that a network's names do not show


class WithHooks(nn.Module):
    """``inner`` with its forward hooks around it, as a module that is traced into."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.training = inner.training
        for name in HOOKS:
            self.__dict__[name], inner.__dict__[name] = inner.__dict__[name], type(inner.__dict__[name])()
        self.add_module(INNER, inner)

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__(INNER), name)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The inner module; hooks run around it by torch."""
        return self.get_submodule(INNER)(*args, **kwargs)


def hooks_outside(module: nn.Module) -> nn.Module:
    """A module without hooks of its own; those it had stand around it."""
    for name in ("_backward_hooks", "_backward_pre_hooks"):
        module.__dict__[name] = type(module.__dict__[name])()
    return WithHooks(module) if module._forward_hooks or module._forward_pre_hooks else module


def hooked(model: nn.Module) -> Iterator[WithHooks]:
    """Every module of a tree that stands for one with hooks."""
    return (m for m in model.modules() if isinstance(m, WithHooks))


def drop_observers(model: nn.Module, run: Callable[[nn.Module], Any]) -> None:
    """Run once, and take hooks away that returned nothing new and changed nothing in place (recorders, printers)."""
    wrappers = list(hooked(model))
    if not wrappers:
        return
    quiet: dict[Any, bool] = {}
    kept: dict[tuple[int, str, int], Any] = {}
    for wrapper in wrappers:
        for table in ("_forward_hooks", "_forward_pre_hooks"):
            for key, hook in list(wrapper.__dict__[table].items()):
                where = (id(wrapper), table, key)
                kept[where] = hook
                wrapper.__dict__[table][key] = watching(hook, quiet, where)
    try:
        run(model)
    finally:
        for wrapper in wrappers:
            for table in ("_forward_hooks", "_forward_pre_hooks"):
                for key in list(wrapper.__dict__[table]):
                    where = (id(wrapper), table, key)
                    if quiet.get(where, False):
                        del wrapper.__dict__[table][key]
                        for more in ("_with_kwargs", "_always_called"):
                            wrapper.__dict__.get(table + more, {}).pop(key, None)
                    else:
                        wrapper.__dict__[table][key] = kept[where]
