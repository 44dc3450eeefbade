"""`train.prompts`: the same prompts at every set of samples."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from cli_results import Cli, document

PROMPTS = ["a deep bell", "rain, then \u96e8"]


def test_every_set_of_samples_has_the_prompts(
    cli: Cli, t2a_recipe: Callable[..., Path], tmp_path: Path
) -> None:
    recipe = t2a_recipe(train__prompts=PROMPTS, train__samples=0, train__sample_every=5)
    assert cli("train", recipe).code == 0
    sets = sorted((tmp_path / "runs" / "t2a" / "samples").iterdir())
    assert [folder.name for folder in sets] == ["step_00000005", "step_00000010"]
    for folder in sets:
        rows = [json.loads(line) for line in (folder / "samples.jsonl").read_text().splitlines()]
        assert [row["prompt"] for row in rows] == PROMPTS
        assert all((folder / row["path"]).is_file() for row in rows)

    # They decide what is heard, not what is trained.
    other = t2a_recipe("other", train__sample_every=5)
    signatures = {
        document(cli("recipes", "check", path, "--json"))["signature"] for path in (recipe, other)
    }
    assert len(signatures) == 1


def test_prompts_that_cannot_be_used(cli: Cli, sr_recipe: Callable[..., Path]) -> None:
    wrong_task = cli("train", sr_recipe(train__prompts=PROMPTS), "--dry-run")
    assert wrong_task.code == 2 and "train.prompts: applies to t2a only" in wrong_task.stderr
    no_text = cli("train", sr_recipe(), "--set", 'train.prompts=["a\\u0007"]', "--dry-run")
    assert no_text.code == 2 and "control characters" in no_text.stderr
    no_list = cli("train", sr_recipe(), "--set", "train.prompts=bell", "--dry-run")
    assert no_list.code == 2 and "must be a list" in no_list.stderr
