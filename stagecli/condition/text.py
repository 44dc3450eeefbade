"""Text encoders: captions -> tokens [B, L, D] and their mask [B, L].

The byte encoder is part of the network and trained with it (`model.byte_encoder`); here are its
ids. `PretrainedText` is frozen, so its embeddings are computed once and cached.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Hashable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from stagecli.errors import EXIT_USAGE, Problem, StageError
from stagecli.schema import Recipe

# Byte b has the id b + OFFSET.
PAD = 0
BEGIN = 1
OFFSET = 2


def byte_ids(captions: Sequence[str], max_length: int) -> Tensor:
    """UTF-8 bytes of each caption -> ids [B, L], starting with BEGIN and padded with PAD.

    Captions are truncated to max_length ids. The empty caption, which a dropped caption becomes, is
    BEGIN alone.
    """
    rows = [
        [BEGIN, *(byte + OFFSET for byte in caption.encode("utf-8")[: max_length - 1])]
        for caption in captions
    ]
    length = max(len(row) for row in rows)
    return torch.tensor([row + [PAD] * (length - len(row)) for row in rows])


class Kept(NamedTuple):
    """The part of a caption that the network reads: equal parts are one condition."""

    part: Hashable
    is_cut: bool


def kept_bytes(captions: Sequence[str], max_length: int) -> list[Kept]:
    """The part of each caption that `byte_ids` keeps."""
    encoded = [caption.encode("utf-8") for caption in captions]
    most = max_length - 1
    return [Kept(text[:most], len(text) > most) for text in encoded]


class PretrainedText:
    """A frozen text encoder of `transformers` and its tokenizer, from `load_text_encoder`.

    width: D of the embeddings; max_length: tokens to which a caption is truncated.
    """

    def __init__(self, network: nn.Module, tokenizer: Any, max_length: int) -> None:
        self.network: Any = network.eval().requires_grad_(False)
        self.tokenizer = tokenizer
        self.max_length = max_length
        config: Any = getattr(self.network.config, "text_config", self.network.config)
        self.width = int(getattr(config, "hidden_size", None) or config.d_model)

    def vocabulary(self) -> str:
        """Hash of the tokenizer's vocabulary; embeddings depend on it and on the weights."""
        words = json.dumps(self.tokenizer.get_vocab(), sort_keys=True)
        return hashlib.sha256(words.encode()).hexdigest()[:16]

    def kept(self, captions: Sequence[str]) -> list[Kept]:
        """The part of each caption that `embed` keeps, as ids of tokens."""
        whole = self.tokenizer(list(captions), verbose=False)["input_ids"]
        read = self.tokenizer(list(captions), truncation=True, max_length=self.max_length)
        return [
            Kept(tuple(part), len(ids) > len(part))
            for ids, part in zip(whole, read["input_ids"], strict=True)
        ]

    @torch.no_grad()
    def embed(self, captions: Sequence[str]) -> list[Tensor]:
        """Captions -> one float32 tensor [L_i, D] each on the CPU, without padding."""
        device = next(self.network.parameters()).device
        tokens = self.tokenizer(
            list(captions),
            padding=True,
            truncation=True,
            max_length=self.max_length,
            return_tensors="pt",
        ).to(device)
        states = self.network(**tokens).last_hidden_state.float().cpu()
        lengths = tokens["attention_mask"].sum(1).tolist()
        return [state[: max(int(n), 1)] for state, n in zip(states, lengths, strict=True)]


def load_text_encoder(model: str, max_length: int) -> PretrainedText:
    """A text encoder by hub id or folder: T5 encoder, CLAP text tower, any AutoModel.

    Raises StageError when model or tokenizer cannot be loaded.
    """
    from transformers import AutoConfig, AutoModel, AutoTokenizer, T5EncoderModel

    try:
        kind = AutoConfig.from_pretrained(model).model_type
        model_class = T5EncoderModel if kind in ("t5", "umt5", "mt5") else AutoModel
        network: Any = model_class.from_pretrained(model)
        # Padding on the right, because `embed` cuts the end off.
        tokenizer = AutoTokenizer.from_pretrained(model, padding_side="right")
        _require_tokenizer(Path(model))
    except (OSError, ValueError, ImportError) as error:
        raise StageError(
            f"cannot load the text encoder {model!r}",
            problems=[Problem("condition.model", str(error).splitlines()[0])],
            hint="give a local folder written by save_pretrained, with its tokenizer",
            exit_code=EXIT_USAGE,
        ) from error
    if kind == "clap":
        network = network.text_model
    elif getattr(network.config, "is_encoder_decoder", False) and hasattr(network, "get_encoder"):
        network = network.get_encoder()
    return PretrainedText(network, tokenizer, max_length)


def text_encoder(recipe: Recipe, device: torch.device) -> PretrainedText | None:
    """The frozen text encoder of a recipe on `device`; None where the recipe uses none.

    Raises StageError as `load_text_encoder`.
    """
    if recipe.condition.text != "transformers":
        return None
    encoder = load_text_encoder(recipe.condition.model, recipe.condition.max_length)
    encoder.network.to(device)
    return encoder


def _require_tokenizer(folder: Path) -> None:
    """Raise OSError for a local folder without a tokenizer.

    `transformers` would silently make an empty one that maps every word to the unknown token.
    """
    patterns = ("tokenizer*", "vocab*", "*.model")
    if folder.is_dir() and not any(any(folder.glob(pattern)) for pattern in patterns):
        raise OSError(f"{folder} holds no tokenizer")
