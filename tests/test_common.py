import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn as nn
import torch.nn.functional as F
from PIL import Image

import common
from common import PatchGAN, Run, UserError

real, fake = torch.tensor([[2., -.5], [.3, 1.]]), torch.tensor([[-2., .5], [.1, -1.]])


# ------------------------------------------------------------------------------------------------ GAN losses

def test_vanilla_is_binary_cross_entropy():
    bce = F.binary_cross_entropy_with_logits
    assert torch.allclose(common.vanilla_D(real, fake), bce(real, torch.ones(2, 2)) + bce(fake, torch.zeros(2, 2)))
    assert torch.allclose(common.vanilla_G(fake), bce(fake, torch.ones(2, 2)))
    assert torch.isfinite(common.vanilla_D(real * 1e4, fake * 1e4))


def test_lsgan_squares_before_the_mean():
    assert common.lsgan_D(real, fake).item() == pytest.approx((1 + 2.25 + .49 + 0) / 4 + (4 + .25 + .01 + 1) / 4)
    assert common.lsgan_G(fake).item() == pytest.approx((9 + .25 + .81 + 4) / 4)
    assert common.lsgan_D(torch.ones(3), torch.zeros(3)) == 0


def test_hinge_by_hand_and_rest():
    assert common.hinge_D(real, fake).item() == pytest.approx((0 + 1.5 + .7 + 0) / 4 + (0 + 1.5 + 1.1 + 0) / 4)
    assert common.hinge_D(torch.tensor([1., 5.]), torch.tensor([-1., -9.])) == 0
    assert common.hinge_G(fake).item() == pytest.approx(.6)


def test_wgan_is_a_difference_of_means():
    assert common.wgan_D(real, fake).item() == pytest.approx(-.6 - .7)
    assert common.wgan_D(real + 7, fake + 7).item() == pytest.approx(common.wgan_D(real, fake).item(), abs=1e-5)


class Linear(nn.Module):
    def __init__(self, norm, patches=1):
        super().__init__()
        w = torch.randn(3 * 8 * 8)
        self.w, self.patches = nn.Parameter(w / w.norm() * norm), patches

    def forward(self, x):
        return (x.flatten(1) @ self.w)[:, None].expand(-1, self.patches) / self.patches


@pytest.mark.parametrize("norm, patches", [(1., 1), (1., 4), (3., 1), (0.5, 4)])
def test_gradient_penalty_of_a_linear_critic(norm, patches):
    D = Linear(norm, patches)
    penalty = common.gradient_penalty(D, torch.randn(5, 3, 8, 8), torch.randn(5, 3, 8, 8))
    assert penalty.item() == pytest.approx((norm - 1) ** 2, abs=1e-5)


def test_gradient_penalty_reaches_D_only_and_lies_between():
    D = Linear(2.)
    x, y = torch.randn(4, 3, 8, 8, requires_grad=True), torch.randn(4, 3, 8, 8, requires_grad=True)
    common.gradient_penalty(D, x, y).backward()
    assert D.w.grad.abs().sum() > 0 and x.grad is None and y.grad is None
    seen = []
    common.gradient_penalty(lambda z: seen.append(z.detach()) or D(z), torch.zeros(64, 3, 8, 8), torch.ones(64, 3, 8, 8))
    assert (seen[0].flatten(1).std(1) < 1e-6).all()                     # one mixing number per picture
    assert seen[0].mean((1, 2, 3)).std() > .2                           # and another for the next


# -------------------------------------------------------------------------------------------------- networks

@pytest.mark.parametrize("kwargs, parameters, field, side", [
    (dict(in_channels=6, norm="batch"), 2_768_705, 70, 30),
    (dict(in_channels=3, norm="instance"), 2_764_737, 70, 30),
    (dict(in_channels=6, norm="batch", widths=(64, 128), strides=(1, 1), kernel=1, head_kernel=1, head_bias=False), 9_024, 1, 256),
    (dict(in_channels=6, norm="batch", widths=(64, 128), strides=(2, 1)), 139_585, 16, 126),
    (dict(in_channels=6, norm="batch", widths=(64, 128, 256, 512, 512, 512), strides=(2, 2, 2, 2, 2, 1)), 11_159_361, 286, 6),
    (dict(in_channels=3, widths=(64, 128, 256, 512, 512), strides=(2,) * 5, head_kernel=3, head_bias=False), 6_951_360 + 4_608, 158, 8),
])
def test_patchgan_counts_receptive_field_and_map(kwargs, parameters, field, side):
    D = PatchGAN(**kwargs)
    assert common.n_parameters(D) == parameters
    assert D.receptive_field() == field
    with torch.no_grad():
        assert D.eval()(torch.zeros(1, kwargs["in_channels"], 256, 256)).shape == (1, 1, side, side)


