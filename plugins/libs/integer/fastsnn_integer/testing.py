"""What the integer path promises of a language model: count ≡ event ≡ replay, and bits that depend on nobody else."""

from __future__ import annotations

from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor, nn

from fastsnn_core import ops
from fastsnn_core.plugins import create, registry
from fastsnn_core.probe import probe
from fastsnn_core.state import leaves
from fastsnn_events import runtime
from fastsnn_integer.quantization import not_batch_invariant, quantise
from fastsnn_kit.draws import cuts


def assert_equal_bits(x: Tensor, what: str, wanted: Tensor) -> None:
    """Equal shapes and equal bits."""
    assert x.shape == wanted.shape, f"{what}: shape {tuple(x.shape)} against {tuple(wanted.shape)}"
    off = int((x != wanted).sum())
    assert not off, f"{what}: {off} of {x.numel()} logits differ, by up to {float((x - wanted).abs().max()):g}"


@torch.no_grad()
def check_batch_invariance(module: Any, tokens: Tensor, who: str, cut: list[int], sizes: tuple[int, ...]) -> None:
    """Each stream's logits are the same bits alone, in batches of `sizes`, and under a cut of its tokens."""
    alone = torch.cat([module(row[None]) for row in tokens])
    for size in sizes:
        rows = torch.arange(size) % len(tokens)
        assert_equal_bits(module(tokens[rows]), f"{who}: a batch of {size} changes bits", alone[rows])
    outs, state = [], None
    for piece in tokens.split(cut, 1):
        y, state = module(piece, state, return_state=True)
        outs.append(y)
    assert_equal_bits(torch.cat(outs, 1), f"{who}: pieces {cut} change bits", alone)


@torch.no_grad()
def check_event(module: Any, tokens: Tensor, who: str, coder: Any, steps: Any) -> None:
    """The event runtime and the spike-time replay give the count runtime's bits."""
    wanted = module(tokens)
    runtime.switch_runtime(module, "event", coder, steps)
    assert_equal_bits(module(tokens), f"{who}: {coder.name} trains give other bits than counts", wanted)
    if all(callable(getattr(site.neuron, "drive", None)) for site in runtime.sites(module).values()):
        found = runtime.replay(module, tokens)
        assert_equal_bits(
            found.output, f"{who}: {coder.name} spikes found by their membranes give other bits than counts", wanted
        )
    runtime.switch_runtime(module, "count")
    assert_equal_bits(module(tokens), f"{who}: going back to counts changes bits", wanted)


@torch.no_grad()
def check_fused_paths(module: Any, tokens: Tensor, who: str, prompt: int = 4, tail: int = 2) -> None:
    """Forty tokens through the fused prompt kernels, then single ones in the fused step: the modules' own bits.

    The stream's state goes back into the modules at the end. Where there is no fused form the modules run as they are.
    A model that reads fewer tokens says how many: ``longest``.
    """
    most = min(20, getattr(module, "longest", None) or 20)
    tokens, prompt = tokens.repeat(1, -(-20 // tokens.shape[1]))[:2, :most], min(prompt, most)
    with ops.use("naive"):
        wanted, ends = module(tokens, return_state=True)
    found, state = module(tokens, return_state=True)
    assert_equal_bits(
        found, f"{who}: {tokens.numel()} tokens at once, by kernels, give other bits than layer by layer", wanted
    )
    for (name, a), (_, b) in zip(leaves(state), leaves(ends), strict=True):
        assert torch.equal(a, b), f"{who}: {tokens.numel()} tokens at once leave another state {name}"
    if not callable(getattr(module, "fast", None)):
        return
    stream = module.fast(module(tokens[:1, :prompt], return_state=True)[1])
    if stream is None:
        return
    last = tokens.shape[1] - tail
    for t in range(prompt, last):
        step = stream.step(int(tokens[0, t]))
        assert_equal_bits(step, f"{who}: the fused step gives other bits than the modules at token {t}", wanted[0, t])
    rest = module(tokens[:1, last:], stream.state())
    assert_equal_bits(
        rest, f"{who}: the state of the fused step gives other bits than the modules' own", wanted[:1, last:]
    )


def signed_coders() -> list[str]:
    """Installed coders that carry any count."""
    found: dict[str, Any] = {name: registry().find("coder", name)[1] for name in registry().names("coder")}
    return [name for name, coder in found.items() if coder.lossless and coder.signed]


def check_integer_path(module: nn.Module, tokens: Tensor, who: str, data: st.DataObject) -> None:
    """The model, quantised where it is not yet, in integer arithmetic; skipped where it cannot be."""
    spec: Any = module.spec
    if not hasattr(spec, "quant"):
        return
    with torch.no_grad(), probe(module) as trace:
        module(tokens)
    if any(r.spikes.scale.ndim and r.spikes.scale.shape[-1] != 1 for r in trace.values()):
        return  # a threshold per channel has no integer form
    whole = module if spec.quant else quantise(module)
    if not_batch_invariant(whole):
        return
    check_batch_invariance(whole, tokens, who, data.draw(cuts(tokens.shape[1])), (3,))
    check_fused_paths(whole, tokens, who)
    names = signed_coders()
    if trace and names:
        coder: Any = create("coder", data.draw(st.sampled_from(names)))
        check_event(whole, tokens, who, coder, data.draw(st.sampled_from(["auto", 2])))
