"""The mathematics that papers share, against independent computations."""

import numpy as np
import pytest
import torch
import torch.nn as nn
import torch.nn.functional as F

import common
from common import PatchGAN

real, fake = torch.tensor([[2.0, -0.5], [0.3, 1.0]]), torch.tensor([[-2.0, 0.5], [0.1, -1.0]])


def test_vanilla_is_binary_cross_entropy():
    bce = F.binary_cross_entropy_with_logits
    assert torch.allclose(
        common.vanilla_D(real, fake), bce(real, torch.ones(2, 2)) + bce(fake, torch.zeros(2, 2))
    )
    assert torch.allclose(common.vanilla_G(fake), bce(fake, torch.ones(2, 2)))
    assert torch.isfinite(common.vanilla_D(real * 1e4, fake * 1e4))


def test_lsgan_squares_before_the_mean():
    assert common.lsgan_D(real, fake).item() == pytest.approx(
        (1 + 2.25 + 0.49 + 0) / 4 + (4 + 0.25 + 0.01 + 1) / 4
    )
    assert common.lsgan_G(fake).item() == pytest.approx((9 + 0.25 + 0.81 + 4) / 4)
    assert common.lsgan_D(torch.ones(3), torch.zeros(3)) == 0


def test_hinge_by_hand_and_rest():
    assert common.hinge_D(real, fake).item() == pytest.approx(
        (0 + 1.5 + 0.7 + 0) / 4 + (0 + 1.5 + 1.1 + 0) / 4
    )
    assert common.hinge_D(torch.tensor([1.0, 5.0]), torch.tensor([-1.0, -9.0])) == 0
    assert common.hinge_G(fake).item() == pytest.approx(0.6)


def test_wgan_is_a_difference_of_means():
    assert common.wgan_D(real, fake).item() == pytest.approx(-0.6 - 0.7)
    assert common.wgan_D(real + 7, fake + 7).item() == pytest.approx(
        common.wgan_D(real, fake).item(), abs=1e-5
    )


class Linear(nn.Module):
    def __init__(self, norm, patches=1):
        super().__init__()
        w = torch.randn(3 * 8 * 8)
        self.w, self.patches = nn.Parameter(w / w.norm() * norm), patches

    def forward(self, x):
        return (x.flatten(1) @ self.w)[:, None].expand(-1, self.patches) / self.patches


@pytest.mark.parametrize("norm, patches", [(1.0, 1), (1.0, 4), (3.0, 1), (0.5, 4)])
def test_gradient_penalty_of_a_linear_critic(norm, patches):
    D = Linear(norm, patches)
    penalty = common.gradient_penalty(D, torch.randn(5, 3, 8, 8), torch.randn(5, 3, 8, 8))
    assert penalty.item() == pytest.approx((norm - 1) ** 2, abs=1e-5)


def test_gradient_penalty_reaches_D_only_and_lies_between():
    D = Linear(2.0)
    x, y = torch.randn(4, 3, 8, 8, requires_grad=True), torch.randn(4, 3, 8, 8, requires_grad=True)
    common.gradient_penalty(D, x, y).backward()
    assert D.w.grad.abs().sum() > 0 and x.grad is None and y.grad is None
    seen = []
    common.gradient_penalty(
        lambda z: seen.append(z.detach()) or D(z), torch.zeros(64, 3, 8, 8), torch.ones(64, 3, 8, 8)
    )
    assert (seen[0].flatten(1).std(1) < 1e-6).all()  # one mixing number per picture
    assert seen[0].mean((1, 2, 3)).std() > 0.2  # and another for the next


