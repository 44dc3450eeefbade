"""SSL encoders in their three roles: teacher, monitor and judge. No torch before one is loaded.

A new kind of encoder is one file with `load_encoder(model, layer) -> Encoder` and one line in
`KINDS`.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from stagecli.errors import StageError
from stagecli.hub.folder import local_problem

if TYPE_CHECKING:
    from stagecli.ssl.base import Encoder, Layer

KINDS = {  # kind -> module with `load_encoder`
    "transformers": "stagecli.ssl.huggingface",
    "torchaudio": "stagecli.ssl.torchaudio_bundles",
    "bundled": "stagecli.ssl.bundled",
}

WEIGHTS = Path(__file__).parent / "weights"  # of the bundled encoders


def make_encoder(kind: str, model: str, layer: Layer = -1) -> Encoder:
    """A frozen encoder, loaded.

    kind: a key of `KINDS`; model: hub id, folder or bundle name; layer: 0 (the input of the first
    block) to the number of blocks, negative from the end, a list to average, or "mean" of all
    blocks. Raises StageError: unknown kind, model or layer, weights missing, hub unreachable.
    """
    if kind not in KINDS:
        raise StageError(
            f"unknown kind {kind!r} of SSL encoder", hint=f"use one of: {', '.join(KINDS)}"
        )
    return import_module(KINDS[kind]).load_encoder(model, layer)


def name_problem(name: str) -> str | None:
    """Why "kind:model" names no encoder, as far as it shows without loading it; None if it may."""
    kind, _, model = name.partition(":")
    if not model:
        return f"{name!r} is not of the form kind:model, such as bundled:teacher"
    if kind not in KINDS:
        return f"unknown kind {kind!r} of SSL encoder; use one of: {', '.join(KINDS)}"
    if kind == "transformers":
        return local_problem(model)
    if kind == "torchaudio":
        names = import_module(KINDS[kind]).bundle_names()
    else:
        names = sorted(path.stem for path in WEIGHTS.glob("*.safetensors"))
    return None if model in names else f"{kind} has no encoder {model!r}, but {', '.join(names)}"


def open_encoder(name: str, layer: Layer = -1) -> Encoder:
    """A frozen encoder from "kind:model", loaded. Raises StageError as `make_encoder`."""
    kind, _, model = name.partition(":")
    if not model:
        raise StageError(
            f"encoder {name!r} is not of the form kind:model",
            hint='such as "bundled:teacher" or "transformers:FOLDER"',
        )
    return make_encoder(kind, model, layer)


def same_checkpoint(name: str, other: str) -> bool:
    """Whether two encoder names (kind:checkpoint) refer to one checkpoint.

    Two spellings of a folder are the same.
    """
    kind, _, checkpoint = name.partition(":")
    other_kind, _, other_checkpoint = other.partition(":")
    if kind != other_kind:
        return False
    folder = Path(checkpoint).expanduser()
    other_folder = Path(other_checkpoint).expanduser()
    if folder.is_dir() and other_folder.is_dir():
        return folder.resolve() == other_folder.resolve()
    return checkpoint == other_checkpoint


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

    task: `t2a` or `sr`; sample_rate: of the run's audio, Hz; restored_band: lowest and highest
    frequency that the task restores, Hz (None: nothing is restored, as in t2a, and any bandwidth
    will do); clip_seconds: length of the clips; judge_name, judge_fingerprint: the encoder that
    scores in the evaluation, None without one. Raises StageError with the reason and one way out.
    """
    # Bandwidth: everything restored must be visible; nothing lies above Nyquist.
    if restored_band is not None:
        bottom = restored_band[0]
        top = min(restored_band[1], sample_rate / 2)
        if encoder.band < top:
            raise StageError(
                f"monitor {encoder.name} sees up to {encoder.band:g} Hz, "
                f"but task {task} restores {bottom:g} to {top:g} Hz",
                hint=f"use a full-band encoder (band at least {top:g} Hz), or accept a partial "
                "measurement: stage.regime.partial_band = true",
            )

    # Length: a clip must hold at least one feature.
    needed = encoder.receptive_field / encoder.sample_rate
    if int(clip_seconds * encoder.sample_rate) < encoder.receptive_field:
        raise StageError(
            f"monitor {encoder.name} needs {needed:.3f} s of audio, "
            f"the clips have {clip_seconds:g} s",
            hint=f"set data.seconds to at least {needed:.3f}, "
            "or use an encoder with a shorter receptive field",
        )

    # Independence: the judge must not be what training was steered by.
    same_name = judge_name is not None and same_checkpoint(encoder.name, judge_name)
    if same_name or judge_fingerprint == encoder.fingerprint():
        raise StageError(
            f"monitor {encoder.name} is also the judge of the evaluation, "
            "which would then score what training was steered by",
            hint="choose another encoder for one of the two",
        )
