"""The report: self-contained, isolated from failing scopes, complete; and the ways to ask for it."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from typing import Any

import attrs
import pytest
import torch
from torch import Tensor, nn

from fastsnn_console import progress
from fastsnn_core import Model, Scope, SpikeSite, build, param
from fastsnn_leaky.neurons import Leaky
from fastsnn_scope import Scoped, report, scope
from fastsnn_scope.command import main

KEYWORDS = progress.Progress.__init__.__kwdefaults__

PNG = b"\x89PNG\r\n\x1a\n"


@attrs.frozen
class Net(Model):
    """A language model of one spiking layer."""

    name = "net"
    vocab_size: int = param(257, ge=1)

    def build(self) -> nn.Module:
        return NetModule(self.vocab_size)


class NetModule(nn.Module):
    def __init__(self, vocab_size: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(vocab_size, 8)
        self.site = SpikeSite(Leaky(beta=0.5, threshold=0.5, lo=-4.0, hi=4.0))
        self.head = nn.Linear(8, vocab_size)

    def forward(self, tokens: Tensor, state: Any = None, *, return_state: bool = False) -> Any:
        spikes, state = self.site(self.embed(tokens), state)
        return (self.head(spikes), state) if return_state else self.head(spikes)


class Images(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.site = SpikeSite(Leaky(beta=0.5, threshold=0.5, lo=0.0, hi=1.0))
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.site(x)[0])


@attrs.frozen
class Good(Scope):
    """Mean counts, drawn as bars.

    More of it.
    """

    name = "good"
    title = "Good <scope>"

    def measure(self, subject: Any) -> dict[str, Any]:
        means = {site: record.spikes.sparsity().mean_count for site, record in subject.trace.items()}
        table = {"title": "Means", "columns": ["site", "mean"], "rows": [[s, f"{m:.2f}"] for s, m in means.items()]}
        return {"means": means, "labels": list(subject.labels), "headline": [["a <label>", "1.0"]], "tables": [table]}

    def draw(self, data: dict[str, Any], figure: Any) -> None:
        axes = figure.add_subplot()
        axes.bar(range(len(data["means"])), list(data["means"].values()))
        axes.set_title("".join(data["labels"])).set_parse_math(False)


@attrs.frozen
class Bad(Scope):
    """Fails in the way it is told to."""

    name = "bad"
    title = "Bad"
    how: str = "raise"

    def measure(self, subject: Any) -> Any:
        if self.how == "raise":
            raise RuntimeError("planted <fault>")
        if self.how == "exit":
            raise SystemExit(3)
        return {"list": [1], "nan": {"x": float("nan")}, "headline": {"headline": "no list"}}.get(self.how, {"x": 1})

    def draw(self, data: dict[str, Any], figure: Any) -> None:
        raise ValueError("cannot draw")


@pytest.fixture
def model():
    torch.manual_seed(0)
    return build(Net()).eval()


class References(HTMLParser):
    """Everything a page points at."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.found += [v or "" for k, v in attributes if k in ("href", "src", "srcset", "action", "poster", "data")]


def check_self_contained(html: str) -> None:
    page = References()
    page.feed(html)
    assert {"link", "iframe", "object", "base"} & set(page.tags) == set()
    assert all(ref.startswith(("#", "data:image/png;base64,")) for ref in page.found), page.found[:3]
    bare = re.sub(r"base64,[A-Za-z0-9+/=]+|http://www.w3.org/2000/svg", "", html)
    assert not re.search(r"https?://|@import|url\(|fetch\(|XMLHttpRequest|WebSocket", bare)
    assert "default-src 'none'" in html  # and if a line slipped through, the browser would refuse it
    assert len(html.encode()) <= 3_000_000


