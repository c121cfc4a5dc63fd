"""Random wrong operands for every operator and kernel: run by `test_operand_fuzz` in a process of its own."""

import random
import sys
import warnings

import attrs
import torch
from torch import Tensor

from fastsnn_core import ops
from fastsnn_core.errors import FastSNNError
from fastsnn_kit.kernels import check_identical

warnings.simplefilter("ignore")
torch.set_num_threads(1)
draw = random.Random(int(sys.argv[1]))
budget = int(sys.argv[2])
KINDS = (torch.float32, torch.float64, torch.float16, torch.int8, torch.int32, torch.int64, torch.bool, torch.complex64)


def spoiled(t):
    """The tensor with another shape, type, layout, device, or numbers."""
    how = draw.randrange(12)
    if how == 0 and t.ndim:
        d = draw.randrange(t.ndim)
        return t.narrow(d, 0, draw.randrange(t.shape[d] + 1)) if t.shape[d] else t
    if how == 1 and t.ndim:
        return torch.cat([t, t], draw.randrange(t.ndim))
    if how == 2:
        return t.to(draw.choice(KINDS))
    if how == 3:
        return t.to("meta")
    if how == 4 and t.ndim > 1:
        return t.transpose(0, -1)
    if how == 5:
        return t[None]
    if how == 6 and t.ndim:
        return t.flatten()
    if how == 7 and t.ndim:
        return t.flip(draw.randrange(t.ndim))
    if how == 8 and t.ndim and t.shape[0]:
        return t[:1].expand(t.shape)
    if how == 9 and t.numel():
        return t.new_empty(draw.choice([0, 1, 7]))
    if how == 10 and t.dtype in (torch.int32, torch.int64):
        return t + draw.choice([-(2**31), 2**31 - 1, 2**62, -1, 1000]) if t.dtype == torch.int64 else t - 2**31
    return t.repeat_interleave(2, -1)[..., ::2] if t.ndim else t  # the same numbers, with gaps between them


def changed(value, chance):
    """A sample with some of its parts spoiled."""
    if isinstance(value, Tensor):
        return spoiled(value) if draw.random() < chance else value
    if attrs.has(type(value)):
        return attrs.evolve(
            value,
            **{
                f.name: changed(getattr(value, f.name), chance)
                for f in attrs.fields(type(value))
                if f.init and not callable(getattr(value, f.name)) and f.name.lstrip("_") == f.name
            },
        )
    if isinstance(value, (tuple, list)):
        return getattr(value, "_make", type(value))(changed(v, chance) for v in value)
    if isinstance(value, bool) or value is None or draw.random() > chance:
        return value
    if isinstance(value, int):
        return draw.choice([-1, 0, value + 1, 10**9, 1.5, "x"])
    if isinstance(value, float):
        return draw.choice([float("nan"), float("inf"), -value, "x", None])
    return draw.choice(["nosuch", 3]) if isinstance(value, str) else value


def copied(value):
    if isinstance(value, Tensor):
        return value.clone() if value.device.type != "meta" else value
    if attrs.has(type(value)):
        return attrs.evolve(
            value,
            **{
                f.name: copied(getattr(value, f.name))
                for f in attrs.fields(type(value))
                if f.init and not callable(getattr(value, f.name)) and f.name.lstrip("_") == f.name
            },
        )
    return getattr(value, "_make", type(value))(map(copied, value)) if isinstance(value, (tuple, list)) else value


ways = {}
for _, devices, table in ops.dispatch.kernels():
    for name, function in table.items():
        if "cpu" in devices:
            ways.setdefault(name, []).append(function)
refused = agreed = 0
for name, operator in sorted(ops.registered().items()):
    samples = list(operator.samples())
    assert samples, name
    for _ in range(budget):
        drawn, chance = draw.choice(samples), draw.choice([0.15, 0.4])
        kept = 1 if name == "decode_step" else 0  # the plan is what modules say of themselves, not an operand
        try:
            sample = (*drawn[:kept], *changed(drawn[kept:], chance))
        except FastSNNError:  # what says what it must be when it is made, as a cell's program does
            refused += 1
            continue
        for function in (*ways.get(name, []), "operator"):
            print(name, flush=True, file=sys.stderr)
            mine, theirs = copied(sample), copied(sample)
            with torch.no_grad():
                try:
                    if function == "operator":
                        device = next((x.device.type for x in mine if isinstance(x, Tensor)), "cpu")
                        plain = operator.run is ops.dispatch._call_directly
                        found = operator(device, *mine) if plain else operator.run(operator.naive, *mine)
                    else:
                        found = operator.run(function, *mine)
                except (FastSNNError, OverflowError):
                    refused += 1
                    continue
                if found is NotImplemented or any(getattr(x, "is_meta", False) for x in sample):
                    continue
                with ops.use("naive"):
                    wanted = operator.run(operator.naive, *theirs)
            check_identical(found, wanted, name)
            agreed += 1
print(f"refused {refused} agreed {agreed}")
assert refused, agreed
