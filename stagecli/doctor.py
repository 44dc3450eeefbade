"""`stagecli doctor`: can this machine train?"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from stagecli.runs.directory import environment, free_bytes
from stagecli.terminal.console import Console

NEEDED_MB = 500  # a checkpoint of a small model, samples and logs


def _torch() -> str:
    import torch

    names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    where = ", ".join(names) if names else f"no GPU, {os.cpu_count()} CPU cores"
    return f"{torch.__version__}; {where}"


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
        back, _ = soundfile.read(path, dtype="float32")
    if not np.array_equal(back, tone):
        raise RuntimeError("0.1 s of audio did not survive writing and reading")
    return f"{soundfile.__libsndfile_version__}, round trip exact"


def _writable(folder: Path) -> str:
    there = next(p for p in [folder.absolute(), *folder.absolute().parents] if p.exists())
    with tempfile.NamedTemporaryFile(dir=there):
        pass
    free = free_bytes(there) // 2**20
    if free < NEEDED_MB:
        raise RuntimeError(f"{free} MB free under {there}, {NEEDED_MB} MB needed")
    return f"{there}: {free:,} MB free"


def examine(runs_dir: Path) -> dict[str, Any]:
    """{"ok", "checks": [{"name", "ok", "detail"}], "environment"}; a failed check says why."""
    tests: dict[str, Callable[[], str]] = {
        "torch": _torch,
        "torchaudio": _torchaudio,
        "bf16": _bf16,
        "accelerate": _accelerate,
        "soundfile": _soundfile,
        "runs directory": lambda: _writable(runs_dir),
    }
    checks = []
    for name, test in tests.items():
        try:
            checks.append({"name": name, "ok": True, "detail": test()})
        except Exception as error:  # whatever is wrong with the machine is the answer, not a crash
            checks.append({"name": name, "ok": False, "detail": f"{type(error).__name__}: {error}"})
    return {"ok": all(c["ok"] for c in checks), "checks": checks, "environment": environment()}


def show(document: dict[str, Any], out: Console) -> None:
    yes, no = ("[OK]", "[NO]") if out.ascii_only else ("✓", "✗")
    rows = [[yes if c["ok"] else no, c["name"], c["detail"]] for c in document["checks"]]
    out.table("", ["", "check", "detail"], rows)
    facts = document["environment"]
    versions = " ".join(f"{k} {v}" for k, v in facts["packages"].items())
    out.text(
        f"stagecli {facts['stagecli']}, python {facts['python']}, {facts['platform']}; {versions}"
    )
