"""A state dict that does not fit says which names, and where such names come from."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from fastsnn_core.errors import ArgumentError
from fastsnn_modules.state_dicts import StateDictError
from fastsnn_modules.torch_calls import TorchCalls


class Small(TorchCalls):
    """Two layers."""

    def __init__(self, width: int = 3) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(2, width), nn.Linear(width, 2)


def state(**changes: Any) -> dict[str, Any]:
    return dict(Small().state_dict()) | changes


def renamed(prefix: str) -> dict[str, Any]:
    return {prefix + name: t for name, t in state().items()}


LLAMA = {"model.layers.0.self_attn.q_proj.weight": torch.ones(1)}
ADAPTER = {"first.base_layer.weight": torch.ones(1), "first.lora_A.weight": torch.ones(1)}
WRONG: dict[str, tuple[Any, str]] = {
    "parallel": (renamed("module."), r"begins with 'module\.', as DataParallel .*removeprefix\('module\.'\)"),
    "compiled": (renamed("_orig_mod."), r"begins with '_orig_mod\.', as torch\.compile"),
    "missing": ({"first.weight": torch.ones(3, 2)}, r"missing: first\.bias, last\.weight, last\.bias\. .*strict=False"),
    "unknown": (state(extra=torch.ones(1)), r"not in this model: extra\. It is of a model built otherwise"),
    "sizes": (
        dict(Small(5).state_dict()),
        r"of another size: first\.weight is \[5, 2\] float32, the model's is \[3, 2\] float32, .*build this one with",
    ),
    "many": ({f"x{i}": torch.ones(1) for i in range(9)}, r"not in this model: x0, x1, x2, x3 \(and 5 more\)"),
    "llama": (LLAMA, r"names of a Hugging Face directory: FastSNN\.convert"),
    "adapter": (ADAPTER, r"low-rank adapters \(peft\): merge them"),
    "integers": ({"first.weight": torch.ones(3, 2, dtype=torch.int8)}, r"integer weights .* FastSNN\.load\(bundle\)"),
    "numbers": (state(**{"first.bias": 3}), r"no tensor: first\.bias is a int"),
}
NONE: dict[str, tuple[Any, str]] = {
    "path": ("model.pt", r"got the path 'model\.pt'; read it first: torch\.load"),
    "module": (Small(), r"got a module; pass its \.state_dict\(\)"),
    "None": (None, r"got NoneType"),
    "optimizer": (torch.optim.SGD(Small().parameters()).state_dict(), r"state of an optimizer"),
    "checkpoint": ({"model": state(), "step": 3}, r"a checkpoint that holds state dicts; pass its \['model'\]"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_does_not_fit_says_what_it_may_come_from(case: str) -> None:
    given, wanted = WRONG[case]
    with pytest.raises(StateDictError, match=rf"the state dict does not fit Small; .*{wanted}") as found:
        Small().load_state_dict(given)
    assert isinstance(found.value, RuntimeError)  # as torch raises, for those who catch it


@pytest.mark.parametrize("case", NONE)
def test_what_is_no_state_dict_is_refused_before_anything_is_copied(case: str) -> None:
    given, wanted = NONE[case]
    with pytest.raises(ArgumentError, match=wanted):
        Small().load_state_dict(given, strict=False)


def test_what_fits_is_loaded_as_by_torch() -> None:
    model, other = Small(), Small()
    found = model.load_state_dict(other.state_dict() | {"more": torch.ones(1)}, strict=False)
    assert found.unexpected_keys == ["more"]
    assert torch.equal(model.first.weight, other.first.weight)
    wrapped = nn.ModuleDict({"model": Small()})
    with pytest.raises(StateDictError, match=r"names of this model begin|built otherwise"):
        Small().load_state_dict(wrapped["model"].first.state_dict())
