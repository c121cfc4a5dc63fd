"""Finding plugins, loading each alone, and looking components up by name.

A plugin is an entry point in the group ``fastsnn1`` whose value is one module. `installed` reads metadata only;
`load` imports. Whatever a plugin does wrong (raising on import or in a hook, ``sys.exit``, a misspelt hook) costs one
warning line and a status; ``FASTSNN_STRICT=1`` raises instead, ``FASTSNN_DISABLE=name,name`` leaves plugins out.
"""

from __future__ import annotations

import difflib
import importlib.machinery
import importlib.metadata
import importlib.util
import logging
import os
import re
import sys
import time
import traceback
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import attrs

from fastsnn_core.component import KINDS, Component
from fastsnn_core.errors import ArgumentError, FastSNNError, did_you_mean

GROUP = "fastsnn1"
log = logging.getLogger("fastsnn")


@attrs.frozen
class Plugin:
    """What is known of one entry point. `status`: ok, disabled, broken, partial, other-api, or found (not loaded)."""

    name: str
    distribution: str
    version: str
    value: str
    status: str = "found"
    error: str = ""
    ms: float = 0.0
    offers: dict[str, tuple[str, ...]] = attrs.field(factory=dict)

    @property
    def kinds(self) -> list[str]:
        """Kinds of component it offers (empty until loaded)."""
        return sorted(self.offers)

    def as_json(self) -> dict[str, Any]:
        """The row of ``fastsnn plugins --json``."""
        row = attrs.asdict(self) | {"kinds": self.kinds, "kind": ", ".join(self.kinds)}
        return {k: list(v) if isinstance(v, tuple) else v for k, v in row.items()}


class LookupFailure(FastSNNError, LookupError):
    """No such component, or more than one: `message` says which, `help` what is possible."""

    def __init__(self, message: str, help: str) -> None:
        super().__init__(f"{message}\n  help: {help}" if help else message)
        self.message, self.help = message, help


class PluginError(FastSNNError, RuntimeError):
    """A plugin failed to load and FASTSNN_STRICT is set."""


@cache
def installed() -> tuple[Plugin, ...]:
    """Every plugin of this environment from metadata alone: nothing is imported, so it works when all are broken."""
    off = {n.strip() for n in os.environ.get("FASTSNN_DISABLE", "").split(",") if n.strip()}
    seen: dict[tuple[str, str], Plugin] = {}
    every = importlib.metadata.entry_points()
    groups = [g for g in every.groups if re.fullmatch(r"fastsnn\d+", g)]
    for point in (p for g in groups for p in every.select(group=g)):
        if (point.name, point.value) in seen:
            continue
        dist = point.dist
        name, version = (dist.name, dist.version) if dist else ("?", "?")
        plugin = Plugin(point.name, name, version, point.value)
        if point.group != GROUP:
            plugin = attrs.evolve(
                plugin, status="other-api", error=f"speaks plugin API {point.group[7:]}, this core speaks {GROUP[7:]}"
            )
        elif off & {point.name, name}:
            plugin = attrs.evolve(plugin, status="disabled", error="named in FASTSNN_DISABLE")
        seen[point.name, point.value] = plugin
    return tuple(sorted(seen.values(), key=lambda p: (p.name, p.value)))


