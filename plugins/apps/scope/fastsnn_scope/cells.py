"""The token × site map: what every site did at every token, and what stands behind it.

    active[s, t]   channels of site s that spiked at token t, of D_s
    spikes[s, t]   spikes under a bitwise coder, Σ popcount |c|
    unread[s, t]   (D_s - active) · row bytes of the matrices that read the site
    kl[t]          KL(numbers in place of spikes ‖ spikes) of the next token, in nats

Columns are the tokens of the first sequence; time steps of the first sample for networks over time; samples for
networks without time. Dead, saturated and outlier channels are counted over everything that was run.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator

import attrs
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastsnn_core import SpikeSite
from fastsnn_core.probe import Record
from fastsnn_core.subject import Data, Subject
from fastsnn_modules.shown import spec_name
from fastsnn_scope.channels import problems
from fastsnn_scope.weights import Matrix, matrices

RAW = 2_000_000  # counts that are kept for rasters, over all sites and tokens
TRACES = 3


@attrs.define(eq=False)
class Arrays:
    """What the page shows of a cell beyond report.json, site by site: all on the CPU.

    `counts` int8 ``[C, X]`` of `channels`; `threshold` ``[X]``; `membrane` ``[3, X]`` of the `traced`, in thresholds.
    """

    counts: list[Tensor] = attrs.field(factory=list)
    channels: list[list[int]] = attrs.field(factory=list)
    membrane: list[Tensor] = attrs.field(factory=list)
    traced: list[list[int]] = attrs.field(factory=list)
    threshold: list[Tensor] = attrs.field(factory=list)


def first_plane(t: Tensor) -> Tensor:
    """``[X, D]``: tokens or steps of the first sequence ``[B,X,D]``, else the samples ``[B, …]``."""
    t = t.detach()
    return t[0] if t.ndim == 3 else t.flatten(1)


def popcount(counts: Tensor) -> Tensor:
    """Set bits of each magnitude."""
    left = counts.abs().round().int()
    total = torch.zeros_like(left)
    while bool(left.any()):
        total += left & 1
        left = left >> 1
    return total


def measure(subject: Subject) -> tuple[Data, Arrays]:
    """The map as plain data, and its arrays; ``{"reason"}`` for a model without spikes."""
    arrays = Arrays()
    widths = {name: first_plane(r.spikes.counts).shape for name, r in subject.trace.items() if r.spikes.ndim > 1}
    if not widths:
        return {"reason": "the model makes no spikes"}, arrays
    columns = Counter(x for x, _ in widths.values()).most_common(1)[0][0]
    short = subject.inputs[:1, :2] if subject.is_language_model else subject.inputs[:1]
    read = matrices(subject.model, short)
    shown = [name for name, (x, _) in widths.items() if x == columns]
    kept = max(8, min(96, RAW // max(1, columns * len(shown))))
    model = subject.model
    rows = [site_cells(name, spec_name(model, name), subject.trace[name], read, kept, arrays) for name in shown]
    ndims = {subject.trace[name].spikes.ndim for name in shown}
    axis = "token" if subject.is_language_model else "time step" if ndims == {3} else "sample"
    labels = list(subject.labels[:columns]) if axis == "token" else []
    return {
        "axis": axis,
        "columns": columns,
        "labels": labels,
        "sites": rows,
        "left_out": [name for name in subject.trace if name not in shown],
        "matrices": [attrs.asdict(m) for m in read],
        "weight_bytes": sum(m.nbytes for m in read),
    }, arrays


def site_cells(name: str, called: str, record: Record, read: list[Matrix], kept: int, arrays: Arrays) -> Data:
    """One site: its cells, its channels, and the matrices that read it."""
    counts = first_plane(record.spikes.counts).float()
    width = counts.shape[1]
    behind = [m for m in read if m.site == name and m.inputs == width]
    active, spikes = (counts != 0).sum(1), popcount(counts).sum(1)
    chosen = torch.linspace(0, width - 1, min(kept, width)).round().long()
    arrays.channels.append(chosen.tolist())
    arrays.counts.append(counts[:, chosen].T.round().clamp(-127, 127).to(torch.int8).cpu())
    scale = first_plane(record.spikes.scale.detach().float().expand(record.spikes.shape)).cpu()
    traced = torch.argsort((counts != 0).sum(0), descending=True, stable=True)[:TRACES].sort().values.cpu()
    u = potential(record)[:, traced]
    arrays.traced.append(traced.tolist())
    arrays.membrane.append((u / scale[:, traced].clamp_min(1e-12)).T.contiguous())
    arrays.threshold.append(scale.mean(1))
    return {
        "site": name,
        "name": called,
        "neuron": type(record.module).__name__,
        "channels": width,
        "active": active.tolist(),
        "spikes": spikes.tolist(),
        "silent_fraction": 1.0 - float(active.sum()) / max(1, counts.numel()),
        "spikes_per_channel": float(spikes.sum()) / max(1, counts.numel()),
        "row_bytes": sum(m.row_bytes for m in behind),
        "weight_bytes": sum(m.nbytes for m in behind),
        "readers": [m.layer for m in behind],
        "channel_problems": problems(record),
    }


def potential(record: Record) -> Tensor:
    """``u [X, D]``: the membrane just before it is counted; what goes in, for neurons that keep none."""
    x, module = record.x, record.module
    if callable(getattr(module, "membrane", None)) and x.ndim == 3:
        return module.membrane(x[:1].float())[0].detach().float().cpu()  # type: ignore[operator]
    return first_plane(x).float().cpu()


@contextlib.contextmanager
def without_spikes(model: nn.Module) -> Iterator[int]:
    """While the block runs, sites pass numbers on; how many they are."""
    sites = [m for m in model.modules() if isinstance(m, SpikeSite) and m.neuron is not None]
    held = [m.neuron for m in sites]
    try:
        for site in sites:
            site.neuron = None
        yield len(sites)
    finally:
        for site, neuron in zip(sites, held):
            site.neuron = neuron


@torch.no_grad()
def divergence(model: nn.Module, inputs: Tensor) -> Data | None:
    """KL of each token's prediction from that of the same weights without spikes, and both losses; None elsewhere.

    ``kl [T]`` in nats; ``nats`` and ``nats_numbers`` are mean cross-entropies of the next token, the last left out.
    """
    if inputs.is_floating_point() or inputs.ndim != 2:
        return None
    tokens, training = inputs[:1], model.training
    model.eval()
    try:
        said = model(tokens)
        with without_spikes(model) as sites:
            wanted = model(tokens) if sites else said
    finally:
        model.train(training)
    if not sites or not isinstance(said, Tensor) or said.ndim != 3:
        return None
    kl, here, dense, labels = [], 0.0, 0.0, tokens[0, 1:]
    for at in range(0, said.shape[1], 64):
        p, q = (t[0, at : at + 64].float().log_softmax(-1) for t in (wanted, said))
        kl += F.kl_div(q, p, log_target=True, reduction="none").sum(-1).double().clamp_min(0.0).tolist()
        label = labels[at : at + 64]
        here += float(F.nll_loss(q[: len(label)], label, reduction="sum"))
        dense += float(F.nll_loss(p[: len(label)], label, reduction="sum"))
    scored = max(1, len(labels))
    return {"kl": [round(v, 6) for v in kl], "nats": here / scored, "nats_numbers": dense / scored}
