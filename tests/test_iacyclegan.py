import dataclasses
import json
import os
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn as nn
import torch.nn.functional as F
import torchvision
from PIL import Image

import common
import iacyclegan as paper
import toyfaces
from common import UserError
from conftest import in_turn
from iacyclegan import Config

TINY = dict(paper.SMALL, image_size=32, width=4, d_width=4, residual_blocks=1, people=8, steps=4, recogniser_steps=2, rounds=1,
            log_every=1, save_every=2, sample_every=2, device="cpu", amp=False)


@pytest.fixture
def tiny(tmp_path, cache, monkeypatch):
    """A configuration that trains in a second, and judges that know nothing."""
    quick(monkeypatch)
    return Config(**TINY, cache=cache, run=str(tmp_path / "run"))


def quick(monkeypatch):
    monkeypatch.setattr(toyfaces, "judge", lambda kind, size, seed, *_: (seeded_judge(kind, seed), 1.))
    monkeypatch.setattr(paper, "TEST_PEOPLE", 8)


def seeded_judge(kind, seed):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return toyfaces.Judge(kind).eval().requires_grad_(False)


# ------------------------------------------------------------------------------------------------------ losses

class Level(nn.Module):
    """A discriminator whose score is the picture's mean."""

    def forward(self, x):
        return x.mean((1, 2, 3), keepdim=True)


def test_loss_adv_D_by_hand():
    real, fake = torch.full((2, 3, 4, 4), .5), torch.full((2, 3, 4, 4), -.2)
    assert paper.loss_adv_D(Level(), real, fake).item() == pytest.approx((.25 + .04) / 2)


def test_loss_adv_G_by_hand():
    assert paper.loss_adv_G(Level(), torch.full((2, 3, 4, 4), -.2)).item() == pytest.approx(1.44)


def test_loss_cyc_by_hand():
    assert paper.loss_cyc(torch.zeros(2, 3, 4, 4), torch.full((2, 3, 4, 4), -.3)).item() == pytest.approx(.3)


def test_loss_map_leaves_the_target_domain_alone():
    y = torch.rand(2, 3, 4, 4)
    assert paper.loss_map(y, y) == 0 and paper.loss_map(y, y - .25).item() == pytest.approx(.25)


class Reader(nn.Module):
    """A recogniser with known features: the mean of each channel."""

    def raw(self, x):
        return x.mean((2, 3))

    def forward(self, x):
        return F.normalize(self.raw(x), dim=1)


def coloured(*rgb):
    return torch.tensor(rgb)[None, :, None, None].expand(1, 3, 4, 4).clone().requires_grad_(True)


def test_loss_idp_is_two_minus_two_cosines_and_reaches_the_fake_alone():
    real, fake = coloured(1., 0., 0.), coloured(3., 4., 0.)
    loss = paper.loss_idp(Reader(), real, fake)
    loss.backward()
    assert loss.item() == pytest.approx(2 - 2 * .6) and real.grad is None and fake.grad.abs().sum() > 0
    assert paper.loss_idp(Reader(), real, coloured(7., 0., 0.)).item() == pytest.approx(0., abs=1e-6)


def test_loss_idp_of_several_glances_is_the_mean_over_them():
    real, others = coloured(1., 0., 0.), [coloured(3., 4., 0.), coloured(0., 2., 0.)]
    both = paper.loss_idp(Reader(), real, torch.cat(others)).item()
    assert both == pytest.approx(sum(paper.loss_idp(Reader(), real, one).item() for one in others) / 2)


def test_glances_are_moved_noisy_copies():
    torch.manual_seed(0)
    x = torch.rand(2, 3, 16, 16, requires_grad=True)
    assert paper.glances(x, 0) is x
    seen = paper.glances(x, 5, reach=2, noise=0.)
    moved = {(a, b): F.pad(x, (2, 2, 2, 2), mode="replicate")[..., a:a + 16, b:b + 16] for a in range(5) for b in range(5)}
    assert seen.shape == (10, 3, 16, 16) and all(any(torch.equal(two, one) for one in moved.values()) for two in seen.unflatten(0, (5, 2)))
    assert len({two.sum().item() for two in seen.unflatten(0, (5, 2))}) > 1
    assert (paper.glances(x, 200, reach=0, noise=.1).unflatten(0, (200, 2)) - x).std().item() == pytest.approx(.1, rel=.02)
    seen.sum().backward()
    assert (x.grad > 0).any()


