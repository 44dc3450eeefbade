"""Conventions of the log-spectral distance, published ones and any other; no torch at import."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

Form = Literal["clamp", "add", "ratio"]
Pad = Literal["reflect", "constant"]


@dataclass(frozen=True, kw_only=True)
class LSDPreset:
    """One convention of the log-spectral distance; periodic Hann window, frames centred on k * hop.

    n_fft, hop: samples. rate_hz None: the same at every sample rate; otherwise they are given at
    that rate and scale with the sample rate (truncated).
    form "clamp": d = log10 max(|X|^2, floor) - log10 max(|Y|^2, floor), X reference, Y estimate;
    form "add": d = log10(|X|^2 + floor) - log10(|Y|^2 + floor);
    form "ratio": d = log10(|X|^2 / (|Y| + floor)^2 + floor), which is not symmetric, and is
    log10(floor) wherever the reference is exactly zero, whatever the estimate.
    pad_mode: how both ends are extended by n_fft // 2 samples. source: whose convention it is.
    """

    name: str
    n_fft: int
    hop: int
    rate_hz: int | None
    form: Form
    floor: float
    pad_mode: Pad
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
            "add": f"{self.floor:g} added to |X|^2",
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

STATED = "n_fft=2048,hop=512,eps=1e-8"
"""An example of a convention as text; form=clamp|add|ratio and pad=reflect|constant may follow."""
_LARGEST = 2**16  # samples of a window


def preset_of(text: str) -> LSDPreset:
    """A preset by its name, or any convention stated as text like `STATED`.

    The name of a stated one is its text with every key, so that equal conventions have one name.
    Raises ValueError for text that is neither.
    """
    if text in LSD_PRESETS:
        return LSD_PRESETS[text]
    if "=" not in text:
        raise ValueError(f"unknown LSD preset {text!r}; there are {', '.join(LSD_PRESETS)}")
    values = {"form": "clamp", "pad": "reflect"}
    known = ("n_fft", "hop", "eps", "form", "pad")
    for part in text.split(","):
        key, _, value = part.partition("=")
        if key.strip() not in known:
            raise ValueError(f"unknown key {key.strip()!r}; there are {', '.join(known)}")
        values[key.strip()] = value.strip()
    missing = [key for key in known if key not in values]
    if missing:
        raise ValueError(f"{', '.join(missing)} must be given, as in {STATED}")
    n_fft = _whole(values, "n_fft", 16, _LARGEST)
    return _stated(n_fft, _whole(values, "hop", 1, n_fft), _floor(values["eps"]), values)


def _stated(n_fft: int, hop: int, floor: float, values: Mapping[str, str]) -> LSDPreset:
    forms: dict[str, Form] = {"clamp": "clamp", "add": "add", "ratio": "ratio"}
    pads: dict[str, Pad] = {"reflect": "reflect", "constant": "constant"}
    for key, choices in (("form", forms), ("pad", pads)):
        if values[key] not in choices:
            raise ValueError(f"{key} is {values[key]!r}; there are {', '.join(choices)}")
    form = forms[values["form"]]
    pad_mode = pads[values["pad"]]
    return LSDPreset(
        name=f"n_fft={n_fft},hop={hop},eps={floor:g},form={form},pad={pad_mode}",
        n_fft=n_fft,
        hop=hop,
        rate_hz=None,
        form=form,
        floor=floor,
        pad_mode=pad_mode,
        source="stated by the user",
    )


def _whole(values: Mapping[str, str], key: str, least: int, most: int) -> int:
    value = int(values[key]) if re.fullmatch(r"[0-9]{1,9}", values[key]) else 0
    if not least <= value <= most:
        raise ValueError(f"{key} must be a whole number from {least} to {most}")
    return value


def _floor(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 1e-30 <= value < 1:
        raise ValueError("eps must be a number from 1e-30 to below 1")
    return float(f"{value:g}")
