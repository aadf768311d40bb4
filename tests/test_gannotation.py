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
import toyfaces
from common import UserError, heatmaps
from conftest import blind_judges
from gannotation import Config, Generator

TINY = dict(gan.SMALL, image_size=32, width=4, residual_blocks=1, d_widths=(4, 8), batch_size=2, people=4, frames=6, steps=4,
            log_every=1, save_every=2, sample_every=2, device="cpu", amp=False, warm_up=0., ramp=0.)


@pytest.fixture
def tiny(tmp_path, cache, monkeypatch):
    """A configuration that trains in a second: the recogniser is an untrained one."""
    blind_judges(monkeypatch)
    monkeypatch.setattr(gan, "CHAINS", 32)
    return Config(**TINY, cache=cache, run=str(tmp_path / "run"))


def batch(n=2, size=32):
    face = toyfaces.sample(n, 0)
    I, H = toyfaces.render(face, size), heatmaps(common.to_66(toyfaces.landmarks(face, size)), size, 1.)
    return I, H


def grads(net):
    return sum(p.grad.abs().sum().item() for p in net.parameters() if p.grad is not None)


# ------------------------------------------------------------------------------------------------------ losses

class Score(nn.Module):
    """D(x) = a * mean of the picture: every value by hand."""

    def __init__(self, a=1.):
        super().__init__()
        self.a = nn.Parameter(torch.tensor(a))

    def forward(self, x):
        return self.a * x.mean((1, 2, 3))


def test_loss_adv_D_by_hand_and_route():
    cfg, D = Config(), Score(2.)
    I, I_hat = torch.full((3, 3, 4, 4), .25), torch.full((3, 3, 4, 4), -.1, requires_grad=True)
    assert gan.loss_adv_D(D, I, I_hat, cfg).item() == pytest.approx((1 - .5) + (1 - .2))
    assert gan.loss_adv_D(Score(10.), I, -I, cfg) == 0                                        # both beyond the margin
    gan.loss_adv_D(D, I, I_hat.detach(), cfg).backward()
    assert D.a.grad is not None and I_hat.grad is None


def test_loss_adv_D_as_wgan_gp():
    cfg = Config(adversarial="wgan-gp")
    D = Score(1.)
    I, I_hat = torch.rand(3, 3, 4, 4), torch.rand(3, 3, 4, 4)
    penalty = (1 / 48 ** .5 - 1) ** 2                                                         # gradient 1/48 in each of 48 pixels
    expected = I_hat.mean() - I.mean() + 10 * penalty
    assert gan.loss_adv_D(D, I, I_hat, cfg).item() == pytest.approx(expected.item(), abs=1e-5)


def test_loss_adv_G_falls_when_D_is_fooled_and_leaves_D_alone():
    D, I_hat = Score(2.), torch.full((2, 3, 4, 4), .3, requires_grad=True)
    with common.frozen(D):
        loss = gan.loss_adv_G(D, I_hat)
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
    assert gan.loss_self(G, I_hat, heat(-.3), I).item() == pytest.approx(0, abs=1e-6)          # the way back undoes the way there
    loss = gan.loss_self(G, I_hat, heat(.5), I)
    assert loss.item() == pytest.approx(.8)
    loss.backward()
    assert G.k.grad.item() == pytest.approx(.8)                                                # .3 from the first pass, .5 from the second


def test_loss_triple_compares_two_routes_and_reaches_both():
    G, I = Shift(), torch.randn(2, 3, 4, 4)
    I_hat, I_n = G(I, heat(.3)), G(I, heat(.2))
    loss = gan.loss_triple(G, I_hat, heat(.2), I_n)                                            # .3 + .2 against .2
    assert loss.item() == pytest.approx(.3)
    loss.backward()
    assert G.k.grad.item() == pytest.approx(.3)                                                # (.3 + .2) - .2: the direct route counts, too
    G.k.grad = None
    gan.loss_triple(G, I_hat.detach(), heat(.2), G(I, heat(.2)).detach()).backward()
    assert G.k.grad.item() == pytest.approx(.2)


def test_copying_satisfies_self_and_triple_but_not_pixel():
    def G(I, H):
        return I
    I, H = batch()
    assert gan.loss_self(G, I, H, I) == 0 and gan.loss_triple(G, I, H, I) == 0
    assert gan.loss_pixel(I, I.flip(0)) > .01


