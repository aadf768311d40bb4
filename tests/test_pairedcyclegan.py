import dataclasses
import json
import math
import os
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn as nn
import torch.nn.functional as F
from PIL import Image

import common
import pairedcyclegan as paper
import toyfaces
from common import UserError
from conftest import blind_judges, in_turn
from pairedcyclegan import Config

TINY = dict(paper.SMALL, image_size=48, width=4, d_width=4, people=6, steps=10, batch_size=2,
            log_every=5, save_every=5, sample_every=5, device="cpu", amp=False)


@pytest.fixture
def tiny(tmp_path, cache, monkeypatch):
    """A configuration that trains in seconds, and judges that know nothing."""
    quick(monkeypatch)
    return Config(**TINY, cache=cache, run=str(tmp_path / "run"))


def quick(monkeypatch):
    blind_judges(monkeypatch)
    for name, value in dict(TEST_PEOPLE=5, SOURCES=3, REFERENCES=4).items():
        monkeypatch.setattr(paper, name, value)


# ------------------------------------------------------------------------------------------------------ losses

def level(*pictures):
    """A discriminator whose score is the mean of what it sees, the last picture counting double."""
    return sum((k + 1) * p.mean((1, 2, 3), keepdim=True) for k, p in enumerate(pictures))


def bce(score, target):
    return F.binary_cross_entropy_with_logits(torch.as_tensor(score), torch.tensor(float(target))).item()


def flat(value):
    return torch.full((2, 3, 4, 4), value)


def test_loss_G_by_hand():
    assert paper.loss_G_D(level, flat(.7), flat(-.2)).item() == pytest.approx(bce(.7, 1) + bce(-.2, 0))
    assert paper.loss_G_G(level, flat(-.2)).item() == pytest.approx(bce(-.2, 1))


def test_loss_F_by_hand():
    assert paper.loss_F_D(level, flat(.3), flat(.4)).item() == pytest.approx(bce(.3, 1) + bce(.4, 0))
    assert paper.loss_F_F(level, flat(.4)).item() == pytest.approx(bce(.4, 1))


def test_loss_P_pairs_the_reference_with_W_as_real_and_with_the_result_as_false():
    assert paper.loss_P_D(level, flat(.1), flat(.2), flat(.4)).item() == pytest.approx(bce(.1 + .4, 1) + bce(.1 + .8, 0))
    assert paper.loss_P_G(level, flat(.1), flat(.4)).item() == pytest.approx(bce(.9, 1))
    mismatched = (bce(.1 + .8, 0) + bce(.6 + .4, 0)) / 2                # half of the false pairs: W with a stranger's make-up
    assert paper.loss_P_D(level, flat(.1), flat(.2), flat(.4), flat(.6)).item() == pytest.approx(bce(.1 + .4, 1) + mismatched)


def test_noise_is_the_same_on_both_sides_of_each_comparison(tiny, monkeypatch):
    """[L_I] F(y_fake + n_y) against x + n_y; [L_S] G(x_fake + n_x, y_fake + n_y) against y + n_x: no reward for what noise drowns."""
    seen, build = {}, paper.build

    def spy(name, inside=lambda *_: None):
        original = getattr(paper, name)
        monkeypatch.setattr(paper, name, lambda *args: (seen.update({name: args}), inside(*args), original(*args))[-1])
    monkeypatch.setattr(paper, "build", lambda cfg: seen.setdefault("nets", build(cfg)))

    def compare(x, y_fake):                                              # where [L_R] stands, the last before the first update
        (x_noisy, x_back), (_, y_noisy, x_seen, y_seen), y, x_fake = *(seen[name] for name in ("loss_I", "loss_S")), seen["loss_P_G"][1], seen["loss_F_F"][1]
        n_x, n_y = x_seen - x_fake, y_seen - y_fake
        assert n_x.std().item() == pytest.approx(.5, rel=.1) == n_y.std().item() and (n_x - n_y).abs().max() > .1
        torch.testing.assert_close(y_noisy - y, n_x, atol=1e-5, rtol=0)
        torch.testing.assert_close(x_noisy - x, n_y, atol=1e-5, rtol=0)
        torch.testing.assert_close(x_back, seen["nets"][1](y_seen), atol=1e-4, rtol=1e-4)
        seen["compared"] = True
    for name in ("loss_I", "loss_S", "loss_P_G", "loss_F_F"):
        spy(name)
    spy("loss_R", compare)
    paper.train(dataclasses.replace(tiny, steps=1, noise=.5, warm_up=0.))
    assert seen["compared"]


def test_loss_I_and_loss_R_by_hand():
    assert paper.loss_I(flat(.5), flat(.25)).item() == pytest.approx(.25)
    assert paper.loss_R(flat(.5), flat(.1)).item() == pytest.approx(.4)


