"""The table of docs/convert_map.md, out of the JSON that benchmarks/convert_map.py writes.

python docs/convert_map.py      writes the page again; tests/test_site.py holds that it is current
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "convert_map.json"
PAGE = ROOT / "docs" / "convert_map.md"
BEGIN, END = "<!-- measured: python docs/convert_map.py -->", "<!-- end -->"


def loss(row: dict[str, Any]) -> str:
    """``× 1.026`` of perplexity, ``0.20 points`` of accuracy."""
    return f"× {row['loss']:.3f}" if row["measure"] == "perplexity" else f"{row['loss']:.2f} points"


def table(found: dict[str, Any]) -> str:
    """Rows as Markdown."""
    lines = ["| from | to | loss | silent | speed, dense = 1 |", "| --- | --- | --- | --- | --- |"]
    for row in (row for rows in found["rows"].values() for row in rows):
        silent = f"{row['silent']:.1%}" if "silent" in row else ""
        lines.append(f"| {row['from']} | {row['to']} | {loss(row)} | {silent} | {row['speed']:.2f} |")
    days = sorted({row["day"] for rows in found["rows"].values() for row in rows})
    made = found["machine"]
    lines += ["", f"Measured {' and '.join(days)}: {made['cpu']}, torch {made['torch']}, one thread."]
    return "\n".join(lines)


def page(text: str, found: dict[str, Any]) -> str:
    """The page's text with the table of `found`."""
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n\n{table(found)}\n\n{END}{after}"


if __name__ == "__main__":
    told = page(PAGE.read_text(encoding="utf-8"), json.loads(RESULTS.read_text(encoding="utf-8")))
    PAGE.write_text(told, encoding="utf-8")
    print(PAGE)
