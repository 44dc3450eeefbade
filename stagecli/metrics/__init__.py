"""The registry of metrics and the spectral-distance presets: data only, no torch at import.

A number means nothing without its convention (analysis window, floor, split, sample bias), so every
entry carries the text that is printed beside its value. A new metric is one entry here and one pure
function in this package.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

Better = Literal["lower", "higher"]
Task = Literal["sr", "t2a", "both"]
Family = Literal["lsd", "waveform", "frechet"]


@dataclass(frozen=True)
class LSDPreset:
    """One convention of the log-spectral distance; periodic Hann window, frames centred on k * hop.

    n_fft, hop: samples; `rate_hz` None: the same at every sample rate, else they are given at that rate
    and scale with the sample rate (truncated).
    form "clamp": d = log10 max(|X|^2, floor) - log10 max(|Y|^2, floor), X reference, Y estimate;
    form "ratio": d = log10(|X|^2 / (|Y| + floor)^2 + floor), which is not symmetric and is log10(floor)
    wherever the reference is exactly zero, whatever the estimate.
    pad_mode: how both ends are extended by n_fft // 2 samples. source: whose convention it is.
    """

    name: str
    n_fft: int
    hop: int
    rate_hz: int | None
    form: Literal["clamp", "ratio"]
    floor: float
    pad_mode: Literal["reflect", "constant"]
    source: str

    def sizes(self, sample_rate: int) -> tuple[int, int]:
        """(n_fft, hop) in samples at `sample_rate` Hz; ValueError for a rate that leaves no hop."""
        if self.rate_hz is None:
            return self.n_fft, self.hop
        n_fft, hop = (size * sample_rate // self.rate_hz for size in (self.n_fft, self.hop))
        if hop < 1:
            raise ValueError(f"LSD preset {self.name} has no hop at a sample rate of {sample_rate} Hz")
        return n_fft, hop

    def describe(self) -> str:
        """The convention in one line, as printed with every number."""
        rate = "any rate" if self.rate_hz is None else f"at {self.rate_hz} Hz, scaled to the rate"
        floor = {
            "clamp": f"|X|^2 clamped at {self.floor:g}",
            "ratio": f"log10(|X|^2/(|Y|+{self.floor:g})^2+{self.floor:g}), 12 where X is 0",
        }[self.form]
        return f"LSD {self.name}: n_fft {self.n_fft} hop {self.hop} ({rate}), {floor}, gain not matched"


_PRESETS = (
    # STFTMag(2048, 512) and clamp(1e-8) of NU-Wave, NU-Wave 2 and AP-BWE.
    LSDPreset("nuwave", 2048, 512, None, "clamp", 1e-8, "reflect", "maum-ai/nuwave lightning_model.py"),
    # n_fft int(2048 / (44100 / rate)), hop rate / 100, on librosa.stft, which pads with zeros since 0.9.
    LSDPreset("ssr_eval", 2048, 441, 44100, "ratio", 1e-12, "constant", "haoheliu/ssr_eval metrics.py"),
)
LSD_PRESETS: Mapping[str, LSDPreset] = MappingProxyType({preset.name: preset for preset in _PRESETS})


@dataclass(frozen=True)
class Metric:
    """What a reader needs beside a value.

    better: direction; unit: of the value ("" for a pure number); convention: printed with every number;
    task: where it is reported; family: which function computes it: "lsd" `spectral.lsd_bands`,
    "waveform" `spectral.si_sdr` / `spectral.snr` (both per clip pair), "frechet"
    `distance.frechet_distance` (two sets); preset: name in LSD_PRESETS, for the family "lsd" only.
    """

    name: str
    better: Better
    unit: str
    convention: str
    task: Task
    family: Family
    preset: str | None = None


def _lsd_metrics(preset: LSDPreset, prefix: str) -> list[Metric]:
    """The whole-band, high-band and low-band entries of one preset."""
    split = "split at bin int(bins * input rate / rate), the input's Nyquist"
    bands = {"": "all bins", "_hf": f"bins from the {split}, up", "_lf": f"bins below the {split}"}
    return [
        Metric(prefix + band, "lower", "log10 power", f"{preset.describe()}; {text}", "sr", "lsd", preset.name)
        for band, text in bands.items()
    ]


_METRICS = (
    *_lsd_metrics(LSD_PRESETS["nuwave"], "lsd"),
    *_lsd_metrics(LSD_PRESETS["ssr_eval"], "lsd_ssr_eval"),
    Metric("si_sdr", "higher", "dB", "SI-SDR, zero_mean=False; silent references left out", "sr", "waveform"),
    Metric("snr", "higher", "dB", "20 log10(|x| / |x - y|); silent references left out", "sr", "waveform"),
    Metric(
        "fd_log_mel",
        "lower",
        "nat^2",
        "Frechet distance on log-mel statistics (mean and std over time of 64 HTK mel bands, ln of band "
        "power, floor 1e-8), no trained encoder; covariance ddof=1; biased by the number of clips",
        "both",
        "frechet",
    ),
)
METRICS: Mapping[str, Metric] = MappingProxyType({metric.name: metric for metric in _METRICS})
