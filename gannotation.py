"""GANnotation: a face follows landmarks, again and again.

Enrique Sanchez, Michel Valstar. "Triple consistency loss for pairing distributions in GAN-based face
synthesis", arXiv 1811.03492 (2018); published as "A recurrent cycle consistency loss for progressive
face-to-face synthesis", IEEE FG 2020, arXiv 2004.07165. Authors' code: ESanchezLozano/GANnotation. Readers'
questions are answered in notebooks/02_gannotation.ipynb.

The idea. A generator takes a face I and the landmarks s_t of the pose and expression wanted, one heatmap H a
point, and paints the same person so: I^ = G(I; H(s_t)). Trained with self-consistency (a cycle loss) alone it
hides its input in its output. Fed back, such an output goes wrong. The triple consistency loss asks that the
result does not depend on the route: s_i -> s_t -> s_n must end where s_i -> s_n ends.

The claim. A generated face can be edited again, many times over, and even a single pass gets better. The
paper's evidence is pictures. --ablate measures how much error five progressive passes add.

Losses, by section of arXiv 1811.03492v1:
    [2.3.1] adversarial
    [2.3.2] pixel
    [2.3.3] self-consistency
    [2.3.4] triple consistency
    [2.3.5] identity preserving
    [2.3.6] perceptual
    [2.3.7] total variation; and the weights of all

Run it:
    python gannotation.py --train                    toy faces, nothing to download
    python gannotation.py --train --data DIR         300-VW videos, or photographs with .pts files
    python gannotation.py --evaluate                 held-out faces: direct, and after 1 ... 5 passes
    python gannotation.py --ablate                   with and without the triple loss, three seeds
    python gannotation.py --infer face.png --drive points.txt    (or a .pts; or nothing: a toy sweep)

Differs from the paper, because:
    warm-up       the consistency losses start late: a G that copies its input satisfies both perfectly
    identity      without --light-cnn, features of a small recogniser of toy faces; so are the perceptual ones
                  where VGG's weights are missing. (For VGG pictures are normalised; the authors' are not.)
    unconfirmed   batch size, learning rate, norms and D's details are not known to us; Config names sources
Differs from the authors' training code of 2019, which is another method (line drawings instead of heatmaps,
no mask, no identity loss) than the paper's and their published generator's:
    pairs         they draw source and third 51-200 frames from the target; here target and third from the
                  source I, with which the paper's losses begin
    optimiser     weights decay (5e-4), gradients are clipped at norm 1, Adam's betas are (.5, .9)
    range         heatmaps in [0, 1], as in their demo; their line drawings lie in [-1, 1]
    wgan-gp       --adversarial wgan-gp changes the loss alone; they add --d-steps 4
"""
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn as nn
import torch.nn.functional as F

import common
from common import PatchGAN, ResidualBlock, conv_block, crop_box, heatmaps, linear_decay
from lab import UserError, authors, say, toyfaces, toysets, views
from lab.authors import FaceFeatures, Perception
from lab.cli import cli
from lab.files import load_nets, load_weights, out_folder, read_checkpoint, reads_checkpoint
from lab.formats import landmarks as formats
from lab.images import draw, draw_points, grid, open_image, square, to_tensor, write_gif
from lab.machine import resolve_device
from lab.run import (Run, Settings, autocast, choice, frozen, logged, require, restore_config,
                     to_device)


