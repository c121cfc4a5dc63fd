"""The calibration: which sites may fall silent, in the order of what each costs.

First each site alone is made sparser, at a few levels, and the rise in nats per token is measured; in between, the
cost follows the squared error of the site's output. A greedy search then takes the cheapest next step (nats per silent
channel) again and again: a path of dial settings from the model as it is to one that is nearly silent. Costs of single
sites do not quite add up, so the stopping point is measured on the path: the silent fraction asked for, or the last
point within the perplexity budget; from there it moves back until held-out text says, with its standard error counted
against the model, that the budget is kept. In the mode "together" all sites share one amount. The order is found on
one part of the text (differences on the same tokens need few of them), the stopping point on another, checked on a
third, and perplexities of the curve are from the rest.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import attrs
import torch
from torch import Tensor

from fastsnn_console.progress import Progress
from fastsnn_core.errors import FastSNNError
from fastsnn_core.site import sites
from fastsnn_text import tokenizer_of
from fastsnn_tune.curve import Point, decoding_speeds, forms_of, loss, point, record
from fastsnn_tune.dial import (
    DialValues,
    dials_of,
    set_model_dials,
    store_dials,
    value_of,
)
from fastsnn_tune.dial_order import single, uniform
from fastsnn_tune.dial_path import DialPath, better, least_passing
from fastsnn_tune.estimated import is_large

LEAST = 6  # windows: one to order on, one to stop on, one to check on, and the rest
USELESS = 10.0  # times the perplexity: nobody wants to see the curve beyond
READINGS = 16
"""Of the text, about as many as finding the place takes."""


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


def tune(
    model: Any,
    text: str,
    *,
    silent: float | None = None,
    budget: float | None = None,
    dial: str = "auto",
    mode: str = "auto",
    seq_len: int = 256,
    calibration_tokens: int | None = None,
    held_out_tokens: int | None = None,
    points: int = 8,
    decode_tokens: int = 64,
    quiet: bool = False,
) -> Tuned:
    """Tune a copy of `model` on `text` to a silent fraction, or as far as a perplexity budget (1.05: 5 % worse) goes.

    With neither, only the curve is measured and the model comes back as it was. `dial`: dead_zone, k or top where the
    neurons have them (auto: their first). `mode` "each": every site gets its own value; "together": all share
    one amount; "auto": whichever measures better. `points` of the curve are measured on the way, with `decode_tokens`
    decoded tokens each for the speed (0: none). A large decoder (`fastsnn_tune.estimated`) is tuned on 1024 tokens
    instead of 4096, its costs are estimated, and "auto" gives every site its own value.

    Errors (FastSNNError): both goals, or one out of range; no neuron with such a dial; too short a text; a silent
    fraction at which the model is of no use.
    """
    check_goals(silent, budget, mode)
    large = is_large(model)
    most = calibration_tokens or (1024 if large else 4096)
    order, chosen, check_on, held = tuning_windows(model, text, seq_len, most, held_out_tokens or 2 * most)
    mode = "each" if large and mode == "auto" else mode
    new: Any = sharing(model).eval()
    names, found = dials_of(new, dial), sites(new)
    start = {name: value_of(site, names[name]) for name, site in found.items()}
    made = [
        DialPath(new, names, chosen, [start, *build(new, names, order)], check=check_on)
        for build in builders(names, mode)
    ]
    if large:
        made = [attrs.evolve(p, values=thinned(p.values)) for p in made]
    with Progress("finding where to stop", len(made) * READINGS, "readings", quiet=quiet) as progress:
        for p in made:
            p.step = progress.step
        path, stop = better(made, silent, budget)
        base = path.go(0)[0]
        broken = least_passing(path.last, lambda n: path.go(n)[0] > base + math.log(USELESS))
        end = max(stop, path.last if broken is None else broken)
    marks = sorted({path.near(i / max(1, points - 1), end) for i in range(points)} | {0, stop})
    turns = {n: partial(set_model_dials, names=names, values=path.values[n]) for n in marks}
    losses = {}
    with Progress("measuring the curve", len(turns), "points", quiet=quiet) as progress:
        for n, apply in turns.items():
            apply(new)
            losses[n] = loss(new, held)
            progress.step()
    if silent is not None and losses[stop][0] > base_of(losses) + math.log(USELESS):
        times = math.exp(losses[stop][0] - base_of(losses))
        raise FastSNNError(
            f"at {silent:.1%} silent this model's perplexity is {times:.0f} times what it was: of no use to anybody. "
            "Ask for less (the curve without a goal shows how much)"
        )
    rates = decoding_speeds(forms_of(new), turns, held[0][:16].tolist(), decode_tokens) if decode_tokens else {}
    curve = {n: point(losses[n], rates.get(n, {})) for n in marks}
    final: Any = copy.deepcopy(model).eval()
    target = {k: v for k, v in (("silent", silent), ("budget", budget)) if v is not None}
    if stop:
        store_dials(final, names, path.values[stop])
        meta = dict(getattr(model, "meta", {}))
        done = {"what": "tune", **target, "silent_fraction": curve[stop].silent_fraction}
        reached = {n: (curve[n].silent_fraction, curve[n].perplexity) for n in marks}
        done["curve"] = record("silent inputs", "perplexity", list(reached.values()), reached[stop])
        final.meta = meta | {"milestones": [*meta.get("milestones", []), done]}
    rows = {
        n: {"dial": names[n], "before": start[n], "after": value_of(site, names[n])} for n, site in sites(final).items()
    }
    return Tuned(final, curve[0], curve[stop], [curve[n] for n in marks], rows, target)


def sharing(model: Any) -> Any:
    """A copy of a model with neurons of its own; all parameters are the model's."""
    return copy.deepcopy(model, {id(p): p for p in model.parameters()})


