"""pix2pix and CycleGAN: translate a picture, learned from pairs, and without them.

P: Phillip Isola, Jun-Yan Zhu, Tinghui Zhou, Alexei A. Efros. "Image-to-Image Translation with Conditional Adversarial
Networks", CVPR 2017, arXiv 1611.07004; sections and tables as in v3. Authors' code: phillipi/pix2pix (Torch).
C: Jun-Yan Zhu, Taesung Park, Phillip Isola, Alexei A. Efros. "Unpaired Image-to-Image Translation using Cycle-Consistent
Adversarial Networks", ICCV 2017, arXiv 1703.10593. Authors' code: junyanz/CycleGAN (Torch).
Both again in junyanz/pytorch-CycleGAN-and-pix2pix ("PyTorch code" below).

The idea of P. Draw y from x with one recipe for every task: L1 fixes where things are and their colours, a discriminator
that sees the *pair* (x, y) learns what is missing to look real. It judges overlapping patches, so it is a loss for texture;
a U-Net carries structure past the bottleneck. The idea of C. Without pairs two generators, G: X -> Y and F: Y -> X, each
please a discriminator of the other domain; so would any shuffling of the pictures, therefore F(G(x)) must be x again, and
G(F(y)) y.

The claims. P: L1 + cGAN beats either alone, conditioning matters, 70 x 70 patches are the best trade, skips matter (Tables
1-3: what a segmentation network reads in the generated pictures, per-pixel accuracy 0.66 for L1+cGAN, 0.42 for L1, 0.22 for
a GAN that does not see x; from photographs to labels L1 alone is better). C: the GAN loss and both cycles are needed (Tables
4, 5; we could not confirm their digits). `--ablate` tests all of it on faces whose regions and true counterparts are known.

Equations, by paper:
    [P(1)] conditional adversarial
    [P(2)] unconditional adversarial, for comparison
    [P(3)] L1
    [C(1)] adversarial, in the least-squares form of section 4
    [C(2)] cycle consistency
    [C5.2] identity, off unless asked for
((4) of P and (3), (4) of C are their sums, in the loops.)

Run it:
    python pix2pix_cyclegan.py --train                              toy faces: from a map of regions to the face
    python pix2pix_cyclegan.py --train --model cyclegan             toy faces: photograph <-> pencil, of other people
    python pix2pix_cyclegan.py --train --data FACADES --direction BtoA      pairs side by side, A|B, in train/ val/ test/
    python pix2pix_cyclegan.py --train --model cyclegan --data HORSE2ZEBRA  trainA/ trainB/ testA/ testB/
    python pix2pix_cyclegan.py --evaluate [--model cyclegan]        distance to the truth, and what a segmenter reads
    python pix2pix_cyclegan.py --ablate [--part losses]             the papers' tables, three seeds
    python pix2pix_cyclegan.py --infer FILE or FOLDER               any size; --backward for CycleGAN's F
A run lies in runs/pix2pix or runs/cyclegan; give another task its own, as in --toy landmarks --run runs/landmarks.

Data sets: P's have one file a pair, A left and B right, cut at half their width; facades keep the photograph left and the
labels right, hence BtoA. To build them, join two pictures of equal size side by side. C's have four folders and no pairs
(a set of pairs will do too: C then ignores who belongs to whom). Pictures are squeezed to load_size x load_size, cropped
to image_size and mirrored at random; test pictures are squeezed to image_size. Length: both papers take 200 epochs of
their small sets, which is the default; P's large ones (edges2shoes, edges2handbags) --epochs 15 --batch-size 4.

Names in the authors' code -> here: G_A -> G, G_B -> F, D_A -> D_Y (it judges what G_A makes!), D_B -> D_X.

Where paper and code differ. Dropout, the only noise z, is in the first three layers of the decoder (P, Torch), in the
second to fourth in the PyTorch code; here P's, but for files of theirs. The innermost norm: P's first version normalises everywhere, but batch norm of
one value is 0, so with batches of one picture no information passes; left out, as in both codes. D's loss is halved (P
section 3.3, C appendix); the Torch codes halve only the number they print. Strides of D: P's text says 2 throughout; the
receptive field is 70 with strides 2, 2, 2, 1, 1 (codes) and would be 94 with a fourth 2. Decay: P keeps its learning rate
(`--decay-from 1`); C and the PyTorch code let it fall to 0 over the second half; here too. Identity loss: C uses it for
paintings and flowers only, both codes always (5); here off, `--lambda-idt 5`: switch it on when colours come out inverted.
Pictures are drawn with replacement here; the authors go through a shuffled list (C: through A, with random pictures of B).
Convolutions before instance norm have a bias in the PyTorch code, which the norm removes; kept, so that their files fit.

Questions readers ask. Where are the patches cut? Nowhere: one score of a convolutional D sees 70 x 70 pixels, its
neighbour the same window 8 pixels on; a larger picture gives a larger map of scores, and G, too, takes any size. Why must D see
x? A D that sees y alone is content with any face, whatever was asked; the row "GAN" shows it. Is the white picture in the
drawing of the method noise? No, it is the condition; there is no noise but dropout, which stays on at test time. Results
change with eval()? Batch norm here always uses the statistics of the batch, as P does at test time; with one picture a
batch that is instance norm. "GAN has no loss function"? It has one a player. Without targets 1 and 0, how can means of
scores (WGAN) do? LSGAN regresses to 1 and 0, so labels are still there; WGAN compares means. Why an image pool? D sees
older results too, which damps oscillation. Does a cycle guarantee meaning? No: G can hide x in y as faint noise and F read it
there; --evaluate shows how far the way back depends on it. Checkerboards come from transposed convolutions; reflection padding,
from fast style transfer, which also leaves it out of the stride-2 layers.
"""
import dataclasses
import re
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
import torch.nn as nn
from PIL import Image

import common
import toyfaces
from common import ImagePool, PatchGAN, ResNet, Run, UserError, draw, frozen, grid, prepare, say

LOSSES = {"pix2pix": ("L1", "GAN", "cGAN", "L1+GAN", "L1+cGAN"), "cyclegan": ("cycle", "GAN", "GAN+forward", "GAN+backward", "GAN+cycle")}
LAYERS = {1: 0, 16: 1, 34: 2, 70: 3, 142: 4, 286: 5}                    # D's stride-2 layers, by the pixels that a score sees


