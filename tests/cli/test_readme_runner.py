"""`.ci/readme.py`, which runs the README's snippets."""

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

SCRIPT = Path(__file__).parents[2] / ".ci" / "readme.py"
TEXT = """# Title

<!-- ci: skip: it was run before -->
```bash
pip install . && pytest
```

words `code`

<!-- ci: setup: echo 3 > number.txt -->
```python
print(2 * int(open("number.txt").read()))
open("result.txt", "w").write("done")
```

```
no kind
```

```text
not run
```

```bash
cat result.txt
```
"""


@pytest.fixture(scope="module")
def readme() -> ModuleType:
    spec = importlib.util.spec_from_file_location("readme_runner", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def write(path: Path, text: str) -> Path:
    file = path / "README.md"
    file.write_text(text)
    return file


def test_blocks_are_kind_note_and_body(readme: ModuleType, tmp_path: Path) -> None:
    assert readme.blocks(write(tmp_path, TEXT)) == [
        ("bash", "skip: it was run before", "pip install . && pytest"),
        (
            "python",
            "setup: echo 3 > number.txt",
            'print(2 * int(open("number.txt").read()))\nopen("result.txt", "w").write("done")',
        ),
        ("text", "", "not run"),
        ("bash", "", "cat result.txt"),
    ]


def test_the_test_command_is_the_line_that_ends_in_pytest(
    readme: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = write(tmp_path, TEXT)
    assert readme.main(["test-command", str(file)]) == 0
    assert capsys.readouterr().out == "pip install . && pytest\n"
    with pytest.raises(SystemExit, match="expected one test command"):
        readme.test_command(write(tmp_path, "```bash\nls\n```"))


def test_snippets_run_in_order_in_one_folder(
    readme: ModuleType, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert readme.main(["run", str(write(tmp_path, TEXT))]) == 0
    out = capfd.readouterr().out
    assert "-- left out, it was run before: bash: pip install . && pytest" in out
    assert "6\n" in out
    assert "done" in out
    assert "not run" not in out


@pytest.mark.parametrize(
    "block",
    [
        "```python\nraise SystemExit(3)\n```",
        "```bash\nfalse\ntrue\n```",
        "```bash\nfalse | true\n```",
        "<!-- ci: setup: false -->\n```bash\ntrue\n```",
    ],
)
def test_a_snippet_that_fails_fails_the_gate_and_the_others_still_run(
    readme: ModuleType, tmp_path: Path, capfd: pytest.CaptureFixture[str], block: str
) -> None:
    file = write(tmp_path, f"{block}\n\n```bash\necho still here\n```\n")
    assert readme.main(["run", str(file)]) == 1
    assert "still here" in capfd.readouterr().out


def test_anything_else_is_a_usage_error(readme: ModuleType) -> None:
    assert readme.main([]) == 2


def test_the_readme_of_the_project_has_its_test_command(readme: ModuleType) -> None:
    command = readme.test_command(SCRIPT.parents[1] / "README.md")
    assert command == "pip install -c constraints.txt '.[test]' && pytest -n auto"


def test_a_block_may_be_run_as_another_command(
    readme: ModuleType, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    text = "<!-- ci: instead: echo short -->\n```bash\necho long; exit 1\n```\n"
    assert readme.run(write(tmp_path, text)) == 0
    out = capfd.readouterr().out
    assert "-- bash: echo long; exit 1 (as echo short)" in out
    assert "short" in out.splitlines()
    assert "long" not in out.splitlines()


def test_several_files_run_at_once_and_are_told_apart(
    readme: ModuleType,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    # Each waits for what the other writes, so one after the other would never end well.
    files = [tmp_path / "a.md", tmp_path / "b.md"]
    for file, mine, other in zip(files, "ab", "ba"):
        wait = f"for i in $(seq 200); do [ -e {tmp_path}/{other}.done ] && break; sleep 0.1; done"
        file.write_text(
            f"```bash\ntouch {tmp_path}/{mine}.done\n{wait}\n[ -e {tmp_path}/{other}.done ]\n```\n"
        )
    assert readme.main(["run", *map(str, files)]) == 0
    out = capfd.readouterr().out.splitlines()
    assert [line for line in out if line.startswith("----")] == ["---- a.md", "---- b.md"]
    files[1].write_text("```bash\nfalse\n```\n")
    assert readme.main(["run", *map(str, files)]) == 1
