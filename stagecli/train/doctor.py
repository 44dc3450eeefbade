"""`stagecli doctor`: can this machine train?"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from stagecli.errors import causes
from stagecli.runs.directory import environment, free_bytes
from stagecli.terminal.console import Console

NEEDED_MB = 500  # room for a checkpoint of a small model, samples and logs


def _torch() -> str:
    import torch

    names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    devices = ", ".join(names) if names else f"no GPU, {os.cpu_count()} CPU cores"
    return f"{torch.__version__}; {devices}"


def _torchaudio() -> str:
    import torch
    import torchaudio

    torchaudio.functional.resample(torch.zeros(1, 800), 8000, 16000)
    return str(torchaudio.__version__)


def _bf16() -> str:
    import torch

    layer = torch.nn.Linear(8, 8)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    with torch.autocast(device, dtype=torch.bfloat16):
        result = layer.to(device)(torch.zeros(1, 8, device=device))
    return f"autocast gives {result.dtype}"


def _accelerate() -> str:
    from accelerate import PartialState

    state = PartialState()
    return f"{state.num_processes} process(es) on {state.device}"


def _soundfile() -> str:
    import numpy as np
    import soundfile

    tone = 0.5 * np.sin(np.arange(1600) * 0.1).astype(np.float32)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "tone.wav"
        soundfile.write(path, tone, 16000, subtype="FLOAT")
        restored, _ = soundfile.read(path, dtype="float32")
    if not np.array_equal(restored, tone):
        raise RuntimeError("0.1 s of audio changed when written and read back")
    return f"{soundfile.__libsndfile_version__}, round trip exact"


def _writable(folder: Path) -> str:
    """Checks the nearest existing parent, as the runs directory is created on first use."""
    candidates = [folder.absolute(), *folder.absolute().parents]
    existing = next(path for path in candidates if path.exists())
    with tempfile.NamedTemporaryFile(dir=existing):
        pass
    free_mb = free_bytes(existing) // 2**20
    if free_mb < NEEDED_MB:
        raise RuntimeError(f"{free_mb} MB free under {existing}, {NEEDED_MB} MB needed")
    return f"{existing}: {free_mb:,} MB free"


def _shared_memory() -> str:
    """Never fails: `data.workers = 0` needs none."""
    from stagecli.train.shared_memory import FOLDER, free_shared_memory

    free = free_shared_memory()
    if free is None:
        return f"no {FOLDER} on this system"
    detail = f"{FOLDER}: {free // 2**20:,} MB free"
    if free // 2**20 < NEEDED_MB:
        detail += "; little for data.workers: docker run --shm-size=8g, or --set data.workers=0"
    return detail


def examine_machine(runs_dir: Path, threads: str) -> dict[str, Any]:
    """{"ok", "checks": [{"name", "ok", "detail"}], "environment"}; `detail` explains a failure.

    threads: the settings in force, in words.
    """
    tests: dict[str, Callable[[], str]] = {
        "torch": _torch,
        "threads": lambda: threads,
        "torchaudio": _torchaudio,
        "bf16": _bf16,
        "accelerate": _accelerate,
        "soundfile": _soundfile,
        "shared memory": _shared_memory,
        "runs directory": lambda: _writable(runs_dir),
    }
    checks = []
    for name, test in tests.items():
        try:
            checks.append({"name": name, "ok": True, "detail": test()})
        except Exception as error:  # any failure is a finding to report, not a crash
            checks.append({"name": name, "ok": False, "detail": ", caused by ".join(causes(error))})
    all_ok = all(check["ok"] for check in checks)
    return {"ok": all_ok, "checks": checks, "environment": environment()}


def show_examination(document: dict[str, Any], console: Console) -> None:
    """Print the result of `examine_machine` as a table and a line of versions."""
    passed, failed = ("[OK]", "[NO]") if console.ascii_only else ("✓", "✗")
    rows = [
        [passed if check["ok"] else failed, check["name"], check["detail"]]
        for check in document["checks"]
    ]
    console.table("", ["", "check", "detail"], rows)
    machine = document["environment"]
    packages = " ".join(f"{name} {version}" for name, version in machine["packages"].items())
    console.text(
        f"stagecli {machine['stagecli']}, python {machine['python']}, "
        f"{machine['platform']}; {packages}"
    )
