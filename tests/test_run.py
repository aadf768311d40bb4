"""A training goes on exactly, whatever interrupts it."""

import json
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
import torch.nn as nn

import lab.run
from lab import UserError
from lab.files import load_checkpoint, read_jsonl
from lab.machine import resolve_device
from lab.run import Run, frozen

HERE = Path(__file__).parent


@dataclass
class Config(lab.run.Settings):
    steps: int = 8
    batch_size: int = 4
    width: int = 3


class Numbers:
    def __init__(self, seed):
        self.generator = torch.Generator().manual_seed(seed)

    def sample(self, n):
        return torch.randn(n, 3, generator=self.generator)


def descend(cfg, pause=0.0):
    """A tiny training that uses both random generators; returns its weights."""
    torch.manual_seed(cfg.seed)
    net = nn.Linear(3, cfg.width)
    opt = torch.optim.Adam(net.parameters(), 1e-2)
    run = Run(cfg, Numbers(cfg.seed), {"G": net}, {"G": opt})
    for step, x in run.batches(cfg.batch_size):
        loss = ((net(x) - torch.randn(len(x), cfg.width)) ** 2).mean()
        opt.zero_grad()
        loss.backward()
        opt.step()
        if run.logs(step):
            run.log(step, loss=loss.detach())
        time.sleep(pause)
    return net.state_dict()


def settings(folder, **kwargs):
    return Config(run=str(folder), device="cpu", amp=False, log_every=1, save_every=3, **kwargs)


def equal(a, b):
    return all(torch.equal(a[k], b[k]) for k in a)


def test_n_plus_n_steps_are_2n_steps_bit_for_bit(tmp_path):
    whole = descend(settings(tmp_path / "a", steps=8))
    descend(settings(tmp_path / "b", steps=4))
    assert equal(descend(settings(tmp_path / "b", steps=8)), whole)
    steps = [line["step"] for line in read_jsonl(tmp_path / "b" / "metrics.jsonl")]
    assert steps == list(range(1, 9))
    assert equal(descend(settings(tmp_path / "b", steps=8)), whole)  # nothing left to do
    assert (tmp_path / "a" / "losses.png").exists()


def child(folder, pause):
    code = (
        f"import sys; sys.path[:0] = [{str(HERE)!r}, {str(HERE.parent)!r}]\n"
        f"import test_run as t; t.descend(t.settings({str(folder)!r}, steps=60), pause={pause})"
    )
    return subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def wait_for(folder, step):
    for _ in range(2400):
        lines = read_jsonl(folder / "metrics.jsonl") if (folder / "metrics.jsonl").exists() else []
        if lines and lines[-1]["step"] >= step:
            return
        time.sleep(0.05)
    raise AssertionError("the child did not start")


def test_killed_run_continues_exactly(tmp_path):
    whole = descend(settings(tmp_path / "a", steps=60))
    process = child(tmp_path / "b", 0.05)
    wait_for(tmp_path / "b", 8)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert equal(descend(settings(tmp_path / "b", steps=60)), whole)
    assert [line["step"] for line in read_jsonl(tmp_path / "b" / "metrics.jsonl")] == list(range(1, 61))


