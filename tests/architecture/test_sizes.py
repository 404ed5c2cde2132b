"""No file over 400 lines, no function over 60; every test file is one that pytest collects."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FOLDERS = ("src", "tests", "benchmarks", "examples", ".ci")
FILES = sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))


def test_files_are_found() -> None:
    assert len(FILES) > 50


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_sizes(path: Path) -> None:
    text = path.read_text()
    num_lines = len(text.splitlines())
    assert num_lines <= 400, f"{num_lines} lines: split it by idea"
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            assert node.end_lineno is not None
            length = node.end_lineno - node.lineno + 1
            assert length <= 60, f"{node.name} has {length} lines: split it by idea"


def test_every_test_file_is_collected() -> None:
    for path in (ROOT / "tests").rglob("*.py"):
        defined = {node.name for node in ast.parse(path.read_text()).body if hasattr(node, "name")}
        tests = {name for name in defined if name.lower().startswith("test")}
        if tests:
            assert path.name.startswith("test_"), f"{path} holds tests but pytest does not collect its name"
        elif path.name.startswith("test_"):
            raise AssertionError(f"{path} is collected but holds no test")
    folders = {path.parent for path in (ROOT / "tests").rglob("test_*.py")}
    missing = [str(folder) for folder in folders if not (folder / "__init__.py").exists()]
    assert not missing, f"without __init__.py two files of one name collide: {missing}"
