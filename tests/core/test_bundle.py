"""Bundles: whole or refused, by name; nothing half-written; equal bytes after load and save."""

from __future__ import annotations

import importlib.metadata
import json
import os
import shutil
import signal
import stat
import time

import attrs
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from fastsnn_core import BundleError, Model, build, bundle, hookimpl, load, param, plugins, save, spec, state


@attrs.frozen
class Toy(Model):
    """y = W x."""

    name = "toy"
    width: int = param(3, ge=1, doc="width")

    def build(self):
        layer = nn.Sequential(nn.Linear(self.width, self.width), nn.Linear(self.width, self.width))
        layer[1].weight = layer[0].weight  # tied
        layer.register_buffer("k", torch.tensor(3.0))
        return layer


class Plugin:
    @hookimpl
    def fastsnn_models(self):
        return [Toy]


@pytest.fixture(autouse=True, scope="module")
def toys():
    found = plugins.Registry()
    found.load(plugins.Plugin("acme", "acme-toys", "1.2.3", "acme"), Plugin())
    patch = pytest.MonkeyPatch()
    for module in (plugins, spec, bundle):
        patch.setattr(module, "registry", lambda: found)
    yield found
    patch.undo()


@pytest.fixture
def path(tmp_path):
    torch.manual_seed(0)
    return save(build(Toy()), tmp_path / "m.snn", tokenizer='{"a": 1}')


def test_round_trip_is_byte_identical(path, tmp_path):
    model = load(path)
    assert model.spec == Toy()
    assert model[1].weight is model[0].weight
    again = save(model, tmp_path / "again.snn")
    for file in path.iterdir():
        assert file.read_bytes() == (again / file.name).read_bytes(), file.name


