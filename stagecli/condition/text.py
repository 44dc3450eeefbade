"""Text encoders: captions -> tokens [B, L, D] and their mask [B, L].

`ByteEncoder` is a part of the network and trained along; `PretrainedText` is frozen, so its
embeddings are computed once and cached.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from stagecli.errors import EXIT_USAGE, Problem, StageError
from stagecli.schema import Recipe

# byte b has the id b + OFFSET
PAD = 0
BEGIN = 1
OFFSET = 2


def byte_ids(captions: Sequence[str], max_length: int) -> Tensor:
    """UTF-8 bytes of each caption -> ids [B, L], begun by BEGIN and padded by PAD.

    The empty caption is BEGIN alone: it is what a dropped caption becomes.
    """
    rows = [
        [BEGIN, *(b + OFFSET for b in caption.encode("utf-8")[: max_length - 1])]
        for caption in captions
    ]
    length = max(len(row) for row in rows)
    return torch.tensor([row + [PAD] * (length - len(row)) for row in rows])


def _has_tokenizer(folder: Path) -> None:
    """OSError for a local folder without one: `transformers` then makes an empty one, which knows no word."""
    if folder.is_dir() and not any(
        any(folder.glob(p)) for p in ("tokenizer*", "vocab*", "*.model")
    ):
        raise OSError(f"{folder} holds no tokenizer")


class PretrainedText:
    """A frozen `transformers` text encoder (T5 encoder, CLAP text, any AutoModel) and its tokenizer.

    Raises StageError where the model cannot be loaded, naming the local-folder way.
    """

    def __init__(self, model: str, max_length: int) -> None:
        from transformers import AutoConfig, AutoModel, AutoTokenizer, T5EncoderModel

        self.model_id = model
        self.max_length = max_length
        try:
            kind = AutoConfig.from_pretrained(model).model_type
            loader = T5EncoderModel if kind in ("t5", "umt5", "mt5") else AutoModel
            network = loader.from_pretrained(model)
            self.tokenizer = AutoTokenizer.from_pretrained(
                model, padding_side="right"
            )  # `embed` cuts the end off
            _has_tokenizer(Path(model))
        except (OSError, ValueError, ImportError) as error:
            raise StageError(
                f"cannot load the text encoder {model!r}",
                problems=[Problem("condition.model", str(error).splitlines()[0])],
                hint="give a local folder written by save_pretrained, with its tokenizer",
                exit_code=EXIT_USAGE,
            ) from error
        if kind == "clap":
            network = network.text_model
        elif getattr(network.config, "is_encoder_decoder", False) and hasattr(
            network, "get_encoder"
        ):
            network = network.get_encoder()
        self.network = network.eval().requires_grad_(False)
        config = getattr(network.config, "text_config", network.config)
        self.width = int(getattr(config, "hidden_size", None) or config.d_model)

    def vocabulary(self) -> str:
        """Hash of the tokenizer's words: with the weights, what embeddings depend on."""
        words = json.dumps(self.tokenizer.get_vocab(), sort_keys=True)
        return hashlib.sha256(words.encode()).hexdigest()[:16]

    @torch.no_grad()
    def embed(self, captions: Sequence[str]) -> list[Tensor]:
        """Captions -> one float32 tensor [L_i, D] each, without padding."""
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


def text_encoder(recipe: Recipe, device: torch.device) -> PretrainedText | None:
    if recipe.condition.text != "transformers":
        return None
    encoder = PretrainedText(recipe.condition.model, recipe.condition.max_length)
    encoder.network.to(device)
    return encoder
