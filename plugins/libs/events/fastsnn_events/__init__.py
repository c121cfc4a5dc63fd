"""Linear layers and convolutions on spikes; the event runtime, which replays counts as trains with the same numbers."""

from __future__ import annotations

from fastsnn_core.lazy import lazy

__version__ = "0.1.0"

_EXPORTS = {
    "Coding": ".coding",
    "Switchable": ".runtime",
    "count_linear": ".linear",
    "event_linear": ".linear",
    "input_major": ".linear",
    "replay": ".runtime",
    "spike_linear": ".linear",
    "switch_runtime": ".runtime",
}
__all__ = sorted(_EXPORTS)
__getattr__ = lazy(__name__, _EXPORTS | {"use": ".runtime"})  # `use`: the old name of `switch_runtime`


def __dir__() -> list[str]:
    return __all__
