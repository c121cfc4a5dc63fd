"""Tables in memory as rows: pandas, polars and pyarrow, and a dict of columns."""

from __future__ import annotations

from typing import Any

from fastsnn_train.data.folders import split_of_name


def rows_of_table(data: Any, field: str = "text") -> Any:
    """The rows of a table, a list of dicts (of a Series its values); anything else as it is.

    A dict is one of columns where all its values are lists of one length and it has the column `field`, or no name of
    a split (``train``, ``test_sft``).
    """
    home, kind = type(data).__module__.split(".")[0], type(data).__name__
    if home == "pandas":
        return data.to_dict("records") if kind == "DataFrame" else data.tolist() if kind == "Series" else data
    if home == "polars":
        return data.to_dicts() if kind == "DataFrame" else data.to_list() if kind == "Series" else data
    if home == "pyarrow":
        return data.to_pylist() if hasattr(data, "to_pylist") else data
    if isinstance(data, dict) and data and (field in data or not any(split_of_name(str(name)) for name in data)):
        columns = list(data.values())
        if all(isinstance(column, list | tuple) for column in columns) and len(set(map(len, columns))) == 1:
            return [dict(zip(data, row)) for row in zip(*columns)]
    return data
