"""Reading a prompt: the integer decoder beside transformers' Llama; long prompts beside a softmax model; memory.

    python benchmarks/prefill.py [--tokens 512] [--k 3] [--lengths 4096 16384 32768] [--rounds 5] [--json out.json]

First the 134 M shape of `decode.py` on `--tokens` tokens at once, interleaved with transformers' float32 Llama of that
shape: INT8 products of counts, attention and scans in the fixed order of the integer path. Floor: the multiplications
of the projections at the rate of one large INT8 product, measured in the same rounds. Then, for each of ``--lengths``,
time to the first token and peak memory above the loaded model, in a process of its own, of a smaller shape (D 256, 4
layers, 4 heads; window 512 and gated linear attention in turn, read in chunks of 256 tokens) and of transformers' Llama
of that shape, which reads its prompt at once. Growth is the exponent between neighbouring lengths (1: linear).
Last, the state of one stream after 1k to 64k tokens.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import decode
import harness
import torch

from fastsnn_core import Model
from fastsnn_core.spec import converter
from fastsnn_core.state import nbytes
from fastsnn_integer.quantization import quantise

SMALL = {"vocab_size": 32000, "d_model": 256, "n_layers": 4, "n_heads": 4, "d_ff": 688, "tied": False}
CHUNK, STATES = 256, (1024, 4096, 16384, 65536)


def small() -> Any:
    """Our decoder in the smaller shape."""
    torch.manual_seed(0)
    return quantise(converter().structure({"kind": "decoder", **SMALL, "sites": decode.SITES}, Model).build()).eval()


def llama(width: int, layers: int, heads: int, wide: int) -> Any:
    """transformers' Llama in float32."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=32000, hidden_size=width, intermediate_size=wide, num_hidden_layers=layers,
        num_attention_heads=heads, num_key_value_heads=heads, max_position_embeddings=1 << 20,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


@torch.inference_mode()
def read_in_chunks(model: Any, tokens: torch.Tensor) -> Any:
    """The state behind a prompt, read as `fastsnn_text.generate` reads it."""
    state = None
    for piece in tokens.split(CHUNK, 1):
        _, state = model(piece, state, return_state=True, last=True)
    return state


def whole(rounds: int, length: int, k: float, attention: list[str]) -> dict[str, Any]:
    """Ours and transformers on one prompt."""
    model, rival = decode.network(attention, k), llama(768, 12, 12, 2048)
    tokens = torch.randint(0, 32000, (1, length))
    a = torch.randint(-9, 9, (length, 2048), dtype=torch.int8)
    b = torch.randint(-127, 127, (2048, 2048), dtype=torch.int8)

    def ours() -> None:
        with torch.inference_mode():
            model(tokens, return_state=True, last=True)

    def theirs() -> None:
        with torch.inference_mode():
            rival(tokens, use_cache=True, logits_to_keep=1)

    rows = {"ours": ours, "transformers fp32": theirs, "product": partial(torch._int_mm, a, b)}
    times = harness.interleave(rows, rounds)
    work = length * 12 * (4 * 768**2 + 3 * 768 * 2048)
    floor = work / (length * 2048 * 2048) * harness.median(times, "product")
    found = {f"{name} ms": harness.median(times, name) * 1e3 for name in ("ours", "transformers fp32")}
    found |= {"floor_ms": floor * 1e3, "ratio_transformers_fp32": harness.ratio(times, "transformers fp32", "ours")}
    silent, _ = decode.silent_rows(model, tokens[:, :64])
    return found | {"tokens": length, "silent_fraction": silent, "note": harness.disturbance(times)}


def alone(name: str, length: int) -> None:
    """The process of one long prompt: prints seconds, and megabytes above the loaded model."""
    model = small() if name == "ours" else llama(256, 4, 4, 688)
    tokens = torch.randint(0, 32000, (1, length))
    with torch.inference_mode():
        if name == "ours":  # compiled kernels come from the disk
            read_in_chunks(model, tokens[:, : CHUNK + 1])
        else:
            model(tokens[:, :CHUNK], use_cache=True, logits_to_keep=1)
        Path("/proc/self/clear_refs").write_text("5")  # the peak so far is forgotten
        before, start = resident("VmRSS"), time.perf_counter()
        if name == "ours":
            read_in_chunks(model, tokens)
        else:
            model(tokens, use_cache=True, logits_to_keep=1)
    seconds = time.perf_counter() - start
    print(json.dumps({"seconds": seconds, "mib": (resident("VmHWM") - before) / 1024}))


