"""The ``fastsnn`` command: core's own verbs, and whatever the group ``fastsnn1.commands`` adds.

``fastsnn --help`` reads entry-point metadata only: it imports neither torch nor any plugin.
"""

from __future__ import annotations

import ast
import contextlib
import errno
import importlib.metadata
import importlib.util
import json
import logging
import os
import platform
import re
import sys
import threading
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fastsnn_core.arguments import Parser, choice
from fastsnn_core.errors import FastSNNError, UserError, did_you_mean

Verb = Callable[[list[str]], int]
EXIT_BUG, EXIT_USER, EXIT_INTERRUPT = 1, 2, 130
SILENCE = 1.0  # seconds until a verb that is starting says so
_decided: list[str] = []  # the verb that was called last, once there was one
BUG = """fastsnn: this is a bug of FastSNN or of a plugin, not a mistake of yours.
Please report it with the lines above, the command, and: {}"""


def plugins(argv: list[str]) -> int:
    """List plugins: name, distribution, version, whether it fits this core, status, what it offers or why it fails."""
    from fastsnn_core import plugins as found
    from fastsnn_core.versions import fits_core

    args = Parser("plugins", plugins.__doc__)
    args.add_argument("--kind", help="only plugins that offer this kind")
    args.add_argument("--json", action="store_true", help="as JSON")
    args.add_argument(
        "--no-load", action="store_true", help="metadata only: nothing is imported, works when all are broken"
    )
    opts = args.parse_args(argv)
    if opts.kind is not None:
        from fastsnn_core.component import KINDS

        choice(opts.kind, list(KINDS), "--kind")
        if opts.no_load:
            args.error("--no-load does not know what a plugin offers, so it does not go with --kind")
    if not opts.no_load:
        import torch  # noqa: F401  - not to be counted as the first plugin's own time
    every = found.installed() if opts.no_load else found.registry().plugins
    rows = [r for r in every if opts.kind in (None, *r.offers)]
    if opts.json:
        print(json.dumps([r.as_json() | {"fits_core": fits_core(r.distribution)} for r in rows], indent=2))
        return 0
    table = [("name", "distribution", "version", "fits core", "status", "ms", "offers")]
    for r in rows:
        offers = r.error or "; ".join(f"{kind} {', '.join(names)}" for kind, names in sorted(r.offers.items()))
        offers += f"{': ' * bool(offers)}{one_line_summary(r.distribution)}" if not r.error else ""
        table.append((r.name, r.distribution, r.version, fits_core(r.distribution), r.status, f"{r.ms:g}", offers))
    widths = [max(len(row[i]) for row in table) for i in range(6)]
    for row in table:
        print("  ".join(cell.ljust(w) for cell, w in zip(row, widths)) + "  " + row[6])
    return 0


def one_line_summary(distribution: str) -> str:
    """What a distribution says of itself in one line."""
    with contextlib.suppress(importlib.metadata.PackageNotFoundError, KeyError):
        return str(importlib.metadata.metadata(distribution)["Summary"] or "")
    return ""


def check(argv: list[str]) -> int:
    """Check a spec: every error at once with file and line, or the filled spec. A bundle: are its files intact?"""
    args = Parser("check", check.__doc__)
    args.add_argument("spec", help="a TOML spec, or a .snn bundle")
    args.add_argument("--json", action="store_true", help="as JSON")
    opts = args.parse_args(argv)
    from fastsnn_core import spec
    from fastsnn_core.component import contract

    found = None
    if Path(opts.spec).is_dir():
        from fastsnn_core import bundle

        found = spec.Spec(bundle.load(opts.spec).spec)  # type: ignore[arg-type]
        if not opts.json:
            print(f"# {opts.spec}: every file is as it was written, and the weights fit the spec")
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


OWN: dict[str, Verb] = {"plugins": plugins, "check": check}


def added() -> dict[str, Any]:
    """Entry points of the verbs that apps add, by verb."""
    return {p.name: p for p in importlib.metadata.entry_points(group="fastsnn1.commands")}


def sentence(point: Any) -> str:
    """The first sentence of a verb's docstring, read from its source: nothing is imported."""
    try:
        top, *rest = point.value.partition(":")[0].split(".")
        found = importlib.util.find_spec(top)
        place = Path(found.origin) if found is not None and found.origin else Path()
        if rest:
            place = place.parent.joinpath(*rest)
            place = place / "__init__.py" if place.is_dir() else place.with_suffix(".py")
        tree = ast.parse(place.read_text(encoding="utf-8"))
    except (OSError, ValueError, SyntaxError, ImportError):
        return ""
    name = point.value.partition(":")[2]
    functions = [n for n in tree.body if isinstance(n, ast.FunctionDef) and n.name == name]
    text = " ".join((ast.get_docstring(functions[0]) or "").split()) if functions else ""
    return re.split(r"(?<=\.)\s", text)[0]


