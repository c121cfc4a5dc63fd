"""The readout over the steps of one sample: the output of each step, and the score that the answer is taken from."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastsnn_core.subject import Data, Subject
from fastsnn_modules.learnt import last_task, learnt_objective

LINES, POINTS = 10, 512
BLUE, ORANGE, GREY = "#0072b2", "#d55e00", "#8a939c"
SCORES = {
    "mean": "mean of the outputs so far", "step": "mean of the outputs so far", "sum": "sum of the outputs so far",
    "max": "largest output so far", "last": "output of the last step",
}  # fmt: skip


@torch.no_grad()
def readout(subject: Subject) -> Data | None:
    """Outputs o_t and scores z_t of the first sample, ``[lines][points]``; None where there is no output per step.

    z_t is the objective's readout of o_1 … o_t, that of the training on samples that the model remembers (their mean
    where it remembers none). At most `LINES` classes with the highest scores at the end (and the true one), at most
    `POINTS` steps, evenly spread. `since` is the step, from 1, from which the answer stays what it is at the end.
    """
    out = subject.outputs
    if out is None or out.ndim != 3 or out.shape[1] < 2:
        return None
    out = out[:1].float()
    objective: Any = learnt_objective(subject.model)
    if objective is not None and objective.counts and subject.trace:
        counts = list(subject.trace.values())[-1].spikes.counts[:1]
        out = counts.reshape(out.shape).float() if counts.numel() == out.numel() else out
    steps = out.shape[1]
    read = (lambda o: o.mean(1)) if objective is None else objective.read
    scores = torch.stack([read(out[:, : t + 1])[0] for t in range(steps)])
    learnt = last_task(subject.model)
    names = [str(n) for n in learnt.get("classes", ())]
    names += [str(n) for n in range(len(names), scores.shape[1])]
    kept = torch.argsort(scores[-1], descending=True, stable=True)[:LINES].tolist()
    if subject.truth in names[: scores.shape[1]] and names.index(subject.truth) not in kept:
        kept[-1] = names.index(subject.truth)
    kept.sort()
    shown = torch.linspace(0, steps - 1, min(POINTS, steps)).round().long()
    how = getattr(objective, "readout", "") if objective is not None else "mean"
    found: Data = {
        "steps": (shown + 1).tolist(),
        "of_steps": steps,
        "of_lines": scores.shape[1],
        "names": [names[c] for c in kept],
        "outputs": lines(out[0], shown, kept) if out.shape[2] == scores.shape[1] and how != "last" else [],
        "scores": lines(scores, shown, kept),
        "score": SCORES.get(how, f"score of {getattr(objective, 'name', '')}"),
        "known": objective is not None,
        "truth": subject.truth,
    }  # fmt: skip
    if learnt.get("task", "classification") == "classification":
        said = scores.argmax(1)
        other = (said != said[-1]).nonzero()
        found["said"] = names[int(said[-1])]
        found["since"] = int(other[-1]) + 2 if len(other) else 1
        found["confidence"] = round(float(scores[-1].softmax(0).max()), 4)
    return found


def lines(table: Tensor, shown: Tensor, kept: list[int]) -> list[list[float]]:
    """Columns `kept` of ``[T, C]`` at the steps `shown`, in six digits."""
    return [[float(f"{v:.6g}") for v in row] for row in table[shown][:, kept].T.double().tolist()]


def told(row: Data) -> list[str]:
    """The picture in words."""
    says = []
    if "said" in row:
        truth = f", a {row['truth']}" if row["truth"] else ""
        since = "at every step" if row["since"] == 1 else f"from step {row['since']} of {row['of_steps']} on"
        says.append(
            f"Readout: the first sample{truth}, is taken for {row['said']} {since}, at the end with a confidence of "
            f"{row['confidence']:.2f}."
        )
    if len(row["names"]) < row["of_lines"]:
        says.append(f"Readout: {len(row['names'])} of {row['of_lines']} lines are shown, those that end highest.")
    if not row["known"]:
        says.append("Readout: the model does not say how its outputs are read; their mean is shown.")
    return says


def draw_readout(row: Data, axes: list[Any]) -> None:
    """A line for every class; the answer in blue, the true class in orange where it is another."""
    panels = [("readout at each step", row["outputs"])] if row["outputs"] else []
    panels.append((f"readout: {row['score']}", row["scores"]))
    marked = {row.get("truth"): (ORANGE, 2.0), row.get("said"): (BLUE, 2.0)}
    for axis, (title, table) in zip(axes, panels):
        axis.set_title(title, loc="left")
        for name, values in zip(row["names"], table):
            colour, width = marked.get(name, (GREY, 1.0))
            point = "o" if len(values) <= 32 else ""
            axis.plot(row["steps"], values, color=colour, linewidth=width, marker=point, markersize=3 + width,
                      zorder=2 + width)  # fmt: skip
        low, high = min(map(min, table)), max(map(max, table))
        for name, y in apart([(n, v[-1]) for n, v in zip(row["names"], table)], (high - low or 1.0) / 17):
            colour = marked.get(name, ("#57606a", 1.0))[0]
            text = axis.annotate(name, (row["steps"][-1], y), (9, 0), textcoords="offset points", va="center",
                                 fontsize="small", color=colour, annotation_clip=False)  # fmt: skip
            text.set_parse_math(False)
            if name in marked:
                text.set_fontweight("bold")
        axis.set_xlabel("after step")
        axis.xaxis.get_major_locator().set_params(integer=True)
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(axis="y", color="#e6e9ec", linewidth=0.6)
        axis.set_axisbelow(True)
    for axis in axes[len(panels) :]:
        axis.set_visible(False)


def apart(ends: list[tuple[str, float]], least: float) -> list[tuple[str, float]]:
    """Names with their heights, moved so that neighbours are at least so far apart, around the same middle."""
    order = sorted(ends, key=lambda end: end[1])
    groups: list[list[tuple[str, float]]] = []

    def heights(group: list[tuple[str, float]]) -> list[float]:
        middle = sum(y for _, y in group) / len(group)
        return [middle + (i - (len(group) - 1) / 2) * least for i in range(len(group))]

    for end in order:
        groups.append([end])
        while len(groups) > 1 and heights(groups[-1])[0] - heights(groups[-2])[-1] < least:
            last = groups.pop()
            groups[-1] += last
    return [(name, y) for group in groups for (name, _), y in zip(group, heights(group))]
