"""What CONTRIBUTING.md promises about the code itself; import-linter checks the direction of imports (make lint)."""

import ast
from collections.abc import Iterator
from pathlib import Path

SOURCE = Path(__file__).parent.parent / "src" / "mocokit"
FILES = sorted(SOURCE.rglob("*.py"))


def _imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


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
        limits = [(path.name, text.count("\n"), 400)]
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef):
                limits.append((f"{path.name}:{node.name}", node.end_lineno - node.lineno + 1, 60))  # type: ignore[operator]
            elif isinstance(node, ast.ClassDef):
                limits.append((f"{path.name}:{node.name}", node.end_lineno - node.lineno + 1, 150))  # type: ignore[operator]
        too_long += [(name, length, limit) for name, length, limit in limits if length > limit]
    assert too_long == []


def test_no_file_is_a_drawer() -> None:
    assert not {path.stem for path in FILES} & {"utils", "helpers", "misc", "common", "base"}


def test_every_public_name_exists_and_loads_lazily() -> None:
    import mocokit

    assert sorted(mocokit.__all__) == sorted(mocokit._PUBLIC)
    for name in mocokit.__all__:
        assert getattr(mocokit, name).__doc__, name
