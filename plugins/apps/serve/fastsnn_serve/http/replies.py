"""The JSON of answers: whole, in chunks, and log-probabilities in the two forms that OpenAI has for them."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterable
from typing import Any

from fastsnn_serve.engine.detokenizer import Scored
from fastsnn_serve.engine.streams import Delta, Stream
from fastsnn_serve.http.protocol import CompletionRequest
from fastsnn_text import Tokenizer, ends_of, token_bytes, token_name


class Reply:
    """One answer: the same id, time and model in every chunk."""

    def __init__(self, wanted: CompletionRequest, name: str, tokenizer: Tokenizer, fingerprint: str) -> None:
        self.wanted, self.tokenizer = wanted, tokenizer
        self.head = {
            "id": f"{'chatcmpl' if wanted.chat else 'cmpl'}-{uuid.uuid4().hex}",
            "object": "",
            "created": int(time.time()),
            "model": name,
            "system_fingerprint": fingerprint,
        }

    @property
    def kind(self) -> str:
        """The object's type."""
        return "chat.completion" if self.wanted.chat else "text_completion"

    def whole(self, choices: list[Delta], usage: dict[str, Any]) -> dict[str, Any]:
        """The whole answer; `choices` are each stream's deltas put together."""
        made = []
        for index, delta in enumerate(choices):
            said: dict[str, Any] = {"text": delta.text}
            if self.wanted.chat:
                said = {"message": {"role": "assistant", "content": delta.text, "refusal": None}}
            ending = {"logprobs": self.logprobs(delta.tokens), "finish_reason": delta.finish}
            made.append({"index": index} | said | ending)
        return self.head | {"object": self.kind, "choices": made, "usage": usage}

    def chunk(
        self, index: int, said: dict[str, Any], tokens: tuple[Scored, ...] = (), finish: str | None = None
    ) -> dict[str, Any]:
        """One chunk of a stream, for one choice."""
        logprobs = self.logprobs(tokens) if tokens else None
        return self.around([{"index": index} | said | {"logprobs": logprobs, "finish_reason": finish}])

    def around(self, choices: list[dict[str, Any]], usage: dict[str, Any] | None = None) -> dict[str, Any]:
        """A chunk with these choices; with include_usage all chunks have the field, and the last one fills it."""
        kind = self.kind + (".chunk" if self.wanted.chat else "")
        return (
            self.head | {"object": kind, "choices": choices} | ({"usage": usage} if self.wanted.include_usage else {})
        )

    def opening(self) -> list[dict[str, Any]]:
        """What a chat's choices begin with: the role, and no text."""
        start = {"delta": {"role": "assistant", "content": ""}}
        return [self.chunk(index, start) for index in range(self.wanted.n)] if self.wanted.chat else []

    def chunks(self, index: int, delta: Delta) -> list[dict[str, Any]]:
        """The chunks of one delta: its text, then its end."""
        out: list[dict[str, Any]] = []
        if delta.text or delta.tokens:
            said = {"delta": {"content": delta.text}} if self.wanted.chat else {"text": delta.text}
            out.append(self.chunk(index, said, delta.tokens))
        if delta.finish is not None:
            out.append(self.chunk(index, {"delta": {}} if self.wanted.chat else {"text": ""}, (), delta.finish))
        return out

    def logprobs(self, tokens: Iterable[Scored]) -> dict[str, Any] | None:
        """In the form of the endpoint, or None where nobody asked."""
        if self.wanted.params.logprobs is None:
            return None
        return self.chat_logprobs(tokens) if self.wanted.chat else self.completion_logprobs(tokens)

    def completion_logprobs(self, tokens: Iterable[Scored]) -> dict[str, Any]:
        """Parallel lists; the token is among its alternatives; another with its name is ``token_id:N``."""
        found = list(tokens)
        top: list[dict[str, float] | None] = []
        for scored in found:
            names: dict[str, float] = {}
            if scored.logprob is not None:
                own = token_name(self.tokenizer, scored.token)
                for token, logprob in scored.top:
                    name = token_name(self.tokenizer, token)
                    taken = name in names or (name == own and token != scored.token)
                    names[f"token_id:{token}" if taken else name] = logprob
                names.setdefault(own, scored.logprob)
            top.append(names or None)
        return {
            "tokens": [token_name(self.tokenizer, s.token) for s in found],
            "token_logprobs": [s.logprob for s in found],
            "top_logprobs": top,
            "text_offset": [s.offset for s in found],
        }

    def chat_logprobs(self, tokens: Iterable[Scored]) -> dict[str, Any]:
        """A list of objects, the end token left out: their texts make up the content."""

        def one(token: int, logprob: float | None) -> dict[str, Any]:
            name, raw = token_name(self.tokenizer, token), token_bytes(self.tokenizer, token)
            return {"token": name, "logprob": logprob, "bytes": None if raw is None else list(raw)}

        ends = ends_of(self.tokenizer)
        content = [
            one(s.token, s.logprob) | {"top_logprobs": [one(*pair) for pair in s.top]}
            for s in tokens
            if s.token not in ends
        ]
        return {"content": content, "refusal": None}


def joined(deltas: list[Delta]) -> Delta:
    """A stream's deltas as one."""
    return Delta("".join(p.text for p in deltas), tuple(t for p in deltas for t in p.tokens), deltas[-1].finish)


def usage(streams: list[Stream]) -> dict[str, Any]:
    """Tokens read (each prompt once), from the cache, and generated (the end token is not counted)."""
    prompts = {id(s.prompt): s.prompt for s in streams}.values()
    read, made = sum(len(p.ids) for p in prompts), sum(len(s.ids) for s in streams)
    return {
        "prompt_tokens": read,
        "completion_tokens": made,
        "total_tokens": read + made,
        "prompt_tokens_details": {"cached_tokens": sum(p.cached for p in prompts)},
    }
