import dataclasses
import os
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn as nn
from PIL import Image

import common
import pix2pix_cyclegan as paper
import toyfaces
from common import UserError
from conftest import blind_judges, in_turn
from pix2pix_cyclegan import Config, ImagePool, ResNet, UNet, discriminator

TINY = dict(paper.SMALL, image_size=16, load_size=18, width=4, d_width=4, residual_blocks=1, patch=1, people=6, steps=4, pool_size=3, batch_size=2,
            log_every=1, save_every=2, sample_every=2, device="cpu", amp=False)


@pytest.fixture(params=["pix2pix", "cyclegan"])
def tiny(request, tmp_path, cache, monkeypatch):
    """Configurations of both models that train in a second, and a judge that knows nothing."""
    return small(request.param, tmp_path, cache, monkeypatch)


@pytest.fixture
def tiny_p(tmp_path, cache, monkeypatch):
    return small("pix2pix", tmp_path, cache, monkeypatch)


@pytest.fixture
def tiny_c(tmp_path, cache, monkeypatch):
    return small("cyclegan", tmp_path, cache, monkeypatch)


def small(model, tmp_path, cache, monkeypatch):
    blind_judges(monkeypatch)
    monkeypatch.setattr(paper, "TEST_PEOPLE", 12)
    return Config(**TINY, model=model, cache=cache, run=str(tmp_path / "run"))


