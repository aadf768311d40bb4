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
from common import ImagePool, ResNet
from conftest import blind_judges, in_turn
from lab import UserError, authors, cli, demos, toyfaces, toysets
from lab.claims import pix2pix_cyclegan as claims
from lab.files import load_checkpoint, load_weights, read_json, read_jsonl
from lab.images import draw, to_uint8
from lab.run import Run, frozen
from makers import a_and_b, side_by_side
from pix2pix_cyclegan import Config, UNet, discriminator

TINY = dict(paper.SMALL, image_size=16, load_size=18, width=4, d_width=4, residual_blocks=1, patch=1,
            nearest=False, people=6, copy_steps=0, steps=4, pool_size=3, batch_size=2, log_every=1,
            save_every=2, sample_every=2, device="cpu", amp=False)


def quick(monkeypatch):
    """Few people to test on, judges that know nothing."""
    blind_judges(monkeypatch)
    monkeypatch.setattr(paper, "TEST_PEOPLE", 12)


def small(model, tmp_path, cache, monkeypatch):
    """A configuration that trains in a second, and draws no losses.png."""
    quick(monkeypatch)
    monkeypatch.setattr(Run, "plot", lambda self: None)
    return Config(**TINY, model=model, cache=cache, run=str(tmp_path / "run"))


@pytest.fixture(params=["pix2pix", "cyclegan"])
def tiny(request, tmp_path, cache, monkeypatch):
    return small(request.param, tmp_path, cache, monkeypatch)


@pytest.fixture
def tiny_p(tmp_path, cache, monkeypatch):
    return small("pix2pix", tmp_path, cache, monkeypatch)


@pytest.fixture
def tiny_c(tmp_path, cache, monkeypatch):
    return small("cyclegan", tmp_path, cache, monkeypatch)


@pytest.fixture(scope="module")
def trained(tmp_path_factory, cache):
    """{model: folder of a finished training}, made once."""
    folders = {}
    with pytest.MonkeyPatch.context() as monkeypatch:
        for model in ("pix2pix", "cyclegan"):
            cfg = small(model, tmp_path_factory.mktemp(model), cache, monkeypatch)
            paper.train(cfg)
            folders[model] = cfg.run
    return folders


def softplus(v):
    return np.log1p(np.exp(v))


def flat(*values):
    """One picture a value, of that value everywhere."""
    return torch.tensor(values)[:, None, None, None].expand(-1, 3, 4, 4)


# ----------------------------------------------------------------------------------------------------- losses

def test_loss_cgan_D_is_half_the_cross_entropy():
    real, fake = torch.tensor([2.5, -.5]), torch.tensor([2., -.7])
    expected = np.mean([softplus(-2.5), softplus(.5)]) / 2 + np.mean([softplus(2.), softplus(-.7)]) / 2
    assert paper.loss_cgan_D(real, fake).item() == pytest.approx(expected, rel=1e-5)


def test_loss_cgan_G_rewards_what_D_takes_for_real():
    score = torch.full((2, 1, 3, 3), 2.3, requires_grad=True)
    loss = paper.loss_cgan_G(score)
    loss.backward()
    assert loss.item() == pytest.approx(softplus(-2.3), rel=1e-5) and (score.grad < 0).all()


def test_loss_cgan_G_does_not_saturate():
    """Where D is sure that a picture is generated, -log D has slope 1, log(1 - D) would have none."""
    score = torch.tensor([-20.], requires_grad=True)
    paper.loss_cgan_G(score).backward()
    assert score.grad.item() == pytest.approx(-1, rel=1e-4)


def test_seen_by_D_is_the_pair_or_y_alone(tiny_p):
    x, y = flat(.2), flat(.3)
    assert torch.equal(paper.seen_by_D(tiny_p, x, y), torch.cat([x, y], 1))        # x first, as in the codes
    assert torch.equal(paper.seen_by_D(dataclasses.replace(tiny_p, conditional=False), x, y), y)
    assert torch.equal(paper.seen_by_D(dataclasses.replace(tiny_p, model="cyclegan"), x, y), y)


def test_D_sees_x_only_when_the_loss_is_conditional(tiny_p):
    for conditional, channels in ((True, 6), (False, 3)):
        cfg = dataclasses.replace(tiny_p, conditional=conditional)
        assert paper.build(cfg)["D"].trunk[0].in_channels == channels


def test_loss_L1_and_loss_cyc_are_mean_absolute_differences():
    a, b = torch.rand(2, 3, 5, 5), torch.rand(2, 3, 5, 5)
    expected = np.abs(a.numpy() - b.numpy()).mean()
    assert paper.loss_L1(a, b).item() == pytest.approx(expected)
    assert paper.loss_cyc(a, b).item() == pytest.approx(expected)
    assert paper.loss_L1(a, a) == 0 == paper.loss_cyc(a, a)


def test_loss_lsgan_squares_each_patch_and_then_averages():
    fake = torch.tensor([[[[4., 0.], [0., 0.]]]])    # mean of squares 4, square of the mean 1
    assert paper.loss_lsgan_D(torch.ones_like(fake), fake).item() == pytest.approx(4 / 2)
    assert paper.loss_lsgan_G(fake).item() == pytest.approx((9 + 1 + 1 + 1) / 4)
    one, zero = torch.ones(2), torch.zeros(2)
    assert paper.loss_lsgan_D(one, zero).item() == 0 == paper.loss_lsgan_G(one).item()


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
    nets = G, F, D_X, D_Y = paper.build(tiny_c).values()
    x, y = torch.rand(2, 1, 3, 16, 16) * 2 - 1
    y_fake, x_fake = G(x), F(y)
    with frozen(D_X, D_Y):
        routes = {"GAN_G": paper.loss_lsgan_G(D_Y(y_fake)), "GAN_F": paper.loss_lsgan_G(D_X(x_fake)),
                  "cyc_x": paper.loss_cyc(x, F(y_fake)), "cyc_y": paper.loss_cyc(y, G(x_fake)),
                  "idt_G": paper.loss_idt(y, G(y)), "idt_F": paper.loss_idt(x, F(x))}
    routes |= {"D_Y": paper.loss_lsgan_D(D_Y(y), D_Y(y_fake.detach())),
               "D_X": paper.loss_lsgan_D(D_X(x), D_X(x_fake.detach()))}
    #                                                      G  F  D_X D_Y
    assert {k: reached(v, nets) for k, v in routes.items()} == {
        "GAN_G": [1, 0, 0, 0], "GAN_F": [0, 1, 0, 0], "cyc_x": [1, 1, 0, 0], "cyc_y": [1, 1, 0, 0],
        "idt_G": [1, 0, 0, 0], "idt_F": [0, 1, 0, 0], "D_Y": [0, 0, 0, 1], "D_X": [0, 0, 1, 0]}


