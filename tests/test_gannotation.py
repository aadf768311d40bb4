import dataclasses
import os
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn as nn
from PIL import Image

import common
import gannotation as gan
from common import heatmaps
from conftest import blind_judges, grads, in_turn
from gannotation import Config, Generator
from lab import UserError, authors, demos, judges, toyfaces, toysets
from lab.claims import gannotation as claims
from lab.cli import sources
from lab.files import load_checkpoint, load_weights, read_json, read_jsonl
from lab.images import to_uint8
from lab.run import Run, frozen
from makers import photo_folder

TINY = dict(gan.SMALL, image_size=32, width=4, residual_blocks=1, d_widths=(4, 8), batch_size=2, people=4,
            frames=6, steps=4, log_every=1, save_every=2, sample_every=2, device="cpu", amp=False, warm_up=0.,
            ramp=0.)


@pytest.fixture
def tiny(tmp_path, cache, monkeypatch):
    """A configuration that trains in a second: the recogniser is an untrained one."""
    blind_judges(monkeypatch)
    monkeypatch.setattr(claims, "CHAINS", 32)
    return Config(**TINY, cache=cache, run=str(tmp_path / "run"))


@pytest.fixture(scope="module")
def trained(tmp_path_factory, cache):
    """The run folder of a tiny training, for tests that need some checkpoint."""
    folder = str(tmp_path_factory.mktemp("trained"))
    with pytest.MonkeyPatch.context() as patch:
        blind_judges(patch)
        gan.train(Config(**TINY, cache=cache, run=folder))
    return folder


def batch(n=2, size=32):
    face = toyfaces.sample(n, 0)
    I, H = toyfaces.render(face, size), heatmaps(common.to_66(toyfaces.landmarks(face, size)), size, 1.)
    return I, H


# --------------------------------------------------------------------------------------------- losses

class Score(nn.Module):
    """D(x) = a * mean of the picture: every value by hand."""

    def __init__(self, a=1.):
        super().__init__()
        self.a = nn.Parameter(torch.tensor(a))

    def forward(self, x):
        return self.a * x.mean((1, 2, 3))


def test_loss_adv_D_by_hand_and_route():
    D, I_t = Score(2.), torch.full((3, 3, 4, 4), .25)
    I_hat = torch.full((3, 3, 4, 4), -.1, requires_grad=True)
    assert gan.loss_adv_D(D(I_t), D(I_hat)).item() == pytest.approx((1 - .5) + (1 - .2))
    assert gan.loss_adv_D(Score(10.)(I_t), Score(10.)(-I_t)) == 0                  # both beyond the margin
    gan.loss_adv_D(D(I_t), D(I_hat.detach())).backward()
    assert D.a.grad is not None and I_hat.grad is None


def test_loss_adv_D_and_loss_gp_as_wgan_gp():
    D, I_t, I_hat = Score(1.), torch.rand(3, 3, 4, 4), torch.rand(3, 3, 4, 4)
    expected = (I_hat.mean() - I_t.mean()).item()
    assert gan.loss_adv_D(D(I_t), D(I_hat), "wgan-gp").item() == pytest.approx(expected, abs=1e-5)
    penalty = (1 / 48 ** .5 - 1) ** 2                                     # gradient 1/48 in each of 48 pixels
    assert gan.loss_gp(D, I_t, I_hat).item() == pytest.approx(penalty, abs=1e-5)


def test_loss_gp_is_part_of_Ds_objective_with_wgan_gp(tiny, monkeypatch):
    """A penalty of its own weight: D without it falls with the scores alone."""
    logged = {}
    for lambda_gp in (0., 10.):
        cfg = dataclasses.replace(tiny, adversarial="wgan-gp", lambda_gp=lambda_gp, steps=1,
                                  run=f"{tiny.run}{lambda_gp}")
        gan.train(cfg)
        logged[lambda_gp] = read_jsonl(Path(cfg.run) / "metrics.jsonl")[0]["L_D"]
    assert logged[10.] - logged[0.] == pytest.approx(10, rel=.1)          # a new D is flat: the penalty is 1


def test_loss_adv_G_falls_when_D_is_fooled_and_leaves_D_alone():
    D, I_hat = Score(2.), torch.full((2, 3, 4, 4), .3, requires_grad=True)
    with frozen(D):
        loss = gan.loss_adv_G(D(I_hat))
        loss.backward()
    assert loss.item() == pytest.approx(-.6) and D.a.grad is None and (I_hat.grad < 0).all()


def test_loss_pixel():
    a, b = torch.zeros(2, 3, 4, 4), torch.zeros(2, 3, 4, 4)
    b[0, 0, 0, 0] = -2.
    assert gan.loss_pixel(a, b).item() == pytest.approx(2 / 96) and gan.loss_pixel(b, b) == 0


class Shift(nn.Module):
    """A toy generator with a known answer: adds the mean of the heatmaps, times a parameter."""

    def __init__(self):
        super().__init__()
        self.k = nn.Parameter(torch.tensor(1.))

    def forward(self, I, H):
        return I + self.k * H.mean((1, 2, 3), keepdim=True)


def heat(value):
    return torch.full((2, 5, 4, 4), value)


