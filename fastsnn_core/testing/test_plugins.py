"""``pytest --pyargs fastsnn_core.testing --fastsnn acme``: the kit without a test file (no option: every plugin)."""

from __future__ import annotations

from typing import Any


def pytest_generate_tests(metafunc: Any) -> None:
    """One case per component and check of the chosen plugins."""
    from fastsnn_core.plugins import registry
    from fastsnn_core.testing.conformance import cases

    chosen = metafunc.config.getoption("--fastsnn", None) or [p.name for p in registry().plugins if p.status == "ok"]
    rows = [case for plugin in chosen for case in cases(plugin)]
    metafunc.parametrize(("name", "cls", "what"), rows, ids=[f"{n}-{what}" for n, _, what in rows])


def test_plugin(name: str, cls: Any, what: str) -> None:
    """One component against one check."""
    from fastsnn_core.testing.conformance import run_check

    run_check(name, cls, what)
