"""Loading recipes: every mistake at once with its place, overrides, contradictions, old keys."""

from __future__ import annotations

from pathlib import Path

import pytest
from recipe_texts import SR, T2A, by_place, refuse, write

from stagecli.errors import StageError
from stagecli.recipe.load import load_from_run, load_recipe
from stagecli.recipe.source import find_recipe, shipped_recipes
from stagecli.schema import Train

# --- mistakes -------------------------------------------------------------------------------------


def test_every_mistake_is_reported_at_once_with_its_place(tmp_path: Path) -> None:
    text = T2A.replace("sample_rate", "sample_rat").replace(
        "steps = 10", 'steps = "many"\n  lrr = 1'
    )
    path = write(tmp_path, text.replace('kind = "mel"', 'kind = "mell"'))
    error = refuse(path)
    problems = by_place(error)
    assert error.message == f"{path} has {len(problems)} problems"
    assert problems[f"{path}:5:1"] == "data.sample_rat: unknown key; did you mean `sample_rate`?"
    assert "data.sample_rate: required, and missing" in problems[f"{path}:4:1"]
    assert problems[f"{path}:9:1"].startswith("codec.kind: ")
    assert "did you mean `mel`?" in problems[f"{path}:9:1"]
    assert problems[f"{path}:15:1"].startswith("train.steps: ")
    assert problems[f"{path}:15:1"].endswith("got 'many'")
    assert problems[f"{path}:16:3"].startswith("train.lrr: unknown key")
    assert "did you mean `lr`?" in problems[f"{path}:16:3"]
    assert len(problems) == 5
    excerpts = {problem.where: problem.excerpt for problem in error.problems}
    assert excerpts[f"{path}:16:3"] == "  lrr = 1"
    assert "recipes show" in (error.hint or "")


def test_syntax_error_has_line_and_column(tmp_path: Path) -> None:
    path = write(tmp_path, T2A.replace("steps = 10", "steps = = 10"))
    error = refuse(path)
    assert "not valid TOML" in error.message
    assert [problem.where for problem in error.problems] == [f"{path}:15:9"]


def test_a_file_that_is_not_utf8_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "recipe.toml"
    path.write_bytes(b'[task]\nkind = "\xff"\n')
    assert [problem.where for problem in refuse(path).problems] == [str(path)]


@pytest.mark.parametrize(
    ("header", "hint"),
    [("[trian]\nx = 1", "`train`"), ("[stages.guidance]\nx = 1", "`stage`"), ("[zzz]", None)],
)
def test_unknown_section(tmp_path: Path, header: str, hint: str | None) -> None:
    path = write(tmp_path, f"{T2A}\n{header}\n")
    problems = by_place(refuse(path))
    line = len(T2A.splitlines()) + 2
    message = problems.pop(f"{path}:{line}:1")
    assert not problems
    assert "unknown key" in message
    assert ("did you mean" in message) == (hint is not None)
    assert hint is None or hint in message


def test_a_missing_section_and_a_value_in_place_of_a_section(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        "train = 3\n" + T2A.replace("[train]\nsteps = 10\n", "").replace("[task]\nkind", "#"),
    )
    places = {problem.what.split(":")[0]: problem.where for problem in refuse(path).problems}
    assert places["task"] == f"{path}:1:1"
    assert places["train"] == f"{path}:1:1"


def test_find_by_name_and_nearest_name(tmp_path: Path) -> None:
    assert find_recipe("quickstart") == shipped_recipes()["quickstart"]
    assert "`quickstart`" in (refuse("quickstrt").hint or "")
    assert "`quickstart`" in (refuse(str(tmp_path / "quickstar.toml")).hint or "")
    assert "recipes list" in (refuse("xyzzy").hint or "")


# --- --set ----------------------------------------------------------------------------------------