def test_loss_self_is_there_and_back():
    G, I = Shift(), torch.randn(2, 3, 4, 4)
    I_hat = G(I, heat(.3))
    # the way back undoes the way there
    assert gan.loss_self(G(I_hat, heat(-.3)), I).item() == pytest.approx(0, abs=1e-6)
    loss = gan.loss_self(G(I_hat, heat(.5)), I)
    assert loss.item() == pytest.approx(.8)
    loss.backward()
    assert G.k.grad.item() == pytest.approx(.8)                       # .3 of the first pass, .5 of the second


def test_loss_triple_compares_two_routes_and_reaches_both():
    G, I = Shift(), torch.randn(2, 3, 4, 4)
    I_hat, I_direct = G(I, heat(.3)), G(I, heat(.2))
    loss = gan.loss_triple(G(I_hat, heat(.2)), I_direct)                  # .3 + .2 against .2
    assert loss.item() == pytest.approx(.3)
    loss.backward()
    assert G.k.grad.item() == pytest.approx(.3)                           # (.3 + .2) - .2: both routes count
    G.k.grad = None
    gan.loss_triple(G(I_hat.detach(), heat(.2)), G(I, heat(.2)).detach()).backward()
    assert G.k.grad.item() == pytest.approx(.2)


def test_copying_satisfies_self_and_triple_but_not_pixel():
    def G(I, H):
        return I
    I, H = batch()
    I_hat = G(I, H)
    assert gan.loss_self(G(I_hat, H), I) == 0 and gan.loss_triple(G(I_hat, H), G(I, H)) == 0
    assert gan.loss_pixel(I_hat, I.flip(0)) > .01


def test_loss_identity_by_hand_and_target_is_fixed():
    def Phi(x):
        return x.mean((2, 3)), 2 * x.mean((1, 2, 3))[:, None]
    I_hat, I = torch.full((2, 3, 4, 4), .5, requires_grad=True), torch.zeros(2, 3, 4, 4, requires_grad=True)
    loss = gan.loss_identity(Phi(I_hat), Phi(I))
    assert loss.item() == pytest.approx(.5 + 1.)
    loss.backward()
    assert I.grad is None and I_hat.grad.abs().sum() > 0


def test_loss_perceptual_by_hand_and_target_is_fixed():
    def Psi(x):
        return [1 * x, 3 * x[:, :1]]
    I_hat, I_t = torch.full((2, 3, 4, 4), .5, requires_grad=True), torch.zeros(2, 3, 4, 4, requires_grad=True)
    loss = gan.loss_perceptual(Psi(I_hat), Psi(I_t))
    assert loss.item() == pytest.approx(.25 + 2.25)
    loss.backward()
    assert I_t.grad is None and I_hat.grad.abs().sum() > 0


def test_loss_tv_by_hand():
    x = torch.zeros(2, 1, 2, 3)
    x[0, 0] = torch.tensor([[0., 1., 3.], [2., 2., 2.]])
    down, right = 2 ** 2 + 1 + 1, 1 + 4 + 0 + 0
    assert gan.loss_tv(x).item() == pytest.approx((down + right) / 2)
    assert gan.loss_tv(torch.ones(2, 3, 8, 8)) == 0


def test_consistency_weight_waits_then_ramps():
    cfg = Config(steps=100, warm_up=.5, ramp=.2)
    assert [gan.consistency_weight(s, cfg) for s in (1, 50, 60, 70, 100)] == pytest.approx([0, 0, .5, 1, 1])


# ------------------------------------------------------------------------------------------- networks

def test_parameter_counts():
    parts = ("down", "bottleneck", "up", "colour", "mask")
    counts = {name: common.n_parameters(getattr(Generator(), name)) for name in parts}
    assert counts == {"down": 872_640, "bottleneck": 7_080_960, "up": 655_744, "colour": 9_408, "mask": 3_136}
    assert common.n_parameters(Generator()) == 8_621_888 and common.n_parameters(Generator(68)) == 8_628_160
    G, D = gan.build(Config())
    assert common.n_parameters(D) == 6_951_360 + 4_608 and D.receptive_field() == 158
    with torch.no_grad():
        assert D.trunk(torch.zeros(1, 3, 128, 128)).shape == (1, 512, 4, 4)


def test_the_medium_generator_is_small_enough_to_ship():
    G, _ = gan.build(Config(**gan.MEDIUM))
    assert 2 * common.n_parameters(G) < demos.MOST                        # bytes in half precision


def test_generator_blends_by_its_mask():
    G, (I, H) = Generator(66, 4, 1), batch()
    with torch.no_grad():
        I_hat, M = G(I, H)
        assert I_hat.shape == I.shape and I_hat.abs().max() <= 1 and M.shape == (2, 1, 32, 32)
        x = G.up(G.bottleneck(G.down(torch.cat([I, H], 1))))
        C = torch.tanh(G.colour(x))
        assert torch.allclose(M, torch.sigmoid(G.mask(x)))
        assert torch.allclose(I_hat, M * I + (1 - M) * C, atol=1e-6)
        for logit, expected in ((1e9, I), (-1e9, C)):                     # mask 1 keeps the input
            G.mask.forward = lambda x, logit=logit: torch.full_like(x[:, :1], logit)
            assert torch.equal(G(I, H)[0], expected)