def test_loss_idp_raw_mean_is_the_mean_of_squares():
    assert paper.loss_idp(Reader(), coloured(1., 0., 0.), coloured(3., 4., 0.), "raw-mean").item() == pytest.approx((4 + 16) / 3)


def test_loss_tri_by_hand():
    f = F.normalize(torch.tensor([[1., 0.], [1., .1], [0., 1.], [.1, 1.]]), dim=1)
    who = torch.tensor([0, 0, 1, 1])
    assert paper.loss_tri(f, who, .2) == 0                               # everybody apart by more than the margin
    mixed = torch.tensor([0, 1, 0, 1])
    d = 2 - 2 * f @ f.T
    every = [max(0, d[a, p] - d[a, n] + .2) for a in range(4) for p in range(4) for n in range(4) if a != p and mixed[a] == mixed[p] and mixed[a] != mixed[n]]
    expected = sum(every) / sum(v > 0 for v in every)
    assert paper.loss_tri(f, mixed, .2).item() == pytest.approx(float(expected), abs=1e-5) and expected > 1


def test_loss_tri_does_not_run_together():
    f = F.normalize(1 + .05 * torch.randn(24, 8, generator=torch.Generator().manual_seed(0)), dim=1).requires_grad_(True)         # nearly one point
    who, optimiser = torch.arange(6).repeat(4), torch.optim.Adam([f], .01)
    for _ in range(300):
        loss = paper.loss_tri(F.normalize(f, dim=1), who)
        optimiser.zero_grad(), loss.backward(), optimiser.step()
    u = F.normalize(f, dim=1).detach()
    assert loss.item() < .01 and (u @ u.T).mean() < .9


def test_loss_tri_pulls_a_person_together_and_others_apart():
    f = torch.randn(12, 5, generator=torch.Generator().manual_seed(0)).requires_grad_(True)
    who = torch.arange(4).repeat(3)
    optimiser = torch.optim.Adam([f], .05)
    for _ in range(200):
        loss = paper.loss_tri(F.normalize(f, dim=1), who)
        optimiser.zero_grad(), loss.backward(), optimiser.step()
    assert loss.item() < .01


# ---------------------------------------------------------------------------------------------------- networks

def test_parameter_counts():
    G_X, G_Y, D_X, D_Y = paper.build(Config())
    assert [common.n_parameters(net) for net in (G_X, G_Y, D_X, D_Y)] == [11_378_179] * 2 + [2_764_737] * 2 and D_X.receptive_field() == 70


def vgg_state(names):
    """A VGG-16 for 2622 people, full of zeros, under one of the usual namings."""
    net = torchvision.models.vgg16(weights=None, num_classes=2622, init_weights=False)
    state, out = net.state_dict(), {}
    if names == "torchvision":
        state = {k: torch.full_like(v, n) for n, (k, v) in enumerate(state.items())}
        return state, dict(state)
    state = {k: torch.full_like(v, n) for n, (k, v) in enumerate(state.items())}            # every layer has a value of its own
    convs = [f"{block}_{k}" for block, n in enumerate((2, 2, 3, 3, 3), 1) for k in range(1, n + 1)]
    keys = [k for k in state if k.startswith("features") and k.endswith("weight")]
    for conv, key in zip(convs, keys, strict=True):
        for what in ("weight", "bias"):
            out[f"conv_{conv}.{what}" if names == "underscored" else f"conv{conv}.{what}"] = state[key.replace("weight", what)]
    for number, fc in ((0, "fc6"), (3, "fc7"), (6, "fc8")):
        for what in ("weight", "bias"):
            out[f"{fc}.{what}"] = state[f"classifier.{number}.{what}"]
    return state, out


@pytest.mark.parametrize("names", ["caffe", "underscored", "torchvision"])
def test_vgg_face_keys(names):
    expected, state = vgg_state(names)
    found = paper.vgg_keys(state)
    assert found.keys() == expected.keys()
    assert all(found[k].shape == v.shape and found[k].flatten()[0] == v.flatten()[0] for k, v in expected.items())


def test_a_file_that_is_not_vgg_face_is_refused(tiny, tmp_path):
    for content in ({"state_dict": 5}, {"a": torch.zeros(1)}):
        torch.save(content, tmp_path / "vgg.pth")
        with pytest.raises(UserError, match="vgg.pth: does not fit"):
            paper.Recogniser(dataclasses.replace(tiny, vgg_face=str(tmp_path / "vgg.pth")))


