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
MetricTask = Literal["sr", "t2a", "both"]
Family = Literal[
    "lsd",
    "waveform",
    "stft",
    "perceptual",
    "frechet",
    "kernel",
    "classes",
    "neighbours",
    "clap",
    "accuracy",
]
Needs = Literal["pair", "sets", "classifier", "clap", "training", "extra"]


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
            raise ValueError(
                f"LSD preset {self.name} has no hop at a sample rate of {sample_rate} Hz"
            )
        return n_fft, hop

    @property
    def convention(self) -> str:
        """The convention in one line, as printed with every number."""
        rate = "any rate" if self.rate_hz is None else f"at {self.rate_hz} Hz, scaled to the rate"
        floor = {
            "clamp": f"|X|^2 clamped at {self.floor:g}",
            "ratio": f"log10(|X|^2/(|Y|+{self.floor:g})^2+{self.floor:g}), 12 where X is 0",
        }[self.form]
        return f"LSD {self.name}: n_fft {self.n_fft} hop {self.hop} ({rate}), {floor}, gain not matched"


_PRESETS = (
    # STFTMag(2048, 512) and clamp(1e-8) of NU-Wave, NU-Wave 2 and AP-BWE.
    LSDPreset(
        "nuwave", 2048, 512, None, "clamp", 1e-8, "reflect", "maum-ai/nuwave lightning_model.py"
    ),
    # n_fft int(2048 / (44100 / rate)), hop rate / 100, on librosa.stft, which pads with zeros since 0.9.
    LSDPreset(
        "ssr_eval", 2048, 441, 44100, "ratio", 1e-12, "constant", "haoheliu/ssr_eval metrics.py"
    ),
)
LSD_PRESETS: Mapping[str, LSDPreset] = MappingProxyType(
    {preset.name: preset for preset in _PRESETS}
)


@dataclass(frozen=True)
class Metric:
    """What a reader needs beside a value.

    better: direction; unit: of the value ("" for a pure number); convention: printed with every number, to
    which the caller adds what only it knows (encoder, classifier, checkpoint id); task: where it is reported.
    family: where it is computed: "lsd" `spectral.lsd_bands`, "waveform" `spectral.si_sdr` and `snr`, "stft"
    `stft` and `mel.log_mel_distance`, "perceptual" `perceptual` (all per clip pair); "frechet" `distance`,
    "kernel" `kernel`, "neighbours" `neighbours` (sets of embeddings); "classes", "clap", "accuracy" `classes`.
    preset: name in LSD_PRESETS, for the family "lsd" only.
    needs: "pair" clips (or posteriors, or embeddings) matched one by one; "sets" embeddings of two sets;
    "training" those of the training set; "classifier" posteriors or labels; "clap" embeddings of a CLAP
    checkpoint; "extra" the packages of the extra `perceptual`.
    """

    name: str
    better: Better
    unit: str
    convention: str
    task: MetricTask
    family: Family
    preset: str | None = None
    needs: tuple[Needs, ...] = ("pair",)


def _lsd_metrics(preset: LSDPreset, prefix: str) -> list[Metric]:
    """The whole-band, high-band and low-band entries of one preset."""
    split = "split at bin int(bins * input rate / rate), the input's Nyquist"
    bands = {"": "all bins", "_hf": f"bins from the {split}, up", "_lf": f"bins below the {split}"}
    return [
        Metric(
            prefix + band,
            "lower",
            "log10 power",
            f"{preset.convention}; {text}",
            "sr",
            "lsd",
            preset.name,
        )
        for band, text in bands.items()
    ]


def _sr(name: str, better: Better, unit: str, convention: str, family: Family) -> Metric:
    return Metric(name, better, unit, convention, "sr", family)


def _perceptual(name: str, convention: str, unit: str = "MOS-LQO") -> Metric:
    return Metric(name, "higher", unit, convention, "sr", "perceptual", needs=("pair", "extra"))


def _sets(
    name: str, better: Better, unit: str, convention: str, family: Family, *more: Needs
) -> Metric:
    task: MetricTask = "t2a" if more or name == "fd_judge" else "both"
    return Metric(name, better, unit, convention, task, family, needs=("sets", *more))


_RESAMPLED = "polyphase Kaiser resampling of 100 dB"
_GAUSS = "covariance ddof=1"
_MEAN_N = "mean over pairs"
_MANIFOLD = "k-NN balls, k=5 unless said, strict inside; depends on the numbers of clips"

