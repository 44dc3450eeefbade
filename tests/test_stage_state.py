"""State of the mechanisms in a checkpoint: it belongs to one set of mechanisms."""

from __future__ import annotations

from typing import Any

import pytest

from stagecli.errors import StageError
from stagecli.schema import Recipe
from stagecli.stage.controller import Stages

REGIME: dict[str, Any] = {"regime": {"source": "linear"}}
BOTH: dict[str, Any] = {**REGIME, "timesteps": {"kind": "uniform"}}


def stages(sections: dict[str, Any]) -> Stages:
    recipe = {
        "task": {"kind": "t2a"},
        "data": {"sample_rate": 8000, "seconds": 0.4},
        "codec": {"kind": "mel"},
        "train": {"steps": 10},
        "stage": sections,
    }
    return Stages.of(Recipe.model_validate(recipe))


@pytest.mark.parametrize("sections", [{}, REGIME, BOTH])
def test_the_state_of_the_same_mechanisms_is_loaded(sections: dict[str, Any]) -> None:
    saved = stages(sections).state_dict()
    assert set(saved) == set(sections)
    stages(sections).load_state_dict(saved)


@pytest.mark.parametrize(("saved", "loaded"), [(REGIME, BOTH), (BOTH, REGIME), (REGIME, {})])
def test_the_state_of_other_mechanisms_is_refused(
    saved: dict[str, Any], loaded: dict[str, Any]
) -> None:
    with pytest.raises(StageError) as caught:
        stages(loaded).load_state_dict(stages(saved).state_dict())
    assert caught.value.hint
    for name in saved:
        assert name in str(caught.value)
