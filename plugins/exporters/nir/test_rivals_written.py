"""NIR as other toolkits write it of their own networks: their spikes against ours; and the table of docs/interop.md.

Each network of ``test_rivals.py`` is built of a toolkit's own neurons, where it has the words, run there, written by
its exporter and read here. ``FASTSNN_WRITE_TABLE=1 nox -s rivals`` puts the table into the page.
"""

from __future__ import annotations

import datetime
import importlib.metadata
import logging
import os
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from test_rivals import DT, NETS, PAPER, PEERS, agreement, built, judge, said, skip_without, stimulus, theirs
from torch import nn

from fastsnn_exporter_nir.read import NirError, network
from fastsnn_exporter_nir.readers import WRITERS

nir = pytest.importorskip("nir")
pytestmark = pytest.mark.filterwarnings("ignore")
PAGE = Path(__file__).resolve().parents[3] / "docs" / "interop.md"


class NoWord(Exception):
    """The toolkit has nothing that computes this."""


def weighted(node):
    """A layer of torch."""
    kind, bias = type(node).__name__, getattr(node, "bias", None)
    if kind in ("Linear", "Affine"):
        layer = nn.Linear(node.weight.shape[1], node.weight.shape[0], bias=bias is not None)
    else:
        weight = node.weight
        cls = nn.Conv1d if kind == "Conv1d" else nn.Conv2d
        size = [tuple(np.atleast_1d(v).tolist()) for v in (node.stride, node.padding, node.dilation)]
        layer = cls(weight.shape[1] * node.groups, len(weight), weight.shape[2:], *size, node.groups)
    layer.weight.data = torch.as_tensor(node.weight).clone()
    if bias is not None:
        layer.bias.data = torch.as_tensor(bias).clone()
    return layer


def constant(node, name):
    return torch.as_tensor(np.asarray(getattr(node, name), dtype=np.float32)).clone()


def plain(node, *zero):
    """Refuse constants that are not 0."""
    for name in zero:
        if np.asarray(getattr(node, name)).any():
            raise NoWord(f"no {name} other than 0 in its {type(node).__name__}")


def of_snntorch(node):
    """``(neuron, what one unit of its input adds to the membrane)``."""
    import snntorch as snn

    how = {"init_hidden": True, "reset_mechanism": "zero", "reset_delay": False}
    kind = type(node).__name__
    if kind == "LIF":
        plain(node, "v_leak", "v_reset")
        return snn.Leaky(beta=1 - DT / constant(node, "tau"), threshold=constant(node, "v_threshold"), **how), 1.0
    if kind == "IF":
        plain(node, "v_reset")
        return snn.Leaky(beta=torch.ones(node.v_threshold.shape), threshold=constant(node, "v_threshold"), **how), 1.0
    if kind == "CubaLIF":
        plain(node, "v_leak", "v_reset")
        alpha, beta = (1 - DT / constant(node, f"tau_{k}") for k in ("syn", "mem"))
        return snn.Synaptic(alpha=alpha, beta=beta, threshold=constant(node, "v_threshold"), **how), 1.0
    raise NoWord(f"snnTorch has no {kind}")


def of_norse(node):
    import norse.torch as norse

    kind = type(node).__name__
    if kind in ("LIF", "LI"):
        plain(node, "v_leak", *(("v_reset",) if kind == "LIF" else ()))
        rate = 1 / constant(node, "tau")
        if kind == "LI":
            return norse.LIBoxCell(norse.LIBoxParameters(tau_mem_inv=rate, v_leak=0 * rate), dt=DT), DT * rate
        p = norse.LIFBoxParameters(tau_mem_inv=rate, v_th=constant(node, "v_threshold"), v_leak=0 * rate)
        return norse.LIFBoxCell(p, dt=DT), DT * rate
    if kind == "CubaLIF":
        plain(node, "v_leak", "v_reset")
        rates = {f"tau_{k}_inv": 1 / constant(node, f"tau_{k}") for k in ("syn", "mem")}
        v = constant(node, "v_threshold")
        p = norse.LIFParameters(**rates, v_th=v, v_leak=0 * v, v_reset=0 * v)
        return norse.LIFCell(p, dt=DT), DT * rates["tau_mem_inv"]
    if kind == "IF":
        plain(node, "v_reset")
        return norse.IAFCell(norse.IAFParameters(v_th=constant(node, "v_threshold")), dt=DT), 1.0
    raise NoWord(f"Norse has no {kind}")


