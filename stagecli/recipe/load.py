"""TOML -> typed recipe: `--set`, every problem at once with its line, TOML out, signature.

Precedence: defaults < recipe < `--set`. No environment overrides; `${VAR}` stands for itself only
in the path-like keys of `PATH_KEYS` and those that mechanisms declare; an unset one is an error.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import os
import re
import tomllib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from stagecli.errors import Problem, StageError
from stagecli.metrics.in_training import refusal
from stagecli.recipe.toml_positions import Position, positions, split_key
from stagecli.schema import Recipe

PATH_KEYS = (
    ("data", "path"),
    ("data", "cache_dir"),
    ("codec", "model"),
    ("codec", "vocoder"),
    ("condition", "model"),
    ("evaluate", "judge"),
)
# Keys that change how a run is watched or where things lie, not what is trained.
UNSIGNED = {
    "about": None,
    "evaluate": None,
    "data": {"workers", "memory_mb", "cache_dir"},
    "train": {
        *("steps", "log_every", "checkpoint_every", "keep", "sample_every", "samples"),
        *("validate_every", "validate_clips", "validate_t"),
        *("evaluate_every", "evaluate_clips", "evaluate_steps", "best"),
    },
}
Key = tuple[str, ...]
# Keys of earlier versions: refused in a recipe with the new name, read as the new key in a finished run.
RENAMED: dict[Key, str] = {
    ("objective", "timesteps"): "density",
    ("evaluate", "guidance"): "cfg_scale",
    ("evaluate", "guidance_interval"): "cfg_interval",
}
# Required keys, and values of theirs that contradict nothing.
STAND_INS: dict[tuple[str, str], Any] = {
    ("task", "kind"): "t2a",
    ("data", "sample_rate"): 384_000,
    ("data", "seconds"): 1.0,
    ("codec", "kind"): "mel",
    ("train", "steps"): 1,
}
TASK_KEYS = {
    ("condition", "cutoff"),
    ("condition", "text"),
    ("codec", "kind"),
    ("evaluate", "cutoffs"),
}


def shipped() -> dict[str, Path]:
    """Name -> path of every recipe that ships with the package."""
    inside = Path(__file__).parents[1] / "_recipes"  # in a wheel
    folder = inside if inside.is_dir() else Path(__file__).parents[2] / "recipes"
    return {path.stem: path for path in sorted(folder.glob("*.toml"))}


def find(reference: str) -> Path:
    """A path, or the name of a shipped recipe -> path. Raises StageError with the nearest name."""
    path = Path(reference)
    if path.is_file():
        return path
    names = shipped()
    if reference in names:
        return names[reference]
    near = difflib.get_close_matches(path.stem, names, n=1)
    hint = (
        f"did you mean `{near[0]}`?" if near else "`stagecli recipes list` shows the shipped ones"
    )
    what = (
        "no such recipe file"
        if path.suffix == ".toml"
        else "no such file and no shipped recipe of that name"
    )
    raise StageError(
        f"recipe not found: {reference}", problems=[Problem(reference, what)], hint=hint
    )


def load(reference: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read, override and check a recipe. Raises one StageError that lists every problem."""
    path = find(str(reference))
    try:
        source = path.read_text(encoding="utf-8")
        tree = tomllib.loads(source)
    except (OSError, UnicodeDecodeError) as error:
        raise StageError(
            f"cannot read recipe {path}", problems=[Problem(str(path), str(error))]
        ) from error
    except tomllib.TOMLDecodeError as error:
        where, what = _syntax(path, str(error))
        raise StageError(f"{path} is not valid TOML", problems=[Problem(where, what)]) from error
    return _check(tree, path, positions(source), overrides)


def load_from_run(path: Path) -> Recipe:
    """The recipe that a run saved, this version's or an earlier one's. Raises StageError."""
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    try:
        tree = tomllib.loads(text)
    except tomllib.TOMLDecodeError:
        tree = {}
    if not any(name in tree.get(table, {}) for table, name in RENAMED):
        return load(path)
    for (table, name), new in RENAMED.items():
        if name in tree.get(table, {}):
            tree[table][new] = tree[table].pop(name)
    return _check(tree, path, {}, ())


