"""Tables in memory as rows: pandas, polars and pyarrow, and a dict of columns."""

from __future__ import annotations

from typing import Any


def rows_of_table(data: Any) -> Any:
    """The rows of a table, a list of dicts (of a Series its values); anything else as it is.

    A dict is one of columns where all its values are lists of one length and none is named after a split.
    """
    home, kind = type(data).__module__.split(".")[0], type(data).__name__
    if home == "pandas":
        return data.to_dict("records") if kind == "DataFrame" else data.tolist() if kind == "Series" else data
    if home == "polars":
        return data.to_dicts() if kind == "DataFrame" else data.to_list() if kind == "Series" else data
    if home == "pyarrow":
        return data.to_pylist() if hasattr(data, "to_pylist") else data
    if isinstance(data, dict) and data and "train" not in data:
        columns = list(data.values())
        if all(isinstance(column, list | tuple) for column in columns) and len(set(map(len, columns))) == 1:
            return [dict(zip(data, row)) for row in zip(*columns)]
    return data
