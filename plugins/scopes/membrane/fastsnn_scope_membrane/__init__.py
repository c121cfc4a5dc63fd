"""Membrane traces: the potential behind the counts, over tokens, or over the spike steps inside one token."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from attrs import frozen
from torch import Tensor

from fastsnn_core import Scope, hookimpl, param
from fastsnn_core.probe import Record
from fastsnn_core.subject import Data, Subject
from fastsnn_modules.site_views import sites_to_show
from fastsnn_scope_membrane.readout import draw_readout, readout, told

__version__ = "0.1.0"

BLUE, ORANGE = "#0072b2", "#d55e00"


@frozen
class Membrane(Scope):
    """Leaky neurons: u_t ``[T]`` of a few channels, from ``module.membrane(x)``; others: ``module.replay(x, S)``.

    Any neuron that offers ``membrane(x [B,T,D]) -> u [B,T,D]`` is drawn over tokens with the level where its first
    spike is counted: θ for a step, θ/2 where counts are rounded (θ is the SpikeTensor's scale). One that offers
    ``replay(x, S) -> (u, s) [S,B,T,D]`` is drawn inside one token; in the event runtime, one that offers ``drive`` is
    drawn in the steps of the model's own coder. The first sequence of the batch is used. A network over time that gives
    an output o_t ``[B,T,C]`` at every step is shown with its readout: o_t, and the score of o_1 … o_t that its
    objective takes the answer from.
    """

    name = "membrane"
    title = "Membrane traces"
    order: ClassVar[int] = 30
    reading: ClassVar[str] = (
        "Neurons that carry a membrane from token to token are drawn over tokens: the line is the potential just "
        "before it is counted, the dashed level is where the first spike falls, dots are the spikes (larger for a "
        "larger count). Neurons that decide inside a token are drawn over its spike steps: an integrate-and-fire "
        "replay that gives one threshold back per spike, and whose spikes sum to the count. In the event runtime "
        "these are the model's own spike times: the dashed line is the threshold of each step of its coder. The "
        "readout of a network over time comes first: one line for each class, blue the answer, orange the true class "
        "where it is another; the answer at a step is the highest line of the score."
    )
    sites: tuple[str, ...] = param(
        (), doc="names or patterns of sites; none picks three over the depth", draw=((), ("layers.0.*",))
    )
    channels: int = param(3, ge=1, le=6, unit="channels", doc="traces per site", draw=(1, 3))
    tokens: int = param(64, ge=1, le=4096, unit="tokens", doc="how many are shown", draw=(4, 64))
    token: int = param(
        -1, ge=-1, unit="token", doc="which token is replayed; -1 the one with the most spikes", draw=(-1, 0)
    )
    steps: int = param(
        32, ge=1, le=256, unit="steps", doc="S of a replay at most; fewer where the counts fit", draw=(4, 32)
    )

    def measure(self, subject: Subject) -> Data:
        """Traces of the chosen sites."""
        if not subject.trace:
            return {"reason": "the model makes no spikes"}
        last = readout(subject)
        names = sites_to_show(list(subject.trace), self.sites, 3)
        if not names:
            return {"reason": f"no site matches {', '.join(self.sites)}"}
        axis = "token" if subject.is_language_model else "time step"
        rows = [{"site": name, "axis": axis} | self.look(subject.trace[name], subject.labels) for name in names]
        mute = [f"{r['site']}: {r['why']}" for r in rows if r["form"] == "none"]
        rows = [r for r in rows if r["form"] != "none"]
        if not rows and last is None:
            return {"reason": "; ".join(mute)}
        found: Data = {"sites": rows, "notes": mute if last is None else [*told(last), *mute]}
        return found if last is None else found | {"readout": last}

    def look(self, record: Record, labels: tuple[str, ...]) -> Data:
        """What one site shows."""
        module, x = record.module, record.x
        if x.ndim != 3 or record.spikes.ndim != 3:
            return {"form": "none", "why": f"its input {tuple(x.shape)} has no token axis"}
        x = x[:1].float() if x.dtype in (torch.bfloat16, torch.float16) else x[:1]
        counts = record.spikes.counts[0].detach()
        if callable(getattr(module, "membrane", None)):
            return self.over_tokens(record, x, counts)
        if record.coding is not None and callable(getattr(module, "drive", None)):
            return self.over_code(record, x, counts, labels)
        if callable(getattr(module, "replay", None)):
            return self.over_steps(record, x, counts, labels)
        return {"form": "none", "why": f"{type(module).__name__} offers neither membrane(x) nor replay(x, steps)"}

    def over_tokens(self, record: Record, x: Tensor, counts: Tensor) -> Data:
        """u over the first tokens, with the levels of the first spike."""
        module: Any = record.module
        x, counts = x[:, : self.tokens], counts[: self.tokens]
        u = module.membrane(x)[0]
        theta = float(record.spikes.scale.detach().float().mean())
        first = theta if getattr(module, "heaviside", True) else theta / 2
        levels = [first, -first] if getattr(module, "lo", 0.0) < 0 else [first]
        kept = busiest(counts.abs().sum(0), self.channels)
        traces = [
            {"channel": c, "u": six_digits(u[:, c]), "counts": counts[:, c].round().long().tolist()} for c in kept
        ]
        return {"form": "membrane", "theta": theta, "levels": levels, "neuron": type(module).__name__, "traces": traces}

    def over_steps(self, record: Record, x: Tensor, counts: Tensor, labels: tuple[str, ...]) -> Data:
        """u and spikes over the steps of one token."""
        module: Any = record.module
        t = self.token if self.token >= 0 else int(counts.abs().sum(1).argmax())
        if t >= len(counts):
            return {"form": "none", "why": f"token {t} was asked for, the input has {len(counts)}"}
        row = counts[t].abs()
        fitting = torch.where(row <= self.steps, row, torch.zeros_like(row))
        kept = busiest(fitting, self.channels)
        steps = min(self.steps, int(fitting.max()) + 2)
        u, spikes = module.replay(x[:, t : t + 1], steps)
        scale = record.spikes.scale.detach().expand(record.spikes.shape)[0, t]
        traces = [
            {
                "channel": c, "x": float(x[0, t, c]), "threshold": float(scale[c]), "count": int(counts[t, c].round()),
                "u": six_digits(u[:, 0, 0, c]), "spikes": spikes[:, 0, 0, c].long().tolist(),
            }
            for c in kept
        ]  # fmt: skip
        label = labels[t] if t < len(labels) else ""
        return {
            "form": "replay",
            "token": t,
            "label": label,
            "steps": steps,
            "neuron": type(module).__name__,
            "traces": traces,
        }

    def over_code(self, record: Record, x: Tensor, counts: Tensor, labels: tuple[str, ...]) -> Data:
        """Membrane and spikes over the steps of one token, as the event runtime's coder makes them."""
        module: Any = record.module
        coding: Any = record.coding
        t = self.token if self.token >= 0 else int(counts.abs().sum(1).argmax())
        if t >= len(counts):
            return {"form": "none", "why": f"token {t} was asked for, the input has {len(counts)}"}
        u, first = module.drive(x[:, t : t + 1])
        steps = max(int(coding.steps), coding.coder.steps_for(int(counts[t].abs().max())))
        if steps > self.steps:
            return {"form": "none", "why": f"{steps} {coding.coder.name} steps are more than the {self.steps} shown"}
        membranes, train = coding.coder.replay(u, steps, first)
        weights = coding.coder.encode(torch.zeros(1, dtype=torch.int64), steps).weights.tolist()
        scale = record.spikes.scale.detach().expand(record.spikes.shape)[0, t]
        traces = []
        for c in busiest(counts[t].abs(), self.channels):
            v = float(scale[c])
            traces.append(
                {
                    "channel": c, "x": float(x[0, t, c]), "threshold": v, "count": int(counts[t, c].round()),
                    "u": six_digits(membranes[:, 0, 0, c] * v), "spikes": train[:, 0, 0, c].long().tolist(),
                    "levels": [0.0 if w < 0 else w * v for w in weights],
                }
            )  # fmt: skip
        label = labels[t] if t < len(labels) else ""
        made = f"{type(module).__name__}, {coding.coder.name}"
        return {"form": "replay", "token": t, "label": label, "steps": steps, "neuron": made, "traces": traces}

    def draw(self, data: Data, figure: Any) -> None:
        """A panel per channel: below each other over tokens, side by side over steps."""
        if "reason" in data:
            figure.text(0.5, 0.5, data["reason"], ha="center", wrap=True)
            return
        rows, last = data["sites"], data.get("readout")
        forms = [[r for r in rows if r["form"] == form] for form in ("membrane", "replay")]
        deep, wide = sum(len(r["traces"]) for r in forms[0]), max((len(r["traces"]) for r in forms[1]), default=0)
        heights = [3.1 * bool(last), 1.15 * deep + 0.3 * bool(deep), 2.3 * len(forms[1])]
        figure.set_size_inches(9.5, 0.2 + sum(heights))
        kept = [h for h in heights if h]
        parts = iter(figure.subfigures(len(kept), 1, height_ratios=kept, squeeze=False)[:, 0])
        if last:
            panels = 2 if last["outputs"] else 1
            draw_readout(last, list(next(parts).subplots(1, panels, squeeze=False)[0]))
        if forms[0]:
            axes = list(next(parts).subplots(deep, 1, squeeze=False)[:, 0])
            for row in forms[0]:
                draw_tokens(row, [axes.pop(0) for _ in row["traces"]])
        if forms[1]:
            for row, line in zip(forms[1], next(parts).subplots(len(forms[1]), wide, squeeze=False)):
                draw_steps(row, line)


def busiest(activity: Tensor, most: int) -> list[int]:
    """Channels from the most active down to the median of the active ones; the first where none is."""
    order = torch.argsort(activity, descending=True, stable=True)
    alive = int((activity > 0).sum())
    if alive <= most:
        return order[: max(1, alive)].tolist()
    return [int(order[round(i * (alive - 1) / 2 / max(1, most - 1))]) for i in range(most)]


def six_digits(u: Tensor) -> list[float]:
    """Six significant digits of each value."""
    return [float(f"{v:.6g}") for v in u.double().tolist()]


def draw_tokens(row: Data, axes: list[Any]) -> None:
    """Potentials over tokens, one axis per channel, spikes as dots on the curve."""
    named = f"{row['site']}   ({row['neuron']}, θ = {row['theta']:.3g}; u in units of the input)"
    axes[0].set_title(named, loc="left")
    for axis, trace in zip(axes, row["traces"]):
        u, counts = trace["u"], trace["counts"]
        axis.axhline(0, color="#bbbbbb", linewidth=0.6)
        for level in row["levels"]:
            axis.axhline(level, color="#555555", linewidth=0.8, linestyle=(0, (4, 3)))
        axis.plot(range(len(u)), u, color="#888888", linewidth=1.0)
        for sign, colour in ((1, BLUE), (-1, ORANGE)):
            t = [i for i, c in enumerate(counts) if c * sign > 0]
            axis.scatter(t, [u[i] for i in t], s=[14 + 6 * min(abs(counts[i]), 12) for i in t], color=colour, zorder=3)
        axis.set_ylabel(f"channel {trace['channel']}", fontsize="small")
        axis.margins(x=0.01, y=0.14)
        axis.tick_params(labelbottom=axis is axes[-1])
        axis.spines[["top", "right"]].set_visible(False)
    axes[-1].set_xlabel(row["axis"])
    for axis in axes:
        axis.xaxis.get_major_locator().set_params(integer=True)


def draw_steps(row: Data, axes: Any) -> None:
    """Potentials over the steps of one token, one axis per channel, a spike where one threshold is given back."""
    named = f" “{row['label']}”" if row["label"].strip() and row["label"].isprintable() else ""
    where = f"inside {row['axis']} {row['token']}{named}"
    title = axes[0].set_title(f"{row['site']}   ({row['neuron']}, {where})", loc="left")
    title.set_parse_math(False)
    for axis in axes[len(row["traces"]) :]:
        axis.set_visible(False)
    for axis, trace in zip(axes, row["traces"]):
        level, u, spikes = trace["threshold"], trace["u"], trace["spikes"]
        last = u[-1] - abs(spikes[-1]) * level
        levels = trace.get("levels", [level] * len(u))
        if levels == sorted(levels, reverse=True) or levels[0] == 0:  # least significant first has no thresholds
            steps = [*levels, levels[-1]]
            axis.step(range(len(steps)), steps, where="post", color="#555555", linewidth=0.8, linestyle=(0, (4, 3)))
        axis.step(range(len(u) + 1), [*u, last], where="post", color="#888888", linewidth=1.2)
        t = [i for i, s in enumerate(spikes) if s]
        axis.scatter(t, [u[i] for i in t], s=24, color=[BLUE if spikes[i] > 0 else ORANGE for i in t], zorder=3)
        axis.set_ylim(bottom=min(0.0, *u))
        told = f"channel {trace['channel']}\nx = {trace['x']:.3g}, V = {level:.3g}\ncount {trace['count']}"
        axis.text(0.98, 0.97, told, transform=axis.transAxes, ha="right", va="top", fontsize="small")
        axis.set_xlabel("spike step")
        axis.xaxis.get_major_locator().set_params(integer=True)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].set_ylabel("u on |x|")


@hookimpl
def fastsnn_scopes() -> list[type[Scope]]:
    """This plugin's scopes."""
    return [Membrane]
