"""W4A-spike: a bundle whose weights are 4 bits, in groups along the inputs, and whose sums per group are exact."""

from __future__ import annotations

import copy
import logging
from pathlib import Path
from typing import Any

import torch
from attrs import frozen
from torch import Tensor, nn

from fastsnn_core import Exporter, SpikeTensor, hookimpl, param
from fastsnn_core.errors import FastSNNError
from fastsnn_integer import four_bits
from fastsnn_integer.exporting import IntegerExporter
from fastsnn_integer.four_bits import FourBits
from fastsnn_integer.quantization import Quant, quantise
from fastsnn_integer.ternary import TernaryLinear

__version__ = "0.1.0"

LOG = logging.getLogger("fastsnn")
DAMP = 0.01  # of the mean of the diagonal, added to it
BLOCK = 128  # inputs between two updates of all that follow
PIECE, MOST = 512, 16384  # tokens of a calibration pass, and all of them at most


@frozen
class W4a(IntegerExporter):
    """y = (Σ_g (Σ_i c_i q_i · d_g + Σ_i c_i · m_g)) V, q in 0 … 15: 4 bits, scale and minimum per group of inputs.

    Scales are float16 as stored and float32 at work; sums per group are exact, groups are added one after the other, so
    counts, events and any batch give the same bits (`fastsnn_integer.four_bits`). Weights that are on such a grid stay
    on it: those of a GGUF in Q4_1 (group 32) or Q4_0 (group 32, minimum = false), and of GPTQ, AWQ and
    compressed-tensors directories (their group; minimum = false where they are symmetric) are not rounded a second
    time. For others `text` is read by the float model and every matrix rounded so that its output on it changes least
    (GPTQ: Frantar et al. 2022, arXiv 2210.17323; columns in order, Hessian 2 Σ x xᵀ damped by 1 %, inputs those of the
    float model); without it, to nearest. Embedding and head have 8 bits, or 4. The fused step reads the
    4-bit rows. Errors: a model without an integer form, weights that are not finite or beyond float16.
    """

    name = "w4a"
    group: int = param(32, choices=four_bits.GROUPS, unit="inputs", doc="inputs that share a scale")
    minimum: bool = param(True, doc="a minimum per group, as GGUF's Q4_1; without, symmetric as Q4_0")
    table_bits: int = param(8, choices=(8, 4), doc="of the embedding and the head")
    text: str = param("", doc="a text file for calibrated rounding; none: to nearest", draw=("",))

    def quant(self) -> Quant:
        """The decoder's table that this writes."""
        return Quant(bits=4, group=self.group, minimum=self.minimum, table_bits=self.table_bits)

    def expected(self, model: Any) -> Any:
        """The model with 4-bit weights."""
        new: Any = quantise(model, self.quant())
        layers = {name: m for name, m in new.named_modules() if isinstance(m, FourBits)}
        floats = {n: m.plain() if isinstance(m, TernaryLinear) else m for n, m in model.named_modules()}
        exact = []
        for name, layer in layers.items():
            weight = floats[name].weight.detach().float()
            on = torch.equal(layer.decoded(), weight)
            if not on and (found := four_bits.found_grid(weight, layer.group, bool(layer.minimum.numel()))):
                layer.take_(*found)
                on = True
            if on:
                exact.append(name)
        left = {n: m for n, m in layers.items() if n not in exact and isinstance(floats[n], nn.Linear)}
        if self.text and left:
            round_on_text(model, {name: (floats[name], m) for name, m in left.items()}, self.text)
        new.meta["milestones"][-1] |= {"exact": len(exact), "layers": len(layers), "calibrated": bool(self.text)}
        return new


@torch.no_grad()
def round_on_text(model: Any, layers: dict[str, tuple[nn.Linear, FourBits]], text: str) -> None:
    """Round the weights of `layers` (the float one, what takes its place) anew, on the inputs that a text gives."""
    tokens = tokens_of_file(model, text)
    reader = copy.deepcopy(model).eval()
    parts, sums = dict(reader.named_modules()), dict[str, Tensor]()
    handles = []
    for name in layers:

        def hook(_: nn.Module, args: tuple[Any, ...], name: str = name) -> None:
            x = args[0].value() if isinstance(args[0], SpikeTensor) else args[0]
            x = x.detach().float().reshape(-1, x.shape[-1])
            sums[name] = sums.get(name, 0) + x.T @ x

        handles.append(parts[name].register_forward_pre_hook(hook))
    for piece in tokens.split(PIECE):
        reader(piece[None])
    for handle in handles:
        handle.remove()
    for name, (linear, layer) in layers.items():
        if name not in sums:
            LOG.warning("w4a: %s saw nothing of the calibration text and is rounded to nearest", name)
            continue
        minimum = bool(layer.minimum.numel())
        layer.take_(*rounded(linear.weight.detach().float(), sums[name], layer.group, minimum))


def tokens_of_file(model: Any, text: str) -> Tensor:
    """Ids of a text file, at most `MOST`."""
    from fastsnn_text import tokenizer_of

    path = Path(text)
    if not path.is_file():
        raise FastSNNError(f"text: {text} is no file; give one with text for calibrated rounding, or none")
    ids = tokenizer_of(model).encode(path.read_text(encoding="utf-8"))[:MOST]
    if len(ids) < 2:
        raise FastSNNError(f"text: {text} holds no text to calibrate on")
    return torch.tensor(ids)


def rounded(weight: Tensor, hessian: Tensor, group: int, minimum: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Codes, d and m as `four_bits.encode`, each input's error made up for by the inputs behind it."""
    w, size = weight.clone(), weight.shape[1]
    h = hessian.double()
    silent = h.diagonal() == 0
    h.diagonal()[silent] = 1.0
    h.diagonal().add_(DAMP * h.diagonal().mean())
    try:
        upper = torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(h)), upper=True).float()
    except torch.linalg.LinAlgError:
        return four_bits.encode_four_bits(weight, group, minimum)
    codes = torch.empty_like(weight, dtype=torch.uint8)
    scales, lows = [], []
    d = m = w[:, :1]
    for begin in range(0, size, BLOCK):
        end = min(begin + BLOCK, size)
        errors = torch.zeros(len(w), end - begin)
        for i in range(begin, end):
            if i % group == 0:
                d, m = four_bits.grid(w[:, i : min(i + group, size)], minimum)
                scales.append(d[:, 0])
                lows.append(m[:, 0])
            q = four_bits.codes_of(w[:, i : i + 1], d, m)
            codes[:, i] = q[:, 0].to(torch.uint8)
            error = (w[:, i] - (q * d + m)[:, 0]) / upper[i, i]
            w[:, i:end] -= error[:, None] * upper[i, i:end]
            errors[:, i - begin] = error
        w[:, end:] -= errors @ upper[begin:end, end:]
    low = torch.stack(lows) if minimum else weight.new_empty(0)
    return codes, torch.stack(scales), low


@hookimpl
def fastsnn_exporters() -> list[type[Exporter]]:
    """This plugin's exporters."""
    return [W4a]
