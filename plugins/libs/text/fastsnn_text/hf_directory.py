"""The tokenizer of a Hugging Face directory, as transformers 5 reads it: the same ids, special tokens and templates.

    tokenizer.json             the tokenizer; classes with a recipe of their own take vocabulary and merges out of it
    vocab.json + merges.txt    byte-level BPE, for the classes GPT2Tokenizer and Qwen2Tokenizer
    tokenizer.model            a SentencePiece model
    tokenizer_config.json      class, named special tokens, added tokens, chat template; special_tokens_map.json and
                               added_tokens.json where it lists no added tokens
    chat_template.jinja, additional_chat_templates/NAME.jinja    win over the template in tokenizer_config.json
    generation_config.json, config.json               ids that end a text, beside the tokenizer's own end token

A start token is put before a prompt only where the tokenizer does: by its post-processor, or ``add_bos_token`` where
there is no tokenizer.json.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import attrs
from tokenizers import AddedToken, processors
from tokenizers import Tokenizer as Native

from fastsnn_core.moved import renamed
from fastsnn_text import tokenizer_recipes as recipes
from fastsnn_text.tokenizer_classes import UNREAD
from fastsnn_text.tokenizer_recipes import TokenizerError

NAMED = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
BACKEND = "TokenizersBackend"  # transformers' class that takes a tokenizer.json as it is
REGISTERED = {"mistral": BACKEND, "qwen2": "Qwen2Tokenizer", "qwen3": "Qwen2Tokenizer"}
ALWAYS = {"qwen2"}  # model types whose directories are known to name a wrong class
DEFAULTS: dict[str, dict[str, str]] = {
    "LlamaTokenizer": {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"},
    "Qwen2Tokenizer": dict.fromkeys(("unk_token", "eos_token", "pad_token"), "<|endoftext|>"),
    "GPT2Tokenizer": dict.fromkeys(("unk_token", "bos_token", "eos_token"), "<|endoftext|>"),
    "GPTNeoXTokenizer": dict.fromkeys(("unk_token", "bos_token", "eos_token"), "<|endoftext|>")
    | {"pad_token": "<|padding|>"},
    "CodeGenTokenizer": dict.fromkeys(("unk_token", "bos_token", "eos_token"), "<|endoftext|>"),
    "Qwen3_5Tokenizer": dict.fromkeys(("unk_token", "eos_token", "pad_token"), "<|endoftext|>"),
    "CohereTokenizer": {f"{name}_token": f"<{name.upper()}>" for name in ("unk", "pad", "cls", "sep")}
    | {"bos_token": "<BOS_TOKEN>", "eos_token": "<|END_OF_TURN_TOKEN|>", "mask_token": "<MASK_TOKEN>"},
    "GemmaTokenizer": {f"{name}_token": f"<{name}>" for name in ("unk", "bos", "eos", "pad", "mask")},
    "CodeLlamaTokenizer": {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
    | {f"{name}_token": f"▁<{name[:3].upper()}>" for name in ("prefix", "middle", "suffix")}
    | {"eot_token": "▁<EOT>", "fill_token": "<FILL_ME>"},
}
OTHERS = ("tekken.json", "tiktoken.model", "vocab.txt", "spiece.model", "vocab.json", "tokenizer.model")
POINTER = b"version https://git-lfs"


@attrs.frozen
class Found:
    """What a directory says of its tokenizer: the tokenizer, named special tokens, chat templates, ids of ends."""

    native: Native
    special: dict[str, str]
    chat_template: str | dict[str, str] | None
    ends: tuple[int, ...]


def read_utf8(path: Path) -> str:
    """A text file; a pointer of git-lfs, bytes that are no UTF-8 and a file that cannot be read are errors."""
    try:
        raw = path.read_bytes()
        if raw.startswith(POINTER):
            raise TokenizerError(f"{path} is a pointer of git-lfs, not the file itself: run git lfs pull in its folder")
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise TokenizerError(f"{path} is no UTF-8 text: {error}") from None
    except OSError as error:
        raise TokenizerError(f"{path} cannot be read: {error.strerror}") from None


def lines_of(path: Path) -> str:
    """A text file whose lines end in a line feed, whatever they end in on disk."""
    return read_utf8(path).replace("\r\n", "\n").replace("\r", "\n")


def table_of(path: Path) -> dict[str, Any]:
    """A JSON object; {} where there is no file."""
    if not path.is_file():
        return {}
    try:
        found = json.loads(read_utf8(path))
    except json.JSONDecodeError as error:
        raise TokenizerError(f"{path} is no JSON: {error}") from None
    if not isinstance(found, dict):
        raise TokenizerError(f"{path} holds a {type(found).__name__}, not a table")
    return found


def read_tokenizer(folder: Path, config: dict[str, Any] | None = None) -> Found | None:
    """The tokenizer of `folder`, or None where there is none; `config` is its config.json where that is known."""
    config = table_of(folder / "config.json") if config is None else config
    settings = table_of(folder / "tokenizer_config.json")
    if settings.get("split_special_tokens"):
        raise TokenizerError(
            f"{folder / 'tokenizer_config.json'}: split_special_tokens = true (end tokens in a text read letter by "
            "letter) is not supported; supported: false"
        )
    kind = class_of(folder, settings, config)
    whole = table_of(folder / "tokenizer.json")
    added = added_tokens(folder, settings, whole)
    built = native_of(folder, kind, settings, whole, added)
    if built is None:
        return None
    native, special = built
    extra = settings.get("extra_special_tokens") or settings.get("additional_special_tokens") or []
    if isinstance(extra, dict):
        special |= {name: token_text(token) for name, token in extra.items()}
        extra = []
    special |= {
        key: token_text(value)
        for key, value in settings.items()
        if key.endswith("_token") and isinstance(value, str | dict | AddedToken)
    }
    special = {key: value for key, value in special.items() if settings.get(key, value) is not None}
    special = {key: special[key] for key in [*(k for k in NAMED if k in special), *special]}  # new ones, in this order
    add_to(native, added, special, extra)
    if kind in ("Qwen2Tokenizer", "CohereTokenizer"):
        names = dict.fromkeys([*special.values(), *map(token_text, extra)])
        native.add_tokens([AddedToken(name, special=True) for name in names])
    if not whole:
        frame(native, settings, special)
    native.no_padding()
    native.no_truncation()
    return Found(
        native, special, configured_template(folder, settings), configured_ends(folder, config, native, special)
    )


def class_of(folder: Path, settings: dict[str, Any], config: dict[str, Any]) -> str:
    """Name of the tokenizer class that transformers takes."""
    said = settings.get("tokenizer_class") or config.get("tokenizer_class")
    said = said.removesuffix("Fast") if isinstance(said, str) else None
    said = BACKEND if said == "PreTrainedTokenizer" else said
    family = str(config.get("model_type"))
    registered = REGISTERED.get(family)
    file = folder / "tokenizer.json"
    if said == "LlamaTokenizer" and family not in ALWAYS and file.is_file() and '"ByteLevel"' in read_utf8(file):
        return BACKEND
    if said is None or family in ALWAYS:
        return registered or BACKEND
    return BACKEND if registered == BACKEND else said


def native_of(
    folder: Path, kind: str, settings: dict[str, Any], whole: dict[str, Any], added: list[tuple[int, AddedToken]]
) -> tuple[Native, dict[str, str]] | None:
    """``(tokenizer, default special tokens)`` out of the files of the directory."""
    space, legacy = settings.get("add_prefix_space"), bool(settings.get("legacy", False))
    special = dict(DEFAULTS.get(kind, {}))

    def build(vocab: dict[str, int], merges: recipes.Merges) -> Native:
        if kind == "LlamaTokenizer":
            return recipes.llama(vocab, merges, True if space is None else space, legacy)
        if kind == "CodeLlamaTokenizer":
            return recipes.code_llama(vocab, merges, space is not False)
        if kind == "GemmaTokenizer":
            return recipes.gemma(vocab, merges, token_text(settings.get("unk_token") or special["unk_token"]))
        known = {"Qwen2Tokenizer": recipes.qwen2, "GPTNeoXTokenizer": recipes.gpt_neox,
                 "Qwen3_5Tokenizer": recipes.qwen3_5, "CohereTokenizer": recipes.cohere}  # fmt: skip
        return known.get(kind, recipes.gpt2)(vocab, merges, bool(space))

    if whole:
        path = folder / "tokenizer.json"
        if kind in UNREAD:
            raise TokenizerError(
                f"{folder}: transformers makes a {kind} of the vocabulary in tokenizer.json, with a way of splitting "
                "of its own that is not read here. Where the file is meant as it is, tokenizer_config.json should say "
                '"tokenizer_class": "PreTrainedTokenizerFast"'
            )
        try:
            file = Native.from_str(json.dumps(whole))
        except Exception as error:  # the native library raises a bare Exception
            raise TokenizerError(f"{path} is no Hugging Face tokenizer: {error}") from None
        model = whole["model"]
        if kind not in DEFAULTS or model.get("type", "BPE") != "BPE":
            return file, {}
        native = build(model["vocab"], [merge_text(merge) for merge in model.get("merges", [])])
        if kind != "GPTNeoXTokenizer":  # which adds no tokens, whatever the file says
            native.post_processor = file.post_processor
        return native, special
    words, rules, model_file = folder / "vocab.json", folder / "merges.txt", folder / "tokenizer.model"
    if kind in ("GPT2Tokenizer", "Qwen2Tokenizer") and words.is_file() and rules.is_file():
        lines = [line for line in lines_of(rules).split("\n") if line and not line.startswith("#version")]
        try:
            return build(table_of(words), [merge_text(line) for line in lines]), special
        except Exception as error:  # a merge of tokens that the vocabulary does not have
            raise TokenizerError(f"{words} and {rules.name} do not make a tokenizer: {error}") from None
    if model_file.is_file():
        if model_file.read_bytes()[: len(POINTER)] == POINTER:
            read_utf8(model_file)
        proto = recipes.proto_of(model_file)
        settings.setdefault("additional_special_tokens", recipes.pieces_added(proto))
        if kind == "LlamaTokenizer":
            vocab = {piece.piece: i for i, piece in enumerate(proto.pieces)}
            return build(vocab, recipes.merges_of(vocab)), special
        if kind == BACKEND:
            trainer = proto.trainer_spec
            rows = (("bos", trainer.bos_id, trainer.bos_piece or "<s>"),
                    ("eos", trainer.eos_id, trainer.eos_piece or "</s>"),
                    ("unk", trainer.unk_id, trainer.unk_piece or "<unk>"))  # fmt: skip
            names = {f"{name}_token": piece for name, number, piece in rows if number >= 0}
            return recipes.sentencepiece(proto, {i: token.content for i, token in added}), names
    if held := [name for name in OTHERS if (folder / name).is_file()]:
        raise TokenizerError(
            f"{folder / held[0]}: no tokenizer of class {kind} can be built from it; supported: tokenizer.json; "
            "vocab.json with merges.txt (GPT2Tokenizer, Qwen2Tokenizer); tokenizer.model (LlamaTokenizer). "
            "transformers writes a tokenizer.json with AutoTokenizer.from_pretrained(…).save_pretrained(…)"
        )
    return None


def merge_text(merge: Any) -> tuple[str, str]:
    """A merge, as ``"a b"`` or ``["a", "b"]``."""
    left, right = merge.split(" ") if isinstance(merge, str) else merge
    return left, right


def token_text(token: Any) -> str:
    """The text of a token in any of its forms."""
    return str(token["content"] if isinstance(token, dict) else getattr(token, "content", token))


def token_of(row: Any, special: bool | None = None) -> AddedToken:
    """An added token from JSON."""
    if isinstance(row, AddedToken):
        return row
    if not isinstance(row, dict):
        return AddedToken(str(row), special=True if special is None else special)
    keys = ("lstrip", "rstrip", "single_word", "normalized", "special")
    flags = {key: bool(row[key]) for key in keys if key in row}
    return AddedToken(row["content"], **(flags if special is None else flags | {"special": special}))


def added_tokens(folder: Path, settings: dict[str, Any], whole: dict[str, Any]) -> list[tuple[int, AddedToken]]:
    """``(id, token)`` of the tokens beside the vocabulary; merges special_tokens_map.json into `settings`."""
    if "added_tokens_decoder" in settings:
        return sorted(
            ((int(i), token_of(row)) for i, row in settings["added_tokens_decoder"].items()), key=lambda r: r[0]
        )
    for key, value in table_of(folder / "special_tokens_map.json").items():
        if isinstance(value, dict) and key != "extra_special_tokens":
            value = token_of(value, True)
        elif key == "extra_special_tokens" and isinstance(value, list):
            value = [*(settings.get(key) or []), *(token_of(v, True) for v in value)]
        settings[key] = value
    names = {token_text(settings[key]) for key in NAMED if settings.get(key)}
    extra = settings.get("extra_special_tokens") or settings.get("additional_special_tokens") or []
    names |= set(map(token_text, extra))
    found = {}
    for name, number in table_of(folder / "added_tokens.json").items():
        found[int(number)] = AddedToken(name, normalized=name not in names, special=name in names)
    for row in whole.get("added_tokens", []):
        found[int(row["id"])] = token_of(row)
    return sorted(found.items())


def add_to(native: Native, added: list[tuple[int, AddedToken]], special: dict[str, str], extra: Any) -> None:
    """Add what is not there: added tokens in the order of their ids, then named and further special tokens."""
    there = {repr(token) for token in native.get_added_tokens_decoder().values()}
    tokens = [token for _, token in added if repr(token) not in there]
    names = {token.content for token in native.get_added_tokens_decoder().values()} | {t.content for t in tokens}
    for token in [*special.values(), *extra]:
        if token_text(token) not in names:
            names.add(token_text(token))
            tokens.append(token_of(token))
    native.add_tokens(tokens)


def frame(native: Native, settings: dict[str, Any], special: dict[str, str]) -> None:
    """Start and end tokens around every text, as ``add_bos_token`` and ``add_eos_token`` ask."""
    begin = special.get("bos_token") if settings.get("add_bos_token") else None
    end = special.get("eos_token") if settings.get("add_eos_token") else None
    if not begin and not end:
        return
    single = " ".join([*([begin] if begin else []), "$A:0", *([end] if end else [])])
    both = " ".join([single, *([f"{begin}:1"] if begin else []), "$B:1", *([f"{end}:1"] if end else [])])
    tokens = [(name, native.token_to_id(name)) for name in dict.fromkeys((begin, end)) if name]
    native.post_processor = processors.TemplateProcessing(single=single, pair=both, special_tokens=tokens)


def configured_template(folder: Path, settings: dict[str, Any]) -> str | dict[str, str] | None:
    """The chat template: one, or several by name."""
    files = {}
    if (folder / "chat_template.jinja").is_file():
        files["default"] = lines_of(folder / "chat_template.jinja")
    for path in sorted((folder / "additional_chat_templates").glob("*.jinja")):
        files[path.name.removesuffix(".jinja")] = lines_of(path)
    if files:
        return files["default"] if list(files) == ["default"] else files
    said = settings.get("chat_template")
    if isinstance(said, list):
        said = {
            row["name"]: row["template"] for row in said if isinstance(row, dict) and {"name", "template"} <= set(row)
        }
    return said or None


def configured_ends(folder: Path, config: dict[str, Any], native: Native, special: dict[str, str]) -> tuple[int, ...]:
    """Ids that end a text, the tokenizer's own first (it separates documents), then those of the configurations."""
    own = native.token_to_id(special["eos_token"]) if special.get("eos_token") else None
    found = [] if own is None else [own]
    for name, table in (
        ("generation_config.json", table_of(folder / "generation_config.json")),
        ("config.json", config),
    ):
        value = table.get("eos_token_id")
        rows = value if isinstance(value, list) else [] if value is None else [value]
        if not all(type(i) is int for i in rows):
            raise TokenizerError(f"{folder / name}: eos_token_id must be a token id or a list of them, not {value!r}")
        found += [i for i in rows if i >= 0]  # some write -1 for none
    return tuple(dict.fromkeys(found))


__getattr__ = renamed(__name__, {"read": "read_tokenizer"})
