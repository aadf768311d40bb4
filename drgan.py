"""DR-GAN: who it is without how the head is turned, from one picture or from many.

C: Luan Tran, Xi Yin, Xiaoming Liu. "Disentangled Representation Learning GAN for Pose-Invariant Face
Recognition", CVPR 2017. T: the same authors. "Representation Learning by Rotating Your Faces", IEEE TPAMI
2018, arXiv 1705.11136. Authors' code: tranluan/DR-GAN, a later variant, not that of the papers' tables.
Readers' questions are answered in notebooks/03_drgan.ipynb.

The idea. An encoder makes a feature f of a face; a decoder must draw the same person from f in the pose that
a code c asks for. A discriminator says real or drawn, who, and which pose. The decoder is told the pose, so f
need not hold it; D reads who is shown, so f must hold that. With several pictures of a person the encoder
also gives each a confidence w, and the features are averaged with these weights.

The claim. f recognises a face from the side better than without this training. Several pictures fused by
confidence are better than their mean. w falls with yaw and blur. (The papers' tables could not be confirmed.)

Equations. The labels are ours: the only number that we could confirm is T(7), the whole objective of D. The
papers maximise log-likelihoods; here cross-entropies are minimised, which is the same.
    [gan_D] real or drawn, for D
    [id_D] identity of real faces, for D
    [pos_D] pose of real faces, for D
    [gan_G] real or drawn, for G
    [id_G] identity of drawn faces, for G
    [pos_G] pose of drawn faces, for G
    [cvpr_D] one softmax over N_d + 1 classes, "drawn" the last, for D (C's, --head cvpr)
    [cvpr_G] the same for G
    [fusion] confidence-weighted feature
    [softmax] identity by the encoder alone: the rival, and a start for the encoder

Run it:
    python drgan.py --train                              toy faces; a feature of one picture
    python drgan.py --train --images-per-subject 6 --weights runs/drgan/last.pt --run runs/six   of six
    python drgan.py --train --data CFP                   or Multi-PIE; or poses.txt: 0000045/001.jpg -32.5
    python drgan.py --evaluate                           recognition by yaw, rotation, fusion, confidence
    python drgan.py --ablate --part fusion               the papers' claims, three seeds
    python drgan.py --infer a.png b.png [--to c.png]     one person in every pose; towards another person

Differs from the papers and the authors' code, because:
    batch norm   theirs treats the first pictures of all people, the second ... the fused drawings as batches
                 of their own, but real and drawn as one in D's last layers; here all real, all drawn
    last ELU     D has one, theirs not; the encoder, as theirs, has none: f may be negative, and w near 0
    G's terms    the papers sum those of a person's n + 1 drawings; here a batch shares one mean
    data         drawn with replacement; in colour; no mirroring or rotation; no code for the light; the
                 encoder sees a quarter of the toy pictures blurred or covered, D sees them clean
"""
import copy
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn as nn
import torch.nn.functional as F

import common
from common import add_noise, conv_block, linear_decay
from lab import UserError, albums, say
from lab.cli import cli
from lab.files import load_weights, out_folder, read_checkpoint, reads_checkpoint
from lab.formats import people as formats
from lab.handover import take_over
from lab.images import draw_crops, grid, open_image, to_tensor, write_gif
from lab.machine import resolve_device
from lab.run import (Run, Settings, autocast, choice, frozen, logged, require, restore_config,
                     to_device)


@dataclass
class Config(Settings):
    """The papers' recipe."""
    # data
    image_size: int = 96              # C: cut at random from 100 px
    people: int = 500                 # ours: toy people to train on
    copies: int = 8                   # ours: toy pictures of each person at each of nine yaws
    poses_seen: int = 0               # ours: each toy person is seen at so many of these yaws only; 0 = all
    degraded: float = .25             # ours: share of toy pictures that the encoder sees blurred or covered
    test_people: int = 0              # the last so many; 0 = CFP: fold 10; Multi-PIE: after 200; else 1/10
    # networks
    noise: int = 50                   # C: z uniform in [-1, 1]^50
    width: float = 1.                 # C's table of layers, all widths times this
    head: str = choice("tpami", "cvpr")    # T: three outputs; C: one softmax of N_d + 1
    images_per_subject: int = 1       # C: n; 1 = the single-image model; with more, 6 as we recall
    upsampling: str = choice("transposed", "nearest")    # C: transposed; nearest has no checkerboard
    pose_code: bool = True            # C; --no-pose-code --lambda-pose 0: no pose is asked for (ablation)
    # losses
    lambda_gan: float = 1.            # T: lambda for D and mu for G, all 1; here one setting for both
    lambda_id: float = 1.             # T: 1
    lambda_pose: float = 1.           # T: 1; 0: no pose loss for D or G (ablation)
    lambda_pair: float = 0.           # ours, off: the pretraining draws a person's other picture, too
    drop: float = .5                  # C has the dropout on confidences; its share is ours
    # training
    steps: int = 100_000              # ours: G's, with the pretraining; the papers' length is unknown
    pretrain: float = 0.              # share of the steps that first train classifiers (theirs: the encoder)
    average: float = 0.               # ours, off: the G that is kept is a running mean of the one in training
    batch_size: int = 64              # C
    lr: float = 2e-4                  # C
    betas: tuple = (.5, .999)         # C
    decay_from: float = 1.            # the papers: constant; below 1: from this share of the steps to 0
    d_noise: float = 0.               # the papers: none; noise on what D sees, falling to a quarter
    g_steps: int = 4                  # C: G's steps for one of D once D is near its optimum
    # ablation
    part: str = choice("all", "pose", "rotation", "fusion")    # ours: of --ablate


