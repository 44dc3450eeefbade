"""Loads pretrained checkpoints of `transformers`, for codecs, SSL encoders and CLAP.

A name in a recipe (hub id or folder) -> local folder (`fetch`) -> config (`read_config`,
`make_config`) -> model (`load_weights`). No code that comes with a checkpoint is ever run: configs
are read as plain dictionaries and the caller chooses the class. In every function `what` is the
role of the checkpoint ("codec"), with which error messages begin.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stagecli.errors import StageError

if TYPE_CHECKING:
    from torch import nn

LOCAL_HINT = (
    "name a local folder with config.json and model.safetensors (made by save_pretrained, or by "
    "`hf download ID --local-dir FOLDER` on a machine with access)"
)
_CONFIGS = ("config.json", "preprocessor_config.json", "processor_config.json")
_SAFE = ("model.safetensors", "model-*.safetensors", "model.safetensors.index.json")
_PICKLED = ("pytorch_model.bin", "pytorch_model-*.bin", "pytorch_model.bin.index.json")


def reason(error: Exception) -> str:
    """First line of the message of an error, or its class if it has none."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _looks_local(source: str) -> bool:
    """Whether a name that is not on disk is meant as a path; a hub id is `name` or `owner/name`."""
    return source.startswith((".", "/", "~")) or source.count("/") > 1 or source.endswith("/")


def _any(folder: Path, patterns: tuple[str, ...]) -> bool:
    return any(any(folder.glob(pattern)) for pattern in patterns)


def fetch(source: str, what: str, *, pickled: bool = False) -> Path:
    """Local folder of a checkpoint given by hub id or folder; downloads it if necessary.

    pickled: fall back to `pytorch_model.bin` for checkpoints without safetensors. Raises StageError
    if the folder does not exist or has no config.json, or if the hub cannot be reached.
    """
    folder = Path(source).expanduser()
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise StageError(f"{what} folder {source} has no config.json", hint=LOCAL_HINT)
        return folder
    if folder.exists():
        raise StageError(f"{what} {source} is a file, not a folder", hint=LOCAL_HINT)
    if _looks_local(source):
        raise StageError(f"{what} folder {source} does not exist", hint=LOCAL_HINT)
    from huggingface_hub import snapshot_download

    try:
        # Not `from_pretrained(hub id)`, which asks the hub to convert checkpoints that have no
        # safetensors: an unwanted side effect.
        snapshot = Path(snapshot_download(source, allow_patterns=[*_CONFIGS, *_SAFE]))
        if pickled and not _any(snapshot, _SAFE):
            snapshot = Path(snapshot_download(source, allow_patterns=[*_CONFIGS, *_PICKLED]))
    except Exception as error:  # the hub client has many classes for being unreachable
        raise StageError(
            f"{what} {source} cannot be fetched from the model hub ({reason(error)})",
            hint=LOCAL_HINT,
        ) from error
    if not (snapshot / "config.json").is_file():
        raise StageError(f"{what} {source} has no config.json on the model hub", hint=LOCAL_HINT)
    return snapshot


def read_config(folder: Path, source: str, what: str) -> dict[str, Any]:
    """config.json of a checkpoint as a plain dictionary. Raises StageError if it cannot be read."""
    from transformers import PretrainedConfig

    try:
        # A plain dictionary, so that unknown architectures get our own message and no remote code
        # is involved.
        plain, _ = PretrainedConfig.get_config_dict(str(folder), local_files_only=True)
    except Exception as error:  # malformed JSON has its own exception classes
        raise StageError(
            f"{what} {source}: config.json cannot be read ({reason(error)})", hint=LOCAL_HINT
        ) from error
    return plain


def make_config(model_class: Any, plain: dict[str, Any], source: str, what: str) -> Any:
    """Typed config of a `transformers` class. Raises StageError if a value is invalid."""
    try:
        return model_class.config_class.from_dict(plain)
    except Exception as error:  # config validation has its own exception classes
        raise StageError(f"{what} {source}: config.json is not valid ({reason(error)})") from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Suppresses the progress bars and load reports of transformers."""
    from transformers.utils import logging

    level = logging.get_verbosity()
    bars = logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def load_weights(
    model_class: Any,
    config: Any,
    folder: Path,
    source: str,
    what: str,
    *,
    pickled: bool = False,
    needed: Callable[[str], bool] = lambda name: True,
) -> Any:
    """A model with the weights of a folder, in float32.

    pickled: read `pytorch_model.bin` (tensors only, never objects) if there is no safetensors file;
    needed: tells by its name whether a tensor is required. Raises StageError if weights are
    missing, incomplete, or of other shapes than the config requires.
    """
    import torch

    safe = not (pickled and not _any(folder, _SAFE) and _any(folder, _PICKLED))
    try:
        with _quiet():
            model, info = model_class.from_pretrained(
                str(folder),
                config=config,
                local_files_only=True,
                use_safetensors=safe,
                weights_only=True,
                dtype=torch.float32,
                output_loading_info=True,
            )
    except (
        Exception
    ) as error:  # RuntimeError for mismatched shapes, OSError for a missing file, ...
        raise StageError(
            f"{what} {source}: the weights cannot be loaded ({reason(error)})", hint=LOCAL_HINT
        ) from error
    missing = sorted(name for name in info["missing_keys"] if needed(name))
    if missing:
        raise StageError(
            f"{what} {source}: the checkpoint lacks {len(missing)} tensors, first {missing[0]}",
            hint=f"download or save the checkpoint again; this would be a partly random {what}",
        )
    return model


def weights_hash(network: nn.Module) -> str:
    """16 hex digits of a SHA-256 over all weights, independent of their order and names.

    The names of one checkpoint's tensors change between releases of `transformers`.
    """
    import torch

    digests = []
    for name, value in network.state_dict().items():
        # Used in pre-training only; checkpoints that lack it get a random one.
        if "masked_spec_embed" in name:
            continue
        digest = hashlib.sha256(f"{value.dtype}{tuple(value.shape)}".encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
        digests.append(digest.digest())
    return hashlib.sha256(b"".join(sorted(digests))).hexdigest()[:16]
