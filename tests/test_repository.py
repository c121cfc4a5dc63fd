"""The house keeps its rules: plugins are whole, imports are declared, surfaces are frozen, docs are current."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import fastsnn_core
from fastsnn_core import hookspecs
from fastsnn_core.catalogue import FIRST_PARTY
from fastsnn_core.component import KINDS
from fastsnn_core.plugins import registry

ROOT = Path(__file__).resolve().parents[1]
PLUGINS = sorted(p.parent for p in ROOT.glob("plugins/*/*/pyproject.toml"))
CONTRIB = sorted(p.parent for p in ROOT.glob("contrib/*/pyproject.toml"))
MADE = {
    ".venv",
    ".git",
    ".nox",
    "runs",
    "artifacts",
    "build",
    "__pycache__",
    ".ruff_cache",
    ".mypy_cache",
    ".hypothesis",
}


def tracked() -> list[Path]:
    """Files under git; in an unpacked archive all that are there but what working here makes."""
    if (ROOT / ".git").exists():
        done = subprocess.run(["git", "ls-files"], capture_output=True, text=True, cwd=ROOT, check=False)
        return [ROOT / name for name in done.stdout.split("\n") if name and (ROOT / name).is_file()]
    found = (p for p in ROOT.rglob("*") if p.is_file() and not MADE & set(p.relative_to(ROOT).parts))
    return [p for p in found if not any(part.endswith((".egg-info", ".snn")) for part in p.parts)]


TRACKED = tracked()
OPTIONAL = {
    "fastsnn-exporter-nir",
    "fastsnn-exporter-onnx",
    "fastsnn-hf",
    "fastsnn-kernel-triton",
    "fastsnn-lm-eval",
    "fastsnn-neurobench",
    "fastsnn-tracker-tensorboard",
}


def project(folder: Path) -> dict:
    return tomllib.loads((folder / "pyproject.toml").read_text(encoding="utf-8"))


def needs(folder: Path) -> set[str]:
    found = project(folder)["project"]
    rows = [*found["dependencies"], *(d for extra in found.get("optional-dependencies", {}).values() for d in extra)]
    return {re.match(r"[A-Za-z0-9_-]+", row)[0].lower() for row in rows}


def code(folder: Path) -> list[Path]:
    return [p for p in folder.rglob("*.py") if not p.name.startswith("test_")]


def imports(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.add(node.module.split(".")[0])
    return names


@pytest.mark.parametrize("folder", PLUGINS + CONTRIB, ids=lambda p: p.name)
def test_a_plugin_is_whole_and_declares_what_it_imports(folder):
    found = project(folder)["project"]
    assert (folder / "README.md").read_text(encoding="utf-8").startswith(f"# {found['name']}\n")
    assert list(folder.glob("test_*.py")) or folder.parent.name == "apps", f"{folder} has no test"
    assert project(folder)["build-system"]["build-backend"] == "flit_core.buildapi"
    assert found["requires-python"] == ">=3.11"
    if folder in PLUGINS:
        assert found["license"] == "Apache-2.0"
        kind = {"attention": "attention", "feedforward": "feedforward"}.get(folder.parent.name, folder.parent.name[:-1])
        prefix = "" if kind in ("app", "lib") else f"{kind}-"
        wanted = folder.name if folder.name == "fastsnn" else f"fastsnn-{prefix}{folder.name}"
        assert found["name"] == wanted.replace("_", "-"), "distribution is named after kind and folder"
    module = (
        project(folder).get("tool", {}).get("flit", {}).get("module", {}).get("name", found["name"].replace("-", "_"))
    )
    used = {n for path in code(folder) for n in imports(path) if n.startswith("fastsnn")} - {module}
    declared = {name.replace("-", "_") for name in needs(folder)}
    lazy = {"fastsnn"} if folder.name == "serve" else set()
    assert used <= declared | lazy, (
        f"{folder.name} imports {sorted(used - declared)} without naming it in its pyproject"
    )


def reached(names: set[str]) -> set[str]:
    """First-party distributions that an installation of `names` brings."""
    folders = {project(folder)["project"]["name"]: folder for folder in [*PLUGINS, *CONTRIB]}
    found: set[str] = set()
    while todo := {name for name in names if name in folders} - found:
        found |= todo
        rows = [row for name in todo for row in project(folders[name])["project"]["dependencies"]]
        names = {re.match(r"[A-Za-z0-9_-]+", row)[0].lower() for row in rows}
    return found


def components_named(path: Path) -> set[str]:
    """Modules of the components that a file makes by name: ``create("kind", "name")``."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "create" and len(node.args) > 1:
            kind, name = (getattr(arg, "value", None) for arg in node.args[:2])
            hits = registry().components.get(str(kind), {}).get(str(name), [])
            found |= {cls.__module__.split(".")[0] for _, cls in hits}
    return found


