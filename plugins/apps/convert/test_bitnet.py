"""BitNet directories: packed ternary weights and full ones that the model rounds, against transformers; bundles."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from fastsnn_convert.language.families import import_dense
from fastsnn_convert.language.hf_checkpoint import SourceError
from fastsnn_core.errors import FastSNNError
from fastsnn_integer.quantization import Quant, quantise
from fastsnn_integer.ternary import PackedTernary, TernaryLinear, absmean, pack_ternary

SHAPE = {
    "vocab_size": 97, "hidden_size": 48, "intermediate_size": 72, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 64,
}  # fmt: skip
TOKENS = torch.randint(0, 97, (2, 40), generator=torch.Generator().manual_seed(3))


@pytest.fixture
def theirs() -> Any:
    transformers = pytest.importorskip("transformers", reason="transformers is not installed: nothing to compare with")
    if not hasattr(transformers, "BitNetForCausalLM"):
        pytest.skip("this transformers has no BitNet")
    torch.manual_seed(0)
    model = transformers.BitNetForCausalLM(transformers.BitNetConfig(**SHAPE)).eval().float()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.1 * torch.randn_like(p))
            if p.ndim == 1:
                p.copy_(p.bfloat16())  # gains of norms, which integer arithmetic keeps so
    return model


def linears(model: Any) -> dict[str, nn.Linear]:
    return {n: m for n, m in model.named_modules() if isinstance(m, nn.Linear) and n != "lm_head"}


def bitnet_folder(theirs: Any, folder: Path, kind: str, mode: str, packed: bool = True) -> None:
    """The directory that holds `theirs` rounded; `theirs` itself then works with the rounded weights, in float."""
    theirs.save_pretrained(folder)
    tensors = load_file(folder / "model.safetensors")
    for name, layer in linears(theirs).items():
        codes, scale = absmean(layer.weight.detach())
        scale = scale if mode == "online" else scale.bfloat16()
        if mode == "offline":
            tensors[f"{name}.weight"] = pack_ternary(codes).T.contiguous() if packed else codes
            tensors[f"{name}.weight_scale"] = (1 / scale if kind == "bitlinear" else scale).bfloat16().reshape(1)
            scale = tensors[f"{name}.weight_scale"].float()
            scale = 1 / scale if kind == "bitlinear" else scale
        with torch.no_grad():
            layer.weight.copy_(codes * scale)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "bitnet", "linear_class": kind, "quantization_mode": mode}
    (folder / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize(
    ("kind", "mode", "packed"),
    [("autobitlinear", "offline", True), ("autobitlinear", "offline", False), ("bitlinear", "offline", True),
     ("autobitlinear", "online", True)],
)  # fmt: skip
@torch.no_grad()
def test_logits_are_those_of_transformers(theirs, tmp_path, kind, mode, packed):
    before = theirs(TOKENS).logits
    bitnet_folder(theirs, tmp_path, kind, mode, packed)
    ours, wanted = import_dense(tmp_path), theirs(TOKENS).logits
    assert float((before - wanted).abs().max()) > 0.1  # rounding is seen
    assert float((ours(TOKENS) - wanted).abs().max()) < 1e-4
    assert isinstance(ours.layers[0].attention.q, TernaryLinear) == (mode == "online")

    def eight_bits(_: nn.Module, args: Any) -> Any:  # what a BitNet layer does to its input
        x = args[0]
        scale = 127 / x.abs().amax(-1, keepdim=True).clamp_min(1e-5)
        return ((x * scale).round() / scale,)

    for layer in linears(theirs).values():
        layer.register_forward_pre_hook(eight_bits)
    small: Any = quantise(ours, Quant(bits=2, head=False, embed=False)).eval()
    assert sum(isinstance(m, PackedTernary) for m in small.modules()) == 14
    short = TOKENS.reshape(16, 5)
    off = (small(short) - theirs(short).logits).abs().amax((1, 2))
    assert float((off < 1e-4).double().mean()) > 0.7  # of the streams: all but those with a count on the edge of two
    assert float(off.max()) < 0.1


@torch.no_grad()
def test_the_fused_paths_have_the_norms(theirs, tmp_path):
    """Prompt kernels and the fused step of a model with norms in front of both projections: the modules' own bits."""
    bitnet_folder(theirs, tmp_path, "autobitlinear", "offline")
    dense = import_dense(tmp_path)
    for quant in (Quant(bits=2), Quant()):
        small: Any = quantise(dense, quant).eval()
        wanted = torch.cat([small(TOKENS[:1, :20]), small(TOKENS[:1])[:, 20:]], 1)
        _, state = small(TOKENS[:1, :20], return_state=True)
        stream = small.fast(state)
        assert stream is not None, small.fast_step
        for i in range(20, 40):
            assert torch.equal(stream.step(int(TOKENS[0, i])), wanted[0, i])


def test_what_is_not_understood_is_refused(theirs, tmp_path):
    bitnet_folder(theirs, tmp_path, "autobitlinear", "offline")
    config = json.loads((tmp_path / "config.json").read_text())
    for change, said in (({"use_rms_norm": True}, "use_rms_norm"), ({"linear_class": "other"}, "linear_class 'other'")):
        changed = config | {"quantization_config": config["quantization_config"] | change}
        (tmp_path / "config.json").write_text(json.dumps(changed))
        with pytest.raises(SourceError, match=said):
            import_dense(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(config))
    tensors = load_file(tmp_path / "model.safetensors")
    name = "model.layers.0.self_attn.q_proj.weight"
    good = tensors[name].clone()
    tensors[name][0, 0] |= 3 << 2
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(SourceError, match="code 3"):
        import_dense(tmp_path)
    tensors[name], tensors[f"{name}_scale"] = good, torch.zeros(1)
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(SourceError, match="one number that is not 0"):
        import_dense(tmp_path)


def test_balancing_is_refused_where_it_would_change_what_is_rounded(theirs, tmp_path):
    from fastsnn_convert.language.convert import convert_language

    bitnet_folder(theirs, tmp_path, "autobitlinear", "online")
    with pytest.raises(FastSNNError, match="balance=False"):
        convert_language(tmp_path, quiet=True, calibration=TOKENS)
