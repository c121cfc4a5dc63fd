"""A stream of the fused step: its states in the kernel's form, how they grow, and how they come out again."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from fastsnn_core.errors import FastSNNError
from fastsnn_core.lowering import LinearAttentionForm, MixerForm, SoftmaxAttentionForm
from fastsnn_integer.decode_step import States
from fastsnn_integer.plan_check import check_token, vocabulary
from fastsnn_kernel_numba import layout
from fastsnn_kernel_numba.buffer_pool import zeros
from fastsnn_kernel_numba.fused_decoder_stages import KEYS

if TYPE_CHECKING:
    from fastsnn_kernel_numba.fused_decoder_runtime import NumbaStepper

F = np.float32


def owned_numbers(t: Tensor) -> Any:
    """The numbers of a tensor in memory of our own."""
    out = zeros((t.numel(),))
    out[:] = t.reshape(-1).numpy()
    return out


class NumbaStream:
    """`fastsnn_integer.decode_step.DecodeStream`."""

    def __init__(self, stepper: NumbaStepper, position: int, states: States, room: int = 0) -> None:
        self.stepper, self.position, self.failure, self.room = stepper, position, "", room
        self.tokens = vocabulary(stepper.plan)
        self.mixers = [m for block in stepper.plan.blocks for m in block.attention.mixers]
        given = [pair for block in states for pair in block]
        self.state = np.zeros(max(1, len(self.mixers)), layout.STATE)
        self.address, self.seen = self.state.ctypes.data, self.state["seen"]  # views and numbers that a step needs
        self.memory: list[Any] = [None] * len(self.mixers)
        for m, (mixer, (first, second)) in enumerate(zip(self.mixers, given, strict=True)):
            if isinstance(mixer, LinearAttentionForm):
                self.keep(m, owned_numbers(first), owned_numbers(second))
            else:
                self.fill(m, first, second)
        self.endless = [m for m, f in enumerate(self.mixers) if isinstance(f, SoftmaxAttentionForm) and not f.window]
        self.measure()

    def keep(self, m: int, first: Any, second: Any) -> None:
        """Hold a mixer's memory, and write down where it is."""
        self.memory[m] = (first, second)
        self.state[m]["first"], self.state[m]["second"] = first.ctypes.data, second.ctypes.data

    def fill(self, m: int, keys: Tensor, values: Tensor) -> None:
        """A cache with room for the tokens asked for, or one more than it holds: `keys`, `values` ``[n, G, K]``."""
        held, groups, size = keys.shape
        capacity = -(-(window_of(self.mixers[m]) or max(self.room, held + 1)) // KEYS) * KEYS
        k, v = zeros((groups, capacity // KEYS, size, KEYS)), zeros((groups, capacity, size))
        v[:, :held] = values.transpose(0, 1).numpy()
        rows, full = keys.numpy(), held // KEYS
        k[:, :full] = rows[: full * KEYS].reshape(full, KEYS, groups, size).transpose(2, 0, 3, 1)
        k[:, full : full + 1, :, : held % KEYS] = rows[full * KEYS :].transpose(1, 2, 0)[:, None]
        self.keep(m, k.reshape(-1), v.reshape(-1))
        self.state[m]["capacity"], self.state[m]["seen"] = capacity, held

    def measure(self) -> None:
        """Places of the longest cache, and tokens that caches without a window have room for."""
        capacity = self.state["capacity"]
        self.slots = int(capacity.max(initial=0))
        self.free = min((int(capacity[m] - self.seen[m]) for m in self.endless), default=1 << 62)

    def prepare(self, tokens: Sequence[int]) -> None:
        """Refuse tokens that cannot be taken; then there is room for them."""
        if not len(tokens):
            raise FastSNNError("a stream reads at least one token")
        for token in tokens:
            check_token(self.stepper.plan, token)
        if self.failure:
            raise FastSNNError(f"this stream ended with an error: {self.failure}")
        self.grow(len(tokens))

    def after(self, found: Tensor | FastSNNError | None, tokens: int = 1) -> None:
        """So many tokens have been read, or an error has ended this stream."""
        if isinstance(found, FastSNNError):
            self.failure = str(found)
            return
        self.position += tokens
        self.seen += tokens
        self.free -= tokens

    def step(self, token: int) -> Tensor:
        """Logits after `token`."""
        ordinary = type(token) is int and 0 <= token < self.tokens and self.free and not self.failure
        if not ordinary:
            self.prepare((token,))
        try:
            logits = self.stepper.run(self, token)
        except FastSNNError as error:
            self.after(error)
            raise
        self.position += 1  # as `after` does
        self.seen += 1
        self.free -= 1
        return logits

    def grow(self, tokens: int) -> None:
        """Caches without a window get blocks more when they have no room for so many tokens: step by step a copy every
        `KEYS` tokens, a few per cent of what attention reads of them in so many steps, and never more memory than the
        tokens take."""
        if tokens <= self.free:
            return
        groups, size = self.stepper.plan.n_kv_heads, self.stepper.plan.head_dim
        for m in self.endless:
            capacity = int(self.state[m]["capacity"])
            more = -(-(int(self.state[m]["seen"]) + tokens - capacity) // KEYS)
            if more > 0:
                longer = []
                for array in self.memory[m]:
                    new = zeros((groups, capacity // KEYS + more, KEYS * size))
                    new[:, :-more] = array.reshape(groups, -1, KEYS * size)
                    longer.append(new.reshape(-1))
                self.keep(m, *longer)
                self.state[m]["capacity"] = capacity + more * KEYS
        self.measure()

    @property
    def nbytes(self) -> int:
        """Memory of the states."""
        return sum(array.nbytes for both in self.memory for array in both)

    def held(self, m: int) -> tuple[Tensor, Tensor]:
        """A mixer's state, out of the kernel's form."""
        plan, mixer = self.stepper.plan, self.mixers[m]
        groups, size = plan.n_kv_heads, plan.head_dim
        first, second = self.memory[m]
        if isinstance(mixer, LinearAttentionForm):
            s, z = first.reshape(groups, size, size), second.reshape(groups, size)
            return torch.from_numpy(s.copy()), torch.from_numpy(z.copy())
        capacity, seen = int(self.state[m]["capacity"]), int(self.state[m]["seen"])
        slots = np.arange(seen - min(seen, mixer.window or seen), seen) % capacity
        k = first.reshape(groups, capacity // KEYS, size, KEYS).swapaxes(2, 3).reshape(groups, capacity, size)
        k, v = (
            torch.from_numpy(x[:, slots].swapaxes(0, 1).copy()) for x in (k, second.reshape(groups, capacity, size))
        )
        return k, v

    def states(self) -> States:
        """All states, per block and form."""
        rest = iter(range(len(self.mixers)))
        return [[self.held(next(rest)) for _ in block.attention.mixers] for block in self.stepper.plan.blocks]


def window_of(mixer: MixerForm) -> int:
    """Tokens that an attention sees; 0 for all."""
    return mixer.window if isinstance(mixer, SoftmaxAttentionForm) else 0
