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
from conftest import blind_judges, in_turn
from lab import UserError, toyfaces, toysets, warp
from lab.claims import pairedcyclegan as claims
from lab.files import load_checkpoint
from lab.formats import makeup as formats
from lab.images import rgb_to_lab, to_uint8
from lab.run import Run
from pairedcyclegan import Config
from makers import close_faces, drawn, mt, picture, two_folders, write_pts

TINY = dict(paper.SMALL, image_size=48, width=4, d_width=4, people=6, steps=10, batch_size=2,
            log_every=5, save_every=5, sample_every=5, device="cpu", amp=False)


@pytest.fixture
def tiny(tmp_path, cache, monkeypatch):
    """A configuration that trains in seconds, and judges that know nothing."""
    quick(monkeypatch)
    return Config(**TINY, cache=cache, run=str(tmp_path / "run"))


def quick(monkeypatch):
    blind_judges(monkeypatch)
    monkeypatch.setattr(paper, "TEST_PEOPLE", 5)
    monkeypatch.setattr(claims, "SOURCES", 3)
    monkeypatch.setattr(claims, "REFERENCES", 4)
    monkeypatch.setattr(Run, "plot", lambda self: None)


# ----------------------------------------------------------------------------------------------------- losses

def bce(score, target):
    return F.binary_cross_entropy_with_logits(torch.as_tensor(score), torch.tensor(float(target))).item()


def flat(value):
    return torch.full((2, 3, 4, 4), value)


def test_loss_G_by_hand():
    assert paper.loss_G_D(flat(.7), flat(-.2)).item() == pytest.approx(bce(.7, 1) + bce(-.2, 0))
    assert paper.loss_G_G(flat(-.2)).item() == pytest.approx(bce(-.2, 1))


def test_loss_F_by_hand():
    assert paper.loss_F_D(flat(.3), flat(.4)).item() == pytest.approx(bce(.3, 1) + bce(.4, 0))
    assert paper.loss_F_F(flat(.4)).item() == pytest.approx(bce(.4, 1))


def test_loss_P_takes_W_for_real_and_the_result_for_false():
    assert paper.loss_P_D(flat(.5), flat(.9)).item() == pytest.approx(bce(.5, 1) + bce(.9, 0))
    assert paper.loss_P_G(flat(.9)).item() == pytest.approx(bce(.9, 1))
    # half of the false pairs: W with another make-up
    mismatched = (bce(.9, 0) + bce(1., 0)) / 2
    assert paper.loss_P_D(flat(.5), flat(.9), flat(1.)).item() == pytest.approx(bce(.5, 1) + mismatched)


def level(first, second):
    """A discriminator of pairs: the mean of what it sees, the second picture counting double."""
    return (first + 2 * second).mean((1, 2, 3), keepdim=True)


def test_D_S_sees_the_reference_first_and_W_the_result_or_a_strangers_reference(tiny, monkeypatch):
    """[L_P] in the loop: D_S(y, W), D_S(y, G(x, y)), D_S(another y, W), in that order."""
    seen, forward = [], paper.PatchGAN.forward

    def spy(self, *pictures):
        if len(pictures) == 2:
            seen.append(pictures)
        return forward(self, *pictures)
    monkeypatch.setattr(paper.PatchGAN, "forward", spy)
    paper.train(dataclasses.replace(tiny, steps=1, warm_up=0., sample_every=9, log_every=9))
    (y, fake), (y_2, w), (y_3, fake_2), (other, w_2) = seen[:4]
    assert torch.equal(y, y_2) and torch.equal(y, y_3) and torch.equal(fake, fake_2) and torch.equal(w, w_2)
    assert torch.equal(other, y.roll(1, 0)) and not torch.equal(w, fake)


def watched(tiny, monkeypatch, **changes):
    """A training without log and grids: what each call of G and F was given and gave; what losses were."""
    calls, compared, forward = [], {"loss_I": [], "loss_S": []}, paper.Generator.forward

    def spy(self, *pictures):
        calls.append((*pictures, forward(self, *pictures)))
        return calls[-1][-1]
    with monkeypatch.context() as patch:
        patch.setattr(paper.Generator, "forward", spy)
        for name, f in {name: getattr(paper, name) for name in compared}.items():
            def compare(*args, name=name, f=f):
                compared[name].append(args)
                return f(*args)
            patch.setattr(paper, name, compare)
        for due in ("logs", "samples"):
            patch.setattr(Run, due, lambda self, step: False)
        paper.train(dataclasses.replace(tiny, **changes))
    return calls, compared


