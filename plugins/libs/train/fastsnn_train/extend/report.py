"""The result of `extend_context`: plain data, and plots of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from fastsnn_core.files import write_text
from fastsnn_train.evaluation.recall import Recall, draw_heat_map


class Extension(dict[str, Any]):
    """Result of a context extension, as JSON data.

    Keys: mode, from, to, steps, seconds, plan, stages, short (loss at the old length), before and after (loss by
    position), recall (by task: before and after), history. ``.report(folder)`` writes JSON and plots.
    """

    grids: dict[str, tuple[Recall, Recall]]

    @classmethod
    def of(cls, facts: dict[str, Any], before: dict[str, Recall | str], after: dict[str, Recall | str]) -> Extension:
        """Build the result with recall before and after, or the reason why it was not measured."""
        found = cls(facts)
        found.grids = {}
        rows: dict[str, Any] = {}
        for task, old in before.items():
            new = after[task]
            if isinstance(old, Recall) and isinstance(new, Recall):
                found.grids[task] = (old, new)
                rows[task] = {"before": old.table(), "after": new.table()}
            else:
                rows[task] = {"skipped": str(old)}
        found["recall"] = rows
        return found

    def __str__(self) -> str:
        """A table of loss by position, the short-context loss, and recall."""
        short = self["short"]
        lines = [f"{self['mode']}: {self['from']} → {self['to']} tokens, {self['steps']} steps, {self['seconds']} s"]
        for a, b in zip(self["before"], self["after"]):
            lines.append(
                f"tokens {a['from']:>6}–{a['to']:<6}  perplexity {a['perplexity']:.4g} → {b['perplexity']:.4g}"
            )
        lines.append(
            f"at {self['from']} tokens  nats {short['before']:.4f} → {short['after']:.4f} ({short['worse']:+.1%})"
        )
        lost = []
        for task, (old, new) in self.grids.items():
            if any(old.at(n) or new.at(n) for n in old.lengths):
                lines += [f"{task} at {n} tokens: {old.at(n):.0%} → {new.at(n):.0%}" for n in old.lengths]
            else:
                lost.append(task)
        if lost:
            lines.append(
                f"{', '.join(lost)}: 0% at every length, before and after: the model has not learnt to recall, so "
                "these tests say nothing about its context; the perplexities above do"
            )
        return "\n".join(lines)

    def report(self, folder: str | Path) -> Path:
        """Write ``extension.json``, ``positions.png`` and a heat map per recall task; returns the folder."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        write_text(folder / "extension.json", json.dumps(self, indent=1) + "\n")
        self.draw_positions(folder / "positions.png")
        for task, (old, new) in self.grids.items():
            draw_heat_map(folder / f"recall-{task}.png", {f"{task}, before": old, f"{task}, after": new})
        return folder

    def draw_positions(self, path: Path) -> None:
        """Perplexity by position, before and after."""
        from matplotlib.figure import Figure

        figure = Figure(figsize=(6, 3.6), layout="constrained")
        ax = figure.subplots()
        for name in ("before", "after"):
            rows = self[name]
            ax.plot([max(1, r["to"]) for r in rows], [r["perplexity"] for r in rows], marker="o", label=name)
        ax.axvline(self["from"], color="grey", linestyle=":", label="training length before")
        ax.set_xscale("log", base=2)
        ax.set(xlabel="position, tokens (end of bucket)", ylabel="perplexity")
        ax.legend()
        figure.savefig(path, dpi=120)
