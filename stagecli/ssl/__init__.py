"""SSL encoders: teacher, monitor and judge. No torch until one is made.

A new kind is one file with `load(model, layer) -> Encoder` and one line in `KINDS`.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from stagecli.errors import StageError

if TYPE_CHECKING:
    from stagecli.ssl.base import Encoder, Layer

KINDS = {  # kind -> module with `load`
    "transformers": "stagecli.ssl.huggingface",
    "torchaudio": "stagecli.ssl.torchaudio_bundles",
    "bundled": "stagecli.ssl.bundled",
}


def make_encoder(kind: str, model: str, layer: Layer = -1) -> Encoder:
    """A frozen encoder.

    kind: a key of `KINDS`; model: hub id, folder or bundle name; layer: 0 (what enters the first block) to the
    number of blocks, negative from the end, a list to average, or "mean" of all blocks.
    Raises StageError: no such kind, model or layer, weights missing, hub out of reach.
    """
    if kind not in KINDS:
        raise StageError(
            f"there is no kind {kind!r} of SSL encoder", hint=f"use one of: {', '.join(KINDS)}"
        )
    return import_module(KINDS[kind]).load(model, layer)


def open_encoder(name: str, layer: Layer | str = -1) -> Encoder:
    """A frozen encoder from "kind:model". Raises StageError."""
    kind, _, model = name.partition(":")
    if not model:
        raise StageError(
            f"encoder {name!r} is not of the form kind:model",
            hint='such as "bundled:teacher" or "transformers:FOLDER"',
        )
    return make_encoder(kind, model, list(layer) if isinstance(layer, tuple) else layer)  # type: ignore[arg-type]


def same_checkpoint(name: str, other: str) -> bool:
    """Whether two encoder names (kind:checkpoint) mean the same one; a folder may be spelled in several ways."""
    (kind, _, one) = name.partition(":")
    (other_kind, _, two) = other.partition(":")
    folders = Path(one).expanduser(), Path(two).expanduser()
    if folders[0].is_dir() and folders[1].is_dir():
        return kind == other_kind and folders[0].resolve() == folders[1].resolve()
    return kind == other_kind and one == two


def check_monitor(
    encoder: Encoder,
    *,
    task: str,
    sample_rate: int,
    restored_band: tuple[float, float] | None,
    clip_seconds: float,
    judge_name: str | None,
    judge_fingerprint: str | None = None,
) -> None:
    """Refuse an encoder that cannot measure the discrepancy of a run.

    task: `t2a` or `sr`; sample_rate: Hz, of the run's audio; restored_band: Hz, from where to where the task restores
    the signal (None: nothing is restored, as in t2a, and any band will do); clip_seconds: length of the
    clips; judge_name, judge_fingerprint: of the encoder that scores in the evaluation, None where there is none.
    Raises StageError with the reason and one way out.
    """
    who = f"monitor {encoder.name}"
    if restored_band is not None:
        top = min(restored_band[1], sample_rate / 2)  # above Nyquist there is nothing to see
        if encoder.band < top:
            raise StageError(
                f"{who} hears up to {encoder.band:g} Hz, but task {task} restores {restored_band[0]:g} to {top:g} Hz",
                hint=f"use a full-band encoder (band at least {top:g} Hz), or measure what it hears: "
                "stage.regime.partial_band = true",
            )
    needed = encoder.receptive_field / encoder.sample_rate
    if int(clip_seconds * encoder.sample_rate) < encoder.receptive_field:
        raise StageError(
            f"{who} needs {needed:.3f} s of audio, the clips have {clip_seconds:g} s",
            hint=f"set data.seconds to at least {needed:.3f}, or use an encoder with a shorter receptive field",
        )
    same_name = judge_name is not None and same_checkpoint(encoder.name, judge_name)
    if same_name or judge_fingerprint == encoder.fingerprint():
        raise StageError(
            f"{who} is also the judge of the evaluation, which would then score what training was steered by",
            hint="choose another encoder for one of the two",
        )
