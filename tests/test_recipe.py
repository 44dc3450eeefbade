"""Recipes: every mistake at once with its place, overrides, contradictions, TOML out and in, positions."""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stagecli.errors import EXIT_USAGE, StageError
from stagecli.recipe import load as recipes
from stagecli.recipe.toml_positions import positions, split_key
from stagecli.schema import Recipe

T2A = """\
[task]
kind = "t2a"

[data]
sample_rate = 16000
seconds = 1.0

[codec]
kind = "mel"

[condition]
text = "bytes"

[train]
steps = 10
"""
SR = """\
[task]
kind = "sr"
[data]
sample_rate = 16000
seconds = 1.0
[codec]
kind = "mdct"
[condition]
cutoff = [1000, 4000]
[train]
steps = 10
"""
SHIPPED = sorted(recipes.shipped().values())


def written(folder: Path, text: str) -> Path:
    path = folder / "recipe.toml"
    path.write_text(text, encoding="utf-8")
    return path


def refused(path: Path | str, sets: Sequence[str] = ()) -> StageError:
    with pytest.raises(StageError) as caught:
        recipes.load(path, sets)
    assert caught.value.exit_code == EXIT_USAGE
    return caught.value


def places(error: StageError) -> dict[str, str]:
    """where -> what; fails if two problems share a place."""
    assert len({p.where for p in error.problems}) == len(error.problems)
    return {p.where: p.what for p in error.problems}


# --- mistakes -------------------------------------------------------------------------------------


def test_every_mistake_is_reported_at_once_with_its_place(tmp_path: Path) -> None:
    text = T2A.replace("sample_rate", "sample_rat").replace(
        "steps = 10", 'steps = "many"\n  lrr = 1'
    )
    path = written(tmp_path, text.replace('kind = "mel"', 'kind = "mell"'))
    error = refused(path)
    found = places(error)
    assert error.message == f"{path} has {len(found)} problems"
    assert found[f"{path}:5:1"] == "data.sample_rat: unknown key; did you mean `sample_rate`?"
    assert "data.sample_rate: required, and missing" in found[f"{path}:4:1"]
    assert found[f"{path}:9:1"].startswith("codec.kind: ")
    assert "did you mean `mel`?" in found[f"{path}:9:1"]
    assert found[f"{path}:15:1"].startswith("train.steps: ")
    assert found[f"{path}:15:1"].endswith("got 'many'")
    assert found[f"{path}:16:3"].startswith("train.lrr: unknown key")
    assert "did you mean `lr`?" in found[f"{path}:16:3"]
    assert len(found) == 5
    excerpts = {p.where: p.excerpt for p in error.problems}
    assert excerpts[f"{path}:16:3"] == "  lrr = 1"
    assert "recipes show" in (error.hint or "")


def test_syntax_error_has_line_and_column(tmp_path: Path) -> None:
    path = written(tmp_path, T2A.replace("steps = 10", "steps = = 10"))
    error = refused(path)
    assert "not valid TOML" in error.message
    assert [p.where for p in error.problems] == [f"{path}:15:9"]


def test_a_file_that_is_not_utf8_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "recipe.toml"
    path.write_bytes(b'[task]\nkind = "\xff"\n')
    assert [p.where for p in refused(path).problems] == [str(path)]


@pytest.mark.parametrize(
    ("header", "hint"),
    [("[trian]\nx = 1", "`train`"), ("[stages.guidance]\nx = 1", "`stage`"), ("[zzz]", None)],
)
def test_unknown_table(tmp_path: Path, header: str, hint: str | None) -> None:
    path = written(tmp_path, f"{T2A}\n{header}\n")
    found = places(refused(path))
    line = len(T2A.splitlines()) + 2
    what = found.pop(f"{path}:{line}:1")
    assert not found
    assert "unknown key" in what
    assert ("did you mean" in what) == (hint is not None)
    assert hint is None or hint in what


