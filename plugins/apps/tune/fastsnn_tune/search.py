"""The calibration: which sites may fall silent, in the order of what each costs.

First every site is turned up alone, level by level, and what that costs in nats per token is measured. Then the
cheapest next step (nats per silent channel won) is taken, again and again: a path from the model as it is to one that
is nearly silent. Costs of single sites do not quite add up, so where to stop on the path is found by measuring, not by
adding: at the silent fraction asked for, or at the last point within the perplexity budget. Turned together, all sites
follow one dial, further and further. The order is found on one part of the text (differences on the same tokens need
few of them), the place to stop on another, and perplexities of the curve are from the rest.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import attrs
import torch
from torch import Tensor, nn

from fastsnn_core.probe import probe
from fastsnn_core.site import sites
from fastsnn_text import tokenizer_of
from fastsnn_tune.curve import Point, forms_of, loss, point, speeds
from fastsnn_tune.dial import Dials, dials_of, settle, silent_channels, turn, turn_model, value_of, values_for

LEVELS = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95)
USELESS = 10.0  # times the perplexity: nobody wants to see the curve beyond
TOGETHER = tuple(i / 50 for i in range(5, 50))


@attrs.frozen(eq=False)
class Tuned:
    """The tuned model, its dials by site, the curve, and the model before and after on text it was not tuned on."""

    model: Any
    before: Point
    after: Point
    curve: list[Point]
    dials: dict[str, dict[str, Any]]
    target: dict[str, float]

    def data(self) -> dict[str, Any]:
        """Everything but the model, as JSON data."""
        return attrs.asdict(self, filter=lambda field, _: field.name != "model")


@attrs.frozen
class Step:
    """One move on the path: a site's dial from one level to the next; costs are differences."""

    site: str
    value: float
    nats: float
    silent: float

    @property
    def price(self) -> float:
        """Nats per unit of silent fraction won."""
        return self.nats / max(self.silent, 1e-9)


def tune(
    model: Any,
    text: str,
    *,
    silent: float | None = None,
    budget: float | None = None,
    dial: str = "auto",
    together: bool = False,
    seq_len: int = 256,
    calibration_tokens: int = 4096,
    held_out_tokens: int = 8192,
    points: int = 8,
    decode_tokens: int = 64,
) -> Tuned:
    """Tune a copy of `model` on `text` to a silent fraction, or as far as a perplexity budget (1.05: 5 % worse) goes.

    With neither, only the curve is measured and the model comes back as it was. `dial`: dead_zone, k or top where the
    neurons have them (auto: their first); every site gets its own value, or all are turned `together`. `points` of the
    curve are measured on the way, with `decode_tokens` decoded tokens each for the speed (0: none).
    """
    check(silent, budget)
    order, chosen, held = windows_of(model, text, seq_len, calibration_tokens, held_out_tokens)
    new: Any = copy.deepcopy(model).eval()
    names, found = dials_of(new, dial), sites(new)
    start = {name: value_of(site, names[name]) for name, site in found.items()}
    base, _ = loss(new, chosen)
    path = [start, *(uniform if together else single)(new, names, order)]

    def go(n: int) -> tuple[float, float]:
        turn(found, names, path[n])
        return loss(new, chosen)

    stop = where(len(path) - 1, go, base, silent, budget)
    broken = first(len(path) - 1, lambda n: go(n)[0] > base + math.log(USELESS))
    end = max(stop, len(path) - 1 if broken is None else broken)
    marks = sorted({round(i * end / max(1, points - 1)) for i in range(points)} | {0, stop})
    turns = {n: partial(turn_model, names=names, values=path[n]) for n in marks}
    losses = {}
    for n, apply in turns.items():
        apply(new)
        losses[n] = loss(new, held)
    rates = speeds(forms_of(new), turns, held[0][:16].tolist(), decode_tokens) if decode_tokens else {}
    curve = {n: point(losses[n], rates.get(n, {})) for n in marks}
    final: Any = copy.deepcopy(model).eval()
    target = {k: v for k, v in (("silent", silent), ("budget", budget)) if v is not None}
    if stop:
        settle(final, names, path[stop])
        meta = dict(getattr(model, "meta", {}))
        done = {"what": "tune", **target, "silent_fraction": curve[stop].silent_fraction}
        final.meta = meta | {"milestones": [*meta.get("milestones", []), done]}
    rows = {
        n: {"dial": names[n], "before": start[n], "after": value_of(site, names[n])} for n, site in sites(final).items()
    }
    return Tuned(final, curve[0], curve[stop], [curve[n] for n in marks], rows, target)


def check(silent: float | None, budget: float | None) -> None:
    """Refuse goals that make no sense."""
    if silent is not None and budget is not None:
        raise ValueError("give a silent fraction or a perplexity budget, not both")
    if silent is not None and not 0 < silent < 1:
        raise ValueError(f"a silent fraction lies between 0 and 1, got {silent}")
    if budget is not None and not budget >= 1:
        raise ValueError(f"a perplexity budget is a factor of at least 1, got {budget}")


