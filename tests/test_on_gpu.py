"""The command for somebody with a GPU runs to its end on a processor."""

import importlib
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import on_gpu
import pytest
import results_table
from lab import cli

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize("model", on_gpu.MODELS)
def test_the_shortened_medium_recipes_are_trainings(tmp_path, model):
    args = SimpleNamespace(out="", work=str(tmp_path), device="cpu", tiny=False)
    report = SimpleNamespace(args=args, work=tmp_path)
    for seconds in (60, 400):
        command = on_gpu.medium_command(report, model, seconds)
        name, *flags = command[command.index("paper") + 1 :]
        paper = importlib.import_module(name)
        cfg = cli.config_of(paper, cli.parser_of(paper).parse_args([*flags, "--train"]))
        paper.validate(cfg)
        assert cfg.steps < on_gpu.config(model, "medium", args)[1].steps


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
            "--models",
            "pix2pix",
            "stargan",
            "iacyclegan",
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
    assert len(report["medium"]) == len(report["bench"]) == 3
    assert any(one["rows"] for one in report["medium"].values())
    assert not [why for one in report["medium"].values() for why in one["reasons"] if why.startswith("exit")]

    # the page of results shows it once it lies among the reports
    monkeypatch.setattr(results_table, "FOLDER", tmp_path)
    (tmp_path / "on_gpu.json").write_text(json.dumps(report))
    page = results_table.on_gpu()
    assert report["environment"]["cpu"]["device"] in page
    assert page.count("| stargan | paper |") == page.count("| stargan | medium |") == 1
