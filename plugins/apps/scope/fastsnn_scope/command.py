"""``fastsnn scope BUNDLE``: write SpikeScope's report of a bundle."""

from __future__ import annotations

import json
from pathlib import Path

from fastsnn_console import targets
from fastsnn_console.arguments import Parser, number
from fastsnn_core.errors import MissingFileError


def main(argv: list[str]) -> int:
    """Write SpikeScope's report of a bundle: where its spikes are and what they cost."""
    args = Parser("scope", main.__doc__)
    args.add_argument("bundle", type=Path, help="a .snn bundle")
    args.add_argument("--out", type=Path, help="folder of the report (default: BUNDLE's name + .report, here)")
    args.add_argument("--text", help="a text file, or the text itself (default: a built-in sentence)")
    args.add_argument("--scope", action="append", metavar="NAME", help="only this scope; may be repeated")
    args.add_argument(
        "--limit", type=number(int, ge=1), default=256, help="tokens of the text that are read (default 256)"
    )
    args.add_argument("--json", action="store_true", help="print report.json; files are written only with --out")
    opts = args.parse_args(argv)
    from fastsnn_core import load
    from fastsnn_scope import scope
    from fastsnn_scope.scoped import chosen

    scopes = chosen(opts.scope) if opts.scope else None
    text = text_of(opts.text)
    out = opts.out or (None if opts.json else Path(opts.bundle.resolve().stem + ".report"))
    if out is not None:
        targets.folder(out, [opts.bundle], "--out")
    found = scope(load(opts.bundle), text=text, scopes=scopes, limit=opts.limit)
    if out is not None:
        found.report(out)
    if opts.json:
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
    if not is_file and given.endswith((".txt", ".md")) and not any(c.isspace() for c in given):
        raise MissingFileError(f"--text names no file: {given}")
    return targets.read_text(given, "--text") if is_file else given
