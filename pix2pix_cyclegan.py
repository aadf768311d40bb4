"""pix2pix and CycleGAN: translate a picture, learned from pairs, and without them.

P: Phillip Isola, Jun-Yan Zhu, Tinghui Zhou, Alexei A. Efros. "Image-to-Image Translation with Conditional
Adversarial Networks", CVPR 2017, arXiv 1611.07004; sections and tables as in v3.
C: Jun-Yan Zhu, Taesung Park, Phillip Isola, Alexei A. Efros. "Unpaired Image-to-Image Translation using
Cycle-Consistent Adversarial Networks", ICCV 2017, arXiv 1703.10593.
Authors' codes: phillipi/pix2pix and junyanz/CycleGAN (Torch); both again in
junyanz/pytorch-CycleGAN-and-pix2pix (PyTorch). Readers' questions: notebooks/06_pix2pix_cyclegan.ipynb.

The idea of P. One recipe draws y from x, whatever the task. L1 fixes where things are and their colours. A
discriminator that sees the pair (x, y), patch by patch, learns what is missing to look real. The idea of C.
Without pairs, G: X -> Y and F: Y -> X each please a discriminator of the other domain. So would any shuffling
of the pictures. Therefore F(G(x)) must be x again, and G(F(y)) must be y.

The claims. P: from labels to photographs L1 + cGAN beats either alone, skips matter, 70 x 70 patches are the
best trade (Tables 1-3). From photographs to labels L1 alone is better (section 4.6, Table 6). C: the GAN loss
and both cycles are needed (Tables 4, 5; we could not confirm their digits).

Equations (P (4), C (3), C (4): the objectives, in `train_pix2pix`, `train_cyclegan`; "C 4" is a section):
    [P(1)] conditional adversarial
    [P(2)] unconditional adversarial, for comparison
    [P(3)] L1
    [C(1)] adversarial, in the least-squares form of section 4
    [C(2)] cycle consistency
    [C5.2] identity, off by default

Run it:
    python pix2pix_cyclegan.py --train                              toy faces: map of regions to face
    python pix2pix_cyclegan.py --train --model cyclegan             toy faces and drawings of other people
    python pix2pix_cyclegan.py --train --data FACADES --direction BtoA      pairs A|B in train/, val/, test/
    python pix2pix_cyclegan.py --train --model cyclegan --data HORSE2ZEBRA  trainA/, trainB/, testA/, testB/
    python pix2pix_cyclegan.py --evaluate --model cyclegan          distance to the truth
    python pix2pix_cyclegan.py --ablate --part losses               the papers' tables, three seeds
    python pix2pix_cyclegan.py --infer FILE or FOLDER               any size; --backward: CycleGAN's F

Differs from the authors' codes, because:
    sampling       pictures are drawn with replacement; theirs go through a shuffled list
    dropout        layers 1-3 of the decoder (P and its Torch code); the PyTorch code: 2-4
    learning rate  falls to 0 in the second half (C, PyTorch); P and its Torch code keep it: --decay-from 1
    identity loss  off; both codes have it always, C for paintings and flowers only: --lambda-idt 5
    D's loss       is halved (P 3.3, C's appendix, PyTorch); Torch halves only the number that it prints
    C's Torch code has instance norms with weights and a D of 35 x 35 scores, and steps G, D_Y, F, D_X in turn
"""
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn as nn
from PIL import Image

import common
from common import ImagePool, PatchGAN, ResNet, add_noise, linear_decay
from lab import UserError, authors, say, toyfaces, toysets
from lab.cli import cli
from lab.copying import learn_to_copy
from lab.files import load_nets, out_folder, read_checkpoint, reads_checkpoint
from lab.formats import named_pictures, pairs
from lab.images import decoded_images, draw, draw_crops, grid, open_image, to_tensor
from lab.machine import resolve_device
from lab.run import Run, Settings, autocast, choice, frozen, require, restore_config, to_device

LAYERS = {1: 0, 16: 1, 34: 2, 70: 3, 142: 4, 286: 5}    # D's stride-2 layers, by the pixels that a score sees