def one(node, name):
    """A constant that all neurons of a layer share."""
    values = np.unique(getattr(node, name))
    if len(values) != 1:
        raise NoWord(f"one {name} for a layer")
    return float(values[0])


def of_spikingjelly(node):
    from spikingjelly.activation_based import neuron

    kind = type(node).__name__
    if kind == "LIF":
        if (node.v_leak != node.v_reset).any():
            raise NoWord("v_leak is v_reset in its LIF")
        tau = one(node, "tau") / DT
        return neuron.LIFNode(tau, False, one(node, "v_threshold"), one(node, "v_reset")), 1.0
    if kind == "IF":
        return neuron.IFNode(one(node, "v_threshold"), one(node, "v_reset")), 1.0
    if kind == "CubaLIF":
        plain(node, "v_leak")
        decays = {f"{k}_decay": 1 - DT / one(node, f"tau_{n}") for k, n in (("c", "syn"), ("v", "mem"))}
        more = {"v_threshold": one(node, "v_threshold"), "v_reset": one(node, "v_reset")}
        return neuron.CUBALIFNode(**decays, **more), 1.0
    raise NoWord(f"SpikingJelly has no {kind}")


def of_sinabs(node):
    import sinabs.layers as sl

    kind = type(node).__name__
    if kind == "IF":
        return sl.IAFSqueeze(batch_size=2, spike_threshold=constant(node, "v_threshold").max()), 1.0
    if kind == "SumPool2d":
        return sl.SumPool2d(tuple(node.kernel_size), tuple(node.stride)), None
    if kind in ("LIF", "LI"):
        tau = constant(node, "tau") / DT
        more = {"spike_threshold": constant(node, "v_threshold")} if kind == "LIF" else {}
        cls = sl.LIFSqueeze if kind == "LIF" else sl.ExpLeakSqueeze
        return cls(tau_mem=tau, batch_size=2, norm_input=False, **more), 1.0
    raise NoWord(f"sinabs has no {kind}")


WORDS = {"snntorch": of_snntorch, "norse": of_norse, "spikingjelly": of_spikingjelly, "sinabs": of_sinabs}


def ordered(graph):
    """Nodes of a chain without its ends, subgraphs opened; what is no chain is refused."""
    follow = {}
    for a, b in graph.edges:
        if a in follow:
            raise NoWord("its exporter follows one path of layers")
        follow[a] = b
    begin = next(n for n, node in graph.nodes.items() if type(node).__name__ == "Input")
    name, found, seen = follow.get(begin), [], {begin}
    while name and type(graph.nodes[name]).__name__ != "Output":
        if name in seen:
            raise NoWord("its exporter follows one path of layers")
        seen.add(name)
        node = graph.nodes[name]
        found += recurrence(node) if type(node).__name__ == "NIRGraph" else [node]
        name = follow.get(name)
    return found


def recurrence(graph):
    """A ring of a neuron and weights as one thing, or the nodes of a chain."""
    kinds = {type(n).__name__: n for n in graph.nodes.values()}
    if "w" in graph.nodes:
        return [(kinds.get("LIF") or kinds["CubaLIF"], graph.nodes["w"])]
    return ordered(graph)


