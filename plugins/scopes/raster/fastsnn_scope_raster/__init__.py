"""Spike raster: the counts of chosen sites, tokens across and channels down."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from attrs import frozen
from torch import Tensor

from fastsnn_core import Scope, hookimpl, param
from fastsnn_core.subject import Data, Subject
from fastsnn_modules.site_views import bitwise_spikes, sites_to_show

__version__ = "0.1.0"

ORANGE = ("#f2a974", "#dd7230", "#b04a07", "#6e2a00")  # from one bit of a negative count to the most
BLUE = ("#7fbfe6", "#3d94cc", "#0a64a4", "#06375f")


@frozen
class Raster(Scope):
    """counts c ``[T, channels]`` of a site, sign by colour; above them popcount|c| summed over all channels / channels.

    Of the first sequence of the batch, at most `tokens` tokens and `channels` evenly spread channels are kept. Sites
    without a token axis show samples (``[B,D]``) or the positions of the first sample (``[B,C,H,W]``) instead.
    """

    name = "raster"
    title = "Spike raster"
    order: ClassVar[int] = 20
    reading: ClassVar[str] = (
        "Each square is one channel at one token: white is silent, blue a positive count, orange a negative one, and a "
        "darker shade one more bit. The bars above give the spikes per channel of that token, over all channels of the "
        "site. Vertical stripes are tokens that excite a whole layer; horizontal ones are channels that always fire."
    )
    sites: tuple[str, ...] = param(
        (), doc="names or patterns of sites (layers.0.*); none picks four over the depth", draw=((), ("layers.0.*",))
    )
    tokens: int = param(128, ge=1, le=4096, unit="tokens", doc="how many are shown", draw=(4, 128))
    channels: int = param(96, ge=1, le=4096, unit="channels", doc="how many are shown per site", draw=(4, 96))

    def measure(self, subject: Subject) -> Data:
        """Counts of the chosen sites."""
        names = sites_to_show(list(subject.trace), self.sites, 4)
        if not names:
            return {"reason": f"no site matches {', '.join(self.sites)}" if self.sites else "the model makes no spikes"}
        rows, axis = [], "token"
        for name in names:
            spikes = subject.trace[name].spikes
            counts, axis = raster_plane(spikes.counts, subject.is_language_model)
            fired = raster_plane(bitwise_spikes(spikes), True)[0].double().mean(1)
            kept = torch.linspace(0, counts.shape[1] - 1, min(self.channels, counts.shape[1])).round().long()
            rows.append({
                "name": name,
                "channels": kept.tolist(),
                "of_channels": counts.shape[1],
                "counts": counts[: self.tokens, kept].round().long().tolist(),
                "spikes_per_channel": [round(f, 4) for f in fired[: self.tokens].tolist()],
                "of_tokens": counts.shape[0],
            })  # fmt: skip
        labels = [] if axis != "token" else list(subject.labels[: self.tokens])
        return {"axis": axis, "labels": labels, "sites": rows, "notes": self.notes(rows, axis)}

    def notes(self, rows: list[Data], axis: str) -> list[str]:
        """What was left out of the picture."""
        shown, total = len(rows[0]["counts"]), max(r["of_tokens"] for r in rows)
        says = [f"The first {shown} of {total} {axis}s are shown."] if shown < total else []
        cut = [r for r in rows if len(r["channels"]) < r["of_channels"]]
        if cut:
            names = ", ".join(f"{r['name']} {len(r['channels'])} of {r['of_channels']}" for r in cut)
            says.append(f"Channels are evenly spread samples: {names}.")
        return says

    def draw(self, data: Data, figure: Any) -> None:
        """One panel per site, spikes per token above it."""
        from matplotlib.colors import BoundaryNorm, ListedColormap
        from matplotlib.patches import Patch

        if "reason" in data:
            figure.text(0.5, 0.5, data["reason"], ha="center", wrap=True)
            return
        sites, labels = data["sites"], data["labels"]
        figure.set_size_inches(9.5, 0.7 + 2.3 * len(sites))
        heights = [h for _ in sites for h in (0.35, 1.0)]
        axes = figure.subplots(2 * len(sites), 1, height_ratios=heights, squeeze=False)[:, 0]
        edges, shades, names = palette(max((abs(c) for s in sites for row in s["counts"] for c in row), default=0))
        colours, norm = ListedColormap(shades), BoundaryNorm(edges, len(shades))
        widest = max(len(s["counts"]) for s in sites)
        seen: set[int] = set()
        for i, site in enumerate(sites):
            top, main = axes[2 * i], axes[2 * i + 1]
            x = range(len(site["counts"]))
            top.bar(x, site["spikes_per_channel"], width=0.8, color="#555555")
            top.set_title(site["name"], loc="left")
            top.set_ylabel("spikes /\nchannel", fontsize="small")
            top.tick_params(labelbottom=False, bottom=False)
            grid = list(map(list, zip(*site["counts"])))
            main.pcolormesh(grid, cmap=colours, norm=norm, rasterized=True)
            seen |= {c for row in grid for c in row}
            main.invert_yaxis()
            n = len(grid)
            ticks = sorted({0, n // 2, n - 1})
            main.set_yticks([t + 0.5 for t in ticks], [str(site["channels"][t]) for t in ticks])
            main.set_ylabel("channel")
            top.set_xlim(-0.5, widest - 0.5)
            main.set_xlim(0, widest)
            for side in ("top", "right"):
                top.spines[side].set_visible(False)
            if labels and len(labels) >= len(x):
                step = -(-len(x) // 128)
                rows = main.set_xticks(
                    [t + 0.5 for t in x][::step], [visible_token(text) for text in labels[: len(x) : step]]
                )
                wide = max(map(len, labels)) > 2
                for tick in rows:
                    tick.label1.set(
                        parse_math=False,
                        fontsize=7 if len(x) <= 96 else 6,
                        rotation=90 if wide else 0,
                        family="monospace",
                    )
            else:
                step = next(k for k in (1, 2, 5, 10, 20, 50, 100, 200, 500) if len(x) <= 12 * k)
                main.set_xticks([t + 0.5 for t in x][::step], [str(t) for t in x][::step])
            main.tick_params(axis="x", length=0 if labels else 3)
        axes[-1].set_xlabel(data["axis"])
        used = [k for k in range(len(shades)) if any(edges[k] < c < edges[k + 1] for c in seen)]
        handles = [Patch(facecolor=shades[k], edgecolor="#999999", linewidth=0.5, label=names[k]) for k in used]
        figure.legend(handles=handles, title="count", loc="outside right upper", frameon=False)


def palette(largest: int) -> tuple[list[float], list[Any], list[str]]:
    """Edges, colours and names of the classes of counts: one for each number of bits up to that of `largest`."""
    from matplotlib.colors import LinearSegmentedColormap

    bits = max(4, largest.bit_length())
    lows = [1 << b for b in range(bits)]
    places = [b / (bits - 1) for b in range(bits)]
    minus, plus = (
        [LinearSegmentedColormap.from_list("counts", shades)(at) for at in places] for shades in (ORANGE, BLUE)
    )
    said = ["1", "2, 3", *(f"{low} … {2 * low - 1}" for low in lows[2:])]
    edges = [*(0.5 - 2 * low for low in reversed(lows)), -0.5, *(low - 0.5 for low in lows), 2 * lows[-1] - 0.5]
    negative = ["−1", "−3, −2", *(f"−{2 * low - 1} … −{low}" for low in lows[2:])]
    return edges, [*reversed(minus), "#ffffff", *plus], [*reversed(negative), "0", *said]


def raster_plane(counts: Tensor, tokens: bool) -> tuple[Tensor, str]:
    """``[X, channels]`` on the CPU, and what X is: tokens of a language model, else time steps."""
    counts = counts.detach().cpu()
    if counts.ndim == 3:
        return counts[0], "token" if tokens else "time step"
    if counts.ndim > 3:
        return counts[0].flatten(1).T, "position"
    return counts.reshape(-1, counts.shape[-1]), "sample"


def visible_token(label: str) -> str:
    """A token's text with its white space made visible; a dot for what has none, as half a character has."""
    for mark, instead in ((" ", "␣"), ("\n", "↵"), ("\t", "⇥"), ("\r", "↵")):
        label = label.replace(mark, instead)
    return label if label.isprintable() and "\ufffd" not in label else "·"


@hookimpl
def fastsnn_scopes() -> list[type[Scope]]:
    """This plugin's scopes."""
    return [Raster]