def test_loss_identity_by_hand_and_target_is_fixed():
    def Phi(x):
        return x.mean((2, 3)), 2 * x.mean((1, 2, 3))[:, None]
    I_hat, I = torch.full((2, 3, 4, 4), .5, requires_grad=True), torch.zeros(2, 3, 4, 4, requires_grad=True)
    loss = gan.loss_identity(Phi, I_hat, I)
    assert loss.item() == pytest.approx(.5 + 1.)
    loss.backward()
    assert I.grad is None and I_hat.grad.abs().sum() > 0


def test_loss_perceptual_by_hand_and_target_is_fixed():
    def Psi(x):
        return [1 * x, 3 * x[:, :1]]
    I_hat, I_t = torch.full((2, 3, 4, 4), .5, requires_grad=True), torch.zeros(2, 3, 4, 4, requires_grad=True)
    loss = gan.loss_perceptual(Psi, I_hat, I_t)
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


# ---------------------------------------------------------------------------------------------------- networks

def test_parameter_counts():
    parts = {name: common.n_parameters(getattr(Generator(), name)) for name in ("down", "bottleneck", "up", "colour", "mask")}
    assert parts == {"down": 872_640, "bottleneck": 7_080_960, "up": 655_744, "colour": 9_408, "mask": 3_136}
    assert common.n_parameters(Generator()) == 8_621_888 and common.n_parameters(Generator(68)) == 8_628_160
    G, D = gan.build(Config())
    assert common.n_parameters(D) == 6_951_360 + 4_608 and D.receptive_field() == 158
    with torch.no_grad():
        assert D.trunk(torch.zeros(1, 3, 128, 128)).shape == (1, 512, 4, 4)


def test_generator_blends_by_its_mask():
    G, (I, H) = Generator(66, 4, 1), batch()
    assert G(I, H).shape == I.shape and G(I, H).abs().max() <= 1
    with torch.no_grad():
        C, M = G.paint(I, H)
        x = torch.cat([I, H], 1)
        whole = torch.tanh(G.colour(G.up(G.bottleneck(G.down(x)))))                             # the first layer in one piece
        assert torch.allclose(C, whole, atol=1e-5) and torch.allclose(G(I, H), M * I + (1 - M) * C)
        assert torch.equal(G(I, H, True)[1], M)
        G.paint = lambda I, H: (C, torch.ones_like(M))
        assert torch.equal(G(I, H), I)                                                          # mask 1 keeps the input
        G.paint = lambda I, H: (C, torch.zeros_like(M))
        assert torch.equal(G(I, H), C)


def test_generator_is_finite_on_flat_pictures():
    G = Generator(66, 4, 1)
    flat = torch.zeros(1, 3, 32, 32)
    out = G(flat, torch.zeros(1, 66, 32, 32))
    out.mean().backward()
    assert torch.isfinite(out).all() and all(torch.isfinite(p.grad).all() for p in G.parameters())


def test_authors_key_names_are_mapped():
    G = Generator(66, 4, 2)
    back = {"down.": "down_conv.", "up.": "feature_layer.", "colour.": "colour_layer.0.", "mask.": "mask_layer.0."}
    theirs = {}
    for key, value in G.state_dict().items():
        for ours, name in back.items():
            if key.startswith(ours):
                key = name + key[len(ours):]
        theirs["module." + key.replace(".body.0.", ".conv1.").replace(".body.3.", ".conv2.")] = value
    assert theirs.keys() >= {"module.down_conv.0.weight", "module.bottleneck.1.conv2.bias", "module.mask_layer.0.weight"}
    common.load_weights(Generator(66, 4, 2), gan.authors_weights(theirs), "theirs")


@pytest.mark.skipif("PARITY_DATA" not in os.environ, reason="set PARITY_DATA to a folder with the authors' networks as numbers")
def test_output_equals_the_authors_network():
    theirs = torch.load(Path(os.environ["PARITY_DATA"]) / "official_networks_tiny.pt", weights_only=True)["gannotation_G"]
    about = theirs["about"]
    G = Generator(about["c_dim"], about["conv_dim"], about["repeat_num"])
    common.load_weights(G, gan.authors_weights(theirs["state_dict"]), "parity")
    x = theirs["inputs"][0]
    with torch.no_grad():
        assert torch.allclose(G(x[:, :3], x[:, 3:]), theirs["outputs"][0], atol=1e-5)


def test_light_cnn_layers_and_names():
    net = gan.LightCNN()
    pool, fc = net(torch.zeros(2, 1, 128, 128))
    assert pool.shape == (2, 128, 8, 8) and fc.shape == (2, 256)
    assert {"features.0.filter.weight", "features.2.conv_a.filter.bias", "fc1.filter.weight"} <= net.state_dict().keys()


