"""Language models from a Hugging Face directory: dense import, spikes, calibration, report, healing."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import attrs
import torch
from torch import Tensor, nn

from fastsnn_conversion.context import ConversionError
from fastsnn_convert.language import reference_eval
from fastsnn_convert.language.balance import calibrate
from fastsnn_convert.language.distillation_data import tokens_of, windows, write
from fastsnn_convert.language.families import import_dense
from fastsnn_convert.language.rebuild import rebuild, site_table, with_biases
from fastsnn_convert.neurons import component, field_of, levels, limited
from fastsnn_convert.report import Report
from fastsnn_convert.result import Conversion
from fastsnn_core import Neuron, create
from fastsnn_model_decoder import PROJECTIONS, SITES

COVERAGES: dict[str, tuple[str, ...]] = {
    "projections": PROJECTIONS,  # in front of every projection
    "boundaries": ("embed", "q", "k", "v", "ffn_hidden"),  # where SpikingJelly's Qwen2 recipe spikes
}
CENTRED = {"projections": PROJECTIONS, "boundaries": ("k", "ffn_hidden")}


@attrs.frozen(kw_only=True)
class Options:
    """How a language model is converted; see `convert_language`."""

    steps: int | None = None
    k: float | None = None
    burst: int | None = None
    code: str = "bitwise"
    coverage: str | tuple[str, ...] = "projections"
    centred: tuple[str, ...] | None = None
    spread: bool = True
    calibration: Any = None
    balance: bool = True
    window: int = 512
    windows: int = 20
    attention: Any = None
    place: str = "cycle"
    attention_window: int | None = None
    heal: Any = None
    heal_minutes: float | None = None
    heal_steps: int | None = None
    healing: dict[str, Any] = attrs.field(factory=dict)
    out: str | Path | None = None
    resume: bool = False
    measure: bool = True
    seed: int = 0
    quiet: bool = False

    def __attrs_post_init__(self) -> None:
        if self.code != "bitwise":
            raise ConversionError(f"code {self.code!r}: the steps of a language model are binary digits (bitwise)")
        if isinstance(self.coverage, str) and self.coverage not in COVERAGES:
            raise ConversionError(
                f"coverage {self.coverage!r}: for language models {', '.join(COVERAGES)}, or a list of sites out of "
                f"{', '.join(SITES)}"
            )
        if self.window < 2 or self.windows < 2:
            raise ConversionError("calibration needs windows of at least 2 tokens, and at least 2 windows")
        if self.heal is not None and self.heal_minutes is None and self.heal_steps is None:
            raise ConversionError("healing text without a budget: give heal_minutes (--heal-minutes) or heal_steps")

    @property
    def sites(self) -> tuple[str, ...]:
        """Where spikes stand."""
        return COVERAGES[self.coverage] if isinstance(self.coverage, str) else tuple(self.coverage)


def convert_language(source: str | Path, *, neuron: Any = None, **options: Any) -> Conversion:
    """A Hugging Face directory (Llama, Mistral, Qwen2, Qwen3) as a spiking decoder, with its tokenizer.

    steps       binary digits that every count must fit; the neuron is `adaptive_max` then, unless another is named
    k, burst    of the neuron: mean count (adaptive_threshold), channels per token that may need more (adaptive_max)
    coverage    "projections" (spikes at the input of all seven projections of a layer), "boundaries" (those of
                SpikingJelly's recipe: embedding, rotated q and k, v, MLP product), or a list of sites
    calibration a text file, texts, or token ids; without it the model writes `windows` of `window` tokens by itself. A
                fifth of them is not fitted on: the report's figures are measured there
    balance     move outlier channels and means into weights and biases (`fastsnn_convert.language.balance`);
    `centred` names
                the sites that take a constant off; `spread` shares a mean k out among the sites by measured cost
    attention   replace attentions: see `fastsnn_convert.language.attention_swap`; `place` "cycle" or "sensitivity",
                `attention_window` for sliding windows
    heal        text to heal on, with `heal_minutes` or `heal_steps`; without text the dense model writes it. `healing`
                has more settings of `fastsnn_convert.language.distillation.Healing`; `out` keeps checkpoints,
                `resume` goes on from them

    Weights become float32 (INT8 by `fastsnn export --to w8a` afterwards).

    Errors: `CheckpointError` and `ConversionError` name the file or option, and what is supported.
    """
    known = {f.name for f in attrs.fields(Options)}
    if unknown := sorted(set(options) - known):
        raise ConversionError(
            f"a language model is converted without {', '.join(unknown)}; options: {', '.join(sorted(known))}"
        )
    o = Options(**options)
    chosen = neuron_of(neuron, o)
    began = time.perf_counter()
    dense: Any = import_dense(source)
    sources = dense.spec
    fit, spare = samples(dense, o)
    held = reference_eval.Held.of(dense, spare)
    costs: list[float] = []
    if o.attention is not None:
        from fastsnn_convert.language.attention_swap import kinds_of, placed, replace

        kinds, costs = placed(dense, kinds_of(o.attention, o.attention_window), o.place, fit[:4], held)
        dense = replace(dense, kinds, fit[:8])
    model = spiking(dense, chosen, o)
    del dense
    constants = calibrated(model, fit, o)
    history = healed(model, source, o) if o.heal_minutes is not None or o.heal_steps is not None else []
    report = describe(model, source, sources, chosen, o, held)
    report |= {"calibrated": constants, "healed": history, "seconds": round(time.perf_counter() - began, 1)}
    report["tokens"] = {"fitted": fit.numel(), "measured": held.tokens.numel(), "written": o.calibration is None}
    if costs:
        report["sensitivity"] = costs
    model.report = report  # type: ignore[assignment]
    return Conversion(model, report)


def neuron_of(neuron: Any, o: Options) -> Neuron:
    """The neuron that name, steps, k and burst mean together; a name that is given is what is taken."""
    found = component("adaptive_threshold" if neuron is None else neuron)
    if o.steps is not None:
        most = levels(o.steps, "bitwise")
        if neuron is None and o.k is None:
            found = create("neuron", "adaptive_max", steps=o.steps)
        elif field_of(found, ("steps",)):
            found = attrs.evolve(found, steps=o.steps)
        else:
            found = limited(found, most)
    for name in ("k", "burst"):
        if (value := getattr(o, name)) is not None:
            if not field_of(found, (name,)):
                raise ConversionError(f"neuron {found.name!r} has no {name}")
            found = attrs.evolve(found, **{name: value})
    return found


def samples(dense: nn.Module, o: Options) -> tuple[Tensor, Tensor]:
    """Windows to fit on, and windows that are only measured (a fifth, at least one)."""
    if o.calibration is None:
        found = write(dense, o.windows, o.window, seed=o.seed)
    else:
        found = windows(tokens_of(o.calibration, dense), o.window)
        order = torch.randperm(len(found), generator=torch.Generator().manual_seed(o.seed))
        found = found[order[: o.windows]]
    if len(found) == 1:  # a text of one window is halved
        half = found.shape[1] // 2
        if half < 2:
            raise ConversionError(f"calibration: the text has {found.numel()} tokens; at least 4 are needed")
        return found[:, :half], found[:, half : 2 * half]
    spare = max(1, len(found) // 5)
    return found[spare:], found[:spare]


def spiking(dense: nn.Module, neuron: Neuron, o: Options) -> nn.Module:
    """The same weights with a neuron at the sites."""
    spec: Any = dense.spec
    spec = attrs.evolve(spec, neuron=neuron, sites=o.sites)
    centred = o.centred
    if centred is None:
        usual = CENTRED[o.coverage] if isinstance(o.coverage, str) else ("k", *PROJECTIONS)
        centred = tuple(s for s in usual if s in o.sites) if o.balance else ()
    return rebuild(dense, with_biases(spec, tuple(centred)))


def calibrated(model: nn.Module, fit: Tensor, o: Options) -> list[dict[str, Any]]:
    """Balance the sites, then share k out."""
    rows = calibrate(model, fit, seed=o.seed) if o.balance else []
    if o.spread:
        share_out(model, fit)
    return rows


@torch.no_grad()
def share_out(model: Any, fit: Tensor, windows_: int = 4) -> None:
    """Give every site its own k: KL_i ~ e_i (k/k_i)² is least, at a given Σ n_i k_i, for k_i ∝ (e_i / n_i)^(1/3).

    e_i is the KL when site i alone spikes, n_i its channels; k_i stays within a factor 3 of k.
    """
    from fastsnn_convert.language.rebuild import numbers

    at: list[Any] = [site for _, site in site_table(model).values() if site.neuron is not None]
    if not at or not all(isinstance(getattr(s.neuron, "k", None), Tensor) for s in at):
        return
    with numbers(model):
        held = reference_eval.Held.of(model, fit[:windows_])
    costs = []
    for site in at:
        with numbers(model, [site]):
            costs.append(max(held.compare(model)[0], 1e-9))
    n = torch.tensor([float(s.features) for s in at])
    base = torch.tensor([float(s.neuron.k) for s in at])
    k = (torch.tensor(costs) / n).pow(1 / 3)
    for _ in range(20):
        k = (k * (n * base).sum() / (n * k).sum()).clamp(base / 3, base * 3)
    for site, value in zip(at, k):
        site.neuron.k.copy_(value)


def healed(model: nn.Module, source: str | Path, o: Options) -> list[dict[str, Any]]:
    """Heal against the dense model, read afresh."""
    from fastsnn_convert.language.distillation import heal

    settings = {"steps": o.heal_steps, "minutes": o.heal_minutes, "seed": o.seed} | o.healing
    return heal(model, import_dense(source), o.heal, out=o.out, resume=o.resume, quiet=o.quiet, **settings)


def describe(
    model: Any, source: str | Path, before: Any, neuron: Neuron, o: Options, held: reference_eval.Held
) -> Report:
    """The report."""
    from fastsnn_convert.language.attention_swap import layers_of

    old, new = layers_of(before), layers_of(model.spec)
    rows = reference_eval.rows_of(model, [i for i, (a, b) in enumerate(zip(old, new)) if a != b])
    found = reference_eval.measure(model, held, rows) if o.measure else {}
    coverage = o.coverage if isinstance(o.coverage, str) else ", ".join(o.coverage)
    return Report(
        source=Path(source).name,
        kind="language model",
        model=f"{model.spec.name} of {model.spec.n_layers} layers",
        neuron=neuron.name,
        coverage=coverage,
        steps=o.steps,
        code=o.code,
        parameters=sum(p.numel() for p in model.parameters()),
        error_unit="KL, nats per token",
        modules=rows,
        quality=found,
        curve=reference_eval.curve(model, held) if o.measure else [],
        obstacles=[],
    )
