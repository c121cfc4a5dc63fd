"""The tour's first half: a real chat model, dense and spiking side by side."""

from __future__ import annotations

import itertools
import json
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from fastsnn import FastSNN

QUESTION = "What is the capital of France? Answer in one sentence."
LENGTH, FITTED, HELD = 512, 2, 4  # tokens of a window; windows to calibrate on, and to measure on
CHAT_STEPS = 4
REPLY = 48  # tokens of an answer, at most


def first_answer(model: Any) -> tuple[str, dict[str, float]]:
    """The model's answer to the question, and its figures, once every kernel it needs has been compiled."""
    from fastsnn_text.chat import ChatSession
    from fastsnn_text.generate import Sampling

    model.fast(None)  # waits for the fused step, which a session would have compiled beside the answer
    for tokens in (2, REPLY):  # the first, short one compiles what is left
        session = ChatSession(model, max_tokens=tokens, sampling=Sampling(temperature=0))
        said = "".join(session.say(QUESTION))
    return said.strip(), session.stats()


def served(bundle: Path) -> str:
    """The answer of a server, asked over HTTP as any OpenAI client would."""
    with FastSNN.serve(bundle, port=0, block=False, name="chat") as server:
        asked = {
            "model": "chat",
            "messages": [{"role": "user", "content": QUESTION}],
            "max_tokens": REPLY,
            "temperature": 0,
        }
        body = json.dumps(asked).encode()
        request = urllib.request.Request(
            f"{server.url}/v1/chat/completions", body, {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=300) as reply:
            return json.loads(reply.read())["choices"][0]["message"]["content"].strip()


def corpus(model: torch.nn.Module) -> torch.Tensor:
    """Windows ``[N, 512]`` of Python's own documentation, in the model's tokens."""
    from pydoc_data.topics import topics

    from fastsnn_text.tokenizers import tokenizer_of

    ids = list(itertools.chain.from_iterable(tokenizer_of(model).encode(topics[name]) for name in sorted(topics)))
    windows = torch.tensor(ids[: len(ids) // LENGTH * LENGTH]).view(-1, LENGTH)
    return windows[torch.randperm(len(windows), generator=torch.Generator().manual_seed(0))]


def chat_tour(gguf: Path, out: Path, step: Any) -> dict[str, Any]:
    """Convert → compare → export → serve; returns what was measured."""
    from fastsnn_convert.language.families import import_dense
    from fastsnn_convert.language.reference_eval import HeldOutReference

    step(f"chat model: {gguf.name}, its dense answer first")
    dense = import_dense(gguf)
    text = corpus(dense)
    held = HeldOutReference.of(dense, text[:HELD], own=True)
    said, figures = first_answer(dense)
    step.done(f"{sum(p.numel() for p in dense.parameters()):,} parameters; {said!r}")
    del dense

    step("convert: spikes at the input of every projection, thresholds and k from two windows of text")
    made = FastSNN.convert(gguf, k=3.0, calibration=text[HELD : HELD + FITTED], measure=False)
    quality = held.windows(made.model).figures()
    step.done(f"perplexity of {HELD} unseen windows {quality['perplexity_dense']:.2f} → {quality['perplexity']:.2f}")

    step("export: INT8 weights, read only where a spike is")
    folder = Path(FastSNN.export(made.model, out / "chat-w8a.snn", to="w8a"))
    del made
    spiking = FastSNN.load(folder)
    spoken, fast = first_answer(spiking)
    del spiking
    step.done(f"{folder}, {sum(p.stat().st_size for p in folder.rglob('*') if p.is_file()) / 1e6:.0f} MB")
    print_columns(
        [
            ("", "dense, float32", "spiking, INT8 events"),
            ("perplexity", f"{quality['perplexity_dense']:.2f}", f"{quality['perplexity']:.2f} before INT8"),
            ("weight bytes not read", "0 %", f"{fast['silent_bytes']:.1%}"),
            (
                "tokens/s, kernels compiling at first",
                f"{figures['tokens_per_second']:.1f}",
                f"{fast['tokens_per_second']:.1f}",
            ),
            ("answer", said, spoken),
        ]
    )

    step("serve it: the same question over the OpenAI API")
    heard = served(folder)
    if heard != spoken:
        raise SystemExit(f"the served answer differs from the library's: {heard!r}")
    step.done("the served answer equals the library's")
    return {
        "bundle": str(folder),
        "quality": quality,
        "silent_bytes": fast["silent_bytes"],
        "tokens_per_second": {"dense": figures["tokens_per_second"], "spiking": fast["tokens_per_second"]},
        "answers": {"dense": said, "spiking": spoken},
    }


def print_columns(rows: list[tuple[str, str, str]], write: Callable[[str], Any] = print) -> None:
    """Three columns."""
    wide = [max(len(row[i]) for row in rows) for i in (0, 1)]
    for row in rows:
        write(f"      {row[0]:<{wide[0]}}  {row[1]:<{wide[1]}}  {row[2]}")
