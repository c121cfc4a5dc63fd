"""How the account is shown: two bar charts and three tables."""

from __future__ import annotations

from typing import Any

Data = dict[str, Any]
COUNTED = ("SOPs (bits)", "SOPs (unary)", "MACs of non-zeros", "dense MACs")
COLOURS = ("#0072b2", "#d55e00", "#e69f00", "#cc79a7", "#009e73", "#999999")


def amount(pj: float) -> str:
    """pJ, nJ, µJ or mJ with three digits."""
    for unit in ("pJ", "nJ", "µJ"):
        if abs(pj) < 1000:
            return f"{pj:.3g} {unit}"
        pj /= 1000
    return f"{pj:,.3g} mJ"


def tables(data: Data) -> list[Data]:
    """The full account, the proxies, and what was counted at each site."""
    rows, unit = data["rows"], data["unit"]
    parts = list(rows[0]["parts"])
    account = [
        [
            r["name"],
            amount(r["total"]),
            f"{r['ratio']:.2f}×",
            f"{r['ratio_weights_shared']:.2f}×",
            *(amount(r["parts"][p]) for p in parts),
        ]
        for r in rows
    ]
    dense = data["proxies"][1]["total"] or 1.0
    proxy = [[p["name"], amount(p["total"]), f"{p['total'] / dense:.3f}×"] for p in data["proxies"]]
    reads: dict[str, list[Data]] = {}
    for layer in data["layers"]:
        reads.setdefault(layer["site"], []).append(layer)
    n = max(1, data["count"])
    counted = []
    for site in data["sites"]:
        mine = reads.get(site["name"], [])
        silent = 1 - site["active"] / max(1, site["channels"])
        sums = [sum(row[key] for row in mine) / n for key in ("sops", "sops_unary", "active_macs", "macs")]
        readers = ", ".join(row["name"].rpartition(".")[2] for row in mine) or "(nothing weighted)"
        head = [site["name"], f"{site['channels'] / n:,.0f}", f"{silent:.1%}", str(site["bits"]), readers]
        counted.append([*head, *(f"{x:,.0f}" for x in sums)])
    for layer in reads.get("", []):
        head = [layer["name"], f"{layer['inputs'] / n:,.0f}", "–", "–", "(reads ordinary numbers)"]
        counted.append([*head, *["–"] * 3, f"{layer['macs'] / n:,.0f}"])
    return [
        {
            "title": f"Per {unit}, with memory traffic ({data['weight_memory'].upper()} weights)",
            "columns": ["", "total", "÷ bit-matched", "the same, weight reads shared", *parts],
            "rows": account,
        },
        {"title": "Whom each row favours", "columns": ["", ""], "rows": [[r["name"], r["favours"]] for r in rows]},
        {
            "title": f"Per {unit}, arithmetic alone (the proxy)",
            "columns": ["", "total", "÷ dense FP32"],
            "rows": proxy,
        },
        {
            "title": f"Counted per {unit}",
            "columns": ["site", "channels", "silent", "bits", "read by", *COUNTED],
            "rows": counted,
        },
    ]  # fmt: skip


def picture(data: Data, figure: Any) -> None:
    """Left the proxy, right the stacked account; the same unit within a panel."""
    figure.set_size_inches(10, 3.6)
    left, right = figure.subplots(1, 2, width_ratios=[0.8, 1.2])
    proxies, rows = data["proxies"], data["rows"]
    scale, unit = unit_for(max(p["total"] for p in proxies))
    values = [p["total"] / scale for p in proxies]
    tints = ["#0072b2" if p["name"].startswith("SOP") else "#999999" for p in proxies]
    left.barh(range(len(values)), values, color=tints, height=0.62)
    for y, v in enumerate(values):
        left.text(v, y, f" {v:.3g}", va="center", fontsize="small")
    finish(
        left, [p["name"] for p in proxies], f"{unit} per {data['unit']}", "Arithmetic alone (the proxy)", max(values)
    )
    scale, unit = unit_for(max(r["total"] for r in rows))
    start = [0.0] * len(rows)
    for part, colour in zip(rows[0]["parts"], COLOURS):
        widths = [r["parts"][part] / scale for r in rows]
        right.barh(range(len(rows)), widths, left=start, color=colour, height=0.62, label=part)
        start = [a + b for a, b in zip(start, widths)]
    for y, r in enumerate(rows):
        right.text(start[y], y, f" {r['total'] / scale:.3g}  ({r['ratio']:.2f}×)", va="center", fontsize="small")
    title = f"With memory traffic ({data['weight_memory'].upper()} weights); × of bit-matched"
    finish(right, [r["name"] for r in rows], f"{unit} per {data['unit']}", title, 1.12 * max(start))
    figure.legend(
        *right.get_legend_handles_labels(), loc="outside lower center", ncols=6, frameon=False, fontsize="small"
    )


def finish(axis: Any, names: list[str], label: str, title: str, widest: float) -> None:
    """Names down, room for the figures at the right."""
    axis.set_yticks(range(len(names)), names)
    axis.invert_yaxis()
    axis.tick_params(axis="y", length=0)
    axis.set_xlim(0, 1.22 * widest or 1.0)
    axis.set_xlabel(label)
    axis.set_title(title, loc="left")
    for side in ("top", "right", "left"):
        axis.spines[side].set_visible(False)


def unit_for(pj: float) -> tuple[float, str]:
    """Divisor and unit that keep the largest value below a thousand."""
    scale = 1.0
    for unit in ("pJ", "nJ", "µJ"):
        if pj / scale < 1000:
            return scale, unit
        scale *= 1000
    return scale, "mJ"
