"""What several of the papers share, and nothing else.

    networks        conv_block, ResidualBlock, ResNet, PatchGAN, init_normal; ImagePool
    GAN losses      vanilla, LSGAN, hinge, WGAN, each as D's and G's side; gradient_penalty
    landmarks       heatmaps, 68 and 66 points, mirror order, crop by box, .pts files
    image bank      every picture decoded once, drawn by index
    run             settings, checkpoints, exact resume, log, loss plot, signals, frozen nets, mixed precision
    ablations       rows and claims over seeds
    command line    --train --evaluate --ablate --infer --explain --check --bench, the same for every paper
"""
import argparse
import ast
import concurrent.futures
import contextlib
import dataclasses
import functools
import gc
import hashlib
import inspect
import json
import math
import os
import re
import shutil
import signal
import sys
import tempfile
import textwrap
import time
import zipfile
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import piq
import torch
import torch.nn as nn
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFile, ImageOps
from tqdm import tqdm


class UserError(Exception):
    """Something only the user can mend. The command line prints it as one line and exits with code 2."""


# ===================================================================================================== networks

NORMS = {
    None: lambda c: nn.Identity(),
    "batch": nn.BatchNorm2d,
    "instance": nn.InstanceNorm2d,                                  # no affine, no running statistics
    "instance-affine": lambda c: nn.InstanceNorm2d(c, affine=True),
}


class DilatedConv2d(nn.Conv2d):
    """nn.Conv2d of dilation d and stride 1: the same numbers, on a processor up to twice as fast.

    Every d-th pixel each way makes a picture of its own; on these d * d pictures the convolution has no dilation, and that has the
    fast code. Other devices, zero padding, strides and sizes that d does not divide take the ordinary way.
    """

    def _conv_forward(self, x, weight, bias):
        d = self.dilation[0]
        if self.padding_mode == "zeros" or x.device.type != "cpu" or (self.dilation, self.stride, self.groups) != ((d, d), (1, 1), 1):
            return super()._conv_forward(x, weight, bias)
        x = F.pad(x, self._reversed_padding_repeated_twice, mode=self.padding_mode)
        if x.shape[2] % d or x.shape[3] % d:
            return F.conv2d(x, weight, bias, dilation=d)
        apart = x.unflatten(3, (-1, d)).unflatten(2, (-1, d)).permute(0, 3, 5, 1, 2, 4)                    # [B, d, d, c, h, w]
        out = F.conv2d(apart.flatten(0, 2), weight, bias).unflatten(0, (len(x), d, d))
        return out.permute(0, 3, 4, 1, 5, 2).flatten(4, 5).flatten(2, 3)


class LeakyReLU(nn.LeakyReLU):
    """nn.LeakyReLU, the same numbers; for the gradient penalty as a product with its slope.

    nn.LeakyReLU's second derivative by x is 0 everywhere, and autograd carries these zeros back through the whole network. A
    product with a constant has none.
    """

    def forward(self, x):
        if _state["full_precision"]:
            return x * torch.where(x.detach() > 0, 1., self.negative_slope)
        return super().forward(x)


def conv_block(c_in, c_out, kernel, stride, padding, norm=None, act=None, up=False, bias=True, padding_mode="zeros", dilation=1):
    """Convolution (or transposed convolution, `up`), normalisation, activation, as a flat list of layers."""
    if up:
        conv = nn.ConvTranspose2d(c_in, c_out, kernel, stride, padding, bias=bias)
    else:
        conv = (nn.Conv2d if dilation == 1 else DilatedConv2d)(c_in, c_out, kernel, stride, padding, dilation, bias=bias, padding_mode=padding_mode)
    return [layer for layer in (conv, NORMS[norm](c_out), act) if layer is not None and not isinstance(layer, nn.Identity)]


class ResidualBlock(nn.Module):
    """x + norm(conv(act(norm(conv(x))))), 3x3, no activation after the sum (He et al. 2016, as in Johnson et al. 2016)."""

    def __init__(self, channels, norm="instance", act=None, bias=True, padding_mode="zeros", dilation=1):
        super().__init__()
        same = dict(bias=bias, padding_mode=padding_mode, dilation=dilation)
        self.body = nn.Sequential(*conv_block(channels, channels, 3, 1, dilation, norm, nn.ReLU() if act is None else act, **same),
                                  *conv_block(channels, channels, 3, 1, dilation, norm, **same))

    def forward(self, x):
        return x + self.body(x)


class PatchGAN(nn.Module):
    """A discriminator that scores patches (Isola et al. 2017, section 3.2.2).

    One convolution per entry of `widths`, with the stride in `strides`; `norm` after each but the first; then a head
    with one output channel. forward(x, condition=None): x [B, c, H, W], condition [B, c', H, W] is joined to it
    (in_channels counts both); returns unbounded scores [B, 1, h, w].
    """

    def __init__(self, in_channels=3, widths=(64, 128, 256, 512), strides=(2, 2, 2, 1), kernel=4, norm=None, slope=.2,
                 head_kernel=4, bias=True, head_bias=True):
        super().__init__()
        layers, c, padding = [], in_channels, 1 if kernel > 1 else 0
        for k, (width, stride) in enumerate(zip(widths, strides, strict=True)):
            layers += conv_block(c, width, kernel, stride, padding, norm if k else None, LeakyReLU(slope),
                                 bias=bias and not (k and norm == "batch"))
            c = width
        self.trunk = nn.Sequential(*layers)
        self.head = nn.Conv2d(c, 1, head_kernel, 1, 1 if head_kernel > 1 else 0, bias=head_bias)

    def forward(self, x, condition=None):
        return self.head(self.trunk(x if condition is None else torch.cat([x, condition], 1)))

    def receptive_field(self):
        """Side of the square of input pixels that one score sees."""
        return receptive_field(nn.Sequential(self.trunk, self.head))


class ResNet(nn.Module):
    """CycleGAN's generator (Zhu et al. 2017, 7.2): c7s1-64, d128, d256, R256 x 9, u128, u64, c7s1-3. Reflection padding but at stride 2.

    11,378,179 parameters with 9 blocks. forward(x [B, 3, S, S]) -> [B, 3, S, S], both in [-1, 1], S a multiple of 4.
    """

    def __init__(self, residual_blocks=9, width=64):
        super().__init__()
        w, act, norm = width, nn.ReLU(), "instance"

        def up(c_in, c_out):
            return [nn.ConvTranspose2d(c_in, c_out, 3, 2, 1, output_padding=1), NORMS[norm](c_out), act]

        self.main = nn.Sequential(
            *conv_block(3, w, 7, 1, 3, norm, act, padding_mode="reflect"),                 # w  x S   x S
            *conv_block(w, 2 * w, 3, 2, 1, norm, act),                                     # 2w x S/2 x S/2
            *conv_block(2 * w, 4 * w, 3, 2, 1, norm, act),                                 # 4w x S/4 x S/4
            *(ResidualBlock(4 * w, norm, act, padding_mode="reflect") for _ in range(residual_blocks)),
            *up(4 * w, 2 * w), *up(2 * w, w),                                              # w  x S   x S
            nn.Conv2d(w, 3, 7, 1, 3, padding_mode="reflect"), nn.Tanh())

    def forward(self, x):
        return self.main(x)


class ImagePool(nn.Module):
    """The last `size` generated pictures (CycleGAN, section 4). forward(x) [B, 3, S, S]: what D is shown.

    While it fills, pictures go in and come back. Then each is, half of the time, exchanged for an older one. A module, so
    that checkpoints hold it.
    """

    def __init__(self, size, side, device="cpu"):
        super().__init__()
        self.register_buffer("images", torch.zeros(size, 3, side, side, device=device))
        self.register_buffer("count", torch.zeros((), dtype=torch.long))

    @torch.no_grad()
    def forward(self, x):
        count, size = int(self.count), len(self.images)
        fresh = x[:size - count]
        self.images[count:count + len(fresh)] = fresh
        self.count += len(fresh)
        x = x[len(fresh):]
        if not len(x) or not size:
            return torch.cat([fresh, x])
        slot = torch.randperm(size)[:len(x)].to(x.device, non_blocking=True)
        swap = (torch.rand(len(x), 1, 1, 1) < .5).to(x.device, non_blocking=True)
        old = self.images[slot]
        self.images[slot] = torch.where(swap, x, old)
        return torch.cat([fresh, torch.where(swap, old, x)])


def receptive_field(net):
    """r_in = (r_out - 1) * stride + kernel, from the last convolution of `net` back to the first. Pixels."""
    r = 1
    for conv in reversed([m for m in net.modules() if isinstance(m, nn.Conv2d)]):
        r = (r - 1) * conv.stride[0] + (conv.kernel_size[0] - 1) * conv.dilation[0] + 1
    return r


def init_normal(net, std=.02):
    """Every (transposed) convolution and linear weight ~ N(0, std), biases 0; batch norm scale ~ N(1, std). Returns net.

    DCGAN's rule (Radford et al. 2016), in all the official codes of the papers here except StarGAN's.
    """
    for m in net.modules():
        if isinstance(m, (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)):
            nn.init.normal_(m.weight, 0., std)
            if m.bias is not None:
                nn.init.zeros_(m.bias)
        elif isinstance(m, nn.BatchNorm2d):
            nn.init.normal_(m.weight, 1., std)
    return net


def n_parameters(net):
    return sum(p.numel() for p in net.parameters())


# =================================================================================================== GAN losses
# Every loss is *minimised*. real, fake: unbounded scores of any shape; the mean runs over batch and patches.

def vanilla_D(real, fake):
    """-log s(real) - log(1 - s(fake)), s the sigmoid: binary cross-entropy with targets 1 and 0 (Goodfellow et al. 2014)."""
    return F.softplus(-real).mean() + F.softplus(fake).mean()


