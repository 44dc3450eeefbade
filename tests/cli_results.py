"""What the tests of the command line share."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
from conftest import Result

Cli = Callable[..., Result]


def document(result: Result) -> Any:
    """The JSON document on stdout; fails if the command failed or printed anything else there."""
    assert result.code == 0, result.stderr
    assert "Traceback" not in result.stderr
    return json.loads(result.stdout)


def noise(seconds: float, rate: int, seed: int = 0) -> np.ndarray:
    generator = np.random.default_rng(seed)
    return (0.1 * generator.standard_normal(int(seconds * rate))).astype(np.float32)
