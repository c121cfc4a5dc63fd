"""Pages that are made: NOTES with a figure a section, the map of conversions from JSON, how to cite."""

from __future__ import annotations

import importlib
import json
import re
import sys
import tomllib
from pathlib import Path

import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "docs"))
import convert_map  # noqa: E402
import make_site  # noqa: E402
import notes_figures  # noqa: E402

import fastsnn_core  # noqa: E402

NOTES = notes_figures.NOTES.read_text(encoding="utf-8")
SECTIONS = notes_figures.sections(NOTES)


def test_every_section_of_the_notes_is_a_page_with_its_figure(tmp_path, monkeypatch):
    monkeypatch.setattr(make_site, "PAGES", tmp_path)
    rows = make_site.notes(make_site.targets())
    assert len(rows) == len(SECTIONS) + 2
    for n in range(1, len(SECTIONS) + 1):
        page, picture = tmp_path / f"notes/{n:02d}.md", tmp_path / f"notes/{n:02d}.png"
        text, dark = page.read_text(encoding="utf-8"), picture.with_suffix(".dark.png")
        assert f"]({picture.name}#only-light)" in text
        assert f"]({dark.name}#only-dark)" in text
        with Image.open(dark) as image:
            assert image.convert("RGBA").getpixel((0, 0))[3] == 0, "a white ground on a dark page"
        assert picture.read_bytes().startswith(b"\x89PNG")
        assert picture.stat().st_size > 5000, f"{page}: nothing is drawn"


@pytest.mark.parametrize("section", SECTIONS, ids=lambda s: s.partition("\n")[0][:40])
def test_a_figure_says_what_its_section_says(section):
    labels, series, values = notes_figures.figures_of(section)
    assert len(values) == len(series)
    assert {len(row) for row in values} == {len(labels)}
    drawn = [v for row in values for v in row if v is not None]
    assert len(drawn) >= 3
    stand = {float(x) for x in re.findall(r"-?\d+(?:\.\d+)?", section)}
    assert set(drawn) <= stand
    assert notes_figures.picture_of(section).says.endswith(".")


def test_every_figure_has_its_section_and_a_number_that_is_gone_is_an_error():
    for start in notes_figures.PICTURES:
        assert sum(s.startswith(start) for s in SECTIONS) == 1, start
    with pytest.raises(KeyError, match="no figure for the section 'Something new'"):
        notes_figures.picture_of("Something new\n\ntext")
    (kill,) = (s for s in SECTIONS if s.startswith("Kill and resume"))
    with pytest.raises(ValueError, match="'20 of 20' does not stand there"):
        notes_figures.figures_of(kill.replace("20 of 20", "19 of 20"))


def test_the_map_of_conversions_is_made_of_the_measured_json():
    found = json.loads(convert_map.RESULTS.read_text(encoding="utf-8"))
    text = convert_map.PAGE.read_text(encoding="utf-8")
    assert convert_map.page(text, found) == text, "run: python docs/convert_map.py"
    rows = [row for rows in found["rows"].values() for row in rows]
    assert {"stories", "images"} <= set(found["rows"])
    assert all({"from", "to", "loss", "measure", "speed", "script"} <= set(row) for row in rows)
    changed = json.loads(json.dumps(found))
    changed["rows"]["images"][0]["speed"] = 77.0
    assert "| 77.00 |" in convert_map.page(text, changed)
    assert "/" not in json.dumps(found["machine"]).replace("w/", ""), "no path of a machine"


def test_every_plugin_is_a_page_with_what_show_says_and_who_uses_it(tmp_path, monkeypatch):
    monkeypatch.setattr(make_site, "PAGES", tmp_path)
    found = make_site.plugins(make_site.targets())
    folders = [p.parent for p in ROOT.glob("plugins/*/*/pyproject.toml")]
    assert sum(map(len, found.values())) == len(folders)
    for folder in folders:
        page = tmp_path / f"plugins/{folder.parent.name}-{folder.name}.md"
        text = page.read_text(encoding="utf-8")
        named = tomllib.loads((folder / "pyproject.toml").read_text(encoding="utf-8"))["project"].get(
            "entry-points", {}
        )
        if folder.parent.name == "neurons":
            assert all(f"## fastsnn show {name}\n\n```text\nneuron " in text for name in named["fastsnn1"])
    lif = (tmp_path / "plugins/neurons-lif.md").read_text(encoding="utf-8")
    linked = re.findall(r"\]\(\.\./gallery/(\w+)\.md\)", lif)
    assert linked
    assert {*linked} <= {script.stem for script in make_site.scripts()}
    assert all(f"(../gallery/{name}.dark.png#only-dark)" in lif for name in linked), "a picture of each"


def test_the_reference_has_the_public_functions_and_classes_and_no_other(tmp_path, monkeypatch):
    monkeypatch.setattr(make_site, "PAGES", tmp_path)
    rows = make_site.reference()
    assert [name for name, _ in rows] == list(make_site.PACKAGES)
    for package, page in rows:
        module = importlib.import_module(package)
        named = [v for n in module.__all__ if hasattr(v := getattr(module, n), "__qualname__")]
        said = re.findall(r"^::: ([\w.]+)$", (tmp_path / page).read_text(encoding="utf-8"), re.MULTILINE)
        assert len(said) == len(set(said)), page
        assert set(said) == {f"{v.__module__}.{v.__qualname__}" for v in named}, page
    assert "::: fastsnn.api.FastSNN" in (tmp_path / "api/fastsnn.md").read_text(encoding="utf-8")


def test_what_a_page_fetches_from_elsewhere_is_found(tmp_path):
    bare = '<a href="https://example.org">out</a><script src="assets/a.js"></script><link rel=canonical href="https://a.b">'
    (tmp_path / "good.html").write_text(bare)
    (tmp_path / "deep").mkdir()
    assert make_site.outside(tmp_path) == []
    (tmp_path / "deep/bad.html").write_text('<p><script async src="https://cdn.example.org/shim"></script>')
    (tmp_path / "deep/worse.html").write_text("<link rel=stylesheet href=//fonts.example.org/css>")
    found = make_site.outside(tmp_path)
    assert [row.partition(":")[0] for row in found] == ["deep/bad.html", "deep/worse.html"]


def test_how_to_cite_names_the_version():
    text = (ROOT / "docs" / "cite.md").read_text(encoding="utf-8")
    assert f"version = {{{fastsnn_core.__version__}}}" in text
    assert "CITATION.cff" in text


def test_the_glossary_is_in_order_and_says_each_word_once():
    rows = re.findall(r"^\| ([^|]+) \| ", (ROOT / "docs" / "glossary.md").read_text(encoding="utf-8"), re.MULTILINE)
    words = [row.lower() for row in rows if row not in ("word", "---")]
    assert words == sorted(set(words))
    assert len(words) >= 25