def test_a_missing_table_and_a_value_in_place_of_a_table(tmp_path: Path) -> None:
    path = written(
        tmp_path,
        "train = 3\n" + T2A.replace("[train]\nsteps = 10\n", "").replace("[task]\nkind", "#"),
    )
    what = {p.what.split(":")[0]: p.where for p in refused(path).problems}
    assert what["task"] == f"{path}:1:1"
    assert what["train"] == f"{path}:1:1"


def test_find_by_name_and_nearest_name(tmp_path: Path) -> None:
    assert recipes.find("quickstart") == recipes.shipped()["quickstart"]
    assert "`quickstart`" in (refused("quickstrt").hint or "")
    assert "`quickstart`" in (refused(str(tmp_path / "quickstar.toml")).hint or "")
    assert "recipes list" in (refused("xyzzy").hint or "")


# --- --set ----------------------------------------------------------------------------------------


def test_overrides_come_before_the_file_and_the_last_one_wins(tmp_path: Path) -> None:
    path = written(tmp_path, T2A + "lr = 0.5\n")
    assert recipes.load(path).train.lr == 0.5
    assert (
        recipes.load(path).train.batch_size
        == Recipe.model_fields["train"].annotation(steps=1).batch_size
    )
    found = recipes.load(
        path, ["train.lr=0.25", "train.lr = 1e-4", "about.summary=plain words", "data.workers=0"]
    )
    assert found.train.lr == 1e-4
    assert found.about.summary == "plain words"
    assert found.data.workers == 0


def test_bare_words_are_strings_and_toml_values_are_toml(tmp_path: Path) -> None:
    path = written(tmp_path, SR)
    flags = [
        "train.schedule=wsd",
        'train.precision="bf16"',
        "condition.cutoff=[500, 700.5]",
        "train.compile=true",
    ]
    found = recipes.load(path, flags)
    assert (found.train.schedule, found.train.precision, found.train.compile) == (
        "wsd",
        "bf16",
        True,
    )
    assert found.condition.cutoff == (500.0, 700.5)


@pytest.mark.parametrize(
    ("flag", "what"),
    [
        ("train.lr", "key=VALUE"),
        ("=3", "not a TOML key"),
        ("train..lr=3", "not a TOML key"),
        ("train.lrr=3", "did you mean `lr`?"),
        ("train.steps=-1", "got -1"),
        ("trian.steps=5", "did you mean `train`?"),
        ("train.steps.more=1", "`steps` is not a table"),
        ("train=3", "train:"),
    ],
)
def test_a_bad_override_names_the_flag(tmp_path: Path, flag: str, what: str) -> None:
    error = refused(written(tmp_path, T2A), [flag])
    assert [p.where for p in error.problems] == [f"--set {flag}"]
    assert what in error.problems[0].what


def test_bad_overrides_are_reported_along_with_the_file(tmp_path: Path) -> None:
    path = written(tmp_path, T2A + "lrr = 1\n")
    found = places(refused(path, ["nonsense", "train.clip=0"]))
    assert set(found) == {"--set nonsense", f"{path}:16:1", "--set train.clip=0"}


# --- ${VAR} ---------------------------------------------------------------------------------------


def test_variables_stand_for_themselves_in_paths_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOUNDS", "/data/sounds")
    text = (
        T2A.replace("seconds = 1.0", 'seconds = 1.0\npath = "${SOUNDS}/a/${SOUNDS}"')
        + '[about]\nneeds = "${SOUNDS}"'
    )
    found = recipes.load(written(tmp_path, text))
    assert found.data.path == "/data/sounds/a//data/sounds"
    assert found.about.needs == "${SOUNDS}"


def test_an_unset_variable_is_an_error_with_its_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("NO_SUCH_PLACE", raising=False)
    path = written(
        tmp_path, T2A.replace("seconds = 1.0", 'seconds = 1.0\npath = "${NO_SUCH_PLACE}/x"')
    )
    found = places(refused(path, ["data.cache_dir=${NO_SUCH_PLACE}"]))
    assert found == {
        f"{path}:7:1": "data.path: environment variable NO_SUCH_PLACE is not set",
        "--set data.cache_dir=${NO_SUCH_PLACE}": "data.cache_dir: environment variable NO_SUCH_PLACE is not set",
    }


