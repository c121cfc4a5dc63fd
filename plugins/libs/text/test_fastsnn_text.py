"""Tokenizers round trip, and a text stream never cuts a character."""

from __future__ import annotations

import pytest

from fastsnn_text import ByteTokenizer, TextStream, TokenizerError, load_tokenizer, prompt_ids, train_bpe


def test_bytes_round_trip():
    tokenizer = ByteTokenizer()
    text = "naïve — 漢字 🙂\n"
    assert tokenizer.decode(tokenizer.encode(text)) == text
    stream = TextStream(tokenizer)
    pieces = [stream.push(i) for i in tokenizer.encode(text)]
    assert "".join(pieces) + stream.close() == text
    assert not any("\ufffd" in piece for piece in pieces)


@pytest.mark.parametrize("text", ["\ud83d x", "fine \udc00"])
def test_half_a_surrogate_pair_is_named(text):
    for tokenizer in (ByteTokenizer(), train_bpe(["a few words"], 300)):
        with pytest.raises(TokenizerError, match=rf"U\+D[8C][03][0D], at character {0 if text[0] != 'f' else 5}"):
            prompt_ids(tokenizer, text)
        assert tokenizer.decode(tokenizer.encode("\U0001f600 whole")) == "\U0001f600 whole"


def test_tokenizers_of_other_libraries_are_taken_as_they_are():
    from tokenizers import Tokenizer as Native

    from fastsnn_core.errors import ArgumentError

    trained = train_bpe(["a few words, a few more"], 300)
    for given in (Native.from_str(trained.text), Wrapped(trained)):
        found = load_tokenizer(given)
        assert found.encode("a few words") == trained.encode("a few words")
        assert found.end == trained.end
    assert load_tokenizer(Wrapped(trained)).special == {"eos_token": "<|endoftext|>"}
    for bad, says in ((None, "None is no tokenizer: it lacks encode"), (Slow(), "Slow has no tokenizer.json")):
        with pytest.raises(ArgumentError, match=says):
            load_tokenizer(bad)


class Wrapped:
    """What a fast tokenizer of transformers offers of these."""

    chat_template = None

    def __init__(self, own):
        self.backend_tokenizer, self.eos_token_id = own.native, own.end
        self.special_tokens_map = {"eos_token": "<|endoftext|>"}


class Slow:
    """A tokenizer without a tokenizer.json."""

    def convert_ids_to_tokens(self, ids):
        raise NotImplementedError
