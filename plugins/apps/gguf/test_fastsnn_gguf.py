"""GGUF files against transformers' reading of them: logits, token ids; and what is wrong is named."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFWriter, TokenType, quantize
from tokenizers import Tokenizer as Native
from tokenizers import decoders, models, pre_tokenizers, trainers

from fastsnn_convert.language.families import import_dense
from fastsnn_convert.language.hf_checkpoint import SourceError
from fastsnn_core.errors import FastSNNError
from fastsnn_text import prompt_ids, tokenizer_of

CORPUS = ["Once upon a time there were 12 cats. We'll see, don't you?", "über café  two  spaces"] * 20
TEXTS = ("Once upon a time", "  two  spaces\n\n 1234 ", "café <|im_end|>über 日本 we'll", "")
SIZES = {"vocab": 320, "width": 256, "ff": 256, "heads": 4, "kv": 2, "head": 64, "layers": 2}
SCALES = {"Q2_K": (80, 82), "Q3_K": (108,), "Q4_K": (0, 2), "Q5_K": (0, 2), "Q6_K": (208,)}  # bytes of half floats
CHATML = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"


@cache
def byte_level() -> dict[str, Any]:
    native = Native(models.BPE())
    native.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    native.decoder = decoders.ByteLevel()
    specials = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=310, special_tokens=specials, initial_alphabet=alphabet, show_progress=False
    )
    native.train_from_iterator(CORPUS, trainer)
    return json.loads(native.to_str())["model"]


def packed(weights: np.ndarray, kind: str, generator: np.random.Generator) -> np.ndarray:
    """Quantised by the package, or random blocks of a sensible size where it can only read."""
    type_ = GGMLQuantizationType[kind]
    if kind not in SCALES:
        return quantize(weights, type_)
    block, size = GGML_QUANT_SIZES[type_]
    blocks = generator.integers(0, 256, (weights.shape[0], weights.shape[1] // block, size), dtype=np.uint8)
    small = np.float16(0.0004 if kind in ("Q4_K", "Q5_K") else 0.002 if kind in ("Q2_K", "Q3_K") else 0.00005).tobytes()
    for at in SCALES[kind]:
        blocks[..., at : at + 2] = np.frombuffer(small, np.uint8)
    return blocks.reshape(weights.shape[0], -1)


def write(
    path: Path, arch: str = "llama", kind: str = "F32", *, tokenizer: str | None = "gpt2", pre: str | None = "gpt-2",
    more: dict[str, Any] | None = None, drop: tuple[str, ...] = (), tensors: dict[str, np.ndarray] | None = None,
    untied: bool = False, **sizes: int,
) -> Path:  # fmt: skip
    """A small random model."""
    s, generator = SIZES | ({"head": 128} if arch == "qwen3" else {}) | sizes, np.random.default_rng(0)
    w = GGUFWriter(str(path), arch)
    keys = {
        "context_length": 128, "embedding_length": s["width"], "block_count": s["layers"],
        "feed_forward_length": s["ff"], "attention.head_count": s["heads"], "attention.head_count_kv": s["kv"],
        "attention.key_length": s["head"], "attention.value_length": s["head"], "vocab_size": s["vocab"],
        "rope.dimension_count": s["head"],
    }  # fmt: skip
    for key, value in keys.items():
        if key not in drop:
            w.add_uint32(f"{arch}.{key}", value)
    w.add_float32(f"{arch}.attention.layer_norm_rms_epsilon", 1e-5)
    w.add_float32(f"{arch}.rope.freq_base", 5000.0)
    if tokenizer == "gpt2":
        model = byte_level()
        names = sorted(model["vocab"], key=model["vocab"].get)
        w.add_tokenizer_model("gpt2")
        w.add_token_list(names)
        w.add_token_types([TokenType.CONTROL] * 3 + [TokenType.NORMAL] * (len(names) - 3))
        w.add_token_merges([" ".join(row) for row in model["merges"]])
        w.add_eos_token_id(0)
        w.add_chat_template(CHATML)
        if pre:
            w.add_tokenizer_pre(pre)
    elif tokenizer == "llama":
        words = ["▁", "a", "t", "i", "m", "e", "o", "n", "c", "▁a", "▁ti", "me", "▁time", "ti", "on", "ce"]
        names = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256)), *words]
        types = [TokenType.UNKNOWN, TokenType.CONTROL, TokenType.CONTROL] + [TokenType.BYTE] * 256
        w.add_tokenizer_model("llama")
        w.add_token_list(names)
        w.add_token_scores([0.0] * 259 + [-float(i) for i in range(len(words))])
        w.add_token_types(types + [TokenType.NORMAL] * len(words))
        w.add_bos_token_id(1)
        w.add_eos_token_id(2)
    elif tokenizer:
        w.add_tokenizer_model(tokenizer)
        w.add_token_list(["a"])
    for key, value in (more or {}).items():
        add = {bool: w.add_bool, int: w.add_uint32, float: w.add_float32, str: w.add_string, list: w.add_array}
        add[type(value)](key, value)
    q, kv, d = s["heads"] * s["head"], s["kv"] * s["head"], s["width"]
    shapes = {"token_embd": (s["vocab"], d)} | ({"output": (s["vocab"], d)} if untied else {})
    norms, biases = {"output_norm": d}, {}
    for i in range(s["layers"]):
        rows = {"attn_q": (q, d), "attn_k": (kv, d), "attn_v": (kv, d), "attn_output": (d, q)}
        rows |= {"ffn_gate": (s["ff"], d), "ffn_up": (s["ff"], d), "ffn_down": (d, s["ff"])}
        shapes |= {f"blk.{i}.{name}": shape for name, shape in rows.items()}
        norms |= {f"blk.{i}.attn_norm": d, f"blk.{i}.ffn_norm": d}
        if arch == "qwen3":
            norms |= {f"blk.{i}.attn_q_norm": s["head"], f"blk.{i}.attn_k_norm": s["head"]}
        if arch == "qwen2":
            biases |= {f"blk.{i}.attn_q": q, f"blk.{i}.attn_k": kv, f"blk.{i}.attn_v": kv}
    for name, shape in shapes.items():
        if f"{name}.weight" not in drop:
            data = packed(generator.normal(0, 0.05, shape).astype(np.float32), kind, generator)
            w.add_tensor(f"{name}.weight", data, raw_dtype=GGMLQuantizationType[kind])
    for leaf, table, mean in (("weight", norms, 1.0), ("bias", biases, 0.0)):
        for name, size in table.items():
            w.add_tensor(f"{name}.{leaf}", generator.normal(mean, 0.2, size).astype(np.float32))
    for name, data in (tensors or {}).items():
        w.add_tensor(name, data)
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()
    return path


@torch.no_grad()
def agree(path: Path, theirs: Any) -> None:
    ids = torch.randint(3, 300, (2, 24), generator=torch.Generator().manual_seed(1))
    wanted = theirs.eval()(ids).logits
    assert float(wanted.std()) > 0.05
    assert float((wanted - import_dense(path)(ids)).abs().max()) < 1e-4


@pytest.fixture
def transformers() -> Any:
    return pytest.importorskip("transformers", reason="transformers is not installed: nothing to compare with")


KINDS = ("F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K")
CASES = [("llama", kind) for kind in KINDS] + [("qwen2", "Q8_0"), ("qwen3", "Q4_K")]


@pytest.mark.parametrize(("arch", "kind"), CASES)
def test_logits_are_those_of_transformers(transformers: Any, tmp_path: Path, arch: str, kind: str) -> None:
    path = write(tmp_path / "m.gguf", arch, kind, untied=kind in ("F16", "Q4_K"))
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file=path.name, dtype=torch.float32)
    agree(path, model)


@torch.no_grad()
def test_mistral_is_read_like_llama(tmp_path: Path) -> None:
    ids = torch.randint(3, 300, (1, 24), generator=torch.Generator().manual_seed(1))
    llama, mistral = (import_dense(write(tmp_path / f"{arch}.gguf", arch, "Q4_0")) for arch in ("llama", "mistral"))
    assert torch.equal(llama(ids), mistral(ids))
    window = {"llama.attention.sliding_window": 8}
    assert "SlidingWindow" in str(import_dense(write(tmp_path / "w.gguf", more=window)).spec.attention)


@pytest.mark.parametrize(
    ("tokenizer", "pre"), [("gpt2", "gpt-2"), ("gpt2", "qwen2"), ("gpt2", "tekken"), ("llama", None)]
)
def test_token_ids_are_those_of_transformers(
    transformers: Any, tmp_path: Path, tokenizer: str, pre: str | None
) -> None:
    path = write(tmp_path / "m.gguf", tokenizer=tokenizer, pre=pre)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path, gguf_file=path.name)
    ours: Any = tokenizer_of(import_dense(path))
    for text in TEXTS:
        assert prompt_ids(ours, text) == theirs(text)["input_ids"], text
        assert ours.decode(ours.encode(text)) == theirs.decode(ours.encode(text), skip_special_tokens=True)
    assert ours.special_tokens() == theirs.special_tokens_map
    assert ours.chat_template == theirs.chat_template


def test_ends_start_and_templates(tmp_path: Path) -> None:
    ours: Any = tokenizer_of(import_dense(write(tmp_path / "a.gguf")))
    assert ours.ends == (0, 2)  # eos of the metadata, and <|im_end|> by its name
    assert ours.start is None
    more = {
        "tokenizer.ggml.eot_token_id": 5, "tokenizer.ggml.bos_token_id": 1, "tokenizer.ggml.add_bos_token": True,
        "tokenizer.chat_templates": ["rag"], "tokenizer.chat_template.rag": "R",
    }  # fmt: skip
    ours = tokenizer_of(import_dense(write(tmp_path / "b.gguf", more=more)))
    assert ours.ends == (0, 5, 2)
    assert ours.start == 1
    assert ours.chat_template == {"default": CHATML, "rag": "R"}
    spaceless = import_dense(
        write(tmp_path / "c.gguf", tokenizer="llama", more={"tokenizer.ggml.add_space_prefix": False})
    )
    assert prompt_ids(tokenizer_of(spaceless), "a") == [1, 260]
    llama3: Any = tokenizer_of(
        import_dense(write(tmp_path / "d.gguf", pre="llama-bpe", more={"tokenizer.ggml.bos_token_id": 1}))
    )
    assert llama3.start == 1


def test_rotary_scaling(tmp_path: Path) -> None:
    def rope(**more: Any) -> Any:
        return import_dense(write(tmp_path / "m.gguf", **more)).spec.rope

    assert rope(more={"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 4.0}).scaling == "linear"
    yarn = {"type": "yarn", "factor": 4.0, "original_context_length": 32}
    found = rope(more={f"llama.rope.scaling.{key}": value for key, value in yarn.items()})
    assert (found.scaling, found.factor, found.original) == ("yarn", 4.0, 32)
    wavelengths = 2 * np.pi * 5000.0 ** (np.arange(0, 64, 2) / 64)
    smooth = np.clip((8192 / wavelengths - 1) / 3, 0, 1)
    factors = (1 / ((1 - smooth) / 8 + smooth)).astype(np.float32)
    found = rope(tensors={"rope_freqs.weight": factors})
    assert (found.scaling, found.factor, found.low, found.high, found.original) == ("llama3", 8.0, 1.0, 4.0, 8192)
    with pytest.raises(SourceError, match=r"rope_freqs\.weight"):
        rope(tensors={"rope_freqs.weight": factors * 2})
    with pytest.raises(SourceError, match="longrope"):
        rope(more={"llama.rope.scaling.type": "longrope"})


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "architecture": ({"arch": "gemma3"}, "unknown architecture 'gemma3'; supported: llama, mistral, qwen2, qwen3"),
    "shape": (
        {"more": {"llama.feed_forward_length": 512}, "drop": ("feed_forward_length",)},
        r"blk\.0\.ffn_gate\.weight has shape",
    ),
    "vocabulary": ({"more": {"llama.vocab_size": 400}, "drop": ("vocab_size",)}, r"token_embd\.weight has shape"),
    "missing": ({"drop": ("blk.1.attn_k.weight",)}, r"has no tensor blk\.1\.attn_k\.weight"),
    "strange": ({"tensors": {"blk.0.strange.weight": np.zeros(3, np.float32)}}, r"holds blk\.0\.strange\.weight"),
    "no-embedding": ({"drop": ("token_embd.weight",)}, r"token_embd\.weight"),
    "no-length": ({"drop": ("block_count",)}, r"no 'llama\.block_count'"),
    "no-tokenizer": ({"tokenizer": None}, "no tokenizer in its metadata"),
    "tokenizer": ({"tokenizer": "bert"}, "its tokenizer is a 'bert'"),
    "splits": ({"pre": "made-up"}, "splits text like 'made-up'"),
    "experts": ({"more": {"llama.expert_count": 8}}, "mixture of experts"),
    "head-width": (
        {"more": {"llama.rope.dimension_count": 32}, "drop": ("rope.dimension_count",)},
        "not the width of a head",
    ),
    "more-tokens": ({"vocab": 280}, "tokens in its metadata, but token_embd.weight has 280 rows"),
}


def refused(path: Path, out: Path, says: str) -> None:
    from fastsnn_convert import convert

    with pytest.raises(FastSNNError, match=says) as caught:
        convert(path, to=out)
    assert str(path.parent) in str(caught.value)
    assert not out.exists()


@pytest.mark.parametrize("case", BAD)
def test_what_is_wrong_is_named(tmp_path: Path, case: str) -> None:
    more, says = BAD[case]
    refused(write(tmp_path / "m.gguf", **more), tmp_path / "out.snn", says)


def test_damaged_files(tmp_path: Path) -> None:
    out, path = tmp_path / "out.snn", write(tmp_path / "m.gguf", kind="Q8_0")
    whole = path.read_bytes()
    for share in (0.0001, 0.01, 0.1, 0.5, 0.999):  # inside the header, the metadata, the table, the numbers
        path.write_bytes(whole[: int(len(whole) * share)])
        refused(path, out, "truncated|no GGUF")
    path.write_bytes(whole[:-40])
    refused(path, out, r"is truncated: [a-z_.0-9]+ ends at byte \d+")
    path.write_bytes(b"GGML" + whole[4:])
    refused(path, out, "no GGUF file: it begins with b'GGML'")
    path.write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    refused(path, out, "git-lfs")
    name = b"blk.0.attn_q.weight"
    at = whole.index(name) + len(name) + 4 + 16  # after its number of dimensions and both of them
    for number, says in ((16, "is stored as IQ2_XXS"), (250, "is of the unknown type 250")):
        path.write_bytes(whole[:at] + number.to_bytes(4, "little") + whole[at + 4 :])
        refused(path, out, rf"blk\.0\.attn_q\.weight {says}")
    refused(tmp_path / "none.gguf", out, "there is no such file")


def test_a_split_file_needs_all_parts(tmp_path: Path) -> None:
    whole = import_dense(write(tmp_path / "m.gguf"))
    first = write(tmp_path / "s-00001-of-00002.gguf", drop=("blk.1.attn_k.weight",),
                  more={"split.count": 2, "split.no": 0, "split.tensors.count": 20})  # fmt: skip
    refused(first, tmp_path / "out.snn", r"s-00002-of-00002\.gguf is missing")
    second = GGUFWriter(str(tmp_path / "s-00002-of-00002.gguf"), "llama")
    second.add_uint32("split.count", 2)
    from fastsnn_gguf.container import Container

    kept = Container(tmp_path / "m.gguf").tensors["blk.1.attn_k.weight"].data
    second.add_tensor("blk.1.attn_k.weight", np.array(kept))
    for step in (second.write_header_to_file, second.write_kv_data_to_file, second.write_tensors_to_file, second.close):
        step()
    for name in ("s-00001-of-00002.gguf", "s-00002-of-00002.gguf"):
        found = import_dense(tmp_path / name)
        weights = dict(whole.named_parameters())
        assert "layers.1.attention.k.weight" in weights
        for key, value in found.named_parameters():
            if key != "layers.1.attention.k.weight" and weights[key].ndim > 1 and "layers.1" not in key:
                assert value.shape == weights[key].shape
        assert torch.equal(found.layers[1].attention.k.weight, whole.layers[1].attention.k.weight)
