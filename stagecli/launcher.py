"""The launcher that started this process, such as `torchrun` or `accelerate launch`. No torch.

A launcher starts several processes and tells each of them its number, its *rank*, and how many
there are, in environment variables. The same variables without a launcher, left over in a shell or
set for all of a container, make a process no part of anything.
"""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from stagecli.errors import Problem, StageError

# Variables of torchrun, MPICH, Open MPI and MVAPICH, as Accelerate reads them.
SIZES = ("WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")
RANKS = ("RANK", "PMI_RANK", "OMPI_COMM_WORLD_RANK", "MV2_COMM_WORLD_RANK")


def _command_of(process: int) -> list[str]:
    """The command line of a process; empty where it cannot be read."""
    try:
        text = Path(f"/proc/{process}/cmdline").read_bytes().decode(errors="replace")
    except OSError:
        return []
    return text.split("\0")[:-1]


# The parent as the program starts; it may be gone when it is needed.
PARENT = os.getppid()
PARENT_COMMAND = _command_of(PARENT)


def _number(names: Sequence[str]) -> int | None:
    """The first of some variables that holds a number, or None."""
    for name in names:
        if os.environ.get(name, "").isdecimal():
            return int(os.environ[name])
    return None


def processes() -> int:
    """Number of processes that the environment asks for."""
    return _number(SIZES) or 1


def shares_weights() -> bool:
    """Whether the launcher asks for FSDP: several processes, each with a part of the weights."""
    asked = os.environ.get("ACCELERATE_USE_FSDP", "").lower()
    return processes() > 1 and asked in ("1", "true", "yes", "on", "y", "t")


def is_launched() -> bool:
    """Whether a launcher started this process, which reports the ends of its processes itself."""
    by_mpi = _number(SIZES[1:]) is not None
    by_accelerate = "ACCELERATE_MIXED_PRECISION" in os.environ
    return "TORCHELASTIC_RUN_ID" in os.environ or by_mpi or by_accelerate


def is_connectable() -> bool:
    """Whether the environment says where the processes meet."""
    return is_launched() or {"RANK", "MASTER_ADDR", "MASTER_PORT"} <= os.environ.keys()


def is_main() -> bool:
    """Whether this is the one process, or the first of several."""
    return processes() == 1 or not is_connectable() or not _number(RANKS)


def prints_errors() -> bool:
    """Whether this process prints an error that all processes have."""
    return is_main() or not is_launched()


def has_lost_parent() -> bool:
    """Whether the launcher that started this process is gone."""
    return is_launched() and os.getppid() != PARENT


def check_environment() -> None:
    """Raises StageError where the environment asks for processes that nobody has started."""
    if processes() > 1 and not is_connectable():
        raise StageError(
            f"the environment asks for {processes()} processes, but no launcher started them",
            problems=[Problem("WORLD_SIZE", f"is {processes()}; MASTER_ADDR is not set")],
            hint="unset RANK, WORLD_SIZE and LOCAL_RANK to train in one process, or start them "
            "with torchrun --nproc_per_node N -m stagecli train ...",
        )
    # `accelerate launch` on a CPU sets the address for several processes and then starts one. It
    # passes on an address that the shell has set, which looks the same.
    if os.environ.get("ACCELERATE_USE_CPU") and "MASTER_ADDR" in os.environ:
        if _number(SIZES) is None:
            raise StageError(
                "accelerate launch seems to have been asked for several processes and started one",
                problems=[Problem("MASTER_ADDR", "is set, WORLD_SIZE is not")],
                hint="for one process unset MASTER_ADDR and MASTER_PORT, and give it "
                "--num_processes 1; for several on a CPU use torchrun --nproc_per_node N "
                "-m stagecli train ...",
            )


def command(arguments: Sequence[str]) -> str:
    """The command line that starts `stagecli ARGUMENTS` again as it was started.

    With the launcher in front, where one started this process and can be read.
    """
    words = list(PARENT_COMMAND) if is_launched() else []
    names = [Path(word).name for word in words]
    for first, name in enumerate(names):
        if name in ("accelerate", "accelerate-launch", "torchrun", "mpirun", "mpiexec"):
            break
        if name in ("torch.distributed.run", "accelerate.commands.launch"):
            words[first] = f"python -m {name}"
            break
    else:
        return f"stagecli {shlex.join(arguments)}"
    tail = len(sys.argv) - 1
    kept = words[first + 1 : len(words) - tail if tail else None]
    launcher = names[first] if " " not in words[first] else words[first]
    return " ".join([launcher, shlex.join(kept), shlex.join(arguments)])
