"""Dead zones of one site and what they cost; settings of all sites."""

from __future__ import annotations

import itertools

import attrs


@attrs.frozen(eq=False)
class Level:
    """A site's dead zone and smallest threshold, the share of its inputs that they silence, and the cost in nats.

    `zone` is in units of V k = max(mean|x|, `least`): with `least` above a token's mean the threshold is absolute.
    """

    zone: float
    silent: float
    cost: float
    least: float = 0.0


@attrs.frozen(eq=False)
class Setting:
    """Dead zones and least means of all sites by path, times k, and estimates: silent bytes, KL in nats per token."""

    zones: dict[str, float]
    least: dict[str, float]
    finer: float
    silent_bytes: float
    cost: float


def between(rows: list[Level], parts: int = 4) -> list[Level]:
    """A ladder with levels in between, along which zone, share and cost change evenly."""
    found = [rows[0]]
    for a, b in itertools.pairwise(rows):
        for i in range(1, parts + 1):
            t = i / parts
            found.append(Level(*(p + t * (q - p) for p, q in zip(attrs.astuple(a), attrs.astuple(b)))))
    return found


def bracketed(path: list[Setting], seen: list[tuple[Setting, float]], limit: float) -> Setting | None:
    """The setting of `path` whose estimate lies where the line through what was seen on both sides meets `limit`.

    `seen` are settings with their measured losses; None where all of them lie on one side.
    """
    low = max((row for row in seen if row[1] <= limit), key=lambda row: row[0].silent_bytes, default=None)
    high = min((row for row in seen if row[1] > limit), key=lambda row: row[0].silent_bytes, default=None)
    if low is None or high is None:
        return None
    share = (limit - low[1]) / (high[1] - low[1])
    cost = low[0].cost + share * (high[0].cost - low[0].cost)
    return max((s for s in path if s.cost <= cost), key=lambda s: s.silent_bytes, default=None)
