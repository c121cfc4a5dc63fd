"""Conformance: every component of a plugin against every check of its kind, as one parametrised pytest test.

test_acme = conformance("acme")
test_acme = conformance("acme", expected_failures={"streaming": "needs the whole sequence"})   # strict xfail

This is the frame: how checks are filed, drawn and run. The checks are those of `fastsnn_kit` and of further libraries
(entry points ``fastsnn1.kit`` name modules that file them with `check`).
"""

from __future__ import annotations

import importlib.metadata
import inspect
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from fastsnn_core.catalogue import KIT
from fastsnn_core.component import KINDS, Component
from fastsnn_core.errors import FastSNNError
from fastsnn_core.moved import attribute
from fastsnn_core.plugins import registry
from fastsnn_core.testing import strategies

Check = Callable[[str, type[Component]], None]
FILED: dict[str, dict[str, Check]] = {kind: {} for kind in KINDS}
"""Checks filed so far, by kind and name; `CHECKS` is the same with those of every library that is installed."""
PHASES = set(Phase) - {Phase.explain}  # explaining a failure would run hundreds of examples more: minutes
quick = settings(max_examples=20, deadline=None, suppress_health_check=list(HealthCheck), phases=PHASES)


def check(*kinds: str) -> Callable[[Check], Check]:
    """File a check under its kinds."""

    def add(function: Check) -> Check:
        for kind in kinds:
            FILED[kind][function.__name__] = function
        return function

    return add


def each(name: str, cls: type[Component], body: Callable[[Any, st.DataObject], None], examples: int = 20) -> None:
    """Run `body` on drawn specs of one component."""

    @settings(quick, max_examples=examples)
    @given(component=strategies.components(cls.kind, only=name), data=st.data())
    def run(component: Any, data: st.DataObject) -> None:
        torch.manual_seed(0)
        body(component, data)

    run()


def libraries(kind: str) -> list[Any]:
    """Further checks of a kind that installed libraries bring (entry points ``fastsnn1.checks``, named by kind)."""
    points = importlib.metadata.entry_points(group="fastsnn1.checks", name=kind)
    return [point.load() for point in points]


@cache
def load_kit() -> None:
    """Import the modules by which libraries add checks (entry points ``fastsnn1.kit``)."""
    for point in importlib.metadata.entry_points(group="fastsnn1.kit"):
        point.load()


def run_check(name: str, cls: type[Component], what: str) -> None:
    """One check of one component, on one thread: the tensors are tiny, and a second thread would only wait."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        FILED[cls.kind][what](name, cls)
    finally:
        torch.set_num_threads(threads)


def cases(plugin: str) -> Iterator[tuple[str, type[Component], str]]:
    """``(qualified name, class, check)`` for everything a plugin offers; an error if it is not loaded."""
    load_kit()
    found = [p for p in registry().plugins if p.name == plugin or p.distribution == plugin]
    if not found:
        raise FastSNNError(f"no plugin called {plugin!r}; installed: {', '.join(p.name for p in registry().plugins)}")
    for p in found:
        if p.status != "ok":
            raise FastSNNError(f"plugin {p.name!r} is {p.status}: {p.error}")
        for kind, names in p.offers.items():
            if set(FILED[kind]) <= set.intersection(*map(set, FILED.values())):  # none but those of every kind
                raise FastSNNError(f"no check of what a {kind} does is installed: pip install {KIT.get(kind, '')}")
            for short in names:
                cls = registry().find(kind, f"{p.name}/{short}")[1]
                for what in sorted(FILED[kind]):
                    yield f"{p.name}/{short}", cls, what


def conformance(plugin: str, expected_failures: dict[str, str] | None = None) -> Callable[..., None]:
    """A pytest test over every (component, check) of `plugin`; `expected_failures`: check to reason (strict xfail)."""
    import pytest

    rows = []
    for name, cls, what in cases(plugin):
        reason = (expected_failures or {}).get(what)
        marks = [pytest.mark.xfail(reason=reason, strict=True)] if reason else []
        rows.append(pytest.param(name, cls, what, id=f"{cls.kind}-{cls.name}-{what}", marks=marks))

    @pytest.mark.parametrize(("name", "cls", "what"), rows)
    def test(name: str, cls: type[Component], what: str) -> None:
        run_check(name, cls, what)

    frame = inspect.currentframe()
    if frame is not None and frame.f_back is not None:  # so that pytest reports the plugin's own file
        test.__module__ = frame.f_back.f_globals.get("__name__", test.__module__)
    return test


def __getattr__(name: str) -> Any:
    """`CHECKS`, for which libraries are asked when it is wanted; and what moved into fastsnn_kit."""
    if name == "CHECKS":
        load_kit()
        return FILED
    return attribute(__name__, name)
