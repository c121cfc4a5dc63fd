"""A prose linter for the pages a user reads: long sentences, repeated words, private words and filler.

    python tests/prose.py [FILE.md …]       one line a finding: file:line: what; exit status 1 where there is one

Code blocks, inline code, tables, headings' anchors and addresses are left out. What counts as a sentence ends with a
full stop, colon, semicolon, question or exclamation mark; a list item is a sentence of its own.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
WORDS = 40  # of a sentence, at most
PRIVATE = {
    "notch": "setting", "notches": "settings", "volts": "thresholds", "tally": "count", "tallies": "counts",
    "odds": "probabilities", "vouch": "guarantee", "vouches": "guarantees", "breathe": "pause", "shorten": "round",
    "settle": "set, calibrate", "wings": "packages", "conquer": "solve", "goodies": "extras", "whilst": "while",
}  # fmt: skip
"""Words that meant something here and nothing to a reader from outside, each with the field's word."""
FILLER = {"simply", "obviously", "basically", "blazing", "blazingly", "effortless", "effortlessly", "seamless",
          "seamlessly", "revolutionary", "magic", "magical", "delve", "leverage", "leverages", "utilise",
          "utilize", "plethora", "very"}  # fmt: skip
REPEATED = re.compile(r"\b([A-Za-z]{2,})\s+\1\b", re.IGNORECASE)
ALLOWED = {"that that", "had had"}


def pages() -> list[Path]:
    """README, docs and the READMEs of plugins."""
    found = [ROOT / "README.md", *ROOT.glob("docs/**/*.md"), *ROOT.glob("plugins/*/*/README.md")]
    return sorted([*found, *ROOT.glob("contrib/*/README.md"), *ROOT.glob(".github/*.md")])


def plain(text: str) -> str:
    """The prose alone, every line where it was."""

    def blank(match: re.Match[str]) -> str:
        return re.sub(r"[^\n]+", "", match[0])

    text = re.sub(r"^ *(```|~~~).*?^ *\1 *$", blank, text, flags=re.DOTALL | re.MULTILINE)
    text = re.sub(r"^ *\|.*$", "", text, flags=re.MULTILINE)  # tables
    text = re.sub(r"<!--.*?-->", blank, text, flags=re.DOTALL)
    text = re.sub(r"`[^`\n]*(?:\n[^`\n]*)?`", lambda m: "¤" + "\n" * m[0].count("\n"), text)
    text = re.sub(r"\]\([^)\s]*\)", "]", text)
    return re.sub(r"https?://\S+", "x", text)


def sentences(text: str) -> list[tuple[int, str]]:
    """``(line, sentence)`` of prose."""
    found, start, held = [], 1, ""
    for n, line in enumerate([*text.split("\n"), ""], 1):
        begins = re.match(r"\s*([-*+]|\d+\.|#+|>) ", line)
        if (not line.strip() or begins) and held.strip():
            found.append((start, held))
            held = ""
        if not held.strip():
            start, held = n, ""
        held += line + "\n"
        if line.lstrip().startswith("#"):
            found.append((start, held))
            held = ""
    parts: list[tuple[int, str]] = []
    for at, block in found:
        end = 0
        for cut in [*(m.end() for m in re.finditer(r"[.:;?!·][)\"”*]*(?=\s)", block)), len(block)]:
            piece = block[end:cut]
            lead = len(piece) - len(piece.lstrip())
            if piece.strip():
                parts.append((at + block[: end + lead].count("\n"), " ".join(piece.split())))
            end = cut
    return parts


def findings(text: str) -> list[tuple[int, str]]:
    """``(line, what is wrong)``."""
    prose, found = plain(text), []
    for line, sentence in sentences(prose):
        words = re.findall(r"[A-Za-z0-9À-ɏ][\w’'-]*", sentence)
        if len(words) > WORDS:
            found.append((line, f"a sentence of {len(words)} words (at most {WORDS}): {sentence[:60]}…"))
        for match in REPEATED.finditer(sentence):
            if match[0].lower() not in ALLOWED:
                found.append((line, f"a word twice: {match[0]!r}"))
        for word in {w.lower() for w in words}:
            if word in PRIVATE:
                found.append((line, f"{word!r} is a private word: {PRIVATE[word]}"))
            elif word in FILLER:
                found.append((line, f"{word!r} says nothing: leave it out"))
    return sorted(found)


def main(words: list[str]) -> int:
    """Print the findings of the named pages, or of all."""
    bad = 0
    for path in [Path(w).resolve() for w in words] or pages():
        for line, what in findings(path.read_text(encoding="utf-8")):
            print(f"{path.relative_to(ROOT) if path.is_relative_to(ROOT) else path}:{line}: {what}")
            bad += 1
    return int(bad > 0)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
