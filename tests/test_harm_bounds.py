"""Numbers, lists and text far outside what anybody means: one error with its place, or valid."""

from __future__ import annotations

import os
import re
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any, Union, get_args, get_origin

import pytest
from conftest import Result
from recipe_texts import SR, T2A, refuse, write

from stagecli.bounds import Range
from stagecli.errors import StageError
from stagecli.generate.prompts import read_prompts
from stagecli.recipe.load import load_recipe
from stagecli.schema import Recipe
from stagecli.schema.section import Section
from stagecli.stage import registry

Cli = Callable[..., Result]

# TOML text of values that no number may have, and of some that a few may have.
NUMBERS = (
    "inf",
    "nan",
    "-inf",
    "1" + "0" * 40,
    "-1",
    "true",
    '"12"',
    "1e300",
    "0xffffffffffffffffff",
)
LISTS = ("[]", "[" + "0.5, " * 100_000 + "]", "[nan]", "[true, true]", "[[[[1]]]]")
HUGE = "9" * 5000


def sections() -> Iterator[tuple[str, type[Section]]]:
    """(name, model) of every section of a recipe."""
    for name, field in Recipe.model_fields.items():
        if name != "stage":
            assert isinstance(field.annotation, type)
            yield name, field.annotation
    for name in registry.MECHANISMS:
        yield f"stage.{name}", registry.load(name).Options


def numbers_in(annotation: Any, metadata: tuple[Any, ...] = ()) -> Iterator[tuple[type, list[Any]]]:
    """(int or float, its metadata) for every number that an annotation allows."""
    origin = get_origin(annotation)
    if origin is Annotated:
        inner, *more = get_args(annotation)
        yield from numbers_in(inner, (*metadata, *more))
    elif origin in (Union, types.UnionType, tuple):
        for inner in get_args(annotation):
            yield from numbers_in(inner, metadata if origin is not tuple else ())
    elif annotation in (int, float):
        yield annotation, list(metadata)


def keys(kind: type) -> list[str]:
    """Keys of all sections whose annotation contains a number or, for tuple, a list."""
    names = []
    for section, model in sections():
        for name, field in model.model_fields.items():
            text = str(field.annotation)
            numeric = any(numbers_in(field.annotation))
            if numeric if kind is float else "tuple" in text:
                names.append(f"{section}.{name}")
    return names


def load_with(folder: Path, key: str, value: str) -> Recipe:
    """Load a small recipe in which one key has the value given as TOML text."""
    section, _, name = key.rpartition(".")
    text = SR if name in ("cutoff", "cutoffs", "filters", "orders") else T2A
    text = re.sub(rf"(?m)^{name} = .*\n", "", text)
    if f"[{section}]\n" in text:
        text = text.replace(f"[{section}]\n", f"[{section}]\n{name} = {value}\n")
    else:
        text += f"\n[{section}]\n{name} = {value}\n"
    if section.startswith("stage.") and section != "stage.regime":
        text += "\n[stage.regime]\n"
    return load_recipe(write(folder, text))


def is_refused(folder: Path, key: str, value: str) -> bool:
    """Whether a value is refused; asserts that the error is short and names its line."""
    refusal = None
    try:
        load_with(folder, key, value)
    except StageError as error:
        refusal = error
    if refusal is None:
        return False
    assert refusal.exit_code == 2
    assert len(str(refusal)) < 5000
    for problem in refusal.problems:
        assert re.search(r"recipe\.toml:\d+:\d+$", problem.where), problem
    return True


def test_every_number_and_list_of_a_recipe_has_bounds() -> None:
    for section, model in sections():
        for name, field in model.model_fields.items():
            if name == "layer":  # an encoder's layers, checked by a function
                continue
            for kind, metadata in numbers_in(field.annotation, tuple(field.metadata)):
                assert any(isinstance(item, Range) for item in metadata), (section, name, kind)
            if "tuple" in str(field.annotation):
                assert "Length(" in f"{field.annotation} {field.metadata}", (section, name)


