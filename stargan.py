"""StarGAN: one generator for all domains, and for several data sets.

Yunjey Choi, Minje Choi, Munyoung Kim, Jung-Woo Ha, Sunghun Kim, Jaegul Choo. "StarGAN: Unified Generative
Adversarial Networks for Multi-Domain Image-to-Image Translation", CVPR 2018, arXiv 1711.09020. Authors' code:
yunjey/stargan. Readers' questions are answered in notebooks/01_stargan.ipynb.

The idea. A domain is a label: black hair, young, happy. One generator takes a picture x and the label c that
is wanted, spread over the plane as extra channels, and paints G(x, c). One discriminator has two heads on one
trunk: D_src says real or generated, D_cls says which label. Going back to the source label must give x again.
A mask vector lets one G learn from data sets that do not know each other's labels.

The claim. Expressions that one StarGAN paints are misread less often by an independent classifier (2.12 %,
Table 3) than those of translators for pairs of domains. Trained on two data sets together it paints better
expressions on the set that has no such labels; with the wrong mask vector the transfer fails.

Equations ((1), the textbook adversarial loss, is replaced by (8); (5) and (6) are the objectives in `train`):
    [(2)] classification of real pictures, for D
    [(3)] classification of generated pictures, for G
    [(4)] reconstruction
    [(7)] unified label with mask vector
    [(8)] adversarial, Wasserstein with gradient penalty
    [triple] triple consistency: GANnotation's, off by default

Run it:
    python stargan.py --train                              toy faces: hair colour, beard, age
    python stargan.py --train --toy both                   two toy sets: attributes, expressions in a studio
    python stargan.py --train --data CELEBA --data RAFD    the paper's data sets: one, the other, or jointly
    python stargan.py --evaluate                           held-out faces, read by a classifier
    python stargan.py --ablate --part joint                the paper's claims, three seeds
    python stargan.py --infer photo.jpg --target Blond_Hair --target not-Young

Differs from the authors' code, because:
    learning rate   their decay lacks a factor of 1000 and ends at 9.99e-5; here it falls to 0 (paper)
    sampling        pictures are drawn with replacement; theirs go through a shuffled list
    test split      2000 of a shuffle, at most a tenth; theirs 1999. Pictures of two hair colours are left out
                    before, since no target may have two
    instance norm   no running statistics: theirs are never used, and break the network under eval()
"""
import dataclasses
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F
from PIL import Image

import common
from common import PatchGAN, ResidualBlock, conv_block, linear_decay
from lab import UserError, authors, labels, say, toyfaces, toysets
from lab.cli import cli
from lab.files import load_nets, out_folder, read_checkpoint, reads_checkpoint
from lab.formats import attributes as formats
from lab.images import decoded_images, draw, grid, open_image, report_found, square, to_tensor
from lab.machine import resolve_device
from lab.run import (Run, Settings, autocast, choice, frozen, logged, require, restore_config,
                     to_device)

HAIR = formats.HAIR                                                    # colours exclude each other


@dataclass
class Config(Settings):
    """The paper's recipe."""
    # data
    data: tuple = field(default=(), metadata={"action": "append"})  # ours: a data set's folder, once or twice
    toy: str = choice("attributes", "expressions", "both")          # ours: which toy set, without --data
    attributes: tuple = ("Black_Hair", "Blond_Hair", "Brown_Hair", "Male", "Young")  # 5.2; toy faces: Beard
    classes: tuple = field(default=(), metadata={"type": str})      # ours: of class folders, these; () = all
    test_images: int = 2000           # section 5.2; ours: at most a tenth of the set
    image_size: int = 128             # section 5.2
    people: int = 20_000              # ours: toy pictures in the wild, each of another person
    studio: int = 600                 # ours: toy people in the studio, eight expressions each; RaFD has 67
    pose: float = .3                  # ours: range of the toy poses; CelebA is aligned
    variety: float = 1.               # ours: how much walls and light of toys differ; 0: alike, no make-up
    # networks
    width: int = 64                   # Table 4
    residual_blocks: int = 6          # Table 4
    d_width: int = 64                 # Table 5
    d_layers: int = 6                 # Table 5
    # losses
    lambda_cls: float = 1.            # section 3.1
    lambda_rec: float = 10.           # section 3.1
    lambda_gp: float = 10.            # section 4
    lambda_triple: float = 0.         # off: not this paper's; the authors of the triple loss: 10
    lambda_copy: float = 30.          # ours: in the first copy_steps only
    # training
    copy_steps: int = 0               # ours, off: so many of the first steps G only learns to copy
    steps: int = 200_000              # authors' code; paper: 20 epochs of CelebA 250,750, 200 of RaFD 54,270
    batch_size: int = 16              # section 5.3
    n_critic: int = 5                 # section 5.3: D's steps for one of G
    lr: float = 1e-4                  # section 5.3
    betas: tuple = (.5, .999)         # section 5.3
    decay_from: float = .5            # section 5.3: half of the epochs constant, then linear to 0
    # ablation
    part: str = choice("all", "recipe", "joint", "triple")           # ours: of --ablate


