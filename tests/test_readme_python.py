"""The Python lines of README and docs/python.md run as they stand."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
from cli_results import noise

from stagecli.data.audio import write_wav

ROOT = Path(__file__).parent.parent


def python_blocks(page: str) -> list[str]:
    text = (ROOT / page).read_text(encoding="utf-8")
    return re.findall(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize(
    ("page", "written"),
    [("README.md", ["bell.wav"]), ("docs/python.md", ["clips/0000.wav", "full.wav"])],
)
def test_the_lines_run(
    page: str, written: list[str], trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One block after the other, in a folder with the runs that they name."""
    for task, name in (("t2a", "quickstart"), ("sr", "quickstart-sr")):
        shutil.copytree(trained / "runs" / task, tmp_path / "runs" / name)
    write_wav(tmp_path / "low.wav", noise(0.5, 8000), 8000)
    monkeypatch.chdir(tmp_path)
    blocks = python_blocks(page)
    assert blocks, "no Python lines"
    names: dict[str, object] = {}
    for block in blocks:
        exec(block, names)
    for path in written:
        assert (tmp_path / path).stat().st_size > 1000