@pytest.mark.parametrize("dilation, size", [(2, (8, 12)), (4, (12, 8)), (3, (9, 6)), (2, (7, 8)), (4, (10, 9))])
def test_dilated_convolution_is_torchs(dilation, size):
    ours = common.DilatedConv2d(3, 5, 3, 1, dilation, dilation, padding_mode="reflect").double()
    theirs = torch.nn.Conv2d(3, 5, 3, 1, dilation, dilation, padding_mode="reflect").double()
    theirs.load_state_dict(ours.state_dict())
    results = []
    for conv in (ours, theirs):
        x = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(0), dtype=torch.double, requires_grad=True)
        conv(x).pow(3).sum().backward()
        results.append((conv(x), x.grad, conv.weight.grad, conv.bias.grad))
    torch.testing.assert_close(*results)


def test_leaky_relu_of_the_gradient_penalty_is_the_same_function():
    """Value, gradient and the penalty's own gradient, against torch.nn's: bit for bit."""
    x, y = torch.randn(4, 3, 16, 16), torch.randn(4, 3, 16, 16)

    def penalty(act):
        torch.manual_seed(0)
        D = nn.Sequential(nn.Conv2d(3, 6, 3), act, nn.Conv2d(6, 6, 3), act, nn.Conv2d(6, 1, 3))
        value = common.gradient_penalty(D, x, y)
        value.backward()
        return [value.detach(), *(p.grad for p in D.parameters() if p.ndim == 4)]
    assert all(torch.equal(a, b) for a, b in zip(penalty(common.LeakyReLU(.2)), penalty(nn.LeakyReLU(.2)), strict=True))
    with common.full_precision():
        assert torch.equal(common.LeakyReLU(.01)(x), nn.functional.leaky_relu(x, .01))