def test_loss_S_gives_the_bare_reference_as_source_and_the_result_as_style(tiny, monkeypatch):
    """[L_I] F(G(x, y)) against x, [L_S] G(F(y), G(x, y)) against y, in the loop."""
    calls, compared = watched(tiny, monkeypatch, steps=1, noise=0., warm_up=0.)
    (x, y, y_fake), (y_2, x_fake), (y_seen, x_back), (source, style, y_back) = calls
    assert torch.equal(y, y_2) and torch.equal(y_seen, y_fake)
    assert torch.equal(source, x_fake) and torch.equal(style, y_fake) and not torch.equal(source, style)
    for name, wanted in (("loss_I", (x, x_back)), ("loss_S", (y, y_back))):
        assert all(torch.equal(a, b) for a, b in zip(compared[name][0], wanted, strict=True))


def test_F_learns_first_with_a_G_that_sees_no_reference_and_no_way_back_to_y(tiny, monkeypatch):
    calls, compared = watched(tiny, monkeypatch, steps=10, warm_up=.2)
    of_G = [pictures for pictures in calls if len(pictures) == 3]
    assert [torch.equal(x, y) for x, y, _ in of_G] == [True] * 2 + [False] * 16
    assert len(compared["loss_I"]) == 10 and len(compared["loss_S"]) == 8


def test_noise_is_the_same_on_both_sides_of_each_comparison(tiny, monkeypatch):
    """[L_I] F(y_fake + n_y) against x + n_y; [L_S] G(x_fake + n_x, y_fake + n_y) against y + n_x."""
    calls, compared = watched(tiny, monkeypatch, steps=1, noise=.5, warm_up=0.)
    (x, y, y_fake), (y_2, x_fake), (y_seen, x_back), (x_seen, y_seen_2, y_back) = calls
    (x_goal, x_back_2), (y_goal, y_back_2) = compared["loss_I"][0], compared["loss_S"][0]
    n_x, n_y = x_seen - x_fake, y_seen - y_fake
    assert torch.equal(y, y_2) and torch.equal(y_seen, y_seen_2)
    assert n_x.std().item() == pytest.approx(.5, rel=.1) == n_y.std().item() and (n_x - n_y).abs().max() > .1
    torch.testing.assert_close(x_goal - x, n_y, atol=1e-5, rtol=0)
    torch.testing.assert_close(y_goal - y, n_x, atol=1e-5, rtol=0)
    assert x_back_2 is x_back and y_back_2 is y_back


def test_loss_S_reaches_what_came_back():
    y, y_back = torch.zeros(2, 3, 4, 4), torch.ones(2, 3, 4, 4, requires_grad=True)
    gradient, = torch.autograd.grad(paper.loss_S(y, y_back) + 0 * y_back.sum(), y_back)
    assert torch.allclose(gradient, torch.full_like(gradient, 1 / 96))


def test_loss_I_and_loss_S_and_loss_R_by_hand():
    assert paper.loss_I(flat(.5), flat(.25)).item() == pytest.approx(.25)
    assert paper.loss_S(flat(1.), flat(.5)).item() == pytest.approx(.5)
    assert paper.loss_R(flat(.5), flat(.1)).item() == pytest.approx(.4)


def test_the_saddle_of_L_P_moves_G_towards_what_D_S_takes_for_the_same_style():
    y_fake = flat(.0).requires_grad_()
    paper.loss_P_G(level(flat(.1), y_fake)).backward()
    assert (y_fake.grad < 0).all()                                       # descent raises D_S's score


# --------------------------------------------------------------------------------------------------- networks

def test_parameters_and_receptive_fields():
    G, F_, D_X, D_Y, D_S = paper.build(Config())
    counts = [common.n_parameters(net) for net in (G, F_, D_X, D_Y, D_S)]
    assert counts == [1_055_491, 1_055_491, 2_764_737, 2_764_737, 2_767_809]
    assert sum(map(common.n_parameters, (G, F_, D_X, D_Y, D_S))) == 10_408_265
    assert G.receptive_field() == F_.receptive_field() == 41 and D_S.receptive_field() == 70