def test_gradient_routes_of_pix2pix(tiny_p):
    nets = G, D = paper.build(tiny_p).values()
    x, y = torch.rand(2, 2, 3, 16, 16) * 2 - 1
    y_fake = G(x)
    with frozen(D):
        score = D(paper.seen_by_D(tiny_p, x, y_fake))
    routes = {"GAN": paper.loss_cgan_G(score), "L1": paper.loss_L1(y, y_fake)}
    real, fake = (D(paper.seen_by_D(tiny_p, x, picture)) for picture in (y, y_fake.detach()))
    routes["D"] = paper.loss_cgan_D(real, fake)
    assert {k: reached(v, nets) for k, v in routes.items()} == {"GAN": [1, 0], "L1": [1, 0], "D": [0, 1]}


# With which weights the losses reach the generators: P (4), C (3), (4), C5.2
ROWS = [("losses", "L1", dict(cgan_G=[0], L1=[100])), ("losses", "GAN", dict(cgan_G=[1], L1=[0])),
        ("losses", "cGAN", dict(cgan_G=[1], L1=[0])), ("losses", "L1+GAN", dict(cgan_G=[1], L1=[100])),
        ("losses", "L1+cGAN", dict(cgan_G=[1], L1=[100])),
        ("cycle", "cycle", dict(lsgan_G=[0, 0], cyc=[10, 10], idt=[0, 0])),
        ("cycle", "GAN", dict(lsgan_G=[1, 1], cyc=[0, 0], idt=[0, 0])),
        ("cycle", "GAN+forward", dict(lsgan_G=[1, 1], cyc=[10, 0], idt=[0, 0])),
        ("cycle", "GAN+backward", dict(lsgan_G=[1, 1], cyc=[0, 10], idt=[0, 0])),
        ("cycle", "GAN+cycle", dict(lsgan_G=[1, 1], cyc=[10, 10], idt=[0, 0])),
        ("cycle", "GAN+cycle+identity", dict(lsgan_G=[1, 1], cyc=[10, 10], idt=[5, 5]))]


@pytest.mark.parametrize("part, row, expected", ROWS)
def test_the_rows_of_the_tables_are_these_terms(part, row, expected, tiny_p, monkeypatch):
    """The slope of the objective in a loss is its weight."""
    cfg = dataclasses.replace(tiny_p, steps=1, model="cyclegan" if part == "cycle" else "pix2pix")
    _, change = claims.tables(cfg)[part][row]
    cfg, values = dataclasses.replace(cfg, **change), {}

    def watch(name):
        loss = getattr(paper, f"loss_{name}")

        def watched(*args):
            value = loss(*args)
            if value.requires_grad:                                    # not of an identity loss that is off
                value.retain_grad()
            values.setdefault(name, []).append(value)
            return value
        monkeypatch.setattr(paper, f"loss_{name}", watched)
    for name in ("cgan_G", "L1", "lsgan_G", "cyc", "idt"):
        watch(name)
    paper.train(cfg)
    slopes = {name: [0 if value.grad is None else value.grad.item() for value in calls]
              for name, calls in values.items()}
    assert slopes == expected
    assert part == "cycle" or cfg.conditional == (row not in ("GAN", "L1+GAN"))


def test_the_recipe_is_the_full_objective():
    full = Config(), Config(model="cyclegan")
    assert all((c.conditional, c.skips, c.lambda_gan, c.lambda_L1) == (True, True, 1, 100) for c in full)
    assert all((c.lambda_cyc_x, c.lambda_cyc_y, c.lambda_idt) == (10, 10, 0) for c in full)


# --------------------------------------------------------------------------------------------------- networks

def test_parameter_counts_of_the_authors_networks():
    count = common.n_parameters
    assert (count(UNet()), count(UNet(7))) == (54_413_955, 41_828_995)
    assert (count(ResNet()), count(ResNet(6))) == (11_378_179, 7_837_699)
    assert count(UNet(skips=False)) == 39_080_963 - 5_504    # Torch's, less biases that it keeps at 0
    assert {p: count(discriminator(p, 6)) for p in paper.LAYERS} == {
        1: 9_024, 16: 139_585, 34: 666_433, 70: 2_768_705, 142: 6_964_033, 286: 11_159_361}
    assert count(discriminator(70, 3, norm="instance")) == 2_764_737
    assert count(discriminator(70, 3)) == 2_765_633


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
    assert discriminator(16, 3, 4)(torch.zeros(1, 3, 256, 256)).shape == (1, 1, 126, 126)
    assert discriminator(1, 3, 4)(torch.zeros(1, 3, 32, 32)).shape == (1, 1, 32, 32)
    assert discriminator(286, 3, 4)(torch.zeros(1, 3, 256, 256)).shape[-1] == 6


def test_unet_reaches_one_pixel_and_skips_go_around_it():
    x = torch.randn(2, 3, 32, 32)
    for skips in (True, False):
        net = UNet(5, 4, skips, dropout=())
        assert net(x).shape == x.shape and net.down[-1](torch.zeros(1, 32, 2, 2)).shape[-1] == 1
        for layer in (net.up[0], net.down[-1]):
            for p in layer.parameters():
                nn.init.zeros_(p)                                      # nothing comes through the bottleneck
        a, b = net(x)
        assert torch.allclose(a, b, atol=1e-6) != skips


def test_the_innermost_layer_has_no_norm_and_one_picture_passes():
    """Batch norm of a single value is 0: with it, an encoder-decoder fed one picture at a time would paint
    always the same."""
    net = UNet(5, 4, skips=False, dropout=())
    assert not any(isinstance(m, nn.BatchNorm2d) for m in net.down[-1])
    a, b = (net(torch.randn(1, 3, 32, 32)) for _ in "ab")
    assert (a - b).abs().max() > 1e-3


