"""IACycleGAN: photo and sketch, synthesis and recognition improving each other.

Yuke Fang, Weihong Deng, Junping Du, Jiani Hu. "Identity-Aware CycleGAN for Face Photo-Sketch Synthesis and
Recognition", Pattern Recognition 2020, arXiv 2103.16019. No code of the authors is public. Questions of
readers are answered in notebooks/04_iacyclegan.ipynb.

The idea. CycleGAN between photos X and sketches Y (round 0) learns a look, not a person. Its pictures and
the real ones tune a face recogniser of each modality, with triplets. In round 1 the generators are trained
anew, and the recognisers judge as well: what G_X draws of a photo must look to the recogniser of sketches
like the real sketch of the same person. Then the recognisers are tuned again, and so on.

The claim. Better sketches and photos (SSIM, FSIM) and better recognition across the two than CycleGAN, and
each round better than the one before. We could not read the paper's tables. --ablate measures the claim on
drawn people whose true sketch is known, also with a recogniser that no loss ever used.

Equations (the order is the paper's; its numbers we could not confirm):
    [adv] adversarial, as in CycleGAN
    [cyc] cycle consistency
    [idp] identity perception
    [map] identity mapping
    [tri] triplet, for the recognisers

Run it:
    python iacyclegan.py --train                      toy faces and pencil sketches: CycleGAN, then two rounds
    python iacyclegan.py --train --data CUFS [--vgg-face vgg_face.pth]
    python iacyclegan.py --evaluate                   every round: SSIM, FSIM, recognition both ways
    python iacyclegan.py --ablate                     three seeds, shuffled identities, a poor first round
    python iacyclegan.py --infer photo.jpg            photo to sketch; --backward: sketch to photo

Differs from the paper, because:
    lambda_idp    the paper's 3e7 fits no usual norm of features. Here features have length 1, and the weight
                  makes [idp] as heavy as [cyc] after round 0; it is printed
    epochs        as many steps; people are drawn with replacement
The paper is silent, or we could not read it; here:
    adversarial   least squares, as in CycleGAN's code
    mapping       CycleGAN's identity loss: G_X shown a sketch leaves it as it is
    triplets      margin 0.2 on features of length 1, every triplet of a batch
    pairs         by person, not by pixel; generators start from scratch in every round, recognisers go on
"""
import copy
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F
from PIL import Image
from tqdm import tqdm

import common
from common import ImagePool, PatchGAN, ResNet, add_noise, linear_decay
from lab import UserError, authors, judges, say, toyfaces, toysets
from lab.chain import check_chain, checkpoint_of
from lab.cli import cli
from lab.copying import learn_to_copy
from lab.files import (check_paper, load_checkpoint, load_weights, out_folder, read_checkpoint,
                       reads_checkpoint, save_checkpoint)
from lab.formats import named_pictures, sketches
from lab.images import decoded_images, draw_crops, grid, open_image, padded, report_found, to_tensor, to_uint8
from lab.machine import resolve_device
from lab.run import Run, Settings, autocast, choice, frozen, require, restore_config, to_device


