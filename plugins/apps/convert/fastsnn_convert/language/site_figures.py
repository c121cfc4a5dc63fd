"""Figures of a converted decoder site by site: what the spikes did, what each costs, and quality against steps or k."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fastsnn_console.progress import Progress
from fastsnn_convert.language.balance import BalanceReport
from fastsnn_convert.language.dense_prefix import dense_streams, given
from fastsnn_convert.language.output_sensitivity import PIECE, SAMPLE
from fastsnn_convert.language.rebuild import bypass_neurons, site_table
from fastsnn_convert.language.reference_eval import HeldOutReference
from fastsnn_convert.report import row
from fastsnn_core import SpikeSite, SpikeTensor

WORST = 10
"""How many sites' figures are measured one at a time; the others are estimated."""
ALONE = 512
"""Tokens that such a site is measured on: the divergence from the dense model varies little from window to window."""


def rows_of(model: Any, replaced: Sequence[int] = ()) -> list[dict[str, Any]]:
    """A row per part of a decoder, in the order of the forward pass; projections that share spikes share a row."""
    at: dict[str, SpikeSite] = {path: site for path, (_, site) in site_table(model).items()}
    found = [part("embed", [model.embed], None, "tokens are looked up")]
    if at["embed_site"].neuron is not None:
        found.append(part("embed_site", [], "embed_site", "spikes of the embedding"))
    for i, layer in enumerate(model.layers):
        a, f, name = layer.attention, layer.feedforward, f"layers.{i}"
        found.append(part(f"{name}.attention_norm", [layer.attention_norm], None, "on numbers"))
        found.append(projection_row(f"{name}.attention.q, k, v", [a.q, a.k, a.v], at, f"{name}.attention.inner"))
        for which in ("q", "k", "v"):
            if at[path := f"{name}.attention.{which}_site"].neuron is not None:
                found.append(part(path, [], path, "spikes of the heads' vectors"))
        mixer = part(f"{name}.attention.mixer", [a.mixer], None, "mixes numbers")
        if i in replaced:
            mixer |= {"status": "approximated", "note": "in place of the source's attention; projections inherited"}
        found.append(mixer)
        found.append(projection_row(f"{name}.attention.out", [a.out], at, f"{name}.attention.outer"))
        found.append(part(f"{name}.feedforward_norm", [layer.feedforward_norm], None, "on numbers"))
        first = [m for m in (getattr(f, "gate", None), getattr(f, "up", None)) if m is not None]
        names = "gate, up" if len(first) == 2 else "up"
        found.append(projection_row(f"{name}.feedforward.{names}", first, at, f"{name}.feedforward.inner"))
        found.append(projection_row(f"{name}.feedforward.down", [f.down], at, f"{name}.feedforward.hidden"))
    found.append(part("norm", [model.norm], None, "on numbers"))
    if model.head is not None or at["head_site"].neuron is not None:
        found.append(projection_row("head", [model.head or model.embed], at, "head_site"))
    return found


def part(name: str, modules: list[nn.Module], site: str | None, note: str) -> dict[str, Any]:
    """A row: kept where no site is before it."""
    kinds = [type(m).__name__ for m in modules] or ["SpikeSite"]
    kind = f"{kinds[0]} ×{len(kinds)}" if len(kinds) > 1 else kinds[0]
    size = sum(p.numel() for m in modules for p in m.parameters())
    return row(name, kind, "converted" if site else "kept", "decoder", note, parameters=size, site=site)


def projection_row(name: str, modules: list[nn.Module], at: dict[str, SpikeSite], site: str) -> dict[str, Any]:
    """A row of projections behind a site, which may have no neuron."""
    on = at[site].neuron is not None
    return part(name, modules, site if on else None, "reads spikes" if on else "on numbers")


