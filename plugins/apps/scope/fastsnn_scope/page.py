"""The page: one self-contained HTML file, pictures as data URIs, nothing fetched from anywhere.

Everything is said without a script; with one, the map of tokens and sites can be asked (page.js). The page's policy
lets it run that script alone and forbids every request.
"""

from __future__ import annotations

import base64
import hashlib
import re
from functools import cache
from html import escape
from importlib.resources import files
from typing import Any

from fastsnn_core.subject import Data
from fastsnn_scope.cells import Arrays
from fastsnn_scope.curve import curve_svg, curve_table
from fastsnn_scope.decided import decisions_svg, decisions_tables, says_exit
from fastsnn_scope.payload import payload
from fastsnn_scope.speed import says_cost

Row = list[str]


LIMIT = 3_000_000
"""Bytes of a page at most."""


@cache
def read_asset(name: str) -> str:
    """A file beside this one."""
    return (files("fastsnn_scope") / name).read_text(encoding="utf-8")


def csp_source(text: str) -> str:
    """A source of the page's policy: this text and no other."""
    return "'sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() + "'"


def policy(*scripts: str) -> str:
    """The page's Content-Security-Policy: its own style and scripts, its own pictures, no request at all."""
    allowed = " ".join(map(csp_source, scripts))
    rules = ("default-src 'none'", "img-src data: blob:", f"style-src {csp_source(chr(10) + read_asset('page.css'))}",
             f"script-src {allowed}", "base-uri 'none'", "form-action 'none'")  # fmt: skip
    return f'<meta http-equiv="Content-Security-Policy" content="{"; ".join(rules)}">'


def page(found: Data, drawn: dict[str, bytes], arrays: Arrays | None = None, beside: Data | None = None) -> str:
    """index.html of a report: what was saved, where, what was lost, a section per scope, model and environment."""
    model, panels = found["model"], found["scopes"]
    title = f"SpikeScope: {model.get('name') or model['kind']}"
    if beside is not None:
        title += f" beside {beside['model'].get('name') or beside['model']['kind']}"
    jumps = [
        ("saved", "Saved"),
        ("explore", "Where"),
        ("lost", "Lost"),
        *([("decisions", "Accuracy against spikes")] if found.get("decisions") else []),
        *((f"scope-{n}", p["title"]) for n, p in panels.items()),
    ]
    links = "".join(f'<a href="#{escape(name)}">{escape(text)}</a>' for name, text in jumps)
    sections = "".join(section(name, p, drawn.get(name)) for name, p in panels.items())
    script = chr(10) + read_asset("page.js")
    head = (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'{policy(script)}\n<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>\n{read_asset('page.css')}</style>\n</head>\n<body>\n<main>\n"
        f"<header><h1>SpikeScope</h1><p class=lead>{lead(found)}</p></header>\n"
        f'{saved(found, beside)}<nav aria-label="Sections">{links}</nav>\n{where_section(found)}{lost_section(found)}'
        f"{decisions_section(found)}{sections}{appendix(found)}</main>\n"
    )
    tail = f"<script>{script}</script>\n</body>\n</html>\n"
    room = LIMIT - len(head.encode()) - len(tail.encode()) - 100
    data = payload(found, arrays, room, beside) if "sites" in found.get("cells", {}) else ""
    if len(data.encode()) > room:
        data = ""
    shown = f'<script type="application/json" id="data">{data}</script>\n' if data else ""
    return head + shown + tail


