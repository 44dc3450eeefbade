"""Loads pretrained checkpoints of `transformers`: codecs, vocoders, SSL and text encoders, CLAP.

`open_checkpoint` turns a name in a recipe (hub id or folder) into a `Checkpoint`, whose files have
been checked; its methods build the config, the model and the tokenizer. Every checkpoint goes this
way, so that no code that comes with one is ever run and no weight stays random.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stagecli.errors import StageError, counted
from stagecli.hub.folder import (
    CONFIGS,
    DAMAGED,
    LOCAL_HINT,
    PICKLED,
    SAFE,
    TOKENIZER,
    VOCABULARY,
    check_safetensors,
    explained,
    fetch,
    matches,
    read_json,
    refuse_code,
    refuse_pointers,
)

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class Checkpoint:
    """A checked folder with a checkpoint, from `open_checkpoint`.

    folder: where its files are; source: its name in the recipe; role: of the checkpoint ("codec"),
    with which error messages begin; config: config.json; pickled: whether `pytorch_model.bin` may
    be read, tensors only, where there is no safetensors file.
    """

    folder: Path
    source: str
    role: str
    config: dict[str, Any]
    pickled: bool

    @property
    def name(self) -> str:
        """Role and source, with which error messages begin."""
        return f"{self.role} {self.source}"

    @property
    def model_type(self) -> str:
        """The family of the model; empty where config.json has none."""
        return str(self.config.get("model_type") or "")

    def typed_config(self, config_class: Any, plain: dict[str, Any] | None = None) -> Any:
        """config.json, or `plain` instead, as a config of `transformers`.

        Raises StageError if a value is invalid.
        """
        with explained(f"{self.name}: config.json is not valid", DAMAGED):
            return config_class.from_dict(self.config if plain is None else plain)

    def model(
        self,
        model_class: Any,
        config: Any = None,
        *,
        needed: Callable[[str], bool] = lambda name: True,
    ) -> Any:
        """A model with the checkpoint's weights, in float32.

        config: default: config.json for the class; needed: tells by its name whether a tensor is
        required. Raises StageError if weights are missing, incomplete, damaged, or of other shapes
        than the config requires.
        """
        import torch

        if config is None:
            config = self.typed_config(model_class.config_class)
        safe = bool(matches(self.folder, SAFE)) or not self.pickled
        self._check_weights(model_class, safe)
        with explained(f"{self.name}: the weights cannot be loaded", LOCAL_HINT), _quiet():
            model, info = model_class.from_pretrained(
                str(self.folder),
                config=config,
                local_files_only=True,
                trust_remote_code=False,
                use_safetensors=safe,
                weights_only=True,
                dtype=torch.float32,
                output_loading_info=True,
            )
        missing = sorted(name for name in info["missing_keys"] if needed(name))
        if missing:
            raise StageError(
                f"{self.name}: the checkpoint lacks {counted(len(missing), 'tensor')}, first "
                f"{missing[0]}",
                hint=f"{DAMAGED}; this would be a partly random {self.role}",
            )
        return model

    def tokenizer(self) -> Any:
        """The tokenizer, which pads on the right and returns ids and a mask.

        Raises StageError where there is none, or none that pads.
        """
        from transformers import AutoTokenizer

        # `transformers` would silently make an empty one that maps every word to the unknown token.
        if not matches(self.folder, VOCABULARY):
            raise StageError(
                f"{self.name} has no tokenizer",
                hint="save it beside the weights with the tokenizer's save_pretrained",
            )
        hint = "save it again with the tokenizer's save_pretrained"
        with explained(f"{self.name}: the tokenizer cannot be loaded", hint), _quiet():
            tokenizer = AutoTokenizer.from_pretrained(
                str(self.folder),
                local_files_only=True,
                trust_remote_code=False,
                padding_side="right",
            )
        if tokenizer.pad_token is None:
            raise StageError(
                f"{self.name}: the tokenizer has no pad token",
                hint="set one (tokenizer.pad_token = tokenizer.eos_token) and save it again with "
                "save_pretrained",
            )
        tokenizer.model_input_names = ["input_ids", "attention_mask"]
        return tokenizer

    def _check_weights(self, model_class: Any, safe: bool) -> None:
        """Raise StageError where the weights are missing, pickled, pointers, or cut short."""
        files = matches(self.folder, SAFE if safe else PICKLED)
        if not files and matches(self.folder, PICKLED):
            name = model_class.__name__
            raise StageError(
                f"{self.name} has only pickled weights (pytorch_model.bin), which are not read",
                hint="convert them once, where you trust the file: python -c "
                f"\"from transformers import {name}; {name}.from_pretrained('{self.source}')"
                ".save_pretrained('NEW_FOLDER')\"",
            )
        if not files:
            raise StageError(f"{self.name} has no weights (model.safetensors)", hint=LOCAL_HINT)
        refuse_pointers(files, self.name)
        for file in files:
            if file.suffix == ".safetensors":
                check_safetensors(file, self.name)


def open_checkpoint(
    source: str, role: str, *, pickled: bool = False, tokenizer: bool = False
) -> Checkpoint:
    """A checkpoint given by hub id or folder; downloads it if necessary.

    role: what it is used as, for messages; pickled: see `Checkpoint`; tokenizer: it has one.
    Raises StageError: no such folder, hub unreachable, config.json missing or unreadable, or files
    that would run code or redirect to another checkpoint.
    """
    folder = fetch(source, role, pickled=pickled, tokenizer=tokenizer)
    name = f"{role} {source}"
    files = matches(folder, (*CONFIGS, *(TOKENIZER if tokenizer else ())))
    refuse_pointers(files, name)
    if (folder / "adapter_config.json").exists():
        raise StageError(
            f"{name} is an adapter for another checkpoint",
            hint="merge it into its base model and save that with save_pretrained",
        )
    for file in files:
        if file.suffix == ".json" and file.name.endswith("config.json"):
            refuse_code(read_json(file, name), file.name, name)
    return Checkpoint(folder, source, role, read_json(folder / "config.json", name), pickled)


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