def test_generator_is_finite_on_flat_pictures():
    G = Generator(66, 4, 1)
    out, _ = G(torch.zeros(1, 3, 32, 32), torch.zeros(1, 66, 32, 32))
    out.mean().backward()
    assert torch.isfinite(out).all() and all(torch.isfinite(p.grad).all() for p in G.parameters())


def test_networks_give_float32_under_autocast():
    I, H = batch()
    with torch.autocast("cpu", torch.bfloat16):
        I_hat, M = Generator(66, 4, 1)(I, H)
    assert I_hat.dtype == M.dtype == torch.float32


def authors_names(G):
    """Our weights under the authors' names."""
    back = {"down.": "down_conv.", "up.": "feature_layer.", "colour.": "colour_layer.0.",
            "mask.": "mask_layer.0."}
    theirs = {}
    for key, value in G.state_dict().items():
        for ours, name in back.items():
            if key.startswith(ours):
                key = name + key[len(ours):]
        theirs["module." + key.replace(".body.0.", ".conv1.").replace(".body.3.", ".conv2.")] = value
    return theirs


def test_authors_key_names_are_mapped():
    theirs = authors_names(Generator(66, 4, 2))
    assert {"module.down_conv.0.weight", "module.bottleneck.1.conv2.bias",
            "module.mask_layer.0.weight"} <= theirs.keys()
    load_weights(Generator(66, 4, 2), authors.gannotation_G(theirs), "theirs")
    saved = authors.gannotation({"state_dict": theirs})
    assert saved["config"] == dict(image_size=128, points=66, width=4, residual_blocks=2, sigma=1.75,
                                   tight=16.)


@pytest.mark.skipif("PARITY_DATA" not in os.environ,
                    reason="set PARITY_DATA to a folder with the authors' networks as numbers")
def test_output_equals_the_authors_network():
    data = torch.load(Path(os.environ["PARITY_DATA"]) / "official_networks_tiny.pt", weights_only=True)
    theirs = data["gannotation_G"]
    about = theirs["about"]
    G = Generator(about["c_dim"], about["conv_dim"], about["repeat_num"])
    load_weights(G, authors.gannotation_G(theirs["state_dict"]), "parity")
    x = theirs["inputs"][0]
    with torch.no_grad():
        assert torch.allclose(G(x[:, :3], x[:, 3:])[0], theirs["outputs"][0], atol=1e-5)


def test_light_cnn_layers_and_names():
    net = authors.LightCNN()
    pool, fc = net(torch.zeros(2, 1, 128, 128))
    assert pool.shape == (2, 128, 8, 8) and fc.shape == (2, 256)
    assert {"features.0.filter.weight", "features.2.conv_a.filter.bias",
            "fc1.filter.weight"} <= net.state_dict().keys()


def test_light_cnn_weights_are_used(tmp_path):
    state = {"module." + k: v for k, v in authors.LightCNN().state_dict().items()}
    torch.save({"state_dict": state | {"module.fc2.weight": torch.zeros(1)}}, tmp_path / "l.pth")
    Phi = gan.FaceFeatures(Config(light_cnn=str(tmp_path / "l.pth"), device="cpu"))
    x = torch.rand(2, 3, 64, 64, requires_grad=True)
    sum(f.sum() for f in Phi(x)).backward()
    assert x.grad.abs().sum() > 0 and not any(p.requires_grad for p in Phi.parameters())
    with pytest.raises(UserError, match="l2.pth.*missing"):
        torch.save({"a": torch.zeros(1)}, tmp_path / "l2.pth")
        gan.FaceFeatures(Config(light_cnn=str(tmp_path / "l2.pth"), device="cpu"))


def test_perception_has_four_layers_either_way(tmp_path, monkeypatch, capsys):
    import torchvision
    vgg = torchvision.models.vgg16(weights=None)
    monkeypatch.setattr(torchvision.models, "vgg16", lambda weights: vgg)
    maps = gan.Perception(Config())(torch.zeros(1, 3, 32, 32))
    assert [m.shape[1] for m in maps] == [64, 128, 256, 512] and all((m >= 0).all() for m in maps)

    def offline(weights):
        raise OSError("no network")
    monkeypatch.setattr(torchvision.models, "vgg16", offline)
    monkeypatch.setattr(judges, "judge", lambda kind, *_: (judges.Judge(kind).eval(), 1.))
    maps = gan.Perception(Config(device="cpu", cache=str(tmp_path)))(torch.zeros(1, 3, 32, 32))
    assert len(maps) == 4 and "toy recogniser" in capsys.readouterr().out


# ----------------------------------------------------------------------------------------------- data

def test_toy_batches(tiny):
    data = gan.make_data(tiny)
    I, H_i, I_t, H_t, H_n = data.sample(6)
    assert I.shape == I_t.shape == (6, 3, 32, 32) and H_i.shape == H_t.shape == H_n.shape == (6, 66, 32, 32)
    assert I.abs().max() <= 1 and H_i.min() >= 0 and H_i.max() <= 1
    assert (I - I_t).abs().flatten(1).mean(1).min() > 0                   # never its own target
    assert torch.equal(gan.make_data(tiny).sample(6)[0], I)               # the seed decides


