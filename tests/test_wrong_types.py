"""Every verb of the facade with an argument of another type: it is taken, or refused in words.

One argument of a right call is replaced by a value of another kind. What the verb says of it is a `FastSNNError`; never
an AttributeError, KeyError, IndexError, a bare TypeError, or a RuntimeError of a library below. ``FASTSNN_FUZZ=6000``
tries all that there are.
"""

from __future__ import annotations

import inspect
import os
import random
from pathlib import Path
from typing import Any

import attrs
import pytest
import torch
from torch import nn

from fastsnn_core.errors import ArgumentError, FastSNNError

pytest.importorskip("fastsnn")
TRIES = int(os.environ.get("FASTSNN_FUZZ", "200"))


class Thing:
    """Nothing that anyone takes."""


WRONG: tuple[Any, ...] = (
    None, 3, -1, 0, 2.5, float("nan"), float("inf"), 10**30, True, "", "nonsense", "a\0b", b"bytes", [], [None], ["x"],
    (), {}, {"a": 1}, {1: 2}, {"kind": "nope"}, {"kind": 3}, torch.ones(2), torch.ones(0), torch.zeros(1, 1, 1), int,
    Thing(), len, Path("nowhere"), Path("t.txt"), nn.Linear(3, 3),
)  # fmt: skip
LONG = ("max_steps", "epochs", "steps", "heal_steps", "new_seq_len", "max_tokens")  # a large number is right, and work


@pytest.fixture(scope="module")
def calls(tmp_path_factory):
    """Each verb: how it is called rightly, and what else it takes."""
    from fastsnn import FastSNN
    from fastsnn_convert.modules import convert_module
    from fastsnn_serve.engine import Engine
    from fastsnn_serve.http.routes import app
    from fastsnn_text import Sampling, attach, load_tokenizer
    from fastsnn_train import TrainConfig

    before = Path.cwd()
    os.chdir(tmp_path_factory.mktemp("wrong"))
    torch.manual_seed(0)
    model = FastSNN.build(d_model=16, n_layers=1, n_heads=2, d_ff=24, vocab_size=257, neuron="lif_sint")
    attach(model, load_tokenizer("byte"))
    FastSNN.export(model, "a.snn")
    Path("t.txt").write_text("to be or not to be " * 50)
    ids = torch.randint(0, 200, (2, 12))
    run = FastSNN.fit(model, [ids], max_steps=1, quiet=True)
    net, data = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2)), torch.randn(8, 4)
    small = FastSNN.build(arch="snn-mlp", input=(6,), classes=3, time_steps=2, widths=(8,))
    labelled = (torch.rand(24, 6), torch.arange(24) % 3)

    def serve(**given: Any) -> None:
        handle = FastSNN.serve(**{"block": False, **given})
        handle.close()

    def fit(**given: Any) -> Any:
        return FastSNN.fit(**{"quiet": True, **given})

    def event(**given: Any) -> None:
        try:
            model.runtime("event", **given)
        finally:
            model.runtime("count")

    settings = [f.name for f in attrs.fields(TrainConfig) if f.name not in ("compile", "parallel")]
    serving = {*inspect.signature(app).parameters, *inspect.signature(Engine).parameters}
    serving -= {"model", "model_or_bundle", "engine", "self", "log"}
    yield {
        "build": (
            FastSNN.build,
            {"arch": "snn-tiny", "attn": "gla", "neuron": "lif", "d_model": 16, "n_layers": 1, "n_heads": 2},
            ["vocab_size", "d_ff", "window", "sites", "tied", "rope", "norm", "feedforward", "quant", "head_dim"],
        ),
        "build over time": (
            FastSNN.build,
            {"arch": "snn-conv", "input": (1, 8, 8), "classes": 3, "widths": (4, 4)},
            ["time_steps", "coder", "neuron", "hidden", "attn"],
        ),
        "from_spec": (FastSNN.from_spec, {"source": model.spec}, []),
        "load": (FastSNN.load, {"path": "a.snn"}, ["device"]),
        "fit": (
            fit,
            {"model": model, "dataset": [ids], "max_steps": 1},
            ["seq_len", "task", "tokenizer", "text_field", "out", "resume", "quiet", *settings],
        ),
        "fit on samples": (
            fit,
            {"model": small, "dataset": labelled, "max_steps": 1},
            ["task", "held_out", "holdout", "class_weights", "transforms", "input", "target", "trackers", "epochs"],
        ),
        "extend_context": (
            FastSNN.extend_context,
            {"model": model, "trainer": run, "new_seq_len": 24, "max_steps": 1},
            ["lr", "quiet", "rope", "window", "gate", "mode"],
        ),
        "convert": (
            FastSNN.convert,
            {"source": net, "calibration": data},
            [*(n for n in inspect.signature(convert_module).parameters if n not in ("model", "must_save")), "to"],
        ),
        "scope": (FastSNN.scope, {"model": model}, ["text", "tokens", "scopes", "limit"]),
        "export": (FastSNN.export, {"model": model, "path": "b.snn"}, ["to", "report", "tokenizer"]),
        "export w8a": (FastSNN.export, {"model": model, "path": "c.snn", "to": "w8a"}, ["group"]),
        "serve": (serve, {"path": "a.snn", "port": 0}, ["host", "name", *sorted(serving)]),
        "generate": (
            FastSNN.generate,
            {"model": model, "prompt": "a", "max_tokens": 1},
            ["stop", *(f.name for f in attrs.fields(Sampling))],
        ),
        "model.generate": (model.generate, {"prompt": "a", "max_tokens": 1}, ["stop", "seed"]),
        "model.runtime": (model.runtime, {"mode": "count"}, ["coder", "steps"]),
        "event": (event, {"coder": "bitwise"}, ["steps"]),
        "model": (model, {"tokens": ids}, ["state", "reset", "input_ids", "attention_mask"]),
    }
    os.chdir(before)


