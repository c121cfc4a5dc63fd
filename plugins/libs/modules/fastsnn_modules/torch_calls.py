"""What PyTorch's users call on any model, where torch's own answer would not say what to do."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

import torch
from torch import nn

from fastsnn_core.errors import FastSNNError, UserError
from fastsnn_modules.state_dicts import check_is_state_dict, misfit


class TorchCalls(nn.Module):
    """A base of models: a missing device, a wrong state dict and TorchScript are refused in words."""

    def to(self, *args: Any, **kwargs: Any) -> Self:
        """`nn.Module.to`; errors: `UserError` where there is no such device (it names those that there are)."""
        check_device(kwargs["device"] if "device" in kwargs else args[0] if args else None)
        return super().to(*args, **kwargs)

    def cuda(self, device: int | torch.device | None = None) -> Self:
        """`nn.Module.cuda`; errors: `UserError` where there is no such device (it names those that there are)."""
        check_device("cuda" if device is None else device)
        return super().cuda(device)

    def xpu(self, device: int | torch.device | None = None) -> Self:
        """`nn.Module.xpu`; errors: `UserError` where there is no such device (it names those that there are)."""
        check_device("xpu" if device is None else f"xpu:{device}" if isinstance(device, int) else device)
        return super().xpu(device)

    def ipu(self, device: int | torch.device | None = None) -> Self:
        """`nn.Module.ipu`; errors: `UserError` where there is no such device (it names those that there are)."""
        check_device("ipu" if device is None else f"ipu:{device}" if isinstance(device, int) else device)
        return super().ipu(device)

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """`nn.Module.load_state_dict`; errors: `StateDictError` (which names and sizes do not fit, and what they come
        from), `ArgumentError` for what is no state dict."""
        check_is_state_dict(self, state_dict)
        try:
            return super().load_state_dict(state_dict, strict=strict, assign=assign)
        except FastSNNError:
            raise
        except RuntimeError as error:  # torch's, which lists names and not what they come from
            raise misfit(self, state_dict) from error

    def __prepare_scriptable__(self) -> Any:
        """Called by `torch.jit.script`. Errors: `UserError`, always."""
        raise UserError(
            f"torch.jit.script does not read {type(self).__name__}: its Python is more than TorchScript's. Take "
            "torch.compile(model) for speed, torch.export for a program, or fastsnn export MODEL.snn FILE --to onnx"
        )


def check_device(device: Any) -> None:
    """Refuse a device that torch has not here; anything but a device passes. Errors: `UserError`."""
    if isinstance(device, bool) or not isinstance(device, str | int | torch.device):
        return
    name = f"cuda:{device}" if isinstance(device, int) else str(device)
    if name != "meta":
        from fastsnn_console import arguments

        arguments.device(name)
