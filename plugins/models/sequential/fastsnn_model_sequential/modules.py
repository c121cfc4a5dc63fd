"""Two modules that torch.nn has no single name for: batch norm of any rank, and the mean over time."""

from __future__ import annotations

from torch import Tensor, nn

from fastsnn_conversion.time_folding import running_pass
from fastsnn_core.errors import FastSNNError
from fastsnn_core.spike_tensor import plain


class BatchNorm(nn.BatchNorm1d):
    """Statistics per channel (dimension 1) of ``[N, C, …]``, whatever the rank."""

    converts_as = nn.BatchNorm1d

    def _check_input_dim(self, input: Tensor) -> None:
        if input.ndim < 2:
            raise FastSNNError(f"batch norm needs [N, C, …], got {tuple(input.shape)}")


class TimeMean(nn.Module):
    """Mean over the tokens T of the running pass: ``[B·T, …] -> [B, …]``; the input itself where there is no time."""

    def forward(self, x: Tensor) -> Tensor:
        """Averages, and tells the pass that time is gone."""
        stream, x = running_pass(), plain(x)
        if stream is None or stream.pooled:
            return x
        out = x.reshape(stream.batch, stream.time, *x.shape[1:]).mean(1)
        stream.time, stream.reset, stream.pooled = 1, None, True
        return out
