"""What a user gives as example, calibration, validation and healing data, as tensors that have the batch first."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs
import torch
from torch import Tensor, nn

from fastsnn_conversion.context import ConversionError
from fastsnn_convert.output_distance import output_tensors

HALF = (torch.float16, torch.bfloat16)
LOADED = 1024  # samples that are taken from a DataLoader
WHAT = "a tensor [B, …], a tuple of them (several inputs), or a dict (keyword arguments)"


def as_inputs(data: Any, name: str = "example") -> tuple[Tensor, ...]:
    """Inputs as a tuple of tensors, copies of the user's; empty for none.

    Arrays, ``.npy`` and ``.safetensors`` files and a `DataLoader` (its first 1024 samples; labels are left out) are
    taken, too. Errors name what is wrong, and with which sample.
    """
    if data is None:
        return ()
    if isinstance(data, str | Path):
        data = from_file(Path(data), name)
    if isinstance(data, torch.utils.data.DataLoader):
        data = from_loader(data, name)
    if isinstance(data, Mapping):
        found = tuple(v for v in data.values() if isinstance(v, Tensor))
    else:
        found = tuple(as_tensor(x) for x in (data if isinstance(data, tuple) else (data,)))
    if not found or not all(isinstance(x, Tensor) and x.ndim and len(x) for x in found):
        kinds = ", ".join(f"{type(x).__name__}" for x in (data if isinstance(data, tuple) else (data,)))
        raise ConversionError(
            f"example and calibration are tensors [B, …]: {name} is {WHAT}, with at least one sample; got {kinds}"
        )
    if len({len(x) for x in found}) > 1:
        sizes = ", ".join(str(list(x.shape)) for x in found)
        raise ConversionError(
            f"{name} has inputs of shapes {sizes}: the first dimension is the batch and has one size. What has no "
            "batch (an attention mask [L, L], say) belongs into the module, as a buffer"
        )
    for x in found:
        if x.is_complex() or x.is_sparse or x.is_meta:
            raise ConversionError(
                f"{name} is {x.dtype} ({x.layout}, on {x.device}); inputs are dense real numbers, or ids"
            )
        if x.is_floating_point() and not bool(x.isfinite().all()):
            bad = (
                (~x.isfinite()).flatten(1).any(1).nonzero().flatten()
                if x.ndim > 1
                else (~x.isfinite()).nonzero().flatten()
            )
            where = f"{len(bad)} of {len(x)} samples (the first is sample {int(bad[0])})"
            raise ConversionError(f"{name} holds NaN or infinite values in {where}")
    return tuple(x.detach().clone() for x in found)


def as_tensor(x: Any) -> Any:
    """NumPy arrays as tensors; anything else as it is."""
    return torch.from_numpy(x) if type(x).__module__ == "numpy" and hasattr(x, "__array_interface__") else x


def from_file(path: Path, name: str) -> Any:
    """A file of inputs."""
    from fastsnn_convert.modules.weights import read_inputs

    if path.suffix in (".npy", ".safetensors"):
        return read_inputs(path)
    raise ConversionError(
        f"{name}={str(path)[:80]!r} is text, which is for language models (a Hugging Face directory); a network of "
        f"layers takes {WHAT}, or a .npy or .safetensors file"
    )


def from_loader(loader: Any, name: str) -> Any:
    """The first samples of a DataLoader whose batches are inputs, or (inputs, labels)."""
    batches: list[Tensor] = []
    for batch in loader:
        first = batch[0] if isinstance(batch, tuple | list) else batch
        if not isinstance(first, Tensor):
            raise ConversionError(
                f"{name} is a DataLoader whose batches are {type(batch).__name__}; give tensors instead"
            )
        batches.append(first)
        if sum(map(len, batches)) >= LOADED:
            break
    return torch.cat(batches)[:LOADED] if batches else torch.empty(0)


def input_names(model: nn.Module, count: int) -> list[str]:
    """Names of the first `count` inputs of a model's forward, as its signature says them."""
    try:
        given = inspect.signature(model.forward).parameters.values()
    except (TypeError, ValueError):
        given = ()  # type: ignore[assignment]
    found = [p.name for p in given if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)][:count]
    spare = (name for name in ("x", "y", "z", *(f"x{i}" for i in range(1, count + 1))) if name not in found)
    return found + [next(spare) for _ in range(count - len(found))]


