"""The house rules that a program can check: sizes, headings, words, what tests may reach into."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest
from helpers.source import (
    REPOSITORY,
    SOURCES,
    TESTS,
    attributes,
    body_lines,
    classes,
    comment_lines,
    docstrings,
    functions,
    length,
    room,
    text_of,
    tree_of,
)
from pydantic import BaseModel

from stagecli.schema import Recipe
from stagecli.stage import registry

FILE_LINES = 350
CLASS_LINES = 250
CLASS_ATTRIBUTES = 15
FUNCTION_LINES = 60
HEADINGS_FROM = 30  # lines of a function's body above which its paragraphs have headings
HEADINGS = 2

# "module.Class" -> why it may have more than 15 attributes.
EXCEPTIONS: dict[str, str] = {
    "evaluate.flags.Flags": "one field per flag of the command, handed on as it is",
}

# --- how long things may be -----------------------------------------------------------------------


def none_of(places: Iterable[str]) -> None:
    """Fail with every place where a rule is broken, one a line."""
    broken = list(places)
    assert not broken, "\n" + "\n".join(broken)


def test_files_are_short() -> None:
    lines = {module: len(text_of(path).splitlines()) for module, path in SOURCES.items()}
    none_of(f"{module}: {count} lines" for module, count in lines.items() if count > FILE_LINES)


def test_functions_are_short() -> None:
    """The signature of a command is left out: it is the table of the command's flags."""
    lines = {
        f"{module}.{node.name}": len(body_lines(node)) if room(module) == "cli" else length(node)
        for module, path in SOURCES.items()
        for node in functions(path)
    }
    none_of(f"{name}: {count} lines" for name, count in lines.items() if count > FUNCTION_LINES)


def test_classes_are_small() -> None:
    sizes = {
        f"{module}.{node.name}": (length(node), len(attributes(node)))
        for module, path in SOURCES.items()
        for node in classes(path)
    }
    none_of(
        f"{name}: {lines} lines, {count} attributes"
        for name, (lines, count) in sizes.items()
        if lines > CLASS_LINES or (count > CLASS_ATTRIBUTES and name not in EXCEPTIONS)
    )


def test_every_exception_is_needed() -> None:
    names = {f"{m}.{node.name}": node for m, path in SOURCES.items() for node in classes(path)}
    for name in EXCEPTIONS:
        assert len(attributes(names[name])) > CLASS_ATTRIBUTES, name


def test_long_functions_have_headings() -> None:
    """Paragraphs of a function over 30 lines begin with a comment on a line of its own."""
    none_of(
        f"{module}.{node.name}: {len(body_lines(node))} lines"
        for module, path in SOURCES.items()
        for node in functions(path)
        if len(body_lines(node)) > HEADINGS_FROM
        and len(comment_lines(path) & set(body_lines(node))) < HEADINGS
    )


def test_no_line_is_packed_past_the_formatter() -> None:
    marks = ("# fmt: " + "skip", "# fmt: " + "off")
    for path in [*SOURCES.values(), *TESTS]:
        assert not any(mark in text_of(path) for mark in marks), path


def test_the_readers_of_the_source_read() -> None:
    """A rule that sees nothing would pass everything."""
    tree = ast.parse(
        "@dataclass\nclass A:\n    x: int\n"
        "    def f(self):\n        '''Doc.'''\n        self.y = 1\n"
    )
    (node,) = (inner for inner in ast.walk(tree) if isinstance(inner, ast.ClassDef))
    (function,) = (inner for inner in ast.walk(tree) if isinstance(inner, ast.FunctionDef))
    assert attributes(node) == {"x", "y"}
    assert length(node) == 5
    assert body_lines(function) == range(6, 7)
    assert sum(1 for path in SOURCES.values() for _ in functions(path)) > 300
    assert any(comment_lines(path) for path in SOURCES.values())


# --- mechanisms are named in their own room -------------------------------------------------------

IDENTIFIER = re.compile(r"[A-Za-z0-9_./]+")
SHOWS_THE_REGIME = ("report", "terminal", "cli")  # the regime is the product, not only a mechanism
OLD_KEYS = "RENAMED"  # the table of old recipe keys, which may be a mechanism's word


