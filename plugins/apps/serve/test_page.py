"""The page at ``/`` in a headless Chromium: a chat by keyboard, spikes beside it, on a phone and in the dark."""

from __future__ import annotations

from starlette.testclient import TestClient

from fastsnn_kit.browser import Browser, browser  # noqa: F401
from fastsnn_serve import app, serve
from fastsnn_serve.page import source
from fastsnn_serve.testing import decoder


def test_the_page_asks_nobody_else_and_needs_no_build() -> None:
    text, policy = source()
    assert "http://" not in text.replace("http://www.w3.org/2000/svg", "")
    assert "https://" not in text
    assert "src=" not in text.replace('href="data:,"', "")
    assert policy.count("'sha256-") == 2
    assert "connect-src 'self'" in policy
    with TestClient(app(decoder(d_model=16, n_layers=1), "<b>x</b>")) as http:
        page = http.get("/", headers={"Accept": "text/html"})
        assert page.headers["content-security-policy"] == policy
        assert "<b>x" not in page.text
        assert "<!--" not in page.text.replace("<!doctype", "")


def test_a_chat_by_keyboard_with_spikes_beside_it(browser: Browser) -> None:  # noqa: F811
    with serve(decoder(d_model=32, n_layers=4), port=0, block=False, name="tiny", api_keys=["k"]) as handle:
        browser.do("Emulation.setDeviceMetricsOverride", width=1200, height=800, deviceScaleFactor=1, mobile=False)
        browser.do("Page.navigate", url=handle.url + "/")
        browser.until("document.readyState === 'complete' && document.activeElement.id === 'text'")
        browser.js("document.getElementById('max_tokens').value = 48; document.getElementById('temperature').value = 0")
        browser.do("Input.insertText", text="Hello")
        browser.press("Enter", 13)
        browser.until("document.querySelector('.fault') !== null")  # no key yet: said, and the text is not lost
        assert "wants a key" in browser.js("document.querySelector('.fault').textContent")
        assert browser.js("document.getElementById('text').value") == "Hello"
        browser.js("document.getElementById('key').value = 'k'; document.getElementById('about').open = false")
        browser.press("Enter", 13)
        browser.until("!running && document.querySelectorAll('svg rect').length > 20")
        answer = browser.js("[...document.querySelectorAll('.turn')].at(-1).querySelector('.said').textContent")
        assert len(answer) > 10
        side = browser.js("[...document.querySelectorAll('.spikes')].at(-1).textContent")
        assert "Silent bytes per token" in side
        assert "tokens" in side and "cached" in side  # noqa: PT018
        assert browser.js("past.length") == 2
        browser.shot("desktop")

        browser.js("document.getElementById('max_tokens').value = 100000")
        browser.do("Input.insertText", text="Again")
        browser.press("Enter", 13)
        browser.until("running !== null")
        browser.press("Escape", 27)
        browser.until("running === null")
        browser.press("n", 78, modifiers=1)
        browser.until("document.querySelectorAll('.turn').length === 0")

        browser.js("document.getElementById('max_tokens').value = 40")
        browser.do("Emulation.setDeviceMetricsOverride", width=360, height=740, deviceScaleFactor=2, mobile=True)
        browser.do("Input.insertText", text="On a phone, with a question that is longer than one line")
        browser.press("Enter", 13)
        browser.until("!running && document.querySelectorAll('svg rect').length > 20")
        assert browser.js("document.documentElement.scrollWidth") <= 360  # nothing sticks out
        browser.shot("phone")
        browser.do("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": "dark"}])
        dark = browser.js("getComputedStyle(document.body).backgroundColor")
        assert dark == "rgb(18, 22, 27)"
        browser.shot("phone-dark")
        browser.do("Emulation.setDeviceMetricsOverride", width=1200, height=800, deviceScaleFactor=1, mobile=False)
        browser.js("document.getElementById('about').open = true; document.getElementById('log').scrollTop = 0")
        browser.shot("desktop-dark")

        assert {url for url in browser.asked if not url.startswith((handle.url, "data:"))} == set()
        assert [e for e in browser.faults if "401" not in e["params"].get("entry", {}).get("text", "")] == []


def test_axe_finds_no_barriers(browser: Browser) -> None:  # noqa: F811
    with serve(decoder(d_model=32, n_layers=2), port=0, block=False, name="tiny") as handle:
        browser.size(1200, 800)
        browser.do("Page.navigate", url=handle.url + "/")
        browser.until("document.readyState === 'complete' && document.activeElement.id === 'text'")
        browser.js("document.getElementById('max_tokens').value = 24; document.getElementById('about').open = true")
        browser.do("Input.insertText", text="Hello")
        browser.press("Enter", 13)
        browser.until("!running && document.querySelectorAll('svg rect').length > 4")
        for scheme in ("light", "dark"):
            browser.do("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
            browser.size(1200, 800)
            assert browser.barriers() == [], scheme
            browser.size(390, 844, mobile=True)
            assert browser.barriers() == [], f"{scheme}, phone"
