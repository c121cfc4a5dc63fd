"""NIR files run: the paper's own traces, what is written and read back, what cannot be said, hostile files."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch

nir = pytest.importorskip("nir")
h5py = pytest.importorskip("h5py")

from fastsnn_conversion.context import ConversionError  # noqa: E402
from fastsnn_convert import convert  # noqa: E402
from fastsnn_convert.cli import main  # noqa: E402
from fastsnn_core import Model, build, load  # noqa: E402
from fastsnn_core.errors import FastSNNError  # noqa: E402
from fastsnn_core.spec import converter  # noqa: E402
from fastsnn_core.testing import conformance  # noqa: E402
from fastsnn_exporter_nir import NirFile, capabilities  # noqa: E402
from fastsnn_exporter_nir.read import NirError, network  # noqa: E402
from fastsnn_exporter_nir.write import graph_of  # noqa: E402

DATA = Path(os.environ.get("FASTSNN_DATA", Path(__file__).resolve().parents[3] / ".." / "shared" / "data"))
PAPER = DATA / "nir_paper"
paper = pytest.mark.skipif(not PAPER.is_dir(), reason=f"no NIR paper data at {PAPER}")

test_nir = conformance("nir")


def chain(*nodes):
    return nir.NIRGraph.from_list(*nodes)


def full(n, value):
    return np.full(n, value, dtype=np.float32)


def lif(n=4, **more):
    table = {"tau": 0.002, "r": 1.3, "v_leak": 0.05, "v_threshold": 0.4, "v_reset": -0.1} | more
    return nir.LIF(**{k: full(n, v) for k, v in table.items()})


def weight(rows, columns, seed=0):
    return np.random.default_rng(seed).normal(0, 0.9, (rows, columns)).astype(np.float32)


@paper
def test_spikes_and_voltage_of_the_paper():
    """Euler's LIF is Norse's to rounding, and spikes where the exact solution, Nengo, snnTorch and SpiNNaker2 do."""
    rows = read_csv("norse")
    model = network(PAPER / "01_lif" / "lif_norse.nir", dt=1e-4)
    found = model(torch.from_numpy(rows[:, 0]).float()[None, :, None])[0, :, 0].detach().numpy()
    assert np.flatnonzero(found).tolist() == [460, 510, 710, 760]
    for name in ("exact", "nengo", "snntorch", "spinnaker2"):
        assert spikes_of(name) == [460, 510, 710, 760], name


def read_csv(name):
    text = (PAPER / "01_lif" / f"lif_{name}.csv").read_text().strip().splitlines()
    return np.array([[float(v) for v in line.split(",")] for line in text if line[0] in "-.0123456789"])


def spikes_of(name):
    return np.flatnonzero(read_csv(name)[:, 2] > 0).tolist()


@paper
def test_the_papers_cnn_sees_the_digit(tmp_path):
    """N-MNIST's recording of a 4 in bins of 1 ms: SOURCE.md has class 4 with 1,484 spikes of about 1,730."""
    raw = (
        np.frombuffer((DATA / "events" / "tonic_sample_nmnist.bin").read_bytes(), dtype=np.uint8)
        .reshape(-1, 5)
        .astype(np.int64)
    )
    x, y, p = raw[:, 0], raw[:, 1], raw[:, 2] >> 7
    t = ((raw[:, 2] & 127) << 16 | raw[:, 3] << 8 | raw[:, 4]) // 1000
    frames = np.zeros((1, int(t.max()) + 1, 2, 34, 34), dtype=np.float32)
    np.add.at(frames, (0, t, p, y, x), 1)
    main([str(PAPER / "02_cnn" / "cnn_sinabs.nir"), "--to", str(tmp_path / "cnn.snn"), "--quiet"])
    model = load(tmp_path / "cnn.snn")
    with torch.no_grad():
        counts = model(torch.from_numpy(frames).clamp(max=1))[0].sum(0)
    assert int(counts.argmax()) == 4, counts
    assert counts[4] > 0.6 * counts.sum()
    again = NirFile().export(model, tmp_path / "again.nir")
    with torch.no_grad():
        assert torch.equal(network(again)(torch.from_numpy(frames[:, :50])), model(torch.from_numpy(frames[:, :50])))


def recurrent():
    inner = nir.NIRGraph(
        {
            "in": nir.Input(np.array([4])),
            "lif": lif(),
            "w": nir.Affine(weight(4, 4, 5), full(4, 0.1)),
            "out": nir.Output(np.array([4])),
        },
        [("in", "lif"), ("lif", "w"), ("w", "lif"), ("lif", "out")],
    )
    return nir.NIRGraph(
        {
            "input": nir.Input(np.array([3])),
            "fc": nir.Linear(weight(4, 3)),
            "rnn": inner,
            "output": nir.Output(np.array([4])),
        },
        [("input", "fc"), ("fc", "rnn"), ("rnn", "output")],
        type_check=False,
    )


