"""A real chat model: what conversion costs, and silent bytes at 1 % and 5 % perplexity by several criteria.

    python benchmarks/real_model.py [HF_DIRECTORY] [--windows 8] [--criteria teal,wina,spon,larosa,larosa_layers,ours]
                                    [--json F] [--plot F]

SmolLM2-135M-Instruct in float32 (default directory: $FASTSNN_DATA_CACHE or ~/.cache/fastsnn/smollm2, then hf);
calibration on WikiText-2 valid, everything measured on the first windows of 512 tokens of test. JSON on stdout, bars on
stderr. In pieces: `--given BUNDLE` measures a conversion that is there instead of making one, `--k ""` leaves out plain
counts, `--fine BUNDLE` gives the conversion with k = 6 that `ours` starts from, and rows of an older `--json` file with
as many windows are kept (that of k = 3, too, unless `--given`).
Settings are chosen by the estimate on valid; `read_off` are silent bytes where the line through what was measured on
test crosses the loss. `--healed BUNDLE` adds a model that `fastsnn heal` made, as it is.
Perplexities do not depend on the machine's load, seconds do: the load is in the output.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import os
import resource
import sys
import time
from pathlib import Path
from typing import Any

import attrs
import torch
from layer_rotation import LAYERED, paid

from fastsnn_convert import convert
from fastsnn_convert.language.convert import Options, with_neurons
from fastsnn_convert.language.distillation_data import tokens_of
from fastsnn_convert.language.families import import_dense
from fastsnn_convert.language.output_sensitivity import sensitivities
from fastsnn_convert.language.ports import ports
from fastsnn_convert.language.rebuild import bypass_neurons, site_table
from fastsnn_convert.language.reference_eval import HeldOutReference
from fastsnn_convert.language.site_figures import spike_means
from fastsnn_core import create, load
from fastsnn_tune.criteria import criterion
from fastsnn_tune.silent_bytes import Measured, Setting, SilentBytes, at_loss, paths_of

LOSSES = (0.01, 0.05)
NEURON = "adaptive_threshold"
TOP = 1.25  # of the picture
FINE = 6.0  # k of the models whose inputs are silenced; the criteria try twice and four times as fine, too


def main() -> int:
    """Run, print JSON."""
    cache = Path(os.environ.get("FASTSNN_DATA_CACHE") or Path.home() / ".cache/fastsnn/smollm2")
    args = argparse.ArgumentParser(description=__doc__)
    args.add_argument("folder", nargs="?", type=Path, default=cache / "hf")
    args.add_argument("--windows", type=int, default=8)
    args.add_argument("--criteria", default="teal,wina,spon,larosa,larosa_layers,ours")
    args.add_argument("--data", type=Path, default=Path(os.environ.get("FASTSNN_DATA", "../shared/data")))
    args.add_argument("--k", default="6,3,1.5", help="mean counts of the plain models")
    args.add_argument("--tries", type=int, default=3, help="settings measured for each loss")
    args.add_argument("--given", type=Path, help="the conversion with k = 3, instead of making it")
    args.add_argument("--fine", type=Path, help="the conversion with k = 6, instead of making it")
    args.add_argument("--healed", type=Path, help="a bundle to measure as it is")
    args.add_argument("--json", type=Path)
    args.add_argument("--plot", type=Path, help="a PNG of the curves")
    opts = args.parse_args()
    if not (opts.folder / "config.json").is_file():
        print(
            f"{opts.folder} is no Hugging Face directory; bring the model first (README of benchmarks)", file=sys.stderr
        )
        return 2
    valid, test = (opts.data / "wikitext2" / f"{name}.txt" for name in ("valid", "test"))
    rows: dict[str, Any] = {"model": str(opts.folder.name), "windows": opts.windows, "load": os.getloadavg()}
    rows["criteria"] = {}
    if opts.json and opts.json.is_file():
        old = json.loads(opts.json.read_text(encoding="utf-8"))
        rows = old if old["windows"] == opts.windows else rows
    known_k3 = "k3_calibrated" in rows and not opts.given
    if opts.given:
        model = load(opts.given)
    elif known_k3:
        model = import_dense(opts.folder)
    else:
        began, cpu = time.perf_counter(), time.process_time()
        done = convert(opts.folder, k=3.0, calibration=valid)
        model = done.model
        rows["convert"] = {
            "seconds": round(time.perf_counter() - began, 1),
            "cpu_seconds": round(time.process_time() - cpu, 1),
            "peak_gb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6, 3),
            "quality": done.report["quality"],
        }
        del done
    ids = tokens_of(test, model)
    x = ids[: opts.windows * 512].view(-1, 512)
    fit = tokens_of(valid, model)[:1024].view(2, 512)
    with bypass_neurons(model):
        held = HeldOutReference.of(model, x, own=True)
    if not known_k3:
        rows["k3_calibrated"] = as_it_is(model, held)
    del model
    written(rows, opts.json)
    plain = Options(balance=False, centred=("attn_in", "attn_out", "ffn_in", "ffn_hidden"))
    bases: dict[bool, Any] = {False: with_neurons(import_dense(opts.folder), create("neuron", NEURON, k=FINE), plain)}
    if opts.k:
        rows["plain_k"] = plain_counts(bases[False], held, [float(k) for k in opts.k.split(",")])
        written(rows, opts.json)
    known: dict[bool, Any] = {}
    for name in filter(None, opts.criteria.split(",")):
        chosen = LAYERED if name == LAYERED.name else criterion(name)
        ours = chosen.name in ("ours", "fisher")
        if ours not in bases:
            bases[ours] = load(opts.fine) if opts.fine else fine(opts.folder, valid)
        if ours not in known and chosen.prepare is None:
            known[ours] = list(sensitivities(bases[ours], fit))
        made = SilentBytes.of(bases[ours], chosen, fit, blocks=known.get(ours))
        seen: list[tuple[Setting, Measured]] = []
        for loss in LOSSES:
            at_loss(made, held, loss, seen, tries=opts.tries)
        more = paid(made.model, sum(made.weights.values()))
        curve = [attrs.asdict(m) | {"silent_bytes": m.silent_bytes - more} for _, m in seen]
        curve.sort(key=lambda m: m["silent_bytes"])
        rows["criteria"][name] = {"source": chosen.source, "read_off": read_off(curve), "curve": curve}
        print(json.dumps({name: rows["criteria"][name]}), file=sys.stderr, flush=True)
        written(rows, opts.json)
        del made
    if opts.healed:
        rows["healed"] = as_it_is(load(opts.healed), held)
    written(rows, opts.json)
    if opts.plot:
        draw(rows, opts.plot)
    print(json.dumps(rows, indent=1))
    return 0


def fine(folder: Path, text: Path) -> Any:
    """The model that `ours` starts from."""
    return convert(folder, k=FINE, calibration=text, measure=False, spread=False).model


def written(rows: dict[str, Any], path: Path | None) -> None:
    """What is known so far, into a file."""
    if path:
        path.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


def as_it_is(model: Any, held: HeldOutReference) -> dict[str, Any]:
    """Quality and silent bytes of a model."""
    quality, spikes = spike_means(model, held, {p: float(w) for p, w in behind(model).items()})
    return quality | spikes


def behind(model: Any) -> dict[str, int]:
    """Weights that read each spiking site, by path."""
    table = site_table(model)
    return {
        path: sum(r.weight.numel() for r in port.readers)
        for layer in model.layers
        for port in ports(layer)
        for path in paths_of(table, port)
    }


def plain_counts(model: Any, held: HeldOutReference, counts: list[float]) -> list[dict[str, Any]]:
    """Mean counts k, the same at every site, nothing balanced."""
    found = []
    for k in counts:
        for _, site in site_table(model).values():
            if site.neuron is not None:
                site.neuron.k.fill_(k)
        found.append({"k": k} | as_it_is(model, held))
        print(json.dumps(found[-1]), file=sys.stderr, flush=True)
    for _, site in site_table(model).values():
        if site.neuron is not None:
            site.neuron.k.fill_(FINE)
    return found


def read_off(curve: list[dict[str, Any]]) -> dict[str, float | None]:
    """Silent bytes at each loss, between neighbours on the curve in proportion to log perplexity; None outside."""
    points = [(m["silent_bytes"], m["ratio"]) for m in curve]
    found: dict[str, float | None] = {}
    for loss in LOSSES:
        found[f"{loss:g}"] = None
        for (a, x), (b, y) in itertools.pairwise(points):
            if x <= 1 + loss < y:
                share = (math.log1p(loss) - math.log(x)) / (math.log(y) - math.log(x))
                found[f"{loss:g}"] = round(a + share * (b - a), 4)
    return found


def draw(rows: dict[str, Any], path: Path) -> None:
    """Perplexity over the dense model's against silent bytes: a line per criterion, points for counts alone."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.2, 4.4), layout="constrained")
    axis = figure.subplots()
    for name, found in rows["criteria"].items():
        curve = found["curve"]
        axis.plot([100 * m["silent_bytes"] for m in curve], [m["ratio"] for m in curve], marker="o", ms=4, label=name)
    plain = [m for m in rows.get("plain_k", []) if m["ratio"] < TOP]
    axis.plot(
        [100 * m["silent_bytes"] for m in plain], [m["ratio"] for m in plain], "x:", color="#888888", label="k, plain"
    )
    for key, label in (("k3_calibrated", "k = 3, calibrated"), ("healed", "healed")):
        if key in rows:
            axis.plot([100 * rows[key]["silent_bytes"]], [rows[key]["ratio"]], "D", label=label)
    for loss in LOSSES:
        axis.axhline(1 + loss, color="#bbbbbb", linewidth=0.8, linestyle=(0, (4, 3)))
    axis.set_ylim(0.99, TOP)
    axis.set_title(f"SmolLM2-135M, WikiText-2 test, {rows['windows']} windows of 512", loc="left")
    axis.set_xlabel("silent bytes, % of the projections' weights")
    axis.set_ylabel("perplexity / dense perplexity")
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(frameon=False)
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    torch.manual_seed(0)
    raise SystemExit(main())
