"""Versions: of what is installed, whether they meet a requirement (PEP 440) and fit core, and which made a bundle."""

from __future__ import annotations

import importlib.metadata

from packaging.requirements import InvalidRequirement, Requirement
from packaging.specifiers import InvalidSpecifier, SpecifierSet
from packaging.version import InvalidVersion, Version


def installed_version(name: str) -> str:
    """Of a distribution; the empty string where there is none."""
    try:
        return importlib.metadata.version(name)
    except (importlib.metadata.PackageNotFoundError, ValueError):  # ValueError: an empty name
        return ""


def satisfies(version: str, wanted: str) -> bool | None:
    """Does `version` meet `wanted`? Pre-releases count by their order (0.4.0rc1 meets ``>=0.3``); None: unreadable."""
    try:
        return SpecifierSet(wanted).contains(Version(version), prereleases=True)
    except (InvalidSpecifier, InvalidVersion):
        return None


def fits_core(distribution: str) -> str:
    """Does a plugin's distribution take this core: ``yes``, ``no: needs >=0.2,<1``, ``?`` where it does not say."""
    rows = importlib.metadata.requires(distribution) if installed_version(distribution) else None
    try:
        needs = [Requirement(row) for row in rows or ()]
    except InvalidRequirement:  # metadata that pip would refuse, too: nothing is known
        return "?"
    wanted = next((str(need.specifier) for need in needs if need.name.replace("_", "-") == "fastsnn-core"), None)
    if wanted is None:
        return "?"
    return "yes" if satisfies(installed_version("fastsnn-core"), wanted) else f"no: needs {wanted}"


def other_versions(made: dict[str, str]) -> str:
    """``acme-lif 0.2 (here 0.1), …``: the distributions of `made` that are installed in another version."""
    both = {name: (version, installed_version(name)) for name, version in made.items()}
    return ", ".join(f"{name} {then} (here {now})" for name, (then, now) in both.items() if now and then != now)