# Minutes on a processor. All of it is ours.
SMALL = dict(
    image_size=48, width=32, residual_blocks=3, d_width=16, d_layers=4,    # small but wide paints better
    people=10_000, studio=200, variety=0.,  # D learns fewer by heart; variety 0: coloured walls are hard
    copy_steps=600,                         # else G may paint inverted colours: inverted twice they are right
    batch_size=8, n_critic=2, steps=20_000, lr=7e-4, lambda_rec=30.,       # few steps, so large ones
    decay_from=.25,                         # small ones at the end make the colours right
)
# Minutes on a GPU, hours on two cores. All of it is ours.
MEDIUM = dict(
    image_size=128, width=32, d_width=32, decay_from=.25,
    copy_steps=2000,                        # the more pixels, the longer it takes to learn copying
    people=10_000, variety=0., batch_size=8, n_critic=2, steps=14_000, lr=5e-4, lambda_rec=30.,
)
INFER_FLAGS = {
    "--target": dict(action="append", default=None, metavar="LABEL",
                     help="label to paint: Blond_Hair, not-Young, happy; may be repeated; default: each"),
    "--source": dict(nargs="*", default=None, metavar="LABEL",
                     help="labels that the photo has now; default: what D reads in it"),
    "--out": dict(default="", metavar="DIR", help="where to write (default: inferred/ in the run folder)"),
}
HEALTH = {"copying": "output hardly differs from its input", "label-ignored": "same output for all labels",
          "nan": "a loss is not finite"}


# ============================================================================================== data

@dataclass
class LabelSet:
    """One data set and what it knows: attributes (several may hold) or exclusive classes.

    images: uint8 [N, 3, S, S]; labels: [N, n] of 0 and 1; faces: of toy pictures; files: of photographs.
    """
    names: tuple
    exclusive: bool
    images: torch.Tensor
    labels: torch.Tensor
    faces: toyfaces.Face | None = None
    files: tuple = ()


class Faces:
    """The data sets of a training. sample(B): [(x_real [B, 3, S, S], label_org [B, n_d])], a pair for
    each."""

    def __init__(self, cfg, sets):
        self.cfg, self.sets = cfg, sets
        self.sizes = tuple(len(s.names) for s in sets)                 # n_1, ..., n_D: labels of each set
        self.generator = torch.Generator().manual_seed(cfg.seed)

    def __len__(self):
        return sum(len(s.labels) for s in self.sets)

    def sample(self, batch_size):
        batches = []
        for s in self.sets:
            index = torch.randint(len(s.labels), (batch_size,), generator=self.generator)
            flip = torch.rand(batch_size, 1, 1, 1, generator=self.generator) < .5              # section 5.3
            x = draw(s.images, index, self.cfg.device)
            flip, label = (t.to(x.device, non_blocking=True) for t in (flip, s.labels[index]))
            batches.append((torch.where(flip, x.flip(3), x), label))
        return batches

    def of_set(self, cls, d):
        """The columns of D's class logits [B, sum n] that belong to set d: [B, n_d]."""
        return cls.split(self.sizes, 1)[d]


def scan(cfg):
    """What is under cfg.data (one folder): lists `images`, `labels`, `test`, and what --check prints."""
    found = formats.scan(Path(cfg.data[0]), cfg.attributes, cfg.classes, cfg.test_images)
    return found | {"bytes_per_image": 3 * cfg.image_size ** 2}