@dataclass
class Config(Settings):
    """The paper's recipe. Sections and their numbers are known from readers' notes of the paper only."""
    # data
    image_size: int = 128             # section 2.2
    points: int = 66                  # authors' demo: 68 without the inner mouth corners
    sigma: float = 1.75               # authors' demo (its "sigma=1"), at 128 px; scaled with image_size
    tight: float = 16.                # authors' demo: margin of the crop, % of the landmarks' mean side
    people: int = 4000                # ours: toy people to train on
    frames: int = 16                  # ours: toy pictures of each
    pose: float = .75                 # ours: range of the toy poses; 1 = yaw up to 60 degrees
    # networks
    width: int = 64                   # authors' demo
    residual_blocks: int = 6          # authors' demo
    d_widths: tuple = (64, 128, 256, 512, 512)      # ours; section 2.2: 128 x 128 -> 4 x 4 x 512
    # losses
    adversarial: str = choice("hinge", "wgan-gp")   # section 2.3.1; wgan-gp: authors' training code
    lambda_adv: float = 1.            # section 2.3.7
    lambda_pix: float = 10.           # section 2.3.7; authors' training code 100
    lambda_self: float = 100.         # section 2.3.7
    lambda_triple: float = 100.       # section 2.3.7
    passes: int = choice(1, 2)        # 2: FG 2020's idea, its formula unconfirmed: a longer route agrees, too
    lambda_id: float = 1.             # section 2.3.7
    lambda_pp: float = 10.            # section 2.3.7
    lambda_tv: float = 1e-4           # section 2.3.7
    lambda_gp: float = 10.            # authors' training code, for wgan-gp
    perceptual: str = choice("vgg", "recogniser")   # section 2.3.6; recogniser: needs no weights
    light_cnn: str = ""               # ours: file of Wu et al.'s Light CNN-9; none = toy recogniser
    # training. Authors' code: 190,000 frames, 2,970 batches of 64 an epoch, lr x 0.1 after each. After three
    # it has vanished; with wgan-gp a fifth of those batches are G's steps. The paper's length is not known.
    steps: int = 100_000              # ours; authors' code: about 8,900 batches before lr vanishes
    batch_size: int = 32              # ours: fits small GPUs; authors' training code 64
    lr: float = 1e-4                  # authors' training code
    betas: tuple = (.5, .999)         # section 3; authors' training code (0.5, 0.9)
    decay_from: float = .5            # ours: constant, then linear to 0; authors' code x 0.1 every epoch
    warm_up: float = .1               # ours: part of the training before the consistency losses start
    ramp: float = .1                  # ours: part of the training in which they grow to full weight
    d_steps: int = 1                  # ours: of D for one of G; theirs 1, with wgan-gp 4
    part: str = choice("all", "triple", "losses")   # ours: of --ablate


# Minutes on a processor. All of it is ours.
SMALL = dict(
    image_size=64, width=16, d_widths=(32, 64, 128, 128), batch_size=8, people=500, frames=10, pose=.6,
    lambda_pix=100.,                        # against copying, which the mask makes easy
    lambda_adv=.1,                          # at 1, D's gradient adds specks before G has learnt to move faces
    lambda_self=30.,                        # a weaker one tempts G less to copy its input
    perceptual="recogniser",                # ImageNet's VGG has not seen toy faces
    steps=6500, lr=1e-3, warm_up=.69, decay_from=.8,        # faces must move before consistency starts
)
# Minutes on a GPU, hours on two cores. All of it is ours.
MEDIUM = dict(
    image_size=128, width=48, d_widths=(32, 64, 128, 256, 256),
    batch_size=16, people=1500, frames=10, pose=.6,                        # drawn in seconds on a GPU
    lambda_pix=100., lambda_adv=.1, lambda_self=30., perceptual="recogniser",       # as SMALL
    steps=4500, lr=5e-4, warm_up=.5, decay_from=.8,         # few steps, so large ones; consistency half-way
)
INFER_FLAGS = {
    "--drive": dict(default="sweep", metavar="FILE",
                    help="landmarks to follow: .pts, or rows of x1 y1 ... x66 y66; default: a toy sweep"),
    "--out": dict(default="", metavar="DIR", help="where to write (default: inferred/ in the run folder)"),
}
HEALTH = {"copying": "output nearer to its input than to its target (error); usual at first",
          "nan": "a loss is not finite", "target-ignored": "same output for two targets",
          "D-won": "D tells real from generated by far"}


# ============================================================================================== data

