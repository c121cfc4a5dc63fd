"""Endpoints beside completions and chats: tokenizing, embeddings, sessions, slots."""

from __future__ import annotations

import base64
import functools
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response

from fastsnn_serve.api.responses import embedding_request
from fastsnn_serve.api.tools import read_tools
from fastsnn_serve.engine import Engine
from fastsnn_serve.engine.embedding import embed
from fastsnn_serve.engine.sessions import Sessions
from fastsnn_serve.http import protocol
from fastsnn_serve.http.protocol import RequestContext
from fastsnn_serve.http.request_task import Json, asked
from fastsnn_serve.http.strict_json import Fields, Invalid, is_int
from fastsnn_text import prompt_ids
from fastsnn_text.chat_template import special_tokens


class Endpoints:
    """What `fastsnn_serve.http.routes.Server` answers besides OpenAI's two main endpoints."""

    engine: Engine
    context: RequestContext
    sessions: Sessions | None

    async def body(self, request: Request) -> Any:
        """The parsed body of a request."""
        raise NotImplementedError

    # -- tokenizing, in the form that vLLM gave it and lm-eval asks for ------------------------------------------

    async def tokenize(self, request: Request) -> Response:
        """POST /tokenize: prompt (or messages; llama.cpp's `content`) to tokens."""
        fields = Fields(await self.body(request))
        protocol.check_model(fields, self.context)
        add = fields.flag("add_special_tokens", True)
        ids = await run_in_threadpool(self.ids_of, fields, add)
        fields.done({"add_generation_prompt": (True,), "return_token_strs": (False,)})
        bounds = (self.engine.sizes.room(self.engine.state_bytes), self.engine.max_model_len)
        longest = min((bound for bound in bounds if bound is not None), default=None)
        return Json({"tokens": ids, "count": len(ids), "max_model_len": longest})

    def ids_of(self, fields: Fields, add: bool = True) -> list[int]:
        """The token ids of ``prompt`` (or ``content``), or of ``messages`` and what belongs to them."""
        text = fields.text("prompt")
        text = fields.text("content") if text is None else text
        if (fields.left.get("messages") is None) == (text is None):
            raise Invalid("give either prompt or messages", "prompt", "missing_required_parameter")
        if text is None:
            return protocol.chat_ids(fields, self.context, read_tools(fields))
        fields.take("messages")
        encode = functools.partial(prompt_ids, self.context.tokenizer) if add else self.context.tokenizer.encode
        return encode(text)

    async def apply_template(self, request: Request) -> Response:
        """POST /apply-template: messages to the prompt's text."""
        fields = Fields(await self.body(request))
        protocol.check_model(fields, self.context)
        text = await run_in_threadpool(lambda: protocol.chat_text(fields, self.context, read_tools(fields)))
        fields.done({})
        return Json({"prompt": text})

    async def detokenize(self, request: Request) -> Response:
        """POST /detokenize: tokens to text."""
        fields = Fields(await self.body(request))
        protocol.check_model(fields, self.context)
        tokens = fields.take("tokens")
        fields.done({})
        if not isinstance(tokens, list) or not all(map(is_int, tokens)):
            raise fields.wrong("tokens", "a list of token ids", tokens)
        protocol.in_vocabulary(tokens, self.context, "tokens")
        return Json({"prompt": await run_in_threadpool(self.context.tokenizer.decode, tokens)})

    async def tokenizer_info(self, request: Request) -> Response:
        """GET /tokenizer_info: special tokens and chat template."""
        tokenizer, named = self.context.tokenizer, special_tokens(self.context.tokenizer)
        return Json({
            "tokenizer_class": type(tokenizer).__name__,
            "vocab_size": tokenizer.vocab_size,
            "bos_token": named.get("bos_token") or None,
            "eos_token": named.get("eos_token") or None,
            "pad_token": named.get("pad_token") or None,
            "chat_template": self.context.template.source,
        })  # fmt: skip

    # -- embeddings ----------------------------------------------------------------------------------------------

    async def embeddings(self, request: Request) -> Response:
        """POST /v1/embeddings: the mean over tokens of the last hidden state, after the final norm."""
        ids, form = await run_in_threadpool(embedding_request, await self.body(request), self.context)
        vectors = await asked(request, self.engine, functools.partial(embed, ids))
        if vectors is None:
            return Response(status_code=499)
        data = []
        for index, vector in enumerate(vectors):
            raw = vector.numpy().astype("<f4")
            value = base64.b64encode(raw.tobytes()).decode() if form == "base64" else raw.tolist()
            data.append({"object": "embedding", "index": index, "embedding": value})
        read = sum(map(len, ids))
        used = {"prompt_tokens": read, "total_tokens": read}
        return Json({"object": "list", "data": data, "model": self.context.name, "usage": used})

    # -- sessions ------------------------------------------------------------------------------------------------

    def folder(self) -> Sessions:
        """The sessions, where there is a folder for them."""
        if self.sessions is None:
            says = "this server keeps no sessions: start it with --sessions FOLDER"
            raise Invalid(says, code="unsupported_parameter", status=400)
        return self.sessions

    async def list_sessions(self, request: Request) -> Response:
        """GET /sessions: the names of what was saved."""
        return Json({"object": "list", "data": [{"name": name} for name in self.folder().names()]})

    async def save_session(self, request: Request) -> Response:
        """POST /sessions/save: the state after a prompt, or a conversation, into a file."""
        sessions, fields = self.folder(), Fields(await self.body(request))
        name = self.session_name(fields)
        ids = await run_in_threadpool(self.ids_of, fields)
        fields.done({})
        if not ids:
            raise Invalid("the prompt is empty; give at least one token", "prompt", "invalid_value")
        protocol.in_vocabulary(ids, self.context, "prompt")
        if self.engine.max_model_len is not None and len(ids) > self.engine.max_model_len:
            says = f"{len(ids)} tokens; this model was made for {self.engine.max_model_len}"
            raise Invalid(says, "prompt", "context_length_exceeded")
        found = await asked(request, self.engine, lambda runner: sessions.save(name, ids, runner))
        return Response(status_code=499) if found is None else Json(found)

    async def restore_session(self, request: Request) -> Response:
        """POST /sessions/restore: a file's state into the prefix cache."""
        sessions, fields = self.folder(), Fields(await self.body(request))
        name = self.session_name(fields)
        fields.done({})
        found = await asked(request, self.engine, lambda runner: sessions.restore(name, runner))
        return Response(status_code=499) if found is None else Json(found)

    def session_name(self, fields: Fields) -> str:
        """The field `name`; the model may be named, too."""
        protocol.check_model(fields, self.context)
        if (name := fields.text("name")) is None:
            raise fields.wrong("name", "the session's name", None)
        return name

    # -- slots ---------------------------------------------------------------------------------------------------

    async def slots(self, request: Request) -> Response:
        """GET /slots: what runs now; no texts."""
        running = tuple(self.engine.running)
        rows: list[dict[str, Any]] = [
            {
                "id": i, "is_processing": True, "state": "decoding" if stream.begun else "reading",
                "prompt_tokens": len(stream.prompt.ids), "read_tokens": stream.prompt.at,
                "cached_tokens": stream.prompt.cached, "generated_tokens": len(stream.ids),
                "max_tokens": stream.params.max_tokens,
            }
            for i, stream in enumerate(running)
        ]  # fmt: skip
        rows += [{"id": i, "is_processing": False, "state": "idle"} for i in range(len(rows), self.engine.max_streams)]
        return Json(rows)