def named_mechanisms(module: str) -> Iterator[str]:
    """Where a file names a mechanism: by an attribute, an import, or a string that is a key."""
    names = set(registry.MECHANISMS)
    if room(module) in SHOWS_THE_REGIME:
        names -= {"regime"}
    tree = tree_of(SOURCES[module])
    ignored = docstrings(tree)
    for node in ast.walk(tree):
        if isinstance(node, (ast.Assign, ast.AnnAssign)) and OLD_KEYS in ast.unparse(node)[:20]:
            ignored |= {id(inner) for inner in ast.walk(node)}
    for node in ast.walk(tree):
        if id(node) in ignored:
            continue
        words = ""
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            words = node.value if IDENTIFIER.fullmatch(node.value) else ""
        elif isinstance(node, ast.Attribute):
            words = node.attr
        elif isinstance(node, ast.ImportFrom) and node.module == "stagecli.stage":
            words = ".".join(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("stagecli.stage."):
            words = (node.module or "").rpartition(".")[2]
        if names & set(re.split(r"[_./]", words)):
            yield f"{module}:{node.lineno}: {words}"  # type: ignore[attr-defined]


def test_mechanisms_are_named_only_in_the_stage_room() -> None:
    """Other rooms read names and needs from the registry, so that a new mechanism is one file."""
    modules = [module for module in SOURCES if room(module) != "stage"]
    none_of(place for module in modules for place in named_mechanisms(module))


# --- documentation of keys ------------------------------------------------------------------------


def undocumented(model: type[BaseModel], prefix: str) -> Iterator[str]:
    """Keys of a section, and of the sections in it, without a docstring under the field."""
    for name, field in model.model_fields.items():
        inner = field.annotation
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            yield from undocumented(inner, f"{prefix}{name}.")
        elif not (field.description or "").strip():
            yield f"{prefix}{name}"


def test_every_key_of_a_recipe_is_documented() -> None:
    none_of(key for key in undocumented(Recipe, "") if key != "stage")


@pytest.mark.parametrize("name", registry.MECHANISMS)
def test_every_key_of_a_mechanism_is_documented(name: str) -> None:
    none_of(undocumented(registry.load(name).Options, f"stage.{name}."))


# --- retired words --------------------------------------------------------------------------------

GUIDE = REPOSITORY / "CONTRIBUTING.md"
HISTORY = ("docs/log.md",)


def retired_words() -> list[str]:
    """The first column of the table "Retired | Use instead"."""
    if not GUIDE.exists():
        pytest.fail("CONTRIBUTING.md is missing: it holds the table of retired words")
    table = re.search(
        r"^\| Retired \| Use instead \|\n\|[-| ]+\|\n((?:\|.*\n)+)", text_of(GUIDE), re.M
    )
    if table is None:
        pytest.fail('CONTRIBUTING.md has no table "| Retired | Use instead |"')
    return [
        word
        for line in table.group(1).splitlines()
        for word in re.findall(r"`([^`]+)`", line.split("|")[1])
    ]


def test_retired_words_are_not_used() -> None:
    pages = [REPOSITORY / "README.md", *(REPOSITORY / "docs").rglob("*.md")]
    scripts = [*SOURCES.values(), *(REPOSITORY / "docs").rglob("*.py")]
    recipes = (REPOSITORY / "recipes").rglob("*.toml")
    words = retired_words()
    assert words
    used = []
    for path in [*pages, *scripts, *recipes]:
        name = path.relative_to(REPOSITORY).as_posix()
        for word in words if name not in HISTORY else ():
            pattern = rf"(?<![\w.-]){re.escape(word)}(?![\w-])"
            for match in re.finditer(pattern, text_of(path), re.IGNORECASE):
                line = text_of(path).count("\n", 0, match.start()) + 1
                used.append(f"{name}:{line}: {word}")
    none_of(used)


# --- what tests may do ----------------------------------------------------------------------------


FOREIGN = {"_fingerprint"}  # also the name of an attribute of `datasets`


def private_names() -> set[str]:
    """Names with a leading underscore that stagecli defines: functions, classes, variables."""
    names = set()
    for path in SOURCES.values():
        for node in ast.walk(tree_of(path)):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
                names.add(node.name)
            elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                names.add(node.id)
            elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
                names.add(node.attr)
    return {name for name in names if re.match(r"_[a-zA-Z]", name)} - FOREIGN


def reaches(path: Path, private: set[str]) -> Iterator[str]:
    """Where a test uses a private name: as an attribute, an import, or the name to replace."""
    for node in ast.walk(tree_of(path)):
        name = ""
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) != "self":
            name = node.attr
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("stagecli"):
            name = next((alias.name for alias in node.names if alias.name in private), "")
        elif isinstance(node, ast.Call) and re.search(
            r"(set|get|del)attr$|die_at$", ast.unparse(node.func)
        ):
            strings = [a.value for a in node.args if isinstance(a, ast.Constant)]
            name = next((word for word in strings if word in private), "")
        if name in private:
            yield f"{path.name}:{node.lineno}: {name}"  # type: ignore[attr-defined]


def test_tests_use_public_names_only() -> None:
    private = private_names()
    none_of(place for path in TESTS for place in reaches(path, private))


def test_test_modules_do_not_import_each_other() -> None:
    modules = {path.stem for path in TESTS if path.stem.startswith("test_")}
    none_of(
        f"{path.name}:{node.lineno}"
        for path in TESTS
        for node in ast.walk(tree_of(path))
        if (isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in modules)
        or (isinstance(node, ast.Import) and {alias.name for alias in node.names} & modules)
    )


def test_no_test_replaces_a_line_of_the_registry() -> None:
    """It could not see that the line is missing; a mechanism of the test's own may be added."""
    shipped = "|".join(registry.MECHANISMS)
    replaced = re.compile(
        rf"MECHANISMS\s*,\s*[\"']({shipped})[\"']"
        rf"|MECHANISMS\[[\"']({shipped})[\"']\]\s*="
        r"|setattr\(\s*registry\s*,\s*[\"']MECHANISMS"
        r"|registry\.MECHANISMS\s*="
    )
    none_of(path.name for path in TESTS if replaced.search(text_of(path)))
