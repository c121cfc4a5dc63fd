"""Paths by layer: events or dense, in which kernel, at what density, and the kernel's reason."""

from __future__ import annotations

from typing import Any, ClassVar

import attrs
from attrs import frozen

from fastsnn_core import Scope, hookimpl, ops
from fastsnn_core.subject import Data, Subject
from fastsnn_scope_paths import runtime_paths

__version__ = "0.1.0"

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#999999")
NAMES = {"prompt": "a prompt at once", "token": "one decoded token", "batch": "the input at once"}


@frozen
class Paths(Scope):
    """Per layer and call: rows n, active share a = #[x ≠ 0] / (n · inputs), events per input n · a, path, reason.

    A language model is run on its prompt and then on one more token, since kernels choose by how many events share a
    read of a weight row; any other model is run once. Integer layers repeat the reason of the kernel that took them.
    """

    name = "paths"
    title = "Paths"
    order: ClassVar[int] = 60
    reading: ClassVar[str] = (
        "Each mark is a layer, at the share of its inputs that spiked; its colour is the path that its product took. "
        "An event path reads only the weight rows whose input spiked, which pays as long as few events share a row: "
        "one token almost always does, a long prompt hardly ever. The tables say why, layer by layer."
    )

    def measure(self, subject: Subject) -> Data:
        """All layers, by phase."""
        found = {phase: rows for phase, rows in runtime_paths.of_model(subject.model, subject.inputs).items() if rows}
        if not found:
            return {"reason": "the model has no weighted layers"}
        tables = []
        for phase, rows in found.items():
            columns, cells = runtime_paths.merged_rows(rows)
            tables.append({"title": NAMES[phase].capitalize(), "columns": columns, "rows": cells})
        last = next(reversed(found.values()))
        events = sum("events" in row.path for row in last)
        step = runtime_paths.fused_step_path(subject.model, subject.inputs)
        said = runtime_paths.says(step)
        return {
            "phases": {
                phase: [attrs.asdict(r) | {"events_per_input": r.events_per_input} for r in rows]
                for phase, rows in found.items()
            },
            "operators": ops.paths(),
            "headline": [["layers by events, decoding" if "token" in found else "layers by events",
                          f"{events} of {len(last)}"]],
            "tables": tables,
            "decoding": step,
            "notes": [f"{said[:1].upper()}{said[1:]}."] if said else [],
        }  # fmt: skip

    def draw(self, data: Data, figure: Any) -> None:
        """A panel per phase: layers down, active share across, a colour per path."""
        if "reason" in data:
            figure.text(0.5, 0.5, data["reason"], ha="center", wrap=True)
            return
        phases = data["phases"]
        paths = list(dict.fromkeys(row["path"] for rows in phases.values() for row in rows))
        kinds = list(dict.fromkeys(layer_role(row["layer"]) for rows in phases.values() for row in rows))
        figure.set_size_inches(10, 1.4 + 0.3 * len(kinds))
        for axes, (phase, rows) in zip(figure.subplots(1, len(phases), sharey=True, squeeze=False)[0], phases.items()):
            for path in paths:
                mine = [row for row in rows if row["path"] == path]
                axes.scatter(
                    [100 * row["active"] for row in mine], [kinds.index(layer_role(row["layer"])) for row in mine],
                    s=28, alpha=0.7, color=COLOURS[paths.index(path) % len(COLOURS)], label=path,
                )  # fmt: skip
            n = max(row["rows"] for row in rows)
            axes.set_title(NAMES[phase] + (f", {n} rows" if n > 1 else ""), loc="left")
            axes.set_xlim(-3, 103)
            axes.set_xlabel("active inputs, %")
            axes.grid(axis="y", color="#eeeeee")
            axes.set_axisbelow(True)
            for side in ("top", "right", "left"):
                axes.spines[side].set_visible(False)
            axes.tick_params(axis="y", length=0)
            axes.set_yticks(range(len(kinds)), kinds)
            axes.set_ylim(len(kinds) - 0.5, -0.5)
        handles, labels = axes.get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False, fontsize="small")


def layer_role(layer: str) -> str:
    """``layers.3.attention.q`` is ``attention.q``: one line for the same projection of all layers."""
    parts = layer.split(".")
    at = [i for i, part in enumerate(parts) if part.isdigit()]
    return ".".join(parts[at[0] + 1 :]) or layer if at else layer


@hookimpl
def fastsnn_scopes() -> list[type[Scope]]:
    """This plugin's scopes."""
    return [Paths]