def test_light_cnn_weights_are_used(tmp_path):
    torch.save({"state_dict": {"module." + k: v for k, v in gan.LightCNN().state_dict().items()} | {"module.fc2.weight": torch.zeros(1)}}, tmp_path / "l.pth")
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
    monkeypatch.setattr(toyfaces, "judge", lambda kind, *_: (toyfaces.Judge(kind).eval(), 1.))
    maps = gan.Perception(Config(device="cpu", cache=str(tmp_path)))(torch.zeros(1, 3, 32, 32))
    assert len(maps) == 4 and "toy recogniser" in capsys.readouterr().out


# -------------------------------------------------------------------------------------------------------- data

def test_toy_batches(tiny):
    data = gan.make_data(tiny)
    I, H_i, I_t, H_t, H_n = data.sample(6)
    assert I.shape == I_t.shape == (6, 3, 32, 32) and H_i.shape == H_t.shape == H_n.shape == (6, 66, 32, 32)
    assert I.abs().max() <= 1 and H_i.min() >= 0 and H_i.max() <= 1
    assert (I - I_t).abs().flatten(1).mean(1).min() > 0                                         # never its own target
    assert torch.equal(gan.make_data(tiny).sample(6)[0], I)                                     # the seed decides


def test_train_and_test_people_differ(tiny):
    train, test = gan.make_data(tiny), gan.make_data(tiny, test=True)
    assert not any((train.bank == picture).flatten(1).all(1).any() for picture in test.bank[:6])


def test_partner_keeps_to_the_video_and_the_gap(tiny):
    data = gan.make_data(tiny)
    n = 500
    data.first, data.last = torch.zeros(n, dtype=torch.long), torch.full((n,), n - 1)
    data.gap = (51, 200)
    index = torch.randint(n, (2000,))
    gap = (data.partner(index) - index).abs()
    assert gap.min() >= 51 and gap.max() <= 200 and (gap > 150).any() and (gap < 70).any()
    data.first, data.last = torch.zeros(n, dtype=torch.long), torch.full((n,), 30)              # too short a video: any frame
    assert data.partner(torch.full((200,), 5)).unique().tolist() == list(range(31))


def photo_folder(root, n=12, size=96, style="300W", dotted=False):
    """Toy renders with .pts files, as a photograph data set, 1-based points; or (dotted) a Gaussian dot at three landmarks, one a channel."""
    faces = toyfaces.sample(n, 77, pose=.5)
    points = toyfaces.landmarks(faces, size)
    for k in range(n):
        if style == "300W":
            picture, pts = root / "lfpw" / "trainset" / f"image_{k + 1:04d}.png", None
            pts = picture.with_suffix(".pts")
        else:
            picture = root / f"{k // 4:03d}" / style / f"{k % 4 + 1:06d}.jpg"
            pts = root / f"{k // 4:03d}" / "annot" / f"{k % 4 + 1:06d}.pts"
        for path in (picture, pts):
            path.parent.mkdir(parents=True, exist_ok=True)
        image = heatmaps(points[k:k + 1, [30, 48, 54]], size, 1.5) * 2 - 1 if dotted else toyfaces.render(faces[k], size)
        Image.fromarray(common.to_uint8(image)[0].permute(1, 2, 0).numpy()).save(picture)
        rows = "\n".join(f"{x + 1:.4f} {y + 1:.4f}" for x, y in points[k].tolist())
        pts.write_text(f"version: 1\nn_points:  68\n{{\n{rows}\n}}\n")
    return root


def dots(image):
    """Centre of the dot in each channel: [B, 3, 2]."""
    w = (image / 2 + .5).clamp(min=.05) - .05
    axis = torch.arange(image.shape[-1], dtype=torch.float32)
    total = w.sum((2, 3))
    return torch.stack([(w.sum(2) * axis).sum(2) / total, (w.sum(3) * axis).sum(2) / total], 2)


@pytest.mark.parametrize("angle, mirror, bend, tolerance", [(0, False, False, .15), (30., False, False, .25), (0., True, False, .15), (45., True, False, .3),
                                                            (0., False, True, 1.6)])
def test_landmarks_follow_the_picture_through_crop_turn_mirror_and_bend(tmp_path, tiny, angle, mirror, bend, tolerance):
    cfg = dataclasses.replace(tiny, data=str(photo_folder(tmp_path / "photos", dotted=True)), image_size=64)
    data = gan.photographs(cfg, test=False)
    index = torch.arange(8)
    image, points = data.view(index, angle, torch.full((8,), mirror), bend=torch.full((8,), bend))
    where = [30, 48, 54]                                                                         # the same in 66 points
    expected = points[:, where]
    if mirror:                                                                                   # left and right have changed names
        expected = points[:, [common.FLIP_66[k] for k in where]]
    assert (dots(image) - expected).norm(dim=2).median() < tolerance


