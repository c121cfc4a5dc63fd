"""The data files of a folder and their splits, by the rules of the `datasets` library.

In this order, the first rule that fits any file decides for the folder:

1. the front matter of README.md names the files of each split (``configs:``);
2. ``data/<split>-00000-of-00005.parquet``: any split name;
3. a folder's name has a split's word: train, training · validation, valid, dev, val · test, testing, eval, evaluation;
4. a file's name has one; 5. everything is training data.

A word counts where it is whole: between ``- . _ space`` or digits, in small letters. Hidden files, folders that begin
with two underscores and a repository's own papers (README, LICENSE …) are no data. Of several formats in one folder the
most frequent is read, as `datasets` does. Whatever is left out is named in `Omitted`.
"""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path, PurePosixPath
from typing import Any

from fastsnn_train.data.compression import SUFFIXES, read_whole
from fastsnn_train.data.documents import DataError, Omitted, name_list
from fastsnn_train.data.files import FORMATS, File, format_of, members, suffix_of

SPLITS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "dev", "val"),
    "test": ("test", "testing", "eval", "evaluation"),
}
GAP = r"[-._ 0-9]"
SHARD = re.compile(r"data/(\w+(?:\.\w+)*)-\d{5}-of-\d{5}[^/]*\.[^/]*")
PAPERS = ("README", "LICENSE", "LICENCE", "SOURCE", "COPYING", "NOTICE", "AUTHORS", "CHANGELOG", "CONTRIBUTING")
OWN = ("config.json", "dataset_info.json", "dataset_infos.json", "dummy_data.zip", "dataset_dict.json", "state.json")
TEXTS = [ending for ending, form in FORMATS.items() if form == "text"]
PREFERRED = (".parquet", ".arrow", ".jsonl", ".json", ".csv")  # where formats are equally frequent


def splits_of(folder: Path, omitted: Omitted) -> dict[str, list[File]]:
    """Files by split: ``{"train": […], "validation": […], "test": […]}``, only those that there are; "" is no split."""
    paths = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}
    named = {name: expanded(path, name, omitted) for name, path in paths.items() if is_data(name, omitted)}
    named = {name: files for name, files in named.items() if files}
    if not named:
        more = f"; left out: {omitted.of_files()}" if omitted.files else ""
        raise DataError(f"{folder} holds no {', '.join(FORMATS)} file (also compressed: {', '.join(SUFFIXES)}){more}")
    configs = front_matter(folder / "README.md")
    found = by_config(configs, list(named), folder) if configs else names_by_split(list(named))
    return {s: one_format([(n, f) for n in names for f in named[n]], omitted) for s, names in found.items()}


def is_data(name: str, omitted: Omitted) -> bool:
    """Can this file (a path in the folder) be data? Skipped files are recorded in `omitted`."""
    path = PurePosixPath(name)
    if any(part.startswith(".") for part in path.parts) or any(p.startswith("__") for p in path.parent.parts):
        why = "hidden"
    elif path.name in OWN or (re.split(r"[._-]", path.name)[0] in PAPERS and suffix_of(path.name) in ("", *TEXTS)):
        why = "about the data"
    elif suffix_of(path.name) not in FORMATS and path.suffix.lower() != ".zip":
        why = "unknown ending"
    else:
        return True
    omitted.files.append((name, why))
    return False


def expanded(path: Path, name: str, omitted: Omitted) -> list[File]:
    """The file, or what a zip archive holds."""
    if path.suffix.lower() != ".zip":
        return [File(path)]
    held = [f for f in members(path) if is_data(f.member, omitted) and format_of(f.member)]
    if not held:
        omitted.files.append((name, "an archive without data"))
    return held


def one_format(named: list[tuple[str, File]], omitted: Omitted) -> list[File]:
    """The files that have the most frequent format."""
    endings = Counter(suffix_of(file.name) for _, file in named)
    order = {ending: i for i, ending in enumerate(reversed(PREFERRED), 1)}
    best = FORMATS[max(endings, key=lambda ending: (endings[ending], order.get(ending, 0), ending))]
    for name, file in named:
        if (form := format_of(file.name)) != best:
            omitted.files.append((name, f"{form}, where most files are {best}"))
    return [file for _, file in named if format_of(file.name) == best]


def names_by_split(names: list[str]) -> dict[str, list[str]]:
    """Names by the split that they or their folders are named after; those of no split under ""."""
    shards = {name: match[1] for name in names if (match := SHARD.fullmatch(name))}
    found: dict[str, list[str]] = {}
    if shards:
        for name in names:
            found.setdefault(shards.get(name, ""), []).append(name)
        return found
    for rule in (folder_split, file_split):
        told = {name: rule(name) for name in names}
        if any(told.values()):
            for name, split in told.items():
                found.setdefault(split, []).append(name)
            return found
    return {"": names}


