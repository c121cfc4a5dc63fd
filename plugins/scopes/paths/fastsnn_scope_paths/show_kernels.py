"""``fastsnn show kernels [BUNDLE]``: kernel sets, what each operator takes, and which path each layer goes."""

from __future__ import annotations

from typing import Any

import attrs
import torch

from fastsnn_core import ops
from fastsnn_core.plugins import classes
from fastsnn_scope_paths import runtime_paths


def show_kernels(bundle: str | None = None) -> tuple[dict[str, Any], str]:
    """What ``fastsnn show kernels`` prints: ``(JSON data, text)``."""
    data = kernels(bundle)
    return data, kernels_text(data)


def kernels(bundle: str | None = None) -> dict[str, Any]:
    """Kernel sets with their reasons, and for each operator and device type the implementation it takes.

    With a bundle, also which path each of its layers takes and why: on a prompt, and on one decoded token.
    """
    sets = []
    for plugin, cls in classes("kernel"):
        kernel: Any = cls()
        sets.append({"name": f"{plugin}/{cls.name}", "devices": list(kernel.devices), "inactive": kernel.why_not()})
    devices = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
    picks = {name: {d: op.pick(d)[0] for d in devices} for name, op in sorted(ops.registered().items())}
    data: dict[str, Any] = {"sets": sets, "operators": picks}
    if bundle:
        from fastsnn_core import load

        model: Any = load(bundle)
        example = model.spec.example(1)
        found = runtime_paths.of_model(model, example)
        data["decoding"] = runtime_paths.fused_step_path(model, example)
        data["layers"] = {phase: [attrs.asdict(row) for row in rows] for phase, rows in found.items()}
    return data


def kernels_text(data: dict[str, Any]) -> str:
    """The same as text."""
    lines = [f"{s['name']}  {', '.join(s['devices'])}  {s['inactive'] or 'active'}" for s in data["sets"]]
    lines += [
        "",
        *(f"{name:<20} " + ", ".join(f"{d}: {k}" for d, k in row.items()) for name, row in data["operators"].items()),
    ]
    if "layers" in data:
        rows = {phase: [runtime_paths.Way(**row) for row in rows] for phase, rows in data["layers"].items()}
        lines += ["", *filter(None, [runtime_paths.says(data["decoding"])]), runtime_paths.tables_text(rows)]
    return "\n".join(lines)
