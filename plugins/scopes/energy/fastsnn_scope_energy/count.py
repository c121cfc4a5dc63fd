"""The counting pass: which layer received which spikes, how many events, and every other multiplication of the model.

`tally` runs the model once with the naive operators, so that no compiled kernel hides work, and watches three levels:
modules (who makes spikes, who consumes them), functions (linear layers, convolutions, attention) and, for what is
left, the operators behind them (matrix products and elementwise products).
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from fastsnn_core import SpikeSite, SpikeTensor, ops
from fastsnn_core.moved import renamed
from fastsnn_core.site import is_spikes
from fastsnn_core.state import nbytes
from fastsnn_core.subject import Subject
from fastsnn_events.coding import Coding
from fastsnn_events.runtime import codings
from fastsnn_integer.quantization import QuantEmbedding
from fastsnn_modules.site_views import bitwise_spikes
from fastsnn_modules.wrappers import hands_on_weight
from fastsnn_scope_energy.counting_modes import Functions, Operators, exact_forms
from fastsnn_scope_energy.operation_counts import LayerCost, OperationCounts, Site, SpikeRecord


class Watcher:
    """Fills `OperationCounts` while its modes and hooks are on."""

    def __init__(self, model: nn.Module, found: OperationCounts) -> None:
        self.model, self.found = model, found
        self.names = {id(p): n.removesuffix(".weight") for n, p in model.named_parameters()}
        self.made: dict[int, tuple[SpikeTensor, SpikeRecord]] = {}
        self.quiet = 0
        self.recoded: dict[str, int] = {}  # sites that write trains, and the membrane bytes of their neurons
        self.stack: list[tuple[int, int]] = []

    # -- modules -------------------------------------------------------------------------------------------------

    def before(self, module: Any, args: tuple[Any, ...]) -> None:
        """Remember what was counted so far; a linear layer with a kernel of its own is counted here."""
        self.stack.append((self.found.attention_macs, self.found.products))
        if own_kernel(module, args):
            if not self.quiet:
                name = next(n for n, m in self.model.named_modules() if m is module)
                self.linear(args[0], module.in_features, module.out_features, name)
            self.quiet += 1

    def after(self, name: str, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        """A module that makes spikes is a site; its own arithmetic is costed per channel, not counted here."""
        before = self.stack.pop()
        if own_kernel(module, args):
            self.quiet -= 1
        elif isinstance(module, QuantEmbedding):
            self.found.embedded += output.numel()
        if not is_spikes(output):
            return
        spikes = output if isinstance(output, SpikeTensor) else output[0]
        if id(spikes) in self.made:
            return  # a container that hands on what a module inside it made
        self.found.attention_macs, self.found.products = before
        membrane = nbytes(output[1]) // max(1, len(spikes)) if isinstance(output, tuple) and len(output) > 1 else 0
        if name in self.recoded and not isinstance(module, Coding):
            self.recoded[name] = membrane  # these counts leave the site as a train, which is what is counted
            return
        site = self.found.sites[self.counts(spikes, name).site]
        site.membrane_bytes += membrane + self.recoded.get(name, 0)

    def counts(self, spikes: SpikeTensor, name: str) -> SpikeRecord:
        """The counts of a SpikeTensor, entered under its site the first time it is seen."""
        if id(spikes) in self.made:
            return self.made[id(spikes)][1]
        magnitude = spikes.counts.detach().abs().round().long()
        found = SpikeRecord(name, (magnitude != 0).long(), bitwise_spikes(spikes), magnitude)
        self.made[id(spikes)] = (spikes, found)
        site = self.found.sites.setdefault(name, Site(name))
        site.channels += magnitude.numel()
        site.active += int(found.active.sum())
        site.spikes += int(found.bits.sum())
        site.unary += int(magnitude.sum())
        site.largest = max(site.largest, int(magnitude.max()) if magnitude.numel() else 0)
        site.signed |= bool((spikes.counts < 0).any())
        site.width = magnitude.shape[-1] if magnitude.ndim < 4 else magnitude.shape[1]
        return found

    def heard(self, x: Tensor | SpikeTensor) -> SpikeRecord | None:
        """The counts behind a layer's input: spikes, or a site's spikes reshaped; None for other numbers."""
        if isinstance(x, SpikeTensor):
            return self.counts(x, "(not at a site)")
        for spikes, counts in reversed(self.made.values()):
            if spikes.numel() == x.numel() and torch.equal(spikes.value().reshape(-1).to(x.dtype), x.reshape(-1)):
                shape = [t.reshape(x.shape) for t in (counts.active, counts.bits, counts.unary)]
                return SpikeRecord(counts.site, *shape)
        return None

    # -- weighted layers -----------------------------------------------------------------------------------------

    def layer(self, name: str, site: str, weights: int) -> LayerCost:
        """The row of a layer and the site it reads."""
        return self.found.layers.setdefault((name, site), LayerCost(name, site, weights))

    def linear(self, x: Tensor | SpikeTensor, inputs: int, outputs: int, name: str) -> None:
        """MACs = channels · outputs, SOPs = spikes · outputs; a token reads the weight rows of its active channels."""
        counts = self.heard(x)
        row = self.layer(name, counts.site if counts else "", inputs * outputs)
        macs = x.numel() * outputs
        active = int(counts.active.sum()) * outputs if counts else macs
        row.inputs += x.numel()
        row.outputs += x.numel() // max(1, inputs) * outputs
        row.macs += macs
        row.active_macs += active
        row.reads += macs
        row.active_reads += active
        if counts:
            row.sops += int(counts.bits.sum()) * outputs
            row.sops_unary += int(counts.unary.sum()) * outputs

    def convolution(self, func: Any, x: Any, weight: Tensor, rest: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Every input's fan-out is counted by convolving with ones, so padding and stride are exact."""
        kwargs = {k: v for k, v in kwargs.items() if k != "bias"}
        ones = torch.ones_like(weight, dtype=torch.float64)

        def total(t: Tensor) -> int:
            return int(func(t.double(), ones, None, *rest[1:], **kwargs).sum())

        counts = self.heard(x)
        row = self.layer(self.names.get(id(weight), "(functional)"), counts.site if counts else "", weight.numel())
        shape = torch.ones(x.shape, dtype=torch.float64, device=weight.device)
        macs, samples = total(shape), x.shape[0] if x.ndim == weight.ndim else 1
        row.inputs += x.numel()
        row.outputs += int(func(shape, ones[:, :], None, *rest[1:], **kwargs).numel())
        row.macs += macs
        row.active_macs += total(counts.active) if counts else macs
        row.reads += samples * weight.numel()
        row.active_reads += samples * weight.numel()
        if counts:
            row.sops += total(counts.bits)
            row.sops_unary += total(counts.unary)

    def attention(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, causal: bool) -> None:
        """MACs of the query–key pairs that may see each other: pairs · (K + V)."""
        t, s = q.shape[-2], k.shape[-2]
        if mask is not None:
            allowed = mask if mask.dtype == torch.bool else mask > -torch.inf
            pairs = int(allowed.expand(*q.shape[:-1], s).sum())
        else:
            each = sum(min(i + 1, s) for i in range(t)) if causal else t * s
            pairs = q.numel() // max(1, t * q.shape[-1]) * each
        self.found.attention_macs += pairs * (q.shape[-1] + v.shape[-1])


