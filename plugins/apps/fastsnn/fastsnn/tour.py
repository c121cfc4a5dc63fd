"""The whole length of FastSNN, as ``python oneclick.py`` runs it: ``python -m fastsnn.tour``.

First a real chat model, dense and spiking side by side (`fastsnn.chat_tour`), then a small one trained from nothing.
"""

from __future__ import annotations

import argparse
import json
import math
import time
import urllib.request
from collections import Counter
from pathlib import Path
from typing import Any

import torch

from fastsnn import FastSNN, chat_model
from fastsnn.chat_tour import CHAT_STEPS, chat_tour
from fastsnn_core import ops
from fastsnn_train.data.packing import Data

PROMPT = "The "
SMALL_STEPS = 9


class Steps:
    """Numbered headings, out of `total`, with the time each took."""

    def __init__(self, total: int) -> None:
        self.total, self.n = total, 0
        self.began = self.last = time.perf_counter()

    def __call__(self, text: str) -> None:
        """Begin the next step."""
        self.n += 1
        self.last = time.perf_counter()
        print(f"\n[{self.n}/{self.total}] {text}", flush=True)

    def done(self, text: str) -> None:
        """What a step found."""
        print(f"      {text}  ({time.perf_counter() - self.last:.1f} s)", flush=True)


def unigram_nats(data: Data) -> float:
    """Cross-entropy of the held-out tokens under the training tokens' frequencies (one added to each)."""
    held = data.held_out or data.train
    seen, size = Counter(data.train.tokens.tolist()), data.tokenizer.vocab_size
    total = sum(seen.values()) + size
    return sum(-math.log((seen[t] + 1) / total) for t in held.tokens.tolist()) / len(held.tokens)


