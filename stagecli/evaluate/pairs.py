"""Scores of one clip against its reference (sr), and which perceptual metrics suit a cutoff."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from stagecli.errors import Problem, StageError
from stagecli.metrics.checks import trim_tails
from stagecli.metrics.lsd_presets import preset_of
from stagecli.metrics.mel import log_mel_distance
from stagecli.metrics.perceptual import MissingPackageError, band_verdict, pesq, stoi, visqol
from stagecli.metrics.registry import METRICS, lsd_metrics
from stagecli.metrics.spectral import lsd_bands, si_sdr, snr
from stagecli.metrics.stft import multi_resolution_stft, spectral_convergence

LSD = ("lsd", "lsd_hf", "lsd_lf")
SR_METRICS = (
    *LSD,
    "si_sdr",
    "snr",
    "mr_stft",
    "spectral_convergence",
    "log_mel",
)
PERCEPTUAL: Mapping[str, Callable[[Tensor, Tensor, int], float]] = {
    "pesq_nb": partial(pesq, mode="nb"),
    "pesq_wb": partial(pesq, mode="wb"),
    "stoi": stoi,
    "estoi": partial(stoi, extended=True),
    "visqol_speech": partial(visqol, mode="speech"),
    "visqol_audio": partial(visqol, mode="audio"),
}

PACKAGES = {
    "pesq_nb": "pesq",
    "pesq_wb": "pesq",
    "stoi": "pystoi",
    "estoi": "pystoi",
    "visqol_speech": "visqol",
    "visqol_audio": "visqol",
}
SELF_ALIGNING = ("pesq_nb", "pesq_wb", "visqol_speech", "visqol_audio")

_WAVEFORM_AND_STFT: Mapping[str, Callable[[Tensor, Tensor, int], Tensor]] = {
    "si_sdr": lambda x, y, rate: si_sdr(x, y),
    "snr": lambda x, y, rate: snr(x, y),
    "mr_stft": lambda x, y, rate: multi_resolution_stft(x, y)["mr_stft"],
    "spectral_convergence": lambda x, y, rate: spectral_convergence(x, y),
    "log_mel": log_mel_distance,
}


@dataclass(frozen=True, kw_only=True)
class PairSettings:
    """How a pair is scored.

    sample_rate, cutoff: Hz; preset: of LSD, by name or as a convention that `preset_of` reads;
    names: metrics to compute, of `SR_METRICS` and `PERCEPTUAL`.
    """

    sample_rate: int
    cutoff: float
    preset: str
    names: Sequence[str] = SR_METRICS


def score_pair(
    target: np.ndarray, estimate: np.ndarray, settings: PairSettings
) -> dict[str, float]:
    """{metric: value} of one clip [N] against its reference [N].

    Where one is longer by up to 20 ms, its tail counts only for the metrics that align by
    themselves. A metric that has no value for this clip (SI-SDR of silence, PESQ without an
    utterance) is NaN.
    Raises ValueError if the pair cannot be scored at all: different lengths, NaN, too short.
    """
    rate = settings.sample_rate
    whole_x = torch.from_numpy(np.asarray(target))
    whole_y = torch.from_numpy(np.asarray(estimate, dtype=np.float32))
    x, y = trim_tails(whole_x, whole_y, rate)
    bands: Mapping[str, Tensor] = {}
    if any(name in LSD for name in settings.names):
        bands = lsd_bands(x, y, rate, settings.cutoff, settings.preset)
    scores = {}
    for name in settings.names:
        if name in LSD:
            scores[name] = float(bands[name])
        elif name in PERCEPTUAL:
            pair = (whole_x, whole_y) if name in SELF_ALIGNING else (x, y)
            try:
                scores[name] = PERCEPTUAL[name](*pair, rate)
            except ValueError:  # silence, or too little of what the metric needs
                scores[name] = float("nan")
        else:
            scores[name] = float(_WAVEFORM_AND_STFT[name](x, y, rate))
    return scores


def audible_metrics(
    cutoffs: Sequence[float], rate: int, names: Sequence[str] = tuple(PERCEPTUAL)
) -> tuple[dict[float, list[str]], list[str]]:
    """({cutoff: those of `names` that see some of the restored band}, warnings).

    names: metrics, of which those in `PERCEPTUAL` see a part of the band only. There is a warning
    for each that does not see all of it. Raises StageError if a package of the extra is missing, or
    if no metric is left at a cutoff.
    """
    for package in sorted({PACKAGES[name] for name in names if name in PACKAGES}):
        if importlib.util.find_spec(package) is None:
            missing = MissingPackageError(package)
            raise StageError(str(missing), hint=missing.hint)
    chosen: dict[float, list[str]] = {}
    warnings = []
    for cutoff in cutoffs:
        chosen[cutoff] = [name for name in names if name not in PERCEPTUAL]
        for name in [name for name in names if name in PERCEPTUAL]:
            band = band_verdict(name, cutoff, rate)
            if band.verdict == "refused":
                warnings.append(f"cutoff {cutoff:g} Hz: {band.reason}; not computed")
                continue
            chosen[cutoff].append(name)
            if band.verdict == "warned":
                warnings.append(
                    f"cutoff {cutoff:g} Hz: {band.reason}; computed, but blind to the rest"
                )
        if not chosen[cutoff]:
            raise StageError(
                f"none of the metrics sees anything of the band above {cutoff:g} Hz",
                problems=[Problem("--metrics", ", ".join(names))],
                hint="add others, such as lsd",
            )
    return chosen, warnings


def pair_conventions(preset: str, names: Sequence[str]) -> dict[str, str]:
    """The convention of each metric, by the name it is printed under; preset: of LSD."""
    of_lsd = {metric.name: metric.convention for metric in lsd_metrics(preset_of(preset))}
    return {name: of_lsd.get(name) or METRICS[name].convention for name in names}
