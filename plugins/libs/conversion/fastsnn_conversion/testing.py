"""What conversion rules promise: the value of what they replace, and spikes that are exact.

    check_rule(MyRule(), MyModule(), torch.randn(4, 8))

Everything runs in float64; "equal" is 1e-9 relative. With whole-number weights, counts and trains give the same bits.
"""

from __future__ import annotations

import contextlib
import copy
from typing import Any

import torch
from attrs import frozen
from torch import Tensor, nn

from fastsnn_conversion.context import Context, Replacement, channels_of
from fastsnn_conversion.time_folding import TimeFoldedSite
from fastsnn_core.component import Neuron, Rule
from fastsnn_core.site import SpikeSite
from fastsnn_core.spike_tensor import SpikeTensor
from fastsnn_kit.checks import check_close, dense_value, label
from fastsnn_leaky.neurons import Leaky


@frozen
class Counter(Neuron):
    """round(x / θ) up to ±levels, without a membrane: the plainest neuron there is, so that rules are tested alone."""

    name = "counter"
    levels: int = 7

    def build(self, features: int) -> Leaky:
        """The module."""
        return Leaky(beta=0.0, threshold=0.25, lo=-float(self.levels), hi=float(self.levels))


def counting_site(features: int, channels: int) -> TimeFoldedSite:
    """A site of the plainest neuron."""
    return TimeFoldedSite.of(Counter(), features or 1, channels).double()


def context(name: str = "part", **known: Any) -> Context:
    """A context as the engine would give, with a site maker that needs no plugin."""
    return Context(name, counting_site, **known)


def spikes_like(x: Tensor, seed: int = 0) -> SpikeTensor:
    """Spikes of x's shape: counts of both signs up to 7, one positive threshold per sample."""
    counts = torch.randint(-7, 8, x.shape, generator=torch.Generator().manual_seed(seed)).double()
    return SpikeTensor(counts, torch.linspace(0.3, 1.7, len(x), dtype=torch.float64).reshape(-1, *[1] * (x.ndim - 1)))


def binary_slots(spikes: SpikeTensor) -> list[tuple[int, SpikeTensor]]:
    """The binary digits of the counts, signed: ``(weight, spikes in {-1, 0, 1})``, most significant first."""
    counts = spikes.counts.to(torch.int64)
    bits = max(1, int(counts.abs().max()).bit_length()) if counts.numel() else 1
    return [
        (1 << p, SpikeTensor((((counts.abs() >> p) & 1) * counts.sign()).double(), spikes.scale))
        for p in reversed(range(bits))
    ]


@torch.no_grad()
def check_rule(rule: Rule, module: nn.Module, *inputs: Tensor, **known: Any) -> Replacement:
    """Convert `module` (in evaluation mode, float64) and hold the replacement to what its `spikes` word promises.

    `known` goes to the `Context`: ``wanted=False``, ``before=…``. Returns the replacement.
    """
    module = copy.deepcopy(module).double().eval()
    x = tuple(t.double() if t.is_floating_point() else t for t in inputs)
    who = f"{label(rule)} on {type(module).__name__}"
    assert rule.matches(module), f"{who} does not match"
    wanted = module(*x)
    known.setdefault("inputs", x)
    found = rule.convert(copy.deepcopy(module), context(output=wanted, **known))
    assert isinstance(found, Replacement), f"{who} returned {type(found).__name__}, not a Replacement"
    new = found.module.double().eval()
    folded = isinstance(new, nn.Identity) and found.spikes == "pass" and (known.get("before") or known.get("after"))
    if found.status in ("converted", "kept") and found.spikes != "made" and not folded:
        check_close(dense_value(new(*x)), wanted, f"{who} changed the value on numbers")
    if found.spikes == "in":
        check_projection(new, spikes_like(x[0]), who)
    elif found.spikes == "pass" and not isinstance(new, nn.Identity):
        s = spikes_like(x[0])
        out = new(s)
        assert isinstance(out, SpikeTensor), f"{who} does not hand spikes on"
        assert torch.equal(out.counts, out.counts.round()), f"{who}: counts are not whole numbers"
        check_close(out.value(), module(s.value()), f"{who} changed the value of spikes")
    elif found.status == "converted" and found.spikes == "no":
        sites = [m for m in new.modules() if isinstance(m, TimeFoldedSite | SpikeSite)]
        assert sites, f"{who} says that spikes do its work, but nothing in its replacement reads or makes any"
    elif found.spikes in ("out", "made"):
        y = new(*x)
        y = y if found.spikes == "made" else counting_site(0, min(channels_of(new), y.ndim - 1))(y)
        assert isinstance(y, SpikeTensor), f"{who} promises spikes and returned {type(y).__name__}"
        assert torch.equal(y.counts, y.counts.round()), f"{who}: counts are not whole numbers"
    return found