@dataclass
class Config(common.Settings):
    """The papers' recipe."""
    model: str = field(default="pix2pix", metadata={"choices": ("pix2pix", "cyclegan")})                 # ours: which paper
    # data
    toy: str = field(default="auto", metadata={"choices": ("auto", "regions", "landmarks", "sketch", "glasses")})  # ours: toy task; auto: regions, sketch
    direction: str = field(default="AtoB", metadata={"choices": ("AtoB", "BtoA")})  # PyTorch code: what is x and what is y
    image_size: int = 256             # P 6.2, C 7.2
    load_size: int = 0                # P 6.2, Torch code: resized to 286 for 256, 143 for 128, then cropped; 0 = in this proportion
    people: int = 400                 # ours: toy pictures of each domain; as many as the facades
    pose: float = .3                  # ours: range of the toy poses
    # networks
    width: int = 64                   # P 6.1.1, C 7.2
    d_width: int = 64                 # P 6.1.2, C 7.2
    patch: int = field(default=70, metadata={"choices": tuple(LAYERS)})  # P 4.4, C 7.2: pixels that one score of D sees
    skips: bool = True                # P 3.2.1: U-Net; --no-skips the encoder-decoder (pix2pix)
    dropout: bool = True              # P 3.1: the noise z, in training and at test time (pix2pix)
    residual_blocks: int = 9          # C 7.2: 9 from 256 px on, 6 for 128 px (cyclegan)
    # losses
    loss: str = field(default="full", metadata={"choices": tuple(dict.fromkeys(sum(LOSSES.values(), ("full",))))})  # P (4), C (4): L1+cGAN, GAN+cycle
    lambda_L1: float = 100.           # P 4.2
    lambda_cyc: float = 10.           # C 4
    lambda_idt: float = 0.            # C 5.2: half of lambda_cyc, but for paintings and flowers only
    pool_size: int = 50               # C 4: generated pictures that D is shown again
    # training
    epochs: int = 200                 # P 6.2, C 7.1, for their small sets
    steps: int = 0                    # ours: 0 = epochs
    save_every: int = 2000            # ours: steps of one picture are short
    sample_every: int = 1000          # ours: likewise
    batch_size: int = 1               # P 6.2, C 4
    lr: float = 2e-4                  # P 3.3, C 4
    betas: tuple = (.5, .999)         # P 3.3; PyTorch code
    decay_from: float = .5            # C 4: constant, then linear to 0; PyTorch code also for P
    # evaluation
    part: str = field(default="all", metadata={"choices": ("all", "losses", "generator", "patch", "cycle")})   # ours: of --ablate


# For a processor: 64 px, narrow, minutes. A patch of 16 of 64 pixels is what 70 of 256 is.
SMALL = dict(image_size=64, people=2000, width=16, d_width=16, patch=16, residual_blocks=6, steps=12_000)
INFER_FLAGS = {
    "--backward": dict(action="store_true", help="CycleGAN: translate with F, from Y to X"),
    "--half": dict(choices=("A", "B"), help="the files are side-by-side pairs: take the left (A) or right (B) half"),
    "--squeeze": dict(action="store_true", help="resize to the training size first, as the authors' test does (default: any size as it is)"),
    "--out": dict(default="", metavar="DIR", help="where to write (default: the run folder)"),
}
HEALTH = {"copying": "output hardly differs from its input", "collapsed": "same output for different inputs",
          "D-won": "D tells every real picture from every generated one", "nan": "a loss is not finite"}


# ========================================================================================================== data

def points_map(faces, size):
    """The 68 landmarks as white dots on black."""
    return common.draw_points(toyfaces.landmarks(faces, size), size)


def pencil(faces, size):
    """A sketch that lies on the face, without the artist's exaggeration: neither paper moves things."""
    return toyfaces.sketch(faces, size, exaggeration=1.).expand(-1, 3, -1, -1)


def bare(faces, size):
    return toyfaces.render(toyfaces.with_attribute(faces, "Eyeglasses", 0), size)


def spectacled(faces, size):
    return toyfaces.render(toyfaces.with_attribute(faces, "Eyeglasses", 1), size)


# Toy tasks: how A and B are painted from the same face
TASKS = {"regions": (toyfaces.region_map, toyfaces.render), "landmarks": (points_map, toyfaces.render),
         "sketch": (toyfaces.render, pencil), "glasses": (bare, spectacled)}


def task(cfg):
    """(paint x, paint y) of the toy task."""
    A, B = TASKS[cfg.toy if cfg.toy != "auto" else "regions" if cfg.model == "pix2pix" else "sketch"]
    return (A, B) if cfg.direction == "AtoB" else (B, A)


class Pictures:
    """Pictures of X and of Y; sample() draws a batch (x, y), each [B, 3, S, S] in [-1, 1].

    paired: y[i] belongs to x[i], and gets the same crop and mirroring. Otherwise both are drawn, cropped and mirrored alone.
    X, Y: uint8 [N, 3, load_size, load_size] ([.., image_size, image_size] for testing); faces: what the toy pictures show.
    """

    def __init__(self, cfg, X, Y, paired, faces=None):
        self.cfg, self.X, self.Y, self.paired, self.faces = cfg, X, Y, paired, faces
        self.generator = torch.Generator().manual_seed(cfg.seed)

    def __len__(self):
        return max(len(self.X), len(self.Y))                           # an epoch of C: the larger of the two sets

    def sample(self, batch_size):
        x = self.view(self.X, *(where := self.where(self.X, batch_size)))
        return x, self.view(self.Y, *(where if self.paired else self.where(self.Y, batch_size)))

    def where(self, bank, batch_size):
        """Random pictures of a bank, corners of their crops, mirrored or not."""
        g, room = self.generator, bank.shape[-1] - self.cfg.image_size + 1
        index = torch.randint(len(bank), (batch_size,), generator=g)
        top, left = torch.randint(room, (2, batch_size), generator=g)
        return index, top, left, torch.rand(batch_size, generator=g) < .5

    def view(self, bank, index, top, left, mirror):
        return common.draw_crops(bank, index, top, left, self.cfg.image_size, self.cfg.device, mirror)


def scan(cfg):
    """What is under cfg.data: pairs (bool), train and test: lists of files, or for unpaired sets two such lists; for --check images, bad, notes."""
    root = Path(cfg.data)

    def files(name):
        return common.pictures_in(root / name) if (root / name).is_dir() else []

    def split(train, test):
        return (train, test) if test else ([p for k, p in enumerate(train) if k % 10 != 9], train[9::10])

    if files("trainA") and files("trainB") and not (cfg.model == "pix2pix" and files("train")):
        (train_A, test_A), (train_B, test_B) = (split(files(f"train{d}"), files(f"test{d}")) for d in "AB")
        train, test, pairs = (train_A, train_B), (test_A, test_B), False
        counts = f"{len(train_A)} A and {len(train_B)} B to train on, {len(test_A)} and {len(test_B)} held out"
    elif files("train"):
        (one, other), pairs = split(files("train"), files("test") or files("val")), True
        train, test, counts = (one, one), (other, other), f"{len(one)} pairs to train on, {len(other)} held out"
    else:
        there = ", ".join(sorted(p.name + "/" * p.is_dir() for p in root.iterdir())[:6]) or "nothing"
        raise UserError(f"{root}: found {there}; expected train/ (and test/ or val/) with side-by-side pairs A|B, or trainA/ and trainB/ "
                        "(and testA/, testB/)")
    if not pairs and cfg.model == "pix2pix":
        raise UserError(f"{root}: trainA/ and trainB/ hold no pairs; pix2pix needs side-by-side pairs in train/; for unpaired pictures: --model cyclegan")
    if not all(map(len, (*train, *test))):
        raise UserError(f"{root}: {counts}; expected some of each (at least ten to train on where there is no test folder)")
    images = train[0] + test[0] + ([] if pairs else train[1] + test[1])
    return dict(images=images, train=train, test=test, pairs=pairs, bad=[], bytes_per_image=3 * (1 + pairs) * load_size(cfg) ** 2,
                notes={"kind": "pairs, side by side" if pairs else "two sets without pairs", "pictures": counts})


