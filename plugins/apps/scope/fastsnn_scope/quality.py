"""What spikes cost in quality, and what to do next: the loss on what was read, the conversion's own figures, advice."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastsnn_core.bundle_checks import listed
from fastsnn_core.files import beside
from fastsnn_core.subject import Data

CONVERSION = ("conversion.html", "conversion.json")
NAMES = {
    "kl": ("KL from the dense outputs", " nats"),
    "perplexity_dense": ("of the dense network", ""),
    "ratio": ("the ratio of the two", ""),
    "saturation": ("spikes at the limit", "%"),
    "silent_bytes": ("bytes behind silent channels", "%"),
    "silent_fraction": ("silent channels", "%"),
}  # what the keys of a conversion's figures are called, and in what
LEAST = 8  # tokens below which a loss says nothing


@torch.no_grad()
def headline(model: nn.Module, inputs: Tensor, about: Data) -> list[list[str]]:
    """The loss of a language model on the text it was given, as ``[label, text]``; nothing for other models."""
    if about["kind"] not in ("text", "tokens") or inputs.ndim != 2 or inputs.shape[1] <= LEAST:
        return []
    training = model.training
    model.eval()
    try:
        logits = model(inputs)
    finally:
        model.train(training)
    if not isinstance(logits, Tensor) or logits.ndim != 3:
        return []
    nats = float(F.cross_entropy(logits[:, :-1].flatten(0, 1).float(), inputs[:, 1:].flatten()))
    if not math.isfinite(nats):
        return [["loss on this text", "not a number"]]
    tokens = inputs[:, 1:].numel()
    return [[f"loss on these {tokens} tokens", f"{nats:.3f} nats (perplexity {math.exp(min(nats, 700.0)):.4g})"]]


def conversion_of(model: nn.Module) -> Data:
    """The newest conversion in the model's history; empty where it was not converted."""
    rows = [row for row in getattr(model, "meta", {}).get("milestones", []) if row.get("what") == "convert"]
    return rows[-1] if rows else {}


def lost(model: nn.Module) -> list[str]:
    """What the conversion measured: perplexity or accuracy beside the dense network's, distance of the outputs."""
    found = conversion_of(model)
    figures = found.get("quality") or {}
    if not figures:
        return []
    says = []
    for key, value in figures.items():
        if isinstance(value, int | float) and not key.endswith(("_error", "_stderr")) and key != "windows":
            error = figures.get(f"{key}_error", figures.get(f"{key}_stderr"))
            spread = f" ± {error:.2g}" if isinstance(error, int | float) else ""
            number = f"{value:,.0f}" if float(value).is_integer() else f"{value:.4g}"
            name, unit = NAMES.get(key, (key.replace("_", " "), ""))
            number = f"{value:.1%}" if unit == "%" else f"{number}{spread}{unit}"
            says.append(f"{name} {number}")
    where = figures.get("measured_on") or "text or samples that the conversion did not see"
    return [f"Converted from {found.get('source', 'a dense network')}: {', '.join(says)}; measured on {where}."] + (
        ["Site by site: conversion.html in this folder."] if conversion_page(model) else []
    )


def conversion_page(model: nn.Module) -> bool:
    """Does the model's own report hold that of its conversion?"""
    folder = getattr(model, "report_path", None)
    return folder is not None and (Path(folder) / CONVERSION[0]).is_file()


def conversion_table(model: nn.Module) -> Data | None:
    """The conversion's own report, module by module, where the model's report holds one."""
    folder = getattr(model, "report_path", None)
    file = None if folder is None else Path(folder) / CONVERSION[1]
    if file is None or not file.is_file():
        return None
    rows = json.loads(file.read_text(encoding="utf-8")).get("modules", [])
    keys = ("name", "status", "rule", "silent_fraction", "spikes_per_channel", "error")
    cells = [[f"{r[k]:.4g}" if isinstance(r.get(k), float) else str(r.get(k) or "") for k in keys] for r in rows]
    return {"columns": ["module", "became", "rule", "silent", "spikes / channel", "error alone"], "rows": cells}


def keep_conversion(old: Any, folder: Path) -> tuple[str, ...]:
    """Copy the conversion's report from the model's `old` report into the new one; the names of what is there."""
    for name in CONVERSION:
        source = None if old is None else Path(old) / name
        if source is not None and source.is_file() and source.resolve() != (folder / name).resolve():
            with beside(folder / name) as scratch:
                scratch.write_bytes(source.read_bytes())
    return tuple(name for name in CONVERSION if old is not None and (folder / name).is_file())


def confusion(truth: Tensor, said: Tensor, classes: list[str]) -> Data:
    """How many samples of each class ``[B]`` are taken for which."""
    counts = torch.zeros(len(classes), len(classes), dtype=torch.long)
    counts.index_put_((truth.cpu(), said.cpu()), torch.ones(len(truth), dtype=torch.long), accumulate=True)
    right = int((truth.cpu() == said.cpu()).sum())
    return {"classes": classes, "matrix": counts.tolist(), "right": right, "samples": len(truth)}


def advice(model: nn.Module, panels: Data) -> list[str]:
    """What to try next, by what was measured."""
    spec: Any = getattr(model, "spec", None)
    bundle = getattr(getattr(model, "loaded_from", None), "name", "model.snn")
    sparsity = panels.get("sparsity", {}).get("data", {})
    rows, says = sparsity.get("sites", []), []
    silent = [r["site"] for r in rows if r["flag"] == "silent"]
    full = [r["site"] for r in rows if r["flag"] == "saturated" or (r.get("saturated_channels") or 0.0) > 0.0]
    if silent:
        says.append(f"{listed(silent)} hardly ever spikes: lower its threshold (a higher k), or leave the site out.")
    if full:
        says.append(f"{listed(full)} stands at the neuron's limit: a higher threshold (a lower k) or one step more.")
    if hasattr(spec, "quant") and spec.quant is None:
        says.append(f"A quarter of the bytes and integer sums: fastsnn export {bundle} --to w8a small.snn")
    if hasattr(spec, "vocab_size") and rows and sparsity["overall"]["silent_fraction"] < 0.9:
        says.append(f"More silence, at a loss that you choose: fastsnn tune {bundle} --text held_out.txt --loss 0.01")
    return says
