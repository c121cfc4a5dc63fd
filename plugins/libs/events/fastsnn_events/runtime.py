"""Two runtimes, one model: counts, or the same counts as spike trains over S steps inside every token.

``use(model, "event", coder="bitwise")`` gives every spike site a coder and a number of steps; from then on it emits
trains ``[S, …]``, and integer projections take them slot by slot. ``use(model, "count")`` goes back. In integer
arithmetic (`fastsnn_integer.quantization`) both give the same bits; float layers decode a train before they multiply,
since float sums depend on their order.

Steps are constants of the model, stored with the weights: set, or calibrated per site on data as what twice the largest
count seen needs (one more bit of room for a bitwise code). They are never taken from a batch at run time. A token whose
count does not fit takes the wide path: as many steps as that count needs, after the S regular ones in which it is
silent. Its train depends on nobody else's, nothing is cut; `report` counts such tokens. ``strict=True``
makes them an error instead.

`replay` finds the trains without the counts: every site integrates its neuron's potential and fires
(`fastsnn_events.coder_helpers`), and what its membranes did is recorded.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from fnmatch import fnmatch
from typing import Any

import attrs
import torch
from torch import Tensor, nn

from fastsnn_core.component import Coder
from fastsnn_core.errors import FastSNNError
from fastsnn_core.moved import renamed
from fastsnn_core.probe import probe
from fastsnn_core.site import sites
from fastsnn_events.coding import Coding, CodingStatistics, Membranes, Replay

MODES = ("count", "event")
MARGIN = 2  # times the largest count seen in calibration


# -- switching -----------------------------------------------------------------------------------------------------


def switch_runtime(
    model: nn.Module,
    mode: str,
    coder: Any = None,
    steps: str | int = "auto",
    *,
    calibration: Any = None,
    strict: bool = False,
) -> nn.Module:
    """Switch `model` to a runtime, in place, and return it.

    `coder`: a lossless coder by name, table or component (bitwise when never set). `steps`: S for every site, or
    "auto". `calibration`: inputs (one batch, or a list of them) for "auto"; without any, steps that the model already
    has for this coder stay, else a language model reads 64 fixed pseudo-random tokens.

    Errors (FastSNNError): no such runtime, a model without spike sites, a coder that loses counts, steps below 1, no
    inputs to choose steps by, with `strict` counts that need more steps than there are.
    """
    if mode not in MODES:
        raise FastSNNError(f"no runtime called {mode!r}; there are {' and '.join(MODES)}")
    found = sites(model)
    if not found:
        raise FastSNNError("this model has no spike sites, so it has no event runtime")
    old = {name: site.coding for name, site in found.items() if isinstance(site.coding, Coding)}
    if mode == "count":
        for coding in old.values():
            coding.active = False
        return model
    kept = next(iter(old.values())).coder if old else None
    chosen = coder_component(coder if coder is not None else kept or "bitwise")
    if not chosen.lossless:
        raise FastSNNError(f"coder {chosen.name!r} does not carry counts exactly; take a lossless one")
    if steps != "auto" and (type(steps) is not int or steps < 1):
        raise FastSNNError(f'steps must be "auto" or a positive whole number, got {steps!r}')
    if steps == "auto" and (calibration is not None or chosen != kept or len(old) < len(found)):
        table = calibrate_steps(model, chosen, calibration_tokens(model) if calibration is None else calibration)
    else:
        table = {name: int(old[name].steps) if steps == "auto" else int(steps) for name in found}
    for name, site in found.items():
        site.coding = Coding(name, chosen, table[name], strict).to(device_of(site))
    return model


class Switchable:
    """A module with the method ``model.runtime("count" | "event", coder=…, steps=…)``."""

    def runtime(self, mode: str, coder: Any = None, steps: str | int = "auto", **options: Any) -> Any:
        """Switch to the "count" or the "event" runtime (see `switch_runtime`); returns this model."""
        model: Any = self
        return switch_runtime(model, mode, coder, steps, **options)


def coder_component(coder: Any) -> Coder:
    """A coder by name or table, or as it is."""
    from fastsnn_core import spec

    if isinstance(coder, Coder):
        return coder
    try:
        return spec.converter().structure(coder, Coder)
    except spec.Faults as error:
        raise spec.SpecError(error.problems, source="") from None


def device_of(module: nn.Module) -> torch.device:
    """Where a module's constants are."""
    return next((t.device for t in (*module.parameters(), *module.buffers())), torch.device("cpu"))