def noisy_layers(net):
    return [k + 1 for k, up in enumerate(net.up) if any(isinstance(m, paper.Noise) for m in up)]


def test_noise_is_dropout_in_the_first_three_layers_of_the_decoder_and_stays_on():
    x = torch.randn(1, 3, 64, 64)
    net = UNet(6, 4).eval()
    assert noisy_layers(net) == [1, 2, 3] and len(net.up) == 6
    assert (net(x) - net(x)).abs().max() > 1e-4
    assert noisy_layers(UNet(6, 4, dropout=(2, 3, 4))) == [2, 3, 4]
    quiet = UNet(6, 4, dropout=(0,))                                   # --dropout 0
    assert torch.equal(quiet(x), quiet(x)) and not noisy_layers(quiet)
    quiet.load_state_dict(net.state_dict())                            # the noise has no weights


def test_train_and_eval_mode_agree():
    x = torch.randn(2, 3, 32, 32)
    for net in (UNet(5, 4, dropout=()), ResNet(1, 4)):
        assert torch.equal(net.train()(x), net.eval()(x))


@pytest.mark.parametrize("model", ["pix2pix", "cyclegan"])
def test_a_flat_picture_gives_finite_bounded_gradients(model):
    torch.manual_seed(0)
    G = common.init_normal(UNet(6, 8) if model == "pix2pix" else ResNet(2, 8))
    D = common.init_normal(discriminator(16, 3, 8))
    x = torch.cat([torch.zeros(1, 3, 64, 64), torch.rand(1, 3, 64, 64) * 2 - 1])
    for batch in (x, x[:1]):
        for net in (G, D):
            net.zero_grad()
        common.lsgan_G(D(G(batch))).backward()
        norm = torch.cat([p.grad.flatten() for p in G.parameters() if p.grad is not None]).norm()
        assert torch.isfinite(norm) and norm < 1e3


def test_any_size_goes_through(tiny):
    G = paper.build(tiny)["G"]
    x = torch.rand(1, 3, 37, 50)
    assert paper.translate(tiny, G, x).shape == x.shape
    plain = lambda x: x                                                # noqa: E731
    assert torch.equal(paper.translate(tiny, plain, x), x)


# ----------------------------------------------------------------------------------------- the authors' files

class Nested(nn.Module):
    """A U-Net built from the outside in, each level around the next. Its keys look like the authors':
    model.1.model.3.model ..."""

    def __init__(self, widths, outermost=True):
        super().__init__()
        (c_in, c), innermost = widths[:2], len(widths) == 2
        down = [nn.Conv2d(c_in, c, 4, 2, 1, bias=False)]
        if not outermost:
            down.insert(0, nn.LeakyReLU(.2))
        if not (outermost or innermost):
            down.append(nn.BatchNorm2d(c))
        up = [nn.ReLU(), nn.ConvTranspose2d(c if innermost else 2 * c, c_in, 4, 2, 1, bias=outermost)]
        up.append(nn.Tanh() if outermost else nn.BatchNorm2d(c_in))
        inside = [] if innermost else [Nested(widths[1:], False)]
        self.model, self.outermost = nn.Sequential(*down, *inside, *up), outermost

    def forward(self, x):
        return self.model(x) if self.outermost else torch.cat([x, self.model(x)], 1)


class Whole(nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, x):
        return self.model(x)


def authors_unet(depth=5, width=4):
    return Whole(Nested((3, *(width * min(2 ** k, 8) for k in range(depth)))))


class Residual(nn.Module):
    def __init__(self, c):
        super().__init__()
        pad = nn.ReflectionPad2d(1)
        self.conv_block = nn.Sequential(pad, nn.Conv2d(c, c, 3), nn.InstanceNorm2d(c), nn.ReLU(),
                                        pad, nn.Conv2d(c, c, 3), nn.InstanceNorm2d(c))

    def forward(self, x):
        return x + self.conv_block(x)


def authors_resnet(w=4):
    """With statistics in the norms, as in their older files."""
    def norm(c):
        return nn.InstanceNorm2d(c, track_running_stats=True)
    return Whole(nn.Sequential(
        nn.ReflectionPad2d(3), nn.Conv2d(3, w, 7), norm(w), nn.ReLU(),
        nn.Conv2d(w, 2 * w, 3, 2, 1), norm(2 * w), nn.ReLU(),
        nn.Conv2d(2 * w, 4 * w, 3, 2, 1), norm(4 * w), nn.ReLU(), Residual(4 * w),
        nn.ConvTranspose2d(4 * w, 2 * w, 3, 2, 1, output_padding=1), norm(2 * w), nn.ReLU(),
        nn.ConvTranspose2d(2 * w, w, 3, 2, 1, output_padding=1), norm(w), nn.ReLU(),
        nn.ReflectionPad2d(3), nn.Conv2d(w, 3, 7), nn.Tanh()))


@pytest.mark.parametrize("theirs, ours", [(authors_unet, lambda: UNet(5, 4, dropout=())),
                                          (authors_resnet, lambda: ResNet(1, 4))])
def test_authors_files_are_read_in_order(theirs, ours):
    """Networks with the authors' key names and random weights give the same pictures through ours."""
    torch.manual_seed(0)
    theirs, ours, x = theirs(), ours(), torch.randn(2, 3, 32, 32)
    load_weights(ours, authors.by_order(ours, theirs.state_dict()), "x")
    assert (ours(x) - theirs.train()(x)).abs().max() < 1e-5


@pytest.mark.skipif("PARITY_DATA" not in os.environ, reason="the authors' networks as numbers lie outside "
                    "the repository; PARITY_DATA names the folder")
def test_outputs_equal_the_authors_networks():
    saved = torch.load(Path(os.environ["PARITY_DATA"]) / "official_networks_tiny.pt", weights_only=True)
    nets = {"pix2pix_G_unet64": UNet(6, 10, dropout=()), "cyclegan_G_resnet6": ResNet(6, 10),
            "pix2pix_D_patch70": discriminator(70, 6, 10),
            "cyclegan_D_patch70": discriminator(70, 3, 10, "instance")}
    for name, net in nets.items():
        load_weights(net, authors.by_order(net, saved[name]["state_dict"]), name)
        inputs, outputs = saved[name]["inputs"], saved[name]["outputs"]
        out = net(*(inputs if isinstance(inputs, (list, tuple)) else [inputs]))
        expected = outputs[0] if isinstance(outputs, (list, tuple)) else outputs
        assert (out - expected).abs().max() < 1e-5, name


