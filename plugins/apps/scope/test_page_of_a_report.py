"""The report in a headless Chromium: pan, open a cell, sort, filter, deep link, keyboard alone; phone and dark."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

import pytest
import torch

from fastsnn_core import build
from fastsnn_kit.browser import Browser, browser  # noqa: F401
from fastsnn_scope import scope
from fastsnn_scope.cells import Arrays
from fastsnn_scope.page import page as html_of

decoder = pytest.importorskip("fastsnn_model_decoder").Decoder
DECIDED = {
    "samples": 8,
    "curve": [{"step": 1, "accuracy": 0.5, "spikes": 90.0}, {"step": 2, "accuracy": 0.75, "spikes": 210.0}],
    "exits": [{"confidence": 0.9, "accuracy": 0.75, "mean_steps": 1.5, "spikes": 150.0}],
    "decision_step": 1.25,
}
TEXT = "Once upon a time a neuron was silent, and nobody read its row. " * 3


def opened(browser: Browser, url: str, **size: Any) -> None:  # noqa: F811
    browser.size(**({"width": 1200, "height": 1400} | size))
    browser.do("Page.navigate", url="about:blank")
    browser.do("Page.navigate", url=url)
    browser.until("document.readyState === 'complete' && window.spikescope && window.spikescope.ready")


def tab(browser: Browser, until: str, most: int = 400) -> None:  # noqa: F811
    """Tab until an expression is true."""
    for _ in range(most):
        if browser.js(until):
            return
        browser.press("Tab", 9)
    raise AssertionError(f"no Tab leads to {until}")


def processor_ms(browser: Browser) -> float:  # noqa: F811
    """What the page's own thread has computed: script, layout, and the canvas drawn without a GPU."""
    found = {row["name"]: row["value"] for row in browser.do("Performance.getMetrics")["metrics"]}
    return 1e3 * found["ThreadTime"]