@pytest.mark.parametrize("folder", [*PLUGINS, *CONTRIB], ids=lambda p: p.name)
def test_what_tests_use_is_declared(folder):
    """A plugin's tests run with core, the kit and what its pyproject names, its extras included."""
    modules = {
        project(f)["tool"]["flit"]["module"]["name"]: project(f)["project"]["name"] for f in [*PLUGINS, *CONTRIB]
    }
    there = reached(needs(folder) | {project(folder)["project"]["name"], "fastsnn-kit"})
    for path in folder.rglob("test_*.py"):
        used = {modules[name] for name in imports(path) | components_named(path) if name in modules}
        assert used <= there, f"{path.name} uses {used - there}; name them in the extra 'testing'"


def test_types_are_checked_in_every_distribution():
    rows = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["mypy"]["files"]
    read = {path for row in rows for path in ROOT.glob(row)}
    for folder in PLUGINS + CONTRIB:
        found = project(folder)
        name = found.get("tool", {}).get("flit", {}).get("module", {}).get("name")
        name = name or found["project"]["name"].replace("-", "_")
        assert {folder / name, folder / f"{name}.py"} & read, f"mypy does not read {name}"


@pytest.mark.parametrize("folder", [ROOT, *PLUGINS, *CONTRIB], ids=lambda p: p.name)
def test_every_distribution_is_typed(folder):
    """PEP 561: only a package can carry py.typed; without it editors and type checkers see nothing."""
    found = project(folder)
    module = found.get("tool", {}).get("flit", {}).get("module", {}).get("name")
    package = folder / (module or found["project"]["name"].replace("-", "_"))
    assert (package / "py.typed").is_file(), f"{package} has no py.typed"
    assert (package / "py.typed").read_text() == ""
    assert not list(folder.glob("fastsnn_*.py")), "a single module cannot be typed: make it a package"


def test_documents_install_from_a_checkout():
    """Nothing is on an index: what a page tells to install are folders that are here, with all that they need."""
    from install_lines import needed, projects

    known = projects()
    for name, (folder, _) in known.items():
        found = needed(name)
        assert folder in found
        assert "." in found, name
        assert all((ROOT / f / "pyproject.toml").is_file() for f in found)
        rows = [row for f in found for row in project(ROOT / f)["project"]["dependencies"] if row.startswith("fastsnn")]
        assert {known[re.match(r"[a-z0-9-]+", row)[0]][0] for row in rows} <= {*found}
    for path in TRACKED:
        if path.suffix == ".md":
            for name in re.findall(r"install_lines.py ([a-z0-9-]+)", path.read_text(encoding="utf-8")):
                assert name in known, f"{path} installs {name}, which is not here"
            assert not re.search(r"^pip install '?fastsnn", path.read_text(encoding="utf-8"), re.MULTILINE), path


def test_versions_agree():
    found = {}
    for folder in PLUGINS:
        module = project(folder).get("tool", {}).get("flit", {}).get("module", {}).get("name")
        text = (folder / f"{module}.py", folder / module / "__init__.py")
        body = next(p for p in text if p.is_file()).read_text(encoding="utf-8")
        found[module] = re.search(r'^__version__ = "(.+)"', body, re.MULTILINE)[1]
    assert set(found.values()) == {fastsnn_core.__version__}, found