def _syntax(path: Path, message: str) -> tuple[str, str]:
    match = re.search(r"^(.*) \(at line (\d+), column (\d+)\)$", message)
    return (f"{path}:{match[2]}:{match[3]}", match[1]) if match else (str(path), message)


def _parse_override(text: str) -> tuple[Key, Any]:
    """`train.lr=1e-4` -> (("train", "lr"), 1e-4); a bare word is a string."""
    key, equals, value = text.partition("=")
    if not equals:
        raise ValueError("needs the form key=VALUE")
    path = split_key(key.strip())
    try:
        return path, tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        return path, value.strip()


def _check(
    tree: dict[str, Any], path: Path, where: dict[Key, Position], overrides: Sequence[str]
) -> Recipe:
    problems: list[Problem] = []
    flags: dict[Key, str] = {}
    for text in overrides:
        try:
            key, value = _parse_override(text)
        except ValueError as error:
            problems.append(Problem(f"--set {text}", str(error)))
            continue
        flags[key] = text
        node = tree
        for part in key[:-1]:
            node = node.setdefault(part, {})
            if not isinstance(node, dict):
                problems.append(Problem(f"--set {text}", f"`{part}` is not a table"))
                break
        else:
            node[key[-1]] = value

    def place(key: Key) -> tuple[str, str | None]:
        for length in range(len(key), 0, -1):
            if key[:length] in flags:
                return f"--set {flags[key[:length]]}", None
            if key[:length] in where:
                position = where[key[:length]]
                return f"{path}:{position.line}:{position.column}", position.text
            for flag, text in flags.items():  # a table that only a flag mentions
                if flag[:length] == key[:length]:
                    return f"--set {text}", None
        return f"{path}:1:1", None

    def report(key: Key, what: str) -> None:
        spot, excerpt = place(key)
        problems.append(Problem(spot, f"{'.'.join(key)}: {what}", excerpt))

    for key, what in _expand_paths(tree):
        report(key, what)
    recipe: Recipe | None = None
    refused: set[Key] = set()
    try:
        recipe = Recipe.model_validate(tree)
    except ValidationError as error:
        for key, what in _explain(error):
            report(key, what)
        # What stands without the refused keys is checked too, so that all problems come at once.
        refused = {tuple(map(str, e["loc"])) for e in error.errors()}
        recipe = _without(tree, refused)
    if recipe is not None:
        for key, what in _contradictions(recipe):
            if key not in refused and not (("task", "kind") in refused and key in TASK_KEYS):
                report(key, what)
    if problems:
        count = f"{len(problems)} problem" + ("s" if len(problems) > 1 else "")
        problems.sort(key=lambda p: int(p.where.split(":")[-2]) if p.excerpt is not None else 0)
        hint = "`stagecli recipes show quickstart` lists every key with its meaning"
        raise StageError(f"{path} has {count}", problems=problems, hint=hint)
    assert recipe is not None
    return _with_stage_defaults(recipe)


def _with_stage_defaults(recipe: Recipe) -> Recipe:
    """Every default of the `[stage.*]` tables written out, as those of the other tables are."""
    if not recipe.stage:
        return recipe
    from stagecli.stage import registry

    full = {name: registry.options(name, recipe.stage[name]).model_dump() for name in recipe.stage}
    return recipe.model_copy(update={"stage": full})


def _expand_paths(tree: dict[str, Any]) -> Iterator[tuple[Key, str]]:
    from stagecli.stage import registry

    for *tables, name in (*PATH_KEYS, *registry.path_keys(tree.get("stage"))):
        node: Any = tree
        for table in tables:
            node = node.get(table) if isinstance(node, dict) else None
        value = node.get(name) if isinstance(node, dict) else None
        if not isinstance(value, str):
            continue
        for variable in re.findall(r"\$\{(\w+)\}", value):
            if variable in os.environ:
                value = value.replace(f"${{{variable}}}", os.environ[variable])
            else:
                yield (*tables, name), f"environment variable {variable} is not set"
        node[name] = value