def own_kernel(module: nn.Module, args: tuple[Any, ...]) -> bool:
    """A linear layer that does not go through ``F.linear``: it names its sizes and is no `torch.nn.Linear`.

    It is one where it gets spikes or numbers; a table that is the embedding, too, gets token ids as well.
    """
    sizes = getattr(module, "in_features", None), getattr(module, "out_features", None)
    linear = (
        all(isinstance(n, int) for n in sizes) and not isinstance(module, nn.Linear) and not hands_on_weight(module)
    )
    x = args[0] if args else None
    return linear and (isinstance(x, SpikeTensor) or (isinstance(x, Tensor) and x.is_floating_point()))


@contextlib.contextmanager
def counting_hooks(model: nn.Module, watcher: Watcher) -> Iterator[None]:
    """Hooks and modes on; all gone when the block ends."""
    handles = []
    watcher.recoded = {name: 0 for name, coding in codings(model).items() if coding.active}
    for name, module in model.named_modules():
        handles.append(module.register_forward_pre_hook(watcher.before))
        site = name.removesuffix(".neuron").removesuffix(".coding") if not isinstance(module, SpikeSite) else name

        def after(module: nn.Module, args: tuple[Any, ...], output: Any, site: str = site) -> None:
            watcher.after(site, module, args, output)

        handles.append(module.register_forward_hook(after))
    try:
        with ops.use("naive"), exact_forms(watcher), Functions(watcher), Operators(watcher):
            yield
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def tally(subject: Subject) -> OperationCounts:
    """Count one pass of the subject's model over its inputs, in evaluation mode."""
    model, inputs = subject.model, subject.inputs
    language = subject.is_language_model
    found = OperationCounts(inputs.numel() if language else inputs.shape[0], "token" if language else "sample")
    streams = language and "return_state" in inspect.signature(model.forward).parameters
    training = model.training
    model.eval()
    try:
        with counting_hooks(model, Watcher(model, found)):
            out = model(inputs, return_state=True) if streams else model(inputs)
    finally:
        model.train(training)
    if streams:
        membranes = sum(site.membrane_bytes for site in found.sites.values())
        found.state_bytes = held(out[1]) // len(inputs) - membranes
    return found


def held(state: Any) -> int:
    """Bytes of a state that a token has to read: of a cache (it says what is ``valid``) only entries that exist."""
    valid = getattr(state, "valid", None)
    if isinstance(valid, Tensor):
        return round(float(valid.double().mean()) * nbytes(state)) if valid.numel() else 0
    if isinstance(state, dict | tuple | list):
        return sum(held(part) for part in (state.values() if isinstance(state, dict) else state))
    return nbytes(state)


__getattr__ = renamed(__name__, {"Tally": "OperationCounts"})
