"""What a user reads whose command line is wrong."""

from collections.abc import Sequence

import pytest

from tokenflow.config import parse


def complaint(capsys: pytest.CaptureFixture[str], recipe_class: type, argv: Sequence[object], *, stage: str) -> str:
    """The one line with which a command line is refused, with exit code 2."""
    with pytest.raises(SystemExit) as stopped:
        parse(recipe_class, [str(word) for word in argv], stage=stage, description="")
    shown = capsys.readouterr()
    assert stopped.value.code == 2 and not shown.out
    (line,) = shown.err.splitlines()
    assert line.startswith("error: ")
    return line