# --- contradictions -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "sets", "key", "what"),
    [
        (SR.replace("cutoff =", "#"), [], "condition.cutoff", "required for sr"),
        (SR, ["condition.cutoff=[1000, 8000]"], "condition.cutoff", "8000 Hz"),
        (SR, ["condition.cutoff=[4000, 1000]"], "condition.cutoff", "must rise"),
        (SR, ["codec.kind=mel"], "codec.kind", "lossless"),
        (SR, ["evaluate.cutoffs=[2000, 9000]"], "evaluate.cutoffs", "9000 Hz"),
        (SR, ["condition.orders=[9, 3]"], "condition.orders", "must rise"),
        (T2A, ["condition.text=none"], "condition.text", "needs a text encoder"),
        (T2A, ["condition.cutoff=[100, 200]"], "condition.cutoff", "for sr only"),
        (T2A, ["condition.text=transformers"], "condition.model", "required"),
        (T2A, ["codec.kind=dac"], "codec.model", "required for dac"),
        (T2A, ["data.source=folder"], "data.path", "required for source 'folder'"),
        (T2A, ["codec.f_max=9000"], "codec.f_max", "8000 Hz"),
        (T2A, ["codec.hop=2048"], "codec.n_fft", "hop (2048)"),
        (T2A, ["train.accumulate=3"], "train.batch_size", "multiple of accumulate (3)"),
        (T2A, ["evaluate.cfg_interval=[0.9, 0.1]"], "evaluate.cfg_interval", "must rise"),
        (T2A, ["model.heads=7"], "model", "even multiple of heads 7"),
        (T2A, ["stage.nonesuch.x=1"], "stage.nonesuch", "no such mechanism"),
    ],
)
def test_contradictions(tmp_path: Path, text: str, sets: list[str], key: str, what: str) -> None:
    error = refused(written(tmp_path, text), sets)
    assert [p.what.split(":")[0] for p in error.problems] == [key]
    assert what in error.problems[0].what


@pytest.mark.parametrize("extra", ["[model]\nwidht = 3", "[evaluate]\ncutoffs = [1000, -1]"])
def test_contradictions_are_reported_together_with_refused_keys(tmp_path: Path, extra: str) -> None:
    """What no single key can see is checked on what is left, also where an item of a list was refused."""
    path = written(tmp_path, SR.replace("4000", "9000").replace('"mdct"', '"mel"') + extra)
    keys = [p.what.split(":")[0] for p in refused(path).problems]
    assert "condition.cutoff" in keys
    assert "codec.kind" in keys
    assert any(key.startswith(("model.widht", "evaluate.cutoffs")) for key in keys)
    assert len(keys) == 3


# --- out and in -----------------------------------------------------------------------------------

words = st.text(st.characters(codec="utf-8", exclude_categories=["Cs"]), max_size=12)


@settings(max_examples=40, deadline=None)
@given(
    summary=words,
    lr=st.floats(1e-9, 1e9),
    betas=st.tuples(st.floats(0, 1), st.floats(0, 1)),
    width=st.none() | st.sampled_from([6, 96, 192]),
    cutoff=st.tuples(st.floats(1, 3999), st.integers(4000, 7999)),
    compiled=st.booleans(),
    vocoder=words.filter(lambda text: "${" not in text),
)
def test_dump_loads_as_the_same_recipe(
    tmp_path_factory: pytest.TempPathFactory,
    summary: str,
    lr: float,
    betas: tuple[float, float],
    width: int | None,
    cutoff: tuple[float, int],
    compiled: bool,
    vocoder: str,
) -> None:
    tree = tomllib.loads(SR)
    tree["about"] = {"summary": summary}
    tree["train"] |= {"lr": lr, "betas": betas, "compile": compiled}
    tree["model"] = {"width": width, "patch": 2}
    tree["condition"]["cutoff"] = cutoff
    tree["codec"]["vocoder"] = vocoder
    recipe = Recipe.model_validate(tree)
    path = tmp_path_factory.getbasetemp() / "dumped.toml"
    for text in (recipes.dump(recipe), recipes.annotated(recipe)):
        path.write_text(text, encoding="utf-8", newline="")
        again = recipes.load(path)
        assert again == recipe
        assert recipes.signature(again) == recipes.signature(recipe)