def test_pictures_reach_vgg_face_as_it_was_trained(tiny, monkeypatch):
    seen = []

    class Spy(nn.Module):
        def forward(self, x):
            seen.append(x)
            return x.mean((2, 3))
    reader = paper.Recogniser(tiny)
    reader.vgg, reader.net = True, Spy()
    red = torch.tensor([1., -1., -1.])[None, :, None, None].expand(1, 3, 32, 32)
    reader(red)
    reader.bgr = True
    reader(red)
    mean = torch.tensor(paper.Recogniser.MEAN)
    expected = torch.tensor([255., 0., 0.]) - mean
    assert seen[0].shape == (1, 3, 224, 224)
    assert torch.allclose(seen[0][0, :, 5, 5], expected, atol=1e-3) and torch.allclose(seen[1][0, :, 5, 5], expected.flip(0), atol=1e-3)


# -------------------------------------------------------------------------------------------------------- data

def picture(path, seed=0, size=(20, 25)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)).save(path)
    return str(path)


def cufs(root, n=8):
    """CUHK student's names: photos and sketches that do not share one."""
    for split in ("train", "test"):
        for k in range(n):
            sex, series = "fm"[k % 2], "" if split == "train" else "1"
            picture(root / split / "photos" / f"{sex}{series}-{k:03d}-01.jpg", k)
            picture(root / split / "sketches" / f"{sex.upper() if split == 'train' else sex}{'2' if split == 'train' else '1'}-{k:03d}-01-sz1.jpg", 50 + k)
    return root


def test_cuhk_student_pairs_by_sex_and_number(tiny, tmp_path):
    found = paper.scan(dataclasses.replace(tiny, data=str(cufs(tmp_path))))
    assert len(found["pairs"]) == 16 and sum(found["test"]) == 8 and not found["bad"]
    for photo, sketch in found["pairs"]:
        assert photo.parts[-3] == sketch.parts[-3] and photo.stem[0] == sketch.stem[0].lower() and photo.stem.split("-")[1] == sketch.stem.split("-")[1]


def test_ambiguous_names_are_not_paired(tmp_path):
    photos = [Path("f1-001-01.jpg"), Path("f2-001-01.jpg"), Path("m-002-01.jpg")]
    pairs, alone = paper.matched(photos, [Path("f3-001-01-sz1.jpg"), Path("M2-002-01-sz1.jpg")])
    assert pairs == [(Path("m-002-01.jpg"), Path("M2-002-01-sz1.jpg"))] and len(alone) == 3


def test_parts_with_and_without_lists(tiny, tmp_path):
    for part, n in (("AR", 8), ("CUHK_FERET", 4)):
        for k in range(n):
            picture(tmp_path / part / "photos" / f"{k}.jpg", k), picture(tmp_path / part / "sketches" / f"{k}.png", k)
    cfg = dataclasses.replace(tiny, data=str(tmp_path))
    found = paper.scan(cfg)
    assert [p.relative_to(tmp_path).as_posix() for (p, _), t in zip(found["pairs"], found["test"], strict=True) if t] \
        == ["AR/photos/3.jpg", "AR/photos/7.jpg", "CUHK_FERET/photos/3.jpg"]                # a quarter, spread over the names
    (tmp_path / "list_test.txt").write_bytes(b"AR/photos/2.jpg||AR/sketches/2.png||AR/mat/2.mat||2\n\xff\n")
    found = paper.scan(cfg)
    assert [p.name for (p, _), t in zip(found["pairs"], found["test"], strict=True) if t] == ["2.jpg"]


