"""Chat templates against transformers' apply_chat_template: the same text, or an error in both."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fastsnn_text import ByteTokenizer, ChatTemplate, TemplateError, load_tokenizer, train_bpe

CHATML = """{%- for message in messages %}
    {{- '<|im_start|>' + message.role + '\\n' }}
    {%- generation %}{{- message.content }}{%- endgeneration %}
    {{- eos_token + '\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}"""
TOOLS = """\
{% if tools %}TOOLS {{ tools | tojson(indent=2) }}{% endif %}
{%- for d in documents or [] %}[{{ d.title }}: {{ d.text }}]{% endfor %}
{% for m in messages %}
  {% if m.role == 'system' %}{% continue %}{% endif %}
  {% if loop.index0 > 4 %}{% break %}{% endif %}
{{ bos_token }}{{ m.role | upper }}: {% if m.content is defined and m.content %}{{ m.content | trim }}{% endif %}
  {% for c in m.tool_calls or [] %}CALL {{ c.function.name }}({{ c.function.arguments | tojson }}){% endfor %}
{% if m.reasoning_content %}<think>{{ m.reasoning_content }}</think>{% endif %}
{% endfor %}{% if enable_thinking is defined and not enable_thinking %}<no_think>{% endif %}"""
NAMES = """{% set ns = namespace(last=none, count=0) %}
{%- for m in messages %}{% set ns.count = ns.count + 1 %}{% set ns.last = m %}{% endfor %}
{% macro line(m) %}{{ m['role'] }}={{ m['content'] }}|{% endmacro %}
{{ line(ns.last) }}{{ ns.count }}{{ dict(a=1) }}{{ strftime_now('%Y') }}"""
REFUSES = """{% if messages[0].role != 'user' %}{{ raise_exception('begin with the user') }}{% endif %}
{{ messages[0].content }}"""
UNSAFE = "{{ messages.append(1) }}"
SECRET = "{{ ''.__class__.__mro__ }}x"
SOURCES = {"chatml": CHATML, "tools": TOOLS, "names": NAMES, "refuses": REFUSES, "unsafe": UNSAFE, "secret": SECRET}
CALL = {"type": "function", "function": {"name": "f", "arguments": {"x": "<&>", "y": [1, None]}}}
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {"é": {}}}}}

texts = st.text("ab <|>é\n☃{%}", max_size=12)
turns = st.fixed_dictionaries(
    {"role": st.sampled_from(["system", "user", "assistant", "tool"])},
    optional={
        "content": st.one_of(st.none(), texts),
        "reasoning": texts,
        "tool_calls": st.one_of(st.none(), st.lists(st.just(CALL), max_size=2)),
    },
)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: Any) -> tuple[Any, Any]:
    """The same tokenizer in transformers and here."""
    transformers = pytest.importorskip("transformers", reason="transformers is not installed: nothing to compare with")
    folder: Path = tmp_path_factory.mktemp("tokenizer")
    (folder / "tokenizer.json").write_text(train_bpe(["a b c"], 260).text)
    names = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "<|endoftext|>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(names))
    (folder / "config.json").write_text(json.dumps({"model_type": "llama"}))
    return transformers.AutoTokenizer.from_pretrained(folder), load_tokenizer(folder)


def rendered(make: Any) -> tuple[str | None, bool]:
    """``(text, whether it was refused)``; an empty text counts as refused."""
    try:
        text = make()
    except Exception:
        return None, True
    return text or None, not text


@pytest.mark.parametrize("name", SOURCES)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    messages=st.lists(turns, min_size=1, max_size=7),
    tools=st.sampled_from([None, [TOOL]]),
    documents=st.sampled_from([None, [{"title": "T", "text": "x"}]]),
    ask=st.booleans(),
    more=st.sampled_from([{}, {"enable_thinking": False}]),
)
def test_as_transformers_renders(
    pair: Any, name: str, messages: Any, tools: Any, documents: Any, ask: bool, more: Any
) -> None:
    theirs, ours = pair
    template = ChatTemplate(ours, SOURCES[name])
    options = {"tools": tools, "documents": documents, "add_generation_prompt": ask} | more
    wanted = rendered(
        lambda: theirs.apply_chat_template(messages, chat_template=SOURCES[name], tokenize=False, **options)
    )
    assert rendered(lambda: template.render(messages, **options)) == wanted
    if wanted[0]:
        assert template.ids(messages, **options) == theirs(wanted[0], add_special_tokens=False)["input_ids"]


@pytest.mark.parametrize("text", ["half an ans", "trailing ", "<|x"])
def test_going_on_with_the_last_message(pair: Any, text: str) -> None:
    theirs, ours = pair
    messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": text}]
    wanted = theirs.apply_chat_template(messages, chat_template=CHATML, tokenize=False, continue_final_message=True)
    assert ChatTemplate(ours, CHATML).render(messages, continue_final_message=True) == wanted
    assert wanted.endswith(text)


def test_one_of_several_templates(pair: Any) -> None:
    template = ChatTemplate(pair[1], {"default": "D", "tool_use": "T", "rag": "R"})
    messages = [{"role": "user", "content": "a"}]
    assert [template.render(messages, **o) for o in ({}, {"tools": [TOOL]}, {"template": "rag"})] == ["D", "T", "R"]
    with pytest.raises(TemplateError, match="no chat template 'no'; there are default, rag, tool_use"):
        template.render(messages, template="no")
    with pytest.raises(TemplateError, match="no chat template 'default'"):
        ChatTemplate(pair[1], {"rag": "R"}).render(messages)


def test_a_broken_template_says_so() -> None:
    with pytest.raises(TemplateError, match="chat_template is broken"):
        ChatTemplate(ByteTokenizer(), "{% for %}")
    with pytest.raises(TemplateError, match="at least one message"):
        ChatTemplate(ByteTokenizer(), "x").render([])


def test_the_plain_template() -> None:
    template = ChatTemplate(ByteTokenizer(), None)
    messages = [
        {"role": "system", "content": "Brief."},
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": " Yo"},
    ]
    assert template.render(messages) == "System: Brief.\nUser: Hi\nAssistant: Yo\nAssistant:"
    assert template.stops == ("\nUser:",)
