"""The plan of the house: who may import whom, and what starts fast."""

from __future__ import annotations

import ast
import re
import resource
import subprocess
import sys
from collections.abc import Iterator, Sequence
from functools import cache
from graphlib import TopologicalSorter

import pytest
from helpers.source import PACKAGE, SOURCES, functions, room, tree_of

from stagecli.stage import registry

# Rooms from the top of the house to the bottom: a room imports only from rooms further down.
FLOORS: tuple[tuple[str, ...], ...] = (
    ("__main__",),
    ("cli",),
    ("study", "export"),
    ("train", "evaluate"),
    ("generate",),
    ("terminal", "runs"),
    ("report", "recipe", "archives"),
    ("stage", "data"),
    ("ssl", "codec", "model"),
    ("condition",),
    ("hub",),
    ("metrics", "flow"),
    ("dsp",),
    ("schema",),
    ("targets",),
    ("files", "bounds", "launcher", "cgroup"),
    ("errors",),
    ("__init__",),
)
FLOOR = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}
LIGHT_ROOMS = (
    *("recipe", "runs", "report", "terminal", "targets", "files", "errors", "schema", "bounds"),
    *("cli", "launcher", "cgroup"),
)
HEAVY = ("torch", "torchaudio", "transformers", "safetensors", "accelerate", "scipy", "datasets")
WITHOUT_TORCH = [
    *(m for m in SOURCES if m.partition(".")[0] in LIGHT_ROOMS and m != "runs.checkpoint"),
    *(f"stage.{name}" for name in ("base", "options", "registry", "regime", "regime_variable")),
    *(f"stage.{name}" for name in ("probe_columns", "structure_columns")),
]


def imports(node: ast.AST, at_module_level: bool = False) -> Iterator[str]:
    """Full names of all imports; at module level without functions and `if TYPE_CHECKING:`."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            yield from (alias.name for alias in child.names)
        elif isinstance(child, ast.ImportFrom):
            assert child.level == 0, "imports are absolute"
            yield from (f"{child.module}.{alias.name}" for alias in child.names)
        elif not (at_module_level and runs_later(child)):
            yield from imports(child, at_module_level)


def runs_later(node: ast.AST) -> bool:
    """Whether a node is a function, or read by type checkers only."""
    if isinstance(node, ast.If):
        return "TYPE_CHECKING" in ast.unparse(node.test)
    return isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))


@cache
def imported(module: str, at_module_level: bool = False) -> set[str]:
    return set(imports(tree_of(SOURCES[module]), at_module_level))


def under(name: str, *packages: str) -> bool:
    return any(name == package or name.startswith(f"{package}.") for package in packages)


def outside(module: str) -> set[str]:
    """Top-level packages a file imports, apart from the standard library and itself."""
    return (
        {name.partition(".")[0] for name in imported(module)}
        - set(sys.stdlib_module_names)
        - {"stagecli"}
    )


def test_the_reader_of_imports_reads_imports() -> None:
    """A guard that sees nothing would pass everything."""
    tree = ast.parse(
        "import a.b\nif TYPE_CHECKING:\n    import c\n"
        "def f():\n    from d import e\nclass X:\n    import g\n"
    )
    assert set(imports(tree)) == {"a.b", "c", "d.e", "g"}
    assert set(imports(tree, at_module_level=True)) == {"a.b", "g"}
    assert {"torch", "accelerate.Accelerator", "stagecli.runs.checkpoint"} <= imported(
        "train.setup"
    )
    assert len(SOURCES) > 40


# --- rooms and floors -----------------------------------------------------------------------------


def file_of(name: str) -> str | None:
    """The file that defines an imported name of this project, as a key of SOURCES."""
    parts = name.split(".")[1:]
    while parts:
        dotted = ".".join(parts)
        for key in (dotted, f"{dotted}.__init__"):
            if key in SOURCES:
                return key
        parts.pop()
    return "__init__"


@cache
def arrows(module: str) -> frozenset[str]:
    """Files of this project that a file imports, also in functions and for type checkers."""
    names = {file_of(name) for name in imported(module) if under(name, "stagecli")}
    return frozenset(name for name in names if name and name != module)


def test_every_room_has_a_floor() -> None:
    assert {room(module) for module in SOURCES} == set(FLOOR)


def test_no_import_goes_up_or_across_a_floor() -> None:
    wrong = [
        f"{module} -> {target}"
        for module in SOURCES
        for target in arrows(module)
        if room(module) != room(target) and FLOOR[room(target)] <= FLOOR[room(module)]
    ]
    assert wrong == []


def test_no_circle_of_files() -> None:
    graph = {module: arrows(module) for module in SOURCES}
    TopologicalSorter(graph).prepare()  # raises CycleError, which names the circle


@pytest.mark.parametrize("module", [m for m in SOURCES if room(m) in ("report", "terminal")])
def test_one_file_writes_to_the_terminal(module: str) -> None:
    """Views, tables and reports go through the console, which knows what a terminal can show."""
    text = SOURCES[module].read_text(encoding="utf-8")
    writes = re.findall(r"\bprint\(|sys\.std(?:out|err)|\\x1b\[[HJ]", text)
    assert module in ("terminal.console", "terminal.streams") or writes == []


def test_few_files_lie_loose() -> None:
    assert len(list(PACKAGE.glob("*.py"))) <= 8


# --- who may import whom --------------------------------------------------------------------------


@pytest.mark.parametrize("module", [name for name in SOURCES if name.startswith("stage.")])
def test_mechanisms_import_neither_trainer_nor_data_nor_each_other(module: str) -> None:
    mechanisms = {target.partition(":")[0] for target in registry.MECHANISMS.values()}
    for name in imported(module):
        assert not under(
            name,
            "stagecli.train.trainer",
            "stagecli.data",
            "stagecli.train.prepare",
            "stagecli.generate.pipeline",
        ), name
        other = next((m for m in mechanisms if under(name, m)), None)
        assert other is None or other == f"stagecli.{module}", (
            f"{module} imports the mechanism {name}"
        )


@pytest.mark.parametrize(
    ("module", "packages", "own"),
    [
        ("flow.objective", {"torch"}, ()),
        ("flow.sampler", {"torch"}, ()),
        *(
            (name, {"torch", "numpy", "scipy"}, ("stagecli.metrics", "stagecli.dsp"))
            for name in SOURCES
            if name.startswith("metrics.") and name != "metrics.in_training"
        ),
    ],
)
def test_pure_parts_import_torch_only(
    module: str, packages: set[str], own: tuple[str, ...]
) -> None:
    assert outside(module) <= packages
    assert [
        name for name in imported(module) if under(name, "stagecli") and not under(name, *own)
    ] == []


@pytest.mark.parametrize(
    ("package", "allowed"),
    [("rich", {"terminal.console"}), ("accelerate", {"train.processes"})],
)
def test_one_file_per_framework(package: str, allowed: set[str]) -> None:
    # Accelerate: doctor reads its state inside a function, and annotations name it.
    level = package == "accelerate"
    users = {
        module for module in SOURCES if any(under(n, package) for n in imported(module, level))
    }
    assert users == allowed


def test_typer_stays_in_the_room_of_the_command_line() -> None:
    users = {module for module in SOURCES if any(under(n, "typer") for n in imported(module))}
    assert {room(module) for module in users} == {"cli"}


@pytest.mark.parametrize("module", WITHOUT_TORCH)
def test_no_torch_at_module_level(module: str) -> None:
    assert [name for name in imported(module, at_module_level=True) if under(name, *HEAVY)] == []


def test_nothing_imports_the_command_line() -> None:
    users = {m for m in SOURCES if any(under(n, "stagecli.cli") for n in imported(m))}
    assert {room(m) for m in users} <= {"__main__", "cli"}


def test_lower_layers_do_not_import_the_trainer() -> None:
    users = {m for m in SOURCES if any(under(n, "stagecli.train.trainer") for n in imported(m))}
    assert users == {"train.setup"}
    assert {m for m in SOURCES if any(under(n, "stagecli.train.launch") for n in imported(m))} == {
        "cli.train",
        "study.work",
    }


def test_no_pickle() -> None:
    for module, path in SOURCES.items():
        text = path.read_text(encoding="utf-8")
        assert not any(under(n, "pickle", "joblib", "dill") for n in imported(module)), module
        assert "torch.load(" not in text and "torch.save(" not in text, module


# --- what starts fast -----------------------------------------------------------------------------

HELP_WITHOUT = ("torch", "transformers", "accelerate", "safetensors", "scipy", "pydantic")
HELP_SECONDS = 0.3  # of CPU time
PROGRAM = """
import importlib, sys
for name in {modules!r}:
    importlib.import_module("stagecli." + name)
