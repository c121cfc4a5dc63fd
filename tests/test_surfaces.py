"""Public surfaces are frozen in tests/surface.txt: exports of every distribution, and the verbs with their options.

``python tests/test_surfaces.py`` writes the file anew. Adding is a line in it; a line that goes breaks somebody.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import importlib
import io
import sys
import tomllib
from pathlib import Path

import pytest

from fastsnn_core import Component

ROOT = Path(__file__).resolve().parents[1]
FILE = ROOT / "tests" / "surface.txt"
APART = {"fastsnn_kernel_triton", "fastsnn_tracker_tensorboard", "fastsnn_lm_eval", "fastsnn_hf"}


def modules() -> list[str]:
    """The module of core and of every plugin of this checkout."""
    found = ["fastsnn_core"]
    for path in sorted(ROOT.glob("plugins/*/*/pyproject.toml")):
        project = tomllib.loads(path.read_text(encoding="utf-8"))
        named = project.get("tool", {}).get("flit", {}).get("module", {}).get("name")
        found.append(named or project["project"]["name"].replace("-", "_"))
    return found


def exports() -> list[str]:
    """``module: a b c`` for each module: its ``__all__``, or the components that it defines."""
    rows = []
    for name in modules():
        if name in APART:
            continue
        module = importlib.import_module(name)
        names = getattr(module, "__all__", None)
        if names is None:
            named = {k: v for k, v in vars(module).items() if isinstance(v, type) and issubclass(v, Component)}
            names = [k for k, v in named.items() if v.__module__ == name]
        rows.append(f"{name}: {' '.join(sorted(names))}".rstrip())
    return rows


def verbs() -> list[str]:
    """``fastsnn VERB: positionals --options`` of every verb."""
    from fastsnn_core import cli

    rows = []
    for verb in sorted([*cli.OWN, *cli.added()]):
        if verb == "lm-eval" and importlib.util.find_spec("fastsnn_lm_eval") is None:
            continue
        seen: list[argparse.ArgumentParser] = []
        make = argparse.ArgumentParser.parse_known_args
        with pytest.MonkeyPatch.context() as patch, contextlib.suppress(SystemExit):
            patch.setattr(
                argparse.ArgumentParser,
                "parse_known_args",
                lambda self, *a, seen=seen, make=make: seen.append(self) or make(self, *a),
            )
            with contextlib.redirect_stdout(io.StringIO()):
                cli.verb(verb)(["--help"])
        actions = [a for a in seen[0]._actions if "--help" not in a.option_strings]
        places = [a.dest.upper() for a in actions if not a.option_strings]
        options = sorted(o for a in actions for o in a.option_strings)
        rows.append(f"fastsnn {verb}: {' '.join([*places, *options])}")
    return rows


def surface() -> str:
    """The file's text."""
    return "\n".join([*exports(), "", *verbs()]) + "\n"


def test_surfaces_are_what_was_agreed():
    wanted, found = FILE.read_text(encoding="utf-8").splitlines(), surface().splitlines()
    key = {row.partition(":")[0]: row for row in found}
    gone = []
    for row in filter(None, wanted):
        name, _, words = row.partition(":")
        missing = set(words.split()) - set(key.get(name, "").partition(":")[2].split())
        gone += [f"{name}: {', '.join(sorted(missing))}"] if missing or name not in key else []
    assert not gone, f"removed from the public surface: {gone}"
    new = sorted(set(found) - set(wanted))
    assert not new, f"new on the public surface; if meant, run: python tests/test_surfaces.py\n{new}"


def test_lazy_names_are_seen_by_type_checkers_and_dir():
    """The block under TYPE_CHECKING imports exactly the lazy exports, so that editors and mypy know them."""
    for name in ("fastsnn_core", "fastsnn"):
        module = importlib.import_module(name)
        tree = ast.parse(Path(module.__file__).read_text(encoding="utf-8"))
        block = next(n for n in tree.body if isinstance(n, ast.If) and getattr(n.test, "id", "") == "TYPE_CHECKING")
        shown = {alias.asname for n in ast.walk(block) if isinstance(n, ast.ImportFrom) for alias in n.names}
        assert shown == set(module.__all__), name
        assert set(module.__all__) <= set(dir(module))


def test_every_package_says_that_it_is_typed():
    """PEP 561 knows packages only: a distribution of a single module cannot say it."""
    for home in ("fastsnn_core", "plugins/*/*/*", "contrib/*/*"):
        for init in ROOT.glob(f"{home}/__init__.py"):
            assert (init.parent / "py.typed").is_file(), f"{init.parent} has no py.typed"


if __name__ == "__main__":
    FILE.write_text(surface(), encoding="utf-8")
    print(f"wrote {FILE}", file=sys.stderr)
