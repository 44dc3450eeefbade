"""All mechanisms by the name of their `[stage.NAME]` section, and what they declare. No torch.

A new mechanism is one line here. Functions that take a `stage` argument expect the `[stage.*]`
sections of a recipe, by name; they import the modules of those mechanisms only.
"""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from stagecli.errors import Problem, StageError
from stagecli.stage.probe_columns import ProbeColumns

if TYPE_CHECKING:  # reading a run needs the names below, but not pydantic
    from stagecli.stage.options import MechanismOptions, Role

# Name -> "module:class", in the order in which plans are folded.
MECHANISMS: dict[str, str] = {
    "regime": "stagecli.stage.regime:RegimeMechanism",
    "guidance": "stagecli.stage.guidance:GuidanceMechanism",
    "timesteps": "stagecli.stage.timesteps:TimestepsMechanism",
    "structure": "stagecli.stage.structure:StructureMechanism",
}
# The mechanism that measures r. It comes first, because the others read `Plan.r`.
REGIME = "regime"
# Name -> "module:object" of what reads a mechanism's own columns of probes.jsonl for a report. No
# torch.
PROBE_COLUMNS: dict[str, str] = {
    "structure": "stagecli.stage.structure_columns:COLUMNS",
    "timesteps": "stagecli.stage.timesteps_columns:COLUMNS",
}


@dataclass(frozen=True)
class EncoderUse:
    """An SSL encoder that steers training. key: the recipe's key that names it, such as
    `stage.a.teacher`.
    """

    key: str
    encoder: str
    role: Role


def load(name: str) -> Any:
    """The class of a mechanism."""
    return _imported(MECHANISMS[name])


def options(name: str, section: Mapping[str, Any]) -> MechanismOptions:
    """The section `[stage.NAME]` with its defaults. Raises pydantic's ValidationError."""
    return load(name).Options.model_validate(dict(section))


def unknown(name: str) -> str | None:
    """The problem with the name of a mechanism, or None if there is a mechanism of that name."""
    if name in MECHANISMS:
        return None
    near = difflib.get_close_matches(name, MECHANISMS, n=1)
    if near:
        return f"no such mechanism; did you mean `{near[0]}`?"
    return f"no such mechanism; there are: {', '.join(MECHANISMS)}"


def removed_options(name: str) -> Mapping[str, str]:
    """Options of earlier versions of a mechanism -> why they are gone."""
    return load(name).Options.removed if name in MECHANISMS else {}


def removed_values(name: str) -> Mapping[tuple[str, str], str]:
    """(option, value) of earlier versions of a mechanism -> what to use instead."""
    return load(name).Options.removed_values if name in MECHANISMS else {}


def earlier_values(name: str) -> Mapping[str, Any]:
    """Options that earlier versions of a mechanism lacked -> the value that repeats them."""
    return load(name).Options.earlier if name in MECHANISMS else {}


def path_keys(stage: object) -> list[tuple[str, str, str]]:
    """Keys ("stage", name, option) that may hold `${VAR}`, of sections that were not checked yet.

    Names that no mechanism has are left out, and so is a `stage` that is not a mapping.
    """
    if not isinstance(stage, Mapping):
        return []
    return [
        ("stage", name, option)
        for name in stage
        if name in MECHANISMS
        for option in load(name).Options.paths
    ]


def encoders(stage: Mapping[str, Mapping[str, Any]]) -> list[EncoderUse]:
    """SSL encoders that the mechanisms of valid sections use, in the order of the sections."""
    uses = []
    for name, section in stage.items():
        chosen = options(name, section)
        values = chosen.model_dump()
        uses += [
            EncoderUse(f"stage.{name}.{option}", values[option], role)
            for option, role in chosen.encoders().items()
        ]
    return uses


def adapts_density(stage: Mapping[str, Mapping[str, Any]]) -> bool:
    """Whether a mechanism of valid sections lets the density of t follow a measurement."""
    return any(options(name, section).adapts_density() for name, section in stage.items())


def check_needs(chosen: Mapping[str, MechanismOptions]) -> None:
    """Refuse mechanisms that need the regime in a recipe that does not measure it.

    chosen: name -> options of the recipe's mechanisms. Raises StageError that lists all of them.
    """
    if REGIME in chosen:
        return
    needs = {name: need for name, one in chosen.items() if (need := one.regime_need()) is not None}
    if not needs:
        return
    problems = []
    for name, need in needs.items():
        key = f"stage.{name}.{need.option}" if need.option else f"stage.{name}"
        problems.append(Problem(key, need.reason))
    sections = " and ".join(f"[stage.{name}]" for name in needs)
    verb = "needs" if len(needs) == 1 else "need"
    ways = [f'add [stage.{REGIME}] (source = "linear" costs least)']
    ways += dict.fromkeys(need.alternative for need in needs.values() if need.alternative)
    raise StageError(
        f"{sections} {verb} [stage.{REGIME}], which measures where training is",
        problems=problems,
        hint=", or ".join(ways),
    )


def probe_columns() -> dict[str, ProbeColumns]:
    """Name -> reader of the columns that this mechanism adds to probes.jsonl."""
    return {name: _imported(target) for name, target in PROBE_COLUMNS.items()}


def _imported(target: str) -> Any:
    module, _, name = target.partition(":")
    return getattr(importlib.import_module(module), name)
