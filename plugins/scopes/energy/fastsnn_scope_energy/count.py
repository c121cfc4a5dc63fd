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

import attrs
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from fastsnn_core import SpikeSite, SpikeTensor, ops
from fastsnn_core.moved import renamed
from fastsnn_core.ops.dispatch import substitute
from fastsnn_core.site import is_spikes
from fastsnn_core.state import nbytes
from fastsnn_core.subject import Subject
from fastsnn_events.runtime import Coding, codings
from fastsnn_integer import deterministic
from fastsnn_integer.quantization import QuantEmbedding
from fastsnn_modules.site_views import bitwise_spikes

CONVOLUTIONS = (F.conv1d, F.conv2d, F.conv3d)
PRODUCTS = ("mul", "mul_", "div", "div_", "pow", "square")
NORMS = ("_fused_rms_norm", "native_layer_norm", "native_group_norm", "native_batch_norm", "_native_batch_norm_legit")


@attrs.define
class Site:
    """Sums over a whole pass: channels seen, those that spoke, their spikes by two codes, and the range of counts.

    `membrane_bytes` is what one stream carries from token to token, `width` the channels of one token.
    """

    name: str
    channels: int = 0
    active: int = 0
    spikes: int = 0
    unary: int = 0
    largest: int = 0
    signed: bool = False
    membrane_bytes: int = 0
    width: int = 0

    @property
    def bits(self) -> int:
        """Bits of a count, its sign included where one occurs."""
        return max(1, self.largest.bit_length()) + self.signed


@attrs.define
class LayerCost:
    """Sums over a whole pass of one weighted layer; `site` is empty where it reads ordinary numbers."""

    name: str
    site: str
    weights: int
    inputs: int = 0
    outputs: int = 0
    macs: int = 0
    active_macs: int = 0
    sops: int = 0
    sops_unary: int = 0
    reads: int = 0
    active_reads: int = 0


@attrs.define
class OperationCounts:
    """Everything that was counted. `tokens` is what the sums are divided by: tokens, or samples of other models."""

    tokens: int
    unit: str
    sites: dict[str, Site] = attrs.field(factory=dict)
    layers: dict[tuple[str, str], LayerCost] = attrs.field(factory=dict)
    attention_macs: int = 0
    products: int = 0
    embedded: int = 0
    state_bytes: int = 0


@attrs.define(eq=False)
class SpikeRecord:
    """What one SpikeTensor says: the site it came from, and per entry whether it spoke, its bits and its magnitude."""

    site: str
    active: Tensor
    bits: Tensor
    unary: Tensor


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


class Functions(TorchFunctionMode):
    """Linear layers, convolutions, attention and embeddings, with what they were given."""

    def __init__(self, watcher: Watcher) -> None:
        super().__init__()
        self.watcher = watcher

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Count the call, then make it; meanwhile the operator level is silent."""
        w, kwargs = self.watcher, kwargs or {}
        if w.quiet or func not in (F.linear, F.scaled_dot_product_attention, F.embedding, *CONVOLUTIONS):
            return func(*args, **kwargs)
        w.quiet += 1
        try:
            if func is F.linear:
                weight = args[1]
                w.linear(args[0], weight.shape[1], weight.shape[0], w.names.get(id(weight), "(functional)"))
            elif func is F.scaled_dot_product_attention:
                bound = dict(zip(("q", "k", "v", "attn_mask", "dropout_p", "is_causal"), args)) | kwargs
                w.attention(bound["q"], bound["k"], bound["v"], bound.get("attn_mask"), bound.get("is_causal", False))
            elif func in CONVOLUTIONS:
                w.convolution(func, args[0], args[1], args[2:], kwargs)
            out = func(*args, **kwargs)
            if func is F.embedding:
                w.found.embedded += out.numel()
            return out
        finally:
            w.quiet -= 1


class Operators(TorchDispatchMode):
    """What is left: matrix products (linear attention and the like) and elementwise products of floats."""

    def __init__(self, watcher: Watcher) -> None:
        super().__init__()
        self.watcher = watcher

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """No: the default wraps this class in torch.compile's machinery, whose import costs seconds."""
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run and count."""
        out = func(*args, **(kwargs or {}))
        if self.watcher.quiet:
            return out
        name = func.overloadpacket.__name__
        if name in ("mm", "bmm", "addmm", "baddbmm", "mv", "dot"):
            a, b = args[-2:] if name in ("mm", "bmm", "mv", "dot") else args[1:3]
            self.watcher.found.attention_macs += a.numel() * (b.shape[-1] if b.ndim > 1 else 1)
        elif name in PRODUCTS and out.is_floating_point():
            self.watcher.found.products += out.numel()
        elif name in NORMS:
            self.watcher.found.products += 2 * out[0].numel()
        return out


def exact_forms(watcher: Watcher) -> contextlib.AbstractContextManager[None]:
    """The integer path's own attention, scans and exponentials are counted as what they are, not by their steps."""

    def attend(q: Tensor, k: Tensor, v: Tensor, allowed: Tensor) -> None:
        watcher.attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), allowed[:, None], False)

    def scan(q: Tensor, k: Tensor, v: Tensor, gate: Tensor, *_: Tensor) -> None:
        b, t, groups, size = k.shape
        per_token = groups * (2 if len(gate) else 1) + q.shape[2]  # decay, update; and every query reads
        watcher.found.attention_macs += b * t * size * v.shape[-1] * per_token

    def quietly(naive: Any, count: Any) -> Any:
        def call(*args: Any) -> Any:
            if not watcher.quiet:
                count(*args)
            watcher.quiet += 1
            try:
                return naive(*args)
            finally:
                watcher.quiet -= 1

        return call

    counters = ((deterministic.ATTEND, attend), (deterministic.SCAN, scan), (deterministic.UNARY, lambda x, form: None))
    return substitute({operator.name: quietly(operator.naive, count) for operator, count in counters})


def own_kernel(module: nn.Module, args: tuple[Any, ...]) -> bool:
    """A linear layer that does not go through ``F.linear``: it names its sizes and is no `torch.nn.Linear`.

    It is one where it gets spikes or numbers; a table that is the embedding, too, gets token ids as well.
    """
    sizes = getattr(module, "in_features", None), getattr(module, "out_features", None)
    linear = all(isinstance(n, int) for n in sizes) and not isinstance(module, nn.Linear)
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
