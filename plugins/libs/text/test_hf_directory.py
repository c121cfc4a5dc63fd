"""Tokenizers of Hugging Face directories against transformers: the same ids, special tokens, ends and templates."""

from __future__ import annotations

import json
import shutil
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer as Native
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

from fastsnn_text import TokenizerError, load_tokenizer, prompt_ids
from fastsnn_text.tokenizers import HuggingFaceTokenizer

TEXTS = (
    "Once upon a time there was a cat.",
    "  two  spaces\n\n\tand\r\n lines ",
    "we'll don't 1234567 3.14 ALL'S",
    "café déjà über 日本語 \U0001f600 e\u0301",
    "a<|im_end|>b <|im_start|>user\nhi</s> <s>x <extra>",
    " ",
    "",
    "▁x <unk>",
)
CORPUS = ["Once upon a time there was a cat. We'll see 12 cats, don't you?", "über café  two  spaces"] * 20
SPECIALS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]


@cache
def trained() -> str:
    native = Native(models.BPE())
    native.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    native.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    native.train_from_iterator(
        CORPUS,
        trainers.BpeTrainer(vocab_size=380, special_tokens=SPECIALS, initial_alphabet=alphabet, show_progress=False),
    )
    return native.to_str()


def byte_level(**more: Any) -> Native:
    native = Native.from_str(trained())
    for name, value in more.items():
        setattr(native, name, value)
    return native


@cache
def pieces() -> Native:
    native = Native(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    native.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    decoder = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    native.decoder = decoders.Sequence(decoder)
    bytes_too = [f"<0x{i:02X}>" for i in range(256)]
    native.train_from_iterator(
        CORPUS,
        trainers.BpeTrainer(vocab_size=380, special_tokens=["<unk>", "<s>", "</s>", *bytes_too], show_progress=False),
    )
    table = json.loads(native.to_str())
    table["added_tokens"] = table["added_tokens"][:3]
    native = Native.from_str(json.dumps(table))
    native.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s>:1 $B:1", special_tokens=[("<s>", 1)]
    )
    return native


def sentencepiece_model(path: Path, kind: str, **more: Any) -> None:
    trainer = pytest.importorskip("sentencepiece", reason="sentencepiece is not installed").SentencePieceTrainer
    corpus = path.with_suffix(".txt")
    corpus.write_text("\n".join(CORPUS))
    settings = {"byte_fallback": True, "normalization_rule_name": "identity", "add_dummy_prefix": True} | more
    trainer.train(
        input=str(corpus), model_prefix=str(path.with_suffix("")), vocab_size=350 if kind == "bpe" else 330,
        model_type=kind, minloglevel=2, hard_vocab_limit=False, remove_extra_whitespaces=False, **settings,
    )  # fmt: skip
    corpus.unlink()
    path.with_suffix(".vocab").unlink()


def directory(folder: Path, native: Native | None, family: str, files: dict[str, Any], *, split: bool = False) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    if native is not None and split:
        model = json.loads(native.to_str())["model"]
        (folder / "vocab.json").write_text(json.dumps(model["vocab"]))
        rows = [" ".join(row) if isinstance(row, list) else row for row in model["merges"]]
        (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(rows) + "\n")
    elif native is not None:
        native.save(str(folder / "tokenizer.json"))
    base = {"config.json": {"model_type": family, "vocab_size": 400, "eos_token_id": 2}}
    for name, value in (base | files).items():
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(value if isinstance(value, str) else json.dumps(value), encoding="utf-8")
    return folder