def folder_split(name: str) -> str:
    """The split whose word is in the name of a folder on the way."""
    return word_of(PurePosixPath(name).parent.parts, rf"(?:^|.*{GAP})(?:{{}})(?:{GAP}.*)?")


def file_split(name: str) -> str:
    """The split whose word is in the file's name."""
    return word_of((PurePosixPath(name).name,), rf"(?:^|.*{GAP})(?:{{}}){GAP}.*")


def word_of(parts: tuple[str, ...], pattern: str) -> str:
    """The first split with a word in one of `parts`; one that names several splits belongs to the first."""
    for split, words in SPLITS.items():
        if any(re.fullmatch(pattern.format("|".join(words)), part) for part in parts):
            return split
    return ""


def split_of_name(name: str) -> str:
    """train, validation or test, where a whole word of a split's own name says so; "" otherwise."""
    return word_of((name,), rf"(?:.*[-._ 0-9])?(?:{{}})(?:{GAP}.*)?")


def front_matter(readme: Path) -> list[dict[str, Any]]:
    """``configs`` of README.md's YAML head that name data files; none where there are none."""
    if not readme.is_file():
        return []
    match = re.match(r"---\s*\n(.*?)\n---\s*(\n|$)", read_whole(readme), re.DOTALL)
    if match is None or "configs" not in match[1]:
        return []
    try:
        import yaml
    except ImportError:
        raise DataError(f"{readme} says which files are which split; reading that needs: pip install pyyaml") from None
    try:
        table = yaml.safe_load(match[1])
    except yaml.YAMLError as error:
        raise DataError(f"{readme}: its head is no YAML: {str(error).splitlines()[0]}") from None
    rows = table.get("configs") if isinstance(table, dict) else None
    return [row for row in rows or () if isinstance(row, dict) and (row.get("data_files") or row.get("data_dir"))]


def by_config(configs: list[dict[str, Any]], names: list[str], folder: Path) -> dict[str, list[str]]:
    """Names by split as the folder's README.md says; of several configurations the default one."""
    chosen = [c for c in configs if c.get("default") or c.get("config_name", "default") == "default"] or configs
    if len(chosen) > 1:
        known = name_list([str(c.get("config_name")) for c in configs])
        raise DataError(f"{folder} has several configurations ({known}) and no default; give the files of one")
    files: Any = chosen[0].get("data_files")
    found: dict[str, list[str]] = {}
    if base := str(chosen[0].get("data_dir") or "").removeprefix("./").rstrip("/"):
        inside = [name.removeprefix(f"{base}/") for name in names if name.startswith(f"{base}/")]
        if not inside:
            raise DataError(f"{folder / 'README.md'} names the folder {base}; there is no data file in it")
        here = names_by_split(inside) if files is None else by_config([{"data_files": files}], inside, folder)
        found = {split: [f"{base}/{name}" for name in group] for split, group in here.items()}
        if set(found) == {""}:  # one folder that was named: all of it is training data
            found = {"train": found[""]}
        rest = sorted(set(names) - {name for group in found.values() for name in group})
        return found | ({"": [*found.get("", []), *rest]} if rest else {})
    rows = files if isinstance(files, list) and all(isinstance(r, dict) for r in files) else None
    if isinstance(files, dict):
        rows = [{"split": split, "path": path} for split, path in files.items()]
    for row in rows if rows is not None else [{"split": "train", "path": files}]:
        patterns = row["path"] if isinstance(row["path"], list) else [row["path"]]
        fitting = [name for name in names if any(matches_pattern(name, str(pattern)) for pattern in patterns)]
        if not fitting:
            raise DataError(
                f"{folder / 'README.md'} names {name_list(patterns)} as split {row['split']}; there is no such file"
            )
        found[str(row["split"])] = fitting
    rest = sorted(set(names) - {name for group in found.values() for name in group})
    return found | ({"": rest} if rest else {})


def matches_pattern(name: str, pattern: str) -> bool:
    """Does a path in the folder match a pattern, ``*`` within a folder and ``**`` across folders?"""
    known = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
    parts = re.findall(r"\*\*/|\*\*|\*|\?|\[[^]]+\]|.", pattern.removeprefix("./"))
    told = (known.get(part) or (part if len(part) > 1 else re.escape(part)) for part in parts)
    return re.fullmatch("".join(told), name) is not None