def test_core_depends_on_these_and_imports_no_other():
    wanted = {"attrs", "cattrs", "numpy", "packaging", "pluggy", "safetensors", "tomli", "torch"}
    assert {re.match(r"[a-z]+", d)[0] for d in project(ROOT)["project"]["dependencies"]} == wanted
    allowed = wanted | set(sys.stdlib_module_names) | {"fastsnn_core", "__future__"}
    testing = {"hypothesis", "pytest", "matplotlib"}
    for path in code(ROOT / "fastsnn_core"):
        extra = (
            imports(path)
            - allowed
            - (testing if "testing" in path.parts or path.name in ("cli.py", "_pytest_plugin.py") else set())
        )
        assert not extra, f"{path.relative_to(ROOT)} imports {sorted(extra)}"


def test_core_is_small_and_its_table_is_current():
    """docs/core.md says of every file of core why it is there, and how long (to a tenth)."""
    core = ROOT / "fastsnn_core"
    lengths = {p.relative_to(core).with_suffix("").as_posix(): len(p.read_text().splitlines()) for p in code(core)}
    lengths |= {f"testing/{p.stem}": len(p.read_text().splitlines()) for p in core.glob("testing/test_*.py")}
    assert sum(lengths.values()) <= 4500
    named: set[str] = set()
    for row in (ROOT / "docs" / "core.md").read_text(encoding="utf-8").splitlines():
        if found := re.match(r"\| [^|]+ \| ((?:`[\w/]+` ?)+)\| (\d+) \|", row):
            files = re.findall(r"`([\w/]+)`", found[1])
            mine = {name for name in lengths if name in files or name.partition("/")[0] in files}
            size = sum(lengths[name] for name in mine)
            assert abs(size - int(found[2])) <= 0.1 * size, f"{row}: {size} lines"
            named |= mine
    assert named == set(lengths)


def test_the_catalogue_is_what_the_folders_hold():
    found: dict[str, set[str]] = {}
    for folder in PLUGINS:
        for name in project(folder)["project"].get("entry-points", {}).get("fastsnn1", {}):
            kind = {"attention": "attention", "feedforward": "feedforward"}.get(
                folder.parent.name, folder.parent.name[:-1]
            )
            found.setdefault(kind, set()).add(name)
    assert {kind: set(names) for kind, names in FIRST_PARTY.items()} == found


def test_the_sdk_brings_every_first_party_plugin():
    ours = {project(p)["project"]["name"] for p in PLUGINS} - {"fastsnn"} - OPTIONAL
    rows = project(ROOT / "plugins/apps/fastsnn")["project"]["dependencies"]
    named = {re.match(r"[a-z0-9-]+", row)[0] for row in rows}
    assert ours | {"fastsnn-core"} == {n for n in named if n.startswith("fastsnn")}


def test_exports_exist_and_are_sorted():
    assert fastsnn_core.__all__ == sorted(fastsnn_core.__all__)
    for name in fastsnn_core.__all__:
        assert getattr(fastsnn_core, name) is not None
    assert "nonsense" not in dir(fastsnn_core)
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = fastsnn_core.nonsense


SHARED_CLASS_NAMES: dict[str, str] = {}
"""Class names that may stand in two modules, and why."""


def test_a_class_name_means_one_thing():
    """A second class of the same name in another module makes readers (and searches) mistake one for the other."""
    seen: dict[str, list[str]] = {}
    for path in TRACKED:
        parts = path.relative_to(ROOT).parts
        shipped = parts[0] == "fastsnn_core" or (parts[0] in ("plugins", "contrib") and len(parts) > 3)
        if path.suffix != ".py" or not shipped or path.name.startswith("test_"):
            continue
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ClassDef):
                seen.setdefault(node.name, []).append(str(path.relative_to(ROOT)))
    twice = {name: paths for name, paths in seen.items() if len(paths) > 1}
    assert {name: paths for name, paths in twice.items() if name not in SHARED_CLASS_NAMES} == {}
    assert SHARED_CLASS_NAMES.keys() <= twice.keys()