def test_the_receptive_field_is_what_the_gradient_says():
    net = paper.Generator(2, 4)
    for m in net.modules():                                      # instance norm sees everything: leave it out
        if isinstance(m, nn.Sequential):
            for k, layer in enumerate(m):
                if isinstance(layer, nn.InstanceNorm2d):
                    m[k] = nn.Identity()
    x, y = torch.rand(2, 1, 3, 95, 95).unbind(0)
    x.requires_grad_(), y.requires_grad_()
    net.stems[0].register_forward_hook(lambda module, args, out: out.exp())      # so that no unit is dead
    for act in (m for m in net.modules() if isinstance(m, nn.ReLU)):
        act.forward = lambda v: v * 1.1
    change = net.trunk(torch.cat([stem(p) for stem, p in zip(net.stems, (x, y), strict=True)], 1))
    change[0, :, 47, 47].sum().backward()
    touched = x.grad.abs().sum((0, 1)).nonzero()
    assert (touched.amax(0) - touched.amin(0) + 1).tolist() == [41, 41]


def test_without_reference_G_is_that_of_CycleGAN(tiny):
    G = paper.build(dataclasses.replace(tiny, asymmetric=False))[0].eval()
    x, y, other = torch.rand(3, 2, 3, 48, 48) * 2 - 1
    assert torch.equal(G(x, y), G(x, other)) and torch.equal(G(x, y), G(x))
    with pytest.raises(ValueError):
        paper.build(tiny)[0](x)                                          # G of the paper wants one


def test_G_starts_near_the_source_and_stays_in_range():
    G = common.init_normal(paper.Generator(2, 8))
    x, y = torch.rand(2, 2, 3, 48, 50).unbind(0)
    out = G(2 * x - 1, y)
    assert out.shape == x.shape and out.abs().max() <= 1
    assert not torch.equal(G(x, y), G(x, 1 - y))                         # it sees the reference


# ------------------------------------------------------------------------------------------ anchors, crops, W

@pytest.mark.parametrize("region", warp.REGIONS)
def test_place_goes_there_and_back_upright(region):
    _, points = close_faces(4)
    anchors = torch.stack([formats.anchors_of_points(p) for p in points])
    mirror, turn = torch.tensor([False, True, False, True]), torch.tensor([0., 0., 10., -10.])
    inner, to_picture, to_square = warp.place(anchors, region, 40, mirror, turn)
    assert torch.allclose(to_picture(inner), anchors, atol=1e-3)
    assert torch.allclose(to_square(anchors), inner, atol=1e-3)
    eyes, mouth = inner[:2, [0, 1, 4, 5]].mean(1), inner[:2, [14, 15]].mean(1)
    down = mouth - eyes
    assert down[:, 0].abs().max() < .01 and down[:, 1].min() > 0         # eyes above mouth
    if region == "eyes":                     # the left eye, mirrored, lies where the right one does
        assert (inner[0, 4:8].mean(0) - 19.5).abs().max() < 8
        assert (inner[1, :4].mean(0) - 19.5).abs().max() < 8
    if region == "lips":
        assert (inner[:2, 14:18].mean(1) - 19.5).abs().max() < 6


def test_a_turned_picture_gives_the_same_crop():
    _, points = close_faces(1)
    anchors = formats.anchors_of_points(points[0])[None]
    s, c = math.sin(.2), math.cos(.2)
    turned = (anchors - 48) @ torch.tensor([[c, s], [-s, c]]) + 48
    one, two = (warp.place(a, "face", 40, torch.zeros(1, dtype=torch.bool))[0] for a in (anchors, turned))
    assert torch.allclose(one, two, atol=1e-3)


def test_thin_plate_hits_its_knots_and_is_the_affine_map_where_one_fits():
    g = torch.Generator().manual_seed(0)
    source = 60 * torch.rand(2, 30, 2, generator=g)
    bent = source + 3 * torch.randn(2, 30, 2, generator=g)
    assert (warp.thin_plate(source, bent)(source) - bent).norm(dim=2).mean() < .3
    A, b = torch.tensor([[1.1, .1], [-.2, .9]]), torch.tensor([3., -2.])
    far = 100 * torch.rand(2, 50, 2, generator=g)
    assert torch.allclose(warp.thin_plate(source, source @ A + b)(far), far @ A + b, atol=.02)


