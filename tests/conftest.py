"""Tiny recipes, the command line in this process, trained runs, processes to kill."""

from __future__ import annotations

import hashlib
import io
import json
import multiprocessing
import os
import shutil
import signal
import socket
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any, NamedTuple

import pytest

# Read by huggingface_hub when it is imported: tests must not wait for a hub, nor depend on one.
os.environ.setdefault("HF_HUB_OFFLINE", "1")

TWO_PROCESSES_SECONDS = 240  # what a busy machine may take; the tests that use them take some 20
TERMINAL = {"COLUMNS": "100", "NO_COLOR": "1", "TERM": "dumb"}
UNSET = (
    "FORCE_COLOR",
    "STAGECLI_NO_PROGRESS",
    "STAGECLI_DEBUG",
    "TTY_COMPATIBLE",
    "RANK",
    "WORLD_SIZE",
    "LOCAL_RANK",
    "MASTER_ADDR",
    "MASTER_PORT",
    "TORCHELASTIC_RUN_ID",
    "ACCELERATE_USE_CPU",
    "ACCELERATE_MIXED_PRECISION",
)

# Small enough that a run of a dozen steps takes less than a second.
T2A: dict[str, Any] = {
    "task.kind": "t2a",
    "data.sample_rate": 8000,
    "data.seconds": 0.4,
    "data.clips": 24,
    "data.workers": 0,
    "codec.kind": "mel",
    "codec.n_fft": 256,
    "codec.hop": 80,
    "codec.n_mels": 16,
    "codec.iterations": 4,
    "condition.text": "bytes",
    "condition.max_length": 32,
    "condition.width": 32,
    "condition.depth": 1,
    "model.width": 32,
    "model.depth": 2,
    "model.heads": 2,
    "train.steps": 10,
    "train.batch_size": 4,
    "train.lr": 1e-3,
    "train.warmup_steps": 2,
    "train.ema": 0.9,
    "train.log_every": 1,
    "train.validate_every": 0,
    "train.validate_clips": 6,
    "train.sample_every": 0,
    "train.samples": 1,
    "train.checkpoint_every": 4,
    "evaluate.samples": 4,
    "evaluate.steps": 2,
}
SR: dict[str, Any] = {
    **{k: v for k, v in T2A.items() if not k.startswith(("condition.", "codec."))},
    "task.kind": "sr",
    "data.sample_rate": 16000,
    "data.seconds": 0.2,
    "codec.kind": "mdct",
    "codec.hop": 64,
    "condition.cutoff": [1500, 6000],
    "evaluate.cutoffs": [2000, 4000],
}
BASE = {"t2a": T2A, "sr": SR}


class Result(NamedTuple):
    code: int
    stdout: str
    stderr: str


def write_recipe(path: Path, kind: str = "t2a", **changes: Any) -> Path:
    """Write the tiny recipe of a task as TOML.

    changes: `train__steps=6` sets `train.steps = 6`; None leaves the key out.
    """
    keys = {**BASE[kind], **{name.replace("__", "."): value for name, value in changes.items()}}
    sections: dict[str, list[str]] = {}
    for key, value in keys.items():
        section, _, name = key.rpartition(".")
        if value is not None:
            sections.setdefault(section, []).append(f"{name} = {json.dumps(value)}")
    path.write_text(
        "\n".join(f"[{section}]\n" + "\n".join(lines) + "\n" for section, lines in sections.items())
    )
    return path


def fresh_accelerate() -> None:
    """Reset Accelerate's process-wide state, which would refuse to change the precision."""
    state = sys.modules.get("accelerate.state")
    if state is not None:
        state.AcceleratorState._reset_state(reset_partial_state=True)


def run_cli(*args: object, cwd: Path, env: dict[str, str] | None = None) -> Result:
    """Run `stagecli ARGS` in this process, in the folder `cwd`, with a plain terminal."""
    from stagecli import cli

    fresh_accelerate()
    out = io.StringIO()
    err = io.StringIO()
    code: Any = 0
    with pytest.MonkeyPatch.context() as patch:
        for name in UNSET:
            patch.delenv(name, raising=False)
        for name, value in {**TERMINAL, **(env or {})}.items():
            patch.setenv(name, value)
        patch.setattr(sys, "argv", ["stagecli", *map(str, args)])
        patch.chdir(cwd)
        with redirect_stdout(out), redirect_stderr(err):
            try:
                cli.main()
            except SystemExit as end:
                code = end.code
    return Result(int(code or 0), out.getvalue(), err.getvalue())


def forked(work: Callable[[], object]) -> multiprocessing.Process:
    """Start `work` in a forked process, which need not import torch again; drop its output."""

    def body() -> None:
        import torch

        torch.set_num_threads(1)  # the threads of the parent do not exist in a fork
        with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):
            work()

    process = multiprocessing.get_context("fork").Process(target=body)
    process.start()
    return process  # type: ignore[return-value]