@dataclass
class Config(Settings):
    """The papers' recipe. (p) is of pix2pix alone, (c) of CycleGAN alone."""
    model: str = choice("pix2pix", "cyclegan")                           # ours: which paper
    # data
    toy: str = choice("auto", "colours", "regions", "landmarks", "sketch", "glasses")  # ours; auto: by model
    direction: str = choice("AtoB", "BtoA")                              # PyTorch code: what is x, what is y
    image_size: int = 256             # P 6.2, C 7.2
    load_size: int = 0                # P 6.2: resized to 286, then cropped to 256; 0 = in this proportion
    people: int = 400                 # ours: toy pictures of each domain; as many as the facades
    pose: float = .3                  # ours: range of the toy poses
    variety: float = 1.               # ours: of toy skins, irises, walls, make-up; 0: alike, bare (c)
    # networks
    width: int = 64                   # P 6.1.1, C 7.2
    d_width: int = 64                 # P 6.1.2, C 7.2
    patch: int = choice(70, 1, 16, 34, 142, 286)                # P 4.4, C 7.2: px that one score of D sees
    conditional: bool = True          # P (1): D sees x as well; --no-conditional: P (2) (p)
    skips: bool = True                # P 3.2.1: U-Net; --no-skips: encoder-decoder (p)
    dropout: tuple = (1, 2, 3)        # P 3.1: layers with the noise z; PyTorch code: 2 3 4; 0: none (p)
    residual_blocks: int = 9          # C 7.2: 9 from 256 px on, 6 for 128 px (c)
    nearest: bool = False             # ours, off: G repeats pixels, no transposed convolutions, no grid
    # losses; a row of the papers' tables is a weight of 0
    lambda_gan: float = 1.            # P (4), C (3)
    lambda_L1: float = 100.           # P 4.2 (p)
    lambda_cyc_x: float = 10.         # C 4; forward cycle, PyTorch code: lambda_A (c)
    lambda_cyc_y: float = 10.         # C 4; backward cycle, PyTorch code: lambda_B (c)
    lambda_idt: float = 0.            # C 5.2: 5, but for paintings and flowers only (c)
    lambda_copy: float = 10.          # ours: in the first copy_steps only (c)
    noise: float = 0.                 # ours, off: std of noise between G and F, against hidden signals (c)
    pool_size: int = 50               # C 4: generated pictures that D is shown again (c)
    # training
    epochs: int = 200                 # P 6.2, C 7.1, for their small sets
    steps: int = 0                    # ours: 0 = epochs
    copy_steps: int = 0               # ours, off: so many of the first steps G and F only learn to copy (c)
    batch_size: int = 1               # P 6.2, C 4
    lr: float = 2e-4                  # P 3.3, C 4
    betas: tuple = (.5, .999)         # P 3.3; PyTorch code
    decay_from: float = .5            # C 4: constant, then linear to 0; PyTorch code also for P
    part: str = choice("all", "losses", "generator", "patch", "labels", "cycle")   # ours: of --ablate
    AMP_ON_CUDA = False     # one picture a step. H100, ms: P 12.7, in bfloat16 14.8; C 45.5, in bfloat16 49.6


# Minutes on a processor. All of it is ours.
SMALL = dict(
    image_size=64, width=16, d_width=16,    # a quarter of the papers' size and widths
    patch=16,                               # of 64 px what 70 is of 256
    nearest=True,                           # transposed convolutions left a grid
    batch_size=4,                           # four pictures fill a processor
    people=2000, steps=8000, lr=4e-4,       # few steps, so large ones
)
SMALL_CYCLEGAN = SMALL | dict(
    image_size=48, width=32, d_width=32, residual_blocks=4, steps=6000,  # small but wide paints better
    variety=0., noise=.1,                   # else G hides as dots the colours that no sketch tells
    copy_steps=400,                         # else G may paint negatives, which F turns back
)
# Minutes on a GPU, hours on two cores. Patches of 34 px are of 128 nearly what 70 are of 256.
MEDIUM = SMALL | dict(image_size=128, d_width=32, patch=34, people=4000)
MEDIUM_CYCLEGAN = SMALL_CYCLEGAN | dict(
    image_size=128, patch=34, residual_blocks=6, copy_steps=600, batch_size=8)