@torch.no_grad()
def measure_sites(
    model: Any,
    held: HeldOutReference,
    rows: list[dict[str, Any]],
    made: BalanceReport | None = None,
    *,
    thorough: bool = False,
    errors: bool = True,
    quiet: bool = True,
) -> dict[str, Any]:
    """Fill the rows' figures in and give the whole's: perplexities, KL, and what the spikes did.

    `error` is the KL when this site alone spikes, `cumulative` when it and all before it do, both against the dense
    model. They are estimated for all sites from the sensitivities in `made` (`output_sensitivity`), `error` is then
    measured for the `WORST` and where `made` is None or `thorough` everything is; `estimated` says which. Where the
    weights are no longer the dense model's (`errors` False) a site alone has no meaning and neither is given.
    """
    by_site = {r["site"]: r for r in rows if r["site"]}
    at = {path: site for path, (_, site) in site_table(model).items() if site.neuron is not None}
    few = held.first(max(1, SAMPLE // held.tokens.shape[1]))
    total = spike_figures(model, few, at, by_site, made)
    all_of_them = thorough or made is None
    with Progress("measuring", len(held.tokens), "windows", quiet=quiet) as progress:
        found = held.windows(model, lambda: progress.step(min(len(held.tokens), PIECE // held.tokens.shape[1] or 1)))
    if errors:
        if made is not None and not all_of_them:
            cumulative(model, few, list(at), by_site, made)
        exact = list(at) if all_of_them else sorted(at, key=lambda n: -(by_site[n]["error"] or 0.0))[:WORST]
        alone = few if all_of_them else few.first(max(1, ALONE // few.tokens.shape[1]))
        before = dense_streams(model, alone.tokens, [name for name in exact if name.startswith("layers.")])
        with Progress("measuring sites", len(exact), "sites", quiet=quiet) as progress:
            for name in exact:
                with bypass_neurons(model, [at[name]]), given(model, before, name):
                    by_site[name]["error"] = alone.compare(model)[0]
                by_site[name]["estimated"] = False
                if all_of_them:
                    names = list(at)
                    with bypass_neurons(model, [at[n] for n in names[: names.index(name) + 1]]):
                        by_site[name]["cumulative"] = few.compare(model)[0]
                progress.step(note=name)
    return found.figures() | {"tokens": held.tokens.numel(), "windows": len(held.tokens)} | total


@contextlib.contextmanager
def visit_spikes(model: nn.Module, visit: Callable[[str, Tensor, SpikeTensor], None]) -> Iterator[None]:
    """While the block runs, call ``visit(site, x, spikes)`` for every spiking site; nothing is kept."""
    handles = []
    for path, (_, site) in site_table(model).items():
        if site.neuron is not None:
            hook = lambda _m, args, out, path=path: visit(path, args[0], out[0])  # noqa: E731
            handles.append(site.neuron.register_forward_hook(hook))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def spike_figures(
    model: Any, held: HeldOutReference, at: dict[str, Any], by_site: dict[str, Any], made: BalanceReport | None
) -> dict[str, Any]:
    """What the spikes of every site did, put into its row; means over all channels.

    `silent_bytes` weighs a site's silent inputs by the weights behind each: the share of the projections' weights that
    need not be read.
    """
    keys = ("silent_fraction", "spikes_per_channel", "saturation", "mean_count")
    total, width, behind, unread = dict.fromkeys(keys, 0.0), 0, 0, 0.0

    def visit(name: str, x: Tensor, spikes: SpikeTensor) -> None:
        nonlocal width, behind, unread
        r, neuron = by_site[name], at[name].neuron
        bound = float(getattr(neuron, "most", getattr(neuron, "bound", float("inf"))))
        found = spikes.sparsity()
        size, error = spikes.counts.abs(), spikes.value() - x
        lost = (size >= bound) & (error.abs() > 0.51 * spikes.scale)
        r |= {
            "silent_fraction": found.silent_fraction,
            "spikes_per_channel": found.spikes_per_channel,
            "slot_sparsity": found.slot_sparsity,
            "steps": found.steps,
            "largest": found.largest,
            "mean_count": found.mean_count,
            "saturation": float(lost.float().mean()),
            "bursting": float((size > bound).float().mean()),
            "channels": spikes.shape[-1],
        } | {key: float(t.detach()) for key in ("k", "clip") if isinstance(t := getattr(neuron, key, None), Tensor)}
        if made is not None and name in made.fisher:
            r["estimated"] = True
            r["error"] = 0.5 * float((made.fisher[name] * error.float().pow(2)).sum(-1).mean())
        width += spikes.shape[-1]
        behind += r["parameters"] or 0
        unread += (r["parameters"] or 0) * found.silent_fraction
        for key in keys:
            total[key] += spikes.shape[-1] * r[key]

    with visit_spikes(model, visit):
        model(held.tokens, last=True)
    steps = max((r["steps"] for r in by_site.values() if r["steps"] is not None), default=0)
    means = {key: value / max(1, width) for key, value in total.items()}
    return means | {"silent_bytes": unread / max(1, behind), "steps": steps}


@torch.no_grad()
def cumulative(
    model: Any, held: HeldOutReference, names: list[str], by_site: dict[str, Any], made: BalanceReport
) -> None:
    """Estimate the KL when a site and all before it spike, for all of them from two passes.

    The error e of the residual stream behind a block costs about ½ Σ_i F_i E[e_i²]; within a block it is shared out as
    the sites' own costs are. All is scaled so that the last site's is the divergence measured on the same windows.
    """
    held, whole = held.first(max(1, PIECE // held.tokens.shape[1])), 0.0
    streams: list[Tensor] = []
    apart: list[Tensor] = []

    def difference(_m: Any, _a: Any, out: Any) -> None:
        apart.append((streams.pop(0) - out[0]).float().pow(2).mean((0, 1)))

    for spiking in (False, True):
        hook = difference if spiking else lambda _m, _a, out: streams.append(out[0])
        handles = [layer.register_forward_hook(hook) for layer in model.layers]
        try:
            if spiking:
                whole = held.compare(model)[0]
            else:
                with bypass_neurons(model):
                    model(held.tokens, last=True)
        finally:
            for handle in handles:
                handle.remove()
    weights = made.stream[1:]  # in front of the next block, or of the head
    behind = [0.5 * float((w * e).sum()) for w, e in zip(weights, apart)]
    so_far, before = 0.0, 0.0
    own = {name: by_site[name]["error"] or 0.0 for name in names}
    for i, reached in enumerate(behind):
        inside = [n for n in names if n.startswith(f"layers.{i}.")]
        sums = sum(own[n] for n in inside) or 1.0
        so_far = before
        for name in inside:
            so_far += (reached - before) * own[name] / sums
            by_site[name]["cumulative"] = so_far
        before = reached
    for name in names:
        if not name.startswith("layers."):
            by_site[name]["cumulative"] = own[name] if name == names[0] else before + own[name]
    last = by_site[names[-1]]["cumulative"] if names else 0.0
    factor = whole / last if last else 1.0
    for name in names:
        by_site[name]["cumulative"] *= factor


@torch.no_grad()
def curve(model: Any, held: HeldOutReference, *, quiet: bool = True) -> list[dict[str, Any]]:
    """Quality against steps (neurons with a budget) or against k, everything else as it was calibrated."""
    neurons: list[Any] = [site.neuron for _, site in site_table(model).values() if site.neuron is not None]
    if not neurons:
        return []
    if all(isinstance(getattr(n, "steps", None), Tensor) for n in neurons):
        key, values = "steps", [float(s) for s in (2, 3, 4, 5, 6, 8)]
    elif all(isinstance(getattr(n, "k", None), Tensor) for n in neurons):
        key, values = "k", [0.5, 1.0, 2.0, 3.0, 6.0]
    else:
        return []
    held = held.first(max(1, ALONE // held.tokens.shape[1]))
    old = [getattr(n, key).detach().clone() for n in neurons]
    mean = sum(float(t) for t in old) / len(old)
    rows = []
    try:
        with Progress(f"quality against {key}", len(values), quiet=quiet) as progress:
            for value in values:
                for n, was in zip(neurons, old):
                    getattr(n, key).copy_(was * (value / mean) if key == "k" else torch.tensor(int(value)))
                found, spikes = spike_means(model, held)
                at = {key: int(value) if key == "steps" else value}
                rows.append(at | {name: found[name] for name in ("ratio", "kl")} | spikes)
                progress.step()
    finally:
        for n, was in zip(neurons, old):
            getattr(n, key).copy_(was)
    return rows


def spike_means(
    model: Any, held: HeldOutReference, behind: dict[str, float] | None = None
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Quality on held-out windows, and channel-weighted means of what all sites do on the way.

    With `behind`, the weights that read each site by path, silent bytes, too.
    """
    sums, largest = [0.0, 0.0, 0.0], 0
    unread, read = 0.0, 0.0

    def visit(path: str, x: Tensor, spikes: SpikeTensor) -> None:
        nonlocal largest, unread, read
        found, n = spikes.sparsity(), spikes.numel()
        for i, value in enumerate((1.0, found.silent_fraction, found.spikes_per_channel)):
            sums[i] += n * value
        weights = (behind or {}).get(path, 0.0) * spikes.numel() / spikes.shape[-1]
        unread, read = unread + weights * found.silent_fraction, read + weights
        largest = max(largest, found.largest)

    with visit_spikes(model, visit):
        quality = held.windows(model).figures()
    n = sums[0] or 1.0
    means = {"silent_fraction": sums[1] / n, "spikes_per_channel": sums[2] / n, "largest": largest}
    return quality, means | ({"silent_bytes": unread / max(1.0, read)} if behind else {})
