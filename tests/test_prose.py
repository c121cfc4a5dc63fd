"""Pages read as one expects: no endless sentences, no word twice, no private words, no filler (prose.py says which)."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from prose import WORDS, findings, pages, sentences


@pytest.mark.parametrize("path", pages(), ids=lambda p: "/".join(p.parts[-3:]))
def test_a_page_reads_as_one_expects(path):
    assert findings(path.read_text(encoding="utf-8")) == []


def test_the_linter_reads_the_pages():
    names = {p.name for p in pages()}
    assert {"README.md", "convert.md", "glossary.md", "snntorch.md", "CONTRIBUTING.md"} <= names
    assert len(pages()) > 80


LONG = " ".join(["word", "and"] * (WORDS // 2) + ["end"])


@pytest.mark.parametrize(
    ("text", "line", "says"),
    [
        (f"# Title\n\nShort one. {LONG.capitalize()}.\n", 3, "a sentence of 41 words"),
        ("First line of\na text that says the\nthe same twice.\n", 1, "a word twice: 'the the'"),
        ("- one item\n- an item with a notch in it\n", 2, "'notch' is a private word: setting"),
        ("It is simply fast.\n", 1, "'simply' says nothing"),
    ],
)
def test_a_planted_fault_is_found(text, line, says):
    ((at, what),) = findings(text)
    assert (at, what.startswith(says)) == (line, True), what


@pytest.mark.parametrize(
    "text",
    [
        f"```python\n# {LONG}\n```\n",  # code
        f"| {LONG} | the the |\n",  # a table
        "Take `the the` as it is, and the [site](https://the.the/the/the).\n",
        "\n".join(f"- {LONG[:60]}" for _ in range(5)),  # items are sentences of their own
        f"{LONG[:150]}:\n{LONG[:150]}.\n",
    ],
)
def test_what_is_no_prose_is_left_alone(text):
    wrong = [what for _, what in findings(text) if "word twice" not in what]
    assert wrong == []
    assert "the the" not in str(findings(text))


def test_a_sentence_ends_at_its_full_stop_and_not_inside_a_number():
    assert sentences("At 0.5 of it. Then\nmore: yes.\n") == [(1, "At 0.5 of it."), (1, "Then more:"), (2, "yes.")]