def test_loss_S_gives_the_bare_reference_as_source_and_the_result_as_style():
    seen = []

    def G(x, y):
        seen.append((x.mean().item(), y.mean().item()))
        return x + y
    assert paper.loss_S(G, flat(1.), flat(.2), flat(.3)).item() == pytest.approx(.5) and seen == [(pytest.approx(.2), pytest.approx(.3))]


def test_the_saddle_of_L_P_moves_G_towards_what_D_S_takes_for_the_same_style():
    y_fake = flat(.0).requires_grad_()
    paper.loss_P_G(level, flat(.1), y_fake).backward()
    assert (y_fake.grad < 0).all()                                       # descent raises D_S's score


# ---------------------------------------------------------------------------------------------------- networks

def test_parameters_and_receptive_fields():
    G, F_, D_X, D_Y, D_S = paper.build(Config())
    assert [common.n_parameters(net) for net in (G, F_, D_X, D_Y, D_S)] == [1_055_491, 1_055_491, 2_764_737, 2_764_737, 2_767_809]
    assert sum(map(common.n_parameters, (G, F_, D_X, D_Y, D_S))) == 10_408_265
    assert G.receptive_field() == F_.receptive_field() == 41 and D_S.receptive_field() == 70


def test_the_receptive_field_is_what_the_gradient_says():
    net = paper.Generator(2, 4)
    for m in net.modules():                                              # instance norm sees everything: leave it out
        if isinstance(m, nn.Sequential):
            for k, layer in enumerate(m):
                if isinstance(layer, nn.InstanceNorm2d):
                    m[k] = nn.Identity()
    x, y = torch.rand(2, 1, 3, 95, 95).unbind(0)
    x.requires_grad_(), y.requires_grad_()
    net.stems[0].register_forward_hook(lambda module, args, out: out.exp())              # so that no unit is dead
    for act in (m for m in net.modules() if isinstance(m, nn.ReLU)):
        act.forward = lambda v: v * 1.1
    change = net.trunk(torch.cat([stem(p) for stem, p in zip(net.stems, (x, y), strict=True)], 1))
    change[0, :, 47, 47].sum().backward()
    touched = x.grad.abs().sum((0, 1)).nonzero()
    assert (touched.amax(0) - touched.amin(0) + 1).tolist() == [41, 41]


def test_G_starts_near_the_source_and_stays_in_range():
    G = common.init_normal(paper.Generator(2, 8))
    x, y = torch.rand(2, 2, 3, 48, 50).unbind(0)
    out = G(2 * x - 1, y)
    assert out.shape == x.shape and out.abs().max() <= 1
    assert not torch.equal(G(x, y), G(x, 1 - y))                         # it sees the reference


# ------------------------------------------------------------------------------------------ anchors, crops, W

def landmarks(n=4, size=96, **fields):
    faces = toyfaces.sample(n, 3, pose=.2, expression=False, makeup=False).set(beard=0., glasses=0., zoom=1.4, shift=[0., .03], **fields)
    return faces, toyfaces.landmarks(faces, size)


MT = {"skin": 1, "beard": 1, "brows": (2, 3), "eyes": (4, 5), "lips": (7, 9), "inner mouth": 8, "hair": 10, "glasses": 1, "clothes": 0, "background": 0}


def mt_map(face, size=96):
    """The map of regions of a toy face in MT's numbers."""
    label, points = toyfaces.regions(face, size)[0].numpy(), toyfaces.landmarks(face, size)[0]
    out = np.zeros_like(label)
    y, x = np.indices(label.shape)
    for name, number in MT.items():
        here = label == toyfaces.REGIONS.index(name)
        if name in ("brows", "eyes"):
            out[here] = np.where(x < float(points[27, 0]), *number)[here]
        elif name == "lips":
            out[here] = np.where(y < float((points[62, 1] + points[66, 1]) / 2), *number)[here]
        else:
            out[here] = number
    nose = (abs(x - float(points[33, 0])) < .05 * size) & (y > float(points[28, 1])) & (y <= float(points[33, 1]) + 1)
    out[nose & (out == 1)] = 6
    return out.astype(np.uint8)


def test_anchors_from_a_map_lie_where_those_from_landmarks_lie():
    faces, points = landmarks()
    for k in range(4):
        a, b = paper.anchors_of_points(points[k]), paper.anchors_of_map(mt_map(faces[k]))
        off = (a - b).norm(dim=1)
        assert a.shape == b.shape == (30, 2) and off[[*range(8), *range(14, 18), 27, 28, 29]].mean() < 2 and off.max() < 9
        for anchors in (a, b):                                           # the lips' inner edges one above the other, never quite closed
            assert anchors[28, 0] == anchors[29, 0] and anchors[29, 1] - anchors[28, 1] >= .03 * (anchors[15] - anchors[14]).norm() - 1e-4


