"""What differs between the settings that work was begun with and those asked for now."""

from collections.abc import Mapping
from typing import Any


def first_difference(asked: Mapping[str, Any], stored: Mapping[str, Any], *, within: str = "") -> str | None:
    """The first of the asked settings that was another, as "prompt.text is ..., there ..."; None where none was."""
    for name, value in asked.items():
        there = stored.get(name)
        if value == there:
            continue
        if isinstance(value, Mapping) and isinstance(there, Mapping):
            return first_difference({**dict.fromkeys(there), **value}, there, within=f"{within}{name}.")
        return f"{within}{name} is {value}, there {there}"
    return None
