"""The live view in a headless Chromium: it opens, and a new row of the log arrives by itself."""

from __future__ import annotations

import json
import threading
from pathlib import Path

from fastsnn_kit.browser import Browser, browser  # noqa: F401
from fastsnn_scope.live import RunLog, server


def test_a_new_row_arrives_by_itself(browser: Browser, tmp_path: Path) -> None:  # noqa: F811
    log = tmp_path / "log.jsonl"
    rows = [{"step": n, "loss": 4.0 - 0.1 * n, "silent_fraction": 0.1 * n} for n in range(1, 6)]
    log.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    with server(RunLog(tmp_path), 0) as handle:
        thread = threading.Thread(target=handle.serve_forever, daemon=True)
        thread.start()
        try:
            browser.size(1280, 900)
            browser.do("Page.navigate", url=f"http://127.0.0.1:{handle.server_port}/")
            browser.until("document.body && document.body.innerText.includes('5 rows, step 5')")
            assert browser.js("document.getElementById('silent').offsetParent") is None, "a table without a row"
            newest = {"step": 6, "loss": 1.25, "silent": 0.7, "silent_sites": {"layers.0.hidden": 0.7}}
            with log.open("a", encoding="utf-8") as file:
                file.write(json.dumps(newest) + "\n")
            browser.until("document.body.innerText.includes('6 rows, step 6')")
            text = browser.js("document.body.innerText")
            assert "1.25" in text
            assert "layers.0.hidden\t70.0%" in text
            assert browser.js("document.querySelectorAll('canvas, svg').length") > 0
            browser.shot("live-desktop")
            browser.size(390, 844, mobile=True)
            assert browser.js("document.documentElement.scrollWidth") <= 390
            assert browser.barriers() == []
            here = f"http://127.0.0.1:{handle.server_port}/"
            assert {a for a in browser.asked if not a.startswith((here, "about:", "data:", "blob:"))} == set()
            assert browser.faults == []
        finally:
            handle.shutdown()
            thread.join()
