"""The controller and the registry: merged and refused requests, and declarations of mechanisms."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest
from conftest import write_recipe

from stagecli.errors import StageError
from stagecli.recipe.load import load_recipe
from stagecli.schema import Recipe
from stagecli.stage import registry
from stagecli.stage.base import FeatureSettings, Mechanism, ProbeSettings
from stagecli.stage.controller import Stages
from stagecli.stage.options import MechanismOptions, RegimeNeed


class FakeOptions(MechanismOptions):
    paths: ClassVar[tuple[str, ...]] = ("folder",)

    layer: int = -1
    """Layer of the features; 0: none are requested."""
    every: int = 0
    """Steps between probes; 0: none are requested."""
    follow: bool = False
    """Follow r."""
    folder: str = ""
    """A path."""

    def regime_need(self) -> RegimeNeed | None:
        return RegimeNeed("it follows r", "follow", "set follow = false") if self.follow else None


class Alpha(Mechanism):
    name = "alpha"
    Options = FakeOptions

    def __init__(self, options: FakeOptions, recipe: Recipe) -> None:
        if options.layer:
            self.features = FeatureSettings("bundled:teacher", options.layer)
        if options.every:
            self.probes = ProbeSettings("bundled:teacher", -1, 4, (0.3, 0.7), options.every)


class Beta(Alpha):
    name = "beta"


@pytest.fixture(autouse=True)
def _two_mechanisms() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for cls in (Alpha, Beta):
            patch.setitem(registry.MECHANISMS, cls.name, f"{__name__}:{cls.__name__}")
        yield


def stages(folder: Path, **changes: Any) -> Stages:
    return Stages.of(load_recipe(write_recipe(folder / "two.toml", "t2a", **changes)))


def test_equal_requests_are_served_once(tmp_path: Path) -> None:
    both = stages(
        tmp_path,
        stage__alpha__layer=2,
        stage__beta__layer=2,
        stage__alpha__every=5,
        stage__beta__every=5,
    )
    assert both.features == FeatureSettings("bundled:teacher", 2)
    assert both.probes is not None
    assert both.probes.every == 5


def test_one_request_is_enough_and_goes_on_when_another_ends(tmp_path: Path) -> None:
    both = stages(tmp_path, stage__alpha__layer=2, stage__beta__layer=2, stage__beta__every=5)
    assert both.probes is not None
    both.mechanisms["alpha"].features = None
    assert both.features == FeatureSettings("bundled:teacher", 2)
    both.mechanisms["beta"].features = None
    assert both.features is None


@pytest.mark.parametrize(
    ("key", "one", "other", "resource"),
    [("layer", 2, -1, "features"), ("every", 5, 10, "probes")],
)
def test_different_requests_are_refused_with_both_names(
    key: str, one: int, other: int, resource: str, tmp_path: Path
) -> None:
    changes = {f"stage__alpha__{key}": one, f"stage__beta__{key}": other}
    with pytest.raises(StageError, match=f"different {resource}") as caught:
        stages(tmp_path, **changes)
    assert "[stage.alpha] and [stage.beta]" in caught.value.message
    assert [problem.where for problem in caught.value.problems] == ["stage.alpha", "stage.beta"]
    assert [problem.what for problem in caught.value.problems] == [
        f"requests {resource} with {key} = {one}",
        f"requests {resource} with {key} = {other}",
    ]


def test_a_shipped_mechanism_and_another_one_are_compared_too(tmp_path: Path) -> None:
    """Guidance by layer -1 beside a mechanism that requests layer 2 must not be trained on -1."""
    guidance = {"stage__guidance__schedule": "constant", "stage__guidance__layer": -1}
    with pytest.raises(StageError, match=r"\[stage.guidance\] and \[stage.alpha\]"):
        stages(tmp_path, stage__alpha__layer=2, **guidance)
    assert stages(tmp_path, stage__alpha__layer=-1, **guidance).features is not None


def test_every_mechanism_without_its_regime_is_named(tmp_path: Path) -> None:
    with pytest.raises(StageError, match=r"need \[stage.regime\]") as caught:
        stages(tmp_path, stage__alpha__follow=True, stage__beta__follow=True)
    assert [(p.where, p.what) for p in caught.value.problems] == [
        ("stage.alpha.follow", "it follows r"),
        ("stage.beta.follow", "it follows r"),
    ]
    assert caught.value.hint is not None
    assert caught.value.hint.endswith(", or set follow = false")
    follows = {"stage__alpha__follow": True, "stage__regime__source": "linear"}
    assert list(stages(tmp_path, **follows).mechanisms) == ["regime", "alpha"]


def test_declared_paths_expand_variables_and_others_do_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOMEWHERE", "/data")
    path = write_recipe(tmp_path / "p.toml", "t2a", stage__alpha__folder="${SOMEWHERE}/x")
    assert load_recipe(path).stage["alpha"]["folder"] == "/data/x"
    monkeypatch.delenv("SOMEWHERE")
    with pytest.raises(StageError, match=r"stage\.alpha\.folder: .*SOMEWHERE is not set"):
        load_recipe(path)


def test_path_keys_of_sections_that_were_not_checked() -> None:
    assert registry.path_keys({"alpha": {}, "nonesuch": {}}) == [("stage", "alpha", "folder")]
    assert registry.path_keys(None) == []
    assert registry.path_keys("text") == []
    assert set(registry.path_keys({"regime": {}, "guidance": {}})) == {
        ("stage", "regime", "monitor"),
        ("stage", "regime", "replay"),
        ("stage", "guidance", "teacher"),
    }


def test_encoders_that_steer_a_run() -> None:
    """The monitor of a control does not steer."""
    guidance = {"schedule": "constant", "teacher": "transformers:x"}
    uses = registry.encoders({"regime": {}, "guidance": guidance, "timesteps": {}})
    assert [(use.key, use.encoder, use.role) for use in uses] == [
        ("stage.regime.monitor", "bundled:teacher", "monitor"),
        ("stage.guidance.teacher", "transformers:x", "teacher"),
    ]
    assert registry.encoders({"regime": {"source": "linear"}}) == []


@pytest.mark.parametrize("name", [*registry.MECHANISMS])
def test_declared_options_exist(name: str) -> None:
    options = registry.load(name).Options
    assert set(options.paths) <= set(options.model_fields)
    assert set(options().encoders()) <= set(options.model_fields)