@attrs.define
class Registry:
    """Loaded plugins and their components: ``components[kind][short name] -> [(plugin, class)]``."""

    plugins: list[Plugin] = attrs.field(factory=list)
    components: dict[str, dict[str, list[tuple[str, type[Component]]]]] = attrs.field(factory=dict)
    classes: dict[tuple[str, str], list[type[Component]]] = attrs.field(factory=dict)

    def add(self, plugin: Plugin, module: Any) -> Plugin:
        """Call the plugin's hooks alone and file what they return; the plugin comes back with status and offers."""
        import pluggy

        from fastsnn_core import hookspecs

        manager = pluggy.PluginManager(hookspecs.PROJECT)
        manager.add_hookspecs(hookspecs)
        manager.register(module, plugin.name)
        offers: dict[str, tuple[str, ...]] = {}
        unknown: list[str] = []
        found: list[tuple[str, str, Any]] = []
        for caller in manager.get_hookcallers(module) or ():
            if caller.name not in hookspecs.HOOKS:
                close = difflib.get_close_matches(caller.name, hookspecs.HOOKS, 1)
                unknown.append(f"no hook called {caller.name!r}" + (f"; did you mean {close[0]!r}?" if close else ""))
                continue
            kind = hookspecs.HOOKS[caller.name]
            offered: Any = caller.get_hookimpls()[0].function()
            for cls in offered:
                named = str(getattr(cls, "name", "")) if isinstance(cls, type) and issubclass(cls, kind) else ""
                if not named or not attrs.has(cls):
                    raise ArgumentError(f"{caller.name} returned {cls!r}, which is no named attrs {kind.kind} class")
                found.append((kind.kind, named, cls))
        for kind_name, name, cls in found:
            self.components.setdefault(kind_name, {}).setdefault(name, []).append((plugin.name, cls))
            offers[kind_name] = (*offers.get(kind_name, ()), name)
            self.classes.setdefault((plugin.name, plugin.distribution), []).append(cls)
        return attrs.evolve(plugin, status="partial" if unknown else "ok", error="; ".join(unknown), offers=offers)

    def load(self, plugin: Plugin, module: ModuleType | None = None) -> None:
        """Import one plugin and file it; failure becomes a status and one warning line."""
        start = time.perf_counter()
        if plugin.status == "found":
            try:
                plugin = self.add(plugin, module or importlib.import_module(plugin.value.split(":")[0]))
            except KeyboardInterrupt:
                raise
            except BaseException as error:  # a plugin may call sys.exit: SystemExit must not end us
                if os.environ.get("FASTSNN_STRICT") == "1":
                    raise PluginError(f"plugin {plugin.name!r} ({plugin.distribution}) is broken: {error!r}") from error
                reason = " ".join(f"{type(error).__name__}: {error}".split())
                plugin = attrs.evolve(plugin, status="broken", error=reason)
            plugin = attrs.evolve(plugin, ms=round(1e3 * (time.perf_counter() - start), 1))
        if plugin.status in ("broken", "partial", "other-api"):
            if os.environ.get("FASTSNN_STRICT") == "1":
                raise PluginError(f"plugin {plugin.name!r} ({plugin.distribution}) is {plugin.status}: {plugin.error}")
            log.warning("plugin %s (%s) is %s: %s", plugin.name, plugin.distribution, plugin.status, plugin.error)
        self.plugins.append(plugin)

    def forget(self, name: str, distribution: str) -> None:
        """Take out the plugin of that name and distribution, if it is there, with what it offered."""
        self.plugins = [p for p in self.plugins if (p.name, p.distribution) != (name, distribution)]
        gone = {(name, cls) for cls in self.classes.pop((name, distribution), [])}
        for table in self.components.values() if gone else ():
            for short, hits in list(table.items()):
                table[short] = [hit for hit in hits if hit not in gone]
                if not table[short]:
                    del table[short]

    def names(self, kind: str) -> list[str]:
        """Short names of a kind, sorted."""
        return sorted(self.components.get(kind, {}))

    def find(self, kind: str, name: str) -> tuple[str, type[Component]]:
        """``(qualified name, class)``; raises `LookupFailure` with what is installed, not loaded, or installable."""
        if kind not in list(KINDS) or not isinstance(name, str):
            raise LookupFailure(f"no component {name!r} of kind {kind!r}", did_you_mean(str(kind), KINDS, "kinds"))
        owner, _, short = name.rpartition("/")
        hits = [(p, c) for p, c in self.components.get(kind, {}).get(short, []) if owner in ("", p)]
        if len(hits) == 1:
            return f"{hits[0][0]}/{short}", hits[0][1]
        if hits:
            choices = ", ".join(repr(f"{p}/{short}") for p, _ in hits)
            raise LookupFailure(f"{kind} {name!r} is ambiguous", f"write one of {choices}")
        raise LookupFailure(f"no {kind} called {name!r}", self._help(kind, name))

    def _help(self, kind: str, name: str) -> str:
        names = self.names(kind)
        short = name.rpartition("/")[2]
        says = []
        if close := difflib.get_close_matches(short, names, 1):
            says.append(f"did you mean {close[0]!r}?")
        if distribution := first_party_help(kind, short):
            says.append(f"pip install {distribution}")
        says.append("installed: " + (", ".join(names) or "none"))
        if bad := [f"{p.name} ({p.status}: {p.error})" for p in self.plugins if p.status not in ("ok", "found")]:
            says.append("not loaded: " + ", ".join(bad))
        return "; ".join(says).replace("?;", "?")

    def qualified(self, component: Component) -> str:
        """``plugin/name`` of a component's class."""
        for plugin, cls in self.components.get(component.kind, {}).get(component.name, []):
            if cls is type(component):
                return f"{plugin}/{component.name}"
        return component.name

    def distribution(self, component: Component) -> tuple[str, str] | None:
        """``(distribution, version)`` that a component's class came from, or None when it was made by hand."""
        owner = self.qualified(component).rpartition("/")[0]
        return next(((p.distribution, p.version) for p in self.plugins if p.name == owner), None)


