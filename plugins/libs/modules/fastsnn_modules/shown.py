"""How modules show themselves: their constants in ``print(model)``; models and spikes as tables in a notebook."""

from __future__ import annotations

import contextlib
from html import escape
from typing import Any

import torch
from torch import nn

from fastsnn_core.spike_methods import facts


def constants(module: nn.Module, *names: str, **more: Any) -> str:
    """``k=3, top=0.1``: the text of a module's ``extra_repr``; tensors of one number as that number."""
    rows = {name: getattr(module, name, None) for name in names} | more
    return ", ".join(
        f"{name}={text(value)}" for name, value in rows.items() if value is not None and value is not False
    )


def text(value: Any) -> str:
    """A number short, a tensor of several as its shape."""
    if isinstance(value, torch.Tensor):
        if value.numel() != 1 or value.device.type == "meta":
            return "×".join(map(str, value.shape))
        value = value.item()
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def model_html(model: Any) -> str:
    """A model for a notebook: what it is, how large, what its neurons are, what was done to it; the spec folded."""
    from fastsnn_core import spec as specs
    from fastsnn_core.component import parts

    spec = getattr(model, "spec", None)
    numbers = sum(p.numel() for p in model.parameters())
    weight = sum(t.numel() * t.element_size() for t in model.state_dict().values())
    rows = [("parameters", f"{numbers:,}"), ("bytes", f"{weight:,}")]
    if spec is not None:
        kinds: dict[str, list[str]] = {}
        for part in parts(spec):
            if part is not spec and part.name not in kinds.setdefault(part.kind, []):
                kinds[part.kind].append(part.name)
        rows += [(kind, ", ".join(names)) for kind, names in kinds.items()]
    done = [str(row.get("what", "?")) for row in getattr(model, "meta", {}).get("milestones", [])]
    rows += [("history", " → ".join(done))] if done else []
    name = getattr(spec, "name", type(model).__name__)
    cells = "".join(f"<tr><th style='text-align:left'>{escape(k)}</th><td>{escape(v)}</td></tr>" for k, v in rows)
    folded = f"<details><summary>spec</summary><pre>{escape(specs.dumps(spec))}</pre></details>" if spec else ""
    return f"<div><b>{escape(str(name))}</b><table>{cells}</table>{folded}</div>"


def spikes_html(spikes: Any, rows: int = 16, columns: int = 64) -> str:
    """Spikes for a notebook: a table of the facts, and the counts of the last two dimensions in colour."""
    table = "".join(f"<tr><th>{escape(k)}</th><td>{escape(v)}</td></tr>" for k, v in facts(spikes).items())
    cells = ""
    if spikes.device.type != "meta" and spikes.numel() and spikes.ndim:
        counts = spikes.counts.detach().cpu().double()
        counts = counts.reshape(-1, counts.shape[-1])[:rows, :columns]
        most = float(counts.abs().nan_to_num(0.0, 0.0, 0.0).max()) or 1.0
        for row in counts.tolist():
            cells += "<tr>" + "".join(_cell(c, most) for c in row) + "</tr>"
    return (
        f"<div><b>SpikeTensor</b> ({escape(spikes.form)})<table>{table}</table>"
        f'<table style="border-collapse:collapse">{cells}</table></div>'
    )


def _cell(count: float, most: float) -> str:
    share = min(1.0, abs(count) / most) if count == count else 0.0
    hue = "200,60,40" if count < 0 else "30,90,180"
    style = f"background:rgba({hue},{share:.2f});width:9px;height:9px;padding:0"
    return f'<td title="{count:.10g}" style="{style}"></td>'


def spec_name(model: nn.Module, site: str) -> str:
    """What the spec and the command line call a site (attn_in, ffn_hidden); empty where it has no such name."""
    for path in (site, site.rpartition(".")[0]):
        with contextlib.suppress(AttributeError):
            if name := getattr(model.get_submodule(path), "name", ""):
                return str(name)
    return ""
