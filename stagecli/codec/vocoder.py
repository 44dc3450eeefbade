"""HiFi-GAN vocoders of `transformers`: log-mel frames -> audio, used instead of Griffin-Lim."""

from __future__ import annotations

import math

from torch import nn

from stagecli.errors import Problem, StageError
from stagecli.hub import DAMAGED, explained, open_checkpoint

_ARCHITECTURES = ("SpeechT5HifiGan", "FastSpeech2ConformerHifiGan")


def load_vocoder(source: str) -> nn.Module:
    """A frozen vocoder from a folder made by `save_pretrained`, or from a hub id.

    Raises StageError when it cannot be loaded or is of another architecture.
    """
    import transformers

    checkpoint = open_checkpoint(source, "vocoder")
    with explained(f"{checkpoint.name} cannot be used", DAMAGED):
        architecture = (checkpoint.config.get("architectures") or ["SpeechT5HifiGan"])[0]
        if architecture not in _ARCHITECTURES:
            raise StageError(
                f"vocoder {source} is a {architecture}, which is not known to read log-mel frames",
                hint=f"use one of: {', '.join(_ARCHITECTURES)}",
            )
        network = checkpoint.model(getattr(transformers, architecture))
        return network.eval().requires_grad_(False)


def check_vocoder(vocoder: nn.Module, *, sample_rate: int, n_mels: int, hop: int) -> None:
    """Raise StageError listing where a vocoder's configuration differs from the codec's."""
    config = vocoder.config
    vocoder_hop = math.prod(getattr(config, "upsample_rates", ()))
    vocoder_rate = getattr(config, "sampling_rate", sample_rate)
    vocoder_mels = getattr(config, "model_in_dim", None)
    pairs = (
        ("sample_rate", sample_rate, "sampling_rate", vocoder_rate),
        ("n_mels", n_mels, "model_in_dim", vocoder_mels),
        ("hop", hop, "product of upsample_rates", vocoder_hop),
    )
    problems = [
        Problem(f"codec.{key}", f"is {ours}, but the vocoder's {name} is {theirs}")
        for key, ours, name, theirs in pairs
        if ours != theirs
    ]
    if problems:
        source = getattr(config, "name_or_path", "")
        raise StageError(
            f"vocoder {source} does not fit the codec",
            problems=problems,
            hint="set these codec options to the vocoder's values (f_min, f_max, floor, log_base, "
            "power as in its training), or leave codec.vocoder out to decode with Griffin-Lim",
        )