@pytest.mark.parametrize("photos,sketches,test", [
    ("CUHK_training_cropped_photos/photos", "CUHK_training_cropped_sketches/sketches", "CUHK_testing_cropped_{0}/{0}"),
    ("Training photo", "Training sketch", "Testing {}"), ("train/AR/photos", "train/AR/sketches", "test/AR/{}"),
])
def test_layouts(tiny, tmp_path, photos, sketches, test):
    for k in range(4):
        for folder, seed in ((photos, k), (sketches, 9 + k)):
            picture(tmp_path / folder / f"m-{k:03d}-01{'-sz1' * (folder == sketches)}.jpg", seed)
            picture(tmp_path / test.format("photos" if folder == photos else "sketches") / f"m-{k:03d}-01.jpg", seed)
    picture(tmp_path / "CUHK_training_photo/photo/m-000-01.jpg")          # the uncropped ones, which also come along
    found = paper.scan(dataclasses.replace(tiny, data=str(tmp_path)))
    assert len(found["pairs"]) == 8 and sum(found["test"]) == 4 and not found["bad"]
    assert all(("est" in str(p.relative_to(tmp_path))) == t for (p, _), t in zip(found["pairs"], found["test"], strict=True))


def test_a_split_of_one_part_is_not_that_of_all(tiny, tmp_path):
    for part, n in (("CUHK_training", 5), ("CUHK_testing", 3), ("AR", 8), ("latest", 4)):
        for k in range(n):
            picture(tmp_path / part / "photos" / f"{k}.jpg", k), picture(tmp_path / part / "sketches" / f"{k}.png", k)
    found = paper.scan(dataclasses.replace(tiny, data=str(tmp_path)))
    held_out = [p.relative_to(tmp_path).parts[0] for (p, _), t in zip(found["pairs"], found["test"], strict=True) if t]
    assert Counter(held_out) == {"CUHK_testing": 3, "AR": 2, "latest": 1}


@pytest.mark.parametrize("n,held_out", [(123, 43), (121, 43), (40, 10)])
def test_published_splits_forgive_a_missing_picture(tiny, tmp_path, monkeypatch, n, held_out):
    monkeypatch.setattr(paper, "parts_of", lambda root: {"AR": ([root / f"photos/{k}.jpg" for k in range(n)], [root / f"sketches/{k}.jpg" for k in range(n)])})
    assert sum(paper.scan(dataclasses.replace(tiny, data=str(tmp_path)))["test"]) == held_out


def test_a_list_that_names_nothing_is_named(tiny, tmp_path):
    for k in range(4):
        picture(tmp_path / "photos" / f"{k}.jpg", k), picture(tmp_path / "sketches" / f"{k}.png", k)
    (tmp_path / "list_test.txt").write_text("photos\\2.jpg||sketches\\2.png\n")
    found = paper.scan(dataclasses.replace(tiny, data=str(tmp_path)))
    assert [p.name for (p, _), t in zip(found["pairs"], found["test"], strict=True) if t] == ["2.jpg"]
    (tmp_path / "list_test.txt").write_text("elsewhere/2.jpg||\n")
    with pytest.raises(UserError, match="list_test.txt: none of its 1 lines"):
        paper.scan(dataclasses.replace(tiny, data=str(tmp_path)))


def test_drawings_of_a_round_without_recognisers_are_read_by_those_before(tiny, capsys):
    paper.train(tiny)
    (Path(tiny.run) / "round1/recognisers.pt").unlink()
    phi, before = paper.recognisers(paper.of_round(tiny, 1)), paper.recognisers(paper.of_round(tiny, 0))
    assert all(torch.equal(a, b) for one, two in zip(phi, before, strict=True) for a, b in zip(one.parameters(), two.parameters(), strict=True))
    assert "holds no recognisers tuned after it; its drawings are read by those of " in capsys.readouterr().out


def test_cuhk_students_own_split_is_in_the_names_of_the_sketches(tiny, tmp_path):
    for k in range(6):
        picture(tmp_path / "photos" / f"f{'' if k < 4 else 1}-{k:03d}-01.jpg", k)
        picture(tmp_path / "sketches" / f"{'F2' if k < 4 else 'f1'}-{k:03d}-01-sz1.jpg", k)
    found = paper.scan(dataclasses.replace(tiny, data=str(tmp_path)))
    assert [p.name for (p, _), t in zip(found["pairs"], found["test"], strict=True) if t] == ["f1-004-01.jpg", "f1-005-01.jpg"]


@pytest.mark.parametrize("make,message", [
    (lambda root: picture(root / "a.jpg"), "0 pairs of photo and sketch"),
    (lambda root: [picture(root / "photos/a.jpg"), picture(root / "sketches/b.jpg")], "no single partner of the same name"),
])
def test_spoilt_data_gives_one_error(tiny, tmp_path, make, message):
    make(tmp_path)
    with pytest.raises(UserError, match=message):
        paper.train(dataclasses.replace(tiny, data=str(tmp_path)))
    assert not Path(tiny.run).exists()


