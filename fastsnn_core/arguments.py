"""Arguments of the command line: a parser that suggests what may be meant. Types: `fastsnn_console.arguments`."""

from __future__ import annotations

import argparse
import difflib
from collections.abc import Sequence
from typing import Any, NoReturn

from fastsnn_core.errors import UserError, did_you_mean
from fastsnn_core.moved import former


class Parser(argparse.ArgumentParser):
    """The parser of one verb: options may not be abbreviated, and an unknown one says which is meant."""

    def __init__(self, verb: str, description: str | None, **settings: Any) -> None:
        text = " ".join((description or "").split()).replace("%", "%%")
        super().__init__(prog=f"fastsnn {verb}", description=text, allow_abbrev=False, **settings)

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        """As `argparse` does, with a suggestion for what is not recognised."""
        found, rest = self.parse_known_args(args, namespace)
        if rest:
            options = [o for action in self._actions for o in action.option_strings]
            says = []
            for word in rest:
                close = difflib.get_close_matches(word.partition("=")[0], options, 1) if word.startswith("-") else []
                says.append(word + (f" (did you mean {close[0]}?)" if close else ""))
            self.error(f"unrecognized arguments: {' '.join(says)}")
        return found

    def error(self, message: str) -> NoReturn:
        """Usage and one line; exit status 2."""
        message = message.encode("utf-8", "backslashreplace").decode("utf-8")  # bytes of a name that are no UTF-8
        self.exit(2, f"{self.format_usage()}{self.prog}: {message}\n")


def choice(value: str, known: Sequence[str], option: str) -> str:
    """`value` if it is `known`, else a `UserError` with a suggestion."""
    if value in known:
        return value
    raise UserError(f"{option}: no {value!r}; {did_you_mean(value, known)}")


__getattr__ = former(__name__)  # what moved into fastsnn_console
