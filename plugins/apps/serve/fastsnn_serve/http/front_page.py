"""What ``GET /`` says: which model is served, and by which paths; a page for browsers, JSON for everything else."""

from __future__ import annotations

import json
from html import escape
from typing import Any

from starlette.requests import Request
from starlette.responses import HTMLResponse, Response

from fastsnn_serve.http.request_task import Json

STYLE = """:root{color-scheme:light dark}body{font:16px/1.5 system-ui,sans-serif;max-width:44em;margin:2em auto;
padding:0 1em}pre{overflow-x:auto;padding:.7em;border:1px solid #8888;border-radius:6px}td{padding:.1em 1em .1em 0}"""


def front_page(request: Request, about: dict[str, Any]) -> Response:
    """`about`: server, version, model, max_model_len, paths ``[[method, path, what], …]``."""
    if "text/html" not in request.headers.get("accept", ""):
        return Json(about)
    url = str(request.base_url).rstrip("/")
    body = json.dumps({"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 64})
    rows = "".join(
        f"<tr><td>{escape(method)}</td><td><code>{escape(path)}</code></td><td>{escape(what)}</td></tr>"
        for method, path, what in about["paths"]
    )
    name, title = escape(about["model"]), f"FastSNN: {escape(about['model'])}"
    return HTMLResponse(
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{title}</title>\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<style>{STYLE}</style></head><body><h1>{title}</h1>\n"
        f"<p>This is {escape(about['server'])} {escape(about['version'])}. It serves <code>{name}</code> with "
        f"OpenAI's protocol: give a client <code>{escape(url)}/v1</code> as its base URL, with any key.</p>\n"
        f"<pre>curl {escape(url)}/v1/chat/completions -d '{escape(body)}'</pre>\n"
        f"<table>{rows}</table></body></html>\n"
    )
