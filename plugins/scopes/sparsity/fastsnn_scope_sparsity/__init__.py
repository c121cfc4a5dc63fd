"""Sparsity by site: silent fraction, spikes per channel, slot sparsity with its S; silent and saturated sites."""

from __future__ import annotations

import math
import re
from typing import Any, ClassVar

import attrs
from attrs import frozen
from torch import nn

from fastsnn_core import Scope, hookimpl, param
from fastsnn_core.moved import renamed
from fastsnn_core.probe import Record
from fastsnn_core.subject import Data, Subject
from fastsnn_modules.shown import spec_name
from fastsnn_scope_sparsity.measures import overall, sparsities

__version__ = "0.1.0"

MEASURES = (
    ("silent_fraction", "silent fraction", "{:.1%}"),
    ("spikes_per_channel", "spikes per channel", "{:.2f}"),
    ("slot_sparsity", "slot sparsity", "{:.1%}"),
    ("mean_count", "mean |count|", "{:.2f}"),
    ("largest", "largest |count|", "{:.0f}"),
    ("saturated_channels", "channels at their limit", "{:.1%}"),
)


MOST = 14  # columns in which a number can still be read; beyond, a colour bar stands instead


@frozen
class SparsityScope(Scope):
    """silent = #[c = 0] / N;  spikes per channel p = Σ popcount|c| / N;  slot sparsity 1 - p / S, S = bits of max|c|.

    N counts channels × tokens of a site. The overall figures weigh every site by its N, with the largest S of any
    site. A site is *silent* beyond `silent` of its channels at zero, *saturated* when more than `saturated` of its
    counts stand at the neuron's own limit; *dead channels* never fired in this input, *saturated channels* stand at
    the limit for more than `saturated` of the tokens at which they fire.
    """

    name = "sparsity"
    title = "Sparsity"
    order: ClassVar[int] = 10
    reading: ClassVar[str] = (
        "Three numbers that the literature calls sparsity, kept apart. Silent fraction: channels with count zero, "
        "whose weight rows need not be read. Spikes per channel: additions per weight that replace one "
        "multiplication. Slot sparsity: empty places of a spike train of S steps; it rises with S alone, so read it "
        "with its S. Rows are kinds of sites, columns layers."
    )
    silent: float = param(0.999, gt=0.0, le=1.0, doc="silent fraction above which a site is called silent")
    saturated: float = param(0.9, gt=0.0, le=1.0, doc="share of counts at the neuron's limit that is called saturated")

    def measure(self, subject: Subject) -> Data:
        """All sites, and overall."""
        if not subject.trace:
            return {"reason": "the model makes no spikes"}
        found = sparsities(subject.trace)
        rows = []
        for name, record in subject.trace.items():
            extra = self.limits(record)
            named = {"site": name, "name": spec_name(subject.model, name)}
            rows.append(named | attrs.asdict(found[name]) | extra | {"flag": self.flag(found[name], extra)})
        total = overall(found, {name: r.spikes.numel() for name, r in subject.trace.items()})
        flagged = [f"{r['site']} is {r['flag']}" for r in rows if r["flag"]]
        return {
            "overall": attrs.asdict(total),
            "sites": rows,
            "headline": [
                ["silent fraction", f"{total.silent_fraction:.1%}"],
                ["spikes per channel (bits set)", f"{total.spikes_per_channel:.2f}"],
                ["mean |count|", f"{total.mean_count:.2f}"],
                [f"slot sparsity (S = {total.steps})", f"{total.slot_sparsity:.1%}"],
            ],
            "tables": [sparsity_table(rows)],
            "notes": [*(flagged or ["No site is silent, none is saturated."]), *stuck(rows)],
        }

    def limits(self, record: Record) -> Data:
        """Channels that never fired, and the share of counts at the neuron's limit (None where it has none)."""
        counts = record.spikes.counts.detach().abs()
        axis = 1 if counts.ndim > 3 else counts.ndim - 1
        alive = (counts != 0).movedim(axis, 0).reshape(counts.shape[axis], -1).any(1)
        limit = stated_limit(record.module)
        found: Data = {"dead_channels": float((~alive).double().mean()), "limit": limit, "at_limit": None}
        if limit is None:
            return found | {"saturated_channels": None}
        by_channel = counts.movedim(axis, 0).reshape(counts.shape[axis], -1)
        full, fires = (by_channel >= limit).double().sum(1), (by_channel != 0).double().sum(1)
        stuck_channels = (fires > 1) & (full > self.saturated * fires) & (limit > 1)  # a single spike is no saturation
        return found | {
            "at_limit": float((counts >= limit).double().mean()) if counts.numel() else 0.0,
            "saturated_channels": float(stuck_channels.double().mean()) if len(stuck_channels) else 0.0,
        }

    def flag(self, found: Any, extra: Data) -> str:
        """Empty for a healthy site."""
        if found.silent_fraction > self.silent:
            return "silent"
        return "saturated" if extra["at_limit"] is not None and extra["at_limit"] > self.saturated else ""

    def draw(self, data: Data, figure: Any) -> None:
        """Heat maps: kinds of sites down, layers across."""
        from matplotlib.patches import Rectangle

        if "reason" in data:
            figure.text(0.5, 0.5, data["reason"], ha="center", wrap=True)
            return
        kinds = list(dict.fromkeys(layer_place(r["site"])[0] for r in data["sites"]))
        layers = sorted({layer_place(r["site"])[1] for r in data["sites"]})
        width = len(layers)
        figure.set_size_inches(10, 0.9 + 2 * (0.75 + 0.34 * len(kinds)))
        limited = any(r.get("saturated_channels") is not None for r in data["sites"])
        for i, (axes, k) in enumerate(zip(figure.subplots(2, 2).flat, (0, 1, 2, 5 if limited else 4))):
            key, title, form = MEASURES[k]
            cells = {
                (kinds.index(layer_place(r["site"])[0]), layers.index(layer_place(r["site"])[1])): r
                for r in data["sites"]
            }
            cells = {place: r for place, r in cells.items() if r.get(key) is not None}
            grid = [[cells.get((y, x), {}).get(key, math.nan) for x in range(width)] for y in range(len(kinds))]
            share = form.endswith("%}")
            high = 1.0 if share else max((r[key] for r in data["sites"]), default=0.0) or 1.0
            mesh = axes.pcolormesh(grid, cmap="cividis", vmin=0.0, vmax=high, edgecolors="white", linewidth=1.5)
            axes.invert_yaxis()
            steps = sorted({r["steps"] for r in data["sites"]})
            span = f"{steps[0]}" if len(steps) == 1 else f"{steps[0]} … {steps[-1]} by site"
            told = ", ".join(["%"] * share + [f"S = {span}"] * (key == "slot_sparsity"))
            axes.set_title(title + (f" ({told})" if told else ""), loc="left")
            axes.set_yticks([y + 0.5 for y in range(len(kinds))], kinds if i % 2 == 0 else [""] * len(kinds))
            every = max(1, -(-width // 16))
            axes.set_xticks(
                [x + 0.5 for x in range(0, width, every)], ["–" if n < 0 else f"{n}" for n in layers[::every]]
            )
            axes.set_xlabel("layer" if i > 1 else "")
            axes.tick_params(length=0)
            axes.spines[:].set_visible(False)
            if width > MOST:
                percent = (lambda v, _: f"{100 * v:.0f}") if share else None
                figure.colorbar(mesh, ax=axes, pad=0.01, format=percent).outline.set_visible(False)
            for (y, x), r in cells.items():
                if width <= MOST:
                    ink, text = "#111111" if r[key] > 0.55 * high else "#ffffff", form.format(r[key]).removesuffix("%")
                    axes.text(
                        x + 0.5,
                        y + 0.5,
                        text,
                        ha="center",
                        va="center",
                        color=ink,
                        fontsize="small" if width <= 8 else "x-small",
                    )
                if r["flag"]:
                    corner = (x + 0.06, y + 0.06)
                    axes.add_patch(Rectangle(corner, 0.88, 0.88, fill=False, edgecolor="#d55e00", linewidth=2))


def layer_place(site: str) -> tuple[str, int]:
    """``layers.3.attention.inner`` is ("attention.inner", 3); a site of no layer has -1."""
    match = re.search(r"(?:^|\.)(\d+)(?:\.|$)", site)
    if not match:
        return site, -1
    return site[match.end() :] or site[: match.start()] or "site", int(match[1])


def stuck(rows: list[Data]) -> list[str]:
    """Sites with channels that stand at the neuron's limit whenever they fire: what is above it is lost."""
    found = sorted((r for r in rows if r["saturated_channels"]), key=lambda r: -r["saturated_channels"])
    if not found:
        return []
    names = ", ".join(f"{r['site']} {r['saturated_channels']:.1%}" for r in found[:4])
    more = f" and {len(found) - 4} sites more" if found[4:] else ""
    return [f"Channels at their limit whenever they fire, so that what is above it is lost: {names}{more}."]


def stated_limit(module: nn.Module) -> float | None:
    """The largest count a neuron allows, where it says so."""
    found = getattr(module, "hi", getattr(module, "bound", None))
    return float(found) if isinstance(found, int | float) and math.isfinite(found) else None


def share(value: float | None) -> str:
    """Per cent; a dash where there is no limit."""
    return "–" if value is None else f"{value:.1%}"


def sparsity_table(rows: list[Data]) -> Data:
    """All numbers, one row per site; the last column only where a site is flagged."""
    columns = [
        "site", "in the spec", "silent", "spikes / channel", "slot sparsity", "S", "mean |c|", "max |c|",
        "dead channels", "at the limit", "saturated channels", "",
    ]  # fmt: skip
    cells = [
        [
            r["site"], r["name"] or "–", f"{r['silent_fraction']:.1%}", f"{r['spikes_per_channel']:.3f}",
            f"{r['slot_sparsity']:.1%}",
            str(r["steps"]), f"{r['mean_count']:.3f}", str(r["largest"]), f"{r['dead_channels']:.1%}",
            share(r["at_limit"]), share(r["saturated_channels"]), r["flag"],
        ]
        for r in rows
    ]  # fmt: skip
    kept = len(columns) if any(r["flag"] for r in rows) else len(columns) - 1
    return {"title": "All sites", "columns": columns[:kept], "rows": [row[:kept] for row in cells]}


@hookimpl
def fastsnn_scopes() -> list[type[Scope]]:
    """This plugin's scopes."""
    return [SparsityScope]


__getattr__ = renamed(__name__, {"Sparsity": "SparsityScope"})
