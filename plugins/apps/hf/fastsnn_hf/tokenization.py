"""A bundle's tokenizer as one of transformers: the same ids, special tokens and chat template."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from fastsnn_core import bundle as bundles
from fastsnn_core.errors import FastSNNError
from fastsnn_hf.configuration import bundle_at
from fastsnn_text import hf_directory

END = "<|endoftext|>"


class FastSNNTokenizer(PreTrainedTokenizerFast):
    """`from_pretrained` of a bundle; anything else is read as transformers does."""

    @classmethod
    def from_pretrained(cls, name: Any, *args: Any, **kwargs: Any) -> Any:  # type: ignore[override]
        """The tokenizer of the bundle at `name`; further keywords are those of ``PreTrainedTokenizerFast``."""
        path = bundle_at(name)
        if path is None:
            return super().from_pretrained(name, *args, **kwargs)
        mine = {k: v for k, v in kwargs.items() if not k.startswith("_") and k not in LOADING}
        return of_bundle(path, **mine)


LOADING = {"cache_dir", "force_download", "local_files_only", "token", "revision", "trust_remote_code", "subfolder",
           "proxies", "use_fast", "config", "gguf_file"}  # fmt: skip


def of_bundle(path: Path, **options: Any) -> PreTrainedTokenizerFast:
    """The tokenizer of a bundle: of its tokenizer.json, or of bytes."""
    table, meta = bundles.verify(path)
    says = meta.get("tokenizer", {})
    kind = says.get("kind", "byte")
    if kind == "byte":
        native, special = of_bytes(), dict[str, Any](eos_token=END)
        if table["model"]["vocab_size"] < 257:
            raise FastSNNError(f"{path} has no tokenizer, and its vocabulary is too small for bytes")
    elif kind == "huggingface":
        text = (path / bundles.TOKENIZER).read_text(encoding="utf-8")
        native, special = Tokenizer.from_str(text), dict[str, Any](says.get("special_tokens") or {})
        ends = says.get("ends") or [says.get("end")]
        for key, number in (("bos_token", says.get("start")), ("eos_token", ends[0])):
            if number is not None and not special.get(key):
                special[key] = native.id_to_token(number)
        start = None if says.get("start") is None else native.id_to_token(says["start"])
        if start and native.encode("a").ids[0] != says["start"]:  # the bundle puts it there, the file does not
            hf_directory.frame(native, {"add_bos_token": True}, {"bos_token": start})
    else:
        raise FastSNNError(
            f"{path} has a tokenizer of kind {kind!r}, which transformers cannot read here: {says.get('reason', '')} "
            "possible: byte, huggingface (a tokenizer.json)"
        )
    special.setdefault("pad_token", special.get("eos_token") or special.get("bos_token") or "")
    special = {k: v for k, v in special.items() if isinstance(v, str) and v and k.endswith("_token")}
    made = FastSNNTokenizer(tokenizer_object=native, **({"padding_side": "left"} | special | options))
    if says.get("chat_template") and "chat_template" not in options:
        made.chat_template = says["chat_template"]
    return made


def of_bytes() -> Tokenizer:
    """Bytes 0 … 255 as ids, 256 for the end of a document."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet(), key=lambda letter: byte_of()[letter])
    native = Tokenizer(models.BPE({letter: i for i, letter in enumerate(letters)}, []))
    native.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    native.decoder = decoders.ByteLevel()
    native.add_special_tokens([AddedToken(END, special=True, normalized=False)])
    return native


def byte_of() -> dict[str, int]:
    """Which byte a letter of byte-level BPE stands for (GPT-2's table)."""
    plain = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [b for b in range(256) if b not in plain]
    return {chr(b): b for b in plain} | {chr(256 + i): b for i, b in enumerate(others)}