def thinned(values: list[DialValues], most: int = 64) -> list[DialValues]:
    """At most so many settings of a path, evenly spaced, the first and the last among them."""
    return [values[round(i * (len(values) - 1) / (most - 1))] for i in range(most)] if len(values) > most else values


def base_of(losses: dict[int, Any]) -> float:
    """Nats per token of the model as it was."""
    return float(losses[0][0])


def check_goals(silent: float | None, budget: float | None, mode: str) -> None:
    """Refuse goals that make no sense."""
    if mode not in ("auto", "each", "together"):
        raise FastSNNError(f"no mode {mode!r}; there are auto, each and together")
    if silent is not None and budget is not None:
        raise FastSNNError("give a silent fraction or a perplexity budget, not both")
    if silent is not None and not 0 < silent < 1:
        raise FastSNNError(f"a silent fraction lies between 0 and 1, got {silent}")
    if budget is not None and not budget >= 1:
        raise FastSNNError(f"a perplexity budget is a factor of at least 1, got {budget}")


def builders(names: dict[str, str], mode: str) -> list[Callable[..., list[DialValues]]]:
    """The paths of a mode: all sites together, each for itself, or (auto) both where all have the same dial."""
    if mode == "auto":
        return [single, uniform] if len(set(names.values())) == 1 else [single]
    return [uniform if mode == "together" else single]


def tuning_windows(model: Any, text: str, seq_len: int, most: int, held: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """``(to order on, to stop on, to check on, to report on)``: windows ``[N, seq_len + 1]``.

    The first three come from the first 60 % of the text: every other window is one to check on, about `most` tokens in
    all, and of as many others a quarter and three quarters; the fourth, about `held` tokens, comes from the rest. Each
    is spread evenly over its part.
    """
    ids = torch.tensor(tokenizer_of(model).encode(text))
    windows = ids[: len(ids) // (seq_len + 1) * (seq_len + 1)].reshape(-1, seq_len + 1)
    if len(windows) < LEAST:
        raise FastSNNError(
            f"the text has {len(ids)} tokens; at least {LEAST * (seq_len + 1)} are needed (or a smaller seq_len)"
        )
    windows = windows.to(next(model.parameters()).device)
    edge = max(LEAST // 2, int(0.6 * len(windows)))
    several = spread(windows[:edge], max(LEAST // 2, 2 * most // seq_len))
    chosen = several[::2]
    order = torch.arange(len(chosen), device=chosen.device) % 4 == 0
    return chosen[order], chosen[~order], several[1::2], spread(windows[edge:], max(1, held // seq_len))


def spread(windows: Tensor, most: int) -> Tensor:
    """At most `most` of the windows, evenly spaced."""
    n = min(most, len(windows))
    return windows[torch.linspace(0, len(windows) - 1, n).long()]
