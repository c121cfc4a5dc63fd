"""Rule: embeddings are kept."""

from __future__ import annotations

from typing import Any

from attrs import frozen
from torch import nn
from torch.nn import functional as F

from fastsnn_conversion.context import Context, Replacement
from fastsnn_core import Rule, hookimpl

__version__ = "0.1.0"

LOOKED_UP = "one token, one event: a row is looked up; the projection behind it spikes"


@frozen
class Embedding(Rule):
    """E[token]: a token is one spike in a one-hot vector, and looking its row up is that spike's event. Kept."""

    name = "embedding"
    covers = ("torch.nn.Embedding", "torch.nn.EmbeddingBag")

    def matches(self, module: Any) -> bool:
        """Whether this rule speaks for `module`."""
        return type(module) in (nn.Embedding, nn.EmbeddingBag)

    def convert(self, module: Any, context: Context) -> Replacement:
        """The table itself."""
        return context.keep(module, LOOKED_UP)

    def lift(self, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> str | None:
        """A call that stays a call, and why."""
        return LOOKED_UP if function in (F.embedding, F.embedding_bag) else None


@hookimpl
def fastsnn_rules() -> list[type[Rule]]:
    """This plugin's rules."""
    return [Embedding]
