"""A byte-level Llama directory of ours as a GGUF in 16-bit floats, for llama.cpp, whose quantiser makes the rest.

    python benchmarks/gguf_of_llama.py HF_DIRECTORY OUT.gguf

llama.cpp turns neighbouring channels of queries and keys, Hugging Face the two halves of a head, so their rows are
reordered. Tokens are the 256 bytes and the end of a text. Needs `gguf`.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file

NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}
"""Ours to llama.cpp's."""


def pairs_side_by_side(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """Rows ``[heads · 2 · half, D]`` of halves as rows of pairs."""
    return weight.view(heads, 2, -1, weight.shape[-1]).transpose(1, 2).reshape(weight.shape)


def tokens(writer: Any, vocab: int) -> None:
    """The 256 bytes, then control tokens."""
    writer.add_tokenizer_model("llama")
    writer.add_token_list([b"<0x%02X>" % i for i in range(256)] + [b"<end%d>" % i for i in range(vocab - 256)])
    writer.add_token_scores([0.0] * vocab)
    writer.add_token_types([6] * 256 + [3] * (vocab - 256))
    writer.add_bos_token_id(256)
    writer.add_eos_token_id(256)
    writer.add_unk_token_id(256)


def write(source: Path, out: Path) -> Path:
    """`source` as a GGUF."""
    import gguf

    about = json.loads((source / "config.json").read_text(encoding="utf-8"))
    tensors = load_file(source / "model.safetensors")
    heads, groups = about["num_attention_heads"], about["num_key_value_heads"]
    writer = gguf.GGUFWriter(str(out), "llama")
    writer.add_context_length(about["max_position_embeddings"])
    writer.add_embedding_length(about["hidden_size"])
    writer.add_block_count(about["num_hidden_layers"])
    writer.add_feed_forward_length(about["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(groups)
    writer.add_layer_norm_rms_eps(about["rms_norm_eps"])
    writer.add_rope_dimension_count(about["head_dim"])
    writer.add_rope_freq_base(about["rope_theta"])
    writer.add_vocab_size(about["vocab_size"])
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16)
    tokens(writer, about["vocab_size"])
    for name, tensor in tensors.items():
        *_, layer, rest = ("", "", name) if ".layers." not in name else name.split(".", 3)[1:]
        part = rest.removesuffix(".weight")
        if layer:
            renamed = f"blk.{layer}.{NAMES[part]}.weight"
        else:
            renamed = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}[part]
            renamed += ".weight"
        if part.endswith(("q_proj", "k_proj")):
            tensor = pairs_side_by_side(tensor, heads if part.endswith("q_proj") else groups)
        writer.add_tensor(renamed, tensor.numpy().astype(np.float16 if tensor.ndim == 2 else np.float32))
    for step in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_tensors_to_file, writer.close):
        step()
    return out


if __name__ == "__main__":
    print(write(Path(sys.argv[1]), Path(sys.argv[2])))
