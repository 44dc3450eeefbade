"""How fast are the metrics, against the plain way to write them? Ratios of CPU time within one run.

    python docs/experiments/metrics_speed.py [--clips 2000] [--dim 128] [--presets FILE]

Every pair of ways computes the same number (printed where they do not agree). CPU time of this process, one
thread, the better of `--repeats` turns, both ways in turn; made data, so nothing has to be fetched. `--presets`
prints the LSD presets on one recording instead (without FILE: a made one).
"""

from __future__ import annotations

import argparse
import functools
import math
import time
from collections.abc import Callable

import numpy as np
import scipy.linalg
import torch
from scipy.spatial.distance import cdist, pdist

from stagecli.metrics.distance import frechet_distance, frechet_of_moments
from stagecli.metrics.gain import match_gain
from stagecli.metrics.kernel import kernel_audio_distance
from stagecli.metrics.lsd_presets import LSD_PRESETS, LSDPreset
from stagecli.metrics.moments import Moments
from stagecli.metrics.pairwise import median_pairwise_distance
from stagecli.metrics.spectral import lsd_bands, lsd_stream

RATE = 48000
UNIVERSR = LSDPreset(
    name="universr",
    n_fft=1024,
    hop=256,
    rate_hz=None,
    form="clamp",
    floor=1e-6,
    pad_mode="reflect",
    source="author's script, UniverSR issue 6",
)


def plain_frechet(x: np.ndarray, y: np.ndarray) -> float:
    """Covariances and a general matrix square root, as most tools have it."""
    cov_x = np.cov(x, rowvar=False)
    cov_y = np.cov(y, rowvar=False)
    cross = np.trace(scipy.linalg.sqrtm(cov_x @ cov_y)).real
    return float(
        ((x.mean(0) - y.mean(0)) ** 2).sum() + np.trace(cov_x) + np.trace(cov_y) - 2 * cross
    )


def plain_median(x: np.ndarray) -> float:
    """The lower of the middle two of all distances, held at once."""
    distances = pdist(x)
    middle = (len(distances) - 1) // 2
    return float(np.partition(distances, middle)[middle])


def plain_kad(x: np.ndarray, y: np.ndarray) -> float:
    """All distance matrices whole."""
    gamma = 0.5 / plain_median(x) ** 2
    xx, yy, xy = (np.exp(-gamma * cdist(a, b, "sqeuclidean")) for a, b in ((x, x), (y, y), (x, y)))
    n = len(x)
    m = len(y)
    return float(
        100 * ((xx.sum() - n) / (n * (n - 1)) + (yy.sum() - m) / (m * (m - 1)) - 2 * xy.mean())
    )


def plain_lsd(pairs: list[tuple[torch.Tensor, torch.Tensor]]) -> float:
    """File by file: three transforms of the pair, for the whole band, the high one and the low one."""
    window = torch.hann_window(2048, dtype=torch.float64)
    values = []
    for pair in pairs:
        for part in (slice(None), slice(170, None), slice(None, 170)):
            logs = [
                torch.stft(z.double(), 2048, 512, window=window, return_complex=True)
                .abs()
                .square()
                .clamp_min(1e-8)
                for z in pair
            ]
            squared = (logs[0].log10() - logs[1].log10()).square()[part]
            values.append(float(squared.mean(0).sqrt().mean()))
    return float(np.mean(values))


def plain_lsd_once(pairs: list[tuple[torch.Tensor, torch.Tensor]]) -> float:
    """File by file, one transform of the pair, whole band only."""
    window = torch.hann_window(2048, dtype=torch.float64)
    values = []
    for pair in pairs:
        logs = [
            torch.stft(z.double(), 2048, 512, window=window, return_complex=True)
            .abs()
            .square()
            .clamp_min(1e-8)
            .log10()
            for z in pair
        ]
        values.append(float((logs[0] - logs[1]).square().mean(0).sqrt().mean()))
    return float(np.mean(values))


def streamed_moments(batches: list[np.ndarray]) -> Moments:
    """Moments of a set that arrives batch by batch."""
    return functools.reduce(Moments.updated, batches, Moments.empty(batches[0].shape[1]))


def compare(name: str, ours: Callable[[], float], plain: Callable[[], float], repeats: int) -> None:
    best = [math.inf, math.inf]
    values = [0.0, 0.0]
    for _ in range(repeats):
        for i, work in enumerate((ours, plain)):
            began = time.process_time()
            values[i] = work()
            best[i] = min(best[i], time.process_time() - began)
    agree = "" if math.isclose(*values, rel_tol=1e-6, abs_tol=1e-6) else f"   DIFFERENT: {values}"
    print(
        f"| {name} | {best[0]:.3f} s | {best[1]:.3f} s | {best[1] / best[0]:.1f} |{agree}",
        flush=True,
    )


