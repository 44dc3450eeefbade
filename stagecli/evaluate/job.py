"""One checkpoint of a run to be scored, and the scores of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from stagecli.data.cache import Progress
from stagecli.data.rows import Clip
from stagecli.data.source import Source
from stagecli.evaluate.chosen import chosen_metrics
from stagecli.evaluate.embed import ClipEmbeddings
from stagecli.evaluate.flags import Flags
from stagecli.files import JsonRow
from stagecli.generate.pipeline import Pipeline, SamplerSettings
from stagecli.schema import Recipe

ScoresByClip = dict[str, dict[str, float]]
"""{clip: {metric: value}}"""


@dataclass(frozen=True, kw_only=True)
class Job:
    """A checkpoint and the clips to score it on, with the flags resolved against the recipe.

    evals_dir: folder of the results in the run; stem: how names of files in it begin.
    identity: distinguishes the weights from those of every other checkpoint.
    head: first keys of the document; settings: everything that the scores depend on.
    warn: prints a line and keeps it in the document; note: prints a line.
    """

    flags: Flags
    pipeline: Pipeline
    source: Source
    clips: Sequence[Clip]
    seed: int
    sampling: SamplerSettings
    evals_dir: Path
    stem: str
    identity: JsonRow
    head: JsonRow
    settings: JsonRow
    progress: Progress
    warn: Callable[[str], None]
    note: Callable[[str], None]

    @property
    def recipe(self) -> Recipe:
        return self.pipeline.recipe

    @property
    def metrics(self) -> list[str]:
        """Names of the metrics to compute."""
        return chosen_metrics(self.flags, self.recipe.task.kind)


@dataclass(frozen=True, kw_only=True)
class Scores:
    """The scores of one job.

    rows, conventions: as in the document. head, settings: additions to those of the job.
    files: a row per clip of sr. by_clip: scores of single clips, by cutoff ("2000 Hz") for sr and
    under "samples" for t2a.
    reference, samples: embeddings of t2a, from which differences of two systems are computed.
    """

    rows: list[JsonRow]
    conventions: dict[str, str]
    settings: JsonRow
    by_clip: dict[str, ScoresByClip]
    head: JsonRow = field(default_factory=dict)
    files: list[JsonRow] = field(default_factory=list)
    reference: ClipEmbeddings | None = None
    samples: ClipEmbeddings | None = None