def calibration_tokens(model: nn.Module) -> Tensor:
    """Fixed pseudo-random tokens ``[2, 32]`` (fewer where a model reads fewer), or an error that asks for inputs."""
    size = getattr(getattr(model, "spec", None), "vocab_size", None)
    if size is None:
        raise FastSNNError(
            'steps="auto" looks for the largest counts, and this is no language model: give it some inputs, as '
            'model.runtime("event", calibration=x) with x [B, …] as the model takes them, or a number of steps'
        )
    most = min(32, getattr(model, "longest", None) or 32)
    tokens = torch.randint(0, size, (2, most), generator=torch.Generator().manual_seed(0))
    return tokens.to(next((p.device for p in model.parameters()), torch.device("cpu")))


@torch.no_grad()
def calibrate_steps(model: nn.Module, coder: Coder, inputs: Any) -> dict[str, int]:
    """Steps of every site: what `MARGIN` times the largest count on `inputs` needs, or its neuron's own bound."""
    largest = dict.fromkeys(sites(model), 0)
    training = model.training
    model.eval()
    try:
        with counting(model):
            for batch in [inputs] if isinstance(inputs, Tensor) else inputs:
                with probe(model) as trace:
                    model(batch)
                for name, record in trace.items():
                    largest[name] = max(largest.get(name, 0), record.spikes.largest())
    finally:
        model.train(training)
    room = {}
    for name, site in sites(model).items():
        neuron: Any = site.neuron
        bound = getattr(neuron, "bound", max(abs(getattr(neuron, "lo", 0.0)), abs(getattr(neuron, "hi", float("inf")))))
        room[name] = coder.steps_for(max(1, int(min(MARGIN * largest[name], bound))))
    return room


@contextlib.contextmanager
def counting(model: nn.Module) -> Iterator[None]:
    """The count runtime inside the block."""
    before = [(c, c.active) for c in codings(model).values()]
    for coding, _ in before:
        coding.active = False
    try:
        yield
    finally:
        for coding, active in before:
            coding.active = active


def codings(model: nn.Module) -> dict[str, Coding]:
    """The codings of a model's sites, by site name."""
    found = {name: site.coding for name, site in sites(model).items()}
    return {name: coding for name, coding in found.items() if isinstance(coding, Coding)}


# -- what a runtime says of itself ---------------------------------------------------------------------------------


def mode_of(model: nn.Module) -> str:
    """``"count"`` or ``"event"``."""
    return "event" if any(coding.active for coding in codings(model).values()) else "count"


def report(model: nn.Module, *, clear: bool = False) -> dict[str, dict[str, Any]]:
    """Per site: coder, steps, and tokens, wide tokens, extra steps and the largest count since it was last cleared."""
    rows = {}
    for name, coding in codings(model).items():
        rows[name] = {"coder": coding.coder.name, "steps": int(coding.steps), **attrs.asdict(coding.tally)}
        if clear:
            coding.tally = CodingStatistics()
    return rows


def as_table(model: nn.Module) -> dict[str, Any] | None:
    """What a bundle says of the runtime: mode, coder and strictness; None for a model that never left counts."""
    from fastsnn_core import spec

    found = codings(model)
    if not found:
        return None
    first = next(iter(found.values()))
    return {"mode": mode_of(model), "coder": spec.to_table(first.coder, qualified=True), "strict": first.strict}


def components(table: dict[str, Any]) -> list[Coder]:
    """The components that a bundle's ``runtime`` table names."""
    return [coder_component(table["coder"])]


def prepare(model: nn.Module, table: dict[str, Any]) -> None:
    """Give a freshly built model the codings a bundle names; their steps come with the weights."""
    coder = coder_component(table["coder"])
    for name, site in sites(model).items():
        coding = site.coding = Coding(name, coder, 1, bool(table["strict"]))
        coding.active = table["mode"] == "event"


# -- spike-time replay ---------------------------------------------------------------------------------------------


@torch.no_grad()
def replay(model: nn.Module, *args: Any, watch: tuple[str, ...] = ("*",), **kwargs: Any) -> Replay:
    """Run ``model(*args)`` with every train found by integrate-and-fire; `watch`: patterns of sites to record.

    The model must be in the event runtime. The output equals that of the count runtime bit for bit in integer
    arithmetic, since every membrane ends at its neuron's count.
    """
    found = codings(model)
    if mode_of(model) != "event":
        raise FastSNNError('only the event runtime has spike times; call use(model, "event") first')
    recording: dict[str, Membranes] = {}
    for name, coding in found.items():
        coding.recording = recording
        coding.watched = any(fnmatch(name, pattern) for pattern in watch)
    try:
        return Replay(model(*args, **kwargs), recording)
    finally:
        for coding in found.values():
            coding.recording = None


__getattr__ = renamed(__name__, {"Tally": "CodingStatistics", "use": "switch_runtime"})