def saved(found: Data, beside: Data | None) -> str:
    """The first screen: each figure with its sentence; with a second bundle its figure under the first."""
    rows, others = found.get("saved", []), {r["key"]: r for r in (beside or {}).get("saved", [])}
    cards = []
    for row in rows:
        other = others.get(row["key"])
        versus = ""
        if beside is not None:
            name = escape(str(beside["model"].get("name") or "the other"))
            versus = f"<p class=versus><b>{escape(other['value'])}</b> {name}{change(row, other)}</p>" if other else ""
        cards.append(f"<li><h3>{escape(row['label'])}</h3><p class=figure>{escape(row['value'])}</p>{versus}"
                     f"<p class=says>{escape(row['says'])}</p></li>")  # fmt: skip
    first = f"<ul class=cards>{''.join(cards)}</ul>" if cards else ""
    faults = "".join(f'<p class="error">{escape(line)}</p>' for line in found.get("faults", []))
    return f'<section id="saved"><h2>What the spikes saved</h2>{faults}{first}{glance(found)}{cost(found)}</section>\n'


def change(row: Data, other: Data) -> str:
    """``, better by 12 %``: of the other figure against this one."""
    a, b, less = row["number"], other["number"], row["less_is_better"]
    if not a or b is None or less is None or a == b:
        return "" if a != b else ": the same"
    by = f"{abs(b / a - 1):.1%}" if less else f"{100 * abs(b - a):.1f} points"
    return f": {'better' if (b < a) == less else 'worse'} by {by}"


def cost(found: Data) -> str:
    """What looking cost."""
    probes = found.get("probes")
    if not probes:
        return ""
    runs = f", the fastest of {probes['runs']}" if probes["runs"] > 1 else ""
    return f'<p class="foot">What looking costs: {says_cost(probes)}{runs}. Without a report there are no probes.</p>'


def where_section(found: Data) -> str:
    """The map: a table of sites for everybody; strip, map and cells for those who run the script."""
    cells: Any = found.get("cells", {})
    if "sites" not in cells:
        why = cells.get("reason", "")
        return f'<section id="explore"><h2>Where</h2><p class="reason">No map: {escape(why)}.</p></section>\n'
    columns = ["site", "in the spec", "channels", "silent", "spikes / channel", "bytes behind", "unread per column"]
    rows = [
        [r["site"], r["name"] or "–", str(r["channels"]), f"{r['silent_fraction']:.1%}",
         f"{r['spikes_per_channel']:.3f}", f"{r['weight_bytes']:,}",
         f"{r['row_bytes'] * (r['channels'] - sum(r['active']) / max(1, cells['columns'])):,.0f}"]
        for r in cells["sites"]
    ]  # fmt: skip
    plain = html_table({"columns": columns, "rows": rows})
    note = (
        f"<p class=reason>Not on the map, with another number of columns: {escape(', '.join(cells['left_out']))}.</p>"
    )
    return (
        f'<section id="explore"><h2>Where</h2><p class=reading>Rows are sites, columns {cells["axis"]}s. '
        "A dark cell is silent: its weight rows need not be read.</p>"
        f'<div id="app" hidden>{read_asset("page.html")}</div>'
        f'<div id="plain">{plain}</div>{note if cells["left_out"] else ""}</section>\n'
    )