# Minutes on a processor. All of it is ours. Batch norm and the softmax over people need the papers' batch.
SMALL = dict(
    image_size=48, width=.25, people=300,
    poses_seen=2,                           # who is seen in every pose teaches a classifier all about turning
    noise=12,                               # a quarter, as the widths, or it drowns f
    steps=4500, lr=4e-4, decay_from=.6,     # few steps, so large ones
    pretrain=1 / 9, lambda_pair=10.,        # 500 steps: D knows who, and G draws heads, before they play
    average=.999,                           # smoother drawings than any single G's
    g_steps=1,                              # with 4 steps of G for one of D drawings broke into patterns
    upsampling="nearest",                   # transposed convolutions left a checkerboard
    d_noise=.2,                             # else 500 steps go into patterns that D refuses at once
)
# Minutes on a GPU, hours on two cores, at the papers' 96 px. D knows more people less well by heart.
MEDIUM = SMALL | dict(image_size=96, width=.5, noise=25, people=600, steps=6000, pretrain=1 / 12)
INFER_FLAGS = {
    "--pose": dict(nargs="+", default=None, metavar="POSE",
                   help="degrees, or frontal and profile for a model of CFP; default: every pose"),
    "--to": dict(nargs="+", default=None, metavar="FILE",
                 help="pictures of another person: seven steps from the one feature to the other"),
    "--out": dict(default="", metavar="DIR", help="where to write (default: inferred/ in the run folder)"),
}
HEALTH = {"pose-ignored": "drawings under all codes look alike",
          "identity-lost": "drawings of all people look alike",
          "D-won": "D tells every real picture from every drawn one, by far", "nan": "a loss is not finite"}


# ============================================================================================== data

