"""The estimate of memory leaves the process able to fork: loaders and tests do."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from conftest import write_recipe

PROGRAM = """
import os, sys, torch
from stagecli.recipe.load import load_recipe
from stagecli.train.memory import estimate_memory

estimate_memory(load_recipe(sys.argv[1]), frames=40, channels=16)
child = os.fork()
if child == 0:
    torch.ones(2, requires_grad=True).sum().backward()
    os._exit(0)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


def test_a_fork_after_the_estimate_can_train(tmp_path: Path) -> None:
    """In a process of its own: autograd decides once, at the first backward pass."""
    command = [sys.executable, "-c", PROGRAM, str(write_recipe(tmp_path / "t2a.toml"))]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