@pytest.mark.parametrize("key", keys(float))
def test_a_number_that_nobody_means_is_refused_where_it_stands(key: str, tmp_path: Path) -> None:
    refused = {value for value in NUMBERS if is_refused(tmp_path, key, value)}
    assert refused >= {*NUMBERS} - {"-1", '"12"'}


@pytest.mark.parametrize("key", keys(tuple))
def test_a_list_that_nobody_means_is_refused_where_it_stands(key: str, tmp_path: Path) -> None:
    refused = {value for value in LISTS if is_refused(tmp_path, key, value)}
    assert refused >= {*LISTS[1:]}


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("data.seconds=inf", "data.seconds: must be a number from 0.05 to 3,600, got inf"),
        ("data.seconds=1e9", "data.seconds: must be a number from 0.05 to 3,600, got 1000000000.0"),
        ("model.mlp_ratio=inf", "model.mlp_ratio: must be a number from 0.1 to 64, got inf"),
        ("train.betas=[0.9, 1]", "train.betas.1: must be a number at least 0 and below 1, got 1"),
        ("train.betas=[0.9]", "train.betas: must be a list of 2 items, got [0.9]"),
        (
            "train.steps=true",
            "train.steps: must be a whole number from 1 to 1,000,000,000, got True",
        ),
        ("train.steps=1.5", "train.steps: must be a whole number from 1 to 1,000,000,000, got 1.5"),
        ("train.seed=-1", "train.seed: must be a whole number from 0 to 2^63 - 1, got -1"),
        (f"train.seed=1{'0' * 40}", "2^63 - 1, got an integer of about 40 digits"),
        (f"train.seed=0x{'f' * 9000}", "got an integer of about 10,837 digits"),
        (f"train.seed={HUGE}", "has an integer of thousands of digits"),
        ("train.validate_t=[]", "train.validate_t: must be a list of 1 to 100 items, got []"),
        ("condition.filters=[]", "condition.filters: must be a list of 1 to 100 items, got []"),
        ("evaluate.cutoffs=[]", "evaluate.cutoffs: must be a list of 1 to 100 items, got []"),
        ("evaluate.cutoffs=[nan]", "cutoffs.0: must be a number from 1 to 192,000, got nan"),
        ("train.bins=100_000_000", "train.bins: must be a whole number from 1 to 1,000, got 1000"),
        ("codec.n_fft=100_000_000", "codec.n_fft: must be a whole number from 2 to 65,536, got 1"),
        ("data.sample_rate=2147483647", "must be a whole number from 1,000 to 384,000, got 2147"),
        ("train.best=" + '"' + "x" * 5000 + '"', "is too long: 4,000 characters at most, got 'xx"),
        ('data.path="a\\u0000b"', "must be text without control characters, got 'a\\x00b'"),
        ("data.path=\udcff", "must be UTF-8 text, got '\\udcff'"),
        ("condition.width=12", "condition.width: must be a multiple of 8: four heads"),
        ("train=3", "train: must be a section, got 3"),
        ("train.compile=3", "train.compile: input should be 'none', 'blocks' or 'step', got 3"),
        ('stage.regime.layer="last"', 'must be whole numbers from -1,000 to 1,000, or "mean", got'),
        (f"about.summary={'[' * 20}{']' * 20}", "nests values more than 16 deep"),
        (f"about.summary={'[' * 50_000}{']' * 50_000}", "nests values more than 16 deep"),
        (f"x={{{'a.' * 60_000}a=1}}", "has a key of more than 16 parts"),
        (f"{'a.' * 60_000}a=1", "has a key of more than 16 parts"),
    ],
)
def test_an_override_that_nobody_means_is_told_its_range(
    flag: str, message: str, tmp_path: Path
) -> None:
    text = SR if "cutoffs" in flag or "filters" in flag else T2A
    error = refuse(write(tmp_path, text), [flag])
    assert len(error.problems) == 1
    assert error.problems[0].where.startswith(f"--set {flag[:200]}")
    assert message in error.problems[0].what
    assert len(str(error)) < 1000


