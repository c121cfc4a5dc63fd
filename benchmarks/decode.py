"""One token through a 134 M decoder with random weights: the fused step beside transformers and llama.cpp.

    python benchmarks/decode.py [--silent 0.5] [--k 3] [--bundle B] [--attention gla sliding_window] [--json out.json]

D 768, 12 layers, 12 heads, feed-forward 2048, 32000 tokens, embedding and head apart. Ours: INT8 weights, spikes in
front of every projection and of the head; ``--silent`` finds the k that leaves that fraction of inputs silent (weighted
by the weights behind them), ``--k`` takes one, ``--bundle`` measures a trained model's fraction on a few English
sentences and takes that. Rivals: transformers' Llama of that shape in float32, and llama.cpp with Q8_0 weights of that
shape (null where llama_cpp or gguf is not installed). Every row lives in a process of its own, so that no thread pool
disturbs another, and decodes some tokens in turn behind a prompt of 32; caches are cut back before they reach 256
tokens. Floor: the bytes of the weight rows that spiked, over the read bandwidth of the same rounds. Our logits are
first compared with the ordinary path's, bit for bit.
"""

from __future__ import annotations

import argparse
import atexit
import importlib.util
import json
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import harness
import numpy as np
import torch

from fastsnn_core import Model
from fastsnn_core.site import sites
from fastsnn_core.spec import converter
from fastsnn_integer.quantization import Quant, quantise
from fastsnn_text import tokenizer_of

SHAPE = {"vocab_size": 32000, "d_model": 768, "n_layers": 12, "n_heads": 12, "d_ff": 2048, "tied": False}
SITES = ["attn_in", "attn_out", "ffn_in", "ffn_hidden", "head"]
TEXT = """Once upon a time there was a little dog who lived in a small house near the forest. Every day he ran to the
river, looked at the fish and came home when the sun went down. One day he met a bird that could not fly."""
PROMPT, CALLS, LONGEST = 32, 8, 256
RIVALS = ("transformers fp32", "llama.cpp Q8_0")
QUICK = {"GOMP_SPINCOUNT": "1000000", "OMP_NUM_THREADS": "1"}  # else llama.cpp sleeps at every barrier: 6 ms become 13


def network(attention: list[str], k: float, bits: int = 8) -> Any:
    """Our decoder with random weights of 8, 4 or 2 bits (ternary)."""
    torch.manual_seed(0)
    table = {"kind": "decoder", **SHAPE, "sites": SITES, "attention": [{"kind": name} for name in attention]}
    table["neuron"] = {"kind": "adaptive_threshold", "k": k}
    table["weights"] = "ternary" if bits == 2 else "float"
    model = quantise(converter().structure(table, Model).build(), Quant(bits=bits))
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
        first, check = state, model.fast(state)
        for i in range(3):
            token = int(tokens[0, PROMPT + i])
            logits, state = model(torch.tensor([[token]]), state, return_state=True, last=True)
            assert torch.equal(logits[0, 0], check.step(token)), "the fused step's logits differ"
    turn, streams = iter(range(1 << 30)), [check]

    def run() -> None:
        if streams[0].stream.position >= LONGEST:
            streams[0] = model.fast(first)
        streams[0].step(int(tokens[0, next(turn) % tokens.shape[1]]))

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
        if past.get_seq_length() >= LONGEST:
            past.crop(PROMPT - past.get_seq_length())  # a negative number: how many to forget
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
        if model.n_tokens >= LONGEST:
            model.n_tokens = PROMPT
        model.eval([500 + next(turn) % 1000])

    return run


def serve(name: str, threads: int, attention: list[str], bundle_path: str | None) -> None:
    """A row's process: a line of JSON in, a line out."""
    state: dict[str, Any] = {}
    if name == "read":
        state["run"], state["size"] = harness.reader()
    elif name == "transformers fp32":
        state["run"] = transformers_row()
    elif name == "llama.cpp Q8_0":
        state["run"] = llama_cpp_row(threads)
    else:
        model, tokens = network(attention, 3.0), torch.randint(0, 32000, (1, 256))
    for line in sys.stdin:
        asked = json.loads(line)
        if "calls" in asked:
            answer: dict[str, Any] = harness.timed(state["run"], asked["calls"])
        elif "trained" in asked:
            from fastsnn_core import bundle

            learned = bundle.load(bundle_path)
            ids = tokenizer_of(learned).encode(TEXT)[:128]
            learned = learned if learned.spec.quant else quantise(learned)
            answer = {"silent": silent_rows(learned.eval(), torch.tensor([ids]))[0]}
        elif "silent" in asked or "k" in asked:
            k = asked["k"] if "k" in asked else find_k(model, asked["silent"], tokens[:, :64])
            set_k(model, k)
            silent, touched = silent_rows(model, tokens[:, :64])
            state["run"] = ours(model, tokens)
            answer = {"k": k, "silent_fraction": silent, "touched": touched}
        else:
            answer = {"installed": state.get("run", True) is not None, "size": state.get("size")}
        print(json.dumps(answer), flush=True)


