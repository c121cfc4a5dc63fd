"""A path of dial settings, what was measured on it, and where to stop: which of several paths reaches a goal better."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import attrs
from torch import Tensor, nn

from fastsnn_core.errors import FastSNNError
from fastsnn_tune.curve import loss, window_losses
from fastsnn_tune.dial import DialValues, set_model_dials

SURE = 1.645  # standard errors that a cost may be underestimated by: one-sided, 95 %
HALFWAY = 0.5  # silent fraction at which paths are compared where nobody names a goal


@attrs.define(eq=False)
class DialPath:
    """Dial settings from the model as it is to nearly silent, and what was measured on the way.

    Where to stop is looked for on `windows`; whether a budget is kept there is asked of `check`, text that played no
    part in the choice.
    """

    model: nn.Module
    names: dict[str, str]
    windows: Tensor
    values: list[DialValues]
    seen: dict[int, tuple[float, float]] = attrs.field(factory=dict)
    check: Tensor | None = None
    checked: dict[int, Tensor] = attrs.field(factory=dict)
    step: Callable[[], object] = lambda: None  # called after every reading of a text

    @property
    def last(self) -> int:
        """Number of the last setting."""
        return len(self.values) - 1

    def go(self, n: int) -> tuple[float, float]:
        """``(nats per token, silent fraction)`` at setting n."""
        if n not in self.seen:
            set_model_dials(self.model, self.names, self.values[n])
            self.seen[n] = loss(self.model, self.windows)
            self.step()
        return self.seen[n]

    def cost(self, n: int) -> float:
        """Nats per token that setting n costs on `check`, at most: the mean over windows and `SURE` standard errors."""
        for i in (0, n):
            if i not in self.checked:
                assert self.check is not None
                set_model_dials(self.model, self.names, self.values[i])
                self.checked[i] = window_losses(self.model, self.check)
                self.step()
        more = self.checked[n] - self.checked[0]
        error = float(more.std()) / math.sqrt(len(more)) if len(more) > 1 else abs(float(more.mean()))
        return float(more.mean()) + SURE * error

    def back_off(self, stop: int, budget: float) -> int:
        """The last setting up to `stop` that keeps the budget on `check`, too."""
        if self.check is None:
            return stop
        over = least_passing(stop, lambda n: self.cost(n) > math.log(budget))
        return stop if over is None else max(0, over - 1)

    def near(self, share: float, end: int) -> int:
        """About where the path is this share of the way to the silence of `end`, by what was measured so far."""
        aim = self.go(0)[1] + share * (self.go(end)[1] - self.go(0)[1])
        known = sorted((n, self.seen[n][1]) for n in self.seen if n <= end)
        for (n, low), (m, high) in itertools.pairwise(known):
            if low <= aim <= high:
                return round(n + (m - n) * (aim - low) / max(high - low, 1e-9))
        return end


def better(paths: list[DialPath], silent: float | None, budget: float | None) -> tuple[DialPath, int]:
    """The path that is better at the goal, and where to stop on it; without a goal, the one better half-way."""
    goal = silent if silent is not None or budget is not None else HALFWAY
    ends = [(path, stopping_place(path.last, path.go, goal, budget)) for path in paths]
    reached = [(path, stop) for path, stop in ends if stop is not None]
    if silent is not None and not reached:
        most = max(path.go(path.last)[1] for path in paths)
        raise FastSNNError(f"a silent fraction of {silent} is out of reach; these dials go to {most:.3f}")
    if budget is not None:
        reached = [(path, path.back_off(stop, budget)) for path, stop in reached]
        return max(reached, key=lambda end: end[0].go(end[1])[1])
    path, stop = min(reached, key=lambda end: end[0].go(end[1])[0]) if reached else (paths[0], 0)
    return path, stop if silent is not None else 0


def stopping_place(
    last: int, go: Callable[[int], tuple[float, float]], silent: float | None, budget: float | None
) -> int | None:
    """Where to stop on a path of `last` steps, found by measuring ``go(n) -> (nats per token, silent fraction)``."""
    if budget is None:
        return least_passing(last, lambda n: go(n)[1] >= (silent or 0.0))
    limit = go(0)[0] + math.log(budget)
    over = least_passing(last, lambda n: go(n)[0] > limit)
    return last if over is None else max(0, over - 1)


def least_passing(length: int, holds: Callable[[int], bool]) -> int | None:
    """The least n in 0 … length for which `holds(n)`, which holds from some n on; None where it never does."""
    if not holds(length):
        return None
    low, high = -1, length
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if holds(middle) else (middle, high)
    return high