def test_inside_is_the_even_odd_rule_for_a_star():
    angle = torch.arange(12) * 2 * math.pi / 12
    radius = torch.tensor([18., 10.]).repeat(6)
    star = torch.stack([radius * angle.cos(), radius * angle.sin()], 1) + 24.3
    from matplotlib.path import Path as Outline
    grid = warp.pixels(48, 48, "cpu")[0]
    expected = torch.tensor(Outline(star.numpy()).contains_points(grid.numpy())).reshape(48, 48)
    assert (warp.inside(star[None], 48)[0, 0] != expected).sum() <= 4   # pixels on the outline itself


def test_the_warped_reference_has_its_colours_in_the_places_of_the_source(tiny):
    data = paper.make_data(dataclasses.replace(tiny, people=12), "face")
    i, upright = torch.arange(12), torch.zeros(12, dtype=torch.bool)
    red = dict(lip_rgb=[.8, 0., .1], lip_alpha=1., shadow_alpha=0., liner_alpha=0., blush_alpha=0.)
    data.made.faces = data.made.faces.set(**red)
    data.made.images = to_uint8(toyfaces.render(data.made.faces, data.made.images.shape[-1]))
    (x, inner), w = data.cut(data.bare, i, upright), data.warped(i, i, upright)
    lips = [toyfaces.regions(data.bare.faces, data.bare.images.shape[-1]) == toyfaces.REGIONS.index("lips")]
    lips = data.view(lips[0][:, None].float(), data.bare.anchors, upright)[0] > .9
    red_of = [(p[:, :1] - p[:, 1:2])[lips].mean() for p in (x, w, data.true(i, i, upright))]
    assert red_of[1] > red_of[0] + .2 and (red_of[1] - red_of[2]).abs() < .5 * (red_of[2] - red_of[0])
    outside = ~warp.inside(inner[:, warp.OUTLINE] + 0., 48).expand_as(x)
    assert (w - x)[outside].abs().mean() < .02                           # hair and wall are the source's


def test_make_up_lies_below_the_brows_and_not_on_the_eyeballs():
    _, points = close_faces(1, 120)
    anchors = formats.anchors_of_points(points[0])[None]
    closed, turned = anchors.clone(), anchors.flip(2)                    # closed eyes; the picture transposed
    closed[:, [2, 3]], closed[:, [6, 7]] = closed[:, :2].mean(1)[:, None], closed[:, 4:6].mean(1)[:, None]
    area, of_closed, of_turned = (warp.make_up_area(a, 120)[0, 0] for a in (anchors, closed, turned))

    def at(where, *points):
        x, y = anchors[0, list(points)].mean(0).round().long()
        return where[y, x].item()
    for one in (area, of_turned.T):
        assert at(one, 0, 1, 2, 3) == at(one, 4, 5, 6, 7) == 0           # eyeballs
        assert at(one, 16) == at(one, 20) == at(one, 2, 2, 10) == 1      # lips, nose, lid
        assert at(one, 10) < .5 and one[0].max() == 0                    # brow, hair
    assert of_closed.isfinite().all() and (of_closed - area).min() > -.1
    assert (of_closed > area + .5).sum() > 10


def test_blending_gives_the_skin_of_the_source():
    x, pasted = torch.full((1, 3, 8, 8), -.4), torch.full((1, 3, 8, 8), .5)
    skin = [((p / 2 + .5) + warp.LIFT).mean((2, 3)) for p in (x, pasted)]
    mask = torch.ones(1, 1, 8, 8)
    assert torch.allclose(warp.blended(x, pasted, mask, skin[0] / skin[1]), x, atol=1e-5)
    assert torch.equal(warp.blended(x, pasted, 0 * mask, skin[0] / skin[1]), x)


def test_a_change_laid_on_the_picture_comes_from_where_the_square_was_cut():
    coarse = torch.randn(1, 3, 12, 12, generator=torch.Generator().manual_seed(0))
    picture = F.interpolate(coarse, (120, 120), mode="bicubic")
    _, points = close_faces(1, 120)
    anchors = formats.anchors_of_points(points[0])[None]
    for region in warp.REGIONS:
        _, to_picture, to_square = warp.place(anchors, region, 64, torch.ones(1, dtype=torch.bool))
        square = warp.look(picture, to_picture(warp.pixels(64, 64, "cpu")), 64)
        laid, mask = warp.lay(square, to_square, (120, 120))
        assert mask.max() == 1 and mask.min() == 0 and ((laid - picture) * (mask > .9)).abs().max() < .35