def agree(folder: Path) -> HuggingFaceTokenizer:
    transformers = pytest.importorskip("transformers", reason="transformers is not installed: nothing to compare with")
    theirs, ours = transformers.AutoTokenizer.from_pretrained(folder), load_tokenizer(folder)
    for text in TEXTS:
        wanted = theirs(text)["input_ids"]
        assert prompt_ids(ours, text) == wanted, text
        assert ours.encode(text) == theirs(text, add_special_tokens=False)["input_ids"], text
        assert ours.decode(wanted) == theirs.decode(wanted, skip_special_tokens=True), text
    assert ours.special_tokens() == theirs.special_tokens_map
    assert ours.chat_template == theirs.chat_template
    if theirs.eos_token_id is not None:
        assert ours.end == theirs.eos_token_id
    again = HuggingFaceTokenizer(ours.text, ours.start, ends=ours.ends)
    assert [again.prompt(t) for t in TEXTS] == [ours.prompt(t) for t in TEXTS]
    return ours


NAMES = {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>"}
EXTRA = {
    "content": "<extra>",
    "lstrip": False,
    "rstrip": True,
    "single_word": False,
    "normalized": False,
    "special": False,
}
SETTINGS: dict[str, dict[str, Any]] = {
    "none": {},
    "backend": {"tokenizer_config.json": {"tokenizer_class": "PreTrainedTokenizerFast"} | NAMES},
    "gpt2": {"tokenizer_config.json": {"tokenizer_class": "GPT2Tokenizer"} | NAMES},
    "gpt2-space": {"tokenizer_config.json": {"tokenizer_class": "GPT2TokenizerFast", "add_prefix_space": True}},
    "qwen2": {"tokenizer_config.json": {"tokenizer_class": "Qwen2Tokenizer", "bos_token": None} | NAMES},
    "llama": {"tokenizer_config.json": {"tokenizer_class": "LlamaTokenizer"} | NAMES},
    "bos-asked": {"tokenizer_config.json": {"tokenizer_class": "GPT2Tokenizer", "add_bos_token": True} | NAMES},
    "both-asked": {
        "tokenizer_config.json": {"tokenizer_class": "Qwen2Tokenizer", "add_bos_token": True, "add_eos_token": True}
        | NAMES
    },
    "added": {
        "tokenizer_config.json": {
            "tokenizer_class": "Qwen2Tokenizer",
            "added_tokens_decoder": {"0": {"content": "<|endoftext|>", "special": True}, "380": EXTRA},
            "additional_special_tokens": ["<|im_start|>", "<|new|>"],
        }
        | NAMES
    },
    "legacy-files": {
        "special_tokens_map.json": {
            "eos_token": {"content": "<|im_end|>", "lstrip": False, "rstrip": False},
            "pad_token": "<|pad|>",
        },
        "added_tokens.json": {"<extra>": 380},
        "tokenizer_config.json": {"tokenizer_class": "GPT2Tokenizer"},
    },
    "gpt-neox": {"tokenizer_config.json": {"tokenizer_class": "GPTNeoXTokenizerFast"} | NAMES},
    "cohere": {"tokenizer_config.json": {"tokenizer_class": "CohereTokenizer"} | NAMES},
    "cohere-own": {"tokenizer_config.json": {"tokenizer_class": "CohereTokenizerFast", "add_prefix_space": True}},
    "codegen": {"tokenizer_config.json": {"tokenizer_class": "CodeGenTokenizer"} | NAMES},
    "qwen3-5": {"tokenizer_config.json": {"tokenizer_class": "Qwen3_5Tokenizer"} | NAMES},
    "class-in-config": {"config.json": {"model_type": "llama", "tokenizer_class": "GPT2Tokenizer", "eos_token_id": 2}},
    "new-names": {
        "tokenizer_config.json": {"pad_token": "<|pad|>", "mask_token": "[M]", "unk_token": "<unk>"}
        | {"tokenizer_class": "PreTrainedTokenizerFast"}
        | NAMES
    },
    "image": {"tokenizer_config.json": {"tokenizer_class": "PreTrainedTokenizerFast", "image_token": "<img>"} | NAMES},
}


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "qwen3"])
@pytest.mark.parametrize("settings", SETTINGS)
def test_a_byte_level_tokenizer_json(tmp_path: Path, settings: str, family: str) -> None:
    files = {k: dict(v) | ({"model_type": family} if k == "config.json" else {}) for k, v in SETTINGS[settings].items()}
    agree(directory(tmp_path, byte_level(), family, files))


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3"])
@pytest.mark.parametrize(
    "settings", ["gpt2", "gpt2-space", "qwen2", "bos-asked", "both-asked", "added", "legacy-files"]
)
def test_vocab_and_merges(tmp_path: Path, settings: str, family: str) -> None:
    agree(directory(tmp_path, byte_level(), family, SETTINGS[settings], split=True))


