"""Version requirements as ``[requires]`` and bundles write them: ``>=0.3,<2``."""

from __future__ import annotations

import operator
import re

SIGNS = {">=": operator.ge, "<=": operator.le, "==": operator.eq, "!=": operator.ne, ">": operator.gt, "<": operator.lt}


def release(version: str) -> tuple[int, ...]:
    """The numeric release of a version, padded: ``1.2.dev1`` is (1, 2, 0, 0)."""
    found = [int(n) for n in re.findall(r"\d+", re.match(r"[\d.]*", version.strip())[0])]  # type: ignore[index]
    return tuple((found + [0] * 4)[:4])


def satisfies(version: str, wanted: str) -> bool | None:
    """Does `version` meet every clause of `wanted`? None where a clause cannot be read."""
    for clause in filter(None, (c.strip() for c in wanted.split(","))):
        match = re.fullmatch(r"(>=|<=|==|!=|>|<)\s*(\d[\d.]*)\S*", clause)
        if not match:
            return None
        if not SIGNS[match[1]](release(version), release(match[2])):
            return False
    return True
