"""Codecs by the `[codec]` table of a recipe. No torch until one is made."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from stagecli.codec.base import Codec
    from stagecli.schema import Recipe


def make_codec(recipe: Recipe) -> Codec:
    """The codec of a recipe, its statistics not fitted yet. Raises StageError (missing weights, wrong rate)."""
    table, sample_rate = recipe.codec, recipe.data.sample_rate
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

        return MDCTCodec(sample_rate=sample_rate, hop=table.hop, alpha=table.alpha, floor=table.floor)
    if table.kind == "stft":
        from stagecli.codec.spectral import STFTCodec

        return STFTCodec(
            sample_rate=sample_rate, n_fft=table.n_fft, hop=table.hop, alpha=table.alpha, floor=table.floor
        )
    from stagecli.codec.neural import NeuralCodec

    return NeuralCodec(table.model, sample_rate=sample_rate)
