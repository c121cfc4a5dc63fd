"""The conformance kit finds what is wrong: every check has a plugin here that breaks its promise and nothing else."""

from __future__ import annotations

import attrs
import pytest
import torch
from attrs import frozen
from torch import nn

from fastsnn_conversion import testing as rules
from fastsnn_conversion.context import Replacement
from fastsnn_core import Exporter, Kernel, Neuron, Rule, SpikeTensor, bundle, create, ops
from fastsnn_core.lowering import LinearAttentionForm, SpikeRule, Unsupported, lower
from fastsnn_core.testing import conformance
from fastsnn_core.testing.conformance import CHECKS, load_kit
from fastsnn_integer import lowering_checks, testing
from fastsnn_integer.quantization import quantise
from fastsnn_kit import kernels, tools


class Base(Kernel):
    """A kernel set made of the naive twins; operators are replaced one at a time."""

    name = "planted"
    changed: str = ""
    change = None

    def operators(self):
        """The naive twins, one of them changed."""
        table = {name: op.naive for name, op in ops.registered().items()}
        if self.changed:
            naive = table[self.changed]
            table[self.changed] = lambda *args: type(self).change(naive, *args)
        return table


def planted(operator, change):
    return type("Planted", (Base,), {"changed": operator, "change": staticmethod(change)})


def zeros(value):
    """Zeros in the place of every tensor."""
    if isinstance(value, torch.Tensor):
        return torch.zeros_like(value)
    if isinstance(value, tuple | list):
        return type(value)(zeros(v) for v in value)
    return (
        attrs.evolve(value, **{f.name: zeros(getattr(value, f.name)) for f in attrs.fields(type(value))})
        if (attrs.has(type(value)))
        else value
    )


def test_a_kernel_made_of_the_naive_twins_passes():
    CHECKS["kernel"]["twins"]("planted", Base)


@pytest.mark.parametrize("operator", [n for n in ops.registered() if n != "decode_step"])
def test_a_kernel_that_returns_zeros(operator):
    wrong = planted(operator, lambda naive, *args: zeros(naive(*args)))
    with pytest.raises(AssertionError, match=rf"planted's {operator}, sample \d+.*differ"):
        kernels.check_kernel(wrong)


def test_a_fused_step_that_forgets_a_decay():
    def forgetful(naive, plan, wait):
        def without(form):
            return attrs.evolve(form, decay=0.0) if isinstance(form, LinearAttentionForm) else form

        blocks = [
            attrs.evolve(b, attention=attrs.evolve(b.attention, mixers=tuple(map(without, b.attention.mixers))))
            for b in plan.blocks
        ]
        return naive(attrs.evolve(plan, blocks=tuple(blocks)), wait)

    with pytest.raises(AssertionError, match="planted's decode_step"):
        kernels.check_kernel(planted("decode_step", forgetful))


def test_a_kernel_that_adds_to_whatever_was_in_its_memory():
    kept = {}

    def careless(naive, x, weight, eps):
        right = naive(x, weight, eps)
        held = kept.setdefault(x.shape, torch.zeros_like(right))
        held += right  # right the first time
        out = held.clone()
        held -= right
        return out

    with pytest.raises(AssertionError, match="planted's exact_norm"):
        kernels.check_kernel(planted("exact_norm", careless))


# -- lower() ------------------------------------------------------------------------------------------------------


class Forgetful:
    """A component whose module has another `lower`."""

    kind = "attention"

    def __init__(self, component, method):
        self.component, self.method = component, method

    def build(self, *args):
        module = self.component.build(*args)
        kind = type(module)
        module.__class__ = type(kind.__name__, (kind,), {"lower": self.method})
        return module

    def build_with_sites(self, dims, site):
        return self.build(dims)


@pytest.fixture(autouse=True)
def named(monkeypatch):
    monkeypatch.setattr(lowering_checks, "label", lambda component: "planted")


