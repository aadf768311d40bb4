"""The mathematics that several of the papers share.

    networks      conv_block, ResidualBlock, ResNet, PatchGAN, init_normal; ImagePool
    GAN losses    vanilla, LSGAN, hinge, WGAN, each as D's and G's side; gradient_penalty
    schedule      linear_decay
    landmarks     heatmaps, 68 and 66 points, mirror order, the box around a face

Pictures are float32 [B, 3, H, W] in [-1, 1]. Networks return float32: under autocast they compute in
bfloat16, and losses should not.
"""
import torch
import torch.nn as nn
import torch.nn.functional as F

# ============================================================================================= networks

NORMS = {
    None: lambda c: nn.Identity(),
    "batch": nn.BatchNorm2d,
    "instance": nn.InstanceNorm2d,                                  # no affine, no running statistics
    "instance-affine": lambda c: nn.InstanceNorm2d(c, affine=True),
}


def conv_block(c_in, c_out, kernel, stride, padding, norm=None, act=None, up=False, bias=True,
               padding_mode="zeros", dilation=1):
    """Convolution (or transposed convolution, `up`), normalisation, activation, as a flat list of layers."""
    if up:
        conv = nn.ConvTranspose2d(c_in, c_out, kernel, stride, padding, bias=bias)
    else:
        conv = nn.Conv2d(c_in, c_out, kernel, stride, padding, dilation, bias=bias, padding_mode=padding_mode)
    layers = conv, NORMS[norm](c_out), act
    return [layer for layer in layers if layer is not None and not isinstance(layer, nn.Identity)]


class ResidualBlock(nn.Module):
    """x + norm(conv(act(norm(conv(x))))), 3 x 3, no activation after the sum.

    He et al. 2016, in the form of Johnson et al. 2016. x: [B, channels, H, W] -> the same.
    """

    def __init__(self, channels, norm="instance", act=None, bias=True, padding_mode="zeros", dilation=1):
        super().__init__()
        act, same = act or nn.ReLU(), dict(bias=bias, padding_mode=padding_mode, dilation=dilation)
        self.body = nn.Sequential(*conv_block(channels, channels, 3, 1, dilation, norm, act, **same),
                                  *conv_block(channels, channels, 3, 1, dilation, norm, **same))

    def forward(self, x):
        return x + self.body(x)


class PatchGAN(nn.Module):
    """A discriminator that scores patches (Isola et al. 2017, section 3.2.2).

    One convolution per entry of `widths`, with the stride in `strides`; `norm` after each but the first; then
    a head with one output channel. forward(*pictures): each [B, c, H, W], joined (in_channels counts
    all). Returns unbounded scores [B, 1, h, w].
    """

    def __init__(self, in_channels=3, widths=(64, 128, 256, 512), strides=(2, 2, 2, 1), kernel=4, norm=None,
                 slope=.2, head_kernel=4, head_bias=True):
        super().__init__()
        layers, c, padding = [], in_channels, 1 if kernel > 1 else 0
        for k, (width, stride) in enumerate(zip(widths, strides, strict=True)):
            layers += conv_block(c, width, kernel, stride, padding, norm if k else None, nn.LeakyReLU(slope),
                                 bias=not (k and norm == "batch"))
            c = width
        self.trunk = nn.Sequential(*layers)
        self.head = nn.Conv2d(c, 1, head_kernel, 1, 1 if head_kernel > 1 else 0, bias=head_bias)

    def forward(self, *pictures):
        return self.head(self.trunk(torch.cat(pictures, 1))).float()

    def receptive_field(self):
        """Side of the square of input pixels that one score sees."""
        return receptive_field(nn.Sequential(self.trunk, self.head))


class ResNet(nn.Module):
    """CycleGAN's generator (Zhu et al. 2017, section 7.2): c7s1-64, d128, d256, R256 x 9, u128, u64, c7s1-3.

    Reflection padding where the stride is 1. 11,378,179 parameters with 9 blocks. nearest: u layers repeat
    pixels and convolve, which no checkerboard can come of; the paper's are transposed convolutions.
    forward(x [B, 3, S, S]) -> [B, 3, S, S], both in [-1, 1]; S is a multiple of 4.
    """

    def __init__(self, residual_blocks=9, width=64, nearest=False):
        super().__init__()
        w, act, norm, reflect = width, nn.ReLU(), "instance", dict(padding_mode="reflect")

        def up(c_in, c_out):
            if nearest:
                return [nn.Upsample(scale_factor=2), *conv_block(c_in, c_out, 3, 1, 1, norm, act, **reflect)]
            return [nn.ConvTranspose2d(c_in, c_out, 3, 2, 1, output_padding=1), NORMS[norm](c_out), act]

        self.main = nn.Sequential(
            *conv_block(3, w, 7, 1, 3, norm, act, **reflect),                      # w  x S   x S
            *conv_block(w, 2 * w, 3, 2, 1, norm, act),                             # 2w x S/2 x S/2
            *conv_block(2 * w, 4 * w, 3, 2, 1, norm, act),                         # 4w x S/4 x S/4
            *(ResidualBlock(4 * w, norm, act, **reflect) for _ in range(residual_blocks)),
            *up(4 * w, 2 * w), *up(2 * w, w),                                      # w  x S   x S
            nn.Conv2d(w, 3, 7, 1, 3, **reflect), nn.Tanh())

    def forward(self, x):
        return self.main(x).float()


def add_noise(x, std):
    """x with normal noise of this standard deviation; 0: x itself."""
    return x + std * torch.randn_like(x) if std else x


