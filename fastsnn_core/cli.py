"""The ``fastsnn`` command: core's own verbs, and whatever the group ``fastsnn1.commands`` adds.

``fastsnn --help`` reads entry-point metadata only: it imports neither torch nor any plugin.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import logging
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fastsnn_core.errors import UserError

Verb = Callable[[list[str]], int]
EXIT_USER, EXIT_INTERRUPT = 2, 130


def parser(verb: str, text: str | None) -> argparse.ArgumentParser:
    """The parser of one verb; its description is the verb's docstring."""
    return argparse.ArgumentParser(prog=f"fastsnn {verb}", description=text)


def plugins(argv: list[str]) -> int:
    """List plugins: name, distribution, version, status, and what each offers or why it is not loaded."""
    from fastsnn_core import plugins as found

    args = parser("plugins", plugins.__doc__)
    args.add_argument("--kind", help="only plugins that offer this kind")
    args.add_argument("--json", action="store_true", help="as JSON")
    args.add_argument(
        "--no-load", action="store_true", help="metadata only: nothing is imported, works when all are broken"
    )
    opts = args.parse_args(argv)
    rows = list(found.installed() if opts.no_load else found.registry().plugins)
    rows = [r for r in rows if opts.kind is None or opts.kind in r.offers]
    if opts.json:
        print(json.dumps([r.as_json() for r in rows], indent=2))
        return 0
    table = [("name", "distribution", "version", "status", "ms", "offers")]
    for r in rows:
        offers = r.error or "; ".join(f"{kind} {', '.join(names)}" for kind, names in sorted(r.offers.items()))
        table.append((r.name, r.distribution, r.version, r.status, f"{r.ms:g}", offers))
    widths = [max(len(row[i]) for row in table) for i in range(5)]
    for row in table:
        print("  ".join(cell.ljust(w) for cell, w in zip(row, widths)) + "  " + row[5])
    return 0


def show(argv: list[str]) -> int:
    """Show a component (equation, parameters, contract), what a bundle holds, or `kernels`: which path runs what."""
    args = parser("show", show.__doc__)
    args.add_argument("name", help="a component (lif, acme/lif, neuron:lif), a .snn bundle, or 'kernels'")
    args.add_argument("bundle", nargs="?", help="with 'kernels': which path each layer of this bundle takes, and why")
    args.add_argument("--json", action="store_true", help="as JSON")
    opts = args.parse_args(argv)
    from fastsnn_core import describe

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
        held = describe.bundle(opts.name)
        print(json.dumps(held, indent=2) if opts.json else describe.bundle_text(held))
        return 0
    found = describe.components(opts.name)
    print(json.dumps(found, indent=2) if opts.json else "\n\n".join(map(describe.text, found)))
    return 0


def check(argv: list[str]) -> int:
    """Check a spec: every error at once with file and line, or the filled spec. A bundle: are its files intact?"""
    args = parser("check", check.__doc__)
    args.add_argument("spec", help="a TOML spec, or a .snn bundle")
    args.add_argument("--json", action="store_true", help="as JSON")
    opts = args.parse_args(argv)
    from fastsnn_core import spec
    from fastsnn_core.component import contract

    if Path(opts.spec).is_dir():
        from fastsnn_core import bundle

        found = spec.Spec(bundle.load(opts.spec).spec)  # type: ignore[arg-type]
        if not opts.json:
            print(f"# {opts.spec}: every file is as it was written, and the weights fit the spec")
    else:
        found = None
    try:
        found = found or spec.load(opts.spec)
    except spec.SpecError as error:
        if not opts.json:
            raise
        rows = [
            {"line": n, "path": spec.dotted(p.path), "message": p.message, "help": p.help} for n, p in error.problems
        ]
        print(json.dumps({"ok": False, "problems": rows or [{"message": str(error)}]}, indent=2))
        return EXIT_USER
    promises = contract(found.model)
    if opts.json:
        print(json.dumps({"ok": True, "spec": spec.as_table(found), "contract": promises}, indent=2))
    else:
        print(spec.dumps(found), end="")
        print("# contract: " + ", ".join(f"{flag}={str(kept).lower()}" for flag, kept in promises.items()))
    return 0


