"""MLPs and CNNs as a spec: a list of layers over ``[B, *input]`` or, with time, ``[B, T, *input]``."""

from __future__ import annotations

from typing import Any

import torch
from attrs import frozen
from torch import Tensor, nn

from fastsnn_conversion.spike_layers import fed
from fastsnn_conversion.time_folding import cast_half, name_states, run_time_folded
from fastsnn_core import Model, hookimpl, param
from fastsnn_core.errors import FastSNNError
from fastsnn_core.moved import renamed
from fastsnn_events.runtime import Switchable
from fastsnn_model_sequential.describe import describe
from fastsnn_model_sequential.layer import Layer
from fastsnn_model_sequential.pieces import open_for_pieces, run_piece
from fastsnn_model_sequential.quantised import IntegerForm, spec_in_int8
from fastsnn_modules.shown import model_html
from fastsnn_modules.torch_calls import TorchCalls

__version__ = "0.1.0"
__all__ = ["Layer", "Sequential", "SequentialModule", "describe", "fastsnn_models", "fit_thresholds"]

SPIKES = {"op": "spikes", "neuron": {"kind": "adaptive_threshold"}}
DRAWN: tuple[tuple[dict[str, Any], ...], ...] = (
    ({"op": "linear", "size": 8}, {"op": "relu"}, SPIKES, {"op": "linear", "size": 3}),
    (SPIKES, {"op": "linear", "size": 4}, {"op": "batch_norm"}, {"op": "gelu"}, {"op": "mean"}),
    (
        {"op": "conv2d", "size": 4, "kernel": [3], "padding": [1]},
        {"op": "relu"},
        SPIKES,
        {"op": "max_pool", "kernel": [2]},
        {"op": "flatten"},
        {"op": "linear", "size": 3},
    ),
    (SPIKES, {"op": "conv_transpose2d", "size": 2, "kernel": [2], "stride": [2]}, {"op": "avg_pool", "kernel": [3]}),
)


@frozen
class Sequential(Model):
    """y = f_n(… f_2(f_1(x))).  x [B, *input] -> y [B, *output], or [B, T, *input] -> [B, T, *output].

    Each layer is applied to every t; neurons (``spikes`` layers) carry their state over T. ``return_state=True`` gives
    (y, state), and the state of a stream goes back in with its next piece; a ``mean`` layer averages over the T it is
    given, so such a network wants whole sequences. Weights are ``layers.<i>.<name>``.
    """

    name = "sequential"
    input: tuple[int, ...] = param(ge=1, doc="shape of one sample: [D], [C, L] or [C, H, W]", draw=((6,), (2, 6, 6)))
    layers: tuple[Layer, ...] = param(doc="the layers in order", draw=DRAWN)

    def __attrs_post_init__(self) -> None:
        self.shapes()

    def promises(self, flag: str) -> bool:
        """INT8 weights have no gradient."""
        return super().promises(flag) and not (flag == "differentiable" and any(layer.bits for layer in self.layers))

    def shapes(self) -> list[tuple[int, ...]]:
        """Shape of one sample in front of each layer, and behind the last."""
        found = [self.input]
        for i, layer in enumerate(self.layers):
            try:
                found.append(layer.after(found[-1]))
            except ValueError as error:
                raise FastSNNError(f"layers[{i}]: {error}") from None
        return found

    def build(self) -> SequentialModule:
        """The network."""
        return SequentialModule(self)

    def example(self, batch: int) -> Tensor:
        """Numbers in [0, 1) ``[batch, *input]``; token ids in front of an embedding."""
        generator = torch.Generator().manual_seed(7)
        if self.layers and self.layers[0].op == "embedding":
            return torch.randint(0, self.layers[0].features or 1, (batch, *self.input), generator=generator)
        return torch.rand(batch, *self.input, generator=generator)


class SequentialModule(IntegerForm, TorchCalls, Switchable, nn.Module):
    """The network of a `Sequential`."""

    def __init__(self, spec: Sequential) -> None:
        super().__init__()
        self.spec = spec
        shapes = spec.shapes()
        self.layers = nn.ModuleList(layer.build(shape) for layer, shape in zip(spec.layers, shapes))
        name_states(self)
        fit_thresholds(self, spec.example(8))

    def _repr_html_(self) -> str:
        return model_html(self)

    def body(self, x: Any) -> Any:
        """The layers, one after the other, over ``[N, …]``."""
        stream, at, layers = open_for_pieces(self), 0, tuple(self.layers)
        while at < len(layers):
            if stream is not None and (found := run_piece(self, layers, at, x, stream)) is not None:
                x, at = found
                continue
            layer = layers[at]
            x, at = layer(fed(layer, x)), at + 1
        return x

    def forward(self, x: Tensor, state: Any = None, *, reset: Tensor | None = None, return_state: bool = False) -> Any:
        """``[B, *input]`` or ``[B, T, *input]``; `reset` ``[B, T]`` marks first samples of new sequences."""
        reads_ids = bool(self.spec.layers) and self.spec.layers[0].op == "embedding"
        if isinstance(x, Tensor) and not (reads_ids or x.is_floating_point() or x.is_complex()):
            x = x.float()  # images in whole numbers
        inputs, wanted = cast_half(self, (x,)), tuple(self.spec.input)
        try:
            out, state = run_time_folded(self.body, inputs, (len(wanted) + 1,), state, reset)
        except (RuntimeError, IndexError) as error:
            if isinstance(error, FastSNNError) or tuple(x.shape[x.ndim - len(wanted) :]) == wanted:
                raise
            shape = ", ".join(map(str, wanted))
            says = f"the network takes [B, {shape}] or [B, T, {shape}], got {list(x.shape)}: {error}"
            raise FastSNNError(says) from None
        return (out, state) if return_state else out

    def folded(self) -> SequentialModule:
        """A copy for inference, with batch norms folded into the layers before them (see `fold_batch_norms`)."""
        from fastsnn_model_sequential.folding import fold_batch_norms

        return fold_batch_norms(self)

    def with_int8(self, chosen: set[str]) -> Any:
        """The spec with INT8 weights in the layers of these names."""
        return spec_in_int8(self, chosen)


@torch.no_grad()
def fit_thresholds(network: nn.Module, x: Tensor | tuple[Tensor, ...]) -> None:
    """Give neurons with a fixed threshold one that fits their input: one pass over ``x [B, …]``, site after site.

    Batch norms work with the batch's statistics meanwhile, as training will see them, and keep their own as they were.
    """
    handles = []
    for module in network.modules():
        calibrate = getattr(module, "calibrate_", None)
        if callable(calibrate):

            def hook(_: nn.Module, args: tuple[Any, ...], calibrate: Any = calibrate) -> None:
                calibrate(args[0])

            handles.append(module.register_forward_pre_hook(hook))
    modes = {module: module.training for module in network.modules()}
    norms = [m for m in network.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.track_running_stats]
    kept = [{name: buffer.clone() for name, buffer in norm.named_buffers()} for norm in norms]
    network.eval()
    for norm in norms:
        norm.train()
    try:
        if handles:
            network(*(x if isinstance(x, tuple) else (x,)))
    finally:
        for norm, buffers in zip(norms, kept):
            for name, buffer in buffers.items():
                norm.get_buffer(name).copy_(buffer)
        for module, mode in modes.items():
            module.training = mode
        for handle in handles:
            handle.remove()


@hookimpl
def fastsnn_models() -> list[type[Model]]:
    """This plugin's models."""
    return [Sequential]


__getattr__ = renamed(__name__, {"settle": "fit_thresholds"})