def trained_ann(ann: torch.nn.Module, steps: int = 150) -> tuple[torch.nn.Module, torch.Tensor, torch.Tensor]:
    """`ann` trained to name noisy patterns ``[B, T, 128]``, and inputs and classes that it has not seen."""
    patterns = torch.randn(10, 128)

    def draw(n: int) -> tuple[torch.Tensor, torch.Tensor]:
        y = torch.randint(0, 10, (n, 8))
        return patterns[y] + 2.5 * torch.randn(n, 8, 128), y

    optimizer = torch.optim.AdamW(ann.parameters(), lr=3e-3)
    for _ in range(steps):
        x, y = draw(16)
        loss = torch.nn.functional.cross_entropy(ann(x).flatten(0, 1), y.flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return ann.eval(), *draw(64)


def ask(url: str, prompt: str, tokens: int) -> str:
    """One request to a served model, over HTTP."""
    body = json.dumps({"model": "tour", "prompt": prompt, "max_tokens": tokens, "temperature": 0}).encode()
    request = urllib.request.Request(f"{url}/v1/completions", body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=120) as answer:
        return json.loads(answer.read())["choices"][0]["text"]


def small_tour(out: Path, steps: int, step: Steps) -> dict[str, Any]:
    """Build → train → extend → convert → scope → export → load → serve; returns what was measured."""
    from fastsnn.convert.ann2snn import TinyANN, convert_ann_to_snn

    torch.manual_seed(0)

    step("build: a spiking language model, gated linear and sliding-window layers in turn, LIF-sINT neurons")
    model = FastSNN.build(arch="snn-tiny", attn="hybrid_alt", neuron="lif_sint", window=128)
    step.done(f"{sum(p.numel() for p in model.parameters()):,} parameters")

    step("forward: 2 sequences of 64 tokens")
    logits = model(torch.randint(0, 257, (2, 64)))
    step.done(f"logits {tuple(logits.shape)}; lif_scan ran on {ops.paths().get('lif_scan')}")

    step(f"train: {steps} steps on Python's own documentation (builtin:pydoc)")
    trainer = FastSNN.fit(
        model,
        dataset="builtin:pydoc",
        seq_len=256,
        max_steps=steps,
        batch_size=6,
        log_every=20,
        out=out / "fit",
    )
    last = trainer.history[-1]
    floor = unigram_nats(trainer.data)
    step.done(
        f"held-out {last['held_out']:.3f} nats a byte, {1 - last['held_out'] / floor:.0%} below unigram ({floor:.3f})"
    )

    step("extend context: 256 → 1024 tokens, state carried between chunks")
    proof = FastSNN.extend_context(model, trainer, new_seq_len=1024, max_steps=max(2, steps // 20))
    far = f"{proof['before'][-1]['nats']:.3f} → {proof['after'][-1]['nats']:.3f}"
    step.done(f"loss at tokens {proof['after'][-1]['from']}–1024: {far}")

    step("convert: a small network, trained on ten noisy patterns, becomes a spiking one")
    ann, x, y = trained_ann(TinyANN(in_dim=128, hidden=256, out_dim=10))
    snn = convert_ann_to_snn(ann, d_model_fallback=128)
    with torch.no_grad():
        right = [float((net(x).argmax(-1) == y).float().mean()) for net in (ann, snn)]
    step.done(f"ANN {tuple(ann(x).shape)} {right[0]:.1%} right, SNN {tuple(snn(x).shape)} {right[1]:.1%}")

    step("scope: rasters, membranes, sparsity, scaling, energy")
    report = FastSNN.scope(model).report(out / "report")
    step.done(f"{report / 'index.html'}")

    step("export: one .snn bundle")
    bundle = FastSNN.export(model, out / "model.snn")
    step.done(f"{bundle}, {sum(p.stat().st_size for p in bundle.rglob('*') if p.is_file()) / 1e6:.1f} MB")

    step("load and generate")
    again = FastSNN.load(bundle)
    began = time.perf_counter()
    text = FastSNN.generate(again, PROMPT, max_tokens=64, temperature=0)
    speed = 64 / (time.perf_counter() - began)
    said = FastSNN.generate(again, PROMPT, max_tokens=64, temperature=0.7, seed=1)
    step.done(f"{speed:.0f} tokens/s; after {steps} steps it writes: {PROMPT + said!r}")

    step("serve: one request over the OpenAI API")
    with FastSNN.serve(bundle, port=0, block=False, name="tour") as server:
        served = ask(server.url, PROMPT, 64)
    if served != text:
        raise SystemExit(f"the served completion differs from the library's: {served!r}")
    step.done("the served completion equals the library's")

    return {
        "held_out_nats": last["held_out"],
        "unigram_nats": floor,
        "below_unigram": 1 - last["held_out"] / floor,
        "silent_fraction": last.get("silent"),
        "mean_count": last.get("mean_count"),
        "training_tokens_per_second": last.get("tokens_per_second"),
        "decoding_tokens_per_second": speed,
        "bundle": str(bundle),
        "report": str(report / "index.html"),
    }


def made(chat: dict[str, Any] | None) -> str:
    """The chat model's line of what was made."""
    if chat is None:
        return ""
    ratio, silent = chat["quality"]["ratio"], chat["silent_bytes"]
    figures = f"perplexity x {ratio:.3f}, {silent:.0%} of weight bytes not read"
    return f"\n  {chat['bundle']}   the chat model on spikes: {figures}"


def try_next(chat: dict[str, Any] | None) -> str:
    """What to do with the chat model."""
    return "" if chat is None else f"\n  fastsnn chat {chat['bundle']}"


def main() -> None:
    """Run the tour, and say what was made and what to try next."""
    args = argparse.ArgumentParser(description=__doc__)
    args.add_argument("--steps", type=int, default=160)
    args.add_argument("--out", default="runs/oneclick")
    args.add_argument("--no-chat", action="store_true", help="leave the chat model out")
    opts = args.parse_args()
    out = Path(opts.out)
    out.mkdir(parents=True, exist_ok=True)
    gguf = None
    if not opts.no_chat:
        try:
            gguf = chat_model.fetch()
        except (chat_model.FetchError, OSError) as error:
            print(f"no chat model, so only the small one that is trained here: {error}")
    step = Steps(SMALL_STEPS + (CHAT_STEPS if gguf else 0))
    chat = chat_tour(gguf, out, step) if gguf else None
    result = small_tour(out, opts.steps, step)
    result |= {"chat": chat, "seconds": round(time.perf_counter() - step.began, 1)}
    (out / "tour.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    speed = result["decoding_tokens_per_second"]
    print(f"""
made in {result["seconds"]:.0f} s{made(chat)}
  {result["bundle"]}   the trained model, whole
  {result["report"]}   open it in a browser
  held-out loss   {result["held_out_nats"]:.3f} nats a byte, {result["below_unigram"]:.0%} below unigram entropy
  silent          {result["silent_fraction"]:.0%} of channels, mean count {result["mean_count"]:.2f}
  speed           training {result["training_tokens_per_second"]:,.0f} tokens/s, decoding {speed:,.0f} tokens/s

try next{try_next(chat)}
  fastsnn generate {result["bundle"]} --prompt "The import statement" --max-tokens 200
  fastsnn serve {result["bundle"]} --port 8000
  fastsnn convert --help
(with the environment active: source .venv/bin/activate)""")


if __name__ == "__main__":
    main()
