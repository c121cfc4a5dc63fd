"""The conversion report: plain JSON data, one row per module, with a text and an HTML face.

    source, kind, neuron, coverage, steps, parameters      what was converted, and how
    modules   name, class, status, rule, note, parameters, site, silent_fraction, spikes_per_channel, steps,
              saturation, error (this module alone), cumulative (this and all before it), and for language models
              estimated: whether error is (shown with ~) or was measured
    quality   figures of the whole;  curve  figures against steps;  obstacles  what keeps it out of a bundle

Errors are relative: of modules, spikes against the values they stand for, over the spread of those; `output_error`,
‖y - y₀‖ / ‖y₀ - mean y₀‖ against the original's outputs on samples held out of calibration (`measured_on`);
where `error_unit` says so (language models) they are KL(dense ‖ spiking) of the next token, in nats per token. `None`
is "not measured".
"""

from __future__ import annotations

import json
from html import escape
from pathlib import Path
from typing import Any

BAD_ERROR, BAD_KL, BAD_SATURATION, BAD_SILENCE = 0.2, 0.02, 0.02, 0.999
SMALL = ("error", "cumulative", "kl", "output_error")
DIGITS = {"ratio": 4, "accuracy": 4, "perplexity": 3, "perplexity_dense": 3}
STYLE = """:root{color-scheme:light dark;--ink:#222;--soft:#777;--line:#aaa;--bad:#fdd;--odd:#ffd;--hover:#eef;
--page:#fff}
@media(prefers-color-scheme:dark){
:root{--ink:#ddd;--soft:#999;--line:#666;--bad:#512;--odd:#442;--hover:#223;--page:#151515}}
body{font:14px/1.5 system-ui,sans-serif;margin:2em auto;padding:0 1em;max-width:80em;
color:var(--ink);background:var(--page)}
.wide{overflow-x:auto}table{border-collapse:collapse;font-variant-numeric:tabular-nums}
th,td{padding:.15em .7em;text-align:right;white-space:nowrap}th{border-bottom:1px solid var(--line)}
td.text,th.text{text-align:left}tr.kept{color:var(--soft)}tr.refused td{background:var(--bad)}
tr.approximated td{background:var(--odd)}tbody tr:hover td{background:var(--hover)}
@media(max-width:40em){body{margin:.5em auto}
td.text:first-child{white-space:normal;min-width:9em;overflow-wrap:anywhere}}"""
TEXTS = ("name", "class", "status", "rule")
COLUMNS = {
    "name": "module",
    "class": "class",
    "status": "status",
    "rule": "rule",
    "parameters": "parameters",
    "silent_fraction": "silent",
    "spikes_per_channel": "spikes",
    "steps": "steps",
    "saturation": "saturated",
    "error": "alone",
    "cumulative": "so far",
}


def row(name: str, kind: str, status: str, rule: str = "", note: str = "", **more: Any) -> dict[str, Any]:
    """A module's row; what is not given is not measured."""
    blank: dict[str, Any] = dict.fromkeys(
        ("site", *(c for c in COLUMNS if c not in ("name", "class", "status", "rule")))
    )
    return {"name": name, "class": kind, "status": status, "rule": rule, "note": note} | blank | more


def row_cell(r: dict[str, Any], key: str) -> str:
    """A row's value as text; ~ before what is estimated."""
    text = cell_text(key, r.get(key))
    return f"~{text}" if text and key in ("error", "cumulative") and r.get("estimated") else text


def cell_text(key: str, value: Any) -> str:
    """A value of a column as text."""
    if value is None:
        return ""
    if key in ("silent_fraction", "saturation", "silent_bytes"):
        return f"{value:.1%}"
    if isinstance(value, float):
        return (
            f"{value:.3g}"
            if key in ("error", "cumulative", "kl", "output_error")
            else f"{value:.{DIGITS.get(key, 2)}f}"
        )
    return f"{value:,}" if isinstance(value, int) else str(value)


