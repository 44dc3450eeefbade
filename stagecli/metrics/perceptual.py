"""Perceptual metrics of clip pairs by their packages (extra `perceptual`), and their bandwidths."""

from __future__ import annotations

import importlib
import warnings
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from stagecli.dsp.resample import PRECISE, resample
from stagecli.metrics.checks import check_pair

Array = npt.NDArray[np.float64]
Verdict = Literal["seen", "warned", "refused"]
# The highest frequency, Hz, at which a difference moves the score; docs/metrics.md: how measured.
TOP_HZ: dict[str, float] = {
    "pesq_nb": 3700.0,  # behind a telephone receive filter
    "pesq_wb": 8000.0,  # 16 kHz audio
    "stoi": 4277.0,  # 15 third-octave bands from 150 Hz, on 10 kHz audio
    "estoi": 4277.0,
    "visqol_speech": 8000.0,  # 21 gammatone bands, 16 kHz audio
    "visqol_audio": 24000.0,  # 32 gammatone bands, 48 kHz audio
}
_PACKAGES = {"pesq": "pesq", "pystoi": "pystoi", "visqol": "visqol-python"}


class MissingPackageError(ModuleNotFoundError):
    """A package of an extra is not installed; `hint`: how to install it."""

    def __init__(self, package: str, extra: str = "perceptual") -> None:
        super().__init__(f"the package {package} is not installed", name=package)
        self.hint = f'install the extra: pip install "stagecli[{extra}]"'


