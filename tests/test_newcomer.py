"""What a newcomer's first day ran into: each command and call does the right thing or says what to write instead."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from fastsnn_core import SpikeTensor, cli, create
from fastsnn_core.errors import FastSNNError
from fastsnn_core.plugins import registry

pytest.importorskip("fastsnn")
from fastsnn import FastSNN


class SaysByName(nn.Module):
    """An output that is a dictionary."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"y": self.layer(x)}


@pytest.mark.parametrize("recurrent", [nn.GRU, nn.LSTM, nn.RNN])
def test_a_recurrent_network_is_kept_or_its_layout_is_named(recurrent: Any, tmp_path: Path) -> None:
    with pytest.raises(FastSNNError, match=r"does not treat dimension 0 as the batch: .*batch_first=True"):
        FastSNN.convert(recurrent(4, 4), calibration=torch.randn(3, 2, 4))
    net = recurrent(4, 4, batch_first=True).eval()
    done, x = FastSNN.convert(net, calibration=torch.randn(6, 2, 4)), torch.randn(2, 2, 4)
    torch.testing.assert_close(done.model(x)[0], net(x)[0])
    assert done.report.counts == {"kept": 1}
    with pytest.raises(
        FastSNNError, match=rf"cannot be saved as a bundle: module model \({recurrent.__name__}\)\. What can be"
    ):
        FastSNN.export(done.model, tmp_path / "kept.snn")
    assert not (tmp_path / "kept.snn").exists()


def test_outputs_by_name_stay_by_name() -> None:
    done = FastSNN.convert(SaysByName(), calibration=torch.randn(8, 4), neuron={"kind": "adaptive_threshold", "k": 1e4})
    assert list(done.model(torch.randn(2, 4))) == ["y"]


@pytest.mark.parametrize(("what", "says"), [(lambda x: x, "function"), (None, "NoneType"), (3, "int")])
def test_what_is_no_network_is_refused(what: Any, says: str) -> None:
    with pytest.raises(FastSNNError, match=rf"an? .*{says} cannot be converted; convert takes an nn\.Module"):
        FastSNN.convert(what, calibration=torch.randn(3, 4))


def test_a_bundle_is_not_called_like_a_file(tmp_path: Path) -> None:
    net = FastSNN.build(arch="snn-mlp", input=(4,), classes=3, time_steps=2)
    with pytest.raises(FastSNNError, match=r"x\.pt: a bundle is a folder, and \.pt promises a file; call it x\.snn"):
        FastSNN.export(net, tmp_path / "x.pt")
    assert not list(tmp_path.iterdir())


def test_a_tokenizer_of_another_vocabulary_is_named() -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers

    model = FastSNN.build(d_model=16, n_layers=1, n_heads=2, vocab_size=5)
    words = Tokenizer(models.WordLevel({f"w{i}": i for i in range(9)}, unk_token="w0"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    with pytest.raises(FastSNNError, match=r"9 tokens and the model a vocab_size of 5; set vocab_size = 9"):
        FastSNN.fit(model, ["w1 w2 " * 50] * 9, tokenizer=words, max_steps=1, seq_len=8)


def test_the_kit_says_what_it_needs(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(sys.modules, "hypothesis", None)
    assert cli.main(["test", "lif"]) == cli.EXIT_USER
    assert "the kit needs hypothesis: pip install 'fastsnn-core[testing]'" in capsys.readouterr().err


@pytest.mark.parametrize("name", registry().names("coder"))
@pytest.mark.parametrize("kind", [torch.float32, torch.float64])
def test_a_coder_keeps_the_type_of_what_it_is_given(name: str, kind: torch.dtype) -> None:
    spikes = SpikeTensor(torch.tensor([[1.0, 0.0, 1.0]], dtype=kind), torch.tensor(0.5, dtype=kind))
    assert create("coder", name).encode(spikes).value().dtype == kind
    if name in ("rate", "latency", "delta"):  # which take numbers as well
        assert create("coder", name).encode(torch.tensor([[0.25, 0.5]], dtype=kind)).value().dtype == kind


TIMED = """
import sys, time
from fastsnn_core import cli, plugins

class Clock:
    def perf_counter(self):
        raise SystemExit(0 if "torch" in sys.modules else "the first plugin is timed before torch is there")

plugins.time = Clock()
cli.main(["plugins", "--json"])
sys.exit("no plugin was timed")
"""


def test_plugins_are_not_charged_for_torch() -> None:
    """The first plugin of the list once "cost" ten seconds: torch's import, which is nobody's."""
    done = subprocess.run([sys.executable, "-c", TIMED], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
