"""The signature of a recipe: two recipes with the same signature train the same model."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from stagecli.recipe.load import PATH_KEYS
from stagecli.schema import Recipe

UNSIGNED: dict[str, set[str] | None] = {
    "about": None,
    "evaluate": None,
    "data": {  # see data.json
        "path",
        "on_bad_file",
        "workers",
        "memory_mb",
        "remote_cache_gb",
        "cache_dir",
    },
    "train": {
        "steps",
        "accumulate",  # how a step is taken, not what it is
        "activation_checkpointing",
        "log_every",
        "checkpoint_every",
        "keep",
        "sample_every",
        "samples",
        "prompts",
        "validate_every",
        "validate_clips",
        "validate_t",
        "evaluate_every",
        "evaluate_clips",
        "evaluate_steps",
        "best",
        "report_to",
    },
}
"""Keys that decide how a run is watched or stored, not what is trained; None: the whole section."""


def flatten(recipe: Recipe) -> dict[str, Any]:
    """{"train.lr": 5e-4, ...}"""
    return dict(_walk("", recipe.model_dump(mode="json")))


def _walk(prefix: str, node: Any) -> Iterator[tuple[str, Any]]:
    if not isinstance(node, dict):
        yield prefix, node
        return
    for key, value in node.items():
        yield from _walk(f"{prefix}.{key}" if prefix else key, value)


def signed_keys(recipe: Recipe) -> dict[str, Any]:
    """The flattened keys that decide what is trained."""
    from stagecli.stage import registry

    paths = {".".join(key) for key in (*PATH_KEYS, *registry.path_keys(recipe.stage))}
    signed = {}
    for key, value in flatten(recipe).items():
        section, _, name = key.partition(".")
        unsigned = UNSIGNED.get(section, set())
        if unsigned is not None and name not in unsigned:
            signed[key] = portable_name(value) if key in paths else value
    return signed


def portable_name(value: Any) -> Any:
    """A path to a folder of a model as its last part, with the kind before it: folders move."""
    match = re.fullmatch(r"([\w-]+:)?([/~.].*)", value) if isinstance(value, str) else None
    return f"{match[1] or ''}{Path(match[2]).name}" if match else value


def signature(recipe: Recipe) -> str:
    """16 hex digits of a SHA-256 over `signed_keys`."""
    text = json.dumps(signed_keys(recipe), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
