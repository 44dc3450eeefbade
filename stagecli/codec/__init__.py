"""Codecs by the `[codec]` table of a recipe. No torch until one is made."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from stagecli.errors import Problem, StageError

if TYPE_CHECKING:
    from stagecli.codec.base import Codec
    from stagecli.schema import Recipe


def make_codec(recipe: Recipe) -> Codec:
    """The codec of a recipe, its statistics not fitted yet. Raises StageError (missing weights, wrong rate)."""
    table = recipe.codec
    sample_rate = recipe.data.sample_rate
    if table.kind == "mel":
        from stagecli.codec.mel import MelCodec

        return MelCodec(
            sample_rate=sample_rate,
            n_fft=table.n_fft,
            hop=table.hop,
            n_mels=table.n_mels,
            f_min=table.f_min,
            f_max=table.f_max,
            floor=table.floor,
            iterations=table.iterations,
            vocoder=table.vocoder or None,
        )
    if table.kind == "mdct":
        from stagecli.codec.spectral import MDCTCodec

        return MDCTCodec(
            sample_rate=sample_rate, hop=table.hop, alpha=table.alpha, floor=table.floor
        )
    if table.kind == "stft":
        from stagecli.codec.spectral import STFTCodec

        return STFTCodec(
            sample_rate=sample_rate,
            n_fft=table.n_fft,
            hop=table.hop,
            alpha=table.alpha,
            floor=table.floor,
        )
    from stagecli.codec.neural import NeuralCodec

    return NeuralCodec(table.model, sample_rate=sample_rate)


def load_codec_state(codec: Codec, path: Path) -> None:
    """Statistics (and buffers) of the training set, as the run saved them."""
    from safetensors.torch import load_file

    if not path.exists():
        raise StageError(
            "the run has no codec statistics", problems=[Problem(str(path), "is missing")]
        )
    state = load_file(path)
    codec.mean_C.copy_(state["mean_C"])
    codec.std_C.copy_(state["std_C"])
