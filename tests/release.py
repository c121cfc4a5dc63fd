"""What `nox -s release` needs: builds every distribution from a clean copy; runs the README from wheels alone.

python tests/release.py build DIST      wheels and sdists of core and all plugins, each with the licence inside
python tests/release.py needs DIST      what they need that is not ours, one requirement a line
python tests/release.py lowest DIST     the same, each held at the lowest version that the registry has (`pip index`)
python tests/release.py readme ROOT     in an environment of wheels: the README's first steps, in this folder
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable
from email.parser import Parser
from pathlib import Path

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.version import Version

ROOT = Path(__file__).resolve().parents[1]
LEFT_OUT = shutil.ignore_patterns("__pycache__", "*.egg-info", "test_*.py", "conftest.py", "benchmark_*.py", ".venv")


def build(dist: Path) -> None:
    """Every wheel and sdist, by flit's own backend in this process: pip would start two for each."""
    from flit_core import buildapi

    dist.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as staging:
        for folder in [ROOT, *sorted(p.parent for p in ROOT.glob("plugins/*/*/pyproject.toml"))]:
            copy = Path(staging, f"{folder.parent.name}-{folder.name}")
            copy.mkdir()
            for name in ("pyproject.toml", "README.md"):
                shutil.copy(folder / name, copy)
            shutil.copy(ROOT / "LICENSE", copy)
            for package in folder.glob("fastsnn*"):
                if (package / "__init__.py").is_file():
                    shutil.copytree(package, copy / package.name, ignore=LEFT_OUT if folder != ROOT else None)
            os.chdir(copy)
            wheel, sdist = buildapi.build_wheel(str(dist)), buildapi.build_sdist(str(dist))
            check(dist / wheel, dist / sdist)
        os.chdir(ROOT)
    print(f"{len(list(dist.glob('*.whl')))} wheels and {len(list(dist.glob('*.tar.gz')))} sdists in {dist}")


def check(wheel: Path, sdist: Path) -> None:
    """The licence is in both, py.typed in the wheel, and nothing that only tests need."""
    names = zipfile.ZipFile(wheel).namelist()
    assert any(n.endswith("/licenses/LICENSE") for n in names), f"{wheel.name} has no licence"
    assert any(n.endswith("/py.typed") for n in names), f"{wheel.name} is not typed"
    assert not any("__pycache__" in n for n in names), f"{wheel.name} has bytecode"
    with tarfile.open(sdist) as archive:
        assert any(n.endswith("/LICENSE") for n in archive.getnames()), f"{sdist.name} has no licence"


def metadata(dist: Path) -> list:
    """METADATA of every wheel."""
    found = []
    for wheel in sorted(dist.glob("*.whl")):
        with zipfile.ZipFile(wheel) as archive:
            name = next(n for n in archive.namelist() if n.endswith(".dist-info/METADATA"))
            found.append(Parser().parsestr(archive.read(name).decode()))
    assert len({m["Version"] for m in found}) == 1, "one version for all"
    return found


def needs(dist: Path) -> list[str]:
    """Requirements of `fastsnn`, followed through our own wheels, that are not ours; extras only where named."""
    known = {m["Name"]: m for m in metadata(dist)}
    todo, seen, outside = [("fastsnn", frozenset())], set(), set()
    while todo:
        name, extras = todo.pop()
        if (name, extras) in seen:
            continue
        seen.add((name, extras))
        for row in known[name].get_all("Requires-Dist") or []:
            said, _, marker = row.partition(";")
            extra = re.search(r"extra\s*==\s*['\"]([\w-]+)", marker)
            if extra and extra[1] not in extras:
                continue
            base, more = re.match(r"\s*([\w.-]+)(?:\[([^\]]*)\])?", said).groups()
            if base in known:
                todo.append((base, frozenset(e.strip() for e in (more or "").split(",") if e.strip())))
            else:
                outside.add(said.strip())
    return sorted(outside)


def lowest(rows: list[str], versions: Callable[[str], list[str]]) -> list[str]:
    """``name==version`` for every requirement: the lowest released version that it takes, of `versions` of a name."""
    bounds: dict[str, SpecifierSet] = {}  # several distributions may need one thing
    for need in map(Requirement, rows):
        if need.marker is None or need.marker.evaluate():
            bounds[need.name] = bounds.get(need.name, SpecifierSet()) & need.specifier
    found = []
    for name, bound in bounds.items():
        good = [v for v in map(Version, versions(name)) if not v.is_prerelease and v in bound]
        if not good:
            raise SystemExit(f"{name}{bound}: the registry has no such version")
        found.append(f"{name}=={min(good)}")
    return sorted(found)


def registered(name: str) -> list[str]:
    """Versions of a distribution that pip finds for this Python."""
    pip = [sys.executable, "-m", "pip", "index", "versions", name]
    told = subprocess.run(pip, capture_output=True, text=True, check=False).stdout
    return re.findall(r"[^\s,]+", told.partition("Available versions:")[2].partition("\n")[0])


def readme(root: Path) -> None:
    """One model's life as the README tells it, from wheels: nothing of the checkout is in reach."""
    import fastsnn
    import fastsnn_core

    for module in (fastsnn, fastsnn_core):
        assert root not in Path(module.__file__).resolve().parents, module.__file__
    assert not any(Path(p or ".").resolve() == root for p in sys.path), sys.path
    text = (root / "README.md").read_text(encoding="utf-8")
    life = text.split("## One model's life", 1)[1].split("\n## ", 1)[0]
    for block in re.findall(r"```python\n(.*?)```", life, re.DOTALL):
        exec(compile(block, "README.md", "exec", dont_inherit=True), {"__name__": "__main__"})
    made = sorted(p.relative_to(Path.cwd()).as_posix() for p in Path.cwd().rglob("*") if p.is_file())
    assert "runs/first/index.html" in made, made
    assert "artifacts/first.snn/spike.report/index.html" in made, made
    print("the README's first steps ran from wheels alone")


if __name__ == "__main__":
    verb, where = sys.argv[1], Path(sys.argv[2]).resolve()
    if verb == "build":
        build(where)
    elif verb == "needs":
        print("\n".join(needs(where)))
    elif verb == "lowest":
        print("\n".join(lowest([row for row in needs(where) if not row.startswith("torch")], registered)))
    else:
        readme(where)
