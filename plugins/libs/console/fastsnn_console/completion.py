"""``fastsnn completion bash|zsh|fish``: the shell's completion of verbs and options, as a script to be sourced."""

from __future__ import annotations

import contextlib
import io
import re

from fastsnn_console.arguments import Parser
from fastsnn_core.cli import OWN, added

SHELLS = ("bash", "zsh", "fish")


def main(argv: list[str]) -> int:
    """Print a completion script: source <(fastsnn completion bash); fastsnn completion fish | source."""
    args = Parser("completion", main.__doc__)
    args.add_argument("shell", choices=SHELLS, help="which shell it is for")
    opts = args.parse_args(argv)
    print(script(opts.shell, options_of_verbs()))
    return 0


def options_of_verbs() -> dict[str, list[str]]:
    """Options of every verb, read from its own help; a verb whose plugin is broken is listed without any."""
    found: dict[str, list[str]] = {}
    verbs = OWN | dict.fromkeys(added())
    for name in sorted(verbs):
        says = io.StringIO()
        with contextlib.suppress(SystemExit, Exception), contextlib.redirect_stdout(says):
            (verbs[name] or added()[name].load())(["--help"])
        found[name] = sorted(set(re.findall(r"(?<![\w-])--[a-z][a-z0-9-]*", says.getvalue())))
    return found


def script(shell: str, verbs: dict[str, list[str]]) -> str:
    """The script of a shell; files are completed where no option is begun."""
    if shell == "fish":
        first = f"complete -c fastsnn -n __fish_use_subcommand -f -a '{' '.join(verbs)}'"
        rows = [
            f"complete -c fastsnn -n '__fish_seen_subcommand_from {verb}' -l {option[2:]}"
            for verb, options in verbs.items()
            for option in options
        ]
        return "\n".join([first, *rows])
    cases = "\n".join(f"    {verb}) options='{' '.join(options)}' ;;" for verb, options in verbs.items())
    before = "autoload -U +X bashcompinit && bashcompinit\n" if shell == "zsh" else ""
    return f"""{before}_fastsnn() {{
  local word=${{COMP_WORDS[COMP_CWORD]}} options=
  if [ "$COMP_CWORD" -eq 1 ]; then
    COMPREPLY=($(compgen -W '{" ".join(verbs)}' -- "$word"))
    return
  fi
  case ${{COMP_WORDS[1]}} in
{cases}
  esac
  case $word in
    -*) COMPREPLY=($(compgen -W "$options" -- "$word")) ;;
    *) COMPREPLY=($(compgen -f -- "$word")) ;;
  esac
}}
complete -o filenames -F _fastsnn fastsnn"""
