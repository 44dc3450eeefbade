"""Keys of earlier versions: errors in a new recipe, but still read from finished runs."""

from __future__ import annotations

from typing import Any

from stagecli.recipe.toml_positions import Key

RENAMED: dict[Key, str] = {
    ("objective", "timesteps"): "density",
    ("evaluate", "guidance"): "cfg_scale",
    ("evaluate", "guidance_interval"): "cfg_interval",
}
"""Old key -> its new name in the same section."""

REMOVED: dict[Key, str] = {
    ("objective", "kind"): "rectified flow is the only objective",
}
"""Old key -> why it is no longer needed. Only keys that never had a second meaning belong here."""


def describe_old_key(key: Key) -> str | None:
    """What became of a key of an earlier version; None if there never was such a key."""
    if key in RENAMED:
        return f"this key is now called `{RENAMED[key]}`"
    if key in REMOVED:
        return f"this key is gone; delete it: {REMOVED[key]}"
    return None


def update_old_keys(tree: dict[str, Any]) -> None:
    """Rename and remove the old keys of a parsed recipe, in place."""
    for (section, old), new in RENAMED.items():
        options = tree.get(section)
        if isinstance(options, dict) and old in options:
            options[new] = options.pop(old)
    for section, old in REMOVED:
        options = tree.get(section)
        if isinstance(options, dict):
            options.pop(old, None)
