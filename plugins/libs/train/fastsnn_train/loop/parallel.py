"""More than one process: who they are, what they share, and how gradients meet.

Started by ``torchrun --nproc-per-node N -m fastsnn fit spec.toml --out DIR``. Every process sees the same global batch:

- ``ddp``: each takes ``batch_size / N`` rows; gradients are averaged.
- ``fsdp``: the same, and parameters, gradients and moments live in N shards (FSDP2, ``fully_shard`` per block).
- ``sequence``: each takes ``T / N`` tokens of every row; states are handed on (`fastsnn_train.loop.sequence`).

One process trains as if nothing had been asked for, so one spec serves a laptop and a cluster.
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
    """This process among its `size` fellows; `kind` says what they share."""

    kind: str = "none"
    rank: int = 0
    size: int = 1

    @property
    def leader(self) -> bool:
        """Does this process log and write?"""
        return self.rank == 0

    def rows(self, tokens: Tensor) -> Tensor:
        """This process's rows of a global batch."""
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
        """Make `tensor` the mean of every process's."""
        if self.size > 1:
            dist.all_reduce(tensor)
            tensor.div_(self.size)

    def first(self, value: Any) -> Any:
        """The leader's `value`, on every process."""
        if self.size == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, 0)
        return box[0]

    def lead(self, act: Callable[[], Any]) -> Any:
        """What the leader's ``act()`` returns, on every process; an error it raises is raised on all of them."""
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
        """Every process's `value`, in order of rank."""
        if self.size == 1:
            return [value]
        found: list[Any] = [None] * self.size
        dist.all_gather_object(found, value)
        return found

    def wait(self) -> None:
        """Until every process is here."""
        if self.size > 1:
            dist.barrier()


def join_group(kind: str) -> World:
    """The world torchrun made, or a world of one."""
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        return World()
    if kind == "none":
        raise FastSNNError(
            f"{size} processes were started; say what they share with [train] parallel = 'ddp' or 'fsdp'"
        )
    if not dist.is_initialized():
        import torch.distributed.nn.functional  # now: imported later, defaults of its functions hold the group

        cuda = torch.cuda.is_available()
        if cuda:
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        dist.init_process_group("cpu:gloo,cuda:nccl" if cuda else "gloo")
    return World(kind, dist.get_rank(), dist.get_world_size())


def leave_group(world: World) -> None:
    """Give up what `join` opened, when every process is here and nothing that trained is held any more.

    What still holds the group keeps its threads, and a process that ends while one of them lets go of a tensor aborts
    (SIGABRT, "terminate called without an active exception").
    """
    if world.size > 1 and dist.is_initialized():
        from torch.distributed import tensor

        world.wait()
        with contextlib.suppress(ImportError, AttributeError):  # private names, which another torch may not have
            from torch.distributed.tensor import _redistribute, debug

            debug._clear_sharding_prop_cache()  # all these caches of DTensor hold meshes, which hold groups
            _redistribute.clear_redistribute_planner_cache()
        for kept in gc.get_objects():
            if isinstance(kept, functools._lru_cache_wrapper) and str(kept.__module__).startswith(tensor.__name__):
                kept.cache_clear()
        gc.collect()  # DDP's reducer is in cycles
        dist.destroy_process_group()


class DistributedModel:
    """A model as the training step calls it: ``network(tokens, reset)``, gradients met after the last piece."""

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
        """Logits of ``tokens [B,T]``; in a sequence world, of this process's share of T."""
        if self.world.kind == "sequence":
            from fastsnn_train.loop.sequence import sequence_parallel

            return sequence_parallel(self.model, tokens, reset=reset)
        return self.called(tokens, reset=reset) if reset is not None else self.called(tokens)

    def share(self, tokens: Tensor) -> Tensor:
        """The columns of ``[B,T]`` this process works on."""
        if self.world.kind != "sequence":
            return tokens
        if tokens.shape[1] % self.world.size:
            raise FastSNNError(f"{tokens.shape[1]} tokens cannot be shared evenly by {self.world.size} processes")
        return tokens.chunk(self.world.size, 1)[self.world.rank]

    @contextlib.contextmanager
    def piece(self, last: bool) -> Iterator[None]:
        """Around one piece of an accumulated batch: gradients travel with the last one only."""
        if self.world.kind == "fsdp":
            self.model.set_requires_gradient_sync(last)  # type: ignore[operator]
        hold = self.world.kind == "ddp" and not last
        with self.called.no_sync() if hold else contextlib.nullcontext():  # type: ignore[operator]
            yield

    def rest(self) -> None:
        """After a forward pass without a backward: FSDP's root would keep its parameters gathered."""
        if self.world.kind == "fsdp":
            for module in self.model.modules():
                if hasattr(module, "reshard"):
                    module.reshard()  # type: ignore[operator]

    def meet(self) -> None:
        """Average what neither DDP nor FSDP did: all of it in a sequence world, numbers without a shard under FSDP."""
        if self.world.size == 1 or self.world.kind == "ddp":
            return
        left = [p.grad for p in self.model.parameters() if p.grad is not None and not is_sharded(p)]
        for grad in left:
            self.world.average_(grad)


def shard(model: nn.Module) -> None:
    """FSDP2 on every block of every ModuleList and on the rest; single numbers (thresholds) stay whole."""
    from torch.distributed.fsdp import fully_shard

    # states hold views of what came before; no layer changes anything in place
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module")
    whole = {p for p in model.parameters() if p.ndim == 0}
    for stack in [m for m in model.modules() if isinstance(m, nn.ModuleList)]:
        for block in stack:
            if any(p not in whole for p in block.parameters()):
                fully_shard(block, ignored_params=whole)
    fully_shard(model, ignored_params=whole)


def is_sharded(tensor: Any) -> bool:
    """Is it a DTensor?"""
    return hasattr(tensor, "full_tensor")


def full(tensor: Tensor) -> Tensor:
    """The whole of a (possibly sharded) tensor; every process must ask."""
    shards: Any = tensor
    return shards.full_tensor() if is_sharded(tensor) else tensor


def whole_model(model: nn.Module) -> nn.Module:
    """`model` as it is, or an ordinary copy of a sharded one with the same spec, tokenizer and meta."""
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
