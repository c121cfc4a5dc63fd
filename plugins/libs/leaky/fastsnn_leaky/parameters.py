"""Parameters that neurons with one threshold share: the threshold, whether data set it, the gradient of a spike.

threshold: float = threshold_param()
fixed: bool = fixed_param()
surrogate: Surrogate | None = surrogate_slot()
"""

from __future__ import annotations

from typing import Any

from fastsnn_core.component import Surrogate, param, slot


def threshold_param() -> Any:
    """θ."""
    return param(
        1.0, gt=0.0, le=1e4, unit="mean |x| once calibrated", doc="θ, the height of one spike", draw=(0.5, 1.0)
    )


def fixed_param() -> Any:
    """Whether θ stays as it is given."""
    return param(False, doc="θ is `threshold` as it is given: data do not set it")


def surrogate_slot() -> Any:
    """The surrogate gradient, arctangent where none is given."""
    return slot(Surrogate, doc="gradient of the spike; arctangent when left out")