def test_a_mixer_that_forgets_its_decay_is_found_alone_and_in_a_composition(monkeypatch):
    spec = create("attention", "linear", decay=0.4)

    def forgets(self):
        return (LinearAttentionForm(self.feature, eps=self.eps),)

    with pytest.raises(AssertionError, match="token 0 by the forms of lower"):
        lowering_checks.check_attention(Forgetful(spec, forgets))
    quiet = Forgetful(create("attention", "linear"), forgets)  # no decay here: only another value shows it
    with pytest.raises(AssertionError, match=r"lower\(\) forgets decay"):
        lowering_checks.check_attention(quiet)
    pytest.importorskip("fastsnn_kernel_numba")
    decoder = create("model", "decoder", d_model=16, n_layers=1, n_heads=2, vocab_size=17, attention=(spec,))
    model = quantise(decoder.build()).eval()
    tokens = torch.randint(0, 17, (2, 12), generator=torch.Generator().manual_seed(0))
    testing.check_fused_paths(model, tokens, "whole")
    monkeypatch.setattr(type(model.layers[0].attention.mixer), "lower", forgets)
    model.fused = None
    with pytest.raises(AssertionError, match="the fused step gives other bits than the modules at token 4"):
        testing.check_fused_paths(model, tokens, "whole")


def test_a_mixer_that_packs_its_state_wrongly():
    spec = create("attention", "sliding_window", window=3)
    component = Forgetful(spec, type(spec.build(lowering_checks.DIMS)).lower)
    build = component.build

    def swapped(dims):
        module = build(dims)
        kind = type(module)
        module.__class__ = type("Swapped", (kind,), {
            "lower": kind.lower, "pack_state": lambda self, state: [(v, k) for k, v in kind.pack_state(self, state)],
        })  # fmt: skip
        return module

    component.build = swapped
    with pytest.raises(AssertionError, match="planted: going on from unpack_state"):
        lowering_checks.check_attention(component)


@pytest.mark.parametrize(
    ("method", "what"),
    [
        (lambda self: SpikeRule("mean_abs", divisor=3.0, bound=self.bound), "forgets k"),
        (lambda self: SpikeRule("mean_abs", divisor=float(self.k)), "forgets bound"),
        (lambda self: SpikeRule("rms", divisor=float(self.k), bound=self.bound), "the rule of lower"),
        (lambda self: SpikeRule("mean_abs", divisor=float(self.k), bound=self.bound, v_min=1e-4), "the rule of lower"),
    ],
)
def test_a_neuron_that_says_another_rule(method, what):
    with pytest.raises(AssertionError, match=what):
        lowering_checks.check_neuron(Forgetful(create("neuron", "adaptive_threshold"), method))


def test_who_inherits_lower_and_changes_the_arithmetic_has_no_form():
    module = create("neuron", "adaptive_threshold").build(8)

    class Root(type(module)):
        def threshold(self, x):
            return x.square().mean(-1, keepdim=True).sqrt() / self.k

    module.__class__ = Root
    with pytest.raises(Unsupported, match=r"here: Root changes Root\.threshold but inherits lower"):
        lower(module, "here")
    same = create("neuron", "adaptive_threshold").build(8)
    same.__class__ = type("Renamed", (type(same),), {"note": 1})
    assert lower(same, "here") == SpikeRule("mean_abs", divisor=3.0)
    same.forward = lambda x, state=None, reset=None: (SpikeTensor(x.round()), None)
    with pytest.raises(Unsupported, match="forward of this Renamed was replaced"):
        lower(same, "here")
    with pytest.raises(Unsupported, match="there: ReLU has no fused form"):
        lower(nn.ReLU(), "there")