def test_the_dump_writes_every_default_out(tmp_path: Path) -> None:
    recipe = recipes.load(written(tmp_path, SR))
    tree = tomllib.loads(recipes.dump(recipe))
    assert tree["train"]["lr"] == recipe.train.lr
    assert set(tree["evaluate"]) == set(type(recipe.evaluate).model_fields)
    assert "# Optimiser steps." in recipes.annotated(recipe)


def test_unsigned_keys_do_not_change_the_signature(tmp_path: Path) -> None:
    path = written(tmp_path, SR)
    plain = recipes.signature(recipes.load(path))
    unsigned = [
        *(
            "about.name=other",
            "about.summary=s",
            "evaluate.steps=7",
            "evaluate.cutoffs=[2000]",
            "data.workers=0",
        ),
        *(
            "data.memory_mb=1",
            "data.cache_dir=elsewhere",
            "train.steps=99",
            "train.log_every=3",
            "train.keep=9",
        ),
        *(
            "train.checkpoint_every=5",
            "train.sample_every=0",
            "train.samples=1",
            "train.validate_every=0",
        ),
        *("train.validate_clips=3", "train.validate_t=[0.5]"),
    ]
    for flag in unsigned:
        assert recipes.signature(recipes.load(path, [flag])) == plain, flag
    assert recipes.signature(recipes.load(path, unsigned)) == plain
    for flag in (
        "train.lr=1e-5",
        "train.seed=1",
        "data.seconds=2",
        "codec.alpha=0.5",
        "model.size=S",
    ):
        assert recipes.signature(recipes.load(path, [flag])) != plain, flag


def test_unsigned_names_exist() -> None:
    """A key that is renamed must not silently become part of the signature."""
    for table, names in recipes.UNSIGNED.items():
        fields = recipes.describe(table)
        assert fields
        assert set(names or ()) <= set(fields)