def where(
    last: int, go: Callable[[int], tuple[float, float]], base: float, silent: float | None, budget: float | None
) -> int:
    """Where to stop on a path of `last` steps, found by measuring ``go(n) -> (nats per token, silent fraction)``."""
    if silent is not None:
        stop = first(last, lambda n: go(n)[1] >= silent)
        if stop is None:
            raise ValueError(f"a silent fraction of {silent} is out of reach; these dials go to {go(last)[1]:.3f}")
        return stop
    if budget is None:
        return 0
    over = first(last, lambda n: go(n)[0] > base + math.log(budget))
    return last if over is None else max(0, over - 1)


def windows_of(model: Any, text: str, seq_len: int, most: int, held: int) -> tuple[Tensor, Tensor, Tensor]:
    """``(to order on, to stop on, to report on)``: windows ``[N, seq_len + 1]``, about `most` tokens and `held` tokens.

    The first two come from the first 60 % of the text, a quarter and three quarters, the third from the rest; each is
    spread evenly over its part.
    """
    ids = torch.tensor(tokenizer_of(model).encode(text))
    windows = ids[: len(ids) // (seq_len + 1) * (seq_len + 1)].reshape(-1, seq_len + 1)
    if len(windows) < 4:
        raise ValueError(
            f"the text has {len(ids)} tokens; at least {4 * (seq_len + 1)} are needed (or a smaller seq_len)"
        )
    windows = windows.to(next(model.parameters()).device)
    edge = max(2, int(0.6 * len(windows)))
    chosen = spread(windows[:edge], max(2, most // seq_len))
    order = torch.arange(len(chosen), device=chosen.device) % 4 == 0
    return chosen[order], chosen[~order], spread(windows[edge:], max(1, held // seq_len))


def spread(windows: Tensor, most: int) -> Tensor:
    """At most `most` of the windows, evenly spaced."""
    n = min(most, len(windows))
    return windows[torch.linspace(0, len(windows) - 1, n).long()]


@torch.no_grad()
def inputs_of(model: nn.Module, windows: Tensor) -> dict[str, Tensor]:
    """What every site is given on the first few windows ``[B,T,D]``."""
    with probe(model) as trace:
        model(windows[:4, :-1])
    return {name: record.x for name, record in trace.items()}


def uniform(model: nn.Module, names: dict[str, str], windows: Tensor) -> list[Dials]:
    """The path on which all sites are turned together, 2 % of the channels at a time."""
    if len(set(names.values())) > 1:
        raise ValueError(f"sites with different dials ({', '.join(sorted(set(names.values())))}) do not turn together")
    found, xs = sites(model), inputs_of(model, windows)
    rows = [values_for(found, names, xs, level) for level in TOGETHER]
    start = {name: value_of(site, names[name]) for name, site in found.items()}
    return [row for n, row in enumerate(rows) if row != ([start, *rows])[n]]


def single(model: nn.Module, names: dict[str, str], windows: Tensor) -> list[Dials]:
    """The path on which every step turns one site, the cheapest first."""
    now = {name: value_of(site, names[name]) for name, site in sites(model).items()}
    path = []
    for step in ordered(sensitivities(model, names, windows)):
        now = now | {step.site: step.value}
        path.append(now)
    return path


def sensitivities(model: nn.Module, names: dict[str, str], windows: Tensor) -> list[list[Step]]:
    """For every site the steps of its levels: the dial value, and nats and silent fraction against the level before."""
    base = loss(model, windows)[0]
    found, xs = sites(model), inputs_of(model, windows)
    total = sum(x.shape[-1] for x in xs.values())
    ladders = []
    for name, site in found.items():
        alone, x = {name: site}, xs[name]
        share = x.shape[-1] / total
        before, nats, fraction = value_of(site, names[name]), base, silent_channels(site, x) / max(1, x.numel())
        ladder: list[Step] = []
        for level in (level for level in LEVELS if level > fraction + 0.02):
            value = values_for(alone, names, xs, level)[name]
            turn(alone, names, {name: value})
            now = loss(model, windows)[0]
            turn(alone, names, {name: before})
            ladder.append(Step(name, value, now - nats, (level - fraction) * share))
            nats, fraction = now, level
        ladders.append(ladder)
    return ladders


def ordered(ladders: list[list[Step]]) -> list[Step]:
    """All steps, cheapest first, each site's in their order; a step that pays for its predecessor takes it along."""
    queues = [merged(ladder) for ladder in ladders]
    path: list[Step] = []
    while any(queues):
        queue = min((q for q in queues if q), key=lambda q: q[0].price)
        path.append(queue.pop(0))
    return path


def merged(ladder: list[Step]) -> list[Step]:
    """The ladder with prices that rise: neighbours whose prices fall are taken as one step."""
    out: list[Step] = []
    for step in ladder:
        while out and step.price < out[-1].price:
            last = out.pop()
            step = Step(step.site, step.value, last.nats + step.nats, last.silent + step.silent)
        out.append(step)
    return out


def first(length: int, holds: Callable[[int], bool]) -> int | None:
    """The least n in 0 … length for which `holds(n)`, which holds from some n on; None where it never does."""
    if not holds(length):
        return None
    low, high = -1, length
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if holds(middle) else (middle, high)
    return high
