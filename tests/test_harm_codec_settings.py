"""Codecs that cannot be made, and memory that runs out before training, are one error each."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import Result, write_recipe

from stagecli.errors import EXIT_FAILED, EXIT_USAGE

Cli = Callable[..., Result]


@pytest.mark.parametrize(
    ("kind", "changes", "key"),
    [
        ("sr", {"codec__hop": 1}, "codec.hop"),
        ("sr", {"codec__hop": 63}, "codec.hop"),
        ("sr", {"codec__hop": 65536}, "codec.hop"),
        ("sr", {"codec__kind": "stft", "codec__hop": 64, "codec__n_fft": 100}, "codec.n_fft"),
        ("sr", {"codec__kind": "stft", "codec__hop": 63, "codec__n_fft": 256}, "codec.n_fft"),
        ("sr", {"codec__kind": "stft", "codec__hop": 64, "codec__n_fft": 257}, "codec.n_fft"),
        ("t2a", {"codec__f_min": 4000}, "codec.f_min"),
        ("t2a", {"codec__f_min": 3000, "codec__f_max": 2000}, "codec.f_min"),
    ],
)
def test_a_codec_that_cannot_be_made_is_told_at_its_line(
    kind: str, changes: dict[str, Any], key: str, cli: Cli, tmp_path: Path
) -> None:
    recipe = write_recipe(tmp_path / "r.toml", kind, **changes)
    result = cli("train", recipe, "--dry-run")
    assert result.code == EXIT_USAGE
    assert f"{key}: " in result.stderr and f"{recipe}:" in result.stderr
    assert result.stderr.count("error: ") == 1


@pytest.mark.parametrize(
    "error",
    [
        MemoryError("Unable to allocate 32 GiB"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
        RuntimeError("CUDA out of memory. Tried to allocate 9 bytes"),
    ],
)
def test_memory_that_runs_out_in_a_dry_run_is_one_error(
    error: Exception, cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(*_: object) -> None:
        raise error

    monkeypatch.setattr("stagecli.train.dry_run.load_frozen", failing)
    result = cli("train", write_recipe(tmp_path / "r.toml"), "--dry-run")
    assert result.code == EXIT_FAILED
    assert "error: there is not enough memory" in result.stderr
    assert str(error)[:20] in result.stderr and "Traceback" not in result.stderr
