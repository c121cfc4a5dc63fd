"""``fastsnn scope BUNDLE``: SpikeScope's report of a bundle, or of two; ``--live RUN``: curves of a training run."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from fastsnn_console import targets
from fastsnn_console.arguments import Parser, number
from fastsnn_core.errors import MissingFileError, UserError
from fastsnn_core.files import write_text

if TYPE_CHECKING:
    from fastsnn_scope import Scoped


def main(argv: list[str]) -> int:
    """Write SpikeScope's report of a bundle: where its spikes are and what they cost."""
    args = Parser("scope", main.__doc__)
    args.add_argument("bundle", type=Path, nargs="?", help="a .snn bundle")
    args.add_argument("--beside", type=Path, metavar="BUNDLE", help="a second bundle, compared on the same input")
    args.add_argument("--live", type=Path, metavar="RUN", help="a training run's folder: its curves, while it runs")
    args.add_argument("--port", type=number(int, ge=0, le=65535), help="of --live (default 8090; 0: any free one)")
    args.add_argument("--out", type=Path, help="folder of the report (default: BUNDLE's name + .report, here)")
    args.add_argument("--text", help="a text file, or the text itself (default: a built-in sentence)")
    args.add_argument("--data", help="samples for a network that reads no text: folder, .npz, table, dataset's name")
    args.add_argument(
        "--samples",
        type=number(int, ge=1),
        help="of --data: how many are read (default 16; 256 for accuracy over steps)",
    )
    args.add_argument("--scope", action="append", metavar="NAME", help="only this scope; may be repeated")
    args.add_argument(
        "--limit", type=number(int, ge=1), default=256, help="tokens of the text that are read (default 256)"
    )
    args.add_argument("--json", action="store_true", help="print report.json; files are written only with --out")
    args.add_argument("--csv", metavar="FILE", help="write the table of sites there, too")
    args.add_argument("--svg", metavar="FILE", help="write the map of tokens and sites there, too")
    args.add_argument("--perfetto", metavar="FILE", help="write a trace for ui.perfetto.dev or chrome://tracing there")
    args.add_argument("--tensorboard", metavar="DIR", help="write every site's figures as TensorBoard scalars there")
    opts = args.parse_args(argv)
    if opts.live is not None:
        if opts.bundle is not None or opts.beside is not None:
            args.error("--live takes a run's folder and no bundle")
        return live(opts.live, opts.out, opts.port)
    if opts.bundle is None:
        args.error("give a bundle, or --live RUN")
    if opts.port is not None:
        args.error("--port goes with --live")
    from fastsnn_core import load
    from fastsnn_scope import scope
    from fastsnn_scope.scoped import choose_scopes

    scopes = choose_scopes(opts.scope) if opts.scope else None
    if opts.data is not None and opts.text is not None:
        args.error("give --text or --data, not both")
    if opts.samples is not None and opts.data is None:
        args.error("--samples goes with --data")
    text = text_or_file(opts.text)
    out = opts.out or (None if opts.json else Path(opts.bundle.resolve().stem + ".report"))
    sources = [opts.bundle, *([opts.beside] if opts.beside else ())]
    if out is not None:
        targets.folder(out, sources, "--out")
    extra = {name: getattr(opts, name) for name in ("csv", "svg", "perfetto") if getattr(opts, name) is not None}
    for name, path in extra.items():
        targets.file(path, sources, f"--{name}")
    if opts.tensorboard is not None:
        extra["tensorboard"] = targets.folder(opts.tensorboard, sources, "--tensorboard")

    def look(bundle: Path) -> Scoped:
        """One bundle under the scopes."""
        model = load(bundle)
        return scope(model, text=text, data=opts.data, samples=opts.samples, scopes=scopes, limit=opts.limit)

    found = look(opts.bundle)
    other = None if opts.beside is None else look(opts.beside)
    if out is not None:
        found.report(out, beside=other)
    for name, path in extra.items():
        getattr(found, name)(path)
    data = found.data()
    if opts.json:
        print(json.dumps(data if other is None else {"a": data, "b": other.data()}, ensure_ascii=False))
    elif out is not None:
        print(out / "index.html")
        if probes := data["probes"]:
            from fastsnn_scope.speed import says_cost

            print(f"probes: {says_cost(probes)}", file=sys.stderr)
    looks = [data] if other is None else [data, other.data()]
    return 1 if any("error" in panel for each in looks for panel in each["scopes"].values()) else 0


def live(run: Path, out: Path | None, port: int | None) -> int:
    """Serve a run's curves until ctrl-C; with `out` write them as they are now instead."""
    from fastsnn_scope.live import RunLog, server

    log = RunLog(run)
    if out is not None:
        folder = targets.folder(out, [run], "--out")
        folder.mkdir(parents=True, exist_ok=True)
        write_text(folder / "index.html", log.page(follow=False))
        print(folder / "index.html")
        return 0
    try:
        handle = server(log, 8090 if port is None else port)
    except OSError as error:
        raise UserError(f"--port {8090 if port is None else port}: {error.strerror or error}") from None
    with handle:
        print(f"http://127.0.0.1:{handle.server_port}/  (ctrl-C ends it)", flush=True)
        handle.serve_forever()
    return 0


def text_or_file(given: str | None) -> str | None:
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
