"""Random wrong uses of every verb: a line that says what is wrong, exit status 2, and nothing is written or lost.

Each use is a right one with one thing made wrong (a name misspelt, a value out of bounds, a file that is missing or is
something else, a target that would destroy an input), so that one which gets as far as the work is a fault, too.
``FASTSNN_FUZZ=2000`` runs as many.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import shutil

import pytest
import torch

from fastsnn_console import arguments
from fastsnn_core import build, cli, create, save

pytest.importorskip("fastsnn")

USES = int(os.environ.get("FASTSNN_FUZZ", "200"))
RIGHT: dict[str, list[str]] = {
    "show": ["m.snn"],
    "check": ["spec.toml"],
    "plugins": ["--kind", "neuron"],
    "new-plugin": ["neuron", "acme-fuzz", "--out", "made"],
    "test": ["fastsnn_no_such_plugin"],
    "run": ["spec.toml", "--out", "made"],
    "generate": ["m.snn", "--prompt", "ab", "--max-tokens", "2"],
    "chat": ["m.snn", "--max-tokens", "2"],
    "export": ["m.snn", "made.snn", "--to", "w8a", "--text", "text.txt"],
    "fit": ["spec.toml", "--out", "made"],
    "doctor": ["--no-speed"],
    "completion": ["bash"],
    "eval": ["m.snn", "--text", "text.txt", "--heatmap", "made.png", "--recall", "passkey"],
    "extend": ["spec.toml", "--out", "run", "--to", "64"],
    "convert": ["hf", "--to", "made.snn", "--html", "made.html", "--heal", "text.txt", "--out", "made"],
    "heal": ["m.snn", "--teacher", "hf", "--text", "text.txt", "--to", "made.snn", "--out", "made"],
    "serve": ["m.snn", "--port", "0"],
    "scope": ["m.snn", "--out", "made"],
    "tune": ["m.snn", "--text", "text.txt", "--silent", "0.5", "--to", "made.snn", "--report", "made"],
    "lm-eval": ["m.snn", "--tasks", "arc_easy", "--out", "made.json"],
}
BUNDLES = (
    "nowhere.snn",
    "text.txt",
    "empty",
    "hf",
    "cut.snn",
    "sealed.snn",
    "stranger.snn",
    "m.snn/nowhere",
    "\udcff",
    "l" * 300,
)
TEXTS = ("nowhere.txt", "empty", "latin.txt", "text.txt/inside", "l" * 300)
SPECS = ("nowhere.toml", "empty", "latin.txt", "syntax.toml", "kind.toml", "types.toml", "text.txt")
INPUTS = {"m.snn": BUNDLES, "text.txt": TEXTS, "spec.toml": SPECS, "hf": ("nowhere", "text.txt/inside")}
TARGETS = {
    "made.snn": ("m.snn", "text.txt", "hf", "empty", "m.snn/inside.snn", "text.txt/inside", "made.pt", "/proc/x"),
    "made": ("m.snn", "text.txt", "m.snn/inside", "text.txt/inside", "/proc/made"),
    "made.png": ("empty", "made.pgn", "m.snn/x.png", "text.txt/x.png", "/proc/x.png"),
    "made.html": ("empty", "made.txt", "m.snn/x.html", "/proc/x.html"),
    "made.json": ("empty", "m.snn/x.json", "/proc/x.json"),
}  # fmt: skip
VALUES = ("", "x", "nan", "inf", "-inf", "-1", "0", "1.5", "1e400", "99999999999999999999", "-3", "2", "1,,2")


class Worked(BaseException):
    """The work was begun."""


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a right thing and a wrong thing of each sort."""
    from fastsnn_text import attach, load_tokenizer

    root = tmp_path_factory.mktemp("fuzz")
    torch.manual_seed(0)
    model = build(create("model", "decoder", d_model=16, n_layers=1, n_heads=2, vocab_size=257)).eval()
    attach(model, load_tokenizer("byte"))
    save(model, root / "m.snn")
    (root / "text.txt").write_text("to be or not to be " * 200)
    (root / "latin.txt").write_bytes(b"[model]\ncaf\xe9 = 1\n")
    (root / "spec.toml").write_text('fastsnn = 1\n[model]\nkind = "decoder"\nd_model = 16\nn_layers = 1\nn_heads = 2\n')
    (root / "syntax.toml").write_text("fastsnn = = 1\n")
    (root / "kind.toml").write_text('fastsnn = 1\n[model]\nkind = "decodre"\n')
    (root / "types.toml").write_text('fastsnn = 1\n[model]\nkind = "decoder"\nd_model = "16"\nn_layer = 2\n')
    (root / "broken.py").write_text("def f(:\n")
    for name in ("empty", "hf", "run/checkpoints/step-000001"):
        (root / name).mkdir(parents=True)
    (root / "empty/keep.txt").write_text("not to be lost")
    (root / "hf/config.json").write_text('{"model_type": "llama"}')
    for name in ("cut.snn", "sealed.snn", "stranger.snn"):
        shutil.copytree(root / "m.snn", root / name)
    weights = root / "cut.snn/weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    meta = root / "sealed.snn/meta.json"
    meta.write_text(meta.read_text().replace('"byte"', '"bite"'))
    (root / "stranger.snn/tokenizer.json").write_text("{}")
    return root


