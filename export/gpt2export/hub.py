"""Checkpoints by name: a local folder, or a repository on the Hugging Face hub."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpt2export.card import CARD_FILE
from gpt2export.defaults import GENERATION_FILE
from gpt2export.errors import CheckpointError, HubError
from gpt2export.tokenizer import MERGES, OPTIONAL, TOKENIZER_JSON, VOCABULARY

_REPO = re.compile(r"[\w.-]+(?:/[\w.-]+)?")

_SMALL_FILES = (
    "config.json",
    GENERATION_FILE,
    CARD_FILE,
    TOKENIZER_JSON,
    VOCABULARY,
    MERGES,
    *OPTIONAL,
)
_SAFE, _PICKLED = ("model*.safetensors*",), ("pytorch_model*.bin*",)


@dataclass(frozen=True)
class Located:
    """`name` says where it is from without naming a folder of this machine."""

    name: str
    folder: Path


def locate(checkpoint: str) -> Located:
    """The folder of a checkpoint, downloaded if need be.

    Raises `CheckpointError` for what is neither a folder nor a hub id, `HubError` if the
    download fails.
    """
    folder = Path(checkpoint).expanduser()
    if folder.is_dir():
        return Located(default_id(checkpoint), folder)
    if not _REPO.fullmatch(checkpoint):
        raise CheckpointError(f"{checkpoint} is not a folder.")
    return Located(checkpoint, _download(checkpoint))


def default_id(checkpoint: str) -> str:
    """A folder's name, or the hub id as it is."""
    folder = Path(checkpoint).expanduser()
    if folder.is_dir() or not _REPO.fullmatch(checkpoint):
        return folder.resolve().name
    return checkpoint


def patterns(names: Iterable[str]) -> list[str]:
    """Of the files of a repository: those that an export reads. Pickles only for want of others."""
    safe = any(name.endswith((".safetensors", ".safetensors.index.json")) for name in names)
    return [*_SMALL_FILES, *(_SAFE if safe else _PICKLED)]


def _download(repo: str) -> Path:
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
    )

    try:
        files = _files(HfApi(), repo)
        if files is None:  # no network: what an earlier download left in the cache will do
            return Path(snapshot_download(repo, local_files_only=True))
        return Path(snapshot_download(repo, allow_patterns=patterns(files)))
    except LocalEntryNotFoundError as error:
        raise HubError(
            f"{repo} is not a folder here, and the Hugging Face hub cannot be reached. Exporting "
            "a hub id needs a network (or HF_HOME with an earlier download); a local folder "
            "does not."
        ) from error
    except GatedRepoError as error:
        raise HubError(f"{repo} is gated on the hub: log in with `hf auth login`.") from error
    except (RepositoryNotFoundError, HFValidationError) as error:
        raise HubError(f"{repo} is neither a folder here nor a repository on the hub.") from error
    except OSError as error:  # requests' errors, and a full disk
        raise HubError(f"{repo} could not be downloaded from the hub ({error}).") from error


def _files(api: Any, repo: str) -> list[str] | None:
    """The repository's files, or None if the hub cannot be reached."""
    from huggingface_hub.errors import OfflineModeIsEnabled
    from requests.exceptions import ConnectionError as NoConnection
    from requests.exceptions import Timeout

    try:
        names: list[str] = api.list_repo_files(repo)
    except (NoConnection, Timeout, OfflineModeIsEnabled):
        return None
    return names