def test_a_look_alike_runs_as_it_is():
    """A class that has only the name of a first-party neuron; V is a root mean square."""
    pytest.importorskip("fastsnn_kernel_numba")

    class AdaptiveThresholdModule(nn.Module):
        exact, bound, sparser = True, float("inf"), False

        def __init__(self):
            super().__init__()
            self.register_buffer("k", torch.tensor(3.0))

        def forward(self, x, state=None, reset=None):
            from fastsnn_integer import deterministic

            v = deterministic.root(deterministic.row_sum(x, "square") / x.shape[-1]) / self.k
            return SpikeTensor((x / v.clamp(1e-5, 1e4)).round(), v.clamp(1e-5, 1e4)), None

    @frozen
    class Rms(Neuron):
        """c = round(x / V), V = rms(x) / k."""

        name = "rms"

        def build(self, features):
            return AdaptiveThresholdModule()

    decoder = create("model", "decoder", d_model=16, n_layers=1, n_heads=2, vocab_size=17, neuron=Rms())
    model = quantise(decoder.build()).eval()
    testing.check_fused_paths(model, torch.randint(0, 17, (2, 12)), "a look-alike")
    assert "AdaptiveThresholdModule has no fused form" in model.fast_step["why"]


# -- rules and exporters ------------------------------------------------------------------------------------------


def rule(convert, covers=("torch.nn.ReLU",)):
    body = {
        "__doc__": "Planted.", "name": "planted", "covers": covers, "convert": convert,
        "matches": lambda self, module: isinstance(module, nn.ReLU),
    }  # fmt: skip
    return frozen(type("Planted", (Rule,), body))()


@pytest.mark.parametrize(
    ("convert", "what"),
    [
        (lambda self, module, context: module, "returned ReLU, not a Replacement"),
        (lambda self, module, context: Replacement(module, "converted"), "nothing in its replacement reads or makes"),
        (lambda self, module, context: Replacement(module, "converted", "", "made"), "promises spikes and returned"),
        (lambda self, module, context: Replacement(nn.Identity(), "converted", "", "out"), "changed the value"),
        (lambda self, module, context: Replacement(nn.Identity(), "converted", "", "pass"), "changed the value"),
        (lambda self, module, context: Replacement(nn.Tanh(), "converted", "", "out"), "changed the value on numbers"),
    ],
)
def test_a_rule_that_does_not_convert(convert, what, monkeypatch):
    monkeypatch.setattr(rules, "label", lambda component: "planted")
    with pytest.raises(AssertionError, match=what):
        rules.check_component(rule(convert))


def test_a_rule_with_nothing_to_convert_must_bring_something(monkeypatch):
    monkeypatch.setattr(rules, "label", lambda component: "planted")
    with pytest.raises(AssertionError, match="give the rule a method examples"):
        rules.check_component(rule(lambda self, module, context: context.keep(module), covers=("acme.Thing",)))
    rules.check_component(rule(lambda self, module, context: context.spike(module)))


def halved(model):
    with torch.no_grad():
        next(iter(model.parameters())).mul_(0.5)
    return model


def elsewhere(model, path):
    bundle.save(model, path)
    path.with_suffix(".log").write_text("left behind")
    return path


@pytest.mark.parametrize(
    ("export", "what"),
    [
        (lambda self, model, path: path.write_text("nonsense") and path, "does not load"),
        (lambda self, model, path: path, "wrote nothing"),
        (lambda self, model, path: bundle.save(halved(create_like(model)), path), "differs by"),
        (lambda self, model, path: bundle.save(halved(model), path), "changed the model it was given|differs by"),
        (lambda self, model, path: elsewhere(model, path), r"left out\.log"),
    ],
)
def test_an_exporter_that_writes_something_else(export, what, monkeypatch):
    from fastsnn_kit import checks

    monkeypatch.setattr(checks, "label", lambda component: "planted")
    body = {"__doc__": "Planted.", "name": "planted", "unsupported": lambda self, model: [], "export": export}
    exporter = frozen(type("Planted", (Exporter,), body))()
    with pytest.raises(AssertionError, match=what):
        tools.check_exporter(exporter)


def create_like(model):
    new = model.spec.build().eval()
    new.load_state_dict(model.state_dict())
    return new


def test_every_kind_has_a_check_of_what_it_does():
    """Documentation, round trip, imports and README say nothing of behaviour."""
    load_kit()
    shared = {"documented", "round_trip", "light", "readme"}
    assert not [kind for kind, found in CHECKS.items() if set(found) <= shared]
    assert conformance is not None