class Faces:
    """Pictures of people and their landmarks. sample(B): (I, H_i, I_t, H_t, H_n).

    images: uint8 [N, 3, b, b]; points: [N, n, 2] in their pixels; first, last: [N], range of the pictures of
    the same person; gap: how many frames apart two pictures of a video are drawn. photos: crop, turn, mirror
    and bend them; toy faces are drawn in all poses already.
    """

    def __init__(self, cfg, images, points, first, last, photos, gap=(1, 10 ** 9)):
        self.cfg, self.images, self.photos, self.gap = cfg, images, photos, gap
        self.points, self.first, self.last = points.to(cfg.device), first, last
        self.generator = torch.Generator().manual_seed(cfg.seed)

    def __len__(self):
        return len(self.images)

    def anyone(self, n):
        return torch.randint(len(self), (n,), generator=self.generator)

    def partner(self, index):
        """Another picture of the same person, `gap` frames before or after; any, where there is none."""
        (near, far), g = self.gap, self.generator
        first, last = self.first[index], self.last[index]
        before = ((index - near) - (index - far).maximum(first) + 1).clamp(min=0)         # how many there are
        after = ((index + far).minimum(last) - (index + near) + 1).clamp(min=0)
        pick = (torch.rand(len(index), generator=g) * (before + after)).long()
        chosen = torch.where(pick < before, index - near - pick, index + near + pick - before)
        anywhere = first + (torch.rand(len(index), generator=g) * (last - first + 1)).long()
        return torch.where(before + after > 0, chosen, anywhere)

    def sample(self, batch_size):
        """Source I and its heatmaps H_i, target I_t of the same person and its H_t, H_n of a third shape.

        I, I_t: [B, 3, S, S] in [-1, 1]; H: [B, n, S, S] in [0, 1].
        """
        i = self.anyone(batch_size)
        t, n = self.partner(i), self.partner(i)
        if self.photos:
            # authors' code: source, target, third turn by 30, 15, 45 degrees (std); one mirroring for all
            mirror = torch.rand(batch_size, generator=self.generator) < .5
            still = self.first[i] == self.last[i]
            I, s_i = self.view(i, 30., mirror)
            I_t, s_t = self.view(t, 15., mirror, still)
            s_n, _ = self.shape(n, 45., mirror, still)
        else:
            I, I_t = draw(self.images, i, self.cfg.device), draw(self.images, t, self.cfg.device)
            s_i, s_t, s_n = (self.landmarks(k) for k in (i, t, n))
        return I, heat(self.cfg, s_i), I_t, heat(self.cfg, s_t), heat(self.cfg, s_n)

    def landmarks(self, index):
        return self.points[index.to(self.points.device, non_blocking=True)]

    def view(self, index, angle=0., mirror=None, bend=None):
        """A crop [B, 3, S, S] around the landmarks, and the landmarks in it [B, n, 2]. See `shape`."""
        s, look = self.shape(index, angle, mirror, bend)
        return views.resample(draw(self.images, index, self.cfg.device), look, self.cfg.image_size), s

    def shape(self, index, angle=0., mirror=None, bend=None):
        """Landmarks in a crop [B, n, 2], and look(p): the place in `images` that its pixels p show.

        angle: std of the turn in degrees, cut to +-40; then the margin varies, too, by 4 N(0, 1) per cent
        (authors' code). 0: as it is. mirror, bend: [B] bool. bend: move the landmarks towards those of
        another picture, and the picture with them. So a photograph that is no video gets its pair.
        """
        cfg, B, S, g = self.cfg, len(index), self.cfg.image_size, self.generator
        tight, turn = torch.full((B,), cfg.tight), torch.zeros(B)
        if angle:
            tight = (tight + 4 * torch.randn(B, generator=g)).clamp(min=2)
            turn = (angle * torch.randn(B, generator=g)).clamp(-40, 40)
        mirror = torch.zeros(B, dtype=torch.bool) if mirror is None else mirror
        turn, tight, mirror = (t.to(cfg.device, non_blocking=True) for t in (turn, tight, mirror))
        s, look = views.place(self.landmarks(index), turn, tight, mirror, S)
        if bend is None or not bend.any():
            return s, look
        # less turned than s, so that the two pictures differ in roll, too
        goal, _ = views.place(self.landmarks(self.anyone(B)), .3 * turn, tight, mirror, S)
        amount = (.7 * torch.rand(B, generator=g) * bend).to(cfg.device, non_blocking=True)  # 1 would tear it
        return views.bent(s, s + amount[:, None, None] * (goal - s), look, S)


