"""The order in which sites fall silent: dial settings from the model as it is to nearly silent, cheapest first.

Each site alone is made sparser, at a few levels, and the rise in nats per token is measured; in between, the cost
follows the squared error of the site's output. Or all sites share one amount.
"""

from __future__ import annotations

import attrs
import torch
from torch import Tensor, nn

from fastsnn_core.errors import FastSNNError
from fastsnn_core.probe import probe
from fastsnn_core.site import sites
from fastsnn_tune.curve import loss
from fastsnn_tune.dial import (
    DialSetting,
    DialValues,
    dial_settings,
    set_dials,
    value_of,
    values_for,
)
from fastsnn_tune.estimated import is_large, ladders, site_widths

LEVELS = (0.3, 0.5, 0.7, 0.85, 0.95)  # silent fractions of a site at which its cost is measured
TOGETHER = tuple(i / 50 for i in range(5, 50))


@attrs.frozen
class DialStep:
    """One step of the path: a site's dial from one value to the next; `nats` per token and `silent` are differences."""

    site: str
    value: float
    nats: float
    silent: float


def nats_per_silent(steps: list[DialStep]) -> float:
    """Nats per unit of silent fraction won."""
    return sum(step.nats for step in steps) / max(sum(step.silent for step in steps), 1e-9)


@torch.no_grad()
def site_inputs(model: nn.Module, windows: Tensor) -> dict[str, Tensor]:
    """What every site is given on the first few windows ``[B,T,D]``."""
    with probe(model) as trace:
        model(windows[:4, :-1])
    return {name: record.x for name, record in trace.items()}


def uniform(model: nn.Module, names: dict[str, str], windows: Tensor) -> list[DialValues]:
    """The path on which all sites share one amount, 2 % of the channels at a time."""
    if len(set(names.values())) > 1:
        raise FastSNNError(
            f"sites with different dials ({', '.join(sorted(set(names.values())))}) have no amount in common"
        )
    found, xs = sites(model), site_inputs(model, windows)
    rows = [values_for(found, names, xs, level) for level in TOGETHER]
    start = {name: value_of(site, names[name]) for name, site in found.items()}
    return [row for n, row in enumerate(rows) if row != ([start, *rows])[n]]


def single(model: nn.Module, names: dict[str, str], windows: Tensor) -> list[DialValues]:
    """The path on which every step changes one site, the cheapest first."""
    now = {name: value_of(site, names[name]) for name, site in sites(model).items()}
    path = []
    for step in by_price(dial_steps(model, names, windows)):
        now = now | {step.site: step.value}
        path.append(now)
    return path


def dial_steps(model: nn.Module, names: dict[str, str], windows: Tensor) -> list[list[DialStep]]:
    """For every site the steps of its dial: the value, and the differences in cost and sparsity from the step before.

    Measured one site at a time, or estimated for all of them in a large decoder.
    """
    if is_large(model):
        width, total = site_widths(model), sum(site_widths(model).values())
        return [
            steps_of_site(name, rows, [row.error for row in rows], width[name] / total)
            for name, rows in ladders(model, names, windows[:, :-1]).items()
        ]
    base, found, xs = loss(model, windows)[0], sites(model), site_inputs(model, windows)
    total = sum(x.shape[-1] for x in xs.values())
    found_steps = []
    for name, site in found.items():
        alone, rows, measured = {name: site}, dial_settings(site, names[name], xs[name]), {}
        for level in LEVELS:
            near = min(range(len(rows)), key=lambda i: abs(rows[i].silent - level))
            if near and near not in measured:
                set_dials(alone, names, {name: rows[near].value})
                measured[near] = loss(model, windows)[0] - base
        set_dials(alone, names, {name: rows[0].value})
        nats, share = costs(rows, measured), xs[name].shape[-1] / total
        found_steps.append(steps_of_site(name, rows, nats, share))
    return found_steps


def steps_of_site(name: str, rows: list[DialSetting], nats: list[float], share: float) -> list[DialStep]:
    """The steps of a site that has this share of all channels, from the costs of its values."""
    return [
        DialStep(name, row.value, nats[i] - nats[i - 1], (row.silent - rows[i - 1].silent) * share)
        for i, row in enumerate(rows)
        if i
    ]


def costs(rows: list[DialSetting], measured: dict[int, float]) -> list[float]:
    """Nats of every value, from those measured at some: in between, nats per squared error change evenly.

    A few thousand tokens tell a cost of 0.01 nats but not of 0.001, so the finest measurement shares the ratio of the
    next, and no cost is negative or falls.
    """
    at = sorted(measured)
    ratios = [max(measured[i], 0.0) / max(rows[i].error, 1e-30) for i in at]
    if len(ratios) > 1:
        first_two = [(max(measured[i], 0.0), rows[i].error) for i in at[:2]]
        ratios[0] = sum(n for n, _ in first_two) / max(sum(e for _, e in first_two), 1e-30)
    nats, last = [], 0.0
    for i, row in enumerate(rows):
        after = next((k for k, j in enumerate(at) if j >= i), len(at) - 1)
        if not at:
            ratio = 0.0
        elif after == 0 or at[after] < i:
            ratio = ratios[after]
        else:
            share = (i - at[after - 1]) / (at[after] - at[after - 1])
            ratio = ratios[after - 1] + share * (ratios[after] - ratios[after - 1])
        last = max(last, ratio * row.error)
        nats.append(last)
    return nats


def by_price(ladders: list[list[DialStep]]) -> list[DialStep]:
    """All steps, cheapest first, each site's in their order; a step that pays for its predecessor takes it along."""
    queues = [merged_ladder(ladder) for ladder in ladders]
    path: list[DialStep] = []
    while any(queues):
        queue = min((q for q in queues if q), key=lambda q: nats_per_silent(q[0]))
        path.extend(queue.pop(0))
    return path


def merged_ladder(ladder: list[DialStep]) -> list[list[DialStep]]:
    """The ladder in pieces whose prices rise: neighbours whose prices fall belong together."""
    out: list[list[DialStep]] = []
    for step in ladder:
        piece = [step]
        while out and nats_per_silent(piece) < nats_per_silent(out[-1]):
            piece = out.pop() + piece
        out.append(piece)
    return out
