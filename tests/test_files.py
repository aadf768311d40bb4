"""Checkpoints are whole or not there, and say what does not fit."""
import os
from types import SimpleNamespace

import pytest
import torch
import torch.nn as nn

from lab import UserError
from lab.files import load_checkpoint, load_weights, reads_checkpoint, save_checkpoint


def test_load_weights_lists_what_does_not_fit():
    with pytest.raises(UserError, match="missing: bias; unexpected: extra; other shape: weight"):
        load_weights(nn.Linear(2, 2), {"weight": torch.zeros(3, 3), "extra": torch.zeros(1)}, "file.pt")


def test_a_checkpoint_that_does_not_fit_is_named_by_its_path():
    @reads_checkpoint
    def take_over(cfg, paper):
        return {}["head"]

    with pytest.raises(UserError, match="^some.pt: not a checkpoint that fits here"):
        take_over(SimpleNamespace(weights="some.pt", run="runs/it"), "drgan.py")


def test_two_processes_write_one_file_at_once(tmp_path, monkeypatch):
    """Each writes beside it under a name of its own; with one name, the slower one found its file gone."""
    save = torch.save

    def another_comes_between(content, path):
        save(content, path)
        monkeypatch.setattr(torch, "save", save)
        monkeypatch.setattr(os, "getpid", lambda: 1)
        save_checkpoint({"step": 2}, tmp_path / "last.pt")
        monkeypatch.undo()

    monkeypatch.setattr(torch, "save", another_comes_between)
    save_checkpoint({"step": 1}, tmp_path / "last.pt")
    assert load_checkpoint(tmp_path / "last.pt") == {"step": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["last.pt"]