def test_train_and_test_people_differ(tiny):
    train, test = gan.make_data(tiny), gan.make_data(tiny, test=True)
    assert not any((train.images == picture).flatten(1).all(1).any() for picture in test.images[:6])


def test_partner_keeps_to_the_video_and_the_gap(tiny):
    data = gan.make_data(tiny)
    n = 500
    data.first, data.last = torch.zeros(n, dtype=torch.long), torch.full((n,), n - 1)
    data.gap = (51, 200)
    index = torch.randint(n, (2000,))
    gap = (data.partner(index) - index).abs()
    assert gap.min() >= 51 and gap.max() <= 200 and (gap > 150).any() and (gap < 70).any()
    data.last = torch.full((n,), 30)                                      # too short a video: any frame
    assert data.partner(torch.full((200,), 5)).unique().tolist() == list(range(31))


def dots(image):
    """Centre of the dot in each channel: [B, 3, 2]."""
    w = (image / 2 + .5).clamp(min=.05) - .05
    axis = torch.arange(image.shape[-1], dtype=torch.float32)
    total = w.sum((2, 3))
    return torch.stack([(w.sum(2) * axis).sum(2) / total, (w.sum(3) * axis).sum(2) / total], 2)


@pytest.mark.parametrize("angle, mirror, bend, tolerance", [
    (0, False, False, .15), (30., False, False, .25), (0., True, False, .15), (45., True, False, .3),
    (0., False, True, 1.6)])
def test_landmarks_follow_the_picture_through_crop_turn_mirror_and_bend(tmp_path, tiny, angle, mirror, bend,
                                                                        tolerance):
    root = photo_folder(tmp_path / "photos", dotted=True)
    data = gan.photographs(dataclasses.replace(tiny, data=str(root), image_size=64), test=False)
    image, points = data.view(torch.arange(8), angle, torch.full((8,), mirror), bend=torch.full((8,), bend))
    where = [30, 48, 54]                                                  # the same in 66 points
    expected = points[:, where]
    if mirror:                                                            # left and right have changed names
        expected = points[:, [common.FLIP_66[k] for k in where]]
    assert (dots(image) - expected).norm(dim=2).median() < tolerance


def test_view_crops_by_landmarks_with_sixteen_per_cent(tmp_path, tiny):
    cfg = dataclasses.replace(tiny, data=str(photo_folder(tmp_path / "photos")), image_size=64)
    _, points = gan.photographs(cfg, test=False).view(torch.arange(5))
    low, high = points.amin(1) + .5, points.amax(1) + .5
    ratio = (high - low) / 64                                             # w / (w + .32 mean side)
    assert torch.allclose(low / 64, 1 - high / 64, atol=1e-3) and (ratio > .7).all() and (ratio < .82).all()


def test_a_still_gets_a_bent_target_and_a_third_shape(tmp_path, tiny):
    """The three shapes of a sample differ, and I_t is not I."""
    data = gan.photographs(dataclasses.replace(tiny, data=str(photo_folder(tmp_path / "photos"))), test=False)
    I, H_i, I_t, H_t, H_n = data.sample(4)
    assert I.shape == (4, 3, 32, 32) and H_n.shape == (4, 66, 32, 32)
    for a, b in ((I, I_t), (H_i, H_t), (H_t, H_n), (H_i, H_n)):
        assert (a - b).abs().flatten(1).amax(1).min() > .1


def test_photographs_train(tmp_path, tiny):
    root = photo_folder(tmp_path / "photos")
    for path in (root / "lfpw" / "trainset").glob("image_000[12].png"):   # grey and transparent ones are fine
        Image.open(path).convert("L" if "1" in path.stem else "RGBA").save(path)
    gan.train(dataclasses.replace(tiny, data=str(root)))
    assert len(list((Path(tiny.run) / "samples").glob("*.png"))) == 3


def test_bad_files_are_named_before_anything_is_written(tmp_path, tiny):
    root = photo_folder(tmp_path / "photos")
    cfg = dataclasses.replace(tiny, data=str(root))
    home = root / "lfpw" / "trainset"
    (home / "image_0003.png").write_bytes((home / "image_0003.png").read_bytes()[:300])
    with pytest.raises(UserError, match="image_0003.png.*skip-bad"):
        gan.train(cfg)
    assert not Path(tiny.run).exists()
    (home / "image_0004.pts").unlink()
    with pytest.raises(UserError, match="image_0004"):
        gan.train(cfg)
    (home / "image_0005.pts").write_text("n_points: 68\n{\n1 2\n}")
    with pytest.raises(UserError):
        gan.train(cfg)
    gan.train(dataclasses.replace(cfg, skip_bad=True))
    kept = gan.photographs(dataclasses.replace(cfg, skip_bad=True), False)
    assert len(kept) == 8                                                 # 12 less 3 bad, less one held out