# --- files that are no recipes --------------------------------------------------------------------

NO_RECIPES = {
    "arrays": (b"x = " + b"[" * 100_000 + b"]" * 100_000, "nests values more than 16 deep"),
    "tables": (b"x = " + b"{a=" * 900 + b"1" + b"}" * 900, "nests values more than 16 deep"),
    "key": (b"\n" + b"a." * 400_000 + b"a = 1", "has a key of more than 16 parts"),
    "header": (b"[" + b'"".' * 300_000 + b"a]", "has a key of more than 16 parts"),
    "inline": (b"x = {" + b"a." * 400_000 + b"a = 1}", "has a key of more than 16 parts"),
    "digits": (b"\nx = " + b"1" * 5000, "has an integer of thousands of digits"),
    "large": (b"#" * 1_000_001, "is larger than 1,000,000 bytes"),
    "latin-1": (b"\n# caf\xe9", "is not UTF-8 in line 2"),
}


@pytest.mark.parametrize("name", NO_RECIPES)
def test_a_file_that_is_no_recipe_is_one_error(name: str, tmp_path: Path) -> None:
    content, message = NO_RECIPES[name]
    path = tmp_path / "recipe.toml"
    path.write_bytes(content)
    error = refuse(path)
    assert [problem.what for problem in error.problems] == [message]
    assert error.problems[0].where.startswith(str(path))
    child = write(tmp_path, 'extends = "recipe.toml"', "child.toml")
    assert refuse(child).problems == error.problems


def test_a_sparse_file_of_a_terabyte_is_refused_at_once(tmp_path: Path) -> None:
    path = tmp_path / "recipe.toml"
    with path.open("wb") as file:
        file.truncate(2**40)
    assert "is larger than 1,000,000 bytes" in refuse(path).problems[0].what


def test_devices_pipes_folders_and_impossible_names_are_no_recipes(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe.toml"
    os.mkfifo(pipe)
    assert "is not a regular file" in refuse(pipe).problems[0].what
    assert "is not a regular file" in refuse("/dev/zero").problems[0].what
    assert "is a folder" in refuse(tmp_path).problems[0].what
    for name in ("x" * 5000, "a\0b", "\udcff"):
        assert "no such" in refuse(name).problems[0].what


def test_sixty_thousand_unknown_keys_are_reported_in_part(tmp_path: Path) -> None:
    path = write(tmp_path, T2A + "".join(f"k{i} = 1\n" for i in range(60_000)))
    error = refuse(path)
    assert "at least 50 problems" in error.message
    assert len(error.problems) == 50


# --- flags, terminals, prompts --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("command", "flag", "value", "allowed"),
    [
        ("sample", "--seed", "-1", "from 0 to 2^63 - 1, got -1"),
        ("sample", "--seed", str(2**63), "from 0 to 2^63 - 1, got 9223372036854775808"),
        ("sample", "--seconds", "inf", "from 0.05 to 3,600, got inf"),
        ("sample", "--seconds", "nan", "from 0.05 to 3,600, got nan"),
        ("sample", "--cutoff", "nan", "from 1 to 192,000, got nan"),
        ("sample", "--steps", "1000000000", "from 1 to 10,000, got 1000000000"),
        ("sample", "--cfg-scale", "nan", "from 0 to 1,000, got nan"),
        ("evaluate", "--seed", "-1", "from 0 to 2^63 - 1, got -1"),
        ("evaluate", "--cutoff", "inf", "from 1 to 192,000, got inf"),
        ("evaluate", "--samples", "1", "from 2 to 1,000,000, got 1"),
        ("evaluate", "--samples", "9" * 400, "from 2 to 1,000,000, got 9999"),
        ("inspect-regime", "--every", "nan", "from 0.1 to 3,600, got nan"),
        ("inspect-regime", "--every", "0", "from 0.1 to 3,600, got 0"),
    ],
)
def test_a_flag_that_nobody_means_is_told_its_range(
    command: str, flag: str, value: str, allowed: str, cli: Cli
) -> None:
    result = cli(command, "no-run", flag, value)
    assert result.code == 2
    assert result.stdout == ""
    assert f"error: {flag}: must be a number {allowed}" in result.stderr
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize("columns", ["0", "-5", "1", "abc", "9" * 30, "9" * 5000])
def test_a_terminal_of_no_width_still_shows_everything(columns: str, cli: Cli) -> None:
    result = cli("recipes", "list", env={"COLUMNS": columns, "LINES": columns})
    assert result.code == 0
    assert "quickstart" in result.stdout
    assert max(map(len, result.stdout.splitlines())) <= 80


