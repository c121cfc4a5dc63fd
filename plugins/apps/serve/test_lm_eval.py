"""lm-eval's local-completions and local-chat-completions against the server: tasks of our own, nothing downloaded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from fastsnn_serve.testing import bytes_text, expected

pytestmark = pytest.mark.slow  # its import alone takes several seconds
DOCS = [
    {"text": "Once upon a time", "choices": [" a spike", " a threshold", " no"], "label": 0},
    {"text": "Bern", "choices": [" is a town", "!"], "label": 1},
]
TASK = """
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: {kind}
doc_to_text: "{{{{text}}}}"
"""
CHOICE = 'target_delimiter: ""\ndoc_to_choice: "{{choices}}"\ndoc_to_target: label\nmetric_list: [{metric: acc}]\n'
WRITE = (
    'doc_to_target: "{{text}}"\ngeneration_kwargs: {until: ["zzz"], max_gen_toks: 9, do_sample: false}\n'
    "metric_list: [{metric: exact_match}]\n"
)


@pytest.fixture
def tasks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Two tasks in a folder."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    data = tmp_path / "docs.jsonl"
    data.write_text("\n".join(json.dumps(row) for row in DOCS))
    for name, kind, rest in (("choose", "multiple_choice", CHOICE), ("write", "generate_until", WRITE)):
        (tmp_path / f"{name}.yaml").write_text(TASK.format(name=name, kind=kind, data=data) + rest)
    lm_eval = pytest.importorskip("lm_eval", reason="lm-eval is not installed: nox -s clients")
    pytest.importorskip("tenacity", reason="lm-eval[api] is not installed: nox -s clients")
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_path=str(tmp_path), include_defaults=False)
    return lambda kind, args, names, **more: lm_eval.simple_evaluate(
        kind, args, tasks=names, task_manager=manager, log_samples=True, bootstrap_iters=0, **more
    )


def score(model: Any, text: str, more: str) -> float:
    """The model's own log-probability of `more` after `text`."""
    ids, begun = list((text + more).encode()), len(text.encode())
    with torch.inference_mode():
        rows = model(torch.tensor([ids]))[0].float().log_softmax(-1)
    return sum(float(rows[i - 1, ids[i]]) for i in range(begun, len(ids)))


@pytest.mark.filterwarnings("ignore")
def test_local_completions(handle: Any, model: Any, tasks: Any) -> None:
    """Scores of choices are the model's own, and greedy texts are its own."""
    args = f"model=tiny,base_url={handle.url}/v1/completions,tokenizer_backend=remote,num_concurrent=2"
    found = tasks("local-completions", args, ["choose", "write"])
    for row, doc in zip(found["samples"]["choose"], DOCS, strict=True):
        said = [float(answer[0][0]) for answer in row["resps"]]
        want = [score(model, doc["text"], more) for more in doc["choices"]]
        assert said == pytest.approx(want, abs=1e-3)
    for row, doc in zip(found["samples"]["write"], DOCS, strict=True):
        assert row["resps"] == [[bytes_text(expected(model, list(doc["text"].encode()), 9, temperature=0.0))]]


@pytest.mark.filterwarnings("ignore")
def test_local_chat_completions(handle: Any, model: Any, tasks: Any) -> None:
    args = f"model=tiny,base_url={handle.url}/v1/chat/completions,tokenizer_backend=none"
    found = tasks("local-chat-completions", args, ["write"], apply_chat_template=True)
    for row, doc in zip(found["samples"]["write"], DOCS, strict=True):
        prompt = list(f"User: {doc['text']}\nAssistant:".encode())
        assert row["resps"] == [[bytes_text(expected(model, prompt, 9, temperature=0.0))]]
