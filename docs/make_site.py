"""The site's sources: ``python docs/make_site.py`` runs the gallery and writes build/site; then mkdocs build --strict.

Pages come from where they are kept already: README, docs, every plugin's README with what `fastsnn show` says of its
components and the gallery scripts that use them, NOTES section by section, and the public names of each package.
Links between files become links between pages; a link to a file that is no page becomes its text.
"""

from __future__ import annotations

import ast
import importlib
import json
import os
import re
import shutil
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SITE = ROOT / "build" / "site"
PAGES = SITE / "pages"
GUIDE = ("training", "convert", "temporal", "runtimes", "convert_map", "plugins", "spec", "bundle", "interop", "core",
         "reference", "glossary", "cite")  # fmt: skip
PACKAGES = ("fastsnn", "fastsnn_core", "fastsnn_convert", "fastsnn_train", "fastsnn_text", "fastsnn_scope",
            "fastsnn_serve", "fastsnn_tune", "fastsnn_events", "fastsnn_recordings")  # fmt: skip
LINK = re.compile(r"(?<!!)\[([^\]]+)\]\(([^)\s]+)\)")
Nav = list[tuple[str, str]]


def targets() -> dict[str, str]:
    """Page by file, both from their roots."""
    found = {"README.md": "index.md", "docs/kinds": "kinds/neuron.md"}
    found |= {"benchmarks/README.md": "notes/benchmarks.md", "benchmarks/NOTES.md": "notes/index.md"}
    found |= {f"docs/{name}.md": f"guide/{name}.md" for name in GUIDE}
    for folder in ("kinds", "coming_from"):
        found |= {f"docs/{folder}/{p.name}": f"{folder}/{p.name}" for p in (ROOT / "docs" / folder).glob("*.md")}
    found |= {
        "docs/kinds": "kinds/neuron.md",
        "benchmarks": "notes/benchmarks.md",
        "CHANGELOG.md": "guide/changelog.md",
    }
    for readme in ROOT.glob("plugins/*/*/README.md"):
        found[readme.relative_to(ROOT).as_posix()] = f"plugins/{readme.parents[1].name}-{readme.parent.name}.md"
    return found


def relink(text: str, source: str, page: str, known: dict[str, str]) -> str:
    """The text of file `source` with its links as page `page` needs them."""

    def link(match: re.Match[str]) -> str:
        label, where = match[1], match[2]
        if re.match(r"[a-z]+:", where) or where.startswith("#"):
            return match[0]
        path, _, anchor = where.partition("#")
        file = os.path.normpath(os.path.join(os.path.dirname(source), path))
        goal = known.get(file) or known.get(f"{file}/README.md")
        if goal is None:
            return label
        return f"[{label}]({os.path.relpath(goal, os.path.dirname(page) or '.')}{'#' + anchor if anchor else ''})"

    parts = re.split(r"(^```.*?^```)", text, flags=re.DOTALL | re.MULTILINE)
    return "".join(part if part.startswith("```") else LINK.sub(link, part) for part in parts)


def write(page: str, text: str) -> None:
    """A page."""
    path = PAGES / page
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def title(text: str) -> str:
    """Of a page: its first heading."""
    found = re.search(r"^# (.+)$", text, re.MULTILINE)
    return found[1].replace("`", "") if found else "?"


def copied(known: dict[str, str]) -> dict[str, Nav]:
    """Pages that are files as they are; titles and pages by folder."""
    found: dict[str, Nav] = {}
    for source, page in known.items():
        path = ROOT / source
        if path.is_file() and not source.startswith("plugins/") and source != "benchmarks/NOTES.md":
            text = path.read_text(encoding="utf-8")
            write(page, relink(text, source, page, known))
            found.setdefault(page.rpartition("/")[0], []).append((title(text), page))
    return found


def scripts() -> list[Path]:
    """Of the gallery."""
    return sorted(p for p in (ROOT / "docs" / "gallery").glob("*.py") if p.stem != "figure")