@pytest.mark.parametrize("number, code", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signal_saves_says_how_to_go_on_and_sets_the_exit_code(tmp_path, number, code):
    process = child(tmp_path / "b", 0.05)
    wait_for(tmp_path / "b", 4)
    process.send_signal(number)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == code and "goes on from there" in out
    stopped = load_checkpoint(tmp_path / "b" / "last.pt")["step"]
    assert stopped == read_jsonl(tmp_path / "b" / "metrics.jsonl")[-1]["step"] >= 4
    assert equal(descend(settings(tmp_path / "b", steps=60)), descend(settings(tmp_path / "a", steps=60)))


def test_other_settings_are_refused_and_nothing_is_touched(tmp_path):
    descend(settings(tmp_path, steps=4))
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    with pytest.raises(UserError, match="width .was 3, now 5."):
        descend(settings(tmp_path, steps=4, width=5))
    assert before == {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    descend(settings(tmp_path, steps=4, width=5, fresh=True))


def test_an_automatic_choice_of_precision_follows_the_run(tmp_path):
    for amp in (True, False):
        descend(replace(settings(tmp_path / str(amp), steps=4), amp=amp))
        cfg = resolve_device(Config(run=str(tmp_path / str(amp)), device="cpu", steps=6))
        descend(cfg)
        assert cfg.amp is amp


def test_a_changed_data_set_is_no_secret(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(Numbers, "__len__", lambda self: 7, raising=False)
    descend(settings(tmp_path, steps=4))
    descend(settings(tmp_path, steps=5))
    assert "note" not in capsys.readouterr().out
    monkeypatch.setattr(Numbers, "__len__", lambda self: 9)
    descend(settings(tmp_path, steps=6))
    assert "the data set had 7 pictures, now it has 9" in capsys.readouterr().out


def test_a_log_line_that_was_cut_off_does_not_matter(tmp_path):
    descend(settings(tmp_path, steps=4))
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"step": 5, "hea')
    descend(settings(tmp_path, steps=6))
    assert [line["step"] for line in read_jsonl(tmp_path / "metrics.jsonl")] == list(range(1, 7))


@pytest.mark.parametrize(
    "damage", ['{"step": 9}garbage', "null", "[1]", '{"step": "4"}', "\x00\x00", '{"loss": 1}']
)
def test_damage_in_a_log_does_not_matter(tmp_path, damage):
    descend(settings(tmp_path, steps=4))
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    (tmp_path / "metrics.jsonl").write_text("\n".join([lines[0], damage, *lines[2:]]) + "\n")
    descend(settings(tmp_path, steps=6))
    assert [line["step"] for line in read_jsonl(tmp_path / "metrics.jsonl")] == [1, 3, 4, 5, 6]


def test_networks_that_are_not_finite_never_replace_a_checkpoint(tmp_path, monkeypatch):
    descend(settings(tmp_path, steps=6, stop_after=3))
    sample = Numbers.sample
    monkeypatch.setattr(Numbers, "sample", lambda self, n: sample(self, n) * float("inf"))
    with pytest.raises(
        UserError, match="at step 6 the networks hold numbers that are not finite; .* is still that of step 3"
    ):
        descend(settings(tmp_path, steps=6))
    assert load_checkpoint(tmp_path / "last.pt")["step"] == 3
    with pytest.raises(UserError, match="at step 3 .*; no checkpoint was written"):
        descend(settings(tmp_path / "new", steps=6))


def test_a_checkpoint_in_another_memory_layout_goes_on_exactly(tmp_path):
    """As a GPU leaves it, where networks are channels_last: Adam's moments must follow their parameters."""

    def train(steps, layout):
        torch.manual_seed(0)
        net = nn.Conv2d(4, 6, 3).to(memory_format=layout)
        opt = torch.optim.Adam(net.parameters(), 1e-2, fused=True)
        run = Run(settings(tmp_path / str(len(layouts)), steps=steps), Numbers(0), {"G": net}, {"G": opt})
        for _, x in run.batches(2):
            loss = net(x.mean() + torch.arange(4 * 25.0).view(1, 4, 5, 5) / 100).square().mean()
            opt.zero_grad()
            loss.backward()
            opt.step()
        return net.state_dict()

    layouts = [torch.contiguous_format, torch.channels_last]
    train(3, torch.channels_last)
    went_on = train(6, torch.contiguous_format)
    layouts.append("whole")
    assert torch.allclose(went_on["weight"], train(6, torch.contiguous_format)["weight"], atol=1e-7)


def test_the_checkpoint_of_another_paper_is_refused(tmp_path):
    descend(settings(tmp_path, steps=4))
    saved = load_checkpoint(tmp_path / "last.pt")
    torch.save(saved | {"paper": "stargan"}, tmp_path / "last.pt")
    with pytest.raises(UserError, match="a checkpoint of stargan"):
        descend(settings(tmp_path, steps=8))
    torch.save([1, 2], tmp_path / "last.pt")
    with pytest.raises(UserError, match="holds list"):
        descend(settings(tmp_path, steps=8))


def test_log_says_nan(tmp_path):
    cfg = settings(tmp_path, steps=1)
    run = Run(cfg, Numbers(0), {}, {})
    for step, _ in run.batches(1):
        run.log(step, loss=torch.tensor(float("nan")))
    line = json.loads((tmp_path / "metrics.jsonl").read_text())
    assert line["health"] == "nan" and line["loss"] is None


def test_checkpoints_take_no_more_than_a_fiftieth_of_the_time(tmp_path, monkeypatch):
    saved, save = [], lab.run.save_checkpoint

    def slow(content, path):
        saved.append(content["step"])
        time.sleep(0.3)
        save(content, path)

    monkeypatch.setattr(lab.run, "save_checkpoint", slow)
    descend(settings(tmp_path, steps=30))
    assert saved == [3, 30]


def test_frozen_stops_parameters_but_not_the_flow():
    D, x = nn.Linear(3, 1), torch.randn(2, 3, requires_grad=True)
    with frozen(D):
        D(x).sum().backward()
    assert D.weight.grad is None and x.grad is not None and D.weight.requires_grad
