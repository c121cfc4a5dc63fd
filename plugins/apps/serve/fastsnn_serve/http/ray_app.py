"""The same application as a Ray Serve deployment: several replicas, one address.

    pip install fastsnn-serve[ray]
    serve run fastsnn_serve.http.ray_app:build bundle=model.snn replicas=2

Each replica loads the bundle (a path that every node sees) and has its own engine and prefix cache.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fastsnn_core.errors import FastSNNError, MissingError


def build(args: dict[str, str]) -> Any:
    """A Ray Serve application from ``key=value``: bundle, and optionally name, device, replicas, max_streams."""
    known = {"bundle", "name", "device", "replicas", "max_streams"}
    if "bundle" not in args or set(args) - known:
        others = ", ".join(sorted(known - {"bundle"}))
        raise FastSNNError(f"expected bundle=PATH and optionally {others}; got {sorted(args)}")
    try:
        from ray import serve
    except ImportError:
        raise MissingError("fastsnn_serve.http.ray_app needs Ray: pip install fastsnn-serve[ray]") from None
    streams, bundle = int(args.get("max_streams", 16)), str(Path(args["bundle"]).resolve())  # replicas work elsewhere

    def asgi() -> Any:
        from fastsnn_serve import app

        return app(bundle, args.get("name"), device=args.get("device", "cpu"), max_streams=streams)

    deployment: Any = serve.deployment(serve.ingress(asgi)(), name="fastsnn", num_replicas=int(args.get("replicas", 1)))
    return deployment.options(max_ongoing_requests=4 * streams).bind()