def test_eyes_and_lips_lie_over_skin_and_nothing_on_eyeballs_hair_and_wall(tiny):
    def paint(value):
        return (lambda x, y: x + value), (lambda x: x + value)
    data = paper.make_data(tiny, "face")
    two = torch.arange(2)
    x, y = data.bare.pictures(two), data.made.pictures(two)
    a, b = data.bare.anchors[:2], data.made.anchors[:2]
    total = paper.painted(tiny, {"skin": paint(.1), "eyes": paint(.2), "lips": paint(.3)}, x, a, y, b)
    lids, lips, eyeballs = ([2, 2, 2, 10], [6, 6, 6, 13]), ([28, 29],), ([0, 1, 2, 3], [4, 5, 6, 7])
    for places, value in ((lids, .2), (lips, .3), (eyeballs, 0.)):
        for p in (a[:, k].mean(1).round().long() for k in places):
            found = torch.stack([total[n, 0, p[n, 1], p[n, 0]] for n in range(2)])
            assert torch.allclose(found, torch.full((2,), value), atol=.03)
    assert ((total - .1).abs() < .001).float().mean() > .05             # and between them, skin
    assert total[:, :, 0, 0].abs().max() == 0
    off, on = (paper.painted(tiny, {"face": paint(.1)}, x, a, *reference) for reference in ((), (y, b)))
    assert torch.allclose(off, on)


# ------------------------------------------------------------------------------------------------------- data

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
        alike, free = (toysets.made_up(dataclasses.replace(tiny, variety=v), 20, 5, True)
                       for v in (variety, 1.))
        for name in ("skin_rgb", "background", "light_strength"):
            assert torch.allclose(getattr(alike, name).std(0), spread * getattr(free, name).std(0), atol=1e-6)
        assert torch.allclose(alike.light.norm(dim=1), torch.ones(20))
        assert torch.equal(alike.lip_rgb, free.lip_rgb)


def test_bold_make_up_covers_the_skin_in_any_hue(tiny):
    plain, bold = (toysets.made_up(dataclasses.replace(tiny, bold=b), 200, 5, True) for b in (False, True))
    assert bold.lip_alpha.min() >= .75 and bold.shadow_alpha.min() >= .75 and plain.lip_alpha.min() < .6
    for c in range(3):                                                 # red, green and blue lips
        assert .2 < (bold.lip_rgb.argmax(1) == c).float().mean() < .5
    assert bold.lip_rgb.min() >= 0 and bold.lip_rgb.max() <= 1
    assert bold.moles[..., 2].max() == 0 and bold.age.max() < .35
    assert torch.equal(plain.jaw, bold.jaw) and torch.equal(plain.blush_rgb, bold.blush_rgb)
    bare = toysets.made_up(dataclasses.replace(tiny, bold=True), 9, 5, False)
    assert bare.lip_alpha.max() == bare.shadow_alpha.max() == 0


def test_a_batch_is_cut_alike_and_the_true_pair_is_the_source_made_up(tiny):
    data = paper.make_data(dataclasses.replace(tiny, pairs="true"), "face")
    x, y, w = data.sample(4)
    assert x.shape == y.shape == w.shape == (4, 3, 48, 48)
    assert 0 < (w - x).abs().mean() < .2 * (y - x).abs().mean()
    eyes = paper.make_data(tiny, "eyes").sample(3)
    assert eyes[0].shape == (3, 3, 24, 24)


@pytest.mark.parametrize("make", [mt, two_folders])
def test_photographs_are_cut_around_the_face_and_held_out(tiny, tmp_path, make):
    cfg = dataclasses.replace(tiny, data=str(make(tmp_path / "data")))
    found = paper.scan(cfg)
    assert len(found["images"]) == 8 and sum(found["test"]) == 2
    assert found["made"].count(1) == 4 and not found["bad"]
    (bare, made), (bare_test, made_test) = (paper.photographs(cfg, test) for test in (False, True))
    assert [len(album) for album in (bare, made, bare_test, made_test)] == [3, 3, 1, 1]
    L = paper.load_size(cfg)
    for album in (bare, made):
        inner = warp.place(album.anchors, "face", 48, torch.zeros(3, dtype=torch.bool))[0]
        assert bare.images.shape[1:] == (3, L, L) and album.anchors.min() > 0 and album.anchors.max() < L
        assert (inner[:, [0, 1, 4, 5]].mean(1)[:, 0] - 23.5).abs().max() < 1       # eyes in the middle
    x, y, w = paper.make_data(cfg, "lips").sample(3)
    assert x.shape == w.shape == (3, 3, 24, 24) and not torch.equal(x, w)


