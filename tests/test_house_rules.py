"""What CONTRIBUTING.md promises about the code itself; import-linter checks the direction of imports (make lint)."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SOURCE = ROOT / "src" / "mocokit"
FILES = sorted(SOURCE.rglob("*.py"))
TESTS = sorted((ROOT / "tests").rglob("*.py"))
FOLDERS = ("src", "tests", "experiments", "benchmarks", "examples")

MAX_LINES = {ast.Module: 400, ast.ClassDef: 150, ast.FunctionDef: 60}

RIDDLES = {"What", "Whether", "Which", "Who", "Whose", "How", "That"}
"""First words of docstrings that name a topic instead of saying what the code does."""


def _parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def _imports(path: Path) -> Iterator[str]:
    for node in ast.walk(_parse(path)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _strings_alone(tree: ast.Module) -> Iterator[ast.Constant]:
    """Yield the strings that are statements: docstrings of modules, classes, functions and attributes."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            yield node.value


def _is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


def _private_names_of_mocokit(tree: ast.Module) -> Iterator[str]:
    """Yield the private names that a test imports from mocokit, or reads from a module or class that it imported."""
    imported = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            imported |= {alias.asname or "mocokit" for alias in node.names if alias.name.split(".")[0] == "mocokit"}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "mocokit":
            imported |= {alias.asname or alias.name for alias in node.names}
            yield from (alias.name for alias in node.names if _is_private(alias.name))
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and _is_private(node.attr):
            owner = node.value
            while isinstance(owner, ast.Attribute):
                owner = owner.value
            if isinstance(owner, ast.Name) and owner.id in imported:
                yield ast.unparse(node)
    for node in ast.walk(tree):  # monkeypatch.setattr("mocokit.room.file._name", ...)
        if isinstance(node, ast.Constant) and re.fullmatch(r"mocokit[.\w]*\._[a-z]\w*", str(node.value)):
            yield str(node.value)


def test_one_room_speaks_to_torch_distributed() -> None:
    users = {path.parent.name for path in FILES if any(name.startswith("torch.distributed") for name in _imports(path))}
    assert users == {"distributed"}


def test_the_root_holds_five_files() -> None:
    at_root = {path.name for path in FILES if path.parent == SOURCE}
    assert at_root == {"__init__.py", "__main__.py", "losses.py", "randomness.py", "settings.py"}


def test_nobody_imports_the_command_line() -> None:
    outside = [path for path in FILES if path.parent.name != "cli"]
    users = {path.name for path in outside if any(name.startswith("mocokit.cli") for name in _imports(path))}
    assert users == {"__main__.py"}


def test_files_functions_and_classes_stay_small() -> None:
    too_long = []
    for path in FILES:
        text = path.read_text(encoding="utf-8")
        lengths = [(path.name, text.count("\n"), MAX_LINES[ast.Module])]
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                assert node.end_lineno is not None
                lengths.append((f"{path.name}:{node.name}", node.end_lineno - node.lineno + 1, MAX_LINES[type(node)]))
        too_long += [(name, length, limit) for name, length, limit in lengths if length > limit]
    assert too_long == []


def test_no_file_is_a_drawer() -> None:
    assert not {path.stem for path in FILES} & {"utils", "helpers", "misc", "common", "base"}


def test_the_formatter_has_the_last_word() -> None:
    mark = "# fmt: " + "skip"
    paths = [path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py")]
    assert [str(path) for path in paths if mark in path.read_text(encoding="utf-8")] == []


def test_no_docstring_is_a_riddle() -> None:
    riddles = []
    for path in FILES:
        for string in _strings_alone(_parse(path)):
            words = re.findall(r"\w+", str(string.value))
            if words and words[0] in RIDDLES:
                riddles.append(f"{path.name}:{string.lineno} {' '.join(words[:8])}")
    assert riddles == []


@pytest.mark.parametrize(
    "path", [path for path in FILES if path.name == "__init__.py"], ids=lambda path: path.parent.name
)
def test_each_room_says_what_it_is_for_and_what_it_may_import(path: Path) -> None:
    sentences = (ast.get_docstring(_parse(path)) or "").split(".")
    assert len(sentences) >= 2, "one sentence for the purpose, one for the imports"
    assert any("import" in sentence.lower() for sentence in sentences[1:])


def test_tests_use_public_names_alone() -> None:
    private = [f"{path.name}: {name}" for path in TESTS for name in _private_names_of_mocokit(_parse(path))]
    assert private == []


def test_names_of_tests_are_sentences() -> None:
    short = []
    for path in TESTS:
        names = {node.name for node in ast.walk(_parse(path)) if isinstance(node, ast.FunctionDef)}
        short += [f"{path.name}:{name}" for name in names if name.startswith("test_") and name.count("_") < 3]
    assert short == []


def test_every_public_name_exists_and_loads_lazily() -> None:
    import mocokit

    for name in mocokit.__all__:
        assert getattr(mocokit, name).__doc__, name
    with pytest.raises(AttributeError, match=re.escape(f"it has {sorted(mocokit.__all__)}")):
        mocokit.no_such_name  # noqa: B018