def test_merges_may_end_their_lines_as_windows_does(tmp_path: Path) -> None:
    folder = directory(tmp_path, byte_level(), "qwen2", SETTINGS["qwen2"], split=True)
    rules = folder / "merges.txt"
    rules.write_bytes(rules.read_bytes().replace(b"\n", b"\r\n"))
    agree(folder)


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen3"])
@pytest.mark.parametrize(
    "more", [{}, {"tokenizer_class": "LlamaTokenizer"}, {"tokenizer_class": "LlamaTokenizerFast", "legacy": True},
             {"tokenizer_class": "LlamaTokenizer", "add_prefix_space": False, "add_bos_token": False},
             {"tokenizer_class": "CodeLlamaTokenizer"}, {"tokenizer_class": "GemmaTokenizer"},
             {"tokenizer_class": "GemmaTokenizerFast", "pad_token": "<pad>", "add_bos_token": True},
             {"tokenizer_class": "CodeLlamaTokenizerFast", "add_prefix_space": False}],
)  # fmt: skip
def test_a_sentencepiece_tokenizer_json(tmp_path: Path, more: dict[str, Any], family: str) -> None:
    files = {"tokenizer_config.json": {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"} | more}
    agree(directory(tmp_path, pieces(), family, files))


@pytest.mark.parametrize("family", ["llama", "mistral"])
@pytest.mark.parametrize("kind", ["bpe", "unigram"])
@pytest.mark.parametrize("bos", [None, True])
def test_a_sentencepiece_model(tmp_path: Path, kind: str, family: str, bos: bool | None) -> None:
    pytest.importorskip("google.protobuf", reason="protobuf is not installed")
    sentencepiece_model(tmp_path / "tokenizer.model", kind, user_defined_symbols=["<|im_end|>"])
    settings: dict[str, Any] = {"tokenizer_class": "LlamaTokenizer", "legacy": False}
    agree(
        directory(tmp_path, None, family, {"tokenizer_config.json": settings | ({"add_bos_token": bos} if bos else {})})
    )


@pytest.mark.parametrize(
    ("files", "wanted"),
    [
        ({"chat_template.jinja": "FILE"}, "FILE"),
        ({"tokenizer_config.json": {"chat_template": "OLD"}}, "OLD"),
        ({"chat_template.jinja": "FILE", "tokenizer_config.json": {"chat_template": "OLD"}}, "FILE"),
        (
            {
                "tokenizer_config.json": {
                    "chat_template": [{"name": "default", "template": "A"}, {"name": "rag", "template": "B"}]
                }
            },
            {"default": "A", "rag": "B"},
        ),
        (
            {"chat_template.jinja": "FILE", "additional_chat_templates/tool_use.jinja": "T"},
            {"default": "FILE", "tool_use": "T"},
        ),
        ({"additional_chat_templates/tool_use.jinja": "T"}, {"tool_use": "T"}),
        ({"chat_template.jinja": "one\r\ntwo\r\n"}, "one\ntwo\n"),
    ],
)
def test_chat_templates(tmp_path: Path, files: dict[str, Any], wanted: Any) -> None:
    assert agree(directory(tmp_path, byte_level(), "llama", files)).chat_template == wanted


@pytest.mark.parametrize(
    ("config", "generation", "wanted"),
    [
        ({"eos_token_id": 2}, None, (2,)),
        ({"eos_token_id": [0, 2]}, None, (0, 2)),
        ({"eos_token_id": 0}, {"eos_token_id": [2, 7]}, (2, 7, 0)),
        ({"eos_token_id": None}, None, ()),
        ({}, {"eos_token_id": 5}, (5,)),
        ({"eos_token_id": -1}, {"eos_token_id": [5, -1]}, (5,)),
    ],
)
def test_ends_come_from_every_file(tmp_path: Path, config: Any, generation: Any, wanted: tuple[int, ...]) -> None:
    files: dict[str, Any] = {"config.json": {"model_type": "llama"} | config}
    files |= {} if generation is None else {"generation_config.json": generation}
    found = load_tokenizer(directory(tmp_path, byte_level(), "llama", files))
    assert found.ends == (wanted or (found.find(found.ENDS),))
    files["tokenizer_config.json"] = {"eos_token": "<|im_end|>"}
    assert load_tokenizer(directory(tmp_path, byte_level(), "llama", files)).ends == tuple(dict.fromkeys((2, *wanted)))


def test_no_start_token_because_of_its_name_alone(tmp_path: Path) -> None:
    named = load_tokenizer(directory(tmp_path / "a", byte_level(), "llama", SETTINGS["backend"]))
    assert named.start is None
    assert prompt_ids(named, "hi") == named.encode("hi")
    processor = processors.TemplateProcessing(single="<|im_start|> $A", special_tokens=[("<|im_start|>", 1)])
    adds = load_tokenizer(directory(tmp_path / "b", byte_level(post_processor=processor), "llama", SETTINGS["backend"]))
    assert adds.start == 1
    assert prompt_ids(adds, "hi") == [1, *adds.encode("hi")]


POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"
GPT2 = {"tokenizer_class": "GPT2Tokenizer"}
BAD: dict[str, tuple[dict[str, Any], str]] = {
    "pointer": ({"tokenizer.json": POINTER}, "git-lfs"),
    "pointer-of-a-model": ({"tokenizer.model": POINTER}, "git-lfs"),
    "no-json": ({"tokenizer.json": "{"}, "no JSON"),
    "no-tokenizer": ({"tokenizer.json": {"model": {"type": "Nothing"}}}, "no Hugging Face tokenizer"),
    "no-table": ({"tokenizer_config.json": "[]"}, "not a table"),
    "another-class": ({"vocab.json": {"a": 0}, "merges.txt": ""}, "GPT2Tokenizer"),
    "tekken": ({"tekken.json": "{}"}, "tekken.json"),
    "no-merges": ({"vocab.json": {"a": 0}, "merges.txt": "x y", "tokenizer_config.json": GPT2}, "merges.txt"),
    "split": ({"tokenizer_config.json": {"split_special_tokens": True}}, "split_special_tokens"),
    "bad-end": ({"vocab.json": {"a": 0}, "merges.txt": "", "tokenizer_config.json": GPT2,
                 "config.json": {"eos_token_id": "x"}}, "eos_token_id"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_what_cannot_be_read_says_so(tmp_path: Path, case: str) -> None:
    files, says = BAD[case]
    with pytest.raises(TokenizerError, match=says) as caught:
        load_tokenizer(directory(tmp_path, None, "llama", files))
    assert str(tmp_path) in str(caught.value)


def test_nothing_is_not_bytes(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"tokenizer\.json is missing"):
        load_tokenizer(directory(tmp_path, None, "llama", {}))


def test_a_folder_that_transformers_saved(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers", reason="transformers is not installed: nothing to compare with")
    first = directory(tmp_path / "first", byte_level(), "qwen2", SETTINGS["added"])
    transformers.AutoTokenizer.from_pretrained(first).save_pretrained(tmp_path / "second")
    shutil.copy(first / "config.json", tmp_path / "second" / "config.json")
    agree(tmp_path / "second")
