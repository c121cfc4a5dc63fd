"""Every tokenizer class of transformers in a Llama directory with a tokenizer.json: the same ids, or words."""

from __future__ import annotations

import logging
import re
from pathlib import Path

import pytest
from test_hf_directory import agree, byte_level, directory, pieces

from fastsnn_text import TokenizerError, load_tokenizer
from fastsnn_text.tokenizer_classes import UNREAD


def class_names() -> list[str]:
    """Every class that a tokenizer_config.json may name, and a name that no library knows."""
    home = Path(pytest.importorskip("transformers").__file__).parent
    texts = [path.read_text(encoding="utf-8") for path in home.glob("models/*/tokenization_*.py")]
    found = {name for text in texts for name in re.findall(r"^class (\w+Tokenizer\w*)\(", text, re.MULTILINE)}
    fast = {f"{name}Fast" for name in found if not name.endswith("Fast")}
    return sorted(
        found | fast | {"PreTrainedTokenizerFast", "PreTrainedTokenizer", "TokenizersBackend", "OwnTokenizer"}
    )


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["bytes", "pieces"])
def test_every_class_gives_the_ids_of_transformers_or_is_refused(tmp_path: Path, kind: str) -> None:
    logging.disable(logging.WARNING)
    same, refused = [], []
    try:
        for name in class_names():
            named = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"} if kind == "pieces" else {}
            files = {"tokenizer_config.json": {"tokenizer_class": name} | named}
            place = directory(tmp_path / name, pieces() if kind == "pieces" else byte_level(), "llama", files)
            try:
                load_tokenizer(place)
            except TokenizerError as error:
                assert "PreTrainedTokenizerFast" in str(error), name
                refused.append(name)
                continue
            try:
                agree(place)
            except Exception as error:  # transformers' own class needs tokens that this vocabulary has not
                if isinstance(error, AssertionError) or "Unk token" not in str(error):
                    raise AssertionError(name) from error
                continue
            same.append(name)
    finally:
        logging.disable(logging.NOTSET)
    assert {name.removesuffix("Fast") for name in refused} <= UNREAD
    assert len(same) > 15


def test_a_class_that_splits_in_its_own_way_is_refused_and_the_file_alone_is_read(tmp_path: Path) -> None:
    for name in ("WhisperTokenizer", "XLNetTokenizerFast", "BertTokenizer"):
        files = {"tokenizer_config.json": {"tokenizer_class": name}}
        with pytest.raises(TokenizerError, match=f"{name.removesuffix('Fast')} .*PreTrainedTokenizerFast"):
            load_tokenizer(directory(tmp_path / name, byte_level(), "llama", files))
    files = {"tokenizer_config.json": {"tokenizer_class": "PreTrainedTokenizerFast"}}
    assert load_tokenizer(directory(tmp_path / "own", byte_level(), "llama", files)).encode("a cat")
