"""Reading Hugging Face directories: what is right is read without a copy, what is wrong is named."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from fastsnn_convert.language.families import import_dense, source_of, spec_of_config
from fastsnn_convert.language.hf_checkpoint import Checkpoint, SourceError
from fastsnn_core import build

CONFIG = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 19,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 32,
    "tie_word_embeddings": True,
}


def write(folder: Path, config: dict | None = None, *, dtype: torch.dtype = torch.float32, shards: int = 1) -> Path:
    """A small random directory."""
    folder.mkdir(exist_ok=True)
    table = CONFIG | (config or {})
    (folder / "config.json").write_text(json.dumps(table))
    (folder / "model.safetensors").write_bytes(b"")  # so that the config can be read on its own
    checkpoint = Checkpoint.__new__(Checkpoint)
    checkpoint.folder, checkpoint.config = folder, table
    torch.manual_seed(1)
    weights = {
        source_of(n): torch.randn_like(p).to(dtype) for n, p in build(spec_of_config(checkpoint)).named_parameters()
    }
    (folder / "model.safetensors").unlink()
    if shards == 1:
        save_file(weights, folder / "model.safetensors")
        return folder
    names, where = sorted(weights), {}
    for i in range(shards):
        file = f"model-{i + 1:05d}-of-{shards:05d}.safetensors"
        save_file({n: weights[n] for n in names[i::shards]}, folder / file)
        where |= dict.fromkeys(names[i::shards], file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": where}))
    return folder


def refused(folder: Path, *says: str) -> None:
    with pytest.raises(SourceError) as caught:
        import_dense(folder)
    for text in says:
        assert text in str(caught.value), f"{text!r} is not in: {caught.value}"


@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_reads_every_tensor(tmp_path: Path, shards: int, dtype: torch.dtype) -> None:
    folder = write(tmp_path / "m", dtype=dtype, shards=shards)
    found: dict[str, torch.Tensor] = {}
    for file in folder.glob("*.safetensors"):
        found |= load_file(file)
    model, kept = import_dense(folder), import_dense(folder, dtype=None)
    assert sorted(map(source_of, dict(model.named_parameters()))) == sorted(found)
    for name, parameter in model.named_parameters():
        assert parameter.dtype == torch.float32
        assert torch.equal(parameter, found[source_of(name)].float())
    for name, parameter in kept.named_parameters():
        assert parameter.dtype == dtype
        assert torch.equal(parameter, found[source_of(name)])


def test_files_are_left_as_they_were(tmp_path: Path) -> None:
    folder = write(tmp_path / "m")
    before = (folder / "model.safetensors").read_bytes()
    model = import_dense(folder)
    with torch.no_grad():
        for p in model.parameters():
            p.zero_()
    assert (folder / "model.safetensors").read_bytes() == before


def test_not_a_directory(tmp_path: Path) -> None:
    refused(tmp_path / "absent", "absent does not exist", "safetensors")
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80\x04")
    refused(tmp_path / "pytorch_model.bin", "pytorch_model.bin is a pickle", "safetensors")
    refused(tmp_path, "config.json is missing")


def test_without_weights(tmp_path: Path) -> None:
    folder = write(tmp_path / "m")
    (folder / "model.safetensors").unlink()
    refused(folder, "has no weights", "model.safetensors.index.json")
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x04")
    refused(folder, "pytorch_model.bin is a pickle file", "run code")
    (folder / "other.safetensors").write_bytes(b"")
    (folder / "pytorch_model.bin").unlink()
    refused(folder, "has other.safetensors but neither model.safetensors nor")


def test_config_that_says_too_little(tmp_path: Path) -> None:
    folder = write(tmp_path / "m")
    for change, says in (
        (
            {"model_type": "mamba"},
            "architecture 'mamba'; supported: llama, mistral, qwen2, arcee, nemotron, bitnet, opt, qwen3",
        ),
        ({"model_type": None}, "does not say its model_type"),
        ({"architectures": ["LlamaForSequenceClassification"]}, "is no causal language model"),
        ({"quantization_config": {"bits": 4}}, "quantised"),
        ({"hidden_act": "mish"}, "hidden_act 'mish'; supported: silu"),
        ({"hidden_size": "16"}, "'hidden_size' must be a positive whole number"),
        ({"num_attention_heads": 3}, "not a multiple"),
        ({"rope_parameters": {"rope_type": "longrope"}}, "rope scaling 'longrope'; supported: default, linear"),
        ({"rope_scaling": {"type": "linear"}}, "'factor'"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor 0.5; supported: 1.0"),
    ):
        (folder / "config.json").write_text(json.dumps(CONFIG | change))
        refused(folder, "config.json", says)
    for key in ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"):
        (folder / "config.json").write_text(json.dumps({k: v for k, v in CONFIG.items() if k != key}))
        refused(folder, "config.json has no", key)
    (folder / "config.json").write_text("{")
    refused(folder, "config.json cannot be read")
    (folder / "config.json").write_text("[]")
    refused(folder, "config.json holds a list")


def test_tensors_that_do_not_fit(tmp_path: Path) -> None:
    folder = write(tmp_path / "m")
    file = folder / "model.safetensors"
    weights = load_file(file)
    up = "model.layers.1.mlp.up_proj.weight"
    save_file(weights | {up: torch.zeros(24, 15)}, file)
    refused(folder, "model.safetensors", f"{up} has shape [24, 15]", "asks for [24, 16]")
    save_file({k: v for k, v in weights.items() if k != up}, file)
    refused(folder, f"no tensor '{up}'", "config.json asks for")
    save_file(weights | {"model.layers.2.mlp.up_proj.weight": weights[up].clone()}, file)
    refused(folder, "holds model.layers.2.mlp.up_proj.weight", "a llama model does not have")
    save_file(weights | {up: weights[up].to(torch.int8)}, file)
    refused(folder, f"{up} is stored as I8", "float32, float64, bfloat16 or float16")
    save_file(weights | {"lm_head.weight": torch.zeros(19, 16), "model.rotary_emb.inv_freq": torch.zeros(2)}, file)
    import_dense(folder)  # a tied model's own head and old rotary buffers are nobody's


def test_a_tied_model_under_its_other_name_and_names_of_wrappers(tmp_path: Path) -> None:
    folder = write(tmp_path / "m")
    file = folder / "model.safetensors"
    weights = load_file(file)
    wanted, ids = import_dense(folder), torch.tensor([[1, 5, 9]])
    embed = "model.embed_tokens.weight"
    save_file({k: v for k, v in weights.items() if k != embed} | {"lm_head.weight": weights[embed]}, file)
    assert torch.equal(import_dense(folder)(ids), wanted(ids))
    for prefix in ("module.", "_orig_mod.", "base_model.model."):
        save_file({prefix + k: v for k, v in weights.items()}, file)
        refused(folder, "was saved from a wrapper", repr(prefix))


def test_folders_that_hold_a_model_elsewhere(tmp_path: Path) -> None:
    (tmp_path / "models--x/snapshots").mkdir(parents=True)
    write(tmp_path / "models--x/snapshots/abc")
    refused(tmp_path / "models--x", "the hub's cache", "snapshots/abc")
    refused(tmp_path / "models--x/snapshots", "there is one in", "snapshots/abc")
    (tmp_path / "lora").mkdir()
    (tmp_path / "lora/adapter_config.json").write_text("{}")
    refused(tmp_path / "lora", "an adapter (LoRA)", "merge_and_unload")


def test_damaged_files(tmp_path: Path) -> None:
    folder = write(tmp_path / "m")
    file = folder / "model.safetensors"
    good = file.read_bytes()
    length = struct.unpack("<Q", good[:8])[0]
    table = json.loads(good[8 : 8 + length])
    first = next(n for n in table if n != "__metadata__")

    def header(**rows: object) -> bytes:
        raw = json.dumps(table | rows).encode()
        return struct.pack("<Q", len(raw)) + raw + good[8 + length :]

    for data, says in (
        (b"\x01", "header too small"),
        (struct.pack("<Q", 1 << 60) + good[8:], "header too large"),
        (struct.pack("<Q", length // 2) + good[8:], "invalid JSON in header"),
        (b"\x80\x04\x95" + bytes(100), "no safetensors file: "),
        (good[:-1], "file not fully covered"),
        (good + b"x", "file not fully covered"),
        (header(**{first: {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}}), "invalid"),
        (header(**{first: {"dtype": "F32", "shape": [-2], "data_offsets": [0, 8]}}), "invalid value: integer `-2`"),
        (header(**{first: {"dtype": "F32"}}), "missing field"),
        (header(**{first: {"dtype": "F32", "shape": [1 << 40], "data_offsets": [0, 1 << 42]}}), "invalid offset"),
        (header(**{first: {"dtype": "F7", "shape": [2], "data_offsets": [0, 4]}}), "unknown variant `F7`"),
    ):
        file.write_bytes(data)
        whole = "model.safetensors is damaged, cut off, or no safetensors file"
        refused(folder, whole, says, "float32, float64, bfloat16")
    file.write_bytes(good)
    import_dense(folder)


def test_shards_that_do_not_match(tmp_path: Path) -> None:
    folder = write(tmp_path / "m", shards=2)
    index = folder / "model.safetensors.index.json"
    text = index.read_text()
    table = json.loads(text)["weight_map"]
    shard = folder / "model-00001-of-00002.safetensors"
    name = next(n for n, file in table.items() if file == shard.name)
    for change, says in (
        ({name: "model-00002-of-00002.safetensors"}, "a mismatched shard"),
        ({"model.more.weight": shard.name}, "does not hold model.more.weight"),
        ({name: "../model.safetensors"}, "outside the directory"),
        ({name: "pytorch_model.bin"}, "no safetensors file"),
        ({name: "model-00003-of-00002.safetensors"}, "is missing"),
    ):
        index.write_text(json.dumps({"weight_map": table | change}))
        refused(folder, says)
    index.write_text("{}")
    refused(folder, "index.json has no weight_map")
    index.write_text(text)
    import_dense(folder)
    shard.unlink()
    refused(folder, shard.name, "is missing")


MEASURE = """
import re, sys
from fastsnn_convert.language.families import import_dense
import torch
torch.zeros(8) @ torch.zeros(8)
def kib(name):  # of this program alone: getrusage would count what its parent had before it was started
    return int(re.search(name + r":\\s+(\\d+) kB", open("/proc/self/status").read())[1])