def test_overrides_come_before_the_file_and_the_last_one_wins(tmp_path: Path) -> None:
    path = write(tmp_path, T2A + "lr = 0.5\n")
    assert load_recipe(path).train.lr == 0.5
    assert load_recipe(path).train.batch_size == Train(steps=1).batch_size
    recipe = load_recipe(
        path, ["train.lr=0.25", "train.lr = 1e-4", "about.summary=plain words", "data.workers=0"]
    )
    assert recipe.train.lr == 1e-4
    assert recipe.about.summary == "plain words"
    assert recipe.data.workers == 0


def test_bare_words_are_strings_and_toml_values_are_toml(tmp_path: Path) -> None:
    path = write(tmp_path, SR)
    flags = [
        "train.schedule=wsd",
        'train.precision="bf16"',
        "condition.cutoff=[500, 700.5]",
        "train.compile=blocks",
    ]
    recipe = load_recipe(path, flags)
    assert (recipe.train.schedule, recipe.train.precision, recipe.train.compile) == (
        "wsd",
        "bf16",
        "blocks",
    )
    assert recipe.condition.cutoff == (500.0, 700.5)


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("train.lr", "key=VALUE"),
        ("=3", "not a TOML key"),
        ("train..lr=3", "not a TOML key"),
        ("train.lrr=3", "did you mean `lr`?"),
        ("train.steps=-1", "got -1"),
        ("trian.steps=5", "did you mean `train`?"),
        ("train.steps.more=1", "`steps` is not a section"),
        ("train=3", "train:"),
    ],
)
def test_a_bad_override_names_the_flag(tmp_path: Path, flag: str, message: str) -> None:
    error = refuse(write(tmp_path, T2A), [flag])
    assert [problem.where for problem in error.problems] == [f"--set {flag}"]
    assert message in error.problems[0].what


def test_bad_overrides_are_reported_along_with_the_file(tmp_path: Path) -> None:
    path = write(tmp_path, T2A + "lrr = 1\n")
    problems = by_place(refuse(path, ["nonsense", "train.clip=0"]))
    assert set(problems) == {"--set nonsense", f"{path}:16:1", "--set train.clip=0"}


# --- ${VAR} ---------------------------------------------------------------------------------------


def test_variables_are_replaced_in_path_keys_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOUNDS", "/data/sounds")
    text = (
        T2A.replace("seconds = 1.0", 'seconds = 1.0\npath = "${SOUNDS}/a/${SOUNDS}"')
        + '[about]\nneeds = "${SOUNDS}"'
    )
    recipe = load_recipe(write(tmp_path, text))
    assert recipe.data.path == "/data/sounds/a//data/sounds"
    assert recipe.about.needs == "${SOUNDS}"


def test_an_unset_variable_is_an_error_with_its_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("NO_SUCH_PLACE", raising=False)
    path = write(
        tmp_path, T2A.replace("seconds = 1.0", 'seconds = 1.0\npath = "${NO_SUCH_PLACE}/x"')
    )
    problems = by_place(refuse(path, ["data.cache_dir=${NO_SUCH_PLACE}"]))
    problem = "environment variable NO_SUCH_PLACE is not set"
    assert problems == {
        f"{path}:7:1": f"data.path: {problem}",
        "--set data.cache_dir=${NO_SUCH_PLACE}": f"data.cache_dir: {problem}",
    }


