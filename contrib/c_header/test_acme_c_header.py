"""The header is compiled by g++ and run: the same spikes as the model, step by step."""

from __future__ import annotations

import shutil
import subprocess

import numpy as np
import pytest
import torch
from acme_c_header import CHeader

from fastsnn_core import build
from fastsnn_core.testing import conformance
from fastsnn_model_nir_graph import NirGraph, NirNode

compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="g++ is not installed")
test_c_header = conformance("c_header")

MAIN = """
#include <cstdio>
#include <vector>
#include "net.h"
int main(int, char **argv) {
    std::vector<float> x(net_inputs), y(net_outputs);
    net_state s; net_reset(&s);
    while (std::fread(x.data(), 4, net_inputs, stdin) == (size_t)net_inputs) {
        net_step(&s, x.data(), y.data());
        std::fwrite(y.data(), 4, net_outputs, stdout);
    }
}
"""


def node(name, kind, sources, shape=(), bias=False, **more):
    return NirNode(name=name, kind=kind, sources=sources, shape=shape, bias=bias, **more)


def dense():
    return (5,), (
        node("w", "Affine", ("input",), (6, 5), bias=True), node("n", "LIF", ("w", "back"), (6,)),
        node("back", "Affine", ("n",), (6, 6), bias=True), node("c", "Linear", ("n",), (4, 6)),
        node("s", "Scale", ("c",), (4,)), node("o", "CubaLIF", ("s",), (4,)),
    )  # fmt: skip


def image():
    return (2, 6, 6), (
        node("c", "Conv2d", ("input",), (4, 1, 3, 3), True, stride=(2, 1), padding=(1, 0), dilation=(1, 2), groups=2),
        node("n", "IF", ("c",), (4, 3, 2)),
        node("p", "SumPool2d", ("n",), kernel=(2, 2), stride=(1, 1), padding=(1, 0)),
        node("f", "Flatten", ("p",), dims=(0, -1)), node("o", "Linear", ("f",), (3, 16)),
        node("z", "LIF", ("o",), (3,)),
    )  # fmt: skip


def made(maker, seed=0):
    torch.manual_seed(seed)
    shape, nodes = maker()
    model = build(NirGraph(input=shape, nodes=nodes, output=nodes[-1].name, dt=1e-3)).eval()
    with torch.no_grad():
        for unit in model.units:
            for name, buffer in unit.named_buffers():
                buffer.mul_(0.8 + 0.4 * torch.rand(buffer.shape))
                if name == "v_threshold":
                    buffer.mul_(0.1)
            if unit.bias is not None:
                unit.bias.copy_(torch.randn(unit.bias.shape) * 0.2)
            if maker is dense and unit.kind == "Linear":
                unit.weight.abs_()  # so that what is behind it fires
    return model


@compiler
@pytest.mark.parametrize("maker", [dense, image])
def test_compiled_and_run_it_spikes_the_same(maker, tmp_path):
    model = made(maker)
    assert CHeader().unsupported(model) == []
    CHeader().export(model, tmp_path / "net.h")
    (tmp_path / "main.cpp").write_text(MAIN)
    subprocess.run(["g++", "-O1", "-Wall", "-Werror", "main.cpp", "-o", "net"], cwd=tmp_path, check=True)
    x = torch.rand(1, 200, *model.spec.input, generator=torch.Generator().manual_seed(1)) * 2
    done = subprocess.run([tmp_path / "net"], input=x.numpy().tobytes(), capture_output=True, check=True)
    with torch.no_grad():
        wanted = model(x)[0].numpy()
    found = np.frombuffer(done.stdout, dtype=np.float32).reshape(wanted.shape)
    assert 0.02 < wanted.mean() < 0.98
    assert (found == wanted).all(), f"{int((found != wanted).sum())} of {wanted.size} differ"


def test_what_has_no_form_in_c_is_refused_by_name():
    nodes = (node("d", "Delay", ("input",), (3,)),)
    assert CHeader().unsupported(build(NirGraph(input=(3,), nodes=nodes, output="d"))) == ["node 'd' is of kind Delay"]
    assert "no nir_graph" in CHeader().unsupported(torch.nn.Linear(2, 2))[0]
