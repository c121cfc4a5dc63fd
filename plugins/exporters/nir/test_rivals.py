"""NIR with other toolkits, both ways, spike for spike; each skips with a reason where it is not installed.

    ours → NIR → theirs: our spikes against what their importer runs; theirs → NIR → ours: their spikes against ours.

A cell is "equal" (every spike), "refused" (their importer says why), or "differs": they read something else. The table
is part of docs/interop.md, and a test holds it to what happens. ``nox -s rivals`` installs the toolkits.
"""

from __future__ import annotations

import importlib.util
import logging
from pathlib import Path

import numpy as np
import pytest
import torch

nir = pytest.importorskip("nir")

from fastsnn_exporter_nir import NirFile  # noqa: E402
from fastsnn_exporter_nir.read import network  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")
DT, STEPS = 1e-4, 120
PEERS = {"snntorch": "snntorch", "norse": "norse.torch", "spikingjelly": "spikingjelly"}


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


def recurrent():
    inner = nir.NIRGraph(
        {
            "input": nir.Input(np.array([6])), "lif": lif(r=1.0), "w": nir.Affine(draw(6, 6, 4), full(6, 0)),
            "output": nir.Output(np.array([6])),
        },
        [("input", "lif"), ("lif", "w"), ("w", "lif"), ("lif", "output")],
    )  # fmt: skip
    return nir.NIRGraph(
        {"input": nir.Input(np.array([5])), "fc": affine(), "rnn": inner, "output": nir.Output(np.array([6]))},
        [("input", "fc"), ("fc", "rnn"), ("rnn", "output")],
        type_check=False,
    )


KERNEL = draw(3 * 2 * 9, 1, 7).reshape(3, 2, 3, 3)
NETS = {
    "affine, LIF": lambda: nir.NIRGraph.from_list(affine(), lif()),
    "two layers": lambda: nir.NIRGraph.from_list(affine(), lif(), affine(6, 6, 1), lif()),
    "affine, IF": lambda: nir.NIRGraph.from_list(affine(), nir.IF(full(6, 1), full(6, 1.3))),
    "conv, IF, flatten, LIF": lambda: nir.NIRGraph.from_list(
        nir.Conv2d((6, 6), KERNEL, (1, 1), (1, 1), (1, 1), 1, full(3, 0.1)),
        nir.IF(full((3, 6, 6), 1), full((3, 6, 6), 1.1)),
        nir.Flatten({"input": np.array([3, 6, 6])}, 0, -1), nir.Linear(draw(6, 108, 2) - 0.15), lif(),
    ),
    "LIF, v_leak": lambda: nir.NIRGraph.from_list(affine(), lif(v_leak=0.1)),
    "LIF, v_reset": lambda: nir.NIRGraph.from_list(affine(), lif(v_reset=-0.1)),
    "CubaLIF": lambda: nir.NIRGraph.from_list(affine(), cuba()),
    "delay, LIF": lambda: nir.NIRGraph.from_list(nir.Delay(full(5, 2e-4)), affine(), lif()),
    "recurrent LIF": recurrent,
}  # fmt: skip


def reader(peer):
    if peer == "snntorch":
        from snntorch.import_nir import import_from_nir

        return import_from_nir
    if peer == "norse":
        import norse.torch

        return lambda graph: norse.torch.from_nir(graph, dt=DT)
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


def judge(peer, name, folder, told=True):
    """``(verdict, note)`` of our network read by `peer`."""
    model = network(NETS[name](), DT)
    x = torch.rand(2, STEPS, *model.spec.input, generator=torch.Generator().manual_seed(3)) * 1.5
    with torch.no_grad():
        wanted = model(x)
    assert 0.02 < float(wanted.mean()) < 0.9, f"{name}: spikes {float(wanted.mean()):.3f}, the test would see little"
    exporter = NirFile(dt=DT, reader=peer if told else "")
    if reasons := exporter.unsupported(model):
        return "refused", reasons[0]
    path = exporter.export(model, Path(folder) / "x.nir")
    try:
        logging.disable(logging.CRITICAL)
        found = theirs(reader(peer)(nir.read(path)), x)
    except Exception as error:
        return "refused", f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"[:90]
    finally:
        logging.disable(logging.NOTSET)
    same = float((found == wanted.flatten(2)).float().mean()) if found.shape == wanted.flatten(2).shape else 0.0
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
    for name in ("affine, LIF", "two layers", "CubaLIF"):
        assert found[name][0] == "equal", (name, found[name])
    page = (Path(__file__).resolve().parents[3] / "docs" / "interop.md").read_text(encoding="utf-8")
    rows = [f"| {name} → {peer} | {cell[0]} |" for name, cell in found.items()]
    assert all(row in page for row in rows), "docs/interop.md has another table:\n" + "\n".join(rows)


@pytest.mark.parametrize("peer", ["norse", "snntorch"])
def test_the_refusals_are_needed(peer, tmp_path):
    """Without being told who reads, the same network runs differently there."""
    skip_without(peer)
    assert judge(peer, "LIF, v_reset", tmp_path, told=False)[0] == "differs"


def written_by(peer):
    """``(graph, their own spikes)`` of a network of theirs."""
    torch.manual_seed(0)
    x = torch.rand(2, STEPS, 5, generator=torch.Generator().manual_seed(3)) * 2
    fc = torch.nn.Linear(5, 6)
    if peer == "snntorch":
        import snntorch
        from snntorch import utils
        from snntorch.export_nir import export_to_nir

        neuron = snntorch.Leaky(
            beta=torch.full((6,), 0.85),
            threshold=torch.full((6,), 0.7),
            init_hidden=True,
            reset_mechanism="zero",
            reset_delay=False,
        )
        net = torch.nn.Sequential(fc, neuron)
        graph = export_to_nir(net, x[0, 0])
        utils.reset(net)
        return graph, x, torch.stack([net(x[:, t]) for t in range(STEPS)], 1)
    if peer == "norse":
        import norse.torch as norse

        p = norse.LIFBoxParameters(
            tau_mem_inv=torch.full((6,), 1 / 8e-4), v_th=torch.full((6,), 0.2), v_leak=torch.zeros(6)
        )
        net = norse.SequentialState(fc, norse.LIFBoxCell(p, dt=DT))
        graph = norse.to_nir(net, x[:1, 0], dt=1.0)  # its tau is dt / tau_mem_inv
        return graph, x, theirs(net, x)
    from spikingjelly.activation_based import functional, neuron
    from spikingjelly.activation_based.nir_exchange import export_to_nir

    net = torch.nn.Sequential(
        fc,
        neuron.LIFNode(tau=6.0, decay_input=False, v_threshold=0.9),
        torch.nn.Linear(6, 4),
        neuron.IFNode(v_threshold=0.8),
    )
    graph = export_to_nir(net, x[:1, 0], dt=DT)
    functional.reset_net(net)
    return graph, x, torch.stack([net(x[:, t]) for t in range(STEPS)], 1)


@pytest.mark.parametrize("peer", PEERS)
def test_what_they_write_we_run_the_same(peer, tmp_path):
    skip_without(peer)
    with torch.no_grad():
        graph, x, wanted = written_by(peer)
        nir.write(tmp_path / "x.nir", graph)
        found = network(tmp_path / "x.nir", DT)(x)
    assert 0.02 < float(wanted.mean()) < 0.98
    assert torch.equal(found, wanted), f"{float((found == wanted).float().mean()):.1%} agree"
