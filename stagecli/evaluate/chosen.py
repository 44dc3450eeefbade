"""Which metrics an evaluation computes: by default, by the flags that add some, or by --metrics."""

from __future__ import annotations

from collections.abc import Iterable

from stagecli.errors import StageError
from stagecli.evaluate.flags import Flags
from stagecli.evaluate.pairs import PERCEPTUAL, SR_METRICS
from stagecli.evaluate.sets import DISTANCES, SET_METRICS

CLASSIFIED = ("prompt_accuracy", "kl", "inception_score")  # by classifiers of the training split
OF_TRAINING_SPLIT = (*CLASSIFIED, "memorised_share")


def chosen_metrics(flags: Flags, task: str) -> list[str]:
    """Names of the metrics that these flags compute, for runs or folders of `task`, in order."""
    possible = _possible(flags, task)
    if flags.metrics:
        added = _added(flags)
        return [name for name in possible if name in flags.metrics or name in added]
    if task == "sr":
        return [name for name in possible if flags.perceptual or name not in PERCEPTUAL]
    return possible


def check_metrics(flags: Flags, tasks: Iterable[str]) -> None:
    """Raise StageError for names in --metrics that nothing evaluated here can have."""
    if not flags.metrics:
        return
    if flags.perceptual or flags.quick:
        other = "--perceptual" if flags.perceptual else "--quick"
        raise StageError(
            f"--metrics and {other} both choose metrics: give only one of them",
            hint="--metrics takes the names of all metrics that you want",
        )
    possible = list(dict.fromkeys(name for task in tasks for name in _possible(flags, task)))
    for name in flags.metrics:
        if name == "clap_score" and not flags.clap:
            raise StageError("--metrics clap_score needs a model", hint="name it with --clap MODEL")
        if name not in possible:
            raise StageError(
                f"--metrics: there is no metric {name!r} here",
                hint=f"there are {', '.join(possible)}",
            )


def needs_training_split(flags: Flags) -> bool:
    """Whether t2a metrics that compare with the whole training split are computed."""
    return any(name in OF_TRAINING_SPLIT for name in chosen_metrics(flags, "t2a"))


def _possible(flags: Flags, task: str) -> list[str]:
    """Everything that the other flags allow."""
    if task == "sr":
        return [*SR_METRICS, *PERCEPTUAL]
    names = [*SET_METRICS]
    if not flags.reference:
        names += OF_TRAINING_SPLIT
    if flags.quick or (flags.split == "train" and not flags.reference):
        names = [*DISTANCES]
    return [*names, *_added(flags)]


def _added(flags: Flags) -> list[str]:
    """Metrics of t2a for which a flag is given."""
    copies = ["memorised_share"] if flags.training else []
    return [*copies, *(["clap_score"] if flags.clap else [])]
