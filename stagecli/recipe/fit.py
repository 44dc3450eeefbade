"""A recipe that fits a data set and trains on a small machine: its keys, each with the reason.

The data decide `[data]` (`data/advice.py`), and with it the codec, the batch and the cutoffs. All
else is what the shipped recipes for two cores have.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from stagecli.errors import StageError, among
from stagecli.schema import Data

if TYPE_CHECKING:
    from stagecli.data.advice import Advice
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
CHOSEN = {"path": "relative to the folder in which you train"}
# Training clips from which on a run gets more steps.
STEPS = ((0, 2000), (500, 4000), (5000, 8000))


@dataclass(frozen=True, kw_only=True)
class Part:
    """One section of the recipe: its header, a comment on all of it, and its keys."""

    header: str
    note: str
    keys: list[Advice]


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
    values = {entry.key: entry.value for entry in data}
    parts = [Part(header="[data]", note="", keys=data)]
    if check.task == "t2a":
        return parts + _text_to_audio(check, values["data.sample_rate"], values["data.seconds"])
    return parts + _super_resolution(check, values["data.sample_rate"])


def _way_out(check: DataSetCheck) -> str:
    from stagecli.data.check import NO_CAPTIONS

    if any(problem.what == NO_CAPTIONS for problem in check.problems):
        return (
            "folders that say what is in them are captions, too: --captions-from folder; "
            "or name a column: --captions-from COLUMN"
        )
    return "mend the data, or leave unusable files out: --set data.on_bad_file=skip"


def _data_keys(check: DataSetCheck, chosen: Mapping[str, Any]) -> list[Advice]:
    """`[data]` in the order of the schema: advised, limited to a small machine, or chosen."""
    from stagecli.data.advice import Advice

    keys = {entry.key: entry for entry in check.advice if entry.key.startswith("data.")}
    seconds = keys.get("data.seconds")
    if check.task == "t2a" and seconds is not None and seconds.value > LONGEST:
        why = "longer clips take more than two cores have: crops of this length are trained on"
        keys["data.seconds"] = Advice("data.seconds", LONGEST, why)
    advised_rate = keys.get("data.sample_rate")
    if advised_rate is not None:
        rate, why = _rate(check.task, advised_rate.value)
        if rate < advised_rate.value:
            keys["data.sample_rate"] = Advice("data.sample_rate", rate, why)
            keys.pop("data.on_bad_file", None)
            keys |= _left_out(check, rate)
    for name, value in chosen.items():
        keys[f"data.{name}"] = Advice(f"data.{name}", value, CHOSEN.get(name, ""))
    order = list(Data.model_fields)
    return sorted(keys.values(), key=lambda entry: order.index(entry.key.removeprefix("data.")))


def _rate(task: str, advised: int) -> tuple[int, str]:
    """The rate for a small machine, and why it is lower than the data would allow."""
    if task == "sr":
        return min(advised, HIGHEST_RATE), "nothing above can be heard"
    if advised >= WIDE_RATE:
        return WIDE_RATE, "higher rates need a pretrained codec and a GPU: see audiocaps-t2a"
    return min(advised, NARROW_RATE), "the codec has been measured at this rate"


def _left_out(check: DataSetCheck, rate: int) -> dict[str, Advice]:
    """Leave out the clips below the rate, where there are any."""
    from stagecli.data.advice import Advice

    rates: dict[int, int] = {}
    for facts in check.report.facts["splits"].values():
        for hertz, count in facts["rates"].items():
            rates[int(hertz)] = rates.get(int(hertz), 0) + count
    low = sum(count for hertz, count in rates.items() if hertz < rate)
    if not low:
        return {}
    why = f"{among(low, sum(rates.values()), 'clip', 'has', 'have')} a lower rate: left out"
    return {"data.on_bad_file": Advice("data.on_bad_file", "skip", why)}


def _training_clips(check: DataSetCheck) -> int:
    return int(check.report.facts["splits"]["train"]["clips"])


def _train(check: DataSetCheck, batch_size: int) -> list[Advice]:
    from stagecli.data.advice import Advice

    clips = _training_clips(check)
    steps = max(steps for least, steps in STEPS if clips >= least)
    while batch_size > clips:
        batch_size //= 2
    passes = steps * batch_size / clips
    often = "validated, saved and sampled so often, to be listened to while it trains"
    return [
        Advice("train.steps", steps, f"{passes:.3g} passes over {clips:,} training clips"),
        Advice("train.batch_size", batch_size, "what two cores train in well under a second"),
        Advice("train.lr", 1e-3, "small networks take high learning rates"),
        Advice("train.precision", "auto", "faster where the machine has bf16"),
        Advice("train.ema", 0.998, "samples come from the average of the last 500 or so steps"),
        Advice("train.validate_every", steps // 8, often),
        Advice("train.checkpoint_every", steps // 4, ""),
        Advice("train.sample_every", steps // 4, ""),
    ]


def _text_to_audio(check: DataSetCheck, rate: int, seconds: float) -> list[Part]:
    from stagecli.data.advice import Advice

    codec = dict(WIDE_CODEC)
    if rate < WIDE_RATE:
        codec = dict(NARROW_CODEC)
        codec["n_fft"] = round(codec["n_fft"] * rate / NARROW_RATE)
        codec["hop"] = round(codec["hop"] * rate / NARROW_RATE)
    max_length = [entry for entry in check.advice if entry.key == "condition.max_length"]
    batch_size = 32 if seconds <= FULL_BATCH_SECONDS else 16
    return [
        Part(
            header="[codec]",
            note="Log-mel spectra, inverted by Griffin-Lim: nothing to download. These settings "
            "kept what a classifier recognises (docs/codecs.md).",
            keys=[
                Advice("codec.kind", "mel", ""),
                *(Advice(f"codec.{name}", value, "") for name, value in codec.items()),
                Advice("codec.iterations", 32, "more change nothing that is recognised"),
            ],
        ),
        Part(
            header="[condition]",
            note="",
            keys=[
                Advice("condition.text", "bytes", "reads captions letter by letter: no download"),
                *max_length,
            ],
        ),
        Part(
            header="[model]",
            note="",
            keys=[Advice("model.patch", 2, "two frames are one token: half the time of a step")],
        ),
        Part(
            header="[objective]",
            note="",
            keys=[Advice("objective.density", "logit-normal", "more training at middle noise")],
        ),
        Part(header="[train]", note="", keys=_train(check, batch_size)),
        _regime([]),
        Part(
            header="[evaluate]",
            note="",
            keys=[
                Advice("evaluate.steps", 25, "sampler steps; more change little"),
                Advice("evaluate.cfg_scale", 2.0, "how strictly samples follow the prompt"),
            ],
        ),
    ]


def _super_resolution(check: DataSetCheck, rate: int) -> list[Part]:
    from stagecli.data.advice import Advice

    low, high, cutoffs = _cutoffs(check, rate)
    n_fft = 2
    while n_fft < WINDOW * rate:
        n_fft *= 2
    partial = "the bundled monitor hears up to 22,050 Hz, not all of the band that is restored"
    monitor = [Advice("stage.regime.partial_band", True, partial)] if rate > MONITOR_RATE else []
    return [
        Part(
            header="[codec]",
            note="A lossless spectrum, so that the band that is there stays as it is.",
            keys=[
                Advice("codec.kind", "stft", "ahead of mdct in the one comparison made"),
                Advice("codec.n_fft", n_fft, f"a window of {1000 * n_fft / rate:.0f} ms"),
                Advice("codec.hop", n_fft // 2, ""),
                Advice("codec.floor", 1e-6, ""),
            ],
        ),
        Part(
            header="[condition]",
            note="",
            keys=[
                Advice("condition.cutoff", [low, high], "Hz above which the input has nothing"),
                Advice("condition.dropout", 0.0, "the input is always there"),
            ],
        ),
        Part(
            header="[model]",
            note="",
            keys=[
                Advice("model.output", "gated", "the codec has more channels than the network"),
                Advice("model.levels", True, "shows the network how loud each band is"),
            ],
        ),
        Part(header="[train]", note="", keys=_train(check, 8)),
        _regime(monitor),
        Part(
            header="[evaluate]",
            note="",
            keys=[
                Advice("evaluate.sampler", "ab2", "6 steps of it keep the level of the upper band"),
                Advice("evaluate.steps", 6, ""),
                Advice("evaluate.cutoffs", cutoffs, "Hz, each scored on its own"),
            ],
        ),
    ]


def _regime(keys: list[Advice]) -> Part:
    return Part(
        header="[stage.regime]",
        note="Measures how far training has come, and changes nothing that is trained. Shown by "
        "`stagecli inspect-regime`.",
        keys=keys,
    )


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
