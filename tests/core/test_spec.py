"""The strict spec: every error at once with its line, identity of the round trip."""

from __future__ import annotations

import enum

import attrs
import numpy as np
import pytest
import tomli
from hypothesis import given
from hypothesis import strategies as st

from fastsnn_core import Component, Model, Neuron, ParamError, contract, hookimpl, param, plugins, slot, spec, toml
from fastsnn_core.locate import locate


@attrs.frozen
class Toy(Neuron):
    """A neuron for these tests."""

    name = "toy"
    causal = False
    tau: float = param(2.0, gt=1.0, le=64.0, unit="tokens", doc="time constant")
    levels: int = param(4, ge=1, doc="levels")
    mode: str = param("soft", choices=("soft", "hard"), doc="reset")
    flag: bool = param(False, doc="a flag")


@attrs.frozen
class Net(Model):
    """A model for these tests."""

    name = "net"
    width: int = param(8, ge=1, doc="width")
    rates: tuple[float, ...] = param((0.1, 0.2), ge=0.0, le=1.0, doc="rates")
    neuron: Neuron = slot(Neuron, "toy", doc="the neuron")
    spare: Neuron | None = slot(Neuron, doc="another one")


class Plugin:
    @hookimpl
    def fastsnn_neurons(self):
        return [Toy]

    @hookimpl
    def fastsnn_models(self):
        return [Net]


@pytest.fixture(autouse=True)
def toys(monkeypatch):
    """A registry that holds the toys (beside whatever is installed)."""
    found = plugins.Registry()
    found.load(plugins.Plugin("acme", "acme", "1.0", "acme"), Plugin())
    monkeypatch.setattr(plugins, "registry", lambda: found)
    monkeypatch.setattr(spec, "registry", lambda: found)
    return found


def test_filled_and_back():
    found = spec.loads('fastsnn = 1\n[model]\nkind = "net"\nneuron = { kind = "acme/toy", tau = 4 }\n')
    assert found.model == Net(neuron=Toy(tau=4.0))
    assert spec.loads(spec.dumps(found)) == found
    assert "tau = 4.0" in spec.dumps(found)


def test_a_name_alone_is_a_component():
    assert spec.loads('fastsnn = 1\n[model]\nkind = "net"\nneuron = "toy"').model == Net()


BAD = """fastsnn = 1
[model]
kind = "net"
widht = 8
width = "8"
rates = [0.5, 1.5]
neuron = { kind = "toi", tau = 3.0 }

# a comment
[trian]
steps = 1
"""


def test_every_error_at_once_with_line_and_help():
    with pytest.raises(spec.SpecError) as error:
        spec.loads(BAD, "net.toml")
    assert str(error.value).splitlines() == [
        "net.toml:4: model.widht: net has no parameter 'widht'",
        "    4 | widht = 8",
        "    help: did you mean 'width'? parameters: neuron, rates, spare, width",
        "net.toml:5: model.width: expected int, got str '8'",
        '    5 | width = "8"',
        "net.toml:6: model.rates: expected >= 0, <= 1, got 1.5",
        "    6 | rates = [0.5, 1.5]",
        "    help: rates",
        "net.toml:7: model.neuron.kind: no neuron called 'toi'",
        '    7 | neuron = { kind = "toi", tau = 3.0 }',
        "    help: did you mean 'toy'? installed: toy",
        "net.toml:10: trian: no section called 'trian'",
        "    10 | [trian]",
        str(error.value).splitlines()[-1],
    ]
    assert "sections: " in str(error.value) or "did you mean" in str(error.value)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "a spec starts with its format version"),
        ("fastsnn = 2\n[model]\nkind='net'", "format 2, this core reads 1"),
        ("fastsnn = 1", r"no \[model\] table"),
        ("fastsnn = 1\n[model]\nwidth = 3", "does not say its kind"),
        ("fastsnn = 1\nmodel = 3", "expected a model table, got int 3"),
        ("fastsnn = 1\n[model]\nkind='net'\nneuron=[1]", "expected a neuron table"),
        ("fastsnn = 1\n[model]\nkind='net'\nneuron={kind='toy', flag=1}", "expected bool, got int 1"),
        ("fastsnn = 1\n[model]\nkind='net'\nneuron={kind='toy', levels=true}", "expected int, got bool True"),
        ("fastsnn = 1\n[model]\nkind='net'\nneuron={kind='toy', levels=2.0}", "expected int, got float 2.0"),
        ("fastsnn = 1\n[model]\nkind='net'\nneuron={kind='toy', tau=nan}", "expected > 1, <= 64 tokens, got nan"),
        ("fastsnn = 1\n[model]\nkind='net'\n[requires]\nno-such-thing='>=1'", "no-such-thing is not installed"),
        ("fastsnn = 1\n[model]\nkind='net'\n[requires]\nattrs='<1'", "does not satisfy '<1'"),
        ("fastsnn = 1\n[model\n", "column"),
    ],
)
def test_messages(text, says):
    with pytest.raises(spec.SpecError, match=says):
        spec.loads(text)


