"""Picture files, pictures decoded once, sheets, measures."""

import numpy as np
import pytest
import torch
from PIL import Image

from lab import images
from lab.run import Settings


def test_picture_values_go_there_and_back():
    array = np.arange(256, dtype=np.uint8).reshape(16, 16)
    x = images.to_tensor(Image.fromarray(np.stack([array] * 3, 2)))
    assert x.min() == -1 and x.max() == 1
    assert torch.equal(images.to_uint8(x)[0], torch.from_numpy(array))


def test_crop_repeats_the_edges():
    image = Image.fromarray(np.arange(48, dtype=np.uint8).reshape(4, 4, 3))
    same = images.crop(image, torch.tensor([-0.5, -0.5]), torch.tensor([3.5, 3.5]), 4)
    assert np.array_equal(np.asarray(same), np.asarray(image))
    wide = np.asarray(images.crop(image, torch.tensor([-4.5, -0.5]), torch.tensor([-0.5, 3.5]), 4))
    assert (wide == np.asarray(image)[:, :1]).all()


def test_grid_has_a_column_for_each_entry():
    image = images.grid([torch.zeros(2, 3, 8, 8), torch.ones(2, 3, 8, 8)], ["a", "b"], scale=2)
    assert image.size == (40, 56)


def test_cached_fills_once_and_leaves_no_half_files(tmp_path):
    cfg, calls = Settings(cache=str(tmp_path / "c"), device="cpu"), []

    def fill(array):
        calls.append(1)
        array[:] = 7

    a = images.cached(cfg, "key", (2, 3, 4, 4), fill)
    b = images.cached(cfg, "key", (2, 3, 4, 4), fill)
    assert len(calls) == 1 and torch.equal(a, b) and a.dtype == torch.uint8 and (a == 7).all()

    def broken(array):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        images.cached(cfg, "other", (2, 3, 4, 4), broken)
    assert len(list((tmp_path / "c").iterdir())) == 1


def test_draw_is_in_range_and_by_index():
    bank = torch.tensor([0, 128, 255], dtype=torch.uint8)[:, None, None, None].expand(3, 3, 2, 2)
    x = images.draw(bank, torch.tensor([2, 0]), "cpu")
    assert x.shape == (2, 3, 2, 2) and x[0].min() == 1 and x[1].max() == -1


def test_ssim_of_flat_pictures_is_that_of_their_greys():
    a, b = torch.tensor(
        [[0.8, 0.5], [0.3, 0.5]], dtype=torch.float64
    )  # float32 leaves a variance of 1e-7, and an error of 3e-4
    x, y = (v[:, None, None, None].expand(2, 3, 32, 32) for v in (a, b))
    expected = (2 * a * b + 1e-4) / (a**2 + b**2 + 1e-4)  # C1 = .01^2; nothing varies
    assert torch.allclose(images.ssim(2 * x - 1, 2 * y - 1), expected.float(), atol=1e-6)
    assert torch.equal(images.ssim(x + 9, torch.ones_like(x)), torch.ones(2))  # x is clamped