def test_the_report_is_whole_and_self_contained(model, tmp_path):
    out = report(model, tmp_path / "deep" / "exp", text="spikes & $silence_", scopes=[Good()])
    assert out == tmp_path / "deep" / "exp"
    assert sorted(p.name for p in out.iterdir()) == ["good.png", "index.html", "report.json"]
    assert (out / "good.png").read_bytes().startswith(PNG)
    html = (out / "index.html").read_text(encoding="utf-8")
    check_self_contained(html)
    assert '<meta name="viewport"' in html
    assert "prefers-color-scheme: dark" in html
    assert "Good &lt;scope&gt;" in html
    assert "a &lt;label&gt;" in html
    assert "Mean counts, drawn as bars." in html
    assert "More of it" not in html
    found = json.loads((out / "report.json").read_text(encoding="utf-8"))
    assert found["model"]["parameters"] == 257 * 8 * 2 + 257
    assert found["model"]["spec"] == {"kind": "net", "vocab_size": 257}
    assert found["input"] == {
        "kind": "text", "text": "spikes & $silence_", "built_in": False, "tokens": 18, "used": 18
    }  # fmt: skip
    assert found["scopes"]["good"]["data"]["labels"] == list("spikes & $silence_")
    assert {"python", "torch", "fastsnn-core", "threads"} <= set(found["environment"])


@pytest.mark.parametrize(
    ("how", "says"),
    [
        ("raise", "measure: RuntimeError: planted &lt;fault&gt;"),
        ("exit", "measure: SystemExit: 3"),
        ("list", "measure: TypeError: measure returned list"),
        ("nan", "measure: ValueError: Out of range float values"),
        ("headline", "measure: TypeError: measure returned a &#x27;headline&#x27;"),
        ("draw", "draw: ValueError: cannot draw"),
    ],
)
def test_a_failing_scope_costs_its_own_panel_only(model, tmp_path, how, says):
    (tmp_path / "bad.png").write_bytes(b"of an earlier report")
    out = report(model, tmp_path, scopes=[Bad(how), Good()])
    html = (out / "index.html").read_text(encoding="utf-8")
    check_self_contained(html)
    assert "<strong>bad failed.</strong>" in html
    assert says in html
    assert (out / "good.png").is_file()
    assert not (out / "bad.png").exists()
    panels = json.loads((out / "report.json").read_text(encoding="utf-8"))["scopes"]
    assert "error" in panels["bad"]
    assert "error" not in panels["good"]


def test_a_slow_report_says_what_is_being_measured(model, monkeypatch, capsys):
    monkeypatch.delenv("FASTSNN_QUIET", raising=False)
    monkeypatch.setattr(progress, "TICK", 0.01)
    monkeypatch.setattr(progress.Progress.__init__, "__kwdefaults__", {**KEYWORDS, "delay": 0.001})
    found = scope(model)
    found.data()
    said = capsys.readouterr().err
    total = len(found.scopes) + 7
    assert f"measuring: {total}/{total} parts in " in said


def test_other_files_of_the_folder_are_left_alone(model, tmp_path):
    (tmp_path / "model.txt").write_text("mine")
    report(model, tmp_path, scopes=[Good()])
    report(model, tmp_path, scopes=[Good()])
    assert sorted(p.name for p in tmp_path.iterdir()) == ["good.png", "index.html", "model.txt", "report.json"]


def test_scoped_measures_once_and_shows_itself(model, tmp_path):
    look = scope(model, scopes=[Good()])
    assert isinstance(look, Scoped)
    first = look.data()
    look.report(tmp_path)
    assert look.data() is first
    assert json.loads((tmp_path / "report.json").read_text(encoding="utf-8")) == first
    frame = look._repr_html_()
    assert frame.startswith('<iframe srcdoc="&lt;!doctype html')
    assert frame.count('"') == 8  # the page inside is escaped: only the four attributes have quotes
    assert 'sandbox="allow-scripts"' in frame  # it cannot reach the notebook


def test_training_mode_is_given_back(model):
    model.train()
    scope(model, scopes=[Good()]).data()
    assert model.training


