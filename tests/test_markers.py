"""What `pytest -m "ray or distributed"` leaves out: nothing of the runtime and of deployment."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
FILES = [path for folder in ("runtime", "cluster") for path in sorted((TESTS / folder).glob("test_*.py"))]


def marks_of(source: str) -> set[str]:
    """Return the marks that a file gives to all its tests."""
    values = [
        node.value
        for node in ast.parse(source).body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "pytestmark"
    ]
    return {part.attr for value in values for part in ast.walk(value) if isinstance(part, ast.Attribute)} - {"mark"}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_every_file_about_several_processes_is_marked_as_a_whole(path):
    assert marks_of(path.read_text()) & {"ray", "distributed"}