def test_a_reader_asks_the_page(browser: Browser, tmp_path: Path) -> None:  # noqa: F811
    torch.manual_seed(0)
    model = build(decoder(d_model=32, n_layers=6, n_heads=2)).eval()
    look = scope(model, text=TEXT, scopes=[])
    found = look.data()
    page = look.report(tmp_path / "report") / "index.html"
    url = page.as_uri()
    opened(browser, url)
    assert browser.js("document.getElementById('plain').hidden")
    said = browser.js("document.getElementById('saved').innerText")
    assert all(row["value"] in said for row in found["saved"])

    # pan with the mouse, zoomed in; the frame keeps up
    browser.js("document.getElementById('map').scrollIntoView({block: 'center'})")
    for _ in range(4):
        browser.js("document.getElementById('in').click()")
    box = browser.js("(b => [b.x, b.y, b.width, b.height])(document.getElementById('map').getBoundingClientRect())")
    x, y = box[0] + box[2] * 0.7, box[1] + box[3] / 2
    before = browser.js("[spikescope.view.x, spikescope.frames]")
    mouse = {"button": "left", "buttons": 1, "clickCount": 1}
    browser.do("Input.dispatchMouseEvent", type="mousePressed", x=x, y=y, **mouse)
    for step in range(1, 11):
        browser.do("Input.dispatchMouseEvent", type="mouseMoved", x=x - 12 * step, y=y, **mouse)
    browser.do("Input.dispatchMouseEvent", type="mouseReleased", x=x - 120, y=y, **mouse)
    after = browser.js("[spikescope.view.x, spikescope.frames]")
    assert after[0] > before[0]
    assert browser.js("document.getElementById('cell').hidden")  # a drag is no click

    # a click opens the cell that lies there
    browser.js("document.getElementById('fit').click()")
    s, t = 9, 40
    row, columns = found["cells"]["sites"][s], found["cells"]["columns"]
    gutter = 190
    x = box[0] + gutter + (box[2] - gutter) * (t + 0.5) / columns
    box = browser.js("(b => [b.x, b.y, b.width, b.height])(document.getElementById('map').getBoundingClientRect())")
    y = box[1] + box[3] * (s + 0.5) / len(found["cells"]["sites"])
    for kind in ("mousePressed", "mouseReleased"):
        browser.do("Input.dispatchMouseEvent", type=kind, x=x, y=y, **mouse)
    browser.until("!document.getElementById('cell').hidden")
    facts = browser.js("document.getElementById('facts').innerText")
    assert f"{row['channels'] - row['active'][t]} of {row['channels']}" in facts
    assert row["site"] in browser.js("document.getElementById('cellname').textContent")
    ink = "[...document.getElementById('raster').getContext('2d').getImageData(0, 0, 900, 60).data].some(v => v)"
    assert browser.js(ink)
    counts = look.arrays.counts[s][:, t]
    told = browser.js("document.getElementById('raster').getAttribute('aria-label')")
    assert told.startswith(f"{int((counts != 0).sum())} of the {len(counts)} channels")

    # sort and filter
    sites = "[...document.querySelectorAll('#sites tbody tr')].map(r => r.cells[0].innerText)"
    header = "[...document.querySelectorAll('#sites th button')].find(b => b.textContent === 'silent')"
    browser.js(f"{header}.click()")
    by_silence = sorted(found["cells"]["sites"], key=lambda r: -r["silent_fraction"])
    assert browser.js(sites) == [r["site"] for r in by_silence]
    assert browser.js(f"{header}.parentNode.getAttribute('aria-sort')") == "descending"
    browser.js("document.getElementById('filter').focus()")
    browser.do("Input.insertText", text="layers.3 hidden")
    assert browser.js(sites) == ["layers.3.feedforward.hidden"]
    browser.until("location.hash.includes('q=layers.3')")
    deep = browser.js("location.href")
    browser.shot("report-desktop")

    # the address alone brings the same view back
    opened(browser, deep)
    assert browser.js(sites) == ["layers.3.feedforward.hidden"]
    assert browser.js("[spikescope.view.s, spikescope.view.t, spikescope.view.open]") == [s, t, 1]
    assert browser.js("document.getElementById('facts').innerText").startswith(facts[:40])

    # keyboard alone: to the map, to a cell, in, and out again
    opened(browser, url)
    tab(browser, "document.activeElement.id === 'map'")
    for key, code in (("ArrowDown", 40), ("ArrowDown", 40), ("ArrowRight", 39)):
        browser.press(key, code)
    assert browser.js("[spikescope.view.s, spikescope.view.t]") == [2, 1]
    second = found["cells"]["sites"][2]
    assert second["site"] in browser.js("document.getElementById('say').textContent")
    browser.press("+", 187, text="+")
    assert browser.js("spikescope.view.z") > 1
    browser.press("Enter", 13)
    assert browser.js("document.activeElement.id") == "cell"
    browser.press("Escape", 27)
    assert browser.js("[document.activeElement.id, document.getElementById('cell').hidden]") == ["map", True]

    # every control has a name, every picture an alternative
    unnamed = browser.js(
        "[...document.querySelectorAll('button, select, input, canvas, img')].filter(e => e.offsetParent && !("
        "e.textContent.trim() || e.alt || e.getAttribute('aria-label') || e.closest('label'))).map(e => e.outerHTML)"
    )
    assert unnamed == []
    ids = browser.js("[...document.querySelectorAll('[id]')].map(e => e.id)")
    assert len(set(ids)) == len(ids)

    # a phone, and the dark
    opened(browser, deep, width=390, height=844, mobile=True)
    assert browser.js("document.documentElement.scrollWidth") <= 390
    browser.shot("report-phone")
    browser.do("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": "dark"}])
    assert browser.js("getComputedStyle(document.body).backgroundColor") == "rgb(22, 25, 29)"
    browser.shot("report-phone-dark")
    assert {a for a in browser.asked if not a.startswith(("file:", "about:", "data:", "blob:"))} == set()
    assert browser.faults == []


def test_without_a_script_the_sites_are_a_table(browser: Browser, tmp_path: Path) -> None:  # noqa: F811
    torch.manual_seed(0)
    look = scope(build(decoder(d_model=16, n_layers=1, n_heads=2)).eval(), text=TEXT, scopes=[])
    page = look.report(tmp_path / "report") / "index.html"
    browser.do("Emulation.setScriptExecutionDisabled", value=True)
    browser.seen.clear()
    browser.do("Page.navigate", url=page.as_uri())
    while not any(e["method"] == "Page.loadEventFired" for e in browser.seen):
        browser.seen.append(browser.frame())
    tree = browser.do("DOM.getDocument")
    shown = [
        browser.do("DOM.querySelector", nodeId=tree["root"]["nodeId"], selector=s)["nodeId"]
        for s in ("#plain:not([hidden])", "#app[hidden]", "#plain td")
    ]
    assert all(shown)