def resident(key: str) -> int:
    """KiB of memory in use (VmRSS), or its peak (VmHWM); Linux."""
    status = Path("/proc/self/status").read_text()
    return int(status.split(f"{key}:")[1].split()[0])


def long_prompts(lengths: list[int]) -> list[dict[str, Any]]:
    """Both models at every length, one after the other."""
    rows = []
    for length in lengths:
        row: dict[str, Any] = {"tokens": length}
        for name in ("ours", "softmax"):
            command = [sys.executable, __file__, "--alone", name, "--tokens", str(length)]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            row |= {f"{name} {key}": value for key, value in json.loads(done.stdout.splitlines()[-1]).items()}
        rows.append(row)
    return rows


def growth(rows: list[dict[str, Any]], key: str) -> list[float]:
    """Exponents of growth between neighbouring lengths."""
    pairs = itertools.pairwise(rows)
    return [math.log(b[key] / a[key]) / math.log(b["tokens"] / a["tokens"]) for a, b in pairs if a[key] and b[key]]


def crossover(rows: list[dict[str, Any]]) -> float | None:
    """Tokens from which ours is faster (between lengths: on a straight line in logarithms); None where it never is."""
    ratios = [(math.log(r["tokens"]), math.log(r["ours seconds"] / r["softmax seconds"])) for r in rows]
    if ratios[0][1] <= 0:
        return rows[0]["tokens"]
    for (t0, r0), (t1, r1) in itertools.pairwise(ratios):
        if r1 <= 0:
            return math.exp(t0 + (t1 - t0) * r0 / (r0 - r1))
    return None


def states(model: Any) -> dict[int, int]:
    """Bytes of one stream's state by how many tokens it has read; the fused stream's, too, at the end."""
    state, at, found = None, 0, {}
    tokens = torch.randint(0, 32000, (1, STATES[-1]))
    with torch.inference_mode():
        for length in STATES:
            while at < length:
                _, state = model(tokens[:, at : at + 2 * CHUNK], state, return_state=True, last=True)
                at += 2 * CHUNK
            found[length] = nbytes(state)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=512)
    parser.add_argument("--k", type=float, default=3.0)
    parser.add_argument("--attention", nargs="+", default=["gla", "sliding_window"])
    parser.add_argument("--lengths", type=int, nargs="*", default=[4096, 16384, 32768])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--alone", help=argparse.SUPPRESS)
    parser.add_argument("--json")
    args = parser.parse_args()
    if args.alone:
        alone(args.alone, args.tokens)
        return
    first = whole(args.rounds, args.tokens, args.k, args.attention)
    keys = [key for key in first if key != "note"]
    print(harness.table(["prompt", *keys], [["", *(first[key] for key in keys)]]))
    print(first["note"])
    result: dict[str, Any] = {"prompt": first}
    if args.lengths:
        rows = long_prompts(args.lengths)
        keys = [f"{name} {key}" for key in ("seconds", "mib") for name in ("ours", "softmax")]
        print(harness.table(["tokens", *keys], [[str(r["tokens"]), *(r[key] for key in keys)] for r in rows]))
        result |= {"long": rows, "growth": {key: growth(rows, key) for key in keys}, "crossover": crossover(rows)}
        for key, values in result["growth"].items():
            print(f"growth of {key}: " + ", ".join(f"{v:.2f}" for v in values))
        print(f"ours is faster from {result['crossover']} tokens")
        result["state_bytes"] = states(small())
        print("state of a stream:", ", ".join(f"{n}: {b:,} bytes" for n, b in result["state_bytes"].items()))
    harness.emit(result, args.json)


if __name__ == "__main__":
    main()
