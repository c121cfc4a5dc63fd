"""Energy per token at 45 nm: counted events, memory traffic, and the dense models that a spiking one must beat."""

from __future__ import annotations

from typing import Any, ClassVar

import attrs
from attrs import frozen

from fastsnn_core import Scope, hookimpl, param
from fastsnn_core.subject import Data, Subject
from fastsnn_scope_energy.count import tally
from fastsnn_scope_energy.operation_counts import LayerCost, OperationCounts, Site
from fastsnn_scope_energy.picture import amount, picture, tables

__version__ = "0.1.0"

HOROWITZ = "Horowitz, ISSCC 2014, fig. 1.1.9"
CONSTANTS = (
    ("fp32_add", 0.9, "addition, 32-bit float", HOROWITZ),
    ("fp32_mul", 3.7, "multiplication, 32-bit float", HOROWITZ),
    ("fp32_mac", 4.6, "multiplication and addition, 32-bit float", "sum of the two"),
    ("fp16_add", 0.4, "addition, 16-bit float", HOROWITZ),
    ("fp16_mul", 1.1, "multiplication, 16-bit float", HOROWITZ),
    ("fp16_mac", 1.5, "multiplication and addition, 16-bit float", "sum of the two"),
    ("int8_add", 0.03, "addition, 8-bit integer", HOROWITZ),
    ("int8_mul", 0.2, "multiplication, 8-bit integers", HOROWITZ),
    ("int8_mac", 0.23, "multiplication and addition, 8-bit integers", "sum of the two"),
    ("int32_add", 0.1, "addition, 32-bit integer", HOROWITZ),
    ("sram_32kb", 20.0, "64 bits from a cache of 32 KiB", HOROWITZ),
    ("sram_1mb", 100.0, "64 bits from a cache of 1 MiB", HOROWITZ),
    ("dram", 1300.0, "64 bits from DRAM", f"{HOROWITZ}: 1300 to 2600"),
)
PJ = {name: pj for name, pj, _, _ in CONSTANTS}
SOURCES = (
    "Operations and 64-bit memory accesses in pJ at 45 nm: Horowitz, Computing's energy problem, ISSCC 2014. DRAM is "
    "1300–2600 there; the lower end is used, which is kind to whoever reads more.",
    "SOP proxy, spikes × fan-out × one addition: the convention of the spiking-transformer papers.",
    "Bit-matched baseline: S spike steps carry what ⌈log₂(S+1)⌉ bits of a quantised network do (arXiv 2409.08290).",
)
ASSUMPTIONS = (
    "One stream, one token at a time: every token reads each weight it needs once. Batching would share weight reads "
    "and shrink the advantage of silent rows.",
    "Events: an input's bits share one read of its weight row (INT8) and are added, shifted for free, into 32-bit "
    "sums. Rows of silent inputs are not read. Routing and irregular access cost nothing here, which favours spikes.",
    "Integer multiplication is costed in proportion to the product of its widths: 0.2 pJ · b/8, plus a 32-bit "
    "addition; hardware without b-bit multipliers does not get this, which favours the bit-matched baseline.",
    "Making spikes and quantising cost one FP32 multiplication and addition per channel; a membrane is read and "
    "written once per token. FP16 pays neither.",
    "Attention mixing, norms and gates are counted as multiplications and costed at FP16 in every row; exponentials, "
    "divisions by a threshold and additions of the residual stream are not counted in any.",
    "Layers without spikes in front are costed as INT8 (FP16 in the FP16 row). The state of the stream, as it is after "
    "this input and in the numbers it is kept in, is read once per token; of a cache the entries that exist.",
)
FAVOURS = {
    "events": "spikes: free routing and row skipping at batch one",
    "counts": "neither: a quantised dense model that skips zeros is this row",
    "matched": "dense: b-bit multipliers at full use, regular access",
    "int8": "dense arithmetic that exists; pays 8 bits where fewer would do",
    "fp16": "spikes, as a baseline: nobody would deploy it to save energy",
}
NAMES = {
    "events": "spiking, events",
    "counts": "spiking, integer counts",
    "matched": "dense, bit-matched",
    "int8": "dense, INT8",
    "fp16": "dense, FP16",
}
PARTS = ("arithmetic", "weights", "activations", "spike making", "attention and norms", "state")


