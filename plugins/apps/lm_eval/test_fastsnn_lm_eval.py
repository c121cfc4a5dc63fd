"""The harness' numbers are the model's own, whatever the batch; tasks run offline; what is missing is said."""

from __future__ import annotations

import importlib.util
import json
import math
import subprocess
import sys
import types

import pytest
import torch

from fastsnn_core import build, bundle, create
from fastsnn_lm_eval.cli import evaluate_tasks, main
from fastsnn_text import ByteTokenizer, attach, generate_text

harness = pytest.mark.skipif(
    importlib.util.find_spec("lm_eval") is None,
    reason="lm-evaluation-harness is not installed; pip install fastsnn-lm-eval",
)
quiet = pytest.mark.filterwarnings("ignore")  # the harness and its dependencies warn about themselves


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    kinds = (create("attention", "gla"), create("attention", "sliding_window", window=8))
    sizes = {"d_model": 16, "n_layers": 2, "n_heads": 2, "attention": kinds}
    found = build(create("model", "decoder", **sizes)).double().eval()
    attach(found, ByteTokenizer())
    return found


@pytest.fixture
def lm(model):
    from fastsnn_lm_eval.model import FastSNNLM

    return FastSNNLM(model, batch_size=3)


def ask(*args):
    return types.SimpleNamespace(args=args)


def log_likelihood(model, context, continuation):
    ids = torch.tensor([context + continuation])
    scores = model(ids[:, :-1]).log_softmax(-1)[0]
    return sum(float(scores[len(context) - 1 + i, t]) for i, t in enumerate(continuation))


@harness
@quiet
def test_log_likelihoods_are_the_models_whatever_the_batch_and_length(lm, model, monkeypatch):
    import fastsnn_lm_eval.model as module

    monkeypatch.setattr(module, "CHUNK", 7)
    pairs = [("some words and", " more"), ("a", "b"), ("", "begin"), ("long " * 12 + "x", "end"), ("x", " y")]
    found = lm.loglikelihood([ask(*p) for p in pairs], disable_tqdm=True)
    for (context, continuation), (value, greedy) in zip(pairs, found):
        before = list(context.encode()) if context else [256]
        expected = log_likelihood(model, before, list(continuation.encode()))
        assert value == pytest.approx(expected, rel=1e-5)
        assert greedy is False
    best = int(model(torch.tensor([[97]]))[0, -1].argmax())
    assert lm.score([([97], [best])])[0][1] is True


@harness
@quiet
def test_whole_texts_are_one_stream_or_windows(lm, model):
    from fastsnn_lm_eval.model import FastSNNLM

    text = "the quick brown fox jumps over the lazy dog"
    ids = list(text.encode())
    (whole,) = lm.loglikelihood_rolling([ask(text)])
    assert whole == pytest.approx(log_likelihood(model, [256], ids), rel=1e-5)
    (cut,) = FastSNNLM(model, window=10).loglikelihood_rolling([ask(text)])
    starts = [256, *(ids[i - 1] for i in range(10, len(ids), 10))]
    pieces = [ids[i : i + 10] for i in range(0, len(ids), 10)]
    assert cut == pytest.approx(sum(log_likelihood(model, [s], p) for s, p in zip(starts, pieces)), rel=1e-5)


@harness
@quiet
def test_continuations_stop_where_they_should(lm, model):
    whole = "".join(generate_text(model, "say", 12, lm_sampling()))
    assert lm.generate("say", {"max_gen_toks": 12}) == whole
    stop = whole[4:6]
    assert lm.generate_until([ask("say", {"max_gen_toks": 12, "until": [stop]})]) == [whole.partition(stop)[0]]


def lm_sampling():
    from fastsnn_text import Sampling

    return Sampling(temperature=0.0)


TASKS = {
    "choice": """
task: choice
dataset_path: json
dataset_kwargs: {data_files: {test: ROWS}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{question}}"
doc_to_choice: "{{choices}}"
doc_to_target: answer
metric_list: [{metric: acc}]
""",
    "rolling": """
task: rolling
dataset_path: json
dataset_kwargs: {data_files: {test: ROWS}}
test_split: test
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{question}}"
metric_list: [{metric: bits_per_byte}]
""",
    "says": """
task: says
dataset_path: json
dataset_kwargs: {data_files: {test: ROWS}}
test_split: test
output_type: generate_until
doc_to_text: "{{question}}"
doc_to_target: "{{said}}"
generation_kwargs: {until: ["zzz"], max_gen_toks: 6, do_sample: false}
metric_list: [{metric: exact_match}]
""",
}


@harness
@quiet
def test_local_tasks_run_offline_from_the_command(model, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
    questions = ["one two", "three four five", "six"]
    rows = []
    for q in questions:
        said = "".join(generate_text(model, q, 6, lm_sampling()))
        scores = [log_likelihood(model, list(q.encode()), list(f" {c}".encode())) for c in ("ab", "cd")]
        rows.append(
            {"question": q, "choices": ["ab", "cd"], "answer": max((0, 1), key=scores.__getitem__), "said": said}
        )
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps(r) + "\n" for r in rows))
    tasks = tmp_path / "tasks"
    tasks.mkdir()
    for name, text in TASKS.items():
        (tasks / f"{name}.yaml").write_text(text.replace("ROWS", str(data)))
    path = bundle.save(model, tmp_path / "m.snn")
    words = [
        str(path),
        "--tasks",
        ",".join(TASKS),
        "--include",
        str(tasks),
        "--out",
        str(tmp_path / "r.json"),
        "--json",
    ]
    assert main(words) == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert found["choice"]["acc,none"] == 1.0
    assert found["says"]["exact_match,none"] == 1.0
    nats = -sum(log_likelihood(model, [256], list(q.encode())) for q in questions)
    bits = nats / math.log(2) / sum(map(len, questions))
    assert found["rolling"]["bits_per_byte,none"] == pytest.approx(bits, rel=1e-4)
    assert json.loads((tmp_path / "r.json").read_text())["results"].keys() == TASKS.keys()
    with pytest.raises(ValueError, match="3 known here: choice, rolling, says"):
        evaluate_tasks(path, ["nothing"], include=str(tasks), builtin=False)


def test_the_command_is_there_without_the_harness_and_says_what_to_install(tmp_path):
    code = (
        "import sys; sys.modules['lm_eval'] = None\n"
        "from fastsnn_lm_eval.cli import evaluate_tasks\n"
        "try: evaluate_tasks('x', ['y'])\n"
        "except ImportError as error: print(error)"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert "pip install fastsnn-lm-eval" in said


@harness
@quiet
def test_the_harness_keeps_its_own_models():
    """Registering ours first left the harness without hf and local-completions."""
    script = "import fastsnn_lm_eval.model\nfrom lm_eval.api.registry import get_model\n"
    script += "get_model('local-completions'), get_model('fastsnn')"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-600:]
