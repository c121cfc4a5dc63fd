"""Targets and inputs are checked before the work; nothing is lost, nothing is left behind."""

from __future__ import annotations

import argparse
import os

import pytest

from fastsnn_console import arguments, targets
from fastsnn_core.errors import FileError, UserError
from fastsnn_core.files import beside
from fastsnn_core.targets import umask


@pytest.fixture
def snn(tmp_path):
    """Enough of a bundle to be taken for one."""
    (tmp_path / "a.snn").mkdir()
    (tmp_path / "a.snn/config.json").write_text('{"bundle": 1, "distributions": {}}')
    return tmp_path / "a.snn"


def test_a_target_is_no_source(snn, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "link.snn").symlink_to(snn)
    for name in ("a.snn", "./a.snn", "../" + tmp_path.name + "/a.snn", "link.snn"):
        with pytest.raises(FileError, match="is what is read from; it would be lost"):
            targets.bundle(name, [snn], "--to")
    assert targets.bundle("a.snn", ["b.snn"]).name == "a.snn", "another bundle may be replaced"
    with pytest.raises(FileError, match=r"holds .*config.json, which is read from"):
        targets.bundle("a.snn", [snn / "config.json"])


def test_nothing_is_written_into_a_bundle(snn):
    for check in (targets.bundle, targets.file, targets.folder):
        with pytest.raises(FileError, match="lies inside the bundle"):
            check(snn / "deep" / "x", option="--out")
    with pytest.raises(FileError, match="lies inside the bundle"):
        targets.folder(snn)


def test_targets_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(FileError, match=r"cannot be written: .*file: a file is in the way"):
        targets.file(tmp_path / "file" / "x.txt")
    with pytest.raises(FileError, match="is a file, and a folder is to be written"):
        targets.folder(tmp_path / "file")
    with pytest.raises(FileError, match="is a folder; give the name of a file"):
        targets.file(tmp_path)
    with pytest.raises(FileError, match=r"must end in \.png"):
        targets.file(tmp_path / "x.pgn", suffixes=(".png",))
    with pytest.raises(FileError, match="cannot be written: /proc"):
        targets.file("/proc/x.png")
    if os.getuid():
        with pytest.raises(FileError, match="Permission denied"):
            targets.file("/etc/x.png")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file"]


def test_inputs(tmp_path):
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9")
    (tmp_path / "bom.txt").write_bytes(b"\xef\xbb\xbfhi")
    assert targets.read_text(tmp_path / "bom.txt") == "hi"
    with pytest.raises(FileError, match=r"--text .*latin.txt is no UTF-8 text: byte 3 is 0xe9"):
        targets.read_text(tmp_path / "latin.txt", "--text")
    with pytest.raises(FileError, match=r"--text .*nope: there is no such file"):
        targets.read_text(tmp_path / "nope", "--text")
    with pytest.raises(FileError, match="is a folder; give a file"):
        targets.read_text(tmp_path)
    with pytest.raises(FileError, match="cannot be read: File name too long"):
        targets.read_text("x" * 5000)


def test_modes_of_whatever_is_written_beside(tmp_path):
    with beside(tmp_path / "made") as scratch:
        scratch.mkdir(mode=0o700)
        (scratch / "x").touch(mode=0o600)
        (scratch / "run").touch(mode=0o700)
    mask = umask()
    assert (tmp_path / "made").stat().st_mode & 0o777 == 0o777 & ~mask
    assert (tmp_path / "made/x").stat().st_mode & 0o777 == 0o666 & ~mask
    assert (tmp_path / "made/run").stat().st_mode & 0o111 == 0o111 & ~mask


@pytest.mark.parametrize("text", ["nan", "inf", "-1", "x", "", "1.5", "0", "9" * 400])
def test_numbers(text):
    with pytest.raises(argparse.ArgumentTypeError, match=r"whole number|must be at least 1"):
        arguments.number(int, ge=1, le=100)(text)
    if text in ("nan", "inf", "x", ""):
        with pytest.raises(argparse.ArgumentTypeError):
            arguments.number(float)(text)


def test_the_parser_suggests(capsys):
    parser = arguments.Parser("x", "Says 60 % of it.")
    parser.add_argument("--max-tokens", type=arguments.number(int, ge=1))
    parser.add_argument("--port", type=arguments.port)
    parser.add_argument("--names", type=arguments.comma_separated())
    for words, says in (
        (["--max-token", "3"], "--max-token (did you mean --max-tokens?)"),
        (["--max-tokens", "-3"], "argument --max-tokens: must be at least 1, got -3"),
        (["--port", "99999"], "argument --port: must be at least 0 and at most 65535, got 99999"),
        (["--names", "a,,b"], "argument --names: expected values with commas"),
    ):
        with pytest.raises(SystemExit) as stopped:
            parser.parse_args(words)
        assert stopped.value.code == 2
        assert says in capsys.readouterr().err
    assert "60 %" in parser.format_help()


def test_devices():
    assert arguments.device("cpu") == "cpu"
    for name in ("cuda:99", "nonsense", "meta", ""):
        with pytest.raises(UserError, match="device"):
            arguments.device(name)
