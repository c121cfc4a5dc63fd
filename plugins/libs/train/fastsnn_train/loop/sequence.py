"""Sequence parallelism: each process computes a share of the tokens and passes its states on, layer by layer.

Process r computes tokens ``[r T/N, (r+1) T/N)`` of every row. Its layer l needs only the final state of layer l of
process r-1, which has constant size (sums of linear attention, the last keys and values of a window). So process r runs
layer l while process r-1 runs layer l+1: a pipeline, full after N-1 layers. In the backward pass the gradients of these
states are sent back. Activations of T tokens are distributed over N processes. The result equals that of one
process up to the order of float additions, and, bit for bit on a CPU, that of `sequence_shares`. The same scheme for
linear attention: Sun et al. 2024, LASP, arXiv 2404.02882.
"""

from __future__ import annotations

import weakref
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from fastsnn_core.errors import ArgumentError, FastSNNError
from fastsnn_core.spike_tensor import SpikeTensor
from fastsnn_core.state import leaves, tree_map

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.int64, torch.int32, torch.bool)
DIMS = 6
_forms: weakref.WeakKeyDictionary[nn.Module, Any] = weakref.WeakKeyDictionary()


def sequence_parallel(model: nn.Module, tokens: Tensor, *, reset: Tensor | None = None) -> Tensor:
    """Logits ``[B, T/N, V]`` of this process's share; every process gets the full ``tokens [B,T]``.

    With gradients enabled, every process must call ``backward`` on the loss of its share; weight gradients must then be
    summed over processes (averaged, for mean losses). Raises `FastSNNError` if N does not divide T.
    """
    rank, size = dist.get_rank(), dist.get_world_size()
    if tokens.shape[1] % size:
        raise FastSNNError(f"{tokens.shape[1]} tokens cannot be shared evenly by {size} processes")
    share = tokens.shape[1] // size
    mine = slice(rank * share, (rank + 1) * share)
    link = Link(rank, size, form(model))
    state = None if rank == 0 else Handed(link, document_offset(tokens, reset, rank * share))
    handles = [unit.register_forward_hook(link.pass_on(i)) for i, unit in enumerate(units(model))]
    try:
        logits = model(tokens[:, mine], state, reset=None if reset is None else reset[:, mine])
    finally:
        for handle in handles:
            handle.remove()
    link.wait()
    return Tie.apply(logits, *link.received) if link.received else logits


def sequence_shares(model: nn.Module, tokens: Tensor, size: int, *, reset: Tensor | None = None) -> list[Tensor]:
    """Single-process reference of `sequence_parallel`: logits ``[B, T/N, V]`` of each of `size` shares.

    States pass from share to share with gradients. Each share uses its own views of the weights, so that a weight's
    gradient is a sum of per-share gradients, as in an all-reduce. Raises `FastSNNError` if N does not divide T.
    """
    if tokens.shape[1] % size:
        raise FastSNNError(f"{tokens.shape[1]} tokens cannot be cut evenly into {size} shares")
    found, state = [], None
    marks = [None] * size if reset is None else reset.chunk(size, 1)
    for piece, mark in zip(tokens.chunk(size, 1), marks):
        views = {name: p.view_as(p) for name, p in model.named_parameters()}
        how = {"reset": mark, "return_state": True}
        logits, state = torch.func.functional_call(model, views, (piece, state), how)
        found.append(logits)
    return found


def units(model: nn.Module) -> list[nn.Module]:
    """Modules with state in order of execution, each ``(x, state, …) -> (y, state)``; `ArgumentError` if unknown."""
    try:
        return [model.embed_site, *model.layers, model.head_site]  # type: ignore[list-item, misc]
    except AttributeError as error:
        raise ArgumentError(f"{type(model).__name__} cannot be run over several processes: {error}") from None


@torch.no_grad()
def form(model: nn.Module) -> list[Any]:
    """Structure of each unit's state, found once by running the model on one token."""
    if model not in _forms:
        device = next(model.parameters()).device
        _, state = model(torch.zeros(1, 1, dtype=torch.long, device=device), return_state=True)
        _forms[model] = [state.embed, *state.layers, state.head]
    return _forms[model]


def document_offset(tokens: Tensor, reset: Tensor | None, place: int) -> Tensor:
    """Tokens since the last document start of each row at token `place`: ``[B]``."""
    if reset is None:
        return torch.full((len(tokens),), place, device=tokens.device)
    places = torch.arange(place, device=tokens.device)
    last = torch.where(reset[:, :place], places, 0).amax(1)
    return place - last


