"""The source of the package as syntax trees: what the tests of its rules walk over."""

from __future__ import annotations

import ast
import io
import tokenize
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import stagecli

PACKAGE = Path(stagecli.__file__).parent
REPOSITORY = Path(__file__).parents[2]
SOURCES = {
    path.relative_to(PACKAGE).with_suffix("").as_posix().replace("/", "."): path
    for path in sorted(PACKAGE.rglob("*.py"))
}
TESTS = sorted((REPOSITORY / "tests").rglob("*.py"))
Function = ast.FunctionDef | ast.AsyncFunctionDef


def room(module: str) -> str:
    """The folder of a module of the package, or its own name where it lies loose."""
    return module.partition(".")[0]


@cache
def text_of(path: Path) -> str:
    return path.read_text(encoding="utf-8")


@cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(text_of(path))


def functions(path: Path) -> Iterator[Function]:
    """Every function and method of a file, nested ones too."""
    for node in ast.walk(tree_of(path)):
        if isinstance(node, Function):
            yield node


def classes(path: Path) -> Iterator[ast.ClassDef]:
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.ClassDef):
            yield node


def length(node: ast.stmt) -> int:
    """Lines of a definition, from its `def` or `class` to its end."""
    assert node.end_lineno is not None
    return node.end_lineno - node.lineno + 1


def body_lines(node: Function) -> range:
    """Line numbers of a function's statements, without signature and docstring."""
    assert node.end_lineno is not None
    statements = node.body[1:] if ast.get_docstring(node) is not None else node.body
    first = statements[0].lineno if statements else node.end_lineno + 1
    if statements and ast.get_docstring(node) is not None:
        first = (node.body[0].end_lineno or first) + 1  # comments before the first statement count
    return range(first, node.end_lineno + 1)


@cache
def comment_lines(path: Path) -> frozenset[int]:
    """Line numbers of comments that stand on a line of their own."""
    tokens = tokenize.generate_tokens(io.StringIO(text_of(path)).readline)
    return frozenset(
        token.start[0]
        for token in tokens
        if token.type == tokenize.COMMENT and token.line.lstrip().startswith("#")
    )


def attributes(node: ast.ClassDef) -> set[str]:
    """Names that a class gives its instances: assigned to `self`, or fields of a dataclass."""
    names = set()
    for inner in ast.walk(node):
        if isinstance(inner, ast.Attribute) and isinstance(inner.ctx, ast.Store):
            if isinstance(inner.value, ast.Name) and inner.value.id == "self":
                names.add(inner.attr)
    if any("dataclass" in ast.unparse(decorator) for decorator in node.decorator_list):
        names |= {
            line.target.id
            for line in node.body
            if isinstance(line, ast.AnnAssign) and isinstance(line.target, ast.Name)
        }
    return names


def docstrings(tree: ast.AST) -> set[int]:
    """The ids of the nodes of string constants that stand alone: docstrings and field docs."""
    return {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