CUBA = {"tau_syn": 0.003, "tau_mem": 0.005, "r": 2.0, "v_leak": 0.0, "v_threshold": 0.3, "v_reset": 0.0, "w_in": 1.4}
CONV = weight(3 * 2 * 3 * 3, 1).reshape(3, 2, 3, 3)
GRAPHS = {
    "linear, lif": lambda: chain(nir.Linear(weight(4, 3)), lif()),
    "affine, if": lambda: chain(nir.Affine(weight(4, 3), full(4, 0.2)), nir.IF(full(4, 1), full(4, 0.8), full(4, 0.1))),
    "cubalif": lambda: chain(nir.Linear(weight(4, 3)), nir.CubaLIF(**{k: full(4, v) for k, v in CUBA.items()})),
    "li": lambda: chain(
        nir.Linear(weight(4, 3)), lif(), nir.Linear(weight(2, 4)), nir.LI(full(2, 0.004), full(2, 1), full(2, 0))
    ),
    "delay, scale": lambda: chain(
        nir.Delay(np.array([0, 1e-4, 3e-4])), nir.Scale(full(3, 2)), nir.Linear(weight(4, 3)), lif()
    ),
    "threshold": lambda: chain(nir.Threshold(full(3, 0.7)), nir.Linear(weight(4, 3)), lif()),
    "integrator": lambda: chain(nir.I(full(3, 0.3))),
    "cubali": lambda: chain(
        nir.CubaLI(**{k: full(3, v) for k, v in CUBA.items() if k not in ("v_threshold", "v_reset")})
    ),
    "conv2d": lambda: chain(
        nir.Conv2d((6, 6), CONV, (1, 1), (1, 1), (1, 1), 1, full(3, 0.1)),
        nir.IF(full((3, 6, 6), 1), full((3, 6, 6), 1)),
        nir.SumPool2d(np.array([2, 2]), np.array([2, 2]), np.array([0, 0])),
        nir.Flatten({"input": np.array([3, 3, 3])}, 0, -1),
        nir.Affine(weight(5, 27), full(5, 0)),
        lif(5),
    ),
    "conv1d": lambda: chain(
        nir.Conv1d(9, CONV.reshape(3, 2, 9)[:, :, :3], 2, 1, 1, 1, full(3, 0.1)),
        nir.IF(full((3, 5), 1), full((3, 5), 0.5)),
    ),
    "avgpool": lambda: chain(
        nir.Conv2d((6, 6), CONV, (2, 1), "valid", (1, 1), 1, full(3, 0)),
        nir.AvgPool2d(np.array([2, 2]), np.array([1, 1]), np.array([0, 0])),
    ),
    "recurrence in a subgraph": recurrent,
}


@pytest.mark.parametrize("name", list(GRAPHS))
def test_read_written_and_read_again_gives_the_same_bits(name, tmp_path):
    nir.write(tmp_path / "a.nir", GRAPHS[name]())
    done = convert(tmp_path / "a.nir", dt=1e-4, to=tmp_path / "a.snn")
    model = load(tmp_path / "a.snn")
    x = torch.rand(2, 150, *model.spec.input, generator=torch.Generator().manual_seed(1)) * 2
    with torch.no_grad():
        y = model(x)
        assert y.std() > 0, "nothing happens: the test would see nothing"
        assert torch.equal(done.model(x), y)
        NirFile(dt=1e-4, portable=False).export(model, tmp_path / "b.nir")
        assert torch.equal(network(tmp_path / "b.nir", 1e-4)(x), y)
        first, state = model(x[:, :77], return_state=True)
        assert torch.equal(torch.cat([first, model(x[:, 77:], state)], 1), y)
    assert len(done.report["modules"]) == len(model.spec.nodes)


def sequential(*layers, shape=(5,)):
    torch.manual_seed(0)
    table = {"kind": "sequential", "input": list(shape), "layers": list(layers)}
    return build(converter().structure(table, Model)).eval()


HARD = {"op": "spikes", "neuron": {"kind": "lif", "tau": 3.0, "threshold": 0.7, "hard_reset": True}}


def test_our_layers_spike_the_same_behind_nir(tmp_path):
    model = sequential(
        {"op": "conv2d", "size": 3, "kernel": [3], "padding": [1]},
        HARD | {"dims": 3},
        {"op": "avg_pool", "kernel": [2]},
        {"op": "flatten"},
        {"op": "linear", "size": 6},
        HARD,
        shape=(2, 4, 4),
    )
    for i, theta in ((1, 0.25), (5, 0.1)):
        model.layers[i].neuron.theta.fill_(theta)
    NirFile().export(model, tmp_path / "x.nir")
    again = network(tmp_path / "x.nir")
    x = torch.rand(3, 60, 2, 4, 4, generator=torch.Generator().manual_seed(2)) * 2
    with torch.no_grad():
        wanted, found = model(x), again(x)
    assert 0.02 < float((wanted > 0).float().mean()) < 0.98
    assert torch.equal(wanted > 0, found > 0)
    torch.testing.assert_close(found, wanted)