def test_view_crops_by_landmarks_with_sixteen_per_cent(tmp_path, tiny):
    cfg = dataclasses.replace(tiny, data=str(photo_folder(tmp_path / "photos")), image_size=64)
    _, points = gan.photographs(cfg, test=False).view(torch.arange(5))
    low, high = points.amin(1) + .5, points.amax(1) + .5
    ratio = (high - low) / 64                                                                    # w / (w + .32 mean side)
    assert torch.allclose(low / 64, 1 - high / 64, atol=1e-3) and (ratio > .7).all() and (ratio < .82).all()


@pytest.mark.parametrize("style, groups", [("300W", 11), ("frames", 3), (".", 3)])
def test_scan_knows_the_layouts(tmp_path, tiny, style, groups):
    n = 12 if style != "300W" else 11
    cfg = dataclasses.replace(tiny, data=str(photo_folder(tmp_path / "人 脸", n, style=style)))
    found = gan.scan(cfg)
    assert len(found["images"]) == n and len(set(found["groups"])) == groups and not found["bad"]
    assert found["notes"]["points per file"] == f"68 ({n} files)"


def test_photographs_train(tmp_path, tiny):
    root = photo_folder(tmp_path / "photos")
    for path in (root / "lfpw" / "trainset").glob("image_000[12].png"):
        Image.open(path).convert("L" if "1" in path.stem else "RGBA").save(path)                # grey and transparent ones are fine
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
    assert len(gan.photographs(dataclasses.replace(cfg, skip_bad=True), False)) == 8             # 12 less 3 bad, less one held out
    with pytest.raises(UserError, match="expected <id>/annot"):
        gan.scan(dataclasses.replace(tiny, data=str(tmp_path / "run-nothing-here")))


def test_videos_without_frames_get_the_command_that_makes_them(tmp_path, tiny):
    root = photo_folder(tmp_path / "videos", 8, style="frames")
    for jpg in root.rglob("*.jpg"):
        jpg.unlink()
    (root / "001" / "vid.avi").write_bytes(b"RIFF")
    with pytest.raises(UserError, match="ffmpeg -i vid.avi -start_number 1"):
        gan.scan(dataclasses.replace(tiny, data=str(root)))


# -------------------------------------------------------------------------------------------------- the training

def test_gradients_reach_exactly_the_networks_they_should(tiny):
    G, D = gan.build(tiny)
    data = gan.make_data(tiny)
    I, H_i, I_t, H_t, H_n = data.sample(2)
    I_hat = G(I, H_t)
    gan.loss_adv_D(D, I_t, I_hat.detach(), tiny).backward()
    assert grads(D) > 0 and grads(G) == 0
    D.zero_grad()
    for loss in (gan.loss_adv_G(D, I_hat), gan.loss_pixel(I_hat, I_t), gan.loss_self(G, I_hat, H_i, I), gan.loss_triple(G, I_hat, H_n, G(I, H_n)),
                 gan.loss_tv(I_hat)):
        G.zero_grad()
        with common.frozen(D):
            loss.backward(retain_graph=True)
        assert grads(G) > 0
    D.zero_grad()
    with common.frozen(D):
        gan.loss_adv_G(D, G(I, H_t)).backward()
    assert grads(D) == 0


@pytest.mark.parametrize("change", [{}, {"adversarial": "wgan-gp", "d_steps": 2}, {"points": 68, "lambda_mask": 1.}, {"amp": True}])
def test_n_plus_n_steps_are_2n_steps(tiny, tmp_path, change):
    whole = gan.train(dataclasses.replace(tiny, run=str(tmp_path / "a"), **change)).state_dict()
    # The schedule depends on `steps`: stop the second run half way instead of shortening it
    cfg = dataclasses.replace(tiny, run=str(tmp_path / "b"), **change)
    update, calls = common.Run.update, []

    def stop_after(self, name, loss):
        update(self, name, loss)
        calls.append(name)
        if len([c for c in calls if c == "D"]) == 2:
            self.stop_signal = 2
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(common.Run, "update", stop_after)
        with pytest.raises(SystemExit) as stop:
            gan.train(cfg)
    assert stop.value.code == 130
    again = gan.train(cfg).state_dict()
    assert all(torch.equal(whole[k], again[k]) for k in whole)