def test_text_tokens_and_images(model):
    built_in = scope(model, scopes=[Good()], limit=5)
    assert built_in.about["built_in"]
    assert (built_in.about["used"], built_in.inputs.shape) == (5, (1, 5))
    ids = scope(model, tokens=torch.tensor([[104, 105]]), scopes=[Good()])
    assert ids.labels == ("h", "i")
    small = build(Net(vocab_size=9))
    assert scope(small, tokens=torch.tensor([[1, 2]]), scopes=[Good()]).labels == ()
    pictures = scope(Images(), tokens=torch.rand(1, 3, 4), scopes=[Good()])
    assert pictures.about == {"kind": "values", "shape": [1, 3, 4]}
    assert "site" in pictures.data()["scopes"]["good"]["data"]["means"]


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"text": "a", "tokens": torch.zeros(1, 1)}, "text or tokens, not both"),
        ({"text": ""}, "the text is empty"),
        ({"tokens": torch.zeros(3)}, r"\[B, T\]"),
        ({"limit": 0}, "at least one token"),
        ({"scopes": [Good(), Good()]}, "each scope once"),
    ],
)
def test_arguments_that_cannot_be_meant(model, given, says):
    with pytest.raises(ValueError, match=says):
        scope(model, **given)


def test_models_that_need_their_input_say_so():
    with pytest.raises(ValueError, match="no language model: give its input as tokens="):
        scope(Images())
    with pytest.raises(ValueError, match="give token ids as tokens="):
        scope(build(Net(vocab_size=9)))
    with pytest.raises(LookupError, match="no scope called 'rastre'"):
        scope(build(Net()), scopes=["rastre"])


def test_the_command_writes_a_report_of_a_bundle(tmp_path, monkeypatch, capsys):
    decoder = pytest.importorskip("fastsnn_model_decoder").Decoder
    pytest.importorskip("fastsnn_scope_raster")
    from fastsnn_core import save

    bundle = save(build(decoder(d_model=16, n_layers=1, n_heads=2)), tmp_path / "tiny.snn")
    monkeypatch.chdir(tmp_path)
    assert main([str(bundle), "--text", "hello", "--scope", "raster"]) == 0
    assert capsys.readouterr().out.strip() == "tiny.report/index.html"
    assert (tmp_path / "tiny.report" / "raster.png").is_file()
    (tmp_path / "story.txt").write_text("once")
    assert main([str(bundle), "--text", "story.txt", "--scope", "raster", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["input"]["text"] == "once"
    assert found["model"]["meta"]["environment"]
    with pytest.raises(FileNotFoundError, match=r"absent\.txt"):
        main([str(bundle), "--text", "absent.txt"])


def test_every_installed_scope_over_a_decoder(tmp_path):
    decoder = pytest.importorskip("fastsnn_model_decoder").Decoder
    names = ["sparsity", "raster", "membrane", "scaling", "energy", "paths"]
    for name in names:
        pytest.importorskip(f"fastsnn_scope_{name}")
    from fastsnn_core import create

    scopes = [create("scope", n, **({"lengths": (4, 8), "repeats": 1} if n == "scaling" else {})) for n in names]
    model = build(decoder(d_model=16, n_layers=2, n_heads=2))
    out = report(model, tmp_path, scopes=scopes, limit=12)
    panels = json.loads((out / "report.json").read_text(encoding="utf-8"))["scopes"]
    assert {name: panel.get("error") for name, panel in panels.items()} == dict.fromkeys(names)
    check_self_contained((out / "index.html").read_text(encoding="utf-8"))
    assert all((out / f"{name}.png").read_bytes().startswith(PNG) for name in names)
    assert set(names) <= {s.name for s in scope(model).scopes}


def test_third_party_scopes_are_ordered_after_ours_and_twins_are_named(monkeypatch, caplog):
    from fastsnn_scope import scoped

    first = attrs.frozen(type("First", (Good,), {"name": "first", "order": 1}))
    monkeypatch.setattr(scoped, "classes", lambda kind: [("a", Good), ("b", first), ("c", Good)])
    assert [s.name for s in scoped.choose_scopes(None)] == ["first", "good"]
    assert "'good' is offered twice; that of c is left out" in caplog.text


def test_figures_of_a_conversion_are_whole_where_they_count():
    from types import SimpleNamespace

    from fastsnn_scope.quality import lost

    quality = {"perplexity": 6.76612, "perplexity_error": 0.971, "tokens": 16384, "steps": 5.0, "windows": 32}
    model = SimpleNamespace(meta={"milestones": [{"what": "convert", "source": "hf", "quality": quality}]})
    assert lost(model)[0].startswith("Converted from hf: perplexity 6.766 ± 0.97, tokens 16,384, steps 5; measured on")
