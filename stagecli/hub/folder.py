"""The folder of a checkpoint: where it is, and what is wrong with its files."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from stagecli.errors import Problem, StageError, causes

LOCAL_HINT = (
    "name a local folder with config.json and model.safetensors (made by save_pretrained, or by "
    "`hf download ID --local-dir FOLDER` on a machine with access)"
)
LARGEST_JSON = 2**26  # bytes of a JSON file; the largest tokenizers take some 20 MB
CONFIGS = ("config.json", "preprocessor_config.json", "processor_config.json")
SAFE = ("model.safetensors", "model-*.safetensors", "model.safetensors.index.json")
PICKLED = ("pytorch_model.bin", "pytorch_model-*.bin", "pytorch_model.bin.index.json")
TOKENIZER = (
    "tokenizer*.json",
    "tokenizer.model",
    "vocab*.json",
    "vocab*.txt",
    "merges.txt",
    "*_tokens*.json",
    "spiece.model",
    "sentencepiece*.model",
)
VOCABULARY = ("tokenizer.json", "tokenizer.model", "vocab*", "*.model")
_LFS_POINTER = b"version https://git-lfs"
DAMAGED = "download or save the checkpoint again"


def reason(error: Exception) -> str:
    """First line of the message of an error, or its class if it has none."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


@contextmanager
def explained(message: str, hint: str) -> Iterator[None]:
    """Turns any exception of another library in the block into a StageError with its reason."""
    try:
        yield
    except StageError:
        raise
    except Exception as error:  # unknown files make them raise anything
        raise StageError(
            f"{message} ({reason(error)})",
            problems=[Problem("caused by", text) for text in causes(error)[1:]],
            hint=hint,
        ) from error


def local_problem(source: str) -> str | None:
    """Why a name cannot be a checkpoint, as far as it shows without the hub; None if it may be."""
    folder = Path(source).expanduser()
    if folder.is_dir():
        return None if (folder / "config.json").is_file() else f"folder {source} has no config.json"
    if folder.exists():
        return f"{source} is a file, not a folder"
    return f"folder {source} does not exist" if _looks_local(source) else None


def read_json(file: Path, name: str) -> dict[str, Any]:
    """A JSON object of a checkpoint. Raises StageError where the file holds none."""
    with explained(f"{name}: {file.name} cannot be read", LOCAL_HINT):
        if file.stat().st_size > LARGEST_JSON:
            raise ValueError(f"it has more than {LARGEST_JSON} bytes")
        plain = json.loads(file.read_text(encoding="utf-8"))
        if not isinstance(plain, dict):
            raise ValueError("it holds no JSON object")
    return plain


def fetch(source: str, role: str, *, pickled: bool, tokenizer: bool) -> Path:
    """Local folder of a checkpoint. Raises StageError where there is none, or without config."""
    problem = local_problem(source)
    if problem is not None:
        raise StageError(f"{role} {problem}", hint=LOCAL_HINT)
    folder = Path(source).expanduser()
    if folder.is_dir():
        return folder
    from huggingface_hub import snapshot_download

    patterns = [*CONFIGS, *(TOKENIZER if tokenizer else ())]
    message = f"{role} {source} cannot be fetched from the model hub"
    with explained(message, LOCAL_HINT):  # the hub client has many classes for being unreachable
        # Not `from_pretrained(hub id)`, which asks the hub to convert checkpoints that have no
        # safetensors: an unwanted side effect.
        snapshot = Path(snapshot_download(source, allow_patterns=[*patterns, *SAFE]))
        if pickled and not matches(snapshot, SAFE):
            snapshot = Path(snapshot_download(source, allow_patterns=[*patterns, *PICKLED]))
    if not (snapshot / "config.json").is_file():
        raise StageError(f"{role} {source} has no config.json on the model hub", hint=LOCAL_HINT)
    return snapshot


def _looks_local(source: str) -> bool:
    """Whether a name that is not on disk is meant as a path; a hub id is `name` or `owner/name`."""
    return source.startswith((".", "/", "~")) or source.count("/") > 1 or source.endswith("/")


def matches(folder: Path, patterns: tuple[str, ...]) -> list[Path]:
    """The regular files of a folder with such names."""
    files = {file for pattern in patterns for file in folder.glob(pattern)}
    return sorted(file for file in files if file.is_file())


def refuse_pointers(files: list[Path], name: str) -> None:
    """Raise StageError where a file is what Git leaves of one that it keeps elsewhere."""
    for file in files:
        with file.open("rb") as opened:
            is_pointer = opened.read(len(_LFS_POINTER)) == _LFS_POINTER
        if is_pointer:
            raise StageError(
                f"{name}: {file.name} is a Git LFS pointer, not the file itself",
                hint="fetch the file: run `git lfs pull` in that folder",
            )


def refuse_code(plain: object, file: str, name: str) -> None:
    """Raise StageError where a config names code to be run, at any depth."""
    if isinstance(plain, list):
        for value in plain:
            refuse_code(value, file, name)
    if not isinstance(plain, dict):
        return
    for key, value in plain.items():
        # A kernel of the hub is compiled code; built-in implementations have no slash.
        is_kernel = "attn_implementation" in key and "/" in str(value)
        if (key == "auto_map" and value) or is_kernel:
            raise StageError(
                f"{name}: {file} asks to run code that comes with the checkpoint ({key}), "
                "which is never done",
                hint="use a checkpoint of a model type that `transformers` has itself; if this is "
                f"one, remove {key} from {file}",
            )
        refuse_code(value, file, name)


def check_safetensors(file: Path, name: str) -> None:
    """Raise StageError for a file that is damaged or cut short."""
    from safetensors import safe_open

    message = f"{name}: {file.name} is damaged or cut short"
    with explained(message, DAMAGED), safe_open(file, framework="pt"):
        pass
