"""Longer context: chunks that carry their state equal the whole, gates that roll back, changes that bundles keep."""

from __future__ import annotations

import json
import logging

import attrs
import numpy as np
import pytest
import torch

from fastsnn_core import bundle
from fastsnn_train import Data, TrainConfig, Trainer, extend_context
from fastsnn_train.cli import fit
from fastsnn_train.data.streaming import Streamed
from fastsnn_train.evaluation.recall import Recall, mqar, recall
from fastsnn_train.extend.cli import extend
from fastsnn_train.extend.decay import calibrate_decay
from fastsnn_train.extend.report import Extension
from fastsnn_train.extend.reshape import adopt, layer_attentions, shaped
from fastsnn_train.extend.step import FRESH, StageRunner, deep_share
from fastsnn_train.loop.parallel import World
from fastsnn_train.loop.snapshot import take


@pytest.fixture
def data(packed):
    """Without ends of documents: 600 tokens are one."""
    from fastsnn_text import ByteTokenizer

    train = attrs.evolve(packed, end=None)
    return Data(train, train.part(0, 200), ByteTokenizer())


def trained(model, data, steps=2, **config):
    config = {"max_steps": steps, "batch_size": 4, "lr": 3e-3, "eval_sequences": 4} | config
    return Trainer(model, TrainConfig(**config), quiet=True).fit(data)


def walk(model, data, mode="carry", length=48, share=0.0):
    trainer = Trainer(model, TrainConfig(batch_size=4), quiet=True)
    return StageRunner(model, trainer, data.train, data.train.with_length(length), mode, share)


@pytest.mark.parametrize("ends", [False, True])
def test_chunks_that_carry_their_state_lose_nothing_but_far_gradients(make, data, packed, ends):
    corpus = Data(packed, None, data.tokenizer) if ends else data
    model = make().double()
    losses, gradients = [], []
    for mode in ("long", "carry"):
        losses.append(getattr(walk(model, corpus, mode), f"{mode}_step")(0))
        gradients.append({n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None})
        model.zero_grad()
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)
    head = "norm.weight"  # behind every layer: no gradient of it is cut
    torch.testing.assert_close(gradients[0][head], gradients[1][head], rtol=1e-6, atol=1e-9)
    cut = max(float((gradients[0][n] - gradients[1][n]).abs().max()) for n in gradients[0])
    assert cut > 1e-6


def test_short_steps_come_as_often_as_they_should(make, data):
    taken = walk(make(), data, share=0.25)
    assert [taken.take(step, 1e-4)[1] for step in range(8)] == [False, False, False, True] * 2


def test_passed_states_come_from_others_and_are_cleared_in_time(make, data):
    taken = walk(make(), data, "pass", length=36)
    ages = []
    for step in range(12):
        taken.take(step, 1e-4)
        ages.append(taken.age.tolist())
    ages = np.array(ages)
    assert ages.max() == 3  # 36 tokens are three sequences of 12
    fresh = (ages[1:] == 1) & (ages[:-1] < 3)
    assert 0 < fresh.mean() < 3 / FRESH
    loss = taken.pass_step(20)
    taken.passed = None
    assert loss != pytest.approx(taken.pass_step(20), rel=1e-9)


def test_states_that_grow_cannot_be_passed(make, data):
    taken = walk(make(attention=("softmax",)), data, "pass")
    taken.take(0, 1e-4)
    with pytest.raises(ValueError, match="constant size"):
        taken.take(1, 1e-4)


def test_stages_carry_the_optimiser_and_leave_milestones(make, data, tmp_path):
    pytest.importorskip("matplotlib")
    model = make(vocab_size=257)
    trainer = trained(model, data)
    found = extend_context(
        model, trainer, new_seq_len=(24, 48), max_steps=(2, 4), gate=None, recall=("mqar", "passkey"), recall_samples=1
    )
    assert [s["to"] for s in found["stages"]] == [24, 48]
    assert {int(row["step"]) for row in trainer.optimizer.state.values()} == {8}
    assert [row["from"] for row in found["after"]] == [0, 6, 12, 24]
    assert found["recall"]["mqar"]["after"]["lengths"] == [24, 48]
    assert "too few" in found["recall"]["passkey"]["skipped"]
    assert len(found["history"]) == 6
    folder = found.report(tmp_path / "report")
    names = {"extension.json", "positions.png", "recall-mqar.png"}
    assert {p.name for p in folder.iterdir()} == names
    assert json.loads((folder / "extension.json").read_text())["to"] == 48
    assert "mqar: 0% at every length" in str(found)
    again = bundle.load(bundle.save(model, tmp_path / "m.snn"))
    assert again.meta["milestones"][-1]["to"] == 48