def options(verb: str) -> list[argparse.Action]:
    """The options of a verb's parser, found by asking it for help."""
    seen = []
    make = argparse.ArgumentParser.parse_known_args

    def look(self, args=None, namespace=None):
        seen.append(self)
        return make(self, args, namespace)

    with pytest.MonkeyPatch.context() as patch, contextlib.suppress(SystemExit):
        patch.setattr(argparse.ArgumentParser, "parse_known_args", look)
        with contextlib.redirect_stdout(open(os.devnull, "w")):
            cli.verb(verb)(["--help"])
    return [a for a in seen[0]._actions if a.option_strings and "--help" not in a.option_strings]


def wrong_values(action: argparse.Action) -> list[str]:
    """Values that an option must not take, by its own type or choices."""
    if action.choices:
        return ["", "nonsense", str(next(iter(action.choices)))[:-1]]
    bad = []
    for value in VALUES if action.type not in (None, str) and callable(action.type) else ():
        try:
            action.type(value)
        except (argparse.ArgumentTypeError, ValueError, TypeError):
            bad.append(value)
        except OverflowError:
            raise AssertionError(f"{action.option_strings} overflows at {value!r}") from None
    return bad


def spoil(rng: random.Random, verb: str, known: list[argparse.Action]) -> list[str]:
    """A right use with one thing made wrong."""
    words = list(RIGHT[verb])
    ways = ["option", "surplus", "verb", "inline", "dangling"]
    ways += ["value"] * 3 * any(map(wrong_values, known))
    ways += ["drop"] * (verb not in ("test", "plugins", "doctor"))
    inputs = [i for i, w in enumerate(words) if w in INPUTS]
    outputs = [i for i, w in enumerate(words) if w in TARGETS and verb != "new-plugin"]
    ways += ["input"] * 4 * bool(inputs) + ["target"] * 4 * bool(outputs)
    way = rng.choice(ways)
    if way == "option":
        name = rng.choice([o for a in known for o in a.option_strings if len(o) > 4] or ["--help-me"])
        at = rng.randrange(2, len(name))
        return [verb, *words, name[:at] + rng.choice("xqz") + name[at:]]
    if way == "drop":  # the first positional, or what --kind was to be
        return [verb, *words[1:]]
    if way == "surplus":
        return [verb, *words, "one", "two", "three"] if verb != "test" else [verb, "one", "two"]
    if way == "verb":
        return [verb + rng.choice("xyz"), *words]
    if way == "inline":
        return ["-p", rng.choice(["nowhere.py", "broken.py", "empty", "latin.txt"]), verb, *words]
    if way == "dangling":
        taking = [o for a in known if a.nargs != 0 for o in a.option_strings]
        return [verb, *words, rng.choice(taking or ["--nothing"])] if verb != "test" else [verb, "nothing"]
    if way == "value":
        action = rng.choice([a for a in known if wrong_values(a)])
        return [verb, *words, action.option_strings[-1], rng.choice(wrong_values(action))]
    i = rng.choice(inputs if way == "input" else outputs)
    wrong = INPUTS[words[i]] if way == "input" else TARGETS[words[i]]
    if words[i] == "made.snn" and "m.snn" not in words:
        wrong = tuple(w for w in wrong if w != "m.snn")  # no input: an earlier result may be replaced
    words[i] = rng.choice(wrong)
    if verb == "show" and words == ["hf"]:
        words = ["empty"]
    return [verb, *words]