class Row:
    """The parent's end of a row's process."""

    def __init__(self, name: str, args: argparse.Namespace) -> None:
        command = [sys.executable, __file__, "--row", name, "--threads", str(args.threads)]
        command += ["--attention", *args.attention] + (["--bundle", args.bundle] if args.bundle else [])
        env = os.environ | (QUICK if name.startswith("llama.cpp") else {})
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env)
        atexit.register(self.still, False)  # who is held would stay so
        self.about = self.ask({})

    def still(self, held: bool) -> None:
        """Hold the process: threads that wait for their next work in a loop would take the others' cores."""
        if hasattr(signal, "SIGSTOP"):
            self.process.send_signal(signal.SIGSTOP if held else signal.SIGCONT)

    def ask(self, what: dict[str, Any]) -> dict[str, Any]:
        """One line there, one line back; in between the process is held."""
        assert self.process.stdin
        assert self.process.stdout
        self.still(False)
        self.process.stdin.write(json.dumps(what) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"a row ended: {self.process.args}")
        self.still(True)
        answer: dict[str, Any] = json.loads(line)
        return answer


def measure(rows: dict[str, Row], rounds: int) -> harness.Times:
    """As `harness.interleave`, over processes."""
    for row in rows.values():
        row.ask({"calls": 2})
    return harness.in_rounds(list(rows), lambda name: rows[name].ask({"calls": 1 if name == "read" else CALLS}), rounds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--silent", type=float, nargs="*", default=[0.5], help="fractions of inputs without spikes")
    parser.add_argument("--k", type=float, nargs="*", default=[3.0], help="thresholds to measure besides")
    parser.add_argument("--bundle", help="a trained W8A model whose silent fraction is measured and taken")
    parser.add_argument("--attention", nargs="+", default=["gla", "sliding_window"])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--json")
    parser.add_argument("--row", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.row != "llama.cpp Q8_0":  # torch's threads and llama.cpp's are one pool
        torch.set_num_threads(args.threads)
    if args.row:
        serve(args.row, args.threads, args.attention, args.bundle)
        return
    rows = {name: Row(name, args) for name in ("read", "ours", *RIVALS)}
    rows = {name: row for name, row in rows.items() if row.about["installed"]}
    size = rows["read"].about["size"]
    trained = rows["ours"].ask({"trained": True})["silent"] if args.bundle else None
    wanted = [{"silent": fraction} for fraction in [*args.silent, *([trained] if args.bundle else [])]]
    results = []
    for want in wanted + [{"k": k} for k in args.k]:
        found = rows["ours"].ask(want)
        times = measure(rows, args.rounds)
        print(harness.disturbance(times))
        bandwidth, touched = size / harness.median(times, "read"), found.pop("touched")
        found |= {
            "floor_ms": touched / bandwidth * 1e3, "read_gb_s": bandwidth / 1e9,
            "of_bandwidth": touched / size * harness.ratio(times, "read", "ours"),
            "ratio_transformers_fp32": harness.ratio(times, "transformers fp32", "ours"),
            "ratio_llama_cpp_q8_0": harness.ratio(times, "llama.cpp Q8_0", "ours"),
            "disturbed_rounds": times["disturbed rounds"][0],
        }  # fmt: skip
        for name in ("ours", *RIVALS):
            seconds = harness.median(times, name)
            found[f"{name} ms"] = None if seconds is None else seconds * 1e3
        results.append(found)
    names = ["ours ms", "floor_ms", "of_bandwidth", *(f"{name} ms" for name in RIVALS)]
    names += ["ratio_transformers_fp32", "ratio_llama_cpp_q8_0", "read_gb_s"]
    lines = [[f"{r['silent_fraction']:.0%} (k {r['k']:.2f})", *(r[n] for n in names)] for r in results]
    print(harness.table(["silent", *names], lines))
    first = {key: results[0][key] for key in ("silent_fraction", "floor_ms", *names[-3:-1])}
    print(" ".join(f"{key}={'null' if v is None else format(v, '.3g')}" for key, v in first.items()))
    harness.emit({**first, "trained_silent_fraction": trained, "rows": results}, args.json)


if __name__ == "__main__":
    main()