class Faces:
    """An album to train on. sample(B): n pictures of each of B / n people, one person after the other.

    x, x_seen: [B, 3, S, S]; y_d, y_p: [B], person and pose. The encoder gets x_seen: x, but some toy pictures
    are degraded. D is shown x: otherwise G comes to draw blurred heads, which are real, too.
    """

    def __init__(self, cfg, album):
        self.cfg, self.album, self.n = cfg, album, cfg.images_per_subject
        self.generator = torch.Generator().manual_seed(cfg.seed)
        self.count = torch.bincount(album.who, minlength=len(album.people))
        self.first = self.count.cumsum(0) - self.count

    def __len__(self):
        return len(self.album.who)

    def sample(self, batch_size):
        a, g, cfg, n = self.album, self.generator, self.cfg, self.n
        there = dict(device=cfg.device, non_blocking=True)
        people = a.who[torch.randint(len(a.who), (max(1, batch_size // n),), generator=g)]
        y_d = people.repeat_interleave(n)
        index = self.first[y_d] + (torch.rand(len(y_d), generator=g) * self.count[y_d]).long()
        top, left = torch.randint(a.images.shape[-1] - cfg.image_size + 1, (2, len(index)), generator=g)
        x = x_seen = draw_crops(a.images, index, top, left, cfg.image_size, cfg.device)
        if a.faces is not None:
            blur, cover = albums.random_damage(len(x), cfg.degraded, g)
            x_seen = albums.degrade(x, blur.to(**there), cover.to(**there))
        return x, x_seen, y_d.to(**there), a.pose[index].to(**there)


def scan(cfg):
    """What is under cfg.data: lists `images`, `who`, `pose`, and what --check prints."""
    found = formats.scan(Path(cfg.data), cfg.test_people)
    return found | {"bytes_per_image": 3 * albums.stored_side(cfg.image_size) ** 2}


TRAIN_SEED, TEST_SEED, TEST_PEOPLE, TEST_COPIES = 40_000, 39_000, 100, 6    # other seeds are other people


def make_data(cfg, known=None):
    """(album to train on, album of held-out people).

    known: names of the people that a finished model was trained on. Then the first album is None, and of a
    data set that none of them belongs to all people are held out.
    """
    if cfg.data:
        return albums.of_data_set(cfg, scan(cfg), set(known or ()))
    train = None if known else albums.toy(cfg, cfg.people, cfg.copies, TRAIN_SEED + 10 * cfg.seed)
    return train, albums.toy(cfg, TEST_PEOPLE, TEST_COPIES, TEST_SEED, test=True)


# ========================================================================================== networks

class Encoder(nn.Module):
    """G_enc, and D's trunk: 3 x 3 convolutions, batch norm, ELU; mean. [B, 3, S, S] -> [B, n_out].

    No ELU after the last one: features may be negative, and a confidence may use all of (0, 1). 2,861,984
    parameters for 320.
    """
    LAYERS = ((32, 1), (64, 1), (64, 2), (64, 1), (128, 1),            # width, stride; sides S, S/2
              (128, 2), (96, 1), (192, 1), (192, 2), (128, 1), (256, 1),    # S/4, S/8
              (256, 2), (160, 1))                                      # and n_out, 1; S/16

    def __init__(self, n_out=320, width=1.):
        super().__init__()
        widths = [(max(1, round(w * width)), stride) for w, stride in self.LAYERS] + [(n_out, 1)]
        layers, c = [], 3
        for w, stride in widths:
            if stride == 2:                                            # TensorFlow's "SAME": right and below
                layers.append(nn.ZeroPad2d((0, 1, 0, 1)))
            layers += conv_block(c, w, 3, stride, 2 - stride, "batch", nn.ELU(), bias=False)
            c = w
        self.main = nn.Sequential(*layers[:-1])                        # without the last ELU

    def forward(self, x):
        return self.main(x).float().mean((2, 3))


class Decoder(nn.Module):
    """G_dec: f [B, n_f], c [B, N_p], z [B, N_z] -> picture [B, 3, S, S] in [-1, 1].

    7,238,944 parameters for n_f = 320, N_p = 9, N_z = 50 at 96 px. n_in = n_f + N_p + N_z.
    """
    LAYERS = ((160, 1), (256, 1), (256, 2), (128, 1), (192, 1),        # width, stride; sides S/16, S/8
              (192, 2), (96, 1), (128, 1), (128, 2), (64, 1), (64, 1),      # S/4, S/2
              (64, 2), (32, 1))                                        # and 3, 1, tanh; S

    def __init__(self, n_in, image_size=96, width=1., upsampling="transposed"):
        super().__init__()
        self.side, c = image_size // 16, max(1, round(320 * width))
        self.fc = nn.Linear(n_in, c * self.side ** 2)
        layers = []
        for w, stride in ((max(1, round(w * width)), stride) for w, stride in self.LAYERS):
            conv = nn.Conv2d(c, w, 3, 1, 1, bias=False)
            if stride == 2 and upsampling == "transposed":
                conv = nn.ConvTranspose2d(c, w, 3, 2, 1, output_padding=1, bias=False)
            elif stride == 2:
                layers.append(nn.Upsample(scale_factor=2))
            layers += [conv, nn.BatchNorm2d(w), nn.ELU()]
            c = w
        self.main = nn.Sequential(*layers, nn.Conv2d(c, 3, 3, 1, 1, bias=False), nn.Tanh())

    def forward(self, f, c, z):
        h = self.fc(torch.cat([f, c, z], 1))
        return self.main(h.unflatten(1, (-1, self.side, self.side))).float()


class Generator(nn.Module):
    """G: encoder and decoder. encode(x [B, 3, S, S]) -> f [B, n_f], w [B] in (0, 1): feature, confidence.

    decode(f, c one-hot [B, N_p], z [B, N_z] in [-1, 1]) -> [B, 3, S, S]. A single-image model has no
    confidence: w = 1. n_f: 320 times the width.
    """

    def __init__(self, cfg, n_poses):
        super().__init__()
        self.n_f, self.n_poses = max(1, round(320 * cfg.width)), n_poses
        self.multi = cfg.images_per_subject > 1
        self.enc = Encoder(self.n_f + self.multi, cfg.width)
        self.dec = Decoder(self.n_f + n_poses + cfg.noise, cfg.image_size, cfg.width, cfg.upsampling)

    def encode(self, x):
        out = self.enc(x)
        f = out[:, :self.n_f]
        w = torch.sigmoid(out[:, self.n_f]) if self.multi else torch.ones_like(out[:, 0])
        return f, w

    def decode(self, f, c, z):
        return self.dec(f, c, z)


class Discriminator(nn.Module):
    """D: the encoder's layers, and 1 + N_d + N_p outputs. 2,929,394 parameters for 200 people and 9 poses.

    forward(x [B, 3, S, S]) -> logits r [B, 1], d [B, N_d], p [B, N_p]: real or drawn, who, which pose. With
    C's head d and r are one softmax: r is "drawn", the last of N_d + 1 classes.
    """

    def __init__(self, n_people, n_poses, width=1.):
        super().__init__()
        n_f, self.sizes = max(1, round(320 * width)), (1, n_people, n_poses)
        self.trunk, self.fc = Encoder(n_f, width), nn.Linear(n_f, sum(self.sizes))

    def forward(self, x):
        h = F.elu(self.trunk.main(x)).float().mean((2, 3))             # last ELU: ours, see above
        with torch.autocast(h.device.type, enabled=False):             # a softmax over many needs its digits
            return self.fc(h).split(self.sizes, 1)


# ============================================================================================ losses
# Logits [B, n] of D^r (sigmoid), D^d and D^p (softmax). y_d, y_p, c: [B] indices of the person, the pose
# shown, the pose asked for. x^: a drawing.
# D is never asked for the person or the pose of a *drawn* face: it would learn to read G's mistakes as that
# person, and to see a pose where G drew none, and G would be paid for both.

def loss_gan_D(r_real, r_fake):
    """[gan_D]  L^D_gan = E[log D^r(x)] + E[log(1 - D^r(x^))], maximised by D. Weight: lambda_gan"""
    return common.vanilla_D(r_real, r_fake)


def loss_id_D(d_real, y_d):
    """[id_D]  L^D_id = E[log D^d_{y^d}(x)], maximised by D: a softmax over N_d people. Weight: lambda_id"""
    return F.cross_entropy(d_real, y_d)


def loss_pose_D(p_real, y_p):
    """[pos_D]  L^D_pos = E[log D^p_{y^p}(x)], maximised by D. Weight: lambda_pose"""
    return F.cross_entropy(p_real, y_p)


def loss_gan_G(r_fake):
    """[gan_G]  L^G_gan = E[log D^r(x^)], maximised by G. Weight: lambda_gan"""
    return common.vanilla_G(r_fake)


def loss_id_G(d_fake, y_d):
    """[id_G]  L^G_id = E[log D^d_{y^d}(x^)], maximised by G: the person of the input. Weight: lambda_id"""
    return F.cross_entropy(d_fake, y_d)


def loss_pose_G(p_fake, c):
    """[pos_G]  L^G_pos = E[log D^p_c(x^)], maximised by G: the pose asked for. Weight: lambda_pose"""
    return F.cross_entropy(p_fake, c)


def loss_cvpr_D(r_real, d_real, r_fake, d_fake, y_d):
    """[cvpr_D]  E[log D^d_{y^d}(x)] + E[log D^d_{N_d+1}(x^)], maximised by D

    One softmax over the people and, as the last class, "drawn". C's objective of D is this plus [pos_D].
    """
    real, fake = torch.cat([d_real, r_real], 1), torch.cat([d_fake, r_fake], 1)
    drawn = torch.full((len(fake),), d_fake.shape[1], device=fake.device)
    return F.cross_entropy(real, y_d) + F.cross_entropy(fake, drawn)


def loss_cvpr_G(r_fake, d_fake, y_d):
    """[cvpr_G]  E[log D^d_{y^d}(x^)], maximised by G. C's objective of G is this plus [pos_G]."""
    return F.cross_entropy(torch.cat([d_fake, r_fake], 1), y_d)


def fuse(f, w):
    """[fusion]  f(x_1, ..., x_n) = sum_i w_i f(x_i) / sum_i w_i

    f: [B, n, n_f]; w: [B, n] in [0, 1]. Returns [B, n_f].
    """
    return (w[..., None] * f).sum(1) / (w.sum(1, keepdim=True) + 1e-6)


def loss_softmax(logits, y_d):
    """[softmax]  -E[log softmax(W f(x))_{y^d}]: the encoder and one linear layer. The papers' rival."""
    return F.cross_entropy(logits, y_d)


# ========================================================================================== training

class Balance(nn.Module):
    """C: once D is near its optimum, G gets more steps than D. A module, so that checkpoints hold it.

    The paper does not say when. Here: as soon as 9 of 10 answers are right in the worst of three tasks: real,
    drawn, who. (A port: of the mean of these and pose.) Running means, on the processor, which saves waits.
    pretrain_steps: of `pretrain`; in the checkpoint, since a longer --steps must not change it.
    """

    def __init__(self, g_steps, pretrain_steps=0):
        super().__init__()
        self.g_steps = g_steps
        self.register_buffer("pretrain_steps", torch.tensor(pretrain_steps))
        self.register_buffer("accuracy", torch.zeros(3))

    def D_is_due(self, step):
        return step % self.g_steps == 0 or self.accuracy.min() < .9

    def note(self, step, real, fake, d_real, y_d):
        """real, fake: [B], see `realness`; d_real: [B, N_d]; y_d: [B]."""
        if step % (4 * self.g_steps) == 0:
            right = real > 0, fake < 0, d_real.argmax(1) == y_d
            self.accuracy.lerp_(torch.stack([r.float().mean() for r in right]).cpu(), .2)


def validate(cfg):
    """Raises UserError for settings that do not fit together."""
    for name in ("width", "people", "copies", "images_per_subject", "g_steps"):
        require(cfg, name, getattr(cfg, name) > 0, "more than 0")
    for name in ("degraded", "pretrain", "average"):
        require(cfg, name, getattr(cfg, name) <= 1, "a share, at most 1")
    require(cfg, "poses_seen", cfg.poses_seen <= len(albums.YAWS), f"at most {len(albums.YAWS)}")
    for name in ("lambda_gan", "lambda_id"):
        fits = cfg.head == "tpami" or getattr(cfg, name) == 1
        require(cfg, name, fits, "1 with --head cvpr: a single softmax has no weights")
    n = cfg.images_per_subject
    require(cfg, "people", cfg.people > 1 or cfg.data, "at least 2")
    require(cfg, "drop", cfg.drop < 1, "a share below 1")
    require(cfg, "image_size", cfg.image_size % 16 == 0, "a multiple of 16")
    require(cfg, "batch_size", cfg.batch_size // n > 1, f"at least {2 * n}, two people: batch norm")


def build(cfg, n_people, n_poses):
    """G and D on cfg.device, weights from N(0, .02).

    Ours: the fewer inputs D's last layer has, the larger its weights, or it learns who far too slowly.
    """
    G = common.init_normal(Generator(cfg, n_poses))
    D = common.init_normal(Discriminator(n_people, n_poses, cfg.width))
    nn.init.normal_(D.fc.weight, std=.02 / cfg.width)
    if G.multi:
        nn.init.constant_(G.enc.main[-1].weight[-1:], 3.)              # ours: confidences that differ at once
    for net in (G, D):
        net.to(memory_format=torch.channels_last)                      # a fourth faster with batch norm
    to_device(cfg, G.enc, G.dec, D)
    return G, D


def train(cfg):
    """The papers' training, step by step. Writes cfg.run; returns G (on cfg.device)."""
    validate(cfg)
    resolve_device(cfg)
    torch.manual_seed(cfg.seed)
    album, held_out = make_data(cfg)
    data, n_poses = Faces(cfg, album), len(album.poses)
    G, D = build(cfg, len(album.people), n_poses)
    classifier = nn.Linear(G.n_f, len(album.people)).to(cfg.device)    # of `pretrain`
    about = {"people": sorted(album.people), "poses": list(album.poses)}
    D_knows = take_over(cfg, __file__, G, D, about) if cfg.weights else False
    balance = Balance(cfg.g_steps, 0 if D_knows and cfg.pretrain < 1 else int(cfg.pretrain * cfg.steps))
    say(f"{len(data)} pictures of {len(album.people)} people, poses {' '.join(album.poses)}; "
        f"{cfg.images_per_subject} a person in a batch; "
        f"G {common.n_parameters(G):,} parameters, D {common.n_parameters(D):,}")
    opt_G = torch.optim.Adam([*G.parameters(), *classifier.parameters()], cfg.lr, cfg.betas, fused=True)
    opt_D = torch.optim.Adam(D.parameters(), cfg.lr, cfg.betas, fused=True)
    G_mean = copy.deepcopy(G) if cfg.average else G                    # what is kept as G
    nets = {"G": G_mean, "D": D, "classifier": classifier, "balance": balance}
    nets |= {"trained": G} if cfg.average else {}
    run = Run(cfg, data, nets, {"G": opt_G, "D": opt_D}, HEALTH, about)
    shown = fixed_batch(held_out, cfg)
    pretrain(cfg, run, data, G, G_mean, D, classifier, opt_G, opt_D, balance)

    losses, real, fake = {}, None, None
    for step, (x, x_seen, y_d, y_p) in run.batches(cfg.batch_size):
        run.set_lr(cfg.lr * linear_decay(step, cfg.steps, cfg.decay_from))
        std = cfg.d_noise * max(.25, 1 - step / cfg.steps)             # bad drawings look like faces in noise

        # 1. G draws the people of the batch, in poses that have nothing to do with their pictures'. With
        #    n > 1 also each person's fused feature, appended to the others. y_f: whose each feature is.
        with autocast(cfg):
            f, w = G.encode(x_seen)
        f, y_f = with_fused(f, w, y_d, cfg)                                                  # [fusion]
        c = torch.randint(n_poses, (len(f),), device=f.device)
        z = torch.rand(len(f), cfg.noise, device=f.device) * 2 - 1
        with autocast(cfg):
            x_hat = G.decode(f, pose_code(c, n_poses, cfg), z)

        # 2. D: real faces are real, this person, in this pose; drawn ones are drawn -- T(7); C: cvpr
        if balance.D_is_due(step):
            with autocast(cfg):
                r_real, d_real, p_real = D(add_noise(x, std))
                r_fake, d_fake, _ = D(add_noise(x_hat.detach(), std))
            L_pose_D = loss_pose_D(p_real, y_p)                                              # [pos_D]
            if cfg.head == "tpami":
                L_gan_D = loss_gan_D(r_real, r_fake)                                         # [gan_D]
                L_id_D = loss_id_D(d_real, y_d)                                              # [id_D]
                L_D = cfg.lambda_gan * L_gan_D + cfg.lambda_id * L_id_D + cfg.lambda_pose * L_pose_D
                losses |= logged(gan_D=L_gan_D, id_D=L_id_D)
            else:
                L_cvpr_D = loss_cvpr_D(r_real, d_real, r_fake, d_fake, y_d)                  # [cvpr_D]
                L_D = L_cvpr_D + cfg.lambda_pose * L_pose_D
            opt_D.zero_grad()
            L_D.backward()
            opt_D.step()
            real, fake = realness(r_real, d_real, cfg.head), realness(r_fake, d_fake, cfg.head)
            balance.note(step, real, fake, d_real, y_d)
            losses |= logged(pose_D=L_pose_D, D=L_D) | {"D_pose": accuracy(p_real, y_p)}

        # 3. G, by the same drawings: real, the person of the input, in the pose asked for
        with frozen(D), autocast(cfg):
            r_fake, d_fake, p_fake = D(add_noise(x_hat, std))
        L_pose_G = loss_pose_G(p_fake, c)                                                    # [pos_G]
        if cfg.head == "tpami":
            L_gan_G = loss_gan_G(r_fake)                                                     # [gan_G]
            L_id_G = loss_id_G(d_fake, y_f)                                                  # [id_G]
            L_G = cfg.lambda_gan * L_gan_G + cfg.lambda_id * L_id_G + cfg.lambda_pose * L_pose_G
            losses |= logged(gan_G=L_gan_G, id_G=L_id_G)
        else:
            L_G = loss_cvpr_G(r_fake, d_fake, y_f) + cfg.lambda_pose * L_pose_G              # [cvpr_G]
        opt_G.zero_grad()
        L_G.backward()
        opt_G.step()
        follow(G_mean, G, cfg.average, step)
        losses |= logged(pose_G=L_pose_G, G=L_G)

        if run.logs(step):
            right = dict(zip(("D_real", "D_fake", "D_id"), balance.accuracy, strict=True))
            run.log(step, **health(G_mean, shown, cfg, real, fake), **right, **losses)
        if run.samples(step):
            run.sample(step, sample_grid(G_mean, shown, cfg))
    return G_mean


def pretrain(cfg, run, data, G, G_mean, D, classifier, opt_G, opt_D, balance):
    """Authors' code, before the papers' training and no part of it: the encoder as a plain classifier.

    Ours: D learns who and which pose, too, or the encoder would forget again, with a teacher who knows
    nothing. With lambda_pair G draws another picture of each person, in its pose. Then Adam begins anew: on
    larger gradients its first steps would be huge, and lose the drawings. pretrain = 1: nothing else.
    """
    data.n = max(2, data.n) if cfg.lambda_pair else data.n             # of each person, one after another
    until = cfg.steps if cfg.pretrain == 1 else balance.pretrain_steps.item()
    for step, (x, x_seen, y_d, y_p) in run.batches(cfg.batch_size, until=until):
        run.set_lr(cfg.lr * linear_decay(step, cfg.steps, cfg.decay_from))
        with autocast(cfg):
            f, _ = G.encode(x_seen)
            _, d_real, p_real = D(add_noise(x, cfg.d_noise))
        L_softmax, L_pair = loss_softmax(classifier(f), y_d), 0.                             # [softmax]
        if cfg.lambda_pair:
            x_other, c = (t.unflatten(0, (-1, data.n)).roll(1, 1).flatten(0, 1) for t in (x, y_p))
            z = torch.rand(len(f), cfg.noise, device=f.device) * 2 - 1
            with autocast(cfg):
                x_hat = G.decode(f, pose_code(c, G.n_poses, cfg), z)
            L_pair = (x_hat - x_other).abs().mean()
        L_G = L_softmax + cfg.lambda_pair * L_pair
        opt_G.zero_grad()
        L_G.backward()
        opt_G.step()
        follow(G_mean, G, cfg.average, step)
        L_id_D = loss_id_D(d_real, y_d)                                                      # [id_D]
        L_pose_D = loss_pose_D(p_real, y_p)                                                  # [pos_D]
        L_D = cfg.lambda_id * L_id_D + cfg.lambda_pose * L_pose_D
        opt_D.zero_grad()
        L_D.backward()
        opt_D.step()
        if run.logs(step):
            losses = logged(softmax=L_softmax, pair=L_pair, id_D=L_id_D, pose_D=L_pose_D)
            run.log(step, **losses, D_pose=accuracy(p_real, y_p))
        if step == until < cfg.steps:
            opt_G.state.clear()
    data.n = cfg.images_per_subject


@torch.no_grad()
def follow(G_mean, G, decay, step):
    """Ours: the weights of G_mean, and its batch norms' statistics, move a little towards G's."""
    if not decay:                                                      # G_mean is G
        return
    decay = min(decay, step / (step + 9))                              # at first faster: the start is random
    for mean, now in zip(G_mean.state_dict().values(), G.state_dict().values(), strict=True):
        mean.copy_(mean.lerp(now, 1 - decay) if now.is_floating_point() else now)


def with_fused(f, w, y_d, cfg):
    """Features f [B, n_f] and, with n > 1, the fused one of each person; whose they are. w, y_d: [B]."""
    n = cfg.images_per_subject
    if n == 1:
        return f, y_d
    w = drop_confidences(w.unflatten(0, (-1, n)), cfg.drop)
    return torch.cat([f, fuse(f.unflatten(0, (-1, n)), w)]), torch.cat([y_d, y_d[::n]])


def drop_confidences(w, drop):
    """C: dropout on confidences w [B, n], so that any number of pictures takes part; one always stays."""
    keep = torch.rand(w.shape, device=w.device) >= drop
    one = F.one_hot(torch.randint(w.shape[1], (len(w),), device=w.device), w.shape[1]).bool()
    return w * (keep | one & ~keep.any(1, keepdim=True))


def pose_code(c, n_poses, cfg):
    """Indices [B] -> one-hot [B, N_p]; all zero with --no-pose-code."""
    return F.one_hot(c, n_poses).float() * cfg.pose_code


@torch.no_grad()
def realness(r, d, head):
    """How real D finds pictures, log-odds [B]: T's first output; with C's head any person against "drawn"."""
    return r[:, 0] if head == "tpami" else d.logsumexp(1) - r[:, 0]


def accuracy(logits, y):
    return (logits.argmax(1) == y).float().mean()


def turned(G, f, c, cfg):
    """Features f [n, n_f] drawn in poses c [n], all with the same z, so that only the code differs."""
    z = torch.rand(cfg.noise, generator=torch.Generator().manual_seed(1)) * 2 - 1
    return G.decode(f, pose_code(c, G.n_poses, cfg), z.to(f.device).expand(len(f), -1))


def in_every_pose(G, f, cfg):
    """Features f [n, n_f] drawn in every pose: [n, N_p, 3, S, S]."""
    c = torch.arange(G.n_poses, device=f.device).repeat(len(f))
    return turned(G, f.repeat_interleave(G.n_poses, 0), c, cfg).unflatten(0, (len(f), G.n_poses))


def fixed_batch(held_out, cfg, n=6):
    """The held-out pictures that every log line and grid shows: x [n, 3, S, S], truth, names of the poses.

    Each is of another person; they look from left to right. truth: the toy faces in every pose,
    [n, N_p, 3, S, S], or None.
    """
    index, true = [], None
    people = torch.linspace(0, len(held_out.people) - 1, min(n, len(held_out.people))).round().long()
    for k, person in enumerate(people):
        mine = ((held_out.who == person) & held_out.clean).nonzero()[:, 0]
        index.append(mine[min(len(mine) - 1, k * len(mine) // len(people))])
    index = torch.stack(index)
    if held_out.faces is not None:
        true = torch.stack([albums.truth(held_out, index, k, cfg) for k in range(len(held_out.poses))], 1)
    return albums.pictures(held_out, index, cfg), true, held_out.poses


@torch.no_grad()
def health(G, shown, cfg, real=None, fake=None):
    """The health word, and mean distances (0 ... 1) on held-out pictures. G is left in training mode.

    turn, people: of drawings of one input, of drawings under one code, to their mean; apart: of the inputs to
    theirs. Toy faces also error and baseline: to the truth in every pose, of the drawings and of the inputs.
    real, fake: what `realness` says of the pictures of D's last step.
    """
    x, true, _ = shown
    G.eval()
    y = in_every_pose(G, G.encode(x)[0], cfg)
    G.train()
    turn, people, apart = ((t - t.mean(dim, keepdim=True)).abs().mean() / 2
                           for t, dim in ((y, 1), (y, 0), (x, 0)))
    values = {"turn": turn, "people": people, "apart": apart}
    if true is not None:
        values |= {"error": (y - true).abs().mean() / 2, "baseline": (x[:, None] - true).abs().mean() / 2}
    word = "identity-lost" if people < .2 * apart else "ok"
    if turn < .15 * apart:
        word = "pose-ignored"
    if real is not None and real.min() > fake.max() and real.mean() - fake.mean() > 15:
        word = "D-won"                                                 # the other two may come of it
    return {"health": word} | values


@torch.no_grad()
def sample_grid(G, shown, cfg):
    """Held-out people: input, and drawn in every pose (below toy faces' drawings: the truth)."""
    x, true, poses = shown
    G.eval()
    y = in_every_pose(G, G.encode(x)[0], cfg)
    G.train()
    columns = [x, *y.unbind(1)]
    if true is not None:
        below = [torch.ones_like(x), *true.unbind(1)]
        columns = [torch.stack(pair, 1).flatten(0, 1) for pair in zip(columns, below, strict=True)]
    return grid(columns, ["input", *poses])


# ========================================================================================= inference

@reads_checkpoint
def load(cfg):
    """(G, people and poses trained on) of cfg.run or cfg.weights. cfg takes over sizes and kind of data."""
    resolve_device(cfg)
    path = cfg.weights or Path(cfg.run) / "last.pt"
    saved = read_checkpoint(path, __file__)
    names = ["image_size", "noise", "width", "upsampling", "images_per_subject", "pose_code", "pretrain"]
    restore_config(cfg, saved, names if cfg.data else [*names, "test_people"])
    G, _ = build(cfg, 1, len(saved["about"]["poses"]))
    load_weights(G, saved["nets"].get("G", {}), path)
    return G.eval(), saved["about"]


@torch.no_grad()
def infer(cfg, files, pose, to, out):
    """FILE...: pictures of one person. Writes <first>.png, every pose, <first>.gif, the head turning, and
    <first>_between.png: codes between the poses, and below the noise z from one end to the other.

    Several pictures are fused, each one's confidence is printed. --to: in seven steps to another person.
    """
    photos, others = ({file: open_image(file) for file in group} for group in (files, to or []))
    G, about = load(cfg)
    poses, wanted = about["poses"], pose or about["poses"]
    for one in wanted:
        if one not in poses:
            raise UserError(f"--pose {one}: this model draws {', '.join(poses)}")
    (x, f, fused), name = encode(cfg, G, photos), Path(files[0]).stem
    blank = torch.ones_like(x[:1])
    if to:                                                             # from one fused feature to the other
        x_to, _, fused_to = encode(cfg, G, others)
        t, name = torch.linspace(0, 1, 7, device=f.device)[:, None], f"{name}_to_{Path(to[0]).stem}"
        f = fused * (1 - t) + fused_to * t
        x = torch.cat([x[:1], blank.expand(5, -1, -1, -1), x_to[:1]])
    elif len(photos) > 1:                                              # each alone, and below all fused
        f, x = torch.cat([f, fused]), torch.cat([x, blank])
    y = in_every_pose(G, f, cfg)[:, [poses.index(one) for one in wanted]]
    path = out_folder(cfg, out) / f"{name}.png"
    grid([x, *y.unbind(1)], ["input", *wanted]).save(path)
    front = next((wanted.index(one) for one in ("0", "frontal") if one in wanted), len(wanted) // 2)
    frames = y[:, front] if to else y[-1]                              # the steps, or the last row's poses
    frames = [grid([frame[None]], None, max(1, 192 // cfg.image_size)) for frame in frames]
    write_gif(frames + frames[-2:0:-1], path.with_suffix(".gif"), 160)     # there and back
    between = albums.between(G.decode, fused, G.n_poses, cfg.noise)
    grid(between).save(path.with_name(f"{name}_between.png"))
    print(path, path.with_suffix(".gif"), path.with_name(f"{name}_between.png"), sep="\n")


def encode(cfg, G, photos):
    """Photos {file: picture} of one person: x [n, 3, S, S], f [n, n_f], and the fused f [1, n_f]."""
    side = albums.stored_side(cfg.image_size)
    x = torch.stack([to_tensor(albums.cut(Path(file), photo, side)) for file, photo in photos.items()])
    x = albums.middle(x.to(cfg.device), cfg.image_size)
    f, w = G.encode(x)
    for (file, photo), one in zip(photos.items(), w, strict=True):
        square = "square around the fiducials" if formats.fiducials_of(Path(file)) else "central square"
        trust = f", confidence {one:.3f}" if G.multi else ""
        print(f"{file}: {photo.width} x {photo.height}, {square}{trust}")
    return x, f, fuse(f[None], w[None])


if __name__ == "__main__":
    cli(__name__)
