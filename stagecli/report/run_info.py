"""Reads run.json, which may be damaged or hand-made: fields of the right type, and what is wrong.

The one reader of the file: the report uses what it returns, and whoever writes to the run or takes
its weights refuses it where anything is wrong.
"""

from __future__ import annotations

import reprlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from stagecli.files import JsonRow, opened
from stagecli.report.rows import LARGEST_STEP, decode_json

__all__ = ["SCHEMA", "read_info_file"]

SCHEMA = 1

Test = Callable[[object], bool]


def _text(value: object) -> bool:
    return isinstance(value, str)


def _texts(value: object) -> bool:
    return isinstance(value, list) and all(map(_text, value))


def _step(value: object) -> bool:
    return type(value) is int and 0 <= value <= LARGEST_STEP


def _texts_by_name(value: object) -> bool:
    return isinstance(value, dict) and all(map(_text, value.values()))


def _number(value: object) -> bool:
    return type(value) in (int, float)


def _or_null(test: Test) -> Test:
    return lambda value: value is None or test(value)


def _best(value: object) -> bool:
    return (
        isinstance(value, dict)
        and _step(value.get("step"))
        and _number(value.get("value"))
        and _text(value.get("metric", ""))
    )


FIELDS: Mapping[str, Test] = {
    "schema": _step,
    "id": _text,
    "name": _text,
    "task": lambda value: value in ("t2a", "sr"),
    "status": _text,
    "steps": _step,
    "parameters": _or_null(_step),
    "version": _or_null(_text),
    "signature": _text,
    "argv": _texts,
    "set": _texts,
    "git": _or_null(_text),
    "created": _or_null(_text),
    "attempts": lambda value: isinstance(value, list),
    "best": _or_null(_best),
    "message": _or_null(_text),
}
ATTEMPT: Mapping[str, Test] = {
    "attempt": _step,
    "from_step": _step,
    "started": _or_null(_text),
    "ended": _or_null(_text),
    "status": _text,
    "argv": _texts,
    "pid": _step,
    "trackers": _texts_by_name,
}


def read_info_file(path: Path) -> tuple[JsonRow, list[str]]:
    """(the usable fields of run.json at `path`, each problem as `run.json: ...`).

    Fields of a wrong type and entries that are no attempts are left out; unknown fields are kept. A
    wrong checksum is a problem of its own, and the checksum is not returned.
    Raises OSError, FileNotFoundError included.
    """
    try:
        value = decode_json(path.read_bytes().decode("utf-8"))
    except UnicodeDecodeError as error:
        return {}, [f"{path.name}:1: not UTF-8 text (byte {error.start})"]
    except ValueError as error:
        line = getattr(error, "lineno", 1)
        return {}, [f"{path.name}:{line}: not readable ({getattr(error, 'msg', error)})"]
    if not isinstance(value, dict):
        return {}, [f"{path.name}:1: not an object"]
    content, changed = opened(value)
    problems = [f"{path.name}: {changed}"] if changed else []
    info = _checked(content, FIELDS, path.name, problems)
    attempts = []
    for number, entry in enumerate(info.get("attempts", []), 1):
        where = f"{path.name}: attempt {number}"
        if not isinstance(entry, dict):
            problems.append(f"{where}: not an object")
        elif "attempt" not in entry:
            problems.append(f"{where}: has no number")
        else:
            attempts.append(_checked(entry, ATTEMPT, where, problems))
    if "attempts" in info:
        info["attempts"] = attempts
    return info, problems


def _checked(
    value: JsonRow, fields: Mapping[str, Test], where: str, problems: list[str]
) -> dict[str, Any]:
    """The fields of `value` whose type is right; the others are added to `problems`."""
    kept = {}
    for key, content in value.items():
        if fields.get(key, _anything)(content):
            kept[key] = content
        else:
            problems.append(f"{where}: `{key}` cannot be {reprlib.repr(content)}")
    return kept


def _anything(value: object) -> bool:
    return True
