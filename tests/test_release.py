"""What a release promises: one version, whole extras, workflows of nox alone, a start without torch, completion."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import fastsnn_core

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))
import release  # noqa: E402

PLUGINS = sorted(p.parent for p in ROOT.glob("plugins/*/*/pyproject.toml"))
WORKFLOWS = sorted(ROOT.glob(".github/workflows/*.yml"))


def project(folder: Path) -> dict:
    return tomllib.loads((folder / "pyproject.toml").read_text(encoding="utf-8"))


def sessions() -> set[str]:
    return set(
        re.findall(r"@nox\.session\n(?:@nox.*\n|    .*\n|\)\n)*def (\w+)", (ROOT / "noxfile.py").read_text("utf-8"))
    )


def test_changelog_and_citation_name_the_version():
    version = fastsnn_core.__version__
    assert f"\n## {version}" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert f"\nversion: {version}\n" in (ROOT / "CITATION.cff").read_text(encoding="utf-8")


def test_first_party_requirements_take_this_version():
    major = fastsnn_core.__version__.split(".")[0]
    for folder in PLUGINS:
        found = project(folder)["project"]
        rows = [
            *found["dependencies"],
            *(r for extra in found.get("optional-dependencies", {}).values() for r in extra),
        ]
        for row in (r for r in rows if r.startswith("fastsnn")):
            assert re.search(rf">=0\.1,<{int(major) + 1}$", row), f"{found['name']}: {row}"


def test_extras_of_the_sdk():
    extras = project(ROOT / "plugins/apps/fastsnn")["project"]["optional-dependencies"]
    assert set(extras) == {"all", "convert", "hf", "serve"}
    names = {name: {re.match(r"[a-z0-9-]+", row)[0] for row in rows} for name, rows in extras.items()}
    rows = project(ROOT / "plugins/apps/fastsnn")["project"]["dependencies"]
    brought = {re.match(r"[a-z0-9-]+", row)[0] for row in rows} | names["all"]
    everything = {project(folder)["project"]["name"] for folder in PLUGINS} - {"fastsnn"}
    assert everything <= brought, "fastsnn[all] is everything"
    assert names["hf"] <= names["all"]
    assert "fastsnn-serve" in names["serve"]
    assert "fastsnn-convert" in names["convert"]


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda p: p.name)
def test_workflows_call_nox_and_nothing_else(path):
    text = path.read_text(encoding="utf-8")
    runs = re.findall(r"run: (.*)", text)
    assert runs
    assert all(line in ("pip install nox", "nox -s ${{ matrix.session }}") for line in runs), runs
    named = re.search(r"session: \[(.*)\]", text)[1].split(", ")
    assert set(named) <= sessions(), set(named) - sessions()


def test_there_are_workflows():
    assert len(WORKFLOWS) == 2


def test_importing_the_sdk_imports_no_torch():
    heavy = {"torch", "matplotlib", "transformers"}
    code = f"from fastsnn import FastSNN; import sys; print(sorted({heavy} & {{*sys.modules}}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_completion_knows_every_verb_and_option():
    from fastsnn_console.completion import options_of_verbs, script
    from fastsnn_core.cli import OWN, added

    verbs = options_of_verbs()
    assert set(verbs) == {*OWN, *added()}
    assert {"--beside", "--live", "--perfetto"} <= set(verbs["scope"])
    assert "--json" in verbs["plugins"]
    assert "-l beside" in script("fish", verbs)
    shell = shutil.which("bash")
    if shell is None:
        pytest.skip("no bash here")
    asks = 'COMP_WORDS=(fastsnn scope --be); COMP_CWORD=2; _fastsnn; echo "${COMPREPLY[@]}"; '
    asks += 'COMP_WORDS=(fastsnn comp); COMP_CWORD=1; _fastsnn; echo "${COMPREPLY[@]}"'
    done = subprocess.run(
        [shell, "-c", script("bash", verbs) + "\n" + asks], capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["--beside", "completion"]
    assert "bashcompinit" in script("zsh", verbs)


VERSIONS = ["3.0", "2.10.1", "2.10.0", "2.9", "2.9rc1", "1.0"]


@pytest.mark.parametrize(
    ("row", "held"),
    [
        ("attrs>=2", ["attrs==2.9"]),  # no pre-release, and by number: 2.10 is above 2.9
        ("ray[serve]>=2.9.1,<3", ["ray==2.10.0"]),
        ("triton>=1; platform_system == 'Elsewhere'", []),
        ("tomli", ["tomli==1.0"]),
    ],
)
def test_the_lowest_versions_that_are_taken(row, held):
    assert release.lowest([row], lambda name: VERSIONS) == held


def test_what_several_need_is_held_once():
    assert release.lowest(["numpy>=1", "numpy>=2.10"], lambda name: VERSIONS) == ["numpy==2.10.0"]


def test_a_bound_that_no_version_meets_is_said():
    with pytest.raises(SystemExit, match="numpy>=9: the registry has no such version"):
        release.lowest(["numpy>=9"], lambda name: VERSIONS)


def test_release_runs_the_lowest_and_the_highest_python():
    rows = re.findall(r'\("(3\.\d+)", "(lowest|highest)"\)', (ROOT / "noxfile.py").read_text(encoding="utf-8"))
    (least,) = {project(folder)["project"]["requires-python"] for folder in [ROOT, *PLUGINS]}
    versions = sorted(int(v.partition(".")[2]) for v, _ in rows)
    assert least == f">=3.{versions[0]}"
    assert (f"3.{versions[0]}", "lowest") in rows
    assert (f"3.{versions[-1]}", "highest") in rows
    for path in WORKFLOWS:
        asked = re.search(r"python: \[(.*)\]", path.read_text(encoding="utf-8"))[1]
        assert {f'"3.{v}"' for v in versions} <= set(asked.split(", ")), path