def photographs(cfg, files, side, pairs):
    """Decoded once, squeezed to side x side: uint8 [N, 3, side, side], or of pairs [N, 3, side, 2 side] as in the files."""
    def squeezed(image):
        return np.asarray(image.resize((side, side), Image.Resampling.BICUBIC)).transpose(2, 0, 1)

    def decode(k):
        image = common.open_image(files[k])
        return np.concatenate([squeezed(half_of(image, d)) for d in "AB"], 2) if pairs else squeezed(image)

    return common.decoded_bank(cfg, files, (3, side, side * (1 + pairs)), decode, pairs)[0]


def half_of(image, which):
    """The left (A) or right (B) half of a side-by-side pair."""
    middle = image.width // 2
    return image.crop((0, 0, middle, image.height) if which == "A" else (image.width - middle, 0, image.width, image.height))


TRAIN_SEED, TEST_SEED, TEST_PEOPLE = 10_000, 20_000, 200                # people drawn from other seeds are other people


def toy_people(cfg, count, seed):
    """Close, as CelebA, before pale walls (whose colour no map of regions and no sketch tells)."""
    faces = toyfaces.sample(count, seed, cfg.device, pose=cfg.pose)
    return faces.set(zoom=1.25, background=.6 + .25 * (faces.background - .6))


def load_size(cfg):
    """Side of the training pictures before they are cropped."""
    return cfg.load_size or cfg.image_size * 143 // 128


def make_data(cfg, test=False):
    """The training pictures, or held-out ones (test): whole, and with their true counterparts where those are known."""
    side = cfg.image_size if test else load_size(cfg)
    if cfg.data:
        found = scan(cfg)
        A, B = found["test" if test else "train"]
        if found["pairs"]:
            A, B = photographs(cfg, A, side, True).split(side, 3)
        else:
            A, B = (photographs(cfg, files, side, False) for files in (A, B))
        X, Y = (A, B) if cfg.direction == "AtoB" else (B, A)
        return Pictures(cfg, X, Y, found["pairs"] and (test or cfg.model == "pix2pix"))
    paint_x, paint_y = task(cfg)
    paired = test or cfg.model == "pix2pix"
    count = TEST_PEOPLE if test else cfg.people
    everyone = toy_people(cfg, count if paired else 2 * count, TEST_SEED if test else TRAIN_SEED + 10 * cfg.seed)
    X = common.toy_bank(cfg, everyone[:count], side, paint_x)
    Y = common.toy_bank(cfg, everyone[:count] if paired else everyone[count:], side, paint_y)      # unpaired: of other people
    return Pictures(cfg, X, Y, paired, everyone if paired else None)


# ====================================================================================================== networks

def batch_norm(channels):
    """Statistics of the batch at hand, in training and at test time (P 3.3)."""
    return nn.BatchNorm2d(channels, track_running_stats=False)


class Noise(nn.Dropout):
    """P 3.1: z is dropout, and stays on at test time."""

    def forward(self, x):
        return nn.functional.dropout(x, self.p, training=True)


class UNet(nn.Module):
    """P 6.1.1: C64-C128-C256-C512-C512-C512-C512-C512, then CD512-CD1024-CD1024-C1024-C1024-C512-C256-C128 (widths of the inputs).

    54,413,955 parameters at depth 8, for 256 px: `depth` halvings, down to 1 x 1. forward(x [B, 3, S, S]) -> [B, 3, S, S], both in
    [-1, 1], S a multiple of 2^depth. skips=False: the encoder-decoder. dropout: the layers of the decoder that have it.
    """

    def __init__(self, depth=8, width=64, skips=True, dropout=(1, 2, 3)):
        super().__init__()
        self.skips = skips
        w = [width * min(2 ** k, 8) for k in range(depth)]
        self.down, self.up = nn.ModuleList(), nn.ModuleList()
        for k in range(depth):                                                             # w[k] x S/2^(k+1)
            before = [nn.LeakyReLU(.2)] if k else []
            after = [batch_norm(w[k])] if 0 < k < depth - 1 else []                        # none at 1 x 1: see the docstring
            self.down.append(nn.Sequential(*before, nn.Conv2d(w[k - 1] if k else 3, w[k], 4, 2, 1, bias=False), *after))
        for k in range(depth - 1, -1, -1):
            c_in = w[k] * (2 if skips and k < depth - 1 else 1)
            layers = [nn.ReLU(), nn.ConvTranspose2d(c_in, w[k - 1] if k else 3, 4, 2, 1, bias=k == 0)]
            layers += [batch_norm(w[k - 1])] if k else [nn.Tanh()]
            self.up.append(nn.Sequential(*layers, *([Noise()] if k and depth - k in dropout else [])))

    def forward(self, x):
        e = []
        for down in self.down:
            x = down(x)
            e.append(x)
        x = self.up[0](e.pop())
        for up in self.up[1:]:
            skip = e.pop()
            x = up(torch.cat([skip, x], 1) if self.skips else x)
        return x


def discriminator(patch=70, in_channels=3, width=64, norm="batch"):
    """The PatchGAN whose scores see patch x patch pixels (P 6.1.2): 4 x 4 convolutions, stride 2 but in the last two.

    P joins x and y (in_channels 6) and uses batch norm: 2,768,705 parameters at 70. C: 3 and instance norm: 2,764,737.
    """
    n = LAYERS[patch]
    if n == 0:                                                                             # 1 x 1 convolutions
        return PatchGAN(in_channels, (width, 2 * width), (1, 1), 1, norm, head_kernel=1, head_bias=norm != "batch")
    return PatchGAN(in_channels, [width * min(2 ** k, 8) for k in range(n + 1)], (2,) * n + (1,), norm=norm)


def build_pix2pix(cfg, dropout=(1, 2, 3)):
    """G and D, initialised as in both codes."""
    conditional = terms(cfg)[1] == "cGAN"
    G = UNet(cfg.image_size.bit_length() - 1, cfg.width, cfg.skips, dropout if cfg.dropout else ())
    return common.init_normal(G), common.init_normal(discriminator(cfg.patch, 6 if conditional else 3, cfg.d_width, "batch"))


def build_cyclegan(cfg):
    """G, F, D_X, D_Y."""
    G, F = (common.init_normal(ResNet(cfg.residual_blocks, cfg.width)) for _ in "GF")
    return G, F, *(common.init_normal(discriminator(cfg.patch, 3, cfg.d_width, "instance")) for _ in "XY")


