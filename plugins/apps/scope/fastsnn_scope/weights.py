"""Which weights stand behind which spikes: a short pass that notes every matrix and the site that feeds it.

A matrix ``[out, in]`` that a token reads whole has ``in`` rows of ``weight bytes / in``; a silent channel leaves its
row unread. Embeddings are looked up, not read whole, and convolutions share their weights between positions: both are
left out of the account.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import attrs
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from fastsnn_core.probe import probe
from fastsnn_core.spike_tensor import SpikeTensor
from fastsnn_modules.wrappers import hands_on_weight


@attrs.frozen
class Matrix:
    """One weighted layer; `site` is empty where it reads numbers instead of spikes."""

    layer: str
    site: str
    inputs: int
    outputs: int
    nbytes: int

    @property
    def row_bytes(self) -> float:
        """Bytes behind one input channel."""
        return self.nbytes / max(1, self.inputs)


def storage_of(spikes: SpikeTensor) -> int:
    """Where the spikes lie in memory: shared by views and detached copies of them."""
    return int(spikes._data.data_ptr())


def size(module: nn.Module | None, weight: Tensor) -> int:
    """Bytes of a matrix with the scales that are read beside it."""
    beside = [getattr(module, name, None) for name in ("scale", "minimum")] if module is not None else []
    return sum(t.numel() * t.element_size() for t in [weight, *beside] if isinstance(t, Tensor))


class LinearCalls(TorchFunctionMode):
    """Calls of ``F.linear`` that no module makes: a head that is tied to the embedding."""

    def __init__(self, seen: Callable[[Tensor, Any], None]) -> None:
        super().__init__()
        self.seen = seen

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Note it, then make it."""
        if func is F.linear and isinstance(args[1], Tensor):
            self.seen(args[1], args[0])
        return func(*args, **(kwargs or {}))


@torch.no_grad()
def matrices(model: nn.Module, inputs: Tensor) -> list[Matrix]:
    """Every matrix of one short pass over `inputs`, each once, in the order they are read."""
    found: dict[str, Matrix] = {}
    names = {id(p): n.removesuffix(".weight") for n, p in [*model.named_parameters(), *model.named_buffers()]}
    inside, handles = [0], []

    def note(name: str, module: nn.Module | None, weight: Tensor, x: Any) -> None:
        numbers = isinstance(x, Tensor) and x.is_floating_point()
        if name in found or weight.ndim != 2 or not (numbers or isinstance(x, SpikeTensor)):
            return
        site = sites.get(storage_of(x), "") if isinstance(x, SpikeTensor) else ""
        outputs = int(getattr(module, "out_features", 0)) or weight.shape[0]
        found[name] = Matrix(name, site, int(x.shape[-1]), outputs, size(module, weight))

    def before(name: str) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...]) -> None:
            sites.update({storage_of(record.spikes): site for site, record in trace.items()})
            if args:
                note(name, module, module.weight, args[0])  # type: ignore[arg-type]
            inside[0] += 1

        return hook

    def after(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        inside[0] -= 1

    def functional(weight: Tensor, x: Any) -> None:
        if not inside[0] and id(weight) in names:
            sites.update({storage_of(record.spikes): site for site, record in trace.items()})
            note(names[id(weight)] + " (as the head)", None, weight, x)

    sites: dict[int, str] = {}
    training = model.training
    model.eval()
    try:
        with probe(model) as trace, LinearCalls(functional):
            for name, module in model.named_modules():
                holds = isinstance(getattr(module, "weight", None), Tensor) and not hands_on_weight(module)
                if holds and not isinstance(module, nn.Embedding):
                    handles.append(module.register_forward_pre_hook(before(name)))
                    handles.append(module.register_forward_hook(after))
            model(inputs)
    finally:
        for handle in handles:
            handle.remove()
        model.train(training)
    return list(found.values())