def heat(cfg, points):
    """H(s): landmarks [B, n, 2] in pixels -> heatmaps [B, n, S, S] in [0, 1]."""
    return heatmaps(points, cfg.image_size, cfg.sigma * cfg.image_size / 128)


def toy_faces(cfg, people, seed):
    """Toy people, cfg.frames pictures each; the same seed gives the same faces."""
    faces = toysets.turning_heads(cfg, people, seed)
    images = toyfaces.images(cfg, faces, cfg.image_size)
    points = views.with_points(cfg.points, toyfaces.landmarks(faces, cfg.image_size))
    first = torch.arange(len(faces)) // cfg.frames * cfg.frames
    return Faces(cfg, images, points, first, first + cfg.frames - 1, photos=False)


def scan(cfg):
    """What is under cfg.data: lists `images`, `annotations`, `groups`, `test`, and what --check prints."""
    return formats.scan(Path(cfg.data)) | {"bytes_per_image": 3 * round(1.5 * cfg.image_size) ** 2}


def photographs(cfg, test):
    """The training or the test part of cfg.data, decoded once: loose square crops around the landmarks."""
    images, points, video = views.decoded(cfg, scan(cfg), test)
    first, last = torch.searchsorted(video, video), torch.searchsorted(video, video, right=True) - 1
    return Faces(cfg, images, points, first, last, photos=True, gap=(51, 200))          # gap: authors' code


TRAIN_SEED, TEST_SEED, TEST_PEOPLE = 10_000, 20_000, 64                 # other seeds draw other people


def make_data(cfg, test=False):
    """The training faces, or faces of other people (test)."""
    if cfg.data:
        return photographs(cfg, test)
    if test:
        return toy_faces(cfg, TEST_PEOPLE, TEST_SEED)
    return toy_faces(cfg, cfg.people, TRAIN_SEED + 10 * cfg.seed)


# ========================================================================================== networks

class Generator(nn.Module):
    """Section 2.2: two stride-2 convolutions, residual blocks, two transposed ones; colour C and mask M.

        I^ = M * I + (1 - M) * C          M = 1 keeps the pixel of the input, M = 0 takes the painted one

    The layers of the authors' published generator: 8,621,888 parameters at 66 heatmaps.
    forward(I, H): I [B, 3, S, S] in [-1, 1], H [B, n, S, S] in [0, 1], S a multiple of 4. Returns I^, like I,
    and M [B, 1, S, S] in [0, 1].
    """

    def __init__(self, points=66, width=64, residual_blocks=6):
        super().__init__()
        w, act, norm = width, nn.LeakyReLU(.2), "instance-affine"
        self.down = nn.Sequential(
            *conv_block(3 + points, w, 7, 1, 3, norm, act, bias=False),                # w  x S   x S
            *conv_block(w, 2 * w, 4, 2, 1, norm, act, bias=False),                     # 2w x S/2 x S/2
            *conv_block(2 * w, 4 * w, 4, 2, 1, norm, act, bias=False))                 # 4w x S/4 x S/4
        blocks = (ResidualBlock(4 * w, "instance", act) for _ in range(residual_blocks))
        self.bottleneck = nn.Sequential(*blocks)
        self.up = nn.Sequential(
            *conv_block(4 * w, 2 * w, 4, 2, 1, norm, act, up=True, bias=False),        # 2w x S/2 x S/2
            *conv_block(2 * w, w, 4, 2, 1, norm, act, up=True, bias=False))            # w  x S   x S
        self.colour = nn.Conv2d(w, 3, 7, 1, 3, bias=False)
        self.mask = nn.Conv2d(w, 1, 7, 1, 3, bias=False)
        common.init_normal(self)                                       # authors' code: N(0, 0.02)

    def forward(self, I, H):
        x = self.down(torch.cat([I, H], 1))
        x = self.up(self.bottleneck(x))
        C = torch.tanh(self.colour(x)).float()
        M = torch.sigmoid(self.mask(x)).float()
        I_hat = M * I + (1 - M) * C
        return I_hat, M