def check_projection(module: Any, spikes: SpikeTensor, who: str) -> None:
    """On spikes: the value of the spikes' value; with whole weights, counts ≡ train, bit for bit."""
    check_close(
        dense_value(module(spikes)),
        dense_value(module(spikes.value())),
        f"{who} gives spikes another value than their numbers",
    )
    whole = copy.deepcopy(module)
    for name, p in whole.named_parameters():
        p.copy_((p * 100).round() if name.endswith("weight") else torch.zeros_like(p))
    ones = SpikeTensor(spikes.counts, torch.ones((), dtype=torch.float64))
    replayed: Any = sum(w * dense_value(whole(SpikeTensor(s.counts, ones.scale))) for w, s in binary_slots(ones))
    assert torch.equal(dense_value(whole(ones)), replayed), (
        f"{who}: the train replayed step by step differs from the counts"
    )


def examples(rule: Rule) -> list[tuple[Any, ...]]:
    """``(module, *inputs)`` for a rule: its own, and small ones of the torch.nn classes that it covers."""
    found = [tuple(row) for row in rule.examples()]
    for path in rule.covers:
        name = path.removeprefix("torch.nn.")
        cls = getattr(nn, name, None)
        if path.startswith("torch.nn.") and isinstance(cls, type):
            if "Embedding" in name:
                found.append((cls(7, 3), torch.tensor([[1, 2], [0, 6]])))
                continue
            args, shape = next(((a, s) for key, (a, s) in SHAPES.items() if key in name), ((), (4, 6)))
            with contextlib.suppress(TypeError, ValueError):  # one that needs other arguments: the rule's own tests
                module = cls(*args)
                module(torch.zeros(shape))
                found.append((module, torch.randn(shape, generator=torch.Generator().manual_seed(0))))
    return found


SHAPES: dict[str, tuple[tuple[Any, ...], tuple[int, ...]]] = {
    "ConvTranspose1d": ((4, 6, 3), (2, 4, 5)), "ConvTranspose2d": ((4, 6, 3), (2, 4, 5, 5)),
    "ConvTranspose3d": ((2, 3, 2), (2, 2, 3, 3, 3)), "Conv1d": ((4, 6, 3), (2, 4, 8)),
    "Conv2d": ((4, 6, 3), (2, 4, 8, 8)), "Conv3d": ((2, 3, 2), (2, 2, 4, 4, 4)), "Linear": ((6, 3), (4, 6)),
    "LayerNorm": ((6,), (4, 6)), "RMSNorm": ((6,), (4, 6)), "GroupNorm": ((2, 6), (4, 6, 5)),
    "Pool1d": ((2,), (2, 3, 8)), "Pool2d": ((2,), (2, 3, 8, 8)), "Pool3d": ((2,), (2, 3, 4, 4, 4)),
    "Norm1d": ((6,), (4, 6, 5)), "Norm2d": ((6,), (4, 6, 5, 5)), "Norm3d": ((6,), (4, 6, 3, 3, 3)),
    "Dropout1d": ((), (2, 3, 8)), "Dropout2d": ((), (2, 3, 8, 8)), "Dropout3d": ((), (2, 3, 4, 4, 4)),
    "PReLU": ((), (4, 6)), "Softmax": ((-1,), (4, 6)), "Unflatten": ((1, (2, 3)), (4, 6)),
}  # fmt: skip


def check_component(rule: Rule, data: Any = None) -> None:
    """A rule of the conformance kit: `check_rule` on its `examples`, with readers of spikes behind it and without.

    A rule for calls alone must answer for every call that it covers.
    """
    torch.manual_seed(0)
    rows = [row for row in examples(rule) if rule.matches(row[0])]
    for module, *inputs in rows:
        for wanted in (True, False):
            check_rule(rule, module, *inputs, wanted=wanted)
    lift: Any = getattr(rule, "lift", None)
    calls = [getattr(torch, path.removeprefix("torch."), None) for path in rule.covers if path.count(".") == 1]
    answered = 0
    for call in (c for c in calls if callable(c) and lift is not None and not isinstance(c, type)):
        x = torch.randn(2, 3)
        found = lift(call, ((x, x),) if call in (torch.cat, torch.stack, torch.concat) else (x, x), {})
        assert found is not None, f"{label(rule)} covers {call} and has no answer for it"
        answered += 1
    assert rows or answered, (
        f"{label(rule)}: nothing to convert; give the rule a method examples() that yields (module, *inputs)"
    )
