"""Language models from a Hugging Face directory: dense import, spikes, calibration, report, healing."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import attrs
import torch
from torch import Tensor, nn

from fastsnn_console import targets
from fastsnn_console.progress import Progress
from fastsnn_console.typed import check_fields
from fastsnn_conversion.context import ConversionError
from fastsnn_convert.language.attention_swap import PLACES, inheritable, layers_of, place_attention, replace
from fastsnn_convert.language.balance import BalanceReport, calibrate
from fastsnn_convert.language.distillation_data import check_text, sample_text, tokens_of, windows
from fastsnn_convert.language.distillation_settings import LARGE, Healing, need_peft
from fastsnn_convert.language.families import import_dense
from fastsnn_convert.language.output_sensitivity import PIECE
from fastsnn_convert.language.rebuild import rebuild, site_table, with_biases
from fastsnn_convert.language.reference_eval import HeldOutReference, affordable
from fastsnn_convert.language.site_figures import curve, measure_sites, rows_of
from fastsnn_convert.neurons import component, evolved, field_of, levels, limited
from fastsnn_convert.report import Report
from fastsnn_convert.result import Conversion
from fastsnn_core import Neuron
from fastsnn_model_decoder import PROJECTIONS, SITES

COVERAGES: dict[str, tuple[str, ...]] = {
    "projections": PROJECTIONS,  # in front of every projection
    "boundaries": ("embed", "q", "k", "v", "ffn_hidden"),  # where SpikingJelly's Qwen2 recipe spikes
}
CENTRED = {"projections": PROJECTIONS, "boundaries": ("k", "ffn_hidden")}
WRITTEN = 128
"""Tokens of a window that a large model writes itself: more streams, in one pass each, and fewer passes."""


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
    windows: int | None = None
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
    thorough: bool = False
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
        if odd := sorted(set(self.sites) - set(SITES)):
            raise ConversionError(f"no site {', '.join(map(repr, odd))}; sites: {', '.join(SITES)}")
        if self.window < 2:
            raise ConversionError(f"calibration needs windows of at least 2 tokens, got window = {self.window}")
        if self.windows is not None and self.windows < 1:
            raise ConversionError(f"calibration needs at least one window, got windows = {self.windows}")
        if self.k is not None and not 0 < self.k <= 1e4:
            raise ConversionError(f"k is the mean count per channel, above 0 and up to 10000, got {self.k:g}")
        if self.burst is not None and self.burst < 0:
            raise ConversionError(f"burst is a number of channels, 0 or more, got {self.burst}")
        for name, value in (("heal_minutes", self.heal_minutes), ("heal_steps", self.heal_steps)):
            if value is not None and not value > 0:
                raise ConversionError(f"{name} must be above 0, got {value:g}")
        self.check_healing()

    @property
    def heals(self) -> bool:
        """Is the model healed?"""
        return self.heal_minutes is not None or self.heal_steps is not None

    def check_healing(self) -> None:
        """Everything about healing that can be known before the work begins."""
        if not self.heals:
            if self.heal is not None:
                raise ConversionError("healing text without a budget: give heal_minutes (--heal-minutes) or heal_steps")
            if given := [name for name in ("healing", "out", "resume") if getattr(self, name)]:
                raise ConversionError(f"{', '.join(given)} without healing: give heal_minutes or heal_steps")
            return
        if self.resume and self.out is None:
            raise ConversionError("resume needs out=, the folder that the run was kept in")
        settings: dict[str, Any] = {"steps": self.heal_steps, "minutes": self.heal_minutes, "seed": self.seed}
        try:
            config = Healing(**settings | self.healing)
        except TypeError:
            known = sorted({f.name for f in attrs.fields(Healing)} - {"steps", "minutes"})
            odd = ", ".join(sorted(set(self.healing) - set(known)))
            raise ConversionError(f"healing has no {odd}; settings: {', '.join(known)}") from None
        if config.lora:
            need_peft()
        if self.out is not None:
            targets.folder(self.out, option="out")

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
    calibration a text file, a text, texts, or token ids; without it the model writes text by itself (a model of 10
                million parameters and more in pieces of 128 tokens, since it writes slowly). `windows` of
                `window` tokens are fitted on (default: what a minute pays for), the report's figures are of others
    balance     move outlier channels and means into weights and biases (`fastsnn_convert.language.balance`);
    `centred` names
                the sites that take a constant off; `spread` shares a mean k out among the sites by measured cost
    attention   replace attentions: see `fastsnn_convert.language.attention_swap`; `place` "cycle" or "sensitivity",
                `attention_window` for sliding windows
    heal        text to heal on, with `heal_minutes` or `heal_steps`; without text the dense model writes it. `healing`
                has more settings of `fastsnn_convert.language.distillation.Healing`; `out` keeps checkpoints,
                `resume` goes on from them

    thorough    measure every site's figures one by one (a pass of held-out text for each) instead of the ten worst

    Weights become float32 (INT8 by `fastsnn export --to w8a` afterwards).

    Errors: `SourceError` and `ConversionError` name the file or option, and what is supported.
    """
    known = {f.name for f in attrs.fields(Options)}
    if unknown := sorted(set(options) - known):
        raise ConversionError(
            f"a language model is converted without {', '.join(unknown)}; options: {', '.join(sorted(known))}"
        )
    check_fields("convert", Options, options)
    o = Options(**options)
    chosen = chosen_neuron(neuron, o)
    check_text(o.calibration, "calibration")
    check_text(o.heal, "healing")
    kinds: Any = None
    if o.attention is not None:
        kinds = inheritable(o.attention, o.attention_window)
        if o.place not in PLACES:
            raise ConversionError(f"no place {o.place!r}; attentions are placed by {' or '.join(PLACES)}")
    began = time.perf_counter()
    with Progress("reading the model", quiet=o.quiet):
        dense: Any = import_dense(source)
    if o.heal is not None and not isinstance(o.heal, torch.Tensor):
        tokens_of(o.heal, dense, "healing")  # what is wrong with it is said before the work
    sources = dense.spec
    fit, spare = calibration_windows(dense, o)
    costs: list[float] = []
    with Progress("reading held-out text, dense", spare.numel(), "tokens", quiet=o.quiet) as progress:
        step = lambda: progress.step(min(PIECE, spare.numel()))  # noqa: E731
        held = HeldOutReference.of(dense, spare, own=o.heals, step=step)
    if kinds is not None:
        found, costs = place_attention(dense, kinds, o.place, fit[:4], held.first(4))
        dense = replace(dense, found, fit[:8])
    model = with_neurons(dense, chosen, o)
    del dense
    made = calibrated(model, fit, o)
    history = healed(model, source, o) if o.heals else []
    report = language_report(model, source, sources, chosen, o, held, made, bool(history))
    report |= {"calibrated": made.rows, "healed": history, "seconds": round(time.perf_counter() - began, 1)}
    report["tokens"] = {"fitted": fit.numel(), "measured": held.tokens.numel(), "written": o.calibration is None}
    if costs:
        report["sensitivity"] = costs
    model.report = report  # type: ignore[assignment]
    return Conversion(model, report)