def two_processes(
    *args: object, cwd: Path, codes: Sequence[int] = (0, 0), env: dict[str, str] | None = None
) -> list[str]:
    """Run `stagecli ARGS` in two processes over gloo, as a launcher would start them.

    env: more variables, or other values. Returns what each wrote to stderr, by rank. Asserts that
    they exit with `codes`.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {
        "WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "ACCELERATE_USE_CPU": "true",
        # Where it is unset, Accelerate sets torch's threads to the cores, which a fork has not: the
        # first parallel region of a child then waits for ever.
        "OMP_NUM_THREADS": "1",
        **(env or {}),
    }

    def of_rank(rank: int) -> Callable[[], None]:
        def work() -> None:
            result = run_cli(
                *args, cwd=cwd, env={**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)}
            )
            (cwd / f"rank{rank}.txt").write_text(result.stderr)
            os._exit(result.code)

        return work

    fresh_accelerate()
    processes = [forked(of_rank(rank)) for rank in range(2)]
    ends = time.monotonic() + TWO_PROCESSES_SECONDS
    for process in processes:
        process.join(max(0.0, ends - time.monotonic()))
    for process in processes:
        process.kill()  # one that hangs would keep the port, and the suite, busy
    texts = [cwd / f"rank{rank}.txt" for rank in range(2)]
    errors = [text.read_text() if text.exists() else "" for text in texts]  # none when killed
    assert [process.exitcode for process in processes] == list(codes), errors
    return errors


def die_at(
    owner: Any, name: str, when: Callable[..., bool], before: Callable[..., object] | None = None
) -> None:
    """Make `owner.name` send SIGKILL to this process on the first call for which `when` holds.

    before: called with the same arguments, just before the signal.
    """
    original = getattr(owner, name)

    def wrapped(*args: Any, **keys: Any) -> Any:
        if when(*args, **keys):
            if before:
                before(*args, **keys)
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*args, **keys)

    setattr(owner, name, wrapped)


def read_rows(run: Path, stream: str = "metrics") -> list[dict[str, Any]]:
    """Rows of a JSONL file of a run; a torn line is left out."""
    rows = []
    for line in (run / f"{stream}.jsonl").read_text().splitlines():
        try:
            rows.append(json.loads(line))
        except ValueError:
            continue
    return rows


def losses_of(run: Path) -> list[float]:
    """train/loss of every row, in the order in which it was written."""
    return [row["train/loss"] for row in read_rows(run) if "train/loss" in row]


def sha(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def tree(folder: Path) -> dict[str, str]:
    """The hash of every file under a folder, by relative path."""
    return {str(p.relative_to(folder)): sha(p) for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.fixture
def data_dir() -> Path:
    """The folder of real recordings that STAGECLI_DATA names; skips the test if it is not set."""
    folder = os.environ.get("STAGECLI_DATA")
    if not folder:
        pytest.skip("STAGECLI_DATA is not set: no real recordings to test with")
    assert Path(folder).is_dir(), f"STAGECLI_DATA is {folder}, which is not a directory"
    return Path(folder)


@pytest.fixture
def cli(tmp_path: Path) -> Callable[..., Result]:
    """`cli("train", recipe) -> Result(code, stdout, stderr)`, in tmp_path."""

    def call(*args: object, env: dict[str, str] | None = None) -> Result:
        return run_cli(*args, cwd=tmp_path, env=env)

    return call


@pytest.fixture
def t2a_recipe(tmp_path: Path) -> Callable[..., Path]:
    """`t2a_recipe(name="t2a", train__steps=6) -> path` of a tiny text-to-audio recipe."""
    return lambda name="t2a", **changes: write_recipe(tmp_path / f"{name}.toml", "t2a", **changes)


@pytest.fixture
def sr_recipe(tmp_path: Path) -> Callable[..., Path]:
    """The same for super-resolution."""
    return lambda name="sr", **changes: write_recipe(tmp_path / f"{name}.toml", "sr", **changes)


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the finished runs runs/t2a and runs/sr. Do not change them: use `runs`."""
    folder = tmp_path_factory.mktemp("trained")
    for kind in ("t2a", "sr"):
        result = run_cli("train", write_recipe(folder / f"{kind}.toml", kind), cwd=folder)
        assert result.code == 0, result.stderr
    return folder


@pytest.fixture
def runs(trained: Path, tmp_path: Path) -> Path:
    """A copy of the trained runs, at runs/ of the folder in which `cli` works."""
    shutil.copytree(trained / "runs", tmp_path / "runs")
    return tmp_path / "runs"


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    """One thread: sums over several differ in the last bit from machine to machine."""
    torch = sys.modules.get("torch")
    if torch is not None:
        torch.set_num_threads(1)
