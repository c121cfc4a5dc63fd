"""Random networks out of whatever plugins are installed, through the user's whole path: TOML, parse, build, check.

`EXAMPLES` compositions a run (``FASTSNN_COMPOSITIONS``); each must keep what the AND of its parts promises. Planted
faults are found and shrunk.
"""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap

import pytest
import torch
from hypothesis import given, reject, settings
from hypothesis import strategies as st

from fastsnn_core import spec, toml
from fastsnn_core.testing import strategies
from fastsnn_core.testing.conformance import quick
from fastsnn_kit import models

EXAMPLES = int(os.environ.get("FASTSNN_COMPOSITIONS", "220"))


def through_toml(table):
    """The user's path: text, parse, structure; combinations a component refuses are not drawn."""
    text = toml.dumps({"fastsnn": 1, "model": table})
    try:
        return spec.loads(text).model
    except spec.SpecError:
        reject()


@settings(quick, max_examples=EXAMPLES)
@given(table=strategies.component_tables("model"), data=st.data())
def test_every_composition_keeps_its_promises(table, data):
    torch.manual_seed(0)
    models.check_network(through_toml(table), data)


@settings(quick, max_examples=30)
@given(table=strategies.component_tables("model"))
def test_every_composition_survives_its_bundle(table):
    torch.manual_seed(0)
    models.check_bundle(through_toml(table))


FAULTS = [
    ("not causal", "x = x + x.mean(1, keepdim=True)"),
    ("not deterministic", "x = x + 0.01 * torch.randn_like(x)"),
    ("dead gradients", "x = x.detach()"),
    ("dead gradients", "x = 0 * x"),
]
PLANTED = """
    import torch
    from attrs import frozen
    from fastsnn_core import Neuron, SpikeTensor, hookimpl, ops
    from torch import nn

    @frozen
    class Faulty(Neuron):
        '''c = round(x), with a fault.'''
        name = "faulty"
        def build(self, features):
            return Module()

    class Module(nn.Module):
        def forward(self, x, state=None, reset=None):
            FAULT
            return SpikeTensor(ops.count(4 * x, -99, 99, slope=torch.ones_like), 0.25), state

    @hookimpl
    def fastsnn_neurons():
        return [Faulty]
"""


@pytest.mark.parametrize(("fault", "line"), FAULTS)
def test_a_planted_fault_is_found_and_named(fault, line, tmp_path):
    """A faulty third-party neuron is found among all the others, and the smallest failing network names it."""
    (tmp_path / "acme.py").write_text(textwrap.dedent(PLANTED).replace("FAULT", line))
    info = tmp_path / "acme-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: acme\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[fastsnn1]\nacme = acme\n")
    wanted = "test_every_composition_keeps_its_promises"
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"{__file__}::{wanted}", "--tb=short"],
        capture_output=True, text=True, check=False, env=os.environ | {"PYTHONPATH": str(tmp_path)},
    )  # fmt: skip
    assert done.returncode == 1, done.stdout
    assert fault in done.stdout
    shrunk = next(line for line in done.stdout.splitlines() if "AssertionError" in line)
    assert "acme/faulty" in shrunk or '"faulty"' in shrunk, shrunk
    assert "n_layers = 1" in shrunk, shrunk