def shrunk(photo, side):
    """The central square of a photograph, bilinear, as in the authors' code.

    RaFD: the authors cut the faces out before, 256 px; so should you.
    """
    return square(photo, side, Image.Resampling.BILINEAR)


def photographs(cfg, root, test):
    """The training or the test part of a real data set, decoded once."""
    found, S = scan(dataclasses.replace(cfg, data=(root,))), cfg.image_size
    report_found(found, cfg.skip_bad)
    mine = [k for k, is_test in enumerate(found["test"]) if is_test == test]
    files = [found["images"][k] for k in mine]

    def decode(k):
        return np.asarray(shrunk(open_image(files[k]), S)).transpose(2, 0, 1)

    images, good = decoded_images(cfg, files, (3, S, S), decode, "bilinear")
    known = torch.tensor([found["labels"][mine[k]] for k in good])
    return LabelSet(found["names"], found["exclusive"], images, known, None, tuple(files[k] for k in good))


TRAIN_SEED, TEST_SEED, TEST_PEOPLE = 10_000, 20_000, {"attributes": 256, "expressions": 64}


def toy_set(cfg, kind, count, seed):
    """Toy people and their labels, drawn: attributes in the wild, or expressions in a studio."""
    make = toysets.wild if kind == "attributes" else toysets.studio
    names, faces, known = make(cfg, count, seed)
    return LabelSet(names, kind == "expressions", toyfaces.images(cfg, faces, cfg.image_size), known, faces)


def make_data(cfg, test=False):
    """The training sets, or held-out pictures of other people (test)."""
    if len(cfg.data) > 2:
        raise UserError(f"--data given {len(cfg.data)} times; expected one or two data sets")
    if cfg.data:
        sets = [photographs(cfg, root, test) for root in cfg.data]
        both = sorted(set(sets[0].names) & set(sets[-1].names))
        if len(sets) > 1 and both:
            raise UserError(f"--data {cfg.data[0]} and {cfg.data[1]} both have the label {both[0]}; "
                            "rename it in one of them")
        return Faces(cfg, sets)
    kinds = ("attributes", "expressions") if cfg.toy == "both" else (cfg.toy,)
    counts = TEST_PEOPLE if test else {"attributes": cfg.people, "expressions": cfg.studio}
    seed = TEST_SEED if test else TRAIN_SEED + 10 * cfg.seed
    return Faces(cfg, [toy_set(cfg, kind, counts[kind], seed + (kind == "expressions")) for kind in kinds])


# ============================================================================================ labels

def unified_label(label, d, sizes):
    """[(7)]  c~ = [c_1, ..., c_n, m]:   c_d is known, zeros for other sets' labels, m one-hot over the n sets

    label: [B, n_d] of set d; sizes: labels of each set. Returns [B, sum of sizes + n]; one set has no mask.
    """
    if len(sizes) == 1:
        return label
    parts = [label if k == d else label.new_zeros(len(label), n) for k, n in enumerate(sizes)]
    mask = torch.eye(len(sizes), dtype=label.dtype, device=label.device)[d].expand(len(label), -1)
    return torch.cat([*parts, mask], 1)


def shuffled(label):
    """Authors' code (paper: "random"): the labels of a batch in another order, so never two hair colours."""
    return label[torch.randperm(len(label)).to(label.device, non_blocking=True)]


def targets(label, names, exclusive):
    """What to paint at test time: [(name, label wanted [B, n], whom it changes [B])], one a column.

    Classes: each in turn. Attributes, as in the authors' code: a hair colour is set and the other hair
    colours are cleared; every other attribute is flipped.
    """
    columns = []
    for k, name in enumerate(names):
        wanted = label.clone()
        wanted[:, labels.rivals(name, names, exclusive)] = 0.
        wanted[:, k] = 1. if exclusive or name in HAIR else 1 - label[:, k]
        columns.append((name, wanted, (wanted != label).any(1)))
    return columns


# ========================================================================================== networks

