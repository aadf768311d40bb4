"""Small networks that measure: trained, kept, right in shape and unit."""

import pytest
import torch

from lab import UserError, judges
from lab import toyfaces as toy


def test_landmark_judge_measures(cache, monkeypatch):
    monkeypatch.setattr(judges, "JUDGE_PEOPLE", 60)
    monkeypatch.setattr(judges, "JUDGE_STEPS", 60)
    net, error = judges.judge("landmarks", 32, 5, cache=cache)
    assert 0 < error < 8 and not any(p.requires_grad for p in net.parameters())
    again, same = judges.judge("landmarks", 32, 5, cache=cache)
    x = torch.randn(2, 3, 32, 32)
    assert same == error and torch.equal(net(x), again(x))


def test_region_judge_measures(cache, monkeypatch):
    monkeypatch.setattr(judges, "JUDGE_STEPS", 60)
    monkeypatch.setattr(judges, "JUDGE_PEOPLE", 40)
    with torch.no_grad():  # as where it is used
        judge, error = judges.judge("regions", 32, 7, cache=cache + "/quick")
    assert error < 0.3
    assert judge(toy.render(toy.sample(2, 3), 32)).shape == (2, len(toy.REGIONS), 32, 32)


def test_yaw_judge_measures(cache, monkeypatch):
    monkeypatch.setattr(judges, "JUDGE_FRAMES", 2)
    monkeypatch.setattr(judges, "JUDGE_STEPS", 60)
    net, error = judges.judge("yaw", 32, 9, cache=cache + "/quick")
    assert error < 25 and net(toy.render(toy.sample(3, 4), 32)).shape == (
        3,
    )  # one who always says 0 errs by 30


def test_a_judge_that_cannot_be_kept_leaves_nothing(tmp_path, monkeypatch):
    def full(content, path):
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(judges, "train", lambda *_: 0.5)
    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(UserError, match="judge-yaw-32-0-.*cannot be written .*No space"):
        judges.judge("yaw", 32, 0, cache=str(tmp_path))
    assert not list(tmp_path.iterdir())


def test_sketch_judge_reads_sketches(cache, monkeypatch):
    monkeypatch.setattr(judges, "JUDGE_FRAMES", 1)
    monkeypatch.setattr(judges, "JUDGE_STEPS", 4)
    net, error = judges.judge("sketch", 16, 9, cache=cache + "/quick")
    f = net(toy.sketch(toy.sample(3, 4), 16).expand(-1, 3, -1, -1))
    assert (
        0 < error <= 0.6 and f.shape == (3, 128) and torch.allclose(f.norm(dim=1), torch.ones(3), atol=1e-5)
    )


def test_large_pictures_cost_what_128_px_do_and_landmarks_stay_in_their_pixels():
    x = torch.rand(2, 3, 256, 256)
    for kind, shape in (
        ("identity", (2, 128)),
        ("yaw", (2,)),
        ("regions", (2, 10, 256, 256)),
        ("landmarks", (2, 68, 2)),
    ):
        torch.manual_seed(0)
        net = judges.Judge(kind).eval()
        with torch.no_grad():
            assert net(x).shape == shape and net.features(x)[0].shape[-1] == 64
            small = torch.nn.functional.interpolate(x, (128, 128), mode="bilinear", antialias=True)
            if kind == "landmarks":
                assert torch.allclose(net(x), 2 * net(small), atol=1e-4)


def test_a_damaged_judge_is_made_anew(tmp_path, monkeypatch):
    monkeypatch.setattr(judges, "train", lambda *_: 0.5)
    assert judges.judge("yaw", 32, 0, cache=str(tmp_path))[1] == 0.5
    (file,) = tmp_path.iterdir()
    file.write_bytes(b"half")
    assert judges.judge("yaw", 32, 0, cache=str(tmp_path))[1] == 0.5 and file.stat().st_size > 1000


@pytest.mark.slow
def test_a_judge_of_256_px_is_that_of_128_px_and_errs_in_pixels_of_256(tmp_path, monkeypatch):
    people, cache = judges.people, str(tmp_path)
    monkeypatch.setattr(judges, "people", lambda count, *rest: people(min(count, 4), *rest))
    monkeypatch.setattr(judges, "JUDGE_PEOPLE", 4)
    monkeypatch.setattr(judges, "JUDGE_FRAMES", 2)
    monkeypatch.setattr(judges, "JUDGE_STEPS", 4)
    faces = toy.sample(4, 5)
    x = toy.render(faces, 256)
    for kind, shape, factor in (("landmarks", (4, 68, 2), 2), ("regions", (4, 10, 256, 256), 1)):
        net, error = judges.judge(kind, 256, 3, cache=cache)
        small, small_error = judges.judge(kind, 128, 3, cache=cache)
        assert net(x).shape == shape and error == pytest.approx(factor * small_error)
        assert all(torch.equal(a, b) for a, b in zip(net.parameters(), small.parameters(), strict=True))
        if kind == "landmarks":
            distance = (net(x) - toy.landmarks(faces, 256)).norm(dim=2).mean()
            assert 0.5 * error < distance < 2 * error
    assert len(list(tmp_path.iterdir())) == 2
    assert [f.shape[-1] for f in net.features(x)] == [64, 32, 16, 8]


def test_noise_of_the_training_is_repeatable_and_leaves_the_callers_generator_alone(device, monkeypatch):
    monkeypatch.setattr(judges, "JUDGE_PEOPLE", 4)
    monkeypatch.setattr(judges, "JUDGE_FRAMES", 1)
    monkeypatch.setattr(judges, "JUDGE_STEPS", 4)
    before, nets = torch.get_rng_state(), [judges.Judge("yaw"), judges.Judge("yaw")]
    torch.set_rng_state(before)
    errors = [judges.train(net, "yaw", 16, 1_000_000, device) for net in nets]
    assert torch.equal(torch.get_rng_state(), before) and errors[0] == pytest.approx(errors[1], rel=1e-3)


def test_another_seed_draws_other_people():
    g = torch.Generator()
    one, same, other = (judges.people(2, 2, seed, g.manual_seed(0), "cpu") for seed in (7, 7, 9))
    assert torch.equal(one.skin_rgb, same.skin_rgb) and not torch.equal(one.skin_rgb, other.skin_rgb)
    assert len(one) == 4 and torch.equal(one.skin_rgb[0], one.skin_rgb[1])  # two pictures of a person
    assert not torch.equal(one.background[0], one.background[1])  # in other scenes
