"""Distributed training: process group, sharding and gradient reduction.

Started by ``torchrun --nproc-per-node N -m fastsnn fit spec.toml --out DIR``. Every process sees the same global batch:

- ``ddp``: each takes ``batch_size / N`` rows; gradients are averaged.
- ``fsdp``: also shards parameters, gradients and optimizer states over N processes (FSDP2, ``fully_shard`` per block).
- ``sequence``: each takes ``T / N`` tokens of every row and passes its state on (`fastsnn_train.loop.sequence`).

With a single process the setting has no effect, so one spec serves a laptop and a cluster.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import os
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import attrs
import torch
import torch.distributed as dist
from torch import Tensor, nn

from fastsnn_core.errors import FastSNNError


@attrs.frozen
class World:
    """Rank and world size of this process; `kind` is the kind of parallelism."""

    kind: str = "none"
    rank: int = 0
    size: int = 1

    @property
    def leader(self) -> bool:
        """Is this rank 0, which logs and writes files?"""
        return self.rank == 0

    def rows(self, tokens: Tensor) -> Tensor:
        """This process's rows ``[B/N, …]`` of a global batch ``[B, …]``; `FastSNNError` if N does not divide B."""
        if self.size == 1 or self.kind == "sequence":
            return tokens
        if len(tokens) % self.size:
            raise FastSNNError(f"a batch of {len(tokens)} sequences cannot be shared evenly by {self.size} processes")
        return tokens.chunk(self.size)[self.rank]

    def mean(self, numbers: list[float], device: torch.device | str = "cpu") -> list[float]:
        """Means over all processes."""
        if self.size == 1:
            return numbers
        table = torch.tensor(numbers, dtype=torch.float64, device=device)
        dist.all_reduce(table)
        return (table / self.size).tolist()

    def average_(self, tensor: Tensor) -> None:
        """Replace `tensor` in place by its mean over all processes."""
        if self.size > 1:
            dist.all_reduce(tensor)
            tensor.div_(self.size)

    def first(self, value: Any) -> Any:
        """Broadcast rank 0's `value` to every process."""
        if self.size == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, 0)
        return box[0]

    def lead(self, act: Callable[[], Any]) -> Any:
        """Run ``act()`` on rank 0 and broadcast its result; an exception it raises is raised on every process."""
        result, error = None, None
        if self.leader:
            try:
                result = act()
            except Exception as problem:
                if self.size == 1:
                    raise
                error = problem
        result, error = self.first((result, error))
        if error is not None:
            raise error
        return result

    def gather(self, value: Any) -> list[Any]:
        """The `value` of every process, ordered by rank."""
        if self.size == 1:
            return [value]
        found: list[Any] = [None] * self.size
        dist.all_gather_object(found, value)
        return found

    def wait(self) -> None:
        """Barrier: wait for every process."""
        if self.size > 1:
            dist.barrier()


def join_group(kind: str) -> World:
    """Join torchrun's process group; size 1 without torchrun. `FastSNNError`: kind "none" with N > 1."""
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        return World()
    if kind == "none":
        raise FastSNNError(
            f"{size} processes were started; say what they share with [train] parallel = 'ddp' or 'fsdp'"
        )
    if not dist.is_initialized():
        import torch.distributed.nn.functional  # imported after init, its default arguments would hold the group

        cuda = torch.cuda.is_available()
        if cuda:
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        dist.init_process_group("cpu:gloo,cuda:nccl" if cuda else "gloo")
    return World(kind, dist.get_rank(), dist.get_world_size())


def leave_group(world: World) -> None:
    """Destroy the process group after a barrier; call it once model and optimizer are no longer referenced.

    Remaining references keep the group's threads alive, and a process that exits while one of them frees a tensor
    aborts (SIGABRT, "terminate called without an active exception").
    """
    if world.size > 1 and dist.is_initialized():
        from torch.distributed import tensor

        world.wait()
        with contextlib.suppress(ImportError, AttributeError):  # private names, absent in some versions of torch
            from torch.distributed.tensor import _redistribute, debug

            debug._clear_sharding_prop_cache()  # these DTensor caches hold meshes, which hold process groups
            _redistribute.clear_redistribute_planner_cache()
        for kept in gc.get_objects():
            if isinstance(kept, functools._lru_cache_wrapper) and str(kept.__module__).startswith(tensor.__name__):
                kept.cache_clear()
        gc.collect()  # DDP's reducer is part of reference cycles
        dist.destroy_process_group()