class Generator(nn.Module):
    """Table 4. No bias: 8,430,528 parameters for 5 labels.

    forward(x [B, 3, S, S], c [B, n_c]) -> [B, 3, S, S], in [-1, 1], S a multiple of 4. The padding is zero:
    instance norm removes a constant plane, and only the border tells one label from another.
    """

    def __init__(self, n_labels=5, width=64, residual_blocks=6):
        super().__init__()
        w, act, norm = width, nn.ReLU(), "instance-affine"
        self.main = nn.Sequential(
            *conv_block(3 + n_labels, w, 7, 1, 3, norm, act, bias=False),              # w  x S   x S
            *conv_block(w, 2 * w, 4, 2, 1, norm, act, bias=False),                     # 2w x S/2 x S/2
            *conv_block(2 * w, 4 * w, 4, 2, 1, norm, act, bias=False),                 # 4w x S/4 x S/4
            *(ResidualBlock(4 * w, norm, act, bias=False) for _ in range(residual_blocks)),
            *conv_block(4 * w, 2 * w, 4, 2, 1, norm, act, up=True, bias=False),        # 2w x S/2 x S/2
            *conv_block(2 * w, w, 4, 2, 1, norm, act, up=True, bias=False),            # w  x S   x S
            nn.Conv2d(w, 3, 7, 1, 3, bias=False), nn.Tanh())

    def forward(self, x, c):
        planes = c[:, :, None, None].expand(-1, -1, *x.shape[2:])
        return self.main(torch.cat([x, planes], 1)).float()


