"""A site alone: the blocks in front of it are dense, so what they give is computed once for all such sites."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from fastsnn_convert.language.output_sensitivity import PIECE
from fastsnn_convert.language.rebuild import bypass_neurons


def block_number(name: str) -> int:
    """The number of the block that a site belongs to."""
    return int(name.split(".")[1])


@torch.no_grad()
def dense_streams(model: Any, tokens: Tensor, names: list[str]) -> dict[int, list[Tensor]]:
    """The dense residual stream in front of every block that one of the sites `names` is in, by the block's number.

    One entry per piece that a held-out text is read in.
    """
    found: dict[int, list[Tensor]] = {block_number(name): [] for name in names}
    handles = [model.layers[i].register_forward_pre_hook(lambda _m, args, i=i: found[i].append(args[0])) for i in found]
    try:
        with bypass_neurons(model):
            for piece in tokens.split(max(1, PIECE // tokens.shape[1])) if found else ():
                model(piece, last=True)
    finally:
        for handle in handles:
            handle.remove()
    return found


@contextlib.contextmanager
def given(model: Any, before: dict[int, list[Tensor]], name: str) -> Iterator[None]:
    """While the block of code runs, blocks in front of the site's are not computed: they are dense, so what they give
    is known (`dense_streams`)."""
    if not name.startswith("layers."):
        yield
        return
    number, layers = block_number(name), model.layers
    left = list(before[number])
    skipped = [(layer, layer.forward) for layer in layers[:number]]
    handle = layers[number].register_forward_pre_hook(lambda _m, args: (left.pop(0), *args[1:]))
    try:
        for layer, _ in skipped:
            layer.forward = lambda x, state=None, *_a, **_k: (x, state)
        yield
    finally:
        handle.remove()
        for layer, _ in skipped:
            del layer.forward
