"""Codecs, built from the `[codec]` section of a recipe. No torch before a codec is built."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from stagecli.errors import Problem, StageError
from stagecli.files import atomic_path

if TYPE_CHECKING:
    from torch import Tensor

    from stagecli.codec.base import Codec
    from stagecli.schema import Recipe


LATER_STATISTICS = ("low_C", "high_C")  # that runs of earlier versions have not saved


def make_codec(recipe: Recipe) -> Codec:
    """The codec of a recipe, with its statistics not fitted yet.

    Raises StageError for settings that cannot work, missing weights and a wrong sample rate.
    """
    try:
        return _make(recipe)
    except ValueError as error:
        raise StageError(
            "the codec cannot be made", problems=[Problem("[codec]", str(error))]
        ) from error


def _make(recipe: Recipe) -> Codec:
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


def save_codec_state(codec: Codec, path: Path) -> None:
    """Write the codec's statistics with their checksum. Raises OSError."""
    from safetensors.torch import save_file

    tensors = codec.statistics()
    with atomic_path(path) as partial:
        save_file(tensors, partial, metadata={"sha256": _sum(tensors)})


def load_codec_state(codec: Codec, path: Path) -> None:
    """Set the codec's statistics to those that a run saved at `path`.

    Without a range of the frames, as in older runs, `Codec.limit` changes nothing. Raises
    StageError where the file is missing, damaged, or of another codec.
    """
    from safetensors import safe_open

    # The file as it is.
    if not path.exists():
        raise StageError(
            "the run has no codec statistics", problems=[Problem(str(path), "is missing")]
        )
    damage = "the codec statistics of the run are damaged"
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            stated = (file.metadata() or {}).get("sha256")
    except Exception as error:  # safetensors has error types of its own
        raise StageError(damage, problems=[Problem(str(path), str(error))]) from error

    # What it must be.
    problem = None
    if stated is not None and stated != _sum(tensors):
        problem = "has changed since it was written"
    expected = codec.statistics()
    for name, value in expected.items():
        if name not in tensors and name in LATER_STATISTICS:
            continue
        if name not in tensors or tensors[name].shape != value.shape:
            problem = problem or f"holds no {name} of {value.shape[0]} channels"
        elif not bool(tensors[name].isfinite().all()):
            problem = problem or f"{name} is not finite"
    if problem:
        raise StageError(damage, problems=[Problem(str(path), problem)])
    for name in expected.keys() & tensors.keys():
        codec.get_buffer(name).copy_(tensors[name])


def load_first_codec_state(
    codec: Codec, paths: Sequence[Path]
) -> tuple[Path | None, list[Problem]]:
    """Load the first of several copies that is whole.

    Returns (its path, None if there is none; what is wrong with those before it).
    """
    problems: list[Problem] = []
    for path in paths:
        try:
            load_codec_state(codec, path)
            return path, problems
        except StageError as error:
            problems += error.problems
    return None, problems


def _sum(tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(name.encode())
        digest.update(tensors[name].cpu().float().numpy().tobytes())
    return digest.hexdigest()
