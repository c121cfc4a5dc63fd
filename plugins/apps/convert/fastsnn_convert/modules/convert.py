"""Converting an ``nn.Module``: rules, calibration, measurement, and a model that can be saved and trained."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fastsnn_console.typed import typed
from fastsnn_conversion.context import ConversionError
from fastsnn_conversion.time_folding import TimeFoldedSite, cast_half, name_states, run_time_folded
from fastsnn_convert import output_distance
from fastsnn_convert.modules import layerwise, site_report
from fastsnn_convert.modules.comparison import CalibrationData, check_rebuilt, compare
from fastsnn_convert.modules.hooked_modules import INNER
from fastsnn_convert.modules.inputs import Call, as_inputs, check_batch_first, to_float32
from fastsnn_convert.modules.output_regression import distil
from fastsnn_convert.modules.prepare import check_source, check_tensors, prepared
from fastsnn_convert.modules.rule_engine import ConversionInProgress, all_rules, plan, walked
from fastsnn_convert.modules.site_placement import Maker
from fastsnn_convert.modules.site_thresholds import ThresholdSettings, tune_in_place
from fastsnn_convert.modules.to_spec import as_calls, module_with_spec, obstacles, site_modules
from fastsnn_convert.modules.traced_check import reference_output
from fastsnn_convert.neurons import component, levels
from fastsnn_convert.report import Report, row
from fastsnn_convert.result import Conversion, refuse_bundle
from fastsnn_core import Model, Neuron, Rule, build
from fastsnn_core.bundle_checks import unwrapped


@typed
def convert_module(
    model: nn.Module,
    *,
    example: Any = None,
    calibration: Any = None,
    neuron: Neuron | str | Mapping[str, Any] = "adaptive_threshold",
    steps: int | None = None,
    steps_per_site: Mapping[str, int] | float | None = None,
    code: str = "bitwise",
    coverage: str = "projections",
    functional: bool = True,
    refine: bool = True,
    heal: Any = None,
    heal_steps: int = 0,
    measure: bool = True,
    validation: Any = None,
    must_save: bool = False,
    d_model_fallback: int = 128,
    rules: Sequence[Rule] | None = None,
    options: Mapping[str, Any] | None = None,
) -> Conversion:
    """A trained module as a spiking one; `model` itself is left as it is.

    `example` is an input ``[B, …]`` (a tuple of inputs where there are several), `calibration` more of the same kind of
    data without time: thresholds are chosen on it, and errors measured. `steps` bounds counts to what that many slots
    carry under `code` (``bitwise``: 2^S - 1, ``unary``: S); `steps_per_site` overrides it by site, or, as a number,
    is the relative output error up to which sites give up steps. `coverage`: ``projections`` (the input of every
    linear and convolution spikes, the network's own input included) or ``activations`` (the outputs of activations).
    `functional=False` replaces modules only and looks into no forward. `refine` searches thresholds on the output's
    error; with `heal_steps` the weights learn the dense outputs on the inputs `heal`, else on `calibration`
    (`fastsnn_convert.modules.output_regression`; no labels, and the more inputs the better); `measure` fills in the
    report's errors. `d_model_fallback` is the width of a neuron where neither data nor modules say one.

    The result takes ``[B, …]`` or ``[B, T, …]``: the module is applied to every t, neurons with a membrane carry it
    over T; ``(y, state) = snn(x, state, return_state=True)`` streams.
    """
    check_source(model)
    check_tensors(unwrapped(model))
    if steps is not None:
        levels(steps, code)
    data, checks, lessons = (
        as_inputs(given, name)
        for given, name in ((calibration, "calibration"), (validation, "validation"), (heal, "heal"))
    )
    given = as_inputs(example, "example") or tuple(x[:2] for x in data or checks)
    measure = measure and bool(given)  # nothing is measured on made-up data
    given = given or (guess(model, d_model_fallback),)
    call = Call.of(model, next((e for e in (example, calibration, validation) if e is not None), given))
    lessons = lessons or data
    if (heal_steps and not (functional and lessons)) or (heal is not None and not heal_steps):
        raise ConversionError(
            "healing needs heal_steps=, heal= or calibration= (inputs [B, …] to learn the dense outputs on), and "
            "functional=True"
        )
    check_batch_first(type(model).__name__, lambda x: reference_output(model, call, x), given, model)
    if checks:
        reference_output(model, call, tuple(x[:2] for x in checks))  # of another shape: said before the work
    split = CalibrationData.split(data, checks)
    fit, settings = to_float32(split.fit), ThresholdSettings(steps, code, steps_per_site, refine)
    if not functional:
        return convert_walked(model, call, given, split, neuron, settings, d_model_fallback, rules, options, measure)
    found = plan(
        model, given, call=call, neuron=neuron, coverage=coverage, fallback=d_model_fallback, rules=rules,
        options=options,
    )  # fmt: skip
    says = obstacles(as_calls(found.network))
    if says and must_save:
        refuse_bundle(says)
    settings = ThresholdSettings(steps, code, by_site(steps_per_site, found), refine)
    figures, chosen_on = layerwise.tune_sites(found.network, fit or to_float32(given), settings, calibrated=bool(fit))
    by_module = {id(found.network.held(path)): one for path, one in figures.items()}
    snn: Any = found.network if says else module_with_spec(found.network, to_float32(given))
    sites = site_modules(snn)
    healed = (
        distil(snn, output_distance.output(found.dense, to_float32(lessons)), to_float32(lessons), heal_steps)
        if heal_steps
        else []
    )
    if not says:
        check_rebuilt(snn, to_float32(given))
    rows = network_rows(found, sites)
    if measure:
        errors = {name: by_module[id(site)] for name, site in sites.items() if id(site) in by_module}
        site_report.fill_site_rows(snn, sites, fit or to_float32(given), rows, errors=bool(fit), figures=errors)
    quality = site_report.quality(rows)
    if measure and split.compare:
        quality = compare(model, call, snn, split) | quality
    report = Report(
        source=type(model).__name__, kind="module", model=model_kind(snn), neuron=component(neuron).name,
        coverage=coverage, steps=steps, code=code, parameters=sum(p.numel() for p in snn.parameters()),
        calibration=chosen_on if fit else 0, healed=healed[:1] + healed[-1:], modules=rows,
        quality=quality, obstacles=says,
    )  # fmt: skip
    snn.report = report
    return Conversion(snn.train(model.training), report)


def by_site(steps: Mapping[str, int] | float | None, found: ConversionInProgress) -> Mapping[str, int] | float | None:
    """Steps given by the module that a site serves (the report's name), by site."""
    if not isinstance(steps, Mapping):
        return steps
    target = {step.name: step.target for step in found.dense.steps}
    sites = {target[served]: name for name, served in found.sites.items()}
    if unknown := sorted(set(steps) - set(sites)):
        raise ConversionError(
            f"steps_per_site names {unknown[0]!r}, where no site is; sites: {', '.join(sites) or 'none'}"
        )
    return {sites[name]: n for name, n in steps.items()}


def guess(model: nn.Module, fallback: int) -> Tensor:
    """An input for a model that comes without an example: its spec's, by its first layer, or the fallback's width."""
    if isinstance(spec := getattr(model, "spec", None), Model) and isinstance(found := spec.example(2), Tensor):
        return found
    for module in model.modules():
        if isinstance(module, nn.Linear):
            return torch.zeros(1, module.in_features, dtype=module.weight.dtype)
        if isinstance(module, nn.Embedding):
            return torch.zeros(1, 8, dtype=torch.long)
        norm = isinstance(module, nn.BatchNorm1d | nn.LayerNorm)
        if not norm and any(True for _ in module.parameters(recurse=False)):
            raise ConversionError(
                f"{type(model).__name__} starts with {type(module).__name__}, which does not say how large its input "
                "is; give example=, an input [B, …] of the right shape"
            )
    return torch.zeros(1, fallback)


def user_path(path: str) -> str:
    """A module's path as the user knows it."""
    return ".".join(part for part in path.split(".") if part != INNER)


def model_kind(snn: nn.Module) -> str:
    """Kind of the model's spec, or what it is without one."""
    spec = getattr(snn, "spec", None)
    return f"{spec.name} model" if isinstance(spec, Model) else "network without a spec"


def network_rows(found: ConversionInProgress, sites: Mapping[str, TimeFoldedSite]) -> list[dict[str, Any]]:
    """A row per step of the network that was converted, with the site that serves it."""
    where = {id(site): name for name, site in sites.items()}
    serving = {served: where.get(id(found.network.held(name))) for name, served in found.sites.items()}
    rows = []
    for step in found.dense.steps:
        if step.kind == "module":
            replacement, rule = found.found[step.name]
            module = found.dense.held(step.target)
            size = sum(p.numel() for p in module.parameters())
            name = type(module).__name__
            rows.append(
                row(step.target, name, replacement.status, rule, replacement.note, parameters=size,
                    site=serving.get(step.name), data=dict(replacement.data))
            )  # fmt: skip
        elif step.kind == "call" and step.name in found.traced.notes:
            note, rule = found.traced.notes[step.name]
            rows.append(row(step.name, f"{step.target}()", "kept", rule, note, parameters=0))
    return rows


# -- modules only --------------------------------------------------------------------------------------------------


class Walked(nn.Module):
    """A module whose forward is its own, over ``[B, …]`` or ``[B, T, …]``; the parts of it that rules cover spike."""

    def __init__(self, model: nn.Module, call: Call, ranks: tuple[int, ...]) -> None:
        super().__init__()
        self.model, self.ranks, self.call = model, ranks, call
        name_states(self)

    def body(self, *inputs: Tensor) -> Any:
        """The module on copies of its inputs, which it may change in place."""
        return self.call(self.model, [x.clone() for x in inputs])

    def forward(
        self, *inputs: Tensor, state: Any = None, reset: Tensor | None = None, return_state: bool = False
    ) -> Any:
        """The output; with `return_state`, ``(output, state)``."""
        out, state = run_time_folded(self.body, cast_half(self, inputs), self.ranks, state, reset)
        return (out, state) if return_state else out


def convert_walked(
    model: nn.Module, call: Call, given: tuple[Tensor, ...], split: CalibrationData, neuron: Any,
    settings: ThresholdSettings, fallback: int, rules: Sequence[Rule] | None, options: Mapping[str, Any] | None,
    measure: bool,
) -> Conversion:  # fmt: skip
    """Replace modules where they stand; function calls are not seen, and the report says so."""
    rules = all_rules() if rules is None else rules
    inputs, fit = to_float32(given), to_float32(split.fit)
    body = prepared(model, lambda m: reference_output(m, call, inputs))
    before = {name: m for name, m in body.named_modules() if not any(True for _ in m.children())}
    walked(body, rules, Maker(component(neuron), fallback), dict(options or {}))
    snn = Walked(body, call, tuple(x.ndim for x in given)).eval()
    sites = site_modules(snn)
    tune_in_place(snn, sites, fit or inputs, settings, calibrated=bool(fit))
    rows = []
    for name, module in before.items():
        site = next((s for s in sites if s.removeprefix("model.").removesuffix(".site") == name), None)
        status, note = ("converted", "where it stands") if site else ("kept", "")
        size = sum(p.numel() for p in module.parameters())
        rows.append(row(user_path(name), type(module).__name__, status, "", note, parameters=size, site=site))
    if measure:
        site_report.fill_site_rows(snn, sites, fit or inputs, rows, errors=bool(fit))
    quality = site_report.quality(rows)
    if measure and split.compare:
        quality = compare(model, call, snn, split) | quality
    report = Report(
        source=type(model).__name__, kind="module", model="network without a spec", neuron=component(neuron).name,
        coverage="modules only", steps=settings.steps, code=settings.code,
        parameters=sum(p.numel() for p in snn.parameters()), calibration=len(fit[0]) if fit else 0, modules=rows,
        quality=quality, obstacles=["functional=False: its forward is code, which a bundle does not hold"],
    )  # fmt: skip
    snn.report = report  # type: ignore[assignment]
    return Conversion(snn.train(model.training), report)


# -- other sources ---------------------------------------------------------------------------------------------------


def from_bundle(path: str | Path) -> nn.Module:
    """The network of a bundle, to be converted (again)."""
    from fastsnn_core import load

    return load(path)


def from_weights(source: str | Path | Mapping[str, Tensor], spec: Any, names: Mapping[str, str] | None) -> nn.Module:
    """A network from weights and the spec of what they belong to.

    `spec` is a Model component, a path of a TOML file, or a table; `names` maps beginnings of the weights' names to
    those of the spec's (``{"conv1": "layers.0"}``). Constants of snnTorch's neurons in a state dict are passed over:
    the spec says what the neurons are.
    """
    from fastsnn_convert.modules.weights import read_state, spec_of

    state = read_state(source) if not isinstance(source, Mapping) else dict(source)
    neurons = {n.removesuffix("reset_mechanism_val") for n in state if n.endswith(".reset_mechanism_val")}
    state = {n: t for n, t in state.items() if f"{n.rpartition('.')[0]}." not in neurons}
    component_ = spec_of(spec, source)
    network = build(component_)
    renamed = {}
    for name, tensor in state.items():
        old = max((n for n in names or {} if name == n or name.startswith(f"{n}.")), key=len, default=None)
        renamed[name if old is None else (names or {})[old] + name[len(old) :]] = tensor
    wanted = network.state_dict()
    sizes = {n: tuple(t.shape) for n, t in wanted.items()}
    constants = ("num_batches_tracked", ".neuron.k", ".neuron.theta")  # have values of their own
    says = [f"{n} {list(s)} is missing" for n, s in sizes.items() if n not in renamed and not n.endswith(constants)]
    says += [f"{n} is not part of the spec" for n in renamed if n not in wanted]
    for n, t in renamed.items():
        if n in sizes and tuple(t.shape) != sizes[n]:
            says.append(f"{n} has shape {list(t.shape)}, the spec asks for {list(sizes[n])}")
    if says:
        what = source if isinstance(source, str | Path) else "the state dict"
        more = f" (and {len(says) - 6} more)" if len(says) > 6 else ""
        raise ConversionError(
            f"{what} does not fit its spec: {'; '.join(says[:6])}{more}. Names can be mapped: "
            'names={"conv1": "layers.0", …}'
        )
    network.load_state_dict(renamed, strict=False)
    return network.eval()
