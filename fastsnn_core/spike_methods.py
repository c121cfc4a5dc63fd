"""What a SpikeTensor does when it is asked for a method of `torch.Tensor`: one table for all of them.

===================  ===============================================================================================
as spikes, exactly   `COPIES` (``clone``, ``detach``, ``cpu``, ``cuda``, …) and ``to``: another device, another type of
                     the value; the counts stay what they are
as their value       everything else: indexing and ``reshape``, ``T``, arithmetic, comparisons (``s == 0`` is
                     elementwise), reductions, iteration, ``tolist``, ``numpy``, ``item``, ``float(s)``, ``torch.cat``:
                     exactly what ``s.value()`` gives
a TypeError          in-place methods and `POINTERS`: spikes are values, and their memory is not that of the value. The
                     message says what to write instead
===================  ===============================================================================================

``F.linear`` and the convolutions run on the counts (`fastsnn_events`); a `DataLoader` batches spikes; `torch.vmap` is
given ``s.value()``. To index or reshape and keep spikes: ``s.rearrange(lambda t: t[:, -1:])``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from fastsnn_core.errors import ArgumentError

_POINTS = "data_ptr storage untyped_storage const_data_ptr share_memory_"
_UNARY = "neg pos abs invert eq ne lt le gt ge bool int float complex index contains"
_BINARY = "add sub mul truediv floordiv mod pow matmul and or xor lshift rshift"
_CHEAP = "layout is_cuda is_cpu is_meta is_sparse is_quantized is_mps is_xpu is_sparse_csr is_mkldnn is_ipu is_xla"
POINTERS, BINARY, CHEAP = (frozenset(row.split()) for row in (_POINTS, _BINARY, _CHEAP))
COPIES = frozenset({"clone", "contiguous", "cpu", "cuda", "detach", "ipu", "pin_memory", "xpu"})
DUNDERS = (
    *(f"__{side}{word}__" for word in sorted(BINARY) for side in ("", "r")),
    *(f"__{word}__" for word in _UNARY.split()),
    "__array__",
)
AUGMENTED = tuple(f"__i{word}__" for word in sorted(BINARY))


def densify(tree: Any) -> Any:
    """The same arguments with every SpikeTensor replaced by its value."""
    from fastsnn_core.spike_tensor import SpikeTensor

    if isinstance(tree, SpikeTensor):
        return tree.value()
    if isinstance(tree, tuple) and hasattr(tree, "_fields"):
        return type(tree)(*(densify(t) for t in tree))
    if isinstance(tree, tuple | list):
        return type(tree)(densify(t) for t in tree)
    if isinstance(tree, dict):
        return {k: densify(v) for k, v in tree.items()}
    return tree


def compact(scale: Tensor) -> Tensor:
    """An expanded scale, with one number again wherever a dimension only repeats it."""
    for dim in range(scale.ndim):
        if scale.shape[dim] > 1 and scale.stride(dim) == 0:
            scale = scale.narrow(dim, 0, 1)
    return scale


def no_such_method(name: str) -> ArgumentError:
    """The error of what a SpikeTensor does not do."""
    if name in POINTERS:
        return ArgumentError(
            f"a SpikeTensor has no {name}: its value is computed when asked for; keep v = spikes.value(), then v.{name}"
        )
    if name == "__setitem__":
        return ArgumentError("spikes are not changed in place (spikes[i] = x); write v = spikes.value() and v[i] = x")
    if name in AUGMENTED:
        return ArgumentError(f"spikes are not changed in place ({name}); write x = x + y instead of x += y")
    return ArgumentError(f"spikes are not changed in place ({name}); write {name} on v = spikes.value()")


def _as_value(name: str) -> Callable[..., Any]:
    def method(self: Any, *args: Any, **kwargs: Any) -> Any:
        return getattr(self.value(), name)(*densify(args), **densify(kwargs))

    return method


def _copied(name: str) -> Callable[..., Any]:
    def method(self: Any, *args: Any, **kwargs: Any) -> Any:
        return self._elsewhere(lambda: self._with(lambda t: getattr(t, name)(*args, **kwargs)))

    return method


def _refused(name: str) -> Callable[..., Any]:
    def method(self: Any, *args: Any, **kwargs: Any) -> Any:
        raise no_such_method(name)

    return method


def in_place(name: str) -> bool:
    """Is this the name of an operation that changes its first argument?"""
    return name in AUGMENTED or name == "__setitem__" or (name.endswith("_") and not name.endswith("__"))


def add_tensor_methods(cls: type) -> None:
    """Give `cls` every public method and property of `torch.Tensor` that it has not, by the table above."""
    own = {name for base in cls.__mro__[:-1] for name in vars(base)}
    names = [n for n in dir(Tensor) if not n.startswith("_")]
    for name in {*names, *DUNDERS, *AUGMENTED, "__getitem__", "__setitem__", "__dlpack__", "__dlpack_device__"} - own:
        if name in CHEAP:
            made: Any = property(lambda s, n=name: getattr(s._data, n))  # type: ignore[misc]
        elif not callable(getattr(Tensor, name, None)) and not name.startswith("__"):
            made = property(lambda s, n=name: getattr(s.value(), n))  # type: ignore[misc]
        else:
            kind = _copied if name in COPIES else _refused if in_place(name) or name in POINTERS else _as_value
            made = kind(name)
            made.__name__ = made.__qualname__ = name
            made.__doc__ = f"As `torch.Tensor.{name}`; see `fastsnn_core.spike_methods`."
        setattr(cls, name, made)


# -- how it is shown ----------------------------------------------------------------------------------------------


def facts(spikes: Any) -> dict[str, str]:
    """What `repr` and a notebook say, by name."""
    shown = {"shape": str(list(spikes.shape)), "counts": str(spikes._data.dtype).removeprefix("torch.")}
    if spikes.form == "dense":
        shown["steps"] = f"{spikes.steps} ({spikes.coder})" if spikes.coder else str(spikes.steps)
    if spikes.device.type == "meta" or not spikes.numel():
        return shown
    if spikes.device.type != "cpu":
        shown["device"] = str(spikes.device)
    counts, scale = spikes.counts.detach(), spikes.scale.detach()
    silent = float((counts == 0).sum()) / counts.numel()
    low, high = float(counts.min()), float(counts.max())
    shown["silent"] = f"{100 * silent:.4g}%"
    shown["mean |count|"] = f"{float(counts.double().abs().sum()) / counts.numel():.3g}"
    shown["range"] = f"{low:.10g} … {high:.10g}"
    first, last = float(scale.min()), float(scale.max())
    shown["scale"] = f"{first:.4g}" if first == last else f"{first:.4g} … {last:.4g}"
    return shown


def summary(spikes: Any, most: int = 8) -> str:
    """``SpikeTensor(count, shape [1, 2, 3], …, counts 0 2 -3 1 0 0)``."""
    rows = [f"{name} {value}" for name, value in facts(spikes).items()]
    if spikes.device.type != "meta" and spikes.numel():
        some = spikes.counts.detach().reshape(-1)[:most].tolist()
        rows.append("[" + ", ".join(f"{c:.10g}" for c in some) + (", …]" if spikes.numel() > most else "]"))
    return f"SpikeTensor({spikes.form}, {', '.join(rows)})"