# ======================================================================================================== losses
# || . ||_1 is the mean absolute value over batch, channels and pixels of pictures in [-1, 1], as in the authors' codes: the
# weights make sense with it only. D(.) are unbounded scores, one a patch; the mean runs over batch and patches.

def loss_cgan_D(D, x, y, y_fake):
    """[P(1)]  L_cGAN(G, D) = E[log D(x, y)] + E[log(1 - D(x, G(x, z)))]; D maximises it: here -1/2 of it is minimised

    D sees the pair. Halved, which slows D relative to G (P 3.3). y_fake: [B, 3, S, S], detached by the caller.
    """
    return common.vanilla_D(D(x, y), D(x, y_fake)) / 2


def loss_cgan_G(D, x, y_fake):
    """[P(1)]  G's side, in the form that does not saturate (P 3.3): -E[log D(x, G(x, z))], minimised by G."""
    return common.vanilla_G(D(x, y_fake))


def loss_gan_D(D, y, y_fake):
    """[P(2)]  L_GAN(G, D) = E[log D(y)] + E[log(1 - D(G(x, z)))]; here -1/2 of it is minimised. D does not see x."""
    return common.vanilla_D(D(y), D(y_fake)) / 2


def loss_gan_G(D, y_fake):
    """[P(2)]  G's side: -E[log D(G(x, z))], minimised by G."""
    return common.vanilla_G(D(y_fake))


def loss_L1(y, y_fake):
    """[P(3)]  L_L1(G) = E[|| y - G(x, z) ||_1]

    The median of what y could be: right on the whole, blurred where x leaves it open. Weight: lambda_L1
    """
    return (y - y_fake).abs().mean()


def loss_lsgan_D(D_Y, y, y_fake):
    """[C(1)]  D_Y minimises 1/2 (E[(D_Y(y) - 1)^2] + E[D_Y(G(x))^2]),   in place of the logarithms (C section 4)

    Each score squared, then the mean. y_fake: from the pool, without gradient. For D_X with x and F(y).
    """
    return common.lsgan_D(*D_Y(torch.cat([y, y_fake])).chunk(2)) / 2    # one pass for both: C's D has instance norm


def loss_lsgan_G(D_Y, y_fake):
    """[C(1)]  G minimises E[(D_Y(G(x)) - 1)^2],   and F the same with D_X."""
    return common.lsgan_G(D_Y(y_fake))


def loss_cyc(x, x_rec):
    """[C(2)]  L_cyc(G, F) = E[|| F(G(x)) - x ||_1] + E[|| G(F(y)) - y ||_1];   one term a call

    Forward (x) and backward (y). Each reaches both generators: the first must leave what the second needs. Weight: lambda_cyc
    """
    return (x - x_rec).abs().mean()


def loss_idt(y, y_same):
    """[C5.2]  L_identity(G, F) = E[|| G(y) - y ||_1] + E[|| F(x) - x ||_1];   one term a call

    y_same = G(y): a picture that already is in Y should pass G unchanged. G is given a picture of its *target* domain: the authors'
    G_A gets real_B. Keeps colours. Weight: lambda_idt
    """
    return (y_same - y).abs().mean()


# ====================================================================================================== training

def terms(cfg):
    """(L1 in the loss, "GAN" or "cGAN" or "") of pix2pix, or ("GAN" or "", forward, backward) of CycleGAN."""
    parts = (LOSSES[cfg.model][-1] if cfg.loss == "full" else cfg.loss).split("+")
    if cfg.model == "pix2pix":
        return "L1" in parts, next((p for p in parts if p.endswith("GAN")), "")
    return "GAN" in parts, "forward" in parts or "cycle" in parts, "backward" in parts or "cycle" in parts


def patches(cfg):
    """The D that leave at least one score of a picture."""
    return [patch for patch, n in LAYERS.items() if n == 0 or (cfg.image_size >> n) > 2]


def validate(cfg):
    """Raises UserError for settings that do not fit together."""
    S, paired = cfg.image_size, cfg.model == "pix2pix"
    for name, fits, expected in (*((name, getattr(cfg, name) > 0, "at least 1") for name in ("width", "d_width", "people", "epochs")),
                                 ("loss", cfg.loss in ("full", *LOSSES[cfg.model]), f"for {cfg.model} one of {', '.join(LOSSES[cfg.model])}"),
                                 ("image_size", S & (S - 1) == 0 and S >= 16 if paired else S % 4 == 0 and S >= 16,
                                  f"{'a power of 2, which the U-Net halves down to 1' if paired else 'a multiple of 4'}, at least 16"),
                                 ("load_size", load_size(cfg) >= S, f"at least --image-size {S}"),
                                 ("pool_size", paired or not 0 < cfg.pool_size < cfg.batch_size, f"0, or at least --batch-size {cfg.batch_size}"),
                                 ("patch", cfg.patch in patches(cfg), f"for {S} px one of {', '.join(map(str, patches(cfg)))}")):
        if not fits:
            raise UserError(f"--{name.replace('_', '-')} {getattr(cfg, name)}: expected {expected}")


