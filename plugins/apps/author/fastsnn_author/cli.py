"""The verbs ``show`` and ``new-plugin``."""

from __future__ import annotations

import importlib.metadata
import json
import webbrowser
from pathlib import Path

from fastsnn_console.arguments import Parser
from fastsnn_core.component import KINDS
from fastsnn_core.errors import UserError


def show(argv: list[str]) -> int:
    """Show a component (equation, parameters, contract), what a bundle holds, or `kernels`: which path runs what."""
    args = Parser("show", show.__doc__)
    args.add_argument("name", help="a component (lif, acme/lif, neuron:lif), a .snn bundle, or 'kernels'")
    args.add_argument("bundle", nargs="?", help="with 'kernels': which path each layer of this bundle takes, and why")
    args.add_argument("--json", action="store_true", help="as JSON")
    args.add_argument("--open", action="store_true", help="open the report inside a bundle in the browser")
    opts = args.parse_args(argv)
    from fastsnn_author import describe

    if opts.open and not Path(opts.name).is_dir():
        args.error("--open goes with a .snn bundle")
    topics = {p.name: p for p in importlib.metadata.entry_points(group="fastsnn1.show")}
    if opts.name in topics:
        data, text = topics[opts.name].load()(opts.bundle)
        print(json.dumps(data, indent=2) if opts.json else text)
        return 0
    if opts.name == "kernels":
        raise UserError("'fastsnn show kernels' comes with fastsnn-scope-paths: pip install fastsnn-scope-paths")
    if opts.bundle:
        raise UserError(f"only 'fastsnn show {' | '.join(sorted(topics))}' takes a bundle")
    if Path(opts.name).is_dir():
        held = describe.describe_bundle(opts.name)
        print(json.dumps(held, indent=2) if opts.json else describe.bundle_text(held))
        if opts.open:
            if held["report"] is None:
                raise UserError(f"{opts.name} holds no report: fastsnn export {opts.name} OUT.snn --report puts one in")
            if not webbrowser.open(Path(held["report"]["page"]).resolve().as_uri()):
                raise UserError(f"no browser opens here; the page is {held['report']['page']}")
        return 0
    found = describe.components_named(opts.name)
    print(json.dumps(found, indent=2) if opts.json else "\n\n".join(map(describe.component_text, found)))
    return 0


def new_plugin(argv: list[str]) -> int:
    """Write the four files of a new plugin, complete and passing its own conformance test."""
    args = Parser("new-plugin", new_plugin.__doc__)
    args.add_argument("kind", help=", ".join(KINDS))
    args.add_argument("name", help="distribution name, as in acme-lif")
    args.add_argument("--out", default=".", help="folder to write into (default: here)")
    args.add_argument(
        "--fused",
        action="store_true",
        help="neuron, attention: one that says what it computes, so that kernels decode and read prompts with it",
    )
    opts = args.parse_args(argv)
    from fastsnn_author.scaffold import new_plugin as write

    folder = write(opts.kind, opts.name, opts.out, fused=opts.fused)
    print(f"wrote {folder}\nnext: pip install -e {folder} && fastsnn test {folder.name.replace('-', '_')}")
    return 0
