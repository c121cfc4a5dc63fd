"""The sections of ``fastsnn doctor``: each is ``{name: text}``."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import shutil
import sys
from collections import defaultdict
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

GIB = 2**30
LIBRARIES = ("torch", "numpy", "numba", "llvmlite", "safetensors", "tokenizers", "transformers", "datasets", "ray")
FEATURES = ("avx2", "fma", "avx512f", "avx512bw", "avx512_vnni", "avx_vnni", "amx_int8", "asimd", "asimddp", "i8mm")
VARIABLES = r"(FASTSNN|OMP|MKL|NUMBA|TORCH|KMP|CUDA_VISIBLE|HF)_?\w*"
SECRET = re.compile(r"TOKEN|KEY|SECRET|PASSWORD")


def all_sections(speed: bool = True) -> dict[str, dict[str, str]]:
    """Every section, those of other distributions (entry points ``fastsnn1.doctor``) last."""
    found = {"versions": versions(), "machine": machine(), "environment": python_section(), "plugins": plugin_rows()}
    for point in sorted(importlib.metadata.entry_points(group="fastsnn1.doctor"), key=lambda p: p.name):
        try:
            found[point.name] = dict(point.load()())
        except Exception as error:  # what is broken is what this verb is asked about
            found[point.name] = {"failed": f"{type(error).__name__}: {error}"}
    if speed:
        from fastsnn_doctor.speed import machine_speeds

        found["speed"] = machine_speeds()
    return found


def first_party_versions() -> dict[str, list[str]]:
    """Versions of ``fastsnn`` distributions, and who has each."""
    found: dict[str, list[str]] = defaultdict(list)
    for name, dist in installed_distributions().items():
        if name == "fastsnn" or name.startswith("fastsnn-"):
            found[dist.version].append(name)
    return dict(found)


def installed_distributions() -> dict[str, importlib.metadata.Distribution]:
    """Installed distributions by normalised name; the first on the path counts, as for an import."""
    found: dict[str, importlib.metadata.Distribution] = {}
    for dist in importlib.metadata.distributions():
        if dist.metadata["Name"]:
            found.setdefault(canonicalize_name(dist.metadata["Name"]), dist)
    return found


def versions() -> dict[str, str]:
    """FastSNN, Python, and the libraries below that are here."""
    found, rows = installed_distributions(), {}
    for version, names in sorted(first_party_versions().items()):
        rows[f"fastsnn {version}"] = f"{len(names)} distributions"
    rows["Python"] = f"{platform.python_version()} ({platform.python_implementation()})"
    return rows | {name: found[name].version for name in LIBRARIES if name in found}


def machine() -> dict[str, str]:
    """System, CPU with the instructions that kernels choose by, cores, memory, disk, accelerator."""
    import torch

    info = cpuinfo()
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    rows = {
        "system": platform.platform(),
        "CPU": info.get("model name", platform.processor() or platform.machine()),
        "instructions": " ".join(f for f in FEATURES if f in info.get("flags", info.get("Features", "")).split())
        or "?",
        "cores": f"{allowed} allowed of {os.cpu_count()}; torch uses {torch.get_num_threads()} threads",
        "memory": memory(),
        "disk here": f"{shutil.disk_usage('.').free / GIB:.1f} GiB free",
        "accelerator": torch.cuda.get_device_name() if torch.cuda.is_available() else "none",
    }
    return rows


def cpuinfo() -> dict[str, str]:
    """The first processor of ``/proc/cpuinfo``; empty where there is none."""
    path = Path("/proc/cpuinfo")
    if not path.is_file():
        return {}
    first = path.read_text(encoding="utf-8", errors="replace").split("\n\n")[0]
    rows = (line.partition(":") for line in first.splitlines())
    return {name.strip(): text.strip() for name, _, text in rows}


def memory() -> str:
    """Free and all, in GiB."""
    path = Path("/proc/meminfo")
    if path.is_file():
        rows = dict(line.split(":", 1) for line in path.read_text(encoding="ascii").splitlines())
        free, whole = (int(rows[name].split()[0]) * 1024 / GIB for name in ("MemAvailable", "MemTotal"))
        return f"{free:.1f} of {whole:.1f} GiB available"
    if "SC_PHYS_PAGES" in getattr(os, "sysconf_names", {}):
        return f"{os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE') / GIB:.1f} GiB"
    return "unknown"


def python_section() -> dict[str, str]:
    """Where Python is, and variables that change what runs; what may be secret is not shown."""
    rows = {"executable": sys.executable}
    for name, text in sorted(os.environ.items()):
        if re.fullmatch(VARIABLES, name):
            rows[name] = "(set)" if SECRET.search(name) else text
    return rows


def plugin_rows() -> dict[str, str]:
    """How many load; each that does not, and why."""
    from fastsnn_core.plugins import registry

    found = registry().plugins
    rows = {"loaded": f"{sum(p.status == 'ok' for p in found)} of {len(found)}"}
    return rows | {f"{p.name} ({p.distribution})": f"{p.status}: {p.error}" for p in found if p.status != "ok"}


def installation_problems() -> list[str]:
    """What is wrong with this installation, each with its remedy."""
    from fastsnn_core.plugins import registry

    wrong = []
    for p in registry().plugins:
        if p.status in ("broken", "partial", "other-api"):
            wrong.append(f"plugin {p.name} ({p.distribution} {p.version}) is {p.status}: {p.error}")
    ours = first_party_versions()
    if len(ours) > 1:
        common = max(ours, key=lambda version: len(ours[version]))
        others = ", ".join(f"{name} {v}" for v, names in sorted(ours.items()) if v != common for name in names)
        wrong.append(
            f"first-party distributions of several versions: {common}, but {others}; install one version of all"
        )
    return wrong + unmet_requirements()


def unmet_requirements() -> list[str]:
    """Requirements of first-party distributions that what is installed does not meet."""
    found, wrong = installed_distributions(), []
    for names in first_party_versions().values():
        for name in sorted(names):
            for line in found[name].requires or []:
                need = Requirement(line)
                if need.marker is not None and not need.marker.evaluate({"extra": ""}):
                    continue
                has = found.get(canonicalize_name(need.name))
                plain = f"{need.name}{need.specifier}"
                if has is None:
                    wrong.append(f"{name} needs {plain}, which is not installed: pip install '{plain}'")
                elif not need.specifier.contains(has.version, prereleases=True):
                    wrong.append(f"{name} needs {plain}, but {has.version} is installed: pip install '{plain}'")
    return wrong
