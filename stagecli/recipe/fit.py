"""A recipe that fits a data set and trains on a small machine: its keys, each with the reason.

The data decide `[data]` (`data/advice.py`), and with it the codec, the batch and the cutoffs. All
else is what the shipped recipes for two cores have.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from stagecli.errors import StageError, among, counted
from stagecli.schema import Data

if TYPE_CHECKING:
    from stagecli.data.check import DataSetCheck

# Text to audio. docs/codecs.md has the measurements of both codecs.
WIDE_RATE = 16_000  # Hz: enough for most sounds, and few enough frames for two cores
NARROW_RATE = 8_000  # of telephone speech
WIDE_CODEC = {"n_fft": 1024, "hop": 320, "n_mels": 128, "floor": 1e-5}
NARROW_CODEC = {"n_fft": 400, "hop": 128, "n_mels": 80, "floor": 1e-4}  # for NARROW_RATE
LONGEST = 5.0  # seconds that are generated at most
FULL_BATCH_SECONDS = 2.6  # up to which two cores take a batch of 32
# Super-resolution.
HIGHEST_RATE = 48_000
WINDOW = 0.042  # seconds that a window of the codec must have
BAND = (0.09, 0.7)  # of half the rate: lowest and highest cutoff that is trained
LOWEST_CUTOFF = 1000  # Hz
FILLED = 0.85  # share of the typical content that may stay below a cutoff
TEST_CUTOFFS = (2000, 4000, 8000, 12_000, 16_000)
MONITOR_RATE = 44_100  # Hz: half of it is the band of the bundled monitor
# Training clips from which on a run gets more steps.
STEPS = ((0, 2000), (500, 4000), (5000, 8000))


class Key(NamedTuple):
    """One key of a section, with its value and the reason for it; "" where it needs none."""

    name: str
    value: Any
    why: str = ""


class Part(NamedTuple):
    """One section of the recipe: its header, a comment on all of it, and its keys."""

    header: str
    note: str
    keys: list[Key]


def fitted(check: DataSetCheck, chosen: Mapping[str, Any]) -> list[Part]:
    """The sections of a recipe that fits.

    chosen: keys of `[data]` that the user has set. Raises StageError where the data cannot be
    trained on, with every reason.
    """
    if check.problems:
        raise StageError(
            f"{check.data.path} cannot be trained on yet",
            problems=check.problems,
            hint=_way_out(check),
        )
    data = _data_keys(check, chosen)
    values = {key.name: key.value for key in data}
    parts = [Part("[data]", "", data)]
    if check.task == "t2a":
        parts += _text_to_audio(check, values["sample_rate"], values["seconds"])
    else:
        parts += _super_resolution(check, values["sample_rate"])
    return parts


def _way_out(check: DataSetCheck) -> str:
    from stagecli.data.check import NO_CAPTIONS

    if not any(problem.what == NO_CAPTIONS for problem in check.problems):
        return "mend the data, or leave unusable files out: --set data.on_bad_file=skip"
    columns = [entry.value for entry in check.advice if entry.key == "data.caption_column"]
    if columns:
        return f"--captions-from {columns[0]}"
    if check.data.source == "folder":
        return (
            "write each caption into a .txt of the same name, or take the names of the folders "
            "that the files are in: --captions-from folder"
        )
    return "name the column that has them: --captions-from COLUMN"


def _data_keys(check: DataSetCheck, chosen: Mapping[str, Any]) -> list[Key]:
    """`[data]` in the order of the schema: advised, limited to a small machine, or chosen."""
    # What the data ask for.
    keys = {
        entry.key.removeprefix("data."): Key(entry.key.removeprefix("data."), *entry[1:])
        for entry in check.advice
        if entry.key.startswith("data.")
    }

    # What a small machine allows.
    if check.task == "t2a" and "seconds" in keys and keys["seconds"].value > LONGEST:
        why = "longer clips take more than two cores have: crops of this length are trained on"
        keys["seconds"] = Key("seconds", LONGEST, why)
    if "sample_rate" in keys:
        rate, why = _rate(check.task, keys["sample_rate"].value)
        if rate < keys["sample_rate"].value:
            keys["sample_rate"] = Key("sample_rate", rate, why)
            keys.pop("on_bad_file", None)
            keys |= _left_out(check, rate)

    # What the user has chosen.
    for name, value in chosen.items():
        keys[name] = Key(name, value)
    if check.data.source != "huggingface" and not Path(check.data.path).is_absolute():
        keys["path"] = Key("path", check.data.path, "relative to the folder in which you train")
    return [keys[name] for name in Data.model_fields if name in keys]


def _rate(task: str, advised: int) -> tuple[int, str]:
    """The rate for a small machine, and why it is lower than the data would allow."""
    if task == "sr":
        return min(advised, HIGHEST_RATE), "nothing above can be heard"
    if advised >= WIDE_RATE:
        return WIDE_RATE, "higher rates need a pretrained codec and a GPU: see audiocaps-t2a"
    return min(advised, NARROW_RATE), "the codec has been measured at this rate"


def _left_out(check: DataSetCheck, rate: int) -> dict[str, Key]:
    """Leave out the clips below the rate, where there are any."""
    rates: Counter[int] = Counter()
    for facts in check.report.facts["splits"].values():
        for hertz, count in facts["rates"].items():
            rates[int(hertz)] += count
    low = sum(count for hertz, count in rates.items() if hertz < rate)
    if not low:
        return {}
    why = f"{among(low, rates.total(), 'clip', 'has', 'have')} a lower rate: left out"
    return {"on_bad_file": Key("on_bad_file", "skip", why)}


def _text_to_audio(check: DataSetCheck, rate: int, seconds: float) -> list[Part]:
    cut = [entry for entry in check.advice if entry.key == "condition.max_length"]
    condition = [
        Key("text", "bytes", "reads captions letter by letter: nothing to download"),
        *(Key("max_length", entry.value, entry.why) for entry in cut),
    ]
    evaluate = [
        Key("steps", 25, "sampler steps; more change little"),
        Key("cfg_scale", 2.0, "how strictly samples follow the prompt; 1: not at all"),
    ]
    return [
        _mel_codec(rate),
        Part("[condition]", "", condition),
        Part("[model]", "", [Key("patch", 2, "two frames are one token: half the time of a step")]),
        Part("[objective]", "", [Key("density", "logit-normal", "more training at middle noise")]),
        _train(check, 32 if seconds <= FULL_BATCH_SECONDS else 16),
        _regime([]),
        Part("[evaluate]", "", evaluate),
    ]


def _mel_codec(rate: int) -> Part:
    codec: dict[str, Any] = dict(WIDE_CODEC)
    if rate < WIDE_RATE:
        codec = dict(NARROW_CODEC)
        codec["n_fft"] = round(codec["n_fft"] * rate / NARROW_RATE)
        codec["hop"] = round(codec["hop"] * rate / NARROW_RATE)
    note = (
        "Log-mel spectra, inverted by Griffin-Lim: nothing to download. The settings are those "
        "that kept most of what a classifier recognises (docs/codecs.md)."
    )
    keys = [
        Key("kind", "mel"),
        *(Key(name, value) for name, value in codec.items()),
        Key("iterations", 32, "more change nothing that is recognised"),
    ]
    return Part("[codec]", note, keys)


def _super_resolution(check: DataSetCheck, rate: int) -> list[Part]:
    low, high, cutoffs = _cutoffs(check, rate)
    condition = [
        Key("cutoff", [low, high], "Hz above which an input has nothing: any value in this range"),
        Key("dropout", 0.0, "the input is always there"),
    ]
    model = [
        Key("output", "gated", "the codec has more channels than the network is wide"),
        Key("levels", True, "shows the network how loud each band is"),
    ]
    partial = "the bundled monitor hears up to 22,050 Hz, not all of the band that is restored"
    evaluate = [
        Key("sampler", "ab2", "six steps of it keep the level of the upper band"),
        Key("steps", 6),
        Key("cutoffs", cutoffs, "Hz; each is scored on its own"),
    ]
    return [
        _spectral_codec(rate),
        Part("[condition]", "", condition),
        Part("[model]", "", model),
        _train(check, 8),
        _regime([Key("partial_band", True, partial)] if rate > MONITOR_RATE else []),
        Part("[evaluate]", "", evaluate),
    ]


def _spectral_codec(rate: int) -> Part:
    n_fft = 2 ** math.ceil(math.log2(WINDOW * rate))
    keys = [
        Key("kind", "stft"),
        Key("n_fft", n_fft, f"a window of {1000 * n_fft / rate:.0f} ms"),
        Key("hop", n_fft // 2, "half of n_fft"),
        Key("floor", 1e-6),
    ]
    return Part("[codec]", "A lossless spectrum: the band that is there stays as it is.", keys)


def _train(check: DataSetCheck, batch_size: int) -> Part:
    """As many steps as the number of clips asks for; no batch larger than the training split."""
    clips = int(check.report.facts["splits"]["train"]["clips"])
    steps = max(steps for least, steps in STEPS if clips >= least)
    batch_size = min(batch_size, 2 ** int(math.log2(clips)))
    passes = steps * batch_size / clips
    keys = [
        Key("steps", steps, f"{passes:,.0f} passes over {counted(clips, 'training clip')}"),
        Key("batch_size", batch_size, "small enough for two cores"),
        Key("lr", 1e-3, "small networks take high learning rates"),
        Key("precision", "auto", "faster where the machine has bf16"),
        Key("ema", 0.998, "samples come from the average of the last 500 or so steps"),
        Key("validate_every", steps // 8),
        Key("checkpoint_every", steps // 4, "saved so often"),
        Key("sample_every", steps // 4, "samples to listen to while it trains"),
    ]
    return Part("[train]", "", keys)


def _regime(keys: list[Key]) -> Part:
    note = (
        "Measures how far training has come, and changes nothing that is trained. "
        "`stagecli inspect-regime` shows it."
    )
    return Part("[stage.regime]", note, keys)


def _cutoffs(check: DataSetCheck, rate: int) -> tuple[int, int, list[int]]:
    """Lowest and highest cutoff to train, and those to test: all below where content ends.

    Raises StageError where the recordings leave nothing to restore.
    """
    nyquist = rate / 2
    train = check.report.facts["splits"]["train"]
    reach = min(nyquist, train["bandwidth_hz"][2]) if train.get("bandwidth_hz") else nyquist
    low = max(LOWEST_CUTOFF, round(BAND[0] * nyquist / 100) * 100)
    high = int(min(BAND[1] * nyquist, FILLED * reach) / 100) * 100
    if high <= low:
        raise StageError(
            f"{check.data.path} leaves nothing to restore: at {rate} Hz, half of the clips hold "
            f"nothing above {reach:.0f} Hz",
            hint="super-resolution learns from recordings with a full upper band: use others",
        )
    return low, high, [cutoff for cutoff in TEST_CUTOFFS if low <= cutoff <= high] or [high]
