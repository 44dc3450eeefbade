"""Scores of one clip against its reference (sr), and which perceptual metrics may be asked."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping, Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor

from stagecli.errors import EXIT_FAILED, Problem, StageError
from stagecli.metrics.mel import log_mel_distance
from stagecli.metrics.perceptual import MissingPackageError, band_verdict, pesq, stoi, visqol
from stagecli.metrics.registry import METRICS
from stagecli.metrics.spectral import lsd_bands, si_sdr, snr
from stagecli.metrics.stft import multi_resolution_stft, spectral_convergence

SR_QUICK = ("lsd", "lsd_hf", "lsd_lf", "si_sdr", "snr")
SR_METRICS = (*SR_QUICK, "mr_stft", "spectral_convergence", "log_mel")
PERCEPTUAL: Mapping[str, Callable[[Tensor, Tensor, int], float]] = {
    "pesq_nb": partial(pesq, mode="nb"),
    "pesq_wb": partial(pesq, mode="wb"),
    "stoi": stoi,
    "estoi": partial(stoi, extended=True),
    "visqol_speech": partial(visqol, mode="speech"),
    "visqol_audio": partial(visqol, mode="audio"),
}

_OTHERS: Mapping[str, Callable[[Tensor, Tensor, int], Tensor]] = {
    "si_sdr": lambda x, y, rate: si_sdr(x, y),
    "snr": lambda x, y, rate: snr(x, y),
    "mr_stft": lambda x, y, rate: multi_resolution_stft(x, y)["mr_stft"],
    "spectral_convergence": lambda x, y, rate: spectral_convergence(x, y),
    "log_mel": log_mel_distance,
}


def score_pair(
    target: np.ndarray,
    audio: np.ndarray,
    rate: int,
    cutoff: float,
    preset: str,
    names: Sequence[str] = SR_METRICS,
) -> dict[str, float]:
    """Metrics of one clip by name, of `SR_METRICS` and `PERCEPTUAL`; both [N] at `rate` Hz, `cutoff` in Hz.

    What has no value for this clip (SI-SDR of silence, PESQ where it hears no utterance) is NaN: to be left out and
    counted. Raises ValueError where the pair cannot be scored at all: other lengths, NaN, too short.
    """
    x = torch.from_numpy(np.asarray(target))
    y = torch.from_numpy(np.asarray(audio, dtype=np.float32))
    bands = {name: float(value) for name, value in lsd_bands(x, y, rate, cutoff, preset).items()}
    scores = {}
    for name in names:
        if name in bands:
            scores[name] = bands[name]
        elif name in PERCEPTUAL:
            try:
                scores[name] = PERCEPTUAL[name](x, y, rate)
            except ValueError:  # silence, or too little of what the metric listens for
                scores[name] = float("nan")
        else:
            scores[name] = float(_OTHERS[name](x, y, rate))
    return scores


def score_named(where: str, what: str, *arguments: object) -> dict[str, float]:
    """`score_pair`, with the place in the error: StageError."""
    try:
        return score_pair(*arguments)  # type: ignore[arg-type]
    except ValueError as error:
        raise StageError(
            f"cannot score {what}", problems=[Problem(where, str(error))], exit_code=EXIT_FAILED
        ) from None


def audible(cutoffs: Sequence[float], rate: int) -> tuple[dict[float, list[str]], list[str]]:
    """Perceptual metrics to compute per cutoff, and one line for each that sees a part of the restored band, or none.

    Raises StageError where a package of the extra is missing.
    """
    for package in ("pesq", "pystoi", "visqol"):
        if importlib.util.find_spec(package) is None:
            missing = MissingPackageError(package)
            raise StageError(str(missing), hint=missing.hint)
    chosen: dict[float, list[str]] = {}
    notes = []
    for cutoff in cutoffs:
        verdicts = {name: band_verdict(name, cutoff, rate) for name in PERCEPTUAL}
        chosen[cutoff] = [name for name, said in verdicts.items() if said.verdict != "refused"]
        for said in verdicts.values():
            if said.verdict != "seen":
                fate = (
                    "not computed"
                    if said.verdict == "refused"
                    else "computed, but blind to the rest"
                )
                notes.append(f"cutoff {cutoff:g} Hz: {said.reason}; {fate}")
    return chosen, notes


def conventions(preset: str, names: Sequence[str]) -> dict[str, str]:
    """Convention of each metric by the name it is printed under."""
    return {name: METRICS[_registered(name, preset)].convention for name in names}


def _registered(name: str, preset: str) -> str:
    """Name in the registry: presets other than the default have their own entries."""
    return (
        name.replace("lsd", f"lsd_{preset}", 1)
        if name.startswith("lsd") and preset != "nuwave"
        else name
    )