@pytest.mark.parametrize("widths, strides", [((4, 8), (2, 1)), ((4, 8, 8), (2, 2, 1)), ((4, 8, 8), (2, 2, 2))])
def test_receptive_field_is_what_the_gradient_sees(widths, strides):
    D = PatchGAN(3, widths, strides).double()
    x = torch.randn(1, 3, 128, 128, dtype=torch.double, requires_grad=True)
    y = D(x)
    y[0, 0, y.shape[2] // 2, y.shape[3] // 2].backward()
    rows = x.grad.abs().sum((0, 1, 3)).nonzero()
    assert rows.max() - rows.min() + 1 == D.receptive_field()


def test_patchgan_condition_is_joined_to_the_picture():
    D = PatchGAN(5, (4,), (2,))
    x, condition = torch.randn(2, 3, 16, 16), torch.randn(2, 2, 16, 16)
    assert torch.equal(D(x, condition), D(torch.cat([x, condition], 1)))


def test_init_normal():
    net = common.init_normal(nn.Sequential(nn.Conv2d(64, 64, 3), nn.BatchNorm2d(64), nn.ConvTranspose2d(64, 64, 4)))
    assert net[0].weight.std().item() == pytest.approx(.02, rel=.05) and net[0].bias.abs().max() == 0
    assert net[1].weight.mean().item() == pytest.approx(1, abs=.02)
    assert net[2].weight.std().item() == pytest.approx(.02, rel=.05)


def test_frozen_stops_parameters_but_not_the_flow():
    D, x = nn.Linear(3, 1), torch.randn(2, 3, requires_grad=True)
    with common.frozen(D):
        D(x).sum().backward()
    assert D.weight.grad is None and x.grad is not None and D.weight.requires_grad


def test_linear_decay():
    assert [common.linear_decay(s, 100, .5) for s in (1, 50, 75, 100)] == [1, 1, .5, 0]
    assert common.linear_decay(50, 100, 1.) == 1


# ------------------------------------------------------------------------------------------------- landmarks

def test_heatmaps_against_the_definition(device):
    points = torch.rand(2, 5, 2) * 40 - 4
    H = common.heatmaps(points.to(device), 32, 1.75).cpu().numpy()
    for b in range(2):
        for k in range(5):
            px, py = points[b, k].tolist()
            expected = [[np.exp(-((x - px) ** 2 + (y - py) ** 2) / (2 * 1.75 ** 2)) for x in range(32)] for y in range(32)]
            assert np.allclose(H[b, k], expected, atol=1e-5)


def test_heatmaps_are_sub_pixel_differentiable_and_peak_at_one():
    H = common.heatmaps(torch.tensor([[[5., 9.]]]), 16, 1.)
    assert H.max() == 1 and H[0, 0, 9, 5] == 1
    points = torch.tensor([[[5.3, 9.]]], requires_grad=True)
    H = common.heatmaps(points, 16, 1.)
    centre = (H[0, 0].sum(0) * torch.arange(16)).sum() / H.sum()
    assert centre.item() == pytest.approx(5.3, abs=1e-3)
    centre.backward()
    assert points.grad[0, 0].tolist() == pytest.approx([1., 0.], abs=1e-2)
    assert common.heatmaps(torch.tensor([[[-30., 5.]]]), 16, 1.).max() < 1e-6


def test_mirror_order_twice_is_the_identity():
    for order in (common.FLIP_68, common.FLIP_66):
        assert torch.equal(order[order], torch.arange(len(order)))
    points = torch.rand(3, 66, 2) * 64
    assert torch.allclose(common.flip_points(common.flip_points(points, 64), 64), points, atol=1e-5)
    assert torch.equal(common.to_66(common.flip_points(torch.ones(1, 68, 2), 9)), common.flip_points(torch.ones(1, 66, 2), 9))


def test_66_points_leave_out_the_inner_mouth_corners():
    points = torch.arange(68.)[:, None].expand(68, 2)
    kept = common.to_66(points)[:, 0].tolist()
    assert 60 not in kept and 64 not in kept and len(kept) == 66
    assert common.to_66(common.to_66(points)).shape == (66, 2)


def test_crop_box():
    low, high = common.crop_box(torch.tensor([[[10., 20.], [30., 60.]]]), tight=16)       # sides 20 and 40, mean 30, margin 4.8
    assert low[0].tolist() == pytest.approx([5.2, 15.2]) and high[0].tolist() == pytest.approx([34.8, 64.8])


def test_read_pts_is_one_based_and_forgiving(tmp_path):
    rows = "\n".join(f"{k + 1}.5 {2 * k + 1}" for k in range(68))
    for name, text in {"a.pts": f"version: 1\nn_points:  68\n{{\n{rows}\n}}\n", "ü 脸.pts": f"\ufeffversion: 1\r\nn_points: 68\r\n{{\r\n{rows}\r\n}}"}.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
        points = common.read_pts(tmp_path / name)
        assert points.shape == (68, 2) and points[0].tolist() == [.5, 0.] and points[67].tolist() == [67.5, 134.]


@pytest.mark.parametrize("text", ["", "n_points: 68\n{\n1 2\n}", "version: 1\nn_points: 68\n{\n" + "1 nan\n" * 68 + "}",
                                  "n_points: 68\n{\n" + "1 x\n" * 68 + "}", "n_points: 5\n{\n" + "1 2\n" * 5 + "}", "\x00\xff"])
def test_read_pts_names_the_bad_file(tmp_path, text):
    (tmp_path / "bad.pts").write_text(text, encoding="latin-1")
    with pytest.raises(UserError, match="bad.pts"):
        common.read_pts(tmp_path / "bad.pts")


# --------------------------------------------------------------------------------------------------- pictures

def test_open_image_makes_rgb_of_everything(tmp_path):
    colour = Image.new("RGB", (4, 2), (200, 100, 50))
    kinds = {"grey": colour.convert("L"), "palette": colour.convert("P"), "rgba": colour.convert("RGBA"), "one": colour.convert("1"),
             "16": Image.fromarray(np.full((2, 4), 40000, np.uint16))}
    for name, image in kinds.items():
        image.save(tmp_path / f"{name}.png")
        assert common.open_image(tmp_path / f"{name}.png").mode == "RGB"
    assert common.open_image(tmp_path / "16.png").getpixel((0, 0))[0] == pytest.approx(155, abs=1)
    colour.convert("CMYK").save(tmp_path / "cmyk.jpg")
    assert common.open_image(tmp_path / "cmyk.jpg").mode == "RGB"
    clear = Image.new("RGBA", (2, 2), (0, 0, 0, 0))
    clear.save(tmp_path / "clear.png")
    assert common.open_image(tmp_path / "clear.png").getpixel((0, 0)) == (255, 255, 255)


def test_open_image_turns_by_exif(tmp_path):
    exif = Image.Exif()
    exif[0x112] = 6
    Image.new("RGB", (4, 2)).save(tmp_path / "a.jpg", exif=exif)
    assert common.open_image(tmp_path / "a.jpg").size == (2, 4)


def test_open_image_names_the_bad_file(tmp_path):
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)).save(tmp_path / "whole.jpg")
    (tmp_path / "cut.jpg").write_bytes((tmp_path / "whole.jpg").read_bytes()[:900])
    (tmp_path / "empty.jpg").write_bytes(b"")
    (tmp_path / "text.jpg").write_text("hello")
    for name in ("cut.jpg", "empty.jpg", "text.jpg", "missing.jpg"):
        with pytest.raises(UserError, match=name):
            common.open_image(tmp_path / name)


