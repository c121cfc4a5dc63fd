"""Bad inputs through every operator and every implementation of it: the right answer, or an error with a name.

NaN, infinities, huge outliers, all zero, all equal, no stream, one token, one channel, no token; on memory full of NaN.
*Right* is what the naive twin gives, bit for bit where the operator promises bits. A kernel may refuse what its twin
refuses, with another sentence, but never answers where the twin refuses, nor refuses where it answers.
"""

from __future__ import annotations

import math

import pytest
import torch

import fastsnn_events
from fastsnn_core import SpikeTensor, build, create, ops
from fastsnn_core.ops import dispatch
from fastsnn_core.plugins import registry
from fastsnn_events import linear, runtime
from fastsnn_integer import deterministic
from fastsnn_integer.quantization import QuantLinear, quantise
from fastsnn_leaky import scan
from fastsnn_leaky.scan import lif_scan
from fastsnn_linear_scan import linear_scan, linear_scan_naive

NAMED = (ValueError, OverflowError)
BAD = ("nan", "inf", "-inf", "huge", "tiny", "outliers", "zeros", "equal")
SHAPES = {
    "usual": (2, 5, 12), "one token": (3, 1, 12), "no stream": (0, 5, 12), "no token": (2, 0, 12), "one": (1, 1, 1)
}  # fmt: skip


def kernels_of(*operators: str) -> list[str]:
    """Kernel sets installed here that have one of these operators on the CPU."""
    found = [n for n, devices, table in dispatch.kernels() if "cpu" in devices and set(operators) & set(table)]
    return found or ["naive"]