# ============================================================================================ losses
# || . ||_1 is the mean absolute value over batch, channels and pixels of pictures in [-1, 1], as in the
# authors' code: the weights make sense with it only. That the paper means the 1-norm for self, triple and
# identity is not confirmed. TV is a sum.

def loss_adv_D(real, fake, form="hinge"):
    """[2.3.1]  L_D = E[max(0, 1 - D(I_t))] + E[max(0, 1 + D(I^))]

    Minimised by D: real scores go above +1, generated ones below -1. The paper's real I is I_t here. D sees
    the picture alone, as in the authors' training code: the pose is the business of L_pix and L_pp. form
    "wgan-gp" (authors' training code): -E[D(I_t)] + E[D(I^)], with loss_gp beside it. real, fake: unbounded
    scores of any shape. Scalar.
    """
    return {"hinge": common.hinge_D, "wgan-gp": common.wgan_D}[form](real, fake)


def loss_gp(D, I_t, I_hat):
    """[2.3.1]  GP = E[(||grad D(x^)||_2 - 1)^2],   x^ = a I_t + (1 - a) I^,   a ~ U(0, 1)

    For wgan-gp. One a and one norm a picture, the gradient of the sum of the patch scores. Its gradient
    reaches D only. Weight: lambda_gp
    """
    return common.gradient_penalty(D.forward, I_t, I_hat)


def loss_adv_G(fake):
    """[2.3.1]  L_G = -E[D(I^)]

    Minimised by G: the score rises without limit, for hinge and WGAN alike. Weight: lambda_adv
    """
    return common.hinge_G(fake)


def loss_pixel(I_hat, I_t):
    """[2.3.2]  L_pix = || G(I; H(s_t)) - I_t ||_1

    Needs pairs: two frames of one video, or a photograph and the same bent. [B, 3, S, S]. Weight: lambda_pix
    """
    return (I_hat - I_t).abs().mean()


def loss_self(I_back, I):
    """[2.3.3]  L_self = || G(I^; H(s_i)) - I ||_1,   I^ = G(I; H(s_t))

    There and back again: I^ asked for the source's own landmarks is the source. CycleGAN and StarGAN rely on
    this loss, and G can satisfy it by hiding I in I^. Gradient through both passes. Weight: lambda_self
    """
    return (I_back - I).abs().mean()


def loss_triple(I_via, I_direct):
    """[2.3.4]  L_triple = || G(I^; H(s_n)) - G(I; H(s_n)) ||_1,   I^ = G(I; H(s_t))

    Two routes to a third shape s_n must meet: through a generated face, or directly. If I^ hid I, the route
    over I^ would fall back to I, and the loss would see it. Gradient flows through both routes, as in the
    authors' code. I_via, I_direct: [B, 3, S, S]. Weight: lambda_triple
    """
    return (I_via - I_direct).abs().mean()


def loss_identity(f_hat, f):
    """[2.3.5]  L_id = sum_{l in fc, pool} || Phi_l(I^) - Phi_l(I) ||_1

    Pose moves every pixel, so pixels cannot tell who it is; features of a frozen face recogniser can. The
    paper: last pooling and fully connected layer of Light CNN. f is not differentiated. Weight: lambda_id
    """
    return sum((a - b.detach()).abs().mean() for a, b in zip(f_hat, f, strict=True))


def loss_perceptual(maps, maps_t):
    """[2.3.6]  L_pp = sum_l || Psi_l(I^) - Psi_l(I_t) ||_2^2

    Psi_l: relu1_2, relu2_2, relu3_3, relu4_3 of VGG. The mean square of each, summed, is the authors' code's;
    the paper's norm is not confirmed. maps_t is not differentiated. Weight: lambda_pp
    """
    return sum(F.mse_loss(a, b.detach()) for a, b in zip(maps, maps_t, strict=True))


def loss_tv(I_hat):
    """[2.3.7]  L_tv = sum_ij (I^_{i+1,j} - I^_{i,j})^2 + (I^_{i,j+1} - I^_{i,j})^2

    Total variation, against checkerboards: the sum over pixels and channels, the mean over the batch. (The
    authors' code takes means and divides by the batch twice: no effect at its weight.) Weight: lambda_tv
    """
    dy, dx = I_hat[..., 1:, :] - I_hat[..., :-1, :], I_hat[..., :, 1:] - I_hat[..., :, :-1]
    return ((dy ** 2).sum() + (dx ** 2).sum()) / len(I_hat)


