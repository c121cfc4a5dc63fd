"""Dials: the constants of neurons that set how sparse a spike site is, and the sparsity that each value gives.

A neuron module that has ``dials`` (names of constants) and ``dial_(name, value)`` has dials. For the adaptive
threshold: `dead_zone` sets small inputs to zero and keeps the resolution of the rest, `k` makes the threshold itself
coarser, `top` keeps the largest few channels; for leaky neurons `theta`. The dials of several sites are set together
by one amount: the dead zone itself, a factor on θ or on 1/k, or the share of channels that `top` keeps silent.
"""

from __future__ import annotations

from typing import Any

import attrs
import torch
from torch import Tensor, nn

from fastsnn_core.errors import FastSNNError, did_you_mean
from fastsnn_core.site import SpikeSite, sites

RANGE = {"dead_zone": (0.0, 1e4), "theta": (1.0, 1e3), "k": (1.0, 1e3), "top": (0.0, 1.0)}  # of the amount
STORED = ("dead_zone", "top")  # constants that sites have only where the spec asks for them
ROUNDS = 40
NEARLY = 0.95  # silent fraction that nobody wants to go beyond

DialValues = dict[str, float]


def dial_of(site: SpikeSite, wanted: str) -> str:
    """The dial of a site: `wanted` where its neuron has it, its first otherwise."""
    neuron: Any = site.neuron
    names = [name for name in getattr(neuron, "dials", ()) if name in RANGE]
    if not names:
        raise FastSNNError(f"{type(neuron).__name__} has no dial for its sparsity (no attribute dials)")
    if wanted != "auto" and wanted not in names and len(names) > 1:
        raise FastSNNError(f"{type(neuron).__name__} has no dial {wanted!r}; there are {', '.join(names)}")
    return wanted if wanted in names else names[0]


def dials_of(model: nn.Module, wanted: str) -> dict[str, str]:
    """The dial of every spike site, by site name."""
    names = {name: dial_of(site, wanted) for name, site in sites(model).items()}
    if not names:
        raise FastSNNError("this model has no spike sites, so there is nothing to tune")
    if wanted != "auto" and wanted not in names.values():
        raise FastSNNError(
            f"no neuron of this model has the dial {wanted!r}; {did_you_mean(wanted, {*names.values()})}"
        )
    return names


def value_of(site: SpikeSite, name: str) -> float:
    """The present value of a dial; 0 where the neuron does not have the constant yet."""
    found = getattr(site.neuron, name, None)
    return 0.0 if found is None else float(found)


def dial_value(name: str, before: float, amount: float, width: int) -> float:
    """The value of a dial that was `before`, changed by an amount out of `RANGE`; `width`: channels of the site."""
    if name == "dead_zone":
        return max(before, amount)
    if name == "theta":
        return before * amount
    if name == "k":
        return before / amount
    kept = max(1, width - int(amount * width))
    return float(min(kept, before) if before else kept)


@torch.no_grad()
def silent_channels(site: SpikeSite, x: Tensor) -> int:
    """Silent channels of a site on recorded inputs ``[B,T,D]``, over all tokens."""
    assert site.neuron is not None
    return int((site.neuron(x, None, None)[0].counts == 0).sum())


@attrs.frozen
class DialSetting:
    """One value of a dial, the silent fraction there, and the mean squared error of the site's output."""

    value: float
    silent: float
    error: float


@torch.no_grad()
def dial_settings(site: SpikeSite, name: str, x: Tensor, weights: Tensor | None = None) -> list[DialSetting]:
    """Values of a dial from its present one to nearly silent, measured on recorded inputs ``[B,T,D]``.

    With `weights` ``[D]`` errors are Σ_i w_i δ_i², mean over tokens, instead of the mean of δ².

    Neighbours differ by 1 % of the channels or more; the first is the present value, which the site keeps.
    """
    assert site.neuron is not None
    neuron: Any = site.neuron
    before, value = value_of(site, name), site.neuron(x, None, None)[0].value()
    found = [DialSetting(before, silent_channels(site, x) / max(1, x.numel()), 0.0)]
    try:
        for amount in amounts(name):
            at = dial_value(name, before, amount, x.shape[-1])
            neuron.dial_(name, at)
            spikes = neuron(x, None, None)[0]
            silent = float((spikes.counts == 0).double().mean())
            if silent > found[-1].silent + 0.01:
                error = (spikes.value() - value).double().square()
                found.append(
                    DialSetting(
                        at, silent, float(error.mean() if weights is None else (error @ weights.double()).mean())
                    )
                )
            if silent > NEARLY:
                break
    finally:
        neuron.dial_(name, before)
    return found


