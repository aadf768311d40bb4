import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def test_the_two_commands_are_there():
    assert "pip install -r requirements.txt && python gannotation.py --train" in README
    tests = next(line for line in README.splitlines() if "tests/requirements.txt" in line)
    assert "pytest" in tests


def test_every_file_that_the_readme_names_exists():
    for path in re.findall(r"\]\(([^)#:]+)\)", README) + re.findall(
        r"`((?:tests|notebooks)/[\w./-]+|\w+\.py)`", README
    ):
        assert (ROOT / path).exists() or (ROOT / "notebooks" / path).exists(), path


@pytest.mark.parametrize("script", sorted({m for m in re.findall(r"python (\w+\.py)", README)}))
def test_every_flag_that_the_readme_names_exists(script):
    out = subprocess.run(
        [sys.executable, ROOT / script, "--help"], capture_output=True, text=True, check=True
    ).stdout
    for line in re.findall(rf"python {script}[^\n`]*", README):
        for flag in re.findall(r"--[\w-]+", line):
            assert flag in out, f"{script} {flag}"


def test_the_readme_is_short():
    assert len(README.splitlines()) <= 250


def test_the_page_of_results_is_made_from_the_reports():
    sys.path.insert(0, str(ROOT / "tests"))
    import results_table

    assert (ROOT / "notebooks/results/README.md").read_text() == results_table.page()


def test_every_link_into_the_page_of_results_has_a_heading():
    page = (ROOT / "notebooks/results/README.md").read_text()
    headings = {h.lower().replace(" ", "-").replace("'", "") for h in re.findall(r"^#+ (.+)$", page, re.M)}
    assert set(re.findall(r"results/README.md#([\w-]+)", README)) <= headings
