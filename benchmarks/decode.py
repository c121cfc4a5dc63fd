"""One token through a 134 M decoder with random weights: the fused step beside transformers and llama.cpp.

    python benchmarks/decode.py [--silent 0.5] [--k 3] [--rounds 9] [--attention gla sliding_window] [--bundle B] [--json out.json]

D 768, 12 layers, 12 heads, feed-forward 2048, 32000 tokens, embedding and head apart. Ours: INT8 weights, spikes in front
of every projection and of the head; ``--silent`` finds the k that leaves that fraction of inputs silent, ``--k`` takes
one. Rivals: transformers' Llama of that shape in float32, and llama.cpp with Q8_0 weights of that shape (null where
llama_cpp or gguf is not installed). Every row decodes in turn, a few tokens per round, behind a prompt of 32. Floor: the
bytes of the weight rows that spiked, over the read bandwidth of the same rounds. ``--bundle`` measures the silent
fraction of a trained model's sites and takes that one. Logits are first compared with the ordinary path, bit for bit.
"""

from __future__ import annotations

import argparse
import importlib.util
import tempfile
from pathlib import Path
from typing import Any

import harness
import numpy as np
import torch

from fastsnn_core import Model
from fastsnn_core.quant import quantise
from fastsnn_core.site import sites
from fastsnn_core.spec import converter
from fastsnn_model_decoder import fast

SHAPE = {"vocab_size": 32000, "d_model": 768, "n_layers": 12, "n_heads": 12, "d_ff": 2048, "tied": False}
SITES = ["attn_in", "attn_out", "ffn_in", "ffn_hidden", "head"]
PROMPT, CALLS = 32, 8


def network(attention: list[str], k: float) -> Any:
    """Our decoder with random weights."""
    torch.manual_seed(0)
    table = {"kind": "decoder", **SHAPE, "sites": SITES, "attention": [{"kind": name} for name in attention]}
    table["neuron"] = {"kind": "adaptive_threshold", "k": k}
    model = quantise(converter().structure(table, Model).build())
    return model.eval()


def silent_rows(model: Any, tokens: torch.Tensor) -> tuple[float, float]:
    """``(silent fraction, bytes of weight rows that spiked per token)`` of the projections on a few tokens."""
    rows: list[tuple[int, float]] = []
    handles = []
    for module in model.modules():
        if type(module).__name__ == "QuantLinear":

            def hook(layer: Any, args: tuple[Any, ...]) -> None:
                if hasattr(args[0], "counts"):
                    rows.append((layer.weight.numel(), float((args[0].counts != 0).float().mean())))
                else:
                    rows.append((layer.weight.numel(), 1.0))

            handles.append(module.register_forward_pre_hook(hook))
    with torch.inference_mode():
        model(tokens)
    for handle in handles:
        handle.remove()
    total = sum(n for n, _ in rows)
    touched = sum(n * active for n, active in rows)
    return 1 - touched / total, touched


def set_k(model: Any, k: float) -> None:
    for site in sites(model).values():
        site.neuron.dial_("k", k)


def find_k(model: Any, silent: float, tokens: torch.Tensor) -> float:
    """The k with this silent fraction, by bisection: a larger k silences fewer."""
    low, high = 0.05, 20.0
    for _ in range(12):
        middle = (low * high) ** 0.5
        set_k(model, middle)
        low, high = (middle, high) if silent_rows(model, tokens)[0] > silent else (low, middle)
    return (low * high) ** 0.5


def ours(model: Any, tokens: torch.Tensor) -> harness.Run:
    """Steps of one stream, whose logits were compared with the ordinary path's."""
    with torch.inference_mode():
        _, state = model(tokens[:, :PROMPT], return_state=True, last=True)
        _, check = fast.start(model, state)
        for i in range(3):
            token = int(tokens[0, PROMPT + i])
            logits, state = model(torch.tensor([[token]]), state, return_state=True, last=True)
            assert torch.equal(logits[0, 0], check.step(token)), "the fused step's logits differ"
    turn = iter(range(1 << 30))

    def run() -> None:
        check.step(int(tokens[0, next(turn) % tokens.shape[1]]))

    return run