def amounts(name: str) -> list[float]:
    """A grid over `RANGE`: by ratio, or of equal shares for `top`."""
    low, high = RANGE[name]
    if name == "top":
        return [low + (high - low) * i / 64 for i in range(1, 64)]
    grid, at = [], max(low, 0.5)
    while (at := at * 1.05) < high:
        grid.append(at)
    return grid


def values_for(
    group: dict[str, SpikeSite], names: dict[str, str], xs: dict[str, Tensor], fraction: float
) -> DialValues:
    """Dial values of sites that share one amount: the least that silences at least `fraction` of `xs`.

    The sites keep their values; where the group is that silent already, their values are what comes back.
    """
    (name,) = {names[site] for site in group}
    before = {site: value_of(found, name) for site, found in group.items()}
    total = sum(xs[site].numel() for site in group)

    def values(amount: float) -> DialValues:
        return {site: dial_value(name, before[site], amount, xs[site].shape[-1]) for site in group}

    def reaches(amount: float) -> bool:
        set_dials(group, names, values(amount))
        return sum(silent_channels(found, xs[site]) for site, found in group.items()) >= fraction * total

    low, high = RANGE[name]
    try:
        set_dials(group, names, before)
        if sum(silent_channels(found, xs[site]) for site, found in group.items()) >= fraction * total:
            return before
        for _ in range(ROUNDS):
            middle = (low * high) ** 0.5 if low > 0 else (low + min(high, 64.0)) / 2
            if high - low < 1e-4 * max(1.0, low):
                break
            low, high = (low, middle) if reaches(middle) else (middle, high)
        return values(high)
    finally:
        set_dials(group, names, before)


def set_dials(group: dict[str, SpikeSite], names: dict[str, str], values: DialValues) -> None:
    """Set the dials of some sites."""
    for site, value in values.items():
        neuron: Any = group[site].neuron
        neuron.dial_(names[site], value)


def set_model_dials(model: nn.Module, names: dict[str, str], values: DialValues) -> None:
    """Set the dials of some sites of `model`, a copy perhaps of the one that they were found on."""
    set_dials(sites(model), names, values)


def store_dials(model: Any, names: dict[str, str], values: DialValues) -> None:
    """Set the dials of a model and write them into its spec, so that they are stored with it.

    Nominal values in the spec are the largest of any site; the sites' own come with the weights.
    """
    found = sites(model)
    stored = {site: name for site, name in names.items() if name in STORED}
    if stored and not any(values[site] for site in stored):  # nothing is silenced: no constants to store
        values = {site: value for site, value in values.items() if site not in stored}
    set_dials(found, names, values)
    own = {name: [value_of(found[s], name) for s, n in stored.items() if n == name] for name in STORED}
    nominal = {name: max(values, default=0.0) for name, values in own.items()}
    nominal["v_min"] = max((value_of(site, "v_min") for site in found.values()), default=0.0)
    for name in ("v_min", *STORED):  # one site's constant is one of all: the spec names it once
        for site in found.values() if nominal[name] else ():
            if name in getattr(site.neuron, "dials", ()):
                site.neuron.dial_(name, value_of(site, name))

    def spoken(neuron: Any) -> Any:
        fields = {f.name for f in attrs.fields(type(neuron))}
        given = {"dead_zone": nominal["dead_zone"], "top": round(nominal["top"]), "v_min": nominal["v_min"]}
        return attrs.evolve(neuron, **{name: value for name, value in given.items() if name in fields and value})

    changes: dict[str, Any] = {"neuron": spoken(model.spec.neuron)}
    if getattr(model.spec, "at", ()):
        changes["at"] = tuple(attrs.evolve(row, neuron=spoken(row.neuron)) for row in model.spec.at)
    model.spec = attrs.evolve(model.spec, **changes)
