"""The harness' view of a language model: log-likelihoods of continuations and of whole texts, and generation."""

from __future__ import annotations

from typing import Any

import lm_eval.models  # noqa: F401 - fills the harness' own list, which is done only while nothing is registered
import torch
from lm_eval.api.model import TemplateLM
from lm_eval.api.registry import register_model
from torch import Tensor, nn

from fastsnn_core import bundle as bundles
from fastsnn_core.errors import FastSNNError
from fastsnn_text import Sampling, generate_text, tokenizer_of

CHUNK = 1024
"""Tokens read at once: the state goes on, so memory does not grow with the text."""

Scored = tuple[float, bool]


@register_model("fastsnn")
class FastSNNLM(TemplateLM):
    """A ``.snn`` bundle, or a built model that has its tokenizer.

    There is no longest input: texts of any length are read as one stream. `window` cuts whole texts (rolling tasks)
    into pieces read afresh, each token scored once, as models with a fixed context must.
    """

    def __init__(
        self, bundle: str | nn.Module, batch_size: int | str = 8, window: int = 0, device: str | None = None, **_: Any
    ) -> None:
        super().__init__()
        self.model: Any = bundle if isinstance(bundle, nn.Module) else bundles.load(bundle)
        self.model.eval().to(device or "cpu")
        self.tokens = tokenizer_of(self.model)
        if self.tokens.start is None and self.tokens.end is None:
            raise FastSNNError(
                "the model's tokenizer has neither a start nor an end token; the harness needs one of them"
            )
        self.batch_size = 8 if batch_size == "auto" else int(batch_size)
        self.window = int(window)

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return next(self.model.parameters()).device

    @property
    def eot_token_id(self) -> int:
        """The end token, or the start token of a tokenizer without one."""
        found = self.tokens.end if self.tokens.end is not None else self.tokens.start
        assert found is not None
        return found

    @property
    def prefix_token_id(self) -> int:
        """What stands in front of a text: the start token, else the end token."""
        return self.tokens.start if self.tokens.start is not None else self.eot_token_id

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        """Ids of a text, without special tokens."""
        return self.tokens.encode(string)

    def _loglikelihood_tokens(self, requests: list[Any], disable_tqdm: bool = False, **_: Any) -> list[Scored]:
        """Log-likelihood of each continuation after its context, and whether it is what greedy decoding says."""
        order = sorted(range(len(requests)), key=lambda i: -len(requests[i][1]) - len(requests[i][2]))
        found: dict[int, Scored] = {}
        for begin in range(0, len(order), self.batch_size):
            rows = order[begin : begin + self.batch_size]
            scores = self.score([(requests[i][1], requests[i][2]) for i in rows])
            found |= dict(zip(rows, scores))
        return [found[i] for i in range(len(requests))]

    @torch.inference_mode()
    def score(self, pairs: list[tuple[list[int], list[int]]]) -> list[Scored]:
        """One batch of (context, continuation); padding stands behind, where nothing before can see it."""
        rows = [context + continuation for context, continuation in pairs]
        length = max(map(len, rows))
        tokens = torch.tensor([row + [0] * (length - len(row)) for row in rows], device=self.device)
        counts = torch.zeros(len(rows), length - 1, dtype=torch.bool, device=self.device)
        for i, (context, row) in enumerate(zip(pairs, rows)):
            counts[i, len(context[0]) - 1 : len(row) - 1] = True
        total = torch.zeros(len(rows), dtype=torch.float64, device=self.device)
        greedy = torch.ones(len(rows), dtype=torch.bool, device=self.device)
        state = None
        for begin in range(0, length - 1, CHUNK):
            piece = slice(begin, min(length - 1, begin + CHUNK))
            logits, state = self.model(tokens[:, piece], state, return_state=True)
            targets, mine = tokens[:, 1:][:, piece], counts[:, piece]
            total += torch.where(mine, log_probability(logits, targets), 0.0).double().sum(1)
            greedy &= ((logits.argmax(-1) == targets) | ~mine).all(1)
        return list(zip(total.tolist(), greedy.tolist()))

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[float]:
        """Log-likelihood of whole texts: one stream each, or windows read afresh."""
        found = []
        for request in requests:
            ids = self.tokens.encode(request.args[0])
            size = self.window or max(1, len(ids))
            pieces = [ids[begin : begin + size] for begin in range(0, len(ids), size)]
            starts = [[self.prefix_token_id], *([piece[-1]] for piece in pieces[:-1])]
            pairs = list(zip(starts, pieces))
            batches = [pairs[b : b + self.batch_size] for b in range(0, len(pairs), self.batch_size)]
            found.append(sum(value for batch in batches for value, _ in self.score(batch)))
        return found

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        """Continuations; greedy unless the task samples."""
        return [self.generate(*request.args) for request in requests]

    def generate(self, context: str, how: dict[str, Any]) -> str:
        """One continuation, without the stop string."""
        until = how.get("until") or []
        stop = (until,) if isinstance(until, str) else tuple(until)
        temperature = float(how.get("temperature", 0.0)) if how.get("do_sample", "temperature" in how) else 0.0
        sampling = Sampling(temperature=temperature, top_p=float(how.get("top_p", 1.0)), seed=how.get("seed", 0))
        limit = int(how.get("max_gen_toks", 256))
        return "".join(generate_text(self.model, context, limit, sampling, stop=stop))


def log_probability(logits: Tensor, targets: Tensor) -> Tensor:
    """Log-probability ``[B,T]`` of the targets."""
    return logits.float().log_softmax(-1).gather(-1, targets[..., None]).squeeze(-1)
