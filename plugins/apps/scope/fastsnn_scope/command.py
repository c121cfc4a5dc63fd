"""``fastsnn scope BUNDLE``: write SpikeScope's report of a bundle."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path


def main(argv: list[str]) -> int:
    """Write SpikeScope's report of a bundle: where its spikes are and what they cost."""
    parser = argparse.ArgumentParser(prog="fastsnn scope", description=main.__doc__)
    parser.add_argument("bundle", type=Path, help="a .snn bundle")
    parser.add_argument("--out", type=Path, help="folder of the report (default: BUNDLE's name + .report, here)")
    parser.add_argument("--text", help="a text file, or the text itself (default: a built-in sentence)")
    parser.add_argument("--scope", action="append", metavar="NAME", help="only this scope; may be repeated")
    parser.add_argument("--limit", type=int, default=256, help="tokens of the text that are read (default 256)")
    parser.add_argument("--json", action="store_true", help="print report.json; files are written only with --out")
    args = parser.parse_args(argv)
    from fastsnn_core import load
    from fastsnn_scope import scope

    try:
        found = scope(load(args.bundle), text=text_of(args.text), scopes=args.scope, limit=args.limit)
    except (ValueError, LookupError) as error:
        print(f"fastsnn scope: {error}", file=sys.stderr)
        return 2
    out = args.out or (None if args.json else Path(args.bundle.resolve().stem + ".report"))
    if out is not None:
        found.report(out)
    if args.json:
        print(json.dumps(found.data(), ensure_ascii=False))
    elif out is not None:
        print(out / "index.html")
    return 1 if any("error" in panel for panel in found.data()["scopes"].values()) else 0


def text_of(given: str | None) -> str | None:
    """The contents of a file of that name, else the text as it is."""
    if given is None:
        return None
    try:
        is_file = Path(given).is_file()
    except OSError:  # longer than a file name may be
        is_file = False
    return Path(given).read_text(encoding="utf-8") if is_file else given
