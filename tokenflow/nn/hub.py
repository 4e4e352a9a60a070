"""Where model folders come from and go to: this machine's disk, or a repository of the Hugging Face hub."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tokenflow.nn.folder import CONFIG_FILE, WEIGHT_PATTERNS


def find_folder(
    source: str | Path,
    *,
    revision: str | None = None,
    token: str | bool | None = None,
    patterns: Sequence[str] | None = (CONFIG_FILE, *WEIGHT_PATTERNS),
) -> Path:
    """A local folder as it is, else the hub repository of that name in the local cache, downloaded if need be.

    `patterns` are the files of the repository that are wanted; None: all of them.

    Raises:
        OSError: Neither a folder nor a hub repository that can be reached.
        ValueError: `revision` for a local folder.
    """
    directory = Path(source)
    if directory.is_dir():
        if revision is not None:
            raise ValueError(f"{source} is a local folder and has no revision {revision!r}. Leave `revision` out.")
        return directory
    if directory.exists():
        raise NotADirectoryError(f"{source} is a file; expected the folder that `save_pretrained` wrote.")
    if directory.is_absolute() or len(directory.parts) > 2:  # no name of a repository
        raise FileNotFoundError(
            f"{str(source)!r} is neither a folder nor a hub repository's name. Pass the folder that `save_pretrained`, "
            f"a pipeline, `tokenflow import-checkpoint` or `make demo` wrote.{_of_a_quick_run(directory)}"
        )
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    wanted = None if patterns is None else list(patterns)
    try:
        return Path(snapshot_download(str(source), revision=revision, token=token, allow_patterns=wanted))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        at = f" at revision {revision!r}" if revision else ""
        why = next(iter(str(error).splitlines()), type(error).__name__)
        raise OSError(
            f"{str(source)!r}{at} is neither a folder nor a hub repository that can be reached "
            f"({why}). Pass the folder that `save_pretrained` wrote."
        ) from error


def _of_a_quick_run(absent: Path) -> str:
    """A hint at what `make demo QUICK=1` wrote in place of an absent folder of `make demo`."""
    for parent in absent.parents:
        quick = parent / "quick" / absent.relative_to(parent)
        if quick.is_dir():
            return f" Did you mean {quick}?"
    return ""


def push_folder(
    directory: Path,
    repo_id: str,
    *,
    private: bool | None = None,
    token: str | bool | None = None,
    commit_message: str = "Upload model",
    revision: str | None = None,
) -> str:
    """Upload a folder as one commit to a model repository, which is made if need be; returns the commit's address.

    Weights of an earlier upload that the folder lacks are deleted in the same commit.
    """
    from huggingface_hub import HfApi

    api = HfApi(token=token)
    repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
    if revision is not None:
        api.create_branch(repo_id, branch=revision, exist_ok=True)
    commit = api.upload_folder(
        repo_id=repo_id,
        folder_path=directory,
        revision=revision,
        commit_message=commit_message,
        delete_patterns=[*WEIGHT_PATTERNS, *(f"*/{pattern}" for pattern in WEIGHT_PATTERNS)],
    )
    return str(commit.commit_url)
