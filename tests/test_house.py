"""The house: every file has its budget, and imports run one way."""

import ast
from pathlib import Path

import pytest

from conftest import PAPERS

ROOT = Path(__file__).parent.parent
BUDGETS = {"common.py": 400, "drgan.py": 700, "pairedcyclegan.py": 700, "lab/toyfaces.py": 750}
FILES = sorted(
    p.relative_to(ROOT).as_posix() for pattern in ("*.py", "lab/**/*.py") for p in ROOT.glob(pattern)
)


def budget(file):
    if file in BUDGETS:
        return BUDGETS[file]
    return 400 if file.startswith("lab/claims/") else 350 if file.startswith("lab/") else 600


def imports(file):
    """Names of our own modules that a file imports, wherever in it."""
    found = set()
    for node in ast.walk(ast.parse((ROOT / file).read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return {name for name in found if name.split(".")[0] in {"common", "lab", *PAPERS}}


def test_the_top_level_is_what_a_reader_expects():
    assert {p.stem for p in ROOT.glob("*.py")} == {"common", *PAPERS}


@pytest.mark.parametrize("file", FILES)
def test_a_file_keeps_its_budget(file):
    lines = (ROOT / file).read_text().splitlines()
    assert len(lines) <= budget(file), f"{file}: {len(lines)} lines, budget {budget(file)}"
    docstring = ast.get_docstring(ast.parse("\n".join(lines)), clean=False) or ""
    assert len(docstring.splitlines()) <= 45, f"{file}: the docstring has {len(docstring.splitlines())} lines"
    assert max(map(len, lines), default=0) <= 110


@pytest.mark.parametrize("file", FILES)
def test_a_function_fits_a_screen(file):
    """A training loop and the parts that draw a face may be longer."""
    for node in ast.walk(ast.parse((ROOT / file).read_text())):
        if (
            isinstance(node, ast.FunctionDef)
            and not node.name.startswith("train")
            and file != "lab/toyfaces.py"
        ):
            assert node.end_lineno - node.lineno < 60, (
                f"{file}: {node.name} has {node.end_lineno - node.lineno + 1} lines"
            )


@pytest.mark.parametrize("file", FILES)
def test_imports_run_one_way(file):
    ours, module = imports(file), file.removesuffix(".py").replace("/", ".")
    papers = {name for name in ours if name.split(".")[0] in PAPERS}
    if file == "common.py":
        assert not ours
    elif file.startswith("lab/claims/"):
        assert papers <= {Path(file).stem}  # its own paper, no other
    elif file.startswith("lab/"):
        assert not papers, f"{file} knows {papers}"
        assert not {n for n in ours if n.startswith("lab.claims")} or module == "lab.cli"
    else:
        assert not papers and not {n for n in ours if n.startswith(("lab.claims", "lab.bench"))}


def test_no_imports_go_in_a_circle():
    modules = {file.removesuffix(".py").removesuffix("/__init__").replace("/", "."): file for file in FILES}
    ways = {
        name: {other for other in imports(file) if other in modules and other != name}
        for name, file in modules.items()
    }

    def walk(name, path):
        assert name not in path, " -> ".join([*path[path.index(name) :], name])
        for other in ways[name]:
            walk(other, [*path, name])

    for name in modules:
        walk(name, [])
