"""The Hugging Face hub: putting the files of an export into a repository there (extra: timm)."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

from sscl import __version__
from sscl.config.encoders import HUB
from sscl.config.published import PUBLISHED, by_hub
from sscl.models.checkpoint import Checkpoint
from sscl.models.start import weights_file
from sscl.models.weights import read_trunk
from sscl.words import short

FREE_TERMS = "Apache-2.0"
TOKENS = "https://huggingface.co/settings/tokens"


def check_terms(encoder: str, *, accepted: bool, source: str | None = None) -> None:
    """Raise ValueError where the terms of weights may forbid to pass on what was made of them.

    Args:
        encoder: `Encoder.name`. accepted: whether the user says that they do not. source: see `unknown_source`.
    """
    one = PUBLISHED.get(encoder)
    if accepted:
        return
    if one is not None and one.terms != FREE_TERMS:
        raise ValueError(
            f"push: {encoder} has terms ({one.terms}) that may forbid to pass on weights made of it; read them on "
            f"{one.page}, and give terms=accepted if they allow it"
        )

    if source is not None:
        raise ValueError(
            f"push: the weights were made of those of {source}, whose terms sscl does not know; read them, and give "
            "terms=accepted if they allow to pass them on"
        )


def unknown_source(weights: str | None, checkpoint: Checkpoint | None, *, name: str | None) -> str | None:
    """Return whose weights a model was made of, where sscl does not know their terms; None: it does, or nobody's.

    Args:
        weights, name: as `model.weights` and `model.name`. checkpoint: of the run of sscl that they are of; None: not.
    """
    seen: set[str | None] = set()
    while True:
        if checkpoint is not None:
            weights, name = checkpoint.config.model.weights, checkpoint.config.model.name
        if weights in (None, "imagenet"):
            return None
        if weights == "published":
            repository = str(name).removeprefix(HUB)
            return None if name in PUBLISHED or by_hub(repository) is not None else repository
        if weights in seen:  # another run has taken its place
            return str(weights)
        seen.add(weights)
        try:
            file = weights_file(weights, key="model.weights")
            checkpoint = None if file is None else read_trunk(file).checkpoint
        except (FileNotFoundError, ValueError):  # moved or changed since
            return str(weights)
        if checkpoint is None:
            return str(weights)


def client(repo: str) -> Any:
    """Return the hub's client, after it has accepted the user's token.

    Args:
        repo: USER/NAME, for messages.

    Raises:
        ValueError: the package is missing, there is no token, it is refused, or the hub cannot be reached; one line.
    """
    try:
        hub = import_module("huggingface_hub")
    except ImportError as error:
        raise ValueError("push: needs the package huggingface_hub; pip install 'sscl[timm]'") from error
    found = hub.HfApi(endpoint=os.environ.get("HF_ENDPOINT"), library_name="sscl", library_version=__version__)
    with _in_one_line(repo):
        found.whoami()
    return found


def push(api: Any, repo: str, folder: Path, *, names: Sequence[str], private: bool) -> str:
    """Upload files of a folder in one commit, and return the address of the repository.

    Args:
        api: from `client`. repo: USER/NAME; made where it is missing. names: of the files.
        private: whether a new repository is seen by its owner alone; one that exists stays as it is.

    Raises:
        ValueError: the hub refuses, or cannot be reached; one line.
    """
    with _in_one_line(repo):
        api.create_repo(repo, private=private, exist_ok=True)
        message = f"Upload by sscl {__version__}"
        api.upload_folder(repo_id=repo, folder_path=folder, allow_patterns=list(names), commit_message=message)
    return f"{api.endpoint}/{repo}"


@contextmanager
def _in_one_line(repo: str) -> Iterator[None]:
    """Turn what the client raises (its own errors, its HTTP library's, the system's) into one line."""
    try:
        yield
    except Exception as error:
        raise ValueError(f"push: {_reason(error, repo)}") from error


def _reason(error: Exception, repo: str) -> str:
    if type(error).__name__ == "LocalTokenNotFoundError":
        return f"there is no token of the hub on this machine; hf auth login, or set HF_TOKEN ({TOKENS})"
    status = getattr(getattr(error, "response", None), "status_code", None)
    said = short(next(iter(str(error).strip().splitlines()), type(error).__name__), most=160)
    if status == 401:
        return f"the hub does not accept the token (expired, deleted or mistyped); make one at {TOKENS}, hf auth login"
    if status in (403, 404):
        return f"the token may not write to {repo}; it needs the right to write, and {repo.split('/')[0]} must be yours"
    if status is not None:
        return f"the hub answers {status} ({said}); try again later"
    return f"the hub cannot be reached ({said}); check the connection, HF_ENDPOINT and HF_HUB_OFFLINE"