@frozen
class Energy(Scope):
    """E = Σ operations · pJ + Σ bytes · pJ/byte per token, for the model as spikes, as counts and as dense baselines.

    events: Σ_layers SOPs · 0.1 + active inputs · fan-out · 1 byte, SOPs = Σ popcount|c| · fan-out, counted in one
    pass.  counts: active inputs · fan-out MACs of b × 8 bits.  matched, int8, fp16: all inputs · fan-out MACs and
    weight bytes. b is the bits of the site's largest count, with its sign. Attention, norms, activations, membranes and
    state are added to every row as the data's `assumptions` say. The classic SOP proxy stands beside them.
    """

    name = "energy"
    title = "Energy"
    order: ClassVar[int] = 50
    reading: ClassVar[str] = (
        "Left: the proxy that papers print, arithmetic alone, where spikes always look good. Right: the same counted "
        "events with memory traffic, beside a dense model quantised to the same bits. Shorter is better. Compare the "
        "first bar with the bit-matched one: that is the claim a spiking model has to earn. These are estimates from a "
        "45 nm table, not a measurement of any chip."
    )
    memory: str = param(
        "auto", choices=("auto", "sram", "dram"), doc="where weights lie; auto: DRAM beyond 1 MiB of INT8"
    )

    def measure(self, subject: Subject) -> Data:
        """Count one pass and cost it every way."""
        if not subject.trace:
            return {"reason": "the model makes no spikes"}
        found = tally(subject)
        size = sum({row.name: row.weights for row in found.layers.values()}.values())
        place = self.memory if self.memory != "auto" else "sram" if size <= 2**20 else "dram"
        rows = [energy_row(kind, found, place) for kind in NAMES]
        base = next(r["total"] for r in rows if r["kind"] == "matched")
        light = base - next(r["parts"]["weights"] for r in rows if r["kind"] == "matched")
        for r in rows:
            r["ratio"] = r["total"] / base
            r["ratio_weights_shared"] = (r["total"] - r["parts"]["weights"]) / light
        data = {
            "unit": found.unit,
            "count": found.tokens,
            "pj": dict(PJ),
            "weight_memory": place,
            "weight_bytes": size,
            "sites": [attrs.asdict(s) | {"bits": s.bits} for s in found.sites.values()],
            "layers": [attrs.asdict(row) for row in found.layers.values()],
            "attention_macs": found.attention_macs,
            "products": found.products,
            "state_bytes": found.state_bytes,
            "proxies": proxies(found),
            "rows": rows,
            "break_even_silent_fraction": break_even_sparsity(found, place, base),
        }
        data["headline"] = [
            ["energy vs bit-matched dense", f"{rows[0]['ratio']:.2f}×"],
            ["energy by events", f"{amount(rows[0]['total'])} / {found.unit}"],
        ]
        data["tables"] = [*tables(data), constants_table()]
        data["notes"] = [energy_verdict(found, data)]
        data["assumptions"] = [*ASSUMPTIONS, *SOURCES]
        return data

    def draw(self, data: Data, figure: Any) -> None:
        """Proxy and full account side by side."""
        if "reason" in data:
            figure.text(0.5, 0.5, data["reason"], ha="center", wrap=True)
            return
        picture(data, figure)


def constants_table() -> Data:
    """Every constant of the account with where it comes from, as a table."""
    rows = [[what, f"{pj:g}", source] for _, pj, what, source in CONSTANTS]
    return {"title": "Constants at 45 nm, pJ", "columns": ["", "pJ", "source"], "rows": rows}


def energy_row(kind: str, found: OperationCounts, place: str, activity: float = 1.0) -> Data:
    """Total and parts of one way to run the model, pJ per token; `activity` scales how many inputs speak."""
    wide = 2 if kind == "fp16" else 1
    weight, buffer = PJ["sram_1mb" if place == "sram" else "dram"] / 8, PJ["sram_32kb"] / 8
    state = PJ["sram_1mb" if found.state_bytes <= 2**20 else "dram"] / 8
    parts = dict.fromkeys(PARTS, 0.0)
    for layer in found.layers.values():
        site = found.sites.get(layer.site)
        sparse = kind in ("events", "counts") and site is not None
        parts["arithmetic"] += arithmetic(kind, layer, site, activity)
        parts["weights"] += (layer.active_reads * activity if sparse else layer.reads) * wide * weight
        parts["activations"] += (entry(kind, site, activity) * layer.inputs + 2 * 2 * layer.outputs) * buffer
    for site in found.sites.values():
        parts["activations"] += entry(kind, site, activity) * site.channels * buffer
        if kind != "fp16":
            parts["spike making"] += site.channels * PJ["fp32_mac"]
        if kind in ("events", "counts"):
            parts["spike making"] += found.tokens * 2 * site.membrane_bytes * buffer
    parts["weights"] += found.embedded * wide * weight
    parts["attention and norms"] += found.attention_macs * PJ["fp16_mac"] + found.products * PJ["fp16_mul"]
    parts["state"] += found.tokens * found.state_bytes * state
    parts = {name: value / max(1, found.tokens) for name, value in parts.items()}
    return {"kind": kind, "name": NAMES[kind], "total": sum(parts.values()), "parts": parts, "favours": FAVOURS[kind]}