@attrs.frozen
class Call:
    """How a model is called: the names of its tensor inputs, whether they are given as keywords, and constants."""

    names: tuple[str, ...]
    keywords: bool = False
    constants: Mapping[str, Any] = attrs.field(factory=dict)

    @classmethod
    def of(cls, model: nn.Module, example: Any) -> Call:
        """`example` is a tensor, a tuple of them, or a dict of keyword arguments (whose other values are constants)."""
        if isinstance(example, Mapping):
            tensors = tuple(k for k, v in example.items() if isinstance(v, Tensor))
            return cls(tensors, True, {k: v for k, v in example.items() if k not in tensors})
        return cls(tuple(input_names(model, len(example) if isinstance(example, tuple) else 1)))

    def __call__(self, model: Any, inputs: Sequence[Any]) -> Any:
        """The model's output on tensors in the order of `names`."""
        return model(**dict(zip(self.names, inputs)), **self.constants) if self.keywords else model(*inputs)


def to_float32(data: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Inputs in half precision as float32, in which converted networks run."""
    return tuple(x.float() if x.dtype in HALF else x for x in data)


def check_batch_first(
    name: str, run: Callable[[Sequence[Tensor]], Any], given: Sequence[Tensor], model: nn.Module
) -> None:
    """The first dimension must be the batch: a sample's output may not depend on which others are there.

    Tried on the first two samples, alone and in the other order. Batch norms without running statistics do depend.
    """
    out = list(output_tensors(run(given)))
    n = len(given[0])
    batched = [i for i, y in enumerate(out) if y.ndim and len(y) == n and y.is_floating_point()]
    if not batched:
        shapes = ", ".join(str(list(y.shape)) for y in out) or "no tensor"
        raise ConversionError(
            f"{name} gives {shapes} for inputs of {n} samples: no output of numbers has the batch first. Convert a "
            "module [B, …] -> [B, …] (batch_first=True where there is such an option)"
        )
    if any(bool(out[i].isnan().any()) for i in batched):
        raise ConversionError(
            f"{name} gives NaN on the first samples of its data: it overflows there, or divides by zero"
        )
    if n < 2 or any(isinstance(m, nn.modules.batchnorm._BatchNorm) and m.running_mean is None for m in model.modules()):
        return
    again = list(output_tensors(run(given)))
    if any(not torch.equal(a, b) for a, b in zip(out, again) if not a.isnan().any()):
        raise ConversionError(
            f"{name} gives another output each time for the same input: something in its forward is random or keeps a "
            "state. Make it depend on its inputs and weights only (in evaluation mode)"
        )
    two = [x[:2] for x in given]
    try:
        both, turned = (list(output_tensors(run(x))) for x in (two, [x.flip(0) for x in two]))
        alone = list(output_tensors(run([x[:1] for x in two])))
    except ConversionError:
        return  # some forwards take one size of batch only
    for i in batched:
        y = both[i].double()
        top = float(y.nan_to_num(0.0, 0.0, 0.0).abs().max())
        far = 0.05 * top + 1e-3 if both[i].dtype in HALF else 1e-3 * top + 1e-5
        off = [
            float((z.double() - w).abs().max())
            for z, w in ((turned[i].flip(0), y), (alone[i], y[:1]))
            if z.shape == w.shape
        ]
        if not max(off, default=0.0) <= far:
            raise ConversionError(
                f"{name} does not treat dimension 0 as the batch: the output of one sample changes with the others (by "
                f"{max(off):.3g}). Sequences come batch first, [B, L, D]: batch_first=True, or a module that transposes"
            )