def test_recall_is_of_tasks_of_ones_own_in_ones_own_text(make, data, monkeypatch):
    import fastsnn_train.extend as module

    fillers = set()

    def measured(*words, filler=None, **options):
        fillers.add(filler)
        return recall(*words, filler=filler, **options)

    def two(rng, encode):
        return mqar(rng, encode, pairs=2)

    monkeypatch.setattr(module, "recall", measured)
    model = make(vocab_size=257)
    found = extend_context(
        model, trained(model, data), new_seq_len=24, max_steps=1, recall=(two,), recall_samples=1, filler="a b c "
    )
    assert found.grids["two"][1].lengths == (12, 24)
    assert "a b c " in fillers


@pytest.mark.parametrize("action", ["rollback", "stop"])
def test_a_stage_that_spoils_short_contexts_goes_back(make, data, action, caplog):
    model = make()
    trainer = trained(model, data)
    before = {n: t.clone() for n, t in take(model, trainer.optimizer, None).items()}
    with caplog.at_level(logging.WARNING, "fastsnn"):
        found = extend_context(model, trainer, new_seq_len=24, max_steps=16, lr=3.0, on_gate=action)
    assert "back to step 0" in caplog.text
    assert found["stages"][0]["gate_broken"]
    assert found["to"] == found["from"] == 12
    assert found["short"]["worse"] == 0
    assert len(found["history"]) == (16 if action == "rollback" else 2)
    for name, tensor in take(model, trainer.optimizer, None).items():
        assert torch.equal(tensor, before[name]), name


def test_a_stage_within_the_gate_keeps_its_last_step(make, data):
    model = make()
    found = extend_context(model, trained(model, data), new_seq_len=24, max_steps=3, lr=1e-6, recall=())
    assert found["stages"][0]["kept_step"] == 3
    assert abs(found["short"]["worse"]) < 0.02


def test_decay_is_calibrated_without_training_and_travels_in_the_bundle(make, data, tmp_path, monkeypatch):
    import fastsnn_train.extend.decay as module

    model = make(attention=("gla", "linear", "sliding_window", "gla"))
    weights = {n: p.clone() for n, p in model.named_parameters()}
    wanted = (4.0, 2.0, 1.0, 8.0)

    def pretend(model, data, sequences):  # late tokens like one setting best; early ones like none
        rows = layer_attentions(model.spec)
        taus = [a.tau for a in rows if a.name == "gla"]
        off = sum(abs(np.log2(16 / t) - np.log2(w)) for t, w in zip(taus, (4.0, 8.0)))
        off += abs(rows[1].decay - 1 / 12)
        return np.concatenate([np.full((1, 12), 1.0 + off / 1e3), np.full((1, 36), 2.0 + off)], 1)

    monkeypatch.setattr(module, "position_nats", pretend)
    found = calibrate_decay(model, data.train.with_length(48), original=12, rounds=3)
    assert found.scales == wanted
    assert found.after[1] < found.before[1]
    assert [m.mixer.tau for m in (model.layers[0].attention, model.layers[3].attention)] == [4.0, 2.0]
    assert all(torch.equal(p, weights[n]) for n, p in model.named_parameters())
    again = bundle.load(bundle.save(model, tmp_path / "m.snn"))
    tokens = data.train.with_length(48).block(0)[None]
    assert torch.equal(again(tokens), model(tokens))
    assert again.spec == model.spec


def test_decay_that_spoils_early_tokens_is_not_taken(make, data, monkeypatch):
    import fastsnn_train.extend.decay as module

    model = make(attention=("gla",))
    pretend = lambda m, d, n: np.array([[m.spec.attention[0].tau / -16 + 2] * 12 + [m.spec.attention[0].tau] * 12])  # noqa: E731
    monkeypatch.setattr(module, "position_nats", pretend)
    found = calibrate_decay(model, data.train.with_length(24), original=12)
    assert found.scales == (1.0,)
    assert model.spec.attention[0].tau == 16.0
    with pytest.raises(ValueError, match="no layer of this model has a decay"):
        calibrate_decay(make(attention=("softmax",)), data.train, original=12)


def test_extension_by_decay_alone(make, data):
    model = make()
    found = extend_context(model, trained(model, data), new_seq_len=48, mode="decay", recall=())
    assert found["steps"] == 0
    assert found["to"] == 48
    late = [found[when][-1]["nats"] for when in ("before", "after")]
    assert late[1] <= late[0]


