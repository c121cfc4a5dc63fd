"""GPTQ, AWQ and compressed-tensors directories: written here by the formats' own rules, read without a rounding."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from test_fastsnn_convert_checkpoint import write

from fastsnn_convert.language.families import import_dense
from fastsnn_convert.language.hf_checkpoint import SourceError

SIZES = {"hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16}
ORDER = (0, 2, 4, 6, 1, 3, 5, 7)


def pack(codes, axis, order=range(8)):
    """Eight codes of `axis` in an int32, the first in the lowest bits: a loop, as the formats' documents have it."""
    codes = np.moveaxis(np.asarray(codes, dtype=np.uint32), axis, 0)
    rows = []
    for begin in range(0, len(codes), 8):
        word = np.zeros(codes.shape[1:], dtype=np.uint32)
        for place, column in enumerate(order):
            word |= codes[begin + column] << np.uint32(4 * place)
        rows.append(word)
    return torch.from_numpy(np.moveaxis(np.stack(rows), 0, axis).copy().view(np.int32))


def quantised(folder, method, group=16, symmetric=False, act_order=False, **settings):
    """A small llama whose projections are stored in 4 bits; returns the float weights that they stand for."""
    write(folder, SIZES)
    tensors, generator, wanted = load_file(folder / "model.safetensors"), np.random.default_rng(0), {}
    for name in [n for n in tensors if n.endswith("_proj.weight")]:
        out, width = tensors[name].shape
        groups, owner = width // group, name.removesuffix(".weight")
        q = generator.integers(0, 16, (out, width))
        z = np.full((out, groups), 8) if symmetric else generator.integers(1, 16, (out, groups))
        scale = torch.from_numpy(generator.uniform(1e-3, 9e-3, (out, groups))).to(torch.float16)
        index = generator.permutation(np.arange(width) // group) if act_order else np.arange(width) // group
        wanted[name] = torch.tensor(q - z[:, index]).float() * scale.float()[:, index]
        del tensors[name]
        if method == "compressed-tensors":
            tensors |= {
                f"{owner}.weight_packed": pack(q, 1),
                f"{owner}.weight_scale": scale,
                f"{owner}.weight_shape": torch.tensor([out, width]),
            }
            if not symmetric:
                tensors[f"{owner}.weight_zero_point"] = pack(z, 0)
            continue
        gptq = method == "gptq"
        tensors |= {
            f"{owner}.qweight": pack(q.T, 0) if gptq else pack(q.T, 1, ORDER),
            f"{owner}.qzeros": pack((z.T - 1) & 15, 1) if gptq else pack(z.T, 1, ORDER),
            f"{owner}.scales": scale.T.contiguous(),
        }
        if gptq:
            tensors[f"{owner}.g_idx"] = torch.tensor(index, dtype=torch.int32)
    save_file({k: v.contiguous() for k, v in tensors.items()}, folder / "model.safetensors", metadata={"format": "pt"})
    table = json.loads((folder / "config.json").read_text())
    if method == "compressed-tensors":
        weights = {"num_bits": 4, "type": "int", "group_size": group, "strategy": "group", "symmetric": symmetric}
        more = {"format": "pack-quantized", "config_groups": {"group_0": {"targets": ["Linear"], "weights": weights}}}
    else:
        more = {"bits": 4, "group_size": group, "desc_act": act_order, "sym": symmetric}
    table["quantization_config"] = {"quant_method": method} | more | settings
    (folder / "config.json").write_text(json.dumps(table))
    return wanted


CASES = [
    ("gptq", {"symmetric": True}), ("gptq", {"act_order": True}), ("awq", {}),
    ("compressed-tensors", {"symmetric": True}),
    ("compressed-tensors", {}),
]  # fmt: skip


@pytest.mark.parametrize(("method", "how"), CASES)
def test_weights_are_those_that_are_stored(method, how, tmp_path):
    from fastsnn_convert.language.families import source_of

    wanted = quantised(tmp_path / "m", method, **how)
    model = import_dense(tmp_path / "m")
    seen = {source_of(n): p for n, p in model.named_parameters()}
    assert set(wanted) <= set(seen)
    for name, weight in wanted.items():
        assert torch.equal(seen[name], weight), name


@pytest.mark.parametrize(("method", "how"), [c for c in CASES if "act_order" not in c[1]])
def test_four_bits_out_are_the_four_bits_in(method, how, tmp_path):
    """Exported as W4A, every projection decodes to the stored weights, and does so after loading."""
    exporter = pytest.importorskip("fastsnn_exporter_w4a").W4a
    from fastsnn_core import load
    from fastsnn_integer.four_bits import FourBits

    quantised(tmp_path / "m", method, group=32, **how)
    model = import_dense(tmp_path / "m")
    small = load(exporter(group=32, minimum=not how.get("symmetric")).export(model, tmp_path / "m.snn"))
    layers = {n: m for n, m in small.named_modules() if isinstance(m, FourBits)}
    floats = dict(model.named_modules())
    assert len(layers) == 7 * model.spec.n_layers
    for name, layer in layers.items():
        assert torch.equal(layer.decoded(), floats[name].weight), name
    assert small.meta["milestones"][-1]["exact"] == len(layers)


@pytest.mark.parametrize(
    ("method", "settings", "said"),
    [
        ("gptq", {"bits": 8}, "says 8 bits; supported: 4"),
        ("awq", {"version": "gemv"}, "layout 'gemv'"),
        ("compressed-tensors", {"format": "float-quantized"}, "format 'float-quantized'"),
        ("bitsandbytes", {}, "quantised \\(bitsandbytes\\)|stored as I32"),
    ],
)
def test_other_layouts_are_refused_by_name(method, settings, said, tmp_path):
    quantised(tmp_path / "m", method, **settings)
    with pytest.raises(SourceError, match=said):
        import_dense(tmp_path / "m")


def test_damaged_directories_say_what_is_wrong(tmp_path):
    quantised(tmp_path / "m", "gptq")
    file = tmp_path / "m" / "model.safetensors"
    tensors = load_file(file)
    name = next(n for n in tensors if n.endswith(".scales"))
    for change, said in (
        ({name: tensors[name][:1].contiguous()}, "do not go with a matrix"),
        ({name: None}, "has no .*scales"),
        ({name.replace("scales", "g_idx"): torch.full((64,), 99, dtype=torch.int32)}, "g_idx"),
    ):
        save_file({k: v for k, v in (tensors | change).items() if v is not None}, file, metadata={"format": "pt"})
        with pytest.raises(SourceError, match=said):
            import_dense(tmp_path / "m")