def test_hidden_brows_are_guessed_and_missing_eyes_named():
    faces, _ = landmarks()
    label = mt_map(faces[0])
    shown = paper.anchors_of_map(label)
    label[np.isin(label, (2, 3))] = 1
    assert (paper.anchors_of_map(label)[8:14] - shown[8:14]).norm(dim=1).mean() < 6
    label[label == 4] = 1
    with pytest.raises(ValueError, match="no two eyes"):
        paper.anchors_of_map(label)


def test_what_hides_part_of_a_map_does_no_harm_or_is_named():
    faces, points = landmarks()
    for k in range(4):
        label, shown = mt_map(faces[k]), paper.anchors_of_map(mt_map(faces[k]))
        x = int(points[k, 51, 0])
        label[:, x - 6:x + 7] = np.where(np.isin(label[:, x - 6:x + 7], (7, 8, 9)), 10, label[:, x - 6:x + 7])             # a lock of hair over the mouth
        assert (paper.anchors_of_map(label) - shown).norm(dim=1).max() < 15
    label = mt_map(faces[0])
    label[int(points[0, 48:60, 1].mean()) - 1:int(points[0, 48:60, 1].mean()) + 2][:] = 10
    label[np.isin(label, (1,))] = 10
    with pytest.raises(ValueError):
        paper.anchors_of_map(np.where(label == 9, 10, label))


def test_66_points_give_the_same_anchors_as_68():
    _, points = landmarks(1)
    assert torch.equal(paper.anchors_of_points(points[0]), paper.anchors_of_points(common.to_66(points)[0]))


@pytest.mark.parametrize("region", paper.REGIONS)
def test_place_goes_there_and_back_upright(region):
    _, points = landmarks(4)
    anchors = torch.stack([paper.anchors_of_points(p) for p in points])
    mirror, turn = torch.tensor([False, True, False, True]), torch.tensor([0., 0., 10., -10.])
    inner, to_picture, to_square = paper.place(anchors, region, 40, mirror, turn)
    assert torch.allclose(to_picture(inner), anchors, atol=1e-3) and torch.allclose(to_square(anchors), inner, atol=1e-3)
    eyes, mouth = inner[:2, [0, 1, 4, 5]].mean(1), inner[:2, [14, 15]].mean(1)
    assert (eyes - mouth)[:, 0].abs().max() < .01 and (eyes - mouth)[:, 1].max() < 0                     # eyes above mouth
    if region == "eyes":                                                 # the left eye, mirrored, lies where the right one does
        assert (inner[0, 4:8].mean(0) - 19.5).abs().max() < 8 and (inner[1, :4].mean(0) - 19.5).abs().max() < 8
    if region == "lips":
        assert (inner[:2, 14:18].mean(1) - 19.5).abs().max() < 6


def test_a_turned_picture_gives_the_same_crop():
    _, points = landmarks(1)
    anchors = paper.anchors_of_points(points[0])[None]
    s, c = math.sin(.2), math.cos(.2)
    turned = (anchors - 48) @ torch.tensor([[c, s], [-s, c]]) + 48
    one, two = (paper.place(a, "face", 40, torch.zeros(1, dtype=torch.bool))[0] for a in (anchors, turned))
    assert torch.allclose(one, two, atol=1e-3)


def test_thin_plate_hits_its_knots_and_is_the_affine_map_where_one_fits():
    g = torch.Generator().manual_seed(0)
    source = 60 * torch.rand(2, 30, 2, generator=g)
    bent = source + 3 * torch.randn(2, 30, 2, generator=g)
    assert (paper.thin_plate(source, bent)(source) - bent).norm(dim=2).mean() < .3
    A, b = torch.tensor([[1.1, .1], [-.2, .9]]), torch.tensor([3., -2.])
    far = 100 * torch.rand(2, 50, 2, generator=g)
    assert torch.allclose(paper.thin_plate(source, source @ A + b)(far), far @ A + b, atol=.02)


def test_inside_is_the_even_odd_rule_for_a_star():
    angle = torch.arange(12) * 2 * math.pi / 12
    radius = torch.tensor([18., 10.]).repeat(6)
    star = torch.stack([radius * angle.cos(), radius * angle.sin()], 1) + 24.3
    from matplotlib.path import Path as Outline
    grid = paper.pixels(48, 48, "cpu")[0]
    expected = torch.tensor(Outline(star.numpy()).contains_points(grid.numpy())).reshape(48, 48)
    assert (paper.inside(star[None], 48)[0, 0] != expected).sum() <= 4   # pixels on the outline itself