def transformers_row() -> harness.Run:
    """transformers' Llama in float32, with its cache."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=32000, hidden_size=768, intermediate_size=2048, num_hidden_layers=12, num_attention_heads=12,
        num_key_value_heads=12, max_position_embeddings=65536,
    )  # fmt: skip
    model = LlamaForCausalLM(config).eval()
    with torch.inference_mode():
        past = model(torch.arange(300, 300 + PROMPT)[None], use_cache=True).past_key_values
    turn = iter(range(1 << 30))

    def run() -> None:
        with torch.inference_mode():
            model(torch.tensor([[500 + next(turn) % 1000]]), past_key_values=past, use_cache=True)

    return run


def gguf_file(path: str) -> None:
    """A Llama of the same shape in Q8_0, with random weights, written by llama.cpp's own package."""
    import gguf

    kind, rng = gguf.GGMLQuantizationType.Q8_0, np.random.default_rng(0)
    width, layers, heads, wide, vocab = 768, 12, 12, 2048, 32000
    w = gguf.GGUFWriter(path, "llama")
    w.add_context_length(65536)
    w.add_embedding_length(width)
    w.add_block_count(layers)
    w.add_feed_forward_length(wide)
    w.add_head_count(heads)
    w.add_head_count_kv(heads)
    w.add_layer_norm_rms_eps(1e-5)
    w.add_rope_dimension_count(width // heads)
    w.add_vocab_size(vocab)
    w.add_file_type(gguf.LlamaFileType.MOSTLY_Q8_0)
    w.add_tokenizer_model("llama")
    spare = vocab - 259
    names = [b"<unk>", b"<s>", b"</s>"] + [b"<0x%02X>" % i for i in range(256)] + [b"t%d" % i for i in range(spare)]
    w.add_token_list(names)
    w.add_token_scores([0.0] * vocab)
    w.add_token_types([2, 3, 3] + [6] * 256 + [1] * spare)
    w.add_bos_token_id(1)
    w.add_eos_token_id(2)

    def matrix(name: str, *shape: int) -> None:
        numbers = rng.standard_normal(shape, dtype=np.float32) * 0.02
        w.add_tensor(name, gguf.quants.quantize(numbers, kind), raw_dtype=kind)

    matrix("token_embd.weight", vocab, width)
    matrix("output.weight", vocab, width)
    w.add_tensor("output_norm.weight", np.ones(width, np.float32))
    for i in range(layers):
        for name in ("attn_q", "attn_k", "attn_v", "attn_output"):
            matrix(f"blk.{i}.{name}.weight", width, width)
        matrix(f"blk.{i}.ffn_gate.weight", wide, width)
        matrix(f"blk.{i}.ffn_up.weight", wide, width)
        matrix(f"blk.{i}.ffn_down.weight", width, wide)
        for name in ("attn_norm", "ffn_norm"):
            w.add_tensor(f"blk.{i}.{name}.weight", np.ones(width, np.float32))
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()


def llama_cpp_row(threads: int) -> harness.Run | None:
    """llama.cpp through its Python package; None where it is not installed."""
    if not (importlib.util.find_spec("llama_cpp") and importlib.util.find_spec("gguf")):
        return None
    import llama_cpp

    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / "m.gguf")
        gguf_file(path)
        model = llama_cpp.Llama(path, n_ctx=2048, n_threads=threads, n_threads_batch=threads, verbose=False)
    model.eval(list(range(300, 300 + PROMPT)))
    turn = iter(range(1 << 30))

    def run() -> None:
        if model.n_tokens >= 1024:
            model.n_tokens = PROMPT
        model.eval([500 + next(turn) % 1000])

    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--silent", type=float, nargs="*", default=[0.5], help="fractions of inputs without spikes")
    parser.add_argument("--k", type=float, nargs="*", default=[3.0], help="thresholds to measure besides")
    parser.add_argument("--bundle", help="a trained model whose silent fraction is measured and taken")
    parser.add_argument("--attention", nargs="+", default=["gla", "sliding_window"])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--json")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    model = network(args.attention, 3.0)
    tokens = torch.randint(0, 32000, (1, 256))
    fractions, trained = list(args.silent), None
    if args.bundle:
        from fastsnn_core import bundle

        learned = bundle.load(args.bundle)
        trained = silent_rows(learned, torch.randint(0, learned.spec.vocab_size, (1, 64)))[0]
        fractions.append(trained)
    rivals = {"transformers fp32": transformers_row(), "llama.cpp Q8_0": llama_cpp_row(args.threads)}
    read, size = harness.reader()
    results = []
    for k in [find_k(model, silent, tokens[:, :64]) for silent in fractions] + list(args.k):
        set_k(model, k)
        silent, touched = silent_rows(model, tokens[:, :64])
        rows: dict[str, Any] = {"read": read, "ours": ours(model, tokens), **rivals}
        times = harness.interleave(rows, args.rounds, CALLS)
        bandwidth = size / harness.median(times, "read")
        found: dict[str, Any] = {
            "k": k, "silent_fraction": silent, "floor_ms": touched / bandwidth * 1e3, "read_gb_s": bandwidth / 1e9,
            "of_bandwidth": touched / size * harness.ratio(times, "read", "ours"),
            "ratio_transformers_fp32": harness.ratio(times, "transformers fp32", "ours"),
            "ratio_llama_cpp_q8_0": harness.ratio(times, "llama.cpp Q8_0", "ours"),
            "disturbed_rounds": times["disturbed rounds"][0],
        }  # fmt: skip
        for name in ("ours", *rivals):
            seconds = harness.median(times, name)
            found[f"{name} ms"] = None if seconds is None else seconds * 1e3
        results.append(found)
        print(harness.disturbance(times))
    names = ["ours ms", "floor_ms", "of_bandwidth", "transformers fp32 ms", "llama.cpp Q8_0 ms"]
    names += ["ratio_transformers_fp32", "ratio_llama_cpp_q8_0", "read_gb_s"]
    lines = [[f"{r['silent_fraction']:.0%} (k {r['k']:.2f})", *(r[n] for n in names)] for r in results]
    print(harness.table(["silent", *names], lines))
    first = {key: results[0][key] for key in ("silent_fraction", "floor_ms", "ratio_transformers_fp32")}
    first["ratio_llama_cpp_q8_0"] = results[0]["ratio_llama_cpp_q8_0"]
    print(" ".join(f"{key}={'null' if v is None else format(v, '.3g')}" for key, v in first.items()))
    harness.emit({**first, "trained_silent_fraction": trained, "rows": results}, args.json)


if __name__ == "__main__":
    main()