# ========================================================================================== training

def validate(cfg):
    """Raises UserError for settings that do not fit together."""
    for name in ("people", "width", "d_steps"):
        require(cfg, name, getattr(cfg, name) > 0, "at least 1")
    require(cfg, "points", cfg.points in (66, 68), "66 or 68")
    require(cfg, "frames", cfg.frames > 5, "at least 6: --evaluate shows six pictures of a person")
    require(cfg, "sigma", 0 < cfg.sigma <= cfg.image_size, "more than 0, at most --image-size")
    require(cfg, "warm_up", cfg.warm_up <= 1, "at most 1")
    require(cfg, "d_widths", all(cfg.d_widths) and len(cfg.d_widths) < 12, "up to 11 numbers above 0")
    side = 2 ** len(cfg.d_widths)
    fits = cfg.image_size % side == 0 and cfg.image_size > side
    require(cfg, "image_size", fits, f"a multiple of {side}, at least {2 * side}")


def build(cfg):
    """G and D as the recipe says; all convolutions N(0, 0.02), as in the authors' code."""
    D = PatchGAN(3, cfg.d_widths, (2,) * len(cfg.d_widths), slope=.2, head_kernel=3, head_bias=False)
    return Generator(cfg.points, cfg.width, cfg.residual_blocks), common.init_normal(D)


def consistency_weight(step, cfg):
    """Weight of both consistency losses: 0 in the first warm_up * steps, then rising to 1 in ramp * steps.

    Ours. A G that copies its input satisfies both losses perfectly, and would never leave that corner if they
    had their full weights from the first step.
    """
    return min(1., max(0., (step - cfg.warm_up * cfg.steps) / max(1., cfg.ramp * cfg.steps)))