class Discriminator(PatchGAN):
    """Table 5: one trunk, no norm, slope 0.01, channels doubling; heads D_src [B, 1, h, h], D_cls [B, n].

    44,762,048 parameters for 5 labels at 128 px. h = S / 2^layers: 2 x 2 scores at 128 px, and one score sees
    318 px, more than the picture: a PatchGAN in name.
    """

    def __init__(self, n_labels=5, image_size=128, width=64, layers=6):
        widths = [width * 2 ** k for k in range(layers)]
        super().__init__(3, widths, (2,) * layers, slope=.01, head_kernel=3, head_bias=False)
        self.cls = nn.Conv2d(widths[-1], n_labels, image_size // 2 ** layers, bias=False)

    def forward(self, x):
        h = self.trunk(x)
        return self.head(h).float(), self.cls(h).flatten(1).float()    # D_src, D_cls


# ============================================================================================ losses
# || . ||_1 is the mean absolute value over batch, channels and pixels of pictures in [-1, 1], as in the
# authors' code: the weights make sense with it only. Means over D_src run over the batch and over its scores.

def loss_adv_D(src_real, src_fake):
    """[(8)]  D maximises L_adv = E[D_src(x)] - E[D_src(G(x, c))] - lambda_gp GP;  here -L_adv is minimised

    The difference of means, without GP: see loss_gp. src: unbounded scores of any shape. Scalar.
    """
    return common.wgan_D(src_real, src_fake)


def loss_gp(D, x_real, x_fake):
    """[(8)]  GP = E[(||grad D_src(x^)||_2 - 1)^2],   x^ = a x + (1 - a) G(x, c),   a ~ U(0, 1)

    One a and one norm a picture, over all its pixels. As in the authors' code the gradient is that of the
    *sum* of the patch scores, while the loss takes their mean: with P patches that mean is driven to be
    1/P-Lipschitz. Its gradient reaches D only. Weight: lambda_gp
    """
    return common.gradient_penalty(lambda x_hat: D.forward(x_hat)[0], x_real, x_fake)


def loss_adv_G(src_fake):
    """[(8)]  G's side: -E[D_src(G(x, c))], minimised by G. Without GP, as in the authors' code."""
    return common.wgan_G(src_fake)


def classification(logits, label, exclusive):
    """-log D_cls(label | x): softmax for classes; for attributes a sigmoid each, *summed* (authors' code)."""
    if exclusive:
        return F.cross_entropy(logits, label.argmax(1))
    return F.binary_cross_entropy_with_logits(logits, label, reduction="sum") / len(label)


def loss_cls_real(cls_real, label_org, exclusive):
    """[(2)]  L_cls^r = E[-log D_cls(c' | x)]

    D_cls learns to read the labels of *real* pictures. It never sees a generated one in D's step, so G cannot
    teach it a private code. cls_real: [B, n] logits; label_org: [B, n]. Weight: lambda_cls
    """
    return classification(cls_real, label_org, exclusive)


def loss_cls_fake(cls_fake, label_trg, exclusive):
    """[(3)]  L_cls^f = E[-log D_cls(c | G(x, c))]

    G must paint so that D_cls reads the label it was given. Only G learns from it. Weight: lambda_cls
    """
    return classification(cls_fake, label_trg, exclusive)


def loss_rec(x_real, x_rec):
    """[(4)]  L_rec = E[|| x - G(G(x, c), c') ||_1]

    Back under the source label c' the picture must be the source again: what c does not change has to
    survive. With two data sets c' is what the picture's own set knows. Weight: lambda_rec
    """
    return (x_real - x_rec).abs().mean()


def loss_triple(x_via, x_direct):
    """[triple]  L_triple = || G(G(x, c), c'') - G(x, c'') ||_1

    Two edits must end where the second alone ends. Not this paper's: GANnotation's, in the form that its
    authors gave for StarGAN, with c'' from a second permutation. Weight: lambda_triple
    """
    return (x_via - x_direct).abs().mean()


# ========================================================================================== training

def validate(cfg):
    """Raises UserError for settings that do not fit together."""
    for name in ("n_critic", "width", "d_width", "d_layers", "people", "studio"):
        require(cfg, name, getattr(cfg, name) > 0, "at least 1")
    side = 2 ** cfg.d_layers
    require(cfg, "image_size", cfg.image_size % side == 0, f"a multiple of {side}, or other --d-layers")


def build(cfg, sizes):
    """G and D for data sets with sizes[d] labels; PyTorch's initialisation, as in the authors' code."""
    n_c = sum(sizes) + (len(sizes) if len(sizes) > 1 else 0)           # with the mask; D has no such class
    G = Generator(n_c, cfg.width, cfg.residual_blocks)
    return G, Discriminator(sum(sizes), cfg.image_size, cfg.d_width, cfg.d_layers)


def train(cfg):
    """The paper's training, step by step. Writes cfg.run; returns G (on cfg.device)."""
    validate(cfg)
    resolve_device(cfg)
    torch.manual_seed(cfg.seed)
    data, held_out = make_data(cfg), make_data(cfg, test=True)
    G, D = build(cfg, data.sizes)
    if cfg.weights:
        load_nets({"G": G, "D": D}, checkpoint(cfg.weights, cfg), cfg.weights)
    say(f"{len(data)} pictures, labels {' | '.join(' '.join(s.names) for s in data.sets)}; "
        f"G {common.n_parameters(G):,} parameters, D {common.n_parameters(D):,}")
    G, D = to_device(cfg, G, D)
    opt_G = torch.optim.Adam(G.parameters(), cfg.lr, cfg.betas, fused=True)
    opt_D = torch.optim.Adam(D.parameters(), cfg.lr, cfg.betas, fused=True)
    run = Run(cfg, data, {"G": G, "D": D}, {"D": opt_D, "G": opt_G}, HEALTH,
              about=[[list(s.names), s.exclusive] for s in data.sets])
    shown = fixed_batch(held_out)
    learn_to_copy(cfg, run, data, G, opt_G)

    losses = run.losses
    for step, batches in run.batches(cfg.batch_size):
        run.set_lr(cfg.lr * linear_decay(step, cfg.steps, cfg.decay_from))
        for d, (x_real, label_org) in enumerate(batches):              # one set after the other: section 3.2
            exclusive, suffix = data.sets[d].exclusive, "_2" if d else ""
            label_trg = shuffled(label_org)
            c_org = unified_label(label_org, d, data.sizes)                                      # c', (7)
            c_trg = unified_label(label_trg, d, data.sizes)                                      # c, (7)

            # 1. D: real above generated, and the labels of real pictures -------------------------- (5)
            with autocast(cfg):
                x_fake = G(x_real, c_trg)
                src_real, cls_real = D(x_real)
                src_fake, _ = D(x_fake.detach())
            L_adv_D = loss_adv_D(src_real, src_fake)                                             # (8)
            L_gp = loss_gp(D, x_real, x_fake)                                                    # (8)
            L_cls_real = loss_cls_real(data.of_set(cls_real, d), label_org, exclusive)           # (2)
            L_D = L_adv_D + cfg.lambda_gp * L_gp + cfg.lambda_cls * L_cls_real                   # (5)
            opt_D.zero_grad()
            L_D.backward()
            opt_D.step()
            losses |= logged(suffix, adv_D=L_adv_D, gp=L_gp, cls_real=L_cls_real, D=L_D)
            if step % cfg.n_critic:
                continue                                               # with the next set

            # 2. G, once for n_critic steps of D: fool it, show the label, find the way back ------- (6)
            with frozen(D), autocast(cfg):
                src_fake, cls_fake = D(x_fake)
                x_rec = G(x_fake, c_org)
            L_adv_G = loss_adv_G(src_fake)                                                       # (8)
            L_cls_fake = loss_cls_fake(data.of_set(cls_fake, d), label_trg, exclusive)           # (3)
            L_rec = loss_rec(x_real, x_rec)                                                      # (4)
            L_G = L_adv_G + cfg.lambda_cls * L_cls_fake + cfg.lambda_rec * L_rec                 # (6)
            if cfg.lambda_triple:
                c_third = unified_label(shuffled(label_org), d, data.sizes)
                with autocast(cfg):
                    x_via = G(x_fake, c_third)
                    x_direct = G(x_real, c_third)
                L_triple = loss_triple(x_via, x_direct)                                          # [triple]
                L_G = L_G + cfg.lambda_triple * L_triple
                losses |= logged(suffix, triple=L_triple)
            opt_G.zero_grad()
            L_G.backward()
            opt_G.step()
            losses |= logged(suffix, adv_G=L_adv_G, cls_fake=L_cls_fake, rec=L_rec, G=L_G)

        if run.logs(step):
            run.log(step, **health(G, shown), **losses)
        if run.samples(step):
            run.sample(step, sample_grid(G, shown))
    return G


def learn_to_copy(cfg, run, data, G, opt_G):
    """Ours, before the paper's training and off in its recipe: G learns to give back its input.

    Instance norm removes the absolute colours, and a short training has no time to find them by the cycle.
    The weight is large: after small gradients Adam's first steps on the paper's objective would be huge.
    """
    for step, batches in run.batches(cfg.batch_size, until=cfg.copy_steps):
        L_copy = 0.
        for d, (x_real, label_org) in enumerate(batches):
            with autocast(cfg):
                x_same = G(x_real, unified_label(label_org, d, data.sizes))
            L_copy = L_copy + cfg.lambda_copy * (x_same - x_real).abs().mean()
        opt_G.zero_grad()
        L_copy.backward()
        opt_G.step()
        if run.logs(step):
            run.log(step, L_copy=L_copy)


def fixed_batch(held_out, n=6):
    """The held-out pictures that every log line and grid shows: x [n, 3, S, S], c_org [n, n_c], columns.

    They are of the first set. columns: each label of every set, (name, c [n, n_c], truth or None).
    """
    s, device, columns = held_out.sets[0], held_out.cfg.device, []
    index = torch.linspace(0, len(s.labels) - 1, n).round().long()
    x, label = draw(s.images, index, device), s.labels[index].to(device)
    for d, other in enumerate(held_out.sets):
        known = label if d == 0 else torch.zeros(n, len(other.names), device=device)
        for k, (name, wanted, _) in enumerate(targets(known, other.names, other.exclusive)):
            truth = None
            if s.faces is not None:
                faces = toysets.counterfactual(s.faces[index.to(device)], name, wanted[:, k])
                truth = toyfaces.render(faces, held_out.cfg.image_size)
            title = name if other.exclusive or name in HAIR else f"{name} +/-"        # set, or turned over
            columns.append((title, unified_label(wanted, d, held_out.sizes), truth))
    return x, unified_label(label, 0, held_out.sizes), columns


@torch.no_grad()
def health(G, shown):
    """The health word, and mean distances (0 ... 1): change, of G(x, c) to x; spread, of G(x, c) to G(x, c');
    toy faces also error and copy, of G(x, c) and of x to the truth."""
    x, c_org, columns = shown
    outputs, same = [G(x, c) for _, c, _ in columns], G(x, c_org)

    def L1(pairs):
        return sum((a - b).abs().mean() / 2 for a, b in pairs) / len(columns)

    values = {"change": L1((y, x) for y in outputs), "spread": L1((y, same) for y in outputs)}
    word = "copying" if values["change"] < .005 else "ok"
    if values["spread"] < .1 * values["change"]:
        word = "label-ignored"
    truths = [truth for _, _, truth in columns]
    if truths[0] is not None:
        values |= {"error": L1(zip(outputs, truths, strict=True)), "copy": L1((x, truth) for truth in truths)}
    return {"health": word} | values


@torch.no_grad()
def sample_grid(G, shown):
    """Input, each target (toy faces: the truth below), and the first target taken back."""
    x, c_org, columns = shown
    sheet, below = {"input": x}, {name: truth for name, _, truth in columns}
    sheet |= {name: G(x, c) for name, c, _ in columns}
    sheet["back"] = G(sheet[columns[0][0]], c_org)
    if columns[0][2] is not None:
        sheet = {name: torch.stack([y, below.get(name, torch.ones_like(x))], 1).flatten(0, 1)
                 for name, y in sheet.items()}
    return grid(sheet)


# ========================================================================================= inference

def checkpoint(path, cfg):
    """A checkpoint of ours, or the authors' N-G.ckpt (N-D.ckpt beside it) in the same form."""
    return read_checkpoint(path, __file__, lambda saved: authors.stargan(saved, path, cfg.attributes))


@reads_checkpoint
def load(cfg):
    """(G, D or None, [(names, exclusive) of each data set]) of cfg.run or cfg.weights.

    cfg takes over the checkpoint's sizes and kind of data.
    """
    resolve_device(cfg)
    path = cfg.weights or Path(cfg.run) / "last.pt"
    saved = checkpoint(path, cfg)
    restore_config(cfg, saved, ("image_size", "width", "residual_blocks", "d_width", "d_layers", "attributes",
                                "classes", "toy", "pose", "variety", "test_images"))
    sets = [(tuple(names), exclusive) for names, exclusive in saved["about"]]
    G, D = build(cfg, [len(names) for names, _ in sets])
    load_nets({"G": G, "D": D}, saved, path)
    G, D = to_device(cfg, G.eval(), D.eval())
    return G, D if "D" in saved["nets"] else None, sets


@torch.no_grad()
def infer(cfg, files, target, source, out):
    """FILE...: photos. Writes one grid, <first photo>.png: input, one column a target, and back again.

    Each photo is turned upright, cropped to its central square (a toy face: the whole picture) and resized.
    """
    photos = {file: open_image(file) for file in files}
    G, D, sets = load(cfg)
    S, sizes = cfg.image_size, [len(names) for names, _ in sets]
    for file, photo in photos.items():
        w, h = photo.size
        print(f"{file}: {w} x {h}, central square of {min(w, h)} px, resized to {S}")
    x = torch.stack([to_tensor(shrunk(photo, S)) for photo in photos.values()]).to(cfg.device)
    label = source_labels(x, photos, source, D, sets)
    known = [label] + [torch.zeros(len(x), len(names), device=x.device) for names, _ in sets[1:]]
    asked = [(text, *labels.wish(text, known, sets)) for text in target or []]
    for d, own in enumerate(() if asked else sets):
        asked += [(name, d, wanted) for name, wanted, _ in targets(known[d], *own)]
    columns = {"input": x} | {name: G(x, unified_label(wanted, d, sizes)) for name, d, wanted in asked}
    columns["back"] = G(columns[asked[0][0]], unified_label(label, 0, sizes))
    path = out_folder(cfg, out) / f"{Path(files[0]).stem}.png"
    grid(columns).save(path)
    print(path)


def source_labels(x, files, source, D, sets):
    """What photos x show, labels of the first data set [B, n]: as given (source), or as D_cls reads it."""
    names, exclusive = sets[0]
    if source is not None:
        label = labels.named(source, names, exclusive, len(x), x.device)
    elif D is None:
        raise UserError("there is no discriminator beside these weights to read what the photo shows; "
                        f"give --source, e.g. --source {' '.join(names[-2:])}")
    else:
        label = labels.read(D(x)[1][:, :len(names)], names, exclusive)
    for file, row in zip(files, label, strict=True):
        shown = " ".join(n for n, v in zip(names, row, strict=True) if v) or "none of the labels"
        print(f"{file}: {'read by D' if source is None else 'given'} as {shown}")
    return label


if __name__ == "__main__":
    cli(__name__)