def test_too_few_points_and_too_few_pictures_are_told(tmp_path, tiny):
    root = photo_folder(tmp_path / "photos")
    for pts in root.rglob("*.pts"):
        rows = pts.read_text().replace("n_points:  68", "n_points: 66").splitlines()
        pts.write_text("\n".join(rows[:-3] + rows[-1:]))
    with pytest.raises(UserError, match="image_0001.pts: 66 points, 68 wanted; add --points 66"):
        gan.make_data(dataclasses.replace(tiny, data=str(root), points=68))
    with pytest.raises(UserError, match="3 pictures or videos are too few"):
        gan.make_data(dataclasses.replace(tiny, data=str(photo_folder(tmp_path / "few", 3))))


# --------------------------------------------------------------------------------------- the training

def test_gradients_reach_exactly_the_networks_they_should(tiny):
    G, D = gan.build(tiny)
    I, H_i, I_t, H_t, H_n = gan.make_data(tiny).sample(2)
    I_hat, _ = G(I, H_t)
    for loss in (gan.loss_adv_D(D(I_t), D(I_hat.detach())), gan.loss_gp(D, I_t, I_hat)):
        D.zero_grad()
        loss.backward()
        assert grads(D) > 0 and grads(G) == 0
    D.zero_grad()
    with frozen(D):
        for loss in (gan.loss_adv_G(D(I_hat)), gan.loss_pixel(I_hat, I_t), gan.loss_self(G(I_hat, H_i)[0], I),
                     gan.loss_triple(G(I_hat, H_n)[0], G(I, H_n)[0]), gan.loss_tv(I_hat)):
            G.zero_grad()
            loss.backward(retain_graph=True)
            assert grads(G) > 0 and grads(D) == 0


def test_the_warm_up_computes_no_consistency(tiny, monkeypatch):
    """Passes of G in training: one in the warm-up, then back, via and direct; without triple only back."""
    def passes(**change):
        calls, forward = [], Generator.forward
        with monkeypatch.context() as patch:
            patch.setattr(Generator, "forward",
                          lambda self, I, H: calls.append(I.requires_grad) or forward(self, I, H))
            patch.setattr(gan, "health", lambda *_: {})
            patch.setattr(gan, "sample_grid", lambda *_: Image.new("RGB", (1, 1)))
            gan.train(dataclasses.replace(tiny, fresh=True, **change))
        return calls
    assert passes(steps=2, warm_up=1.) == [False] * 2
    assert passes(steps=2, warm_up=.5) == [False, False, True, True, False]
    assert passes(steps=1, lambda_triple=0., passes=2) == passes(steps=1, lambda_triple=0.) == [False, True]
    lines = read_jsonl(Path(tiny.run) / "metrics.jsonl")
    assert lines[0]["L_triple"] == 0 and lines[0]["L_self"] > 0


def test_two_passes_also_ask_that_the_way_home_and_on_agrees(tiny, monkeypatch):
    """With passes=2 the triple loss is the mean over two routes: by s_t, and by s_t and s_i."""
    seen, calls, loss, forward = [], [], gan.loss_triple, Generator.forward
    monkeypatch.setattr(gan, "loss_triple", lambda *pair: (seen.append(pair), loss(*pair))[1])
    monkeypatch.setattr(Generator, "forward", lambda self, I, H: calls.append((I, H)) or forward(self, I, H))
    monkeypatch.setattr(gan, "health", lambda *_: {})
    monkeypatch.setattr(gan, "sample_grid", lambda *_: Image.new("RGB", (1, 1)))
    gan.train(dataclasses.replace(tiny, passes=2, warm_up=0., ramp=0., steps=1))
    (I, H_t), (I_hat, H_i), (via, H_n), (start, H_n2), (I_back, H_n3) = calls
    assert start is I and H_n is H_n2 is H_n3 and via is I_hat and H_i is not H_t
    assert seen[0][1] is seen[1][1] and seen[0][0] is not seen[1][0]   # two routes, one direct result
    mean = sum(loss(*pair).item() for pair in seen) / 2
    line = read_jsonl(Path(tiny.run) / "metrics.jsonl")[0]
    assert line["L_triple"] == pytest.approx(mean, abs=1e-5)


def test_Ds_turns_and_Gs(tiny, monkeypatch):
    calls, init = [], Run.__init__

    def noted(self, *args, **kwargs):
        init(self, *args, **kwargs)
        for name, optimiser in self.opts.items():
            optimiser.register_step_post_hook(lambda *_, name=name: calls.append(name))
    monkeypatch.setattr(Run, "__init__", noted)
    gan.train(dataclasses.replace(tiny, d_steps=3))
    assert "".join(calls) == "DDDGD"


@pytest.mark.parametrize("change", [{}, {"adversarial": "wgan-gp", "d_steps": 2}, {"points": 68},
                                    {"amp": True}])
def test_n_plus_n_steps_are_2n_steps(tiny, tmp_path, change):
    tiny = dataclasses.replace(tiny, log_every=4, sample_every=4)
    whole = gan.train(dataclasses.replace(tiny, run=str(tmp_path / "a"), **change)).state_dict()
    cfg = dataclasses.replace(tiny, run=str(tmp_path / "b"), **change)
    gan.train(dataclasses.replace(cfg, stop_after=2))
    again = gan.train(cfg).state_dict()
    assert all(torch.equal(whole[k], again[k]) for k in whole)


