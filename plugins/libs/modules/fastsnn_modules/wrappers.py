"""Modules that hand on the weight of the one inside them: whoever counts weights counts that one."""

from __future__ import annotations

from torch import Tensor, nn


def hands_on_weight(module: nn.Module) -> bool:
    """Is ``module.weight`` that of a module right inside it, under no name of its own?"""
    weight = getattr(module, "weight", None)
    return isinstance(weight, Tensor) and any(getattr(child, "weight", None) is weight for child in module.children())