@pytest.mark.parametrize("depth, noisy", [(8, [2, 3, 4]), (7, [2, 3]), (6, [2]), (5, [])])
def test_the_authors_unets_have_dropout_in_depth_minus_5_layers(tiny_p, tmp_path, depth, noisy):
    """unet_256: the second to the fourth layer of the decoder; unet_128: the second and the third."""
    torch.save(authors_unet(depth, 1).state_dict(), tmp_path / "latest_net_G.pth")
    cfg = dataclasses.replace(tiny_p, weights=str(tmp_path / "latest_net_G.pth"))
    G, = paper.load(cfg)
    assert noisy_layers(G) == noisy and cfg.image_size == 2 ** depth and len(G.up) == depth


def test_infer_and_train_with_the_authors_weights(tiny, tmp_path):
    Image.new("RGB", (128, 64), "red").save(tmp_path / "x.png")
    make = authors_unet if tiny.model == "pix2pix" else authors_resnet
    theirs = {name: make().state_dict() for name in (["G"] if tiny.model == "pix2pix" else ["G_A", "G_B"])}
    for name, state in theirs.items():
        torch.save(state, tmp_path / f"latest_net_{name}.pth")
    first = tmp_path / f"latest_net_{list(theirs)[0]}.pth"
    cfg = dataclasses.replace(tiny, weights=str(first), model="pix2pix")
    got = paper.load(cfg)
    assert cfg.model == tiny.model and cfg.width == 4 and len(got) == len(theirs)
    for net, state in zip(got, theirs.values(), strict=True):
        weights = [v for k, v in state.items() if "running" not in k and "num_batches" not in k]
        assert all(torch.equal(v, w) for v, w in zip(net.state_dict().values(), weights, strict=True))
    paper.infer(dataclasses.replace(tiny, weights=str(first)), [str(tmp_path / "x.png")], backward=False,
                half="A", squeeze=False, out=str(tmp_path / "o"))
    assert Image.open(tmp_path / "o" / "x.png").size == (64, 64)
    side = 32 if tiny.model == "pix2pix" else 16
    paper.train(dataclasses.replace(tiny, weights=str(first), image_size=side, load_size=36, steps=1))
    for name in ("G_B", "D", "D_A"):
        torch.save(list(theirs.values())[-1], tmp_path / f"other_net_{name}.pth")
        with pytest.raises(UserError, match="give the file of G"):
            paper.load(dataclasses.replace(tiny, weights=str(tmp_path / f"other_net_{name}.pth")))
    torch.save({"something": torch.zeros(2)}, tmp_path / "wrong.pth")
    with pytest.raises(UserError, match="does not fit this network"):
        paper.load(dataclasses.replace(tiny, weights=str(tmp_path / "wrong.pth")))


def test_a_published_G_without_F(tiny_c, tmp_path, monkeypatch):
    monkeypatch.setattr(paper, "TEST_PEOPLE", 2)
    torch.save(authors_resnet().state_dict(), tmp_path / "latest_net_G.pth")
    cfg = dataclasses.replace(tiny_c, weights=str(tmp_path / "latest_net_G.pth"), toy="glasses")
    assert len(paper.load(dataclasses.replace(cfg))) == 1
    assert set(claims.evaluate(cfg)["rows"]) == {"G", "G: the truth"}


def test_authors_discriminators_beside_G_are_loaded(tiny_p, tmp_path):
    cfg = dataclasses.replace(tiny_p, image_size=32, load_size=36, patch=16)
    torch.save(authors_unet().state_dict(), tmp_path / "latest_net_G.pth")
    D = nn.Sequential(nn.Conv2d(6, 4, 4, 2, 1), nn.LeakyReLU(.2), nn.Conv2d(4, 8, 4, 1, 1, bias=False),
                      nn.BatchNorm2d(8), nn.LeakyReLU(.2), nn.Conv2d(8, 1, 4, 1, 1))
    torch.save(Whole(D).state_dict(), tmp_path / "latest_net_D.pth")
    nets, path = paper.build(cfg), tmp_path / "latest_net_G.pth"
    saved = paper.checkpoint(path)
    assert set(saved["nets"]) == {"G", "D"}
    paper.fill(nets, saved, path)
    x, y = torch.randn(2, 2, 3, 32, 32)
    pair = torch.cat([x, y], 1)                                        # x first
    assert torch.allclose(nets["D"](paper.seen_by_D(cfg, x, y)), D(pair), atol=1e-5)
    with pytest.raises(UserError, match="latest_net_G.pth, D: does not fit this network"):
        paper.fill(paper.build(dataclasses.replace(cfg, patch=1)), saved, path)


def test_only_the_authors_layers_may_have_other_names(tiny, trained, tmp_path):
    saved = load_checkpoint(Path(trained[tiny.model]) / "last.pt")
    saved["nets"]["G"] = {f"other.{name}": value for name, value in saved["nets"]["G"].items()}
    torch.save(saved, tmp_path / "last.pt")
    with pytest.raises(UserError, match="last.pt, G: does not fit this network"):
        paper.load(dataclasses.replace(tiny, weights=str(tmp_path / "last.pt")))


def test_authors_discriminators_of_cyclegan_judge_what_their_generator_makes(tiny_c, tmp_path):
    for k, name in enumerate(("G_A", "G_B", "D_A", "D_B")):
        state = {"model.0.weight": torch.full((4, 3, 1, 1), float(k))}
        torch.save(state, tmp_path / f"latest_net_{name}.pth")
    nets = paper.checkpoint(tmp_path / "latest_net_G_A.pth")["nets"]
    found = {name: int(state["model.0.weight"].mean()) for name, state in nets.items()}
    assert found == {"G": 0, "F": 1, "D_Y": 2, "D_X": 3}


# ------------------------------------------------------------------------------------------------------- pool

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


# ------------------------------------------------------------------------------------------------------- data