def n_steps(cfg, pictures):
    """--steps, or --epochs over so many pictures."""
    return cfg.steps or cfg.epochs * -(-pictures // cfg.batch_size)


def train(cfg):
    """The papers' training. Writes cfg.run; returns [G], or [G, F] (on cfg.device)."""
    validate(cfg)
    torch.manual_seed(cfg.seed)
    data, held_out = make_data(cfg), make_data(cfg, test=True)
    cfg.steps = n_steps(cfg, len(data))
    nets = build_pix2pix(cfg) if cfg.model == "pix2pix" else build_cyclegan(cfg)
    if cfg.weights:
        load_networks(cfg.weights, common.load_checkpoint(cfg.weights), names(cfg), nets)
    say(f"{len(data.X)} and {len(data.Y)} pictures, {'in pairs' if data.paired else 'without pairs'}; G {common.n_parameters(nets[0]):,} parameters, "
        f"D {common.n_parameters(nets[-1]):,}, one score sees {nets[-1].receptive_field()} px")
    nets = [prepare(net, cfg) for net in nets]
    return (train_pix2pix if cfg.model == "pix2pix" else train_cyclegan)(cfg, data, held_out, *nets)


def train_pix2pix(cfg, data, held_out, G, D):
    """P section 3, step by step."""
    opt_G, opt_D = (torch.optim.Adam(net.parameters(), cfg.lr, cfg.betas, fused=True) for net in (G, D))
    run = Run(cfg, {"G": G, "D": D}, {"G": opt_G, "D": opt_D}, data, HEALTH)
    with_L1, gan = terms(cfg)

    L = {}
    for step, (x, y) in run.batches(cfg.batch_size):
        run.learning_rate(cfg.lr * common.linear_decay(step, cfg.steps, cfg.decay_from))
        y_fake = G(x)

        # 1. D: the real pair 1, the generated pair 0
        if gan:
            L["D"] = loss_cgan_D(D, x, y, y_fake.detach()) if gan == "cGAN" else loss_gan_D(D, y, y_fake.detach())   # P(1) or P(2)
            run.update("D", L["D"])

        # 2. G: fool D, stay near y
        with frozen(D):
            if gan:
                L["GAN"] = loss_cgan_G(D, x, y_fake) if gan == "cGAN" else loss_gan_G(D, y_fake)                     # P(1) or P(2)
            if with_L1:
                L["L1"] = cfg.lambda_L1 * loss_L1(y, y_fake)                                                         # P(3)
            run.update("G", sum(L[name] for name in L if name != "D"))

        # 3. What happened ----------------------------------------------------------------------------
        if run.logs(step):
            run.log(step, **report(cfg, [G], [D], held_out), **{f"L_{name}": value.detach() for name, value in L.items()})
        if run.samples(step):
            run.sample(step, sample_grid(cfg, [G], held_out))
    return [G]


def train_cyclegan(cfg, data, held_out, G, F, D_X, D_Y):
    """C section 3, step by step, in the order of the PyTorch code: both generators, then both discriminators."""
    opt_G = torch.optim.Adam([*G.parameters(), *F.parameters()], cfg.lr, cfg.betas, fused=True)
    opt_D = torch.optim.Adam([*D_X.parameters(), *D_Y.parameters()], cfg.lr, cfg.betas, fused=True)
    pool_X, pool_Y = (ImagePool(cfg.pool_size, cfg.image_size, cfg.device) for _ in "XY")
    run = Run(cfg, {"G": G, "F": F, "D_X": D_X, "D_Y": D_Y, "pool_X": pool_X, "pool_Y": pool_Y}, {"G": opt_G, "D": opt_D}, data, HEALTH)
    gan, forward, backward = terms(cfg)
    idt = cfg.lambda_idt > 0

    L = {}
    for step, (x, y) in run.batches(cfg.batch_size):
        run.learning_rate(cfg.lr * common.linear_decay(step, cfg.steps, cfg.decay_from))

        # 1. G and F: fool D_Y and D_X, find the way back
        y_fake, *y_same = G(torch.cat([x, *[y] * idt])).split(len(x))                      # one pass where one serves:
        x_fake, x_rec, *x_same = F(torch.cat([y, y_fake, *[x] * idt])).split(len(y))       # instance norm mixes no pictures
        with frozen(D_X, D_Y):
            if gan:
                L["GAN_G"], L["GAN_F"] = loss_lsgan_G(D_Y, y_fake), loss_lsgan_G(D_X, x_fake)                        # C(1)
            if forward:
                L["cyc_x"] = cfg.lambda_cyc * loss_cyc(x, x_rec)                                                     # C(2)
            if backward:
                L["cyc_y"] = cfg.lambda_cyc * loss_cyc(y, G(x_fake))                                                 # C(2)
            if idt:
                L["idt"] = cfg.lambda_idt * (loss_idt(y, *y_same) + loss_idt(x, *x_same))                            # C5.2
            run.update("G", sum(L[name] for name in L if not name.startswith("D")))

        # 2. D_Y and D_X: real pictures 1, generated ones, new or from the pool, 0
        if gan:
            L["D_Y"] = loss_lsgan_D(D_Y, y, pool_Y(y_fake.detach()))                                                 # C(1)
            L["D_X"] = loss_lsgan_D(D_X, x, pool_X(x_fake.detach()))                                                 # C(1)
            run.update("D", L["D_Y"] + L["D_X"])

        # 3. What happened ----------------------------------------------------------------------------
        if run.logs(step):
            run.log(step, **report(cfg, [G, F], [D_Y, D_X], held_out), **{f"L_{name}": value.detach() for name, value in L.items()})
        if run.samples(step):
            run.sample(step, sample_grid(cfg, [G, F], held_out))
    return [G, F]


def translate(cfg, net, x):
    """net(x) in batches as in training: batch norm sees as many pictures at a time. No gradient."""
    with torch.no_grad():
        return torch.cat([net(part) for part in x.split(cfg.batch_size)])


def some(data, n):
    """n held-out pictures of X and of Y (or all), the same every time."""
    return [draw(bank, torch.linspace(0, len(bank) - 1, min(n, len(bank))).round().long(), data.cfg.device) for bank in (data.X, data.Y)]


@torch.no_grad()
def report(cfg, translators, critics, data, n=8):
    """The health word and the numbers behind it, on held-out pictures (L1 in units of the full range, 0 ... 1).

    change: |G(x) - x|; spread: how much outputs for different inputs differ; error and baseline, where the truth is known:
    L1 of G(x) and of x to it. Names ending in _2 are F's; the health word is that of the first generator that is not well.
    """
    pictures, values = some(data, min(n, len(data.X), len(data.Y))), {"health": "ok"}
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):                  # looking must not change the noise of the training
        torch.manual_seed(0)
        outputs = [translate(cfg, net, x) for net, x in zip(translators, pictures, strict=False)]
    conditional, adversarial = cfg.model == "pix2pix" and terms(cfg)[1] == "cGAN", terms(cfg)[cfg.model == "pix2pix"]
    for k, D in enumerate(critics):
        x, truth = pictures if k == 0 else pictures[::-1]
        y = outputs[k]
        real, fake = (torch.cat([D(*pair) if conditional else D(pair[1]) for pair in zip(x.split(cfg.batch_size), t.split(cfg.batch_size), strict=True)])
                      for t in (truth, y))
        if cfg.model == "pix2pix":
            real, fake = real.sigmoid(), fake.sigmoid()
        suffix = "" if k == 0 else "_2"
        values[f"change{suffix}"], values[f"spread{suffix}"] = (y - x).abs().mean() / 2, (y - y.roll(1, 0)).abs().mean() / 2
        if data.paired:
            values[f"error{suffix}"], values[f"baseline{suffix}"] = (y - truth).abs().mean() / 2, (x - truth).abs().mean() / 2
        if values["health"] != "ok":
            continue
        if values[f"change{suffix}"] < (.05 * (x - truth).abs().mean() if data.paired else .005):
            values["health"] = "copying"
        elif values[f"spread{suffix}"] < .1 * (truth - truth.roll(1, 0)).abs().mean() / 2:
            values["health"] = "collapsed"
        elif adversarial and real.mean(dim=(1, 2, 3)).min() > .9 and fake.mean(dim=(1, 2, 3)).max() < .1:
            values["health"] = "D-won"
    return values