# --- contradictions -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "sets", "key", "message"),
    [
        (SR.replace("cutoff =", "#"), [], "condition.cutoff", "required for sr"),
        (SR, ["condition.cutoff=[1000, 8000]"], "condition.cutoff", "8000 Hz"),
        (SR, ["condition.cutoff=[4000, 1000]"], "condition.cutoff", "rising order"),
        (SR, ["codec.kind=mel"], "codec.kind", "lossless"),
        (SR, ["evaluate.cutoffs=[2000, 9000]"], "evaluate.cutoffs", "9000 Hz"),
        (SR, ["condition.orders=[9, 3]"], "condition.orders", "rising order"),
        (T2A, ["condition.text=none"], "condition.text", "needs a text encoder"),
        (T2A, ["condition.cutoff=[100, 200]"], "condition.cutoff", "sr only"),
        (T2A, ["condition.text=transformers"], "condition.model", "required"),
        (T2A, ["codec.kind=dac"], "codec.model", "required for dac"),
        (T2A, ["data.source=folder"], "data.path", "required for source 'folder'"),
        (T2A, ["codec.f_max=9000"], "codec.f_max", "8000 Hz"),
        (T2A, ["codec.hop=2048"], "codec.n_fft", "hop (2048)"),
        (T2A, ["train.accumulate=3"], "train.batch_size", "multiple of accumulate (3)"),
        (T2A, ["evaluate.cfg_interval=[0.9, 0.1]"], "evaluate.cfg_interval", "rising order"),
        (T2A, ["model.heads=7"], "model", "even multiple of heads 7"),
        (T2A, ["stage.nonesuch.x=1"], "stage.nonesuch", "no such mechanism"),
    ],
)
def test_contradictions(tmp_path: Path, text: str, sets: list[str], key: str, message: str) -> None:
    error = refuse(write(tmp_path, text), sets)
    assert [problem.what.split(":")[0] for problem in error.problems] == [key]
    assert message in error.problems[0].what


@pytest.mark.parametrize("extra", ["[model]\nwidht = 3", "[evaluate]\ncutoffs = [1000, -1]"])
def test_contradictions_are_reported_together_with_refused_keys(tmp_path: Path, extra: str) -> None:
    """Contradictions among the remaining keys are problems, even if a list item was refused."""
    path = write(tmp_path, SR.replace("4000", "9000").replace('"mdct"', '"mel"') + extra)
    keys = [problem.what.split(":")[0] for problem in refuse(path).problems]
    assert "condition.cutoff" in keys
    assert "codec.kind" in keys
    assert any(key.startswith(("model.widht", "evaluate.cutoffs")) for key in keys)
    assert len(keys) == 3


# --- keys of earlier versions ---------------------------------------------------------------------

OLD_KEYS = [
    ("objective.timesteps", '"logit-normal"', "now called `density`"),
    ("evaluate.guidance", "2", "now called `cfg_scale`"),
    ("evaluate.guidance_interval", "[0.2, 0.8]", "now called `cfg_interval`"),
    ("objective.kind", '"rectified-flow"', "delete it: rectified flow is the only objective"),
]


@pytest.mark.parametrize(("key", "value", "message"), OLD_KEYS)
def test_an_old_key_is_refused_and_its_fate_explained(
    tmp_path: Path, key: str, value: str, message: str
) -> None:
    section, name = key.split(".")
    path = write(tmp_path, f"{T2A}\n[{section}]\n{name} = {value}\n")
    line = len(T2A.splitlines()) + 3
    problems = by_place(refuse(path))
    assert list(problems) == [f"{path}:{line}:1"]
    assert message in problems[f"{path}:{line}:1"]

    flag = f"{key}={value}"
    problems = by_place(refuse(write(tmp_path, T2A), [flag]))
    assert list(problems) == [f"--set {flag}"]
    assert message in problems[f"--set {flag}"]


def test_the_recipe_of_an_old_run_still_loads(tmp_path: Path) -> None:
    sections: dict[str, list[str]] = {}
    for key, value, _ in OLD_KEYS:
        section, name = key.split(".")
        sections.setdefault(section, []).append(f"{name} = {value}")
    old = "\n".join("\n".join([f"[{section}]", *lines]) for section, lines in sections.items())
    recipe = load_from_run(write(tmp_path, f"{T2A}\n{old}\n"))
    assert recipe.objective.density == "logit-normal"
    assert recipe.evaluate.cfg_scale == 2
    assert recipe.evaluate.cfg_interval == (0.2, 0.8)


def test_an_old_run_without_its_recipe_or_with_a_broken_one_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(StageError, match="not found"):
        load_from_run(tmp_path / "recipe.toml")
    with pytest.raises(StageError, match="not valid TOML"):
        load_from_run(write(tmp_path, "[task"))