def numbered(side, n=3):
    """Pictures whose pixels tell where they are: channel 0 the row, 1 the column, 2 which picture."""
    axis = torch.arange(side, dtype=torch.uint8)
    pictures = torch.zeros(n, 3, side, side, dtype=torch.uint8)
    pictures[:, 0], pictures[:, 1] = axis[:, None], axis
    pictures[:, 2] = torch.arange(n, dtype=torch.uint8)[:, None, None]
    return pictures


def test_pairs_get_the_same_crop_and_mirroring(tiny_p):
    images = numbered(18)
    x, y = paper.Pictures(tiny_p, images, images, True).sample(64)
    assert torch.equal(x, y)
    pixels = ((x + 1) * 127.5).round()
    first, last = pixels[:, 1, 0, 0], pixels[:, 1, 0, -1]
    assert ((first - last).abs() == 15).all()                          # whole
    assert (first > last).any() and (first < last).any()               # some mirrored
    assert set(pixels[:, 0, 0, 0].tolist()) == {0, 1, 2}               # every corner
    assert set(torch.minimum(first, last).tolist()) == {0, 1, 2}
    assert set(pixels[:, 2, 0, 0].tolist()) == {0, 1, 2}


def test_unpaired_pictures_are_drawn_alone(tiny_c):
    data = paper.Pictures(tiny_c, numbered(18, 3), numbered(18, 5), False)
    x, y = data.sample(64)
    assert any((x[k] != y[k]).any() for k in range(64)) and len(data) == 5
    assert len(set(((y[:, 2, 0, 0] + 1) * 127.5).round().tolist())) == 5


@pytest.mark.parametrize("toy", ["regions", "landmarks", "sketch", "glasses"])
def test_toy_tasks_pair_what_belongs_together(tiny_p, toy):
    data = paper.make_data(dataclasses.replace(tiny_p, toy=toy), test=True)
    X, Y = (paint(data.faces, 16) for paint in toysets.TASKS[toy])
    assert torch.equal(data.X, to_uint8(X)) and torch.equal(data.Y, to_uint8(Y)) and len(data.X) == 12
    back = paper.make_data(dataclasses.replace(tiny_p, toy=toy, direction="BtoA"), test=True)
    assert torch.equal(back.X, data.Y) and torch.equal(back.Y, data.X)


def test_the_toy_task_of_each_model(tiny):
    assert toysets.painters(tiny) == {"pix2pix": (toyfaces.colour_map, toyfaces.render),
                                      "cyclegan": (toyfaces.render, toysets.pencil)}[tiny.model]


def test_unpaired_toy_sets_show_other_people(tiny_c):
    cfg = dataclasses.replace(tiny_c, toy="glasses", people=20)
    data = paper.make_data(cfg)
    together = paper.make_data(dataclasses.replace(cfg, model="pix2pix", people=40))
    assert torch.equal(data.X, together.X[:20]) and torch.equal(data.Y, together.Y[20:])
    assert data.faces is None and not data.paired
    test = paper.make_data(cfg, test=True)
    assert test.paired and test.X.shape[-1] == 16 and data.X.shape[-1] == 18


def test_pairs_as_distributed(tiny_p, tmp_path):
    cfg = dataclasses.replace(tiny_p, data=str(side_by_side(tmp_path / "d")))
    assert paper.scan(cfg)["bytes_per_image"] == 3 * 2 * 18 * 18       # of a pair
    data = paper.make_data(cfg)
    assert data.paired and data.X.shape == (12, 3, 18, 18)
    assert paper.make_data(cfg, test=True).X.shape == (12, 3, 16, 16)
    assert (data.X[:, 0] >= 100).all() and (data.X[:, 2] == 0).all()
    assert (data.Y[:, 2] >= 100).all() and (data.Y[:, 0] == 0).all()
    assert torch.equal(data.X[:, 0], data.Y[:, 2])                     # the same number
    back = paper.make_data(dataclasses.replace(cfg, direction="BtoA"))
    assert torch.equal(back.X, data.Y)
    assert not paper.make_data(dataclasses.replace(cfg, model="cyclegan")).paired      # pairs are ignored


def test_unpaired_folders_as_distributed(tiny_c, tmp_path):
    data = paper.make_data(dataclasses.replace(tiny_c, data=str(a_and_b(tmp_path / "d"))))
    assert len(data.X) == 6 and len(data.Y) == 4 and not data.paired and (data.Y[0, 0] == data.Y[0, 2]).all()


@pytest.mark.parametrize("spoil, message", [
    (lambda root: [p.rename(root / p.name) for p in (root / "train").iterdir()],
     "expected train/ .* with side-by-side pairs"),
    (lambda root: (root / "train/图 1.png").write_bytes(b"no picture"), "图 1.png: not a readable picture"),
    (lambda root: (root / "train/图 2.png").write_bytes((root / "test/图 2.png").read_bytes()[:60]), "图 2"),
])
def test_spoilt_pairs_give_one_error_before_anything_is_written(tiny_p, tmp_path, spoil, message):
    root = side_by_side(tmp_path / "d")
    spoil(root)
    with pytest.raises(UserError, match=message):
        paper.train(dataclasses.replace(tiny_p, data=str(root)))
    assert not Path(tiny_p.run).exists()


def test_skip_bad_goes_on(tiny_c, tmp_path):
    root = a_and_b(tmp_path / "d")
    (root / "trainA" / "2.png").write_bytes(b"")
    data = paper.make_data(dataclasses.replace(tiny_c, data=str(root), skip_bad=True))
    assert len(data.X) == 5


def test_real_data_trains_and_is_evaluated(tiny, tmp_path):
    root = side_by_side(tmp_path / "d") if tiny.model == "pix2pix" else a_and_b(tmp_path / "d")
    cfg = dataclasses.replace(tiny, data=str(root))
    paper.train(cfg)
    rows = claims.evaluate(dataclasses.replace(cfg, data=""))["rows"]  # remembers its data
    assert set(rows) == ({"G", "G: the truth"} if tiny.model == "pix2pix" else {"G", "F"})
    assert ("L1" in rows["G"]) == (tiny.model == "pix2pix") and "IoU" not in rows["G"]


# --------------------------------------------------------------------------------------------------- training