sys.argv = ["stagecli", *{arguments!r}]
try:
    if {arguments!r}:
        sys.modules["stagecli.cli"].main()
except SystemExit as end:
    assert not end.code, end.code
unwanted = set({unwanted!r}) & set(sys.modules)
sys.exit(f"imported: {{sorted(unwanted)}}" if unwanted else 0)
"""


def run(modules: list[str], arguments: list[str], unwanted: Sequence[str] = HEAVY) -> str:
    """stdout of a fresh process that imports modules and runs a command without `unwanted`."""
    code = PROGRAM.format(modules=modules, arguments=arguments, unwanted=list(unwanted))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_light_modules_do_not_import_torch_by_way_of_others() -> None:
    run(WITHOUT_TORCH, [])


@pytest.mark.parametrize(
    ("arguments", "shown"),
    [(["--help"], "inspect-regime"), (["train", "--help"], "--dry-run")],
)
def test_help_imports_nothing_heavy(arguments: list[str], shown: str) -> None:
    assert shown in run(["cli"], arguments, HELP_WITHOUT)


def test_the_list_of_recipes_does_not_import_torch() -> None:
    assert "quickstart" in run(["cli"], ["recipes", "list"])


def test_help_is_fast() -> None:
    """CPU time, not wall time, and the best of three: other processes may share the machine."""
    seconds = []
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        command = [sys.executable, "-m", "stagecli", "--help"]
        subprocess.run(command, check=True, capture_output=True, timeout=120)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        user = after.ru_utime - before.ru_utime
        seconds.append(user + after.ru_stime - before.ru_stime)
    assert min(seconds) <= HELP_SECONDS


# --- the training loop ---------------------------------------------------------------------------


def test_the_training_loop_is_where_it_is_looked_for() -> None:
    assert "fit" in {node.name for node in functions(SOURCES["train.trainer"])}


@pytest.mark.parametrize("module", ["train.trainer", "stage.controller"])
def test_the_trainer_names_no_mechanism(module: str) -> None:
    text = SOURCES[module].read_text(encoding="utf-8").lower()
    if module == "stage.controller":  # the base density comes from the recipe's objective
        text = text.replace("objective.density", "")
    assert [word for word in ("guidance", "timesteps", "structure", "regime") if word in text] == []
