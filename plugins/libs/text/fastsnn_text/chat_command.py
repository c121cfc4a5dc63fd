"""``fastsnn chat BUNDLE``: a conversation on the terminal."""

from __future__ import annotations

import sys
from typing import Any

HELP = """/stats  tokens per second, silent bytes, tokens of the last turn and of all
/reset  begin anew (the system prompt stays)
/quit   leave (so does the end of the input)"""


def main(argv: list[str]) -> int:
    """Talk with a bundle's model: replies are streamed, and /stats, /reset and /quit are commands."""
    from fastsnn_console.arguments import Parser, number

    args = Parser("chat", main.__doc__)
    args.add_argument("bundle", help="a .snn bundle")
    args.add_argument("--system", help="a system prompt")
    args.add_argument("--max-tokens", type=number(int, ge=1), default=512, help="of a reply (default %(default)s)")
    args.add_argument("--temperature", type=number(ge=0), default=0.7, help="0 is greedy (default %(default)s)")
    args.add_argument("--top-p", type=number(gt=0, le=1), default=0.95, help="default %(default)s")
    args.add_argument("--top-k", type=number(int, ge=0), default=0, help="0: all tokens (default)")
    args.add_argument("--seed", type=number(int), help="the same seed gives the same replies")
    opts = args.parse_args(argv)
    from fastsnn_core import load
    from fastsnn_text import Sampling
    from fastsnn_text.chat import ChatSession

    sampling = Sampling(opts.temperature, opts.top_p, opts.top_k, opts.seed)
    session = ChatSession(load(opts.bundle), system=opts.system, max_tokens=opts.max_tokens, sampling=sampling)
    if session.template.plain:
        print("this model has no chat template: turns are put as 'User: … / Assistant:' lines", file=sys.stderr)
    asks = sys.stdin.isatty()
    if asks:
        print(HELP, file=sys.stderr)
    return talk(session, asks)


def talk(s: Any, asks: bool) -> int:
    """Read lines until the end; Ctrl-C breaks a reply off, and at the prompt it leaves."""
    from fastsnn_text.chat_template import TemplateError

    while True:
        try:
            line = input("> " if asks else "").strip()
        except (EOFError, KeyboardInterrupt):
            print()
            return 0
        if line in ("/quit", "/exit"):
            return 0
        if not line:
            continue
        if line == "/reset":
            s.reset()
            print("(a new conversation)")
            continue
        if line == "/stats":
            print(shown(s.stats()))
            continue
        if line.startswith("/"):
            print(HELP)
            continue
        try:
            begun = False
            for piece in s.say(line):
                text = piece if begun else piece.lstrip()
                begun = begun or bool(text)
                print(text, end="", flush=True)
            print()
        except KeyboardInterrupt:
            print("\n(broken off)")
        except TemplateError as error:
            print(f"fastsnn chat: {error}", file=sys.stderr)


def shown(stats: dict[str, float]) -> str:
    """The figures in words."""
    if not stats.get("all_turns"):
        return "nothing said yet"
    speed, first = stats["tokens_per_second"], stats["seconds_to_first"]
    return "\n".join([
        f"last turn: {stats['tokens']:.0f} tokens at {speed:.1f} a second, the first after {first:.2f} s",
        f"prompt: {stats['prompt_tokens']:.0f} tokens, {stats['read_tokens']:.0f} of them read",
        f"silent bytes: {stats['silent_bytes']:.1%} of the weights that a token reads",
        f"all turns: {stats['all_turns']:.0f}, {stats['all_tokens']:.0f} tokens in {stats['all_seconds']:.1f} s",
    ])  # fmt: skip