def train(cfg):
    """The paper's training, step by step. Writes cfg.run; returns G (on cfg.device)."""
    validate(cfg)
    resolve_device(cfg)
    torch.manual_seed(cfg.seed)
    data, held_out = make_data(cfg), make_data(cfg, test=True)
    G, D = build(cfg)
    Phi, Psi = FaceFeatures(cfg), Perception(cfg)                      # frozen; Phi: who it is; Psi: maps
    if cfg.weights:
        load_nets({"G": G, "D": D}, checkpoint(cfg.weights), cfg.weights)
    say(f"{len(data)} pictures; G {common.n_parameters(G):,} parameters, D {common.n_parameters(D):,}, "
        f"one score sees {D.receptive_field()} px")
    G, D, Phi, Psi = to_device(cfg, G, D, Phi, Psi)
    opt_G = torch.optim.Adam(G.parameters(), cfg.lr, cfg.betas, fused=True)
    opt_D = torch.optim.Adam(D.parameters(), cfg.lr, cfg.betas, fused=True)
    run = Run(cfg, data, {"G": G, "D": D}, {"G": opt_G, "D": opt_D}, HEALTH,
              about={"perceptual": "recogniser" if Psi.vgg is None else "vgg"})
    shown, losses = fixed_batch(held_out), run.losses

    for step, (I, H_i, I_t, H_t, H_n) in run.batches(cfg.batch_size):
        run.set_lr(cfg.lr * linear_decay(step, cfg.steps, cfg.decay_from))

        # 1. D: real above generated (hinge: above +1, below -1)
        with autocast(cfg):
            I_hat, _ = G(I, H_t)
            real = D(I_t)
            fake = D(I_hat.detach())
        L_gp = loss_gp(D, I_t, I_hat) if cfg.adversarial == "wgan-gp" else 0.                # 2.3.1
        L_D = loss_adv_D(real, fake, cfg.adversarial) + cfg.lambda_gp * L_gp                 # 2.3.1
        opt_D.zero_grad()
        L_D.backward()
        opt_D.step()
        losses |= logged(D=L_D)

        # 2. G: fool D, meet the true picture, to Psi as well, stay the same person, be smooth; come back, and
        #    let two routes meet
        if step % cfg.d_steps == 0:
            with frozen(D), autocast(cfg):
                fake = D(I_hat)
                f_hat, f = Phi(I_hat), Phi(I)
                maps, maps_t = Psi(I_hat), Psi(I_t)
            L_adv = loss_adv_G(fake)                                                         # 2.3.1
            L_pix = loss_pixel(I_hat, I_t)                                                   # 2.3.2
            L_id = loss_identity(f_hat, f)                                                   # 2.3.5
            L_pp = loss_perceptual(maps, maps_t)                                             # 2.3.6
            L_tv = loss_tv(I_hat)                                                            # 2.3.7
            w = consistency_weight(step, cfg)
            L_self = L_triple = 0.                                     # computed only where they have weight
            if w * (cfg.lambda_self + cfg.lambda_triple * (cfg.passes - 1)) > 0:
                with autocast(cfg):
                    I_back, _ = G(I_hat, H_i)
                L_self = loss_self(I_back, I)                                                # 2.3.3
            if w * cfg.lambda_triple > 0:
                with autocast(cfg):
                    I_via, _ = G(I_hat, H_n)
                    I_direct, _ = G(I, H_n)
                L_triple = loss_triple(I_via, I_direct)                                      # 2.3.4
                if cfg.passes == 2:                                    # by way of s_t and of s_i
                    with autocast(cfg):
                        I_far, _ = G(I_back, H_n)
                    L_triple = (L_triple + loss_triple(I_far, I_direct)) / 2                 # 2.3.4
            L_G = (cfg.lambda_adv * L_adv + cfg.lambda_pix * L_pix                           # weights: 2.3.7
                   + w * cfg.lambda_self * L_self + w * cfg.lambda_triple * L_triple
                   + cfg.lambda_id * L_id + cfg.lambda_pp * L_pp + cfg.lambda_tv * L_tv)
            opt_G.zero_grad()
            L_G.backward()
            opt_G.step()
            losses |= logged(adv=L_adv, pix=L_pix, self=L_self, triple=L_triple, id=L_id, pp=L_pp, tv=L_tv)

        if run.logs(step):
            run.log(step, **health(G, D, shown), **losses)
        if run.samples(step):
            run.sample(step, sample_grid(G, shown))
    return G


def fixed_batch(held_out, n=32):
    """The held-out sample (I, H_i, I_t, H_t, H_n) that every log line and grid shows."""
    return held_out.sample(n)


@torch.no_grad()
def health(G, D, shown):
    """The health word; error and baseline: mean L1 (0 ... 1) to the truth, of G's output and of its input."""
    I, _, I_t, H_t, H_n = shown
    (I_hat, _), (I_n, _) = G(I, H_t), G(I, H_n)
    error, baseline, moved, change = ((a - b).abs().mean() / 2 for a, b in
                                      ((I_hat, I_t), (I, I_t), (I_hat, I), (I_hat, I_n)))
    lead = D(I_t).min() - D(I_hat).max()
    word = "D-won" if lead > 4 else "ok"
    word = "target-ignored" if change < .1 * baseline else word
    word = "copying" if moved < error else word
    return dict(health=word, error=error, baseline=baseline)


@torch.no_grad()
def sample_grid(G, shown, n=8):
    """Input, target landmarks, mask, direct result, truth, back again, a third shape directly and over it."""
    I, H_i, I_t, H_t, H_n = (x[:n] for x in shown)
    I_hat, M = G(I, H_t)
    columns = {"input": I, "target": H_t.amax(1, keepdim=True).expand_as(I) * 2 - 1,
               "mask": M.expand_as(I) * 2 - 1, "result": I_hat, "truth": I_t, "back": G(I_hat, H_i)[0],
               "3rd direct": G(I, H_n)[0], "3rd via result": G(I_hat, H_n)[0]}
    return grid(columns)


# ========================================================================================= inference

def checkpoint(path):
    """A checkpoint of ours, or the authors' published generator in the same form."""
    return read_checkpoint(path, __file__, authors.gannotation)


