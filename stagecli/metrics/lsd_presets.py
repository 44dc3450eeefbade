"""Published conventions of the log-spectral distance: data only, no torch at import."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class LSDPreset:
    """One convention of the log-spectral distance; periodic Hann window, frames centred on k * hop.

    n_fft, hop: samples. rate_hz None: the same at every sample rate; otherwise they are given at
    that rate and scale with the sample rate (truncated).
    form "clamp": d = log10 max(|X|^2, floor) - log10 max(|Y|^2, floor), X reference, Y estimate;
    form "ratio": d = log10(|X|^2 / (|Y| + floor)^2 + floor), which is not symmetric, and is
    log10(floor) wherever the reference is exactly zero, whatever the estimate.
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
        """(n_fft, hop) in samples at `sample_rate` Hz; ValueError if the rate leaves no hop."""
        if self.rate_hz is None:
            return self.n_fft, self.hop
        n_fft = self.n_fft * sample_rate // self.rate_hz
        hop = self.hop * sample_rate // self.rate_hz
        if hop < 1:
            raise ValueError(
                f"LSD preset {self.name} has no hop at a sample rate of {sample_rate} Hz"
            )
        return n_fft, hop

    @property
    def convention(self) -> str:
        """One line, as printed with every number."""
        rate = "any rate" if self.rate_hz is None else f"at {self.rate_hz} Hz, scaled to the rate"
        floor = {
            "clamp": f"|X|^2 clamped at {self.floor:g}",
            "ratio": f"log10(|X|^2/(|Y|+{self.floor:g})^2+{self.floor:g}), "
            f"{abs(math.log10(self.floor)):.3g} where X is 0",
        }[self.form]
        return (
            f"LSD {self.name}: n_fft {self.n_fft} hop {self.hop} ({rate}), {floor}, "
            "gain not matched"
        )


_PRESETS = (
    # STFTMag(2048, 512) and clamp(1e-8) of NU-Wave, NU-Wave 2 and AP-BWE.
    LSDPreset(
        name="nuwave",
        n_fft=2048,
        hop=512,
        rate_hz=None,
        form="clamp",
        floor=1e-8,
        pad_mode="reflect",
        source="maum-ai/nuwave lightning_model.py",
    ),
    # n_fft int(2048 / (44100 / rate)), hop rate / 100, on librosa.stft, which pads with zeros
    # since 0.9.
    LSDPreset(
        name="ssr_eval",
        n_fft=2048,
        hop=441,
        rate_hz=44100,
        form="ratio",
        floor=1e-12,
        pad_mode="constant",
        source="haoheliu/ssr_eval metrics.py",
    ),
)
LSD_PRESETS: Mapping[str, LSDPreset] = MappingProxyType(
    {preset.name: preset for preset in _PRESETS}
)
