"""NIR with other toolkits, spike for spike: what we write, run by them; each skips with a reason where it is missing.

    ours → NIR → theirs: our spikes against what their importer runs (here)
    theirs → NIR → ours: their spikes against ours (``test_rivals_written.py``)

A cell is "equal" (every spike), "refused" (by us or by their code, which says why), or "differs": they read something
else, which no cell may be. ``nox -s rivals`` installs the toolkits; docs/interop.md has the table.
"""

from __future__ import annotations

import importlib.util
import logging
import os
from pathlib import Path

import numpy as np
import pytest
import torch

nir = pytest.importorskip("nir")

from fastsnn_exporter_nir import NirFile  # noqa: E402
from fastsnn_exporter_nir.read import network  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")
DT, STEPS = 1e-4, 120
PEERS = {"snntorch": "snntorch", "norse": "norse.torch", "spikingjelly": "spikingjelly", "sinabs": "sinabs"}
DATA = Path(os.environ.get("FASTSNN_DATA", Path(__file__).resolve().parents[3] / ".." / "shared" / "data"))
PAPER = DATA / "nir_paper" / "02_cnn" / "cnn_sinabs.nir"


def full(n, value):
    return np.full(n, value, dtype=np.float32)


def draw(rows, columns, seed):
    return np.random.default_rng(seed).normal(0.15, 0.7, (rows, columns)).astype(np.float32)


def lif(n=6, **more):
    return nir.LIF(
        **{
            k: full(n, v)
            for k, v in ({"tau": 8e-4, "r": 1.7, "v_leak": 0, "v_threshold": 0.31, "v_reset": 0} | more).items()
        }
    )


def cuba(n=6):
    sizes = {"tau_syn": 4e-4, "tau_mem": 8e-4, "r": 8.0, "v_leak": 0, "v_threshold": 0.9, "v_reset": 0, "w_in": 4.0}
    return nir.CubaLIF(**{k: full(n, v) for k, v in sizes.items()})


def affine(rows=6, columns=5, seed=0):
    return nir.Affine(draw(rows, columns, seed), full(rows, 0.05))


def ring(neuron, weights):
    """A neuron whose spikes come back through weights, as a subgraph."""
    inner = nir.NIRGraph(
        {"input": nir.Input(np.array([6])), "lif": neuron, "w": weights, "output": nir.Output(np.array([6]))},
        [("input", "lif"), ("lif", "w"), ("w", "lif"), ("lif", "output")],
    )
    return around(inner)


def around(inner):
    """Weights, and a subgraph behind them."""
    return nir.NIRGraph(
        {"input": nir.Input(np.array([5])), "fc": affine(), "rnn": inner, "output": nir.Output(np.array([6]))},
        [("input", "fc"), ("fc", "rnn"), ("rnn", "output")],
        type_check=False,
    )


def two_ways():
    """The input straight and through weights, added up."""
    return nir.NIRGraph(
        {"input": nir.Input(np.array([6])), "a": affine(6, 6), "b": affine(6, 6, 1), "s": lif(), "t": lif(),
         "c": affine(6, 6, 2), "lif": lif(v_threshold=0.6), "output": nir.Output(np.array([6]))},
        [("input", "a"), ("input", "b"), ("a", "s"), ("b", "t"), ("s", "c"), ("t", "c"), ("c", "lif"),
         ("lif", "output")],
        type_check=False,
    )  # fmt: skip


def pool(kind):
    return getattr(nir, kind)(np.array([2, 2]), np.array([2, 2]), np.array([0, 0]))


