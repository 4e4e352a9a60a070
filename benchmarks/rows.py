"""Rows of a benchmark as they are measured, for eyes or for programs."""

import json
from collections.abc import Iterable, Mapping
from typing import Any


def print_rows(rows: Iterable[Mapping[str, Any]], *, as_json: bool) -> None:
    """Print each row at once: as JSON, or in columns below the names of the first."""
    heading = True
    for row in rows:
        if as_json:
            print(json.dumps(row), flush=True)
            continue
        if heading:
            print(*row)
            heading = False
        print(*(f"{value!s:>{len(name)}}" for name, value in row.items()), flush=True)