def _table_fields(key: Key) -> list[str]:
    """Field names of the table that holds `key`."""
    model: type[BaseModel] = Recipe
    for part in key[:-1]:
        field = model.model_fields.get(part)
        if field is None or not (
            isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel)
        ):
            return []
        model = field.annotation
    return list(model.model_fields)


def _explain(
    error: ValidationError, fields: Sequence[str] | None = None
) -> Iterator[tuple[Key, str]]:
    """(key, what is wrong); fields: names of the table, where it is not one of the recipe's own."""
    for item in error.errors():
        key = tuple(str(part) for part in item["loc"])
        kind = item["type"]
        message = item["msg"]
        if kind == "extra_forbidden" and key in RENAMED:
            yield key, f"this key is now called `{RENAMED[key]}`"
        elif kind == "extra_forbidden":
            near = difflib.get_close_matches(key[-1], fields or _table_fields(key), n=1, cutoff=0.5)
            yield key, "unknown key" + (f"; did you mean `{near[0]}`?" if near else "")
        elif kind == "missing":
            yield key, "required, and missing"
        else:
            text = message.removeprefix("Value error, ")
            text = text[:1].lower() + text[1:]
            given = item["input"]
            if kind == "literal_error" and isinstance(given, str):
                options = re.findall(r"'([^']+)'", message)
                near = difflib.get_close_matches(given, options, n=1)
                text += f"; did you mean `{near[0]}`?" if near else ""
            yield key, text if isinstance(given, dict) else f"{text}, got {given!r}"


def _without(tree: dict[str, Any], refused: set[Key]) -> Recipe | None:
    """The recipe without the refused keys, with stand-ins for what is then required and missing."""
    tree = json.loads(json.dumps(tree, default=str))
    for key in refused:
        node: Any = tree
        for part, nxt in zip(key, (*key[1:], ""), strict=True):
            inner = node.get(part)
            if not nxt or not isinstance(inner, dict):  # an item of a list takes its key along
                node.pop(part, None)
                break
            node = inner
    for (table, name), value in STAND_INS.items():
        if isinstance(tree.setdefault(table, {}), dict):
            tree[table].setdefault(name, value)
    try:
        return Recipe.model_validate(tree)
    except ValidationError:
        return None


def _contradictions(recipe: Recipe) -> Iterator[tuple[Key, str]]:
    """What no single field can see."""
    task = recipe.task
    data = recipe.data
    codec = recipe.codec
    condition = recipe.condition
    train = recipe.train
    nyquist = data.sample_rate / 2
    if task.kind == "sr":
        if condition.cutoff is None:
            yield ("condition", "cutoff"), "required for sr: the range of low-pass cutoffs in Hz"
        elif not condition.cutoff[0] <= condition.cutoff[1] < nyquist:
            yield (
                ("condition", "cutoff"),
                f"must rise and stay below half the sample rate ({nyquist:g} Hz)",
            )
        if codec.kind not in ("mdct", "stft"):
            yield ("codec", "kind"), f"sr needs a lossless codec (mdct or stft), got {codec.kind!r}"
        for cutoff in recipe.evaluate.cutoffs:
            if cutoff >= nyquist:
                yield (
                    ("evaluate", "cutoffs"),
                    f"{cutoff:g} Hz is not below half the sample rate ({nyquist:g} Hz)",
                )
        if condition.orders[0] > condition.orders[1]:
            yield ("condition", "orders"), "must rise"
    else:
        if condition.text == "none":
            yield ("condition", "text"), "t2a needs a text encoder: `bytes` or `transformers`"
        if condition.cutoff is not None:
            yield ("condition", "cutoff"), "is for sr only"
    if condition.text == "transformers" and not condition.model:
        yield ("condition", "model"), "required: hub id or folder of the text encoder"
    if codec.kind in ("dac", "encodec") and not codec.model:
        yield ("codec", "model"), f"required for {codec.kind}: hub id or folder"
    if data.source != "synth" and not data.path:
        yield ("data", "path"), f"required for source {data.source!r}"
    if codec.f_max is not None and codec.f_max > nyquist:
        yield ("codec", "f_max"), f"is above half the sample rate ({nyquist:g} Hz)"
    if codec.kind in ("mel", "stft") and codec.n_fft < codec.hop:
        yield ("codec", "n_fft"), f"must be at least the hop ({codec.hop})"
    if train.batch_size % train.accumulate:
        yield ("train", "batch_size"), f"must be a multiple of accumulate ({train.accumulate})"
    if what := refusal(recipe):
        yield ("train", "best"), what
    low, high = recipe.evaluate.cfg_interval
    if low > high:
        yield ("evaluate", "cfg_interval"), "must rise"
    for name, table in recipe.stage.items():
        from stagecli.stage import registry

        what = registry.unknown(name)
        if what is not None:
            yield ("stage", name), what
            continue
        try:
            registry.options(name, table)
        except ValidationError as error:
            fields = list(registry.load(name).Options.model_fields)
            yield from ((("stage", name, *key), what) for key, what in _explain(error, fields))