INFER_FLAGS = {
    "--backward": dict(action="store_true", help="CycleGAN: translate with F, from Y to X"),
    "--half": dict(choices=("A", "B"), help="the files are pairs A|B: take the left or the right half"),
    "--squeeze": dict(action="store_true", help="resize to the training size first, as the authors' tests"),
    "--out": dict(default="", metavar="DIR", help="where to write (default: inferred/ in the run folder)"),
}
HEALTH = {"copying": "output hardly differs from its input", "collapsed": "same output for different inputs",
          "D-won": "D tells every real picture from every generated one", "nan": "a loss is not finite"}


# ============================================================================================== data

class Pictures:
    """Pictures of X and of Y; sample(B): (x, y), each [B, 3, S, S] in [-1, 1].

    paired: y[i] belongs to x[i], and gets the same crop and mirroring; otherwise each is drawn on its own.
    X, Y: uint8 [N, 3, L, L], L = load_size, for testing L = S. faces: what toy pictures show.
    """

    def __init__(self, cfg, X, Y, paired, faces=None):
        self.cfg, self.X, self.Y, self.paired, self.faces = cfg, X, Y, paired, faces
        self.generator = torch.Generator().manual_seed(cfg.seed)

    def __len__(self):
        return max(len(self.X), len(self.Y))                           # an epoch of C: the larger set

    def sample(self, batch_size):
        view_x = self.random_view(self.X, batch_size)
        view_y = view_x if self.paired else self.random_view(self.Y, batch_size)
        shape = dict(size=self.cfg.image_size, device=self.cfg.device)
        return draw_crops(self.X, **view_x, **shape), draw_crops(self.Y, **view_y, **shape)

    def random_view(self, images, batch_size):
        """Which pictures of `images`, the corners of their crops, mirrored or not."""
        g, room = self.generator, images.shape[-1] - self.cfg.image_size + 1
        index = torch.randint(len(images), (batch_size,), generator=g)
        top, left = torch.randint(room, (2, batch_size), generator=g)
        return dict(index=index, top=top, left=left, mirror=torch.rand(batch_size, generator=g) < .5)


def load_size(cfg):                                                    # side of the pictures that are cropped
    return cfg.load_size or cfg.image_size * 143 // 128


def scan(cfg):
    """What is under cfg.data: `train` and `test`, files of (A, B), `pairs`, and what --check prints."""
    found = pairs.scan(cfg.data, cfg.model)
    return found | {"bytes_per_image": 3 * (1 + found["pairs"]) * load_size(cfg) ** 2}


def photographs(cfg, files, side, paired):
    """Decoded once, squeezed to side x side: uint8 [N, 3, side, side]; pairs A|B: [N, 3, side, 2 side]."""
    def decode(k):
        image = open_image(files[k])
        parts = [pairs.half_of(image, half) for half in "AB"] if paired else [image]
        parts = [np.asarray(part.resize((side, side), Image.Resampling.BICUBIC)) for part in parts]
        return np.concatenate(parts, 1).transpose(2, 0, 1)

    return decoded_images(cfg, files, (3, side, side * (1 + paired)), decode, paired)[0]


TRAIN_SEED, TEST_SEED, TEST_PEOPLE = 10_000, 20_000, 200                # other seeds draw other people


def make_data(cfg, test=False):
    """The training pictures, or held-out ones (test): whole, and in pairs where the truth is known."""
    side = cfg.image_size if test else load_size(cfg)
    if not cfg.data:
        return toy_pictures(cfg, side, test)
    found = scan(cfg)
    A, B = found["test" if test else "train"]
    if found["pairs"]:
        A, B = photographs(cfg, A, side, True).split(side, 3)
    else:
        A, B = photographs(cfg, A, side, False), photographs(cfg, B, side, False)
    X, Y = (A, B) if cfg.direction == "AtoB" else (B, A)
    return Pictures(cfg, X, Y, found["pairs"] and (test or cfg.model == "pix2pix"))


def toy_pictures(cfg, side, test):
    """Toy faces; in CycleGAN's training X and Y show different people."""
    paired, count = test or cfg.model == "pix2pix", TEST_PEOPLE if test else cfg.people
    seed = TEST_SEED if test else TRAIN_SEED + 10 * cfg.seed
    faces = toysets.portraits(cfg, count if paired else 2 * count, seed)
    X, Y = (toyfaces.images(cfg, some, side, paint) for some, paint in
            zip((faces[:count], faces[-count:]), toysets.painters(cfg), strict=True))
    return Pictures(cfg, X, Y, paired, faces if paired else None)


