"""`stagecli sample --init-audio`: a file that generation starts from, changed or inpainted."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from stagecli.bounds import CLIP_SECONDS
from stagecli.data.audio import read_mono
from stagecli.errors import Problem, StageError, significant
from stagecli.files import JsonRow
from stagecli.generate.edit import Edit
from stagecli.generate.listening import CEILING
from stagecli.generate.pipeline import Pipeline

STRENGTH = 0.7  # unless --strength says otherwise: new detail, the same course of events
FADE_SECONDS = 0.01  # from the known audio to the generated one, at each end of a span


@dataclass(frozen=True)
class InitAudio:
    """What the flags say. strength: t at which generation starts from it; span: the seconds that
    are inpainted instead, from t = 1.
    """

    file: Path
    strength: float | None = None
    span: tuple[float, float] | None = None

    @property
    def start(self) -> float:
        """t at which generation starts."""
        return 1.0 if self.span else self.strength or STRENGTH

    def record(self) -> JsonRow:
        """What a row of samples.jsonl says of it."""
        change: JsonRow = {"inpaint": list(self.span)} if self.span else {"strength": self.start}
        return {"init_audio": str(self.file), **change}


@dataclass(frozen=True)
class LoadedAudio:
    """audio_N: at the model's rate; edit: the same as frames; span_N: the samples inpainted."""

    audio_N: np.ndarray
    edit: Edit
    span_N: slice | None
    fade: int

    def finished(self, clip_N: np.ndarray) -> tuple[np.ndarray, JsonRow]:
        """A generated clip, and what its row adds; around a span, the audio itself, unchanged.

        What fills a span is turned down alone if it is louder than what is written may be.
        """
        if self.span_N is None:
            return clip_N, {}
        share_N = _share_of_the_new(len(clip_N), self.span_N, self.fade)
        peak = float(np.abs(share_N * clip_N).max())
        gain = CEILING / peak if CEILING < peak < math.inf else 1.0
        mixed_N = share_N * gain * clip_N + (1 - share_N) * self.audio_N
        return mixed_N.astype(np.float32), {"fill_gain_db": 20 * math.log10(gain)}


def load_init_audio(init: InitAudio, pipeline: Pipeline) -> LoadedAudio:
    """Read and encode the audio. Raises StageError."""
    rate = pipeline.sample_rate
    audio_N = read_mono(init.file, rate)
    problem = _problem(init, len(audio_N) / rate)
    if problem:
        raise StageError("cannot start from the audio", problems=[Problem(str(init.file), problem)])
    audio_1N = torch.from_numpy(audio_N)[None].to(pipeline.device)
    with torch.no_grad():
        frames_TC = pipeline.codec.encode(audio_1N)[0]
    if init.span is None:
        return LoadedAudio(audio_N, Edit(frames_TC, init.start), None, 0)
    span_N = slice(round(init.span[0] * rate), round(init.span[1] * rate))
    first_T = torch.arange(len(frames_TC), device=pipeline.device) * pipeline.codec.hop
    known_T = (first_T + pipeline.codec.hop <= span_N.start) | (first_T >= span_N.stop)
    return LoadedAudio(
        audio_N, Edit(frames_TC, known_T=known_T), span_N, round(FADE_SECONDS * rate)
    )


def _problem(init: InitAudio, seconds: float) -> str | None:
    if seconds not in CLIP_SECONDS:
        return f"has {significant(seconds, 3)} s; the length must be {CLIP_SECONDS} s"
    if init.span and init.span[1] > seconds:
        return f"ends at {seconds:.3f} s, before the end of --inpaint, {init.span[1]:g} s"
    return None


def _share_of_the_new(length: int, span_N: slice, fade: int) -> np.ndarray:
    """1 within the span, 0 outside; it rises and falls inside of the span, but not at the ends of
    the clip.
    """
    share_N = np.zeros(length, np.float32)
    share_N[span_N] = 1
    fade = min(fade, (span_N.stop - span_N.start) // 2)
    rising = np.linspace(0, 1, fade + 2, dtype=np.float32)[1:-1]
    if span_N.start > 0:
        share_N[span_N.start : span_N.start + fade] = rising
    if span_N.stop < length:
        share_N[span_N.stop - fade : span_N.stop] = rising[::-1]
    return share_N
