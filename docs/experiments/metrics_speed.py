"""Speed of the metrics against plain implementations, as ratios of CPU time within one run.

    python docs/experiments/metrics_speed.py [--clips 2000] [--dim 128] [--presets [FILE]]
    python docs/experiments/metrics_speed.py --workers 2 [--files 24]

Both implementations compute the same number; a row is marked where they do not. CPU time of this
process, one thread, the best of `--repeats` turns, both in turn, on synthetic data. `--presets`
prints the LSD presets on one recording instead (without FILE: a synthetic one). `--workers`
compares the time on the clock of scoring pairs one by one and by so many workers, their start
included; a row is marked where a score differs.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable
from functools import partial

import numpy as np
import scipy.linalg
import torch
from scipy.spatial.distance import cdist, pdist
from torch import Tensor

from stagecli.evaluate.pairs import SR_METRICS, PairSettings, score_pair
from stagecli.evaluate.workers import open_workers
from stagecli.metrics.distance import frechet_distance, frechet_of_moments
from stagecli.metrics.gain import apply_gain, least_squares_gain
from stagecli.metrics.kernel import kernel_audio_distance
from stagecli.metrics.lsd_presets import LSD_PRESETS, LSDPreset
from stagecli.metrics.moments import Moments
from stagecli.metrics.pairwise import median_pairwise_distance
from stagecli.metrics.spectral import lsd, lsd_bands

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

SCORED = {
    "sr": SR_METRICS,  # by threads
    "pesq_wb, stoi": ("pesq_wb", "stoi"),  # by processes
    "visqol_speech": ("visqol_speech",),
}


def plain_frechet(x: np.ndarray, y: np.ndarray) -> float:
    """Covariances and a general matrix square root, as in most tools."""
    cov_x = np.cov(x, rowvar=False)
    cov_y = np.cov(y, rowvar=False)
    cross = np.trace(scipy.linalg.sqrtm(cov_x @ cov_y)).real
    return float(
        ((x.mean(0) - y.mean(0)) ** 2).sum() + np.trace(cov_x) + np.trace(cov_y) - 2 * cross
    )


def plain_median(x: np.ndarray) -> float:
    """The lower of the middle two of all distances, all in memory."""
    distances = pdist(x)
    middle = (len(distances) - 1) // 2
    return float(np.partition(distances, middle)[middle])


def plain_kad(x: np.ndarray, y: np.ndarray) -> float:
    """With whole distance matrices."""
    gamma = 0.5 / plain_median(x) ** 2
    xx, yy, xy = (np.exp(-gamma * cdist(a, b, "sqeuclidean")) for a, b in ((x, x), (y, y), (x, y)))
    n = len(x)
    m = len(y)
    return float(
        100 * ((xx.sum() - n) / (n * (n - 1)) + (yy.sum() - m) / (m * (m - 1)) - 2 * xy.mean())
    )


def plain_lsd(pairs: list[tuple[Tensor, Tensor]]) -> float:
    """File by file, with a transform of the pair for each of whole, high and low band."""
    window = torch.hann_window(2048, dtype=torch.float64)
    values = []
    for pair in pairs:
        for band in (slice(None), slice(170, None), slice(None, 170)):
            logs = [
                torch.stft(z.double(), 2048, 512, window=window, return_complex=True)
                .abs()
                .square()
                .clamp_min(1e-8)
                for z in pair
            ]
            squared = (logs[0].log10() - logs[1].log10()).square()[band]
            values.append(float(squared.mean(0).sqrt().mean()))
    return float(np.mean(values))


def plain_lsd_once(pairs: list[tuple[Tensor, Tensor]]) -> float:
    """File by file, with one transform of the pair, whole band only."""
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


def compare(name: str, ours: Callable[[], float], plain: Callable[[], float], repeats: int) -> None:
    """Print one row: the best CPU time of each, and their ratio."""
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


def read_recording(path: str) -> tuple[Tensor, int]:
    """A recording mixed to mono, [N], and its rate in Hz."""
    import soundfile

    samples, rate = soundfile.read(path, dtype="float64", always_2d=True)
    return torch.from_numpy(samples.mean(1)), int(rate)


def synthetic_recording(seconds: int = 4) -> Tensor:
    """Swelling pink noise over hiss at -80 dB, [N] at RATE."""
    num_samples = seconds * RATE
    generator = torch.Generator().manual_seed(0)
    spectrum = torch.fft.rfft(torch.randn(num_samples, generator=generator, dtype=torch.float64))
    spectrum /= torch.arange(1, len(spectrum) + 1).sqrt()
    swell = torch.linspace(-7, 0, num_samples, dtype=torch.float64).exp()
    clip = torch.fft.irfft(spectrum) * swell
    hiss = torch.randn(num_samples, generator=generator, dtype=torch.float64)
    return 0.5 * clip / clip.abs().max() + 1e-4 * hiss


def print_presets(path: str | None) -> None:
    """One recording, low-passed at 4 kHz (every bin above is zero), by each LSD convention."""
    if path:
        clip, rate = read_recording(path)
    else:
        clip = synthetic_recording()
        rate = RATE
    spectrum = torch.fft.rfft(clip)
    spectrum[math.ceil(4000 * len(clip) / rate) :] = 0
    low = torch.fft.irfft(spectrum, len(clip))
    rounded = (low * 32767).round() / 32767
    estimates = {
        "low-passed": low,
        "written as 16 bit": rounded,
        "16 bit, half as loud": 0.5 * rounded,
        "the same, gain matched": apply_gain(
            0.5 * rounded, float(least_squares_gain(clip, 0.5 * rounded))
        ),
    }
    duration = f"{rate} Hz, {len(clip) / rate:.1f} s"
    print(f"{path or 'synthetic recording'}, {duration}, cut at 4 kHz: LSD / HF / LF")
    print("| preset | " + " | ".join(estimates) + " |\n|---|" + "---|" * len(estimates))
    for preset in [*LSD_PRESETS.values(), UNIVERSR]:
        cells = []
        for audio in estimates.values():
            values = lsd_bands(clip, audio, rate, 4000, preset)
            cells.append(" / ".join(f"{float(value):.3f}" for value in values.values()))
        print(f"| {preset.name} | " + " | ".join(cells) + " |")


def gather(batches: list[np.ndarray]) -> Moments:
    """Mean and covariance, batch by batch."""
    total = Moments.of(batches[0])
    for batch in batches[1:]:
        total = total.updated(batch)
    return total


def compare_set_metrics(clips: int, dim: int, turns: int) -> None:
    """Metrics on two sets of embeddings, [clips, dim] each."""
    rng = np.random.default_rng(0)
    mixing = rng.normal(size=(dim, dim)) / math.sqrt(dim)
    x = rng.normal(size=(clips, dim)) @ mixing
    y = rng.normal(size=(clips, dim)) @ mixing * 1.2 + 0.1
    batches_x = np.array_split(x, max(1, clips // 64))
    batches_y = np.array_split(y, max(1, clips // 64))

    def ours() -> float:
        return frechet_distance(x, y).value

    def streamed() -> float:
        return frechet_of_moments(gather(batches_x), gather(batches_y)).value

    def kad() -> float:
        return kernel_audio_distance(x, y).value

    compare("Fréchet: sqrtm", ours, lambda: plain_frechet(x, y), turns)
    compare("Fréchet, streamed by 64: whole", streamed, ours, turns)
    compare("KAD: whole matrices", kad, lambda: plain_kad(x, y), turns)
    compare(
        "median distance: pdist",
        lambda: median_pairwise_distance(x),
        lambda: plain_median(x),
        turns,
    )


def compare_lsd(files: int, turns: int) -> None:
    """LSD over clip pairs of 3 s."""
    generator = torch.Generator().manual_seed(0)
    clips = [0.1 * torch.randn(3 * RATE, generator=generator) for _ in range(files)]
    pairs = [(clip, 0.9 * clip + 0.01 * clip.flip(0)) for clip in clips]

    def bands() -> float:
        scores = [lsd_bands(x, y, RATE, 4000) for x, y in pairs]
        return float(np.mean([[float(v) for v in by_band.values()] for by_band in scores]))

    def whole() -> float:
        return float(np.mean([float(lsd(x, y, RATE)) for x, y in pairs]))

    one_by_one = "LSD, HF and LF: a loop that transforms for each"
    compare(one_by_one, bands, lambda: plain_lsd(pairs), turns)
    compare("LSD: a loop over files", whole, lambda: plain_lsd_once(pairs), turns)


def noisy_pairs(files: int, seconds: int) -> list[tuple[np.ndarray, np.ndarray]]:
    rng = np.random.default_rng(0)
    clips = 0.1 * rng.standard_normal((files, seconds * RATE)).astype(np.float32)
    return [(clip, 0.9 * clip + 0.1 * clip[::-1]) for clip in clips]


def score_noisy(names: tuple[str, ...], pair: tuple[np.ndarray, np.ndarray]) -> dict[str, float]:
    settings = PairSettings(sample_rate=RATE, cutoff=2000, preset="nuwave", names=names)
    return score_pair(*pair, settings)


def compare_workers(files: int, workers: int, turns: int, only: str | None) -> None:
    """Pairs of 3 s, scored one by one and by several workers."""
    pairs = noisy_pairs(files, seconds=3)
    for title, names in SCORED.items():
        if only not in (None, title):
            continue
        best = [math.inf, math.inf]
        results: list[list[dict[str, float] | ValueError]] = [[], []]
        for _ in range(turns):
            for i, count in enumerate((1, workers)):
                torch.set_num_threads(count)
                began = time.perf_counter()
                with open_workers(names) as pool:
                    results[i] = list(pool.map(partial(score_noisy, names), pairs))
                best[i] = min(best[i], time.perf_counter() - began)
        agree = "" if results[0] == results[1] else "   DIFFERENT"
        ratio = best[0] / best[1]
        print(f"| {title} | {best[0]:.1f} s | {best[1]:.1f} s | {ratio:.1f} |{agree}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--clips", type=int, default=2000, help="embeddings in each of two sets")
    parser.add_argument("--dim", type=int, default=128, help="dimensions of an embedding")
    parser.add_argument("--files", type=int, default=12, help="clip pairs for LSD")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--presets", nargs="?", const="", default=None, metavar="FILE")
    parser.add_argument("--workers", type=int, default=0, help="compare with so many workers")
    parser.add_argument("--of", choices=list(SCORED), default=None, help="these metrics only")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.workers:
        print(f"{options.files} pairs of 3 s at {RATE} Hz\n")
        print(f"| metrics | one worker | {options.workers} | ratio |\n|---|---|---|---|")
        compare_workers(options.files, options.workers, options.repeats, options.of)
        return
    if options.presets is not None:
        print_presets(options.presets or None)
        return
    sizes = f"n = m = {options.clips}, D = {options.dim}"
    print(f"{sizes}; {options.files} files of 3 s at {RATE} Hz\n")
    print("| metric | here | plain | plain / here |\n|---|---|---|---|")
    compare_set_metrics(options.clips, options.dim, options.repeats)
    compare_lsd(options.files, options.repeats)


if __name__ == "__main__":
    main()
