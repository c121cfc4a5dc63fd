"""Weights of one file and the spec they belong to: read without running anything."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastsnn_conversion.context import ConversionError
from fastsnn_convert.pickles import PICKLES
from fastsnn_core import Model
from fastsnn_core.files import reading_tensors
from fastsnn_core.spec import Faults, SpecError, converter, load

HEADER_LIMIT = 100 << 20


def read_state(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    path = Path(path)
    if path.suffix in PICKLES:
        raise ConversionError(
            f"{path} is a pickle, which runs code when it is read; supported: .safetensors (save it so with "
            "safetensors.torch.save_file(model.state_dict(), …)), or the state dict itself"
        )
    if not path.is_file():
        raise ConversionError(f"{path} does not exist; supported: a .safetensors file, a directory, or an nn.Module")
    size = path.stat().st_size
    with path.open("rb") as file:
        header = int.from_bytes(file.read(8), "little") if size >= 8 else -1
    if not 2 <= header <= min(HEADER_LIMIT, size - 8):
        what = "is too short" if size < 8 else f"says that its header is {header} bytes of {size}"
        raise ConversionError(f"{path} {what}: no safetensors file, or a damaged one; supported: .safetensors")
    try:
        with reading_tensors():
            return load_file(path)
    except SafetensorError as error:
        raise ConversionError(f"{path} is damaged: {error}; supported: .safetensors") from None


def read_inputs(path: str | Path) -> Tensor:
    """Calibration inputs ``[B, …]``: a .npy file, or a .safetensors file that holds one tensor."""
    path = Path(path)
    if path.suffix == ".npy":
        import numpy as np

        try:
            return torch.from_numpy(np.load(path, allow_pickle=False))
        except (OSError, ValueError) as error:
            raise ConversionError(f"{path} cannot be read: {error}; supported: .npy, .safetensors") from None
    found = read_state(path)
    if len(found) != 1:
        raise ConversionError(f"{path} holds {len(found)} tensors ({', '.join(found)}); one is needed")
    return next(iter(found.values()))


def spec_of(spec: Any, source: Any) -> Model:
    """A model component from itself, the path of a TOML file, or a table."""
    if isinstance(spec, Model):
        return spec
    if spec is None:
        raise ConversionError(
            f"{source if isinstance(source, str | Path) else 'a state dict'} holds weights only; say what network they "
            "belong to: spec= a Model component, a table, or a TOML file (--spec)"
        )
    if isinstance(spec, str | Path):
        return load(spec).model
    try:
        return converter().structure(dict(spec), Model)
    except (Faults, SpecError) as error:
        raise ConversionError(f"spec: {error}") from None
