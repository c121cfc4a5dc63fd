"""A language model that transformers holds in memory converts as its directory does, tuned weights included."""

from __future__ import annotations

import pytest
import torch

from fastsnn_convert import ConversionError, convert
from fastsnn_text import TokenizerError

transformers = pytest.importorskip("transformers")
SIZES = {
    "vocab_size": 97, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2,
}  # fmt: skip
IDS = torch.arange(120).view(2, 60) % 97
OPTIONS = {"steps": 4, "calibration": IDS, "window": 16, "windows": 2, "measure": False, "quiet": True}


@pytest.fixture
def loaded(tmp_path):
    torch.manual_seed(0)
    made = transformers.LlamaForCausalLM(transformers.LlamaConfig(**SIZES)).eval()
    made.save_pretrained(tmp_path / "hf")
    return transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "hf")


def test_it_gives_the_numbers_of_its_directory_and_of_weights_tuned_since(loaded, tmp_path):
    by_folder, in_memory = (convert(s, **OPTIONS).model for s in (tmp_path / "hf", loaded))
    assert torch.equal(by_folder(IDS), in_memory(IDS))
    with torch.no_grad():
        loaded.lm_head.weight.mul_(2)
    assert not torch.equal(convert(loaded, **OPTIONS).model(IDS), in_memory(IDS))


def test_text_needs_the_tokenizer_which_comes_from_its_directory(loaded, tmp_path):
    with pytest.raises(TokenizerError, match="no tokenizer"):
        convert(loaded, steps=4, calibration="to be or not to be " * 40, quiet=True)
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = {word: i for i, word in enumerate(["<unk>", "to", "be", "or", "not"])}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(tmp_path / "hf/tokenizer.json"))
    text = OPTIONS | {"calibration": "to be or not to be " * 40}
    done = convert(loaded, to=tmp_path / "out.snn", **text)
    assert (tmp_path / "out.snn/tokenizer.json").is_file()
    assert done.report["source"] == "hf"


def test_other_models_of_transformers_are_no_language_models(loaded):
    with pytest.raises(ConversionError):
        convert(loaded.model, steps=4, calibration=IDS)