def usage_text() -> str:
    """The text of ``fastsnn --help``."""
    points = added()
    says = {verb: sentence(point) for verb, point in sorted(points.items())}
    wide = max(map(len, [*OWN, *says])) + 1
    lines = ["usage: fastsnn [-p FILE] [--traceback] [--version] VERB …", "", "Spiking networks out of plugins."]
    if says:
        lines += ["", *(f"  {verb:<{wide}} {text}".rstrip() for verb, text in says.items())]
    own = [f"  {verb:<{wide}} {(function.__doc__ or '').splitlines()[0]}" for verb, function in OWN.items()]
    lines += ["", "plugins and specs:", *own, ""]
    lines += [
        "  -p FILE      load an inline plugin from a Python file first",
        "  --traceback  show where in the code a mistake was noticed (also: FASTSNN_TRACEBACK=1)",
        "  fastsnn VERB --help says more of a verb.",
    ]
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    """Entry point of ``fastsnn`` and ``python -m fastsnn_core``.

    Exit status: 0 done; 1 a check failed, or a bug (shown with its traceback); 2 a mistake of the user's, in one line;
    130 interrupted. ``--traceback`` or ``FASTSNN_TRACEBACK=1`` shows the traceback of mistakes, too.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    told = os.environ.get("FASTSNN_TRACEBACK", "0") not in ("", "0")
    if "--traceback" in (mine := words[: words.index("--")] if "--" in words else words):
        words.remove("--traceback")
        told = bool(mine)
    log_to_stderr()
    try:
        return run_words(words)
    except KeyboardInterrupt:
        print("fastsnn: interrupted", file=sys.stderr)
        return EXIT_INTERRUPT
    except BrokenPipeError:
        with contextlib.suppress(OSError, ValueError):  # what is left in the buffer has no reader: not again at exit
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        says = mistake(error)
        if told or says is None:
            traceback.print_exc()
        if says is None:
            print(BUG.format(versions_for_reports()), file=sys.stderr)
            return EXIT_BUG
        says = says.encode("utf-8", "backslashreplace").decode("utf-8")  # bytes of a file's name that are no UTF-8
        print(f"fastsnn: {says}", file=sys.stderr)
        return EXIT_USER


def run_words(words: list[str]) -> int:
    """What the words say, after the options that stand before the verb."""
    while words[:1] == ["-p"]:
        from fastsnn_core.plugins import load_file

        if len(words) < 2:
            raise UserError("-p needs the path of a Python file")
        load_file(words[1])
        words = words[2:]
    if not words or words[0] in ("-h", "--help", "help"):
        print(usage_text())
        return 0 if words else EXIT_USER
    if words[0] == "--version":
        from fastsnn_core import __version__

        print(f"fastsnn-core {__version__}")
        return 0
    notice = notice_of_start(words)
    try:
        return int(verb(words[0])(words[1:]) or 0)
    finally:
        notice.cancel()


def notice_of_start(words: list[str], program: str = "fastsnn") -> threading.Timer:
    """A line after a second of silence, where torch is not imported yet; the first call of a process decides."""
    says = f"{program} {words[0]}: starting (importing PyTorch and plugins; a first run compiles kernels, too)"
    timer = threading.Timer(SILENCE, lambda: StderrHandler.write(says))
    timer.daemon, quiet = True, os.environ.get("FASTSNN_QUIET", "0") not in ("", "0")
    if not (quiet or _decided or "torch" in sys.modules or {"--quiet", "--json"} & {*words}):
        timer.start()
    _decided[:] = words[:1]
    return timer


def verb(name: str) -> Verb:
    """The function behind a verb; an unknown one says what there is, and what to install for a first-party one."""
    if name in OWN:
        return OWN[name]
    if name in (points := added()):
        return points[name].load()
    from fastsnn_core.catalogue import VERBS

    if name in VERBS:
        raise UserError(f"the verb {name!r} comes with: pip install {VERBS[name]}")
    raise UserError(f"no verb {name!r}; {did_you_mean(name, [*OWN, *points], 'verbs')}")


FAULTS_OF_THE_MACHINE = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EMFILE, errno.ENFILE, errno.EIO, errno.ENOMEM}


def mistake(error: BaseException) -> str | None:
    """What to say of an error that is no bug: a `FastSNNError`, a path of the user's, a full disk; None for a bug."""
    if isinstance(error, FastSNNError):
        return str(error) or type(error).__name__
    if isinstance(error, MemoryError):
        return f"out of memory{f': {error}' if str(error) else ''}"
    if isinstance(error, OSError) and error.strerror and error.filename is not None:
        return None if is_ours(Path(str(error.filename))) else f"{error.filename}: {error.strerror}"
    if isinstance(error, OSError) and error.errno in FAULTS_OF_THE_MACHINE:
        return str(error.strerror)
    return None


def is_ours(path: Path) -> bool:
    """Does a file belong to an installed package of FastSNN, so that its absence is no fault of the user's?"""
    modules = [m for name, m in list(sys.modules.items()) if name.startswith("fastsnn") and "." not in name]
    homes = [Path(f).parent for m in modules if (f := getattr(m, "__file__", None)) and f.endswith("__init__.py")]
    return any(path.resolve().is_relative_to(home.resolve()) for home in homes)


def versions_for_reports() -> str:
    """What a report of a bug should say, without importing anything heavy."""
    from fastsnn_core.versions import installed_version

    found = [f"{name} {version}" for name in ("fastsnn-core", "torch") if (version := installed_version(name))]
    return ", ".join([*found, f"Python {platform.python_version()}", platform.platform()])


class StderrHandler(logging.Handler):
    """Log records on stderr, one line each; whoever draws there too (a progress bar) replaces `write`."""

    @staticmethod
    def write(text: str) -> None:
        """One line."""
        print(text, file=sys.stderr, flush=True)

    def emit(self, record: logging.LogRecord) -> None:
        """Write one record."""
        try:
            self.write(self.format(record))
        except Exception:
            self.handleError(record)


def log_to_stderr() -> None:
    """Warnings of FastSNN and the libraries below, one line each."""
    root = logging.getLogger()
    if not root.handlers:
        handler = StderrHandler()
        handler.setFormatter(logging.Formatter("fastsnn: %(message)s"))
        root.addHandler(handler)