def test_rope_is_offered_where_it_matters_and_refused_where_it_does_nothing(make, data, tmp_path):
    plain = make()
    with pytest.raises(ValueError, match="at most 8"):
        shaped(plain.spec, original=12, length=48, rope="yarn", window=0)
    for kind, rope in (("yarn", {"scaling": "yarn", "factor": 4.0, "original": 12}), ("ntk", {"scaling": "none"})):
        model = make(attention=("softmax",))
        old = model.spec
        adopt(model, shaped(old, original=12, length=48, rope=kind, window=0))
        assert attrs.asdict(model.spec.rope).items() >= rope.items()
        tokens = data.train.with_length(48).block(0)[None]
        again = bundle.load(bundle.save(model, tmp_path / f"{kind}.snn"))
        torch.testing.assert_close(again(tokens), model(tokens))
        assert not torch.allclose(model(tokens), make(attention=("softmax",))(tokens))
        adopt(model, old)
        assert torch.equal(model(tokens), make(attention=("softmax",))(tokens))


def test_windows_grow_in_layers_and_branches(make, data, tmp_path):
    model = make(attention=("gla", "sliding_window", "hybrid"))
    adopt(model, shaped(model.spec, original=12, length=48, rope="ntk", window=600))
    windows = [p.window for a in model.spec.attention for p in (a, *getattr(a, "branches", ())) if hasattr(p, "window")]
    assert windows == [600, 600]
    assert model.layers[2].attention.mixer.branches[1].window == 600
    assert model.spec.rope.theta > 10000
    tokens = data.train.with_length(48).block(0)[None]
    again = bundle.load(bundle.save(model, tmp_path / "m.snn"))
    torch.testing.assert_close(again(tokens), model(tokens))
    with pytest.raises(ValueError, match="can only grow"):
        shaped(model.spec, original=12, length=48, rope="none", window=4)
    with pytest.raises(ValueError, match="no sliding window"):
        shaped(make(attention=("gla",)).spec, original=12, length=48, rope="none", window=99)
    with pytest.raises(ValueError, match="only attention and rope"):
        adopt(model, attrs.evolve(model.spec, d_ff=99))


def test_a_corpus_of_short_documents_is_told_apart(make, packed, data, caplog):
    assert deep_share(data.train, 12) == 1.0
    assert 0.4 < deep_share(packed, 12) < 0.6  # documents of 23 tokens
    assert deep_share(packed, 30) == 0.0
    model = make()
    short = Data(packed.with_length(30), None, data.tokenizer)
    with caplog.at_level(logging.WARNING, "fastsnn"):
        extend_context(model, trained(model, short), new_seq_len=60, max_steps=1, recall=())
    assert "mode='pass'" in caplog.text


def test_what_cannot_be_is_refused(make, data):
    model = make()
    trainer = trained(model, data)
    for wrong, says in (
        ({"new_seq_len": 12}, "must be longer"),
        ({"new_seq_len": (48, 24)}, "and rise"),
        ({"new_seq_len": (24, 48), "max_steps": (1,)}, "2 lengths need as many"),
        ({"new_seq_len": 24, "mode": "magic"}, "mode"),
        ({"new_seq_len": 24, "short_share": 1.0}, "short_share"),
    ):
        with pytest.raises(ValueError, match=says):
            extend_context(model, trainer, **({"max_steps": 1} | wrong))
    trainer.world = World("ddp", 0, 2)
    with pytest.raises(ValueError, match="one process"):
        extend_context(model, trainer, new_seq_len=24, max_steps=1)
    trainer.world = World()
    streamed = Data(Streamed(["a b c"], data.tokenizer, 12), None, data.tokenizer)
    with pytest.raises(ValueError, match="packed corpus"):
        extend_context(model, trainer, new_seq_len=24, max_steps=1, data=streamed)


SPEC = """
fastsnn = 1
[model]
kind = "decoder"
d_model = 16
n_layers = 2
n_heads = 2
attention = [{ kind = "gla" }, { kind = "sliding_window", window = 8 }]
[data]
seq_len = 32
[train]
max_steps = 2
batch_size = 4
eval_sequences = 2
"""