# --- shipped recipes ------------------------------------------------------------------------------


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_recipe(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STAGECLI_DATA", str(tmp_path))
    recipe = recipes.load(path.stem)
    assert recipe.about.name == path.stem
    assert recipe.about.summary.strip()
    assert recipe.about.needs.strip()
    assert not recipe.about.summary.endswith(".")
    written_out = tomllib.loads(path.read_text(encoding="utf-8"))
    assert {"steps", "checkpoint_every"} <= set(written_out["train"])
    dumped = written(tmp_path, recipes.dump(recipe))
    assert recipes.signature(recipes.load(dumped)) == recipes.signature(recipe)
    assert recipes.about(path)["summary"] == recipe.about.summary


@pytest.mark.parametrize(
    "name", ["fsdd-t2a", "esc10-t2a", "esc10-sr", "audiocaps-t2a", "vctk-sr-48k"]
)
def test_twins_differ_in_the_stage_tables_alone(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STAGECLI_DATA", str(tmp_path))
    static = recipes.load(f"{name}-static")
    stage = recipes.load(f"{name}-stage")
    assert not static.stage
    assert set(stage.stage) == {"regime", "guidance", "timesteps", "structure"}
    without = {"about", "stage"}
    assert static.model_dump(exclude=without) == stage.model_dump(exclude=without)


def test_there_are_shipped_recipes() -> None:
    assert {"quickstart", "quickstart-sr"} <= {path.stem for path in SHIPPED}


# --- positions ------------------------------------------------------------------------------------

bare = st.text("abcdefgh-_0123", min_size=1, max_size=4)
quoted = st.text("ab .#=[]'\u2028\x85", max_size=4).map(lambda s: f'"{s}"')
key_parts = bare | quoted
# Values that look like something else to a reader of lines: headers, keys, comments and brackets inside.
values = st.sampled_from(
    [
        "1",
        '"a = # [b]"',
        "'c:\\'",
        '"quote \\" inside # no comment"',
        '["a", "#b"] # [x]',
        "[\n  1, # one ]\n  [2,\n  3],\n]",
        '"""\n[not.a.table]\nkey = 1 # no\n"""',
        "'''one ' line''' # then a comment '''",
        '[\n"""\n]\nk = "2\n""", "]"\n]',
        '{ x = 1, y = "}" }',
        "1979-05-27T07:32:00Z # = [",
        '"a\u2028b\x85c"',
        '"""a \\""" b\n[no]\n"""',
        '"""four""""',
        '["""five""""", 1]',
        "['''x'''', ]",
    ]
)
fillers = st.sampled_from(["", "# [comment]", "   # key = [", "\t"])


@st.composite
def documents(draw: st.DrawFn) -> tuple[str, dict[tuple[str, ...], tuple[int, int]]]:
    """A valid TOML text and where each of its tables and keys stands, as the generator put them there."""
    lines: list[str] = []
    expected: dict[tuple[str, ...], tuple[int, int]] = {}

    def put(prefix: tuple[str, ...], parts: Sequence[str], indent: str, text: str) -> None:
        key = prefix + tuple(part.strip('"') if part.startswith('"') else part for part in parts)
        for length in range(len(prefix) + 1, len(key) + 1):
            expected.setdefault(key[:length], (len(lines) + 1, len(indent) + 1))
        lines.extend((indent + text).split("\n"))

    headers = [[], *draw(st.lists(st.lists(key_parts, min_size=1, max_size=3), max_size=3))]
    for header in headers:
        table: tuple[str, ...] = ()
        if header:
            indent = draw(st.sampled_from(["", "  "]))
            dot = draw(st.sampled_from([".", " . "]))
            put(
                (),
                header,
                indent,
                f"[{dot.join(header)}]" + draw(st.sampled_from(["", " # ] = ["])),
            )
            table = tuple(part.strip('"') if part.startswith('"') else part for part in header)
        for parts in draw(st.lists(st.lists(key_parts, min_size=1, max_size=2), max_size=3)):
            lines.append(draw(fillers))
            equals = draw(st.sampled_from(["=", " = "]))
            put(
                table,
                parts,
                draw(st.sampled_from(["", " ", "\t"])),
                ".".join(parts) + equals + draw(values),
            )
    return draw(st.sampled_from(["\n", "\r\n"])).join(lines) + "\n", expected


def key_paths(tree: dict[str, Any], prefix: tuple[str, ...] = ()) -> set[tuple[str, ...]]:
    found = set()
    for name, value in tree.items():
        found.add((*prefix, name))
        found |= key_paths(value, (*prefix, name)) if isinstance(value, dict) else set()
    return found


@settings(max_examples=150, deadline=None)
@given(documents())
def test_positions_are_those_of_the_parser(
    document: tuple[str, dict[tuple[str, ...], tuple[int, int]]],
) -> None:
    source, expected = document
    try:
        tree = tomllib.loads(source)
    except tomllib.TOMLDecodeError:  # the same key twice
        return
    found = {key: (at.line, at.column) for key, at in positions(source).items()}
    assert found == expected
    inline = {
        key for key in key_paths(tree) if key[:-1] in found and key[-1] in "xy" and key not in found
    }
    assert key_paths(tree) - inline == set(found)
    lines = source.split("\n")
    for at in positions(source).values():
        assert at.text == lines[at.line - 1].removesuffix("\r")


def test_split_key() -> None:
    assert split_key("a . \"b.c\" .'d'") == ("a", "b.c", "d")
    for bad in ("", "a.", ".a", "a b", 'a."b', "a=b"):
        with pytest.raises(ValueError, match="not a TOML key"):
            split_key(bad)