# ========================================================================================== networks

class Noise(nn.Dropout):
    """P 3.1: z is dropout, and stays on at test time."""

    def forward(self, x):
        return nn.functional.dropout(x, self.p, training=True)


class UNet(nn.Module):
    """P 6.1.1: encoder C64-C128-C256-C512-C512-C512-C512-C512, decoder, by channels of its layers' inputs,
    CD512-CD1024-CD1024-C1024-C1024-C512-C256-C128. 54,413,955 parameters at depth 8, for 256 px.

    depth: halvings, down to 1 x 1, which has no norm: batch norm of a single value is 0. Norms take their
    statistics from the batch, at test time too (P 3.3). Without skips: the encoder-decoder. dropout: layers
    of the decoder, from 1. forward(x [B, 3, S, S]) -> [B, 3, S, S], in [-1, 1], S a multiple of 2^depth.
    """

    def __init__(self, depth=8, width=64, skips=True, dropout=(1, 2, 3), nearest=False):
        super().__init__()
        self.skips = skips
        w = [width * min(2 ** k, 8) for k in range(depth)]
        self.down, self.up = nn.ModuleList(), nn.ModuleList()
        for k in range(depth):                                                         # w[k] x S/2^(k+1)
            before = [nn.LeakyReLU(.2)] if k else []
            after = [nn.BatchNorm2d(w[k], track_running_stats=False)] if 0 < k < depth - 1 else []
            conv = nn.Conv2d(w[k - 1] if k else 3, w[k], 4, 2, 1, bias=False)
            self.down.append(nn.Sequential(*before, conv, *after))
        for k in reversed(range(depth)):                                               # w[k-1] x S/2^k
            c_in = w[k] * (2 if skips and k < depth - 1 else 1)
            c_out = w[k - 1] if k else 3
            conv = [nn.ConvTranspose2d(c_in, c_out, 4, 2, 1, bias=k == 0)]
            if nearest:
                conv = [nn.Upsample(scale_factor=2), nn.Conv2d(c_in, c_out, 3, 1, 1, bias=k == 0)]
            after = [nn.BatchNorm2d(w[k - 1], track_running_stats=False)] if k else [nn.Tanh()]
            noise = [Noise()] if k and depth - k in dropout else []
            self.up.append(nn.Sequential(nn.ReLU(), *conv, *after, *noise))

    def forward(self, x):
        e = [self.down[0](x)]                                          # the encoder's maps
        for down in self.down[1:]:
            e.append(down(e[-1]))
        x = self.up[0](e.pop())
        for up in self.up[1:]:
            skip = e.pop()
            x = up(torch.cat([skip, x], 1) if self.skips else x)
        return x.float()


def discriminator(patch=70, in_channels=3, width=64, norm="batch"):
    """The PatchGAN whose scores see patch x patch pixels (P 6.1.2): strides 2, the last two 1 (codes).

    P: 6 channels, x and y, batch norm: 2,768,705 parameters at 70. C: 3, instance norm: 2,764,737.
    """
    n = LAYERS[patch]
    if n == 0:                                                         # 1 x 1 convolutions
        return PatchGAN(in_channels, (width, 2 * width), (1, 1), 1, norm, head_kernel=1,
                        head_bias=norm != "batch")
    return PatchGAN(in_channels, [width * min(2 ** k, 8) for k in range(n + 1)], (2,) * n + (1,), norm=norm)


def build(cfg):
    """{name: network}. G, F, D_X, D_Y of CycleGAN: G_A, G_B, D_B, D_A in its codes; D_A judges G_A's."""
    if cfg.model == "pix2pix":
        nets = {"G": UNet(int(math.log2(cfg.image_size)), cfg.width, cfg.skips, cfg.dropout, cfg.nearest),
                "D": discriminator(cfg.patch, 6 if cfg.conditional else 3, cfg.d_width, "batch")}
    else:
        nets = {name: ResNet(cfg.residual_blocks, cfg.width, cfg.nearest) for name in ("G", "F")}
        nets |= {name: discriminator(cfg.patch, 3, cfg.d_width, "instance") for name in ("D_X", "D_Y")}
    return {name: common.init_normal(net) for name, net in nets.items()}