def test_a_map_of_512_tokens_and_120_sites_pans_and_stays_small(browser: Browser, tmp_path: Path) -> None:  # noqa: F811
    look = scope(build(decoder(d_model=64, n_layers=1, n_heads=2)).eval(), text=TEXT, scopes=[])
    found, draw = look.data(), torch.Generator().manual_seed(0)
    X, S = 512, 120
    cells = found["cells"] | {"columns": X, "labels": [f"w{t}" for t in range(X)]}
    cells["sites"] = [
        cells["sites"][n % 4]
        | {"site": f"layers.{n // 4}.site{n % 4}", "active": torch.randint(0, 65, (X,), generator=draw).tolist()}
        | {"spikes": torch.randint(0, 99, (X,), generator=draw).tolist()}
        for n in range(S)
    ]
    found |= {"cells": cells, "divergence": {"kl": [0.1] * X, "nats": 1.0, "nats_numbers": 1.0}}
    counts = torch.poisson(torch.full((S, 32, X), 0.6), generator=draw).to(
        torch.int8
    )  # spikes that do not deflate well
    traces = torch.randn(S, 3, X, generator=draw)
    arrays = Arrays([*counts], [[*range(32)]] * S, [*traces], [[0, 1, 2]] * S, [torch.rand(X, generator=draw)] * S)
    page = tmp_path / "index.html"
    page.write_text(html_of(found, {}, arrays), encoding="utf-8")
    assert page.stat().st_size <= 3_000_000
    opened(browser, page.as_uri() + "#z=6&x=10&y=10")
    assert browser.js("JSON.parse(document.getElementById('data').textContent).blob.length") > 100_000
    browser.do("Performance.enable", timeDomain="threadTicks")  # of the page's thread: what others do does not count
    before, drawn = processor_ms(browser), browser.js("spikescope.frames")
    gaps = browser.js(
        "new Promise(done => { const map = document.getElementById('map'), gaps = []; let last = performance.now();"
        "const go = () => { const now = performance.now(); gaps.push(now - last); last = now;"
        " map.dispatchEvent(new WheelEvent('wheel', {deltaX: 7, deltaY: 3, cancelable: true}));"
        " if (gaps.length < 60) requestAnimationFrame(go); else done(gaps); }; requestAnimationFrame(go); })"
    )
    drawn = browser.js("spikescope.frames") - drawn
    assert drawn >= 55, "a frame of the screen draws the map once"
    spent = (processor_ms(browser) - before) / drawn
    assert spent <= 16.7 / 2, f"{spent:.1f} ms of processor time; a frame has 16.7, half of them for the browser itself"
    assert statistics.mean(gaps) < 50  # ms from frame to frame here, without a GPU on a busy machine
    assert browser.faults == []


def test_axe_finds_no_barriers(browser: Browser, tmp_path: Path) -> None:  # noqa: F811
    torch.manual_seed(0)
    model = build(decoder(d_model=32, n_layers=2, n_heads=2)).eval()
    points = [[0.1, 10.0], [0.3, 10.5]]
    tuned = {"x": "silent bytes", "y": "perplexity", "points": points, "chosen": points[1]}
    model.meta = {"milestones": [{"what": "tune", "curve": tuned}]}
    look = scope(model, text=TEXT)
    look.data()["decisions"] = DECIDED
    page = look.report(tmp_path / "report") / "index.html"
    for scheme in ("light", "dark"):
        browser.do("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        opened(browser, page.as_uri())
        browser.js("document.querySelectorAll('details').forEach(d => d.open = true)")
        assert browser.barriers() == [], scheme
        browser.size(390, 844, mobile=True)
        assert browser.barriers() == [], f"{scheme}, phone"
    browser.size(1280, 900)
    wide = browser.js("[...document.querySelectorAll('figure input')].map(e => e.offsetWidth)")
    assert len(wide) >= 4
    assert max(wide) < 30, "a box to tick stands beside its word"
    boxes = "[...document.querySelectorAll('#saved .cards li')].map(e => e.getBoundingClientRect())"
    rows = dict(browser.js(f"{boxes}.map(b => [Math.round(b.top), b.right])"))  # the last one of every row
    assert len(rows) > 1
    assert max(rows.values()) - min(rows.values()) < 2, "every row of figures is full"
    told = browser.js("[...document.querySelectorAll('#lost code')].map(e => e.innerText)")
    assert told[0].startswith("fastsnn export model.snn --to w8a")
    browser.js("document.documentElement.lang = ''")
    assert any(line.startswith("html-has-lang") for line in browser.barriers())