_METRICS = (
    *_lsd_metrics(LSD_PRESETS["nuwave"], "lsd"),
    *_lsd_metrics(LSD_PRESETS["ssr_eval"], "lsd_ssr_eval"),
    _sr(
        "si_sdr", "higher", "dB", "SI-SDR, zero_mean=False; silent references left out", "waveform"
    ),
    _sr("snr", "higher", "dB", "20 log10(|x| / |x - y|); silent references left out", "waveform"),
    _sr(
        "mr_stft",
        "lower",
        "",
        "multi-resolution STFT distance of auraloss: n_fft 1024/2048/512 hop 120/240/50 Hann 600/1200/240, mean of "
        "spectral convergence plus mean |ln magnitude| difference, |X|^2 clamped at 1e-8, per clip; gain not matched",
        "stft",
    ),
    _sr(
        "spectral_convergence",
        "lower",
        "",
        "Frobenius norm of magnitude differences over that of the reference, n_fft 2048 hop 512 Hann, |X|^2 clamped at "
        "1e-8, per clip; gain not matched",
        "stft",
    ),
    _sr(
        "log_mel",
        "lower",
        "nat",
        "mean |ln M_x - ln M_y|, 80 HTK mel bands of unit sum to Nyquist, magnitude floor 1e-5, Hann window of the "
        "power of two from 40 ms, hop a quarter; gain not matched",
        "stft",
    ),
    _perceptual(
        "pesq_nb",
        f"PESQ P.862.1 narrow band, 8 kHz by {_RESAMPLED}, package pesq; blind above 3.7 kHz",
    ),
    _perceptual(
        "pesq_wb",
        f"PESQ P.862.2 wide band, 16 kHz by {_RESAMPLED}, package pesq; blind above 8 kHz",
    ),
    _perceptual(
        "stoi",
        "STOI at 10 kHz, resampled by the package pystoi; blind above 4.3 kHz",
        "correlation",
    ),
    _perceptual(
        "estoi",
        "ESTOI at 10 kHz, resampled by the package pystoi; blind above 4.3 kHz",
        "correlation",
    ),
    _perceptual(
        "visqol_speech",
        f"ViSQOL v3 speech, 16 kHz by {_RESAMPLED}, polynomial mapping, package visqol-python; blind above 8 kHz",
    ),
    _perceptual(
        "visqol_audio", f"ViSQOL v3 audio, 48 kHz by {_RESAMPLED}, SVR, package visqol-python"
    ),
    _sets(
        "fd_judge",
        "lower",
        "",
        f"Frechet distance on the judge's features, mean over the frames of a clip; {_GAUSS}; biased by the "
        "number of clips",
        "frechet",
    ),
    _sets(
        "fd_log_mel",
        "lower",
        "nat^2",
        "Frechet distance on log-mel statistics (mean and std over time of 64 HTK mel bands, ln of band "
        f"power, floor 1e-8), no trained encoder; {_GAUSS}; biased by the number of clips",
        "frechet",
    ),
    _sets(
        "fad_infinity",
        "lower",
        "",
        f"Frechet distance extrapolated to infinitely many generated clips, line in 1/n through subsets without "
        f"repetition; {_GAUSS}; the reference's own bias stays",
        "frechet",
    ),
    _sets(
        "kad",
        "lower",
        "",
        "100 x unbiased squared MMD, Gaussian kernel, bandwidth the median distance within the reference; "
        "may be negative",
        "kernel",
    ),
    _sets("precision", "higher", "", f"improved precision, {_MANIFOLD}", "neighbours"),
    _sets("recall", "higher", "", f"improved recall, {_MANIFOLD}", "neighbours"),
    _sets("density", "higher", "", f"density, {_MANIFOLD}; may pass 1", "neighbours"),
    _sets("coverage", "higher", "", f"coverage, {_MANIFOLD}", "neighbours"),
    _sets(
        "memorised_share",
        "lower",
        "",
        "share of samples nearer to a training clip than the 1st percentile of real test clips, Euclidean, one "
        "training set for both; 0.01 is what new recordings would have",
        "neighbours",
        "training",
    ),
    Metric(
        "kl",
        "lower",
        "nat",
        f"KL(reference || generated) of class posteriors (softmax), 1e-6 added to the generated, {_MEAN_N}",
        "t2a",
        "classes",
        needs=("pair", "classifier"),
    ),
    Metric(
        "kl_of_means",
        "lower",
        "nat",
        "KL(reference || generated) of the mean class posteriors (softmax), 1e-6 added to the generated",
        "t2a",
        "classes",
        needs=("sets", "classifier"),
    ),
    Metric(
        "inception_score",
        "higher",
        "",
        "exp of the mean KL(p(y|x) || p(y)), softmax, 10 splits of shuffled clips, mean and std; rises with "
        "clips per split",
        "t2a",
        "classes",
        needs=("classifier",),
    ),
    Metric(
        "clap_score",
        "higher",
        "",
        f"cosine of CLAP audio and text embeddings, {_MEAN_N}, not clipped; one checkpoint's scores only",
        "t2a",
        "clap",
        needs=("pair", "clap"),
    ),
    Metric(
        "prompt_accuracy",
        "higher",
        "",
        "share of samples in which the classifier hears the prompt's label, Wilson 95 % interval",
        "t2a",
        "accuracy",
        needs=("classifier",),
    ),
)
METRICS: Mapping[str, Metric] = MappingProxyType({metric.name: metric for metric in _METRICS})