def seen_by_D(cfg, x, y):
    """[P(2)]  L_GAN(G, D) = E[log D(y)] + E[log(1 - D(G(x, z)))]:   P (1) of a D that sees y alone

    What D judges: pix2pix the pair (x, y), [B, 6, S, S], or without cfg.conditional y; CycleGAN y.
    """
    return torch.cat([x, y], 1) if cfg.model == "pix2pix" and cfg.conditional else y


# ============================================================================================ losses
# || . ||_1 is the mean absolute value over batch, channels and pixels of pictures in [-1, 1], as in the
# authors' codes: the weights make sense with it only. Scores of D are unbounded, one a patch.

def loss_cgan_D(real, fake):
    """[P(1)]  L_cGAN(G, D) = E[log D(x, y)] + E[log(1 - D(x, G(x, z)))];   D minimises -1/2 of it

    real, fake: scores of (x, y) and (x, G(x, z)). Halved, which slows D relative to G (P 3.3).
    """
    return common.vanilla_D(real, fake) / 2


def loss_cgan_G(fake):
    """[P(1)]  G minimises -E[log D(x, G(x, z))], which does not saturate (P 3.3).   Weight: lambda_gan"""
    return common.vanilla_G(fake)


def loss_L1(y, y_fake):
    """[P(3)]  L_L1(G) = E[|| y - G(x, z) ||_1]

    Its best answer is the median of all y that fit x: blurred where x leaves it open. Weight: lambda_L1
    """
    return (y - y_fake).abs().mean()


def loss_lsgan_D(real, fake):
    """[C(1)]  D_Y minimises 1/2 (E[(D_Y(y) - 1)^2] + E[D_Y(G(x))^2]),   and D_X the same with x and F(y)"""
    return common.lsgan_D(real, fake) / 2


def loss_lsgan_G(fake):
    """[C(1)]  G minimises E[(D_Y(G(x)) - 1)^2],   and F the same with D_X.   Weight: lambda_gan"""
    return common.lsgan_G(fake)


def loss_cyc(x, x_rec):
    """[C(2)]  L_cyc(G, F) = E[|| F(G(x)) - x ||_1] + E[|| G(F(y)) - y ||_1];   one term a call

    Each reaches both generators: the first must leave what the second needs. Weight: lambda_cyc_x (y: _y)
    """
    return (x - x_rec).abs().mean()


def loss_idt(y, y_same):
    """[C5.2]  L_identity(G, F) = E[|| G(y) - y ||_1] + E[|| F(x) - x ||_1];   one term a call

    y_same = G(y): a picture that already is in Y should pass G unchanged, which keeps colours. G is given a
    picture of its *target* domain: the authors' G_A gets real_B. Weight: lambda_idt
    """
    return (y_same - y).abs().mean()


# ========================================================================================== training

def patches(cfg):
    """The values of cfg.patch that leave at least one score of a picture."""
    return [patch for patch, n in LAYERS.items() if n == 0 or (cfg.image_size >> n) > 2]


def validate(cfg):
    """Raises UserError for settings that do not fit together."""
    for name in ("width", "d_width", "people"):
        require(cfg, name, getattr(cfg, name) > 0, "at least 1")
    require(cfg, "epochs", cfg.epochs or cfg.steps, "at least 1, or --steps")
    S = cfg.image_size
    if cfg.model == "pix2pix":
        require(cfg, "image_size", S >= 16 and S & (S - 1) == 0, "a power of 2, at least 16")
    else:
        require(cfg, "image_size", S >= 16 and S % 4 == 0, "a multiple of 4, at least 16")
        require(cfg, "pool_size", not 0 < cfg.pool_size < cfg.batch_size,
                f"0, or at least --batch-size {cfg.batch_size}")
    require(cfg, "load_size", load_size(cfg) >= S, f"at least --image-size {S}")
    require(cfg, "patch", cfg.patch in patches(cfg), f"for {S} px one of {', '.join(map(str, patches(cfg)))}")