@reads_checkpoint
def load(cfg):
    """(paint, toy) of cfg.run or cfg.weights: see `painter`; toy: was it trained on toy faces?

    cfg takes over the checkpoint's sizes and kind of data.
    """
    resolve_device(cfg)
    path = cfg.weights or Path(cfg.run) / "last.pt"
    saved = checkpoint(path)
    restore_config(cfg, saved, ("image_size", "points", "sigma", "tight", "width", "residual_blocks", "pose",
                                "frames"))
    G = load_weights(Generator(cfg.points, cfg.width, cfg.residual_blocks), saved["nets"].get("G", {}), path)
    G, = to_device(cfg, G.eval())
    theirs = "paper" not in saved
    return painter(cfg, G, theirs), not theirs and not saved["config"].get("data")


def painter(cfg, G, theirs=False):
    """paint(I, s) -> I^ = G(I; H(s)), without gradient. I: [B, 3, S, S] in [-1, 1]; s: [B, n, 2] in pixels.

    theirs: G is the authors' and is fed as in their demo: pictures in [0, 1] (although its
    result is in [-1, 1]), and heatmaps drawn at whole pixels, cut to 7 x 7.
    """
    @torch.no_grad()
    def paint(I, s):
        if theirs:
            return G(I / 2 + .5, authors.gannotation_heatmaps(s, cfg.image_size, cfg.sigma))[0]
        return G(I, heat(cfg, s))[0]
    return paint


def progressive(paint, I, shapes):
    """I -> s_1 -> s_2 -> ...: each result is the next input. shapes: list of [B, n, 2]; list of results."""
    results = []
    for s in shapes:
        I = paint(I, s)
        results.append(I)
    return results


def infer(cfg, files, drive, out):
    """FILE...: a face, or a face and its .pts. Writes <face>.gif and a contact sheet <face>.png.

    A generator of photographs crops by the face's .pts, beside it or the second file. One of toy faces takes
    the central square, and puts the driving landmarks where toy faces have theirs.
    """
    pts = [f for f in files if f.lower().endswith(".pts")]
    pictures = [f for f in files if f not in pts]
    if len(pictures) != 1 or len(pts) > 1:
        raise UserError(f"--infer got {len(pictures)} pictures and {len(pts)} .pts files; "
                        "expected one face, and at most one .pts for it")
    picture = open_image(pictures[0])
    paint, toy = load(cfg)
    S, sweep = cfg.image_size, drive == "sweep"
    shapes = toysets.sweep(S) if sweep else formats.read_drive(drive)
    if shapes.shape[1] < cfg.points:
        raise UserError(f"{drive}: {shapes.shape[1]} points; this generator needs {cfg.points}")
    shapes = views.with_points(cfg.points, shapes)
    if toy:
        picture = square(picture, S)
        shapes = shapes if sweep else toysets.at_home(shapes, S)
    else:
        picture = views.cropped(cfg, picture, pictures[0], pts)
        low, high = crop_box(shapes, cfg.tight)                        # authors' demo: cropped like a face
        shapes = (shapes - low[:, None]) * (S / (high - low))[:, None] - .5
    I, shapes = to_tensor(picture)[None].to(cfg.device), shapes.to(cfg.device)
    direct = [paint(I, s[None]) for s in shapes]
    chain = progressive(paint, I, [s[None] for s in shapes])
    name = out_folder(cfg, out) / Path(pictures[0]).stem
    titles = "input", "landmarks", "direct", "progressive"
    frames = zip(draw_points(shapes, S).split(1), direct, chain, strict=True)
    write_gif([grid([I, *frame], titles, max(1, 256 // S)) for frame in frames], f"{name}.gif")
    pick = torch.linspace(0, len(chain) - 1, min(10, len(chain))).round().long().tolist()
    columns = [torch.cat([I, I])] + [torch.cat([direct[k], chain[k]]) for k in pick]
    grid(columns, ["input"] + [f"frame {k + 1}" for k in pick]).save(f"{name}.png")
    print(f"{name}.gif, {name}.png (above: direct; below: progressive, each frame from the one before)")


if __name__ == "__main__":
    cli(__name__)