@pytest.mark.parametrize(
    "widths, strides", [((4, 8), (2, 1)), ((4, 8, 8), (2, 2, 1)), ((4, 8, 8), (2, 2, 2))]
)
def test_receptive_field_is_what_the_gradient_sees(widths, strides):
    D = PatchGAN(3, widths, strides).double()
    x = torch.randn(1, 3, 128, 128, dtype=torch.double, requires_grad=True)
    y = D(x)
    y[0, 0, y.shape[2] // 2, y.shape[3] // 2].backward()
    rows = x.grad.abs().sum((0, 1, 3)).nonzero()
    assert rows.max() - rows.min() + 1 == D.receptive_field()


def test_patchgan_joins_its_pictures():
    D = PatchGAN(5, (4,), (2,))
    x, y = torch.randn(2, 3, 16, 16), torch.randn(2, 2, 16, 16)
    assert torch.equal(D(x, y), D(torch.cat([x, y], 1)))


def test_init_normal():
    net = common.init_normal(
        nn.Sequential(nn.Conv2d(64, 64, 3), nn.BatchNorm2d(64), nn.ConvTranspose2d(64, 64, 4))
    )
    assert net[0].weight.std().item() == pytest.approx(0.02, rel=0.05) and net[0].bias.abs().max() == 0
    assert net[1].weight.mean().item() == pytest.approx(1, abs=0.02)
    assert net[2].weight.std().item() == pytest.approx(0.02, rel=0.05)


def test_linear_decay():
    assert [common.linear_decay(s, 100, 0.5) for s in (1, 50)] == [1, 1]
    assert [common.linear_decay(s, 100, 0.5) for s in (51, 75, 100)] == pytest.approx(
        [50 / 51, 26 / 51, 1 / 51]
    )
    assert all(common.linear_decay(s, 100, 1.0) == 1 for s in (1, 50, 100))  # constant to the very end
    assert [common.linear_decay(s, 4, 0.0) for s in (1, 2, 3, 4)] == pytest.approx([0.8, 0.6, 0.4, 0.2])


def test_heatmaps_against_the_definition(device):
    points = torch.rand(2, 5, 2) * 40 - 4
    H = common.heatmaps(points.to(device), 32, 1.75).cpu().numpy()
    for b in range(2):
        for k in range(5):
            px, py = points[b, k].tolist()
            expected = [
                [np.exp(-((x - px) ** 2 + (y - py) ** 2) / (2 * 1.75**2)) for x in range(32)]
                for y in range(32)
            ]
            assert np.allclose(H[b, k], expected, atol=1e-5)


def test_heatmaps_are_sub_pixel_differentiable_and_peak_at_one():
    H = common.heatmaps(torch.tensor([[[5.0, 9.0]]]), 16, 1.0)
    assert H.max() == 1 and H[0, 0, 9, 5] == 1
    points = torch.tensor([[[5.3, 9.0]]], requires_grad=True)
    H = common.heatmaps(points, 16, 1.0)
    centre = (H[0, 0].sum(0) * torch.arange(16)).sum() / H.sum()
    assert centre.item() == pytest.approx(5.3, abs=1e-3)
    centre.backward()
    assert points.grad[0, 0].tolist() == pytest.approx([1.0, 0.0], abs=1e-2)
    assert common.heatmaps(torch.tensor([[[-30.0, 5.0]]]), 16, 1.0).max() < 1e-6


def test_mirror_order_twice_is_the_identity():
    for order in (common.FLIP_68, common.FLIP_66):
        assert torch.equal(order[order], torch.arange(len(order)))
    points = torch.rand(3, 66, 2) * 64
    assert torch.allclose(common.flip_points(common.flip_points(points, 64), 64), points, atol=1e-5)
    assert torch.equal(
        common.to_66(common.flip_points(torch.ones(1, 68, 2), 9)), common.flip_points(torch.ones(1, 66, 2), 9)
    )


def test_66_points_leave_out_the_inner_mouth_corners():
    points = torch.arange(68.0)[:, None].expand(68, 2)
    kept = common.to_66(points)[:, 0].tolist()
    assert 60 not in kept and 64 not in kept and len(kept) == 66
    assert common.to_66(common.to_66(points)).shape == (66, 2)


def test_crop_box():
    low, high = common.crop_box(
        torch.tensor([[[10.0, 20.0], [30.0, 60.0]]]), tight=16
    )  # sides 20 and 40, mean 30, margin 4.8
    assert low[0].tolist() == pytest.approx([5.2, 15.2]) and high[0].tolist() == pytest.approx([34.8, 64.8])