def train(cfg):
    """The papers' training. Writes cfg.run; returns [G], or [G, F] (on cfg.device)."""
    validate(cfg)
    resolve_device(cfg)
    torch.manual_seed(cfg.seed)
    data, held_out = make_data(cfg), make_data(cfg, test=True)
    cfg.steps = cfg.steps or cfg.epochs * math.ceil(len(data) / cfg.batch_size)
    nets = build(cfg)
    if cfg.weights:
        fill(nets, checkpoint(cfg.weights), cfg.weights)
    say(f"{len(data.X)} and {len(data.Y)} pictures, {'in pairs' if data.paired else 'without pairs'}; "
        f"G {common.n_parameters(nets['G']):,} parameters, a score of D sees {cfg.patch} px")
    of_model = {"pix2pix": train_pix2pix, "cyclegan": train_cyclegan}[cfg.model]
    return of_model(cfg, data, held_out, *to_device(cfg, *nets.values()))


def train_pix2pix(cfg, data, held_out, G, D):
    """P section 3, step by step. Returns [G]."""
    opt_G = torch.optim.Adam(G.parameters(), cfg.lr, cfg.betas, fused=True)
    opt_D = torch.optim.Adam(D.parameters(), cfg.lr, cfg.betas, fused=True)
    run = Run(cfg, data, {"G": G, "D": D}, {"D": opt_D, "G": opt_G}, HEALTH)
    shown = fixed_batch(held_out)

    for step, (x, y) in run.batches(cfg.batch_size):
        run.set_lr(cfg.lr * linear_decay(step, cfg.steps, cfg.decay_from))

        # 1. D: the real pair 1, the generated pair 0
        with autocast(cfg):
            y_fake = G(x)                                              # z is the dropout inside G (P 3.1)
            score_real = D(seen_by_D(cfg, x, y))
            score_fake = D(seen_by_D(cfg, x, y_fake.detach()))
        L_D = loss_cgan_D(score_real, score_fake)                                            # P(1)
        opt_D.zero_grad()
        L_D.backward()
        opt_D.step()

        # 2. G: fool D, which has just learned, stay near y. (frozen: the gradient passes D, to G)
        with frozen(D), autocast(cfg):
            score_fake = D(seen_by_D(cfg, x, y_fake))
        L_GAN = loss_cgan_G(score_fake)                                                      # P(1)
        L_L1 = loss_L1(y, y_fake)                                                            # P(3)
        L_G = cfg.lambda_gan * L_GAN + cfg.lambda_L1 * L_L1                                  # P(4)
        opt_G.zero_grad()
        L_G.backward()
        opt_G.step()

        if run.logs(step):
            run.log(step, **health(cfg, shown, G, D), L_D=L_D, L_GAN=L_GAN, L_L1=L_L1)
        if run.samples(step):
            run.sample(step, sample_grid(cfg, shown, G))
    return [G]


