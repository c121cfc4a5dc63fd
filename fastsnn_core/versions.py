"""Version requirements as ``[requires]`` and bundles write them: ``>=0.3,<2`` in the words of PEP 440."""

from __future__ import annotations

from packaging.specifiers import InvalidSpecifier, SpecifierSet
from packaging.version import InvalidVersion, Version


def satisfies(version: str, wanted: str) -> bool | None:
    """Does `version` meet every clause of `wanted`? None where one of them cannot be read.

    A pre-release that is installed counts as what PEP 440 orders it as: 0.4.0rc1 meets ``>=0.3``, 0.3.0rc1 does not.
    """
    try:
        return SpecifierSet(wanted).contains(Version(version), prereleases=True)
    except (InvalidSpecifier, InvalidVersion):
        return None