def test_an_unreadable_sketch_takes_its_photo_along(tiny, tmp_path):
    cfg = dataclasses.replace(tiny, data=str(cufs(tmp_path)), skip_bad=True)
    before = paper.make_data(cfg)
    (tmp_path / "train/sketches/M2-001-01-sz1.jpg").write_bytes(b"")
    after = paper.make_data(cfg)
    assert len(after) == 7 and torch.equal(after.X[0], before.X[0])
    kept = [k for k in range(8) if (after.X == before.X[k]).flatten(1).all(1).any()]
    assert len(kept) == 7 and all((after.Y == before.Y[k]).flatten(1).all(1).any() for k in kept)


def test_whole_pictures_are_padded_not_squeezed():
    image = Image.new("RGB", (200, 250), "red")
    assert np.asarray(paper.padded(image, 50)).shape == (50, 50, 3)
    half = Image.new("RGB", (200, 250), "black")
    half.paste("white", (100, 0, 200, 250))
    row = np.asarray(paper.padded(half, 250))[125, :, 0]
    assert (row < 128).sum() == 125                                      # the middle stays the middle


def test_a_batch_is_of_the_same_people_cropped_apart(tiny):
    L = paper.load_size(tiny)
    X = torch.arange(8).byte()[:, None, None, None].expand(-1, 3, L, L)
    data = paper.Pairs(tiny, X, X)
    x, y, x_target, y_target = (t[:, 0, 0, 0] for t in data.sample(64))
    assert torch.equal(x, y) and torch.equal(x, x_target) and torch.equal(y, y_target)
    ramp = torch.arange(L).byte().expand(8, 3, L, L)
    x, y, *_ = paper.Pairs(tiny, ramp, ramp).sample(32)
    assert not torch.equal(x, y)                                         # independent crops and mirroring
    shuffled = paper.Pairs(dataclasses.replace(tiny, identities="shuffled"), X, X)
    x, y, x_target, y_target = (t[:, 0, 0, 0] for t in shuffled.sample(64))
    assert torch.equal(x, y) and torch.equal(x_target, y_target) and (x != x_target).float().mean() > .5


def test_the_artist_draws_caricatures_from_memory(tiny):
    train, test = paper.make_data(tiny), paper.make_data(tiny, test=True)
    assert train.truth[0] is train.X and not torch.equal(test.truth[0], test.X) and not torch.equal(test.truth[1], test.Y)
    plain = paper.make_data(dataclasses.replace(tiny, exaggeration=1.), test=True)
    assert torch.equal(plain.X, test.X) and not torch.equal(plain.Y, test.Y)             # the cache knows how far the artist goes
    assert not any((train.X == picture).flatten(1).all(1).any() for picture in test.X)


# ---------------------------------------------------------------------------------------------------- training

def grads(net):
    return sum(p.grad.abs().sum().item() for p in net.parameters() if p.grad is not None)


def test_gradients_reach_exactly_the_networks_they_should(tiny, monkeypatch):
    seen, update = {}, common.Run.update

    def spy(self, name, loss):
        for net in self.nets.values():
            net.zero_grad(set_to_none=True)
        loss.backward(retain_graph=True)
        seen[name] = {k for k, net in self.nets.items() if grads(net)}
        update(self, name, loss)
    monkeypatch.setattr(common.Run, "update", spy)
    data, phi = paper.make_data(tiny), [paper.Recogniser(tiny) for _ in "XY"]
    paper.train_generators(dataclasses.replace(tiny, steps=1), phi, data, paper.make_data(tiny, test=True))
    assert seen == {"G": {"G_X", "G_Y"}, "D": {"D_X", "D_Y"}} and not any(map(grads, phi))


def test_the_first_round_is_CycleGAN_and_the_others_are_not(tiny, monkeypatch):
    calls = []
    monkeypatch.setattr(paper, "loss_idp", lambda phi, real, fake, kind="unit": (calls.append(phi), (fake ** 2).mean())[1])
    data, held_out = paper.make_data(tiny), paper.make_data(tiny, test=True)
    paper.train_generators(dataclasses.replace(tiny, run=tiny.run + "0"), None, data, held_out)
    assert not calls
    phi = [object(), object()]
    calls.clear()
    monkeypatch.setattr(paper, "frozen", lambda *nets: common.contextlib.nullcontext())
    paper.train_generators(dataclasses.replace(tiny, run=tiny.run + "1"), phi, data, held_out)
    assert calls[-2] is phi[1] and calls[-1] is phi[0]                   # sketches are read by phi_Y, photos by phi_X