def test_config_is_filled_qualified_and_says_what_it_needs(path):
    config = json.loads((path / "config.json").read_text())
    assert config["model"] == {"kind": "acme/toy", "width": 3}
    assert config["distributions"] == {"acme-toys": "1.2.3", "fastsnn-core": importlib.metadata.version("fastsnn-core")}
    assert (config["fastsnn"], config["bundle"], config["tied"]) == (1, 1, {"1.weight": "0.weight"})


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_every_flipped_bit_and_truncation_is_refused_by_name(tmp_path_factory, data):
    path = save(build(Toy()), tmp_path_factory.mktemp("b") / "m.snn", tokenizer='{"a": 1}')
    file = data.draw(st.sampled_from(sorted(path.iterdir())))
    raw = bytearray(file.read_bytes())
    if data.draw(st.booleans()):
        raw[data.draw(st.integers(0, len(raw) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    else:
        raw = raw[: data.draw(st.integers(0, len(raw) - 1))]
    file.write_bytes(raw)
    with pytest.raises(BundleError, match=file.name):
        load(path)


@pytest.mark.parametrize("name", ["config.json", "weights.safetensors", "meta.json", "tokenizer.json"])
def test_a_missing_file_is_named(path, name):
    (path / name).unlink()
    with pytest.raises(BundleError, match=f"{name} is missing"):
        load(path)


def test_no_bundle_at_all(tmp_path):
    with pytest.raises(BundleError, match="does not exist"):
        load(tmp_path / "nothing.snn")
    (tmp_path / "file").write_text("x")
    with pytest.raises(BundleError, match="is a file"):
        load(tmp_path / "file")


def rewrite(path, change):
    """Alter config.json and seal the bundle again, as a careful forger (or a later version) would."""
    config = json.loads((path / "config.json").read_text())
    change(config)
    (path / "config.json").write_text(bundle.dump(config))
    meta = json.loads((path / "meta.json").read_text())
    meta["files"]["config.json"] = bundle.digest(path / "config.json")
    (path / "meta.json").write_text(bundle.dump(bundle.sealed(meta)))


def test_a_missing_plugin_says_what_to_install(path):
    rewrite(path, lambda c: (c["model"].update(kind="gone/net"), c["distributions"].update({"gone-nets": "0.4"})))
    with pytest.raises(BundleError, match=r"pip install 'gone-nets>=0.4'"):
        load(path)


def test_a_bundle_of_other_versions_says_so_in_one_sentence(path, caplog):
    load(path)
    assert caplog.messages == []
    made = {"fastsnn-core": "0.0.7", "numpy": "0.1", "gone-nets": "2.0"}  # what is not installed is no other version
    rewrite(path, lambda c: c["distributions"].update(made))
    assert load(path).spec == Toy()
    core, numpy = map(importlib.metadata.version, ("fastsnn-core", "numpy"))
    (said,) = caplog.messages
    others = f"fastsnn-core 0.0.7 (here {core}), numpy 0.1 (here {numpy})"
    assert said == f"{path} was made by {others}; if it behaves differently here, install those versions"


def test_a_newer_format_says_so(path):
    rewrite(path, lambda c: c.update(bundle=3))
    with pytest.raises(BundleError, match=r"bundle format 3.*newer fastsnn-core"):
        load(path)


def test_weights_that_do_not_fit_are_named(path):
    rewrite(path, lambda c: c["model"].update(width=4))
    with pytest.raises(BundleError, match=r"0.weight has shape \(3, 3\), \(4, 4\) expected"):
        load(path)


def test_a_file_outside_the_bundle_is_refused(path):
    meta = json.loads((path / "meta.json").read_text())
    meta["files"]["../outside"] = {"bytes": 1, "sha256": ""}
    (path / "meta.json").write_text(bundle.dump(bundle.sealed(meta)))
    (path.parent / "outside").write_text("x")
    with pytest.raises(BundleError, match="outside the folder"):
        load(path)


def test_a_failing_save_leaves_everything_as_it_was(path, monkeypatch):
    before = {p.name: p.read_bytes() for p in path.iterdir()}
    monkeypatch.setattr(bundle, "digest", lambda p: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        save(build(Toy()), path)
    assert {p.name: p.read_bytes() for p in path.iterdir()} == before
    assert [p.name for p in path.parent.iterdir()] == ["m.snn"]


def test_it_overwrites_bundles_only(tmp_path):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.txt").write_text("years of work")
    with pytest.raises(BundleError, match="is no bundle; it is left alone"):
        save(build(Toy()), tmp_path / "thesis")
    save(build(Toy()), tmp_path / "a.snn")
    save(build(Toy()), tmp_path / "a.snn")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.snn", "thesis"]


def test_other_number_types_survive(tmp_path):
    path = save(build(Toy()).to(torch.bfloat16), tmp_path / "h.snn")
    assert load(path)[0].weight.dtype == torch.bfloat16


def test_a_model_without_a_spec_says_what_to_do(tmp_path):
    with pytest.raises(BundleError, match=r"has no \.spec; build it with"):
        save(nn.Linear(2, 2), tmp_path / "x.snn")
    assert not list(tmp_path.iterdir())


def test_a_lost_bundle_points_at_what_was_kept(path):
    shutil.move(path, path.with_name(".m.snn.1-abc.old"))
    with pytest.raises(BundleError, match=r"an earlier version was kept at .*\.old"):
        load(path)


@pytest.mark.parametrize("name", ["tokenizer.json", "spike.report/index.html", "notes.txt", "deep/er/x.safetensors"])
def test_a_file_that_is_not_listed_is_refused(name, path, tmp_path):
    if name == "tokenizer.json":
        path = save(build(Toy()), tmp_path / "plain.snn")
    stranger = path / name
    stranger.parent.mkdir(parents=True, exist_ok=True)
    stranger.write_text("{}")
    with pytest.raises(BundleError, match=f"{name} is no part of it: meta.json does not list it"):
        load(path)


def test_a_link_that_is_not_listed_is_refused_and_a_file_managers_droppings_are_not(path):
    (path / ".DS_Store").write_text("")
    load(path)
    (path / "more").symlink_to(path.parent)
    with pytest.raises(BundleError, match="more is no part of it"):
        load(path)


def test_a_bundle_of_links_loads(path, tmp_path):
    """As a download cache lays it out."""
    there = tmp_path / "links.snn"
    there.mkdir()
    for file in path.iterdir():
        (there / file.name).symlink_to(file)
    assert torch.equal(load(there)[0].weight, load(path)[0].weight)


@pytest.mark.parametrize(
    ("file", "text"), [("config.json", "[]"), ("config.json", '{"distributions": 3}'), ("config.json", '{"tied": []}')]
)
def test_a_forged_config_is_refused_in_words(file, text, path):
    (path / file).write_text(text)
    meta = json.loads((path / "meta.json").read_text())
    meta["files"][file] = bundle.digest(path / file)
    (path / "meta.json").write_text(bundle.dump(bundle.sealed(meta)))
    with pytest.raises(BundleError):
        load(path)


@pytest.mark.parametrize("files", [None, [], {"config.json": 3}, {"/etc/hostname": {"bytes": 1, "sha256": ""}}])
def test_a_forged_list_of_files_is_refused_in_words(files, path):
    meta = json.loads((path / "meta.json").read_text()) | {"files": files}
    (path / "meta.json").write_text(bundle.dump(bundle.sealed(meta)))
    with pytest.raises(BundleError):
        load(path)


@pytest.mark.parametrize("mask", [0o022, 0o002, 0o077])
def test_permissions_are_what_the_umask_says(mask, tmp_path):
    before = os.umask(mask)
    try:
        made = save(build(Toy()), tmp_path / "m.snn")
    finally:
        os.umask(before)
    assert stat.S_IMODE(made.stat().st_mode) == 0o777 & ~mask
    for file in made.iterdir():
        assert stat.S_IMODE(file.stat().st_mode) == 0o666 & ~mask, file.name


@pytest.mark.parametrize("name", ["hf", "empty", "text.txt", "model.pt", "model.safetensors"])
def test_what_is_no_bundle_is_never_replaced(name, tmp_path):
    """A Hugging Face directory has a config.json, too."""
    if name == "hf":
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text('{"model_type": "llama"}')
    elif name == "empty":
        (tmp_path / name).mkdir()
    elif name == "text.txt":
        (tmp_path / name).write_text("precious")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(BundleError, match=r"no bundle|is a folder"):
        save(build(Toy()), tmp_path / name)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("moment", ["rename", "rmtree"])
def test_ctrl_c_while_a_folder_is_replaced_leaves_one_whole_folder(moment, tmp_path, monkeypatch):
    import shutil
    from pathlib import Path

    from fastsnn_core.files import beside

    place = tmp_path / "m.snn"
    place.mkdir()
    (place / "a").write_text("old")
    calls, real = [], {"rename": Path.rename, "rmtree": shutil.rmtree}[moment]

    def interrupted(*args, **kwargs):
        calls.append(args)
        if len(calls) == {"rename": 2, "rmtree": 1}[moment]:
            raise KeyboardInterrupt
        return real(*args, **kwargs)

    monkeypatch.setattr(Path if moment == "rename" else shutil, moment, interrupted)

    def replaced():
        with beside(place) as scratch:
            scratch.mkdir()
            (scratch / "a").write_text("new")

    with pytest.raises(KeyboardInterrupt):
        replaced()
    monkeypatch.undo()
    assert [p.name for p in tmp_path.iterdir()] == ["m.snn"]
    assert (place / "a").read_text() == ("old" if moment == "rename" else "new")


def test_ctrl_c_while_weights_are_read_is_an_interrupt(tmp_path):
    """torch turns a KeyboardInterrupt inside its making of a tensor into a ValueError about a storage's shape."""
    rows = [torch.zeros(8, 8) for _ in range(300)]
    path = tmp_path / "state.safetensors"
    state.save(rows, path)
    old = signal.signal(signal.SIGALRM, lambda *_: signal.raise_signal(signal.SIGINT))
    ctrl_c = signal.signal(signal.SIGINT, signal.default_int_handler)
    began = time.perf_counter()
    state.load(path, rows)
    whole, interrupted = time.perf_counter() - began, 0
    try:
        for i in range(200):
            try:
                signal.setitimer(signal.ITIMER_REAL, max(1e-5, whole * (i % 40) / 40))
                state.load(path, rows)
                signal.setitimer(signal.ITIMER_REAL, 0)
            except KeyboardInterrupt:
                interrupted += 1
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, old)
        signal.signal(signal.SIGINT, ctrl_c)
    assert interrupted > 50
