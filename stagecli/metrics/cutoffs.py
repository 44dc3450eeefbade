"""Where a cutoff divides the bins of a spectrum, and which cutoffs can be scored. No torch."""

from __future__ import annotations

from stagecli.metrics.lsd_presets import LSDPreset

LOWEST_HZ = 20.0
"""Below lie offset and rumble, which copy-up would turn into tones at multiples of the cutoff."""


def split_bin(n_fft: int, sample_rate: int, split_hz: float) -> int:
    """First bin of the high band: int(bins * split_hz / Nyquist), as in NU-Wave 2's `for_test.py`.

    Raises ValueError if a band would be empty.
    """
    bins = n_fft // 2 + 1
    split = int(bins * 2 * split_hz / sample_rate)
    if not 0 < split < bins or 2 * split_hz >= sample_rate:
        raise ValueError(
            f"split_hz {split_hz:g} leaves no bins on one side of it at {sample_rate} Hz"
        )
    return split


def cutoff_problem(cutoff: float, sample_rate: int, preset: LSDPreset) -> str | None:
    """Why nothing can be scored at a cutoff in Hz; None if it can."""
    nyquist = sample_rate / 2
    if cutoff >= nyquist:
        return f"{cutoff:g} Hz is not below half the sample rate ({nyquist:g} Hz)"
    n_fft, _ = preset.sizes(sample_rate)
    lowest = max(LOWEST_HZ, nyquist / (n_fft // 2 + 1))
    if cutoff <= lowest:
        return f"{cutoff:g} Hz is too low to be scored: it must be above {lowest:.3g} Hz"
    return None
