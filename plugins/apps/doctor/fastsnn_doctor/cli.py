"""The verb ``doctor``."""

from __future__ import annotations

import json

from fastsnn_console.arguments import Parser


def doctor(argv: list[str]) -> int:
    """Say what this installation is (versions, CPU, memory, plugins, kernels, speed) and what is wrong with it."""
    args = Parser("doctor", doctor.__doc__)
    args.add_argument("--json", action="store_true", help="as JSON")
    args.add_argument("--no-speed", action="store_true", help="leave out the speed check of two seconds")
    opts = args.parse_args(argv)
    from fastsnn_doctor import sections

    found = sections.all_sections(speed=not opts.no_speed)
    wrong = sections.installation_problems()
    if opts.json:
        print(json.dumps({"sections": found, "problems": wrong}, indent=2))
        return bool(wrong)
    for title, rows in found.items():
        print(title)
        wide = max(map(len, rows), default=0)
        for name, text in rows.items():
            print(f"  {name:<{wide}}  {text}")
    print("\n".join(["wrong", *(f"  {text}" for text in wrong)]) if wrong else "nothing wrong was found")
    return bool(wrong)