class Score(nn.Module):
    """A D with known scores: the mean over the channels, pixel by pixel; of two pictures, that of the second and 10 times that of the first."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))

    def forward(self, x, y=None):
        return self.weight * (x.mean(1) if y is None else y.mean(1) + 10 * x.mean(1))


def softplus(v):
    return np.log1p(np.exp(v))


def flat(*values):
    """One picture a value, of that value everywhere."""
    return torch.tensor(values)[:, None, None, None].expand(-1, 3, 4, 4)


# ------------------------------------------------------------------------------------------------------ losses

def test_loss_cgan_D_is_half_the_cross_entropy_of_the_pairs():
    x, y, y_fake = flat(.2, -.1), flat(.5, .5), flat(0., .3)
    expected = np.mean([softplus(-(.5 + 2)), softplus(-(.5 - 1))]) / 2 + np.mean([softplus(0 + 2), softplus(.3 - 1)]) / 2
    assert paper.loss_cgan_D(Score(), x, y, y_fake).item() == pytest.approx(expected, rel=1e-5)


def test_loss_cgan_G_rewards_a_pair_that_D_takes_for_real():
    x, y_fake = flat(.2), flat(.3).clone().requires_grad_()
    loss = paper.loss_cgan_G(Score(), x, y_fake)
    loss.backward()
    assert loss.item() == pytest.approx(softplus(-(.3 + 2)), rel=1e-5) and (y_fake.grad < 0).all()


def test_loss_gan_does_not_see_x():
    y, y_fake = flat(.5), flat(-.5)
    assert paper.loss_gan_D(Score(), y, y_fake).item() == pytest.approx((softplus(-.5) + softplus(-.5)) / 2, rel=1e-5)
    assert paper.loss_gan_G(Score(), y_fake).item() == pytest.approx(softplus(.5), rel=1e-5)


def test_loss_gan_G_does_not_saturate():
    """Where D is sure that a picture is generated, -log D has a gradient near 1, log(1 - D) would have none."""
    y = flat(-20.).clone().requires_grad_()
    paper.loss_gan_G(Score(), y).backward()
    assert y.grad.sum().item() == pytest.approx(-1, rel=1e-4)


def test_loss_L1_and_loss_cyc_are_mean_absolute_differences():
    a, b = torch.rand(2, 3, 5, 5), torch.rand(2, 3, 5, 5)
    expected = np.abs(a.numpy() - b.numpy()).mean()
    assert paper.loss_L1(a, b).item() == pytest.approx(expected) and paper.loss_cyc(a, b).item() == pytest.approx(expected)
    assert paper.loss_L1(a, a) == 0 == paper.loss_cyc(a, a)


def test_loss_lsgan_squares_each_patch_and_then_averages():
    y_fake = torch.zeros(1, 3, 2, 2)
    y_fake[..., 0, 0] = 4.                                              # scores 4, 0, 0, 0: mean of squares 4, square of the mean 1
    assert paper.loss_lsgan_D(Score(), torch.ones_like(y_fake), y_fake).item() == pytest.approx(4 / 2)
    assert paper.loss_lsgan_G(Score(), y_fake).item() == pytest.approx((9 + 1 + 1 + 1) / 4)
    assert paper.loss_lsgan_D(Score(), flat(1.), flat(0.)).item() == 0 == paper.loss_lsgan_G(Score(), flat(1.)).item()


def test_loss_idt_is_what_G_does_to_a_picture_of_its_target_domain():
    y = torch.rand(2, 3, 4, 4)
    assert paper.loss_idt(y, y + .25).item() == pytest.approx(.25) and paper.loss_idt(y, y) == 0


def reached(loss, nets):
    """Which of the networks the gradient of `loss` reaches: 1 or 0 each."""
    for net in nets:
        net.zero_grad(set_to_none=True)
    loss.backward(retain_graph=True)
    return [int(any(p.grad is not None and p.grad.abs().sum() > 0 for p in net.parameters())) for net in nets]


def test_gradient_routes_of_cyclegan(tiny_c):
    nets = G, F, D_X, D_Y = paper.build_cyclegan(tiny_c)
    x, y = torch.rand(2, 1, 3, 16, 16) * 2 - 1
    y_fake, x_fake = G(x), F(y)
    with common.frozen(D_X, D_Y):
        routes = {"GAN_G": paper.loss_lsgan_G(D_Y, y_fake), "GAN_F": paper.loss_lsgan_G(D_X, x_fake), "cyc_x": paper.loss_cyc(x, F(y_fake)),
                  "cyc_y": paper.loss_cyc(y, G(x_fake)), "idt_G": paper.loss_idt(y, G(y)), "idt_F": paper.loss_idt(x, F(x))}
    routes |= {"D_Y": paper.loss_lsgan_D(D_Y, y, y_fake.detach()), "D_X": paper.loss_lsgan_D(D_X, x, x_fake.detach())}
    #                                                      G  F  D_X D_Y
    assert {k: reached(v, nets) for k, v in routes.items()} == {
        "GAN_G": [1, 0, 0, 0], "GAN_F": [0, 1, 0, 0], "cyc_x": [1, 1, 0, 0], "cyc_y": [1, 1, 0, 0],
        "idt_G": [1, 0, 0, 0], "idt_F": [0, 1, 0, 0], "D_Y": [0, 0, 0, 1], "D_X": [0, 0, 1, 0]}


def test_gradient_routes_of_pix2pix(tiny_p):
    nets = G, D = paper.build_pix2pix(tiny_p)
    x, y = torch.rand(2, 2, 3, 16, 16) * 2 - 1
    y_fake = G(x)
    with common.frozen(D):
        routes = {"GAN": paper.loss_cgan_G(D, x, y_fake), "L1": paper.loss_L1(y, y_fake)}
    routes["D"] = paper.loss_cgan_D(D, x, y, y_fake.detach())
    assert {k: reached(v, nets) for k, v in routes.items()} == {"GAN": [1, 0], "L1": [1, 0], "D": [0, 1]}


@pytest.mark.parametrize("model, loss, expected", [
    ("pix2pix", "L1", {"L1"}), ("pix2pix", "GAN", {"D", "GAN"}), ("pix2pix", "cGAN", {"D", "GAN"}), ("pix2pix", "L1+GAN", {"D", "GAN", "L1"}),
    ("pix2pix", "full", {"D", "GAN", "L1"}), ("cyclegan", "cycle", {"cyc_x", "cyc_y"}), ("cyclegan", "GAN", {"GAN_G", "GAN_F", "D_Y", "D_X"}),
    ("cyclegan", "GAN+forward", {"GAN_G", "GAN_F", "D_Y", "D_X", "cyc_x"}), ("cyclegan", "GAN+backward", {"GAN_G", "GAN_F", "D_Y", "D_X", "cyc_y"}),
    ("cyclegan", "full", {"GAN_G", "GAN_F", "D_Y", "D_X", "cyc_x", "cyc_y"})])
def test_the_rows_of_the_tables_are_these_terms(model, loss, expected, tmp_path, cache, monkeypatch):
    cfg = dataclasses.replace(small(model, tmp_path, cache, monkeypatch), loss=loss, steps=1)
    paper.train(cfg)
    line = common.read_jsonl(Path(cfg.run) / "metrics.jsonl")[-1]
    assert {k[2:] for k in line if k.startswith("L_")} == expected


def test_D_sees_x_only_when_the_loss_is_conditional(tiny_p):
    for loss, channels in (("L1+cGAN", 6), ("L1+GAN", 3)):
        assert paper.build_pix2pix(dataclasses.replace(tiny_p, loss=loss))[1].trunk[0].in_channels == channels


# ---------------------------------------------------------------------------------------------------- networks

def test_parameter_counts_of_the_authors_networks():
    count = common.n_parameters
    assert (count(UNet()), count(UNet(7)), count(ResNet()), count(ResNet(6))) == (54_413_955, 41_828_995, 11_378_179, 7_837_699)
    assert count(UNet(skips=False)) == 39_080_963 - 5_504                # the Torch count, less the biases that Torch keeps at zero
    assert {p: count(discriminator(p, 6)) for p in paper.LAYERS} == {1: 9_024, 16: 139_585, 34: 666_433, 70: 2_768_705, 142: 6_964_033, 286: 11_159_361}
    assert (count(discriminator(70, 3, norm="instance")), count(discriminator(70, 3))) == (2_764_737, 2_765_633)


@pytest.mark.parametrize("patch", paper.LAYERS)
def test_patch_is_the_receptive_field(patch):
    """By the formula, and by which pixels of the input move one score."""
    D = discriminator(patch, 3, width=2, norm=None)
    assert D.receptive_field() == patch
    if patch <= 70:
        x = torch.randn(1, 3, 160, 160, requires_grad=True)
        score = D(x)
        score[0, 0, score.shape[2] // 2, score.shape[3] // 2].backward()
        seen = x.grad.abs().sum((0, 1)) > 0
        assert seen.any(0).sum() == patch == seen.any(1).sum()


def test_70_comes_from_strides_2_2_2_1_1():
    D = discriminator(70)
    assert [m.stride[0] for m in D.modules() if isinstance(m, nn.Conv2d)] == [2, 2, 2, 1, 1]
    assert common.PatchGAN(3, (64, 128, 256, 512), (2, 2, 2, 2)).receptive_field() == 94
    assert discriminator(70, 3, 4)(torch.zeros(1, 3, 256, 256)).shape == (1, 1, 30, 30)
    assert discriminator(1, 3, 4)(torch.zeros(1, 3, 32, 32)).shape == (1, 1, 32, 32) and discriminator(286, 3, 4)(torch.zeros(1, 3, 256, 256)).shape[-1] == 6


def test_unet_reaches_one_pixel_and_skips_go_around_it():
    x = torch.randn(2, 3, 32, 32)
    for skips in (True, False):
        net = UNet(5, 4, skips, dropout=())
        assert net(x).shape == x.shape and net.down[-1](torch.zeros(1, 32, 2, 2)).shape[-1] == 1
        for layer in (net.up[0], net.down[-1]):
            for p in layer.parameters():
                nn.init.zeros_(p)                                       # nothing comes through the bottleneck
        a, b = net(x)
        assert torch.allclose(a, b, atol=1e-6) != skips


def test_the_innermost_layer_has_no_norm_and_one_picture_passes():
    """Batch norm of a single value is 0: with it, an encoder-decoder fed one picture at a time would paint always the same."""
    net = UNet(5, 4, skips=False, dropout=())
    assert not any(isinstance(m, nn.BatchNorm2d) for m in net.down[-1])
    a, b = (net(torch.randn(1, 3, 32, 32)) for _ in "ab")
    assert (a - b).abs().max() > 1e-3


def test_noise_is_dropout_in_the_first_three_layers_of_the_decoder_and_stays_on():
    x = torch.randn(1, 3, 64, 64)
    net = UNet(6, 4).eval()
    assert [any(isinstance(m, paper.Noise) for m in up) for up in net.up] == [True, True, True, False, False, False]
    assert (net(x) - net(x)).abs().max() > 1e-4
    assert [any(isinstance(m, paper.Noise) for m in up) for up in UNet(6, 4, dropout=(2, 3, 4)).up] == [False, True, True, True, False, False]
    quiet = UNet(6, 4, dropout=())
    assert torch.equal(quiet(x), quiet(x))
    quiet.load_state_dict(net.state_dict())                             # the noise has no weights


def test_train_and_eval_mode_agree():
    x = torch.randn(2, 3, 32, 32)
    for net in (UNet(5, 4, dropout=()), ResNet(1, 4)):
        assert torch.equal(net.train()(x), net.eval()(x))


@pytest.mark.parametrize("model", ["pix2pix", "cyclegan"])
def test_a_flat_picture_gives_finite_bounded_gradients(model):
    torch.manual_seed(0)
    nets = common.init_normal(UNet(6, 8) if model == "pix2pix" else ResNet(2, 8)), common.init_normal(discriminator(16, 3, 8))
    G, D = nets
    x = torch.cat([torch.zeros(1, 3, 64, 64), torch.rand(1, 3, 64, 64) * 2 - 1])
    for batch in (x, x[:1]):
        for net in nets:
            net.zero_grad()
        common.lsgan_G(D(G(batch))).backward()
        norm = torch.cat([p.grad.flatten() for p in G.parameters() if p.grad is not None]).norm()
        assert torch.isfinite(norm) and norm < 1e3


def test_any_size_goes_through(tiny):
    G = paper.build_pix2pix(tiny)[0] if tiny.model == "pix2pix" else paper.build_cyclegan(tiny)[0]
    x = torch.rand(1, 3, 37, 50)
    assert paper.whole(G, x, 16 if tiny.model == "pix2pix" else 4).shape == x.shape
    plain = lambda x: x                                                 # noqa: E731
    assert torch.equal(paper.whole(plain, x, 16), x)


class Nested(nn.Module):
    """A U-Net built from the outside in, each level around the next, whose keys look like the authors': model.1.model.3.model ..."""

    def __init__(self, widths, outermost=True):
        super().__init__()
        (c_in, c), innermost = widths[:2], len(widths) == 2
        down = [nn.Conv2d(c_in, c, 4, 2, 1, bias=False)] if outermost else [nn.LeakyReLU(.2), nn.Conv2d(c_in, c, 4, 2, 1, bias=False)]
        if not (outermost or innermost):
            down.append(nn.BatchNorm2d(c))
        up = [nn.ReLU(), nn.ConvTranspose2d(c if innermost else 2 * c, c_in, 4, 2, 1, bias=outermost)]
        up.append(nn.Tanh() if outermost else nn.BatchNorm2d(c_in))
        self.model, self.outermost = nn.Sequential(*down, *([] if innermost else [Nested(widths[1:], False)]), *up), outermost

    def forward(self, x):
        return self.model(x) if self.outermost else torch.cat([x, self.model(x)], 1)


