"""What serving costs over the bare generation loop, and what the prefix cache saves: medians, interleaved, as ratios.

python plugins/apps/serve/benchmark_serve.py [d_model] [n_layers]
"""

from __future__ import annotations

import json
import statistics
import sys
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor

import torch

from fastsnn_core import build, create
from fastsnn_serve import serve
from fastsnn_text import ByteTokenizer, Sampling, attach, generate_ids

ROUNDS, TOKENS, LONG = 7, 128, 2048


def post(url: str, **body: object) -> dict:
    """One completion."""
    request = urllib.request.Request(f"{url}/v1/completions", json.dumps(body).encode())
    with urllib.request.urlopen(request) as answer:
        return json.load(answer)


def seconds(work: object) -> float:
    """Wall time of a call."""
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


def main() -> None:
    """Measure and print."""
    width, layers = (int(v) for v in (sys.argv[1:3] if len(sys.argv) > 2 else (256, 4)))
    torch.manual_seed(0)
    model = build(create("model", "decoder", d_model=width, n_layers=layers, n_heads=4)).eval()
    tokenizer = ByteTokenizer()
    tokenizer.end = None  # every answer has all its tokens
    attach(model, tokenizer)
    prompt = list(range(40, 72))

    def loop() -> None:
        list(generate_ids(model, prompt, TOKENS, Sampling(seed=1)))

    with serve(model, port=0, block=False, max_streams=8) as server:

        def one(seed: int = 1) -> None:
            assert post(server.url, prompt=prompt, max_tokens=TOKENS, seed=seed)["usage"]["completion_tokens"] == TOKENS

        def eight() -> None:
            with ThreadPoolExecutor(8) as pool:
                list(pool.map(one, range(8)))

        def first(ids: list[int]) -> tuple[float, int]:
            begin = time.perf_counter()
            answer = post(server.url, prompt=ids, max_tokens=1, temperature=0)
            return time.perf_counter() - begin, answer["usage"]["prompt_tokens_details"]["cached_tokens"]

        loop(), one()
        alone, served, together, cold, warm = [], [], [], [], []
        for i in range(ROUNDS):
            alone.append(seconds(loop))
            served.append(seconds(one))
            together.append(seconds(eight) / 8)
            ids = [(i + j * j) % 251 for j in range(LONG)]
            cold.append(first(ids)[0])
            took, cached = first([*ids, 1, 2, 3])
            warm.append(took)
    median = statistics.median
    print(f"d_model {width}, {layers} layers, {torch.get_num_threads()} threads; medians of {ROUNDS}, interleaved")
    for what, times in (("generate_ids", alone), ("served, one client", served), ("served, 8 at once", together)):
        print(f"{what:20}{TOKENS / median(times):7.1f} tokens/s   time x{median(times) / median(alone):.2f}")
    print(f"first token after {LONG} tokens: {median(cold) * 1e3:.0f} ms")
    ratio = median(warm) / median(cold)
    print(f"and after {LONG + 3}, {cached} of them cached: {median(warm) * 1e3:.0f} ms   x{ratio:.3f}")


if __name__ == "__main__":
    main()
