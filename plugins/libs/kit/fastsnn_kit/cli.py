"""``fastsnn test``: the conformance kit over installed plugins."""

from __future__ import annotations

from fastsnn_core.arguments import Parser, choice
from fastsnn_core.errors import UserError


def test(argv: list[str]) -> int:
    """Run the conformance kit over one plugin (installed, or loaded with -p), or over all of them."""
    args = Parser("test", test.__doc__)
    args.add_argument("plugin", nargs="*", help="plugins to check; all when left out")
    opts, rest = args.parse_known_args(argv)
    try:
        import hypothesis  # noqa: F401
        import pytest
    except ImportError as error:
        raise UserError(f"the kit needs {error.name}: pip install 'fastsnn-core[testing]'") from None
    from fastsnn_core.plugins import installed, registry

    names = {plugin.name for plugin in installed()}
    if not names.issuperset(opts.plugin):
        names |= {plugin.name for plugin in registry().plugins}  # files that -p loaded
    for name in opts.plugin:
        choice(name, sorted(names), "test")
    chosen = [f"--fastsnn={name}" for name in opts.plugin]
    quiet = ["-W", "ignore::pytest.PytestAssertRewriteWarning"]  # hypothesis and the kit are imported already
    return int(pytest.main(["--pyargs", "fastsnn_core.testing", "-q", *quiet, *chosen, *rest]))