def test_a_training_learns_on_cuda_and_cpu(tiny, device):
    cfg = dataclasses.replace(tiny, device=device, steps=30, width=8, batch_size=4, log_every=10,
                              sample_every=30, lambda_self=0., lambda_triple=0., lr=2e-3)
    gan.train(cfg)
    lines = read_jsonl(Path(cfg.run) / "metrics.jsonl")
    assert lines[-1]["error"] < lines[0]["error"] * .9 and lines[-1]["health"] in ("ok", "copying")


def test_health_words(tiny):
    shown = gan.fixed_batch(gan.make_data(tiny))
    _, D = gan.build(tiny)
    I_t = shown[2]

    def word(paint, D=D):
        return gan.health(lambda I, H: (paint(I, H), None), D, shown)["health"]
    good = lambda I, H: I_t + .3 * H[:, :30].amax(1, keepdim=True)                          # noqa: E731
    win = lambda x: 10 * ((x - I_t).abs().mean((1, 2, 3)) < 1e-6) - 5.                      # noqa: E731
    assert word(lambda I, H: I) == "copying" and word(lambda I, H: I_t) == "target-ignored"
    assert word(good) == "ok" and word(good, win) == "D-won"


@pytest.mark.parametrize("change, message", [
    (dict(points=67), "--points 67: expected 66 or 68"), (dict(frames=5), "--frames 5: expected at least 6"),
    (dict(d_widths=(0, 8)), "--d-widths"), (dict(d_widths=(8,) * 40), "--d-widths"),
    (dict(sigma=0.), "--sigma"), (dict(sigma=1e30), "--sigma"),
    (dict(warm_up=5.), "--warm-up 5.0: expected at most 1"),
    (dict(image_size=34), "--image-size 34: expected a multiple of 4"), (dict(d_steps=0), "--d-steps 0"),
    (dict(image_size=4), "--image-size 4: expected a multiple of 4, at least 8"),
    (dict(people=0), "--people 0")])
def test_settings_that_do_not_fit(tiny, change, message):
    with pytest.raises(UserError, match=message):
        gan.train(dataclasses.replace(tiny, **change))
    assert not Path(tiny.run).exists()


def test_what_is_told_of_the_authors_recipe():
    """About 2,970 batches an epoch, and lr x 0.1 after each of three."""
    assert f"about {round(3 * 2970, -2):,} batches" in sources(Config)["steps"]
    for departure in ("from the target", "5e-4", "norm 1", "[-1, 1]", "(.5, .9)", "--d-steps 4"):
        assert departure in gan.__doc__


# --------------------------------------------------------------------------------------- measures

def test_progressive_feeds_each_result_back():
    out = gan.progressive(Shift(), torch.zeros(2, 3, 4, 4), [heat(1.), heat(2.), heat(3.)])
    assert [x.mean().item() for x in out] == pytest.approx([1, 3, 6])


def test_evaluate_of_a_copy_has_no_excess(tiny, trained, monkeypatch):
    monkeypatch.setattr(Generator, "forward", lambda self, I, H: (I, H[:, :1]))
    result = claims.evaluate(dataclasses.replace(tiny, run=trained))
    summary = result["values"]
    assert summary["direct / copy"] == pytest.approx(1) and summary["excess"] == pytest.approx(0, abs=1e-6)
    assert summary["self-recovery ratio"] == pytest.approx(0, abs=1e-6) and summary["route gap"] == 0
    assert list(result["rows"]) == ["copy the input", "direct", *(f"pass {k}" for k in range(1, 6)),
                                    "direct to pass 5's target", "the true pictures"]
    assert result["rows"]["the true pictures"]["L1"] == 0
    assert result["rows"]["direct"] == result["rows"]["copy the input"]


def test_measure_by_hand(tiny, monkeypatch):
    """A painter that adds .1 a pass to the truth's place: pass k is k times as far from the input as one."""
    views = [(torch.full((2, 3, 16, 16), .1 * k), torch.zeros(2, 66, 2)) for k in range(6)]
    monkeypatch.setattr(claims, "chains", lambda cfg, data: [views])
    rows, summary, _ = claims.measure(dataclasses.replace(tiny, image_size=16), lambda I, s: I + .2)
    # truth of pass k: .1 k; direct gives .2, pass k gives .2 k
    assert [rows[f"pass {k}"]["L1"] for k in range(1, 6)] == pytest.approx([.05 * k for k in range(1, 6)])
    assert summary["direct"] == pytest.approx(.05 * (1 + 0 + 1 + 2 + 3) / 5)
    assert summary["copy"] == pytest.approx(.15)
    assert summary["excess"] == pytest.approx(.25 - .15) and summary["route gap"] == pytest.approx(.1)
    assert summary["self-recovery ratio"] == pytest.approx(.4 / .2)