def test_n_plus_n_steps_are_2n_steps(tiny, tmp_path, trained):
    cfg = dataclasses.replace(tiny, run=str(tmp_path / "b"))
    paper.train(dataclasses.replace(cfg, stop_after=2))
    paper.train(cfg)
    whole, again = (load_checkpoint(Path(run) / "last.pt")["nets"] for run in (trained[tiny.model], cfg.run))
    assert all(torch.equal(whole[name][k], again[name][k]) for name in whole for k in whole[name])
    if tiny.model == "cyclegan":                                       # the pools, too
        assert whole["pool_Y"]["count"] == 3 and whole["pool_Y"]["images"].any()


def test_steps_follow_from_epochs_and_epochs_can_be_added(tiny):
    paper.train(cfg := dataclasses.replace(tiny, steps=0, epochs=1))   # six pictures, two a step
    assert cfg.steps == 3 and load_checkpoint(Path(cfg.run) / "last.pt")["step"] == 3
    for _ in "ab":                                                     # then it is done: nothing to do
        paper.train(cfg := dataclasses.replace(tiny, steps=0, epochs=2))
        assert cfg.steps == 2 * 3 and load_checkpoint(Path(cfg.run) / "last.pt")["step"] == 6


def test_learning_rate_falls_in_the_second_half(trained):
    """Step 4 of 4 is a third of the way above 0, which would be the next step's."""
    for run in trained.values():
        for name, state in load_checkpoint(Path(run) / "last.pt")["opts"].items():
            assert state["param_groups"][0]["lr"] == pytest.approx(paper.SMALL["lr"] / 3), name


def test_training_and_measuring_on_cpu_and_cuda(tiny, device):
    cfg = dataclasses.replace(tiny, device=device, lambda_idt=5., steps=2)
    paper.train(cfg)
    assert tiny.model == "pix2pix" or read_jsonl(Path(cfg.run) / "metrics.jsonl")[-1]["L_idt"] > 0
    assert claims.evaluate(dataclasses.replace(cfg))["rows"]["G: the truth"]["L1"] == 0
    with Image.open(Path(cfg.run) / "samples" / "0000002.png") as sheet:
        assert sheet.width > 4 * 16


def test_on_a_gpu_float32_is_the_default():
    assert Config.AMP_ON_CUDA is False


def test_looking_does_not_change_the_training(tiny, tmp_path, trained):
    every = 4
    G = paper.train(dataclasses.replace(tiny, log_every=every, sample_every=every, save_every=every))[0]
    often = load_checkpoint(Path(trained[tiny.model]) / "last.pt")["nets"]["G"]
    assert all(torch.equal(value, often[k]) for k, value in G.state_dict().items())


def test_L1_is_learned(tiny_p):
    cfg = dataclasses.replace(tiny_p, toy="landmarks", lambda_gan=0., width=8, steps=120, lr=2e-3,
                              log_every=10, sample_every=60, save_every=60)
    paper.train(cfg)
    lines = read_jsonl(Path(cfg.run) / "metrics.jsonl")
    assert np.mean([line["L_L1"] for line in lines[-4:]]) < .85 * lines[0]["L_L1"]


def test_copying_comes_first_and_is_C5_2_of_both_domains(tiny_c, monkeypatch):
    cfg, seen, loss = dataclasses.replace(tiny_c, steps=3, copy_steps=2), [], paper.loss_idt
    monkeypatch.setattr(paper, "loss_idt", lambda a, b: (seen.append(len(a)), loss(a, b))[1])
    paper.train(cfg)
    lines = read_jsonl(Path(cfg.run) / "metrics.jsonl")
    assert ["L_copy" in line for line in lines] == [True, True, False] and "L_GAN_G" in lines[2]
    assert seen == [8, 8, 8, 8, 2, 2]         # 4 of X and 4 of Y, through G and F; then C's own term
    monkeypatch.setattr(paper, "loss_idt", lambda a, b: (0 * b).sum() + 1)
    paper.train(dataclasses.replace(cfg, run=cfg.run + "-b", steps=1))
    assert read_jsonl(Path(cfg.run + "-b") / "metrics.jsonl")[0]["L_copy"] == 10 * (1 + 1)


def test_resuming_in_the_middle_of_copying_is_the_undisturbed_training(tiny_c):
    cfg = dataclasses.replace(tiny_c, steps=4, copy_steps=3, save_every=2)
    whole = paper.train(dataclasses.replace(cfg, run=cfg.run + "-whole"))
    paper.train(dataclasses.replace(cfg, stop_after=2))
    again = paper.train(cfg)
    assert all(torch.equal(a, b) for one, other in zip(whole, again, strict=True)
               for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True))


def test_a_unet_that_repeats_pixels_has_no_transposed_convolution_and_the_same_shapes():
    G = UNet(4, 4, nearest=True)
    assert not any(isinstance(m, nn.ConvTranspose2d) for m in G.modules())
    x = torch.rand(3, 3, 16, 32)
    assert G(x).shape == UNet(4, 4)(x).shape == x.shape


def test_noise_between_the_generators_is_in_the_way_back_alone(tiny_c, monkeypatch):
    seen = []
    monkeypatch.setattr(paper, "add_noise", lambda x, std: (seen.append((x, std)), x)[1])
    paper.train(dataclasses.replace(tiny_c, steps=1, noise=.1))
    assert [std for _, std in seen] == [.1, .1] and all(x.requires_grad for x, _ in seen)


def test_nearest_upsampling_repeats_pixels_and_is_told_by_the_checkpoint(tiny_c):
    G = ResNet(1, 4, nearest=True)
    assert not any(isinstance(m, nn.ConvTranspose2d) for m in G.modules())
    assert G(torch.rand(2, 3, 16, 20)).shape == (2, 3, 16, 20)
    up = next(m for m in G.modules() if isinstance(m, nn.Upsample))
    assert up(torch.tensor([[[[1., 2.]]]])).tolist() == [[[[1, 1, 2, 2], [1, 1, 2, 2]]]]
    paper.train(dataclasses.replace(tiny_c, steps=1, nearest=True))
    assert len(paper.load(dataclasses.replace(tiny_c, nearest=False))) == 2