def lost_section(found: Data) -> str:
    """What was lost: quality, channels that are stuck with the fix for each, a confusion matrix; and what next."""
    body = [bullets(found.get("lost", []))]
    twin = found.get("divergence")
    if twin:
        mean = sum(twin["kl"]) / max(1, len(twin["kl"]))
        worst = max(range(len(twin["kl"])), key=twin["kl"].__getitem__)
        labels = found.get("cells", {}).get("labels", [])
        token = f" ({labels[worst]!r})" if worst < len(labels) else ""
        body.append(f"<p>Against the same weights without spikes, a prediction moves by {mean:.3g} nats (KL) on "
                    f"average, most after token {worst}{escape(token)}: {twin['kl'][worst]:.3g}.</p>")  # fmt: skip
    stuck = []
    for r in found.get("cells", {}).get("sites", []):
        for p in r["channel_problems"]:
            numbers = "nos. " + ", ".join(map(str, p["channels"]))
            stuck.append([r["site"], p["kind"], f"{p['count']} of {r['channels']}", numbers, p["fix"]])
    if stuck:
        rows = {"columns": ["site", "problem", "how many", "channels", "what to do"], "rows": stuck}
        shown = " open" if len(stuck) <= 12 else ""
        body.append(
            f"<details{shown}><summary>{len(stuck)} findings about channels</summary>{html_table(rows)}</details>"
        )
    elif "sites" in found.get("cells", {}):
        body.append("<p>No channel is dead, saturated or far beyond its neighbours.</p>")
    matrix = found.get("confusion")
    if matrix:
        names = [str(n) for n in matrix["classes"]]
        rows = {"columns": ["truth \\ said", *names],
                "rows": [[n, *map(str, r)] for n, r in zip(names, matrix["matrix"])]}  # fmt: skip
        body.append(f"<h3>Confusion</h3>{html_table(rows)}")
    if found.get("conversion"):
        body.append(
            f"<details><summary>Conversion, module by module</summary>{html_table(found['conversion'])}</details>"
        )
    if tuned := found.get("tuned"):
        title = f"<h3>Tuned: {escape(tuned['y'])} against {escape(tuned['x'])}</h3><p>The ring is what was taken.</p>"
        values = f"<details><summary>As a table</summary>{html_table(curve_table(tuned))}</details>"
        body.append(f"{title}<div>{curve_svg(tuned)}</div>{values}")
    if found.get("advice"):
        body.append(f"<h3>What to try next</h3>{bullets(found['advice'])}")
    return f'<section id="lost"><h2>What was lost, and what next</h2>{"".join(body)}</section>\n'


def decisions_section(found: Data) -> str:
    """Accuracy and spikes after every step, and by early exit; nothing for networks that answer once."""
    decided = found.get("decisions")
    if not decided:
        return ""
    n = decided["samples"]
    tables = "".join(
        f"<details><summary>{escape(t['title'])}</summary>{html_table(t)}</details>" for t in decisions_tables(decided)
    )
    return (
        '<section id="decisions"><h2>Accuracy against spikes</h2><p class="reading">The share of right answers after '
        "every step, over the spikes of one inference until then (all sites, summed); each point has the number of its "
        "step. The hollow points stop a sample as soon as it is sure enough: the further left at the same height, the "
        f"fewer spikes for the same answers. One of the {n} samples is worth {1 / n:.1%}.</p>{decisions_svg(decided)}"
        f"<p>{escape(says_exit(decided))} An answer stands from step {decided['decision_step']:.2f} on, on average.</p>"
        f"{tables}</section>\n"
    )


def lead(found: Data) -> str:
    """One sentence on what was looked at."""
    model, about = found["model"], found["input"]
    parts = ", ".join(c for c in model["components"] if not c.startswith("model "))
    name = f"{escape(model['name'])}, a " if model.get("name") else ""
    what = f"{name}<strong>{escape(model['kind'])}</strong>" + (f" with {escape(parts)}" if parts else "")
    if about["kind"] == "text":
        cut = (
            f"the first {about['used']} of {about['tokens']}" if about["used"] < about["tokens"] else f"{about['used']}"
        )
        source = "a built-in sentence" if about["built_in"] else "the given text"
        seen = f"{source}, {cut} tokens"
    else:
        which = f"{about['samples']} of {about['of']:,} samples of {about['source']}" if "of" in about else ""
        seen = f"{which or 'given ' + about['kind']} of shape {' × '.join(map(str, about['shape']))}"
    return f"{what}, run once on {escape(seen)}. {escape(found['created'])}."


def glance(found: Data) -> str:
    """The one-glance table: parameters, then what each scope puts in its headline."""
    model = found["model"]
    cells: list[Row] = [["parameters", f"{model['parameters']:,}"], *found.get("quality", [])]
    for panel in found["scopes"].values():
        cells += panel.get("data", {}).get("headline", [])
    items = "".join(f"<div><dt>{escape(label)}</dt><dd>{escape(value)}</dd></div>" for label, value in cells)
    return f'<details><summary>All figures at a glance</summary><dl class="glance">{items}</dl></details>'


