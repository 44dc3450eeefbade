"""Keys of earlier versions: errors in a new recipe, but still read from finished runs."""

from __future__ import annotations

from typing import Any

from stagecli.recipe.toml_positions import Key
from stagecli.stage import registry

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


SWITCHES: dict[Key, dict[bool, str]] = {
    ("train", "compile"): {True: "blocks", False: "none"},
}
"""Key that was true or false -> what these are called now."""


def describe_old_key(key: Key) -> str | None:
    """What became of a key of an earlier version; None if there never was such a key."""
    if key in RENAMED:
        return f"this key is now called `{RENAMED[key]}`"
    reason = REMOVED.get(key)
    if reason is None and len(key) == 3:
        section, name, option = key
        reason = registry.removed_options(name).get(option) if section == "stage" else None
    return None if reason is None else f"this key is gone; delete it: {reason}"


def describe_old_value(key: Key, value: object) -> str | None:
    """What became of a value that a key could have; None if there never was one."""
    if isinstance(value, bool) and key in SWITCHES:
        return f'this is now "{SWITCHES[key][value]}"'
    if not isinstance(value, str) or len(key) != 3 or key[0] != "stage":
        return None
    _, name, option = key
    instead = registry.removed_values(name).get((option, value))
    return None if instead is None else f"`{value}` is gone: {instead}"


def update_old_keys(tree: dict[str, Any]) -> None:
    """Rename and remove the old keys of a parsed recipe, in place.

    A mechanism's option with an old value is left out, so that it has its default. One that the run
    was trained without gets the value that repeats the earlier version.
    """
    for (section, old), new in RENAMED.items():
        options = tree.get(section)
        if isinstance(options, dict) and old in options:
            options[new] = options.pop(old)
    for section, old in REMOVED:
        options = tree.get(section)
        if isinstance(options, dict):
            options.pop(old, None)
    for (section, key), values in SWITCHES.items():
        options = tree.get(section)
        if isinstance(options, dict):
            value = options.get(key)
            if isinstance(value, bool):
                options[key] = values[value]
    stage = tree.get("stage")
    for name, options in stage.items() if isinstance(stage, dict) else ():
        if isinstance(options, dict):
            _update_options(options, name)


def _update_options(options: dict[str, Any], mechanism: str) -> None:
    for option in registry.removed_options(mechanism):
        options.pop(option, None)
    for option, value in registry.removed_values(mechanism):
        if options.get(option) == value:
            del options[option]
    for option, value in registry.earlier_values(mechanism).items():
        options.setdefault(option, value)
