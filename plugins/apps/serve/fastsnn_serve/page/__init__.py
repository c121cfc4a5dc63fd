"""The response to ``GET /``: a chat page with spikes beside each answer for browsers, JSON for other clients.

One HTML file without a build step and without outside requests; its policy allows its own script and this server alone.
"""

from __future__ import annotations

import base64
import hashlib
from functools import cache
from html import escape
from importlib.resources import files
from typing import Any

from starlette.requests import Request
from starlette.responses import HTMLResponse, Response

from fastsnn_serve.http.request_task import Json


@cache
def source() -> tuple[str, str]:
    """``(page, content security policy)``."""
    text = files(__package__).joinpath("page.html").read_text(encoding="utf-8")

    def hashed(tag: str) -> str:
        inside = text.split(f"<{tag}>", 1)[1].split(f"</{tag}>", 1)[0]
        return "'sha256-" + base64.b64encode(hashlib.sha256(inside.encode()).digest()).decode() + "'"

    rules = (
        "default-src 'none'", "connect-src 'self'", "img-src data:", "base-uri 'none'", "form-action 'none'",
        "frame-ancestors 'none'", f"script-src {hashed('script')}", f"style-src {hashed('style')}",
    )  # fmt: skip
    return text, "; ".join(rules)


def front_page(request: Request, about: dict[str, Any]) -> Response:
    """`about`: server, version, model, max_model_len, paths ``[[method, path, what], …]``."""
    if "text/html" not in request.headers.get("accept", ""):
        return Json(about)
    text, policy = source()
    rows = "".join(
        f"<tr><td>{escape(method)}</td><td><code>{escape(path)}</code></td><td>{escape(what)}</td></tr>"
        for method, path, what in about["paths"]
    )
    says = {
        "MODEL": escape(about["model"]), "VERSION": escape(about["version"]), "PATHS": rows,
        "URL": escape(str(request.base_url).rstrip("/")),
    }  # fmt: skip
    for name, value in says.items():
        text = text.replace(f"<!--{name}-->", value)
    return HTMLResponse(text, headers={"Content-Security-Policy": policy, "Cache-Control": "no-cache"})
