"""Collects the tensors of a run (model, optimizer states, EMA) by name, and loads them back."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from fastsnn_train.loop.checkpoint import CheckpointError, Tensors
from fastsnn_train.loop.optim import WeightAverage, parameter_states


def model_tensors(model: nn.Module) -> Tensors:
    """Parameters and persistent buffers by name; tied tensors appear once."""
    found: dict[int, tuple[str, Tensor]] = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        found.setdefault(id(tensor), (name, tensor))
    return dict(found.values())


def take(model: nn.Module, optimizer: torch.optim.Optimizer, average: WeightAverage | None) -> Tensors:
    """All tensors of a checkpoint: model, optimizer states and EMA. They are references, not copies."""
    tensors = {f"model/{name}": t.detach() for name, t in model_tensors(model).items()}
    tensors |= {f"optimizer/{name}": t for name, t in parameter_states(model, optimizer).items()}
    return tensors | ({f"ema/{name}": t for name, t in average.weights.items()} if average else {})


def sharded_like(model: nn.Module) -> Tensors:
    """A tensor with the sharding of each tensor of a checkpoint; moments and EMA are sharded like the parameter."""
    table = {f"model/{name}": t.detach() for name, t in model_tensors(model).items()}
    for name, p in model.named_parameters():
        table |= {f"{part}/{name}": p.detach() for part in ("ema", "optimizer/exp_avg", "optimizer/exp_avg_sq")}
        table[f"optimizer/step/{name}"] = torch.zeros(())
    return table


@torch.no_grad()
def put_model(model: nn.Module, tensors: Tensors, where: Any, part: str = "model") -> None:
    """Load the weights in place; raises `CheckpointError` for missing or unknown names and wrong shapes."""
    known = model_tensors(model) if part == "model" else dict(model.named_parameters())
    mine = {n.partition("/")[2]: t for n, t in tensors.items() if n.startswith(f"{part}/")}
    odd = sorted(set(known) ^ set(mine)) + [n for n in known if n in mine and known[n].shape != mine[n].shape]
    if odd:
        more = f" and {len(odd) - 3} more" if len(odd) > 3 else ""
        raise CheckpointError(f"{where} is of another model: {', '.join(odd[:3])}{more} differ")
    for name, tensor in known.items():
        tensor.copy_(mine[name])


@torch.no_grad()
def put(
    model: nn.Module, optimizer: torch.optim.Optimizer, average: WeightAverage | None, tensors: Tensors, where: Any
) -> None:
    """Load model, optimizer states and EMA in place: the inverse of `take`; raises `CheckpointError`."""
    put_model(model, tensors, where)
    for name, p in model.named_parameters():
        row = {what: tensors.get(f"optimizer/{what}/{name}") for what in ("step", "exp_avg", "exp_avg_sq")}
        if row["step"] is not None:
            optimizer.state[p] = {what: t.to(p.device) for what, t in row.items() if t is not None}
    if average:
        kept = {name: tensors.get(f"ema/{name}", tensors[f"model/{name}"]) for name in average.weights}
        average.weights = {name: t.to(average.weights[name].device).clone() for name, t in kept.items()}
