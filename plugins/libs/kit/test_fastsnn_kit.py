"""The kit finds planted faults of trackers and scopes; it files its checks under their kinds."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from fastsnn_core import Session, Tracker
from fastsnn_core.testing.conformance import CHECKS, load_kit
from fastsnn_kit.tools import check_tracker


def test_the_checks_are_filed():
    load_kit()
    for kind, name in (("model", "network"), ("model", "bundle"), ("exporter", "export_agrees"), ("scope", "measures")):
        assert name in CHECKS[kind]
    assert "follows" in CHECKS["tracker"]


class Good(Tracker):
    """Follows and writes nothing."""

    name = "good"

    def start(self, run):
        return Session()


class Stray(Good):
    """Writes into the working directory."""

    name = "stray"

    def start(self, run):
        Path("stray.log").write_text("here")
        return Session()


class Stops(Good):
    """Ends a run whose loss falls."""

    name = "stops"

    def start(self, run):
        run.stop("I am tired")
        return Session()


def test_a_tracker_that_writes_elsewhere_or_stops_a_good_run_is_found():
    check_tracker(Good)
    with pytest.raises(AssertionError, match=r"wrote outside the run's folder: stray\.log"):
        check_tracker(Stray)
    with pytest.raises(AssertionError, match="stopped a run whose loss falls: I am tired"):
        check_tracker(Stops)


def test_a_file_that_is_not_installed_is_checked(tmp_path):
    neuron = Path(__file__).parents[2] / "neurons" / "ilif" / "fastsnn_neuron_ilif" / "__init__.py"
    (tmp_path / "acme_trial.py").write_text(neuron.read_text(encoding="utf-8"), encoding="utf-8")
    command = [sys.executable, "-m", "fastsnn_core", "-p", str(tmp_path / "acme_trial.py"), "test"]
    done = subprocess.run([*command, "acme_trial", "-k", "documented"], capture_output=True, text=True, check=False)
    assert (done.returncode, "1 passed" in done.stdout) == (0, True), done.stdout + done.stderr
    done = subprocess.run([*command, "acme_tral"], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "did you mean 'acme_trial'" in done.stderr