def test_unknown_first_party_name_says_what_to_install():
    with pytest.raises(spec.SpecError, match=r"pip install fastsnn-neuron-lif-sint"):
        spec.loads("fastsnn = 1\n[model]\nkind='net'\nneuron='lif_sint'")


def test_python_and_toml_are_equally_strict():
    with pytest.raises(ParamError, match=r"toy.tau: expected > 1, <= 64 tokens, got 1.0"):
        Toy(tau=1.0)
    with pytest.raises(ParamError, match=r"toy.levels: expected int, got '4'"):
        Toy(levels="4")
    with pytest.raises(ParamError, match=r"net.neuron: expected neuron, got 3"):
        Net(neuron=3)
    with pytest.raises(plugins.LookupFailure, match="did you mean 'tau'"):
        plugins.create("neuron", "toy", tua=3.0)


def test_contract_is_the_and_of_the_parts():
    assert contract(Net())["causal"] is False
    assert contract(Net())["streaming"] is True


def test_ambiguity_errors_when_used_only(toys):
    class Other:
        @hookimpl
        def fastsnn_neurons(self):
            return [attrs.evolve(Toy()).__class__]

    toys.load(plugins.Plugin("rival", "rival", "1.0", "rival"), Other())
    with pytest.raises(plugins.LookupFailure, match="write one of 'acme/toy', 'rival/toy'"):
        plugins.create("neuron", "toy")
    assert isinstance(plugins.create("neuron", "rival/toy"), Component)


def test_locate_finds_nested_lines():
    text = "a = 1\n[b]\nc = [\n  1,\n  2,\n]\n[[d]]\ne = 3\n[[d]]\ne = 4\n"
    assert [locate(text, p) for p in (("a",), ("b", "c"), ("d", 1, "e"), ("nope",))] == [1, 3, 10, None]


scalars = st.one_of(st.booleans(), st.integers(), st.floats(allow_nan=False), st.text())
values = st.recursive(
    scalars, lambda c: st.lists(c, max_size=3) | st.dictionaries(st.text(), c, max_size=3), max_leaves=9
)


@given(st.dictionaries(st.text(), values, max_size=4))
def test_the_writer_is_the_inverse_of_the_parser(table):
    assert tomli.loads(toml.dumps(table)) == table


def test_numbers_of_other_types_are_written_as_numbers():
    """Their own repr is ``np.float64(0.5)`` and ``<Level.LOW: 1>``, which no parser reads."""
    level = enum.IntEnum("Level", {"LOW": 1})
    written = toml.dumps({"a": np.float64(0.5), "b": level.LOW, "c": [np.float64("inf")], "d": True})
    assert tomli.loads(written) == {"a": 0.5, "b": 1, "c": [float("inf")], "d": True}
