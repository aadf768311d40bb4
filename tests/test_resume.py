"""kill -9 at any moment: every paper's training goes on, and ends as if nothing had happened. KILLS=20 for
more of them."""

import contextlib
import importlib
import multiprocessing
import os
import random
import sys
import time

import pytest
import torch

import test_hostile
from conftest import tiny_flags
from lab.cli import cli
from lab.files import load_checkpoint, read_jsonl

KILLS = int(os.environ.get("KILLS", 4))
STEPS = 16


def alone(paper, argv, folder):
    """What the command line does, in a process that may be killed."""
    os.chdir(folder)
    torch.set_num_threads(1)
    test_hostile.quick(pytest.MonkeyPatch())
    sys.argv = [f"{paper}.py", *argv]
    importlib.import_module(paper)
    with open("out", "a") as out, contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
        cli(paper)


@pytest.fixture(scope="module")
def processes():
    """Processes that begin with everything imported, and nothing computed."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["test_hostile", *test_hostile.TINY])
    return context


def checkpoints(folder):
    return {str(path.relative_to(folder)): load_checkpoint(path) for path in sorted(folder.rglob("*.pt"))}


def same(a, b):
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a if k != "seconds")
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


@pytest.mark.slow
@pytest.mark.parametrize("paper", test_hostile.TINY)
def test_a_training_that_is_killed_again_and_again_ends_as_one_that_is_not(processes, tmp_path, cache, paper):
    settings = (
        test_hostile.TINY[paper]
        | dict(steps=STEPS, save_every=1, log_every=1, sample_every=STEPS)
        | {"stargan": dict(n_critic=3), "gannotation": dict(d_steps=3)}.get(paper, {})  # G not in each step
        | (dict(rounds=1) if paper == "iacyclegan" else {})
    )
    argv = ["--train", "--scale", "small", "--run", "run", "--cache", cache, *tiny_flags(settings)]
    for name in ("calm", "rough"):
        (tmp_path / name).mkdir()

    def begin(name):
        process = processes.Process(target=alone, args=(paper, argv, str(tmp_path / name)))
        process.start()
        return process

    def steps(name):
        return sum(len(read_jsonl(log)) for log in (tmp_path / name / "run").rglob("metrics.jsonl"))

    process = begin("calm")
    process.join()
    assert process.exitcode == 0, (tmp_path / "calm/out").read_text()
    moments, killed = random.Random(0), 0
    for step in sorted(moments.choices(range(steps("calm")), k=KILLS)):
        process = begin("rough")
        while steps("rough") <= step and process.is_alive():
            time.sleep(0.01)
        process.join(moments.uniform(0, 0.1))
        killed += process.is_alive()
        process.kill()
        process.join()
        checkpoints(tmp_path / "rough/run")  # whole, all of them
    process = begin("rough")
    process.join()
    assert process.exitcode == 0 and killed, (tmp_path / "rough/out").read_text()
    assert same(checkpoints(tmp_path / "calm/run"), checkpoints(tmp_path / "rough/run"))
    for log in (tmp_path / "calm/run").rglob("metrics.jsonl"):
        lines = [
            [{k: v for k, v in line.items() if k != "seconds"} for line in read_jsonl(p)]
            for p in (log, tmp_path / "rough/run" / log.relative_to(tmp_path / "calm/run"))
        ]
        assert lines[0] == lines[1]