class ImagePool(nn.Module):
    """`size` earlier generated pictures (CycleGAN, section 4). forward(x) [B, 3, S, S]: what D is shown.

    While the pool fills, pictures go in and come back. Once it is full, each picture is exchanged for an
    older one half of the time. It is a module, so that checkpoints hold it. size: 0, or at least B.
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


def init_normal(net):
    """Every (transposed) convolution and linear weight ~ N(0, .02), biases 0; batch norm scale ~ N(1, .02).

    DCGAN's rule (Radford et al. 2016), in all official codes of the papers here except StarGAN's. Returns
    net.
    """
    for m in net.modules():
        if isinstance(m, (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)):
            nn.init.normal_(m.weight, 0., .02)
            if m.bias is not None:
                nn.init.zeros_(m.bias)
        elif isinstance(m, nn.BatchNorm2d):
            nn.init.normal_(m.weight, 1., .02)
    return net


def n_parameters(net):
    return sum(p.numel() for p in net.parameters())


# =========================================================================================== GAN losses
# Every loss is *minimised*. real, fake: unbounded scores of any shape; the mean runs over batch and patches.

def vanilla_D(real, fake):
    """-log s(real) - log(1 - s(fake)), s the sigmoid (Goodfellow et al. 2014)."""
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
    """-real + fake: minus a bound of the Wasserstein distance (Arjovsky et al. 2017)."""
    return fake.mean() - real.mean()


wgan_G = hinge_G


def gradient_penalty(critic, real, fake):
    """E[(||grad D(x^)||_2 - 1)^2], x^ = a real + (1 - a) fake (Gulrajani et al. 2017).

    a ~ U(0, 1), one a picture. critic: [B, c, H, W] -> scores of any shape. They are *summed* over patches,
    as in the official StarGAN code; one norm a picture, over all its pixels and channels. real, fake: same
    shape, detached here. Returns a scalar whose gradient reaches the critic only. Call it outside autocast:
    squares of gradients do not fit bfloat16. Give the critic's `forward`: a compiled network has no second
    derivative.
    """
    a = torch.rand(len(real), 1, 1, 1, device=real.device)
    x_hat = (a * real.detach() + (1 - a) * fake.detach()).requires_grad_(True)
    gradient, = torch.autograd.grad(critic(x_hat).sum(), x_hat, create_graph=True)
    return ((gradient.flatten(1).norm(dim=1) - 1) ** 2).mean()


def linear_decay(step, steps, start):
    """The learning rate's factor at `step` (1 ... steps): 1 until start * steps, then to 0 linearly.

    start: in [0, 1]; 1 = constant to the end.
    """
    return min(1., (steps + 1 - step) / (steps * (1 - start) + 1))


# ============================================================================================ landmarks
# 68 points in the iBUG / 300-W order. 66 points: the same without the inner mouth corners (0-based 60 and
# 64). Points are [..., n, 2] as (x, y) in pixels, 0-based: the centre of the top left pixel is (0, 0).

_MIRROR = [(0, 16), (1, 15), (2, 14), (3, 13), (4, 12), (5, 11), (6, 10), (7, 9), (17, 26), (18, 25),
           (19, 24), (20, 23), (21, 22), (31, 35), (32, 34), (36, 45), (37, 44), (38, 43), (39, 42), (40, 47),
           (41, 46), (48, 54), (49, 53), (50, 52), (55, 59), (56, 58), (60, 64), (61, 63), (65, 67)]
KEEP_66 = torch.tensor([k for k in range(68) if k not in (60, 64)])
FLIP_68 = torch.arange(68)
for _a, _b in _MIRROR:
    FLIP_68[_a], FLIP_68[_b] = _b, _a
FLIP_66 = torch.searchsorted(KEEP_66, FLIP_68[KEEP_66])


def to_66(points):
    """[..., 68 or 66, 2] -> [..., 66, 2]."""
    return points[..., KEEP_66.to(points.device), :] if points.shape[-2] == 68 else points


def flip_points(points, width):
    """The landmarks of the mirrored picture: x -> width - 1 - x; left and right change names."""
    order = FLIP_68 if points.shape[-2] == 68 else FLIP_66
    x, y = points[..., order.to(points.device, non_blocking=True), :].unbind(-1)
    return torch.stack([width - 1 - x, y], -1)


def heatmaps(points, size, sigma):
    """One Gaussian a landmark: H_i(u) = exp(-||u - s_i||^2 / 2 sigma^2), peak 1, differentiable.

    points: [B, n, 2] pixels; size: side S; sigma: standard deviation in pixels. Returns [B, n, S, S]
    in [0, 1]. A point outside the picture leaves its tail or nothing. The Gaussian: one in x times one in y.
    """
    axis = torch.arange(size, device=points.device, dtype=points.dtype)
    row, column = (torch.exp(-(axis - points[..., k, None]) ** 2 / (2 * sigma ** 2)) for k in (0, 1))
    # broadcasting both is ten times slower
    columns = column[..., :, None].repeat(*[1] * column.ndim, size)
    return columns * row[..., None, :]


def crop_box(points, tight=16.):
    """GANnotation's crop: the box around landmarks [B, n, 2] and `tight` per cent of its mean side.

    tight: a number or [B]. Returns low [B, 2], high [B, 2] in pixels, not clamped to any picture.
    """
    low, high = points.amin(-2), points.amax(-2)
    tight = torch.as_tensor(tight, device=points.device).reshape(-1, 1)
    margin = (high - low).mean(-1, keepdim=True) * tight / 100
    return low - margin, high + margin
