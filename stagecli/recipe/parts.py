"""The encoders, codecs and packages that a recipe names: which of them are not there.

As far as it shows without loading them; `train` loads each before it looks at the data.
"""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec

from stagecli.hub.folder import local_problem
from stagecli.recipe.toml_positions import Key
from stagecli.schema import Recipe
from stagecli.ssl import name_problem


def find_missing_parts(recipe: Recipe) -> Iterator[tuple[Key, str]]:
    """(key, what is wrong) for every named part that cannot be had; `[stage.*]` must be valid."""
    from stagecli.data.lossy import missing_codecs  # NumPy, which listing recipes does not need
    from stagecli.stage import registry

    # SSL encoders.
    encoders = [(use.key, use.encoder) for use in registry.encoders(recipe.stage)]
    for key, name in (*encoders, ("evaluate.judge", recipe.evaluate.judge)):
        problem = name_problem(name)
        if problem is not None:
            yield tuple(key.split(".")), problem

    # Other checkpoints, where they are used.
    codec = recipe.codec
    checkpoints = [
        (("codec", "model"), codec.model if codec.kind in ("dac", "encodec") else None),
        (("codec", "vocoder"), codec.vocoder if codec.kind == "mel" else None),
        (
            ("condition", "model"),
            recipe.condition.model if recipe.condition.text == "transformers" else None,
        ),
    ]
    for place, source in checkpoints:
        problem = local_problem(source) if source else None
        if problem is not None:
            yield place, problem

    # Codecs that the installed libsndfile may lack.
    missing = missing_codecs() if recipe.augment.lossy else []
    if missing:
        yield (
            ("augment", "lossy"),
            f"the installed libsndfile cannot write {' and '.join(missing)}: "
            "pip install --upgrade soundfile, or set it to 0",
        )

    # Packages of an extra.
    if "://" in recipe.data.path and find_spec("fsspec") is None:
        yield ("data", "path"), "needs the package `fsspec`: pip install 'stagecli[remote]'"
    if recipe.data.source == "huggingface" and find_spec("datasets") is None:
        yield (
            ("data", "source"),
            "needs the package `datasets`: pip install 'stagecli[datasets]'",
        )
    for name in dict.fromkeys(recipe.train.report_to):
        if not is_installed(name):
            yield ("train", "report_to"), f"needs the package `{name}`: pip install {name}"


def is_installed(package: str) -> bool:
    """Whether a package can be imported; a folder of its name, as wandb leaves, is none."""
    spec = find_spec(package)
    return spec is not None and spec.origin is not None