def gallery(figures: Path) -> Nav:
    """A page for each script, and one with all pictures. `figures`: where the scripts left them."""
    rows, cards = [("Gallery", "gallery/index.md")], []
    for script in scripts():
        text = script.read_text(encoding="utf-8")
        head, says = ast.get_docstring(ast.parse(text)).split("\n\n", 1)
        name, code = script.stem, text.split('"""', 2)[2].strip()
        (PAGES / "gallery").mkdir(parents=True, exist_ok=True)
        for picture in (f"{name}.png", f"{name}.dark.png"):
            shutil.copy(figures / picture, PAGES / "gallery" / picture)
        head = head.rstrip(".")
        says = " ".join(says.split())
        page = f"# {head}\n\n{says}\n\n{pictures(says, name)}\n\n```python\n{code}\n```\n\n"
        write(
            f"gallery/{name}.md",
            page + f"`docs/gallery/{name}.py`; `figure.py` beside it holds what the scripts share.\n",
        )
        rows.append((head, f"gallery/{name}.md"))
        cards.append(f"-   **[{head}]({name}.md)**\n\n    [{pictures(says, name)}]({name}.md)\n\n    {says}\n")
    grid = '<div class="grid cards" markdown>\n\n' + "\n".join(cards) + "\n</div>\n"
    write("gallery/index.md", f"# Gallery\n\nEvery script ran when this page was made.\n\n{grid}")
    return rows


def pictures(says: str, stem: str, more: str = "") -> str:
    """A figure for light pages and the one for dark ones, of which a page shows one."""
    width = f"{{{more} }}" if more else ""
    return f"![{says}]({stem}.png#only-light){width}![{says}]({stem}.dark.png#only-dark){width}"


def thumbnail(script: str) -> str:
    """A small picture that leads to a script's page."""
    says = script.replace("_", " ")
    return f"[{pictures(says, f'../gallery/{script}', ' width=220')}](../gallery/{script}.md)"


def plugins(known: dict[str, str]) -> dict[str, Nav]:
    """A page per distribution: its README, what `fastsnn show` says of its components, and who uses them here."""
    from fastsnn_author import describe
    from fastsnn_core.plugins import registry

    found: dict[str, Nav] = {}
    texts = {p.stem: p.read_text(encoding="utf-8") for p in scripts()}
    for source, page in sorted(known.items()):
        if not source.startswith("plugins/"):
            continue
        text = relink((ROOT / source).read_text(encoding="utf-8"), source, page, known)
        points = tomllib.loads((ROOT / source).with_name("pyproject.toml").read_text(encoding="utf-8"))["project"]
        for name in points.get("entry-points", {}).get("fastsnn1", {}):
            for row in registry().plugins:
                if row.name != name or row.status != "ok":
                    continue
                for kind, names in row.offers.items():
                    for each in names:
                        said = describe.component_text(describe.described_component(*registry().find(kind, each)))
                        text += f"\n## fastsnn show {each}\n\n```text\n{said}\n```\n"
                        used = [n for n, code in texts.items() if re.search(rf"[\"']{each}[\"']", code)]
                        if used:
                            text += f"\nIn the gallery:\n\n{' '.join(map(thumbnail, used))}\n"
        write(page, text)
        found.setdefault(source.split("/")[1], []).append((title(text), page))
    return found


def notes(known: dict[str, str]) -> Nav:
    """benchmarks/NOTES.md, a page per section, each with the figure that `notes_figures` draws of its numbers."""
    import notes_figures

    text = (ROOT / "benchmarks" / "NOTES.md").read_text(encoding="utf-8")
    first, *sections = re.split(r"^## ", text, flags=re.MULTILINE)
    rows: Nav = [("What was measured, and what failed", "notes/index.md")]
    listed = []
    for n, section in enumerate(sections, 1):
        head, _, body = section.partition("\n")
        page = f"notes/{n:02d}.md"
        notes_figures.draw(section, PAGES / f"notes/{n:02d}.png")
        says = notes_figures.picture_of(section).says
        figure = f"\n{pictures(says, f'{n:02d}')}\n\n*{says}*\n"
        write(page, relink(f"# {head}\n{figure}{body}", "benchmarks/NOTES.md", page, known))
        rows.append((head.replace("`", ""), page))
        listed.append(f"- [{head}]({n:02d}.md)")
    write(
        "notes/index.md",
        relink(first, "benchmarks/NOTES.md", "notes/index.md", known) + "\n" + "\n".join(listed) + "\n",
    )
    return [*rows, ("The benchmarks", "notes/benchmarks.md")]


