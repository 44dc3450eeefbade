"""How an error ends a run: the state of the last whole step is saved, and one error tells why."""

from __future__ import annotations

import errno
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from stagecli.errors import EXIT_FAILED, Problem, StageError, causes, is_out_of_memory
from stagecli.stage.base import Event
from stagecli.train.out_of_memory import not_enough_memory
from stagecli.train.outputs import Outputs
from stagecli.train.prepare import Prepared

DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.EFBIG)
LOST = ("gloo", "NCCL", "ProcessGroup", "Connection closed by peer", "Connection reset by peer")


class StepError(StageError):
    """A step that cannot be done. evidence: for the event that records it."""

    def __init__(self, message: str, *, evidence: Mapping[str, Any], **details: Any) -> None:
        super().__init__(message, **details)
        self.evidence = evidence


def not_finite(
    quantity: str, step: int, batch: Mapping[str, Tensor], prepared: Prepared
) -> StepError:
    """The error of a step whose loss or gradient is not finite, with the clips of its last batch.

    batch: as `to_frames` makes it; it shows whether the clips or the network are the cause.
    """
    examples = prepared.examples(prepared.train)
    keys = [examples.clip_of(int(index)).key for index in batch["index"].tolist()]
    inputs = [value for value in batch.values() if value.is_floating_point()]
    cause = "the network"
    if not all(bool(torch.isfinite(value).all()) for value in inputs):
        cause = "the batch itself, which holds values that are not finite"
    more = f" and {len(keys) - 4} more" if len(keys) > 4 else ""
    return StepError(
        f"the {quantity} is not finite at step {step}",
        problems=[
            Problem("cause", cause),
            Problem("last batch", ", ".join(keys[:4]) + more),
        ],
        hint="lower train.lr or train.clip, or use precision fp32, under another --name",
        exit_code=EXIT_FAILED,
        evidence={"clips": keys},
    )


def rescue(error: Exception, outputs: Outputs) -> StageError:
    """Save the last whole step, record the failure, and return the one error that tells it."""
    # A checkpoint, by the main process. No error of the rescue may hide the first one.
    state = outputs.state
    saved: StageError | None = None
    try:
        outputs.rescue(together=isinstance(error, StepError))
    except StageError as failed:
        saved = failed

    # The event, and the error that ends the run.
    failure = as_stage_error(error, outputs.run_dir, f"training failed at step {state.step + 1}")
    if is_out_of_memory(error):
        failure = not_enough_memory(error, outputs.context)
    evidence = error.evidence if isinstance(error, StepError) else {"causes": causes(error)}
    event = Event(
        mechanism="trainer",
        before="training",
        after="failed",
        reason=failure.message,
        evidence=evidence,
    )
    with suppress(OSError):
        outputs.recorder.event(state.step, event)
    return StageError(
        failure.message,
        problems=[*failure.problems, *_kept(outputs, saved)],
        hint=failure.hint,
        exit_code=failure.exit_code,
    )


def _kept(outputs: Outputs, failed: StageError | None) -> Sequence[Problem]:
    """Which step the same command resumes from."""
    step = outputs.state.step
    if step == outputs.saved_step:
        return [Problem("saved", f"step {step}")] if step else []
    newest = f"the newest checkpoint is of step {outputs.saved_step}"
    if not outputs.saved_step:
        newest = "there is no checkpoint"
    why = "the step was not complete" if failed is None else causes(failed)[0]
    return [Problem("not saved", f"step {step}: {why}; {newest}")]


def as_stage_error(error: Exception, run_dir: Path, message: str) -> StageError:
    """Any exception as an error that the command line prints in a few lines.

    message: for one that nobody expected.
    """
    if isinstance(error, StageError):
        return error
    if isinstance(error, OSError) and _is_of_run(error, run_dir):
        return StageError(
            f"cannot write the run: {error.strerror or error}",
            problems=[Problem(str(error.filename or run_dir), str(error))],
            hint="free some space and run the same command again: "
            "it resumes from the last checkpoint",
            exit_code=EXIT_FAILED,
        )
    hint = "run the same command again to resume; STAGECLI_DEBUG=1 shows where it happened"
    if is_lost_connection(error):
        message = "another process of this run has ended"
        hint = "its own error is printed above, unless it was killed, for example for lack of "
        hint += "memory; run the same command again to resume"
    elif is_out_of_memory(error):
        hint = "run the same command again with a larger train.accumulate, which needs less memory "
        hint += "at once"
    problems = [Problem("cause", text) for text in causes(error)]
    return StageError(message, problems=problems, hint=hint, exit_code=EXIT_FAILED)


def is_lost_connection(error: BaseException) -> bool:
    """Whether an error only says that another process of the run is gone."""
    if isinstance(error, StageError):
        return error.__cause__ is not None and is_lost_connection(error.__cause__)
    if isinstance(error, torch.distributed.DistError):
        return True
    return type(error) is RuntimeError and any(word in str(error) for word in LOST)


def _is_of_run(error: OSError, run_dir: Path) -> bool:
    """Whether an error is about a file of the run, or about the disk."""
    name = str(error.filename or "")
    return error.errno in DISK or (bool(name) and Path(name).is_relative_to(run_dir))