def _literal(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace(
            "\x7f", "\\u007f"
        )  # JSON allows it bare, TOML doesn't
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(_literal(v) for v in value) + "]"
    return repr(value)


def dump(recipe: Recipe) -> str:
    """The resolved recipe as TOML, every default written out; itself a valid recipe."""
    lines: list[str] = []
    for table, body in recipe.model_dump().items():
        groups = (
            {f"stage.{name}": options for name, options in body.items()}
            if table == "stage"
            else {table: body}
        )
        for name, values in groups.items():
            lines += [
                f"[{name}]",
                *(f"{k} = {_literal(v)}" for k, v in values.items() if v is not None),
                "",
            ]
    return "\n".join(lines)


def flat(recipe: Recipe) -> dict[str, Any]:
    """`{"train.lr": 5e-4, ...}`"""

    def walk(prefix: str, node: Any) -> Iterator[tuple[str, Any]]:
        if isinstance(node, dict):
            for key, value in node.items():
                yield from walk(f"{prefix}.{key}" if prefix else key, value)
        else:
            yield prefix, node

    return dict(walk("", recipe.model_dump(mode="json")))


def signed(recipe: Recipe) -> dict[str, Any]:
    """The keys that decide what is trained."""
    kept = {}
    for key, value in flat(recipe).items():
        table, _, name = key.partition(".")
        skip = UNSIGNED.get(table, set())
        if skip is None or name in skip:
            continue
        kept[key] = value
    return kept


def signature(recipe: Recipe) -> str:
    """Hash of `signed`: two recipes with the same signature train the same thing."""
    return hashlib.sha256(json.dumps(signed(recipe), sort_keys=True).encode()).hexdigest()[:16]


def describe(table: str) -> dict[str, str]:
    """Field -> documentation of one table, for `recipes show`."""
    model: Any = None
    if table.startswith("stage."):
        from stagecli.stage import registry

        model = registry.load(table.removeprefix("stage.")).Options
    elif table in Recipe.model_fields:
        model = Recipe.model_fields[table].annotation
    if not (isinstance(model, type) and issubclass(model, BaseModel)):
        return {}
    return {name: field.description or "" for name, field in model.model_fields.items()}


def about(path: Path) -> dict[str, str]:
    """The `[about]` table of a recipe file, unchecked."""
    table = tomllib.loads(path.read_text(encoding="utf-8")).get("about", {})
    return {"summary": table.get("summary", ""), "needs": table.get("needs", ""), "path": str(path)}


def annotated(recipe: Recipe) -> str:
    """`dump` with each field's documentation above it."""
    lines: list[str] = []
    fields: dict[str, str] = {}
    for line in dump(recipe).split("\n"):  # splitlines would also break at what a string may hold
        if line.startswith("["):
            fields = describe(line.strip("[]"))
        key = line.split(" = ")[0]
        if " = " in line and fields.get(key):
            lines.append(f"# {' '.join(fields[key].split())}")
        lines.append(line)
    return "\n".join(lines)
