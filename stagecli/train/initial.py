"""Fine-tuning: a new run that starts from the weights of another (`train.init`), and parameters
that stay as they are (`train.freeze`).

Only the EMA weights are taken: they are what was validated, sampled and chosen as best, and the
optimiser's moments, which belong to the weights of the last step, are not needed. A resume reads
neither: everything is in the run's own checkpoints.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path

import torch
from torch import Tensor, nn

from stagecli.errors import Problem, StageError, counted
from stagecli.files import JsonRow
from stagecli.generate.trained import Trained, find_trained, locate
from stagecli.model.network import count_parameters, meta_network
from stagecli.recipe.signature import portable_name
from stagecli.runs import checkpoint
from stagecli.runs.directory import Notice, Run
from stagecli.runs.exports import WEIGHTS
from stagecli.runs.integrity import sum_of
from stagecli.schema import Recipe
from stagecli.train.encoders import Frozen

NAMED = 8  # tensors that a sentence names; events list all
NOT_IN_STATISTICS = ("iterations", "vocoder")  # keys of [codec] that decide how frames become audio


@dataclass(frozen=True, kw_only=True)
class Init:
    """The model that a run starts from.

    source: as in the recipe; checksum: SHA-256 of its weights; weights: by parameter.
    """

    source: str
    trained: Trained
    checksum: str
    weights: Mapping[str, Tensor]

    def record(self) -> JsonRow:
        """What run.json keeps of it."""
        name = str(self.trained.info.get("name") or self.trained.home.name)
        return {"name": name, "step": self.trained.step, "sha256": self.checksum}


@dataclass(frozen=True, kw_only=True)
class Match:
    """Names of parameters: taken over, of another shape there, not there, and there alone."""

    loaded: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    new: list[str] = field(default_factory=list)
    unused: list[str] = field(default_factory=list)


def open_init(recipe: Recipe, runs_dir: Path, run: Run | None = None) -> Init | None:
    """Read the model that a new run of a recipe starts from; None where it starts from nothing.

    runs_dir: where the name of a run is looked for; run: keeps a record of it. Raises StageError
    where there is none, it is damaged, or it is not the one that the run has recorded.
    """
    source = recipe.train.init
    if not source:
        return None
    try:
        trained = find_trained(locate(source, runs_dir))
    except StageError as error:
        problems = [Problem("train.init", error.message), *error.problems]
        raise StageError(
            f"cannot start from {source}",
            problems=problems,
            hint=error.hint,
            exit_code=error.exit_code,
        ) from error
    init = Init(
        source=source,
        trained=trained,
        checksum=sum_of(trained.path / WEIGHTS),
        weights=checkpoint.load_weights(trained.path),
    )
    if run is not None:
        record_init(init, run)
    return init


def record_init(init: Init, run: Run) -> None:
    """Keep in run.json what the run starts from.

    Raises StageError where that has changed since the run was started, which has no checkpoint yet.
    """
    record = init.record()
    before = run.info.get("init")
    if before is not None and run.info["attempts"] and before != record:
        raise StageError(
            f"{init.source} is not what this run was started from",
            problems=[Problem("train.init", f"was {_shown(before)}, is {_shown(record)}")],
            hint="bring it back, or start over with --restart",
        )
    run.save_info(init=record)


def _shown(record: object) -> str:
    values = record if isinstance(record, dict) else {}
    return f"step {values.get('step')} with checksum {str(values.get('sha256'))[:12]}"


# -- weights ---------------------------------------------------------------------------------------


def match_weights(network: nn.Module, init: Init) -> Match:
    """Which parameters of a network the model has; the network may be on the meta device.

    Raises StageError where it has none of them.
    """
    match = Match()
    own = dict(network.named_parameters())
    for name, parameter in own.items():
        if name not in init.weights:
            match.new.append(name)
        elif init.weights[name].shape != parameter.shape:
            match.skipped.append(name)
        else:
            match.loaded.append(name)
    match.unused.extend(name for name in init.weights if name not in own)
    if not match.loaded:
        raise StageError(
            f"{init.source} has no weights that fit this model",
            problems=[
                Problem("train.init", f"all {len(own)} parameters are missing or of another shape")
            ],
            hint="give [model] the size of the model that was trained there",
        )
    return match


@torch.no_grad()
def start_from(network: nn.Module, init: Init) -> Notice:
    """Give the network the weights that fit; returns what the events record about it."""
    match = match_weights(network, init)
    for name, parameter in network.named_parameters():
        if name in match.loaded:
            parameter.copy_(init.weights[name])
    parts = {
        "loaded": in_parts(match.loaded, network),
        "skipped": match.skipped,
        "new": in_parts(match.new, network),
        "unused": match.unused,
    }
    return Notice("fine-tuning", sentence(init, match, network), {**init.record(), **parts})


def sentence(init: Init, match: Match, network: nn.Module) -> str:
    """What was taken from where, and what was not."""
    total = len(match.loaded) + len(match.skipped) + len(match.new)
    text = (
        f"starts from the EMA weights of {init.source}, step {init.trained.step}: "
        f"{len(match.loaded)} of {counted(total, 'tensor')} loaded"
    )
    for names, what in (
        (match.skipped, "of another shape there, newly initialised"),
        (match.new, "not there, newly initialised"),
        (match.unused, "there but not in this model"),
    ):
        if names:
            text += f"; {len(names)} {what} ({_listed(in_parts(names, network))})"
    return text


def _listed(names: Sequence[str]) -> str:
    more = ", ..." if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + more


def check_fine_tuning(
    recipe: Recipe, frozen: Frozen, init: Init | None
) -> tuple[list[Path], list[Notice]]:
    """(copies of codec statistics to start with, events), before any work on the data.

    Raises StageError where the weights or the patterns of frozen parameters do not fit the model.
    """
    network = meta_network(recipe, channels=frozen.codec.channels, text_width=frozen.text_width)
    freeze(network, recipe.train.freeze)
    if init is None:
        return [], []
    match_weights(network, init)
    copies, notice = inherited_statistics(recipe, init)
    return copies, [notice]


def fine_tune(
    network: nn.Module, recipe: Recipe, init: Init | None, run: Run | None = None
) -> list[Notice]:
    """Give the network the weights it starts from and freeze what stays.

    init: None in a resume, whose weights come from its checkpoint; run: records the events, which
    are returned. Raises StageError.
    """
    notices = []
    if init is not None:
        notices.append(start_from(network, init))
    stays = freeze(network, recipe.train.freeze)
    if stays is not None:
        notices.append(stays)
    if run is not None:
        run.notices += notices
    return notices


def in_parts(names: Sequence[str], network: nn.Module) -> list[str]:
    """Names of parameters, those of a whole part of the network as one pattern."""
    whole: dict[str, set[str]] = {}
    for name, _ in network.named_parameters():
        whole.setdefault(part_of(name), set()).add(name)
    there = set(names)
    return list(
        dict.fromkeys(
            part_of(name) if whole.get(part_of(name), {""}) <= there else name for name in names
        )
    )


def part_of(name: str) -> str:
    """The pattern of the part of a network that a parameter is in: `bytes.*`, `dit.blocks.0.*`."""
    words = name.split(".")
    length = 1
    if words[0] == "dit":
        length = 3 if words[1] == "blocks" else 2
    return f"{'.'.join(words[:length])}.*"


# -- the codec's statistics ------------------------------------------------------------------------


def inherited_statistics(recipe: Recipe, init: Init) -> tuple[list[Path], Notice]:
    """(copies of the statistics to start with, the event about them); none for another codec."""
    source = init.trained.recipe
    own = _codec_keys(recipe)
    theirs = _codec_keys(source)
    changed = [f"{key} {theirs[key]!r} -> {own[key]!r}" for key in own if own[key] != theirs[key]]
    if not changed:
        reason = f"those of {init.source}, which its weights expect"
        return list(init.trained.codecs), Notice("codec statistics", reason)
    reason = f"computed on this run's data: not the codec of {init.source} ({', '.join(changed)})"
    return [], Notice("codec statistics", reason)


def _codec_keys(recipe: Recipe) -> JsonRow:
    """The keys that the frames depend on."""
    options = recipe.codec.model_dump(mode="json", exclude=set(NOT_IN_STATISTICS))
    keys = {f"codec.{key}": portable_name(value) for key, value in options.items()}
    return {**keys, "data.sample_rate": recipe.data.sample_rate}


# -- parameters that stay --------------------------------------------------------------------------


def freeze(network: nn.Module, patterns: Sequence[str]) -> Notice | None:
    """Keep the parameters that match a pattern (`*` for any text) from being trained.

    Returns what the events record; None where there is no pattern. Raises StageError for patterns
    that match nothing, and where nothing is left to train.
    """
    if not patterns:
        return None

    # What the patterns match.
    parameters = dict(network.named_parameters())
    matches = {
        pattern: [name for name in parameters if fnmatchcase(name, pattern)] for pattern in patterns
    }
    unknown = [pattern for pattern, names in matches.items() if not names]
    if unknown:
        raise StageError(
            "train.freeze has patterns that match no parameter",
            problems=[Problem("train.freeze", f"{pattern!r} matches none") for pattern in unknown],
            hint=f"parameters of this model: {', '.join(in_parts(list(parameters), network))}",
        )
    matched = {name for names in matches.values() for name in names}
    frozen = [name for name in parameters if name in matched]
    if len(frozen) == len(parameters):
        raise StageError(
            "train.freeze leaves nothing to train",
            problems=[Problem("train.freeze", f"{list(patterns)} match every parameter")],
            hint="leave a part out of it",
        )

    # They stay.
    for name in frozen:
        parameters[name].requires_grad_(False)
    count = sum(parameters[name].numel() for name in frozen)
    reason = (
        f"{count:,} of {count_parameters(network):,} parameters stay as they are "
        f"({', '.join(patterns)})"
    )
    return Notice("frozen", reason, {"parameters": in_parts(frozen, network)})
