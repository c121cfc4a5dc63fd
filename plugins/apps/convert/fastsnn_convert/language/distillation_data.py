"""Tokens to calibrate and heal on: from a text file, from texts, or written by the model itself (data-free)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import attrs
import torch
from torch import Tensor, nn

from fastsnn_conversion.context import ConversionError
from fastsnn_text import tokenizer_of


def tokens_of(source: Any, model: Any, what: str = "calibration") -> Tensor:
    """Token ids ``[N]`` of a text file (str or path), a text, a sequence of texts, or of ids ``[N]`` or ``[N,T]``.

    A string is a path if a file lies there, a text where it has white space and no file could be meant.
    """
    if isinstance(source, Tensor):
        ids = source.flatten().long()
        size = int(model.spec.vocab_size)
        if len(ids) and not 0 <= int(ids.min()) <= int(ids.max()) < size:
            raise ConversionError(f"{what}: token ids must be in 0 … {size - 1}")
        return ids
    tokenizer = tokenizer_of(model)
    if isinstance(source, str) and is_text(source):
        texts: Sequence[str] = [source]
    elif isinstance(source, str | Path):
        check_text(source, what)
        try:
            texts = [Path(source).read_text(encoding="utf-8")]
        except UnicodeDecodeError as error:
            raise ConversionError(f"{what}: {source} is no text (UTF-8): {error}") from None
    else:
        texts = source
    found: list[int] = []
    for text in texts:
        found += [*tokenizer.encode(text), *([tokenizer.end] if len(texts) > 1 and tokenizer.end is not None else [])]
    return torch.tensor(found, dtype=torch.long)


def is_text(source: str) -> bool:
    """Is a string a text rather than the name of a file? It is where no file can be meant."""
    try:
        return not Path(source).is_file() and ("\n" in source or len(source) > 255 or source.count(" ") > 3)
    except (OSError, ValueError):  # too long, or with a null byte
        return True


def check_text(source: Any, what: str) -> None:
    """Refuse a text that cannot be read, before any work."""
    if source is None or isinstance(source, Tensor) or (isinstance(source, str) and is_text(source)):
        return
    if isinstance(source, str | Path):
        if not Path(source).is_file():
            raise ConversionError(
                f"{what}: {source} is no file; give a text file, a text, a list of texts, or token ids"
            )
    elif not isinstance(source, Sequence) or not all(isinstance(text, str) for text in source) or not source:
        raise ConversionError(
            f"{what}: give a text file, a text, a list of texts, or token ids, not {kind_in_words(source)}"
        )


def kind_in_words(source: Any) -> str:
    """How a value of a wrong kind is called in an error."""
    return f"{type(source).__name__} {str(source)[:40]!r}"


def windows(ids: Tensor, length: int, what: str = "calibration") -> Tensor:
    """``[N, length]``: pieces that do not overlap; a text shorter than one piece is one shorter piece."""
    if len(ids) < 2:
        raise ConversionError(f"{what}: the text has {len(ids)} tokens; at least 2 are needed")
    count = len(ids) // length
    return ids[: count * length].view(count, length) if count else ids[None]


@torch.no_grad()
def sample_text(
    model: Any,
    streams: int,
    length: int,
    *,
    seed: int = 0,
    temperature: float = 1.0,
    begin: Tensor | None = None,
    step: Callable[[], Any] | None = None,
) -> Tensor:
    """Text that the model writes by itself ``[streams, length]``: sampled from its start token on, in parallel streams.

    With `begin` ``[streams, n]`` it goes on from these tokens, which are part of the text. After its end token a stream
    begins anew with the start token; where the tokenizer has none it begins with the end token and goes on behind it. A
    model without either begins with random tokens.
    """
    size = int(model.spec.vocab_size)
    tokenizer: Any = tokenizer_of(model)
    start = tokenizer.start if tokenizer.start is not None else tokenizer.end
    generator = torch.Generator().manual_seed(seed)
    if begin is None:
        random = torch.randint(0, size, (streams, 1), generator=generator)
        begin = random if start is None else torch.full((streams, 1), start)
    device = next(model.parameters()).device
    token, rows, state = begin[:, :length].to(device), [begin[:, :length]], None
    for _ in range(length - token.shape[1]):
        logits, state = model(token, state, return_state=True, last=True)
        probs = (logits[:, -1].float() / temperature).softmax(-1).cpu()
        drawn = torch.multinomial(probs, 1, generator=generator)
        if tokenizer.end is not None and tokenizer.start is not None:
            drawn = torch.where(rows[-1][:, -1:] == tokenizer.end, tokenizer.start, drawn)
        rows.append(drawn)
        token = drawn.to(device)
        if step is not None:
            step()
    return torch.cat(rows, 1)


@attrs.define(eq=False)
class SelfGeneratedData:
    """Endless distillation data: sampled from the teacher in chunks, each read several times before the next one.

    A chunk is `CHUNK` tokens in streams of `length`, and `MORE` to each. It is read `READ` times, in random
    pieces, then the next one is sampled. Where there is text, streams go on from `BEGIN` tokens of random places in it,
    so they are not only beginnings of stories. What step s reads follows from (seed, s) alone: a run that was cut off
    goes on with the same text.
    """

    teacher: nn.Module
    length: int
    text: Tensor | None = None
    temperature: float = 1.0
    chunk: tuple[int, int] = (-1, -1)
    tokens: Tensor | None = None

    CHUNK = 2**14
    READ = 4
    BEGIN = 12
    MORE = 64

    @property
    def streams(self) -> int:
        """Streams that are written at once."""
        return max(1, self.CHUNK // self.length)

    def pieces(self, step: int, count: int, seed: int) -> Tensor:
        """``[count, length]`` of step `step`."""
        number = step * count * self.length // (self.READ * self.streams * (self.length + self.MORE))
        if self.chunk != (seed, number):
            self.chunk, self.tokens = (seed, number), self.written(seed * 1_000_003 + number)
        assert self.tokens is not None
        generator = torch.Generator().manual_seed((seed + 7) * 1_000_003 + step)
        rows = torch.randint(0, self.streams, (count, 1), generator=generator)
        places = torch.randint(0, self.tokens.shape[1] - self.length + 1, (count, 1), generator=generator)
        return self.tokens[rows, places + torch.arange(self.length)]

    def written(self, seed: int) -> Tensor:
        """A chunk."""
        begin = None
        if self.text is not None and len(self.text) > self.BEGIN:
            generator = torch.Generator().manual_seed(seed)
            places = torch.randint(0, len(self.text) - self.BEGIN + 1, (self.streams, 1), generator=generator)
            begin = self.text[places + torch.arange(self.BEGIN)]
        return sample_text(
            self.teacher, self.streams, self.length + self.MORE, seed=seed, begin=begin, temperature=self.temperature
        )
