"""Ablations and their tables."""

import json
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from lab import UserError, claims
from lab.claims import branch, in_parallel, table
from lab.files import load_checkpoint
from test_run import descend, equal, settings


def test_a_branch_is_the_same_as_the_whole_run(tmp_path):
    whole = descend(settings(tmp_path / "a", steps=8))
    trunk = settings(tmp_path / "trunk", steps=8, stop_after=5)
    descend(trunk)
    descend(trunk)  # finished: nothing more to do
    assert load_checkpoint(tmp_path / "trunk" / "last.pt")["step"] == 5
    cfg = settings(tmp_path / "b", steps=8)
    branch(trunk, cfg)
    assert equal(descend(cfg), whole)
    with pytest.raises(UserError, match="stands at step 5, expected 4"):
        branch(replace(trunk, stop_after=4), settings(tmp_path / "c", steps=8))


def test_in_parallel_leaves_4_GiB_of_a_gpu_to_each_process(monkeypatch):
    seen = []

    class Pool(ThreadPoolExecutor):
        def __init__(self, workers, *_):
            seen.append(workers)
            super().__init__(workers)
    monkeypatch.setattr(claims, "ProcessPoolExecutor", Pool)
    monkeypatch.setattr(torch.multiprocessing, "cpu_count", lambda: 16)
    for free, workers in ((79, 9), (30, 5), (15, 3), (7, None), (3, None)):  # of 9 jobs
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device, n=free: (n * 2 ** 30, 80 * 2 ** 30))
        seen.clear()
        assert in_parallel(abs, list(range(-9, 0)), "cuda") == list(range(9, 0, -1))
        assert seen == [workers] * (workers is not None)


def test_in_parallel_keeps_the_order():
    assert in_parallel(abs, [-3, 2, -1], "cpu") == [3, 2, 1]


@pytest.mark.slow
def test_in_parallel_ends_its_processes_when_told_to_stop(tmp_path):
    script = tmp_path / "script.py"
    script.write_text("""
import signal, sys, time
from lab.claims import in_parallel
if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(143))
    print("begun", flush=True)
    in_parallel(time.sleep, [300, 300], "cpu")
""")
    here = os.environ | {"PYTHONPATH": str(Path(__file__).parent.parent)}
    with subprocess.Popen([sys.executable, script], env=here, stdout=subprocess.PIPE) as process:
        process.stdout.readline()
        time.sleep(5)
        process.terminate()
        assert process.wait(100) == 143


def test_a_log_that_two_trainings_share_counts_once(tmp_path, monkeypatch, capsys):
    jobs = {(name, 0): settings(tmp_path / name) for name in "ab"}
    for name, seconds in ("a/round0", 5.), ("b/round0", 5.), ("b/round1", 7.):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "metrics.jsonl").write_text(json.dumps({"step": 1, "seconds": seconds}) + "\n")
    study = claims.Ablation(jobs)
    study.results, study.rows = {}, {"row": {"L1": 0.}}
    assert json.loads(study.write(settings(tmp_path)).read_text())["seconds"] == 12


@pytest.mark.parametrize(
    "met, verdict",
    [
        ((True, True, True), "reproduced"),
        ((True, False, False), "partly reproduced"),
        ((True, True, False), "partly reproduced"),
        ((False, False, True), "not reproduced"),  # nothing was lost, nothing won
        ((False, False, False), "not reproduced"),
    ],
)
def test_a_guard_alone_reproduces_nothing(tmp_path, met, verdict):
    study = claims.Ablation({("a", seed): settings(tmp_path / str(seed)) for seed in range(2)})
    study.claim("c", "w", np.zeros(2), np.ones(2), guards=["z"], **dict(zip("xyz", met, strict=True)))
    assert study.claims[0]["verdict"] == verdict and list(study.criteria.values()) == list(met)


def test_rows_that_share_no_measure_get_a_heading_of_their_own():
    text = table(
        {"rows": {"a": {"L1": 1.0}, "b": {"L1": 2.0, "SSIM": 0.5}, "c": {"AUC": 0.25}}, "notes": "n"}
    ).splitlines()
    assert [line.split() for line in text] == [
        ["L1", "SSIM"],
        ["a", "1.0000"],
        ["b", "2.0000", "0.5000"],
        ["AUC"],
        ["c", "0.2500"],
        ["notes:", "n"],
    ]
