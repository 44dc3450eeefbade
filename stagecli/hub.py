"""Checkpoints of `transformers`: a name in a recipe -> a local folder -> its config -> its weights.

What codecs and SSL encoders share. Nothing here runs code that came with a checkpoint: configs are read
as plain dictionaries and the caller names the class. `what` is the word that errors begin with ("codec").
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
    """First line of an error of the hub client, of transformers or of torch."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _looks_local(source: str) -> bool:
    """Whether a name that does not exist on disk was meant as a path: a hub id is `name` or `owner/name`."""
    return source.startswith((".", "/", "~")) or source.count("/") > 1 or source.endswith("/")


def _any(folder: Path, patterns: tuple[str, ...]) -> bool:
    return any(any(folder.glob(pattern)) for pattern in patterns)


def fetch(source: str, what: str, *, pickled: bool = False) -> Path:
    """Name in the recipe (hub id or folder) -> local folder of the checkpoint, downloaded where needed.

    pickled: take `pytorch_model.bin` where a checkpoint has no safetensors. Raises StageError: folder
    missing or without config.json, hub out of reach.
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
        # Files by name rather than `from_pretrained(hub id)`: that one asks the hub to convert a
        # checkpoint without safetensors, a side effect nobody asked for.
        snapshot = Path(snapshot_download(source, allow_patterns=[*_CONFIGS, *_SAFE]))
        if pickled and not _any(snapshot, _SAFE):
            snapshot = Path(snapshot_download(source, allow_patterns=[*_CONFIGS, *_PICKLED]))
    except (
        Exception
    ) as error:  # the hub client raises a different class for each way to be unreachable
        raise StageError(
            f"{what} {source} cannot be fetched from the model hub ({reason(error)})",
            hint=LOCAL_HINT,
        ) from error
    if not (snapshot / "config.json").is_file():
        raise StageError(f"{what} {source} has no config.json on the model hub", hint=LOCAL_HINT)
    return snapshot


def read_config(folder: Path, source: str, what: str) -> dict[str, Any]:
    """config.json of a checkpoint as a plain dictionary; StageError where it cannot be read."""
    from transformers import PretrainedConfig

    try:
        # Only the plain dictionary: an unknown architecture then gets our message, and no remote
        # code can come into play.
        plain, _ = PretrainedConfig.get_config_dict(str(folder), local_files_only=True)
    except Exception as error:  # malformed JSON has its own exception classes
        raise StageError(
            f"{what} {source}: config.json cannot be read ({reason(error)})", hint=LOCAL_HINT
        ) from error
    return plain


def make_config(model_class: Any, plain: dict[str, Any], source: str, what: str) -> Any:
    """Typed config of a `transformers` class; StageError where the values are not valid."""
    try:
        return model_class.config_class.from_dict(plain)
    except Exception as error:  # config validation has its own exception classes
        raise StageError(f"{what} {source}: config.json is not valid ({reason(error)})") from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the progress bars and load reports of transformers: what matters becomes a StageError."""
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
    """Model with the weights of a folder, float32.

    pickled: read `pytorch_model.bin` (as tensors only, never as objects) where there is no safetensors
    file; needed: which tensors by name must be there. Raises StageError: weights missing, incomplete or
    of other shapes than the config says.
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
    ) as error:  # mismatched shapes are a RuntimeError, a missing file an OSError, ...
        raise StageError(
            f"{what} {source}: the weights cannot be loaded ({reason(error)})", hint=LOCAL_HINT
        ) from error
    missing = sorted(name for name in info["missing_keys"] if needed(name))
    if missing:
        raise StageError(
            f"{what} {source}: the checkpoint lacks {len(missing)} tensors, first {missing[0]}",
            hint=f"download or save the checkpoint again; a random {what} would train without a warning",
        )
    return model


def weights_hash(network: nn.Module) -> str:
    """First 16 hex digits of a SHA-256 over every weight, independent of order and of tensor names.

    Names stay out because they change between releases of `transformers` for the same checkpoint.
    """
    import torch

    digests = []
    for name, value in network.state_dict().items():
        if (
            "masked_spec_embed" in name
        ):  # used in pre-training only; some checkpoints lack it and get a random one
            continue
        digest = hashlib.sha256(f"{value.dtype}{tuple(value.shape)}".encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
        digests.append(digest.digest())
    return hashlib.sha256(b"".join(sorted(digests))).hexdigest()[:16]