def test_what_nir_cannot_say_is_refused_with_the_layer(tmp_path):
    rows = {
        "reset": {"op": "spikes", "neuron": {"kind": "lif"}},
        "token later": {"op": "spikes", "neuron": {"kind": "lif", "reset_delay": True}},
        "taken from the data": {"op": "spikes", "neuron": {"kind": "adaptive_threshold"}},
        "no gelu": {"op": "gelu"},
        "no layer_norm": {"op": "layer_norm"},
        "INT8 weights": {"op": "linear", "size": 3, "bits": 8},
    }
    for why, layer in rows.items():
        model = sequential({"op": "linear", "size": 4}, layer)
        (reason,) = NirFile().unsupported(model)
        assert why in reason
        assert reason.startswith(f"layers[1] ({layer['op']})")
        with pytest.raises(FastSNNError, match=r"layers\[1\]"):
            NirFile().export(model, tmp_path / "no.nir")
    decoder = build(converter().structure({"kind": "decoder", "d_model": 16, "n_layers": 1, "n_heads": 2}, Model))
    assert "no decoder" in NirFile().unsupported(decoder)[0]
    assert list(tmp_path.iterdir()) == []


def raw(path, nodes, edges):
    with h5py.File(path, "w") as f:
        f["version"] = "1.0"
        root = f.create_group("node")
        root["type"] = "NIRGraph"
        held = root.create_group("nodes")
        for name, table in nodes.items():
            group = held.create_group(name)
            for key, value in table.items():
                group[key] = value
        root["edges"] = np.array(edges, dtype=h5py.string_dtype()) if edges else np.zeros((0, 2), dtype="S1")
    return path


ENDS = {"input": {"type": "Input", "shape": np.array([3])}, "output": {"type": "Output", "shape": np.array([3])}}


def hostile(tmp_path):
    scale = {"type": "Scale", "scale": np.ones(3)}
    yield "no HDF5", (tmp_path / "text.nir").write_text("hello") and tmp_path / "text.nir"
    with h5py.File(tmp_path / "other.nir", "w") as f:
        f["data"] = 1
    yield "no group 'node'", tmp_path / "other.nir"
    yield (
        "no neuron or delay",
        raw(
            tmp_path / "loop.nir",
            ENDS | {"a": scale, "b": scale},
            [("input", "a"), ("a", "b"), ("b", "a"), ("b", "output")],
        ),
    )
    yield "not there", raw(tmp_path / "missing.nir", ENDS, [("input", "gone"), ("gone", "output")])
    yield (
        "takes",
        raw(
            tmp_path / "shape.nir",
            ENDS | {"a": {"type": "Linear", "weight": np.ones((3, 7))}},
            [("input", "a"), ("a", "output")],
        ),
    )
    yield (
        "cannot be read",
        raw(tmp_path / "unknown.nir", ENDS | {"a": {"type": "Quantum"}}, [("input", "a"), ("a", "output")]),
    )
    yield (
        "cannot be read",
        raw(tmp_path / "half.nir", ENDS | {"a": {"type": "LIF", "tau": np.ones(3)}}, [("input", "a"), ("a", "output")]),
    )
    bad = {"type": "LI", "tau": np.array([np.nan, 1, 1]), "r": np.ones(3), "v_leak": np.zeros(3)}
    yield "NaN", raw(tmp_path / "nan.nir", ENDS | {"a": bad}, [("input", "a"), ("a", "output")])
    bad = {"type": "LI", "tau": np.zeros(3), "r": np.ones(3), "v_leak": np.zeros(3)}
    yield "shorter than a step", raw(tmp_path / "tau.nir", ENDS | {"a": bad}, [("input", "a"), ("a", "output")])
    yield (
        "whole number of steps",
        raw(
            tmp_path / "delay.nir",
            ENDS | {"a": {"type": "Delay", "delay": np.full(3, 1.5e-4)}},
            [("input", "a"), ("a", "output")],
        ),
    )
    yield (
        "at most",
        raw(
            tmp_path / "long.nir",
            ENDS | {"a": {"type": "Delay", "delay": np.full(3, 1e9)}},
            [("input", "a"), ("a", "output")],
        ),
    )
    yield "has no edge into it", raw(tmp_path / "loose.nir", ENDS | {"a": scale}, [("input", "output")])
    yield (
        "one Input",
        raw(
            tmp_path / "two.nir",
            ENDS | {"more": ENDS["input"], "a": scale},
            [("input", "a"), ("more", "a"), ("a", "output")],
        ),
    )
    with h5py.File(tmp_path / "link.nir", "w") as f:
        f["node"] = h5py.ExternalLink("/etc/passwd", "/")
        f.create_group("x")
    yield "link|no group", tmp_path / "link.nir"
    with h5py.File(raw(tmp_path / "huge.nir", ENDS, []), "a") as f:
        f["node"]["nodes"].create_dataset("w", shape=(1 << 20, 1 << 20), dtype="f4", chunks=(1 << 10, 1 << 10))
    yield "GiB", tmp_path / "huge.nir"
    with h5py.File(raw(tmp_path / "swollen.nir", ENDS, []), "a") as f:
        f["node"]["nodes"].create_dataset("w", shape=(1 << 13, 1 << 14), dtype="f4", chunks=(1 << 10, 1 << 10))
    yield "512 MiB of numbers in", tmp_path / "swollen.nir"
    yield (
        "reads 'a'|bias",
        raw(
            tmp_path / "bias.nir",
            ENDS | {"a": {"type": "Affine", "weight": np.ones((3, 3)), "bias": np.ones(9)}},
            [("input", "a"), ("a", "output")],
        ),
    )