class DistributedModel:
    """The model wrapped for distributed training; gradients are reduced after the last micro-batch."""

    def __init__(self, model: nn.Module, world: World) -> None:
        self.model, self.world = model, world
        self.called: nn.Module = model
        if world.size > 1:
            if torch.cuda.is_available():
                model.to(f"cuda:{torch.cuda.current_device()}")
            for tensor in (*model.parameters(), *model.buffers()):
                dist.broadcast(tensor.data, 0)
        if world.kind == "ddp":
            self.called = nn.parallel.DistributedDataParallel(
                model, forward_sync_buffers=False, init_sync=False, gradient_as_bucket_view=True
            )
        elif world.kind == "fsdp":
            shard(model)
        elif world.kind == "sequence":
            from fastsnn_train.loop.sequence import form

            form(model)

    def __call__(self, tokens: Tensor, reset: Tensor | None) -> Tensor:
        """Logits ``[B,T,V]`` of ``tokens [B,T]``; with sequence parallelism only of this process's T/N tokens."""
        if self.world.kind == "sequence":
            from fastsnn_train.loop.sequence import sequence_parallel

            return sequence_parallel(self.model, tokens, reset=reset)
        return self.called(tokens, reset=reset) if reset is not None else self.called(tokens)

    def share(self, tokens: Tensor) -> Tensor:
        """The columns of ``[B,T]`` that this process computes; raises `FastSNNError` if N does not divide T."""
        if self.world.kind != "sequence":
            return tokens
        if tokens.shape[1] % self.world.size:
            raise FastSNNError(f"{tokens.shape[1]} tokens cannot be shared evenly by {self.world.size} processes")
        return tokens.chunk(self.world.size, 1)[self.world.rank]

    @contextlib.contextmanager
    def piece(self, last: bool) -> Iterator[None]:
        """Context of one micro-batch under gradient accumulation: gradients are reduced with the last one only."""
        if self.world.kind == "fsdp":
            self.model.set_requires_gradient_sync(last)  # type: ignore[operator]
        hold = self.world.kind == "ddp" and not last
        with self.called.no_sync() if hold else contextlib.nullcontext():  # type: ignore[operator]
            yield

    def rest(self) -> None:
        """Reshard FSDP parameters after a forward pass without a backward pass, which would leave them gathered."""
        if self.world.kind == "fsdp":
            for module in self.model.modules():
                if hasattr(module, "reshard"):
                    module.reshard()  # type: ignore[operator]

    def meet(self) -> None:
        """Average the gradients that DDP or FSDP did not: all with sequence parallelism, scalars under FSDP."""
        if self.world.size == 1 or self.world.kind == "ddp":
            return
        left = [p.grad for p in self.model.parameters() if p.grad is not None and not is_sharded(p)]
        for grad in left:
            self.world.average_(grad)


def shard(model: nn.Module) -> None:
    """Apply FSDP2 to every block of every ModuleList and to the rest; scalars (thresholds) are not sharded."""
    from torch.distributed.fsdp import fully_shard

    # states hold views of earlier tensors; no layer modifies them in place
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module")
    whole = {p for p in model.parameters() if p.ndim == 0}
    for stack in [m for m in model.modules() if isinstance(m, nn.ModuleList)]:
        for block in stack:
            if any(p not in whole for p in block.parameters()):
                fully_shard(block, ignored_params=whole)
    fully_shard(model, ignored_params=whole)


def is_sharded(tensor: Any) -> bool:
    """Is it a sharded tensor (DTensor)?"""
    return hasattr(tensor, "full_tensor")


def full(tensor: Tensor) -> Tensor:
    """Gather a possibly sharded tensor; a collective, so every process must call it."""
    shards: Any = tensor
    return shards.full_tensor() if is_sharded(tensor) else tensor


def whole_model(model: nn.Module) -> nn.Module:
    """`model` itself, or an unsharded copy of a sharded one with the same spec, tokenizer and meta."""
    if not any(is_sharded(p) for p in model.parameters()):
        return model
    from fastsnn_core import build

    state = {name: full(t).detach().cpu() for name, t in model.state_dict().items()}
    with torch.random.fork_rng(devices=[]):
        spec: Any = model.spec
        copy = build(spec)
    for name, tensor in (*copy.named_parameters(), *copy.named_buffers()):
        if name in state:
            tensor.data = tensor.data.to(state[name].dtype)
    copy.load_state_dict(state)
    for name in ("meta", "sections", "tokenizer", "tokenizer_json"):
        if hasattr(model, name):
            setattr(copy, name, getattr(model, name))
    return copy
