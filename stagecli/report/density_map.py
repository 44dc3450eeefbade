"""The density of t over a run as a picture: steps across, t upwards."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

from stagecli.report.run_report import RunReport
from stagecli.stage import registry
from stagecli.stage.probe_columns import DensityCourse

STRETCHES = 40  # of the steps; more probes are averaged


@dataclass(frozen=True, kw_only=True)
class DensityMap:
    """edges: steps at which one stretch ends and the next begins; heights: [stretches][bins], the
    density in equal bins of t from 0 to 1; quantiles: label -> t in each stretch.
    """

    title: str
    edges: tuple[float, ...]
    heights: tuple[tuple[float, ...], ...]
    quantiles: dict[str, tuple[float, ...]]

    @classmethod
    def of(cls, course: DensityCourse, suffix: str = "") -> DensityMap:
        """The drawing of a run's densities, each from the probe before it to its own probe; suffix:
        of the title.
        """
        count = len(course.steps)
        size = min(STRETCHES, count)
        cuts = [round(k * count / size) for k in range(size + 1)]
        spans = list(pairwise(cuts))
        bins = len(course.shares[0])

        def mean(values: tuple[float, ...], start: int, end: int) -> float:
            return sum(values[start:end]) / (end - start)

        by_bin = list(zip(*course.shares, strict=True))
        return cls(
            title=f"{course.title}{suffix}",
            edges=(_start(course.steps), *(course.steps[end - 1] for end in cuts[1:])),
            heights=tuple(
                tuple(bins * mean(by_bin[k], start, end) for k in range(bins))
                for start, end in spans
            ),
            quantiles={
                f"{name.removeprefix('q')} %": tuple(mean(values, *span) for span in spans)
                for name, values in course.quantiles.items()
            },
        )


def density_course(report: RunReport) -> DensityCourse | None:
    """The densities that a run's probes recorded, or None."""
    for columns in registry.probe_columns().values():
        course = columns.density(report.probes)
        if course is not None:
            return course
    return None


def _start(steps: tuple[int, ...]) -> float:
    """Where the first density begins: as far before its probe as the second one, from 0 on."""
    spacing = steps[1] - steps[0] if len(steps) > 1 else max(1, steps[0])
    return max(min(0.0, steps[0] - 1.0), steps[0] - spacing)