def test_picture_values_go_there_and_back():
    array = np.arange(256, dtype=np.uint8).reshape(16, 16)
    x = common.to_tensor(Image.fromarray(np.stack([array] * 3, 2)))
    assert x.min() == -1 and x.max() == 1
    assert torch.equal(common.to_uint8(x)[0], torch.from_numpy(array))


def test_crop_repeats_the_edges():
    image = Image.fromarray(np.arange(48, dtype=np.uint8).reshape(4, 4, 3))
    same = common.crop(image, torch.tensor([-.5, -.5]), torch.tensor([3.5, 3.5]), 4)
    assert np.array_equal(np.asarray(same), np.asarray(image))
    wide = np.asarray(common.crop(image, torch.tensor([-4.5, -.5]), torch.tensor([-.5, 3.5]), 4))
    assert (wide == np.asarray(image)[:, :1]).all()


def test_grid_has_a_column_for_each_entry():
    image = common.grid([torch.zeros(2, 3, 8, 8), torch.ones(2, 3, 8, 8)], ["a", "b"], scale=2)
    assert image.size == (40, 54)


# ---------------------------------------------------------------------------------------------------- the bank

def test_cached_fills_once_and_leaves_no_half_files(tmp_path):
    cfg, calls = common.Settings(cache=str(tmp_path / "c"), device="cpu"), []

    def fill(array):
        calls.append(1)
        array[:] = 7
    a = common.cached(cfg, "key", (2, 3, 4, 4), fill)
    b = common.cached(cfg, "key", (2, 3, 4, 4), fill)
    assert len(calls) == 1 and torch.equal(a, b) and a.dtype == torch.uint8 and (a == 7).all()

    def broken(array):
        raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt):
        common.cached(cfg, "other", (2, 3, 4, 4), broken)
    assert len(list((tmp_path / "c").iterdir())) == 1


def test_draw_is_in_range_and_by_index():
    bank = torch.tensor([0, 128, 255], dtype=torch.uint8)[:, None, None, None].expand(3, 3, 2, 2)
    x = common.draw(bank, torch.tensor([2, 0]), "cpu")
    assert x.shape == (2, 3, 2, 2) and x[0].min() == 1 and x[1].max() == -1


# ------------------------------------------------------------------------------------------------------ the run

@dataclass
class Config(common.Settings):
    steps: int = 8
    batch_size: int = 4
    width: int = 3


