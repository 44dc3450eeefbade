"""Text encoders: captions -> tokens [B, L, D] and their mask [B, L].

The byte encoder is part of the network and trained with it (`model.byte_encoder`); here are its
ids. `PretrainedText` is frozen, so its embeddings are computed once and cached.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from stagecli.condition.captions import Kept
from stagecli.errors import StageError
from stagecli.hub import Checkpoint, explained, open_checkpoint
from stagecli.schema import Recipe

# Byte b has the id b + OFFSET.
PAD = 0
BEGIN = 1
OFFSET = 2

_ENCODERS = {"t5": "T5EncoderModel", "mt5": "MT5EncoderModel", "umt5": "UMT5EncoderModel"}
"""model_type in config.json -> class of `transformers`, where it is not AutoModel."""
TEXT_HINT = (
    "use a model that reads text alone, such as T5, BERT or the text tower of a CLIP "
    "(save_pretrained of a CLIPTextModel)"
)
LONG_CAPTION = "a dog barks " * 2000  # more tokens than any encoder takes


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

    def tokenizer_hash(self) -> str:
        """16 hex digits for the tokenizer, on which embeddings depend as on the weights.

        Two tokenizers with one vocabulary may still cut a caption in different places.
        """
        content: dict[str, Any] = {"vocabulary": self.tokenizer.get_vocab()}
        if self.tokenizer.is_fast:
            content |= json.loads(self.tokenizer.backend_tokenizer.to_str())
            # Set by every call, and the same for all: see `embed`.
            del content["padding"], content["truncation"]
        text = json.dumps(content, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

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
    """A text encoder by hub id or folder: T5 encoder, CLAP text tower, any AutoModel for text.

    Raises StageError when model or tokenizer cannot be loaded, or cannot embed a caption of
    `max_length` tokens.
    """
    import transformers

    # The class: of encoder-decoders the encoder, if there is a class for it alone.
    checkpoint = open_checkpoint(model, "text encoder", tokenizer=True)
    kind = checkpoint.model_type
    if kind not in transformers.CONFIG_MAPPING:
        raise StageError(
            f"{checkpoint.name} is a model of type {kind!r}, which is not supported",
            hint="use a text encoder that `transformers` has, such as T5, BERT or CLAP",
        )
    model_class = getattr(transformers, _ENCODERS.get(kind, "AutoModel"))
    config = checkpoint.typed_config(transformers.CONFIG_MAPPING[kind])

    # The part that reads text. A pooler makes one vector of a caption, which is not used here.
    def needed(name: str) -> bool:
        if kind == "clap":
            return name.startswith("text_model.") and "pooler" not in name
        return not name.startswith(("decoder.", "pooler."))

    network = checkpoint.model(model_class, config, needed=needed)
    tokenizer = checkpoint.tokenizer()
    if kind == "clap":
        network = network.text_model
    elif getattr(network.config, "is_encoder_decoder", False) and hasattr(network, "get_encoder"):
        network = network.get_encoder()
    positions = getattr(network.config, "max_position_embeddings", None)
    shorter = f"set condition.max_length below its {positions} positions, or " if positions else ""
    with explained(
        f"{checkpoint.name} cannot embed a caption of {max_length} tokens", f"{shorter}{TEXT_HINT}"
    ):
        check_vocabulary(checkpoint, tokenizer, network)
        encoder = PretrainedText(network, tokenizer, max_length)
        encoder.embed([LONG_CAPTION])
    return encoder


def check_vocabulary(checkpoint: Checkpoint, tokenizer: Any, network: Any) -> None:
    """Raise StageError where a tokenizer has ids that the network has no embedding for."""
    count = network.get_input_embeddings().num_embeddings
    highest = max(tokenizer.get_vocab().values(), default=0)
    if highest >= count:
        raise StageError(
            f"{checkpoint.name}: its tokenizer has ids up to {highest}, its network {count} of "
            "them",
            hint="use the tokenizer that belongs to the checkpoint",
        )


def text_encoder(recipe: Recipe, device: torch.device) -> PretrainedText | None:
    """The frozen text encoder of a recipe on `device`; None where the recipe uses none.

    Raises StageError as `load_text_encoder`.
    """
    if recipe.condition.text != "transformers":
        return None
    encoder = load_text_encoder(recipe.condition.model, recipe.condition.max_length)
    encoder.network.to(device)
    return encoder
