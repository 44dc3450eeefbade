"""Codecs, built from the `[codec]` section of a recipe. No torch before a codec is built."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from stagecli.errors import Problem, StageError

if TYPE_CHECKING:
    from stagecli.codec.base import Codec
    from stagecli.schema import Recipe


def make_codec(recipe: Recipe) -> Codec:
    """The codec of a recipe, with its statistics not fitted yet.

    Raises StageError for settings that cannot work, missing weights and a wrong sample rate.
    """
    options = recipe.codec
    sample_rate = recipe.data.sample_rate
    # Log-mel frames, inverted by Griffin-Lim or a vocoder.
    if options.kind == "mel":
        from stagecli.codec.mel import MelCodec
        from stagecli.codec.vocoder import load_vocoder

        return MelCodec(
            sample_rate=sample_rate,
            n_fft=options.n_fft,
            hop=options.hop,
            n_mels=options.n_mels,
            f_min=options.f_min,
            f_max=options.f_max,
            floor=options.floor,
            iterations=options.iterations,
            vocoder=load_vocoder(options.vocoder) if options.vocoder else None,
        )
    # Lossless spectra.
    if options.kind == "mdct":
        from stagecli.codec.spectral import MDCTCodec

        return MDCTCodec(
            sample_rate=sample_rate, hop=options.hop, alpha=options.alpha, floor=options.floor
        )
    if options.kind == "stft":
        from stagecli.codec.spectral import STFTCodec

        return STFTCodec(
            sample_rate=sample_rate,
            n_fft=options.n_fft,
            hop=options.hop,
            alpha=options.alpha,
            floor=options.floor,
        )
    from stagecli.codec.neural import load_neural_codec

    return load_neural_codec(options.model, sample_rate=sample_rate)


def load_codec_state(codec: Codec, path: Path) -> None:
    """Set the codec's per-channel statistics to those that a run saved at `path`.

    Without a range of the frames, as in older runs, `Codec.limit` changes nothing. Raises
    StageError when the file is missing.
    """
    from safetensors.torch import load_file

    if not path.exists():
        raise StageError(
            "the run has no codec statistics", problems=[Problem(str(path), "is missing")]
        )
    state = load_file(path)
    codec.mean_C.copy_(state["mean_C"])
    codec.std_C.copy_(state["std_C"])
    if "low_C" in state:
        codec.low_C.copy_(state["low_C"])
        codec.high_C.copy_(state["high_C"])
