"""Log-mel frames, decoded by Griffin-Lim or by a HiFi-GAN vocoder of `transformers`."""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stagecli.codec.base import Codec
from stagecli.errors import Problem, StageError

LogBase = Literal["e", "10"]

_VOCODERS = ("SpeechT5HifiGan", "FastSpeech2ConformerHifiGan")
_PHASE_SEED = 0
_DRAFT = 4  # iterations of Griffin-Lim and of the mel inversion; an SSL encoder hears no more (docs/regime.md)
_TINY = 1e-12


def _hz_to_mel(hz: float) -> float:
    """Hz -> mel on Slaney's scale: linear (200/3 Hz a mel) below 1 kHz, 27 mels per factor 6.4 above."""
    return hz * 3 / 200 if hz < 1000 else 15 + 27 * math.log(hz / 1000) / math.log(6.4)


def mel_filters(*, sample_rate: int, n_fft: int, n_mels: int, f_min: float, f_max: float) -> Tensor:
    """Triangular filters [F, C], F = n_fft // 2 + 1, each of area 1 over Hz (Slaney, 1998).

    Raises StageError when a filter falls between two bins of the transform and would be all zero.
    """
    points_mel = torch.linspace(
        _hz_to_mel(f_min), _hz_to_mel(f_max), n_mels + 2, dtype=torch.float64
    )
    curved = 1000 * torch.exp((points_mel - 15) * (math.log(6.4) / 27))
    edges = torch.where(points_mel < 15, points_mel * 200 / 3, curved)
    bins_F1 = torch.linspace(0, sample_rate / 2, n_fft // 2 + 1, dtype=torch.float64)[:, None]
    low = edges[:-2]
    centre = edges[1:-1]
    high = edges[2:]
    rising = (bins_F1 - low) / (centre - low)
    falling = (high - bins_F1) / (high - centre)
    filters_FC = torch.minimum(rising, falling).clamp_min(0) * 2 / (high - low)
    empty = int((filters_FC.sum(0) == 0).sum())
    if empty:
        raise StageError(
            f"{empty} of the {n_mels} mel filters hold no frequency bin (n_fft {n_fft} at {sample_rate} Hz)",
            hint="lower n_mels, or raise n_fft or f_min",
        )
    return filters_FC.float()


class MelCodec(Codec):
    """Log-mel spectrogram codec: frames are log(max(mel(|X|^power), floor)), C = n_mels.

    n_fft: samples per window (Hann); hop: samples per frame; f_min, f_max: Hz (default: 0 and Nyquist);
    floor: lower clamp of a mel value before the logarithm; log_base: "e" or "10"; power: 1 (magnitude)
    or 2; iterations, momentum: fast Griffin-Lim (Perraudin, Balazs and Sondergaard, 2013);
    inversion_steps: multiplicative updates of the mel inversion; vocoder: folder or hub id of a
    HiFi-GAN saved by `transformers`, used instead of Griffin-Lim.

    Frame k is centred on sample (k + 1/2) hop; the signal is taken as zero outside its ends, so a clip of any
    length is valid and its frames do not depend on how it was batched. Raises StageError for settings
    that cannot work and for a vocoder that is missing or does not fit.
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
        vocoder: str | None = None,
    ) -> None:
        super().__init__(sample_rate=sample_rate, hop=hop, channels=n_mels, is_network=False)
        top = sample_rate / 2 if f_max is None else f_max
        self._check(n_fft, f_min, top, floor, log_base, power, momentum)
        self.n_fft = n_fft
        self.floor = floor
        self.power = power
        self.scale = 1.0 if log_base == "e" else 1 / math.log(10)
        self.iterations = iterations
        self.momentum = momentum
        self.inversion_steps = inversion_steps
        filters_FC = mel_filters(
            sample_rate=sample_rate, n_fft=n_fft, n_mels=n_mels, f_min=f_min, f_max=top
        )
        # Constants, rebuilt from the settings: they stay out of the state dict.
        self.register_buffer("filters_FC", filters_FC, persistent=False)
        self.register_buffer(
            "pinv_CF", torch.linalg.pinv(filters_FC.double()).float(), persistent=False
        )
        self.register_buffer("window", torch.hann_window(n_fft), persistent=False)
        self.left = (n_fft - hop) // 2
        self.vocoder = None if vocoder is None else self._load_vocoder(vocoder)

    def _check(
        self,
        n_fft: int,
        f_min: float,
        f_max: float,
        floor: float,
        log_base: str,
        power: float,
        momentum: float,
    ) -> None:
        """Raise one StageError that lists every setting out of range."""
        nyquist = self.sample_rate / 2
        rules = (
            (
                0 < self.hop <= n_fft // 2,
                "hop",
                f"{self.hop} must be from 1 to n_fft / 2 = {n_fft // 2}",
            ),
            (0 <= f_min < f_max, "f_min", f"{f_min} Hz must be from 0 to below f_max = {f_max} Hz"),
            (f_max <= nyquist, "f_max", f"{f_max} Hz is above Nyquist, {nyquist} Hz"),
            (floor > 0, "floor", f"{floor} must be above 0"),
            (log_base in ("e", "10"), "log_base", f'{log_base!r} must be "e" or "10"'),
            (power > 0, "power", f"{power} must be above 0"),
            (0 <= momentum < 1, "momentum", f"{momentum} must be from 0 to below 1"),
        )
        wrong = [Problem(f"codec.{key}", what) for right, key, what in rules if not right]
        if wrong:
            raise StageError(
                "the log-mel codec cannot be built from these settings", problems=wrong
            )

    def analyse(self, audio_BN: Tensor) -> Tensor:
        """Audio [B, N] -> log-mel frames [B, T, C]; differentiable, silence included."""
        samples = audio_BN.shape[-1]
        right = self.frames(samples) * self.hop - samples + self.n_fft - self.hop - self.left
        spectrum_BFT = self._stft(F.pad(audio_BN, (self.left, right)))
        energy_BFT = torch.view_as_real(spectrum_BFT).square().sum(-1)
        # The square root has no finite slope at 0, which digital silence reaches: hence the offset.
        strength_BFT = energy_BFT if self.power == 2 else (energy_BFT + _TINY).pow(self.power / 2)
        mel_BTC = strength_BFT.transpose(1, 2) @ self.filters_FC
        return mel_BTC.clamp_min(self.floor).log() * self.scale

    def synthesise(self, raw_BTC: Tensor, draft: bool = False) -> Tensor:
        """Log-mel frames [B, T, C] -> audio [B, T * hop]; each row on its own, the same every time.

        draft: 4 iterations of everything (Griffin-Lim only; a vocoder has no cheap way).
        """
        length = raw_BTC.shape[1] * self.hop
        if self.vocoder is not None:
            audio_BN = self.vocoder(raw_BTC)
            # Odd (kernel - rate) pairs in a vocoder give a sample more or less per layer.
            return F.pad(audio_BN, (0, max(0, length - audio_BN.shape[-1])))[:, :length]
        magnitude_BFT = self.invert_mel(
            raw_BTC, _DRAFT if draft else self.inversion_steps
        ).transpose(1, 2)
        audio_BN = self._griffin_lim(
            magnitude_BFT, min(_DRAFT, self.iterations) if draft else self.iterations
        )
        return audio_BN[:, self.left : self.left + length]

    def invert_mel(self, raw_BTC: Tensor, steps: int | None = None) -> Tensor:
        """Log-mel frames [B, T, C] -> magnitudes |X| [B, T, F], the non-negative fit to the mel values.

        Clamped pseudo-inverse, then `steps` (default: `inversion_steps`) multiplicative updates for the squared error
        (Lee and Seung, 2001), which never leave the non-negative range.
        """
        mel_BTC = (raw_BTC / self.scale).exp()
        # A bin at exactly 0 stays there under multiplicative updates: start a little above.
        least = self.floor / self.filters_FC.sum(0).max()
        power_BTF = (mel_BTC @ self.pinv_CF).clamp_min(least)
        up_BTF = mel_BTC @ self.filters_FC.T
        for _ in range(self.inversion_steps if steps is None else steps):
            power_BTF = (
                power_BTF * up_BTF / ((power_BTF @ self.filters_FC) @ self.filters_FC.T + _TINY)
            )
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
        """Unit phasors [1, F, T] from a fixed seed, frame by frame: the same for every row and length."""
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

    def _load_vocoder(self, source: str) -> nn.Module:
        """A frozen HiFi-GAN from a folder or hub id, checked against rate, channels and hop."""
        import transformers

        try:
            config, _ = transformers.PretrainedConfig.get_config_dict(source)
            if not config:
                raise OSError(f"no config.json in {source}")
            name = (config.get("architectures") or ["SpeechT5HifiGan"])[0]
            if name not in _VOCODERS:
                raise StageError(
                    f"vocoder {source} is a {name}, which is not known to read log-mel frames",
                    hint=f"use one of: {', '.join(_VOCODERS)}",
                )
            network = getattr(transformers, name).from_pretrained(source)
        except (OSError, ValueError) as error:
            raise StageError(
                f"cannot load the vocoder {source}: {str(error).splitlines()[0]}",
                hint="set codec.vocoder to a local folder made by save_pretrained (config.json and weights), "
                "or leave it out to decode by Griffin-Lim",
            ) from error
        self._check_vocoder(source, network.config)
        return network.eval().requires_grad_(False)

    def _check_vocoder(self, source: str, config: object) -> None:
        """Raise StageError that lists where the vocoder's configuration differs from the codec's."""
        hop = math.prod(getattr(config, "upsample_rates", ()))
        rate = getattr(config, "sampling_rate", self.sample_rate)
        pairs = (
            ("sample_rate", self.sample_rate, "sampling_rate", rate),
            ("n_mels", self.channels, "model_in_dim", getattr(config, "model_in_dim", None)),
            ("hop", self.hop, "product of upsample_rates", hop),
        )
        wrong = [
            Problem(f"codec.{key}", f"is {ours}, but the vocoder's {name} is {theirs}")
            for key, ours, name, theirs in pairs
            if ours != theirs
        ]
        if wrong:
            raise StageError(
                f"vocoder {source} does not fit the codec",
                problems=wrong,
                hint="set these codec options to the vocoder's values (f_min, f_max, floor, log_base, power "
                "as in its training), or leave codec.vocoder out to decode by Griffin-Lim",
            )