import_dense(sys.argv[2])  # a tiny one: what is measured is the weights, not the libraries
before = kib("VmRSS")
model = import_dense(sys.argv[1])
weights = sum(p.numel() * p.element_size() for p in model.parameters())
print(weights, 1024 * (kib("VmHWM") - before) / weights)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/self/status")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_peak_memory_is_below_1_3_times_the_weights(tmp_path: Path, dtype: torch.dtype) -> None:
    sizes = {"hidden_size": 1024, "intermediate_size": 2816, "num_hidden_layers": 4, "vocab_size": 4096}
    folder = write(tmp_path / "m", sizes, dtype=dtype, shards=2)
    tiny = write(tmp_path / "tiny")
    done = subprocess.run([sys.executable, "-c", MEASURE, folder, tiny], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    weights, ratio = map(float, done.stdout.split())
    assert weights > 190e6
    assert ratio < 1.3, f"importing {weights / 1e6:.0f} MB took {ratio:.2f} times as much"


NO_COMPILER = """
import sys
import torch
from fastsnn_convert import convert
torch.manual_seed(0)
convert(sys.argv[1], k=3.0, calibration=torch.randint(0, 19, (40, 32)), windows=2, quiet=True)
print([name for name in ("sympy", "torch._dynamo") if name in sys.modules])
"""


def test_a_conversion_does_not_import_a_compiler(tmp_path: Path) -> None:
    """Up to ten seconds of a small one: arange, random numbers and empty_like of the meta device, torch's optimizers
    and gradients that are given one do."""
    done = subprocess.run(
        [sys.executable, "-c", NO_COMPILER, str(write(tmp_path / "hf"))], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize(
    "name", ["model.layers.0.mlp.up_proj.weight", "model.norm.weight", "model.embed_tokens.weight"]
)
def test_weights_that_are_no_numbers_are_named_with_their_file(name, value, tmp_path):
    folder = write(tmp_path / "m")
    spoilt = load_file(folder / "model.safetensors")
    spoilt[name].view(-1)[1] = value
    save_file(spoilt, folder / "model.safetensors")
    refused(folder, f"{name} in {folder / 'model.safetensors'} holds 1 of")
