"""A data set on its own, without a recipe: what is in it, what must be mended, what would fit it.

No torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from stagecli.condition.captions import kept_bytes
from stagecli.data.advice import (
    Advice,
    max_length_advice,
    narrow_advice,
    sample_rate_advice,
    seconds_advice,
    split_name_advice,
    valid_share_advice,
)
from stagecli.data.cache import Progress
from stagecli.data.fingerprint import fingerprint
from stagecli.data.open import read_source, recorded_splits
from stagecli.data.report import MEASURED, DataReport, Expectations, evenly, measure
from stagecli.data.rows import SPLITS, Clip, Split, split_names
from stagecli.data.source import FileSource
from stagecli.errors import Problem, StageError
from stagecli.files import JsonRow
from stagecli.schema import Data

MANIFESTS = (".jsonl", ".csv", ".tsv")
HUB = "hf:"  # before the name or folder of a Hugging Face data set
BESIDE = ("manifest.jsonl", "manifest.csv", "manifest.tsv", "metadata.jsonl", "metadata.csv")
LOWEST_RATE = 1000  # Hz: no file is refused for its rate before one is chosen


@dataclass(kw_only=True)
class DataSetCheck:
    """data: keys that read the data set; task: t2a or sr; problems: what must be mended first."""

    data: Data
    task: str
    report: DataReport = field(default_factory=DataReport)
    problems: list[Problem] = field(default_factory=list)
    advice: list[Advice] = field(default_factory=list)

    def as_json(self) -> JsonRow:
        """One document."""
        return {
            "path": self.data.path,
            "source": self.data.source,
            "task": self.task,
            "trainable": not self.problems,
            **self.report.facts,
            "doubts": self.report.doubts,
            "duplicates": [list(pair) for pair in self.report.twins],
            "problems": [{"where": p.where, "what": p.what} for p in self.problems],
            "advice": [entry._asdict() for entry in self.advice],
        }


@dataclass(frozen=True, kw_only=True)
class Question:
    """What a data set is checked for.

    keys: of `[data]` that the user has chosen; task: None: t2a if there are captions; max_length:
    as `condition.max_length`, in bytes.
    """

    keys: dict[str, Any]
    task: str | None
    max_length: int


def locate(path: str) -> dict[str, str]:
    """`data.source` and `data.path` for a folder, a manifest or `hf:NAME`.

    Raises StageError for anything else.
    """
    if path.startswith(HUB):
        return {"source": "huggingface", "path": path.removeprefix(HUB)}
    place = Path(path).expanduser()
    if place.is_dir():
        saved = any((place / name).is_file() for name in ("dataset_dict.json", "state.json"))
        return {"source": "huggingface" if saved else "folder", "path": path}
    if place.is_file() and place.suffix.lower() in MANIFESTS:
        return {"source": "manifest", "path": path}
    problem = "is a file of another kind" if place.exists() else "no such file or folder"
    raise StageError(
        "cannot check the data",
        problems=[Problem(path, problem)],
        hint=f"name a folder of audio, a manifest ({' '.join(MANIFESTS)}), or a Hugging Face data "
        f"set as {HUB}NAME or {HUB}FOLDER",
    )


def check_data_set(
    question: Question, *, base: Path, cache_dir: Path, progress: Progress
) -> DataSetCheck:
    """Everything about a data set. Raises StageError where it cannot be read at all."""
    # The entries, with the names and the division that the data ask for.
    keys = {**question.keys, "on_bad_file": "skip"}
    data = Data(**{"sample_rate": LOWEST_RATE, "seconds": 1.0, **keys})
    names = recorded_splits(data, base)
    advice = _new(split_name_advice(data, names), question)
    data = _with(data, advice)
    present = [
        split for split, name in zip(SPLITS, split_names(data), strict=True) if name in names
    ]
    source = read_source(data, need_captions=False, base=base, splits=present)
    if not source.divided:
        shares = _new(valid_share_advice(data, source.keys()), question)
        data = _with(data, shares)
        source = read_source(data, need_captions=False, base=base)
        advice += shares

    # Their audio.
    problems = source.examine(
        SPLITS, cache_dir, lambda done, total: progress("checking audio", done, total)
    )
    clips = {split: source.clips(split) for split in SPLITS}
    captions = {text for of_split in clips.values() for clip in of_split for text in clip.captions}
    task = question.task or ("t2a" if captions - {""} else "sr")
    check = DataSetCheck(data=data, task=task, problems=problems, advice=advice)
    check.problems += _missing(source, clips, task)
    _judge(check, source, question, progress)
    return check


def _new(advice: list[Advice], question: Question) -> list[Advice]:
    """The advice about keys that the user has not chosen."""
    return [entry for entry in advice if entry.key.removeprefix("data.") not in question.keys]


def _with(data: Data, advice: list[Advice]) -> Data:
    return data.model_copy(
        update={entry.key.removeprefix("data."): entry.value for entry in advice}
    )


def _missing(source: FileSource, clips: dict[Split, list[Clip]], task: str) -> list[Problem]:
    """Clips without a caption, and splits without clips that training needs."""
    problems = []
    if task == "t2a":
        problems = [
            Problem(clip.key, "no caption")
            for of_split in clips.values()
            for clip in of_split
            if not clip.caption
        ]
    names = dict(zip(SPLITS, split_names(source.data), strict=True))
    for split in ("train", "valid"):
        if not clips[split]:
            way_out = f"name another split: --set data.{split}_split=NAME"
            if not source.divided:
                way_out = "add files"
            problems.append(Problem(f"split {names[split]}", f"has no usable clips; {way_out}"))
    return problems


def _judge(check: DataSetCheck, source: FileSource, question: Question, progress: Progress) -> None:
    """Measure the clips against the rate that fits them, and add what follows from that."""
    splits = [split for split in SPLITS if source.clips(split)]
    clips = [clip for split in splits for clip in source.clips(split)]
    train = source.clips("train") or clips
    infos = [info for clip in clips if (info := source.info(clip)) is not None]

    # The rate.
    measured = evenly(train, MEASURED)
    hertz = []
    for done, clip in enumerate(measured, 1):
        hertz.append(source.bandwidth(clip) or 0.0)
        progress("measuring bandwidth of training clips", done, len(measured))
    rates = [] if "sample_rate" in question.keys else sample_rate_advice(infos, hertz)
    rate = rates[0].value if rates else check.data.sample_rate

    # The report that a recipe with this rate would get.
    prints = fingerprint(
        source,
        splits,
        with_captions=True,
        progress=lambda done, total: progress("hashing audio", done, total),
    )
    expected = Expectations(
        sample_rate=rate,
        restores=check.task == "sr",
        narrow=check.data.narrow,
        cut=partial(kept_bytes, max_length=question.max_length) if check.task == "t2a" else None,
        max_length=question.max_length,
    )
    check.report = measure(
        source,
        prints,
        expected,
        lambda done, total: progress("measuring bandwidth of every split", done, total),
    )
    check.report.doubts += [f"{p.where} {p.what}" for p in _beside(check.data)]
    if not source.divided and not source.clips("test"):
        check.report.doubts.append(
            "no clip falls into the test split: score with `stagecli evaluate RUN --split valid`"
        )
    for error in check.report.refused:
        check.problems.append(Problem(check.data.path, f"{error.message}; {error.hint}"))

    # What fits.
    check.advice += rates
    if "seconds" not in question.keys:
        check.advice += seconds_advice([clip.seconds for clip in train], check.task)
    if check.task == "t2a":
        captions = {text for clip in clips for text in clip.captions if text}
        check.advice += max_length_advice(captions, question.max_length)
    else:
        narrow = sum(facts["narrow"] for facts in check.report.facts["splits"].values())
        check.advice += narrow_advice(check.data, narrow, rate)


def _beside(data: Data) -> Sequence[Problem]:
    """Manifests in the folder, which a folder's own captions and splits do not come from."""
    if data.source != "folder":
        return []
    names = [name for name in BESIDE if (Path(data.path).expanduser() / name).is_file()]
    what = "is a manifest, which this check has not read: check it by its own path"
    return [Problem(str(Path(data.path) / name), what) for name in names]
