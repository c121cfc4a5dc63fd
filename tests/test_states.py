"""A state belongs to its streams: every neuron, attention and model refuses one of another batch, and names both."""

from __future__ import annotations

import pytest
import torch

from fastsnn_core import Dims, Heads, SpikeTensor, build, create
from fastsnn_core.errors import FastSNNError
from fastsnn_modules.inputs import StateError

NEURONS = ("lif", "ilif", "lif_sint")
ATTENTIONS = ("linear", "gla", "softmax", "sliding_window", "hybrid")


def heads(batch: int, width: int = 4) -> Heads:
    q, k, v = (torch.rand(batch, 5, 2, width) for _ in range(3))
    return Heads(q, k, v, torch.rand(batch, 5, 8), torch.ones(batch, 5, width // 2), torch.zeros(batch, 5, width // 2))


def module(kind: str, name: str) -> torch.nn.Module:
    if kind == "neuron":
        return create("neuron", name).build(4)
    if kind == "attention":
        return create("attention", name).build(Dims(8, 2, 2, 4))
    return build(create("model", "decoder", vocab_size=9, d_model=8, n_heads=2, n_layers=2, d_ff=8))


def call(kind: str, part: torch.nn.Module, batch: int, state: object) -> object:
    if kind == "neuron":
        return part(torch.rand(batch, 5, 4), state, None)
    if kind == "attention":
        return part(heads(batch), state, None)
    return part(torch.zeros(batch, 5, dtype=torch.long), state, return_state=True)


CASES = [("neuron", n) for n in NEURONS] + [("attention", a) for a in ATTENTIONS] + [("model", "decoder")]


@pytest.mark.parametrize("batch", [1, 3, 16])
@pytest.mark.parametrize(("kind", "name"), CASES)
def test_a_state_of_another_batch_is_refused_and_both_are_named(kind, name, batch):
    part = module(kind, name)
    with torch.no_grad():
        _, state = call(kind, part, 8, None)
        call(kind, part, 8, state)
        with pytest.raises(FastSNNError, match=rf"(?s)8.*{batch}"):
            call(kind, part, batch, state)


@pytest.mark.parametrize("batch", [3, 16])
def test_so_does_the_delayed_neuron(batch):
    neuron = create("neuron", "lif", reset_delay=True).build(4)
    _, state = neuron(torch.rand(8, 5, 4), None, None)
    with pytest.raises(StateError, match="of 8 streams"):
        neuron(torch.rand(batch, 5, 4), state, None)


@pytest.mark.parametrize("name", NEURONS)
@pytest.mark.parametrize(
    ("x", "state", "reset", "says"),
    [
        (torch.rand(8, 5, 6), None, None, "must be"),
        (torch.rand(8, 4), None, None, "B, T, D"),
        (torch.rand(8, 5, 4).to(torch.complex64), None, None, "real numbers"),
        ("numbers", None, None, "a tensor"),
        (torch.rand(8, 5, 4), (1, 2), None, "membrane"),
        (torch.rand(8, 5, 4), None, torch.zeros(8, 5), "bool"),
        (torch.rand(8, 5, 4), None, torch.zeros(3, 5, dtype=torch.bool), r"\[8, 5\]"),
    ],
)
def test_what_a_neuron_is_not_given(name, x, state, reset, says):
    neuron = create("neuron", name).build(4)
    if state is None and isinstance(x, torch.Tensor) and x.shape[-1] == 6:
        state = torch.zeros(8, 4)
    with pytest.raises(FastSNNError, match=says):
        neuron(x, state, reset)


@pytest.mark.parametrize("name", [*NEURONS, "adaptive_threshold", "adaptive_max"])
@pytest.mark.parametrize(
    "change",
    [
        lambda x: x.transpose(1, 2).contiguous().transpose(1, 2), lambda x: x[:1].expand(3, -1, -1), lambda x: x[:0],
        lambda x: x[:, :0], lambda x: x.double(), lambda x: x.half(), lambda x: (4 * x).int(), lambda x: x > 0.5,
        lambda x: x.repeat_interleave(2, -1)[..., ::2], lambda x: SpikeTensor((4 * x).round(), 0.25),
    ],
)  # fmt: skip
def test_any_ordinary_tensor_counts_as_its_contiguous_float_copy(name, change):
    neuron = create("neuron", name).build(4)
    x = change(torch.rand(3, 6, 4, generator=torch.Generator().manual_seed(1)))
    value = x.value() if isinstance(x, SpikeTensor) else x
    kept = value.clone()
    plain = value.contiguous().clone()
    plain = plain if plain.dtype == torch.float64 else plain.float()
    (found, state), (wanted, end) = neuron(x, None, None), neuron(plain, None, None)
    assert torch.equal(found.value(), wanted.value())
    assert state is None or torch.equal(state, end)
    assert torch.equal(value, kept)


@pytest.mark.parametrize("kind", ["bfloat16", "half", "double"])
@pytest.mark.parametrize("name", [*NEURONS, "adaptive_threshold", "adaptive_max"])
def test_thresholds_stay_in_float32_when_a_model_is_cast(name, kind):
    sizes = {"vocab_size": 9, "d_model": 8, "n_heads": 2, "n_layers": 1, "d_ff": 8}
    model = build(create("model", "decoder", **sizes, neuron=create("neuron", name)))
    sites = [m for n, m in model.named_modules() if n.endswith(("inner", "outer", "hidden"))]
    before = [t.clone() for site in sites for t in (*site.parameters(), *site.buffers())]
    cast = getattr(model, kind)().eval()
    after = [t for site in sites for t in (*site.parameters(), *site.buffers())]
    assert all(torch.equal(a.double(), b.double()) for a, b in zip(before, after, strict=True))
    tokens = torch.zeros(2, 5, dtype=torch.long)
    with torch.no_grad():
        y, state = cast(tokens, return_state=True)
        cast(tokens[:, :1], state)
    assert y.dtype == cast.embed.weight.dtype
    assert y.isfinite().all()


@pytest.mark.parametrize("kind", ["lif", "lif_sint", "ilif", "plif", "alif", "synaptic", "recurrent_lif"])
def test_states_that_are_no_ordinary_tensors_are_refused_in_words(kind):
    neuron, x = create("neuron", kind).build(4), torch.rand(2, 5, 4)
    with torch.no_grad():
        state = neuron(x, None, None)[1]
        alone = isinstance(state, torch.Tensor)
        for bad in (1, "x", torch.zeros(2, 4).to_sparse(), torch.zeros(2, 4, device="meta"), torch.zeros(2, 4) * 1j):
            with pytest.raises(FastSNNError, match="state"):
                neuron(x, bad if alone else tuple(bad for _ in state), None)
        if kind in ("plif", "alif", "recurrent_lif"):
            with pytest.raises(FastSNNError, match="on meta and its constants on cpu"):
                neuron(torch.rand(2, 5, 4, device="meta"), None, None)
        if kind == "recurrent_lif":
            with pytest.raises(FastSNNError, match="weights for 4 channels, the input has 3"):
                neuron(torch.rand(2, 5, 3), None, None)
