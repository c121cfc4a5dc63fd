"""The engine: a module's steps, each by the rule of highest priority, and spike sites where projections read.

Rules are asked from the output backwards, so that each knows whether somebody downstream reads its output as spikes
and may fold itself into a neighbour. Then sites are placed: behind every activation that becomes spikes, and in front
of every projection whose input does not spike yet (one site for all projections that read the same value).
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any, cast

import attrs
from torch import Tensor, nn

from fastsnn_conversion import spike_layers
from fastsnn_conversion.context import Context, ConversionError, Replacement
from fastsnn_conversion.time_folding import TimeFoldedSite
from fastsnn_convert.modules.functional_form import lift_calls, out_of_place
from fastsnn_convert.modules.fx_trace import best_rule, lowered, trace
from fastsnn_convert.modules.graph_steps import Traced
from fastsnn_convert.modules.inputs import Call, to_float32
from fastsnn_convert.modules.prepare import prepared
from fastsnn_convert.modules.site_placement import Maker, insert_sites, readers
from fastsnn_convert.modules.traced_check import check_same, check_turned, not_first, reference_output, run_dense
from fastsnn_convert.neurons import component
from fastsnn_core import Neuron, Rule
from fastsnn_core.plugins import classes
from fastsnn_model_graph import Network, Ref, Step
from fastsnn_model_graph.steps import refs

COVERAGES = ("projections", "activations")


@attrs.define(eq=False)
class ConversionInProgress:
    """A conversion on its way. `dense` is the traced network before, `network` the one after; `found` what each step's
    rule said, `sites` which step each site serves, `samples` the values that were seen on calibration data."""

    dense: Network
    network: Network
    traced: Traced
    found: dict[str, tuple[Replacement, str]]
    sites: dict[str, str]
    samples: dict[str, Any]


def all_rules() -> list[Rule]:
    """Every installed rule."""
    return [cast(Rule, cls()) for _, cls in classes("rule")]


def plan(
    model: nn.Module,
    example: tuple[Tensor, ...],
    *,
    call: Call | None = None,
    neuron: Neuron | str | Mapping[str, Any] = "adaptive_threshold",
    coverage: str = "projections",
    fallback: int = 128,
    rules: Sequence[Rule] | None = None,
    options: Mapping[str, Any] | None = None,
) -> ConversionInProgress:
    """Convert a copy of `model` (in evaluation mode) by rules; thresholds are not calibrated yet."""
    if coverage not in COVERAGES:
        raise ConversionError(f"no coverage {coverage!r}; coverages: {', '.join(COVERAGES)}")
    rules = all_rules() if rules is None else rules
    kind = component(neuron)
    call = Call.of(model, example) if call is None else call
    wanted = reference_output(model, call, example)
    inputs = to_float32(example)
    body = prepared(model, lambda m: reference_output(m, call, inputs))
    traced = trace(lowered(body, rules), call, rules, inputs)
    out_of_place(traced, inputs)
    lift_calls(traced, rules, inputs)
    ranks = tuple(x.ndim for x in example)
    dense = Network(list(traced.steps), copy.deepcopy(traced.held), traced.output, ranks).eval()
    samples: dict[str, Any] = {}
    check_same(type(model).__name__, wanted, run_dense(dense, inputs, samples, traced.opaque), example)
    check_turned(model, call, dense, example, traced.opaque)
    late = not_first(dense, inputs, samples)
    maker = Maker(kind, fallback)
    found = decide(traced, rules, samples, maker, dict(options or {}), coverage)
    for step in traced.steps:
        if step.kind == "module" and step.name in found:
            traced.held[step.target] = found[step.name][0].module
    steps, sites = insert_sites(traced, found, samples, maker, coverage)
    for step in steps:
        if step.name in sites and (value := step.sources()[0]) in late:
            raise ConversionError(
                f"{late[value]} reaches {sites[step.name][0]!r} (value {value!r}) with the batch in dimension 1; "
                "spikes need it in dimension 0. Let sequences stay batch first, [B, L, D], inside the module: "
                "batch_first=True where there is such an option, and layers before a transposition, not behind it"
            )
    network = Network(steps, traced.held | {name: sites_[1] for name, sites_ in sites.items()}, traced.output, ranks)
    return ConversionInProgress(
        dense, network.eval(), traced, found, {name: served for name, (served, _) in sites.items()}, samples
    )


# -- rules, from the output backwards --------------------------------------------------------------------------------


def decide(
    traced: Traced,
    rules: Sequence[Rule],
    samples: Mapping[str, Any],
    maker: Maker,
    options: Mapping[str, Any],
    coverage: str,
) -> dict[str, tuple[Replacement, str]]:
    """What every module step's rule says: ``{step: (replacement, rule's name)}``; modules without a rule are kept."""
    reads, out = readers(traced.steps), {ref.name for ref in refs(traced.output)}
    times: dict[str, int] = {}
    for step in traced.steps:
        if step.kind == "module":
            times[step.target] = times.get(step.target, 0) + 1
    found: dict[str, tuple[Replacement, str]] = {}
    once: dict[str, tuple[Replacement, str]] = {}
    producers = {step.name: step for step in traced.steps}

    def says(step: Step) -> str:
        return found[step.name][0].spikes if step.name in found else "no"

    def wanted(name: str) -> bool:
        if coverage == "activations":  # whatever stands between it and a projection
            return any(says(r) == "in" or wanted(r.name) for r in reads.get(name, ()))
        return any(
            says(r) == "in" or (says(r) == "pass" and wanted(r.name))
            for r in reads.get(name, ())
            if r.args and r.args[0] == Ref(name)
        )

    shared = shared_modules(traced)

    def alone(step: Step) -> bool:
        return step.kind == "module" and times[step.target] == 1 and step.target not in shared

    def neighbour(step: Step, forward: bool) -> nn.Module | None:
        if not alone(step):
            return None
        while True:
            if forward:
                users = reads.get(step.name, [])
                if len(users) != 1 or step.name in out:
                    return None
                step = users[0]
            else:
                source = step.args[0] if step.args else None
                if not isinstance(source, Ref) or len(reads[source.name]) != 1 or source.name in out:
                    return None
                step = producers[source.name]
            if not alone(step):
                return None
            module = traced.held[step.target] if step.name not in found else found[step.name][0].module
            if not isinstance(module, nn.Flatten | spike_layers.Flatten) or not forward:
                return module

    for step in reversed(traced.steps):
        if step.kind != "module":
            continue
        if step.target in once and times[step.target] > 1:  # one module, several places: one decision
            found[step.name] = once[step.target]
            continue
        module = traced.held[step.target]
        rule = best_rule(rules, module)
        arguments = tuple(samples.get(ref.name) for ref in refs(step.args))
        context = Context(
            step.target, maker, wanted(step.name), neighbour(step, False), neighbour(step, True), arguments,
            samples.get(step.name), options, inner=lambda child, name: by_rule(child, rules, maker, options, name),
        )  # fmt: skip
        if step.target in traced.opaque:
            replacement = walked(module, rules, maker, options, traced.opaque[step.target])
            found[step.name] = (replacement, "")
        elif isinstance(module, TimeFoldedSite):
            found[step.name] = (context.makes(module, "spikes already"), "")
        elif rule is None:
            found[step.name] = (context.keep(module, f"no rule covers {type(module).__name__}; kept intact"), "")
        else:
            found[step.name] = (rule.convert(module, context), rule.name)
        once[step.target] = found[step.name]
    return found


def shared_modules(traced: Traced) -> set[str]:
    """Paths of modules whose weights another module or a tensor step reads, too: nothing may be folded into them."""
    owners: dict[int, set[str]] = {}
    for path, value in traced.held.items():
        for tensor in [value] if isinstance(value, Tensor) else value.parameters():
            owners.setdefault(tensor.untyped_storage().data_ptr(), set()).add(path)
    return {path for paths in owners.values() if len(paths) > 1 for path in paths}


def by_rule(
    module: nn.Module, rules: Sequence[Rule], maker: Maker, options: Mapping[str, Any], name: str = ""
) -> Replacement:
    """A module on its own, with nothing known of its neighbours."""
    rule = best_rule(rules, module)
    context = Context(name, maker, options=options, inner=lambda m, n: by_rule(m, rules, maker, options, n))
    return context.keep(module, "no rule covers it") if rule is None else rule.convert(module, context)


def walked(
    module: nn.Module, rules: Sequence[Rule], maker: Maker, options: Mapping[str, Any], why: str = ""
) -> Replacement:
    """A module that cannot be looked into: its submodules are converted where they stand, each for itself.

    Every converted submodule takes and gives numbers, so the code around it need not know of spikes.
    """
    done = 0
    for name, child in list(module.named_children()):
        rule = best_rule(rules, child)
        if rule is None:
            inner = walked(child, rules, maker, options)
            done += inner.data.get("inside", 0)
            continue
        context = Context(name, maker, options=options, inner=lambda m, n: by_rule(m, rules, maker, options, n))
        new = context.convert(child, name)
        done += new is not child
        setattr(module, name, new)
    note = f"kept: torch.fx cannot see through {why}; {done} of its modules are converted where they stand"
    return Replacement(module, "converted" if done else "kept", note if why else "", "no", {"inside": done})
