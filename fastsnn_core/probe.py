"""Watching spikes: what every spiking module emitted while a block of code ran.

    with probe(model) as trace:
        model(tokens)
    trace["layers.0.attention.inner"].spikes

Any module that makes spikes (numbers in, a SpikeTensor or a tuple that starts with one out) is recorded, whoever wrote
it; modules that only pass spikes on (a pool, a flatten) or hand out what a part of them made are not, so that no spike
is counted twice. torch's own modules do one or the other, so they get no hook.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import attrs
from torch import Tensor, nn

from fastsnn_core.moved import former
from fastsnn_core.site import SpikeSite, is_spikes
from fastsnn_core.spike_tensor import SpikeTensor


@attrs.frozen(eq=False)
class Record:
    """One call of one spiking module: what went in (detached), the spikes that came out, and the module.

    `coding` is what wrote the spikes as a train, in the event runtime.
    """

    x: Tensor
    spikes: SpikeTensor
    module: nn.Module
    coding: nn.Module | None = None


Trace = dict[str, Record]


@contextlib.contextmanager
def probe(model: nn.Module, each: Callable[[str, Record], None] | None = None) -> Iterator[Trace]:
    """Record the last call of every spiking module; hooks are gone when the block ends.

    With `each` every call's record is handed to it as soon as it is whole, and nothing is kept: memory does not grow
    with the number of sites.
    """
    trace: Trace = {}
    makers: dict[str, nn.Module] = {}
    handles = []
    whole: list[tuple[str, Record]] = []  # with `each`: the newest record, whose train may still come

    def put(name: str, record: Record) -> None:
        makers[name] = record.module
        if each is None:
            trace[name] = record
            return
        flush()
        whole.append((name, record))

    def flush() -> None:
        if each is not None and whole:
            each(*whole.pop())

    def watch(name: str) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            passes_on = bool(args) and isinstance(args[0], SpikeTensor)
            within = (m for key, m in makers.items() if not name or key == name or key.startswith(f"{name}."))
            if is_spikes(output) and not passes_on and all(m is module for m in within):
                spikes = output if isinstance(output, SpikeTensor) else output[0]
                x, s = args[0], spikes.detach() if spikes.requires_grad else spikes
                put(name, Record(x.detach() if x.requires_grad else x, s, module))

        return hook

    def recode(name: str) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            if name in trace:
                trace[name] = attrs.evolve(trace[name], spikes=output.detach(), coding=module)
            elif whole and whole[-1][0] == name:
                whole[-1] = name, attrs.evolve(whole[-1][1], spikes=output.detach(), coding=module)

        return hook

    for name, module in model.named_modules():
        if isinstance(module, SpikeSite):  # a site repeats what its neuron says
            if module.coding is not None:  # in the event runtime the site's spikes are those of its train
                handles.append(module.coding.register_forward_hook(recode(name)))
        elif not type(module).__module__.startswith("torch.nn.modules.") or "forward" in vars(module):
            handles.append(module.register_forward_hook(watch(name.removesuffix(".neuron"))))
    try:
        yield trace
        flush()
    finally:
        for handle in handles:
            handle.remove()


__getattr__ = former(__name__)  # what moved into fastsnn_scope_sparsity