def test_the_command_extends_a_run(tmp_path, capsys):
    pytest.importorskip("matplotlib")
    path, out = tmp_path / "spec.toml", tmp_path / "run"
    path.write_text(SPEC)
    assert fit([str(path), "--out", str(out), "--quiet"]) == 0
    assert extend([str(path), "--out", str(out), "--to", "64,128", "--steps", "2", "--json"]) == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert [s["to"] for s in found["stages"]] == [64, 128]
    assert [m["what"] for m in bundle.load(out / "extended.snn").meta["milestones"]] == ["fit", "extend_context"]
    assert (out / "extension" / "extension.json").is_file()


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--to", "abc"), "expected a whole number at least 2, got 'abc'"),
        (("--to", "16"), "lengths must rise from the run's seq_len of"),
        (("--to", "128,64"), "lengths must rise"),
        (("--to", "64"), "holds no run"),
        (("--to", "64", "--steps", "-1"), "must be at least 0"),
        (("--to", "64", "--mode", "cary"), "did you mean 'carry'"),
        (("--to", "64", "--rope", "yarn"), "would change nothing for the better"),
        (("--to", "64", "--short-share", "1"), "must be at least 0 and less than 1"),
    ],
)
def test_the_command_refuses_before_it_trains(words, says, tmp_path, capsys, monkeypatch):
    import fastsnn_train.extend.cli as module
    from fastsnn_core.cli import EXIT_USER, main

    monkeypatch.setattr(module, "fit_spec", lambda *_, **__: pytest.fail("it trained"))
    (tmp_path / "spec.toml").write_text(SPEC)
    try:
        status = main(["extend", str(tmp_path / "spec.toml"), "--out", str(tmp_path / "run"), *words])
    except SystemExit as left:
        status = left.code
    assert status == EXIT_USER
    assert says in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


class Killed(Exception):
    pass


@pytest.mark.parametrize("mode", ["carry", "long"])
def test_a_killed_extension_goes_on_as_if_it_had_not_been(make, data, mode, tmp_path, monkeypatch):
    """Killed in the middle of the second stage; float64, the same numbers to the last bit."""
    asked = {"new_seq_len": (24, 48), "max_steps": (8, 16), "mode": mode, "gate": 5.0, "recall": ("mqar",)}
    asked |= {"recall_samples": 1, "quiet": True}

    def begin(out):
        config = TrainConfig(max_steps=2, batch_size=4, lr=3e-3, eval_sequences=2, ema=0.9)
        return Trainer(make(vocab_size=257).double(), config, out=out, quiet=True).fit(data, resume=True)

    whole = begin(tmp_path / "whole")
    right = extend_context(whole.model, whole, **asked)
    taken = StageRunner.take
    for stop in (11, 19):  # calls of take: one after a checkpoint of stage two, one before
        calls = []

        def take(self, *words, calls=calls, stop=stop):
            calls.append(1)
            if len(calls) > stop:
                raise Killed
            return taken(self, *words)

        out = tmp_path / f"killed-{stop}"
        monkeypatch.setattr(StageRunner, "take", take)
        first = begin(out)
        with pytest.raises(Killed):
            extend_context(first.model, first, **asked)
        monkeypatch.setattr(StageRunner, "take", taken)
        again = begin(out)
        found = extend_context(again.model, again, resume=True, **asked)
        assert found["history"] == right["history"]
        assert found | {"seconds": 0} == right | {"seconds": 0}
        tensors = take_all(whole)
        assert all(torch.equal(t, tensors[n]) for n, t in take_all(again).items())
        with pytest.raises(ValueError, match="other settings"):
            extend_context(again.model, again, resume=True, **(asked | {"lr": 1e-5}))


def take_all(trainer):
    return take(trainer.model, trainer.optimizer, trainer.stepper.average)


def test_recall_that_was_never_there_is_one_sentence():
    def grid(task, *accuracy):
        return Recall(task, (16, 32), (0.0,), tuple((a,) for a in accuracy), 4)

    facts = {"mode": "carry", "from": 16, "to": 32, "steps": 1, "seconds": 1.0, "before": [], "after": []}
    facts["short"] = {"before": 1.0, "after": 1.0, "worse": 0.0}
    before = {"passkey": grid("passkey", 0.0, 0.0), "mqar": grid("mqar", 0.0, 0.0), "kv": grid("kv", 0.5, 0.0)}
    after = before | {"mqar": grid("mqar", 0.0, 0.25)}
    lines = str(Extension.of(facts, before, after)).splitlines()
    assert "mqar at 32 tokens: 0% → 25%" in lines
    assert "kv at 16 tokens: 50% → 50%" in lines
    assert [line for line in lines if "passkey" in line] == [lines[-1]]
    assert lines[-1].startswith("passkey: 0% at every length, before and after")
