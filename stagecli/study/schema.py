"""Every key of a study file: one pydantic model per section. No torch."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from stagecli import bounds
from stagecli.bounds import Length, Range
from stagecli.files import name_problem
from stagecli.schema.section import Positive, SamplerSteps, Section, Seed

NAME = r"^[A-Za-z0-9._-]+$"
Seeds = Annotated[tuple[Seed, ...], Length(1, 100)]


class Score(Section):
    """`[score]`: what is scored, and how."""

    steps: Annotated[tuple[Positive, ...], Length(1, 100)]
    """Steps whose checkpoints are scored, in rising order; the last is `train.steps`."""
    split: Literal["valid", "test"] = "test"
    """Split of the clips that samples are compared with."""
    clips: Annotated[int, bounds.SCORED_CLIPS] = 100
    """Clips per score; fewer where the split has fewer."""
    sampler_steps: SamplerSteps = 10
    """Sampler steps."""
    strengths: Annotated[tuple[Annotated[float, Range(0, 1000)], ...], Length(0, 20)] = ()
    """Scales of classifier-free guidance (t2a); default: `evaluate.cfg_scale`."""
    primary: str = ""
    """Score that decides; default: `kad` (t2a) or `lsd` (sr)."""


class ArmSection(Section):
    """`[arms.NAME]`: one variant of the recipe."""

    summary: str = ""
    """One line about the arm."""
    seeds: Seeds | None = None
    """Seeds of this arm; default: those of the study."""
    set: dict[str, Any] = Field(default_factory=dict)
    """Recipe keys of this arm, as `"train.lr" = 1e-4`."""


class StudyFile(Section):
    """A complete description of a study."""

    name: str = Field(pattern=NAME)
    """Name of the study, and of its folder."""
    recipe: str
    """The recipe of all arms: a path relative to this file, or the name of a shipped one."""
    seeds: Seeds = (0, 1, 2)
    """Seeds of every arm that has none of its own."""
    baseline: str
    """The arm that all are compared with."""
    against: Annotated[tuple[str, ...], Length(0, 100)] = ()
    """Further arms that every adaptive arm is compared with."""
    score: Score
    set: dict[str, Any] = Field(default_factory=dict)
    """Recipe keys of all arms."""
    arms: dict[str, dict[str, Any]]
    """The arms by name; each is an `ArmSection`."""

    @field_validator("name")
    @classmethod
    def check_name(cls, name: str) -> str:
        """It becomes the name of a folder."""
        problem = name_problem(name)
        if problem:
            raise ValueError(f"the name of a study {problem}")
        return name
