"""The dense import against transformers, on random small models of each family and each rope scaling."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from fastsnn_convert.language.families import FAMILIES, import_dense
from fastsnn_text import TokenizerError, tokenizer_of

BASE: dict[str, Any] = {
    "vocab_size": 97,
    "hidden_size": 48,
    "intermediate_size": 72,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", {}),
    "llama-biases-tied-gelu": (
        "Llama",
        {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True, "hidden_act": "gelu"},
    ),
    "llama-eps-theta-gelu-tanh": (
        "Llama",
        {
            "rms_norm_eps": 0.01,
            "hidden_act": "gelu_pytorch_tanh",
            "rope_parameters": {"rope_type": "default", "rope_theta": 50.0},
        },
    ),
    "llama-head-dim": ("Llama", {"head_dim": 16}),
    "llama-multi-query": ("Llama", {"num_key_value_heads": 1}),
    "mistral-window": ("Mistral", {"sliding_window": 16}),
    "mistral-full": ("Mistral", {"sliding_window": None}),
    "qwen2": ("Qwen2", {}),
    "qwen2-windows": ("Qwen2", {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1}),
    "qwen3": ("Qwen3", {"head_dim": 16, "tie_word_embeddings": True}),
    "llama-relu": ("Llama", {"hidden_act": "relu"}),
    "llama-relu2": ("Llama", {"hidden_act": "relu2"}),
    "arcee": ("Arcee", {"mlp_bias": True}),
    "bitnet": ("BitNet", {"num_key_value_heads": 2, "attention_bias": True}),
    "bitnet-tied-eps": ("BitNet", {"rms_norm_eps": 0.01, "tie_word_embeddings": True}),
    "nemotron": ("Nemotron", {"head_dim": 12}),
    "nemotron-quarter": ("Nemotron", {"head_dim": 16, "partial_rotary_factor": 0.25, "attention_bias": True}),
    "opt": ("OPT", {"ffn_dim": 72, "num_key_value_heads": 4}),
    "opt-no-biases-own-head-gelu": (
        "OPT",
        {
            "ffn_dim": 72,
            "num_key_value_heads": 4,
            "enable_bias": False,
            "tie_word_embeddings": False,
            "activation_function": "gelu",
        },
    ),
    "qwen3-biases": ("Qwen3", {"head_dim": 16, "attention_bias": True}),
}
ROPES: dict[str, dict[str, Any]] = {
    "linear": {"rope_type": "linear", "factor": 4.0},
    "dynamic": {"rope_type": "dynamic", "factor": 2.0},
    "llama3": {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 32,
    },
    "yarn": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16},
    "yarn-mscale": {
        "rope_type": "yarn",
        "factor": 4.0,
        "original_max_position_embeddings": 16,
        "mscale": 1.0,
        "mscale_all_dim": 0.5,
        "beta_fast": 8.0,
        "truncate": False,
    },
    "yarn-attention-factor": {
        "rope_type": "yarn",
        "factor": 2.0,
        "original_max_position_embeddings": 32,
        "attention_factor": 1.3,
    },
}


@pytest.fixture
def transformers() -> Any:
    return pytest.importorskip("transformers", reason="transformers is not installed: nothing to compare with")


def pair(transformers: Any, folder: Path, family: str, more: dict[str, Any], **saving: Any) -> tuple[Any, Any]:
    """A random model of transformers and ours of the directory it writes."""
    torch.manual_seed(0)
    config = getattr(transformers, f"{family}Config")(**(BASE | more))
    theirs = transformers.AutoModelForCausalLM.from_config(config).eval().float()
    with torch.no_grad():
        for p in theirs.parameters():
            p.add_(0.1 * torch.randn_like(p))
    theirs.save_pretrained(folder, **saving)
    return theirs, import_dense(folder)


@torch.no_grad()
def compare(theirs: Any, ours: Any, length: int = 60) -> None:
    tokens = torch.randint(0, 97, (2, length), generator=torch.Generator().manual_seed(3))
    wanted, found = theirs(tokens).logits, ours(tokens)
    assert float(wanted.std()) > 0.1
    assert float((wanted - found).abs().max()) < 1e-4


@pytest.mark.parametrize("case", CASES)
def test_family(transformers: Any, tmp_path: Path, case: str) -> None:
    family, more = CASES[case]
    compare(*pair(transformers, tmp_path, family, more, max_shard_size="20KB" if "bias" in case else "5GB"))


@pytest.mark.parametrize("family", ["Llama", "Mistral", "Qwen2", "Qwen3"])
@pytest.mark.parametrize("scaling", ROPES)
def test_rope_scaling(transformers: Any, tmp_path: Path, scaling: str, family: str) -> None:
    rope = {"rope_parameters": {"rope_theta": 5000.0} | ROPES[scaling]}
    more = rope | ({"sliding_window": None} if family == "Mistral" else {})
    length = 60 if scaling == "dynamic" else 150  # beyond max_position_embeddings; dynamic there: the test below
    compare(*pair(transformers, tmp_path, family, more), length=length)


@pytest.mark.parametrize("scaling", ["linear", "dynamic", "llama3", "yarn"])
def test_old_form_of_rope_settings(transformers: Any, tmp_path: Path, scaling: str) -> None:
    ours = pair(transformers, tmp_path, "Llama", {"rope_parameters": {"rope_theta": 5000.0} | ROPES[scaling]})[1]
    path = tmp_path / "config.json"
    table = json.loads(path.read_text())
    new = table.pop("rope_parameters")
    table |= {"rope_theta": new.pop("rope_theta"), "rope_scaling": {"type": new.pop("rope_type")} | new}
    path.write_text(json.dumps(table))
    assert import_dense(tmp_path).spec == ours.spec


@torch.no_grad()
@pytest.mark.parametrize("family", ["Llama", "Mistral", "Qwen2", "Qwen3"])
def test_dynamic_beyond_the_original_length_is_cached_decoding(transformers: Any, tmp_path: Path, family: str) -> None:
    """transformers re-turns every token in a full pass; decoding with its cache, as we do, leaves them as they were."""
    rope = {"rope_parameters": {"rope_theta": 5000.0} | ROPES["dynamic"]}
    rope |= {"sliding_window": None} if family == "Mistral" else {}
    theirs, ours = pair(transformers, tmp_path, family, rope)
    tokens = torch.randint(0, 97, (2, 110), generator=torch.Generator().manual_seed(3))
    out = theirs(tokens[:, :64], use_cache=True)
    rows, cache = [out.logits], out.past_key_values
    for t in range(64, 110):
        out = theirs(tokens[:, t : t + 1], past_key_values=cache, use_cache=True)
        rows.append(out.logits)
    wanted = torch.cat(rows, 1)
    assert float((wanted - ours(tokens)).abs().max()) < 1e-4
    first, state = ours(tokens[:, :80], return_state=True)
    second = ours(tokens[:, 80:], state)
    assert float((wanted - torch.cat([first, second], 1)).abs().max()) < 1e-4
    assert float((wanted - theirs(tokens).logits).abs().max()) > 1e-3  # so there is something to choose


def test_tokenizer_comes_along(transformers: Any, tmp_path: Path) -> None:
    from fastsnn_text import train_bpe

    pair(transformers, tmp_path, "Llama", {"vocab_size": 300})
    text = train_bpe(["one two three two one"] * 5, 270).text
    assert text is not None
    (tmp_path / "tokenizer.json").write_text(text)
    model = import_dense(tmp_path)
    assert tokenizer_of(model).start is None  # config.json names one, but the tokenizer adds none
    assert tokenizer_of(model).ends == (2,)  # config.json's, where no tokenizer_config.json names one
    assert tokenizer_of(model).decode(tokenizer_of(model).encode("two one")) == "two one"
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<|endoftext|>", "bos_token": None}))
    model = import_dense(tmp_path)
    wanted = {"kind": "huggingface", "start": None, "end": 0, "ends": [0, 2]}
    assert model.meta["tokenizer"] == wanted | {"special_tokens": {"eos_token": "<|endoftext|>"}}
    (tmp_path / "tokenizer.json").unlink()
    with pytest.raises(TokenizerError, match="has no tokenizer"):  # and is not taken for one of bytes
        tokenizer_of(import_dense(tmp_path))


@torch.no_grad()
@pytest.mark.parametrize("family", ["Llama", "Mistral", "Qwen2", "Qwen3"])
def test_a_head_of_its_own_counts_whatever_the_config_says(transformers: Any, tmp_path: Path, family: str) -> None:
    theirs, _ = pair(transformers, tmp_path, family, {})
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"tie_word_embeddings": True}))
    ours = import_dense(tmp_path)
    assert not ours.spec.tied
    compare(theirs, ours)
    weights = load_file(tmp_path / "model.safetensors")
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"].clone()
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    assert import_dense(tmp_path).spec.tied


def test_the_page_names_the_families_that_are_read() -> None:
    page = Path(__file__).parents[3] / "docs" / "convert.md"
    if not page.is_file():
        pytest.skip("docs/ is not beside this distribution")
    named = page.read_text(encoding="utf-8").partition("Families: ")[2].partition(";")[0]
    assert set(named.replace("`", "").split(", ")) == set(FAMILIES)
