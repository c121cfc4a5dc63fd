"""What the spikes saved: the figures of the first screen, each with one plain sentence, better or not."""

from __future__ import annotations

import math
from typing import Any

from fastsnn_core.subject import Data
from fastsnn_scope.decided import says_exit


def short_bytes(n: float) -> str:
    """``1.3 MB``."""
    for unit in ("B", "kB", "MB"):
        if abs(n) < 1000:
            return f"{n:.0f} {unit}" if unit == "B" else f"{n:.3g} {unit}"
        n /= 1000
    return f"{n:.3g} GB"


def figure(key: str, label: str, value: str, says: str, number: float | None, *, less: bool | None = None) -> Data:
    """One figure: `number` for machines; `less`: is a smaller one better (None: neither)?"""
    return {"key": key, "label": label, "value": value, "says": says, "number": number, "less_is_better": less}


def unread(cells: Data) -> tuple[float, float]:
    """``(bytes not read, bytes)`` per token: rows behind silent channels, of all matrices that are read whole."""
    columns = max(1, cells["columns"])
    silent = sum(r["row_bytes"] * (r["channels"] * columns - sum(r["active"])) for r in cells["sites"]) / columns
    return silent, float(cells["weight_bytes"])


def tiles(found: Data) -> list[Data]:
    """The figures that can be told of what was measured, in the order of the page."""
    cells, speed = found.get("cells", {}), found.get("speed") or {}
    panels = found["scopes"]
    rows = weight_tiles(cells) if "sites" in cells else []
    rows += times(speed, cells) if "step_ms" in speed else []
    rows += energy(panels.get("energy", {}).get("data", {}))
    return rows + quality_tiles(found)


def weight_tiles(cells: Data) -> list[Data]:
    """Silent bytes, and bytes read per token."""
    silent, whole = unread(cells)
    if not whole or not any(r["row_bytes"] for r in cells["sites"]):
        share = 1.0 - sum(sum(r["active"]) for r in cells["sites"]) / max(
            1, sum(r["channels"] for r in cells["sites"]) * cells["columns"]
        )
        says = "No matrix is read row by row behind these spikes, so silence saves additions here, not bytes."
        return [figure("silent_channels", "silent channels", f"{share:.1%}", says, share, less=False)]
    per = {"token": "token", "sample": "sample"}.get(cells["axis"], "step")
    worst = max(cells["sites"], key=lambda r: r["row_bytes"] * (r["channels"] * cells["columns"] - sum(r["active"])))
    return [
        figure("silent_bytes", "silent bytes", f"{silent / whole:.1%}",
             f"of the weights that a {per} would need stand behind channels that did not spike. "
             f"Most of them behind {worst['site']}.", silent / whole, less=False),
        figure("bytes_read", f"bytes read per {per}", short_bytes(whole - silent),
             f"instead of {short_bytes(whole)} for the same weights without spikes: {short_bytes(silent)} stay unread.",
             whole - silent, less=True),
    ]  # fmt: skip


def times(speed: Data, cells: Data) -> list[Data]:
    """Milliseconds per token, and where they go."""
    unit, step, fast = speed["unit"], speed["step_ms"], speed.get("fused_ms")
    best, layers = fast or step, speed.get("layer_us", {})
    site_of = {m["layer"]: m["site"] for m in cells.get("matrices", [])}
    groups: dict[str, float] = {}
    for name, us in layers.items():
        part = next((word for word in ("attention", "feedforward", "head", "embed") if word in name), "other layers")
        groups[part] = groups.get(part, 0.0) + us
    total = sum(groups.values())
    order = sorted(groups.items(), key=lambda pair: -pair[1])[:3]
    where = ", ".join(f"{name} {us / total:.0%}" for name, us in order) if total else ""
    how = f"in one fused step ({speed['kernel']}); layer by layer {step:.3g} ms" if fast else "layer by layer"
    says = f"median of {speed['runs']} on this machine, {how}."
    if where:
        says += f" Of the weighted layers' {total / 1e3:.3g} ms: {where}."
    behind = sum(us for name, us in layers.items() if site_of.get(name))
    if total and behind:
        says += f" {behind / total:.0%} of it stands behind spikes."
    return [figure("ms", f"ms per {unit}", f"{best:.3g} ms", says, best, less=True)]


def energy(data: Data) -> list[Data]:
    """Energy beside the dense network of as many bits."""
    rows = {r["kind"]: r for r in data.get("rows", [])}
    if "events" not in rows:
        return []
    ratio, int8 = rows["events"]["ratio"], rows["int8"]["ratio"]
    if ratio < 1:
        says = f"Events need {1 - ratio:.0%} less than a dense network quantised to the same bits"
    else:
        says = f"Events need {ratio - 1:.0%} more than a dense network quantised to the same bits, so they do not pay"
    at = data.get("break_even_silent_fraction")
    says += f" (dense INT8: {int8:.2f} ×). " + (f"They pay from {at:.0%} silent on." if at is not None else "")
    says = says.strip() + " An estimate from a 45 nm table."
    return [figure("energy", "energy, bit-matched dense = 1", f"{ratio:.2f} ×", says, ratio, less=True)]


def quality_tiles(found: Data) -> list[Data]:
    """Quality beside the dense parent; beside the same weights without spikes where no parent is known."""
    parent, twin = found.get("parent") or {}, found.get("divergence")
    rows = []
    if "perplexity_dense" in parent:
        ratio = parent["perplexity"] / parent["perplexity_dense"]
        on = parent.get("measured_on") or "text that the conversion did not see"
        says = (f"Perplexity {parent['perplexity']:.4g} beside {parent['perplexity_dense']:.4g} of the dense parent, "
                f"measured on {on}.")  # fmt: skip
        rows.append(figure("quality", "perplexity, dense parent = 1", f"{ratio:.3f} ×", says, ratio, less=True))
    elif "accuracy" in parent and "accuracy_dense" in parent:
        lost = parent["accuracy_dense"] - parent["accuracy"]
        says = f"{parent['accuracy']:.2%} beside {parent['accuracy_dense']:.2%} of the dense parent."
        rows.append(figure("quality", "accuracy lost", f"{lost:.2%}", says, lost, less=True))
    elif twin is not None:
        ratio = math.exp(min(700.0, twin["nats"] - twin["nats_numbers"]))
        if ratio <= 1:
            says = "Spikes predict this text no worse than the same weights with numbers in their place"
        else:
            says = "The same weights with numbers in place of the spikes would predict this text better"
        says += (f": perplexity {math.exp(min(700.0, twin['nats'])):.4g} with spikes, "
                 f"{math.exp(min(700.0, twin['nats_numbers'])):.4g} without. No dense parent is known.")  # fmt: skip
        rows.append(figure("quality", "perplexity, no spikes = 1", f"{ratio:.3f} ×", says, ratio, less=True))
    accuracy: Any = found.get("confusion")
    if accuracy:
        says = f"{accuracy['right']} of {accuracy['samples']} samples; the matrix below says which are taken for which."
        rows.append(figure("accuracy", "right on these samples", f"{accuracy['right'] / accuracy['samples']:.1%}", says,
                         accuracy["right"] / accuracy["samples"], less=False))  # fmt: skip
    decided: Any = found.get("decisions")
    if decided:
        at, steps = decided["decision_step"], len(decided["curve"])
        says = f"Mean of {decided['samples']} samples. {says_exit(decided)}"
        rows.append(
            figure("decision_step", "step from which answers stand", f"{at:.2f} of {steps}", says, at, less=True)
        )
    return rows
