"""The one progress line: silent at first, a bar on a terminal, plain lines elsewhere; the errors' one base class."""

from __future__ import annotations

import io
import logging
import os
import time

import pytest

from fastsnn_console import progress
from fastsnn_core import errors
from fastsnn_core.cli import StderrHandler


class Screen(io.StringIO):
    encoding = "utf-8"

    def isatty(self):
        return True


def terminal(monkeypatch):
    found = Screen()
    monkeypatch.setattr("sys.stderr", found)
    monkeypatch.setenv("COLUMNS", "100")
    return found


def test_short_work_is_silent(monkeypatch):
    screen = terminal(monkeypatch)
    with progress.Progress("reading", 3) as bar:
        for _ in range(3):
            bar.step()
    assert screen.getvalue() == ""


def test_a_bar_with_count_note_and_time_to_go(monkeypatch):
    screen = terminal(monkeypatch)
    with progress.Progress("converting", 4, "layers", delay=0.01) as bar:
        time.sleep(0.15)
        bar.step(note="layers.0")
        time.sleep(0.15)
        bar.step(note="layers.1")
        progress.write_line("a line that stays")
    shown = screen.getvalue()
    for word in ("converting", "━" * 12 + "─" * 12, "2/4 layers", "layers.1", "0:00:00 left", "\r\x1b[K"):
        assert word in shown, word
    lines = shown.split("\r\x1b[K")
    assert "a line that stays\n" in lines, "a line is not torn by the bar"
    assert lines[-1] == "converting: 2/4 layers in 0:00:00\n"


def test_one_long_step_is_seen_to_be_alive(monkeypatch):
    screen = terminal(monkeypatch)
    monkeypatch.setattr(progress, "TICK", 0.02)
    with progress.Progress("compiling kernels", delay=0.05):
        time.sleep(0.3)
    assert screen.getvalue().count("compiling kernels  0:00:00 so far") > 2


def test_plain_lines_where_there_is_no_terminal(capsys, monkeypatch):
    monkeypatch.setattr(progress, "TICK", 0.02)
    monkeypatch.setattr(progress, "EVERY", 0.1)
    with progress.Progress("exporting", 5, "files", delay=0.05) as bar:
        for _ in range(5):
            time.sleep(0.06)
            bar.step()
    lines = capsys.readouterr().err.splitlines()
    assert 3 <= len(lines) <= 5
    assert "files" in lines[0]
    assert "left" in lines[1]
    assert lines[-1] == "exporting: 5/5 files in 0:00:00"
    assert not any("\r" in line for line in lines)


@pytest.mark.parametrize("how", ["quiet", "environment"])
def test_quiet(how, capsys, monkeypatch):
    if how == "environment":
        monkeypatch.setenv("FASTSNN_QUIET", "1")
    with progress.Progress("x", 2, delay=0.0, quiet=how == "quiet") as bar:
        time.sleep(0.05)
        bar.step()
        bar.say("nothing")
    assert capsys.readouterr().err == ""


def test_the_innermost_draws(monkeypatch):
    screen = terminal(monkeypatch)
    with progress.Progress("outer", 2, delay=0.0) as outer, progress.Progress("inner", 2, delay=0.0) as inner:
        outer.step()
        time.sleep(0.12)
        inner.step()
    assert "inner" in screen.getvalue()
    assert "outer" not in screen.getvalue()


def test_a_forked_child_has_no_bar():
    with progress.Progress("parent", 2, quiet=True):
        child = os.fork()
        if not child:
            os._exit(0 if not progress._active and progress._lock.acquire(timeout=1) else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_log_records_go_above_the_bar(monkeypatch):
    screen = terminal(monkeypatch)
    log, handler = logging.getLogger("fastsnn.test-progress"), StderrHandler()
    log.addHandler(handler)
    log.propagate = False
    try:
        with progress.Progress("x", 2, delay=0.0) as bar:
            time.sleep(0.12)
            bar.step()
            log.warning("careful")
    finally:
        log.removeHandler(handler)
    assert "\r\x1b[Kcareful\n\r\x1b[Kx" in screen.getvalue()


def test_every_error_a_user_can_mend_has_one_base():
    import fastsnn_core.bundle
    import fastsnn_core.plugins
    import fastsnn_core.spec

    known = [errors.UserError, errors.ArgumentError, errors.MissingError, errors.FileError]
    known += [fastsnn_core.bundle.BundleError, fastsnn_core.plugins.LookupFailure, fastsnn_core.plugins.PluginError]
    known += [fastsnn_core.spec.SpecError, fastsnn_core.component.ParamError]
    assert all(issubclass(e, errors.FastSNNError) and issubclass(e, ValueError) for e in known)
    assert issubclass(errors.ArgumentError, TypeError)
    assert issubclass(errors.FileError, OSError)
    assert str(errors.FileError("no file x")) == "no file x"
    with pytest.raises(errors.ArgumentError, match=r"scope\(\) has no option 'txt'; did you mean 'text'\? options: "):
        errors.check_options("scope", ["txt"], ["text", "out"])