def ring_of_snntorch(node, back):
    """RLeaky and RSynaptic, with weights of a given ring."""
    import snntorch as snn

    how = {"init_hidden": True, "reset_mechanism": "zero", "reset_delay": False, "linear_features": len(back.weight)}
    theta = float(node.v_threshold[0])
    if type(node).__name__ == "LIF":
        made, gain = snn.RLeaky(beta=float(1 - DT / node.tau[0]), threshold=theta, **how), DT * node.r[0] / node.tau[0]
    else:
        alpha, beta = float(1 - DT / node.tau_syn[0]), float(1 - DT / node.tau_mem[0])
        made, gain = snn.RSynaptic(alpha=alpha, beta=beta, threshold=theta, **how), drive(node)[0]
    with torch.no_grad():
        made.recurrent.weight.copy_(torch.as_tensor(back.weight * gain))
        made.recurrent.bias.zero_()
    return made, 1.0


def drive(node):
    """What one unit of the input adds to the membrane of a node of NIR."""
    kind = type(node).__name__
    if kind == "CubaLIF":
        return node.w_in * (DT / node.tau_syn) * node.r * (DT / node.tau_mem)
    return node.r * DT / node.tau if kind in ("LIF", "LI") else node.r


def natively(peer, graph):
    """The network in the toolkit's own words, as a list of modules."""
    parts, last = [], None
    for node in ordered(graph):
        kind = type(node).__name__
        if kind in ("Linear", "Affine", "Conv1d", "Conv2d"):
            parts.append(weighted(node))
            last = parts[-1]
        elif kind == "Flatten":
            parts.append(nn.Flatten())
        elif kind == "AvgPool2d":
            parts.append(nn.AvgPool2d(tuple(node.kernel_size), tuple(node.stride), tuple(node.padding)))
        else:
            if isinstance(node, tuple):
                if peer != "snntorch":
                    raise NoWord("its exporter knows no recurrent neuron")
                (made, gain), node = ring_of_snntorch(*node), node[0]
            else:
                made, gain = WORDS[peer](node)
            parts.append(made)
            if gain is not None and last is not None:
                ratio = torch.as_tensor(drive(node)) / torch.as_tensor(gain)
                ratio = ratio.reshape(len(ratio), -1)[:, 0].float()
                last.weight.data *= ratio.reshape(-1, *[1] * (last.weight.ndim - 1))
                if last.bias is not None:
                    last.bias.data *= ratio
    return parts


def run(peer, parts, x):
    """``(graph that their exporter writes, their own spikes [B,T,N])``."""
    sample = x[:1, 0] if x.ndim > 3 or peer != "snntorch" else x[0, 0]
    if peer == "snntorch":
        from snntorch import utils
        from snntorch.export_nir import export_to_nir

        net = nn.Sequential(*parts)
        graph = export_to_nir(net, sample)
        utils.reset(net)
        return graph, torch.stack([net(x[:, t]).flatten(1) for t in range(x.shape[1])], 1)
    if peer == "norse":
        import norse.torch as norse

        net = norse.SequentialState(*parts)
        return norse.to_nir(net, sample, dt=1.0), theirs(net, x)  # the tau that it writes is dt / tau_mem_inv
    net = nn.Sequential(*parts)
    if peer == "sinabs":
        import sinabs.nir

        y = net(x.flatten(0, 1)).reshape(*x.shape[:2], -1)
        return sinabs.nir.to_nir(net, x.flatten(0, 1)), y
    from spikingjelly.activation_based import functional
    from spikingjelly.activation_based.nir_exchange import export_to_nir

    graph = export_to_nir(net, sample, dt=DT)
    functional.reset_net(net)
    return graph, torch.stack([net(x[:, t]).flatten(1) for t in range(x.shape[1])], 1)


