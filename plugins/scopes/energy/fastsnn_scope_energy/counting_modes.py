"""What the counting pass sees below modules: torch's functions, their operators, and the integer path's own."""

from __future__ import annotations

import contextlib
from typing import Any

from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from fastsnn_core.ops.dispatch import substitute
from fastsnn_integer import deterministic

CONVOLUTIONS = (F.conv1d, F.conv2d, F.conv3d)
PRODUCTS = ("mul", "mul_", "div", "div_", "pow", "square")
NORMS = ("_fused_rms_norm", "native_layer_norm", "native_group_norm", "native_batch_norm", "_native_batch_norm_legit")


class Functions(TorchFunctionMode):
    """Linear layers, convolutions, attention and embeddings, with what they were given."""

    def __init__(self, watcher: Any) -> None:
        super().__init__()
        self.watcher = watcher

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Count the call, then make it; meanwhile the operator level is silent."""
        w, kwargs = self.watcher, kwargs or {}
        if w.quiet or func not in (F.linear, F.scaled_dot_product_attention, F.embedding, *CONVOLUTIONS):
            return func(*args, **kwargs)
        w.quiet += 1
        try:
            if func is F.linear:
                weight = args[1]
                w.linear(args[0], weight.shape[1], weight.shape[0], w.names.get(id(weight), "(functional)"))
            elif func is F.scaled_dot_product_attention:
                bound = dict(zip(("q", "k", "v", "attn_mask", "dropout_p", "is_causal"), args)) | kwargs
                w.attention(bound["q"], bound["k"], bound["v"], bound.get("attn_mask"), bound.get("is_causal", False))
            elif func in CONVOLUTIONS:
                w.convolution(func, args[0], args[1], args[2:], kwargs)
            out = func(*args, **kwargs)
            if func is F.embedding:
                w.found.embedded += out.numel()
            return out
        finally:
            w.quiet -= 1


class Operators(TorchDispatchMode):
    """What is left: matrix products (linear attention and the like) and elementwise products of floats."""

    def __init__(self, watcher: Any) -> None:
        super().__init__()
        self.watcher = watcher

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """No: the default wraps this class in torch.compile's machinery, whose import costs seconds."""
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run and count."""
        out = func(*args, **(kwargs or {}))
        if self.watcher.quiet:
            return out
        name = func.overloadpacket.__name__
        if name in ("mm", "bmm", "addmm", "baddbmm", "mv", "dot"):
            a, b = args[-2:] if name in ("mm", "bmm", "mv", "dot") else args[1:3]
            self.watcher.found.attention_macs += a.numel() * (b.shape[-1] if b.ndim > 1 else 1)
        elif name in PRODUCTS and out.is_floating_point():
            self.watcher.found.products += out.numel()
        elif name in NORMS:
            self.watcher.found.products += 2 * out[0].numel()
        return out


def exact_forms(watcher: Any) -> contextlib.AbstractContextManager[None]:
    """The integer path's own attention, scans and exponentials are counted as what they are, not by their steps."""

    def attend(q: Tensor, k: Tensor, v: Tensor, allowed: Tensor) -> None:
        watcher.attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), allowed[:, None], False)

    def scan(q: Tensor, k: Tensor, v: Tensor, gate: Tensor, *_: Tensor) -> None:
        b, t, groups, size = k.shape
        per_token = groups * (2 if len(gate) else 1) + q.shape[2]  # decay, update; and every query reads
        watcher.found.attention_macs += b * t * size * v.shape[-1] * per_token

    def quietly(naive: Any, count: Any) -> Any:
        def call(*args: Any) -> Any:
            if not watcher.quiet:
                count(*args)
            watcher.quiet += 1
            try:
                return naive(*args)
            finally:
                watcher.quiet -= 1

        return call

    counters = ((deterministic.ATTEND, attend), (deterministic.SCAN, scan), (deterministic.UNARY, lambda x, form: None))
    return substitute({operator.name: quietly(operator.naive, count) for operator, count in counters})
