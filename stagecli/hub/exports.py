"""Exports on the model hub: fetched whole, or pushed. No network before a function is called."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from stagecli.errors import EXIT_FAILED, Problem, StageError
from stagecli.hub.folder import explained

FILES = ("*.safetensors", "*.json", "*.toml", "*.txt", "README.md", "networks/**")
_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}")
FETCH_HINT = "check the name and the network, or fetch it where there is access: hf download ID"
LOGIN_HINT = "log in with `hf auth login`, or set HF_TOKEN; the folder is complete without it"


def is_hub_id(text: str) -> bool:
    """Whether a text has the form ORG/NAME of an id on the hub."""
    return _ID.fullmatch(text) is not None and ".." not in text


def download_export(source: str) -> Path:
    """The local copy of an export on the hub. Raises StageError."""
    from huggingface_hub import snapshot_download

    with explained(f"{source} cannot be fetched from the model hub", FETCH_HINT):
        folder = Path(snapshot_download(source, allow_patterns=list(FILES)))
    if not (folder / "export.json").is_file():
        raise StageError(
            f"{source} is not an export of stagecli",
            problems=[Problem(source, "has no export.json")],
            hint="`stagecli export RUN DIR --push-to-hub ORG/NAME` makes one",
        )
    return folder


def hub_client(target: str) -> Any:
    """The client of the hub, for a target to push to, logged in.

    Raises StageError where nothing could be pushed.
    """
    if not is_hub_id(target):
        raise StageError(
            f"--push-to-hub {target}: not the id of a model", hint="give it as ORG/NAME"
        )
    import huggingface_hub

    client = huggingface_hub.HfApi()
    with explained("the model hub does not know who you are", LOGIN_HINT):
        client.whoami()
    return client


def push_export(
    client: Any, folder: Path, target: str, names: Sequence[str], *, private: bool
) -> str:
    """Create the model on the hub if it is missing and upload some files of a folder.

    client: from `hub_client`; names: relative to the folder. Returns the address. Raises
    StageError (exit code 1).
    """
    try:
        client.create_repo(target, repo_type="model", private=private, exist_ok=True)
        client.upload_folder(
            repo_id=target,
            repo_type="model",
            folder_path=str(folder),
            allow_patterns=list(names),
            commit_message="Export of stagecli",
        )
    except Exception as error:  # the hub client has many classes of errors
        raise StageError(
            f"cannot push to {target}",
            problems=[Problem(target, str(error).strip().split("\n")[0] or type(error).__name__)],
            hint=f"{folder} is complete; `hf upload {target} {folder}` tries again",
            exit_code=EXIT_FAILED,
        ) from error
    return f"https://huggingface.co/{target}"
