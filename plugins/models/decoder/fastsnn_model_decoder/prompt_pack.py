"""Several prompts read in one pass over the weights: their tokens side by side, as rows of one product.

    rows of all prompts  [1, ΣT]:  norms, spikes, projections, feed-forward   each row by itself
    each prompt          [1, T]:   attention, from its own state              those that begin, of one length: [B, T]

Integer sums are exact and everything else of a row depends on the row alone, so logits and states are the bits of
``model(ids, state)`` for each prompt. What has no such form (`fastsnn_model_decoder.prefill`) is read one by one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import groupby
from typing import Any

import torch
from torch import Tensor, nn

from fastsnn_core import Heads, SpikeTensor
from fastsnn_core.errors import ArgumentError
from fastsnn_core.state import select
from fastsnn_integer.known_operands import known_operands
from fastsnn_model_decoder import prefill
from fastsnn_modules.inputs import token_input

Group = tuple[slice, list[int]]  # rows of prompts that are mixed together, and which prompts they are


def read_together(
    model: Any, make: Callable[..., Any], prompts: Sequence[Sequence[int]], states: Sequence[Any]
) -> list[tuple[Tensor, Any]]:
    """``(logits [1,1,V] after the last token, state)`` of each of `prompts`, gone on with from its state (or None).

    `make` makes a state of its parts. `ArgumentError`: not as many states as prompts, or a prompt without tokens.
    """
    if len(prompts) != len(states) or not all(len(ids) for ids in prompts):
        raise ArgumentError(f"read_together: {len(prompts)} prompts of a token at least, and {len(states)} states")
    device = model.embed.weight.device
    tokens = torch.tensor([[token for ids in prompts for token in ids]], device=device)
    plans, known = packed_plans(model, tokens) if len(prompts) > 1 else (None, False)
    if plans is None:
        return [
            model(torch.tensor([ids], device=device), state, return_state=True, last=True)
            for ids, state in zip(prompts, states, strict=True)
        ]
    token_input(tokens, model.spec.vocab_size)
    order = sorted(range(len(prompts)), key=lambda i: (states[i] is not None, len(prompts[i])))
    with known_operands(known):
        found = read_packed(model, make, plans, [prompts[i] for i in order], [states[i] for i in order])
    out: list[Any] = [None] * len(prompts)
    for i, one in zip(order, found, strict=True):
        out[i] = one
    return out


def packed_plans(model: Any, tokens: Tensor) -> tuple[list[Any] | None, bool]:
    """`prefill.block_plans`, where every row depends on itself alone outside of the mixers; else None."""
    site = model.embed_site
    if not prefill.prefill_applies(model, tokens) or site.neuron is not None or site.centre is not None:
        return None, False
    if not prefill.by_row(model.head_site):
        return None, False
    plans, known = prefill.block_plans(model)
    return (None, False) if any(plan is None for plan in plans) else (plans, known)


def read_packed(
    model: Any, make: Callable[..., Any], plans: list[Any], prompts: list[Sequence[int]], states: list[Any]
) -> list[tuple[Tensor, Any]]:
    """`read_together` of prompts that are sorted: those that begin come first, by length."""
    device, sizes = model.embed.weight.device, [len(ids) for ids in prompts]
    begins = [0 if state is None else int(state.position) for state in states]
    ends = torch.tensor(sizes).cumsum(0).tolist()
    tokens = torch.tensor([[token for ids in prompts for token in ids]], device=device)
    places = torch.cat([torch.arange(at, at + size) for at, size in zip(begins, sizes, strict=True)])[None].to(device)
    angles = model.angles(places) if model.rotary else None
    x, add = model.embedded(tokens, places)[0].contiguous(), None
    flat = None if angles is None else tuple(a[0].to(x.dtype).contiguous() for a in angles)
    groups, layers = grouped(sizes, states), []
    for i, (block, plan) in enumerate(zip(model.layers, plans, strict=True)):
        olds = [None if state is None else state.layers[i] for state in states]

        def mix(heads: Heads, mixer: nn.Module = block.attention.mixer, olds: list[Any] = olds) -> tuple[Tensor, Any]:
            return mix_groups(mixer, heads, groups, olds)

        add, mixers = prefill.run_rows(block, plan, (1, len(x)), x, add, angles, flat, mix)
        layers.append([prefill.block_state(plan, old, mixed) for old, mixed in zip(olds, mixers, strict=True)])
    rows = prefill.with_pending(x, add)[torch.tensor(ends, device=device) - 1][:, None]
    logits = model.logits(model.head_site(model.norm(rows), None, None)[0])
    out = []
    for n, (state, begin, size) in enumerate(zip(states, begins, sizes, strict=True)):
        embed, head = (None, None) if state is None else (state.embed, state.head)
        position = torch.tensor([begin + size], device=device)
        out.append((logits[n : n + 1], make(position, embed, tuple(layer[n] for layer in layers), head)))
    return out


def grouped(sizes: list[int], states: list[Any]) -> list[Group]:
    """Prompts of one length that begin, together; every other by itself."""
    at, out = 0, []
    keys = [(size, -1 if state is None else n) for n, (size, state) in enumerate(zip(sizes, states, strict=True))]
    for (size, _), some in groupby(range(len(sizes)), key=lambda n: keys[n]):
        mine = list(some)
        out.append((slice(at, at + size * len(mine)), mine))
        at += size * len(mine)
    return out


def mix_groups(mixer: nn.Module, heads: Heads, groups: list[Group], olds: list[Any]) -> tuple[Tensor, list[Any]]:
    """The mixer over each group's rows of heads ``[1, ΣT, ·, K]``; the state of every prompt."""
    mixed, states = [], list[Any]()
    for rows, mine in groups:
        old = olds[mine[0]]
        before = None if old is None or old.attention is None else old.attention.mixer
        out, state = mixer(heads_of_rows(heads, rows, len(mine)), before, None)
        mixed.append(out.flatten(0, 1))
        states += [state] if len(mine) == 1 else [select(state, slice(n, n + 1)) for n in range(len(mine))]
    return torch.cat(mixed)[None], states


def heads_of_rows(heads: Heads, rows: slice, streams: int) -> Heads:
    """Some rows of heads ``[1, ΣT, ·, K]`` as `streams` streams ``[B, T, ·, K]``."""

    def some(t: Tensor) -> Tensor:
        return t[0, rows].unflatten(0, (streams, -1))

    x = heads.x
    spikes = some(x) if isinstance(x, Tensor) else SpikeTensor(some(x.counts), some(x.scale))
    cos, sin = (None if t is None else some(t) for t in (heads.cos, heads.sin))
    return Heads(some(heads.q), some(heads.k), some(heads.v), spikes, cos, sin)
