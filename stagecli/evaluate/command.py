"""The flags of `stagecli evaluate` -> work -> what is printed and written."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from stagecli.data.cache import Progress
from stagecli.errors import Problem, StageError
from stagecli.evaluate import tables
from stagecli.evaluate.folders import FolderOptions, evaluate_folders
from stagecli.evaluate.pairs import PERCEPTUAL, SR_METRICS
from stagecli.evaluate.runs import Asked, evaluate_runs
from stagecli.evaluate.sets import DISTANCES, MANIFOLD
from stagecli.evaluate.summary import JsonRow, Limit, broken, limits
from stagecli.files import write_atomic
from stagecli.runs.directory import newest, read_info
from stagecli.terminal.console import Console


@dataclass(frozen=True)
class Flags:
    """As typed; the help texts in cli/evaluate.py say what each means."""

    runs: list[Path]
    task: str | None
    split: Any
    checkpoints: list[str]
    samples: int | None
    seed: int | None
    steps: int | None
    cfg_scale: float | None
    sampler: str | None
    cutoffs: list[float]
    preset: str | None
    by: str | None
    perceptual: bool
    judge: str | None
    clap: str | None
    labels: list[str]
    quick: bool
    reference: Path | None
    generated: Path | None
    training: Path | None
    match_gain: bool
    fail_if: list[str]
    csv: Path | None
    markdown: bool
    runs_dir: Path


def work(flags: Flags, progress: Progress, out: Console) -> Callable[[], bool]:
    """Evaluate; the function that comes back prints the answer and says whether every --fail-if let it pass.

    Raises StageError, before any work where the flags do not fit together.
    """
    if out.as_json + flags.markdown + (str(flags.csv) == "-") > 1:
        raise StageError("--json, --markdown and --csv - all want stdout: give one of them")
    if flags.csv and str(flags.csv) != "-" and not flags.csv.resolve().parent.is_dir():
        raise StageError(
            "cannot write the table",
            problems=[Problem(str(flags.csv), "its folder does not exist")],
        )
    differences: list[JsonRow] = []
    try:
        if flags.reference or flags.generated:
            wanted, documents = _folders(flags, progress, out)
        else:
            _none_of("runs", {"--training": flags.training, "--match-gain": flags.match_gain})
            wanted, documents, differences = _runs(flags, progress, out)
    except KeyboardInterrupt:
        out.note("interrupted; the same command continues where it stopped")
        raise
    return partial(_answer, flags, documents, differences, wanted, out)


def _folders(flags: Flags, progress: Progress, out: Console) -> tuple[list[Limit], list[JsonRow]]:
    reference = flags.reference
    generated = flags.generated
    task = flags.task
    if not (reference and generated):
        raise StageError("--reference and --generated belong together")
    _none_of(
        "two folders",
        {
            "a run": flags.runs,
            "--checkpoint": flags.checkpoints,
            "--samples": flags.samples,
            "--seed": flags.seed,
            "--steps": flags.steps,
            "--cfg-scale": flags.cfg_scale,
            "--sampler": flags.sampler,
            "--by": flags.by,
            "--label": flags.labels,
            "--quick": flags.quick,
        },
    )
    if len(flags.cutoffs) > 1:
        raise StageError("two folders have one --cutoff")
    assert task is not None
    more = ["memorised_share"] if flags.training else []
    wanted = limits(
        flags.fail_if, computed(task, flags, [*DISTANCES, "fad_infinity", *MANIFOLD, *more])
    )
    options = FolderOptions(
        flags.cutoffs[0] if flags.cutoffs else None,
        flags.preset,
        flags.perceptual,
        flags.match_gain,
        flags.judge,
        flags.training,
        flags.clap,
        flags.runs_dir / ".cache",
    )
    return wanted, [
        evaluate_folders(reference, generated, task, options, progress=progress, warn=out.warn)
    ]


def _runs(
    flags: Flags, progress: Progress, out: Console
) -> tuple[list[Limit], list[JsonRow], list[JsonRow]]:
    runs = flags.runs
    if not runs:
        runs = [newest(flags.runs_dir, flags.task)]
        out.note(f"scoring {runs[0]}")
    tasks = {str(read_info(run).get("task")) for run in runs}
    sets = [*DISTANCES, *([] if flags.quick else ["fad_infinity", *MANIFOLD, *LEARNT])]
    known = [name for task in sorted(tasks) for name in computed(task, flags, sets)]
    wanted = limits(flags.fail_if, dict.fromkeys(known))
    sampling = {"steps": flags.steps, "cfg_scale": flags.cfg_scale, "sampler": flags.sampler}
    asked = Asked(
        flags.task,
        flags.split,
        flags.seed,
        flags.samples,
        sampling,
        tuple(flags.cutoffs),
        flags.preset,
        flags.perceptual,
        flags.by,
        flags.judge,
        flags.clap,
        tuple(flags.labels),
        flags.quick,
    )
    documents, differences = evaluate_runs(
        runs, flags.checkpoints or ["latest"], asked, progress=progress, warn=out.warn, say=out.note
    )
    return wanted, documents, differences


LEARNT = ("prompt_accuracy", "kl", "inception_score", "memorised_share")


def computed(task: str, flags: Flags, sets: list[str]) -> list[str]:
    """Metrics that this command line gives, what --fail-if may name."""
    if task == "sr":
        return [*SR_METRICS, *(PERCEPTUAL if flags.perceptual else ())]
    return [*sets, *(["clap_score"] if flags.clap else [])]


def _answer(
    flags: Flags,
    documents: list[JsonRow],
    differences: list[JsonRow],
    wanted: list[Limit],
    out: Console,
) -> bool:
    if flags.csv:
        text = tables.csv_text(documents, differences)
        if str(flags.csv) == "-":
            print(text, end="")
        else:
            write_atomic(flags.csv, text)
            out.note(f"wrote {flags.csv}")
    if flags.markdown:
        print(tables.markdown(documents, differences), end="")
    elif str(flags.csv) != "-":
        document: Any = (
            documents[0] if len(documents) == 1 else {"runs": documents, "differences": differences}
        )
        out.result(document, lambda: tables.show(documents, differences, out))
    for document in documents:
        if "file" in document:
            out.note(f"wrote {document['file']}")
    failed = broken(wanted, documents)
    for line in failed:
        out.warn(f"--fail-if {line}")
    return not failed


def _none_of(what: str, options: dict[str, Any]) -> None:
    wrong = [name for name, value in options.items() if value not in (None, False, [])]
    if wrong:
        raise StageError(f"{', '.join(wrong)}: not for {what}")