def _package(module: str) -> Any:
    """Imported on use, because the core works without the extra."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != module:
            raise  # the package is installed, and one of its own dependencies is missing
        raise MissingPackageError(_PACKAGES[module]) from error


@dataclass(frozen=True)
class BandVerdict:
    """verdict: "seen", "warned" (a part of the restored band is not seen) or "refused" (none of it
    is seen); reason: why."""

    verdict: Verdict
    reason: str


def band_verdict(
    name: str, cutoff_hz: float, sample_rate: int, top_hz: float | None = None
) -> BandVerdict:
    """Whether a metric sees the band that super-resolution restores, from the cutoff to Nyquist.

    name: in `TOP_HZ`, or any name with `top_hz`, the highest frequency it sees (an encoder's band).
    A refused metric would score the untouched low band, and a system that restores nothing would
    look best.
    Raises ValueError: unknown name without top_hz, cutoff outside (0, Nyquist).
    """
    nyquist = sample_rate / 2
    if not 0 < cutoff_hz < nyquist:
        raise ValueError(f"cutoff {cutoff_hz:g} Hz is outside (0, {nyquist:g} Hz)")
    if top_hz is None:
        if name not in TOP_HZ:
            raise ValueError(f"unknown perceptual metric {name!r}; there are {', '.join(TOP_HZ)}")
        top_hz = TOP_HZ[name]
    if cutoff_hz >= top_hz:
        return BandVerdict(
            "refused", f"{name} sees up to {top_hz:g} Hz: nothing of the band from {cutoff_hz:g} Hz"
        )
    if top_hz < nyquist:
        share = (top_hz - cutoff_hz) / (nyquist - cutoff_hz)
        part = f"{cutoff_hz:g} to {top_hz:g} Hz of {cutoff_hz:g} to {nyquist:g} Hz"
        return BandVerdict(
            "warned", f"{name} sees {100 * share:.0f} % of the restored band, {part}"
        )
    return BandVerdict("seen", f"{name} sees the restored band, {cutoff_hz:g} to {nyquist:g} Hz")


def resampled(audio_N: Array, sample_rate: int, target_rate: int) -> Array:
    """Audio [N] at `target_rate` Hz: polyphase, linear phase, 100 dB, -6 dB at lower Nyquist."""
    return resample(audio_N, sample_rate, target_rate, PRECISE)


def _arrays(
    reference_N: Tensor,
    estimate_N: Tensor,
    sample_rate: int,
    least_seconds: float,
    *,
    same_length: bool,
) -> tuple[Array, Array]:
    check_pair(reference_N, estimate_N, sample_rate, least_seconds, same_length=same_length)
    if not bool(torch.any(estimate_N != 0)):
        raise ValueError("the estimate is silent: every sample is zero")
    x, y = (audio.detach().cpu().double().numpy() for audio in (reference_N, estimate_N))
    return x, y


def pesq(
    reference_N: Tensor, estimate_N: Tensor, sample_rate: int, mode: Literal["nb", "wb"] = "wb"
) -> float:
    """PESQ as MOS-LQO, higher is better, by the package `pesq`.

    mode "nb": P.862.1 (at most 4.55), at 16 kHz if the audio has that rate or more, else at 8 kHz,
    as the program of P.862 takes either; "wb": P.862.2 at 16 kHz (at most 4.64). reference,
    estimate: speech [N] at any `sample_rate` Hz, resampled by `resampled`; at a lower rate the
    empty band counts as it is. Lengths may differ: PESQ aligns level and time, so it is blind to
    gain, and to everything above 3.7 or 8 kHz.
    Raises ValueError: as `check_pair`; silent, under 0.25 s, no utterance found;
    MissingPackageError.
    """
    if mode not in ("nb", "wb"):
        raise ValueError(f'mode must be "nb" or "wb", got {mode!r}')
    package = _package("pesq")
    rate = 8000 if mode == "nb" and sample_rate < 16000 else 16000
    reference, estimate = _arrays(reference_N, estimate_N, sample_rate, 0.25, same_length=False)
    x = resampled(reference, sample_rate, rate)
    y = resampled(estimate, sample_rate, rate)
    try:
        return float(package.pesq(rate, x, y, mode))
    except package.PesqError as error:
        reason = error.args[0] if error.args else error
        reason = reason.decode() if isinstance(reason, bytes) else str(reason)
        raise ValueError(f"PESQ cannot score this pair: {reason}") from error


def stoi(
    reference_N: Tensor, estimate_N: Tensor, sample_rate: int, extended: bool = False
) -> float:
    """Short-time objective intelligibility (Taal et al., 2011) by the package `pystoi`.

    extended: ESTOI (Jensen and Taal, 2016). reference, estimate: speech [N] at `sample_rate` Hz,
    which the package resamples to 10 kHz (polyphase, as Octave does) and from which it drops frames
    40 dB below the loudest of the reference. A correlation, higher is better: 1 for a copy, about 0
    for unrelated audio. Blind to gain, and to everything above 4.3 kHz.
    Raises ValueError: as `check_pair`; fewer than 30 frames (0.4 s) of speech. MissingPackageError.
    """
    package = _package("pystoi")
    x, y = _arrays(reference_N, estimate_N, sample_rate, 0.4, same_length=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        try:
            return float(package.stoi(x, y, sample_rate, extended=extended))
        except RuntimeWarning as warning:  # pystoi would return 1e-5
            raise ValueError(
                "STOI needs at least 30 frames (0.4 s) that are not silent"
            ) from warning


@lru_cache(maxsize=2)
def _visqol_scorer(mode: str) -> Any:
    scorer = _package("visqol").VisqolApi()
    # Explicit, because the package would use another mapping if a TFLite runtime is installed.
    scorer.create(mode=mode, use_lattice_model=False)
    return scorer


def visqol(
    reference_N: Tensor,
    estimate_N: Tensor,
    sample_rate: int,
    mode: Literal["speech", "audio"] = "audio",
) -> float:
    """ViSQOL v3 as MOS-LQO, higher is better (Chinen et al., 2020), by `visqol-python`.

    mode "audio": 48 kHz (at most 4.75), by the support vector model; "speech": 16 kHz (at most 5),
    by the polynomial mapping (C++ ViSQOL's use_lattice_model=false), which is 1 to 2 points higher
    on bad speech than the lattice. reference, estimate: [N] at any `sample_rate` Hz, resampled to
    the mode's rate by `resampled`. Aligns level and time, so that lengths may differ. Takes seconds
    per second of audio.
    Raises ValueError: as `check_pair`; silent, under 1 s, no patch to compare. MissingPackageError.
    """
    if mode not in ("speech", "audio"):
        raise ValueError(f'mode must be "speech" or "audio", got {mode!r}')
    scorer = _visqol_scorer(mode)
    rate = 16000 if mode == "speech" else 48000
    reference, estimate = _arrays(reference_N, estimate_N, sample_rate, 1.0, same_length=False)
    x = resampled(reference, sample_rate, rate)
    y = resampled(estimate, sample_rate, rate)
    try:
        return float(scorer.measure_from_arrays(x, y, rate).moslqo)
    except (ValueError, IndexError) as error:
        raise ValueError(f"ViSQOL cannot score this pair: {error}") from error