def test_the_weight_of_the_identity_loss_is_calibrated_to_the_cycle_loss(tiny):
    data, phi = paper.make_data(tiny), [paper.Recogniser(tiny) for _ in "XY"]
    G_X, G_Y, *_ = paper.build(tiny)
    weight = paper.calibrated(tiny, G_X, G_Y, phi, data)
    x, y = data.whole(torch.arange(8))
    with torch.no_grad():
        cyc = 10 * (paper.loss_cyc(x, G_Y(G_X(x))) + paper.loss_cyc(y, G_X(G_Y(y))))
        idp = paper.loss_idp(phi[1], y, G_X(x)) + paper.loss_idp(phi[0], x, G_Y(y))
    assert weight * idp.item() == pytest.approx(cyc.item(), rel=1e-4)
    assert paper.calibrated(dataclasses.replace(tiny, lambda_idp=7.), G_X, G_Y, phi, data) == 7.


def test_rounds_leave_checkpoints_and_tuned_recognisers(tiny):
    paper.train(dataclasses.replace(tiny, rounds=2))
    assert paper.rounds_of(tiny) == [0, 1, 2]
    states = [common.load_checkpoint(Path(tiny.run) / f"round{r}/recognisers.pt")["nets"] for r in range(3)]
    untuned = paper.Recogniser(tiny).state_dict()
    for name in ("phi_X", "phi_Y"):
        assert not torch.equal(states[0][name]["net.fc.weight"], untuned["net.fc.weight"])
        assert not torch.equal(states[0][name]["net.fc.weight"], states[1][name]["net.fc.weight"])       # they go on
    assert not torch.equal(states[0]["phi_X"]["net.fc.weight"], states[0]["phi_Y"]["net.fc.weight"])     # one for each modality
    paper.train(dataclasses.replace(tiny, rounds=3))                      # one more is no other run
    assert paper.rounds_of(tiny) == [0, 1, 2, 3]
    with pytest.raises(UserError, match="round0 was trained for 4 steps, now 6"):
        paper.train(dataclasses.replace(tiny, steps=6))
    paper.train(dataclasses.replace(tiny, fresh=True))
    assert paper.rounds_of(tiny) == [0, 1]                               # nothing of the old run is left
    with pytest.raises(UserError, match="--weights: every round starts from scratch"):
        paper.train(dataclasses.replace(tiny, weights="x.pt"))


def test_tuning_sees_real_and_generated_pictures_of_the_right_modality(tiny, monkeypatch):
    L = paper.load_size(tiny)
    data = paper.Pairs(tiny, torch.full((8, 3, L, L), 255).byte(), torch.zeros(8, 3, L, L).byte())       # photos white, sketches black
    seen = []
    monkeypatch.setattr(paper.Recogniser, "forward", lambda self, x: (seen.append(x[:, 0, 0, 0].unique().tolist()), F.normalize(self.raw(x), dim=1))[1])
    G = [lambda x: torch.full_like(x, -.5), lambda x: torch.full_like(x, .5)]              # drawn sketches and photos
    paper.tune(dataclasses.replace(tiny, recogniser_steps=1), [paper.Recogniser(tiny) for _ in "XY"], data, G)
    assert seen == [[.5, 1.], [-1., -.5]]
    assert (Path(tiny.run) / "recognisers.pt").exists()


@pytest.mark.parametrize("other", [dict(tuned=False), dict(warm_recogniser=True), dict(recogniser_steps=3)], ids=str)
def test_recognisers_made_in_another_way_are_refused(tiny, other):
    paper.train(dataclasses.replace(tiny, rounds=0, steps=1))
    with pytest.raises(UserError, match=f"made with another {next(iter(other))} "):
        paper.train(dataclasses.replace(tiny, steps=1, **other))
    paper.train(dataclasses.replace(tiny, rounds=0, steps=1, fresh=True, **other))


