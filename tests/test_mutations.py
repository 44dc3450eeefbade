"""Every mutation of mutations.py still applies; whether tests notice them is tried by hand."""

from __future__ import annotations

import ast

import pytest
from mutations import MUTATIONS, REPOSITORY, Mutation


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.name)
def test_a_mutation_matches_once_and_stays_python(mutation: Mutation) -> None:
    path, text = mutation.mutated(REPOSITORY)
    assert ast.dump(ast.parse(text)) != ast.dump(ast.parse(path.read_text(encoding="utf-8")))
    for test in mutation.tests:
        assert (REPOSITORY / "tests" / test).is_file()


def test_names_are_unique() -> None:
    assert len({mutation.name for mutation in MUTATIONS}) == len(MUTATIONS) >= 16
