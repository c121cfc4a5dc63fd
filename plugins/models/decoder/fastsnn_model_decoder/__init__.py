"""A spiking causal language model: norms, grouped-query attention of any kind, spikes before every projection."""

from __future__ import annotations

import attrs
import torch
from attrs import frozen
from torch import Tensor

from fastsnn_core import Attention, Dims, Feedforward, Model, Neuron, hookimpl, moved, param, slot, slots
from fastsnn_core.errors import FastSNNError
from fastsnn_integer.quantization import Quant
from fastsnn_model_decoder.layers import any_rotary
from fastsnn_model_decoder.network import NORMS, DecoderModule
from fastsnn_model_decoder.network import DecoderState as DecoderState
from fastsnn_model_decoder.rope import Rope

__version__ = "0.1.0"
moved.add("fastsnn_model_decoder", {"fast": "fused_decode"})

SITES = ("attn_in", "attn_out", "ffn_in", "ffn_hidden", "embed", "q", "k", "v", "head")
PROJECTIONS = SITES[:4]


@frozen
class At:
    """Another neuron at some sites; of several that name a site the last counts."""

    sites: tuple[str, ...] = param(choices=SITES, doc="which sites")
    neuron: Neuron = slot(Neuron, "adaptive_threshold", doc="what makes the spikes there")


@frozen
class Decoder(Model):
    """x_0 = E[tokens];  x ← x + attention_l(norm(x));  x ← x + feedforward_l(norm(x));  logits = W norm(x_L) + b.

    tokens [B,T] -> logits [B,T,vocab_size]; ``return_state=True`` gives (logits, state), and the state of a stream goes
    back in with its next tokens. Layer l has attention[l mod len(attention)]. Spikes stand at `sites`: in front of
    every projection (attn_in, attn_out, ffn_in, ffn_hidden) by default; also possible after the embedding, on q and k
    after rotation, on v, and before the head. No sites makes it an ordinary dense decoder (Llama, Qwen). Sites that are
    `centred` take a constant off every channel first, which biases (or, for keys, the softmax) make up for.
    """

    name = "decoder"
    vocab_size: int = param(257, ge=1, doc="tokens; 257 is the byte tokenizer", draw=(17,))
    d_model: int = param(256, ge=2, unit="channels", doc="D, width of the residual stream", draw=(16, 32))
    n_layers: int = param(4, ge=1, le=1000, doc="blocks", draw=(1, 2))
    n_heads: int = param(4, ge=1, doc="H, query heads", draw=(2, 4))
    n_kv_heads: int = param(
        0, ge=0, doc="G, key/value heads shared by the query heads; 0 means as many", draw=(0, 1, 2)
    )
    head_dim: int = param(0, ge=0, unit="channels", doc="K; 0 means D / H", draw=(0, 8))
    d_ff: int = param(0, ge=0, unit="channels", doc="hidden width of the feed-forward; 0 means 8/3 D", draw=(0, 24))
    neuron: Neuron = slot(Neuron, "adaptive_threshold", doc="what makes the spikes at every site")
    sites: tuple[str, ...] = param(
        PROJECTIONS,
        choices=SITES,
        doc="where spikes stand; none makes the model dense",
        draw=(PROJECTIONS, SITES, ("ffn_in",)),
    )
    at: tuple[At, ...] = param((), doc="other neurons at some of the sites", draw=((),))
    centred: tuple[str, ...] = param(
        (), choices=SITES, doc="sites that subtract a constant from each channel", draw=((), ("attn_in", "k"))
    )
    attention: tuple[Attention, ...] = slots(Attention, "gla", "sliding_window", doc="cycled over the layers")
    feedforward: Feedforward = slot(Feedforward, "pulse", doc="the channel mixer of every layer")
    tied: bool = param(True, doc="the head shares the embedding's weights")
    rope: Rope = param(attrs.Factory(Rope), doc="rotary positions, for attentions that want them")
    learned_positions: int = param(
        0,
        ge=0,
        unit="tokens",
        doc="rows P_t that are added to the embedding of token t (OPT), in place of rotary ones",
        draw=(0, 48),  # two examples, one behind the other, fit; of 2 tokens one is to be learnt from
    )
    norm: str = param("rms", choices=tuple(NORMS), doc="RMSNorm, or LayerNorm with a bias (GPT-2, Phi)")
    norm_eps: float = param(1e-5, gt=0.0, le=0.1, doc="of every norm")
    qkv_bias: bool = param(False, doc="biases of the q, k and v projections (Qwen2)")
    out_bias: bool = param(False, doc="bias of the attention's output projection")
    head_bias: bool = param(False, doc="bias of the logits (GPT-J, Phi)")
    qk_norm: bool = param(False, doc="RMSNorm on each query and key head (Qwen3)")
    out_norm: bool = param(False, doc="RMSNorm in front of the attention's output projection (BitNet)")
    weights: str = param(
        "float",
        choices=("float", "ternary"),
        doc="of the blocks; ternary: trained at -1, 0, 1 times a scale, straight-through",
    )
    quant: Quant | None = param(
        None, doc="INT8, 4-bit or ternary weights and exact integer sums; float weights when left out"
    )

    def __attrs_post_init__(self) -> None:
        if not self.attention:
            raise FastSNNError("decoder needs at least one attention")
        if not self.head_dim and self.d_model % self.n_heads:
            raise FastSNNError(f"d_model {self.d_model} is not a multiple of n_heads {self.n_heads}; give head_dim")
        if self.n_heads % (self.n_kv_heads or self.n_heads):
            raise FastSNNError(f"n_heads {self.n_heads} is not a multiple of n_kv_heads {self.n_kv_heads}")
        if any(any_rotary(a) for a in self.attention) and self.dims.head_dim % 2:
            raise FastSNNError(f"rotary positions need an even head_dim, got {self.dims.head_dim}")
        if self.learned_positions == 1:
            raise FastSNNError("learned_positions = 1 is a text of one token; 0 is none, and a text has 2 at least")
        if self.quant and self.tied and self.quant.head != self.quant.embed:
            raise FastSNNError("tied weights are one table: quant.head and quant.embed must agree, or set tied = false")

    def promises(self, flag: str) -> bool:
        """INT8 weights have no gradient."""
        return super().promises(flag) and not (flag == "differentiable" and self.quant)

    @property
    def dims(self) -> Dims:
        """Sizes of an attention layer."""
        width = self.head_dim or self.d_model // self.n_heads
        return Dims(self.d_model, self.n_heads, self.n_kv_heads or self.n_heads, width)

    def neuron_at(self, site: str) -> Neuron | None:
        """What makes the spikes at a site, if anything does."""
        chosen = [row.neuron for row in self.at if site in row.sites]
        return ([self.neuron, *chosen])[-1] if site in self.sites else None

    def build(self) -> DecoderModule:
        """The network."""
        return DecoderModule(self)

    def example(self, batch: int) -> Tensor:
        """Token ids ``[batch, 12]``, or as many as there are learned positions."""
        tokens = min(12, self.learned_positions or 12)
        return torch.randint(0, self.vocab_size, (batch, tokens), generator=torch.Generator().manual_seed(7))


@hookimpl
def fastsnn_models() -> list[type[Model]]:
    """This plugin's models."""
    return [Decoder]
