"""The state of a batch of streams, where transformers keeps keys and values."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor
from transformers import Cache

from fastsnn_core import state as states
from fastsnn_core.errors import FastSNNError


class FastSNNCache(Cache):
    """What a FastSNN model has read: the explicit state of B streams, of constant size where no softmax layer is kept.

    ``model(ids, past_key_values=cache)`` goes on from it and puts the new state into the same object, as other caches
    of transformers do; the states themselves are never changed in place, so ``copy.copy(cache)`` is a fork that costs
    nothing. `seen` counts columns, padding included. Taking tokens back (`crop`) is not possible.
    """

    is_compileable = False
    is_croppable = False

    def __init__(self, state: Any = None, seen: int = 0, ended: Tensor | None = None) -> None:
        super().__init__(layers=[])
        self.state, self.seen, self.ended = state, seen, ended

    def __repr__(self) -> str:
        return f"FastSNNCache({self.seen} tokens, {states.nbytes(self.state)} bytes)"

    def __copy__(self) -> FastSNNCache:
        return FastSNNCache(self.state, self.seen, self.ended)

    def __deepcopy__(self, memo: Any) -> FastSNNCache:
        return copy.copy(self)  # states are values: nothing writes into them

    def put(self, state: Any, tokens: int, ended: Tensor | None) -> FastSNNCache:
        """The state after `tokens` more columns; `ended` ``[B]`` marks rows that have read padding since."""
        self.state, self.seen, self.ended = state, self.seen + tokens, ended
        return self

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Columns read so far."""
        return self.seen

    def get_max_length(self, layer_idx: int | None = None) -> int:
        """No maximum."""
        return -1

    def get_max_cache_shape(self, layer_idx: int = 0) -> int:
        """No maximum."""
        return -1

    def take(self, rows: Tensor) -> None:
        """Keep the streams `rows`, in this order."""
        self.state = states.tree_map(lambda t: t.index_select(0, rows.to(t.device)), self.state)
        self.ended = None if self.ended is None else self.ended[rows.to(self.ended.device)]

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """The streams of a beam search's survivors."""
        self.take(beam_idx)

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep only these streams."""
        self.take(torch.as_tensor(indices))

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Every stream `repeats` times."""
        rows = [t.shape[0] for _, t in states.leaves(self.state)][:1]
        self.take(torch.arange(rows[0] if rows else 0).repeat_interleave(repeats))

    def reset(self) -> None:
        """Forget everything."""
        self.state, self.seen, self.ended = None, 0, None

    def crop(self, tokens_to_remove: int) -> None:
        """Refused: a recurrent state cannot take tokens back (keep a copy from before instead)."""
        if tokens_to_remove:
            raise FastSNNError(
                "the state of a FastSNN model cannot take tokens back (crop, assisted generation); "
                "copy.copy(cache) before reading them keeps the earlier state at no cost"
            )

    def update(self, *args: Any, **kwargs: Any) -> Any:
        """Refused: there are no keys and values to append to."""
        raise FastSNNError("FastSNNCache holds the state of a FastSNN model, not the keys and values of another")