class Numbers:
    def __init__(self, seed):
        self.generator = torch.Generator().manual_seed(seed)

    def sample(self, n):
        return torch.randn(n, 3, generator=self.generator)


def descend(cfg, pause=0.):
    """A tiny training that uses both random generators; returns its weights."""
    torch.manual_seed(cfg.seed)
    net = nn.Linear(3, cfg.width)
    opt = torch.optim.Adam(net.parameters(), 1e-2)
    run = Run(cfg, {"G": net}, {"G": opt}, Numbers(cfg.seed))
    for step, x in run.batches(cfg.batch_size):
        loss = ((net(x) - torch.randn(len(x), cfg.width)) ** 2).mean()
        run.update("G", loss)
        if run.logs(step):
            run.log(step, loss=loss.detach())
        time.sleep(pause)
    return net.state_dict()


def settings(folder, **kwargs):
    return Config(run=str(folder), device="cpu", amp=False, log_every=1, save_every=3, **kwargs)


def equal(a, b):
    return all(torch.equal(a[k], b[k]) for k in a)


def test_n_plus_n_steps_are_2n_steps_bit_for_bit(tmp_path):
    whole = descend(settings(tmp_path / "a", steps=8))
    descend(settings(tmp_path / "b", steps=4))
    assert equal(descend(settings(tmp_path / "b", steps=8)), whole)
    steps = [line["step"] for line in common.read_jsonl(tmp_path / "b" / "metrics.jsonl")]
    assert steps == list(range(1, 9))
    assert equal(descend(settings(tmp_path / "b", steps=8)), whole)                  # nothing left to do
    assert (tmp_path / "a" / "losses.png").exists()


def child(folder, pause):
    code = (f"import sys; sys.path[:0] = [{str(Path(__file__).parent)!r}, {str(Path(common.__file__).parent)!r}]\n"
            f"import test_common as t; t.descend(t.settings({str(folder)!r}, steps=60), pause={pause})")
    return subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def wait_for(folder, step):
    for _ in range(2400):
        lines = common.read_jsonl(folder / "metrics.jsonl") if (folder / "metrics.jsonl").exists() else []
        if lines and lines[-1]["step"] >= step:
            return
        time.sleep(.05)
    raise AssertionError("the child did not start")


def test_killed_run_continues_exactly(tmp_path):
    whole = descend(settings(tmp_path / "a", steps=60))
    process = child(tmp_path / "b", .05)
    wait_for(tmp_path / "b", 8)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert equal(descend(settings(tmp_path / "b", steps=60)), whole)
    assert [line["step"] for line in common.read_jsonl(tmp_path / "b" / "metrics.jsonl")] == list(range(1, 61))