def picture(*behind, groups=1, stride=(1, 1)):
    """A convolution over [2, 6, 6], a LIF neuron, and what stands behind."""
    weight, size = KERNEL[:, : 2 // groups] if groups == 1 else KERNEL[:2, :1], 6 // stride[0]
    channels = len(weight)
    graph = nir.NIRGraph.from_list(
        nir.Conv2d((6, 6), weight, stride, (1, 1), (1, 1), groups, full(channels, 0.1)),
        lif((channels, size, size)), *behind,
    )  # fmt: skip
    graph.nodes["input"] = nir.Input(np.array([2, 6, 6]))  # nir counts a group's channels only
    return graph


def flat(*shape):
    return nir.Flatten({"input": np.array(shape)}, 0, -1)


KERNEL = draw(3 * 2 * 9, 1, 7).reshape(3, 2, 3, 3)
VARIED = {
    "tau": np.linspace(4e-4, 9e-4, 6, dtype=np.float32),
    "v_threshold": np.linspace(0.2, 0.5, 6, dtype=np.float32),
}
NETS = {
    "affine, LIF": lambda: nir.NIRGraph.from_list(affine(), lif()),
    "linear, LIF": lambda: nir.NIRGraph.from_list(nir.Linear(draw(6, 5, 0)), lif()),
    "two layers": lambda: nir.NIRGraph.from_list(affine(), lif(), affine(6, 6, 1), lif()),
    "four layers": lambda: nir.NIRGraph.from_list(*(n for i in range(4) for n in (affine(6, 6, i), lif()))),
    "LIF, own τ and threshold each": lambda: nir.NIRGraph.from_list(
        affine(), nir.LIF(full(6, 1) * VARIED["tau"], full(6, 1.7), full(6, 0), VARIED["v_threshold"], full(6, 0))
    ),
    "affine, IF": lambda: nir.NIRGraph.from_list(affine(), nir.IF(full(6, 1), full(6, 1.3))),
    "LIF, v_leak": lambda: nir.NIRGraph.from_list(affine(), lif(v_leak=0.1)),
    "LIF, v_reset": lambda: nir.NIRGraph.from_list(affine(), lif(v_reset=-0.1)),
    "CubaLIF": lambda: nir.NIRGraph.from_list(affine(), cuba()),
    "CubaLIF, two layers": lambda: nir.NIRGraph.from_list(affine(), cuba(), affine(6, 6, 1), cuba()),
    "LIF, LI readout": lambda: nir.NIRGraph.from_list(
        affine(), lif(), affine(6, 6, 1), nir.LI(full(6, 8e-4), full(6, 1), full(6, 0))
    ),
    "conv2d, LIF, flatten, LIF": lambda: picture(flat(3, 6, 6), nir.Linear(draw(6, 108, 2) - 0.12), lif()),
    "conv2d in groups, stride 2": lambda: picture(flat(2, 3, 3), affine(6, 18, 2), lif(), groups=2, stride=(2, 2)),
    "conv2d, LIF, AvgPool2d": lambda: picture(pool("AvgPool2d"), flat(3, 3, 3), affine(6, 27, 2), lif()),
    "conv2d, LIF, SumPool2d": lambda: picture(pool("SumPool2d"), flat(3, 3, 3), affine(6, 27, 2), lif()),
    "conv1d, LIF": lambda: nir.NIRGraph.from_list(
        nir.Conv1d(9, KERNEL.reshape(3, 2, 9)[:, :, :3], 2, 1, 1, 1, full(3, 0.1)), lif((3, 5))
    ),
    "delay, LIF": lambda: nir.NIRGraph.from_list(nir.Delay(full(5, 2e-4)), affine(), lif()),
    "scale, LIF": lambda: nir.NIRGraph.from_list(nir.Scale(full(5, 1.5)), affine(), lif()),
    "threshold, LIF": lambda: nir.NIRGraph.from_list(nir.Threshold(full(5, 0.8)), affine(), lif()),
    "recurrent LIF": lambda: ring(lif(r=1.0), nir.Affine(draw(6, 6, 4), full(6, 0))),
    "recurrent CubaLIF": lambda: ring(cuba(), nir.Linear(draw(6, 6, 4) * 0.5)),
    "subgraph of a layer": lambda: around(nir.NIRGraph.from_list(affine(6, 6, 3), lif())),
    "two branches": two_ways,
    "the NIR paper's CNN": lambda: nir.read(PAPER),
}  # fmt: skip


def built(name):
    """A network, or a skip where its file is not here."""
    if name == "the NIR paper's CNN" and not PAPER.is_file():
        pytest.skip(f"no NIR paper data at {PAPER}")
    return NETS[name]()


def stimulus(name, shape):
    """[2, T, …] in which neither all nor nothing spikes."""
    steps = 30 if "paper" in name else STEPS
    x = torch.rand(2, steps, *shape, generator=torch.Generator().manual_seed(3)) * 1.5
    return (x < 0.15).float() if "paper" in name else x


def agreement(found, wanted, spikes=True):
    """Share of equal values; membranes may differ by rounding."""
    if found.shape != wanted.shape:
        return 0.0
    same = found == wanted if spikes else torch.isclose(found, wanted, rtol=1e-4, atol=1e-5)
    return float(same.float().mean())


def reader(peer):
    if peer == "snntorch":
        from snntorch.import_nir import import_from_nir

        return import_from_nir
    if peer == "norse":
        import norse.torch

        return lambda graph: norse.torch.from_nir(graph, dt=DT)
    if peer == "sinabs":
        import sinabs.nir

        return lambda graph: sinabs.nir.from_nir(graph, batch_size=2)
    from spikingjelly.activation_based.nir_exchange import import_from_nir

    return lambda graph: import_from_nir(graph, dt=DT)


@torch.no_grad()
def theirs(module, x):
    """Spikes ``[B,T,N]`` of a module of one step that gives (spikes, state)."""
    state, rows = None, []
    for t in range(x.shape[1]):
        found = module(x[:, t]) if state is None else module(x[:, t], state)
        y, state = found if isinstance(found, tuple) else (found, None)
        y = y[0] if isinstance(y, tuple) else y
        rows.append(y.reshape(len(x), -1))
    return torch.stack(rows, 1)


def folded(module, x):
    """The same of sinabs, whose layers take every step of every stream as one batch."""
    y = module(x.flatten(0, 1))
    return (y[0] if isinstance(y, tuple) else y).reshape(*x.shape[:2], -1)


def said(error):
    """An error of theirs in one line of the table."""
    first = str(error).splitlines()[0] if str(error) else ""
    return f"{type(error).__name__}: {first}"[:100].replace("|", "/")


def judge(peer, name, folder, told=True):
    """``(verdict, note)`` of our network read by `peer`."""
    model = network(built(name), DT)
    x = stimulus(name, model.spec.input)
    with torch.no_grad():
        wanted = model(x).flatten(2)
    spikes = "readout" not in name
    rate = float((wanted != 0).float().mean())
    assert 0.005 < rate < (0.9 if spikes else 1.1), f"{name}: {rate:.3f} of the outputs, the test would see little"
    exporter = NirFile(dt=DT, reader=peer if told else "")
    if reasons := exporter.unsupported(model):
        return "refused", reasons[0]
    path = exporter.export(model, Path(folder) / "x.nir")
    try:
        logging.disable(logging.CRITICAL)
        with torch.no_grad():
            found = (folded if peer == "sinabs" else theirs)(reader(peer)(nir.read(path)), x)
    except Exception as error:
        return "refused", said(error)
    finally:
        logging.disable(logging.NOTSET)
    same = agreement(found, wanted, spikes)
    return ("equal", "") if same == 1.0 else ("differs", f"{same:.1%} of the values agree")


def skip_without(peer):
    if importlib.util.find_spec(peer) is None or importlib.util.find_spec("nirtorch") is None:
        pytest.skip(f"{peer} is not installed; nox -s rivals")


@pytest.mark.parametrize("peer", PEERS)
def test_what_we_write_they_run_the_same_or_it_is_refused(peer, tmp_path):
    skip_without(peer)
    found = {name: judge(peer, name, tmp_path) for name in NETS}
    assert not {name: cell for name, cell in found.items() if cell[0] == "differs"}
    assert all(note for verdict, note in found.values() if verdict == "refused"), found
    for name in ("affine, LIF", "two layers", "CubaLIF") if peer != "sinabs" else ():
        assert found[name][0] == "equal", (name, found[name])


@pytest.mark.parametrize(("peer", "name"), [("norse", "LIF, v_reset"), ("snntorch", "LIF, v_reset"),
                                            ("sinabs", "affine, IF"), ("snntorch", "affine, IF")])  # fmt: skip
def test_the_refusals_are_needed(peer, name, tmp_path):
    """Without being told who reads, the same network runs differently there."""
    skip_without(peer)
    assert judge(peer, name, tmp_path, told=False)[0] == "differs"