@dataclass
class Config(Settings):
    """The paper's recipe; where it is silent, CycleGAN's code."""
    # data
    image_size: int = 256             # CycleGAN; the paper does not say
    people: int = 200                 # ours: toy people to train on, a photo and a sketch each
    exaggeration: float = 1.3         # ours: how far the toy artist moves every proportion from the average
    variety: float = 1.               # ours: of skins and irises of toys, unseen in a sketch; 0: alike
    # networks
    width: int = 64                   # CycleGAN
    residual_blocks: int = 9          # CycleGAN: for 256 px
    nearest: bool = False             # ours, off: G repeats pixels in place of CycleGAN's u layers
    d_width: int = 64                 # CycleGAN
    patch: int = choice(70, 16, 34)   # CycleGAN: px that one score of D sees
    vgg_face: str = ""                # the paper's recogniser: file of VGG-Face; none = one of toy faces
    vgg_bgr: bool = False             # ours: the file's network expects blue first, as Caffe's does
    # losses
    lambda_cyc: float = 10.           # the paper
    lambda_idp: float = 0.            # the paper: 3e7; ours: 0 = as heavy as the cycle loss after round 0
    lambda_map: float = 5.            # the paper
    lambda_copy: float = 10.          # ours: in the first copy_steps only
    noise: float = 0.                 # ours, off: std of noise between G_X and G_Y, against hidden signals
    margin: float = .2                # ours: FaceNet's; the paper does not say
    # training
    rounds: int = 2                   # ours: rounds after CycleGAN; the paper's chain, tuning twice, is 1
    epochs: int = 200                 # the paper: 100 constant, 100 to zero; here in every round
    steps: int = 0                    # ours: of the generators in every round; 0 = epochs
    copy_steps: int = 0               # ours, off: so many of the first steps G_X and G_Y only learn to copy
    batch_size: int = 1               # CycleGAN
    lr: float = 2e-4                  # the paper
    betas: tuple = (.5, .999)         # CycleGAN
    decay_from: float = .5            # the paper: half of the epochs constant, then linear to 0
    pool_size: int = 50               # CycleGAN
    recogniser_steps: int = 1000      # ours: the paper does not say
    recogniser_lr: float = 1e-4       # ours: the paper does not say
    recogniser_people: int = 16       # ours: people in a batch, two real and two generated pictures each
    warm_recogniser: bool = False     # ours, off: tune the recognisers on real pictures before round 0
    # ablation
    part: str = choice("all", "rounds", "tuning", "poor")     # ours: of --ablate
    identities: str = choice("right", "shuffled")   # ours: shuffled = [idp] compares with anybody
    tuned: bool = True                # the paper; --no-tuned: recognisers stay as they were
    first: float = 1.                 # ours: share of its steps, copying too, that round 0, CycleGAN, gets


# Minutes on a processor. All of it is ours.
SMALL = dict(
    image_size=64, width=32, d_width=32, residual_blocks=4, nearest=True,      # small but wide paints better
    patch=34, noise=.1,                     # fewer dots and specks than 70 and no noise
    people=2000, variety=0.,                # 200 are learned by heart; a sketch tells shapes, not colours
    copy_steps=400,                         # else the generators may agree on negatives
    batch_size=4, steps=4500, lr=4e-4,      # four pictures fill a processor; few steps, so large ones
    rounds=1,                               # the paper's chain
    recogniser_steps=300,                   # the triplet loss has settled by then
)
# Minutes on a GPU, hours on two cores. All of it is ours.
MEDIUM = SMALL | dict(image_size=128, residual_blocks=6, copy_steps=600, batch_size=8, steps=3000, lr=3e-4)
INFER_FLAGS = {
    "--backward": dict(action="store_true", help="the files are sketches: draw photos"),
    "--which": dict(type=int, default=None, metavar="N", help="generators of this round; default: the last"),
    "--out": dict(default="", metavar="DIR", help="where to write (default: inferred/ in the run folder)"),
}
HEALTH = {"copying": "output hardly differs from its input", "D-won": "D tells real from generated by far",
          "collapsed": "outputs for different inputs look alike", "nan": "a loss is not finite"}


# ============================================================================================== data

