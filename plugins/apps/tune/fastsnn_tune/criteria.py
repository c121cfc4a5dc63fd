"""What decides which inputs of a projection fall silent: criteria that are compared on one curve.

A criterion gives every channel an importance a ``[D]``; an input x_i is silent where |x_i| a_i is small beside the
token's mean of the same. Importances are folded into the neighbouring weights (x_i a_i becomes the site's input), so
that at run time one dead zone per site is all there is. `shares` says whether all sites are equally silent ("equal") or
as silent as it costs least ("cost", by the Fisher estimate); `constants`, whether biases make up for the mean of what
was dropped. `prepare` first makes another model of the same function, such as one on other axes
(`fastsnn_tune.rotation`).

Others can be added as entry points in the group `fastsnn1.criteria`, each a `Criterion`.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import entry_points
from typing import Any

import attrs
from torch import Tensor

from fastsnn_core.errors import FastSNNError, did_you_mean
from fastsnn_tune.rotation import rotated

Importance = Callable[[Any, Tensor], Tensor]
"""``(port, fisher [D]) -> [D]``: a port of `fastsnn_convert.language.ports` and E[g²] of its channels."""


@attrs.frozen
class Criterion:
    """See the module. `importance` None leaves the channels as they are. With `absolute`, thresholds need not follow
    each token's mean: a quiet token may fall silent nearly as a whole. `prepare` is called with a copy of the model
    and the tokens that costs are estimated on."""

    name: str
    source: str
    importance: Importance | None = None
    shares: str = "equal"
    constants: bool = False
    absolute: bool = False
    prepare: Callable[[Any, Tensor], Any] | None = None


def weight_norm(port: Any, fisher: Tensor) -> Tensor:
    """‖W_:i‖ over all projections that read channel i."""
    return port.cost().sqrt()


def output_cost(port: Any, fisher: Tensor) -> Tensor:
    """√F_i: what an error of channel i costs in the next token's distribution."""
    return (fisher + 1e-2 * fisher.mean()).sqrt()


BUILT_IN = (
    Criterion("teal", "magnitude, equal shares: Liu et al. 2024 (arXiv 2408.14690)"),
    Criterion("teal_shares", "magnitude, shares by measured cost", shares="cost"),
    Criterion("wina", "|x|·‖W‖: Chen et al. 2025 (arXiv 2505.19427)", weight_norm),
    Criterion("spon", "magnitude, constants for what is dropped (arXiv 2512.12744)", shares="equal", constants=True),
    Criterion(
        "larosa",
        "magnitude on principal axes, equal shares: Liu et al. 2025 (arXiv 2507.01299), where weights take them over",
        prepare=rotated,
    ),
    Criterion("fisher", "|x|·√F, shares by measured cost", output_cost, "cost"),
    Criterion("ours", "|x|·√F, shares by cost, absolute thresholds, constants", output_cost, "cost", True, True),
)


def criteria() -> dict[str, Criterion]:
    """All criteria by name."""
    found = {c.name: c for c in BUILT_IN}
    for entry in entry_points(group="fastsnn1.criteria"):
        found[entry.name] = entry.load()
    return found


def criterion(name: str) -> Criterion:
    """One criterion; an unknown name is an error that says what there is."""
    known = criteria()
    if name not in known:
        raise FastSNNError(f"no criterion {name!r}; {did_you_mean(name, known)}")
    return known[name]