LONG_SIGNATURES = {
    "_scan_gradient_op": "a torch operator, whose schema has no records",
    "forward_kernel": "a Triton kernel, called by name",
    "backward_kernel": "a Triton kernel, called by name",
}


def test_no_function_takes_15_arguments_by_position():
    """What belongs together is a record: `LifRule`, a row of `layout.py`. Triton has none, so its kernels get names."""
    found = {}
    for path in TRACKED:
        parts = path.relative_to(ROOT).parts
        if path.suffix != ".py" or parts[0] not in ("fastsnn_core", "plugins", "contrib") or "test" in path.name:
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                found[node.name] = max(found.get(node.name, 0), len(node.args.posonlyargs) + len(node.args.args))
            elif isinstance(node, ast.Call) and isinstance(node.func, ast.Subscript) and "triton" in parts:
                assert len(node.args) < 15, f"{path}:{node.lineno}: give a kernel its arguments by name"
    assert {name for name, n in found.items() if n >= 15} == set(LONG_SIGNATURES)


def test_every_hook_is_documented():
    assert set(hookspecs.HOOKS) == {hookspecs.hook_of(kind) for kind in KINDS}
    for name in hookspecs.HOOKS:
        assert getattr(hookspecs, name).__doc__, name
    for kind in KINDS:
        text = (ROOT / "docs" / "kinds" / f"{kind}.md").read_text(encoding="utf-8")
        assert f"`{hookspecs.hook_of(kind)}`" in text


def test_the_pages_of_the_kinds_are_current():
    from docs_kinds import page, write  # noqa: F401

    for kind in KINDS:
        path = ROOT / "docs" / "kinds" / f"{kind}.md"
        assert path.read_text(encoding="utf-8") == page(kind), (
            f"run: python docs/docs_kinds.py ({path.name} is out of date)"
        )


def test_files_are_short_and_say_what_they_hold():
    long = {}
    for path in TRACKED:
        if path.suffix == ".py":
            text = path.read_text(encoding="utf-8")
            if text.count("\n") > 400:
                long[str(path.relative_to(ROOT))] = text.count("\n")
            assert not text.strip() or ast.get_docstring(ast.parse(text)), f"{path} does not say what lives there"
    assert not long, long


def test_no_host_of_a_registry_and_no_path_of_a_machine():
    hosts = re.compile(
        "|".join(["py" + r"pi\.org", r"files\.python" + "hosted", r"registry\.npm" + "js", r"download\.py" + "torch"])
    )
    paths = re.compile(r"/(?:" + "wo" + "rk|fa" + r"rm)/[\w.]|/opt/" + r"wheels|/root/\.")
    for path in TRACKED:
        if path.suffix in (".py", ".md", ".toml", ".txt", ".yml", ""):
            text = path.read_text(encoding="utf-8", errors="replace")
            assert not hosts.search(text), f"{path} names a package registry's host"
            assert not paths.search(text), f"{path} has a path of one machine"


def test_the_top_level_stays():
    wanted = {"fastsnn_core", "plugins", "contrib", "tests", "benchmarks", "docs"}
    wanted |= {
        "pyproject.toml",
        "noxfile.py",
        "oneclick.py",
        "README.md",
        "LICENSE",
        "constraints.txt",
        ".gitignore",
        ".ci",
        ".github",
        "CHANGELOG.md",
        "CITATION.cff",
    }
    found = {p.relative_to(ROOT).parts[0] for p in TRACKED}
    if (ROOT / ".git").exists():
        assert found == wanted
    else:  # an archive may lack what git alone needs, and its user has files of his own
        assert wanted - found <= {".gitignore", ".ci", ".github"}


def test_real_data_is_never_committed():
    for path in TRACKED:
        assert path.suffix not in (".safetensors", ".bin", ".gz", ".npy", ".parquet", ".pth", ".ckpt"), path
        assert path.stat().st_size < 400_000 or path.suffix == ".png", path


sys.path.insert(0, str(ROOT / "docs"))