@torch.no_grad()
def judge_written(peer, name, folder):
    """``(verdict, note)`` of a network of theirs read by us."""
    graph = built(name)
    if "paper" in name:
        if peer != "sinabs":
            return "refused", "written by sinabs"
        with pytest.raises(NirError) as refused:
            network(PAPER, DT, writer="sinabs")
        return "refused", str(refused.value).partition(": ")[2].partition(";")[0]
    x = stimulus(name, network(graph, DT).spec.input)
    try:
        logging.disable(logging.CRITICAL)
        torch.manual_seed(0)
        graph, wanted = run(peer, natively(peer, graph), x)
    except NoWord as reason:
        return "refused", str(reason)
    except Exception as error:
        return "refused", said(error)
    finally:
        logging.disable(logging.NOTSET)
    try:
        nir.write(Path(folder) / "y.nir", graph)
        model = network(Path(folder) / "y.nir", DT, writer=peer if peer in WRITERS else "")
        found = model(x.reshape(*x.shape[:2], *model.spec.input)).flatten(2)
    except NirError as error:
        return "refused", str(error).partition(": ")[2][:160]
    except Exception as error:
        return "refused", said(error)
    rate = float((wanted != 0).float().mean())
    assert rate > 0.005, f"{name} of {peer}: nothing spikes"
    same = agreement(found, wanted, "readout" not in name)
    return ("equal", "") if same == 1.0 else ("differs", f"{same:.1%} of the values agree")


def table(folder):
    """Rows of the matrix and the reasons below it, as text."""
    verdicts = {}
    for peer in PEERS:
        for name in NETS:
            verdicts[name, peer, "to"] = judge(peer, name, folder)
            verdicts[name, peer, "from"] = judge_written(peer, name, folder)
    head = [f"{way} {peer}" for peer in PEERS for way in ("to", "from")]
    lines = ["| network | " + " | ".join(head) + " |", "| --- |" + " --- |" * len(head)]
    reasons: dict[str, int] = {}
    for name in NETS:
        cells = []
        for peer in PEERS:
            for way in ("to", "from"):
                verdict, note = verdicts[name, peer, way]
                note = re.sub(r"^node '[^']*' ", "", note)
                mark = f" {reasons.setdefault(f'{peer}: {note}', len(reasons) + 1)}" if note else ""
                cells.append(verdict + mark)
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    notes = [f"{n}. {reason}" for reason, n in reasons.items()]
    return verdicts, "\n".join([*lines, "", *notes])


def test_the_matrix_is_equal_or_refused_and_in_the_page(tmp_path):
    for peer in PEERS:
        skip_without(peer)
    verdicts, text = table(tmp_path)
    print(text)
    assert not {k: v for k, v in verdicts.items() if v[0] == "differs"}
    assert len(NETS) >= 20
    for peer in ("snntorch", "norse", "spikingjelly"):
        for way in ("to", "from"):
            equal = [name for name in NETS if verdicts[name, peer, way][0] == "equal"]
            assert len(equal) >= 8, f"{way} {peer}: only {equal}"
    versions = ", ".join(f"{p} {importlib.metadata.version(p)}" for p in (*PEERS, "nirtorch", "nir"))
    page = PAGE.read_text(encoding="utf-8")
    begin, end = "<!-- rivals -->\n", "<!-- /rivals -->"
    if os.environ.get("FASTSNN_WRITE_TABLE"):
        stamp = f"Run on {datetime.date.today().isoformat()} with {versions}.\n\n"
        front, _, rest = page.partition(begin)
        PAGE.write_text(front + begin + stamp + text + "\n" + end + rest.partition(end)[2], encoding="utf-8")
    elif versions in page:  # with other versions the verdicts are held, not the words of their errors
        assert text in page, "docs/interop.md has another table:\n" + text


def test_files_of_norse_and_sinabs_need_their_writers_name(tmp_path):
    """Read as NIR says, they would spike otherwise than where they come from."""
    for peer, name in (("norse", "CubaLIF"), ("sinabs", "affine, IF")):
        skip_without(peer)
        graph = built(name)
        x = stimulus(name, network(graph, DT).spec.input)
        with torch.no_grad():
            graph, wanted = run(peer, natively(peer, graph), x)
            nir.write(tmp_path / "z.nir", graph)
            try:
                found = network(tmp_path / "z.nir", DT)(x).flatten(2)
            except NirError:
                continue
        assert agreement(found, wanted) < 1.0