class Whole(nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, x):
        return self.model(x)


def authors_unet(width=4):
    return Whole(Nested((3, width, 2 * width, 4 * width, 8 * width, 8 * width)))


class Residual(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.conv_block = nn.Sequential(nn.ReflectionPad2d(1), nn.Conv2d(c, c, 3), nn.InstanceNorm2d(c), nn.ReLU(),
                                        nn.ReflectionPad2d(1), nn.Conv2d(c, c, 3), nn.InstanceNorm2d(c))

    def forward(self, x):
        return x + self.conv_block(x)


def authors_resnet(w=4):
    """With statistics in the norms, as in their older files."""
    def norm(c):
        return nn.InstanceNorm2d(c, track_running_stats=True)
    return Whole(nn.Sequential(
        nn.ReflectionPad2d(3), nn.Conv2d(3, w, 7), norm(w), nn.ReLU(), nn.Conv2d(w, 2 * w, 3, 2, 1), norm(2 * w), nn.ReLU(),
        nn.Conv2d(2 * w, 4 * w, 3, 2, 1), norm(4 * w), nn.ReLU(), Residual(4 * w), nn.ConvTranspose2d(4 * w, 2 * w, 3, 2, 1, output_padding=1), norm(2 * w),
        nn.ReLU(), nn.ConvTranspose2d(2 * w, w, 3, 2, 1, output_padding=1), norm(w), nn.ReLU(), nn.ReflectionPad2d(3), nn.Conv2d(w, 3, 7), nn.Tanh()))


@pytest.mark.parametrize("theirs, ours", [(authors_unet, lambda: UNet(5, 4, dropout=())), (authors_resnet, lambda: ResNet(1, 4))])
def test_authors_files_are_read_in_order(theirs, ours):
    """Networks with the authors' key names and random weights give the same pictures through ours."""
    torch.manual_seed(0)
    theirs, ours, x = theirs(), ours(), torch.randn(2, 3, 32, 32)
    common.load_weights(ours, paper.by_order(ours, theirs.state_dict()), "x")
    assert (ours(x) - theirs.train()(x)).abs().max() < 1e-5


@pytest.mark.skipif("PARITY_DATA" not in os.environ, reason="the authors' networks as numbers lie outside the repository; PARITY_DATA names the folder")
def test_outputs_equal_the_authors_networks():
    saved = torch.load(Path(os.environ["PARITY_DATA"]) / "official_networks_tiny.pt", weights_only=True)
    nets = {"pix2pix_G_unet64": UNet(6, 10, dropout=()), "cyclegan_G_resnet6": ResNet(6, 10),
            "pix2pix_D_patch70": discriminator(70, 6, 10), "cyclegan_D_patch70": discriminator(70, 3, 10, "instance")}
    for name, net in nets.items():
        common.load_weights(net, paper.by_order(net, saved[name]["state_dict"]), name)
        inputs, outputs = saved[name]["inputs"], saved[name]["outputs"]
        out = net(*(inputs if isinstance(inputs, (list, tuple)) else [inputs]))
        assert (out - (outputs[0] if isinstance(outputs, (list, tuple)) else outputs)).abs().max() < 1e-5, name


# -------------------------------------------------------------------------------------------------------- pool

def test_pool_returns_what_it_was_fed_until_it_is_full():
    pool = ImagePool(5, 2)
    for k in range(5):
        assert torch.equal(pool(flat(float(k))[..., :2, :2]), flat(float(k))[..., :2, :2])
    assert sorted(pool.images[:, 0, 0, 0].tolist()) == [0, 1, 2, 3, 4]


def test_pool_returns_an_older_picture_half_of_the_time_and_keeps_the_new_one():
    torch.manual_seed(0)
    pool, old = ImagePool(50, 1), 0
    for k in range(50):
        pool(torch.full((1, 3, 1, 1), float(k)))
    for k in range(50, 1050):
        held = set(pool.images[:, 0, 0, 0].tolist())
        value = pool(torch.full((1, 3, 1, 1), float(k)))[0, 0, 0, 0].item()
        if value != k:
            old += 1
            assert value in held and k in pool.images[:, 0, 0, 0] and value not in pool.images[:, 0, 0, 0]
        else:
            assert set(pool.images[:, 0, 0, 0].tolist()) == held
    assert 430 < old < 570


def test_pool_with_batches_and_without_places():
    pool = ImagePool(3, 2)
    x = torch.rand(4, 3, 2, 2)
    assert torch.equal(pool(x[:2]), x[:2]) and pool(x).shape == x.shape and int(pool.count) == 3
    assert torch.equal(ImagePool(0, 2)(x), x)


def test_pool_survives_a_resume(tiny_c, tmp_path):
    saved = []
    for name, stop in (("a", 0), ("b", 2)):
        cfg = dataclasses.replace(tiny_c, run=str(tmp_path / name), steps=8)
        if stop:
            paper.train(dataclasses.replace(cfg, stop_after=3))
        paper.train(cfg)
        saved.append(common.load_checkpoint(tmp_path / name / "last.pt")["nets"])
    assert saved[0]["pool_Y"]["count"] == 3 and saved[0]["pool_Y"]["images"].abs().sum() > 0
    assert all(torch.equal(saved[0][net][k], saved[1][net][k]) for net in saved[0] for k in saved[0][net])


# -------------------------------------------------------------------------------------------------------- data

def numbered(side, n=3):
    """Pictures whose pixels tell where they are: channel 0 the row, 1 the column, 2 which picture."""
    axis = torch.arange(side, dtype=torch.uint8)
    place = torch.stack([axis[:, None].expand(side, side), axis.expand(side, side), torch.zeros(side, side, dtype=torch.uint8)])
    return place + torch.tensor([0, 0, 1], dtype=torch.uint8)[:, None, None] * torch.arange(n, dtype=torch.uint8)[:, None, None, None]


def test_pairs_get_the_same_crop_and_mirroring(tiny_p):
    bank = numbered(18)
    x, y = paper.Pictures(tiny_p, bank, bank, True).sample(64)
    assert torch.equal(x, y)
    pixels = ((x + 1) * 127.5).round()
    first, last = pixels[:, 1, 0, 0], pixels[:, 1, 0, -1]
    assert ((first - last).abs() == 15).all() and (first > last).any() and (first < last).any()          # whole, some mirrored
    assert set(pixels[:, 0, 0, 0].tolist()) == {0, 1, 2} and set(torch.minimum(first, last).tolist()) == {0, 1, 2}      # every corner
    assert set(pixels[:, 2, 0, 0].tolist()) == {0, 1, 2}


def test_unpaired_pictures_are_drawn_alone(tiny_c):
    x, y = paper.Pictures(tiny_c, numbered(18, 3), numbered(18, 5), False).sample(64)
    assert any((x[k] != y[k]).any() for k in range(64)) and len(set(((y[:, 2, 0, 0] + 1) * 127.5).round().tolist())) == 5
    assert len(paper.Pictures(tiny_c, numbered(18, 3), numbered(18, 5), False)) == 5


@pytest.mark.parametrize("toy", ["regions", "landmarks", "sketch", "glasses"])
def test_toy_tasks_pair_what_belongs_together(tiny_p, toy):
    data = paper.make_data(dataclasses.replace(tiny_p, toy=toy), test=True)
    faces, S = data.faces, 16
    X, Y = (paint(faces, S) for paint in paper.TASKS[toy])
    assert torch.equal(data.X, common.to_uint8(X)) and torch.equal(data.Y, common.to_uint8(Y)) and len(data.X) == 12
    back = paper.make_data(dataclasses.replace(tiny_p, toy=toy, direction="BtoA"), test=True)
    assert torch.equal(back.X, data.Y) and torch.equal(back.Y, data.X)


def test_unpaired_toy_sets_show_other_people(tiny_c, tmp_path):
    cfg = dataclasses.replace(tiny_c, toy="glasses", people=20)
    data = paper.make_data(cfg)
    together = paper.make_data(dataclasses.replace(cfg, model="pix2pix", people=40))
    assert torch.equal(data.X, together.X[:20]) and torch.equal(data.Y, together.Y[20:]) and data.faces is None and not data.paired
    test = paper.make_data(cfg, test=True)
    assert test.paired and test.X.shape[-1] == 16 and data.X.shape[-1] == 18


def pairs(root, n=12, size=(40, 25), parts=("train", "test")):
    """Side-by-side pairs, halves not square: A red, B blue, brighter with the number."""
    for part in parts:
        (root / part).mkdir(parents=True)
        for k in range(n):
            image = np.zeros((size[1], size[0], 3), np.uint8)
            image[:, :size[0] // 2, 0], image[:, size[0] // 2:, 2] = 100 + k, 100 + k
            Image.fromarray(image).save(root / part / f"图 {k}.png")
    return root


def folders(root, counts=(6, 4), parts=("train", "test")):
    for part in parts:
        for d, n in zip("AB", counts, strict=True):
            (root / f"{part}{d}").mkdir(parents=True)
            for k in range(n):
                Image.new("L" if d == "B" else "RGB", (20, 25), 40 + k).save(root / f"{part}{d}" / f"{k}.png")
    return root


def test_pairs_as_distributed(tiny_p, tmp_path):
    cfg = dataclasses.replace(tiny_p, data=str(pairs(tmp_path / "d")))
    data = paper.make_data(cfg)
    assert data.paired and data.X.shape == (12, 3, 18, 18) and paper.make_data(cfg, test=True).X.shape == (12, 3, 16, 16)
    assert (data.X[:, 0] >= 100).all() and (data.X[:, 2] == 0).all() and (data.Y[:, 2] >= 100).all() and (data.Y[:, 0] == 0).all()
    assert torch.equal(data.X[:, 0], data.Y[:, 2])                      # the same number
    back = paper.make_data(dataclasses.replace(cfg, direction="BtoA"))
    assert torch.equal(back.X, data.Y)
    assert not paper.make_data(dataclasses.replace(cfg, model="cyclegan")).paired       # who belongs to whom is ignored


def test_validation_or_every_tenth_is_held_out(tiny_p, tmp_path):
    found = paper.scan(dataclasses.replace(tiny_p, data=str(pairs(tmp_path / "v", parts=("train", "val")))))
    assert len(found["train"][0]) == 12 == len(found["test"][0])
    found = paper.scan(dataclasses.replace(tiny_p, data=str(pairs(tmp_path / "t", parts=("train",)))))
    assert len(found["train"][0]) == 11 and len(found["test"][0]) == 1 and not set(found["train"][0]) & set(found["test"][0])


def test_unpaired_folders_as_distributed(tiny_c, tmp_path):
    data = paper.make_data(dataclasses.replace(tiny_c, data=str(folders(tmp_path / "d"))))
    assert len(data.X) == 6 and len(data.Y) == 4 and not data.paired and (data.Y[0, 0] == data.Y[0, 2]).all()


@pytest.mark.parametrize("spoil, message", [
    (lambda root: [p.rename(root / p.name) for p in (root / "train").iterdir()], "expected train/ .* with side-by-side pairs"),
    (lambda root: (root / "train" / "图 1.png").write_bytes(b"no picture"), "图 1.png: not a readable picture"),
    (lambda root: (root / "train" / "图 2.png").write_bytes((root / "train" / "图 2.png").read_bytes()[:60]), "图 2.png"),
])
def test_spoilt_pairs_give_one_error_before_anything_is_written(tiny_p, tmp_path, spoil, message):
    root = pairs(tmp_path / "d")
    spoil(root)
    with pytest.raises(UserError, match=message):
        paper.train(dataclasses.replace(tiny_p, data=str(root)))
    assert not Path(tiny_p.run).exists()


def test_pix2pix_refuses_sets_without_pairs(tiny_p, tmp_path):
    with pytest.raises(UserError, match="hold no pairs.*--model cyclegan"):
        paper.make_data(dataclasses.replace(tiny_p, data=str(folders(tmp_path / "d"))))


def test_skip_bad_goes_on(tiny_c, tmp_path):
    root = folders(tmp_path / "d")
    (root / "trainA" / "2.png").write_bytes(b"")
    data = paper.make_data(dataclasses.replace(tiny_c, data=str(root), skip_bad=True))
    assert len(data.X) == 5


def test_real_data_trains_and_is_evaluated(tiny, tmp_path):
    root = pairs(tmp_path / "d") if tiny.model == "pix2pix" else folders(tmp_path / "d")
    cfg = dataclasses.replace(tiny, data=str(root))
    paper.train(cfg)
    rows = paper.evaluate(dataclasses.replace(cfg, data=""))["rows"]    # remembers its data
    assert set(rows) == ({"G", "G: the truth"} if tiny.model == "pix2pix" else {"G", "F"})
    assert ("L1" in rows["G"]) == (tiny.model == "pix2pix") and "IoU" not in rows["G"]


# ---------------------------------------------------------------------------------------------------- training

def test_n_plus_n_steps_are_2n_steps(tiny, tmp_path):
    whole = paper.train(dataclasses.replace(tiny, run=str(tmp_path / "a")))
    cfg = dataclasses.replace(tiny, run=str(tmp_path / "b"))
    paper.train(dataclasses.replace(cfg, stop_after=2))
    again = paper.train(cfg)
    for a, b in zip(whole, again, strict=True):
        assert all(torch.equal(v, w) for v, w in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


def test_steps_follow_from_epochs(tiny):
    paper.train(cfg := dataclasses.replace(tiny, steps=0, epochs=2))
    assert cfg.steps == 2 * 3 and common.load_checkpoint(Path(cfg.run) / "last.pt")["step"] == 6          # six pictures, two a step
    paper.train(dataclasses.replace(tiny, steps=0, epochs=2))            # done: nothing to do


def test_learning_rate_ends_at_zero(tiny):
    paper.train(dataclasses.replace(tiny, steps=6))
    for name, state in common.load_checkpoint(Path(tiny.run) / "last.pt")["opts"].items():
        assert state["param_groups"][0]["lr"] == 0, name


def test_training_and_measuring_on_cpu_and_cuda(tiny, device):
    cfg = dataclasses.replace(tiny, device=device, lambda_idt=5., steps=2)
    paper.train(cfg)
    assert tiny.model == "pix2pix" or common.read_jsonl(Path(cfg.run) / "metrics.jsonl")[-1]["L_idt"] > 0
    assert paper.evaluate(dataclasses.replace(cfg))["rows"]["G: the truth"]["L1"] == 0
    with Image.open(Path(cfg.run) / "samples" / "0000002.png") as sheet:
        assert sheet.width > 4 * 16


def test_looking_does_not_change_the_training(tiny, tmp_path):
    nets = [paper.train(dataclasses.replace(tiny, run=str(tmp_path / str(every)), log_every=every, sample_every=every, save_every=every)) for every in (1, 4)]
    assert all(torch.equal(v, w) for a, b in zip(*nets, strict=True) for v, w in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


def test_epochs_can_be_added(tiny):
    paper.train(dataclasses.replace(tiny, steps=0, epochs=1))
    paper.train(cfg := dataclasses.replace(tiny, steps=0, epochs=2))
    assert common.load_checkpoint(Path(cfg.run) / "last.pt")["step"] == 6


def test_L1_is_learned(tiny_p):
    cfg = dataclasses.replace(tiny_p, toy="landmarks", loss="L1", width=8, steps=120, lr=2e-3, log_every=10, sample_every=60, save_every=60)
    paper.train(cfg)
    lines = common.read_jsonl(Path(cfg.run) / "metrics.jsonl")
    assert np.mean([line["L_L1"] for line in lines[-4:]]) < .85 * lines[0]["L_L1"]


def test_health_words(tiny_c):
    data = paper.make_data(tiny_c, test=True)
    ignorant = lambda x: torch.full((len(x), 1, 2, 2), .5)              # noqa: E731
    sure = lambda x: torch.ones(len(x), 1, 1, 1) * (x.mean((1, 2, 3), keepdim=True) > -.5)       # noqa: E731

    fixed = torch.rand(1, 3, 16, 16)

    def word(net, D=ignorant):
        return paper.report(tiny_c, [net], [D], data)["health"]
    assert word(lambda x: x) == "copying" and word(lambda x: fixed.expand_as(x)) == "collapsed"
    assert word(lambda x: -.2 * x - .9, sure) == "D-won" and word(lambda x: -x) == "ok"
    p2p = dataclasses.replace(tiny_c, model="pix2pix")                    # D of the pair, and logits
    judge = lambda x, y: 20 * (y.mean((1, 2, 3), keepdim=True) + .5)      # noqa: E731
    assert paper.report(p2p, [lambda x: -.2 * x - .9], [judge], data)["health"] == "D-won"
    assert paper.report(p2p, [lambda x: -x], [lambda x, y: judge(x, y) * 0], data)["health"] == "ok"


# -------------------------------------------------------------------------------------------------- evaluation

def test_region_scores_by_hand():
    truth = torch.tensor([[[0, 0, 1, 1], [0, 0, 1, 2]]])
    shown = torch.tensor([[[0, 0, 1, 0], [0, 0, 1, 1]]])
    scores = paper.region_scores(shown, truth)
    assert scores["pixel"] == pytest.approx(6 / 8) and scores["class"] == pytest.approx((1 + 2 / 3 + 0) / 3)
    assert scores["IoU"] == pytest.approx((4 / 5 + 2 / 4 + 0) / 3)
    assert paper.region_scores(truth, truth) == {"pixel": 1, "class": 1, "IoU": 1}


def test_histograms_and_sharpness():
    x = torch.rand(2, 3, 8, 8) * 2 - 1
    h = paper.histograms(x)
    assert h.shape == (3, 50) and torch.allclose(h.sum(1), torch.ones(3)) and torch.minimum(h, paper.histograms(-x)).sum(1).max() < 1
    assert paper.sharpness(x) > 2 * paper.sharpness(nn.functional.avg_pool2d(x, 3, 1)) and paper.sharpness(flat(.3)) == 0


def test_region_maps_are_read_by_colour(tiny_p):
    faces = toyfaces.sample(4, 5)
    noisy = toyfaces.region_map(faces, 32) + .05 * torch.randn(4, 3, 32, 32)
    cfg = dataclasses.replace(tiny_p, image_size=32)
    assert paper.read_regions(cfg, toyfaces.region_map, faces, noisy)["pixel"] > .99


def test_measure_of_known_translators(tiny_c):
    cfg = dataclasses.replace(tiny_c, toy="glasses")
    data = paper.make_data(cfg, test=True)
    rows = paper.measure(cfg, [lambda x: x, lambda x: -x], data)
    assert rows["G"]["L1"] == rows["G: copy the input"]["L1"] > 0 == rows["G: the truth"]["L1"] and rows["G: the truth"]["SSIM"] == pytest.approx(1)
    X = common.draw(data.X, torch.arange(12), "cpu")
    assert rows["G"]["back"] == pytest.approx(X.abs().mean().item(), rel=1e-4) and rows["F"]["hist L"] < rows["F: the truth"]["hist L"] == pytest.approx(1)
    assert {"pixel", "class", "IoU", "sharpness"} <= rows["G"].keys()


def test_infer_on_files_and_folders(tiny, tmp_path, capsys):
    paper.train(tiny)
    folder = tmp_path / "in"
    folder.mkdir()
    Image.new("LA", (41, 23), (80, 128)).save(folder / "a b.png")
    Image.new("RGB", (100, 60), "red").save(folder / "大.jpg")
    args = dict(backward=False, half=None, squeeze=False, out=str(tmp_path / "out"))
    paper.infer(dataclasses.replace(tiny), [str(folder)], **args)
    sizes = {p.name: Image.open(p).size for p in (tmp_path / "out").iterdir()}
    assert sizes["a b.png"] == (41, 23) and sizes["大.png"] == (100, 60) and {"a b_sheet.png", "大_sheet.png"} < set(sizes)
    paper.infer(dataclasses.replace(tiny), [str(folder / "大.jpg")], **args | {"squeeze": True, "half": "B"})
    assert Image.open(tmp_path / "out" / "大.png").size == (16, 16)
    if tiny.model == "cyclegan":
        paper.infer(dataclasses.replace(tiny), [str(folder / "大.jpg")], **args | {"backward": True})
    else:
        with pytest.raises(UserError, match="one generator"):
            paper.infer(dataclasses.replace(tiny), [str(folder)], **args | {"backward": True})
    with pytest.raises(UserError, match="no pictures in this folder"):
        (tmp_path / "empty").mkdir()
        paper.infer(dataclasses.replace(tiny), [str(tmp_path / "empty")], **args)


def test_infer_and_train_with_the_authors_weights(tiny, tmp_path):
    Image.new("RGB", (128, 64), "red").save(tmp_path / "x.png")
    make = authors_unet if tiny.model == "pix2pix" else authors_resnet
    theirs = {name: make().state_dict() for name in (["G"] if tiny.model == "pix2pix" else ["G_A", "G_B"])}
    for name, state in theirs.items():
        torch.save(state, tmp_path / f"latest_net_{name}.pth")
    first = tmp_path / f"latest_net_{list(theirs)[0]}.pth"
    cfg = dataclasses.replace(tiny, weights=str(first), model="pix2pix")
    got = paper.trained(cfg)
    assert cfg.model == tiny.model and cfg.width == 4 and len(got) == len(theirs)
    for net, state in zip(got, theirs.values(), strict=True):
        weights = [v for k, v in state.items() if "running" not in k and "num_batches" not in k]
        assert all(torch.equal(v, w) for v, w in zip(net.state_dict().values(), weights, strict=True))
    if tiny.model == "pix2pix":
        assert [any(isinstance(m, paper.Noise) for m in up) for up in got[0].up] == [False, True, True, True, False]
    paper.infer(dataclasses.replace(tiny, weights=str(first)), [str(tmp_path / "x.png")], backward=False, half="A", squeeze=False, out=str(tmp_path / "o"))
    assert Image.open(tmp_path / "o" / "x.png").size == (64, 64)
    side = 32 if tiny.model == "pix2pix" else 16
    paper.train(dataclasses.replace(tiny, weights=str(first), image_size=side, load_size=36, steps=1))
    for name in ("G_B", "D", "D_A"):
        torch.save(list(theirs.values())[-1], tmp_path / f"other_net_{name}.pth")
        with pytest.raises(UserError, match="give the file of G"):
            paper.trained(dataclasses.replace(tiny, weights=str(tmp_path / f"other_net_{name}.pth")))
    torch.save({"something": torch.zeros(2)}, tmp_path / "wrong.pth")
    with pytest.raises(UserError, match="does not fit this network"):
        paper.trained(dataclasses.replace(tiny, weights=str(tmp_path / "wrong.pth")))


def test_a_published_G_without_F(tiny_c, tmp_path):
    torch.save(authors_resnet().state_dict(), tmp_path / "latest_net_G.pth")
    cfg = dataclasses.replace(tiny_c, weights=str(tmp_path / "latest_net_G.pth"), toy="glasses")
    assert len(paper.trained(dataclasses.replace(cfg))) == 1 and set(paper.evaluate(cfg)["rows"]) == {"G", "G: the truth"}


def test_authors_discriminators_beside_G_are_loaded(tiny_p, tmp_path):
    cfg = dataclasses.replace(tiny_p, image_size=32, load_size=36, patch=16)
    torch.save(authors_unet().state_dict(), tmp_path / "latest_net_G.pth")
    D = nn.Sequential(nn.Conv2d(6, 4, 4, 2, 1), nn.LeakyReLU(.2), nn.Conv2d(4, 8, 4, 1, 1, bias=False), nn.BatchNorm2d(8), nn.LeakyReLU(.2),
                      nn.Conv2d(8, 1, 4, 1, 1))
    torch.save(Whole(D).state_dict(), tmp_path / "latest_net_D.pth")
    nets, x = paper.build_pix2pix(cfg), torch.randn(2, 6, 32, 32)
    assert paper.load_networks(tmp_path / "latest_net_G.pth", common.load_checkpoint(tmp_path / "latest_net_G.pth"), ("G", "D"), nets) == ["G", "D"]
    assert torch.allclose(nets[1](x), D(x), atol=1e-5)                  # x first, then y


def test_ablate_runs_every_part_and_judges(tiny_p, monkeypatch, capsys):
    in_turn(monkeypatch)
    monkeypatch.setattr(paper, "SEEDS", (0, 1))
    monkeypatch.setattr(common.Run, "plot", lambda self: None)
    full = paper.tables(tiny_p)
    assert [len(rows) for rows in full.values()] == [5, 4, 2, 6]                             # at 16 px: patches of 1 and 16
    full["patch"]["patch 34"] = dict(model="pix2pix", loss="L1+cGAN", patch=34)
    few = {part: {k: v for k, v in rows.items() if k not in ("L1+GAN", "U-Net, L1", "encoder-decoder, L1")} for part, rows in full.items()}
    monkeypatch.setattr(paper, "tables", lambda cfg: few)
    cfg = dataclasses.replace(tiny_p, image_size=32, load_size=0, patch=16, steps=1, log_every=9, save_every=9, sample_every=9)
    paper.ablate(cfg)
    result = common.json.loads((Path(cfg.run) / "ablation.json").read_text())
    assert len(result["claims"]) == 5 and len(result["criteria"]) == 11 and result["verdict"] in ("reproduced", "partly reproduced", "not reproduced")
    assert {"losses: L1+cGAN, mean", "generator: encoder-decoder, L1+cGAN, std", "patch: patch 1, mean", "cycle: GAN+forward, mean"} <= result["rows"].keys()
    assert Image.open(Path(cfg.run) / "ablation_losses_samples.png").width > 6 * 128 and (Path(cfg.run) / "ablation_cycle_samples.png").exists()
    assert result["rows"]["losses: L1+cGAN, mean"]["paper IoU"] == .17 and "paper class" not in result["rows"]["generator: U-Net, L1+cGAN, mean"]
    assert not any(k.startswith("paper") for k in result["rows"]["cycle: GAN, mean"])
    paper.ablate(dataclasses.replace(cfg, part="patch"))                 # all done: only measured again
    again = common.json.loads((Path(cfg.run) / "ablation_patch.json").read_text())
    assert len(again["claims"]) == 1 and (Path(cfg.run) / "ablation_patch.png").exists()
    with pytest.raises(UserError, match="was trained for 1 steps, now 3"):
        paper.ablate(dataclasses.replace(cfg, part="patch", steps=3))
    for change in (dict(toy="sketch"), dict(direction="BtoA")):
        with pytest.raises(UserError, match="ends in a face"):
            paper.ablate(dataclasses.replace(cfg, part="losses", steps=1, fresh=True, **change))


def test_an_ablation_without_steps_continues(tiny_p, monkeypatch):
    in_turn(monkeypatch)
    rows = {f"{name}, L1+cGAN": dict(loss="L1+cGAN", skips=name == "U-Net") for name in ("encoder-decoder", "U-Net")}
    monkeypatch.setattr(paper, "tables", lambda cfg: {"generator": rows})
    monkeypatch.setattr(paper, "SEEDS", (0, 1))
    cfg = dataclasses.replace(tiny_p, steps=0, epochs=1, part="generator", log_every=9, sample_every=9)
    for _ in "ab":
        paper.ablate(cfg)
    result = common.json.loads((Path(cfg.run) / "ablation_generator.json").read_text())
    assert result["steps"] == 3 and result["rows"]["generator: the true pictures, mean"]["paper IoU"] == .21


def test_the_patch_of_the_table_lies_between_its_rows(tiny_p):
    for patch in (1, 70, 142):
        with pytest.raises(UserError, match=f"--patch {patch}: .* expected one of 16, 34"):
            paper.ablate(dataclasses.replace(tiny_p, image_size=64, load_size=0, patch=patch, part="patch"))
    assert [paper.same_share(p, 64) for p in (1, 16, 34, 70)] == [1, 70, None, 286] and paper.same_share(70, 256) == 70


@pytest.mark.parametrize("change, message", [
    (dict(image_size=24, load_size=24), "power of 2"), (dict(loss="GAN+cycle"), "for pix2pix one of"), (dict(load_size=8), "--load-size 8"),
    (dict(patch=70), "--patch 70: expected for 16 px one of 1, 16"), (dict(model="cyclegan", image_size=18, load_size=20), "multiple of 4"),
    (dict(width=0), "--width 0"),
    (dict(model="cyclegan", pool_size=1), "--pool-size 1: expected 0, or at least")])
def test_settings_that_do_not_fit_are_refused(tiny_p, change, message):
    with pytest.raises(UserError, match=message):
        paper.train(dataclasses.replace(tiny_p, **change))
    assert not Path(tiny_p.run).exists()