@pytest.mark.parametrize("number, code", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signal_saves_says_how_to_go_on_and_sets_the_exit_code(tmp_path, number, code):
    process = child(tmp_path / "b", .05)
    wait_for(tmp_path / "b", 4)
    process.send_signal(number)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == code and "goes on from there" in out
    stopped = common.load_checkpoint(tmp_path / "b" / "last.pt")["step"]
    assert stopped == common.read_jsonl(tmp_path / "b" / "metrics.jsonl")[-1]["step"] >= 4
    assert equal(descend(settings(tmp_path / "b", steps=60)), descend(settings(tmp_path / "a", steps=60)))


def test_other_settings_are_refused_and_nothing_is_touched(tmp_path):
    descend(settings(tmp_path, steps=4))
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    with pytest.raises(UserError, match="width .was 3, now 5."):
        descend(settings(tmp_path, steps=4, width=5))
    assert before == {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    descend(settings(tmp_path, steps=4, width=5, fresh=True))


def test_an_automatic_choice_of_precision_follows_the_run(tmp_path):
    for amp in (True, False):
        descend(replace(settings(tmp_path / str(amp), steps=4), amp=amp))
        cfg = common.settle(Config(run=str(tmp_path / str(amp)), device="cpu", steps=6))
        descend(cfg)
        assert cfg.amp is amp


def test_a_branch_is_the_same_as_the_whole_run(tmp_path):
    whole = descend(settings(tmp_path / "a", steps=8))
    trunk = settings(tmp_path / "trunk", steps=8, stop_after=5)
    descend(trunk)
    descend(trunk)                                                            # finished: nothing more to do
    assert common.load_checkpoint(tmp_path / "trunk" / "last.pt")["step"] == 5
    cfg = settings(tmp_path / "b", steps=8)
    common.branch(trunk, cfg)
    assert equal(descend(cfg), whole)
    with pytest.raises(UserError, match="stands at step 5, expected 4"):
        common.branch(replace(trunk, stop_after=4), settings(tmp_path / "c", steps=8))


def test_a_changed_data_set_is_no_secret(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(Numbers, "__len__", lambda self: 7, raising=False)
    descend(settings(tmp_path, steps=4))
    descend(settings(tmp_path, steps=5))
    assert "note" not in capsys.readouterr().out
    monkeypatch.setattr(Numbers, "__len__", lambda self: 9)
    descend(settings(tmp_path, steps=6))
    assert "the data set had 7 pictures, now it has 9" in capsys.readouterr().out


def test_a_log_line_that_was_cut_off_does_not_matter(tmp_path):
    descend(settings(tmp_path, steps=4))
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"step": 5, "hea')
    descend(settings(tmp_path, steps=6))
    assert [line["step"] for line in common.read_jsonl(tmp_path / "metrics.jsonl")] == list(range(1, 7))


@pytest.mark.parametrize("damage", ['{"step": 9}garbage', "null", "[1]", '{"step": "4"}', "\x00\x00", '{"loss": 1}'])
def test_damage_in_a_log_does_not_matter(tmp_path, damage):
    descend(settings(tmp_path, steps=4))
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    (tmp_path / "metrics.jsonl").write_text("\n".join([lines[0], damage, *lines[2:]]) + "\n")
    descend(settings(tmp_path, steps=6))
    assert [line["step"] for line in common.read_jsonl(tmp_path / "metrics.jsonl")] == [1, 3, 4, 5, 6]


def test_networks_that_are_not_finite_never_replace_a_checkpoint(tmp_path, monkeypatch):
    descend(settings(tmp_path, steps=6, stop_after=3))
    sample = Numbers.sample
    monkeypatch.setattr(Numbers, "sample", lambda self, n: sample(self, n) * float("inf"))
    with pytest.raises(UserError, match="at step 6 the networks hold numbers that are not finite; .* is still that of step 3"):
        descend(settings(tmp_path, steps=6))
    assert common.load_checkpoint(tmp_path / "last.pt")["step"] == 3
    with pytest.raises(UserError, match="at step 3 .*; no checkpoint was written"):
        descend(settings(tmp_path / "new", steps=6))


def test_a_checkpoint_in_another_memory_layout_goes_on_exactly(tmp_path):
    """As a GPU leaves it, where networks are channels_last: Adam's moments must follow their parameters."""
    def train(steps, layout):
        torch.manual_seed(0)
        net = nn.Conv2d(4, 6, 3).to(memory_format=layout)
        opt = torch.optim.Adam(net.parameters(), 1e-2, fused=True)
        run = Run(settings(tmp_path / str(len(layouts)), steps=steps), {"G": net}, {"G": opt}, Numbers(0))
        for _, x in run.batches(2):
            run.update("G", net(x.mean() + torch.arange(4 * 25.).view(1, 4, 5, 5) / 100).square().mean())
        return net.state_dict()

    layouts = [torch.contiguous_format, torch.channels_last]
    train(3, torch.channels_last)
    went_on = train(6, torch.contiguous_format)
    layouts.append("whole")
    assert torch.allclose(went_on["weight"], train(6, torch.contiguous_format)["weight"], atol=1e-7)


def test_a_full_disk_leaves_the_last_checkpoint(tmp_path, monkeypatch):
    common.save_checkpoint({"a": 1}, tmp_path / "last.pt")

    def full(content, path):
        path.write_bytes(b"half")
        raise RuntimeError("[enforce fail] write failed: no space left")
    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(UserError, match="cannot be written"):
        common.save_checkpoint({"a": 2}, tmp_path / "last.pt")
    assert common.load_checkpoint(tmp_path / "last.pt") == {"a": 1} and len(list(tmp_path.iterdir())) == 1


def test_the_checkpoint_of_another_paper_is_refused(tmp_path):
    descend(settings(tmp_path, steps=4))
    saved = common.load_checkpoint(tmp_path / "last.pt")
    torch.save(saved | {"paper": "stargan"}, tmp_path / "last.pt")
    with pytest.raises(UserError, match="a checkpoint of stargan"):
        descend(settings(tmp_path, steps=8))
    torch.save([1, 2], tmp_path / "last.pt")
    with pytest.raises(UserError, match="holds list"):
        descend(settings(tmp_path, steps=8))


def test_damaged_and_dangerous_checkpoints_are_refused(tmp_path):
    descend(settings(tmp_path, steps=4))
    whole = (tmp_path / "last.pt").read_bytes()
    (tmp_path / "last.pt").write_bytes(whole[:len(whole) // 2])
    with pytest.raises(UserError, match="last.pt"):
        descend(settings(tmp_path, steps=8))

    class Evil:
        def __reduce__(self):
            return os.system, ("touch " + str(tmp_path / "owned"),)
    torch.save({"x": Evil()}, tmp_path / "evil.pt")
    with pytest.raises(UserError, match="evil.pt"):
        common.load_checkpoint(tmp_path / "evil.pt")
    assert not (tmp_path / "owned").exists()


def test_load_weights_lists_what_does_not_fit():
    with pytest.raises(UserError, match="missing: bias; unexpected: extra; other shape: weight"):
        common.load_weights(nn.Linear(2, 2), {"weight": torch.zeros(3, 3), "extra": torch.zeros(1)}, "file.pt")


def test_log_says_nan(tmp_path):
    cfg = settings(tmp_path, steps=1)
    run = Run(cfg, {}, {}, Numbers(0))
    for step, _ in run.batches(1):
        run.log(step, loss=torch.tensor(float("nan")))
    line = json.loads((tmp_path / "metrics.jsonl").read_text())
    assert line["health"] == "nan" and line["loss"] is None


def test_mixed_precision_returns_float32_and_can_be_lifted():
    net = common.prepare(nn.Conv2d(3, 4, 3), common.Settings(device="cpu", amp=True))
    x = torch.randn(1, 3, 8, 8)
    mixed = net(x)
    with common.full_precision():
        exact = net(x)
    assert mixed.dtype == exact.dtype == torch.float32
    assert not torch.equal(mixed, exact) and torch.allclose(mixed, exact, atol=.05)


def test_checkpoints_take_no_more_than_a_fiftieth_of_the_time(tmp_path, monkeypatch):
    saved, save = [], common.save_checkpoint

    def slow(content, path):
        saved.append(content["step"])
        time.sleep(.3)
        save(content, path)
    monkeypatch.setattr(common, "save_checkpoint", slow)
    descend(settings(tmp_path, steps=30))
    assert saved == [3, 30]


def test_in_parallel_keeps_the_order():
    assert common.in_parallel(abs, [-3, 2, -1], "cpu") == [3, 2, 1]


def test_rows_that_share_no_measure_get_a_heading_of_their_own():
    text = common.table({"rows": {"a": {"L1": 1.}, "b": {"L1": 2., "SSIM": .5}, "c": {"AUC": .25}}, "notes": "n"}).splitlines()
    assert [line.split() for line in text] == [["L1", "SSIM"], ["a", "1.0000"], ["b", "2.0000", "0.5000"], ["AUC"], ["c", "0.2500"], ["notes:", "n"]]


def test_ssim_of_flat_pictures_is_that_of_their_greys():
    a, b = torch.tensor([[.8, .5], [.3, .5]], dtype=torch.float64)           # float32 leaves a variance of 1e-7, and an error of 3e-4
    x, y = (v[:, None, None, None].expand(2, 3, 32, 32) for v in (a, b))
    expected = (2 * a * b + 1e-4) / (a ** 2 + b ** 2 + 1e-4)           # C1 = .01^2; nothing varies
    assert torch.allclose(common.ssim(2 * x - 1, 2 * y - 1), expected.float(), atol=1e-6)
    assert torch.equal(common.ssim(x + 9, torch.ones_like(x)), torch.ones(2))                          # x is clamped