@pytest.mark.parametrize("spoil, message", [
    (lambda root: [p.unlink() for p in (root / "images/makeup").iterdir()],
     "pictures without make-up, 0 with"),
    (lambda root: Image.new("RGB", (96, 96)).save(root / "segs/makeup/p0.png"), "3 channels"),
    (lambda root: (root / "images/makeup/p2.png").write_bytes(b"?"), "not a readable picture"),
    (lambda root: (root / "makeup.txt").write_text("/nowhere/x.png\n" + (root / "makeup.txt").read_text()),
     "names /nowhere/x.png, which is not there"),
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


# --------------------------------------------------------------------------------------------------- training

def spied(tiny, monkeypatch, **changes):
    """{step: {"GF": nets that its loss reaches, "D": ...}} of a training."""
    seen, runs, backward, init = {}, [], torch.Tensor.backward, Run.__init__

    def begun(self, *args, **kwargs):
        init(self, *args, **kwargs)
        runs.append(self)

    def spy(loss, *args, **kwargs):
        for net in runs[-1].nets.values():
            net.zero_grad(set_to_none=True)
        backward(loss, *args, **kwargs)
        reached = {k for k, net in runs[-1].nets.items()
                   if any(p.grad is not None and p.grad.abs().sum() > 0 for p in net.parameters())}
        # G and F begin a step
        name = "GF" if len(seen.get(len(seen), {"GF": 0, "D": 0})) == 2 else "D"
        seen.setdefault(len(seen) + (name == "GF"), {})[name] = reached
    with monkeypatch.context() as patch:
        patch.setattr(Run, "__init__", begun)
        patch.setattr(torch.Tensor, "backward", spy)
        paper.train(dataclasses.replace(tiny, **changes))
    return seen


def test_F_first_then_G_then_both(tiny, monkeypatch):
    seen = spied(tiny, monkeypatch, warm_up=.2)                        # D_S learns from false pairs at once
    assert seen[1] == seen[2] == {"GF": {"G", "F"}, "D": {"D_X", "D_Y", "D_S"}}
    assert seen[3] == seen[4] == {"GF": {"G"}, "D": {"D_X", "D_Y", "D_S"}}
    assert seen[5] == seen[10] == {"GF": {"G", "F"}, "D": {"D_X", "D_Y", "D_S"}}


def test_without_false_pairs_D_S_waits_for_a_G_that_sees_references(tiny, monkeypatch):
    seen = spied(tiny, monkeypatch, warm_up=.2, mismatch=False)
    assert seen[1] == seen[2] == {"GF": {"G", "F"}, "D": {"D_X", "D_Y"}}


def test_without_D_S_nothing_of_it_is_trained(tiny, monkeypatch):
    assert all("D_S" not in step["D"] for step in spied(tiny, monkeypatch, lambda_P=0.).values())
    G = load_checkpoint(Path(tiny.run) / "face/last.pt")
    assert not G["opts"]["D"]["state"].get(len(list(paper.build(tiny)[2].parameters())) * 2 + 1)


def test_adversarial_weight_by_hand(tiny):
    cfg = dataclasses.replace(tiny, steps=200, ramp_from=.25, lambda_adv=.1, lambda_adv_end=.5)
    weights = [paper.adversarial_weight(cfg, step) for step in (1, 50, 125, 200)]
    assert weights == pytest.approx([.1, .1, .3, .5])


def test_resume_is_exact(tiny):
    whole = dataclasses.replace(tiny, run=tiny.run + "-whole")
    paper.train(whole)
    paper.train(dataclasses.replace(tiny, stop_after=5))
    paper.train(tiny)
    one, two = (load_checkpoint(Path(run) / "face/last.pt") for run in (whole.run, tiny.run))
    for name, state in one["nets"].items():
        assert all(torch.equal(value, two["nets"][name][key]) for key, value in state.items()), name


@pytest.mark.parametrize("change, message", [
    (dict(image_size=47), "--image-size 47"), (dict(load_size=20), "--load-size 20"),
    (dict(people=0), "--people 0"), (dict(warm_up=.6), "--warm-up 0.6"),
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


def test_health_words(tiny):
    shown = paper.fixed_batch(paper.make_data(tiny, "face", test=True))

    def word(G):
        return paper.health(G, lambda y: y, shown)["health"]
    assert word(lambda a, b: a) == "copying"
    assert word(lambda a, b: a * .5) == "style-ignored"
    assert word(lambda a, b: (a + b) / 2) == "ok"


# ------------------------------------------------------------------------------------------------- evaluation

def test_marks_of_the_truth_are_perfect_and_of_a_copy_are_not(tiny):
    pairs = claims.crossed(tiny, *paper.toy_albums(tiny, True))
    copied = pairs.x[:, None].expand_as(pairs.truth)
    truth, copy, warped = (claims.marks(tiny, pairs, out)
                           for out in (pairs.truth, copied, claims.laid(tiny, pairs, true=False)))
    assert truth["L1"] == truth["dE lips"] == truth["dE shadow"] == truth["dE liner"] == 0
    assert truth["style match"] == 1
    assert truth["follows"] == pytest.approx(1, abs=1e-4)
    assert truth["follows liner"] == pytest.approx(1, abs=1e-4)
    assert copy["outside"] == 0 and copy["dE lips"] > 5 and copy["style match"] <= .5
    assert copy["follows"] == pytest.approx(0, abs=1e-4)
    assert warped["follows"] > 0 and warped["style match"] > copy["style match"]
    one_look = claims.marks(tiny, pairs, pairs.truth[:, :1].expand_as(pairs.truth))
    assert one_look["follows"] == pytest.approx(0, abs=1e-4) and one_look["style match"] == .25
    assert one_look["follows liner"] == pytest.approx(0, abs=1e-4)
    # (Lab is not linear in RGB, so only nearly 3 / 4)
    half = claims.marks(tiny, pairs, (pairs.truth + pairs.x[:, None]) / 2)
    assert .6 < half["follows"] < .9 and .4 * copy["dE lips"] < half["dE lips"] < .6 * copy["dE lips"]
    assert truth["edges"] == 0 < copy["edges"] and half["edges"] == pytest.approx(copy["edges"] / 2, rel=1e-4)
    cast = claims.marks(tiny, pairs, pairs.truth + .1)
    assert cast["edges"] == pytest.approx(0, abs=1e-6)                   # a colour cast has no edges
    assert not (pairs.where["shadow"] & pairs.where["liner"]).any()
    opposite = claims.marks(tiny, pairs, (2 * pairs.x[:, None] - pairs.truth).clamp(-1, 1))
    assert opposite["follows"] < 0


def test_dE_is_the_distance_in_Lab_where_the_lipstick_is(tiny, monkeypatch):
    monkeypatch.setattr(claims, "SOURCES", 2), monkeypatch.setattr(claims, "REFERENCES", 2)
    pairs = claims.crossed(tiny, *paper.toy_albums(tiny, True))
    out = pairs.truth.clone()
    lips, elsewhere = pairs.where["lips"][0, 0], ~pairs.where["lips"][0, 0]
    out[0, 0, :, elsewhere] = 0                                          # must not matter
    assert claims.marks(tiny, pairs, out)["dE lips"] == 0
    out = pairs.truth.clone()
    out[0, 0, :, lips] = -1.
    L = rgb_to_lab(torch.stack([pairs.truth[0, 0], out[0, 0]])).diff(dim=0)[0].norm(dim=0)[lips].mean()
    marks = claims.marks(tiny, pairs, out)
    assert marks["dE lips"] == pytest.approx(L.item() / 4, rel=1e-4)     # one of four pictures


def test_make_up_off_without_any_change(tiny):
    pairs = claims.crossed(tiny, *paper.toy_albums(tiny, True))
    found = claims.make_up_off(tiny, {"face": (lambda x, y: x, lambda x: x)}, pairs)
    assert found["F(y)"] == pytest.approx(found["y itself"], abs=1e-6)
    assert found["back"] == pytest.approx(0, abs=1e-6) and found["back from noise"] < .001


def test_evaluate_of_parts_and_of_photographs(tiny, tmp_path):
    paper.train(dataclasses.replace(tiny, regions="parts", steps=2))
    rows = claims.evaluate(dataclasses.replace(tiny))["rows"]
    assert list(rows) == ["G", "copy the bare face", "one look for all", "W, the warped reference",
                          "the truth", "make-up off"]
    assert json.loads((Path(tiny.run) / "evaluation.json").read_text())["rows"] == rows
    cfg = dataclasses.replace(tiny, data=str(mt(tmp_path / "data")), run=str(tmp_path / "photos"), steps=2)
    paper.train(cfg)
    rows = claims.evaluate(dataclasses.replace(tiny, run=cfg.run))["rows"]           # the run knows its data
    assert list(rows) == ["face: G", "face: W"]


def test_infer_puts_on_and_takes_off(tiny, tmp_path, monkeypatch):
    data = paper.make_data(tiny, "face")
    about = {"toy": True, "anchors": (data.bare.anchors.mean(0) / data.bare.images.shape[-1]).tolist()}
    nets = {"face": (lambda x, y: (x + .5).clamp(-1, 1), lambda x: (x - .5).clamp(-1, 1))}
    monkeypatch.setattr(paper, "load", lambda cfg: (nets, about))
    faces, _ = close_faces(1)
    a = drawn(tmp_path / "a.png", toyfaces.render(faces[0], 100))
    b = picture(tmp_path / "b.png", 1, (70, 90))
    paper.infer(tiny, [str(a)], [str(b), str(b)], False, 1., str(tmp_path / "out"))
    paper.infer(tiny, [str(b)], [], True, .5, str(tmp_path / "out"))
    paper.infer(tiny, [str(a)], [str(b)], False, .5, str(tmp_path / "half"))
    before, after = (np.asarray(Image.open(p)).astype(int) for p in (a, tmp_path / "out/a_b.png"))
    changed = (after - before)[50, 50]
    assert after.shape == before.shape and changed.min() >= 0 and changed.max() > 40
    half = np.asarray(Image.open(tmp_path / "half/a_b.png")).astype(int)
    assert abs((half - before)[50, 50] * 2 - changed).max() <= 40        # (brighter than white does not go)
    assert (after[0, 0] == before[0, 0]).all()
    assert (tmp_path / "out/a_b_1.png").exists() and (tmp_path / "out/sheet.png").exists()
    assert Image.open(tmp_path / "out/b_bare.png").size == (70, 90)
    monkeypatch.setattr(paper, "load", lambda cfg: (nets, {"toy": False}))
    with pytest.raises(UserError, match="no landmarks; put a.pts beside it"):
        paper.infer(tiny, [str(a)], [], True, 1., "")
    write_pts(a.with_suffix(".pts"), 900 + close_faces(1)[1][0])
    with pytest.raises(UserError, match="a.pts: its landmarks do not lie on the picture"):
        paper.infer(tiny, [str(a)], [], True, 1., "")
    for argv in ([[], False, 1.], [[str(b)], True, 1.], [[str(b)], False, 2.]):
        with pytest.raises(UserError, match="--"):
            paper.infer(tiny, [str(a)], *argv, "")


@pytest.mark.slow
def test_ablate_runs_every_variant_and_judges(tiny, monkeypatch, capsys):
    monkeypatch.setattr("lab.claims.SEEDS", (0, 1))
    in_turn(monkeypatch)
    claims.ablate(dataclasses.replace(tiny, steps=3))
    report = json.loads((Path(tiny.run) / "ablation.json").read_text())
    claimed = [c["part"] for c in report["claims"]]
    assert claimed == ["style", "D_S", "D_S, mismatched pairs", "removal", "pairs", "regions"]
    assert len(report["runs"]) == 8 * 2
    assert {"D_S, mean", "W, the warped reference, mean", "the truth, larger pictures, mean",
            "make-up off: parts, std"} <= report["rows"].keys()
    assert abs(report["rows"]["one look for all, mean"]["follows"]) < 1e-3
    assert "removal: lower by 5 per cent in every seed: " in capsys.readouterr().out
    assert (Path(tiny.run) / "ablation_style_samples.png").exists()
    last = load_checkpoint(Path(tiny.run) / "ablation/parts-0/skin/last.pt")
    assert last["step"] == 2                                             # three steps' pixels
    with pytest.raises(UserError, match="was trained for 3 steps, now 6"):
        claims.ablate(dataclasses.replace(tiny, steps=6))


@pytest.mark.skipif("MT_DATA" not in os.environ,
                    reason="MT_DATA names a folder with images/, segs/, makeup.txt and non-makeup.txt")
def test_the_real_mt_loads_and_trains(tiny):
    cfg = dataclasses.replace(tiny, data=os.environ["MT_DATA"], steps=2)
    paper.train(cfg)
    assert (Path(cfg.run) / "face/last.pt").exists()
