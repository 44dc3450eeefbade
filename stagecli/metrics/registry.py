"""The registry of metrics: data only, no torch at import.

A number means nothing without its convention (analysis window, floor, split, sample bias), so every
entry carries the text that is printed beside its value. A new metric is one entry here and one pure
function in this package.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

from stagecli.metrics.lsd_presets import LSD_PRESETS, LSDPreset

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


@dataclass(frozen=True, kw_only=True)
class Metric:
    """The information a reader needs beside a value.

    better: direction; unit: of the value ("" for a pure number); convention: printed with every
    number, and extended by the caller (encoder, classifier, checkpoint); task: where it is
    reported. family: where it is computed:
    per clip pair "lsd" in `spectral.lsd_bands`, "waveform" in `spectral.si_sdr` and `snr`, "stft"
    in `stft` and `mel.log_mel_distance`, "perceptual" in `perceptual`;
    on sets of embeddings "frechet" in `distance`, "kernel" in `kernel`, "neighbours" in
    `neighbours`; "classes", "clap" and "accuracy" in `classes`.
    preset: name in LSD_PRESETS, for the family "lsd" only.
    needs: "pair" for matched clips (or posteriors, or embeddings); "sets" for embeddings of two
    sets; "training" for those of the training set; "classifier" for posteriors or labels; "clap"
    for embeddings of a CLAP checkpoint; "extra" for the packages of the extra `perceptual`.
    """

    name: str
    better: Better
    unit: str
    convention: str
    task: MetricTask
    family: Family
    preset: str | None = None
    needs: tuple[Needs, ...] = ("pair",)


def lsd_metrics(preset: LSDPreset, prefix: str = "lsd") -> list[Metric]:
    """The whole-band, high-band and low-band entries of one convention, named `prefix`..."""
    split = "split at bin int(bins * input rate / rate), the input's Nyquist"
    bands = {"": "all bins", "_hf": f"bins from the {split}, up", "_lf": f"bins below the {split}"}
    return [
        Metric(
            name=prefix + band,
            better="lower",
            unit="log10 power",
            convention=f"{preset.convention}; {text}",
            task="sr",
            family="lsd",
            preset=preset.name,
        )
        for band, text in bands.items()
    ]


def _sr(name: str, better: Better, unit: str, convention: str, family: Family) -> Metric:
    """A metric of clip pairs, reported for sr."""
    return Metric(
        name=name, better=better, unit=unit, convention=convention, task="sr", family=family
    )


def _perceptual(name: str, convention: str, unit: str = "MOS-LQO") -> Metric:
    return Metric(
        name=name,
        better="higher",
        unit=unit,
        convention=convention,
        task="sr",
        family="perceptual",
        needs=("pair", "extra"),
    )


def _sets(
    name: str,
    better: Better,
    unit: str,
    convention: str,
    family: Family,
    *,
    task: MetricTask = "both",
    needs: tuple[Needs, ...] = ("sets",),
) -> Metric:
    """A metric of two sets of embeddings."""
    return Metric(
        name=name,
        better=better,
        unit=unit,
        convention=convention,
        task=task,
        family=family,
        needs=needs,
    )


def _t2a(
    name: str,
    better: Better,
    unit: str,
    convention: str,
    family: Family,
    *,
    needs: tuple[Needs, ...],
) -> Metric:
    """A metric of class posteriors, labels or prompts, reported for t2a."""
    return Metric(
        name=name,
        better=better,
        unit=unit,
        convention=convention,
        task="t2a",
        family=family,
        needs=needs,
    )


_RESAMPLED = "polyphase Kaiser resampling of 100 dB"
_GAUSS = "covariance ddof=1"
_MEAN_N = "mean over pairs"
_MANIFOLD = "k-NN balls, k=5 by default, strict inside; depends on the numbers of clips"

_METRICS = (
    *lsd_metrics(LSD_PRESETS["nuwave"]),
    *lsd_metrics(LSD_PRESETS["ssr_eval"], "lsd_ssr_eval"),
    _sr(
        "si_sdr", "higher", "dB", "SI-SDR, zero_mean=False; silent references left out", "waveform"
    ),
    _sr("snr", "higher", "dB", "20 log10(|x| / |x - y|); silent references left out", "waveform"),
    _sr(
        "mr_stft",
        "lower",
        "",
        "multi-resolution STFT distance of auraloss: n_fft 1024/2048/512 hop 120/240/50 Hann "
        "600/1200/240, mean of spectral convergence plus mean |ln magnitude| difference, |X|^2 "
        "clamped at 1e-8, per clip; gain not matched",
        "stft",
    ),
    _sr(
        "spectral_convergence",
        "lower",
        "",
        "Frobenius norm of magnitude differences over that of the reference, n_fft 2048 hop 512 "
        "Hann, |X|^2 clamped at 1e-8, per clip; gain not matched",
        "stft",
    ),
    _sr(
        "log_mel",
        "lower",
        "nat",
        "mean |ln M_x - ln M_y|, 80 HTK mel bands of unit sum to Nyquist, magnitude floor 1e-5, "
        "Hann window of the power of two from 40 ms, hop a quarter; gain not matched",
        "stft",
    ),
    _perceptual(
        "pesq_nb",
        f"PESQ P.862.1 narrow band, 16 kHz (8 kHz for audio below 16 kHz) by {_RESAMPLED}, package "
        "pesq; blind above 3.7 kHz",
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
        f"ViSQOL v3 speech, 16 kHz by {_RESAMPLED}, polynomial mapping, package visqol-python; "
        "blind above 8 kHz",
    ),
    _perceptual(
        "visqol_audio", f"ViSQOL v3 audio, 48 kHz by {_RESAMPLED}, SVR, package visqol-python"
    ),
    _sets(
        "fd_judge",
        "lower",
        "",
        f"Frechet distance on the judge's features, mean over the frames of a clip; {_GAUSS}; "
        "biased by the number of clips",
        "frechet",
        task="t2a",
    ),
    _sets(
        "fd_log_mel",
        "lower",
        "nat^2",
        "Frechet distance on log-mel statistics (mean and std over time of 64 HTK mel bands, ln "
        f"of band power, floor 1e-8), no trained encoder; {_GAUSS}; biased by the number of clips",
        "frechet",
    ),
    _sets(
        "fad_infinity",
        "lower",
        "",
        "Frechet distance extrapolated to infinitely many generated clips, line in 1/n through "
        f"subsets without repetition; {_GAUSS}; the reference's own bias remains",
        "frechet",
    ),
    _sets(
        "kad",
        "lower",
        "",
        "100 x unbiased squared MMD, Gaussian kernel, bandwidth the median distance within the "
        "reference; may be negative",
        "kernel",
    ),
    _sets("precision", "higher", "", f"improved precision, {_MANIFOLD}", "neighbours"),
    _sets("recall", "higher", "", f"improved recall, {_MANIFOLD}", "neighbours"),
    _sets("density", "higher", "", f"density, {_MANIFOLD}; may exceed 1", "neighbours"),
    _sets("coverage", "higher", "", f"coverage, {_MANIFOLD}", "neighbours"),
    _sets(
        "memorised_share",
        "lower",
        "",
        "share of samples nearer to a training clip than the 1st percentile of real test clips, "
        "Euclidean, one training set for both; 0.01 is expected of new recordings",
        "neighbours",
        task="t2a",
        needs=("sets", "training"),
    ),
    _t2a(
        "kl",
        "lower",
        "nat",
        "KL(reference || generated) of class posteriors (softmax), 1e-6 added to the generated, "
        f"{_MEAN_N}",
        "classes",
        needs=("pair", "classifier"),
    ),
    _t2a(
        "inception_score",
        "higher",
        "",
        "exp of the mean KL(p(y|x) || p(y)), softmax, 10 splits of shuffled clips, mean and std; "
        "rises with clips per split",
        "classes",
        needs=("classifier",),
    ),
    _t2a(
        "clap_score",
        "higher",
        "",
        f"cosine of CLAP audio and text embeddings, {_MEAN_N}, not clipped; one checkpoint's "
        "scores only",
        "clap",
        needs=("pair", "clap"),
    ),
    _t2a(
        "prompt_accuracy",
        "higher",
        "",
        "share of samples for which the classifier predicts the prompt's label, Wilson 95 % "
        "interval",
        "accuracy",
        needs=("classifier",),
    ),
)
METRICS: Mapping[str, Metric] = MappingProxyType({metric.name: metric for metric in _METRICS})