@pytest.mark.parametrize("r", [0, 1])
def test_n_plus_n_steps_are_2n_steps_over_rounds(tiny, tmp_path, r):
    whole = dataclasses.replace(tiny, run=str(tmp_path / "whole"))
    paper.train(whole)
    if r == 0:
        paper.train(dataclasses.replace(tiny, stop_after=2))
        assert not (Path(tiny.run) / "round0/recognisers.pt").exists()    # nothing is tuned on half of a training
    else:
        paper.train(dataclasses.replace(tiny, rounds=0))
        phi = paper.recognisers(paper.of_round(tiny, 0))
        paper.train_generators(dataclasses.replace(paper.of_round(tiny, 1), stop_after=2), phi, paper.make_data(tiny), paper.make_data(tiny, test=True))
    paper.train(tiny)
    for k in range(2):
        for file in ("last.pt", "recognisers.pt"):
            one, two = (common.load_checkpoint(Path(run) / f"round{k}" / file) for run in (whole.run, tiny.run))
            for name, state in one["nets"].items():
                assert all(torch.equal(value, two["nets"][name][key]) for key, value in state.items()), (k, file, name)


def test_a_training_runs_on_cuda_and_cpu(tiny, device):
    paper.train(dataclasses.replace(tiny, device=device, amp=device == "cuda"))


@pytest.mark.parametrize("change,message", [
    (dict(image_size=30), "--image-size 30"), (dict(load_size=20), "--load-size 20"), (dict(people=0), "--people 0"),
    (dict(idp="raw-mean"), "--lambda-idp 0.0: expected a weight for --idp raw-mean"),
    (dict(batch_size=60), "--pool-size 50"), (dict(epochs=0, steps=0), "--epochs 0"),
])
def test_settings_that_do_not_fit(tiny, change, message):
    with pytest.raises(UserError, match=message):
        paper.train(dataclasses.replace(tiny, **change))


def test_health_words(tiny):
    data, zero = paper.make_data(tiny, test=True), lambda x: x.new_zeros(len(x), 1, 1, 1)      # noqa: E731

    def word(G_X, G_Y, D=zero):
        return paper.report(tiny, (G_X, G_Y), (D, D), data)["health"]
    assert word(lambda x: -x, lambda y: -y) == "ok"
    assert word(lambda x: x, lambda y: -y) == "copying" and word(lambda x: -x, lambda y: y) == "copying"
    assert word(lambda x: 0 * x, lambda y: -y) == "collapsed"
    x, y = data.whole(torch.arange(8))
    D = lambda p: 2. * torch.isin(p.mean((1, 2, 3)), torch.cat([x.mean((1, 2, 3)), y.mean((1, 2, 3))]))[:, None, None, None].float()      # noqa: E731
    assert word(lambda x: -x, lambda y: -y, D) == "D-won"


# -------------------------------------------------------------------------------------------------- evaluation

def test_recognised_counts_ranks():
    gallery = torch.eye(4)
    assert paper.recognised(gallery, torch.full((4, 4), float("nan")), 4) == 0.
    probes = torch.tensor([[1., .1, 0, 0], [1., .9, 0, 0], [.9, .8, .7, .1], [0, 0, 0, 1.]])
    assert paper.recognised(gallery, probes) == .5 and paper.recognised(gallery, probes, 2) == .75 and paper.recognised(gallery, probes, 3) == 1.


def test_measure_of_true_pictures_is_perfect_in_likeness(tiny):
    data = paper.make_data(tiny, test=True)
    found = paper.measure(tiny, None, [paper.Recogniser(tiny) for _ in "XY"], data)
    for what in ("sketch", "photo"):
        assert found[f"{what} SSIM"] == pytest.approx(1., abs=1e-4) and found[f"{what} FSIM"] == pytest.approx(1., abs=1e-3) and found[f"{what} L1"] == 0
    copies = paper.measure(tiny, (lambda x: x, lambda y: y), [paper.Recogniser(tiny) for _ in "XY"], data)
    assert copies["sketch SSIM"] < .9 and copies["sketch SSIM inner"] < .95 and copies["sketch L1"] > .05