def test_the_warped_reference_has_its_colours_in_the_places_of_the_source(tiny):
    data = paper.make_data(dataclasses.replace(tiny, people=12), "face")
    i, upright = torch.arange(12), torch.zeros(12, dtype=torch.bool)
    red = dict(lip_rgb=[.8, 0., .1], lip_alpha=1., shadow_alpha=0., liner_alpha=0., blush_alpha=0.)
    data.made.faces = data.made.faces.set(**red)
    data.made.bank = common.to_uint8(toyfaces.render(data.made.faces, data.made.bank.shape[-1]))
    (x, inner), w = data.cut(data.bare, i, upright), data.warped(i, i, upright)
    lips = [toyfaces.regions(data.bare.faces, data.bare.bank.shape[-1]) == toyfaces.REGIONS.index("lips")]
    lips = data.view(lips[0][:, None].float(), data.bare.anchors, upright)[0] > .9
    red_of = [(p[:, :1] - p[:, 1:2])[lips].mean() for p in (x, w, data.true(i, i, upright))]
    assert red_of[1] > red_of[0] + .2 and (red_of[1] - red_of[2]).abs() < .5 * (red_of[2] - red_of[0])
    outside = ~paper.inside(inner[:, paper.OUTLINE] + 0., 48).expand_as(x)
    assert (w - x)[outside].abs().mean() < .02                           # hair and wall are the source's


def test_blending_gives_the_skin_of_the_source():
    x, pasted = torch.full((1, 3, 8, 8), -.4), torch.full((1, 3, 8, 8), .5)
    skin = [((p / 2 + .5) + paper.LIFT).mean((2, 3)) for p in (x, pasted)]
    mask = torch.ones(1, 1, 8, 8)
    assert torch.allclose(paper.blended(x, pasted, mask, skin[0] / skin[1]), x, atol=1e-5)
    assert torch.equal(paper.blended(x, pasted, 0 * mask, skin[0] / skin[1]), x)


def test_a_change_laid_on_the_picture_comes_from_where_the_square_was_cut():
    picture = F.interpolate(torch.randn(1, 3, 12, 12, generator=torch.Generator().manual_seed(0)), (120, 120), mode="bicubic")
    _, points = landmarks(1, 120)
    anchors = paper.anchors_of_points(points[0])[None]
    for region in paper.REGIONS:
        _, to_picture, to_square = paper.place(anchors, region, 64, torch.ones(1, dtype=torch.bool))
        square = paper.look(picture, to_picture(paper.pixels(64, 64, "cpu")), 64)
        laid, mask = paper.lay(square, to_square, (120, 120))
        assert mask.max() == 1 and mask.min() == 0 and ((laid - picture) * (mask > .9)).abs().max() < .35


def test_eyes_and_lips_lie_over_skin(tiny):
    def paint(value):
        return (lambda x, y: x + value), (lambda x: x + value)
    data = paper.make_data(tiny, "face")
    x, y, a, b = data.bare.pictures(torch.arange(2), "cpu"), data.made.pictures(torch.arange(2), "cpu"), data.bare.anchors[:2], data.made.anchors[:2]
    total = paper.painted(tiny, {"skin": paint(.1), "eyes": paint(.2), "lips": paint(.3)}, x, a, y, b)
    at = [a[:, k].mean(1).round().long() for k in ([0, 1], [4, 5], [28, 29])]
    values = [torch.stack([total[n, 0, p[n, 1], p[n, 0]] for n in range(2)]) for p in at]
    assert torch.allclose(torch.stack(values), torch.tensor([.2, .2, .3])[:, None].expand(-1, 2), atol=.03)
    assert ((total - .1).abs() < .001).float().mean() > .05             # and between them, skin
    assert total[:, :, 0, 0].abs().max() == 0
    assert torch.allclose(paper.painted(tiny, {"face": paint(.1)}, x, a), paper.painted(tiny, {"face": paint(.1)}, x, a, y, b))


# -------------------------------------------------------------------------------------------------------- data

def test_toy_people_made_up_and_bare_are_different_people(tiny):
    bare, made = paper.toy_albums(tiny)
    assert (made.faces.lip_alpha > .4).all() and (bare.faces.lip_alpha == 0).all()
    assert not torch.equal(bare.faces.eye_x, made.faces.eye_x)
    others = paper.toy_albums(tiny, True)
    for album in (bare, made):
        for other in others:
            assert not torch.isin(album.faces.eye_x, other.faces.eye_x).any()


def test_variety_tells_how_much_skin_light_and_wall_differ(tiny):
    for variety, spread in ((0., 0.), (.5, .5), (1., 1.)):
        alike, free = (paper.toy_people(dataclasses.replace(tiny, variety=v), 20, 5, True) for v in (variety, 1.))
        for name in ("skin_rgb", "background", "light_strength"):
            assert torch.allclose(getattr(alike, name).std(0), spread * getattr(free, name).std(0), atol=1e-6)
        assert torch.allclose(alike.light.norm(dim=1), torch.ones(20)) and torch.equal(alike.lip_rgb, free.lip_rgb)


def test_a_batch_is_cut_alike_and_the_true_pair_is_the_source_made_up(tiny):
    data = paper.make_data(dataclasses.replace(tiny, pairs="true"), "face")
    x, y, w = data.sample(4)
    assert x.shape == y.shape == w.shape == (4, 3, 48, 48)
    assert 0 < (w - x).abs().mean() < .2 * (y - x).abs().mean()
    eyes = paper.make_data(tiny, "eyes").sample(3)
    assert eyes[0].shape == (3, 3, 24, 24)