def test_hostile_files_are_refused_and_nothing_is_written(tmp_path):
    for why, path in hostile(tmp_path):
        before = sorted(tmp_path.iterdir())
        with pytest.raises(NirError, match=why):
            network(path)
        with pytest.raises(ConversionError, match=why):
            convert(path, to=tmp_path / "out.snn")
        assert sorted(tmp_path.iterdir()) == before, path.name
    nir.write(tmp_path / "fine.nir", GRAPHS["linear, lif"]())
    with pytest.raises(ConversionError, match="read without k; options: dt, writer"):
        convert(tmp_path / "fine.nir", k=3)


def test_a_million_nodes_are_refused_from_the_directory_of_the_file(tmp_path):
    with h5py.File(tmp_path / "many.nir", "w", libver="latest") as f:
        root = f.create_group("node")
        root["type"] = "NIRGraph"
        held = root.create_group("nodes")
        one = held.create_group("0")
        for i in range(1, 20_001):
            held[str(i)] = one
    with pytest.raises(NirError, match="20001 nodes; at most 20000"):
        network(tmp_path / "many.nir")


@pytest.mark.slow
def test_ten_to_the_sixth_nodes_are_refused_in_little_time_and_memory(tmp_path):
    """A million entries in the file, and as many edges: refused from the count, nothing else is read."""
    import resource
    import time

    with h5py.File(tmp_path / "many.nir", "w", libver="latest") as f:
        root = f.create_group("node")
        root["type"] = "NIRGraph"
        root["edges"] = np.full((1_000_000, 2), b"0", dtype="S8")
        held = root.create_group("nodes")
        one = held.create_group("0")
        for i in range(1, 1_000_000):
            held.id.links.create_hard(str(i).encode(), one.id, b".")
    before, begun = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    with pytest.raises(NirError, match="1000000 nodes; at most 20000"):
        network(tmp_path / "many.nir")
    assert time.process_time() - begun < 10
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000, "KiB"


def test_subgraphs_that_multiply_are_refused(tmp_path):
    """Thirty levels that hold the next one twice: 2^30 nodes by way of hard links, in a file of some kilobytes."""
    with h5py.File(tmp_path / "doubling.nir", "w") as f:
        group = f.create_group("node")
        for _ in range(30):
            group["type"] = "NIRGraph"
            held = group.create_group("nodes")
            inner = held.create_group("a")
            held["b"] = inner
            group = inner
    with pytest.raises(NirError, match=r"more than 20000 nodes' worth|lie more than 32 deep"):
        network(tmp_path / "doubling.nir")


def test_the_table_of_capabilities_is_found_by_running():
    rows = {r["what"]: r for r in capabilities.nir_table()}
    for kind in ("LIF", "CubaLIF", "IF", "Conv2d", "Delay", "SumPool2d"):
        assert rows[f"NIR {kind}"]["write"] == "exact", rows[f"NIR {kind}"]
    assert rows["spikes: lif, hard_reset"]["write"] in ("exact", "approximate")
    assert rows["spikes: lif"]["write"] == rows["max_pool"]["write"] == "refused"
    page = Path(__file__).resolve().parents[3] / "docs" / "interop.md"
    assert capabilities.show_nir()[1] in page.read_text(encoding="utf-8"), "docs/interop.md has another table"


def test_a_graph_in_memory_and_by_name():
    graph = graph_of(network(GRAPHS["linear, lif"]()))
    assert {type(n).__name__ for n in graph.nodes.values()} == {"Input", "Linear", "LIF", "Output"}