def raw(call: Any, right: dict[str, Any], name: str, value: Any) -> str:
    """What is wrong with the answer to one wrong argument; empty where it was taken, or refused in words."""
    try:
        call(**{**right, name: value})
    except FastSNNError as error:
        return "" if len(str(error)) > 15 else f"says only {str(error)!r}"
    except OSError:
        return ""  # the system's own words about a path
    except Exception as error:
        return f"{type(error).__name__}: {str(error)[:100]}"
    return ""


@pytest.mark.filterwarnings("ignore")
def test_an_argument_of_another_type_is_taken_or_refused_in_words(calls, monkeypatch):
    monkeypatch.setenv("FASTSNN_QUIET", "1")
    grid = [
        (verb, name, n)
        for verb, (_, right, more) in calls.items()
        for name in [*right, *more]
        for n, value in enumerate(WRONG)
        if not (name in LONG and isinstance(value, int | float) and not isinstance(value, bool) and value > 2)
    ]
    tried = random.Random(0).sample(grid, min(TRIES, len(grid)))
    faults = []
    for verb, name, n in tried:
        call, right, _ = calls[verb]
        if said := raw(call, right, name, WRONG[n]):
            faults.append(f"{verb}({name}={str(WRONG[n])[:40]!r}): {said}")
    assert not faults, f"{len(faults)} of {len(tried)}:\n" + "\n".join(faults[:30])


@pytest.mark.parametrize("error", [AttributeError, KeyError, IndexError, TypeError, RuntimeError])
def test_a_planted_fault_is_seen(error):
    def verb(**_: Any) -> None:
        raise error("a bug")

    assert error.__name__ in raw(verb, {}, "x", 1)


def test_names_that_a_verb_does_not_take_are_refused_in_words():
    from fastsnn import FastSNN

    for call, given, says in (
        (FastSNN.load, {"path": "a.snn", "devise": "cpu"}, "did you mean 'device'"),
        (FastSNN.load, {}, "missing a required argument"),
        (FastSNN.load, {"path": 3}, r"load\(path=\) takes a text or a path, got int 3"),
        (FastSNN.convert, {"source": nn.Linear(2, 2), "steps": "4"}, r"steps=\) takes a whole number or None, got str"),
    ):
        with pytest.raises(ArgumentError, match=says):
            call(**given)


@pytest.mark.parametrize(
    "given", [("nueron", "lif"), (None, None), ("neuron", None), ([], "lif"), (3, "lif"), (int, "x")]
)
def test_a_component_s_kind_and_name_are_refused_in_words(given):
    from fastsnn import create

    with pytest.raises(FastSNNError, match="did you mean 'neuron'" if given[0] == "nueron" else "kinds: attention"):
        create(*given)


def test_the_names_of_transformers_are_taken_where_they_change_nothing(calls):
    model = calls["model"][0]
    ids = torch.arange(12).view(2, 6)
    wanted = model(ids)
    mask = torch.tensor([[1] * 6, [1, 1, 1, 1, 0, 0]])
    assert torch.equal(model(input_ids=ids), wanted)
    assert torch.equal(model(input_ids=ids, attention_mask=torch.ones_like(ids)), wanted)
    assert torch.equal(model(ids, attention_mask=mask)[1, :4], wanted[1, :4])
    for given, says in (
        ({"input_ids": ids, "labels": ids}, "F.cross_entropy"),
        ({"input_ids": ids, "attention_mask": mask.flip(1)}, "padding on the left"),
        ({"input_ids": ids, "attention_mask": mask, "return_state": True}, "before a state that goes on"),
        ({"input_ids": ids, "attention_mask": mask[:1]}, "has the shape of input_ids"),
        ({"input_ids": ids, "use_cache": True}, "not use_cache"),
        ({}, "got none"),
        ({"tokens": ids, "input_ids": ids}, "got tokens and input_ids"),
    ):
        with pytest.raises(ArgumentError, match=says):
            model(**given)
