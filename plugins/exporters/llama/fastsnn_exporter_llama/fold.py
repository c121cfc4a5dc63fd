"""A decoder without spikes: sites hand on numbers, centres go into the biases behind them."""

from __future__ import annotations

from typing import Any

import attrs
import torch
from torch import Tensor, nn

from fastsnn_convert.language.rebuild import bypass_neurons, rebuild, without_weights
from fastsnn_model_decoder import Decoder

CANCELLED = 1e-5
"""A bias below this share of what was subtracted from it is what rounding left of nothing."""


class Dense(nn.Module):
    """The model itself with its neurons passed by, for comparison."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits ``[B,T,V]``."""
        with bypass_neurons(self.model):
            return self.model(tokens)


def dense(model: Any) -> tuple[Any, Decoder]:
    """``(a decoder of its own tensors without sites, its spec)``; biases that fold to nothing are not there."""
    spec: Decoder = model.spec
    biases = folded(model)
    kept = {name: b for name, b in biases.items() if b is not None}
    plain = attrs.evolve(spec, sites=(), centred=(), at=())
    new: Any = rebuild(model, plain)
    state = {name: t.detach().clone() for name, t in new.state_dict().items()}
    for name in biases:
        state[name] = torch.zeros_like(state[name]) if name not in kept else kept[name].to(state[name].dtype)
    flags: dict[str, Any] = {"qkv_bias": False, "out_bias": False}
    bias = False
    for name, tensor in state.items():
        if name.endswith(".bias") and bool(tensor.any()):
            module = name.rsplit(".", 2)[-2]
            flags["qkv_bias"] |= module in ("q", "k", "v")
            flags["out_bias"] |= module == "out"
            bias |= module in ("gate", "up", "down")
    final = attrs.evolve(plain, **flags, feedforward=attrs.evolve(spec.feedforward, bias=bias))  # type: ignore[misc]
    made = without_weights(final)
    wanted = made.state_dict()
    missing = {n: torch.zeros(t.shape, dtype=torch.float32) for n, t in wanted.items() if n not in state}
    made.load_state_dict({n: state.get(n, missing.get(n)) for n in wanted}, assign=True)
    made.frequencies = final.rope.frequencies(final.dims.head_dim)
    return made.eval(), final


@torch.no_grad()
def folded(model: Any) -> dict[str, Tensor | None]:
    """``{name of a bias: b − W μ}`` of every projection behind a centred site; None where nothing is left."""
    found: dict[str, Tensor | None] = {}
    for i, layer in enumerate(model.layers):
        a, f = layer.attention, layer.feedforward
        rows: list[tuple[str, Any, list[str], Any]] = [("attention", a.inner.centre, ["q", "k", "v"], a)]
        outer = a.outer.centre
        if a.v_site.centre is not None:  # what every token's value lacks, every mixture of values lacks
            share = a.dims.n_heads // a.dims.n_kv_heads
            mu = a.v_site.centre.unflatten(0, (-1, a.dims.head_dim)).repeat_interleave(share, 0).flatten()
            outer = mu if outer is None else outer + mu
        rows.append(("attention", outer, ["out"], a))
        rows.append(("feedforward", f.inner.centre, [n for n in ("gate", "up") if getattr(f, n) is not None], f))
        rows.append(("feedforward", f.hidden.centre, ["down"], f))
        for part, mu, names, owner in rows:
            for name in names if mu is not None else ():
                layer_of = getattr(owner, name)
                moved = layer_of.weight.double() @ mu.double()
                before = torch.zeros_like(moved) if layer_of.bias is None else layer_of.bias.double()
                left = before - moved
                nothing = bool(
                    left.abs().max() <= CANCELLED * max(float(moved.abs().max()), float(before.abs().max()), 1e-30)
                )
                found[f"layers.{i}.{part}.{name}.bias"] = None if nothing else left.float()
    return found
