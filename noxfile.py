"""Sessions: core, plugin(name), together, stranger(kind), rivals, clients, slow, lint, types, docs, build; and for a
release: release, sbom, audit, gallery."""

from __future__ import annotations

import json
import re
import shutil
import tempfile
import tomllib
from pathlib import Path

import nox

nox.options.sessions = ["lint", "types", "core", "together", "docs", "build"]
nox.options.reuse_existing_virtualenvs = True
ROOT = Path(__file__).parent
PLUGINS = sorted(p.parent for where in ("plugins/*/*", "contrib/*") for p in ROOT.glob(f"{where}/pyproject.toml"))
TESTING = ["pytest>=9", "hypothesis>=6.150", "pytest-timeout", "pytest-xdist", "sentencepiece>=0.2", "protobuf>=5"]
TESTING += ["axe-core-python>=0.1"]
SERVER = ["openai", "transformers", "schemathesis>=4,<5"]
STRICT = {"FASTSNN_STRICT": "1", "CI": "true"}  # CI: Hypothesis draws the same examples every time


def project(folder: Path) -> dict:
    return tomllib.loads((folder / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def local(names: list[str]) -> list[Path]:
    """Folders of the first-party distributions that `names` need, transitively."""
    known = {project(folder)["name"]: folder for folder in PLUGINS}
    found: dict[str, Path] = {}
    todo = [n for n in names if n in known]
    while todo:
        name = todo.pop()
        if name not in found:
            found[name] = known[name]
            needs = [d.split("[")[0].split(">")[0].split("=")[0].strip() for d in project(known[name])["dependencies"]]
            todo += [n for n in needs if n in known]
    return list(found.values())


def needed_by_tests(name: str) -> list[str]:
    """What the extra `testing` of a first-party distribution names."""
    (folder, *_) = local([name])
    wanted = project(folder).get("optional-dependencies", {}).get("testing", [])
    return [re.split(r"[\[<>=~! ]", requirement)[0] for requirement in wanted]


def install(session: nox.Session, *what: str) -> None:
    session.install("-c", "constraints.txt", "torch==2.13.0", "flit_core>=3.11,<5")
    session.install("-c", "constraints.txt", *what)


def editable(session: nox.Session, folders: list[Path], *more: str, extras: bool = True) -> None:
    """torch first, then what is not first-party, then the first-party folders without build isolation."""
    ours = {project(folder)["name"] for folder in PLUGINS} | {"fastsnn-core"}
    needs = {d for folder in [ROOT, *folders] for d in project(folder)["dependencies"]}
    for folder in folders if extras else ():
        needs |= {d for extra in project(folder).get("optional-dependencies", {}).values() for d in extra}
    outside = sorted(d for d in needs if d.split("[")[0].split(">")[0].split("=")[0].strip() not in ours)
    install(session, *outside, *more)
    paths = [arg for folder in [ROOT, *folders] for arg in ("-e", str(folder))]
    session.install("--no-build-isolation", "--no-deps", *paths)


@nox.session
def core(session: nox.Session) -> None:
    """Core alone, with no plugin installed."""
    editable(session, [], *TESTING)
    session.run("pytest", "tests/core", "-q", *session.posargs, env=STRICT)


@nox.session
@nox.parametrize("name", [nox.param(project(p)["name"], id=project(p)["name"]) for p in PLUGINS])
def plugin(session: nox.Session, name: str) -> None:
    """One plugin beside core with its kit (and what its pyproject names), nothing else: hidden cross-imports show.

    What its tests alone need of ours stands in the pyproject's extra `testing`.
    """
    editable(session, local([name, "fastsnn-kit", *needed_by_tests(name)]), *TESTING)
    session.run("pytest", str(local([name])[0]), "-q", *session.posargs, env=STRICT)


@nox.session
def together(session: nox.Session) -> None:
    """Everything installed: every test of core, plugins, contrib and compositions."""
    editable(session, PLUGINS, *TESTING, *SERVER)
    session.run("pytest", "-q", "-n", "2", *session.posargs, env=STRICT)


@nox.session
@nox.parametrize(
    "kind", [nox.param(k, id=k) for k in ("neuron", "neuron-fused", "attention", "attention-fused", "rule")]
)
def stranger(session: nox.Session, kind: str) -> None:
    """A third party's plugin as `fastsnn new-plugin` writes it, in count, event, INT8 and served paths."""
    editable(session, local(["fastsnn"]))
    kind, *fused = kind.split("-")
    name = f"acme-{kind}"
    with tempfile.TemporaryDirectory() as folder:  # a new one each time: new-plugin never overwrites
        session.run("fastsnn", "new-plugin", kind, name, "--out", folder, *[f"--{f}" for f in fused], env=STRICT)
        session.install("--no-build-isolation", "--no-deps", "--force-reinstall", str(Path(folder, name)))
    session.run("python", "tests/stranger.py", kind, name.replace("-", "_"), *fused)


@nox.session
def rivals(session: nox.Session) -> None:
    """NIR with other toolkits, both ways, and networks of their neurons converted, spike for spike.

    Without their requirements, which bring another torch.
    """
    ours = ["fastsnn-exporter-nir", "fastsnn-toolkits", "fastsnn-neurobench", "fastsnn-convert", "fastsnn-kit"]
    editable(session, local(ours), *TESTING, "pbr", "loguru", "matplotlib")  # pylab: sinabs imports it
    theirs = ["snntorch==1.0.0", "norse==1.1.0", "spikingjelly==2.0.0", "sinabs==3.1.3", "neurobench==2.3.0"]
    session.install("--no-deps", "nirtorch==2.6", *theirs)
    tested = ["plugins/exporters/nir", "plugins/apps/toolkits", "plugins/apps/neurobench"]
    session.run("pytest", "-q", *tested, *session.posargs)


@nox.session
def slow(session: nox.Session) -> None:
    """The long jobs that CI leaves out."""
    editable(session, PLUGINS, *TESTING, *SERVER)
    session.run("pytest", "-q", "-m", "slow", *session.posargs, env=STRICT)
    many = {"FASTSNN_SCHEDULES": "10000", "FASTSNN_SCHEMA_CASES": "10000", "FASTSNN_LEAVES": "1000"}
    drawn = [f"plugins/apps/serve/test_{name}.py" for name in ("schedules", "openapi", "faults")]
    drawn.append("tests/test_compositions.py")
    many["FASTSNN_COMPOSITIONS"] = "1500"
    hours = ["--timeout", "36000", "-o", "faulthandler_timeout=0"]  # else the process ends after 15 minutes of one test
    session.run("pytest", "-q", *drawn, *hours, env=STRICT | many)


@nox.session
def clients(session: nox.Session) -> None:
    """The server as LangChain, LiteLLM, lm-eval and Ray meet it, bundles as TRL and PEFT do; all large libraries."""
    ours = ["fastsnn-serve", "fastsnn-kernel-numba", "fastsnn-hf", "fastsnn-kit"]
    ours += [*needed_by_tests("fastsnn-serve"), *needed_by_tests("fastsnn-hf")]
    editable(session, local(ours), *TESTING, "openai", "psutil")
    install(
        session, "langchain-openai", "litellm", "lm-eval[api]", "transformers", "trl>=1.16,<2", "peft", "accelerate"
    )
    tests = [f"plugins/apps/serve/test_{name}.py" for name in ("foreign_clients", "lm_eval", "ray")]
    tests.append("plugins/apps/hf/test_fastsnn_hf.py")
    session.run("pytest", "-q", "-m", "slow or not slow", *tests, *session.posargs, env=STRICT)


@nox.session
def lint(session: nox.Session) -> None:
    """Ruff: rules and format; codespell: spelling of sources and pages (tests misspell on purpose); prose."""
    session.install("ruff==0.17.6", "codespell==2.4.3")
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")
    session.run("codespell")
    session.run("python", "tests/prose.py")


@nox.session
def types(session: nox.Session) -> None:
    """mypy on every distribution."""
    editable(session, PLUGINS, "mypy==2.4.1", "hypothesis", "pytest")
    session.run("mypy")


@nox.session
def docs(session: nox.Session) -> None:
    """Every code block of README, docs and the plugins' READMEs; then the site, its gallery run, its links checked."""
    editable(session, PLUGINS, *TESTING, "openai", "mkdocs-material>=9,<10", "mkdocstrings[python]>=0.30")
    session.run("pytest", "-q", "tests/test_documents.py", *session.posargs, env=STRICT)
    session.run("python", "docs/make_site.py", env={"FASTSNN_QUIET": "1", "OMP_NUM_THREADS": "1"})
    session.run("mkdocs", "build", "--strict", "-f", "build/site/mkdocs.yml")
    session.run("python", "docs/make_site.py", "--check", "build/site/html")
    session.log("the site: python -m http.server -d build/site/html")


@nox.session
def gallery(session: nox.Session) -> None:
    """Every script of docs/gallery, those that train included."""
    editable(session, PLUGINS, *TESTING)
    session.run("pytest", "-q", "-m", "slow or not slow", "tests/test_gallery.py", *session.posargs, env=STRICT)


@nox.session
def build(session: nox.Session) -> None:
    """Build every wheel, install only those into a fresh place, and run the command."""
    session.install("flit_core>=3.11,<5", "pip")
    dist = Path(session.create_tmp(), "dist")
    folders = [str(p) for p in [ROOT, *PLUGINS]]
    session.run("pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", str(dist), *folders)
    session.log(f"{len(list(dist.glob('*.whl')))} wheels in {dist}")
    install(session, "--find-links", str(dist), "fastsnn")
    session.run("fastsnn", "plugins", env=STRICT)


SUPPORTED = [("3.11", "lowest"), ("3.11", "highest"), ("3.13", "highest")]  # Python, versions of what is not ours


@nox.session
@nox.parametrize(("version", "bounds"), [nox.param(*pair, id="-".join(pair)) for pair in SUPPORTED])
def release(session: nox.Session, version: str, bounds: str) -> None:
    """Every wheel and sdist, checked; then `fastsnn` from wheels alone in an empty environment, and the README.

    Once with the lowest versions of all dependencies that the pyproject files take (torch is held by constraints.txt:
    a looser one brings gigabytes of another build), once with the highest. A Python that is not here is skipped.
    """
    interpreter = shutil.which(f"python{version}")
    if interpreter is None:
        session.skip(f"python{version} is not installed here")
    session.install("flit_core>=3.12,<5", "twine", "check-wheel-contents", "packaging")
    dist = Path(session.create_tmp(), "dist").resolve()
    shutil.rmtree(dist, ignore_errors=True)
    session.run("python", "tests/release.py", "build", str(dist))
    session.run("twine", "check", "--strict", *map(str, sorted(dist.iterdir())), silent=True)
    session.run("check-wheel-contents", "--ignore", "W002,W004", str(dist))  # py.typed files are all empty
    needs = session.run("python", "tests/release.py", "needs", str(dist), silent=True)
    outside = [row for row in str(needs).splitlines() if row and not row.startswith("torch")]
    with tempfile.TemporaryDirectory() as empty:
        python = str(Path(empty, "env", "bin", "python"))
        session.run(interpreter, "-m", "venv", str(Path(empty, "env")), external=True)
        pip = [python, "-m", "pip", "install", "-q"]
        held = ["-c", str(ROOT / "constraints.txt")]
        if bounds == "lowest":
            session.run(*pip, "packaging", external=True)  # asks for this Python's versions, so in its environment
            rows = session.run(python, "tests/release.py", "lowest", str(dist), silent=True, external=True)
            session.log("held at: " + ", ".join(str(rows).split()))
            Path(empty, "lowest.txt").write_text(str(rows), encoding="utf-8")
            held += ["-c", str(Path(empty, "lowest.txt"))]
        session.run(*pip, *held, "torch==2.13.0", external=True)
        session.run(*pip, *held, *outside, external=True)
        ours = ["--no-index", "--find-links", str(dist)]  # what follows comes from these wheels or not at all
        session.run(*pip, *ours, "fastsnn-core", "fastsnn-neuron-lif", external=True)
        alone = "import torch; from fastsnn_core import create; "
        alone += "print(create('neuron', 'lif').build(4)(torch.ones(1, 3, 4))[0])"
        session.run(python, "-c", alone, external=True)
        session.run(*pip, *ours, "fastsnn", external=True)
        session.run(python, "-m", "pip", "check", external=True)
        shutil.copy(ROOT / "tests" / "release.py", empty)
        with session.chdir(empty):
            session.run(python, "-I", "release.py", "readme", str(ROOT), external=True, env=STRICT)
            session.run(python, "-m", "fastsnn", "--version", external=True)
            session.run(python, "-m", "fastsnn", "doctor", external=True)


@nox.session
def sbom(session: nox.Session) -> None:
    """CycloneDX bill of materials of an installation of `fastsnn`."""
    editable(session, local(["fastsnn"]), "cyclonedx-bom", extras=False)
    target = Path(session.create_tmp(), "fastsnn.cdx.json").resolve()
    session.run("cyclonedx-py", "environment", "--of", "JSON", "-o", str(target))
    session.log(f"wrote {target}")


@nox.session
def audit(session: nox.Session) -> None:
    """Known vulnerabilities of what an installation of `fastsnn` brings; skipped where no database answers."""
    editable(session, local(["fastsnn"]), "pip-audit", extras=False)
    wanted = ["pip-audit", "--skip-editable", "--progress-spinner", "off", "--format", "json", *session.posargs]
    rows = json.loads(str(session.run(*wanted, silent=True, stderr=None)))["dependencies"]
    asked = [row for row in rows if row.get("skip_reason") != "distribution marked as editable"]
    unknown = [row["name"] for row in asked if "skip_reason" in row]
    if len(unknown) == len(asked):
        session.skip("the database of vulnerabilities knows none of these distributions: nothing was audited")
    session.log(f"{len(asked) - len(unknown)} distributions audited; not known: {', '.join(unknown) or 'none'}")