LONG = "x" * 300
FOLDERS = "y/" * 3000


@pytest.mark.parametrize("name", [LONG, FOLDERS])
@pytest.mark.parametrize(
    "command",
    [
        "train {0}",
        "train t2a.toml --name {0}",
        "train t2a.toml --runs-dir {0}",
        "train t2a.toml --dry-run --set data.source=folder --set data.path={0}",
        "train t2a.toml --dry-run --set data.source=manifest --set data.path={0}",
        "train t2a.toml --dry-run --set stage.regime.monitor=transformers:{0}",
        "inspect-regime {0}",
        "evaluate {0}",
        "evaluate --task t2a --reference {0} --generated {0}",
        "sample {0} -p a",
        "recipes copy quickstart {0}",
    ],
)
def test_a_name_that_no_file_can_have_is_one_error(
    name: str, command: str, t2a_recipe: Callable[..., Path], cli: Cli
) -> None:
    t2a_recipe()
    result = cli(*command.format(name).split())
    assert result.code == 2
    assert result.stderr.count("error: ") == 1
    assert "Traceback" not in result.stderr


PROMPTS = {
    "deep.jsonl": (b'{"prompt": "a"}\n' + b"[" * 100_000 + b"]" * 100_000, "deep.jsonl:2"),
    "digits.jsonl": (b'{"prompt": ' + b"1" * 5000 + b"}", "digits.jsonl:1"),
    "null.jsonl": (b'{"caption": null}', "null.jsonl:1"),
    "number.jsonl": (b'{"prompt": 3}', "number.jsonl:1"),
    "large.txt": (b"a" * 10_000_001, "is larger than 10,000,000 bytes"),
    "latin-1.txt": (b"bell\ncaf\xe9", "latin-1.txt:2  is not UTF-8"),
}


@pytest.mark.parametrize("name", PROMPTS)
def test_a_file_that_holds_no_prompts_is_one_error(name: str, tmp_path: Path) -> None:
    content, message = PROMPTS[name]
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(StageError) as caught:
        read_prompts(path)
    assert message in str(caught.value)
    assert len(str(caught.value)) < 1000


def test_devices_and_pipes_hold_no_prompts(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe.txt"
    os.mkfifo(pipe)
    for path in (pipe, Path("/dev/zero"), tmp_path):
        with pytest.raises(StageError, match=r"is not a regular file|is a folder"):
            read_prompts(path)


# --- memory ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "size", [{"model__width": 512}, {"condition__width": 512}, {"train__batch_size": 65536}]
)
def test_what_needs_many_times_the_memory_is_refused_before_it_is_taken(
    size: dict[str, int],
    t2a_recipe: Callable[..., Path],
    cli: Cli,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sysconf = os.sysconf
    monkeypatch.setattr(
        os, "sysconf", lambda name: {"SC_PHYS_PAGES": 256}.get(name) or sysconf(name)
    )
    result = cli("train", t2a_recipe(**size))
    assert result.code == 2
    assert "error: training needs at least " in result.stderr
    assert "choose a smaller model or batch_size" in result.stderr
    plan = cli("train", t2a_recipe(**size), "--dry-run")
    assert "not measured: this batch does not fit" in plan.stdout
