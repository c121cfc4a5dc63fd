"""The decoder's layers: attention with its projections, and the residual block."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import attrs
import torch
from torch import Tensor, nn
from torch.nn.modules import module as torch_module

from fastsnn_core import Attention, Dims, Feedforward, Heads, SpikeSite
from fastsnn_core.lowering import AttentionForm, BlockPlan, MixerForm, SoftmaxAttentionForm, Unsupported, lower
from fastsnn_events.coding import Coding

Site = Callable[[str, int], SpikeSite]
Angles = tuple[Tensor, Tensor] | None


class AttentionState(NamedTuple):
    """State of an attention layer: its spike sites and its mixer."""

    inner: Any
    query: Any
    key: Any
    value: Any
    mixer: Any
    outer: Any


class AttentionLayer(nn.Module):
    """spikes → q, k, v projections → mixer → spikes → output projection; ``(x [B,T,D], state, …) -> (y, state)``."""

    batch_invariant = False

    def __init__(
        self,
        spec: Attention,
        dims: Dims,
        site: Site,
        *,
        bias: bool,
        out_bias: bool,
        qk_norm: float,
        out_norm: float = 0.0,
    ) -> None:
        super().__init__()
        self.dims, self.rotary = dims, any_rotary(spec)
        h, g, width = dims.n_heads, dims.n_kv_heads, dims.head_dim
        sizes = {"q": h * width, "k": g * width, "v": g * width}
        self.inner = site("attn_in", dims.d_model)
        self.q, self.k, self.v = (
            nn.Linear(dims.d_model, size, bias=bias) if name in spec.projections else None
            for name, size in sizes.items()
        )
        self.q_norm, self.k_norm = (
            nn.RMSNorm(width, eps=qk_norm) if qk_norm and name in spec.projections else None for name in ("q", "k")
        )
        self.q_site, self.k_site, self.v_site = (
            site(name, size) if name in spec.projections else SpikeSite(None, size) for name, size in sizes.items()
        )
        self.mixer = spec.build_with_sites(dims, site)
        inside = h * width * spec.expansion
        self.out_norm = nn.RMSNorm(inside, eps=out_norm) if out_norm else None
        self.outer = site("attn_out", inside)
        self.out = nn.Linear(inside, dims.d_model, bias=out_bias)

    def forward(
        self, x: Tensor, state: AttentionState | None, reset: Tensor | None, angles: Angles
    ) -> tuple[Tensor, AttentionState]:
        """Mix the tokens of a (piece of a) stream."""
        s = state or AttentionState(*[None] * 6)
        spikes, inner = self.inner(x, s.inner, reset)
        q, k, v = (self.projected(layer, spikes, x) for layer in (self.q, self.k, self.v))
        q = q if self.q_norm is None else self.q_norm(q)
        k = k if self.k_norm is None else self.k_norm(k)
        heads = Heads(q, k, v, spikes, *(angles if angles and self.rotary else (None, None)))
        heads, query, key, value = self.spiking_heads(heads, s, reset)
        mixed, mixer = self.mixer(heads, s.mixer, reset)
        mixed = mixed.flatten(2)
        spikes, outer = self.outer(mixed if self.out_norm is None else self.out_norm(mixed), s.outer, reset)
        return self.out(spikes), AttentionState(inner, query, key, value, mixer, outer)

    def projected(self, layer: nn.Module | None, spikes: Any, x: Tensor) -> Tensor:
        """Heads ``[B,T,·,K]`` of one projection; none of one that the attention does not read."""
        if layer is None:
            return x.new_empty(*x.shape[:2], 0, self.dims.head_dim)
        return layer(spikes).unflatten(-1, (-1, self.dims.head_dim))

    def lower(self, whole: bool = True) -> AttentionForm:
        """Its sites, projections and mixers; without `whole` a mixer that has no form leaves `mixers` empty."""
        if self.q is None or self.k is None or self.v is None:
            raise Unsupported("an attention that does not read all of q, k and v has no fused form")
        for name in ("q_site", "k_site", "v_site"):
            site = getattr(self, name)
            if site.neuron is not None or site.centre is not None:
                raise Unsupported("spikes on queries, keys or values have no fused form", name)
        both = self.q_norm is not None and self.k_norm is not None
        return AttentionForm(
            inner=lower(self.inner, "inner"),
            q=lower(self.q, "q"),
            k=lower(self.k, "k"),
            v=lower(self.v, "v"),
            mixers=self.lower_mixer(whole),
            outer=lower(self.outer, "outer"),
            out=lower(self.out, "out"),
            q_norm=lower(self.q_norm, "q_norm") if both else None,
            k_norm=lower(self.k_norm, "k_norm") if both else None,
            out_norm=None if self.out_norm is None else lower(self.out_norm, "out_norm"),
        )

    def lower_mixer(self, whole: bool) -> tuple[MixerForm, ...]:
        """The forms of the mixer; softmax attention is rotated where the layer hands it angles."""
        try:
            forms = lower(self.mixer, "mixer")
        except Unsupported:
            if whole:
                raise
            return ()
        turn = self.rotary
        return tuple(
            attrs.evolve(f, rotary=f.rotary and turn) if isinstance(f, SoftmaxAttentionForm) else f for f in forms
        )

    def spiking_heads(self, heads: Heads, s: AttentionState, reset: Tensor | None) -> tuple[Heads, Any, Any, Any]:
        """q, k (after rotation) and v through their own spike sites, where the spec asks for them."""
        if all(site.neuron is None and site.centre is None for site in (self.q_site, self.k_site, self.v_site)):
            return heads, None, None, None
        q, k = heads.rotated()
        rows: list[Tensor] = []
        states: list[Any] = []
        for x, site, old in ((q, self.q_site, s.query), (k, self.k_site, s.key), (heads.v, self.v_site, s.value)):
            if not x.shape[2]:  # not read by the attention
                rows.append(x)
                states.append(None)
                continue
            y, new = site(x.flatten(2), old, reset)
            rows.append((y if isinstance(y, Tensor) else y.value().to(x.dtype)).reshape(x.shape))
            states.append(new)
        return Heads(rows[0], rows[1], rows[2], heads.x), *states


class BlockState(NamedTuple):
    """State of a block."""

    attention: AttentionState
    feedforward: Any


class Block(nn.Module):
    """x + attention(norm(x)), then + feedforward(norm(·)); ``(x [B,T,D], state, …) -> (y, state)``."""

    batch_invariant = False

    def __init__(
        self, attention: AttentionLayer, feedforward: Feedforward, d_ff: int, site: Site, norm: Callable[[], nn.Module]
    ) -> None:
        super().__init__()
        self.attention_norm, self.attention = norm(), attention
        self.feedforward_norm, self.feedforward = norm(), feedforward.build(attention.dims.d_model, d_ff, site)

    def lower(self, whole: bool = True) -> BlockPlan:
        """Norms, attention and feed-forward; see `AttentionLayer.lower`."""
        return BlockPlan(
            name="",
            attention_norm=lower(self.attention_norm, "attention_norm"),
            attention=lower(self.attention, "attention", whole=whole),
            feedforward_norm=lower(self.feedforward_norm, "feedforward_norm"),
            feedforward=lower(self.feedforward, "feedforward"),
        )

    def forward(
        self, x: Tensor, state: BlockState | None, reset: Tensor | None, angles: Angles
    ) -> tuple[Tensor, BlockState]:
        """One residual block."""
        first, second = state or (None, None)
        y, first = self.attention(self.attention_norm(x), first, reset, angles)
        x = x + y
        y, second = self.feedforward(self.feedforward_norm(x), second, reset)
        return x + y, BlockState(first, second)


def any_rotary(spec: Any) -> bool:
    """Does this attention, or any of its branches, want positions?"""
    return spec.rotary or any(any_rotary(branch) for branch in getattr(spec, "branches", ()))


def initialise(model: nn.Module, layers: int) -> None:
    """Embedding N(0, 1/D); weights N(0, 1/fan_in), 2·layers smaller where they write into the residual stream; bias 0.

    What a token is must outweigh what the 2·layers branches add before they have learnt anything, and logits of a tied
    head must begin with a spread of about 1. With an embedding of 0.02 every layer saw little but the noise of the one
    before. A part with an ``initialise_()`` of its own has the last word on its weights.
    """
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear):
            deep = 2 * max(1, layers) if name.endswith((".out", ".down")) else 1
            nn.init.normal_(module.weight, std=module.in_features**-0.5 / deep)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight, std=module.embedding_dim**-0.5)
    for module in model.modules():
        if callable(own := getattr(module, "initialise_", None)):
            own()


def init_thresholds(model: nn.Module, vocab_size: int, longest: int = 0) -> None:
    """Give neurons with a fixed threshold one that fits: a pass of fixed pseudo-random tokens, site after site.

    The text has 32 tokens, or `longest` where a model reads fewer (0: as many as one likes).
    """
    handles = []
    for module in model.modules():
        calibrate = getattr(module, "calibrate_", None)
        if callable(calibrate):

            def hook(_: nn.Module, args: tuple[Any, ...], calibrate: Any = calibrate) -> None:
                calibrate(args[0])

            handles.append(module.register_forward_pre_hook(hook))
    if handles:
        size = min(32, longest or 32)
        tokens = torch.randint(0, vocab_size, (2, size), generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            model(tokens)
    for handle in handles:
        handle.remove()


def refuse_hooks(model: nn.Module) -> None:
    """Refuse what kernels of whole blocks would leave out: hooks on modules, strict coding, training."""
    if torch_module._global_forward_hooks or torch_module._global_forward_pre_hooks:
        raise Unsupported("a hook on every module is registered, which a fused step would pass by")
    for name, module in model.named_modules():
        if module._forward_hooks or module._forward_pre_hooks:
            raise Unsupported("it has a hook, which a fused step would pass by", name or "the model")
        if isinstance(module, Coding) and module.active and module.strict:
            raise Unsupported("strict coding checks every count against its steps", name)
    if model.training:
        raise Unsupported("the model is in training mode")