def vanilla_G(fake):
    """-log s(fake): the non-saturating form (Goodfellow et al. 2014, section 3)."""
    return F.softplus(-fake).mean()


def lsgan_D(real, fake):
    """(real - 1)^2 + fake^2, each score squared before the mean (Mao et al. 2017)."""
    return ((real - 1) ** 2).mean() + (fake ** 2).mean()


def lsgan_G(fake):
    """(fake - 1)^2."""
    return ((fake - 1) ** 2).mean()


def hinge_D(real, fake):
    """max(0, 1 - real) + max(0, 1 + fake): D pushes real above +1 and fake below -1, and rests there."""
    return F.relu(1 - real).mean() + F.relu(1 + fake).mean()


def hinge_G(fake):
    """-fake: G raises its score without limit."""
    return -fake.mean()


def wgan_D(real, fake):
    """-real + fake: minus the difference of means that bounds the Wasserstein distance from below (Arjovsky et al. 2017)."""
    return fake.mean() - real.mean()


wgan_G = hinge_G
GAN_LOSSES = {"vanilla": (vanilla_D, vanilla_G), "lsgan": (lsgan_D, lsgan_G), "hinge": (hinge_D, hinge_G), "wgan-gp": (wgan_D, wgan_G)}


def gradient_penalty(D, real, fake):
    """E[(||grad D(x^)||_2 - 1)^2], x^ = a real + (1 - a) fake, one a ~ U(0, 1) per picture (Gulrajani et al. 2017).

    D: [B, c, H, W] -> scores of any shape, *summed* over patches, as in the official StarGAN code; one norm per picture
    over all its pixels and channels. real, fake: same shape, detached here. Computed in float32 (a GPU's convolutions
    round to TF32 there, PyTorch's default): squares of gradients do not fit bfloat16. Returns a scalar whose gradient reaches D only.
    """
    a = torch.rand(len(real), 1, 1, 1, device=real.device)
    x_hat = (a * real.detach() + (1 - a) * fake.detach()).requires_grad_(True)
    with full_precision():
        gradient, = torch.autograd.grad(D(x_hat).sum(), x_hat, create_graph=True)
    return ((gradient.flatten(1).norm(dim=1) - 1) ** 2).mean()


# ==================================================================================================== landmarks
# 68 points in the iBUG / 300-W order. 66 points: the same without the inner mouth corners (0-based 60 and 64).
# Points are [..., n, 2] as (x, y) in pixels, 0-based: the centre of the top left pixel is (0, 0).

_MIRROR = [(0, 16), (1, 15), (2, 14), (3, 13), (4, 12), (5, 11), (6, 10), (7, 9), (17, 26), (18, 25), (19, 24), (20, 23), (21, 22),
           (31, 35), (32, 34), (36, 45), (37, 44), (38, 43), (39, 42), (40, 47), (41, 46), (48, 54), (49, 53), (50, 52), (55, 59),
           (56, 58), (60, 64), (61, 63), (65, 67)]
KEEP_66 = torch.tensor([k for k in range(68) if k not in (60, 64)])
FLIP_68 = torch.arange(68)
for _a, _b in _MIRROR:
    FLIP_68[_a], FLIP_68[_b] = _b, _a
FLIP_66 = torch.searchsorted(KEEP_66, FLIP_68[KEEP_66])


def to_66(points):
    """[..., 68 or 66, 2] -> [..., 66, 2]."""
    return points[..., KEEP_66.to(points.device), :] if points.shape[-2] == 68 else points


def flip_points(points, width):
    """The landmarks of the mirrored picture: x -> width - 1 - x, and left and right points change names. 68 or 66 points."""
    order = FLIP_68 if points.shape[-2] == 68 else FLIP_66
    x, y = points[..., order.to(points.device), :].unbind(-1)
    return torch.stack([width - 1 - x, y], -1)


def heatmaps(points, size, sigma):
    """One Gaussian per landmark: H_i(u) = exp(-||u - s_i||^2 / 2 sigma^2), peak 1, sub-pixel, differentiable in `points`.

    points: [B, n, 2] pixels; size: side S; sigma: standard deviation in pixels. Returns [B, n, S, S] in [0, 1]. A point
    outside the picture leaves its tail or nothing. (The Gaussian factors into a row and a column: no loop, no S x S exp.)
    """
    axis = torch.arange(size, device=points.device, dtype=points.dtype)
    row, column = (torch.exp(-(axis - points[..., k, None]) ** 2 / (2 * sigma ** 2)) for k in (0, 1))
    return column[..., :, None].repeat(*[1] * column.ndim, size) * row[..., None, :]     # both broadcast: ten times slower on a CPU


def crop_box(points, tight=16.):
    """The box around landmarks [B, n, 2] plus a margin of `tight` per cent of its mean side (GANnotation's crop).

    tight: a number or [B]. Returns low [B, 2], high [B, 2] in pixels, not clamped to any picture.
    """
    low, high = points.amin(-2), points.amax(-2)
    margin = (high - low).mean(-1, keepdim=True) * torch.as_tensor(tight, device=points.device).reshape(-1, 1) / 100
    return low - margin, high + margin


def text_of(path):
    """The text of an annotation file, of whatever encoding. UserError if it is none: a pipe or a device would be read for ever."""
    if not Path(path).is_file():
        raise UserError(f"{path}: {'not a file' if Path(path).exists() else 'no such file'}")
    return Path(path).read_text(encoding="utf-8-sig", errors="replace")


def read_pts(path):
    """A .pts file -> float32 [n, 2], 0-based (the files count pixels from 1). Raises UserError naming the file."""
    try:
        text = text_of(path)
        n = int(re.search(r"n_points\s*:\s*(\d+)", text).group(1))
        values = np.array(text[text.index("{") + 1:text.index("}")].split(), dtype=np.float32).reshape(-1, 2)
    except (OSError, ValueError, AttributeError, UnicodeError):
        raise UserError(f"{path}: not a .pts file; expected 'version: 1', 'n_points: 68', '{{', one 'x y' a line, '}}'") from None
    if len(values) != n or n not in (66, 68) or not np.isfinite(values).all():
        raise UserError(f"{path}: {len(values)} points, header says {n}; expected 66 or 68 finite points")
    return torch.from_numpy(values - 1)


# =================================================================================================== image files

ImageFile.LOAD_TRUNCATED_IMAGES = False
IMAGE_FILES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm", ".tif", ".tiff")


def folders_below(root):
    """root and the folders below it, through links, each once, in order of name. UserError for one that cannot be read."""
    def unreadable(error):
        if not isinstance(error, (FileNotFoundError, NotADirectoryError)):      # nothing there: whoever asked says what was expected
            raise UserError(f"{error.filename}: {error.strerror}; make it readable, or take it out")

    found, seen = [], set()
    for folder, below, _ in os.walk(root, onerror=unreadable, followlinks=True):
        if (real := os.path.realpath(folder)) in seen:                  # a link in a circle
            below.clear()
        else:
            seen.add(real), found.append(Path(folder))
    return sorted(found)


def files_below(root, endings=IMAGE_FILES):
    """The files below root whose names end like this, through links, in order of name."""
    return sorted(p for folder in folders_below(root) for p in pictures_in(folder, endings))


def pictures_in(folder, endings=IMAGE_FILES):
    """The picture files of a folder, by their names' endings, in order of name."""
    return sorted(p for p in Path(folder).iterdir() if p.suffix.lower() in endings)


def named_pictures(files):
    """{a name of its own: path} of picture files and of the pictures in folders. UserError for a folder without any."""
    named = {}
    for file in map(Path, files):
        found = pictures_in(file) if file.is_dir() else [file]
        if not found:
            raise UserError(f"{file}: no pictures in this folder")
        for path in found:
            named[unused(path.stem, named)] = path
    return named


def unused(stem, taken):
    """stem, or stem_1, stem_2 ..., the first that is not among `taken`."""
    return next(name for k in range(len(taken) + 1) if (name := stem + f"_{k}" * (k > 0)) not in taken)


def open_image(path):
    """Any picture file -> RGB PIL image, upright (EXIF), grey and palette expanded, transparency over white. UserError names the file."""
    with picture_file(path) as image:
        image = ImageOps.exif_transpose(image)
        if image.mode.startswith("I;16") or image.mode in ("I", "F"):
            array = np.nan_to_num(np.asarray(image, dtype=np.float32))
            white = 65535 if image.mode.startswith("I;16") or array.max() > 255 else 255 if image.mode == "I" or array.max() > 2 else 1      # 1.1: overshoot
            image = Image.fromarray((array / white * 255).clip(0, 255).astype(np.uint8))
        elif image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
            image = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
        return image.convert("RGB")


def picture_size(path):
    """(width, height) of a picture file, turned as its EXIF says, without decoding it. UserError names the file."""
    with picture_file(path) as image:
        return image.size[::-1] if image.getexif().get(274, 1) >= 5 else image.size


@contextlib.contextmanager
def picture_file(path):
    """PIL's picture, opened and closed. Whatever goes wrong with it becomes a UserError that names the file."""
    if not Path(path).is_file():                                        # a pipe or a device would be read for ever
        raise UserError(f"{path}: {'not a file' if Path(path).exists() else 'no such file'}")
    if not Path(path).stat().st_size:
        raise UserError(f"{path}: empty file")
    try:
        with Image.open(path) as image:
            yield image
    except Exception as error:                                          # a decoder on a damaged file raises whatever it comes upon
        raise UserError(f"{path}: not a readable picture ({(str(error) or type(error).__name__).splitlines()[0]})") from None


