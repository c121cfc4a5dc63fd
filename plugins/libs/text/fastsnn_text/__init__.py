"""Text in and out of a language model: tokenizers, chat templates and the generation loop."""

from fastsnn_text.chat_template import ChatTemplate, TemplateError, template_of
from fastsnn_text.generate import Sampling, generate_after, generate_ids, generate_text
from fastsnn_text.text_stream import TextStream, token_bytes, token_name
from fastsnn_text.tokenizer_recipes import TokenizerError
from fastsnn_text.tokenizers import (
    ByteTokenizer,
    HuggingFaceTokenizer,
    Tokenizer,
    attach,
    attach_none,
    ends_of,
    load_tokenizer,
    prompt_ids,
    tokenizer_of,
    train_bpe,
)

__version__ = "0.1.0"
__all__ = [
    "ByteTokenizer",
    "ChatTemplate",
    "HuggingFaceTokenizer",
    "Sampling",
    "TemplateError",
    "TextStream",
    "Tokenizer",
    "TokenizerError",
    "attach",
    "attach_none",
    "ends_of",
    "generate_after",
    "generate_ids",
    "generate_text",
    "load_tokenizer",
    "prompt_ids",
    "template_of",
    "token_bytes",
    "token_name",
    "tokenizer_of",
    "train_bpe",
]