class Link:
    """Communication with the previous and next process during one forward and backward pass."""

    def __init__(self, rank: int, size: int, forms: list[Any]) -> None:
        self.before = rank - 1 if rank else None
        self.after = rank + 1 if rank + 1 < size else None
        self.forms = forms
        self.received: list[Tensor] = []  # one per unit that received a state, so that backward visits each
        self.open = 0
        self.pending: list[tuple[Any, Tensor]] = []

    def send(self, tensor: Tensor, to: int, tag: int) -> None:
        """Start an asynchronous send; `wait` completes it."""
        tensor = tensor.contiguous()
        self.pending.append((dist.isend(tensor, to, tag=tag), tensor))

    def wait(self) -> None:
        """Wait for all pending sends."""
        for work, _ in self.pending:
            work.wait()
        self.pending.clear()

    def pass_on(self, unit: int) -> Any:
        """Forward hook that sends the unit's new state to the next process, which returns its gradient in backward."""

        def hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
            y, state = output
            tensors = [t for _, t in leaves(state)]
            if self.after is None or not tensors:
                return output
            self.send(shapes_and_types(tensors), self.after, 2 * unit)
            for t in tensors:
                self.send(t.detach(), self.after, 2 * unit)
            floats = [t for t in tensors if t.is_floating_point()]
            if isinstance(y, SpikeTensor):
                return SpikeTensor(Give.apply(self, unit, y.counts, *floats), y.scale), state
            return Give.apply(self, unit, y, *floats), state

        return hook

    def take(self, unit: int, like: Tensor) -> Any:
        """Receive the state of this unit from the previous process."""
        known = [t for _, t in leaves(self.forms[unit])]
        if not known or self.before is None:
            return self.forms[unit]
        table = torch.zeros(len(known), 2 + DIMS, dtype=torch.int64, device=like.device)
        dist.recv(table, self.before, tag=2 * unit)
        tensors = []
        for kind, dims, *shape in table.tolist():
            tensors.append(torch.empty(shape[:dims], dtype=DTYPES[kind], device=like.device))
            dist.recv(tensors[-1], self.before, tag=2 * unit)
        floats = [t for t in tensors if t.is_floating_point()]
        if floats and torch.is_grad_enabled():
            root = torch.zeros((), device=like.device, requires_grad=True)
            given = Take.apply(self, unit, root, *floats)
            self.open += 1
            self.received.append(given[0])
            rows = iter(given)
            tensors = [next(rows) if t.is_floating_point() else t for t in tensors]
        rows = iter(tensors)
        return tree_map(lambda _: next(rows), self.forms[unit])


def shapes_and_types(tensors: list[Tensor]) -> Tensor:
    """Dtype index, number of dimensions and shape of each tensor: int64 ``[tensors, 2 + DIMS]``."""
    rows = [[DTYPES.index(t.dtype), t.ndim, *t.shape, *[0] * (DIMS - t.ndim)] for t in tensors]
    return torch.tensor(rows, dtype=torch.int64, device=tensors[0].device)


class Handed:
    """A model state whose parts are received when the model accesses them."""

    deferred = True  # tells the decoder not to access all parts up front

    def __init__(self, link: Link, position: Tensor) -> None:
        self.link, self.position = link, position

    @property
    def embed(self) -> Any:
        """State of the site after the embedding."""
        return self.link.take(0, self.position)

    @property
    def layers(self) -> Handed:
        """States of the layers, by index."""
        return self

    def __getitem__(self, i: int) -> Any:
        return self.link.take(1 + i, self.position)

    @property
    def head(self) -> Any:
        """State of the site before the head."""
        return self.link.take(len(self.link.forms) - 1, self.position)


class Give(torch.autograd.Function):
    """Identity on `y`; its backward receives the gradients of the states that were sent."""

    @staticmethod
    def forward(ctx: Any, link: Link, unit: int, y: Tensor, *sent: Tensor) -> Tensor:
        """`y`, unchanged."""
        ctx.link, ctx.unit = link, unit
        ctx.like = [(t.shape, t.dtype, t.device) for t in sent]
        return y.view_as(y)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        """Receive the gradients of the sent states from the next process."""
        found = []
        for shape, dtype, device in ctx.like:
            found.append(torch.empty(shape, dtype=dtype, device=device))
            dist.recv(found[-1], ctx.link.after, tag=2 * ctx.unit + 1)
        return None, None, grad, *found


class Take(torch.autograd.Function):
    """Identity on received states; its backward sends their gradients to the previous process."""

    @staticmethod
    def forward(ctx: Any, link: Link, unit: int, root: Tensor, *received: Tensor) -> tuple[Tensor, ...]:
        """The received states, unchanged."""
        ctx.link, ctx.unit = link, unit
        return tuple(t.view_as(t) for t in received)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        """Send the gradients to the previous process."""
        link: Link = ctx.link
        for grad in grads:
            link.send(grad, link.before or 0, 2 * ctx.unit + 1)
        link.open -= 1
        if not link.open:
            link.wait()
        return None, None, None, *[None] * len(grads)


class Tie(torch.autograd.Function):
    """Identity on the logits that makes backward visit every received state, used or not."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, *received: Tensor) -> Tensor:
        """The logits, unchanged."""
        ctx.save_for_backward(*received)
        return logits.view_as(logits)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        """Zeros for the states."""
        return grad, *[torch.zeros_like(t) for t in ctx.saved_tensors]
