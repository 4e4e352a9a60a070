"""Lines of the report, and the report as text."""

import textwrap
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Literal

from tokenflow import __version__

Status = Literal["ok", "missing", "broken", "note"]
GIB = 2**30


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One line of the report."""

    group: str
    name: str
    status: Status
    """`ok`; `missing`: optional and absent; `broken`: needed and absent or failing; `note`: good to know."""
    detail: str
    remedy: str = ""

    def to_json(self) -> dict[str, str]:
        """As plain JSON."""
        return asdict(self)


def render(findings: list[Finding]) -> str:
    """The findings as text for a terminal: one line each, remedies below."""
    marks = {"ok": "ok", "missing": "--", "broken": "!!", "note": ".."}
    lines = [f"TokenFlow {__version__}"]
    group = None
    for finding in findings:
        if finding.group != group:
            group = finding.group
            lines += ["", group]
        lines.append(_wrapped(f"  {marks[finding.status]}  {finding.name}: {finding.detail}", indent=6))
        if finding.remedy:
            lines.append(_wrapped(f"        {finding.remedy}", indent=8))
    broken = [finding.name for finding in findings if finding.status == "broken"]
    missing = [finding.name for finding in findings if finding.status == "missing"]
    lines += ["", f"needs mending: {', '.join(broken)}" if broken else "nothing needs mending"]
    lines += [f"optional and absent: {', '.join(missing)}"] if missing else []
    return "\n".join(lines)


def findings(group: str) -> Callable[..., Finding]:
    """A function (name, status, detail, remedy) -> finding of the group."""

    def found(name: str, status: Status, detail: str, remedy: str = "") -> Finding:
        return Finding(group=group, name=name, status=status, detail=detail, remedy=remedy)

    return found


def installed_version(package: str) -> str | None:
    """The version of an installed package, None without one; nothing is imported."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def first_line(error: BaseException) -> str:
    """What an error says, in one line."""
    return (str(error).splitlines() or [type(error).__name__])[0]


def _wrapped(line: str, *, indent: int) -> str:
    return textwrap.fill(
        line, width=110, subsequent_indent=" " * indent, break_long_words=False, break_on_hyphens=False
    )
