"""The command for somebody with a GPU runs to its end on a processor."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import results_table

ROOT = Path(__file__).parent.parent


@pytest.mark.slow
def test_it_runs_to_its_end_with_every_section_filled_or_its_reason(tmp_path, monkeypatch):
    done = subprocess.run(
        [
            sys.executable,
            ROOT / "tests/on_gpu.py",
            "--device",
            "cpu",
            "--tiny",
            "--minutes",
            "3",
            "--out",
            tmp_path / "out",
            "--work",
            tmp_path / "work",
        ],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    files = sorted(p for p in (tmp_path / "out").iterdir())
    assert len(files) <= 8 and all(p.is_file() and p.stat().st_size < 16 * 2**20 for p in files)
    report = json.loads((tmp_path / "out/report.json").read_text())
    for section in ("environment", "tests", "bench", "authors", "compile", "medium"):
        assert report[section] and all(report[section].values()), section
    assert len(report["medium"]) == len(report["bench"]) == 7

    # the page of results shows it once it lies among the reports
    monkeypatch.setattr(results_table, "FOLDER", tmp_path)
    (tmp_path / "on_gpu.json").write_text(json.dumps(report))
    page = results_table.on_gpu()
    assert report["environment"]["cpu"]["device"] in page
    assert page.count("| stargan | paper |") == page.count("| stargan | medium |") == 1