def bad(kind: str, shape: tuple[int, ...]) -> torch.Tensor:
    g = torch.Generator().manual_seed(sum(shape) + BAD.index(kind))
    x = torch.randn(shape, generator=g)
    if not x.numel():
        return x
    spot = torch.randint(0, x.numel(), (1 + x.numel() // 40,), generator=g)
    single = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf, "huge": 3e38, "outliers": 1e6}
    if kind in single:
        x.view(-1)[spot] = single[kind]
    elif kind == "tiny":
        x = x * 1e-42
    elif kind == "zeros":
        x = torch.zeros(shape)
    else:
        x = torch.full(shape, 2.5)
    return x


def counts(kind: str, shape: tuple[int, ...]) -> torch.Tensor:
    """The same, as what a neuron might call counts."""
    x = bad(kind, shape)
    return torch.where(torch.isfinite(x), (3 * x).round(), x)


def bits(out: object) -> list[torch.Tensor]:
    """Flat tensors, every NaN the same."""
    if isinstance(out, torch.Tensor):
        out = torch.where(out.isnan(), math.nan, out) if out.is_floating_point() else out
        return [out.detach().contiguous().view(torch.int32) if out.dtype == torch.float32 else out]
    return [t for part in out for t in bits(part)] if isinstance(out, tuple | list) else []


def poison() -> None:
    """Scratch that kernels keep between calls, filled with what shows."""
    try:
        from fastsnn_kernel_numba import numba_runtime
    except ImportError:
        return
    for array in vars(numba_runtime._kept).values():
        if hasattr(array, "view"):
            array.view("u1").fill(0xFF)


def answer(kernel: str, function, *args):
    """``("answer", bits)`` or ``("refused", error)``."""
    poison()
    try:
        with ops.use(kernel) if kernel == "naive" else dispatch.contextlib.nullcontext():
            return "answer", bits(function(*args))
    except NAMED as error:
        assert str(error), "an error without words"
        return "refused", error


def agree(kernel: str, function, *args) -> str:
    """Kernel and twin say the same."""
    wanted, found = answer("naive", function, *args), answer(kernel, function, *args)
    assert wanted[0] == found[0], f"naive {wanted}, {kernel} {found}"
    if wanted[0] == "answer":
        assert len(wanted[1]) == len(found[1])
        for a, b in zip(*(part[1] for part in (wanted, found))):
            assert a.shape == b.shape
            assert a.dtype == b.dtype
            assert torch.equal(a, b)
    return found[0]


@pytest.mark.parametrize("kernel", kernels_of("lif_scan"))
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("kind", BAD)
def test_lif_scan(kernel, shape, kind, poisoned):
    x, reset = bad(kind, shape), torch.zeros(shape[:2], dtype=torch.bool)
    reset[:, 1::2] = True
    for form in ({"lo": -4.0, "hi": 4.0}, {"lo": 0.0, "hi": 1.0, "heaviside": True, "hard": True}):

        def both(x, form=form):
            leaf = x.clone().requires_grad_()
            c, v = lif_scan(leaf, None, reset, beta=0.5, surrogate=("atan", 2.0), **form)
            (c.sum() + v.sum()).backward()
            return c, v, leaf.grad

        assert agree(kernel, both, x) == "answer"
        if x.numel():
            c = lif_scan(x, beta=0.5, **form)[0]
            assert bool(((c >= form["lo"]) & (c <= form["hi"]) | c.isnan()).all()), "a count outside its bounds"
            clean = torch.isfinite(x).all(1)
            assert bool(torch.isfinite(c.movedim(1, 2)[clean]).all()), "a bad channel reaches another"


def test_lif_scan_refuses_other_ranks():
    with pytest.raises(ValueError, match=r"\[B, T, D\]"):
        lif_scan(torch.zeros(3), beta=0.5, lo=0, hi=1)


@pytest.mark.parametrize("kernel", kernels_of("count_linear", "event_linear"))
@pytest.mark.parametrize("major", ["input-major", "output-major"])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("kind", BAD)
def test_integer_products(kernel, major, shape, kind, poisoned):
    c = counts(kind, shape)
    weight = torch.randint(-127, 128, (7, shape[-1]), generator=torch.Generator().manual_seed(1)).to(torch.int8)
    weight = fastsnn_events.input_major(weight) if major == "input-major" else weight
    said = agree(kernel, lambda c: fastsnn_events.count_linear(SpikeTensor(c), weight), c)
    finite, small = bool(torch.isfinite(c).all()), bool((c.abs() < 2**40).all())
    assert said == ("answer" if finite and small else "refused")
    if said == "answer":
        wanted = (c.double() @ weight.double().T).to(torch.int64)
        assert torch.equal(fastsnn_events.count_linear(SpikeTensor(c), weight), wanted)
        found = fastsnn_events.event_linear(SpikeTensor(c.to(torch.int64)), weight)
        assert torch.equal(found, wanted)


@pytest.mark.parametrize("kernel", kernels_of("event_linear"))
def test_events_outside_the_layer_are_refused(kernel):
    weight = fastsnn_events.input_major(torch.ones(3, 4, dtype=torch.int8))
    one = torch.ones(1, dtype=torch.int64)
    for index in (-1, 8):
        with pytest.raises((IndexError, RuntimeError, ValueError)):
            linear.EVENT_LINEAR("cpu", torch.tensor([index]), one, 2, weight)


@pytest.mark.parametrize("kernel", kernels_of("exact_unary", "exact_row_sum"))
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("kind", BAD)
def test_exact_forms(kernel, shape, kind, poisoned):
    x = bad(kind, shape)
    for form in deterministic.FORMS:
        assert agree(kernel, deterministic.unary, x, form) == "answer"
    for form in deterministic.SUMS:
        assert agree(kernel, deterministic.row_sum, x, form) == "answer"
    assert agree(kernel, deterministic.rms_norm, x, torch.ones(shape[-1]), 1e-5) == "answer"


@pytest.mark.parametrize("kernel", kernels_of("exact_attend", "exact_scan"))
@pytest.mark.parametrize("shape", [(2, 5), (3, 1), (0, 5), (2, 0)], ids=str)
@pytest.mark.parametrize("kind", BAD)
def test_attention_and_scans(kernel, shape, kind, poisoned):
    b, t = shape
    q, k, v = bad(kind, (b, t, 4, 6)), bad(kind, (b, t, 2, 6)), bad(kind, (b, t, 2, 3))
    gate = -bad(kind, (b, t, 2, 6)).abs()
    reset = torch.zeros(shape, dtype=torch.bool)
    assert agree(kernel, deterministic.attend, q, k, v) == "answer"
    assert agree(kernel, deterministic.attend, q, k, v, torch.zeros(b, t, t, dtype=torch.bool)) == "answer"
    assert agree(kernel, deterministic.scan, q, k, v, gate, None, reset) == "answer"
    if t:
        unseen = v.clone()
        unseen[:, -1] = math.nan
        assert torch.equal(*(x.nan_to_num(7.0) for x in (deterministic.attend(q, k, w)[:, :-1] for w in (v, unseen))))


@pytest.mark.parametrize("shape", [(2, 70), (3, 1), (0, 5), (2, 0)], ids=str)
@pytest.mark.parametrize("kind", BAD)
def test_chunked_scans_are_the_recurrence_wherever_they_are_numbers(shape, kind, poisoned):
    """What is not finite may spread inside a chunk; no finite number may be a wrong one."""
    b, t = shape
    q, k, v = bad(kind, (b, t, 4, 6)), bad(kind, (b, t, 2, 6)), bad(kind, (b, t, 2, 3))
    log_g = -torch.rand(b, t, 2, 6, generator=torch.Generator().manual_seed(0))
    for gate in (None, log_g):
        found, wanted = (scan(q, k, v, gate) for scan in (linear_scan, linear_scan_naive))
        for a, n in zip((*found[:2], *found[2]), (*wanted[:2], *wanted[2])):
            assert a.shape == n.shape
            here = torch.isfinite(a)
            both = here & torch.isfinite(n) if kind == "huge" else here  # the recurrence overflows sooner
            scale = float(n[both].abs().max()) if bool(both.any()) else 1.0
            torch.testing.assert_close(a[both], n[both], rtol=1e-4, atol=1e-5 * scale + 1e-6)
            if kind not in ("nan", "inf", "-inf", "huge"):
                assert bool(here.all())


@pytest.mark.parametrize("coder", ["binary", "bitwise", "ternary", "twos_complement"])
@pytest.mark.parametrize("kind", BAD)
def test_coders_write_the_counts_or_say_why_not(coder, kind):
    made, c = create("coder", coder), counts(kind, (2, 3, 4))
    if kind in ("outliers", "huge") and coder in ("binary", "ternary"):
        c = c.clamp(-300, 300)  # unary: a step per spike
    try:
        train = made.encode(SpikeTensor(c))
    except NAMED as error:
        says = "finite" if not bool(torch.isfinite(c).all()) else "sign" if coder == "binary" else "fit"
        assert says in str(error), error
        return
    assert torch.equal(train.counts.double(), c.double())
    for shape in SHAPES.values():
        zero = made.encode(SpikeTensor(torch.zeros(shape)))
        assert zero.train.shape[1:] == shape


@pytest.mark.parametrize("neuron", registry().names("neuron"))
@pytest.mark.parametrize("kind", BAD)
def test_neurons_keep_bad_streams_to_themselves(neuron, kind):
    torch.manual_seed(0)
    net = create("neuron", neuron).build(12).eval()
    good, x = torch.randn(1, 5, 12), bad(kind, (1, 5, 12))
    with torch.no_grad():
        alone, together = net(good)[0], net(torch.cat([good, x]))[0]
        for shape in SHAPES.values():
            if shape[-1] == 12:
                assert net(torch.zeros(shape))[0].shape == shape
    assert torch.equal(together.counts[:1], alone.counts)
    if kind in ("zeros", "equal", "outliers", "tiny"):
        assert bool(torch.isfinite(together.value()).all())
        if kind == "zeros":
            assert not bool(together.counts[1].any())


@pytest.mark.parametrize("group", [0, 5])
@pytest.mark.parametrize("kind", BAD)
def test_integer_layers(kind, group):
    torch.manual_seed(0)
    layer = QuantLinear(torch.nn.Linear(12, 7), group)
    good, x = torch.randn(1, 5, 12), bad(kind, (1, 5, 12))
    alone = layer(good)
    try:
        assert torch.equal(layer(torch.cat([good, x]))[:1], alone)
        assert bool(torch.isfinite(layer(x)).all()) or kind == "huge"
    except NAMED as error:
        assert kind in ("nan", "inf", "-inf"), error
        assert "finite" in str(error)
    with pytest.raises(ValueError, match="finite"):
        QuantLinear(torch.nn.utils.skip_init(torch.nn.Linear, 2, 2).requires_grad_(False).apply(spoil))


def spoil(layer):
    layer.weight.fill_(math.nan)


@pytest.mark.parametrize("kernel", ["naive", *kernels_of("count_linear")])
def test_whole_models_take_empty_batches_and_single_tokens(kernel, poisoned):
    torch.manual_seed(0)
    net = quantise(build(create("model", "decoder", d_model=16, n_layers=2, n_heads=2, vocab_size=17)).eval())
    tokens = torch.randint(0, 17, (3, 4))
    with torch.no_grad(), ops.use(kernel) if kernel == "naive" else dispatch.contextlib.nullcontext():
        wanted = net(tokens)
        for mode in ("count", "event"):
            net.runtime(mode, **({"steps": 8} if mode == "event" else {}))
            assert net(tokens[:0]).shape == (0, 4, 17)
            assert net(tokens[:, :0]).shape == (3, 0, 17)
            assert torch.equal(net(tokens[:, :1]), wanted[:, :1])
            empty, state = net(tokens[:, :0], return_state=True)
            assert torch.equal(net(tokens, state), wanted)
            assert empty.numel() == 0
            if mode == "event":
                assert runtime.replay(net, tokens[:0]).output.shape == (0, 4, 17)
                assert torch.equal(runtime.replay(net, tokens).output, wanted)


def test_every_operator_is_here():
    """An operator added later has to be added above, too, or is tested where it is defined."""
    here = {
        "lif_scan", "lif_scan_backward", "lif_membrane", "count_linear", "event_linear", "input_major",
        "exact_unary", "exact_row_sum", "exact_attend", "exact_scan",
    }  # fmt: skip
    elsewhere = {"decode_step", "count_project", "exact_norm"}
    elsewhere |= {
        "rows_residual",
        "rows_hidden",
        "rows_heads",
        "rows_project",
    }  # plugins/kernels/numba/test_kernel_rows.py
    elsewhere |= {"cell_scan", "cell_scan_backward"}  # plugins/kernels/numba/test_kernel_cells.py
    elsewhere |= {"count_project_q4", "count_project_ternary"}  # plugins/kernels/numba
    elsewhere |= {"count_conv", "frame_run"}  # plugins/kernels/numba
    elsewhere |= {"max_pool", "max_pool_backward"}  # plugins/libs/modules/test_max_pool.py
    assert set(ops.OPERATORS) - elsewhere <= here
    assert scan.FORWARD.name in here