def sample_grid(cfg, translators, data, n=6):
    """Held-out pictures. pix2pix: x, G(x), G(x) under another noise, y. CycleGAN: x, G(x), F(G(x)), and the true y; then the same from Y."""
    x, y = some(data, min(n, len(data.X), len(data.Y)))
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(0)
        if len(translators) == 1:
            G, = translators
            columns = {"x": x, "G(x)": translate(cfg, G, x), "again": translate(cfg, G, x), "y": y}
        else:
            G, F = translators
            y_fake, x_fake = translate(cfg, G, x), translate(cfg, F, y)
            columns = {"x": x, "G(x)": y_fake, "F(G(x))": translate(cfg, F, y_fake)} | ({"truth": y} if data.paired else {})
            columns |= {"y": y, "F(y)": x_fake, "G(F(y))": translate(cfg, G, x_fake)} | ({"the truth": x} if data.paired else {})
    return grid(list(columns.values()), list(columns), max(1, 128 // cfg.image_size))


# ==================================================================================================== evaluation

def names(cfg):
    """Names of the networks in a checkpoint, in the order of build_*."""
    return ("G", "D") if cfg.model == "pix2pix" else ("G", "F", "D_X", "D_Y")


AUTHORS = {"G": "G_A", "F": "G_B", "D_X": "D_B", "D_Y": "D_A"}           # CycleGAN; pix2pix: G, D


def by_order(net, state):
    """The authors' state_dict under our names: both list their layers from input to output. Whatever does not fit comes back as it is."""
    theirs = {k: v for k, v in state.items() if torch.is_tensor(v)}
    if not any("running_" in k for k in net.state_dict()):              # statistics that nobody uses
        theirs = {k: v for k, v in theirs.items() if not re.search("running_|num_batches", k)}
    mine = net.state_dict()
    if [v.shape for v in theirs.values()] == [v.shape for v in mine.values()]:
        return dict(zip(mine, theirs.values(), strict=True))
    return state


def beside(path, name):
    """latest_net_G_A.pth -> latest_net_<name>.pth; None if there is none, or the file is not named like that."""
    other = Path(re.sub(r"(.*net_)\w+?(\.\w+)$", rf"\g<1>{name}\2", str(path)))
    return other if other.exists() and re.search(r"net_\w+\.\w+$", str(path)) else None


@common.reads_checkpoint
def load_networks(path, saved, wanted, nets):
    """Fill networks from a checkpoint of ours, or from the authors' files (the others of a model lie beside the first). Names of those filled."""
    if "paper" in saved:
        common.check_paper(saved, path, Path(__file__).stem)
        for name, net in zip(wanted, nets, strict=True):
            common.load_weights(net, saved["nets"].get(name, {}), path)
        return wanted
    if re.search(r"net_(G_B|D)", Path(path).name):
        raise UserError(f"{path}: give the file of G, or of G_A (and --backward to translate with G_B); its fellows are found beside it")
    filled = []
    for k, (name, net) in enumerate(zip(wanted, nets, strict=True)):
        file = path if k == 0 else beside(path, AUTHORS[name] if "F" in wanted else name)
        if file:
            common.load_weights(net, by_order(net, saved if k == 0 else common.load_checkpoint(file)), file)
            filled.append(name)
    return filled


@common.reads_checkpoint
def trained(cfg):
    """The generators [G] or [G, F] of cfg.run or cfg.weights. cfg takes over its kind, its sizes and its data. The authors publish some G without F."""
    path = cfg.weights or Path(cfg.run) / "last.pt"
    saved, noise = common.load_checkpoint(path), (1, 2, 3)
    if "paper" in saved:
        common.check_paper(saved, path, Path(__file__).stem)
        common.adopt(cfg, saved, ("model", "toy", "direction", "image_size", "load_size", "pose", "width", "d_width", "patch", "skips", "residual_blocks",
                                  "loss", "batch_size"))
        cfg.dropout = cfg.dropout and saved["config"]["dropout"]
    else:                                                               # the authors'
        convs = [v for v in saved.values() if torch.is_tensor(v) and v.ndim == 4]
        cfg.width = len(convs[0]) if convs else cfg.width
        if any(k.startswith("model.model.") for k in saved):
            cfg.model, cfg.image_size, noise = "pix2pix", 2 ** (len(convs) // 2), (2, 3, 4)
        else:
            cfg.model, cfg.residual_blocks, cfg.image_size = "cyclegan", max(0, len(convs) - 6) // 2, max(cfg.image_size, 128)
    if cfg.model == "pix2pix":
        nets, wanted = build_pix2pix(cfg, noise)[:1], ("G",)
    else:
        nets, wanted = build_cyclegan(cfg)[:2], ("G", "F")
    filled = load_networks(path, saved, wanted, nets)
    return [prepare(net, cfg).eval() for net in nets[:len(filled)]]


def region_scores(shown, truth):
    """What the papers' FCN-scores count: per-pixel accuracy, per-class accuracy, class IoU (means over the classes that occur)."""
    n = len(toyfaces.REGIONS)
    table = torch.bincount((n * truth + shown).flatten(), minlength=n * n).reshape(n, n).double()          # rows: truth
    right, true, said = table.diagonal(), table.sum(1), table.sum(0)
    occurs = true > 0
    return {"pixel": (right.sum() / true.sum()).item(), "class": (right / true)[occurs].mean().item(),
            "IoU": (right / (true + said - right))[occurs].mean().item()}


def histograms(x, bins=50):
    """Distribution of the pixels of all pictures over L, over a and over b: [3, bins], each summing to 1."""
    channels = common.rgb_to_lab(x).transpose(0, 1).flatten(1).cpu()
    ranges = (0, 100), (-110, 110), (-110, 110)
    return torch.stack([torch.histc(c.clamp(*r), bins, *r) / c.numel() for c, r in zip(channels, ranges, strict=True)])


def sharpness(x):
    """Mean length of the gradient over the pixels: blur makes it small."""
    dx, dy = x[:, :, :-1, 1:] - x[:, :, :-1, :-1], x[:, :, 1:, :-1] - x[:, :, :-1, :-1]
    return (dx ** 2 + dy ** 2).sqrt().mean().item()


@torch.no_grad()
def measure(cfg, translators, data):
    """Rows of measures on the held-out pictures, one for each generator, for the truth, and (CycleGAN) for a copy of the input. See `evaluate`."""
    torch.manual_seed(cfg.seed)
    banks = some(data, 512)
    painters, rows = task(cfg) if not cfg.data else (None, None), {}
    for k, net in enumerate(translators):
        (x, truth), paint = (banks, painters[1]) if k == 0 else (banks[::-1], painters[0])
        y, label = translate(cfg, net, x), "GF"[k]
        true_histograms, true_sharpness, shown = histograms(truth), max(sharpness(truth), 1e-6), {label: y}
        if data.paired:
            shown |= {f"{label}: the truth": truth} | ({f"{label}: copy the input": x} if len(translators) == 2 else {})
        for name, picture in shown.items():
            row = rows[name] = {}
            if data.paired:
                row["L1"] = ((picture - truth).abs().mean() / 2).item()
                row["SSIM"] = common.ssim(picture, truth).mean().item()
            row |= {f"hist {c}": v.item() for c, v in zip("Lab", torch.minimum(histograms(picture), true_histograms).sum(1), strict=True)}
            row["sharpness"] = sharpness(picture) / true_sharpness
            if data.faces is not None and paint is not pencil:
                row |= read_regions(cfg, paint, data.faces, picture)
        if len(translators) == 2:
            back = translators[1 - k]
            rows[label]["back"] = ((translate(cfg, back, y) - x).abs().mean() / 2).item()
            noisy = (y + .05 * torch.randn(y.shape, generator=torch.Generator().manual_seed(0)).to(y)).clamp(-1, 1)
            rows[label]["back from noise"] = ((translate(cfg, back, noisy) - x).abs().mean() / 2).item()
    return rows


def read_regions(cfg, paint, faces, picture):
    """region_scores of generated pictures. Faces are read by a segmenter trained on true ones, region maps by their nearest colour."""
    if paint is toyfaces.region_map:
        colours = torch.tensor(toyfaces.REGION_RGB, device=picture.device) / 127.5 - 1
        shown = torch.cat([torch.cdist(p.permute(0, 2, 3, 1).flatten(1, 2), colours[None]).argmin(2) for p in picture.split(32)]).view(-1, *picture.shape[2:])
    elif paint is points_map:
        return {}
    else:
        judge = toyfaces.judge("regions", cfg.image_size, 2, cfg.device, cfg.cache)[0]
        shown = torch.cat([judge(p).argmax(1) for p in picture.split(32)])
    if paint in (bare, spectacled):
        faces = toyfaces.with_attribute(faces, "Eyeglasses", float(paint is spectacled))
    return region_scores(shown, toyfaces.regions(faces, cfg.image_size))


def evaluate(cfg):
    """Distance to the truth, and what can be read in the results, on held-out pictures. Writes evaluation.json.

    L1 (0 ... 1), SSIM: to the true counterpart (pairs and toy faces; CycleGAN's training never saw it). pixel, class, IoU: the
    FCN-score of P 4.1 with our judge: regions that it reads in generated faces, against the true regions. hist: intersection
    of the distributions of Lab values with the truth's (P 4.2). sharpness: gradient length over the truth's. back: L1 of
    F(G(x)) to x; back from noise: the same when noise of 0.025 was added to G(x), which tells how much of x is hidden there.
    """
    translators = trained(cfg)
    data = make_data(cfg, test=True)
    rows = measure(cfg, translators, data)
    notes = f"{len(data.X)} and {len(data.Y)} held-out pictures (at most 512 measured); G {common.n_parameters(translators[0]):,} parameters"
    if any("IoU" in row for row in rows.values()):
        notes += f"; the segmenter misreads {toyfaces.judge('regions', cfg.image_size, 2, cfg.device, cfg.cache)[1]:.3f} of the pixels of true faces"
    return common.evaluation(cfg, rows, notes)


# ====================================================================================================== ablation

SEEDS = (0, 1, 2)
# P's tables, for comparison: per-pixel accuracy, per-class accuracy, IoU of the FCN-score on Cityscapes; None: could not be confirmed.
# Of C's Tables 4 and 5 we could confirm no digit, only this: without the GAN loss, and with the backward cycle alone, results
# do not look like the domain; without cycles, and with the forward cycle alone, they collapse.
# Table 2 was trained with batches of 10.
PAPER = {"the true pictures": (.80, .26, .21), "L1": (.42, .15, .11), "GAN": (.22, .05, .01), "cGAN": (.57, .22, .16),
         "L1+GAN": (.64, .20, .15), "L1+cGAN": (.66, .23, .17),
         "U-Net, L1": (.48, None, .13), "U-Net, L1+cGAN": (.55, None, .14),
         "encoder-decoder, L1": (.35, None, .08), "encoder-decoder, L1+cGAN": (.29, None, .05),
         "patch 1": (.39, None, .10), "patch 16": (.65, None, .17), "patch 70": (.66, None, .17), "patch 286": (.42, None, .11)}


def same_share(patch, image_size):
    """The patch of P's Table 3 that is as large a part of 256 px as `patch` is of image_size, within a tenth; else None."""
    return 1 if patch == 1 else next((p for p in (16, 70, 286) if abs(patch / image_size / (p / 256) - 1) < .1), None)


def tables(cfg):
    """The rows of each part: {part: {name: what is changed}}."""
    few = [p for p in patches(cfg) if p <= 1.2 * cfg.image_size]        # beyond the picture there is nothing to see
    return {"losses": {loss: dict(model="pix2pix", loss=loss) for loss in LOSSES["pix2pix"]},
            "generator": {f"{'U-Net' if skips else 'encoder-decoder'}, {loss}": dict(model="pix2pix", loss=loss, skips=skips)
                          for skips in (True, False) for loss in ("L1", "L1+cGAN")},
            "patch": {f"patch {patch}": dict(model="pix2pix", loss="L1+cGAN", patch=patch) for patch in few},
            "cycle": {loss: dict(model="cyclegan", loss=loss, lambda_idt=0.) for loss in LOSSES["cyclegan"]}
                     | {"GAN+cycle+identity": dict(model="cyclegan", loss="GAN+cycle", lambda_idt=.5 * cfg.lambda_cyc)}}   # C 5.2: for colours


def _ablation_run(cfg):
    """One training of the ablation and its measures (in a process of its own on a CPU): those of G, "truth ..." and, for CycleGAN, "F ..."."""
    rows = measure(cfg, train(cfg), make_data(cfg, test=True))
    out = dict(rows["G"]) | {f"truth {k}": v for k, v in rows["G: the truth"].items()}
    if "F" in rows:
        out |= {f"F {k}": v for k, v in rows["F"].items()} | {"both L1": (rows["G"]["L1"] + rows["F"]["L1"]) / 2}
    return out


def ablate(cfg):
    """The papers' tables, on toy faces, three seeds; --part picks one. The thresholds stand here, and were set before running.

    losses     P Table 1. L1+cGAN: a higher IoU than L1 alone and than cGAN alone in every seed; L1 alone is less sharp in every
               seed; the GAN that does not see x reaches at most half the IoU of cGAN.
    generator  P Table 2. With L1+cGAN the U-Net has a higher IoU than the encoder-decoder in every seed.
    patch      P Table 3. The recipe's patch has at least the mean IoU of 1 x 1 and of the largest, the whole picture. The paper's
               numbers stand beside patches of the same share of the picture.
    cycle      C Tables 4, 5, as L1 to the truth, mean of both directions. Both cycles and GAN: nearer than GAN alone in every
               seed, than the cycle alone in every seed, and in the mean than either one-way cycle. With the identity loss as well
               (set after the others had been measured, before its own run): nearer than GAN alone in every seed.

    The tables set model, loss and skips. Writes ablation.json, or ablation_<part>.json, a .png beside it, and for each part
    ablation_<part>_samples.png. An interrupted ablation continues.
    """
    folder = common.ablation_folder(cfg)
    base = dataclasses.replace(cfg, fresh=False, part="all", loss="full", skips=True, weights="", steps=n_steps(cfg, cfg.people))
    parts = {part: rows for part, rows in tables(base).items() if cfg.part in ("all", part)}
    if "patch" in parts and f"patch {cfg.patch}" not in list(parts["patch"])[1:-1]:
        raise UserError(f"--patch {cfg.patch}: the table compares it with the smallest and the largest; expected one of "
                        + ", ".join(name.split()[1] for name in list(parts["patch"])[1:-1]))
    jobs, place = {}, {}                                                # the same training may stand in several tables
    for part, rows in parts.items():
        for name, change in rows.items():
            for seed in SEEDS:
                one = dataclasses.replace(base, seed=seed, **change)
                key = f"{one.model}-{one.loss}-{one.patch}" + "-no-skips" * (not one.skips) + "-identity" * (one.lambda_idt > 0)
                jobs[key, seed], place[part, name] = dataclasses.replace(one, run=str(folder / f"{key}-{seed}")), key
    for one in jobs.values():
        validate(one)
    if any(task(one)[1] in (points_map, pencil, toyfaces.region_map) for one in jobs.values() if one.model == "pix2pix"):
        raise UserError(f"--toy {cfg.toy} --direction {cfg.direction}: these tables read regions in faces; choose a task that ends in a face")
    study = common.Ablation(jobs)
    for one in {(one.model, one.seed): one for one in jobs.values()}.values():             # before the processes, which would all make them
        make_data(one), make_data(one, test=True)
    toyfaces.judge("regions", cfg.image_size, 2, cfg.device, cfg.cache)
    study.run(_ablation_run, cfg.device)

    def values(part, name, key="IoU"):
        return study.values(place[part, name], key)

    for part, rows in parts.items():
        for name in rows:
            measures = ("L1", "both L1", "F L1", "SSIM", "back", "back from noise") if part == "cycle" else ("pixel", "class", "IoU", "L1", "SSIM", "sharpness")
            study.row(f"{part}: {name}", **{k: values(part, name, k) for k in measures})
            paper = f"patch {same_share(rows[name]['patch'], cfg.image_size)}" if part == "patch" else name
            if part != "cycle" and paper in PAPER:
                study.rows[f"{part}: {name}, mean"] |= {f"paper {k}": v for k, v in zip(("pixel", "class", "IoU"), PAPER[paper], strict=True) if v}
        if part != "cycle":
            study.row(f"{part}: the true pictures", **{k: values(part, name, f"truth {k}") for k in ("pixel", "class", "IoU")})
            study.rows[f"{part}: the true pictures, mean"] |= dict(zip(("paper pixel", "paper class", "paper IoU"), PAPER["the true pictures"], strict=True))
    if "losses" in parts:
        L1, cgan, both = (values("losses", name) for name in ("L1", "cGAN", "L1+cGAN"))
        blur, sharp = (values("losses", name, "sharpness") for name in ("L1", "L1+cGAN"))
        study.claim("losses", "IoU of the regions read in the faces (Table 1): L1 alone, L1+cGAN", L1, both,
                    above_L1_in_every_seed=(both > L1).all(), above_cGAN_in_every_seed=(both > cgan).all(), L1_is_less_sharp_in_every_seed=(blur < sharp).all(),
                    GAN_without_x_at_most_half_of_cGAN=values("losses", "GAN").mean() <= .5 * cgan.mean())
    if "generator" in parts:
        plain, unet = (values("generator", f"{name}, L1+cGAN") for name in ("encoder-decoder", "U-Net"))
        study.claim("generator", "IoU (Table 2): encoder-decoder, U-Net", plain, unet, U_Net_above_in_every_seed=(unet > plain).all())
    if "patch" in parts:
        pixel, own, whole = (values("patch", f"patch {p}") for p in (1, cfg.patch, list(parts["patch"])[-1].split()[1]))
        study.claim("patch", f"IoU (Table 3): patch of 1 px, of {cfg.patch} px", pixel, own,
                    at_least_1_px=own.mean() >= pixel.mean(), at_least_the_whole_picture=own.mean() >= whole.mean())
    if "cycle" in parts:
        cycle, gan, forward, backward, both = (values("cycle", name, "both L1") for name in LOSSES["cyclegan"])
        study.claim("cycle", "L1 to the truth, both directions (Tables 4, 5): GAN alone, with both cycles", gan, both,
                    nearer_than_GAN_alone_in_every_seed=(both < gan).all(), nearer_than_the_cycle_alone_in_every_seed=(both < cycle).all(),
                    nearer_than_one_way=both.mean() < min(forward.mean(), backward.mean()))
        kept = values("cycle", "GAN+cycle+identity", "both L1")
        study.claim("identity", "L1 to the truth, both directions: GAN alone, with both cycles and the identity loss (C 5.2)", gan, kept,
                    nearer_than_GAN_alone_in_every_seed=(kept < gan).all())
    for part, rows in parts.items():
        draw_table({name: jobs[place[part, name], SEEDS[0]] for name in rows}, Path(cfg.run) / f"ablation_{part}_samples.png")
    study.write(cfg)


def draw_table(runs, path, n=4):
    """The same held-out pictures through the G of every row, side by side: x, one column a run, y."""
    columns = {}
    for name, one in runs.items():
        G, data = trained(one)[0], make_data(one, test=True)
        torch.manual_seed(0)
        x, y = some(data, n)
        columns = {"x": x} | columns | {name: translate(one, G, x)}
    grid([*columns.values(), y], [*columns, "y"], max(1, 128 // one.image_size)).save(path)


# ===================================================================================================== inference

def infer(cfg, files, backward, half, squeeze, out):
    """FILE... or folders of pictures, of any size. Writes <name>.png, the translation, and <name>_sheet.png, the translation
    beside its input, to --out.

    Sides that the networks cannot halve often enough are padded by repeating the edge, and cut again.
    """
    paths = common.named_pictures(files)
    images = [common.open_image(path) for path in paths.values()]
    nets = trained(cfg)
    if backward and len(nets) < 2:
        raise UserError(f"--backward: there is one generator only{'; train another with --direction BtoA' if cfg.model == 'pix2pix' else ', no F'}")
    net, back = (nets + [None])[:2] if not backward else nets[::-1]
    torch.manual_seed(cfg.seed)
    grain = cfg.image_size if cfg.model == "pix2pix" else 4
    folder = Path(out or Path(cfg.run) / "inferred")
    folder.mkdir(parents=True, exist_ok=True)
    for (name, path), image in zip(paths.items(), images, strict=True):
        if half:
            image = half_of(image, half)
        if squeeze:
            image = image.resize((cfg.image_size, cfg.image_size), Image.Resampling.BICUBIC)
        x = common.to_tensor(image)[None].to(cfg.device)
        shown = [x, y := whole(net, x, grain)] + ([whole(back, y, grain)] if back else [])
        grid([y], None).crop((0, 0, image.width, image.height)).save(folder / f"{name}.png")
        grid(shown, ["input", "output", "back"][:len(shown)]).save(folder / f"{name}_sheet.png")
        print(f"{path}: {image.width} x {image.height} -> {folder / f'{name}.png'}")


@torch.no_grad()
def whole(net, x, grain):
    """net(x) for a picture [1, 3, H, W] of any size: padded to multiples of `grain`, and cut again."""
    H, W = x.shape[2:]
    x = nn.functional.pad(x, (0, -W % grain, 0, -H % grain), mode="replicate")
    return net(x)[:, :, :H, :W]


if __name__ == "__main__":
    common.cli(__name__)