class Report(dict[str, Any]):
    """The data (a dict, as JSON), with `summary`, `html` and `json`."""

    def __repr__(self) -> str:
        return f"Report({', '.join(f'{n} {what}' for what, n in self.counts.items())}; .summary() says it in words)"

    def json(self) -> str:
        """As JSON text."""
        return json.dumps(self, indent=2, allow_nan=False)

    @property
    def counts(self) -> dict[str, int]:
        """How many modules there are of each status."""
        found: dict[str, int] = {}
        for r in self.get("modules", []):
            found[r["status"]] = found.get(r["status"], 0) + 1
        return found

    def columns(self) -> dict[str, str]:
        """The columns that some module has a value in, and their headings."""
        modules = self.get("modules", [])
        return {key: name for key, name in COLUMNS.items() if key in TEXTS or any(row_cell(r, key) for r in modules)}

    def advice(self) -> list[str]:
        """What to try where a layer is bad: one line each, worst first."""
        says: list[tuple[float, str]] = []
        costly: list[tuple[float, str]] = []
        nats = "error_unit" in self
        for r in sorted(self.get("modules", []), key=lambda r: -(r["error"] or 0.0)):
            name = r["name"]
            if r["status"] == "refused":
                says.append((9.0, f"{name} was refused: {r['note']}"))
            if (r["saturation"] or 0.0) > BAD_SATURATION:
                fix = "give it one step more, a lower k, or scale its outlier channels into the weights"
                says.append((r["saturation"], f"{name} saturates in {r['saturation']:.1%} of its channels: {fix}"))
            elif nats and not self.get("healed") and (r["error"] or 0.0) > BAD_KL:
                fix = "a higher k, one step more or a bursting channel (burst), more calibration text, or healing"
                costly.append((r["error"], f"{name} {r['error']:.3f}"))
            elif not nats and (r["error"] or 0.0) > BAD_ERROR:
                fix = "give it one step more (steps_per_site), more calibration data, or train the network a little"
                says.append((r["error"], f"{name} alone is {r['error']:.0%} off its values: {fix}"))
            if (r["silent_fraction"] or 0.0) > BAD_SILENCE:
                says.append((8.0, f"{name} is silent: lower its threshold (a higher k), or check the calibration data"))
        if costly:
            worst = ", ".join(text for _, text in costly[:5]) + (f" and {len(costly) - 5} more" if costly[5:] else "")
            says.append((costly[0][0], f"alone these cost most, in nats per token: {worst}; {fix}"))
        untouched = [r["name"] for r in self.get("modules", []) if r["status"] == "kept" and not r["rule"]]
        if untouched:
            names = ", ".join(untouched[:5]) + (f" and {len(untouched) - 5} more" if len(untouched) > 5 else "")
            says.append(
                (0.0, f"no rule covers {names}: kept intact; write a rule plugin (fastsnn new-plugin rule NAME)")
            )
        for what in self.get("obstacles", []):
            says.append((0.0, f"{what} keeps the network out of a bundle: give it a Model component as its .spec"))
        return [text for _, text in sorted(says, key=lambda s: -s[0])]

    def head(self) -> str:
        """One paragraph: what was done."""
        counts = ", ".join(f"{n} {status}" for status, n in self.counts.items())
        what = f"{self.get('source', 'network')} → {self.get('model', 'spiking network')}"
        steps = self.get("steps")
        held = f", {steps} {self.get('code', '')} steps" if steps else ""
        said = f"{what}: {counts}; {self.get('neuron')}{held}, coverage {self.get('coverage')}"
        quality = self.get("quality") or {}
        figures = ", ".join(
            f"{k.replace('_', ' ')} {cell_text(k, v)}{plus_minus(k, quality)}"
            for k, v in quality.items()
            if v is not None and not (k.endswith("_error") and k.removesuffix("_error") in quality)
        )
        if quality and (self.get("tokens") or {}).get("written"):
            figures += ", on text that the model wrote itself (give calibration text for figures of real text)"
        return said + (f"; {figures}" if figures else "")

    def summary(self) -> str:
        """A table for a terminal."""
        columns = self.columns()
        rows = [list(columns.values())]
        for r in self.get("modules", []):
            rows.append([row_cell(r, key) for key in columns])
        widths = [max(len(line[i]) for line in rows) for i in range(len(columns))]
        text = [self.head(), ""]
        text += ["  ".join(cell.ljust(w) for cell, w in zip(line, widths)).rstrip() for line in rows]
        if curve := self.get("curve"):
            text += ["", against(curve)] + [
                "  " + ", ".join(f"{k} {cell_text(k, v)}" for k, v in r.items()) for r in curve
            ]
        if advice := self.advice():
            text += ["", "what to try", *(f"  {line}" for line in advice)]
        return "\n".join(text)

    def write(self, folder: Path) -> None:
        """conversion.json and conversion.html, a page of its own, in a folder."""
        (folder / "conversion.json").write_text(self.json() + "\n", encoding="utf-8")
        (folder / "conversion.html").write_text(self.page(), encoding="utf-8")

    def page(self) -> str:
        """`html` as a page of its own."""
        title = f"Conversion of {escape(str(self.get('source', 'a network')))}"
        screen = '<meta name="viewport" content="width=device-width,initial-scale=1">'
        head = f'<meta charset="utf-8">\n{screen}\n<title>{title}</title>\n<style>{STYLE}</style>'
        return f"<!doctype html>\n{head}\n{self.html()}"

    def html(self) -> str:
        """A section of a page: plain, self-contained, no script."""
        columns = self.columns()
        given = "error_unit" in self and "error" in columns
        unit = f"; alone and so far: {escape(str(self['error_unit']))}, ~ is estimated" if given else ""
        text = {key: ' class="text"' if key in TEXTS else "" for key in columns}
        head = "".join(f"<th{text[key]}>{escape(title)}</th>" for key, title in columns.items())
        body = []
        for r in self.get("modules", []):
            cells = "".join(f"<td{text[key]}>{escape(row_cell(r, key))}</td>" for key in columns)
            body.append(f'<tr class="{r["status"]}" title="{escape(r["note"])}">{cells}</tr>')
        notes = "".join(
            f"<li>{escape(r['name'])}: {escape(r['note'])}</li>" for r in self.get("modules", []) if r["note"]
        )
        advice = "".join(f"<li>{escape(line)}</li>" for line in self.advice())
        parts = [
            f'<section id="conversion"><h2>Conversion</h2><p>{escape(self.head())}{unit}.</p>',
            f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{"".join(body)}</tbody></table></div>',
            quality_curve_table(self.get("curve") or []),
            f"<h3>What to try</h3><ul>{advice}</ul>" if advice else "",
            f"<details><summary>Notes</summary><ul>{notes}</ul></details>" if notes else "",
        ]
        return "".join(parts) + "</section>\n"


def plus_minus(key: str, quality: dict[str, Any]) -> str:
    """± and the standard error, where there is one."""
    error = quality.get(f"{key}_error")
    return "" if error is None else f" ± {cell_text(key, error)}"


def against(rows: list[dict[str, Any]]) -> str:
    """What the curve is drawn against."""
    return f"against {next(iter(rows[0]))}"


def quality_curve_table(rows: list[dict[str, Any]]) -> str:
    """Quality against steps, or against k."""
    if not rows:
        return ""
    keys = list(rows[0])
    head = "".join(f"<th>{escape(k.replace('_', ' '))}</th>" for k in keys)
    body = "".join("<tr>" + "".join(f"<td>{escape(cell_text(k, r.get(k)))}</td>" for k in keys) + "</tr>" for r in rows)
    table = f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
    return f'<h3>{against(rows).capitalize()}</h3><div class="wide">{table}</div>'
