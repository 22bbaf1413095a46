"""A model as a repository on the Hugging Face hub: its weights, their .json and the card."""

from __future__ import annotations

import re
import tempfile
from pathlib import Path

from mien.apps.export.package import export
from mien.errors import UserError
from mien.explore.load import HUB, LoadedGenerator

PART = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}")


def check_target(target: str) -> str:
    """'hf:user/repo' -> 'user/repo'. Raises UserError for another shape, before anything is loaded."""
    parts = target.removeprefix(HUB).split("/")
    if not target.startswith(HUB) or len(parts) != 2 or not all(map(PART.fullmatch, parts)):
        raise UserError(f"{target} is no place on the hub: write {HUB}user/repo, in letters, digits, '-', '_' and '.'.")
    return "/".join(parts)


def push(generator: LoadedGenerator, repository: str, *, half: bool = False, public: bool = False) -> str:
    """Upload NAME.safetensors, NAME.json and README.md to `repository` (user/repo; NAME: the repo's) in one commit; returns its address.

    A repository that is not there yet is made, private unless `public`; one that is there keeps its visibility. Raises UserError without
    the extra, without a token, and for whatever the hub refuses.
    """
    try:
        from huggingface_hub import CommitOperationAdd, HfApi, get_token
    except ImportError:
        raise UserError(f"{HUB}{repository} needs huggingface_hub: pip install 'mien[hub]'.") from None
    api = HfApi()
    if not get_token():
        raise UserError("There is no token for the hub: log in with 'hf auth login', or set HF_TOKEN to one that may write.")
    with tempfile.TemporaryDirectory() as folder:
        done = export(generator, Path(folder) / "model", form="safetensors", half=half, name=repository.split("/")[1])
        try:
            api.create_repo(repository, private=not public, exist_ok=True)
            files = [CommitOperationAdd(path.name, path) for path in sorted(done.folder.iterdir())]
            api.create_commit(repository, files, commit_message=f"Upload {done.name} by mien")
        except Exception as error:  # the library's errors are many and change: each means that nothing usable was uploaded
            raise UserError(f"{HUB}{repository} was not uploaded: {_reason(error)}") from error
    return f"{api.endpoint}/{repository}"


def _reason(error: Exception) -> str:
    """One line of what the hub said, with what to do where that is plain."""
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status == 401:
        return "the hub does not accept the token. Log in again with 'hf auth login'."
    if status == 403:
        return "the token may not write there. Use one with write access, and a user or organisation that is yours."
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
