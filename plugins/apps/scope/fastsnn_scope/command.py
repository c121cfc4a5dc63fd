"""``fastsnn scope BUNDLE``: write SpikeScope's report of a bundle."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastsnn_console import targets
from fastsnn_console.arguments import Parser, number
from fastsnn_core.errors import MissingFileError, UserError

if TYPE_CHECKING:
    from torch import Tensor, nn

SAMPLES = 16


def main(argv: list[str]) -> int:
    """Write SpikeScope's report of a bundle: where its spikes are and what they cost."""
    args = Parser("scope", main.__doc__)
    args.add_argument("bundle", type=Path, help="a .snn bundle")
    args.add_argument("--out", type=Path, help="folder of the report (default: BUNDLE's name + .report, here)")
    args.add_argument("--text", help="a text file, or the text itself (default: a built-in sentence)")
    args.add_argument("--data", help="samples for a network that reads no text: folder, .npz, table, dataset's name")
    args.add_argument("--samples", type=number(int, ge=1), help="how many samples of --data are read (default 16)")
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
    if opts.data is not None and opts.text is not None:
        args.error("give --text or --data, not both")
    if opts.samples is not None and opts.data is None:
        args.error("--samples goes with --data")
    text = text_of(opts.text)
    out = opts.out or (None if opts.json else Path(opts.bundle.resolve().stem + ".report"))
    if out is not None:
        targets.folder(out, [opts.bundle], "--out")
    model = load(opts.bundle)
    if opts.data is not None:
        inputs, about = samples(model, opts.data, opts.samples or SAMPLES, quiet=opts.json)
        found = scope(model, tokens=inputs, scopes=scopes)
        found.about |= about
    else:
        found = scope(model, text=text, scopes=scopes, limit=opts.limit)
    if out is not None:
        found.report(out)
    if opts.json:
        print(json.dumps(found.data(), ensure_ascii=False))
    elif out is not None:
        print(out / "index.html")
    return 1 if any("error" in panel for panel in found.data()["scopes"].values()) else 0


def samples(model: nn.Module, source: str, most: int, quiet: bool) -> tuple[Tensor, dict[str, Any]]:
    """The first test samples of `source` ``[B, …]``, and what the report says of them."""
    try:
        from fastsnn_train.samples.batches import read
        from fastsnn_train.samples.of_model import samples_of
    except ImportError as error:
        raise UserError(f"--data needs {error.name}: pip install fastsnn-train") from None
    found = samples_of(model, source, quiet=quiet)
    index = list(range(min(most, len(found.train))))
    inputs, _ = read(found.train, index, found.task.shape, found.task.classes)
    return inputs, {"kind": "samples", "source": source, "samples": len(index), "of": len(found.train)}


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
