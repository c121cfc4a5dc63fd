"""Greedy text of GGUF files against llama.cpp's own, and the logits of the real chat model against transformers'."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from gguf import GGUFReader, GGUFWriter, dequantize
from test_fastsnn_gguf import byte_level, write

from fastsnn_convert.language.families import import_dense
from fastsnn_text import Sampling, generate_ids, tokenizer_of

PROMPTS = ("The capital of France is", "Water boils at a temperature of", "Once upon a time, there was a")


@pytest.fixture
def llama() -> Any:
    return pytest.importorskip("xllamacpp", reason="xllamacpp is not installed: no llama.cpp to compare with")


def theirs(llama: Any, path: Path, prompts: list[list[int]], length: int) -> list[str]:
    """What llama.cpp writes after each prompt's token ids."""
    p = llama.CommonParams()
    p.model.path, p.n_ctx, p.n_parallel, p.n_gpu_layers, p.warmup, p.verbosity = str(path), 256, 1, 0, False, 0
    p.cpuparams.n_threads = p.cpuparams_batch.n_threads = 1
    p.cache_type_k = p.cache_type_v = llama.ggml_type.GGML_TYPE_F32
    server, found = llama.Server(p), []
    for ids in prompts:
        ask = {"prompt": ids, "n_predict": length, "temperature": 0.0, "ignore_eos": True, "cache_prompt": False}
        found.append(server.handle_completions(ask)["choices"][0]["text"])
    return found


def ours(path: Path, prompts: list[list[int]], length: int) -> list[str]:
    model = import_dense(path)
    tokenizer: Any = tokenizer_of(model)
    return [tokenizer.decode(list(generate_ids(model, ids, length, Sampling(temperature=0.0)))) for ids in prompts]


@pytest.mark.parametrize(("arch", "kind"), [("llama", "F32"), ("qwen2", "F32"), ("qwen3", "F32"), ("llama", "F16")])
def test_greedy_text_is_llama_cpps(llama: Any, tmp_path: Path, arch: str, kind: str) -> None:
    path = write(tmp_path / "m.gguf", arch, kind, vocab=len(byte_level()["vocab"]))
    prompts = [[7 + 11 * i, 40 + i, 99, 150 - i] for i in range(6)]
    found = ours(path, prompts, 6)
    assert len(set(found)) > 3
    assert found == theirs(llama, path, prompts, 6)


def real() -> Path:
    given = os.environ.get("FASTSNN_DATA_CACHE")
    folder = Path(given) if given else Path.home() / ".cache/fastsnn/smollm2"
    path = next(folder.glob("*.gguf"), None)
    return path or pytest.skip(f"{folder} has no .gguf: the real model is brought by hand (benchmarks/README.md)")


def unpacked(path: Path, to: Path) -> Path:
    """The same model with all numbers in float32: with 4-bit weights llama.cpp rounds activations to 8 bits, too."""
    reader = GGUFReader(path)
    writer = GGUFWriter(str(to), str(reader.fields["general.architecture"].contents()))
    for name, field in reader.fields.items():
        if not name.startswith("GGUF.") and name not in ("general.architecture", "general.file_type"):
            sub = field.types[-1] if len(field.types) > 1 else None
            writer.add_key_value(name, field.contents(), field.types[0], sub)
    for t in reader.tensors:
        writer.add_tensor(t.name, dequantize(t.data, t.tensor_type).reshape(tuple(reversed(t.shape.tolist()))))
    for step in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_tensors_to_file, writer.close):
        step()
    return to


@pytest.mark.slow
def test_the_real_models_greedy_text_is_llama_cpps(llama: Any, tmp_path: Path) -> None:
    path = real()
    tokenizer: Any = tokenizer_of(import_dense(path))
    prompts = [tokenizer.encode(text) for text in PROMPTS]
    assert ours(path, prompts, 24) == theirs(llama, unpacked(path, tmp_path / "float32.gguf"), prompts, 24)


@pytest.mark.slow
@torch.no_grad()
def test_the_real_models_logits_are_those_of_transformers() -> None:
    transformers = pytest.importorskip("transformers", reason="transformers is not installed: nothing to compare with")
    path = real()
    model: Any = import_dense(path)
    ids = torch.tensor([tokenizer_of(model).encode(" ".join(PROMPTS))])
    found = model(ids)
    del model
    read = transformers.AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32)
    wanted = read.eval()(ids).logits
    assert float((wanted - found).abs().max()) < 1e-4 * float(wanted.abs().max())
