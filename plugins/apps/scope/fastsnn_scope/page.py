"""The page: one self-contained HTML file, pictures as data URIs, no script, nothing fetched from anywhere."""

from __future__ import annotations

import base64
from html import escape
from importlib.resources import files
from typing import Any

from fastsnn_core.subject import Data

Row = list[str]


def page(found: Data, drawn: dict[str, bytes]) -> str:
    """index.html of a report: a summary, a section per scope, and the model and environment at the end."""
    model, panels = found["model"], found["scopes"]
    css = (files("fastsnn_scope") / "page.css").read_text(encoding="utf-8")
    title = f"SpikeScope: {model.get('name') or model['kind']}"
    links = "".join(f'<a href="#{escape(name)}">{escape(p["title"])}</a>' for name, p in panels.items())
    sections = "".join(section(name, p, drawn.get(name)) for name, p in panels.items())
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>\n{css}</style>\n</head>\n<body>\n<main>\n"
        f"<header><h1>SpikeScope</h1><p class=lead>{lead(found)}</p>{glance(found)}<nav>{links}</nav></header>\n"
        f"{sections}{following(found)}{appendix(found)}</main>\n</body>\n</html>\n"
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
    return f'<dl class="glance">{items}</dl>'


def section(name: str, panel: Data, png: bytes | None) -> str:
    """One scope: how to read it, its picture, its tables and notes; or why there is none."""
    data: Any = panel.get("data", {})
    body = [f'<section id="{escape(name)}"><h2>{escape(panel["title"])}</h2>']
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
        body.append(f"<details{shown}><summary>{escape(found['title'])}</summary>{table(found)}</details>")
    if data.get("assumptions"):
        body.append(f"<details><summary>Assumptions and sources</summary>{bullets(data['assumptions'])}</details>")
    return "".join(body) + "</section>\n"


def following(found: Data) -> str:
    """What was lost in conversion, and what to do next."""
    lost, advice = found.get("lost", []), found.get("advice", [])
    if not lost and not advice:
        return ""
    says = f"<h3>What was lost</h3>{bullets(lost)}" if lost else ""
    says += f"<h3>What to try next</h3>{bullets(advice)}" if advice else ""
    return f'<section id="next"><h2>{"What was lost, and what next" if lost else "What next"}</h2>{says}</section>\n'


def bullets(lines: list[str]) -> str:
    """A list; nothing for none."""
    return "<ul>" + "".join(f"<li>{escape(line)}</li>" for line in lines) + "</ul>" if lines else ""


def table(found: Data) -> str:
    """A table that scrolls on its own; columns of numbers are set flush right."""
    rows: list[Row] = found["rows"]
    columns = list(zip(*rows)) or [()] * len(found["columns"])
    kinds = [" class=n" if all(map(numeric, c)) else " class=w" if max(map(len, c)) > 28 else "" for c in columns]

    def cells(tag: str, row: Row) -> str:
        return "".join(f"<{tag}{kind}>{escape(str(c))}</{tag}>" for kind, c in zip(kinds, row))

    body = "".join(f"<tr>{cells('td', r)}</tr>" for r in rows)
    head = f"<thead><tr>{cells('th', found['columns'])}</tr></thead>"
    return f'<div class="scroll" tabindex="0"><table>{head}<tbody>{body}</tbody></table></div>'


def numeric(text: str) -> bool:
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
        f"<details><summary>{name}</summary>{table({'columns': ['', ''], 'rows': rows})}</details>"
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
