"""`stagecli export`: the EMA weights of a run with all that generating needs, in one folder."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from stagecli import __version__
from stagecli.codec import load_first_codec_state
from stagecli.errors import Problem, StageError
from stagecli.export.card import Facts, data_report, measured_scores, model_card
from stagecli.export.portable import network_files, portable_recipe
from stagecli.files import JsonRow, json_line, sealed
from stagecli.generate.pipeline import Pipeline, load_pipeline
from stagecli.generate.trained import Trained, locate
from stagecli.hub.exports import hub_client, push_export
from stagecli.model.network import count_parameters
from stagecli.recipe.dump import dump_recipe
from stagecli.runs.directory import is_run
from stagecli.runs.exports import CARD, CODEC, INFO, RECIPE, SCHEMA, WEIGHTS
from stagecli.runs.integrity import SUMS, sums_text
from stagecli.targets import Target, plan_targets, write_target

PIECE = 1 << 22  # bytes that are copied at once
Content = str | Path
"""Of a file of the export: text, or the file that it is a copy of."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """The flags of `export`; hub: ORG/NAME to push to, or None; licence: its id on the hub."""

    checkpoint: str = "latest"
    force: bool = False
    licence: str = "unknown"
    hub: str | None = None
    private: bool = False


def export(
    source: str | Path, folder: Path, options: Options, *, warn: Callable[[str], None]
) -> JsonRow:
    """Export one checkpoint of a run to `folder`, and push it where asked to.

    Returns what was written: `folder`, `step`, `files`, `bytes` and `address`. Raises StageError,
    before anything is written where it shows by then.
    """
    # Everything that can be wrong; loading the model shows whether it will load elsewhere.
    client = hub_client(options.hub) if options.hub else None
    home = locate(source)
    _refuse_folder(folder, home)
    pipeline, trained = load_pipeline(
        home, options.checkpoint, warn=warn, device=torch.device("cpu")
    )
    contents = _contents(pipeline, trained, folder, options, warn)
    names = [*contents, SUMS]
    plan_targets(
        [Target(folder / name, f"the export of {home}") for name in names],
        inputs=[trained.home, trained.path],
        force=options.force,
        make_folders=True,
    )

    # The files; the one that makes the folder an export comes last.
    info = contents.pop(INFO)
    for name, content in contents.items():
        _write(folder / name, content, options.force)
    summed = [name for name in contents if name != CARD]  # the card may be edited
    _write(folder / INFO, info, options.force)
    _write(folder / SUMS, sums_text(folder, [*summed, INFO]), options.force)
    result: JsonRow = {
        "folder": str(folder),
        "step": trained.step,
        "files": len(names),
        "bytes": sum((folder / name).stat().st_size for name in names),
        "address": None,
    }
    if client is not None and options.hub is not None:
        result["address"] = push_export(client, folder, options.hub, names, private=options.private)
    return result


def _refuse_folder(folder: Path, home: Path) -> None:
    """Raise StageError where an export would lie in a run, or be the one that is read."""
    here = folder.expanduser().resolve()
    if is_run(folder) or here == home.resolve() or here.is_relative_to(home.resolve()):
        raise StageError(
            f"{folder} cannot hold an export",
            problems=[Problem(str(folder), "is a run, or lies in what is exported")],
            hint="name a folder of its own",
        )


def _contents(
    pipeline: Pipeline,
    trained: Trained,
    folder: Path,
    options: Options,
    warn: Callable[[str], None],
) -> dict[str, Content]:
    """The files of the export by name, but for the sums."""
    # What the model needs.
    recipe, networks = portable_recipe(trained.recipe)
    codec, _ = load_first_codec_state(pipeline.codec, trained.codecs)
    assert codec is not None  # loading the pipeline needed it
    name = str(trained.info.get("name") or trained.home.name)
    parameters = count_parameters(pipeline.network)
    copies: dict[str, Content] = {
        f"{network}/{file.name}": file
        for network, place in networks.items()
        for file in network_files(place)
    }

    # What describes it.
    facts = Facts(
        name=name,
        address=options.hub or folder.name,
        recipe=recipe,
        step=trained.step,
        parameters=parameters,
        licence=options.licence,
        data=data_report(trained.home),
        scores=measured_scores(trained.home, trained.name, name, warn),
    )
    info = {
        "schema": SCHEMA,
        "id": trained.info.get("id"),
        "name": name,
        "task": recipe.task.kind,
        "step": trained.step,
        "parameters": parameters,
        "version": __version__,
    }
    return {
        WEIGHTS: trained.path / WEIGHTS,
        CODEC: codec,
        RECIPE: dump_recipe(recipe),
        **copies,
        CARD: model_card(facts),
        INFO: json_line(sealed(info)),
    }


def _write(path: Path, content: Content, force: bool) -> None:
    write_target(path, _pieces(content) if isinstance(content, Path) else content, force=force)


def _pieces(file: Path) -> Iterator[bytes]:
    with file.open("rb") as opened:
        while piece := opened.read(PIECE):
            yield piece