def test_health_words(tiny_c):
    shown = paper.fixed_batch(paper.make_data(tiny_c, test=True))
    ignorant = lambda x: torch.full((len(x), 1, 2, 2), .5)             # noqa: E731
    sure = lambda x: torch.ones(len(x), 1, 1, 1) * (x.mean((1, 2, 3), keepdim=True) > -.5)       # noqa: E731
    fixed = torch.rand(1, 3, 16, 16)

    def word(net, D=ignorant, cfg=tiny_c):
        return paper.health(cfg, shown, net, D)["health"]
    assert word(lambda x: x) == "copying" and word(lambda x: fixed.expand_as(x)) == "collapsed"
    assert word(lambda x: -.2 * x - .9, sure) == "D-won" and word(lambda x: -x) == "ok"
    p2p = dataclasses.replace(tiny_c, model="pix2pix")                 # D of the pair, and logits
    judge = lambda pair: 20 * (pair[:, 3:].mean((1, 2, 3), keepdim=True) + .5)                   # noqa: E731
    assert word(lambda x: -.2 * x - .9, judge, p2p) == "D-won"
    assert word(lambda x: -x, lambda pair: judge(pair) * 0, p2p) == "ok"
    off = dataclasses.replace(p2p, lambda_gan=0.)                      # nobody listens to D
    assert word(lambda x: -.2 * x - .9, judge, off) == "ok"
    x, y, _ = shown                                                    # F's word counts where G is well
    values = paper.health(tiny_c, shown, lambda x: -x, ignorant, lambda y: y, ignorant)
    assert values["health"] == "copying" and values["change_F"] == 0 < values["change"]
    assert values["copy_F"].item() == pytest.approx((x - y).abs().mean().item() / 2)


@pytest.mark.parametrize("change, message", [
    (dict(image_size=24, load_size=24), "power of 2"), (dict(load_size=8), "--load-size 8"),
    (dict(patch=70), "--patch 70: expected for 16 px one of 1, 16"),
    (dict(model="cyclegan", image_size=18, load_size=20), "multiple of 4"),
    (dict(width=0), "--width 0"),
    (dict(model="cyclegan", pool_size=1), "--pool-size 1: expected 0, or at least")])
def test_settings_that_do_not_fit_are_refused(tiny_p, change, message):
    with pytest.raises(UserError, match=message):
        paper.train(dataclasses.replace(tiny_p, **change))
    assert not Path(tiny_p.run).exists()


@pytest.mark.parametrize("model", ["pix2pix", "cyclegan"])
@pytest.mark.parametrize("scale", ["paper", "small", "medium"])
def test_the_recipes_fit_together(model, scale):
    cfg = Config(**cli.recipe(paper, scale, model), model=model)
    paper.validate(cfg)
    assert cfg.pool_size >= cfg.batch_size
    if scale == "medium":                                              # of the generators, in half precision
        nets = paper.build(cfg)
        assert sum(2 * common.n_parameters(nets[name]) for name in "GF" if name in nets) < demos.MOST


# ------------------------------------------------------------------------------------------------- evaluation

def test_region_scores_by_hand():
    truth = torch.tensor([[[0, 0, 1, 1], [0, 0, 1, 2]]])
    shown = torch.tensor([[[0, 0, 1, 0], [0, 0, 1, 1]]])
    scores = claims.region_scores(shown, truth)
    assert scores["pixel"] == pytest.approx(6 / 8) and scores["class"] == pytest.approx((1 + 2 / 3 + 0) / 3)
    assert scores["IoU"] == pytest.approx((4 / 5 + 2 / 4 + 0) / 3)
    assert claims.region_scores(truth, truth) == {"pixel": 1, "class": 1, "IoU": 1}


def test_histograms_and_sharpness():
    x = torch.rand(2, 3, 8, 8) * 2 - 1
    h = claims.histograms(x)
    assert h.shape == (3, 50) and torch.allclose(h.sum(1), torch.ones(3))
    assert torch.minimum(h, claims.histograms(-x)).sum(1).max() < 1
    assert claims.sharpness(x) > 2 * claims.sharpness(nn.functional.avg_pool2d(x, 3, 1))
    assert claims.sharpness(flat(.3)) == 0


def test_region_maps_are_read_by_colour(tiny_p):
    faces = toyfaces.sample(4, 5)
    noisy = toyfaces.region_map(faces, 32) + .05 * torch.randn(4, 3, 32, 32)
    cfg = dataclasses.replace(tiny_p, image_size=32)
    assert claims.read_regions(cfg, toyfaces.region_map, faces, noisy)["pixel"] > .99
    assert not claims.read_regions(cfg, toysets.dots, faces, noisy)


def test_measure_of_known_translators(tiny_c):
    cfg = dataclasses.replace(tiny_c, toy="glasses")
    data = paper.make_data(cfg, test=True)
    rows = claims.measure(cfg, [lambda x: x, lambda x: -x], data)
    assert rows["G"]["L1"] == rows["G: copy the input"]["L1"] > 0 == rows["G: the truth"]["L1"]
    assert rows["G: the truth"]["SSIM"] == pytest.approx(1)
    X = draw(data.X, torch.arange(12), "cpu")
    assert rows["G"]["back"] == pytest.approx(X.abs().mean().item(), rel=1e-4)
    assert rows["F"]["hist L"] < rows["F: the truth"]["hist L"] == pytest.approx(1)
    assert {"pixel", "class", "IoU", "sharpness"} <= rows["G"].keys()


def test_infer_on_files_and_folders(tiny, tmp_path, trained, capsys):
    tiny.run = trained[tiny.model]
    folder = tmp_path / "in"
    folder.mkdir()
    Image.new("LA", (41, 23), (80, 128)).save(folder / "a b.png")
    Image.new("RGB", (100, 50), "red").save(folder / "大.jpg")
    args = dict(backward=False, half=None, squeeze=False, out=str(tmp_path / "out"))
    paper.infer(dataclasses.replace(tiny), [str(folder)], **args)
    sizes = {p.name: Image.open(p).size for p in (tmp_path / "out").iterdir()}
    assert sizes["a b.png"] == (41, 23) and sizes["大.png"] == (100, 50)
    assert capsys.readouterr().out.count("of a pair A|B --half A takes its left half") == 1
    assert {"a b_sheet.png", "大_sheet.png"} < set(sizes)
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