def section(name: str, panel: Data, png: bytes | None) -> str:
    """One scope: how to read it, its picture, its tables and notes; or why there is none."""
    data: Any = panel.get("data", {})
    body = [f'<section id="scope-{escape(name)}"><h2>{escape(panel["title"])}</h2>']
    if "error" in panel:
        body.append(f'<p class="error"><strong>{escape(name)} failed.</strong> {escape(panel["error"])}</p>')
    if "reason" in data:
        body.append(f'<p class="reason">Not shown: {escape(data["reason"])}.</p>')
    elif data:
        body.append(f'<p class="reading">{escape(panel["reading"])}</p>')
    if png is not None:
        uri = base64.b64encode(png).decode()
        picture = f'<img alt="{escape(panel["title"])}" src="data:image/png;base64,{uri}">'
        body.append(f'<figure><label><input type="checkbox"> enlarge</label>{picture}</figure>')
    body.append(bullets(data.get("notes", [])))
    for i, found in enumerate(data.get("tables", [])):
        shown = " open" if i == 0 and len(found["rows"]) <= 24 else ""
        body.append(f"<details{shown}><summary>{escape(found['title'])}</summary>{html_table(found)}</details>")
    if data.get("assumptions"):
        body.append(f"<details><summary>Assumptions and sources</summary>{bullets(data['assumptions'])}</details>")
    return "".join(body) + "</section>\n"


def bullets(lines: list[str]) -> str:
    """A list, commands at the end of a line set as code; nothing for none."""
    set_off = (re.sub(r"(?<=[:;] )(fastsnn [a-z]+ .+?)(?=\.?$)", r"<code>\1</code>", escape(line)) for line in lines)
    return "<ul>" + "".join(f"<li>{line}</li>" for line in set_off) + "</ul>" if lines else ""


def html_table(found: Data) -> str:
    """A table that scrolls on its own; columns of numbers are set flush right."""
    rows: list[Row] = found["rows"]
    columns = list(zip(*rows)) or [()] * len(found["columns"])
    kinds = [
        " class=n" if all(map(starts_with_number, c)) else " class=w" if max(map(len, c)) > 28 else "" for c in columns
    ]

    def cells(tag: str, row: Row) -> str:
        return "".join(f"<{tag}{kind}>{escape(str(c))}</{tag}>" for kind, c in zip(kinds, row))

    body = "".join(f"<tr>{cells('td', r)}</tr>" for r in rows)
    head = f"<thead><tr>{cells('th', found['columns'])}</tr></thead>"
    return f'<div class="scroll" tabindex="0"><table>{head}<tbody>{body}</tbody></table></div>'


def starts_with_number(text: str) -> bool:
    """Does a cell start with a number (or stand for none)?"""
    return text in ("", "–") or text[:1].isdigit() or text[:2].lstrip("-−")[:1].isdigit()


def appendix(found: Data) -> str:
    """The filled spec, the bundle's record and the environment."""
    model = found["model"]
    blocks = [
        ("Specification", pairs(model["spec"])),
        ("Bundle", pairs(model["meta"])),
        ("Environment", pairs(found["environment"])),
    ]
    shown = "".join(
        f"<details><summary>{name}</summary>{html_table({'columns': ['', ''], 'rows': rows})}</details>"
        for name, rows in blocks
        if rows
    )
    foot = '<p class="foot">All numbers are in report.json.</p>'
    return f'<section id="model"><h2>Model and environment</h2>{shown}{foot}</section>\n'


def pairs(tree: Any, path: str = "") -> list[Row]:
    """Nested data as ``[dotted path, value]`` rows."""
    if isinstance(tree, dict):
        return [row for key, value in tree.items() for row in pairs(value, f"{path}.{key}" if path else str(key))]
    if isinstance(tree, list) and any(isinstance(v, dict | list) for v in tree):
        return [row for i, value in enumerate(tree) for row in pairs(value, f"{path}[{i}]")]
    return [[path, ", ".join(map(str, tree)) if isinstance(tree, list) else str(tree)]]
