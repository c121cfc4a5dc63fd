"""What a converted language model does on text: divergence from the dense model, site by site, and against steps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import attrs
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastsnn_convert.language.rebuild import numbers, site_table
from fastsnn_convert.report import row
from fastsnn_core import SpikeSite
from fastsnn_core.probe import probe

LOGITS = 1 << 26
"""Most logits of the dense model that are held at once (256 MB in float32)."""


@attrs.frozen(eq=False)
class Held:
    """Windows ``[N,T]`` that nothing was fitted on, and the dense model's log-probabilities there ``[N,T,V]``."""

    tokens: Tensor
    said: Tensor

    @classmethod
    def of(cls, dense: nn.Module, tokens: Tensor) -> Held:
        """As many of the windows as fit `LOGITS`."""
        size = tokens.shape[1] * int(dense.spec.vocab_size)  # type: ignore[union-attr]
        tokens = tokens[: max(1, LOGITS // size)]
        return cls(tokens, log_odds(dense, tokens))

    def compare(self, model: nn.Module) -> tuple[float, float]:
        """``(KL(dense ‖ model), cross-entropy of the model)`` in nats per token."""
        said = log_odds(model, self.tokens)
        kl = F.kl_div(said, self.said, log_target=True, reduction="none").sum(-1).mean()
        return float(kl), self.nats(said)

    def nats(self, said: Tensor) -> float:
        """Cross-entropy of the text in nats per token."""
        return float(F.nll_loss(said[:, :-1].flatten(0, 1), self.tokens[:, 1:].flatten()))


@torch.no_grad()
def log_odds(model: nn.Module, tokens: Tensor, batch: int = 8) -> Tensor:
    """Log-probabilities ``[N,T,V]`` in evaluation mode."""
    training = model.training
    model.eval()
    try:
        return torch.cat([model(piece).float().log_softmax(-1) for piece in tokens.split(batch)])
    finally:
        model.train(training)


def rows_of(model: Any, replaced: Sequence[int] = ()) -> list[dict[str, Any]]:
    """A row per part of a decoder, in the order of the forward pass; projections that share spikes share a row."""
    at: dict[str, SpikeSite] = {path: site for path, (_, site) in site_table(model).items()}
    found = [part("embed", [model.embed], None, "tokens are looked up")]
    if at["embed_site"].neuron is not None:
        found.append(part("embed_site", [], "embed_site", "spikes of the embedding"))
    for i, layer in enumerate(model.layers):
        a, f, name = layer.attention, layer.feedforward, f"layers.{i}"
        found.append(part(f"{name}.attention_norm", [layer.attention_norm], None, "on numbers"))
        found.append(spiking(f"{name}.attention.q, k, v", [a.q, a.k, a.v], at, f"{name}.attention.inner"))
        for which in ("q", "k", "v"):
            if at[path := f"{name}.attention.{which}_site"].neuron is not None:
                found.append(part(path, [], path, "spikes of the heads' vectors"))
        mixer = part(f"{name}.attention.mixer", [a.mixer], None, "mixes numbers")
        if i in replaced:
            mixer |= {"status": "approximated", "note": "in place of the source's attention; projections inherited"}
        found.append(mixer)
        found.append(spiking(f"{name}.attention.out", [a.out], at, f"{name}.attention.outer"))
        found.append(part(f"{name}.feedforward_norm", [layer.feedforward_norm], None, "on numbers"))
        first = [m for m in (getattr(f, "gate", None), getattr(f, "up", None)) if m is not None]
        names = "gate, up" if len(first) == 2 else "up"
        found.append(spiking(f"{name}.feedforward.{names}", first, at, f"{name}.feedforward.inner"))
        found.append(spiking(f"{name}.feedforward.down", [f.down], at, f"{name}.feedforward.hidden"))
    found.append(part("norm", [model.norm], None, "on numbers"))
    if model.head is not None or at["head_site"].neuron is not None:
        found.append(spiking("head", [model.head or model.embed], at, "head_site"))
    return found


def part(name: str, modules: list[nn.Module], site: str | None, note: str) -> dict[str, Any]:
    """A row: kept where no site is before it."""
    kinds = [type(m).__name__ for m in modules] or ["SpikeSite"]
    kind = f"{kinds[0]} ×{len(kinds)}" if len(kinds) > 1 else kinds[0]
    size = sum(p.numel() for m in modules for p in m.parameters())
    return row(name, kind, "converted" if site else "kept", "decoder", note, parameters=size, site=site)


def spiking(name: str, modules: list[nn.Module], at: dict[str, SpikeSite], site: str) -> dict[str, Any]:
    """A row of projections behind a site, which may have no neuron."""
    on = at[site].neuron is not None
    return part(name, modules, site if on else None, "reads spikes" if on else "on numbers")


@torch.no_grad()
def measure(model: Any, held: Held, rows: list[dict[str, Any]], *, errors: bool = True) -> dict[str, Any]:
    """Fill the rows' figures in and give the whole's: perplexities, KL, and what the spikes did.

    `error` is the KL when this site alone spikes, `cumulative` when it and all before it do. Both are measured against
    the dense model; where attentions were replaced they contain what that costs.
    """
    by_site = {r["site"]: r for r in rows if r["site"]}
    at = {path: site for path, (_, site) in site_table(model).items() if site.neuron is not None}
    with probe(model) as trace:
        model(held.tokens)
    weights = 0
    total = dict.fromkeys(("silent_fraction", "spikes_per_channel", "saturation", "mean_count"), 0.0)
    for name, record in trace.items():
        r, spikes = by_site[name], record.spikes
        neuron: Any = at[name].neuron
        bound = float(getattr(neuron, "most", getattr(neuron, "bound", float("inf"))))
        found = spikes.sparsity()
        size = spikes.counts.abs()
        lost = (size >= bound) & ((record.x - spikes.value()).abs() > 0.51 * spikes.scale)
        r |= {
            "silent_fraction": found.silent_fraction,
            "spikes_per_channel": found.spikes_per_channel,
            "slot_sparsity": found.slot_sparsity,
            "steps": found.steps,
            "largest": found.largest,
            "mean_count": found.mean_count,
            "saturation": float(lost.float().mean()),
            "bursting": float((size > bound).float().mean()),
            "channels": spikes.shape[-1],
        } | {key: float(t.detach()) for key in ("k", "clip") if isinstance(t := getattr(neuron, key, None), Tensor)}
        weights += spikes.shape[-1]
        for key in total:
            total[key] += spikes.shape[-1] * r[key]
    if errors:
        names = list(at)
        for i, name in enumerate(names):
            with numbers(model, [at[name]]):
                by_site[name]["error"] = held.compare(model)[0]
            with numbers(model, [at[n] for n in names[: i + 1]]):
                by_site[name]["cumulative"] = held.compare(model)[0]
    return quality(model, held) | {key: value / max(1, weights) for key, value in total.items()} | {
        "steps": max((r["steps"] for r in rows if r["steps"] is not None), default=0)
    }  # fmt: skip


def quality(model: nn.Module, held: Held) -> dict[str, Any]:
    """Perplexity of the dense and of the converted model on held-out windows, their ratio, and the divergence."""
    dense = torch.tensor(held.nats(held.said)).double().exp()
    kl, nats = held.compare(model)
    here = torch.tensor(nats).double().exp()
    return {
        "perplexity_dense": float(dense),
        "perplexity": float(here),
        "ratio": float(here / dense),
        "kl": kl,
        "tokens": held.tokens.numel(),
    }


@torch.no_grad()
def curve(model: Any, held: Held) -> list[dict[str, Any]]:
    """Quality against steps (neurons with a budget) or against k, everything else as it was calibrated."""
    neurons: list[Any] = [site.neuron for _, site in site_table(model).values() if site.neuron is not None]
    if not neurons:
        return []
    if all(isinstance(getattr(n, "steps", None), Tensor) for n in neurons):
        key, values = "steps", [float(s) for s in (2, 3, 4, 5, 6, 8)]
    elif all(isinstance(getattr(n, "k", None), Tensor) for n in neurons):
        key, values = "k", [0.5, 1.0, 2.0, 3.0, 6.0]
    else:
        return []
    old = [getattr(n, key).detach().clone() for n in neurons]
    mean = sum(float(t) for t in old) / len(old)
    rows = []
    try:
        for value in values:
            for n, was in zip(neurons, old):
                getattr(n, key).copy_(was * (value / mean) if key == "k" else torch.tensor(int(value)))
            with probe(model) as trace:
                kl, nats = held.compare(model)
            last = [r.spikes.sparsity() for r in trace.values()]
            size = [r.spikes.shape[-1] for r in trace.values()]
            share = [s / sum(size) for s in size]
            rows.append(
                {
                    key: int(value) if key == "steps" else value,
                    "ratio": float(torch.tensor(nats - held.nats(held.said)).double().exp()),
                    "kl": kl,
                    "silent_fraction": sum(w * s.silent_fraction for w, s in zip(share, last)),
                    "spikes_per_channel": sum(w * s.spikes_per_channel for w, s in zip(share, last)),
                    "largest": max(s.largest for s in last),
                }
            )
    finally:
        for n, was in zip(neurons, old):
            getattr(n, key).copy_(was)
    return rows
