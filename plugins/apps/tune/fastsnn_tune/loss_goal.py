"""``fastsnn tune MODEL --loss``: the most silent bytes at a loss; chosen on one part of a text, measured on another."""

from __future__ import annotations

import contextlib
import copy
from functools import partial
from typing import Any

import attrs
import torch

from fastsnn_console.progress import Progress
from fastsnn_convert.language.output_sensitivity import PIECE, SAMPLE
from fastsnn_convert.language.rebuild import bypass_neurons
from fastsnn_convert.language.reference_eval import HeldOutReference, affordable
from fastsnn_core.errors import FastSNNError
from fastsnn_text import tokenizer_of
from fastsnn_tune.criteria import criterion as find
from fastsnn_tune.curve import record
from fastsnn_tune.levels import Setting
from fastsnn_tune.search import spread
from fastsnn_tune.silent_bytes import Measured, SilentBytes, at_loss, check_tunable, settled


@attrs.frozen(eq=False)
class LossTuned:
    """What `tune_to_loss` found: the model at the first loss, and figures on text that took no part."""

    model: Any
    criterion: str
    perplexity_dense: float
    given: Measured
    at: dict[str, Measured | None]
    curve: list[Measured]

    def data(self) -> dict[str, Any]:
        """Everything but the model, as JSON data."""
        return attrs.asdict(self, filter=lambda field, _: field.name != "model")


def tune_to_loss(
    model: Any,
    text: str,
    *,
    losses: tuple[float, ...] = (0.01, 0.05),
    criterion: str = "ours",
    seq_len: int = 512,
    windows: int | None = None,
    quiet: bool = False,
) -> LossTuned:
    """Silent bytes of a converted decoder at each of `losses` (0.01: perplexity 1 % above the dense model's).

    The first 60 % of `text` are to estimate costs and to choose on, the rest is measured on: `windows` of `seq_len`
    tokens (default: what a minute pays for). The dense model is the same weights without spikes; a model that was
    healed is compared with itself as it was given. The model returned is set for the first loss; where even the finest
    setting costs more, it is as it was given, and `at` has None.

    Errors: `FastSNNError` for a loss that is not in (0, 1], a text that is too short, a model without dead zones.
    """
    chosen = find(criterion)
    for loss in losses:
        if not 0 < loss <= 1:
            raise FastSNNError(f"a loss lies above 0 and up to 1 (0.01: 1 % perplexity), got {loss:g}")
    check_tunable(model)
    ids = torch.tensor(tokenizer_of(model).encode(text))
    rows = ids[: len(ids) // seq_len * seq_len].reshape(-1, seq_len)
    if len(rows) < 4:
        raise FastSNNError(f"the text has {len(ids)} tokens; at least {4 * seq_len} are needed (or a smaller seq_len)")
    edge = max(2, int(0.6 * len(rows)))
    count = windows or affordable(model, seq_len)
    first = spread(rows[:edge], max(2, SAMPLE // seq_len) + max(2, count // 3))
    fit, choose = first[: max(1, min(SAMPLE // seq_len, len(first) // 2))], first[len(first) // 2 :]
    healed = any(m.get("healed") for m in getattr(model, "meta", {}).get("milestones", []) if isinstance(m, dict))
    made = SilentBytes.of(model, chosen, fit, spiking=healed, quiet=quiet)
    held = []
    with contextlib.nullcontext() if healed else bypass_neurons(made.model):
        for part in (choose, spread(rows[edge:], count)):
            with Progress("reading text, dense", part.numel(), "tokens", quiet=quiet) as progress:
                held.append(
                    HeldOutReference.of(made.model, part, step=partial(progress.step, min(PIECE, part.numel())))
                )
    seen: list[tuple[Setting, Measured]] = []
    at: dict[str, Measured | None] = {}
    settings: list[Setting | None] = []
    with Progress("finding dead zones", 6 * len(losses) + 1, "settings", quiet=quiet) as progress:
        for loss in sorted(losses):
            found = at_loss(made, held[0], loss, seen, step=progress.step)
            settings.append(None if found is None else found[0])
            at[f"{loss:g}"] = None if found is None else made.measure(found[0], held[1])
            progress.step()
        given = made.measure(None, held[1])
    curve = sorted((m for _, m in seen), key=lambda m: m.silent_bytes)
    tuned = made.model
    if settings[0] is None:
        tuned = copy.deepcopy(model)
    else:
        tuned = settled(made, settings[0])
    meta = dict(getattr(model, "meta", {}))
    done: dict[str, Any] = {"what": "tune", "loss": min(losses), "criterion": chosen.name}
    points = [(m.silent_bytes, m.ratio) for m in curve]
    taken = next(((m.silent_bytes, m.ratio) for s, m in seen if s is settings[0]), None)
    done["curve"] = record("silent bytes", "perplexity / dense perplexity", points, taken)
    tuned.meta = meta | {"milestones": [*meta.get("milestones", []), done]}
    return LossTuned(tuned, chosen.name, given.perplexity / given.ratio, given, at, curve)
