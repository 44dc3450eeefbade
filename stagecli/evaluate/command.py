"""`stagecli evaluate`: its flags -> evaluations -> what is printed and written."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from stagecli.data.cache import Progress
from stagecli.errors import StageError, printable
from stagecli.evaluate import pages, tables
from stagecli.evaluate.chosen import check_metrics, chosen_metrics
from stagecli.evaluate.flags import Flags, check_folder_flags
from stagecli.evaluate.folders import evaluate_folders
from stagecli.evaluate.limits import Limit, broken_limits, parse_limits
from stagecli.evaluate.runs import evaluate_runs
from stagecli.files import JsonRow
from stagecli.hub.folder import local_problem
from stagecli.runs.directory import newest
from stagecli.runs.exports import read_model_info
from stagecli.ssl import name_problem
from stagecli.targets import Target, plan_targets, write_target
from stagecli.terminal.console import Console

__all__ = ["Flags", "work"]


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """documents: one per run and checkpoint, or one of two folders; differences: of each document
    from the first; limits: the conditions of --fail-if."""

    limits: Sequence[Limit]
    documents: Sequence[JsonRow]
    differences: Sequence[JsonRow] = ()


def work(flags: Flags, progress: Progress, console: Console) -> Callable[[], bool]:
    """Evaluate, and return the function that prints the result.

    That function returns True unless a condition of --fail-if holds. Raises StageError, before any
    work if the flags do not fit together.
    """
    _check_output_flags(flags, console)
    _check_encoders(flags)
    try:
        if flags.of_folders:
            evaluation = _evaluate_folders(flags, progress, console)
        else:
            evaluation = _evaluate_runs(flags, progress, console)
    except KeyboardInterrupt:
        console.note("interrupted; run the same command again to continue")
        raise
    return partial(_print_result, flags, evaluation, console)


def _check_output_flags(flags: Flags, console: Console) -> None:
    if console.as_json + flags.markdown + (str(flags.csv) == "-") > 1:
        raise StageError(
            "--json, --markdown and --csv - all write to stdout: give only one of them"
        )
    if flags.csv and str(flags.csv) != "-":
        folders = (flags.reference, flags.generated, flags.input, flags.training, flags.data)
        plan_targets(
            [Target(flags.csv, "--csv")],
            inputs=[flags.runs_dir, *flags.runs, *(folder for folder in folders if folder)],
            force=flags.force,
        )


def _check_encoders(flags: Flags) -> None:
    """Raise StageError for an encoder that cannot be had, as far as it shows without loading it."""
    problems = {
        "--judge": name_problem(flags.judge) if flags.judge else None,
        "--clap": local_problem(flags.clap) if flags.clap else None,
    }
    for flag, problem in problems.items():
        if problem is not None:
            raise StageError(
                f"{flag}: {problem}", hint="name one that is there, or leave the flag out"
            )


def _evaluate_folders(flags: Flags, progress: Progress, console: Console) -> Evaluation:
    check_folder_flags(flags)
    task = str(flags.task)
    check_metrics(flags, [task])
    limits = parse_limits(flags.fail_if, chosen_metrics(flags, task))
    document = evaluate_folders(flags, progress=progress, warn=console.warn)
    return Evaluation(limits=limits, documents=[document])


def _evaluate_runs(flags: Flags, progress: Progress, console: Console) -> Evaluation:
    runs = flags.runs
    if not runs:
        runs = [newest(flags.runs_dir, flags.task)]
        console.note(f"scoring {runs[0]}")
    tasks = {str(read_model_info(run).get("task")) for run in runs}
    check_metrics(flags, sorted(tasks))
    computed = [name for task in sorted(tasks) for name in chosen_metrics(flags, task)]
    limits = parse_limits(flags.fail_if, list(dict.fromkeys(computed)))
    documents, differences = evaluate_runs(
        flags, runs, progress=progress, warn=console.warn, note=console.note
    )
    return Evaluation(limits=limits, documents=documents, differences=differences)


def _print_result(flags: Flags, evaluation: Evaluation, console: Console) -> bool:
    """Print and write the tables; False if a condition of --fail-if holds."""
    try:
        if flags.csv:
            _write_csv(flags, evaluation, console)
    finally:  # the figures are shown, whatever happened to the file
        _show_tables(flags, evaluation, console)
    broken = broken_limits(evaluation.limits, evaluation.documents)
    for line in broken:
        console.warn(f"--fail-if {line}")
    return not broken


def _write_csv(flags: Flags, evaluation: Evaluation, console: Console) -> None:
    text = pages.csv_text(evaluation.documents, evaluation.differences)
    if flags.csv:
        if str(flags.csv) == "-":
            print(printable(text), end="")
        else:
            write_target(flags.csv, text, force=flags.force)
            console.note(f"wrote {flags.csv}")


def _show_tables(flags: Flags, evaluation: Evaluation, console: Console) -> None:
    documents = evaluation.documents
    differences = evaluation.differences
    if flags.markdown:
        print(printable(pages.markdown(documents, differences)), end="")
    elif str(flags.csv) != "-":
        result: Any = {"runs": documents, "differences": differences}
        if len(documents) == 1:
            result = documents[0]
        console.result(result, lambda: tables.show(documents, differences, console))
    for document in documents:
        if "file" in document:
            console.note(f"wrote {document['file']}")
