"""What was counted: sites, weighted layers, and everything of a pass."""

from __future__ import annotations

import attrs
from torch import Tensor


@attrs.define
class Site:
    """Sums over a whole pass: channels seen, those that spoke, their spikes by two codes, and the range of counts.

    `membrane_bytes` is what one stream carries from token to token, `width` the channels of one token.
    """

    name: str
    channels: int = 0
    active: int = 0
    spikes: int = 0
    unary: int = 0
    largest: int = 0
    signed: bool = False
    membrane_bytes: int = 0
    width: int = 0

    @property
    def bits(self) -> int:
        """Bits of a count, its sign included where one occurs."""
        return max(1, self.largest.bit_length()) + self.signed


@attrs.define
class LayerCost:
    """Sums over a whole pass of one weighted layer; `site` is empty where it reads ordinary numbers."""

    name: str
    site: str
    weights: int
    inputs: int = 0
    outputs: int = 0
    macs: int = 0
    active_macs: int = 0
    sops: int = 0
    sops_unary: int = 0
    reads: int = 0
    active_reads: int = 0


@attrs.define
class OperationCounts:
    """Everything that was counted. `tokens` is what the sums are divided by: tokens, or samples of other models."""

    tokens: int
    unit: str
    sites: dict[str, Site] = attrs.field(factory=dict)
    layers: dict[tuple[str, str], LayerCost] = attrs.field(factory=dict)
    attention_macs: int = 0
    products: int = 0
    embedded: int = 0
    state_bytes: int = 0


@attrs.define(eq=False)
class SpikeRecord:
    """What one SpikeTensor says: the site it came from, and per entry whether it spoke, its bits and its magnitude."""

    site: str
    active: Tensor
    bits: Tensor
    unary: Tensor
