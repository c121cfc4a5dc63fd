"""The JSON of responses, complete or in chunks, with log-probabilities in OpenAI's two formats."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterable
from typing import Any

from fastsnn_serve.api.tools import Watch, calls_in
from fastsnn_serve.engine.detokenizer import Scored
from fastsnn_serve.engine.streams import CompletionDelta, Stream
from fastsnn_serve.http.protocol import CompletionRequest
from fastsnn_serve.http.strict_json import dumps
from fastsnn_text import Tokenizer, ends_of, token_bytes, token_name


class Reply:
    """One response: all chunks have the same id, time and model."""

    def __init__(self, wanted: CompletionRequest, name: str, tokenizer: Tokenizer, fingerprint: str) -> None:
        self.wanted, self.tokenizer = wanted, tokenizer
        self.watches: dict[int, Watch] = {}
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

    def whole(self, choices: list[CompletionDelta], usage: dict[str, Any]) -> dict[str, Any]:
        """The complete response; each of `choices` is the joined deltas of a stream."""
        made = []
        for index, delta in enumerate(choices):
            said: dict[str, Any] = {"text": delta.text}
            finish = delta.finish
            if self.wanted.chat:
                text, calls = (delta.text, []) if self.wanted.tools is None else calls_in(delta.text, self.wanted.tools)
                said = {"message": {"role": "assistant", "content": text, "refusal": None}}
                if calls:
                    said["message"] |= {"content": text or None, "tool_calls": calls}
                    finish = self.finish(finish)
            ending = {"logprobs": self.logprobs(delta.tokens), "finish_reason": finish}
            made.append({"index": index} | said | ending)
        return self.head | {"object": self.kind, "choices": made, "usage": usage}

    def finish(self, reason: str | None) -> str | None:
        """The finish reason of a response with tool calls; "stop" if the request named the function, as in OpenAI's
        API.
        """
        named = self.wanted.tools is not None and self.wanted.tools.named is not None
        return reason if named or reason == "length" else "tool_calls"

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
        """The first delta of a chat choice: the role, and no text."""
        start = {"delta": {"role": "assistant", "content": ""}}
        return [self.chunk(index, start) for index in range(self.wanted.n)] if self.wanted.chat else []

    def chunks(self, index: int, delta: CompletionDelta) -> list[dict[str, Any]]:
        """The chunks of one delta: its text, then its calls and its end."""
        out: list[dict[str, Any]] = []
        text, finish, calls = delta.text, delta.finish, list[dict[str, Any]]()
        if self.wanted.tools is not None:
            watch = self.watches.setdefault(index, Watch(self.wanted.tools))
            text = watch.push(text)
            if finish is not None:
                rest, calls = watch.close()
                text, finish = text + rest, self.finish(finish) if calls else finish
        if text or delta.tokens or delta.spikes is not None:
            said = {"delta": {"content": text}} if self.wanted.chat else {"text": text}
            out.append(self.chunk(index, said, delta.tokens))
            if delta.spikes is not None:
                out[-1]["choices"][0]["spikes"] = delta.spikes.json()
        if calls:
            listed = [{"index": i} | one for i, one in enumerate(calls)]
            out.append(self.chunk(index, {"delta": {"tool_calls": listed}}))
        if finish is not None:
            out.append(self.chunk(index, {"delta": {}} if self.wanted.chat else {"text": ""}, (), finish))
        return out

    def closing(self, usage: dict[str, Any]) -> list[dict[str, Any]]:
        """The last chunk: the usage, if it was requested."""
        return [self.around([], usage)] if self.wanted.include_usage else []

    last = b"data: [DONE]\n\n"  # what a stream that went well ends with

    def event(self, data: dict[str, Any]) -> bytes:
        """A server-sent event."""
        return b"data: " + dumps(data) + b"\n\n"

    def failed(self, error: dict[str, Any]) -> dict[str, Any]:
        """The event of an error; ``{"error": …}``."""
        return error

    def logprobs(self, tokens: Iterable[Scored]) -> dict[str, Any] | None:
        """In the format of the endpoint; None if not requested."""
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


def joined(deltas: list[CompletionDelta]) -> CompletionDelta:
    """A stream's deltas as one."""
    return CompletionDelta(
        "".join(p.text for p in deltas), tuple(t for p in deltas for t in p.tokens), deltas[-1].finish
    )


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


def best(wanted: CompletionRequest, said: list[CompletionDelta], streams: list[Stream]) -> list[CompletionDelta]:
    """For each prompt, the `n` of its `best_of` completions with the highest mean log-probability, best first."""
    if wanted.best_of == wanted.n:
        return said
    out = []
    for begin in range(0, len(streams), wanted.best_of):
        rows = range(begin, begin + wanted.best_of)
        order = sorted(rows, key=lambda i: -streams[i].logprob / max(1, len(streams[i].ids)))
        out += [said[i] for i in order[: wanted.n]]
    return out