def photo(path, seed=0, size=(70, 90), face=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    if face is None:
        array = np.random.default_rng(seed).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
    else:
        array = common.to_uint8(toyfaces.render(face, size[0]))[0].permute(1, 2, 0).numpy()
    Image.fromarray(array).save(path)
    return path


def pts(path, points):
    lines = "\n".join(f"{x + 1:.3f} {y + 1:.3f}" for x, y in points.tolist())
    path.write_text(f"version: 1\nn_points: {len(points)}\n{{\n{lines}\n}}\n")


def mt(root, n=4):
    """MT as PSGAN lays it out; maps of another size than the pictures."""
    faces, _ = landmarks(2 * n)
    for k in range(2 * n):
        kind, name = ("makeup", "non-makeup")[k % 2], f"p{k}.png"
        photo(root / "images" / kind / name, size=(110, 110), face=faces[k])
        label = root / "segs" / kind / name
        label.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(mt_map(faces[k])).save(label)
        with open(root / f"{kind}.txt", "a") as file:
            file.write(f"{kind}/{name}\n")
    return root


def two_folders(root, n=4):
    faces, _ = landmarks(2 * n)
    for k in range(2 * n):
        path = photo(root / ("before", "after")[k % 2] / f"{k}.jpg", size=(100, 100), face=faces[k])
        pts(path.with_suffix(".pts"), toyfaces.landmarks(faces[k], 100)[0])
    return root


@pytest.mark.parametrize("make", [mt, two_folders])
def test_photographs_are_cut_around_the_face_and_held_out(tiny, tmp_path, make):
    cfg = dataclasses.replace(tiny, data=str(make(tmp_path / "data")))
    found = paper.scan(cfg)
    assert len(found["images"]) == 8 and sum(found["test"]) == 2 and found["made"].count(1) == 4 and not found["bad"]
    (bare, made), (bare_test, made_test) = (paper.photographs(cfg, test) for test in (False, True))
    assert [len(album) for album in (bare, made, bare_test, made_test)] == [3, 3, 1, 1]
    L = paper.load_size(cfg)
    for album in (bare, made):
        inner = paper.place(album.anchors, "face", 48, torch.zeros(3, dtype=torch.bool))[0]
        assert bare.bank.shape[1:] == (3, L, L) and album.anchors.min() > 0 and album.anchors.max() < L
        assert (inner[:, [0, 1, 4, 5]].mean(1)[:, 0] - 23.5).abs().max() < 1                              # eyes in the middle
    x, y, w = paper.make_data(cfg, "lips").sample(3)
    assert x.shape == w.shape == (3, 3, 24, 24) and not torch.equal(x, w)


def test_a_map_scales_with_the_picture(tmp_path):
    faces, _ = landmarks(1)
    Image.fromarray(mt_map(faces[0])).save(tmp_path / "m.png")
    one, two = (paper.anchors_of(tmp_path / "m.png", (s, s)) for s in (96, 192))
    assert torch.allclose((one + .5) * 2, two + .5)


@pytest.mark.parametrize("spoil, message", [
    (lambda root: [p.unlink() for p in (root / "images/makeup").iterdir()], "pictures without make-up, 0 with"),
    (lambda root: (root / "segs/makeup/p0.png").unlink(), "neither p0.pts beside it nor a map"),
    (lambda root: Image.new("L", (96, 96)).save(root / "segs/makeup/p0.png"), "no two eyes"),
    (lambda root: Image.new("RGB", (96, 96)).save(root / "segs/makeup/p0.png"), "3 channels"),
    (lambda root: (root / "images/makeup/p2.png").write_bytes(b"?"), "not a readable picture"),
    (lambda root: pts(root / "images/makeup/p0.pts", 900 + landmarks(1)[1][0]), "do not lie on the picture"),
    (lambda root: (root / "makeup.txt").write_text("/nowhere/x.png\n" + (root / "makeup.txt").read_text()), "names /nowhere/x.png, which is not there"),
])
def test_spoilt_data_gives_one_error_or_is_left_out(tiny, tmp_path, spoil, message):
    root = mt(tmp_path / "data")
    spoil(root)
    cfg = dataclasses.replace(tiny, data=str(root))
    with pytest.raises(UserError, match=message.replace("(", r"\(")):
        paper.train(cfg)
    assert not Path(tiny.run).exists()
    if "0 with" not in message:
        bare, made = paper.photographs(dataclasses.replace(cfg, skip_bad=True), False)
        assert (len(bare), len(made)) == (3, 3 if "nowhere" in message else 2)


def test_pickled_landmarks_and_links_do_not_matter(tiny, tmp_path):
    root = mt(tmp_path / "data")
    (root / "landmarks/makeup").mkdir(parents=True)
    (root / "landmarks/makeup/p0.png").write_bytes(b"a pickle")
    (root / "makeup.txt").unlink(), (root / "non-makeup.txt").unlink()
    linked = tmp_path / "linked"
    linked.mkdir()
    for name in ("images", "segs", "landmarks"):
        (linked / name).symlink_to(root / name)
    for folder in (root, linked):
        assert len(paper.scan(dataclasses.replace(tiny, data=str(folder)))["images"]) == 8


def test_the_size_of_a_picture_follows_its_exif(tmp_path):
    image, exif = Image.new("RGB", (30, 20)), Image.Exif()
    exif[274] = 6
    image.save(tmp_path / "a.jpg", exif=exif)
    assert common.picture_size(tmp_path / "a.jpg") == common.open_image(tmp_path / "a.jpg").size == (20, 30)


# ---------------------------------------------------------------------------------------------------- training

def spied(tiny, monkeypatch, **changes):
    """{step: {"GF": nets that its loss reaches, "D": ...}} of a training."""
    seen, update = {}, common.Run.update

    def spy(self, name, loss):
        for net in self.nets.values():
            net.zero_grad(set_to_none=True)
        loss.backward(retain_graph=True)
        reached = {k for k, net in self.nets.items() if any(p.grad is not None and p.grad.abs().sum() > 0 for p in net.parameters())}
        seen.setdefault(len(seen) + (name == "GF"), {})[name] = reached               # G and F begin a step, the D's end it
        update(self, name, loss)
    monkeypatch.setattr(common.Run, "update", spy)
    paper.train(dataclasses.replace(tiny, **changes))
    return seen


def test_F_first_then_G_then_both(tiny, monkeypatch):
    seen = spied(tiny, monkeypatch, warm_up=.2)
    assert seen[1] == seen[2] == {"GF": {"G", "F"}, "D": {"D_X", "D_Y"}}
    assert seen[3] == seen[4] == {"GF": {"G"}, "D": {"D_X", "D_Y", "D_S"}}
    assert seen[5] == seen[10] == {"GF": {"G", "F"}, "D": {"D_X", "D_Y", "D_S"}}


def test_without_D_S_and_without_a_reference(tiny, monkeypatch):
    assert all("D_S" not in step["D"] for step in spied(tiny, monkeypatch, lambda_P=0.).values())
    G = common.load_checkpoint(Path(tiny.run) / "face/last.pt")
    assert not G["opts"]["D"]["state"].get(len(list(paper.build(tiny)[2].parameters())) * 2 + 1)
    blind = dataclasses.replace(tiny, follow=False, run=tiny.run + "2")
    paper.train(blind)
    nets, _ = paper.trained(dataclasses.replace(blind))
    x, y = torch.rand(2, 1, 3, 48, 48).unbind(0)
    assert torch.equal(nets["face"][0](x, y), nets["face"][0](x, -y))


def test_adversarial_weight_by_hand(tiny):
    cfg = dataclasses.replace(tiny, steps=200, ramp_from=.25, lambda_adv=.1, lambda_adv_end=.5)
    assert [paper.adversarial_weight(cfg, step) for step in (1, 50, 125, 200)] == pytest.approx([.1, .1, .3, .5])


def test_resume_is_exact(tiny):
    whole = dataclasses.replace(tiny, run=tiny.run + "-whole")
    paper.train(whole)
    paper.train(dataclasses.replace(tiny, stop_after=5))
    paper.train(tiny)
    one, two = (common.load_checkpoint(Path(run) / "face/last.pt") for run in (whole.run, tiny.run))
    for name, state in one["nets"].items():
        assert all(torch.equal(value, two["nets"][name][key]) for key, value in state.items()), name


@pytest.mark.parametrize("change, message", [
    (dict(image_size=47), "--image-size 47"), (dict(load_size=20), "--load-size 20"), (dict(people=0), "--people 0"), (dict(warm_up=.6), "--warm-up 0.6"),
    (dict(epochs=0, steps=0), "--epochs 0"), (dict(weights="w.pt"), "--weights: training"),
    (dict(pairs="true", data="."), "--pairs true"),
])
def test_settings_that_do_not_fit(tiny, change, message):
    with pytest.raises(UserError, match=message):
        paper.train(dataclasses.replace(tiny, **change))


def test_a_training_runs_on_cuda_and_cpu(tiny, device):
    paper.train(dataclasses.replace(tiny, steps=3, device=device, amp=device == "cuda"))


def test_W_is_the_same_on_every_device(tiny, device):
    one, two = (paper.make_data(dataclasses.replace(tiny, device=d), "face") for d in ("cpu", device))
    i = torch.arange(3)
    assert torch.allclose(one.warped(i, i), two.warped(i, i).cpu(), atol=.02)


def test_fresh_parts_start_all_over_and_another_kind_of_regions_is_refused(tiny):
    cfg = dataclasses.replace(tiny, regions="parts", steps=2)
    paper.train(cfg)
    paper.train(dataclasses.replace(cfg, fresh=True, stop_after=1))
    assert [p.parent.name for p in sorted(Path(tiny.run).glob("*/last.pt"))] == ["skin"]
    with pytest.raises(UserError, match="holds a run of the region skin"):
        paper.train(tiny)
    paper.train(dataclasses.replace(tiny, fresh=True, steps=1))
    assert [p.parent.name for p in sorted(Path(tiny.run).glob("*/last.pt"))] == ["face"]


def test_a_CycleGAN_has_both_cycles_and_its_F_no_secret_at_first(tiny, monkeypatch):
    given = []
    monkeypatch.setattr(paper, "loss_S", lambda G, y, x_fake, y_fake: (given.append(x_fake is y_fake), (G(x_fake, y_fake) - y).abs().mean())[1])
    paper.train(dataclasses.replace(tiny, follow=False))
    assert given == [True] * 10
    given.clear()
    paper.train(dataclasses.replace(tiny, run=tiny.run + "2", warm_up=.2))
    assert given == [False] * 8


def test_health_words(tiny):
    data = paper.make_data(tiny, "face", test=True)
    zero, off = (lambda p: p.new_zeros(len(p), 1, 1, 1)), (lambda y: y)
    x, y, truth, _ = paper.few(data, 4, 4)

    def word(G, D=zero, blind=False):
        return paper.report(tiny, G, off, D, data, blind)["health"]
    assert word(lambda a, b: a) == "copying"
    assert word(lambda a, b: a * .5) == "style-ignored" and word(lambda a, b: a * .5, blind=True) == "ok"
    assert word(lambda a, b: (a + b) / 2) == "ok"
    real = y.mean((1, 2, 3))
    assert word(lambda a, b: (a + b) / 2, lambda p: 40. * torch.isin(p.mean((1, 2, 3)), real)[:, None, None, None].float()) == "D-won"


# -------------------------------------------------------------------------------------------------- evaluation

def test_marks_of_the_truth_are_perfect_and_of_a_copy_are_not(tiny):
    exam = paper.Exam(tiny, *paper.toy_albums(tiny, True))
    truth, copy, warped = (exam.marks(out) for out in (exam.truth, exam.x[:, None].expand_as(exam.truth), exam.laid(true=False)))
    assert truth["L1"] == truth["dE lips"] == truth["dE shadow"] == truth["dE liner"] == 0 and truth["style match"] == 1
    assert truth["follows"] == pytest.approx(1, abs=1e-4) and truth["follows liner"] == pytest.approx(1, abs=1e-4)
    assert copy["outside"] == 0 and copy["dE lips"] > 5 and copy["style match"] <= .5 and copy["follows"] == pytest.approx(0, abs=1e-4)
    assert warped["follows"] > 0 and warped["style match"] > copy["style match"]
    one_look = exam.marks(exam.truth[:, :1].expand_as(exam.truth))
    assert one_look["follows"] == pytest.approx(0, abs=1e-4) and one_look["style match"] == .25
    assert one_look["follows liner"] == pytest.approx(0, abs=1e-4)
    half = exam.marks((exam.truth + exam.x[:, None]) / 2)                # (Lab is not linear in RGB, so only nearly 3 / 4)
    assert .6 < half["follows"] < .9 and .4 * copy["dE lips"] < half["dE lips"] < .6 * copy["dE lips"]
    assert truth["edges"] == 0 < copy["edges"] and half["edges"] == pytest.approx(copy["edges"] / 2, rel=1e-4)
    assert exam.marks(exam.truth + .1)["edges"] == pytest.approx(0, abs=1e-6)                                    # a colour cast has no edges
    assert not (exam.where["shadow"] & exam.where["liner"]).any()
    opposite = exam.marks((2 * exam.x[:, None] - exam.truth).clamp(-1, 1))
    assert opposite["follows"] < 0


def test_dE_is_the_distance_in_Lab_where_the_lipstick_is(tiny, monkeypatch):
    monkeypatch.setattr(paper, "SOURCES", 2), monkeypatch.setattr(paper, "REFERENCES", 2)
    exam = paper.Exam(tiny, *paper.toy_albums(tiny, True))
    out = exam.truth.clone()
    lips, elsewhere = exam.where["lips"][0, 0], ~exam.where["lips"][0, 0]
    out[0, 0, :, elsewhere] = 0                                          # must not matter
    assert exam.marks(out)["dE lips"] == 0
    out = exam.truth.clone()
    out[0, 0, :, lips] = -1.
    L = common.rgb_to_lab(torch.stack([exam.truth[0, 0], out[0, 0]])).diff(dim=0)[0].norm(dim=0)[lips].mean()
    assert exam.marks(out)["dE lips"] == pytest.approx(L.item() / 4, rel=1e-4)             # one of four pictures


def test_exam_of_no_removal(tiny):
    exam = paper.Exam(tiny, *paper.toy_albums(tiny, True))
    found = exam.off({"face": (lambda x, y: x, lambda x: x)})
    assert found["F(y)"] == pytest.approx(found["y itself"], abs=1e-6) and found["back"] == pytest.approx(0, abs=1e-6) and found["back from noise"] < .001


def test_evaluate_of_parts_and_of_photographs(tiny, tmp_path):
    paper.train(dataclasses.replace(tiny, regions="parts", steps=2))
    rows = paper.evaluate(dataclasses.replace(tiny))["rows"]
    assert list(rows) == ["G", "copy the bare face", "one look for all", "W, the warped reference", "the truth", "make-up off"]
    assert json.loads((Path(tiny.run) / "evaluation.json").read_text())["rows"] == rows
    cfg = dataclasses.replace(tiny, data=str(mt(tmp_path / "data")), run=str(tmp_path / "photos"), steps=2)
    paper.train(cfg)
    assert list(paper.evaluate(dataclasses.replace(tiny, run=cfg.run))["rows"]) == ["face: G", "face: W"]     # the run knows its data


def test_infer_puts_on_and_takes_off(tiny, tmp_path, monkeypatch):
    data = paper.make_data(tiny, "face")
    about = {"toy": True, "anchors": (data.bare.anchors.mean(0) / data.bare.bank.shape[-1]).tolist()}
    nets = {"face": (lambda x, y: (x + .5).clamp(-1, 1), lambda x: (x - .5).clamp(-1, 1))}
    monkeypatch.setattr(paper, "trained", lambda cfg: (nets, about))
    faces, _ = landmarks(1)
    a = photo(tmp_path / "a.png", size=(100, 100), face=faces[0])
    b = photo(tmp_path / "b.png", seed=1)
    paper.infer(tiny, [str(a)], [str(b), str(b)], False, 1., str(tmp_path / "out"))
    paper.infer(tiny, [str(b)], [], True, .5, str(tmp_path / "out"))
    paper.infer(tiny, [str(a)], [str(b)], False, .5, str(tmp_path / "half"))
    before, after = (np.asarray(Image.open(p)).astype(int) for p in (a, tmp_path / "out/a_b.png"))
    assert after.shape == before.shape and (after - before)[50, 50].min() >= 0 and (after - before)[50, 50].max() > 40
    half = np.asarray(Image.open(tmp_path / "half/a_b.png")).astype(int)
    assert abs((half - before)[50, 50] * 2 - (after - before)[50, 50]).max() <= 40       # (brighter than white does not go)
    assert (after[0, 0] == before[0, 0]).all() and (tmp_path / "out/a_b_1.png").exists() and (tmp_path / "out/sheet.png").exists()
    assert Image.open(tmp_path / "out/b_bare.png").size == (70, 90)
    monkeypatch.setattr(paper, "trained", lambda cfg: (nets, {"toy": False}))
    with pytest.raises(UserError, match="no landmarks; put a.pts beside it"):
        paper.infer(tiny, [str(a)], [], True, 1., "")
    pts(a.with_suffix(".pts"), 900 + landmarks(1)[1][0])
    with pytest.raises(UserError, match="a.pts: its landmarks do not lie on the picture"):
        paper.infer(tiny, [str(a)], [], True, 1., "")
    for argv in ([[], False, 1.], [[str(b)], True, 1.], [[str(b)], False, 2.]):
        with pytest.raises(UserError, match="--"):
            paper.infer(tiny, [str(a)], *argv, "")


def test_ablate_runs_every_variant_and_judges(tiny, monkeypatch, capsys):
    monkeypatch.setattr(paper, "SEEDS", (0, 1))
    in_turn(monkeypatch)
    paper.ablate(dataclasses.replace(tiny, steps=3))
    report = json.loads((Path(tiny.run) / "ablation.json").read_text())
    assert [c["part"] for c in report["claims"]] == ["style", "D_S", "D_S, mismatched pairs", "removal", "pairs", "regions"] and len(report["runs"]) == 8 * 2
    assert {"D_S, mean", "W, the warped reference, mean", "the truth, larger pictures, mean", "make-up off: parts, std"} <= report["rows"].keys()
    assert abs(report["rows"]["one look for all, mean"]["follows"]) < 1e-3 and "removal: lower by 5 per cent in every seed: " in capsys.readouterr().out
    assert common.load_checkpoint(Path(tiny.run) / "ablation/parts-0/skin/last.pt")["step"] == 2                          # three steps' pixels
    with pytest.raises(UserError, match="was trained for 3 steps, now 6"):
        paper.ablate(dataclasses.replace(tiny, steps=6))


@pytest.mark.skipif("MT_DATA" not in os.environ, reason="MT_DATA names a folder with images/, segs/, makeup.txt and non-makeup.txt")
def test_the_real_mt_loads_and_trains(tiny):
    cfg = dataclasses.replace(tiny, data=os.environ["MT_DATA"], steps=2)
    paper.train(cfg)
    assert (Path(cfg.run) / "face/last.pt").exists()