def public_path(value: object) -> str:
    """Where a function or class is defined; empty for constants."""
    defined = hasattr(value, "__qualname__") and hasattr(value, "__module__")
    return f"{value.__module__}.{value.__qualname__}" if defined else ""  # type: ignore[attr-defined]


def reference() -> Nav:
    """The public names of each package, from its ``__all__``."""
    rows: Nav = []
    for package in PACKAGES:
        module = importlib.import_module(package)
        lines = [f"# {package}", "", (module.__doc__ or "").strip().split("\n\n")[0], ""]
        paths = dict.fromkeys(
            public_path(getattr(module, name)) for name in module.__all__
        )  # two names may be one class
        lines += [f"::: {path}\n" for path in paths if path]
        write(f"api/{package}.md", "\n".join(lines))
        rows.append((package, f"api/{package}.md"))
    return rows


def entries(rows: Nav, deep: int) -> list[str]:
    """Lines of the navigation."""
    return [f"{'  ' * deep}- {json.dumps(name, ensure_ascii=False)}: {page}" for name, page in rows]


def main(figures: Path | None = None) -> None:
    """Everything; the gallery is run unless its `figures` are there."""
    shutil.rmtree(SITE, ignore_errors=True)
    if figures is None:
        figures = SITE / "figures"
        run(figures)
    known = targets()
    pages = copied(known)
    shown, made = gallery(figures), plugins(known)
    lines = ["nav:", "  - Start: index.md", "  - Guide:", *entries(pages["guide"], 2)]
    lines += ["  - Gallery:", *entries(shown, 2), "  - Coming from:", *entries(pages["coming_from"], 2)]
    lines += ["  - Plugins:", "    - Kinds:", *entries(pages["kinds"], 3)]
    for folder, rows in made.items():
        lines += [f"    - {folder.capitalize()}:", *entries(rows, 3)]
    lines += ["  - API:", *entries(reference(), 2), "  - Measured:", *entries(notes(known), 2)]
    paths = [str(p) for p in [ROOT, *(q.parent for q in ROOT.glob("plugins/*/*/pyproject.toml"))]]
    text = (ROOT / "docs" / "mkdocs.yml").read_text(encoding="utf-8").replace("PATHS", str(paths))
    shutil.copy(ROOT / "docs" / "site.css", PAGES / "site.css")
    (SITE / "mkdocs.yml").write_text(text + "\n".join(lines) + "\n", encoding="utf-8")
    print(SITE / "mkdocs.yml")


def run(figures: Path) -> None:
    """Every script of the gallery, in one process and a folder of its own."""
    import runpy
    import tempfile

    figures.mkdir(parents=True, exist_ok=True)
    os.environ["FASTSNN_GALLERY"] = str(figures)
    sys.path.insert(0, str(ROOT / "docs" / "gallery"))
    here = Path.cwd()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        for script in scripts():
            runpy.run_path(str(script), run_name="__main__")
        os.chdir(here)


def outside(folder: Path) -> list[str]:
    """Scripts, styles, fonts and pictures that pages of a built site fetch from elsewhere: there should be none."""
    tag = re.compile(r"<(?:script|link|img|iframe|source)\b[^>]*?\b(?:src|href)=[\"']?(?:https?:)?//[^>]*>")
    named = re.compile(r"rel=[\"']?(?:canonical|edit|alternate|next|prev)")
    pages = sorted(folder.rglob("*.html"))
    return [
        f"{p.relative_to(folder)}: {t}" for p in pages for t in tag.findall(p.read_text("utf-8")) if not named.search(t)
    ]


if __name__ == "__main__":
    if sys.argv[1:2] == ["--check"]:
        raise SystemExit("\n".join(outside(Path(sys.argv[2]))[:5]) or None)
    main(Path(sys.argv[1]).resolve() if len(sys.argv) > 1 else None)