def presets(path: str | None) -> None:
    """A recording, low-passed at 4 kHz (every bin above is zero), by each convention; then with its gain halved."""
    if path:
        import soundfile

        samples, rate = soundfile.read(path, dtype="float64", always_2d=True)
        clip = torch.from_numpy(samples.mean(1))
    else:  # pink noise that swells, over hiss at -80 dB
        rate = RATE
        generator = torch.Generator().manual_seed(0)
        spectrum = torch.fft.rfft(torch.randn(4 * rate, generator=generator, dtype=torch.float64))
        spectrum /= torch.arange(1, len(spectrum) + 1).sqrt()
        clip = (
            torch.fft.irfft(spectrum) * torch.linspace(-7, 0, 4 * rate, dtype=torch.float64).exp()
        )
        clip = 0.5 * clip / clip.abs().max() + 1e-4 * torch.randn(
            4 * rate, generator=generator, dtype=torch.float64
        )
    spectrum = torch.fft.rfft(clip)
    spectrum[math.ceil(4000 * len(clip) / rate) :] = 0
    low = torch.fft.irfft(spectrum, len(clip))
    rounded = (low * 32767).round() / 32767
    made = {"low-passed": low, "written as 16 bit": rounded, "16 bit, half as loud": 0.5 * rounded}
    made["the same, gain matched"] = match_gain(clip, made["16 bit, half as loud"])[0]
    print(
        f"{path or 'made recording'}, {rate} Hz, {len(clip) / rate:.1f} s, cut at 4 kHz: LSD / HF / LF"
    )
    print("| preset | " + " | ".join(made) + " |\n|---|" + "---|" * len(made))
    for preset in [*LSD_PRESETS.values(), UNIVERSR]:
        cells = []
        for audio in made.values():
            values = lsd_bands(clip, audio, int(rate), 4000, preset)
            cells.append(" / ".join(f"{float(value):.3f}" for value in values.values()))
        print(f"| {preset.name} | " + " | ".join(cells) + " |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clips", type=int, default=2000)
    parser.add_argument("--dim", type=int, default=128)
    parser.add_argument("--files", type=int, default=12)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--presets", nargs="?", const="", default=None)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.presets is not None:
        presets(options.presets or None)
        return
    rng = np.random.default_rng(0)
    n = options.clips
    dim = options.dim
    mixing = rng.normal(size=(dim, dim)) / math.sqrt(dim)
    x = rng.normal(size=(n, dim)) @ mixing
    y = rng.normal(size=(n, dim)) @ mixing * 1.2 + 0.1
    batches_x = np.array_split(x, max(1, n // 64))
    batches_y = np.array_split(y, max(1, n // 64))
    generator = torch.Generator().manual_seed(0)
    clips = [0.1 * torch.randn(3 * RATE, generator=generator) for _ in range(options.files)]
    pairs = [(clip, 0.9 * clip + 0.01 * clip.flip(0)) for clip in clips]
    print(f"n = m = {n}, D = {dim}; {options.files} files of 3 s at {RATE} Hz\n")
    print("| metric | here | plain | plain / here |\n|---|---|---|---|")
    turns = options.repeats
    compare(
        "Frechet: sqrtm", lambda: frechet_distance(x, y).value, lambda: plain_frechet(x, y), turns
    )
    compare(
        "Frechet, streamed by 64: whole",
        lambda: frechet_of_moments(streamed_moments(batches_x), streamed_moments(batches_y)).value,
        lambda: frechet_distance(x, y).value,
        turns,
    )
    compare(
        "KAD: whole matrices",
        lambda: kernel_audio_distance(x, y).value,
        lambda: plain_kad(x, y),
        turns,
    )
    compare(
        "median distance: pdist",
        lambda: median_pairwise_distance(x),
        lambda: plain_median(x),
        turns,
    )
    streamed = lambda: float(np.mean([list(v.values()) for v in lsd_stream(pairs, RATE, 4000)]))  # noqa: E731
    compare(
        "LSD, HF and LF: a loop that transforms for each", streamed, lambda: plain_lsd(pairs), turns
    )
    once = lambda: float(np.mean([v["lsd"] for v in lsd_stream(pairs, RATE)]))  # noqa: E731
    compare("LSD: a loop over files", once, lambda: plain_lsd_once(pairs), turns)


if __name__ == "__main__":
    main()
