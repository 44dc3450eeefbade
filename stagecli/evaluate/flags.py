"""The options of `stagecli evaluate`, and the checks that they fit what is evaluated."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from stagecli.errors import Problem, StageError
from stagecli.metrics.cutoffs import cutoff_problem
from stagecli.metrics.lsd_presets import STATED, preset_of


@dataclass(frozen=True, kw_only=True)
class Flags:
    """The command line as typed; the help texts in cli/evaluate.py explain each flag.

    None or empty: take the recipe's value, or leave the step out.
    """

    runs: Sequence[Path] = ()
    task: str | None = None
    split: str = "test"
    checkpoints: Sequence[str] = ()
    samples: int | None = None
    seed: int | None = None
    steps: int | None = None
    cfg_scale: float | None = None
    sampler: str | None = None
    cutoffs: Sequence[float] = ()
    preset: str | None = None
    lsd: str | None = None
    by: str | None = None
    metrics: Sequence[str] = ()
    perceptual: bool = False
    data: Path | None = None
    judge: str | None = None
    clap: str | None = None
    labels: Sequence[str] = ()
    quick: bool = False
    reference: Path | None = None
    generated: Path | None = None
    input: Path | None = None
    training: Path | None = None
    match_gain: bool = False
    fail_if: Sequence[str] = ()
    csv: Path | None = None
    force: bool = False
    markdown: bool = False
    runs_dir: Path = Path("runs")

    @property
    def of_folders(self) -> bool:
        """Whether two folders are scored, rather than runs."""
        return bool(self.generated or (self.reference and not self.runs))

    @property
    def cache_dir(self) -> Path:
        """Where results for folders are kept; runs use the cache directory of their recipe."""
        return self.runs_dir / ".cache"

    @property
    def convention(self) -> str | None:
        """Name of the LSD preset, or the convention of --lsd with every key; None: not given."""
        return preset_of(self.lsd).name if self.lsd else self.preset


def check_run_flags(flags: Flags, task: str, run_dir: Path) -> None:
    """Raise StageError if a flag does not apply to a run of `task`."""
    _check_lsd(flags)
    kind = {"sr": "an sr run"}.get(task, f"a {task} run")
    if flags.task and flags.task != task:
        raise StageError(f"{run_dir} is {kind}, not {flags.task}")
    problem = Problem(str(run_dir), f"is {kind}")
    others = _flags_of_other_task(flags, task)
    if task != "sr":
        others["--reference"] = flags.reference
    _reject(others, f"{task} runs", [problem])
    _check_inputs(flags)
    _reject(_folder_flags(flags), "runs")


def _check_inputs(flags: Flags) -> None:
    """Raise StageError unless --input and --reference, of a run, stand together with a cutoff."""
    if bool(flags.input) != bool(flags.reference):
        raise StageError(
            "a run restores the files of --input and needs the same files in full band to score "
            "them: give --input and --reference together"
        )
    if flags.input is None:
        return
    if len(flags.cutoffs) != 1:
        raise StageError(
            "--input needs one --cutoff HZ",
            hint="it is where the inputs end, and separates LSD-LF from LSD-HF",
        )
    others = {"--data": flags.data, "--samples": flags.samples, "--by": flags.by}
    _reject(others, "--input")


def check_folder_flags(flags: Flags) -> None:
    """Raise StageError unless the flags name two folders, and all of them apply to folders."""
    if not (flags.reference and flags.generated):
        raise StageError("--reference and --generated must be given together")
    _reject(_run_flags(flags), "folders")
    _check_lsd(flags)
    if len(flags.cutoffs) > 1:
        raise StageError("folders can be scored at one --cutoff only")
    if flags.task == "sr" and not flags.cutoffs:
        raise StageError(
            "--cutoff HZ is needed to score sr folders",
            hint="it separates LSD-LF from LSD-HF",
        )
    _reject(_flags_of_other_task(flags, str(flags.task)), f"{flags.task} folders")


def _check_lsd(flags: Flags) -> None:
    """Raise StageError unless --lsd states a convention, without a preset beside it."""
    if flags.lsd is None:
        return
    if flags.preset:
        raise StageError("--preset and --lsd both name a convention of LSD: give only one of them")
    try:
        preset_of(flags.lsd)
    except ValueError as error:
        raise StageError(f"--lsd {flags.lsd}: {error}", hint=f"write it like {STATED}") from None


def check_cutoffs(cutoffs: Sequence[float], sample_rate: int, preset: str) -> None:
    """Raise StageError for a cutoff that cannot be scored; preset: of LSD, as `preset_of` reads.

    An LSD convention that does not fit the sample rate is refused, too.
    """
    for cutoff in cutoffs:
        try:
            problem = cutoff_problem(cutoff, sample_rate, preset_of(preset))
        except ValueError as error:
            raise StageError(str(error), hint="choose another with --lsd or --preset") from None
        if problem:
            raise StageError(f"cutoff {problem}", hint="give another with --cutoff HZ")


def _run_flags(flags: Flags) -> dict[str, object]:
    return {
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
        "--data": flags.data,
    }


def _folder_flags(flags: Flags) -> dict[str, object]:
    return {
        "--training": flags.training,
        "--match-gain": flags.match_gain and not flags.input,
    }


def _flags_of_other_task(flags: Flags, task: str) -> dict[str, object]:
    if task == "sr":
        return {
            "--judge": flags.judge,
            "--training": flags.training,
            "--clap": flags.clap,
            "--label": flags.labels,
            "--quick": flags.quick,
        }
    return {
        "--match-gain": flags.match_gain,
        "--input": flags.input,
        "--cutoff": flags.cutoffs,
        "--preset": flags.preset,
        "--lsd": flags.lsd,
        "--perceptual": flags.perceptual,
        "--by": flags.by,
    }


def _reject(flags: Mapping[str, object], context: str, problems: Sequence[Problem] = ()) -> None:
    """Raise StageError naming those of the flags that were given; 0 is a value, False is not."""
    given = [
        name
        for name, value in flags.items()
        if value is not None and value is not False and value not in ([], ())
    ]
    if given:
        raise StageError(
            f"{', '.join(given)}: not applicable to {context}",
            problems=problems,
        )
