"""A trained W8A bundle writes one text by every path; every installed part is fused or says by name why it is not."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
import torch

pytest.importorskip("fastsnn_kernel_numba")

from fastsnn import FastSNN
from fastsnn_core import create, ops
from fastsnn_core.plugins import registry
from fastsnn_integer.quantization import quantise

ROOT = Path(__file__).resolve().parents[1]
PROMPT = "The value of a name is the object that it was bound to. "
SMALL = {"d_model": 24, "n_layers": 1, "n_heads": 4, "d_ff": 40}
KINDS = ("attention", "feedforward", "neuron")


@pytest.mark.parametrize(
    "attn", [[{"kind": "linear", "decay": 0.2}], [{"kind": "gla"}, {"kind": "linear", "decay": 1.0}]]
)
def test_a_trained_bundle_with_decay_writes_one_text_by_every_path(attn, tmp_path):
    """Fused step, layer by layer, prompt at once, prompt token by token; without its decay it would write another."""
    torch.manual_seed(0)
    model = FastSNN.build(attn=attn, d_model=48, n_layers=2, n_heads=4, d_ff=96)
    text = f"def value(name):\n    return the_object_that(name)\n\n{PROMPT}\n"
    FastSNN.fit(model, [text * 20], seq_len=64, max_steps=40, batch_size=4, lr=3e-3, quiet=True)
    model = FastSNN.load(FastSNN.export(model, tmp_path / "decay.snn", to="w8a"))

    def written(**options) -> str:
        return FastSNN.generate(model, PROMPT, max_tokens=40, temperature=0, **options)

    model.fast(model(torch.tensor([[1]]), return_state=True)[1])  # waits for the fused step's compilation
    fused = written()
    assert model.fast_step["kernel"] == "numba"
    with ops.use("naive"):
        assert written() == fused
        assert model.fast_step["kernel"] is None
    ids = torch.tensor([model.tokenizer.encode(PROMPT)])
    assert ids.shape[1] > 40  # long enough for the prompt kernels
    with torch.inference_mode():
        whole, _ = model(ids, return_state=True)
        state, rows = None, []
        for t in range(ids.shape[1]):
            row, state = model(ids[:, t : t + 1], state, return_state=True)
            rows.append(row)
    assert torch.equal(whole, torch.cat(rows, 1))
    for layer in model.layers:
        mixer = layer.attention.mixer
        if hasattr(mixer, "decay"):
            mixer.decay = 0.0
    with torch.inference_mode():
        assert not torch.equal(model(ids), whole), "its decay changes nothing: this test could not fail"


def parts() -> list[tuple[str, str]]:
    """``(kind, qualified name)`` of everything installed that can be part of a decoder."""
    found = [
        (kind, f"{plugin}/{name}")
        for kind in KINDS
        for name, hits in registry().components[kind].items()
        for plugin, _ in hits
    ]
    return sorted(found)


@pytest.mark.parametrize(("kind", "name"), parts())
def test_every_part_is_fused_or_named(kind, name):
    """A module without a fused form is said by its place and its class; one with a form decodes fused, same bits."""
    torch.manual_seed(0)
    part = create(kind, name)
    slot = {"attention": {"attention": (part,)}}.get(kind, {kind: part})
    model = quantise(create("model", "decoder", vocab_size=37, **SMALL, **slot).build()).eval()
    ids = torch.randint(0, 37, (1, 44), generator=torch.Generator().manual_seed(1))
    with torch.inference_mode(), ops.use("naive"):
        wanted = model(ids)
        _, state = model(ids[:, :4], return_state=True)
    with torch.inference_mode():
        assert torch.equal(model(ids), wanted)
        stream = model.fast(state)
        if stream is None:
            why = model.fast_step["why"]
            classes = {type(m).__name__ for m in model.modules()}
            assert why.startswith("layers.0."), why
            assert any(word in classes for word in why.replace(":", " ").split()) or "=" in why, why
        else:
            for t in range(4, 9):
                assert torch.equal(stream.step(int(ids[0, t])), wanted[0, t])


def test_decoder_and_kernels_know_no_plugin_by_name():
    """Neither a class nor a short name of an installed neuron, attention or feed-forward layer decides anything there.

    The decoder's defaults and its short names for lists of attentions are part of its spec, not of what runs; "linear"
    of `rope` is a kind of position scaling.
    """
    short = {name for kind in KINDS for name in registry().components[kind]}
    modules = {
        cls.__module__.partition(".")[0]
        for kind in KINDS
        for hits in registry().components[kind].values()
        for _, cls in hits
    }
    spec = {"__init__.py", "attention_list.py", "rope.py"}
    for folder in (
        "models/decoder/fastsnn_model_decoder",
        "kernels/numba/fastsnn_kernel_numba",
        "kernels/triton/fastsnn_kernel_triton",
    ):
        for path in sorted((ROOT / "plugins" / folder).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Import | ast.ImportFrom):
                    names = {getattr(node, "module", None) or ""} | {alias.name for alias in node.names}
                    assert not {n.partition(".")[0] for n in names} & modules, f"{path}:{node.lineno}"
                if isinstance(node, ast.Compare) and path.name not in spec:
                    words = {
                        c.value for c in ast.walk(node) if isinstance(c, ast.Constant) and isinstance(c.value, str)
                    }
                    assert not words & short, f"{path}:{node.lineno} compares with {words & short}"
                    attributes = {a.attr for a in ast.walk(node) if isinstance(a, ast.Attribute)}
                    assert "__name__" not in attributes, f"{path}:{node.lineno} compares the name of a class"
