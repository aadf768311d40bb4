"""Our training loops against steps written again, plainly, in the order of the authors' codes: the same
losses from the same start."""

import pytest
import torch

import bench_authors
import test_pix2pix_cyclegan
import test_stargan

TINY = {
    "stargan": test_stargan.TINY,
    "pix2pix": test_pix2pix_cyclegan.TINY,
    "cyclegan": test_pix2pix_cyclegan.TINY,
}


@pytest.mark.parametrize(
    ("model", "paper", "more"), bench_authors.MODELS, ids=lambda v: v if isinstance(v, str) else ""
)
def test_the_losses_after_six_steps_are_those_of_the_authors_order(
    tmp_path, cache, monkeypatch, model, paper, more
):
    tests = test_stargan if model == "stargan" else test_pix2pix_cyclegan
    tests.quick(monkeypatch) if model == "stargan" else tests.small(model, tmp_path, cache, monkeypatch)
    cfg = paper.Config(**TINY[model] | more | dict(cache=cache))
    theirs = bench_authors.theirs(model, cfg, 6)
    ours = bench_authors.after(paper, cfg, str(tmp_path / "run"), 6)
    assert theirs.keys() <= ours.keys() and len(theirs) >= 3
    assert all(ours[name] == pytest.approx(value, rel=1e-3, abs=1e-4) for name, value in theirs.items()), (
        ours,
        theirs,
    )
    again = bench_authors.theirs(model, cfg, 5)
    assert any(
        again[name] != pytest.approx(value, rel=1e-3, abs=1e-4) for name, value in theirs.items()
    )  # the losses do move
    assert torch.tensor(list(theirs.values())).isfinite().all()