def train_cyclegan(cfg, data, held_out, G, F, D_X, D_Y):
    """C section 3, step by step, in the order of the PyTorch code. Returns [G, F]."""
    opt_G = torch.optim.Adam([*G.parameters(), *F.parameters()], cfg.lr, cfg.betas, fused=True)
    opt_D = torch.optim.Adam([*D_X.parameters(), *D_Y.parameters()], cfg.lr, cfg.betas, fused=True)
    pool_X, pool_Y = (ImagePool(cfg.pool_size, cfg.image_size, cfg.device) for _ in "XY")
    nets = {"G": G, "F": F, "D_X": D_X, "D_Y": D_Y, "pool_X": pool_X, "pool_Y": pool_Y}
    run = Run(cfg, data, nets, {"G": opt_G, "D": opt_D}, HEALTH)
    shown = fixed_batch(held_out)
    learn_to_copy(cfg, run, opt_G, (G, F), loss_idt)

    for step, (x, y) in run.batches(cfg.batch_size):
        run.set_lr(cfg.lr * linear_decay(step, cfg.steps, cfg.decay_from))

        # 1. G and F: fool D_Y and D_X, find the way back
        with frozen(D_X, D_Y), autocast(cfg):
            y_fake = G(x)
            x_rec = F(add_noise(y_fake, cfg.noise))
            x_fake = F(y)
            y_rec = G(add_noise(x_fake, cfg.noise))
            y_same = G(y) if cfg.lambda_idt else y
            x_same = F(x) if cfg.lambda_idt else x
            score_y_fake = D_Y(y_fake)
            score_x_fake = D_X(x_fake)
        L_GAN_G, L_GAN_F = loss_lsgan_G(score_y_fake), loss_lsgan_G(score_x_fake)            # C(1)
        L_cyc_x, L_cyc_y = loss_cyc(x, x_rec), loss_cyc(y, y_rec)                            # C(2)
        L_idt = loss_idt(y, y_same) + loss_idt(x, x_same)                                    # C5.2
        L_G = (cfg.lambda_gan * (L_GAN_G + L_GAN_F) + cfg.lambda_cyc_x * L_cyc_x + cfg.lambda_cyc_y * L_cyc_y
               + cfg.lambda_idt * L_idt)                                                     # C(3), C(4)
        opt_G.zero_grad()
        L_G.backward()
        opt_G.step()

        # 2. D_Y and D_X: real pictures 1; generated ones, new or from the pool, 0
        y_pooled = pool_Y(y_fake.detach())
        x_pooled = pool_X(x_fake.detach())
        with autocast(cfg):
            score_y = D_Y(y)
            score_y_pooled = D_Y(y_pooled)
            score_x = D_X(x)
            score_x_pooled = D_X(x_pooled)
        L_D_Y, L_D_X = loss_lsgan_D(score_y, score_y_pooled), loss_lsgan_D(score_x, score_x_pooled)    # C(1)
        L_D = L_D_Y + L_D_X                                                                  # C(3)
        opt_D.zero_grad()
        L_D.backward()
        opt_D.step()

        if run.logs(step):
            run.log(step, **health(cfg, shown, G, D_Y, F, D_X), L_GAN_G=L_GAN_G, L_GAN_F=L_GAN_F,
                    L_cyc_x=L_cyc_x, L_cyc_y=L_cyc_y, L_idt=L_idt, L_D_Y=L_D_Y, L_D_X=L_D_X)
        if run.samples(step):
            run.sample(step, sample_grid(cfg, shown, G, F))
    return [G, F]


@torch.no_grad()
def in_batches(cfg, net, x, seed=0):
    """net(x) in batches as in training: batch norm uses their statistics. seed: of G's dropout, z."""
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(seed)
        return torch.cat([net(part) for part in x.split(cfg.batch_size)])


def fixed_batch(held_out, n=8):
    """Held-out pictures that every log line and grid shows: x, y [n, 3, S, S]; and whether they are pairs."""
    n = min(n, len(held_out.X), len(held_out.Y))
    x, y = (draw(images, torch.linspace(0, len(images) - 1, n).round().long(), held_out.cfg.device)
            for images in (held_out.X, held_out.Y))
    return x, y, held_out.paired


def health(cfg, shown, G, D_Y, F=None, D_X=None):
    """{"health": word} and mean L1 distances in 0 ... 1; those of CycleGAN's F end in _F.

    change: of G(x) to x; spread: between outputs of different x; in pairs error and copy: G(x) and x to y.
    """
    (a, b, paired), words, found = shown, [], {}
    for end, net, D, x, y in (("", G, D_Y, a, b), ("_F", F, D_X, b, a))[:1 if F is None else 2]:
        y_fake = in_batches(cfg, net, x)
        real, fake = (in_batches(cfg, D, seen_by_D(cfg, x, picture)) for picture in (y, y_fake))
        if cfg.model == "pix2pix":
            real, fake = real.sigmoid(), fake.sigmoid()
        change, error, copy, spread, apart = ((one - other).abs().mean() / 2 for one, other in (
            (y_fake, x), (y_fake, y), (x, y), (y_fake, y_fake.roll(1, 0)), (y, y.roll(1, 0))))
        lead = real.mean((1, 2, 3)).min() - fake.mean((1, 2, 3)).max()           # in every picture
        words += ["copying"] * bool(change < (.1 * copy if paired else .005))
        words += ["collapsed"] * bool(spread < .1 * apart) + ["D-won"] * bool(lead > .8 and cfg.lambda_gan)
        found |= {f"change{end}": change, f"spread{end}": spread}
        found |= {f"error{end}": error, f"copy{end}": copy} if paired else {}
    return {"health": next(iter(words), "ok")} | found