def test_load_takes_over_what_was_trained(tiny, trained):
    cfg = Config(run=trained[tiny.model], device="cpu", amp=False)
    nets = paper.load(cfg)
    assert (cfg.model, cfg.image_size, cfg.width, cfg.batch_size) == (tiny.model, 16, 4, 2)
    assert len(nets) == (1 if tiny.model == "pix2pix" else 2)


# --------------------------------------------------------------------------------------------------- ablation

def few(tables, rows):
    """Of some tables the named rows, all rows of the others."""
    return {part: {k: v for k, v in table.items() if k in rows.get(part, table)}
            for part, table in tables.items()}


def test_the_tables_and_their_trainings(tiny_p, tiny_c):
    tables = claims.tables(tiny_p)
    assert [len(rows) for rows in tables.values()] == [5, 4, 2, 3]      # at 16 px: patches of 1 and 16
    assert all(c["toy"] == "regions" and c["direction"] == "BtoA" for _, c in tables["labels"].values())
    assert list(claims.tables(tiny_c)) == ["cycle"] and len(claims.tables(tiny_c)["cycle"]) == 6
    with pytest.raises(UserError, match="--part cycle: expected of --model pix2pix all, losses, generator"):
        claims.ablate(dataclasses.replace(tiny_p, part="cycle"))
    assert tables["losses"]["L1+cGAN"] == tables["generator"]["U-Net, L1+cGAN"] == tables["patch"]["patch 1"]
    names = {name for rows in tables.values() for name, _ in rows.values()}
    assert len(names) == 5 + 2 + 1 + 3                                  # each training once
    for part, rows in (tables | claims.tables(tiny_c)).items():
        changes = [dataclasses.replace(tiny_p, **change) for _, change in rows.values()]
        assert all(a != b for k, a in enumerate(changes) for b in changes[:k]), part


@pytest.mark.slow
def test_ablate_runs_every_part_and_judges(tiny_p, monkeypatch):
    in_turn(monkeypatch)
    monkeypatch.setattr("lab.claims.SEEDS", (0, 1))
    cfg = dataclasses.replace(tiny_p, image_size=32, load_size=0, patch=16, steps=1, log_every=9,
                              save_every=9, sample_every=9)
    tables = few(claims.tables(cfg), {"losses": ("L1", "GAN", "cGAN", "L1+cGAN"),
                                      "generator": ("U-Net, L1+cGAN", "encoder-decoder, L1+cGAN")})
    assert list(tables["patch"]) == ["patch 1", "patch 16", "patch 34"]
    monkeypatch.setattr(claims, "tables", lambda cfg: tables)
    claims.ablate(cfg)
    result = read_json(Path(cfg.run) / "ablation.json")
    assert len(result["claims"]) == 4 and len(result["criteria"]) == 9
    assert result["verdict"] in ("reproduced", "partly reproduced", "not reproduced")
    assert {"losses: L1+cGAN, mean", "generator: encoder-decoder, L1+cGAN, std", "patch: patch 1, mean",
            "labels: L1, mean"} <= result["rows"].keys()
    assert Image.open(Path(cfg.run) / "ablation_losses_samples.png").width > 6 * 128
    assert not any(k.startswith("paper") for k in result["rows"]["labels: L1, mean"])
    assert result["rows"]["labels: the true pictures, mean"]["IoU"] == 1
    assert result["rows"]["losses: L1+cGAN, mean"]["paper IoU"] == .17
    assert "paper class" not in result["rows"]["generator: U-Net, L1+cGAN, mean"]
    claims.ablate(dataclasses.replace(cfg, part="patch"))               # all done: only measured again
    again = read_json(Path(cfg.run) / "ablation_patch.json")
    assert len(again["claims"]) == 1 and (Path(cfg.run) / "ablation_patch.png").exists()


@pytest.mark.slow
def test_ablate_of_cyclegan(tiny_c, monkeypatch):
    in_turn(monkeypatch)
    monkeypatch.setattr("lab.claims.SEEDS", (0, 1))
    claims.ablate(dataclasses.replace(tiny_c, steps=1, log_every=9, save_every=9, sample_every=9))
    result = read_json(Path(tiny_c.run) / "ablation.json")
    assert len(result["claims"]) == 2 and len(result["criteria"]) == 4
    assert "cycle: GAN+forward, mean" in result["rows"]
    assert not any(k.startswith("paper") for k in result["rows"]["cycle: GAN, mean"])
    assert (Path(tiny_c.run) / "ablation_cycle_samples.png").exists()


def test_an_ablation_of_one_part(tiny_p, monkeypatch):
    """Without --steps; continued; with another number of steps; on tasks that do not end in a face."""
    in_turn(monkeypatch)
    tables = few(claims.tables(tiny_p), {"generator": ("encoder-decoder, L1+cGAN", "U-Net, L1+cGAN")})
    monkeypatch.setattr(claims, "tables", lambda cfg: tables)
    monkeypatch.setattr("lab.claims.SEEDS", (0, 1))
    cfg = dataclasses.replace(tiny_p, steps=0, epochs=1, part="generator", log_every=9, sample_every=9)
    for _ in "ab":
        claims.ablate(cfg)
    result = read_json(Path(cfg.run) / "ablation_generator.json")
    assert result["steps"] == 3 and len(result["claims"]) == 1
    assert result["rows"]["generator: the true pictures, mean"]["paper IoU"] == .21
    with pytest.raises(UserError, match="was trained for 3 steps, now 4"):
        claims.ablate(dataclasses.replace(cfg, steps=4))
    for change in (dict(toy="sketch"), dict(direction="BtoA")):
        with pytest.raises(UserError, match="ends in a face"):
            claims.ablate(dataclasses.replace(cfg, steps=1, fresh=True, **change))


def test_the_patch_of_the_table_lies_between_its_rows(tiny_p):
    for patch in (1, 70, 142):
        with pytest.raises(UserError, match=f"--patch {patch}: .* expected one of 16, 34"):
            claims.ablate(dataclasses.replace(tiny_p, image_size=64, load_size=0, patch=patch, part="patch"))
    assert [claims.same_share(p, 64) for p in (1, 16, 34, 70)] == [1, 70, None, 286]
    assert claims.same_share(70, 256) == 70
