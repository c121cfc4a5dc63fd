"""Text in and out of a language model: tokenizers and the generation loop."""

from fastsnn_text.generate import Sampling, generate_ids, generate_text
from fastsnn_text.tokenizers import (
    ByteTokenizer,
    HuggingFaceTokenizer,
    TextStream,
    Tokenizer,
    attach,
    load_tokenizer,
    tokenizer_of,
    train_bpe,
)

__version__ = "0.1.0"
__all__ = [
    "ByteTokenizer",
    "HuggingFaceTokenizer",
    "Sampling",
    "TextStream",
    "Tokenizer",
    "attach",
    "generate_ids",
    "generate_text",
    "load_tokenizer",
    "tokenizer_of",
    "train_bpe",
]
