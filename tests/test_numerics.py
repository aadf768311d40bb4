"""Half precision, flat pictures, the smallest batch: every paper's training stays finite. NUMERICS=2000 for
as many steps."""

import importlib
import os

import pytest
import torch

import test_hostile
from lab import UserError, toyfaces
from lab.files import load_checkpoint, read_jsonl

STEPS = int(os.environ.get("NUMERICS", 8))
MODELS = [
    *((paper, {}) for paper in test_hostile.TINY),
    ("drgan", dict(images_per_subject=3)),
    ("pix2pix_cyclegan", dict(model="cyclegan")),
    ("stargan", dict(toy="both", lambda_triple=1.0, copy_steps=1)),
    ("pairedcyclegan", dict(regions="parts")),
]


@pytest.fixture
def trained(tmp_path, cache, monkeypatch):
    """trained(paper, ...) trains a tiny model, checks that it stayed finite, and returns the lines of its
    log."""
    test_hostile.quick(monkeypatch)

    def run(paper, **settings):
        module = importlib.import_module(paper)
        cfg = module.Config(
            **test_hostile.TINY[paper]
            | dict(cache=cache, run=str(tmp_path / "run"), log_every=1, save_every=9999, sample_every=9999)
            | settings
        )
        module.train(cfg)
        files = sorted(tmp_path.glob("run/**/*.pt"))
        assert files and all(v.isfinite().all() for file in files for v in tensors(load_checkpoint(file)))
        lines = [line for log in sorted(tmp_path.glob("run/**/metrics.jsonl")) for line in read_jsonl(log)]
        assert lines and not any(line["health"] == "nan" for line in lines)
        return lines

    return run


def tensors(saved):
    if isinstance(saved, torch.Tensor):
        yield saved
    elif isinstance(saved, (dict, list, tuple)):
        for value in saved.values() if isinstance(saved, dict) else saved:
            yield from tensors(value)


@pytest.mark.parametrize(("paper", "more"), MODELS, ids=str)
def test_bfloat16_stays_finite(trained, paper, more):
    lines = trained(paper, amp=True, steps=STEPS, log_every=max(1, STEPS // 10), **more)
    assert lines[-1]["step"] >= STEPS


@pytest.mark.parametrize(("paper", "more"), MODELS, ids=str)
def test_flat_pictures_do_not_divide_by_zero(trained, paper, more, monkeypatch, tmp_path):
    drawn = toyfaces.render

    def flat(*args, **kwargs):
        return torch.full_like(drawn(*args, **kwargs), -1.0)

    monkeypatch.setattr(toyfaces, "render", flat)
    trained(paper, cache=str(tmp_path / "cache"), **more)


@pytest.mark.parametrize(("paper", "more"), MODELS, ids=str)
def test_the_smallest_batch_trains(trained, paper, more):
    smallest = {
        "drgan": dict(batch_size=2 * more.get("images_per_subject", 1)),  # batch norm needs two people
        "pairedcyclegan": dict(batch_size=1, mismatch=False),
    }  # no other reference in the batch
    trained(paper, **smallest.get(paper, dict(batch_size=1)) | more)


@pytest.mark.parametrize("size", [33, 50])
@pytest.mark.parametrize(("paper", "more"), MODELS, ids=str)
def test_odd_sizes_train_or_are_refused_with_what_fits(trained, paper, more, size):
    try:
        trained(paper, image_size=size, **more)
    except UserError as error:
        assert str(error).startswith(f"--image-size {size}: expected ") and "\n" not in str(error), error
