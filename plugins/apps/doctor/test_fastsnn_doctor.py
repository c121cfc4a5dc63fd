"""What `doctor` says, and that it finds what is wrong."""

from __future__ import annotations

import importlib.metadata
import json

import attrs
import pytest
from packaging.utils import canonicalize_name

from fastsnn_core import cli
from fastsnn_core.plugins import registry
from fastsnn_doctor import sections, speed


class Dist:
    """A distribution by name, version and requirements."""

    def __init__(self, name: str, version: str, *requires: str) -> None:
        self.metadata, self.version, self.requires = {"Name": name}, version, list(requires)


def here(*installed: Dist):
    """What `sections.installed_distributions` gives where these are installed."""
    return lambda: {canonicalize_name(d.metadata["Name"]): d for d in [*installed, Dist("numpy", "1.5")]}


@pytest.fixture
def met(monkeypatch):
    """Every requirement is met: the checks install some plugins without their large libraries."""
    monkeypatch.setattr(sections, "unmet_requirements", list)


def test_a_whole_installation_is_called_whole(capsys, met):
    assert cli.main(["doctor", "--no-speed"]) == 0
    out = capsys.readouterr().out
    assert "nothing wrong was found" in out
    for word in ("Python", "torch", "CPU", "memory", "loaded", importlib.metadata.version("torch")):
        assert word in out


def test_as_json_with_the_speed_check(capsys, monkeypatch, met):
    monkeypatch.setattr(speed, "SECONDS", 0.01)
    assert cli.main(["doctor", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["problems"] == []
    rate = float(found["sections"]["speed"]["reading memory"].split()[0])
    assert 0.05 < rate < 5000
    assert float(found["sections"]["speed"]["float32 product"].split()[0]) > 0


@pytest.mark.parametrize(
    ("installed", "says"),
    [
        ([Dist("fastsnn-core", "0.1.0"), Dist("fastsnn_a", "0.2.0")], "several versions: 0.1.0, but fastsnn-a 0.2.0"),
        ([Dist("fastsnn-core", "0.1.0", "numpy>=9")], "needs numpy>=9, but 1.5 is installed"),
        ([Dist("fastsnn-core", "0.1.0", "absent>=1,<2")], "needs absent<2,>=1, which is not installed"),
    ],
)
def test_what_does_not_fit_together_is_named(installed, says, monkeypatch, capsys):
    monkeypatch.setattr(sections, "installed_distributions", here(*installed))
    assert cli.main(["doctor", "--no-speed"]) == 1
    assert says in capsys.readouterr().out


def test_extras_and_bounds_that_hold_are_no_problem(monkeypatch):
    mine = Dist("fastsnn-core", "0.1.0", "numpy>=1.0", "ray>=2 ; extra == 'ray'", "torch[x]>=2")
    monkeypatch.setattr(sections, "installed_distributions", here(mine, Dist("torch", "2.13.0")))
    assert sections.unmet_requirements() == []


def test_a_broken_plugin_is_named(monkeypatch, capsys, met):
    first = registry().plugins[0]
    broken = attrs.evolve(first, status="broken", error="ImportError: libnothing.so")
    monkeypatch.setattr(registry(), "plugins", [broken, *registry().plugins[1:]])
    assert cli.main(["doctor", "--no-speed"]) == 1
    says = f"plugin {first.name} ({first.distribution} {first.version}) is broken: ImportError: libnothing.so"
    assert says in capsys.readouterr().out


def test_secrets_are_not_shown(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hush")
    monkeypatch.setenv("FASTSNN_QUIET", "1")
    rows = sections.python_section()
    assert rows["HF_TOKEN"] == "(set)"
    assert rows["FASTSNN_QUIET"] == "1"