def chosen_neuron(neuron: Any, o: Options) -> Neuron:
    """The neuron that name, steps, k and burst mean together; without a name adaptive_threshold, or adaptive_max."""
    if neuron is None:
        neuron = "adaptive_max" if o.steps is not None and o.k is None else "adaptive_threshold"
    found = component(neuron)
    if o.steps is not None:
        most = levels(o.steps, "bitwise")
        found = evolved(found, steps=o.steps) if field_of(found, ("steps",)) else limited(found, most)
    for name in ("k", "burst"):
        if (value := getattr(o, name)) is not None:
            if not field_of(found, (name,)):
                raise ConversionError(f"neuron {found.name!r} has no {name}")
            found = evolved(found, **{name: value})
    return found


def calibration_windows(dense: nn.Module, o: Options) -> tuple[Tensor, Tensor]:
    """Windows ``[N,T]`` to fit on, and others to measure on: as many as `affordable`, at least a fifth of a text."""
    large = sum(p.numel() for p in dense.parameters()) >= LARGE
    length = min(o.window, WRITTEN) if o.calibration is None and large else o.window
    fitted = o.windows if o.windows is not None else max(2, affordable(dense, length) // 4)
    measured = affordable(dense, length) if o.measure else 1
    if o.calibration is None:
        with Progress("the model writes text to calibrate on", length, "tokens", quiet=o.quiet) as progress:
            streams = fitted + min(measured, max(4, fitted))
            found = sample_text(dense, streams, length, seed=o.seed, step=progress.step)
    else:
        found = windows(tokens_of(o.calibration, dense), o.window)
        found = found[torch.randperm(len(found), generator=torch.Generator().manual_seed(o.seed))]
    if len(found) == 1:  # a text of one window is halved
        half = found.shape[1] // 2
        if half < 2:
            raise ConversionError(f"calibration: the text has {found.numel()} tokens; at least 4 are needed")
        return found[:, :half], found[:, half : 2 * half]
    spare = min(measured, max(len(found) - fitted, 1, len(found) // 5))
    return found[spare : spare + fitted], found[:spare]


def with_neurons(dense: nn.Module, neuron: Neuron, o: Options) -> nn.Module:
    """The same weights with a neuron at the sites."""
    spec: Any = dense.spec
    spec = attrs.evolve(spec, neuron=neuron, sites=o.sites)
    if o.balance and spec.weights == "ternary":
        raise ConversionError(
            "balance moves factors into weights that are rounded to -1, 0 and 1 afterwards, which would change them: "
            "convert with balance=False"
        )
    centred = o.centred
    if centred is None:
        usual = CENTRED[o.coverage] if isinstance(o.coverage, str) else ("k", *PROJECTIONS)
        centred = tuple(s for s in usual if s in o.sites) if o.balance else ()
    return rebuild(dense, with_biases(spec, tuple(centred)))


def calibrated(model: Any, fit: Tensor, o: Options) -> BalanceReport:
    """Balance the sites, then share k out by what each costs."""
    with Progress("calibrating", 2 * len(model.layers), "half blocks", quiet=o.quiet) as progress:
        made = calibrate(model, fit, move=o.balance, seed=o.seed, step=progress.step)
    if o.spread:
        share_out(model, made.cost)
    return made


@torch.no_grad()
def share_out(model: Any, cost: dict[str, float]) -> None:
    """Give every site its own k: KL_i ~ e_i (k/k_i)² is least, at a given Σ n_i k_i, for k_i ∝ (e_i / n_i)^(1/3).

    e_i is the cost of site i alone (`Calibration.cost`), n_i its channels; k_i stays within a factor 3 of k.
    """
    table = site_table(model)
    at: list[Any] = [table[path][1] for path in cost]
    if not at or not all(isinstance(getattr(s.neuron, "k", None), Tensor) for s in at):
        return
    n = torch.tensor([float(s.features) for s in at])
    base = torch.tensor([float(s.neuron.k) for s in at])
    k = (torch.tensor([max(c, 1e-9) for c in cost.values()]) / n).pow(1 / 3)
    for _ in range(20):
        k = (k * (n * base).sum() / (n * k).sum()).clamp(base / 3, base * 3)
    for site, value in zip(at, k):
        site.neuron.k.copy_(value)


def healed(model: nn.Module, source: str | Path, o: Options) -> list[dict[str, Any]]:
    """Heal against the dense model, read afresh."""
    from fastsnn_convert.language.distillation import heal

    settings = {"steps": o.heal_steps, "minutes": o.heal_minutes, "seed": o.seed} | o.healing
    return heal(model, import_dense(source), o.heal, out=o.out, resume=o.resume, quiet=o.quiet, **settings)


def language_report(
    model: Any,
    source: str | Path,
    before: Any,
    neuron: Neuron,
    o: Options,
    held: HeldOutReference,
    made: BalanceReport,
    healed: bool,
) -> Report:
    """The report."""
    old, new = layers_of(before), layers_of(model.spec)
    replaced = [i for i, (a, b) in enumerate(zip(old, new)) if a != b]
    rows = rows_of(model, replaced)
    found = {}
    if o.measure:
        same = not healed and not replaced  # a site alone has a cost only where the weights are the dense model's
        found = measure_sites(
            model, held, rows, made if same else None, thorough=o.thorough, errors=not healed, quiet=o.quiet
        )
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
        curve=curve(model, held, quiet=o.quiet) if o.measure else [],
        obstacles=[],
    )