def sample_grid(cfg, shown, G, F=None):
    """x, G(x), G(x) under other noise, y; of CycleGAN x, G(x), F(G(x)), y, F(y), G(F(y))."""
    x, y, _ = shown
    columns = {"x": x, "G(x)": in_batches(cfg, G, x)}
    if F is None:
        columns |= {"again": in_batches(cfg, G, x, seed=1), "y": y}
    else:
        columns |= {"F(G(x))": in_batches(cfg, F, columns["G(x)"]), "y": y, "F(y)": in_batches(cfg, F, y)}
        columns["G(F(y))"] = in_batches(cfg, G, columns["F(y)"])
    return grid(columns)


# ========================================================================================= inference

def checkpoint(path):
    """A checkpoint of ours, or the authors' file of G or G_A (its fellows beside it) in the same form."""
    return read_checkpoint(path, __file__, lambda saved: authors.pix2pix_cyclegan(saved, path))


def fill(nets, saved, path):
    """The weights of a checkpoint, ours or the authors', into networks {name: net}; see `load_nets`."""
    if "paper" not in saved:                                           # the authors' names of layers
        saved = {"nets": {name: authors.by_order(nets[name], state) for name, state in saved["nets"].items()
                          if name in nets}}
    load_nets(nets, saved, path)


@reads_checkpoint
def load(cfg):
    """The generators [G] or [G, F] of cfg.run or cfg.weights. The authors publish some G without F.

    cfg takes over the checkpoint's model, sizes and kind of data.
    """
    resolve_device(cfg)
    path = cfg.weights or Path(cfg.run) / "last.pt"
    saved = checkpoint(path)
    restore_config(cfg, saved, ("model", "toy", "direction", "image_size", "load_size", "pose", "variety",
                                "width", "skips", "dropout", "residual_blocks", "nearest", "batch_size"))
    nets = {name: net.eval() for name, net in build(cfg).items()
            if name == "G" or name == "F" and "F" in saved["nets"]}
    fill(nets, saved, path)
    return to_device(cfg, *nets.values())


def infer(cfg, files, backward, half, squeeze, out):
    """FILE or folder ...: pictures of any size. Writes <name>.png, the translation, and <name>_sheet.png:
    input, translation, and with CycleGAN the way back."""
    paths = named_pictures(files)
    images = [open_image(path) for path in paths.values()]
    nets = load(cfg)
    if backward and len(nets) == 1:
        raise UserError("--backward: there is one generator only; for the other way train with --direction "
                        "BtoA, or --model cyclegan")
    net, *back = nets[::-1] if backward else nets
    folder = out_folder(cfg, out)
    torch.manual_seed(cfg.seed)                                        # of G's noise
    for (name, path), image in zip(paths.items(), images, strict=True):
        image = pairs.half_of(image, half) if half else image
        if squeeze:
            image = image.resize((cfg.image_size, cfg.image_size), Image.Resampling.BICUBIC)
        x = to_tensor(image)[None].to(cfg.device)
        shown = [x, translate(cfg, net, x)]
        shown += [translate(cfg, one, shown[1]) for one in back]
        grid(shown[1:2], scale=1).crop((0, 0, image.width, image.height)).save(folder / f"{name}.png")
        grid(shown, ["input", "output", "back"][:len(shown)], 1).save(folder / f"{name}_sheet.png")
        a_pair = ", twice as wide as high; of a pair A|B --half A takes its left half"
        print(f"{path}: {image.width} x {image.height}{a_pair * (image.width == 2 * image.height)} -> "
              f"{folder / f'{name}.png'}")


@torch.no_grad()
def translate(cfg, net, x):
    """net(x) of a picture [1, 3, H, W] of any size: edges are repeated until it can be halved, and cut."""
    H, W = x.shape[2:]
    grain = cfg.image_size if cfg.model == "pix2pix" else 4
    x = nn.functional.pad(x, (0, -W % grain, 0, -H % grain), mode="replicate")
    return net(x)[:, :, :H, :W]


if __name__ == "__main__":
    cli(__name__)