def test_a_training_learns_on_cuda_and_cpu(tiny, device):
    cfg = dataclasses.replace(tiny, device=device, steps=30, width=8, batch_size=4, log_every=10, sample_every=30, lambda_self=0., lambda_triple=0., lr=2e-3)
    gan.train(cfg)
    lines = common.read_jsonl(Path(cfg.run) / "metrics.jsonl")
    assert lines[-1]["error"] < lines[0]["error"] * .9 and lines[-1]["health"] in ("ok", "copying")


def test_health_words(tiny):
    data = gan.make_data(tiny)
    _, D = gan.build(tiny)

    class Fake:
        def __init__(self, out):
            self.out = out

        def __call__(self, I, H):
            return self.out(I, H)
    assert gan.report(Fake(lambda I, H: I), D, data, tiny)["health"] == "copying"
    I_t = gan.fixed_batch(data, 32)[2]
    assert gan.report(Fake(lambda I, H: I_t), D, data, tiny)["health"] == "ignores-target"
    assert gan.report(Fake(lambda I, H: I_t + .3 * H[:, :30].amax(1, keepdim=True)), D, data, tiny)["health"] == "ok"
    win = lambda x: 10 * ((x - I_t).abs().mean((1, 2, 3)) < 1e-6) - 5.                            # noqa: E731
    assert gan.report(Fake(lambda I, H: I_t + .3 * H[:, :30].amax(1, keepdim=True)), win, data, tiny)["health"] == "D-won"


def test_progressive_feeds_each_result_back():
    G = Shift()
    out = gan.progressive(G, torch.zeros(2, 3, 4, 4), [heat(1.), heat(2.), heat(3.)])
    assert [x.mean().item() for x in out] == pytest.approx([1, 3, 6])


def test_evaluate_of_a_copy_has_no_excess(tiny, monkeypatch):
    gan.train(dataclasses.replace(tiny, steps=1))
    monkeypatch.setattr(Generator, "forward", lambda self, I, H: I)
    summary = gan.evaluate(tiny)["values"]
    assert summary["direct / copy"] == pytest.approx(1) and summary["excess"] == pytest.approx(0, abs=1e-6)
    assert summary["self-recovery ratio"] == pytest.approx(0, abs=1e-6) and summary["route gap"] == 0


# ---------------------------------------------------------------------------------------------------- inference

def face_file(folder, name="face.png"):
    Image.fromarray(common.to_uint8(toyfaces.render(toyfaces.sample(1, 3), 80))[0].permute(1, 2, 0).numpy()).save(folder / name)
    return str(folder / name)


def test_infer_writes_a_gif_and_a_sheet(tiny, tmp_path):
    gan.train(tiny)
    np.savetxt(tmp_path / "drive.txt", np.vstack([toyfaces.landmarks(toyfaces.sample(5, 2), 300)[:, common.KEEP_66].reshape(5, 132).numpy() + 200,
                                                  -np.ones((1, 132))]))
    for drive in ("sweep", str(tmp_path / "drive.txt")):
        gan.infer(tiny, [face_file(tmp_path)], drive, str(tmp_path / "out"))
        assert (tmp_path / "out" / "face.png").exists()
    with Image.open(tmp_path / "out" / "face.gif") as gif:
        assert gif.n_frames == 5                                                                 # the lost frame is left out


def test_infer_of_a_photograph_model_needs_landmarks(tiny, tmp_path):
    root = photo_folder(tmp_path / "photos")
    cfg = dataclasses.replace(tiny, data=str(root))
    gan.train(cfg)
    home = root / "lfpw" / "trainset"
    gan.infer(cfg, [str(home / "image_0001.png")], str(home / "image_0002.pts"), str(tmp_path / "out"))
    with pytest.raises(UserError, match="no landmarks"):
        gan.infer(cfg, [face_file(tmp_path)], "sweep", str(tmp_path / "out"))


@pytest.mark.parametrize("text, message", [("1 2 3\n", "3 numbers a row"), ("a b\n", "not a table"), ("-1 " * 132 + "\n", "no row with landmarks")])
def test_bad_driving_files(tmp_path, text, message):
    (tmp_path / "d.txt").write_text(text)
    with pytest.raises(UserError, match=message):
        gan.read_drive(tmp_path / "d.txt")


def test_toy_sweep_moves_where_the_training_faces_are(tiny):
    shapes = gan.toy_sweep(tiny.image_size)
    assert shapes.shape == (40, 68, 2) and (shapes[10] - shapes[30]).norm(dim=1).max() > 3
    low, high = common.crop_box(common.to_66(shapes), 0)
    ours, theirs = common.crop_box(gan.make_data(tiny).points, 0)
    assert (low.mean(0) - ours.mean(0)).abs().max() < 2 and (high.mean(0) - theirs.mean(0)).abs().max() < 2
