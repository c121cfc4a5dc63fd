"""Strict validation of a JSON body: types, ranges and unknown fields; errors name the field."""

from __future__ import annotations

import difflib
import json
from typing import Any

from fastsnn_core.errors import FastSNNError

LONGEST = 2**31 - 1


class Invalid(Exception):
    """An invalid request; becomes an OpenAI error object with this HTTP status."""

    def __init__(
        self, message: str, param: str | None = None, code: str | None = None, status: int = 400,
        type: str = "invalid_request_error",
    ) -> None:  # fmt: skip
        super().__init__(message)
        self.message, self.param, self.code, self.status, self.type = message, param, code, status, type

    def body(self) -> dict[str, Any]:
        """``{"error": {"message", "type", "param", "code"}}``."""
        return {"error": {"message": self.message, "type": self.type, "param": self.param, "code": self.code}}


def parse(raw: bytes) -> Any:
    """Parse JSON; NaN and infinities, which are not JSON, are refused."""

    def constant(name: str) -> Any:
        raise FastSNNError(f"{name} is not JSON")

    try:
        return json.loads(raw.decode("utf-8"), parse_constant=constant)
    except (ValueError, RecursionError) as error:
        raise Invalid(f"the body is not JSON: {error}", code="invalid_json") from None


def dumps(value: Any) -> bytes:
    """Compact JSON; a lone surrogate, which UTF-8 cannot hold, stays the escape it came as."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "backslashreplace")


def excerpt(value: Any) -> str:
    """A value for an error message."""
    try:
        text = json.dumps(value)
    except RecursionError:
        text = f"a deeply nested {type(value).__name__}"
    return text if len(text) <= 60 else f"{text[:57]}..."


def is_int(value: Any) -> bool:
    """An integer, which ``true`` is not."""
    return isinstance(value, int) and not isinstance(value, bool)


def is_utf8(value: Any) -> bool:
    """A string that has a UTF-8 form."""
    if not isinstance(value, str):
        return False
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


class Fields:
    """The fields of one object, read one by one; null counts as absent. `done` refuses the remaining ones."""

    def __init__(self, body: Any, where: str = "") -> None:
        self.where = where
        if not isinstance(body, dict):
            raise Invalid(f"{where or 'the body'}: expected an object, got {excerpt(body)}", where or None)
        self.left, self.known = dict(body), list[str]()

    def take(self, name: str) -> Any:
        """The raw value, or None."""
        self.known.append(name)
        return self.left.pop(name, None)

    def path(self, name: str) -> str:
        """The field's full name."""
        return f"{self.where}.{name}" if self.where else name

    def wrong(self, name: str, wanted: str, value: Any) -> Invalid:
        """What to raise."""
        return Invalid(f"{self.path(name)}: expected {wanted}, got {excerpt(value)}", self.path(name), "invalid_value")

    def integer(self, name: str, default: Any, low: int, high: int = LONGEST) -> Any:
        """An integer from `low` to `high`."""
        value = self.take(name)
        if value is None:
            return default
        if not is_int(value) or not low <= value <= high:
            raise self.wrong(name, f"an integer from {low} to {high}", value)
        return value

    def number(self, name: str, default: float, low: float, high: float) -> float:
        """A finite number from `low` to `high`."""
        value = self.take(name)
        if value is None:
            return default
        if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:  # no NaN passes
            raise self.wrong(name, f"a number from {low:g} to {high:g}", value)
        return float(value)

    def flag(self, name: str, default: bool = False) -> bool:
        """true or false."""
        value = self.take(name)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise self.wrong(name, "true or false", value)
        return value

    def text(self, name: str) -> str | None:
        """A string, or None."""
        value = self.take(name)
        if value is not None and not is_utf8(value):
            raise self.wrong(name, "a string of valid Unicode", value)
        return value

    def done(self, harmless: dict[str, tuple[Any, ...]]) -> None:
        """Refuse the remaining fields: unknown ones, and unsupported ones unless they have one of their `harmless`
        values.
        """
        for name, value in self.left.items():
            if value is None and name in harmless:
                continue
            if name not in harmless:
                close = difflib.get_close_matches(name, [*self.known, *harmless], 1)
                help = f"; did you mean {close[0]}?" if close else ""
                raise Invalid(f"{self.path(name)}: no such field here{help}", self.path(name), "unknown_parameter")
            if not any(same_json(value, ok) for ok in harmless[name]):
                only = " or ".join(map(excerpt, harmless[name]))
                only = f"; only {only} is accepted" if only else ""
                raise Invalid(f"{self.path(name)} is not supported{only}", self.path(name), "unsupported_parameter")


def same_json(value: Any, other: Any) -> bool:
    """Equal as JSON: 0 is 0.0, but no false."""
    return value == other and isinstance(value, bool) == isinstance(other, bool)