def multiply(bits: int, adder: str) -> float:
    """pJ of one MAC of a `bits`-bit activation and an INT8 weight."""
    return PJ["int8_mul"] * bits / 8 + PJ[adder]


def arithmetic(kind: str, layer: LayerCost, site: Site | None, activity: float) -> float:
    """pJ of a layer's additions and multiplications over the whole pass."""
    if kind == "fp16":
        return layer.macs * PJ["fp16_mac"]
    if site is None or kind == "int8":
        return layer.macs * multiply(8, "int32_add")
    if kind == "events":
        return layer.sops * activity * PJ["int32_add"]
    return (layer.active_macs * activity if kind == "counts" else layer.macs) * multiply(site.bits, "int32_add")


def entry(kind: str, site: Site | None, activity: float) -> float:
    """Bytes of one input entry in a buffer: its value, or, averaged, the address and count of an event."""
    if kind == "fp16" or site is None:
        return 2.0
    if kind == "events":
        address = max(1, (site.width - 1).bit_length())
        return activity * site.active / max(1, site.channels) * (address + site.bits) / 8
    return 1.0 if kind == "int8" else site.bits / 8


def proxies(found: OperationCounts) -> list[Data]:
    """Arithmetic of the weighted layers alone, pJ per token: the SOP proxy in two precisions and its dense rivals."""
    layers = [(row, found.sites.get(row.site)) for row in found.layers.values()]
    rows = (
        ("SOPs, FP32 additions", sum(r.sops * PJ["fp32_add"] if s else r.macs * PJ["fp32_mac"] for r, s in layers)),
        ("dense, FP32 MACs", sum(r.macs * PJ["fp32_mac"] for r, _ in layers)),
        ("SOPs, INT8 additions", sum(r.sops * PJ["int8_add"] if s else r.macs * PJ["int8_mac"] for r, s in layers)),
        ("dense, INT8 MACs", sum(r.macs * PJ["int8_mac"] for r, _ in layers)),
        ("dense, bit-matched MACs", sum(r.macs * multiply(s.bits if s else 8, "int8_add") for r, s in layers)),
    )
    return [{"name": name, "total": pj / max(1, found.tokens)} for name, pj in rows]


def break_even_sparsity(found: OperationCounts, place: str, base: float) -> float | None:
    """Silent fraction at which the events row equals `base`, with as many spikes per active channel; None: never."""
    rest, full = (energy_row("events", found, place, activity)["total"] for activity in (0.0, 1.0))
    speak = sum(s.active for s in found.sites.values()) / max(1, sum(s.channels for s in found.sites.values()))
    if full <= rest or base <= rest:
        return None
    return max(0.0, 1.0 - speak * (base - rest) / (full - rest))


def energy_verdict(found: OperationCounts, data: Data) -> str:
    """One sentence that compares the two bars that matter."""
    silent = 1.0 - sum(s.active for s in found.sites.values()) / max(1, sum(s.channels for s in found.sites.values()))
    ratio, at = data["rows"][0]["ratio"], data["break_even_silent_fraction"]
    says = f"For one stream, events cost {ratio:.2f} times the bit-matched dense model at {silent:.1%} silent inputs"
    if at is None:
        says += "; no silent fraction would make them equal, since what surrounds the spiking layers costs more"
    else:
        says += f"; the two are equal at {at:.1%}"
    shared = data["rows"][0]["ratio_weights_shared"]
    return f"{says}. Where many tokens share each weight read (prefill, large batches) the ratio nears {shared:.2f}."


@hookimpl
def fastsnn_scopes() -> list[type[Scope]]:
    """This plugin's scopes."""
    return [Energy]