def test_photographs_are_measured_without_judges(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(judges, "judge", None)
    for n, held_out in ((20, 2), (10, 1)):
        cfg = dataclasses.replace(tiny, data=str(photo_folder(tmp_path / str(n), n)))
        rows, summary, notes = claims.measure(cfg, lambda I, s: I)
        assert set(rows["direct"]) == {"L1", "SSIM"} and "bent" in notes
        assert (summary["copy"] > 0) == (held_out > 1)                    # a lone picture is its own target


def study(monkeypatch, tiny, without, with_, direct=.5, copy=2., two=(0., 0.), claim=0):
    monkeypatch.setattr("lab.claims.SEEDS", (0, 1))
    base = {"copy": copy, "pass 5": 1., "self-recovery ratio": 1., "route gap": 0.}
    one = claims.claims.Ablation({(name, seed): tiny for name in claims.ABLATION for seed in (0, 1)})
    one.results = {}
    rows = (("without triple", without, .5), ("with triple", with_, direct), ("two routes", two, direct),
            ("without triple, self 100", without, .5))
    for name, excess, d in rows:
        for seed in (0, 1):
            one.results[name, seed] = base | {"excess": excess[seed], "direct": d, "direct / copy": d / copy}
    claims.judge_triple(one)
    of = ("triple: ", "passes: ", "two routes: ")[claim]
    return one.claims[claim]["verdict"], [v for k, v in one.criteria.items() if k.startswith(of)]


def test_the_bars_of_the_ablation(monkeypatch, tiny):
    assert study(monkeypatch, tiny, (.4, .4), (.2, .2)) == ("reproduced", [True] * 4)
    assert study(monkeypatch, tiny, (.4, .4), (.2, .21)) == ("partly reproduced", [False, True, True, True])
    assert study(monkeypatch, tiny, (.4, .4), (0., .4)) == ("not reproduced", [True, False, True, True])
    assert study(monkeypatch, tiny, (.4, .4), (.1, .1), direct=.56)[1] == [True, True, False, True]
    assert study(monkeypatch, tiny, (.4, .4), (.1, .1), copy=1.2)[1] == [True, True, True, False]
    passes = dict(without=(.4, .4), with_=(.2, .2), claim=1)
    assert study(monkeypatch, tiny, two=(.1, .1), **passes) == ("reproduced", [True] * 3)
    assert study(monkeypatch, tiny, two=(.1, .3), **passes)[1] == [False, True, True]
    routes = dict(without=(.4, .4), with_=(.2, .2), claim=2)
    assert study(monkeypatch, tiny, two=(.1, .3), **routes) == ("reproduced", [True] * 3)
    assert study(monkeypatch, tiny, two=(.1, .31), **routes)[1] == [False, True, True]
    assert study(monkeypatch, tiny, two=(.1, .1), direct=.56, **routes)[1] == [True, True, False]


@pytest.mark.slow
def test_ablate_shares_the_warm_up_and_keeps_the_error_after_each_pass(tiny, monkeypatch):
    in_turn(monkeypatch)
    monkeypatch.setattr("lab.claims.SEEDS", (0, 1))
    cfg = dataclasses.replace(tiny, warm_up=.5, log_every=4, sample_every=4)
    claims.ablate(cfg)
    result = read_json(Path(cfg.run) / "ablation.json")
    assert [len(line) for lines in result["passes"].values() for line in lines] == [5] * 8
    assert result["passes"]["with triple"][1][4] == result["rows"]["with triple, seed 1"]["pass 5"]
    assert result["rows"]["without identity, mean"]["direct identity"] <= 1
    config = read_json(Path(cfg.run) / "ablation/without-tv-1/config.json")
    assert config["lambda_tv"] == 0 and config["lambda_triple"] == tiny.lambda_triple
    assert Image.open(Path(cfg.run) / "ablation_edits.png").height > 16 * tiny.image_size
    assert Image.open(Path(cfg.run) / "ablation_edits.gif").n_frames == 24
    claims.ablate(dataclasses.replace(cfg, part="losses"))             # goes on from what is trained
    result = read_json(Path(cfg.run) / "ablation_losses.json")
    assert list(result["passes"]) == ["with triple"] and not result["claims"]
    assert Image.open(Path(cfg.run) / "ablation_losses_edits.png").height > 20 * tiny.image_size
    with pytest.raises(UserError, match="before and after"):
        claims.ablate(dataclasses.replace(cfg, warm_up=0.))


# ------------------------------------------------------------------------------------------ inference

def face_file(folder, name="face.png", size=80):
    face = to_uint8(toyfaces.render(toyfaces.sample(1, 3), size))[0]
    Image.fromarray(face.permute(1, 2, 0).numpy()).save(folder / name)
    return str(folder / name)


def test_infer_writes_a_gif_and_a_sheet(tiny, trained, tmp_path):
    tiny = dataclasses.replace(tiny, run=trained)
    faces = toyfaces.landmarks(toyfaces.sample(5, 2), 300)[:, common.KEEP_66].reshape(5, 132).numpy() + 200
    np.savetxt(tmp_path / "drive.txt", np.vstack([faces, -np.ones((1, 132))]))
    for drive in ("sweep", str(tmp_path / "drive.txt")):
        gan.infer(tiny, [face_file(tmp_path)], drive, str(tmp_path / "out"))
        assert (tmp_path / "out" / "face.png").exists()
    with Image.open(tmp_path / "out" / "face.gif") as gif:
        assert gif.n_frames == 5                                          # the lost frame is left out
    with pytest.raises(UserError, match="2 pictures and 0 .pts"):
        gan.infer(tiny, [face_file(tmp_path)] * 2, "sweep", "")


def test_infer_of_a_photograph_model_needs_landmarks(tiny, tmp_path):
    root = photo_folder(tmp_path / "photos")
    cfg = dataclasses.replace(tiny, data=str(root), steps=1)
    gan.train(cfg)
    home, cfg = root / "lfpw" / "trainset", dataclasses.replace(tiny)   # the checkpoint knows its data
    gan.infer(cfg, [str(home / "image_0001.png")], str(home / "image_0002.pts"), str(tmp_path / "out"))
    with pytest.raises(UserError, match="no landmarks"):
        gan.infer(cfg, [face_file(tmp_path)], "sweep", str(tmp_path / "out"))


def test_the_authors_generator_is_fed_as_in_their_demo(tiny, tmp_path, monkeypatch):
    """Pictures in [0, 1]; each peak at floor(q) - 1 of the crop's coordinate q, in a window of 7 x 7."""
    torch.save({"state_dict": authors_names(Generator(66, 4, 1))}, tmp_path / "theirs.pth")
    seen, forward = [], Generator.forward
    monkeypatch.setattr(Generator, "forward",
                        lambda self, I, H: seen.append((I, H)) or forward(self, I, H))
    paint, toy = gan.load(dataclasses.replace(tiny, weights=str(tmp_path / "theirs.pth"), sigma=1.))
    I, q = torch.full((1, 3, 128, 128), -.5), torch.tensor([40.3, 77.8])  # from the corner of the crop
    out = paint(I, (q - .5).expand(1, 66, 2))
    x, H = seen[0]
    assert not toy and (x == .25).all() and out.shape == I.shape
    row = [.230, .521, .849, 1., .849, .521, .230]                        # printed from the authors' code
    assert H[0, 5, 76, 39] == 1 and H[0, 5, 76, 36:43].tolist() == pytest.approx(row, abs=1e-3)
    assert H[0, 5, 73, 36].item() == pytest.approx(.053, abs=1e-3)
    H[:, :, 73:80, 36:43] = 0
    assert (H == 0).all()


def test_our_generator_is_fed_as_in_training(tiny, trained, monkeypatch):
    seen, forward = [], Generator.forward
    monkeypatch.setattr(Generator, "forward",
                        lambda self, I, H: seen.append((I, H)) or forward(self, I, H))
    cfg = dataclasses.replace(tiny, run=trained)
    paint, toy = gan.load(cfg)
    I, s = torch.full((1, 3, 32, 32), -.5), torch.full((1, 66, 2), 12.3)
    paint(I, s)
    assert toy and torch.equal(seen[0][0], I) and torch.equal(seen[0][1], heatmaps(s, 32, 1.75 / 4))


def test_a_training_begins_with_G_and_D_of_its_weights(tiny, tmp_path, monkeypatch):
    gan.train(dataclasses.replace(tiny, steps=2))
    before = load_checkpoint(Path(tiny.run) / "last.pt")["nets"]

    class Begun(Exception):
        def __init__(self, cfg, data, nets, *rest, **more):
            self.nets = nets

    def begin(*args, **more):
        raise Begun(*args, **more)

    monkeypatch.setattr(gan, "Run", begin)
    with pytest.raises(Begun) as begun:
        gan.train(dataclasses.replace(tiny, weights=f"{tiny.run}/last.pt", run=str(tmp_path / "on")))
    for name, net in begun.value.nets.items():
        assert all(torch.equal(net.state_dict()[key], value) for key, value in before[name].items())


def test_infer_and_evaluate_with_the_authors_weights(tiny, tmp_path):
    torch.save({"state_dict": authors_names(Generator(66, 4, 1))}, tmp_path / "theirs.pth")
    cfg = dataclasses.replace(tiny, weights=str(tmp_path / "theirs.pth"))
    gan.infer(cfg, [face_file(tmp_path, size=128)], "sweep", str(tmp_path / "out"))
    assert (tmp_path / "out" / "face.gif").exists() and cfg.image_size == 128
    with pytest.raises(UserError, match="80 x 80 and no landmarks"):
        gan.infer(cfg, [face_file(tmp_path)], "sweep", str(tmp_path / "out"))


def test_toy_sweep_moves_where_the_training_faces_are(tiny):
    shapes = toysets.sweep(tiny.image_size)
    assert shapes.shape == (40, 68, 2) and (shapes[10] - shapes[30]).norm(dim=1).max() > 3
    low, high = common.crop_box(common.to_66(shapes), 0)
    ours, theirs = common.crop_box(gan.make_data(tiny).points, 0)
    assert (low.mean(0) - ours.mean(0)).abs().max() < 2 and (high.mean(0) - theirs.mean(0)).abs().max() < 2
    # driving landmarks from anywhere come there, too
    low, high = common.crop_box(toysets.at_home(3 * shapes + 50, tiny.image_size), 0)
    assert (low.mean(0) - ours.mean(0)).abs().max() < 2 and (high.mean(0) - theirs.mean(0)).abs().max() < 2