def crop(image, low, high, side):
    """The box low ... high ([2] each, pixels as in landmarks) of an RGB image, resized to side x side; edges repeat beyond the border."""
    box = [v + .5 for v in (*low.tolist(), *high.tolist())]               # a landmark's (0, 0) is a pixel's centre, PIL's its corner
    coarse = int(max(box[2] - box[0], box[3] - box[1]) // (4 * side))
    if coarse > 1 and (min(box[:2]) < 0 or box[2] > image.width or box[3] > image.height):      # a far border would need much memory
        image, box = image.reduce(coarse), [v / coarse for v in box]
    pad = max(0, *(math.ceil(v) for v in (-box[0], -box[1], box[2] - image.width, box[3] - image.height)))
    if pad:
        image = Image.fromarray(np.pad(np.asarray(image), ((pad, pad), (pad, pad), (0, 0)), mode="edge"))
    return image.resize((side, side), Image.Resampling.BICUBIC, tuple(v + pad for v in box), reducing_gap=3)


def square(image, side):
    """The central square of an RGB image, resized to side x side."""
    low = torch.tensor([image.width, image.height]) / 2 - min(image.size) / 2
    return crop(image, low - .5, low + min(image.size) - .5, side)


def to_tensor(image):
    """RGB PIL image -> float32 [3, H, W] in [-1, 1]."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 127.5 - 1


def to_uint8(x):
    """[..., 3, H, W] in [-1, 1] -> uint8, rounded and clamped."""
    return ((x.float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)


def rgb_to_lab(x):
    """sRGB pictures [B, 3, H, W] in [-1, 1] -> CIE Lab (D65): L in 0 ... 100, a and b roughly -110 ... 110."""
    rgb = (x / 2 + .5).clamp(0, 1)
    linear = torch.where(rgb > .04045, ((rgb + .055) / 1.055) ** 2.4, rgb / 12.92)
    to_xyz = linear.new_tensor([[.4124564, .3575761, .1804375], [.2126729, .7151522, .0721750], [.0193339, .1191920, .9503041]])
    X, Y, Z = ((linear * row[:, None, None]).sum(1) / row.sum() for row in to_xyz)         # no matrix product: a GPU would round it
    X, Y, Z = (torch.where(t > (6 / 29) ** 3, t.clamp(min=1e-9) ** (1 / 3), t * (29 / 6) ** 2 / 3 + 4 / 29) for t in (X, Y, Z))
    return torch.stack([116 * Y - 16, 500 * (X - Y), 200 * (Y - Z)], 1)


def to_unit(x):
    """[-1, 1] -> [0, 1], clamped, for measures; on a GPU in float64: its convolutions would round what SSIM subtracts, squares."""
    return ((x.double() if x.is_cuda else x) / 2 + .5).clamp(0, 1)


def ssim(x, truth):
    """SSIM of pictures [B, c, H, W] in [-1, 1] (clamped to it): [B]."""
    return piq.ssim(to_unit(x), to_unit(truth), data_range=1., reduction="none").float()


def grid(columns, titles=None, scale=1):
    """Pictures as a contact sheet. columns: list of [n, 3, S, S] in [-1, 1]; titles: one per column. Returns a PIL image."""
    columns = [to_uint8(column.cpu()) for column in columns]
    n, _, h, w = columns[0].shape
    sheet = torch.full((3, n * (h + 2), len(columns) * (w + 2)), 255, dtype=torch.uint8)
    for k, column in enumerate(columns):
        for i in range(n):
            sheet[:, i * (h + 2):i * (h + 2) + h, k * (w + 2):k * (w + 2) + w] = column[i]
    image = Image.fromarray(sheet.permute(1, 2, 0).numpy())
    image = image.resize((image.width * scale, image.height * scale), Image.Resampling.NEAREST)
    if titles:
        top = Image.new("RGB", (image.width, image.height + 14), "white")
        top.paste(image, (0, 14))
        draw = ImageDraw.Draw(top)
        for k, title in enumerate(titles):
            draw.text((k * (w + 2) * scale + 2, 1), title[:max(1, (w + 2) * scale // 6)], fill="black")
        image = top
    return image


def draw_points(points, size):
    """Landmarks [B, n, 2] as a picture for the grid: white dots on black, [B, 3, S, S] in [-1, 1]."""
    return (heatmaps(points, size, .6 * size / 64).amax(1, keepdim=True) * 2 - 1).expand(-1, 3, -1, -1)


def figure(width, height):
    """An empty matplotlib figure, inches, that needs no display. (Imported here: matplotlib takes its time.)"""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    empty = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(empty)
    return empty


def write_gif(frames, path, ms=80):
    """frames: list of PIL images of one size."""
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=ms, loop=0)


# ==================================================================================================== image bank

def cached(cfg, key, shape, fill):
    """A uint8 array of `shape`, made once by `fill(array)` and kept as a memory-mapped .npy in cfg.cache.

    key: anything with a repr that changes when the content would. Written beside and renamed, so a killed run leaves no
    half of a file. Returns a tensor: on the GPU if it fits in a third of its free memory, else mapped from disk.
    """
    path = Path(cfg.cache) / (hashlib.sha256(repr((key, shape)).encode()).hexdigest()[:20] + ".npy")
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        for left in path.parent.glob("*.npy.*.part"):                  # by a kill
            if not _alive(left.name.split(".")[-2]):
                left.unlink(missing_ok=True)
        partial = path.with_name(f"{path.name}.{os.getpid()}.part")
        try:
            try:
                array = np.lib.format.open_memmap(partial, "w+", np.uint8, shape)
                if hasattr(os, "posix_fallocate"):                      # or a full disk ends the process with a signal, once the map is written to
                    with open(partial, "r+b") as file:
                        os.posix_fallocate(file.fileno(), 0, partial.stat().st_size)
            except (OSError, ValueError, OverflowError) as error:
                raise UserError(f"{path.parent}: no room for {math.prod(shape) / 2 ** 20:,.0f} MiB of pictures ({getattr(error, 'strerror', '') or error}); "
                                "give another --cache folder, or fewer or smaller pictures") from None
            fill(array)
            array.flush()
            partial.rename(path)
        finally:
            partial.unlink(missing_ok=True)
    try:
        array = np.load(path, mmap_mode="c")                            # copy on write: torch wants a writable array
    except (ValueError, EOFError):
        raise UserError(f"{path}: a damaged cache file; delete it") from None
    if cfg.device.startswith("cuda") and array.nbytes < torch.cuda.mem_get_info()[0] / 3:
        return torch.from_numpy(np.array(array)).to(cfg.device)
    return torch.from_numpy(array)


def _alive(pid):
    """Does a process of this number run? (Or is it no number at all?)"""
    try:
        os.kill(int(pid), 0)
    except (ProcessLookupError, OverflowError):
        return False
    except (PermissionError, ValueError):
        pass
    return True


def draw(bank, index, device):
    """Pictures `index` of a bank: uint8 [N, 3, H, W] -> float32 [B, 3, H, W] in [-1, 1] on `device`."""
    return bank[index.to(bank.device, non_blocking=True)].to(device, non_blocking=True).float() / 127.5 - 1


def draw_crops(bank, index, top, left, size, device, mirror=None):
    """As `draw`, of each picture the size x size square whose corner is top[i], left[i]; where mirror[i], left and right change places."""
    index, top, left = (t.to(bank.device, non_blocking=True) for t in (index, top, left))
    axis = torch.arange(size, device=bank.device)
    columns = axis if mirror is None else torch.where(mirror[:, None].to(bank.device, non_blocking=True), axis.flip(0), axis)
    rows, columns = top[:, None] + axis, left[:, None] + columns
    x = bank[index[:, None, None, None], torch.arange(3, device=bank.device)[:, None, None], rows[:, None, :, None], columns[:, None, None, :]]
    return x.to(device, non_blocking=True).float() / 127.5 - 1


def once(owner, key, make, *given):
    """make(*given), kept with the object `owner`: held-out truths are drawn for the first line of a log, not for every one."""
    kept = owner.__dict__.setdefault("kept", {})
    if key not in kept:
        kept[key] = make(*given)
    return kept[key]


def decode_all(paths, decode, array, skip_bad):
    """array[i] = decode(i) for every path, in threads, with a progress bar. Returns the indices that could be read.

    Files that raise UserError: one error that names the first of them, or, with skip_bad, a line that counts them.
    """
    bad = {}

    def one(i):
        try:
            array[i] = decode(i)
        except UserError as error:
            bad[i] = str(error)

    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        list(tqdm(pool.map(one, range(len(paths))), "decoding", len(paths), disable=not sys.stderr.isatty()))
    report_bad(sorted(bad.values()), len(paths), skip_bad)
    return [i for i in range(len(paths)) if i not in bad]


MISSING = (1, 254, 1)          # first pixel of the place of a picture that could not be read, in the cache (as good as never a real one)


def decoded_bank(cfg, paths, shape, decode, key=()):
    """The pictures `paths` decoded once, decode(i) -> uint8 `shape`: (bank [n, *shape], indices of the pictures that it holds).

    key: whatever else than the files decides what decode gives. With cfg.skip_bad unreadable files are left out.
    """
    def fill(array):
        readable = set(decode_all(paths, decode, array, cfg.skip_bad))
        array[[k for k in range(len(paths)) if k not in readable], :, 0, 0] = MISSING

    files = [(str(p), *((p.stat().st_size, p.stat().st_mtime_ns) if p.exists() else ())) for p in paths]       # a link may lead nowhere
    bank = cached(cfg, (files, key), (len(paths), *shape), fill)
    good = (bank[:, :, 0, 0].cpu() != torch.tensor(MISSING)).any(1).nonzero()[:, 0].tolist()
    missing = sorted(set(range(len(paths))) - set(good))
    if missing and not cfg.skip_bad:                                    # an earlier run had --skip-bad
        decode_all(missing, lambda i: decode(missing[i]), {}, False)
    return (bank if len(good) == len(paths) else bank[good]), good


def toy_bank(cfg, faces, size, paint=None):
    """Toy faces (a toyfaces.Face) drawn once: uint8 [n, 3, size, size]. Cached by the parameters of the faces and the code that draws them.

    paint(faces, size) -> [b, 3, size, size] in [-1, 1]; None = toyfaces.render.
    """
    import toyfaces
    paint = paint or toyfaces.render
    key = hashlib.sha256(Path(toyfaces.__file__).read_bytes() + inspect.getsource(paint).encode())
    for field in dataclasses.fields(faces):
        key.update(getattr(faces, field.name).cpu().numpy().tobytes())

    def fill(array):
        say(f"drawing {len(faces)} toy faces (once) ...")
        for k in tqdm(range(0, len(faces), 64), "drawing", disable=not sys.stderr.isatty()):
            array[k:k + 64] = to_uint8(paint(faces[slice(k, k + 64)], size)).cpu().numpy()

    return cached(cfg, ("toy faces", key.hexdigest()), (len(faces), 3, size, size), fill)


def report_bad(bad, total, skip_bad):
    """One line for files that cannot be used: an error, or with skip_bad a notice."""
    if bad:
        more = f" (and {len(bad) - 1} more of {total})" if len(bad) > 1 else f" (the only one of {total})"
        if not skip_bad or len(bad) == total:
            raise UserError(bad[0] + more + ("" if skip_bad else "; mend or remove them, or add --skip-bad to go on without"))
        print(f"left out {len(bad)} of {total} files: {bad[0]}{' ...' if len(bad) > 1 else ''}")


# ========================================================================================================== run

@dataclasses.dataclass
class Settings:
    """What every command understands. A paper's Config adds the paper's own."""
    run: str = ""                     # ours: runs/<paper>; the folder that a training writes to and continues from
    data: str = ""                    # ours: folder of the real data set; empty = toy faces
    cache: str = "runs/cache"         # ours: decoded pictures and small judges, shared by all runs
    device: str = "auto"              # ours: cuda where it is there
    seed: int = 0                     # ours
    amp: bool | None = None           # ours: bfloat16; None = on CUDA, or where the processor runs it faster
    compile: bool = False             # ours: torch.compile; pays on a GPU after minutes of training
    fresh: bool = False               # ours: start over instead of continuing
    skip_bad: bool = False            # ours: go on without unreadable files
    weights: str = ""                 # ours: a checkpoint to load the generator from
    log_every: int = 50               # ours: steps between lines of metrics.jsonl
    save_every: int = 500             # ours: steps between checkpoints; more, where writing them would take over 2 % of the time
    sample_every: int = 250           # ours: steps between sample grids
    stop_after: int = 0               # ours: stop, saved, after this step; 0 = at the end
    bench: bool = False               # set by --bench


NOT_IN_CHECKPOINT = ("run", "cache", "device", "fresh", "weights", "log_every", "save_every", "sample_every", "stop_after", "bench", "compile", "skip_bad")
_state = {"full_precision": False, "quiet": False}


def say(*words):
    if not _state["quiet"]:
        print(*words, flush=True)


def settle(cfg):
    """Fill in what 'auto' means on this machine."""
    if cfg.device == "auto":
        cfg.device = "cuda" if torch.cuda.is_available() else "cpu"
    if not re.fullmatch(r"cpu|cuda(:\d+)?", cfg.device):
        raise UserError(f"--device {cfg.device}: expected cpu, cuda or cuda:N")
    if cfg.device.startswith("cuda") and not torch.cuda.is_available():
        raise UserError(f"--device {cfg.device}: no CUDA device here; leave --device out to use the processor")
    try:
        torch.empty(1, device=cfg.device)
        if cfg.device.startswith("cuda:"):
            torch.cuda.set_device(cfg.device)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"--device {cfg.device}: {str(error).splitlines()[0]}; expected cpu, cuda or cuda:N") from None
    if cfg.amp is None and not cfg.fresh and cfg.run:                   # a run keeps the precision it began with; one that is not there, its ablation's
        for earlier in sorted(Path(cfg.run).glob("**/config.json"), key=lambda p: ("ablation" in p.parts, len(p.parts), p))[:1]:
            cfg.amp = read_json(earlier).get("amp")
    if cfg.amp is None:
        cfg.amp = cfg.device.startswith("cuda") or _bf16_is_faster()
    if cfg.device.startswith("cuda"):
        torch.backends.cudnn.benchmark = True
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    return cfg


def _bf16_is_faster():
    """Does this processor multiply bfloat16 matrices in hardware? Measured, not looked up; best of several, so that it does not waver."""
    a = torch.randn(512, 512)

    def seconds(x):
        best = math.inf
        for _ in range(12):
            start = time.perf_counter()
            x @ x
            best = min(best, time.perf_counter() - start)
        return best
    return seconds(a.bfloat16()) < .6 * seconds(a)


def prepare(net, cfg):
    """Move a network to the device, and let its forward run in bfloat16 (cfg.amp) with float32 results; compile it (cfg.compile).

    Weights and optimiser stay float32. Inside `full_precision()` the forward runs in float32.
    """
    net.to(cfg.device)
    if cfg.device.startswith("cuda"):
        net.to(memory_format=torch.channels_last)
    forward = torch.compile(net.forward) if cfg.compile else net.forward
    eager = net.forward                                                 # compiled code has no second derivative: the gradient penalty's

    def mixed(*args):
        exact = _state["full_precision"]
        with torch.autocast(torch.device(cfg.device).type, torch.bfloat16, enabled=cfg.amp and not exact):
            out = (eager if exact else forward)(*args)
        return out.float() if torch.is_tensor(out) else type(out)(o.float() for o in out)

    net.forward = mixed
    return net


@contextlib.contextmanager
def full_precision():
    before, _state["full_precision"] = _state["full_precision"], True
    try:
        yield
    finally:
        _state["full_precision"] = before


@contextlib.contextmanager
def frozen(*nets):
    """Inside, the parameters of `nets` collect no gradient; gradients still flow *through* them to whatever feeds them."""
    for net in nets:
        net.requires_grad_(False)
    try:
        yield
    finally:
        for net in nets:
            net.requires_grad_(True)


def linear_decay(step, steps, start):
    """1 until `start` * steps, then linearly to 0 at `steps`. start in [0, 1]."""
    return min(1., (steps - step) / max(1., steps * (1 - start)))


class Run:
    """One training: a folder with config.json, last.pt, metrics.jsonl, losses.png, samples/.

    nets, opts: dicts of networks and of optimisers by name; data: has `generator` (a torch.Generator) and `sample(batch_size)`.
    about: plain values kept in the checkpoint, what --infer needs to know of the data; another about is another run.
    `for step, batch in run.batches(batch_size)` yields the steps that are still to do. A run that was interrupted, killed or
    lengthened continues as if it had never stopped: networks, optimisers and every random generator come from last.pt.
    """

    def __init__(self, cfg, nets, opts, data, legend=None, about=None):
        self.cfg, self.nets, self.opts, self.data, self.legend, self.about = cfg, nets, opts, data, legend or {}, about
        self.folder, self.start, self.stop_signal, self.elapsed = Path(cfg.run), 0, None, 0.
        self.laps, self.bar, self.word = defaultdict(float), None, ""
        self.saved, self.saving = -math.inf, 0.                        # when the last checkpoint was written, and how long that took
        if cfg.bench:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / "samples").mkdir(exist_ok=True)
        for name in ("last.pt", "config.json", "metrics.jsonl"):       # what a kill left
            (self.folder / f"{name}.part").unlink(missing_ok=True)
        last = self.folder / "last.pt"
        if last.exists() and not cfg.fresh:
            self._resume(last)
        else:
            (self.folder / "metrics.jsonl").write_text("")
            for old in (self.folder / "samples").glob("*.png"):
                if re.fullmatch(r"\d{7}", old.stem):                   # ours
                    old.unlink()
            if last.exists():
                last.unlink()
        settings = {f.name: getattr(cfg, f.name) for f in dataclasses.fields(cfg)}
        write_json(self.folder / "config.json", settings | {"command": command(), "torch": torch.__version__})

    # ---- checkpoints

    def _resume(self, path):
        saved, ours = load_checkpoint(path), _comparable(self.cfg)
        check_paper(saved, path, paper_of(self.cfg), ("step", "config", "nets", "opts", "rng", "seconds"))
        different = [f"{k} (was {saved['config'].get(k)!r}, now {v!r})" for k, v in ours.items()
                     if k not in ("steps", "epochs") and saved["config"].get(k, v) != v]
        if saved.get("about") != self.about:
            was, now = (textwrap.shorten(repr(about), 80) for about in (saved.get("about"), self.about))
            different.append(f"data set or loss network (was {was}, now {now})")
        if different:
            raise UserError(f"{self.folder} holds a run with another {', '.join(different)}; give the same settings, "
                            "another --run folder, or --fresh to start over")
        try:
            for group, mine in (("nets", self.nets), ("opts", self.opts)):
                for name, thing in mine.items():
                    thing.load_state_dict(saved[group][name])
            for optimiser in self.opts.values():                       # moments in the memory layout of their parameters, which another device may change
                for p, state in optimiser.state.items():
                    state.update({k: torch.empty_like(p).copy_(v) for k, v in state.items() if torch.is_tensor(v) and v.shape == p.shape and v.dim()})
            self.start, self.elapsed = saved["step"], saved["seconds"]
            self.data.generator.set_state(saved["rng"]["data"])
            torch.set_rng_state(saved["rng"]["torch"])
            if "cuda" in saved["rng"] and torch.cuda.is_available():
                torch.cuda.set_rng_state(saved["rng"]["cuda"])
        except (KeyError, ValueError, TypeError, AttributeError, RuntimeError) as error:
            if _no_memory(error):
                raise
            raise UserError(f"{path}: does not fit this training ({str(error).splitlines()[0][:90]}); "
                            "give another --run folder, or --fresh to start over") from None
        if (before := saved.get("pictures")) != (now := _count(self.data)) and before is not None:
            say(f"note: the data set had {before} pictures, now it has {now}; from here on other pictures are drawn")
        log = self.folder / "metrics.jsonl"                          # drop lines later than the checkpoint
        lines = [line for line in read_jsonl(log) if line["step"] <= self.start]
        write_text(log, "".join(json.dumps(line) + "\n" for line in lines))
        say(f"continuing {self.folder} from step {self.start}")

    def save(self, step):
        if self.cfg.bench:
            return
        start = time.perf_counter()
        if step and not all(value.isfinite().all() for net in self.nets.values() for value in net.state_dict().values()):
            kept = self.folder / "last.pt"
            raise UserError(f"{self.folder}: at step {step} the networks hold numbers that are not finite; "
                            + (f"{kept} is still that of step {load_checkpoint(kept)['step']}; " if kept.exists() else "no checkpoint was written; ")
                            + "start anew (--fresh, or another --run) with a smaller --lr, or --no-amp")
        rng = {"data": self.data.generator.get_state(), "torch": torch.get_rng_state()}
        if self.cfg.device.startswith("cuda"):
            rng["cuda"] = torch.cuda.get_rng_state()
        content = {"paper": paper_of(self.cfg), "step": step, "seconds": self.seconds(), "config": _comparable(self.cfg), "rng": rng, "about": self.about,
                   "pictures": _count(self.data),
                   "nets": {k: v.state_dict() for k, v in self.nets.items()},
                   "opts": {k: v.state_dict() for k, v in self.opts.items()}}
        save_checkpoint(content, self.folder / "last.pt")
        self.saved = time.perf_counter()
        self.saving = self.saved - start

    # ---- the loop

    def batches(self, batch_size):
        """Yields (step, data.sample(batch_size)) for step = 1 ... cfg.steps. Ctrl-C and SIGTERM end it after the step, saved."""
        cfg = self.cfg
        if cfg.bench:
            yield from self._bench(batch_size)
            return
        if self.legend and self.start < cfg.steps and not _state["quiet"]:
            say("health: " + "; ".join(f"{word} = {meaning}" for word, meaning in self.legend.items()) + "; else ok")
        old = self._catch_signals()
        self.bar = tqdm(total=cfg.steps, initial=self.start, unit="step", dynamic_ncols=True,
                        disable=_state["quiet"] or not sys.stderr.isatty())
        self.clock = time.perf_counter()
        step, end = self.start, min(cfg.steps, cfg.stop_after or cfg.steps)
        try:
            for step in range(self.start + 1, end + 1):
                yield step, self.data.sample(batch_size)
                self.bar.update()
                due = step % cfg.save_every == 0 and time.perf_counter() - self.saved > 50 * self.saving      # at most 2 % of the time goes into it
                if step == end or self.stop_signal or due:
                    self.save(step)
                if self.stop_signal:
                    break
        finally:
            self.bar.close()
            for number, handler in old.items():
                signal.signal(number, handler)
        if not (self.folder / "last.pt").exists():
            self.save(step)
        if self.stop_signal:
            self.plot()
            say(f"stopped at step {step} of {cfg.steps}, saved in {self.folder}; the same command{', without --fresh,' * cfg.fresh} goes on from there")
            sys.exit(128 + self.stop_signal)
        self.plot()
        say(f"step {step} of {cfg.steps}: {self.folder}/last.pt, samples/, losses.png, metrics.jsonl")

    def _catch_signals(self):
        def note(number, frame):
            self.stop_signal = number
        try:
            return {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
        except ValueError:                                           # not the main thread (a notebook's helper): leave signals alone
            return {}

    def update(self, name, loss):
        """One descent step of optimiser `name` on `loss`."""
        optimiser = self.opts[name]
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()
        if self.cfg.bench:
            self._lap(name)

    def learning_rate(self, lr):
        """Set every optimiser's learning rate."""
        for optimiser in self.opts.values():
            for group in optimiser.param_groups:
                group["lr"] = lr

    # ---- what happened

    def seconds(self):
        """Time spent in the loop so far, earlier sessions included."""
        return self.elapsed + time.perf_counter() - self.clock

    def logs(self, step):
        return not self.cfg.bench and (step % self.cfg.log_every == 0 or step in (1, self.cfg.steps))

    def samples(self, step):
        return not self.cfg.bench and (step % self.cfg.sample_every == 0 or step in (1, self.cfg.steps))

    def log(self, step, health="ok", **values):
        """Append one line to metrics.jsonl and show it. values: scalars or tensors with one element."""
        values = {k: float(v) for k, v in values.items()}
        if not all(math.isfinite(v) for v in values.values()):
            health = "nan"
        line = {"step": step, "health": health, **{k: round(v, 6) if math.isfinite(v) else None for k, v in values.items()},
                "seconds": round(self.seconds(), 2)}
        with open(self.folder / "metrics.jsonl", "a") as file:
            file.write(json.dumps(line) + "\n")
        text = " ".join(f"{k} {v:.3g}" for k, v in values.items())
        self.bar.set_postfix_str(f"{health} {text}")
        if self.bar.disable and (step % (10 * self.cfg.log_every) == 0 or step in (1, self.cfg.steps) or health != self.word):
            rate = (step - self.start) / max(1e-9, time.perf_counter() - self.clock)
            say(f"step {step}/{self.cfg.steps}  {health}  {text}  {rate:.1f} step/s, {(self.cfg.steps - step) / max(rate, 1e-9) / 60:.1f} min left")
        self.word = health
        if step % (20 * self.cfg.log_every) == 0:
            self.plot()

    def sample(self, step, image):
        """Keep a sample grid (PIL image)."""
        image.save(self.folder / "samples" / f"{step:07d}.png")

    def plot(self):
        """losses.png from metrics.jsonl."""
        lines = read_jsonl(self.folder / "metrics.jsonl")
        if len(lines) < 2:
            return
        names = [k for k in lines[-1] if k not in ("step", "health", "seconds")]
        plot = figure(3.2 * min(4, len(names)), 2.2 * math.ceil(len(names) / 4))
        for k, name in enumerate(names):
            ax = plot.add_subplot(math.ceil(len(names) / 4), min(4, len(names)), k + 1)
            ax.plot([line["step"] for line in lines], [line.get(name) if line.get(name) is not None else math.nan for line in lines], lw=.8)
            ax.set_title(name, fontsize=9)
            ax.tick_params(labelsize=7)
        plot.savefig(self.folder / "losses.png", dpi=90)

    # ---- --bench

    def _lap(self, name):
        if self.cfg.device.startswith("cuda"):
            torch.cuda.synchronize()
        now = time.perf_counter()
        self.laps[name] += now - self.clock
        self.clock = now

    def _bench(self, batch_size):
        from torch.utils.flop_counter import FlopCounterMode
        cycle = d_steps_per_G(self.cfg)
        warm_up, timed = max(5, cycle), cycle * math.ceil((10 if self.cfg.device == "cpu" else 50) / cycle)
        end = self.cfg.steps // cycle * cycle                           # the last steps: every loss at its full weight
        self.timed = timed
        for k in range(warm_up + timed):
            if k == warm_up:
                self.laps.clear()
                if self.cfg.device.startswith("cuda"):
                    torch.cuda.reset_peak_memory_stats()               # drawing, judges and the trials of cuDNN are over
            self.clock = time.perf_counter()
            batch = self.data.sample(batch_size)
            self._lap("data")
            yield end - (warm_up + timed - 1 - k) % cycle, batch
            self._lap("other")
        self.peak = torch.cuda.max_memory_allocated() if self.cfg.device.startswith("cuda") else 0
        laps, counter = dict(self.laps), FlopCounterMode(display=False)      # the counted steps are no measure of time
        counter.mod_tracker = _NoModules()                          # its hooks on modules do not survive the gradient penalty's autograd.grad
        with counter:
            for k in reversed(range(cycle)):
                yield end - k, self.data.sample(batch_size)
        self.laps, self.flops = laps, counter.get_total_flops() / cycle
        _state["bench"] = self


def d_steps_per_G(cfg):
    """Steps of D until G has its turn, under whichever of its names the paper knows them."""
    return max(getattr(cfg, "n_critic", 1), getattr(cfg, "d_steps", 1))


def _count(data):
    return len(data) if hasattr(data, "__len__") else None


class _NoModules(contextlib.nullcontext):
    parents = frozenset(("Global",))


def branch(trunk, cfg):
    """Let the run cfg begin where the finished run `trunk` (a cfg) stopped, under cfg's own settings. A run that already began is left alone."""
    if not (Path(cfg.run) / "last.pt").exists():
        saved = load_checkpoint(Path(trunk.run) / "last.pt")
        if saved["step"] != trunk.stop_after:
            raise UserError(f"{trunk.run} stands at step {saved['step']}, expected {trunk.stop_after}; add --fresh to start over")
        Path(cfg.run).mkdir(parents=True, exist_ok=True)
        save_checkpoint(saved | {"config": _comparable(cfg), "seconds": 0.}, Path(cfg.run) / "last.pt")


def data_folders(cfg):
    """cfg.data as a list: some papers take one folder, some several; [] = toy faces."""
    return list(cfg.data) if isinstance(cfg.data, tuple) else [cfg.data] if cfg.data else []


def paper_of(cfg):
    """The name of the file that defines this Config."""
    return Path(inspect.getfile(type(cfg))).stem


def _comparable(cfg):
    """The fields that make two runs the same run, as plain values."""
    return {f.name: (list(v) if isinstance(v := getattr(cfg, f.name), tuple) else v)
            for f in dataclasses.fields(cfg) if f.name not in NOT_IN_CHECKPOINT}


def command():
    return " ".join(["python", Path(sys.argv[0]).name, *sys.argv[1:]])


def write_text(path, text):
    """Written beside and renamed: whatever happens, the file is the old or the new one, whole."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".part")
    partial.write_text(text)
    os.replace(partial, path)


def write_json(path, content):
    write_text(path, json.dumps(content, indent=1, default=str) + "\n")


def read_json(path):
    """The dict in a file; an empty one if the file is not there or damaged."""
    try:
        content = json.loads(Path(path).read_text())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def read_jsonl(path):
    """The lines of a log, each a dict with its step; what is damaged, such as a last line that was cut off by a kill, is left out."""
    found = []
    for line in Path(path).read_text(errors="replace").splitlines() if Path(path).exists() else []:
        with contextlib.suppress(ValueError):
            content = json.loads(line)
            if isinstance(content, dict) and isinstance(content.get("step"), int):
                found.append(content)
    return found


def save_checkpoint(content, path):
    """Written beside and renamed: whatever happens, `path` is the old or the new one, whole."""
    partial = path.with_name(path.name + ".part")
    try:
        torch.save(content, partial)
        os.replace(partial, path)
    except (OSError, RuntimeError) as error:                            # torch reports a full disk as RuntimeError
        partial.unlink(missing_ok=True)
        raise UserError(f"{path}: cannot be written ({str(error).splitlines()[0][:90]}); the last checkpoint is untouched") from None


def load_checkpoint(path):
    """torch.load(weights_only=True), or a UserError: a checkpoint with code in it is refused, a damaged one is named."""
    try:
        saved = torch.load(path, map_location="cpu", weights_only=True)
        if not isinstance(saved, dict) or not all(isinstance(k, str) for k in saved):
            raise ValueError(f"holds {type(saved).__name__}, expected a dictionary of names")
        if "paper" in saved and zipfile.is_zipfile(path):               # torch.load does not look at the sums
            with zipfile.ZipFile(path) as parts:
                if damaged := parts.testzip():
                    raise ValueError(f"{damaged} in it is damaged")
        return saved
    except FileNotFoundError:
        raise UserError(f"{path}: no such checkpoint; train first, or give --run") from None
    except Exception as error:
        raise UserError(f"{path}: not a checkpoint that can be loaded safely ({(str(error) or 'empty').splitlines()[0][:90]})") from None


def reads_checkpoint(read):
    """Decorator of functions of a path, or else of a cfg: what a checkpoint lacks or holds in another form becomes a UserError that names it."""
    @functools.wraps(read)
    def careful(*args):
        try:
            return read(*args)
        except (KeyError, TypeError, ValueError, AttributeError, IndexError, RuntimeError) as error:
            if _no_memory(error):
                raise
            path = next((arg for arg in args if isinstance(arg, (str, Path))), None) or args[0].weights or args[0].run
            raise UserError(f"{path}: not a checkpoint that fits here ({type(error).__name__}: {(str(error) or '?').splitlines()[0][:90]}); "
                            "give another --run or --weights") from None
    return careful


def _no_memory(error):
    """Does this error tell of too little memory? (CUDA's libraries and a processor's allocator raise plain RuntimeErrors.)"""
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or any(text in str(error) for text in ("can't allocate memory", "STATUS_ALLOC_FAILED"))


def check_paper(saved, path, paper, parts=("step", "config", "nets")):
    """A UserError if a checkpoint of ours belongs to another paper's script, or if a part of it is not there."""
    if saved.get("paper") != paper:
        raise UserError(f"{path}: a checkpoint of {saved.get('paper', 'something else')}, not of {paper}; give another --run or --weights")
    kinds = {"step": int, "seconds": (int, float)}
    lost = [part for part in parts if not isinstance(saved.get(part), kinds.get(part, dict))]
    lost += [f"{part} of {name}" for part in ("nets", "opts") if part in parts and part not in lost
             for name, state in saved[part].items() if not isinstance(state, dict)]
    if lost:
        raise UserError(f"{path}: an incomplete checkpoint, without {', '.join(lost)}; give another --run or --weights")


def steps_of(path, cfg):
    """For how many steps the run whose checkpoint is `path`, of the same paper as cfg, was started."""
    saved = load_checkpoint(path)
    check_paper(saved, path, paper_of(cfg))
    return saved["config"]["steps"]


def adopt(cfg, saved, names):
    """Let cfg take over the settings `names` of a checkpoint of ours, and its data unless cfg has some.

    (A setting that an older version did not know stays as it is.)
    """
    for name in (*names, *(() if cfg.data else ("data",))):
        value = saved["config"].get(name, getattr(cfg, name))
        setattr(cfg, name, tuple(value) if isinstance(value, list) else value)


def load_weights(net, state, source):
    """net.load_state_dict with an error that lists what is missing, unexpected or of another shape."""
    mine = net.state_dict()
    missing, unexpected = sorted(mine.keys() - state.keys()), sorted(state.keys() - mine.keys())
    shapes = [f"{k} {tuple(getattr(state[k], 'shape', '?'))} instead of {tuple(mine[k].shape)}" for k in mine
              if k in state and getattr(state[k], "shape", None) != mine[k].shape]
    if missing or unexpected or shapes:
        def few(words):
            return ", ".join(words[:3]) + (f" and {len(words) - 3} more" if len(words) > 3 else "") if words else "none"
        raise UserError(f"{source}: does not fit this network; missing: {few(missing)}; unexpected: {few(unexpected)}; other shape: {few(shapes)}")
    net.load_state_dict(state)
    return net


def hardware(cfg):
    """The machine, in words, for reports."""
    if cfg.device.startswith("cuda"):
        return torch.cuda.get_device_name(cfg.device)
    name = next((line.split(":")[1].strip() for line in open("/proc/cpuinfo") if line.startswith("model name")), "") if os.path.exists("/proc/cpuinfo") else ""
    return f"{os.cpu_count()} cores, {name or 'CPU'}"


def commit():
    """The project's git commit, for reports; '+' marks uncommitted changes."""
    import subprocess
    here = Path(__file__).parent
    try:
        head = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=here, capture_output=True, text=True, check=True).stdout.strip()
        return head + ("+" if subprocess.run(["git", "diff", "--quiet", "HEAD", "--", "*.py"], cwd=here).returncode else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def in_parallel(function, jobs, device):
    """[function(job) for job in jobs], on a CPU one process with one thread per core, on a GPU one after the other."""
    workers = 1 if device != "cpu" else min(len(jobs), os.cpu_count())
    if workers < 2:
        return [function(job) for job in jobs]
    with torch.multiprocessing.get_context("spawn").Pool(workers, _alone_on_a_core) as pool:      # leaving it ends the workers
        return list(tqdm(pool.imap(function, jobs), "runs", len(jobs), disable=not sys.stderr.isatty()))


def _alone_on_a_core():
    torch.set_num_threads(1)
    _state["quiet"] = True


# ============================================================================================== reports, ablations

def evaluation(cfg, rows, notes, **more):
    """The report of an evaluation, written to cfg.run/evaluation.json: rows {name: {measure: number}}, notes, and how it was made."""
    result = {"command": command(), "hardware": hardware(cfg), "commit": commit(), "notes": notes, "rows": rows, **more}
    write_json(Path(cfg.run) / "evaluation.json", result)
    return result


def ablation_folder(cfg):
    """Where an ablation's trainings go: cfg.run/ablation, emptied with cfg.fresh. UserError for real data, which have no known truth."""
    if cfg.data:
        raise UserError("--ablate measures against the truth, which only toy faces have; leave --data out")
    folder = Path(cfg.run) / "ablation"
    if cfg.fresh:
        shutil.rmtree(folder, ignore_errors=True)
    return folder


class Ablation:
    """The trainings of an ablation, {(name, seed): cfg}, and what comes of them: rows and claims over the seeds.

    run(function, device): results[name, seed] = function(cfg), a dict of numbers. row and claim: see there. write(cfg): the report.
    checkpoints: where in a run's folder they are; those of another length are refused.
    """

    def __init__(self, jobs, checkpoints="last.pt"):
        self.jobs, self.seeds = jobs, tuple(dict.fromkeys(seed for _, seed in jobs))
        self.rows, self.claims, self.criteria = {}, [], {}
        for one in jobs.values():
            for last in Path(one.run).glob(checkpoints):
                if (steps := steps_of(last, one)) != one.steps:
                    raise UserError(f"{one.run} was trained for {steps} steps, now {one.steps}; give the same --steps, another --run folder, or --fresh")

    def run(self, function, device):
        self.results = dict(zip(self.jobs, in_parallel(function, list(self.jobs.values()), device), strict=True))

    def values(self, name, key):
        """One number a seed."""
        return np.array([self.results[name, seed][key] for seed in self.seeds])

    def row(self, title, **columns):
        """columns: arrays of one number a seed, shown as mean and standard deviation."""
        for what, f in (("mean", np.mean), ("std", lambda v: np.std(v, ddof=1))):
            self.rows[f"{title}, {what}"] = {column: float(f(v)) for column, v in columns.items()}

    def claim(self, part, what, without, with_, percent=False, **criteria):
        """without, with_: one number a seed; criteria: met or not, named by what they say."""
        self.criteria |= {f"{part}: {k.replace('_', ' ')}": bool(v) for k, v in criteria.items()}
        text = (lambda v: f"{100 * v.mean():.1f} ± {100 * v.std(ddof=1):.1f} %") if percent else (lambda v: f"{v.mean():.4f} ± {v.std(ddof=1):.4f}")
        good = sum(map(bool, criteria.values()))
        self.claims.append({"part": part, "what": what, "without": text(without), "with": text(with_),
                            "seeds without": without.tolist(), "seeds with": with_.tolist(),
                            "verdict": "reproduced" if good == len(criteria) else "partly reproduced" if good else "not reproduced"})

    def write(self, cfg):
        """The report as ablation.json, or ablation_<part>.json, in cfg.run, with a picture of the claims beside it (.png), and printed."""
        part = getattr(cfg, "part", "all")
        path = Path(cfg.run) / ("ablation.json" if part == "all" else f"ablation_{part}.json")
        verdicts = {c["verdict"] for c in self.claims}
        result = {"command": command(), "commit": commit(), "hardware": hardware(cfg), "torch": torch.__version__, "seeds": self.seeds,
                  "steps": max(one.steps for one in self.jobs.values()),
                  "seconds": sum(read_jsonl(log)[-1]["seconds"] for one in self.jobs.values() for log in Path(one.run).rglob("metrics.jsonl")),
                  "rows": self.rows, "criteria": self.criteria, "verdict": verdicts.pop() if len(verdicts) == 1 else "partly reproduced",
                  "claims": self.claims, "runs": {f"{name}, seed {seed}": values for (name, seed), values in self.results.items()}}
        write_json(path, result)
        draw_claims(self.claims, path.with_suffix(".png"))
        print(table(result))
        print("; ".join(f"{k}: {'yes' if v else 'no'}" for k, v in self.criteria.items()))


def draw_claims(claims, path):
    """One panel a claim: without and with, a dot for each seed, joined."""
    sheet = figure(2.6 * len(claims), 3)
    for k, one in enumerate(claims):
        ax = sheet.add_subplot(1, len(claims), k + 1)
        for pair in zip(one["seeds without"], one["seeds with"], strict=True):
            ax.plot([0, 1], pair, color="tab:blue", marker="o", lw=1)
        ax.set(xticks=[0, 1], xticklabels=["without", "with"], xlim=(-.3, 1.3), ylim=(min(0, *one["seeds without"], *one["seeds with"]), None))
        ax.set_title(f"{one['part']}: " + textwrap.fill(one["what"], 34), fontsize=7)
    sheet.savefig(path, dpi=110)


# ================================================================================================== command line

MODES = {
    "train": "train; an existing run is continued", "evaluate": "metrics on held-out faces", "ablate": "the paper's claim: with and without",
    "infer": "translate your own files", "explain": "every equation, its function, weight and tests",
    "check": "what is under --data", "bench": "time, memory and FLOPs of a step of this recipe",
}


class _Parser(argparse.ArgumentParser):
    def error(self, message):
        raise UserError(f"{message}; see --help")


def _number(kind):
    """kind, str as it is; int and float only from 0 on, finite, and no larger than anything here can be."""
    if kind not in (int, float):
        return kind

    def number(text):
        value = kind(text)
        if not math.isfinite(value) or value < 0 or kind is int and value > 10 ** 7:
            raise ValueError
        return value
    number.__name__ = {int: "whole number, 0 ... 10,000,000", float: "number >= 0"}[kind]
    return number


def _flag(parser, field, default, source):
    """One field of a Config as a flag. Its type is that of its default."""
    name = "--" + field.name.replace("_", "-")
    if isinstance(default, bool) or field.name == "amp":
        parser.add_argument(name, action=argparse.BooleanOptionalAction, default=None, help=source)
    elif field.metadata.get("action") == "append":
        parser.add_argument(name, action="append", default=None, metavar="DIR", help=source)
    elif isinstance(default, tuple):
        parser.add_argument(name, nargs="+", type=_number(field.metadata.get("type") or type(default[0])), default=None, metavar="N", help=source)
    else:
        choices = field.metadata.get("choices")
        parser.add_argument(name, type=_number(type(default)), choices=choices, default=None, help=source,
                            metavar=None if choices else field.name.upper())


def sources(cls):
    """{field: trailing comment} of a Config and its bases, read from the source itself."""
    found = {}
    for base in reversed(cls.__mro__):
        if dataclasses.is_dataclass(base):
            for name, comment in re.findall(r"^    (\w+):.*?#\s*(.*)$", inspect.getsource(base), re.M):
                found[name] = comment
    return found


def cli(name):
    """The command line of the paper in module `name`. See --help.

    The module holds Config, SMALL, train, evaluate, ablate, infer, scan and INFER_FLAGS, a dict of extra flags for infer.
    """
    paper = sys.modules[name]
    with contextlib.suppress(AttributeError):                           # a file's name may be no text at all
        sys.stdout.reconfigure(errors="backslashreplace")
    with contextlib.suppress(ValueError):                               # SIGTERM outside a training: leave like sys.exit
        signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    try:
        sys.exit(_main(paper, sys.argv[1:]))
    except UserError as error:
        message = str(error).replace("\n", " ")                         # a file's name, or what is in it, may be anything
        print("error:", message if len(message) < 600 else f"{message[:300]} ... {message[-250:]}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print(f"stopped; the same command{', without --fresh,' * ('--fresh' in sys.argv)} goes on from the last checkpoint", file=sys.stderr)
        sys.exit(130)
    except (MemoryError, RuntimeError) as error:
        if "PytorchStreamWriter" not in str(error) and not _no_memory(error):
            raise
        print("error: a file cannot be written; is the disk full?" if "PytorchStreamWriter" in str(error)
              else "error: out of memory; give a smaller --batch-size, --image-size or network", file=sys.stderr)
        sys.exit(2)
    except OSError as error:
        print(f"error: {f'{error.filename}: ' if error.filename else ''}{error.strerror or error}", file=sys.stderr)
        sys.exit(2)


def _main(paper, argv):
    title = Path(paper.__file__).stem
    parser = _Parser(title, description=paper.__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    modes = parser.add_argument_group("modes (they combine, in this order)")
    for mode, text in MODES.items():
        if mode == "infer":
            modes.add_argument("--infer", nargs="+", metavar="FILE", help=text)
        else:
            modes.add_argument(f"--{mode}", action="store_true", help=text)
    options = parser.add_argument_group("options")
    options.add_argument("--scale", choices=("auto", "paper", "small"), default="auto",
                         help="paper: the paper's recipe; small: minutes on a CPU; auto: paper where CUDA is there")
    comments = sources(paper.Config)
    defaults = paper.Config()
    for field in dataclasses.fields(paper.Config):
        if field.name != "bench":
            _flag(options, field, getattr(defaults, field.name), comments.get(field.name, "").replace("%", "%%"))
    inference = parser.add_argument_group("options of --infer")
    for flag, kwargs in paper.INFER_FLAGS.items():
        inference.add_argument(flag, **kwargs)
    args = parser.parse_args(argv)
    if not any(getattr(args, mode) for mode in MODES):
        parser.print_help()
        return 2

    scale = args.scale if args.scale != "auto" else "paper" if torch.cuda.is_available() and args.device != "cpu" else "small"
    given = {f.name: v for f in dataclasses.fields(paper.Config) if (v := getattr(args, f.name, None)) is not None}
    given = {k: tuple(v) if isinstance(v, list) else v for k, v in given.items()}
    preset = dict(paper.SMALL) if scale == "small" else {}
    if "epochs" in given:
        preset.pop("steps", None)
    cfg = paper.Config(**{**preset, **given})
    cfg.run = cfg.run or f"runs/{getattr(cfg, 'model', title)}"
    for field in ("steps", "batch_size", "image_size", "log_every", "save_every", "sample_every"):
        if given.get(field, 1) < 1:
            raise UserError(f"--{field.replace('_', '-')} {getattr(cfg, field)}: expected at least 1")
    for field, most in (("residual_blocks", 100), ("d_layers", 100), ("width", 4096), ("pose", 1.5)):
        if getattr(cfg, field, 0) > most:
            raise UserError(f"--{field.replace('_', '-')} {getattr(cfg, field)}: expected at most {most}")
    if len(cfg.betas) != 2 or max(cfg.betas) >= 1:
        raise UserError(f"--betas {' '.join(map(str, cfg.betas))}: expected two numbers from 0 to below 1")
    for folder in data_folders(cfg):
        if not Path(folder).is_dir():
            raise UserError(f"--data {folder}: no such folder")

    if args.explain:
        print(explain(paper))
    if args.check:
        check(paper, cfg)
    if not (args.train or args.evaluate or args.ablate or args.infer or args.bench):
        return 0
    settle(cfg)
    machine, data = f"{hardware(cfg)}, {'bfloat16' if cfg.amp else 'float32'}", " and ".join(data_folders(cfg))
    if args.train or args.ablate or args.bench:
        say(f"{title}: {scale} recipe on {machine}, {cfg.image_size} px, batch {cfg.batch_size}, {data or 'toy faces'}")
    else:                                                               # sizes, and the data if not given, come from the checkpoint
        say(f"{title}: {cfg.weights or cfg.run} on {machine}" + f", {data}" * bool(data))
    if args.bench:
        bench(paper, cfg)
    if args.train and not _trains(paper, cfg):
        size, why = cfg.batch_size // 2, ""
        try:
            while size and not _steps_fit(paper, cfg, size):
                size //= 2
        except UserError as error:                                      # the paper's file refuses this size, and so the smaller ones
            size, why = 0, f" ({error})"
        raise UserError(f"--batch-size {cfg.batch_size}: too much for the memory of {hardware(cfg)}; "
                        + (f"--batch-size {size} fits" if size else f"no other fits either{why}; give a smaller --image-size"))
    if args.train:
        cfg.weights = ""                                                # the training began with them; what follows is about its result
    if args.evaluate:
        print(table(paper.evaluate(cfg)))
    if args.ablate:
        paper.ablate(cfg)
    if args.infer:
        folder = Path(args.out or Path(cfg.run) / "inferred").resolve()
        for file in args.infer:
            if folder in (Path(file).resolve(), Path(file).resolve().parent):
                raise UserError(f"{file}: lies where the results go, and might be overwritten; give another --out")
        extra = {flag.strip("-").replace("-", "_"): getattr(args, flag.strip("-").replace("-", "_")) for flag in paper.INFER_FLAGS}
        torch.backends.cudnn.benchmark = False                         # trials for every new size of picture would take longer than they save
        paper.infer(cfg, args.infer, **extra)
    return 0


def _trains(paper, cfg):
    """Train; False if the GPU's memory is too small. --fresh ends the run that was there, but not for one that does not fit."""
    replaces = cfg.fresh and cfg.device.startswith("cuda") and any(Path(cfg.run).rglob("last.pt"))
    return (not replaces or _steps_fit(paper, cfg, cfg.batch_size)) and _fits(paper, cfg)


def _steps_fit(paper, cfg, batch_size):
    """Do a few steps of this batch size fit into the GPU's memory? In a folder of their own: cfg.run is left alone."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            return _fits(paper, dataclasses.replace(cfg, batch_size=batch_size, bench=True, run=folder))
        except KeyboardInterrupt:
            raise UserError(f"stopped while trying what fits into memory; {cfg.run} is as it was") from None


def _fits(paper, cfg):
    """Train (with cfg.bench: a few steps only); False if the GPU's memory is too small."""
    fits = True
    try:
        paper.train(cfg)
    except RuntimeError as error:
        if not isinstance(error, torch.OutOfMemoryError) and not (cfg.device.startswith("cuda") and _no_memory(error)):
            raise
        fits = False
    if cfg.bench or not fits:                                          # nothing of it may take memory from the training that follows
        _state.pop("bench", None)
        gc.collect()                                                   # it lives on in cycles, such as prepare's
        torch.cuda.empty_cache()
    return fits


def table(result):
    """rows of a report, {name: {measure: number}}, as aligned text; then its notes and verdict. Rows that share no measure with
    those above them get a heading of their own."""
    blocks, width = [], max(map(len, result["rows"])) + 2
    for name, row in result["rows"].items():
        if not blocks or not any(row.keys() & above.keys() for above in blocks[-1].values()):
            blocks.append({})
        blocks[-1][name] = row
    lines = []
    for rows in blocks:
        columns = list(dict.fromkeys(k for row in rows.values() for k in row))
        lines.append(" " * width + "".join(f"{c:>{max(10, len(c) + 2)}}" for c in columns))
        for name, row in rows.items():
            lines.append(f"{name:<{width}}" + "".join(f"{row[c]:>{max(10, len(c) + 2)}.4f}" if c in row else " " * max(10, len(c) + 2) for c in columns))
    return "\n".join(lines + [f"{k}: {result[k]}" for k in ("notes", "summary", "verdict") if k in result])


# ---- --explain

def equations(paper):
    """[(label, name)] that the paper's module docstring lists, one a line as '  [label] name', e.g. '  [2.3.4] triple consistency'."""
    return re.findall(r"^\s+\[([\w.()]+)\] (.+?)\s*$", paper.__doc__, re.M)


def loss_functions(paper):
    """{name: function} of the functions in the paper's file that are named loss_*, or whose docstring starts with an equation's [label]."""
    return {k: f for k, f in vars(paper).items() if inspect.isfunction(f) and f.__module__ == paper.__name__
            and (k.startswith("loss_") or re.match(r"\[[\w.()]+\]", f.__doc__ or ""))}


def tests_of(name, folder):
    """Names of the tests under `folder` whose body mentions `name`."""
    found = []
    for path in sorted(Path(folder).glob("test_*.py")):
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
                names = {n.attr if isinstance(n, ast.Attribute) else n.id for n in ast.walk(node) if isinstance(n, (ast.Attribute, ast.Name))}
                if name in names:
                    found.append(f"{path.name}::{node.name}")
    return found


def explain(paper):
    """Every equation of the paper: formula, function:line, weight (the paper's, ours), its source, and the tests that cover it."""
    comments, config = sources(paper.Config), paper.Config()
    functions, file, out = loss_functions(paper), Path(paper.__file__), []
    for label, title in equations(paper):
        out.append(f"[{label}] {title}")
        for name, function in functions.items():
            doc = inspect.cleandoc(function.__doc__)
            if not doc.startswith(f"[{label}]"):
                continue
            out.append(f"    {doc.splitlines()[0][len(label) + 2:].strip()}")
            out.append(f"    {file.name}:{inspect.getsourcelines(function)[1]}  {name}{inspect.signature(function)}")
            weight = re.search(r"Weight: (\w+)", doc)
            if weight:
                field = weight.group(1)
                small = paper.SMALL.get(field, getattr(config, field))
                out.append(f"    weight {field} = {getattr(config, field)} ({comments.get(field, 'no source')}); small recipe {small}")
            tests = tests_of(name, file.parent / "tests")
            out.append(f"    tests: {', '.join(tests) or 'none'}")
        out.append("")
    return "\n".join(out)


# ---- --check

def check(paper, cfg):
    """Print what is under --data: a tree with counts and sizes, what the paper's loader makes of it, and the memory it needs."""
    if not cfg.data:
        print("no --data: toy faces are drawn from parameters; nothing to check")
        return
    for folder in data_folders(cfg):
        _check(paper, dataclasses.replace(cfg, data=(folder,) if isinstance(cfg.data, tuple) else folder), Path(folder))


def _check(paper, cfg, root):
    folders = {folder: [p.name for p in folder.iterdir() if not p.is_dir()] for folder in folders_below(root)}
    print(f"{root}  ({sum(map(len, folders.values()))} files)")
    for shown, (folder, names) in enumerate(folders.items()):
        if shown == 30:
            print(f"  ... and {len(folders) - 30} more folders")
            break
        kinds = Counter(Path(name).suffix.lower() or "(none)" for name in names)
        pictures = [name for name in names if name.lower().endswith(IMAGE_FILES)]
        sizes = []
        for name in pictures[::max(1, len(pictures) // 20)]:
            with contextlib.suppress(UserError):
                sizes.append(picture_size(folder / name))
        span = f"  {min(w for w, _ in sizes)}-{max(w for w, _ in sizes)} x {min(h for _, h in sizes)}-{max(h for _, h in sizes)} px" if sizes else ""
        depth = len(folder.relative_to(root).parts)
        print("  " * depth + f"{folder.name if depth else '.'}/  " + ", ".join(f"{c} {k}" for k, c in kinds.most_common()) + span)
    found = paper.scan(cfg)
    for key, value in found["notes"].items():
        print(f"{key}: {value}")
    unreadable = []
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        for bad in pool.map(_header_error, found["images"]):
            if bad:
                unreadable.append(bad)
    print(f"unreadable pictures: {len(unreadable)}" + "".join(f"\n  {bad}" for bad in unreadable[:5]))
    print(f"decoded: {len(found['images']) * found['bytes_per_image'] / 2 ** 20:.0f} MiB as one uint8 array")
    report_bad(found["bad"], len(found["images"]) + len(found["bad"]), cfg.skip_bad)


def _header_error(path):
    try:
        picture_size(path)
    except UserError as error:
        return str(error)


# ---- --bench

def bench(paper, cfg):
    """ms per step split into data, D, G; pictures/s; peak memory; FLOPs of a step and the share of the device's own matmul rate."""
    with tempfile.TemporaryDirectory() as folder:
        cuda = cfg.device.startswith("cuda")
        paper.train(dataclasses.replace(cfg, run=folder, bench=True))
        run = _state.pop("bench")
        ms = {k: 1e3 * v / run.timed for k, v in run.laps.items()}
        total = sum(ms.values())
        if cuda:
            memory = f"{run.peak / 2 ** 30:.2f} GiB on the GPU"
        else:
            import resource
            memory = f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2 ** 20:.2f} GiB resident"
        rate, flops = _matmul_rate(cfg), run.flops / (total / 1e3)
        print(f"{total:.1f} ms per step: " + ", ".join(f"{k} {v:.1f}" for k, v in ms.items()) + f" (mean of {run.timed} steps)")
        print(f"{cfg.batch_size / total * 1e3:.0f} pictures/s, peak memory {memory}")
        print(f"{run.flops / 1e9:.1f} GFLOP per step, {flops / 1e12:.3f} TFLOP/s = {100 * flops / rate:.0f} % of this device's matmul rate "
              f"({rate / 1e12:.2f} TFLOP/s in {'bfloat16' if cfg.amp else 'TF32' if cuda else 'float32'})")
        return {"ms": ms, "flops": run.flops, "matmul_rate": rate, "batch_size": cfg.batch_size}


def _matmul_rate(cfg):
    n = 8192 if cfg.device.startswith("cuda") else 2048
    x = torch.randn(n, n, device=cfg.device, dtype=torch.bfloat16 if cfg.amp else torch.float32)
    best = math.inf
    for _ in range(4):
        start = time.perf_counter()
        x @ x
        if cfg.device.startswith("cuda"):
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - start)
    return 2 * n ** 3 / best