def test_each_modality_is_read_by_its_own_recogniser(tiny, monkeypatch):
    L = paper.load_size(tiny)
    data = paper.Pairs(tiny, torch.full((8, 3, L, L), 255).byte(), torch.zeros(8, 3, L, L).byte())       # photos white, sketches black
    seen = {}

    class Spy(nn.Module):
        def __init__(self, name):
            super().__init__()
            self.name = name

        def forward(self, x):
            seen.setdefault(self.name, set()).update(x.unique().tolist())
            return x.mean((2, 3))
    monkeypatch.setattr(toyfaces, "judge", lambda kind, *_: (Spy(kind), 1.))
    monkeypatch.setattr(paper, "Recogniser", lambda cfg: Spy("untuned"))
    paper.measure(tiny, (lambda x: torch.full_like(x, -.5), lambda y: torch.full_like(y, .5)), [Spy("phi_X"), Spy("phi_Y")], data)
    assert seen["phi_X"] == seen["identity"] == {1., .5} and seen["phi_Y"] == seen["sketch"] == {-1., -.5}


def test_evaluate_has_a_row_for_each_round(tiny, tmp_path):
    cfg = dataclasses.replace(tiny, data=str(cufs(tmp_path / "cufs")))
    paper.train(cfg)
    rows = paper.evaluate(dataclasses.replace(tiny))["rows"]              # the run knows its data
    assert list(rows) == ["CycleGAN", "round 1"] and "sketch rank-1 own" in rows["round 1"] and "sketch rank-1 other" not in rows["round 1"]
    assert json.loads((Path(tiny.run) / "evaluation.json").read_text())["rows"] == rows
    with pytest.raises(UserError, match="has no round 7, only 0, 1"):
        paper.trained(dataclasses.replace(tiny), 7)
    with pytest.raises(UserError, match="no such training"):
        paper.evaluate(dataclasses.replace(tiny, run=str(tmp_path / "nowhere")))


def test_infer_both_ways(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(paper, "trained", lambda cfg, r: ((lambda x: torch.full_like(x, -1.), lambda y: torch.full_like(y, 1.)), tiny))
    file = picture(tmp_path / "in/a.jpg", size=(30, 40))
    picture(tmp_path / "in/b.png", size=(60, 20))
    for backward, shade in ((False, 0), (True, 255)):
        paper.infer(tiny, [file, str(tmp_path / "in")], backward, None, str(tmp_path / "out"))
        with Image.open(tmp_path / "out/a.png") as image:
            assert image.size == (27, 36) and image.getextrema() == ((shade, shade),) * 3  # the input's shape, at the scale of the training
    assert Image.open(tmp_path / "out/b.png").size == (36, 12) and (tmp_path / "out/a_1.png").exists() and (tmp_path / "out/b_sheet.png").exists()


def test_infer_with_a_file_of_weights(tiny, tmp_path):
    paper.train(tiny)
    cfg = dataclasses.replace(tiny, run=str(tmp_path / "elsewhere"), weights=f"{tiny.run}/round0/last.pt", width=9)
    paper.infer(cfg, [picture(tmp_path / "a.png")], False, None, "")
    assert (tmp_path / "elsewhere/inferred/a.png").exists()
    paper.evaluate(dataclasses.replace(tiny))
    rows = json.loads((Path(tiny.run) / "evaluation.json").read_text())["rows"]
    assert list(rows) == ["CycleGAN", "round 1", "the true pictures"]


def test_ablate_runs_every_chain_and_judges(tiny, monkeypatch, capsys):
    monkeypatch.setattr(paper, "SEEDS", (0, 1))
    in_turn(monkeypatch)
    paper.ablate(dataclasses.replace(tiny, steps=2))
    report = json.loads((Path(tiny.run) / "ablation.json").read_text())
    assert {c["part"] for c in report["claims"]} == {"identity", "rounds", "pictures", "poor"} and len(report["runs"]) == 6 * 2
    first = [common.load_checkpoint(p)["nets"]["G_X"] for p in sorted(Path(tiny.run).glob("ablation/*-0/round0/last.pt")) if "poor" not in str(p)]
    assert len(first) == 5 and all(torch.equal(value, one[k]) for one in first for k, value in first[0].items())      # one CycleGAN begins them all
    assert "with shuffled identities no gain: " in capsys.readouterr().out


@pytest.mark.skipif("CUFS_DATA" not in os.environ, reason="CUFS_DATA names a folder with photos/ and sketches/, or train/ and test/ of them")
def test_the_real_cufs_loads(tiny):
    cfg = dataclasses.replace(tiny, data=os.environ["CUFS_DATA"])
    assert len(paper.make_data(cfg)) > 50 < len(paper.make_data(cfg, test=True))
