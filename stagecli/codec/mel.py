"""Log-mel frames, decoded with Griffin-Lim or a HiFi-GAN vocoder."""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stagecli.codec.base import Codec
from stagecli.codec.vocoder import check_vocoder
from stagecli.dsp.mel import EmptyMelFilterError, mel_filters
from stagecli.errors import Problem, StageError

LogBase = Literal["e", "10"]

_PHASE_SEED = 0
# Iterations of Griffin-Lim and of the mel inversion in a draft; an SSL encoder cannot tell it from
# the full number (docs/regime.md).
_DRAFT_ITERATIONS = 4
_TINY = 1e-12


class MelCodec(Codec):
    """Log-mel spectrogram codec: frames are log(max(mel(|X|^power), floor)), C = n_mels.

    n_fft: samples per Hann window; hop: samples per frame; f_min, f_max: Hz (default: 0 and
    Nyquist); floor: lower clamp of a mel value before the logarithm; log_base: "e" or "10"; power:
    1 (magnitude) or 2; iterations, momentum: fast Griffin-Lim (Perraudin, Balazs and Sondergaard,
    2013); inversion_steps: multiplicative updates of the mel inversion; vocoder: a HiFi-GAN from
    `load_vocoder`, used instead of Griffin-Lim.

    Frame k is centred on sample (k + 1/2) hop. The signal is taken as zero outside its ends, so a
    clip of any length is valid and its frames do not depend on how it was batched. Raises
    StageError for settings that cannot work and for a vocoder that does not fit.
    """

    filters_FC: Tensor
    pinv_CF: Tensor
    window: Tensor

    def __init__(
        self,
        *,
        sample_rate: int,
        n_fft: int = 1024,
        hop: int = 256,
        n_mels: int = 80,
        f_min: float = 0.0,
        f_max: float | None = None,
        floor: float = 1e-5,
        log_base: LogBase = "e",
        power: float = 1.0,
        iterations: int = 64,
        momentum: float = 0.99,
        inversion_steps: int = 32,
        vocoder: nn.Module | None = None,
    ) -> None:
        super().__init__(sample_rate=sample_rate, hop=hop, channels=n_mels, is_network=False)
        # Settings, each within its range.
        nyquist = sample_rate / 2
        top = nyquist if f_max is None else f_max
        _refuse_wrong(
            (0 < hop <= n_fft // 2, "hop", f"{hop} must be from 1 to n_fft / 2 = {n_fft // 2}"),
            (0 <= f_min < top, "f_min", f"{f_min} Hz must be from 0 to below f_max = {top} Hz"),
            (top <= nyquist, "f_max", f"{top} Hz is above Nyquist, {nyquist} Hz"),
            (floor > 0, "floor", f"{floor} must be above 0"),
            (log_base in ("e", "10"), "log_base", f'{log_base!r} must be "e" or "10"'),
            (power > 0, "power", f"{power} must be above 0"),
            (0 <= momentum < 1, "momentum", f"{momentum} must be from 0 to below 1"),
        )
        self.n_fft = n_fft
        self.floor = floor
        self.power = power
        self.scale = 1.0 if log_base == "e" else 1 / math.log(10)
        self.iterations = iterations
        self.momentum = momentum
        self.inversion_steps = inversion_steps
        self.left = (n_fft - hop) // 2

        # Constants, rebuilt from the settings: they stay out of the state dict.
        try:
            filters_FC = mel_filters(
                sample_rate=sample_rate, n_fft=n_fft, bands=n_mels, f_min=f_min, f_max=top
            ).float()
        except EmptyMelFilterError as error:
            hint = "lower n_mels, or raise n_fft or f_min"
            raise StageError(str(error), hint=hint) from error
        pinv_CF = torch.linalg.pinv(filters_FC.double()).float()
        self.register_buffer("filters_FC", filters_FC, persistent=False)
        self.register_buffer("pinv_CF", pinv_CF, persistent=False)
        self.register_buffer("window", torch.hann_window(n_fft), persistent=False)

        # The way back: a vocoder, or Griffin-Lim without one.
        if vocoder is not None:
            check_vocoder(vocoder, sample_rate=sample_rate, n_mels=n_mels, hop=hop)
        self.vocoder = vocoder

    def analyse(self, audio_BN: Tensor) -> Tensor:
        """Audio [B, N] -> log-mel frames [B, T, C]; differentiable, silence included."""
        length = audio_BN.shape[-1]
        right = self.frames(length) * self.hop - length + self.n_fft - self.hop - self.left
        spectrum_BFT = self._stft(F.pad(audio_BN, (self.left, right)))
        energy_BFT = torch.view_as_real(spectrum_BFT).square().sum(-1)
        # The square root has no finite slope at 0, which digital silence reaches: hence the offset.
        strength_BFT = energy_BFT if self.power == 2 else (energy_BFT + _TINY).pow(self.power / 2)
        mel_BTC = strength_BFT.transpose(1, 2) @ self.filters_FC
        return mel_BTC.clamp_min(self.floor).log() * self.scale

    def synthesise(self, raw_BTC: Tensor, draft: bool = False) -> Tensor:
        """Log-mel frames [B, T, C] -> audio [B, T * hop]; deterministic, row by row.

        draft: 4 iterations of everything (Griffin-Lim only; a vocoder has no cheap mode).
        """
        length = raw_BTC.shape[1] * self.hop
        if self.vocoder is not None:
            audio_BN = self.vocoder(raw_BTC)
            # Odd (kernel - rate) pairs in a vocoder add or remove a sample per layer.
            return F.pad(audio_BN, (0, max(0, length - audio_BN.shape[-1])))[:, :length]
        steps = _DRAFT_ITERATIONS if draft else self.inversion_steps
        iterations = min(_DRAFT_ITERATIONS, self.iterations) if draft else self.iterations
        magnitude_BFT = self.invert_mel(raw_BTC, steps).transpose(1, 2)
        audio_BN = self._griffin_lim(magnitude_BFT, iterations)
        return audio_BN[:, self.left : self.left + length]

    def invert_mel(self, raw_BTC: Tensor, steps: int | None = None) -> Tensor:
        """Log-mel frames [B, T, C] -> magnitudes |X| [B, T, F], the non-negative fit to the mels.

        Clamped pseudo-inverse, then `steps` (default: `inversion_steps`) multiplicative updates for
        the squared error (Lee and Seung, 2001), which never leave the non-negative range.
        """
        mel_BTC = (raw_BTC / self.scale).exp()
        # A bin at exactly 0 stays there under multiplicative updates: start a little above.
        least = self.floor / self.filters_FC.sum(0).max()
        power_BTF = (mel_BTC @ self.pinv_CF).clamp_min(least)
        up_BTF = mel_BTC @ self.filters_FC.T
        for _ in range(self.inversion_steps if steps is None else steps):
            down_BTF = (power_BTF @ self.filters_FC) @ self.filters_FC.T + _TINY
            power_BTF = power_BTF * up_BTF / down_BTF
        return (power_BTF + _TINY).pow(1 / self.power)

    def _griffin_lim(self, magnitude_BFT: Tensor, iterations: int) -> Tensor:
        """Magnitudes [B, F, T] -> audio with its margins [B, n_fft + (T - 1) hop].

        The phase search carries no gradient; the last synthesis does, with the phase held fixed.
        """
        with torch.no_grad():
            phase_BFT = self._first_phase(magnitude_BFT)
            before_BFT = torch.zeros_like(phase_BFT)
            for _ in range(iterations):
                now_BFT = self._stft(self._istft(magnitude_BFT * phase_BFT))
                ahead_BFT = now_BFT + self.momentum * (now_BFT - before_BFT)
                phase_BFT = ahead_BFT / ahead_BFT.abs().clamp_min(_TINY)
                before_BFT = now_BFT
        return self._istft(magnitude_BFT * phase_BFT)

    def _first_phase(self, magnitude_BFT: Tensor) -> Tensor:
        """Unit phasors [1, F, T] from a fixed seed, the same for every row and any length."""
        _, bins, frames = magnitude_BFT.shape
        generator = torch.Generator().manual_seed(_PHASE_SEED)
        angle_TF = torch.rand(frames, bins, generator=generator) * (2 * math.pi)
        angle_FT = angle_TF.T.to(magnitude_BFT)
        return torch.polar(torch.ones_like(angle_FT), angle_FT)[None]

    def _stft(self, padded_BN: Tensor) -> Tensor:
        """[B, n_fft + (T - 1) hop] -> complex [B, F, T]."""
        return torch.stft(
            padded_BN, self.n_fft, self.hop, window=self.window, center=False, return_complex=True
        )

    def _istft(self, spectrum_BFT: Tensor) -> Tensor:
        """Complex [B, F, T] -> [B, n_fft + (T - 1) hop]: least squares (Griffin and Lim, 1984)."""
        frames = spectrum_BFT.shape[-1]
        size = self.n_fft + (frames - 1) * self.hop
        pieces_BNT = torch.fft.irfft(spectrum_BFT, n=self.n_fft, dim=1) * self.window[:, None]
        weight_1NT = self.window.square()[None, :, None].expand(1, -1, frames)

        def overlap_add(x: Tensor) -> Tensor:
            return F.fold(x, (1, size), (1, self.n_fft), stride=(1, self.hop))[:, 0, 0]

        # At the outer edges the window is almost 0 and a division would blow up rounding noise.
        return overlap_add(pieces_BNT) / overlap_add(weight_1NT).clamp_min(1e-3)


def _refuse_wrong(*rules: tuple[bool, str, str]) -> None:
    """Raise one StageError for all rules (holds, key, problem) that do not hold."""
    problems = [Problem(f"codec.{key}", problem) for holds, key, problem in rules if not holds]
    if problems:
        raise StageError("the log-mel codec cannot be built from these settings", problems=problems)