def state(root) -> dict[str, tuple]:
    """Names, sizes and times of everything there."""
    return {
        str(p.relative_to(root)): (p.stat().st_size, p.stat().st_mtime_ns) if p.is_file() else ()
        for p in root.rglob("*")
        if "__pycache__" not in p.parts
    }


def begin(*_, **__):
    raise Worked


def test_every_verb_is_here():
    assert set(RIGHT) == {*cli.OWN, *cli.added()}


def test_wrong_uses_are_refused_in_words_before_the_work(place, monkeypatch, capsys):
    import fastsnn_convert.language.distillation
    import fastsnn_scope
    import fastsnn_serve.http.server
    import fastsnn_train.cli
    import fastsnn_train.evaluation.cli
    import fastsnn_train.extend.cli
    import fastsnn_tune.search
    from fastsnn import FastSNN
    from fastsnn_core import bundle

    for home, name in (
        (fastsnn_convert, "convert"), (fastsnn_convert.language.distillation, "heal"),
        (fastsnn_scope, "scope"), (fastsnn_tune.search, "tune"),
        (fastsnn_train.cli, "fit_spec"), (fastsnn_train.extend.cli, "fit_spec"),
        (fastsnn_train.evaluation.cli, "evaluate_text"),
        (fastsnn_serve.http.server, "make_app"), (FastSNN, "stream"), (bundle, "save"),
    ):  # fmt: skip
        monkeypatch.setattr(home, name, begin)
    monkeypatch.setenv("FASTSNN_STRICT", "0")
    monkeypatch.chdir(place)
    rng, known = random.Random(0), {verb: options(verb) for verb in RIGHT}
    before, verbs = state(place), sorted(RIGHT)
    counted = dict.fromkeys(verbs, 0)
    faults = []
    capsys.readouterr()
    for n in range(USES):
        verb = verbs[n % len(verbs)]
        words = spoil(rng, verb, known[verb])
        try:
            code = cli.main(list(words))
        except SystemExit as stopped:
            code = stopped.code
        except Worked:
            code = "the work was begun"
        except BaseException as error:
            code = f"{type(error).__name__}: {error}"
        said = capsys.readouterr()
        counted[verb] += 1
        if code != 2 or "Traceback" in said.err + said.out or not said.err.strip():
            faults.append((words, code, said.err[-300:]))
        if (now := state(place)) != before:
            faults.append((words, "changed", sorted({*now} ^ {*before})))
            before = now
    assert not faults, f"{len(faults)} of {USES}:\n" + "\n".join(json.dumps(f, default=str) for f in faults[:20])
    assert min(counted.values()) >= USES // len(verbs)


@pytest.mark.parametrize("fault", ["writes first", "a bug", "accepts"])
def test_a_planted_fault_is_seen(fault, place, monkeypatch, capsys):
    """A verb that writes before it checks, that ends in a KeyError, or that takes what is wrong."""
    from fastsnn import commands

    def verb(argv):
        args = arguments.Parser("generate", "x")
        args.add_argument("bundle")
        args.add_argument("--prompt")
        args.add_argument("--max-tokens", type=arguments.number(int, ge=1))
        opts, _ = args.parse_known_args(argv)
        if fault == "writes first":
            (place / "made.txt").write_text("x")
        if fault == "a bug":
            return {}[opts.bundle]
        if fault == "accepts":
            return 0
        return commands.generate(argv)

    monkeypatch.setitem(cli.OWN, "generate", verb)
    with pytest.raises(AssertionError, match=f"of {USES}"):
        test_wrong_uses_are_refused_in_words_before_the_work(place, monkeypatch, capsys)
    (place / "made.txt").unlink(missing_ok=True)