@cache
def registry() -> Registry:
    """All plugins of this environment, loaded once per process."""
    found = Registry()
    for plugin in installed():
        found.load(plugin)
    return found


def load_file(path: str | Path) -> None:
    """Load an inline plugin from one Python file (``fastsnn -p ./my_neuron.py …``): explicit, never implicit.

    Its module is called ``fastsnn_inline_<stem>``, so that a file called json.py shadows nothing. A file that cannot be
    run, or whose hooks fail, is a `PluginError`; loading the same file again replaces what it offered.
    """
    path = Path(path)
    if not path.is_file():
        raise LookupFailure(f"no plugin file {str(path)!r}", "give the path of a Python file")
    name = f"fastsnn_inline_{path.stem}"
    loader = importlib.machinery.SourceFileLoader(name, str(path))
    module = importlib.util.module_from_spec(importlib.util.spec_from_loader(name, loader))  # type: ignore[arg-type]
    before, sys.modules[name] = sys.modules.get(name), module
    try:
        loader.exec_module(module)
        registry().forget(path.stem, str(path))
        registry().load(Plugin(path.stem, str(path), getattr(module, "__version__", "0"), name), module)
        mine = registry().plugins[-1]
        if mine.status == "broken":
            registry().forget(mine.name, mine.distribution)
            raise PluginError(f"plugin {path} is broken: {mine.error}")
    except BaseException as error:
        del sys.modules[name]
        if before is not None:
            sys.modules[name] = before
        if isinstance(error, PluginError | KeyboardInterrupt):
            raise
        raise PluginError(f"plugin {place_of(error, path)}: {type(error).__name__}: {error}") from error


def place_of(error: BaseException, path: Path) -> str:
    """``file:line`` where a plugin's file went wrong."""
    if isinstance(error, SyntaxError) and error.filename == str(path):
        return f"{path}:{error.lineno}"
    lines = [n for f, n in traceback.walk_tb(error.__traceback__) if f.f_code.co_filename == str(path)]
    return f"{path}:{lines[-1]}" if lines else str(path)


def add_module(module: Any, name: str) -> None:
    """File an already imported module (or any object with hook implementations) as plugin `name`: for notebooks.

    A second call under the same name replaces what the first one offered, so a cell can be run again.
    """
    registry().forget(name, name)
    registry().load(Plugin(name, name, getattr(module, "__version__", "0"), name), module)


def create(kind: type[Component] | str, name: str, **params: Any) -> Any:
    """A component: ``create(Neuron, "lif", tau=4.0)``. `LookupFailure`: no such kind, name, parameter."""
    kind_name: Any = getattr(kind, "kind", kind)
    cls: Any = registry().find(kind_name, name)[1]
    known = {f.name: f.default is attrs.NOTHING for f in attrs.fields(cls)}
    for key in [key for key in params if key not in known]:
        raise LookupFailure(f"{kind_name} {name!r} has no parameter {key!r}", did_you_mean(key, known, "it has"))
    for key in [key for key, needed in known.items() if needed and key not in params]:
        raise LookupFailure(f"{kind_name} {name!r} needs its parameter {key!r}", "it has " + ", ".join(known))
    return cls(**params)


def classes(kind: str) -> Iterable[tuple[str, type[Component]]]:
    """``(plugin, class)`` of every loaded component of a kind, sorted by name."""
    return [hit for _, hits in sorted(registry().components.get(kind, {}).items()) for hit in hits]


def first_party_help(kind: str, name: str) -> str | None:
    """The distribution that would bring a first-party component, for the help line of an error."""
    from fastsnn_core.catalogue import FIRST_PARTY

    return f"fastsnn-{kind}-{re.sub('[_.]', '-', name)}" if name in FIRST_PARTY.get(kind, ()) else None