def new_plugin(argv: list[str]) -> int:
    """Write the four files of a new plugin, complete and passing its own conformance test."""
    args = parser("new-plugin", new_plugin.__doc__)
    args.add_argument(
        "kind", help="surrogate, neuron, coder, attention, feedforward, model, rule, exporter, scope, kernel, tracker"
    )
    args.add_argument("name", help="distribution name, as in acme-lif")
    args.add_argument("--out", default=".", help="folder to write into (default: here)")
    opts = args.parse_args(argv)
    from fastsnn_core.scaffold import new_plugin as write

    folder = write(opts.kind, opts.name, opts.out)
    print(f"wrote {folder}\nnext: pip install -e {folder} && fastsnn test {folder.name.replace('-', '_')}")
    return 0


def test(argv: list[str]) -> int:
    """Run the conformance kit over one plugin, or over all of them."""
    args = parser("test", test.__doc__)
    args.add_argument("plugin", nargs="*", help="plugins to check; all when left out")
    opts, rest = args.parse_known_args(argv)
    try:
        import hypothesis  # noqa: F401
        import pytest
    except ImportError as error:
        raise UserError(f"the kit needs {error.name}: pip install 'fastsnn-core[testing]'") from None
    chosen = [f"--fastsnn={name}" for name in opts.plugin]
    return int(pytest.main(["--pyargs", "fastsnn_core.testing", "-q", *chosen, *rest]))


OWN: dict[str, Verb] = {"plugins": plugins, "show": show, "check": check, "new-plugin": new_plugin, "test": test}


def added() -> dict[str, Any]:
    """Entry points of the verbs that apps add, by verb."""
    return {p.name: p for p in importlib.metadata.entry_points(group="fastsnn1.commands")}


def usage() -> str:
    """The text of ``fastsnn --help``."""
    lines = ["usage: fastsnn [-p FILE] [--version] VERB …", "", "Spiking networks out of plugins.", ""]
    lines += [f"  {verb:<12} {(function.__doc__ or '').splitlines()[0]}" for verb, function in OWN.items()]
    more: dict[str, list[str]] = {}
    for verb, point in sorted(added().items()):
        more.setdefault(point.dist.name if point.dist else "?", []).append(verb)
    lines += ["", *(f"  from {dist}: {', '.join(verbs)}" for dist, verbs in sorted(more.items()))]
    lines += [
        "",
        "  -p FILE      load an inline plugin from a Python file first",
        "  fastsnn VERB --help says more of a verb.",
    ]
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    """Entry point of ``fastsnn`` and ``python -m fastsnn_core``."""
    logging.basicConfig(format="fastsnn: %(message)s", level=logging.WARNING)
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        while words[:1] == ["-p"]:
            from fastsnn_core.plugins import load_file

            if len(words) < 2:
                raise UserError("-p needs the path of a Python file")
            load_file(words[1])
            words = words[2:]
        if not words or words[0] in ("-h", "--help", "help"):
            print(usage())
            return 0 if words else EXIT_USER
        if words[0] == "--version":
            from fastsnn_core import __version__

            print(f"fastsnn-core {__version__}")
            return 0
        return int(verb(words[0])(words[1:]) or 0)
    except KeyboardInterrupt:
        print("fastsnn: interrupted", file=sys.stderr)
        return EXIT_INTERRUPT
    except BrokenPipeError:
        return 0
    except Exception as error:
        if not is_user_error(error):
            raise
        print(f"fastsnn: {error}", file=sys.stderr)
        return EXIT_USER


def verb(name: str) -> Verb:
    """The function behind a verb; an unknown one says what there is."""
    if name in OWN:
        return OWN[name]
    points = added()
    if name in points:
        return points[name].load()
    import difflib

    close = difflib.get_close_matches(name, [*OWN, *points], 1)
    hint = f"did you mean {close[0]!r}? " if close else ""
    raise UserError(f"no verb {name!r}; {hint}verbs: {', '.join([*OWN, *sorted(points)])}")


def is_user_error(error: Exception) -> bool:
    """Errors whose message is the whole story: bad specs, names, bundles, files, arguments."""
    return isinstance(error, UserError | ValueError | LookupError | OSError | ImportError) and bool(str(error))
