"""A plugin that `fastsnn new-plugin` wrote, in every path of the product: ``python stranger.py KIND PLUGIN [fused]``.

Run by the nox session ``stranger(kind)`` in an environment of its own, and by tests/test_scaffold.py. `KIND` is neuron,
attention or rule; one that is ``fused`` must be decoded by a kernel. It imports nothing of the checkout: what is
installed is what is tried.
"""

from __future__ import annotations

import json
import sys
import tempfile
import urllib.request
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fastsnn import FastSNN
from fastsnn_core import ops


def decoder(fused: bool, **parts: Any) -> None:
    """Count, event, INT8 decoding layer by layer and as the server gives it: one text, one set of logits."""
    torch.manual_seed(0)
    model = FastSNN.build("snn-tiny", n_layers=2, **parts).eval()
    tokens = torch.randint(0, model.spec.vocab_size, (2, 12), generator=torch.Generator().manual_seed(1))
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        whole = model(tokens)
        again = FastSNN.load(FastSNN.export(model, Path(folder, "float.snn")))
        assert torch.equal(again(tokens), whole), "a loaded bundle computes something else"
        small = FastSNN.load(FastSNN.export(model, Path(folder, "int8.snn"), to="w8a"))
        counts = small(tokens)
        events = small.runtime("event", coder="bitwise")(tokens)
        assert torch.equal(events, counts), "spike trains give other logits than counts"
        small.runtime("count")
        small.fast(small(tokens[:1], return_state=True)[1])  # waits for the fused step's compilation
        text = FastSNN.generate(small, "The ", max_tokens=8, temperature=0)
        print("fused step:", small.fast_step)
        assert not fused or small.fast_step["kernel"], (
            f"it says what it computes, and no kernel decodes: {small.fast_step}"
        )
        with ops.use("naive"):
            slow = FastSNN.generate(small, "The ", max_tokens=8, temperature=0)
        assert text == slow, f"the kernels write {text!r}, the modules {slow!r}"
        server = FastSNN.serve(Path(folder, "int8.snn"), port=0, block=False)
        try:
            body = json.dumps({"prompt": "The ", "max_tokens": 8, "temperature": 0}).encode()
            asked = urllib.request.Request(
                f"{server.url}/v1/completions", body, {"Content-Type": "application/json"}, method="POST"
            )
            served = json.load(urllib.request.urlopen(asked, timeout=120))["choices"][0]["text"]
        finally:
            server.close()
        assert served == text, f"the server writes {served!r}, generate {text!r}"


def module(plugin: str) -> None:
    """A network that the rule has a say in is converted, saved, loaded, and run on counts and on spike trains.

    It is no language model, so it is neither decoded by a fused step nor served.
    """
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Identity(), nn.Linear(16, 4)).eval()
    x = torch.randn(64, 6)
    found = FastSNN.convert(net, calibration=x, steps=6)
    snn = found.model
    assert plugin in {row["rule"].split("/")[-1] for row in found.report["modules"]}, "the report names no such rule"
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        error = (snn(x) - net(x)).norm() / net(x).norm()
        assert error < 0.1, f"the converted network is {error:.3f} off"
        again = FastSNN.load(found.save(Path(folder, "net.snn")))
        counts = snn(x)
        assert torch.equal(again(x), counts), "a loaded bundle computes something else"
        events = again.runtime("event", coder="bitwise", calibration=x)(x)
        assert torch.equal(events, counts), "spike trains give another output than counts"


if __name__ == "__main__":
    kind, plugin, *fused = sys.argv[1:]
    if kind == "rule":
        module(plugin)
    else:
        decoder(bool(fused), **{{"neuron": "neuron", "attention": "attn"}[kind]: {"kind": f"{plugin}/{plugin}"}})
    print(f"{kind} {plugin}: every path agrees")
