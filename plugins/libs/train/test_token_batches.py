"""Batches of whatever people have: shapes and columns that are honoured, and those that are refused."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch

from fastsnn_core.errors import FastSNNError
from fastsnn_text import ByteTokenizer
from fastsnn_train import Packed, TrainConfig, Trainer, fit_data
from fastsnn_train.data.documents import Chat, DataError, Spans
from fastsnn_train.data.token_batches import INSIDE, batches, ids_of, scored, targets_of
from fastsnn_train.data.tokenize import tokenized

IDS = torch.arange(1, 25).view(2, 12)


def only(items, **more):
    """The one batch of `items`."""
    (found,) = batches(items, **more)
    return found


def weights(make, batch, **settings):
    """All weights after a few steps on one batch."""
    model = make(sites=())
    Trainer(model, TrainConfig(max_steps=3, lr=1e-2, trackers=(), **settings), quiet=True).fit([batch] * 3)
    return torch.cat([p.detach().flatten() for p in model.parameters()])


@pytest.mark.parametrize(
    "item",
    [
        *(IDS, IDS.int(), IDS.numpy(), IDS.tolist(), [IDS], (IDS,), {"input_ids": IDS}, {"tokens": IDS.numpy()}),
        *({"input_ids": IDS, "labels": IDS}, {"input_ids": IDS, "attention_mask": torch.ones(2, 12)}, (IDS, IDS)),
        {"input_ids": IDS, "token_type_ids": torch.zeros(2, 12), "text": ["a", "b"]},
    ],
)
def test_every_usual_form_of_a_batch_is_the_same(item):
    tokens, reset = only([item])
    assert torch.equal(ids_of(tokens), IDS)
    assert torch.equal(targets_of(tokens)[:, 1:], IDS[:, 1:])
    assert reset is None
    assert scored(tokens) is None


def test_shifted_targets_are_one_token_more():
    tokens, _ = only([(IDS[:, :-1], IDS[:, 1:])])
    assert torch.equal(tokens, IDS)


def test_labels_and_masks_say_which_tokens_are_targets():
    labels = IDS.clone()
    labels[0, :5] = -100
    tokens, _ = only([{"input_ids": IDS, "labels": labels}])
    assert torch.equal(targets_of(tokens)[:, 1:], labels[:, 1:])
    assert torch.equal(ids_of(tokens), IDS)
    mask = torch.ones(2, 12)
    mask[0, 8:], mask[1, :3] = 0, 0  # padding behind, and in front
    tokens, reset = only([{"input_ids": torch.where(mask > 0, IDS, -100), "attention_mask": mask}])
    assert (targets_of(tokens)[0, 8:] == -100).all()
    assert (targets_of(tokens)[1, :4] == -100).all()  # nothing but padding stands before token 3
    assert reset.nonzero().tolist() == [[1, 3]]
    tokens, _ = only([{"input_ids": IDS, "loss_mask": (IDS > 6).int()}])
    assert scored(tokens) == 17
    tokens, reset = only([{"input_ids": IDS, "position_ids": torch.tensor([[*range(5), *range(7)]] * 2)}])
    assert reset.nonzero().tolist() == [[0, 5], [1, 5]]
    assert scored(tokens) == 20


@pytest.mark.parametrize("pad", [3, 0, -100])
def test_labels_that_are_the_padded_ids_are_no_targets_under_padding(pad):
    """What ``labels = input_ids.clone()`` makes of a padded batch."""
    ids, mask = IDS.clone(), torch.ones(2, 12)
    mask[0, 8:], mask[1, :3] = 0, 0
    ids[mask == 0] = pad
    tokens, reset = only([{"input_ids": ids, "labels": ids.clone(), "attention_mask": mask}])
    wanted, again = only([{"input_ids": ids, "attention_mask": mask}])
    assert torch.equal(tokens, wanted)
    assert torch.equal(reset, again)


def test_padding_changes_nothing_that_is_learnt(make):
    plain = weights(make, IDS[:, :8])
    behind = torch.full((2, 12), 3)
    behind[:, :8] = IDS[:, :8]
    mask = torch.zeros(2, 12)
    mask[:, :8] = 1
    assert torch.allclose(weights(make, {"input_ids": behind, "attention_mask": mask}), plain, atol=1e-6)
    before = torch.full((2, 12), 3)
    before[:, 4:] = IDS[:, :8]
    found = weights(make, {"input_ids": before, "attention_mask": mask.flip(1)})
    assert torch.allclose(found, plain, atol=1e-5)
    assert not torch.allclose(weights(make, behind), plain, atol=1e-4)


def test_the_loss_is_the_mean_over_all_targets_however_the_batch_is_cut(make):
    labels = IDS.clone()
    labels[0, :9] = -100
    batch = {"input_ids": IDS, "labels": labels}
    whole, pieces = weights(make, batch), weights(make, batch, accumulate=2)
    assert torch.allclose(whole, pieces, atol=1e-6)
    model = make(sites=())
    trainer = Trainer(model, TrainConfig(max_steps=1, trackers=()), quiet=True)
    with torch.no_grad():
        logits = model(IDS[:, :-1]).flatten(0, 1)
    wanted = torch.nn.functional.cross_entropy(logits, labels[:, 1:].flatten(), ignore_index=-100)
    tokens, _ = only([batch])
    assert trainer.train_step(tokens).loss == pytest.approx(float(wanted), rel=1e-6)


def test_a_batch_without_a_target_teaches_nothing_and_says_so(make, caplog):
    labels = torch.full_like(IDS, -100)
    outcome = Trainer(make(), TrainConfig(max_steps=1, trackers=()), quiet=True).train_step(
        only([{"input_ids": IDS, "labels": labels}])[0]
    )
    assert (outcome.loss, outcome.norm) == (0.0, 0.0)
    assert "no token of this batch is a target" in caplog.text


@pytest.mark.parametrize(
    ("item", "says"),
    [
        ({"input_ids": IDS, "labels": IDS * 2}, r"labels: 2 at row 0, position 0, where the token is 1"),
        ({"input_ids": IDS, "labels": IDS[:, :5]}, r"labels has the shape \(2, 5\), the ids have \(2, 12\)"),
        ({"input_ids": IDS, "attention_mask": torch.tensor([[1, 0] * 6] * 2)}, "row 0 has a hole before position 2"),
        ({"input_ids": IDS, "attention_mask": torch.rand(2, 12)}, "attention_mask must hold a 0 or 1"),
        ({"input_ids": IDS, "position_ids": IDS * 2}, "position_ids: row 0 jumps at position 1"),
        ({"input_ids": IDS, "weights": torch.rand(2, 12)}, "'weights' as large as the ids, which is not understood"),
        ({"inputs_embeds": IDS}, "neither 'input_ids' nor 'tokens'; it has inputs_embeds"),
        (IDS.float(), r"must be token ids .* got torch\.float32 \(2, 12\)"),
        (IDS.bool(), "must be token ids"),
        (torch.zeros(2, 3, 4), "must be token ids"),
        (IDS[:, :1], "T >= 2"),
        ((IDS, IDS, IDS), "a tuple of 3"),
        (["some", "words"], "holds texts, not token ids"),
        ([None], "expected token ids"),
        (IDS + 30, "token id 40 at row 0, position 9 is outside the model's vocabulary of 40 tokens"),
        (IDS - 3, "token id -2 at row 0, position 0 is outside"),
    ],
)
def test_what_is_not_understood_is_refused(item, says):
    with pytest.raises(FastSNNError, match=says):
        list(batches([item], vocab_size=40))


def test_sequences_of_any_length_become_padded_batches(make):
    rows = [list(range(1, n)) for n in (4, 9, 6)]
    first, second = batches(rows, batch_size=2)
    assert ids_of(first[0]).tolist() == [[1, 2, 3, 0, 0, 0, 0, 0], [1, 2, 3, 4, 5, 6, 7, 8]]
    assert scored(first[0]) == 2 + 7
    assert second[0].shape == (1, 5)
    (ragged,) = batches([rows])
    assert ragged[0].shape == (3, 8)


class Map(torch.utils.data.Dataset):
    """A map-style Dataset."""

    def __init__(self, items):
        self.items = items

    def __len__(self):
        return len(self.items)

    def __getitem__(self, i):
        return self.items[i]


@pytest.mark.parametrize(
    "data",
    [
        Map([{"input_ids": row, "labels": row} for row in IDS]),
        Map([(row, row) for row in IDS]),
        Map(list(IDS)),
        Map([IDS, IDS]),
        torch.utils.data.TensorDataset(IDS),
        torch.utils.data.DataLoader(torch.utils.data.TensorDataset(IDS), batch_size=2),
        torch.utils.data.DataLoader(Map([{"input_ids": row} for row in IDS]), batch_size=2, num_workers=1),
        IDS,
        IDS.tolist(),
        (batch for batch in [IDS, IDS]),
    ],
)
def test_datasets_loaders_and_tables_train(data, make):
    model = make()
    found = fit_data(model, data)
    trainer = Trainer(model, TrainConfig(max_steps=2, batch_size=2, trackers=()), quiet=True).fit(found)
    assert trainer.step == 2


def test_a_table_of_ids_trains_and_a_table_of_texts_is_tokenised(make):
    datasets = pytest.importorskip("datasets")
    model = make(vocab_size=257)
    table = datasets.Dataset.from_dict({"input_ids": IDS.tolist(), "labels": IDS.tolist()})
    assert fit_data(model, table) is table
    assert Trainer(model, TrainConfig(max_steps=1, batch_size=2, trackers=()), quiet=True).fit(table).step == 1
    for texts in (["a text", "another"], Map(["a text", "another"]), [{"text": "a text"}, {"text": "another"}]):
        data = fit_data(model, texts, seq_len=4)
        assert ByteTokenizer().decode(data.train.tokens.tolist()).startswith("a text")
    long = fit_data(model, np.arange(100) % 40, seq_len=9)
    assert (len(long), isinstance(long, Packed)) == (11, True)


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (None, "fit() needs a dataset"),
        ([], "cannot train on an empty collection"),
        (3, "cannot train on a int"),
        ((b for b in ()), "the data gave no batch"),
        (torch.rand(40), "must hold integers"),
        (np.array([1, 999]), "token id 999"),
    ],
)
def test_data_that_are_none_are_refused(data, says, make):
    model = make()
    with pytest.raises(FastSNNError, match=re.escape(says)):
        Trainer(model, TrainConfig(max_steps=1, trackers=()), quiet=True).fit(fit_data(model, data))


# -- documents of which only parts are learnt -------------------------------------------------------------------------


def test_a_prompt_is_context_and_its_completion_is_learnt(tmp_path):
    tok = ByteTokenizer()
    marked = torch.from_numpy(tokenized(Spans((("ab", False), ("cd", True))), tok))
    assert ids_of(marked).tolist() == [*b"abcd", 256]
    assert targets_of(marked).tolist() == [-100, -100, *b"cd", 256]
    (tmp_path / "a.jsonl").write_text('{"prompt": "ab", "completion": "cd"}\n{"prompt": "x", "completion": null}\n')
    from fastsnn_train import load_data

    data = load_data(tmp_path / "a.jsonl", seq_len=4, holdout=0.0)
    assert targets_of(data.train.block(0)).tolist() == [-100, -100, *b"cd", 256]
    (tmp_path / "a.jsonl").write_text('{"instruction": "ab", "output": "cd"}\n')
    again = load_data(tmp_path / "a.jsonl", seq_len=4, holdout=0.0, text_field="instruction+output")
    assert again.train.tokens.tolist() == data.train.tokens.tolist()


def test_several_columns_that_could_be_the_text_are_an_error_with_the_choice(tmp_path):
    from fastsnn_train import load_data

    row = '{"messages": [{"role": "user", "content": "x"}], "prompt": "a", "completion": "b"}\n'
    (tmp_path / "a.jsonl").write_text(row)
    with pytest.raises(DataError, match=r"set text_field to one of 'messages', 'prompt\+completion'"):
        load_data(tmp_path / "a.jsonl")


class Turns(ByteTokenizer):
    """Bytes; a template that ends every turn with the end token, as many chat models have it."""

    chat_template = "{% for m in messages %}{{ m.role[0] }}:{{ m.content }}~{% endfor %}"
    end = ord("~")


def test_a_turns_end_does_not_end_the_conversation():
    chat = Chat(({"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo"}), context=1)
    marked = torch.from_numpy(tokenized(chat, Turns()))
    assert bytes(ids_of(marked).tolist()) == b"u:hi~a:yo~"
    assert targets_of(marked).tolist() == [-100] * 5 + list(b"a:yo~")
    assert int((~marked[4]) & INSIDE) == INSIDE
    packed = Packed(np.concatenate([marked.numpy()] * 2), 19, end=Turns.end)
    assert packed.resets(packed.block(0)[None, :-1]).nonzero().tolist() == [[0, 10]]