class Pairs:
    """A photo and a sketch of each person. X, Y: uint8 [N, 3, L, L], the same index the same person.

    truth: what a perfect G_Y makes of Y, and a perfect G_X of X. Of toy people: photo and sketch of the very
    sitting. Of photographs the best that is known: X and Y.
    """

    def __init__(self, cfg, X, Y, truth=None):
        self.cfg, self.X, self.Y = cfg, X, Y
        self.true_X, self.true_Y = truth or (X, Y)
        self.generator = torch.Generator().manual_seed(cfg.seed)

    def __len__(self):
        return len(self.X)

    def sample(self, batch_size):
        """x, y, x_of_person, y_of_person: [B, 3, S, S], all of the same B people.

        The last two are what [idp] compares with. y_of_person is cropped and mirrored as x is, of which the
        sketch is drawn, and x_of_person as y. In other crops even the true sketch often looks to a recogniser
        of toy faces like somebody else's.
        """
        who, anybody = torch.randint(len(self), (2, batch_size), generator=self.generator)
        judged = who if self.cfg.identities == "right" else anybody
        of_x, of_y = self.crops(batch_size), self.crops(batch_size)
        return (self.view(self.X, who, of_x), self.view(self.Y, who, of_y),
                self.view(self.X, judged, of_y), self.view(self.Y, judged, of_x))

    def crops(self, count, g=None):
        """Where to crop `count` pictures, drawn at random: top, left, and whether to mirror; [count] each."""
        g, room = g or self.generator, self.X.shape[-1] - self.cfg.image_size
        top, left = torch.randint(room + 1, (2, count), generator=g)
        return top, left, torch.rand(count, generator=g) < .5

    def view(self, images, index, crops):
        """Pictures `index` of X or Y, see `crops`: [b, 3, S, S]."""
        top, left, mirror = crops
        return draw_crops(images, index, top, left, self.cfg.image_size, self.cfg.device, mirror)

    def middle(self, images, index):
        """For testing: the middle of pictures `index`, [b, 3, S, S]."""
        corner = torch.full((len(index),), (images.shape[-1] - self.cfg.image_size) // 2)
        return draw_crops(images, index, corner, corner, self.cfg.image_size, self.cfg.device)


def load_size(cfg):                                                    # CycleGAN's 286 for 256
    return cfg.image_size * 143 // 128


def scan(cfg):
    """What is under cfg.data: `pairs` of files, `test` (bool each), and what --check prints."""
    return sketches.scan(cfg.data) | {"bytes_per_image": 3 * load_size(cfg) ** 2}


def photographs(cfg, test):
    """The training or the test part of a real data set, decoded once; edges repeated to a square."""
    found, L = scan(cfg), load_size(cfg)
    report_found(found, cfg.skip_bad)
    mine = [pair for pair, is_test in zip(found["pairs"], found["test"], strict=True) if is_test == test]
    files = [path for pair in mine for path in pair]                   # photo, sketch, photo, sketch ...

    def decode(k):
        return np.asarray(padded(open_image(files[k]), L)).transpose(2, 0, 1)

    images, good = decoded_images(cfg, files, (3, L, L), decode, "padded")
    place = {k: n for n, k in enumerate(good)}
    whole = [k for k in range(0, len(files), 2) if k in place and k + 1 in place]      # with --skip-bad: both
    if not whole:
        raise UserError(f"{cfg.data}: of none of {len(mine)} pairs both pictures can be read")
    return Pairs(cfg, *(images[torch.tensor([place[k + side] for k in whole])] for side in (0, 1)))


TRAIN_SEED, TEST_SEED, TEST_PEOPLE = 60_000, 59_000, 400                # other seeds draw other people


def make_data(cfg, test=False):
    """Pairs to train on, or those of other people (test)."""
    if cfg.data:
        return photographs(cfg, test)
    L, seed = load_size(cfg), TEST_SEED if test else TRAIN_SEED + 10 * cfg.seed
    sitting, memory = toysets.sittings(cfg, TEST_PEOPLE if test else cfg.people, seed)
    X, Y = toyfaces.images(cfg, sitting, L), toysets.caricatures(cfg, memory, L)
    truth = (toyfaces.images(cfg, memory, L), toysets.caricatures(cfg, sitting, L)) if test else None
    return Pairs(cfg, X, Y, truth)


# ========================================================================================== networks

def build(cfg):
    """G_X, G_Y, D_X, D_Y, weights from N(0, .02).

    G_X: photo -> sketch, G_Y: sketch -> photo, CycleGAN's ResNet, 11,378,179 parameters with 9 blocks. D_X
    judges photos, D_Y sketches: PatchGANs, of 70 x 70 px with 2,764,737 parameters.
    """
    n = {16: 1, 34: 2, 70: 3}[cfg.patch]                               # D's layers of stride 2
    widths, strides = [cfg.d_width * 2 ** k for k in range(n + 1)], (2,) * n + (1,)
    G_X, G_Y = (common.init_normal(ResNet(cfg.residual_blocks, cfg.width, cfg.nearest)) for _ in "XY")
    D_X, D_Y = (common.init_normal(PatchGAN(3, widths, strides, norm="instance")) for _ in "XY")
    return G_X, G_Y, D_X, D_Y


class Recogniser(nn.Module):
    """phi: faces [B, 3, S, S] in [-1, 1] -> features [B, n], of any length.

    VGG-Face where cfg.vgg_face names its weights; else a small recogniser of toy people of its own, which has
    seen no sketch. Both bear shifts and mirrors. In tuning, too, phi is in eval mode. load=False: the weights
    follow.
    """

    def __init__(self, cfg, load=True):
        super().__init__()
        if cfg.vgg_face:
            self.net = authors.VGGFace(cfg.vgg_face if load else "", cfg.vgg_bgr)
        else:
            kept = cfg.image_size, 1, cfg.device, cfg.cache, toysets.known_by_shape(cfg)
            self.net = copy.deepcopy(judges.judge("identity", *kept)[0]) if load else judges.Judge("identity")
        self.eval().requires_grad_(True)

    def forward(self, x):
        if isinstance(self.net, judges.Judge):
            return self.net.embed(self.net.features(x)[-1]).float()
        return self.net(x)


# ============================================================================================ losses
# || . ||_1 is the mean absolute value over batch, channels and pixels of pictures in [-1, 1], as in
# CycleGAN's code. Of [cyc], [idp] and [map] a function is one of the two terms; train_generators adds both.

def loss_adv_D(real, fake):
    """[adv]  L_adv = E[log D_Y(y)] + E[log(1 - D_Y(G_X(x)))] + the same for D_X;  here (1 - D)^2 and D^2

    Least squares, halved, minimised by D. real, fake: scores of any shape. Scalar.
    """
    return common.lsgan_D(real, fake) / 2


def loss_adv_G(fake):
    """[adv]  G's side of it: (D_Y(G_X(x)) - 1)^2, minimised by G."""
    return common.lsgan_G(fake)


def loss_cyc(x, x_back):
    """[cyc]  L_cyc = E || G_Y(G_X(x)) - x ||_1 + E || G_X(G_Y(y)) - y ||_1

    There and back again is the same picture. Weight: lambda_cyc
    """
    return (x_back - x).abs().mean()


def loss_idp(f, f_fake):
    """[idp]  L_idp = E || phi_Y(y) - phi_Y(G_X(x)) ||_2^2 + E || phi_X(x) - phi_X(G_Y(y)) ||_2^2

    f [B, n]: of the true picture of the *same person*, in the modality of f_fake; not differentiated. Here of
    length 1, so that the squares' sum is 2 - 2 cos. Weight: lambda_idp
    """
    return ((F.normalize(f_fake) - F.normalize(f.detach())) ** 2).sum(1).mean()


def loss_map(y, y_same):
    """[map]  L_map = E || G_X(y) - y ||_1 + E || G_Y(x) - x ||_1

    What is a sketch already stays as it is. y_same: G_X(y); or G_Y(x), with x. Weight: lambda_map
    """
    return (y_same - y).abs().mean()


def loss_tri(f, who, margin=.2):
    """[tri]  L_tri = sum max(0, ||f_a - f_p||^2 - ||f_a - f_n||^2 + alpha), here the mean of those above 0

    f: [M, n] features, made of length 1 here; who: [M], whose they are. a and p are of one person, n of
    another: every such triplet of the batch. With the hardest p and n alone all features ran together into
    one point, where the loss is alpha and has no slope. alpha is cfg.margin.
    """
    who, f = who.to(f.device, non_blocking=True), F.normalize(f)
    distance, same = 2 - 2 * f @ f.T, who[:, None] == who[None, :]
    positive = same & ~torch.eye(len(who), dtype=torch.bool, device=f.device)
    triplets = positive[:, :, None] & ~same[:, None, :]                # [a, p, n]
    loss = torch.relu(distance[:, :, None] - distance[:, None, :] + margin) * triplets
    return loss.sum() / (loss > 0).sum().clamp(min=1)


# ========================================================================================== training

def validate(cfg):
    """Raises UserError for settings that do not fit together."""
    for name in ("width", "d_width", "residual_blocks", "people", "recogniser_steps", "recogniser_people",
                 "first"):
        require(cfg, name, getattr(cfg, name) > 0, "more than 0")
    side = cfg.image_size
    require(cfg, "image_size", side % 4 == 0 and side >= 32, "a multiple of 4, at least 32")
    require(cfg, "pool_size", not 0 < cfg.pool_size < cfg.batch_size, "at least --batch-size, or 0")
    require(cfg, "epochs", cfg.epochs or cfg.steps, "at least 1, or --steps")
    if cfg.weights:
        raise UserError("--weights: every round starts from scratch; give it with --evaluate or --infer")


def start(cfg):
    """What every round needs: cfg with its steps, data, held_out, and phi = (phi_X, phi_Y), not yet tuned."""
    validate(cfg)
    resolve_device(cfg)
    data, held_out = make_data(cfg), make_data(cfg, test=True)
    if cfg.data and not cfg.vgg_face:
        say("no --vgg-face file: a recogniser of toy faces begins; see --warm-recogniser")
    phi = tuple(Recogniser(cfg).to(cfg.device) for _ in "XY")          # of photos, of sketches
    steps = cfg.steps or cfg.epochs * -(-len(data) // cfg.batch_size)
    return replace(cfg, steps=steps), data, held_out, phi


def of_round(cfg, r):
    """The settings of round r, in a folder of its own. What only `train` reads is alike in all
    chains, so that those that share a round share its checkpoint.
    """
    one = replace(cfg, run=f"{cfg.run}/round{r}", rounds=0, first=1., tuned=True, warm_recogniser=False)
    if r == 0:
        one.steps, one.copy_steps = max(1, round(cfg.steps * cfg.first)), round(cfg.copy_steps * cfg.first)
        one.identities = "right"
    return one


OF_RECOGNISERS = ("tuned", "warm_recogniser", "recogniser_steps", "recogniser_lr", "recogniser_people",
                  "margin")                                            # no round's checkpoint tells these


def train(cfg):
    """The paper's mutual optimisation. Writes cfg.run/round0, round1 ...; returns the last G_X, G_Y."""
    cfg, data, held_out, phi = start(cfg)
    chain, lambda_idp = [of_round(cfg, r) for r in range(cfg.rounds + 1)], 0.
    check_chain(cfg, chain, OF_RECOGNISERS)
    if cfg.warm_recogniser:                                            # ours, off: real pictures alone
        phi = tune(of_round(cfg, "warm"), phi, data, None)
    for r, one in enumerate(chain):
        say(f"round {r}: {'generators with the recognisers so far' if r else 'CycleGAN, no recogniser'}")
        G = train_generators(one, phi if r else None, data, held_out, lambda_idp)      # 1. recognisers fixed
        if 0 < cfg.stop_after < one.steps:
            break                                                      # nothing is tuned on half a training
        if cfg.tuned:
            phi = tune(one, phi, data, G)                              # 2. the generators are fixed
        lambda_idp = lambda_idp or weight_of_identity(cfg, *G, *phi, data)
    return G


def train_a_round(cfg):
    """For --bench: round 1 alone, with untuned recognisers. It has an identity loss. Returns G_X, G_Y."""
    cfg, data, held_out, phi = start(cfg)
    return train_generators(of_round(cfg, 1), phi, data, held_out, 1.)


def train_generators(cfg, phi, data, held_out, lambda_idp):
    """A round of synthesis, from scratch: CycleGAN, and [idp] with phi = (phi_X, phi_Y). Returns G_X, G_Y."""
    torch.manual_seed(cfg.seed)
    data = Pairs(cfg, data.X, data.Y)                                  # so that its random numbers start anew
    G_X, G_Y, D_X, D_Y = to_device(cfg, *build(cfg))
    phi_X, phi_Y = phi or (None, None)
    pool_X, pool_Y = (ImagePool(cfg.pool_size, cfg.image_size, cfg.device) for _ in "XY")
    opt_G = torch.optim.Adam([*G_X.parameters(), *G_Y.parameters()], cfg.lr, cfg.betas, fused=True)
    opt_D = torch.optim.Adam([*D_X.parameters(), *D_Y.parameters()], cfg.lr, cfg.betas, fused=True)
    nets = {"G_X": G_X, "G_Y": G_Y, "D_X": D_X, "D_Y": D_Y, "pool_X": pool_X, "pool_Y": pool_Y}
    run = Run(cfg, data, nets, {"G": opt_G, "D": opt_D}, HEALTH)
    shown = fixed_batch(held_out)
    learn_to_copy(cfg, run, opt_G, (G_X, G_Y), loss_map)

    # Losses that train the generators are named after the one that draws: G_X's (photo -> sketch) end in _X,
    # G_Y's in _Y, cycles after their first generator. L_D_X, L_D_Y train D_X, D_Y: L_D_Y opposes L_adv_X.
    # y_of_person is the sketch y in the crop and mirroring of x (--identities shuffled: another person's).
    for step, (x, y, x_of_person, y_of_person) in run.batches(cfg.batch_size):
        run.set_lr(cfg.lr * linear_decay(step, cfg.steps, cfg.decay_from))

        # 1. G_X and G_Y: like real ones, of this person, with a way back; what is a sketch already stays
        with frozen(D_X, D_Y), autocast(cfg):
            y_fake = G_X(x)
            x_back = G_Y(add_noise(y_fake, cfg.noise))
            x_fake = G_Y(y)
            y_back = G_X(add_noise(x_fake, cfg.noise))
            y_same = G_X(y)
            x_same = G_Y(x)
            score_y_fake = D_Y(y_fake)
            score_x_fake = D_X(x_fake)
        L_adv_X, L_adv_Y = loss_adv_G(score_y_fake), loss_adv_G(score_x_fake)                # [adv]
        L_cyc_X, L_cyc_Y = loss_cyc(x, x_back), loss_cyc(y, y_back)                          # [cyc]
        L_map_X, L_map_Y = loss_map(y, y_same), loss_map(x, x_same)                          # [map]
        L_idp_X = L_idp_Y = 0.                                         # round 0 is CycleGAN
        if phi:
            with frozen(phi_X, phi_Y), autocast(cfg):
                f_y = phi_Y(y_of_person)
                f_y_fake = phi_Y(y_fake)
                f_x = phi_X(x_of_person)
                f_x_fake = phi_X(x_fake)
            L_idp_X = loss_idp(f_y, f_y_fake)                                                # [idp]
            L_idp_Y = loss_idp(f_x, f_x_fake)                                                # [idp]
        L_G = (L_adv_X + L_adv_Y + cfg.lambda_cyc * (L_cyc_X + L_cyc_Y)                      # the total
               + lambda_idp * (L_idp_X + L_idp_Y) + cfg.lambda_map * (L_map_X + L_map_Y))
        opt_G.zero_grad()
        L_G.backward()
        opt_G.step()

        # 2. D_X and D_Y: real pictures 1; generated ones, new or from the pool, 0
        y_pooled = pool_Y(y_fake.detach())
        x_pooled = pool_X(x_fake.detach())
        with autocast(cfg):
            score_y = D_Y(y)
            score_y_pooled = D_Y(y_pooled)
            score_x = D_X(x)
            score_x_pooled = D_X(x_pooled)
        L_D_X, L_D_Y = loss_adv_D(score_x, score_x_pooled), loss_adv_D(score_y, score_y_pooled)    # [adv]
        L_D = L_D_X + L_D_Y
        opt_D.zero_grad()
        L_D.backward()
        opt_D.step()

        if run.logs(step):
            run.log(step, **health(G_X, G_Y, D_X, D_Y, shown), lambda_idp=lambda_idp,
                    L_adv_X=L_adv_X, L_adv_Y=L_adv_Y, L_cyc_X=L_cyc_X, L_cyc_Y=L_cyc_Y, L_idp_X=L_idp_X,
                    L_idp_Y=L_idp_Y, L_map_X=L_map_X, L_map_Y=L_map_Y, L_D_X=L_D_X, L_D_Y=L_D_Y)
        if run.samples(step):
            run.sample(step, sample_grid(G_X, G_Y, shown))
    return G_X, G_Y


@torch.no_grad()
def weight_of_identity(cfg, G_X, G_Y, phi_X, phi_Y, data, n=16):
    """lambda_idp: cfg's, or if that is 0 what makes [idp] weigh as much as [cyc] after round 0.

    Prints the arithmetic. A continued training finds the same number.
    """
    x, y = fixed_batch(data, n)
    with autocast(cfg):
        y_fake = G_X(x)
        x_fake = G_Y(y)
        x_back = G_Y(y_fake)
        y_back = G_X(x_fake)
        f_y, f_y_fake, f_x, f_x_fake = phi_Y(y), phi_Y(y_fake), phi_X(x), phi_X(x_fake)
    cyc = cfg.lambda_cyc * (loss_cyc(x, x_back) + loss_cyc(y, y_back)).item()
    idp = (loss_idp(f_y, f_y_fake) + loss_idp(f_x, f_x_fake)).item()
    raw = (((f_y - f_y_fake) ** 2).mean() + ((f_x - f_x_fake) ** 2).mean()).item()
    weight = cfg.lambda_idp or cyc / idp
    say(f"after round 0: cycle loss {cyc:.3g} with its weight, identity loss {idp:.3g}; lambda_idp "
        f"{weight:.3g} makes it {weight * idp:.3g}, 3e7 {3e7 * idp:.2g}, of raw features {3e7 * raw:.2g}")
    return weight


def tune(cfg, phi, data, G):
    """One round of recognition: new phi_X and phi_Y, tuned on real pictures and, with G, on generated ones.

    Writes cfg.run/recognisers.pt; if it is there already, they are loaded.
    """
    path = Path(cfg.run) / "recognisers.pt"
    if path.exists():
        return load_recognisers(cfg, path)
    phi_X, phi_Y = copy.deepcopy(phi)
    G_X, G_Y = G or (None, None)
    g = torch.Generator().manual_seed(cfg.seed)
    tune_one(cfg, "phi_X", phi_X, data, data.X, data.Y, G_Y, g)        # photos, and G_Y's of sketches
    tune_one(cfg, "phi_Y", phi_Y, data, data.Y, data.X, G_X, g)        # sketches, and G_X's of photos
    nets = {"phi_X": phi_X.state_dict(), "phi_Y": phi_Y.state_dict()}
    save_checkpoint({"paper": Path(__file__).stem, "nets": nets}, path)
    return phi_X, phi_Y


def tune_one(cfg, name, phi, data, real, other, G, g):
    """Train phi with [tri]: two views of each person's picture in `real`, two that G makes of `other`.

    real, other: images of data; G: None for real pictures alone; g: the random numbers.
    """
    optimiser, losses = torch.optim.Adam(phi.parameters(), cfg.recogniser_lr, fused=True), []
    for _ in tqdm(range(cfg.recogniser_steps), f"tuning {name}", disable=None):
        person = torch.randperm(len(data), generator=g)[:cfg.recogniser_people]
        pictures = [data.view(real, person, data.crops(len(person), g)) for _ in range(2)]
        if G is not None:
            with torch.no_grad(), autocast(cfg):
                pictures += [G(data.view(other, person, data.crops(len(person), g))) for _ in range(2)]
        with autocast(cfg):
            f = phi(torch.cat(pictures))
        loss = loss_tri(f, person.repeat(len(pictures)), cfg.margin)                         # [tri]
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.detach())
    first, last = (torch.stack(part).mean() for part in (losses[:20], losses[-20:]))
    say(f"{name}: triplet loss {first:.3f} at first, {last:.3f} at last")


def load_recognisers(cfg, path):
    """(phi_X, phi_Y) of a file that `tune` wrote."""
    saved = load_checkpoint(path)
    check_paper(saved, path, Path(__file__).stem, ("nets",))
    return tuple(load_weights(Recogniser(cfg, load=False), saved["nets"].get(name, {}), path).to(cfg.device)
                 for name in ("phi_X", "phi_Y"))


def fixed_batch(data, n=6):
    """n pairs, always the same, for log lines, grids and the weight of [idp]: x, y [n, 3, S, S]."""
    index = torch.linspace(0, len(data) - 1, min(n, len(data))).round().long()
    return data.middle(data.X, index), data.middle(data.Y, index)


@torch.no_grad()
def health(G_X, G_Y, D_X, D_Y, shown):
    """The health word, and mean L1 distances (0 ... 1) of what G_X (_X) and G_Y (_Y) draw of held-out people.

    change: to the input; error: to the picture of that person; copy: of the input to that picture.
    """
    (x, y), words, values = shown, [], {}
    for end, G, D, source, target in (("_X", G_X, D_Y, x, y), ("_Y", G_Y, D_X, y, x)):
        fake = G(source)
        change, error, copied, spread, apart = ((a - b).abs().mean() / 2 for a, b in (
            (fake, source), (fake, target), (source, target), (fake, fake.roll(1, 0)),
            (target, target.roll(1, 0))))
        lead = D(target).mean((1, 2, 3)).min() - D(fake).mean((1, 2, 3)).max()
        words += ["copying"] * bool(change < .05 * copied) + ["collapsed"] * bool(spread < .1 * apart)
        words += ["D-won"] * bool(lead > .8)
        values |= {f"change{end}": change, f"error{end}": error, f"copy{end}": copied}
    return {"health": next(iter(words), "ok")} | values


@torch.no_grad()
def sample_grid(G_X, G_Y, shown):
    """Photo, drawn sketch, way back, the artist's sketch; and the same from sketch to photo."""
    x, y = shown
    y_fake, x_fake = G_X(x), G_Y(y)
    columns = {"photo": x, "G_X(x)": y_fake, "G_Y(G_X(x))": G_Y(y_fake), "artist's sketch": y,
               "sketch": y, "G_Y(y)": x_fake, "G_X(G_Y(y))": G_X(x_fake), "real photo": x}
    return grid(columns)


# ========================================================================================= inference

@reads_checkpoint
def load(cfg, r=None):
    """(G_X, G_Y) of round r (default: the last) of cfg.run, or of the file cfg.weights; and its settings."""
    resolve_device(cfg)
    path = checkpoint_of(cfg, r)
    saved = read_checkpoint(path, __file__)
    one = replace(cfg, run=str(path.parent))
    restore_config(one, saved, ("image_size", "width", "residual_blocks", "nearest", "exaggeration",
                                "variety", "vgg_face", "vgg_bgr"))
    G_X, G_Y = (load_weights(net, saved["nets"].get(name, {}), path)
                for net, name in zip(build(one), ("G_X", "G_Y"), strict=False))
    return to_device(one, G_X.eval(), G_Y.eval()), one


@torch.no_grad()
def infer(cfg, files, backward, which, out):
    """FILE or folder ...: photos, or sketches (backward). Writes <name>.png, and the way back in _sheet.png.

    A picture is resized to the scale of the training, its edges repeated to a square and cut off again.
    """
    named = named_pictures(files)
    pictures = [open_image(file) for file in named.values()]
    (G_X, G_Y), one = load(cfg, which)
    G, G_back = (G_Y, G_X) if backward else (G_X, G_Y)
    folder, side = out_folder(cfg, out), -(-load_size(one) // 4) * 4
    for (name, file), picture in zip(named.items(), pictures, strict=True):
        x = to_tensor(padded(picture, side))[None].to(cfg.device)
        y = G(x)
        w, h = (max(1, round(side * v / max(picture.size))) for v in picture.size)
        left, top = (side - w) // 2, (side - h) // 2
        result = to_uint8(y[0, :, top:top + h, left:left + w]).permute(1, 2, 0).cpu().numpy()
        Image.fromarray(result).save(folder / f"{name}.png")
        sheet = grid([x, y, G_back(y)], ["input", "drawn", "back"])
        sheet.save(folder / f"{name}_sheet.png")
        print(f"{file}: {picture.width} x {picture.height} -> {folder / f'{name}.png'} ({w} x {h})")


if __name__ == "__main__":
    cli(__name__)
