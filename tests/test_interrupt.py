"""Ctrl-C at any moment of any long verb: one line, exit status 130, nothing half-made, what was there stays."""

from __future__ import annotations

import contextlib
import functools
import signal
import socket
import sys
import threading
import time

import pytest
import torch
from torch import nn

from fastsnn import FastSNN
from fastsnn_core import bundle, cli
from fastsnn_text import ByteTokenizer, attach

POINTS = (0.03, 0.3, 0.7, 0.97)  # of what the verb takes when nobody interrupts it
SPEC = """
fastsnn = 1
[model]
kind = "decoder"
d_model = 16
n_layers = 1
n_heads = 2
[data]
dataset = "text.txt"
seq_len = 16
[train]
max_steps = 12
batch_size = 2
log_every = 1
checkpoint_every = 3
"""
VERBS = {
    "fit": ["fit", "spec.toml", "--out", "run"],
    "run": ["run", "spec.toml", "--out", "run"],
    "convert": ["convert", "net.safetensors", "--spec", "net.toml", "--calibration", "x.npy", "--to", "out.snn"],
    "export": ["export", "a.snn", "out.snn", "--to", "w8a", "--text", "text.txt"],
    "export again": ["export", "a.snn", "old.snn", "--to", "w8a", "--text", "text.txt"],
    "tune": ["tune", "a.snn", "--text", "text.txt", "--points", "2", "--silent", "0.5", "--to", "out.snn"],
    "scope": ["scope", "a.snn", "--out", "report", "--text", "hello there"],
    "eval": ["eval", "a.snn", "--text", "text.txt"],
    "generate": ["generate", "a.snn", "--prompt", "a", "--max-tokens", "40"],
}


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder with a bundle, another that is replaced, a network with its weights, a text and a spec."""
    import numpy as np
    from safetensors.torch import save_file

    torch.manual_seed(0)
    model = FastSNN.build(d_model=16, n_layers=1, n_heads=2)
    attach(model, ByteTokenizer())
    for name in ("a.snn", "old.snn"):
        bundle.save(model, tmp_path / name)
    (tmp_path / "text.txt").write_text("the quick brown fox jumps over the lazy dog. " * 120)
    (tmp_path / "spec.toml").write_text(SPEC)
    net = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))
    table = (
        'fastsnn = 1\n[model]\nkind = "sequential"\ninput = [8]\nlayers = [{ op = "linear", size = 16 }, '
        '{ op = "relu" }, { op = "linear", size = 4 }]\n'
    )
    (tmp_path / "net.toml").write_text(table)
    names = {f"layers.{key}": value for key, value in net.state_dict().items()}
    save_file(names, tmp_path / "net.safetensors")
    np.save(tmp_path / "x.npy", np.random.default_rng(0).normal(size=(64, 8)).astype("float32"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


AGAIN, MOST = 0.005, 60  # seconds until a Ctrl-C that Python lost is pressed again; that an end may take


def press_ctrl_c(*_):
    """SIGINT."""
    signal.signal(signal.SIGALRM, too_late)
    signal.setitimer(signal.ITIMER_REAL, MOST)
    signal.raise_signal(signal.SIGINT)


def press_again(other, lost):
    """What is raised in a finaliser or a callback of gc or a weakref is lost: a user would press once more."""
    if lost.exc_type is KeyboardInterrupt:
        signal.signal(signal.SIGALRM, press_ctrl_c)
        signal.setitimer(signal.ITIMER_REAL, AGAIN)
    else:
        other(lost)


def too_late(*_):
    raise AssertionError(f"still running {MOST} s after Ctrl-C")


def run(words, after=None):
    """Exit status of a verb that is interrupted after so many seconds, and how long it took."""
    old = signal.signal(signal.SIGALRM, press_ctrl_c)
    hook = sys.unraisablehook
    sys.unraisablehook = functools.partial(press_again, hook)
    ctrl_c = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
    began, grad = time.perf_counter(), torch.is_grad_enabled()
    try:
        if after is not None:
            signal.setitimer(signal.ITIMER_REAL, after)
        code = cli.main(list(words))
    except SystemExit as stopped:
        code = stopped.code
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, old)
        signal.signal(signal.SIGINT, ctrl_c)
        sys.unraisablehook = hook
        torch.set_grad_enabled(grad)  # no_grad that was cut off between its begin and its block would stay
    return code, time.perf_counter() - began


def check(place, before):
    """Every bundle is whole, nothing half-made lies about, and the source is what it was."""
    strays = [p for p in place.rglob("*") if p.name.endswith((".part", ".old")) or ".part" in p.name]
    assert not strays, strays
    assert (place / "old.snn").is_dir()
    for folder in place.rglob("*.snn"):
        bundle.verify(folder)
        bundle.load(folder)
    assert bundle.digest(place / "a.snn" / "weights.safetensors") == before


LONG = ("run", "scope", "tune")  # minutes on a busy machine


@pytest.mark.parametrize("verb", [pytest.param(v, marks=pytest.mark.slow) if v in LONG else v for v in VERBS])
def test_a_verb_that_is_interrupted_leaves_nothing_half_made(verb, place, capsys, monkeypatch):
    monkeypatch.setenv("FASTSNN_QUIET", "1")
    words, before = VERBS[verb], bundle.digest(place / "a.snn" / "weights.safetensors")
    code, _ = run(words)
    assert code == 0, capsys.readouterr().err
    _, whole = run(words + (["--resume"] if verb in ("fit", "run") else []))  # warm
    capsys.readouterr()
    codes = []
    for point in POINTS:
        if verb in ("fit", "run"):
            import shutil

            shutil.rmtree(place / "run", ignore_errors=True)
        code, _ = run(words, point * whole)
        said = capsys.readouterr()
        codes.append(code)
        assert code in (0, 130), (point, code, said.err[-500:])
        assert "Traceback" not in said.err, said.err[-2000:]
        if code == 130:
            assert "interrupted" in said.err.lower() or "SIGINT" in said.err, said.err[-300:]
        check(place, before)
    assert 130 in codes, codes
    if verb in ("fit", "run") and (place / "run" / "checkpoints").is_dir():
        assert run([*words, "--resume"])[0] == 0  # goes on from what was saved


def test_serving_ends_and_frees_its_port(place, capsys):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = ["serve", "a.snn", "--port", str(port)]
    for after in (None, 0.01, 0.05, 0.3, 1.5):  # first when it answers: an import that is cut off stays so in a process
        if after is None:
            threading.Thread(target=when_it_answers, args=(port,), daemon=True).start()
        code, _ = run(words, after)
        said = capsys.readouterr()
        assert code in (0, 130), said.err
        assert "Traceback" not in said.err, said.err
        assert code == 130 or "stopped" in said.out
        with socket.socket() as again:
            again.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            again.bind(("127.0.0.1", port))


def test_a_ctrl_c_that_a_finaliser_swallows_is_pressed_again(monkeypatch):
    class Slow:
        def __del__(self):
            time.sleep(0.5)

    def long(words):
        del words[:]
        Slow()
        for _ in range(600):
            time.sleep(0.01)

    monkeypatch.setattr(cli, "main", long)
    began = time.perf_counter()
    with pytest.raises(KeyboardInterrupt):
        run([], 0.1)
    assert 0.1 < time.perf_counter() - began < 3


def when_it_answers(port):
    """Set the alarm once somebody listens at `port`."""
    for _ in range(12000):
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            break
        time.sleep(0.01)
    signal.setitimer(signal.ITIMER_REAL, 0.01)


@pytest.mark.parametrize("fault", ["in place", "left over"])
def test_a_planted_fault_is_seen(fault, place, capsys, monkeypatch):
    """An export that writes where the bundle stands; one that leaves its scratch behind."""
    import shutil

    @contextlib.contextmanager
    def beside(path):
        target = path if fault == "in place" else path.with_name(f".{path.name}.part")
        shutil.rmtree(path, ignore_errors=True)
        if signal.getitimer(signal.ITIMER_REAL)[0]:  # Ctrl-C comes now, however long the verb takes this time
            signal.setitimer(signal.ITIMER_REAL, 0.2)
        time.sleep(1.5)
        yield target
        time.sleep(1.5)
        if fault != "in place":
            target.rename(path)

    monkeypatch.setattr(bundle, "beside", beside)
    with pytest.raises((AssertionError, OSError, bundle.BundleError)):
        test_a_verb_that_is_interrupted_leaves_nothing_half_made("export again", place, capsys, monkeypatch)
