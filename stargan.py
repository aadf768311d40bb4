"""StarGAN: one generator for all domains, and for several data sets.

Yunjey Choi, Minje Choi, Munyoung Kim, Jung-Woo Ha, Sunghun Kim, Jaegul Choo. "StarGAN: Unified Generative Adversarial
Networks for Multi-Domain Image-to-Image Translation", CVPR 2018, arXiv 1711.09020. Authors' code: yunjey/stargan.

The idea. A domain is a label: black hair, young, happy. One generator takes the picture x and the label c wanted, spread
over the plane as extra channels, and paints y = G(x, c). One discriminator has two heads on one trunk: D_src says real or
generated, D_cls says which label; D_cls learns from real pictures and then tells G whether its label can be seen. Going
back to the source label must give x again (cycle). A mask vector lets one G learn from data sets that do not know each
other's labels.

The claim. Table 3: expressions that one StarGAN paints are misread less often by an independent classifier (2.12 %) than
those of translators trained for pairs of domains, with the parameters of one model (53.2 M). And: trained on two data
sets together it paints better expressions on the set that has none than trained on one, and the mask vector is what does
it: with the wrong mask the transfer fails. `--ablate` tests all of it on faces whose true counterfactual is known.

Equations of the paper ((1), the textbook adversarial loss, is replaced by (8); (5) and (6) are the sums in `train`):
    [(2)] classification of real pictures, for D
    [(3)] classification of generated pictures, for G
    [(4)] reconstruction
    [(7)] unified label with mask vector
    [(8)] adversarial, Wasserstein with gradient penalty
Two answers to readers' questions, off by default:
    [triple] triple consistency (GANnotation's; --lambda-triple 10, as its authors tried it on StarGAN)
    [mask] colour and mask (GANimation's output; --attention-mask)

Run it:
    python stargan.py --train                                toy faces: hair colour, beard, age
    python stargan.py --train --toy both                     two toy sets: attributes in the wild, expressions in a studio
    python stargan.py --train --data CELEBA [--data RAFD]    the paper's data sets, one, the other, or jointly
    python stargan.py --evaluate                             held-out faces: read by a classifier, compared with the truth
    python stargan.py --ablate [--part joint]                the paper's claims, three seeds
    python stargan.py --infer photo.jpg --target Blond_Hair  [--target not-Young] [--source Black_Hair Young]

Data sets: CelebA as distributed (img_align_celeba/ or images/ with list_attr_celeba.txt, also its .csv form, beside it or
in Anno/); RaFD or anything else in class folders (<class>/*.jpg, or train/<class>/*.jpg with test/<class>/*.jpg), or flat
with RaFD's own names (Rafd090_01_Caucasian_female_angry_frontal.jpg; three of its five camera angles). Pictures are
cropped to the central square, then resized: 178 of CelebA's 178 x 218; RaFD must be cropped to faces before.

Where paper and authors' code differ. Learning rate: their code subtracts 1e-4 / 100,000 once every 1000 iterations, so it
ends at 9.99e-5 and not at 0 (the step lacks a factor of 1000); here it really decays to 0, as in the paper;
`--decay-from 1` gives theirs. Length: 200,000 iterations in the code, 20 epochs of CelebA = 250,750 in the paper. Test
split: their `(i + 1) < 2000` holds out 1999, whatever the size of the set, so 2300 pictures leave 301 to train on; here
2000 of the same shuffle, at most a tenth. Class loss: a sum over the attributes, divided by the batch (code). Instance
norm: running statistics off; theirs are collected and never used, and break the network when somebody calls eval().
Equation (8) puts the gradient penalty into G's objective too; it does not depend on G's parameters in their code, nor here.

Why D five times before G once? A Wasserstein critic is only worth following near its optimum; the penalty makes training
it that far safe. Why a mere mean, and a minus? W = sup_f E[f(x)] - E[f(G(x, c))] over 1-Lipschitz f *is* a difference of
means; D maximises it, optimisers minimise. Does G know that constant planes are a label? Only because of zero padding: a
constant added to a feature map is what instance norm removes; the border, where zeros are padded, tells the difference.
"""
import dataclasses
import random
import re
import shutil
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import piq
import torch
import torch.nn as nn
import torch.nn.functional as F
import torchvision

import common
import toyfaces
from common import PatchGAN, ResidualBlock, Run, UserError, conv_block, draw, frozen, grid, prepare, say

HAIR = ("Black_Hair", "Blond_Hair", "Brown_Hair", "Gray_Hair")         # exclude each other, as in the authors' code
EXPRESSIONS = tuple(toyfaces.EXPRESSIONS)                               # the eight of RaFD, alphabetical


@dataclass
class Config(common.Settings):
    """The paper's recipe."""
    # data
    data: tuple = field(default=(), metadata={"action": "append"})      # ours: folder of a data set, given once or twice; none = toy faces
    toy: str = field(default="attributes", metadata={"choices": ("attributes", "expressions", "both")})  # ours: which toy set, without --data
    attributes: tuple = ("Black_Hair", "Blond_Hair", "Brown_Hair", "Male", "Young")    # section 5.1; toy faces: Beard for Male
    classes: tuple = field(default=(), metadata={"type": str})          # ours: use these classes of a set of class folders only; none = all
    partition: bool = False           # ours: CelebA's list_eval_partition.txt (0 to train, 2 to test) instead of the shuffle
    test_images: int = 2000           # section 5.2; ours: at most a tenth of the set
    image_size: int = 128             # section 5
    people: int = 20_000              # ours: toy pictures in the wild, each of another person
    studio: int = 600                 # ours: toy people in the studio, eight expressions each; RaFD has 67
    pose: float = .3                  # ours: range of the toy poses; CelebA is aligned
    # networks
    width: int = 64                   # Table 4
    residual_blocks: int = 6          # Table 4
    d_width: int = 64                 # Table 5
    d_layers: int = 6                 # Table 5
    attention_mask: bool = False      # GANimation's output layer, off: not this paper's
    # losses
    lambda_cls: float = 1.            # section 4
    lambda_rec: float = 10.           # section 4
    lambda_gp: float = 10.            # section 4
    lambda_triple: float = 0.         # off: not this paper's; authors of the triple loss: 10
    lambda_mask: float = .1           # ours, with --attention-mask: mean of 1 - mask, so that what need not change is kept
    # training
    steps: int = 200_000              # authors' code, D's steps; the paper's 20 epochs of CelebA are 250,750
    batch_size: int = 16              # section 4
    n_critic: int = 5                 # section 4: D's steps for one of G
    lr: float = 1e-4                  # section 4
    betas: tuple = (.5, .999)         # section 4
    decay_from: float = .5            # section 4: half of the epochs constant, then linear to 0
    # evaluation
    part: str = field(default="all", metadata={"choices": ("all", "joint", "pairwise", "losses", "triple")})   # ours: of --ablate


# For a processor: 64 px, a quarter of G's width, half an hour. All of it is ours. What takes time is to learn the way back:
# instance norm removes the colour of every flat surface, and G has to find it again from the border, or from the white of
# the eyes. So the learning rate is higher, D steps less often, and the walls behind toy faces are pale.
SMALL = dict(
    image_size=64, width=16, d_width=16, d_layers=5, people=4000, studio=200,   # 5 layers: the same 2 x 2 scores as at 128 px
    steps=24_000, n_critic=2, lr=7e-4,
)
INFER_FLAGS = {
    "--target": dict(action="append", default=None, metavar="LABEL", help="label to paint: Blond_Hair, not-Young, happy, or several, "
                     "joined by +; may be repeated; default: the paper's columns (each hair colour, the others flipped)"),
    "--source": dict(nargs="+", default=None, metavar="LABEL", help="labels that the photo has now; default: what D reads in it"),
    "--out": dict(default="", metavar="DIR", help="where to write (default: the run folder)"),
}
HEALTH = {"label-ignored": "same output for all labels", "copying": "output hardly differs from its input", "gp-off": "D's gradient norm far from 1",
          "D-won": "D tells every real picture from every generated one, by far", "nan": "a loss is not finite"}


# ========================================================================================================== data

@dataclass
class LabelSet:
    """One data set and what it knows: attributes (several may hold) or exclusive classes.

    bank: uint8 [N, 3, S, S]; labels: [N, n] of 0 and 1; faces: what toy pictures were drawn from, for counterfactuals.
    """
    names: tuple
    exclusive: bool
    bank: torch.Tensor
    labels: torch.Tensor
    faces: toyfaces.Face | None = None


class Faces:
    """The data sets of a training. sample() draws a batch of each: [(x_real [B, 3, S, S], label [B, n_d]), ...]."""

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
            flip = torch.rand(batch_size, 1, 1, 1, generator=self.generator) < .5                  # section 5.2: flips
            x = draw(s.bank, index, self.cfg.device)
            batches.append((torch.where(flip.to(x.device), x.flip(3), x), s.labels[index].to(x.device)))
        return batches


def toy_set(cfg, kind, count, seed):
    """"attributes": `count` people anywhere, one picture each, any expression and light. "expressions": `count` people in a
    studio, frontal, grey wall, the eight expressions. Neither knows the other's labels."""
    if kind == "attributes":
        faces = toyfaces.sample(count, seed, cfg.device, pose=cfg.pose)
        age = faces.age
        faces = faces.set(zoom=1.25, age=torch.where(age < .5, .6 * age, .7 + .6 * (age - .5)),   # close, as CelebA; young or old
                          background=.6 + .25 * (faces.background - .6))                           # pale walls: see SMALL
        names = tuple("Beard" if name == "Male" else name for name in cfg.attributes)              # toy people have no sex
        unknown = [name for name in names if name not in toyfaces.ATTRIBUTES]
        if unknown:
            raise UserError(f"--attributes {unknown[0]}: toy faces have {', '.join(toyfaces.ATTRIBUTES)}")
        labels = toyfaces.attributes(faces)[:, [toyfaces.ATTRIBUTES.index(name) for name in names]]
    else:
        names = class_names(cfg, EXPRESSIONS)
        people = toyfaces.sample(count, seed, cfg.device, pose=.15, expression=False, makeup=False)
        people = people.set(roll=0., shift=0., zoom=1.25, background=.7, light=[0., -.3, .954], light_strength=.4)
        neutral = people.express("neutral")
        strength = .85 + .3 * torch.rand(count, generator=torch.Generator().manual_seed(seed)).to(cfg.device)
        shows = [people.express(name) for name in names]
        shows = [f.set(**{k: getattr(neutral, k) + strength * (getattr(f, k) - getattr(neutral, k)) for k in toyfaces.EXPRESSION}) for f in shows]
        faces, labels = toyfaces.cat(shows), torch.eye(len(names)).repeat_interleave(count, 0)
    bank = common.toy_bank(cfg, faces, cfg.image_size)
    return LabelSet(names, kind == "expressions", bank, labels.cpu(), faces)


def class_names(cfg, available):
    """All classes, or those of --classes, in alphabetical order."""
    unknown = [name for name in cfg.classes if name not in available]
    if unknown:
        raise UserError(f"--classes {unknown[0]}: expected some of {', '.join(available)}")
    return tuple(sorted(cfg.classes or available))


def scan(cfg):
    """What is under cfg.data (one folder): images, labels, test (bool each), names, exclusive; bad, notes, bytes_per_image for --check."""
    root = Path(cfg.data[0])
    lists = [p for folder in (root, root / "Anno") for p in sorted(folder.glob("list_attr_celeba*"))]
    found = scan_attributes(cfg, root, lists[0]) if lists else scan_classes(cfg, root)
    counts = {name: int(sum(label[k] for label in found["labels"])) for k, name in enumerate(found["names"])}
    found["notes"] = {"kind": "classes, one a picture" if found["exclusive"] else "attributes, any number a picture",
                      "pictures": f"{len(found['images'])}, {sum(found['test'])} of them held out",
                      "labels": ", ".join(f"{name} ({n})" for name, n in counts.items())}
    if not found["images"] or all(found["test"]) or not any(found["test"]):
        raise UserError(f"{root}: {len(found['images'])} pictures with labels, {sum(found['test'])} of them held out; expected some of each"
                        + (f"; {found['bad'][0]}" if found["bad"] else ""))
    return found | {"bytes_per_image": 3 * cfg.image_size ** 2}


def scan_attributes(cfg, root, path):
    """CelebA's list: a count, the names, then one picture a line with -1 or 1 for each; or the same as .csv with a header."""
    lines = path.read_text(encoding="utf-8-sig").replace(",", " ").splitlines()
    lines = lines[0 if path.suffix == ".csv" else 1:]
    names = [name for name in (lines[0].split() if lines else []) if name not in ("image_id", "filename")]
    for name in cfg.attributes:
        if name not in names:
            raise UserError(f"--attributes {name}: {path} has {', '.join(names[:6])} ... ({len(names)})")
    columns = [names.index(name) for name in cfg.attributes]
    folders = [f for f in (root / "img_align_celeba", root / "images", root / "Img" / "img_align_celeba", root) if f.is_dir()]
    there = {p.name: p for f in reversed(folders) for p in f.iterdir() if p.suffix.lower() in common.IMAGE_FILES}
    if not there:
        raise UserError(f"{root}: {path.name} but no pictures; expected them in {root / 'img_align_celeba'} or {root / 'images'}")
    rows, images, labels, kept, bad = [line.split() for line in lines[1:] if line.strip()], [], [], [], []
    random.Random(1234).shuffle(rows)                                  # authors' code: with this seed, its first rows are the test set
    for row in rows:
        if len(row) != len(names) + 1 or set(row[1:]) - {"-1", "1", "0"}:
            bad.append(f"{path}: the line of {row[0]} has {len(row) - 1} values, expected {len(names)} of -1 and 1")
        elif row[0] not in there:
            bad.append(f"{path}: {row[0]} is not among the pictures")
        else:
            images.append(there[row[0]]), labels.append([float(row[1 + k] == "1") for k in columns]), kept.append(row[0])
    test = [k < min(cfg.test_images, len(images) // 10) for k in range(len(images))]
    if cfg.partition:
        lists = [p for folder in (root, root / "Eval") for p in sorted(folder.glob("list_eval_partition*"))]
        if not lists:
            raise UserError(f"--partition: no list_eval_partition.txt in {root}")
        part = dict(line.replace(",", " ").split()[:2] for line in lists[0].read_text().splitlines() if line.strip())
        keep = [k for k, name in enumerate(kept) if part.get(name) in ("0", "2")]
        images, labels, test = [images[k] for k in keep], [labels[k] for k in keep], [part[kept[k]] == "2" for k in keep]
    return dict(images=images, labels=labels, test=test, bad=bad, names=tuple(cfg.attributes), exclusive=False)


def scan_classes(cfg, root):
    """Class folders, with or without train/ and test/ above them; or RaFD's own file names."""
    def pictures(folder):
        return sorted(p for p in folder.iterdir() if p.suffix.lower() in common.IMAGE_FILES)

    parts = [(f, is_test) for f, is_test in ((root / "train", False), (root / "test", True)) if f.is_dir()] or [(root, None)]
    items = [(p, folder.name, is_test) for part, is_test in parts for folder in sorted(part.iterdir()) if folder.is_dir() for p in pictures(folder)]
    if not items:
        rafd = re.compile(r"rafd(\d+)_(\d+)_.*_([a-z]+)_(frontal|left|right)$", re.I)
        named = [(p, rafd.match(p.stem)) for p in pictures(root)]
        # 45, 90, 135 degrees: three of the five angles, as the paper; every tenth person is held out
        items = [(p, m[3].lower(), int(m[2]) % 10 == 0) for p, m in named if m and m[1] in ("045", "090", "135")]
    if not items:
        n = sum(1 for p in root.rglob("*") if p.suffix.lower() in common.IMAGE_FILES)
        raise UserError(f"{root}: found {n} pictures, but neither list_attr_celeba.txt (CelebA) nor folders of pictures named after their "
                        f"class (RaFD: {root / 'train' / 'angry'}/*.jpg); point --data at the folder that holds them")
    names = class_names(cfg, sorted({name for _, name, _ in items}))
    items = [item for item in items if item[1] in names]
    if len(names) < 2:
        raise UserError(f"{root}: only one class, {names[0]}; expected at least two folders of pictures")
    if items[0][2] is None:                                            # no test folder: every tenth of each class
        items = [(p, name, k % 10 == 9) for name in names for k, (p, _, _) in enumerate([i for i in items if i[1] == name])]
    labels = [[float(name == other) for other in names] for _, name, _ in items]
    return dict(images=[p for p, _, _ in items], labels=labels, test=[bool(t) for _, _, t in items], bad=[], names=names, exclusive=True)


def photographs(cfg, root, test):
    """The training or test part of a real data set, decoded once: central square, resized."""
    found = scan(dataclasses.replace(cfg, data=(root,)))
    common.report_bad(found["bad"], len(found["images"]) + len(found["bad"]), cfg.skip_bad)
    mine = [k for k, is_test in enumerate(found["test"]) if is_test == test]
    images, S = [found["images"][k] for k in mine], cfg.image_size

    def decode(k):
        return np.asarray(common.square(common.open_image(images[k]), S)).transpose(2, 0, 1)

    bank, good = common.decoded_bank(cfg, images, (3, S, S), decode)
    return LabelSet(found["names"], found["exclusive"], bank, torch.tensor([found["labels"][mine[k]] for k in good]))


TRAIN_SEED, TEST_SEED, CLASSIFIER_SEED = 10_000, 20_000, 30_000         # people drawn from other seeds are other people
TEST_PEOPLE = {"attributes": 256, "expressions": 64}


def toy_kinds(cfg):
    return ("attributes", "expressions") if cfg.toy == "both" else (cfg.toy,)


def make_data(cfg, test=False):
    """The training sets, or held-out pictures of other people (test)."""
    if len(cfg.data) > 2:
        raise UserError(f"--data given {len(cfg.data)} times; expected one or two data sets")
    if cfg.data:
        return Faces(cfg, [photographs(cfg, root, test) for root in cfg.data])
    counts = TEST_PEOPLE if test else {"attributes": cfg.people, "expressions": cfg.studio}
    seed = TEST_SEED if test else TRAIN_SEED + 10 * cfg.seed
    return Faces(cfg, [toy_set(cfg, kind, counts[kind], seed + k) for k, kind in enumerate(toy_kinds(cfg))])


# ======================================================================================================== labels

def unified_label(label, d, sizes):
    """[(7)]  c~ = [c_1, ..., c_n, m]:   known part c_d, zeros for the labels that data set d does not know, m one-hot over the sets

    label: [B, n_d] of data set d; sizes: (n_1, ..., n_D). With one data set there is no mask: c~ = c. Returns [B, sum n + D].
    """
    if len(sizes) == 1:
        return label
    parts = [label if k == d else label.new_zeros(len(label), n) for k, n in enumerate(sizes)]
    return torch.cat(parts + [F.one_hot(torch.full((len(label),), d), len(sizes)).to(label)], 1)


def targets(label, names, exclusive):
    """What to paint at test time: [(name, label wanted [B, n], whom it changes [B] bool), ...], one a column of the grid.

    Classes: each in turn. Attributes (authors' code): a hair colour is set and the other hair colours cleared; every other
    attribute is flipped.
    """
    columns = []
    for k, name in enumerate(names):
        wanted = torch.zeros_like(label) if exclusive else label.clone()
        if exclusive or name in HAIR:
            for other in range(len(names)):
                if exclusive or names[other] in HAIR:
                    wanted[:, other] = float(other == k)
        else:
            wanted[:, k] = 1 - wanted[:, k]
        columns.append((name, wanted, (wanted != label).any(1)))
    return columns


def counterfactual(faces, name, on):
    """These toy faces, truly with expression `name`, or with attribute `name` where on [B] is 1 and without it where 0."""
    if name in EXPRESSIONS:
        return faces.express(name)
    yes = toyfaces.with_attribute(faces, name, 1)
    no = yes if name in HAIR else toyfaces.with_attribute(faces, name, 0)
    return yes.where(on > .5, no)


# ====================================================================================================== networks

class Generator(nn.Module):
    """Table 4. Zero padding everywhere, no bias: 8,430,528 parameters for 5 labels.

    forward(x, c): x [B, 3, S, S] in [-1, 1], S a multiple of 4; c [B, n_c] -> [B, 3, S, S] in [-1, 1]. With attention_mask
    the output is M x + (1 - M) C, M [B, 1, S, S] in [0, 1], and with_mask returns M too.
    padding_mode "reflect" is for the experiment of the docstring: it blinds G to its label.
    """

    def __init__(self, n_labels=5, width=64, residual_blocks=6, attention_mask=False, padding_mode="zeros"):
        super().__init__()
        w, act, norm, style = width, nn.ReLU(), "instance-affine", dict(bias=False, padding_mode=padding_mode)
        self.main = nn.Sequential(
            *conv_block(3 + n_labels, w, 7, 1, 3, norm, act, **style),                # w  x S   x S
            *conv_block(w, 2 * w, 4, 2, 1, norm, act, **style),                       # 2w x S/2 x S/2
            *conv_block(2 * w, 4 * w, 4, 2, 1, norm, act, **style),                   # 4w x S/4 x S/4
            *(ResidualBlock(4 * w, norm, act, **style) for _ in range(residual_blocks)),
            *conv_block(4 * w, 2 * w, 4, 2, 1, norm, act, up=True, bias=False),       # 2w x S/2 x S/2
            *conv_block(2 * w, w, 4, 2, 1, norm, act, up=True, bias=False),           # w  x S   x S
            nn.Conv2d(w, 3 + attention_mask, 7, 1, 3, **style))                       # C, and M as a fourth channel

    def forward(self, x, c, with_mask=False):
        planes = c[:, :, None, None].expand(-1, -1, *x.shape[2:])
        out = self.main(torch.cat([x, planes], 1))
        C, M = torch.tanh(out[:, :3]), torch.sigmoid(out[:, 3:])
        if M.shape[1]:
            C = M * x + (1 - M) * C
        return (C, M) if with_mask else C


class Discriminator(PatchGAN):
    """Table 5: one trunk, no norm, slope 0.01, channels doubling; head D_src [B, 1, h, h] of scores, head D_cls [B, n] of logits.

    44,762,048 parameters for 5 labels at 128 px. h = S / 2^layers: 2 x 2 scores at 128 px, and one score sees 318 px, more
    than the picture: a PatchGAN in name.
    """

    def __init__(self, n_labels=5, image_size=128, width=64, layers=6):
        widths = [width * 2 ** k for k in range(layers)]
        super().__init__(3, widths, (2,) * layers, slope=.01, head_kernel=3, head_bias=False)
        self.cls = nn.Conv2d(widths[-1], n_labels, image_size // 2 ** layers, bias=False)

    def forward(self, x):
        h = self.trunk(x)
        return self.head(h), self.cls(h).flatten(1)


def authors_G(state):
    """The authors' state_dict of G -> ours. Running statistics of the instance norms are theirs alone, and unused."""
    state = {k.removeprefix("module."): v for k, v in state.items()}
    return {re.sub(r"^main\.(\d+)\.main\.", r"main.\1.body.", k): v for k, v in state.items() if not re.search(r"running_|num_batches", k)}


def authors_D(state):
    rename = {"main.": "trunk.", "conv1.": "head.", "conv2.": "cls."}
    state = {k.removeprefix("module."): v for k, v in state.items()}
    return {next((ours + k[len(theirs):] for theirs, ours in rename.items() if k.startswith(theirs)), k): v for k, v in state.items()}


# ======================================================================================================== losses
# || . ||_1 is the mean absolute value over batch, channels and pixels of pictures in [-1, 1], as in the authors' code: the
# weights make sense with it only. Means over D_src run over the batch and over its scores.

def loss_adv_D(src_real, src_fake):
    """[(8)]  D maximises L_adv = E[D_src(x)] - E[D_src(G(x, c))] - lambda_gp GP;  here -L_adv is minimised

    The difference of means, without GP: see loss_gp. src: unbounded scores of any shape. Scalar.
    """
    return common.wgan_D(src_real, src_fake)


def loss_gp(D, x_real, x_fake):
    """[(8)]  GP = E[(||grad D_src(x^)||_2 - 1)^2],   x^ = a x + (1 - a) G(x, c),   a ~ U(0, 1)

    One a and one norm a picture, over all its pixels. As in the authors' code the gradient is that of the *sum* of the
    patch scores, while (8) takes their mean over the 4 patches at 128 px. Reaches D only. Weight: lambda_gp
    """
    return common.gradient_penalty(lambda x: D(x)[0], x_real, x_fake)


def loss_adv_G(src_fake):
    """[(8)]  the part of L_adv that depends on G: -E[D_src(G(x, c))], minimised by G."""
    return common.wgan_G(src_fake)


def classification(logits, label, exclusive):
    """-log D_cls(label | x): softmax for exclusive classes; for attributes one sigmoid each, *summed*, mean over the batch."""
    if exclusive:
        return F.cross_entropy(logits, label.argmax(1))
    return F.binary_cross_entropy_with_logits(logits, label, reduction="sum") / len(label)


def loss_cls_real(cls_real, label_org, exclusive):
    """[(2)]  L_cls^r = E[-log D_cls(c' | x)]

    D_cls learns to read the labels of *real* pictures; it never sees a generated one in D's step, so G cannot teach it a
    private code. cls_real: [B, n] logits; label_org: [B, n]. Weight: lambda_cls
    """
    return classification(cls_real, label_org, exclusive)


def loss_cls_fake(cls_fake, label_trg, exclusive):
    """[(3)]  L_cls^f = E[-log D_cls(c | G(x, c))]

    G must paint so that D_cls reads the label it was given. Only G learns from it. Weight: lambda_cls
    """
    return classification(cls_fake, label_trg, exclusive)


def loss_rec(x_real, x_rec):
    """[(4)]  L_rec = E[|| x - G(G(x, c), c') ||_1]

    Back under the source label c' the picture must be the source again: what c does not change has to survive. With two
    data sets c' is what the picture's own set knows, zeros elsewhere: mask and zeros in (7) say so. Weight: lambda_rec
    """
    return (x_real - x_rec).abs().mean()


def loss_triple(G, x_fake, c_n, x_n):
    """[triple]  L_triple = || G(G(x, c), c_n) - G(x, c_n) ||_1

    Two edits must end where the second alone ends. Not this paper's: GANnotation's, in the form its authors gave for
    StarGAN, with a third label from a second permutation. x_n = G(x, c_n). Weight: lambda_triple
    """
    return (G(x_fake, c_n) - x_n).abs().mean()


def loss_mask(M):
    """[mask]  E[1 - M]

    The area that is repainted, M = 1 where the input is kept. Not this paper's: GANimation penalises its mask too (there
    against M = 1 everywhere; with labels instead of a free target the class loss already sees to that). Weight: lambda_mask
    """
    return (1 - M).mean()


# ====================================================================================================== training

def build(cfg, sizes):
    """G and D for data sets with sizes[d] labels. Raises UserError for sizes that do not fit together."""
    side = 2 ** cfg.d_layers
    at_least_1 = [(name, getattr(cfg, name.replace("-", "_")) > 0, "at least 1") for name in ("n-critic", "width", "d-width", "d-layers")]
    for name, fits, expected in (*at_least_1, ("betas", len(cfg.betas) == 2, "two"),
                                 ("image-size", cfg.image_size % side == 0 and cfg.image_size >= 2 * side,
                                  f"a multiple of {side}, at least {2 * side}, or other --d-layers")):
        if not fits:
            raise UserError(f"--{name} {getattr(cfg, name.replace('-', '_'))}: expected {expected}")
    n_c = sum(sizes) + (len(sizes) if len(sizes) > 1 else 0)
    # Framework initialisation, as in the authors' code; D's labels do not include the mask
    return Generator(n_c, cfg.width, cfg.residual_blocks, cfg.attention_mask), Discriminator(sum(sizes), cfg.image_size, cfg.d_width, cfg.d_layers)


def train(cfg):
    """The paper's training, step by step. Writes cfg.run; returns G (on cfg.device)."""
    torch.manual_seed(cfg.seed)
    if not cfg.data and (cfg.people < 1 or cfg.studio < 1):
        raise UserError(f"--people {cfg.people} --studio {cfg.studio}: expected at least 1")
    data, held_out = make_data(cfg), make_data(cfg, test=True)
    G, D = build(cfg, data.sizes)
    if cfg.weights:
        load_networks(cfg.weights, G, D)
    say(f"{len(data)} pictures, labels {' | '.join(' '.join(s.names) for s in data.sets)}; "
        f"G {common.n_parameters(G):,} parameters, D {common.n_parameters(D):,}")
    G, D = prepare(G, cfg), prepare(D, cfg)
    opt_G = torch.optim.Adam(G.parameters(), cfg.lr, cfg.betas, fused=True)
    opt_D = torch.optim.Adam(D.parameters(), cfg.lr, cfg.betas, fused=True)
    run = Run(cfg, {"G": G, "D": D}, {"G": opt_G, "D": opt_D}, data, HEALTH, about=[[list(s.names), s.exclusive] for s in data.sets])

    L = {}
    for step, batches in run.batches(cfg.batch_size):
        run.learning_rate(cfg.lr * common.linear_decay(step, cfg.steps, cfg.decay_from))
        for d, (x_real, label_org) in enumerate(batches):                                # one data set after the other: section 3.2
            exclusive, known = data.sets[d].exclusive, slice(sum(data.sizes[:d]), sum(data.sizes[:d + 1]))
            label_trg = label_org[torch.randperm(len(label_org))]                        # labels that occur: never two hair colours
            c_org, c_trg = unified_label(label_org, d, data.sizes), unified_label(label_trg, d, data.sizes)       # (7)

            # 1. D: real above generated, labels of real pictures ------------------------------------- (5)
            with torch.no_grad():
                x_fake = G(x_real, c_trg)
            src, cls = D(torch.cat([x_real, x_fake]))                                    # D has no norm: one pass for both
            src_real, src_fake = src.chunk(2)
            L["D"] = loss_adv_D(src_real, src_fake)                                                               # (8)
            L["gp"] = cfg.lambda_gp * loss_gp(D, x_real, x_fake)                                                  # (8)
            L["cls_real"] = cfg.lambda_cls * loss_cls_real(cls[:len(x_real), known], label_org, exclusive)        # (2)
            run.update("D", L["D"] + L["gp"] + L["cls_real"])

            # 2. G, every n_critic steps of D: fool it, show the label, find the way back --------------- (6)
            if step % cfg.n_critic == 0:
                with frozen(D):
                    x_fake, M = G(x_real, c_trg, True)
                    src_fake, cls_fake = D(x_fake)
                    G_losses = {"adv": loss_adv_G(src_fake),                                                      # (8)
                                "cls_fake": cfg.lambda_cls * loss_cls_fake(cls_fake[:, known], label_trg, exclusive),      # (3)
                                "rec": cfg.lambda_rec * loss_rec(x_real, G(x_fake, c_org))}                       # (4)
                    if cfg.lambda_triple:
                        c_n = unified_label(label_org[torch.randperm(len(label_org))], d, data.sizes)
                        G_losses["triple"] = cfg.lambda_triple * loss_triple(G, x_fake, c_n, G(x_real, c_n))      # [triple]
                    if cfg.attention_mask:
                        G_losses["mask"] = cfg.lambda_mask * loss_mask(M)                                         # [mask]
                    run.update("G", sum(G_losses.values()))
                L.update(G_losses)

        # 3. What happened ----------------------------------------------------------------------------
        if run.logs(step):
            run.log(step, **report(G, D, held_out, cfg, L["gp"]), **{f"L_{name}": value.detach() for name, value in L.items()})
        if run.samples(step):
            run.sample(step, sample_grid(G, held_out))
    return G


@torch.no_grad()
def report(G, D, data, cfg, gp, n=16):
    """The health word, and the numbers behind it, on 16 held-out pictures of the first set (in units of the full range, 0 ... 1).

    change: |G(x, c) - x|; spread: how much the outputs under different labels differ; grad_norm_off: root mean square of
    ||grad D|| - 1 in the last batch. Toy faces: error and baseline, L1 to the true counterfactual of G and of a copy.
    """
    s = data.sets[0]
    pick = torch.linspace(0, len(s.labels) - 1, n).round().long()      # class sets lie class by class: some of each
    x, label = draw(s.bank, pick, cfg.device), s.labels[pick].to(cfg.device)
    outs = [G(x, unified_label(wanted, 0, data.sizes)) for _, wanted, _ in targets(label, s.names, s.exclusive)]
    change = sum((out - x).abs().mean() for out in outs) / len(outs) / 2
    spread = sum((out - outs[0]).abs().mean() for out in outs[1:]) / max(1, len(outs) - 1) / 2
    real, fake = D(x)[0], D(outs[0])[0]
    off = (gp / max(cfg.lambda_gp, 1e-9)).sqrt()
    word = "ok"
    if change < .005:
        word = "copying"
    elif spread < .1 * change:
        word = "label-ignored"
    elif off > .5:
        word = "gp-off"
    elif real.min() > fake.max() and real.mean() - fake.mean() > 10:
        word = "D-won"
    values = dict(health=word, change=change, spread=spread, grad_norm_off=off)
    if s.faces is not None:
        errors = [errors_to_truth(x, out, toyfaces.render(counterfactual(s.faces[pick], name, wanted[:, k]), cfg.image_size), changes)
                  for k, ((name, wanted, changes), out) in enumerate(zip(targets(label, s.names, s.exclusive), outs, strict=True)) if changes.any()]
        values |= dict(error=sum(e for e, _ in errors) / len(errors), baseline=sum(b for _, b in errors) / len(errors))
    return values


def errors_to_truth(x, out, truth, rows):
    """Mean L1 of `out` and of the input `x` to the truth, over the pictures that change; 0 ... 1."""
    return [(picture - truth)[rows].abs().mean() / 2 for picture in (out, x)]


@torch.no_grad()
def sample_grid(G, data, n=6):
    """Held-out pictures of the first set: input, each target (below toy faces' results: the truth), reconstruction."""
    cfg, s = data.cfg, data.sets[0]
    pick = torch.linspace(0, len(s.labels) - 1, n).round().long()
    x, label = draw(s.bank, pick, cfg.device), s.labels[pick].to(cfg.device)
    columns, first = {"input": x}, None
    for d, other in enumerate(data.sets):                              # joint: the first set's pictures, under both sets' labels
        own = label if d == 0 else torch.zeros(n, len(other.names), device=cfg.device)
        for k, (name, wanted, _) in enumerate(targets(own, other.names, other.exclusive)):
            columns[name] = G(x, unified_label(wanted, d, data.sizes))
            first = columns[name] if first is None else first
            if s.faces is not None:
                truth = toyfaces.render(counterfactual(s.faces[pick], name, wanted[:, k]), cfg.image_size)
                columns[name] = torch.stack([columns[name], truth], 1).flatten(0, 1)
    columns["back"] = G(first, unified_label(label, 0, data.sizes))
    if s.faces is not None:                                            # two rows a face: results, and the truth below
        blank = torch.ones_like(x)
        columns |= {name: torch.stack([columns[name], blank], 1).flatten(0, 1) for name in ("input", "back")}
    return grid(list(columns.values()), list(columns), scale=max(1, 128 // cfg.image_size))


# ==================================================================================================== evaluation

def load_networks(path, G, D=None):
    """Fill G (and D) from a checkpoint of ours, or from the authors' <n>-G.ckpt (with <n>-D.ckpt beside it). True if D was filled."""
    saved = common.load_checkpoint(path)
    if "nets" in saved:
        if saved.get("paper") != Path(__file__).stem:
            raise UserError(f"{path}: a checkpoint of {saved.get('paper')}, not of stargan")
        common.load_weights(G, saved["nets"].get("G", {}), path)
        if D is not None:
            common.load_weights(D, saved["nets"].get("D", {}), path)
        return D is not None
    common.load_weights(G, authors_G(saved), path)
    beside = Path(re.sub(r"G(\.\w+)$", r"D\1", str(path)))
    if D is None or beside == Path(path) or not beside.exists():
        return False
    common.load_weights(D, authors_D(common.load_checkpoint(beside)), beside)
    return True


def trained(cfg):
    """(G, D or None, names of each set's labels, exclusive?) of cfg.run or cfg.weights. cfg takes over sizes and kind of data."""
    path = cfg.weights or Path(cfg.run) / "last.pt"
    saved = common.load_checkpoint(path)
    if "nets" in saved and saved.get("paper") == Path(__file__).stem:
        config = saved["config"]
        for name in ("image_size", "width", "residual_blocks", "d_width", "d_layers", "attention_mask", "attributes", "classes", "toy", "pose"):
            setattr(cfg, name, tuple(config[name]) if isinstance(config[name], list) else config[name])
        cfg.data = cfg.data or tuple(config["data"])
        sets = [(tuple(names), exclusive) for names, exclusive in saved["about"]]
    elif "main.0.weight" in (saved := {k.removeprefix("module."): v for k, v in saved.items()}):
        n_c = saved["main.0.weight"].shape[1] - 3
        celeba, rafd = (tuple(Config.attributes), False), (EXPRESSIONS, True)
        sets = {8: [rafd], 15: [celeba, rafd]}.get(n_c, [celeba])      # authors' joint model: 5 + 8 labels and a mask of 2
        cfg.width, cfg.attention_mask = saved["main.0.weight"].shape[0], False
        cfg.residual_blocks = sum(bool(re.fullmatch(r"main\.\d+\.main\.0\.weight", k)) for k in saved)
        cfg.image_size, cfg.d_width, cfg.d_layers = 128, 64, 6         # their default; a G of 256 px looks the same
    else:
        sets = [(tuple(cfg.attributes), False)]
    G, D = build(cfg, [len(names) for names, _ in sets])
    has_D = load_networks(path, G, D)
    return prepare(G, cfg).eval(), prepare(D, cfg).eval() if has_D else None, sets


def classifier(cfg, d, s):
    """A ResNet-18 that reads the labels of data set d, and measures; the paper's Table 3. Returns (net, its error on `s`).

    Toy faces: trained on people of its own. Photographs: on the training part, as in the paper. Cached; minutes on two cores.
    """
    net = torchvision.models.resnet18(num_classes=len(s.names))
    if cfg.data:
        source = photographs(cfg, cfg.data[d], test=False)
        key = (str(Path(cfg.data[d]).resolve()), len(source.labels))
    else:
        kind = toy_kinds(cfg)[d]
        source = toy_set(cfg, kind, CLASSIFIER_PEOPLE[kind], CLASSIFIER_SEED)
        key = common.hashlib.sha256(source.bank.cpu().numpy()).hexdigest()
    path = Path(cfg.cache) / f"stargan-classifier-{common.hashlib.sha256(repr((key, s.names, cfg.image_size, CLASSIFIER_STEPS)).encode()).hexdigest()[:16]}.pt"
    if path.exists():
        net.load_state_dict(common.load_checkpoint(path)["net"])
        net.to(cfg.device)
    else:
        say(f"training a classifier of {' '.join(s.names)} (once, on {len(source.labels)} pictures) ...")
        train_classifier(net, cfg, source)
        common.save_checkpoint({"net": net.state_dict()}, path)
    net.eval().requires_grad_(False)
    wrong = [mistakes(net(draw(s.bank, k, cfg.device)), s.labels[k].to(cfg.device), s.exclusive) for k in torch.arange(len(s.labels)).split(64)]
    return net, torch.cat(wrong).mean().item()


CLASSIFIER_STEPS, CLASSIFIER_PEOPLE = 800, {"attributes": 4000, "expressions": 400}


@torch.enable_grad()
def train_classifier(net, cfg, source):
    """Adam, one cycle, flips and a little noise; softmax or summed sigmoids."""
    g = torch.Generator().manual_seed(CLASSIFIER_SEED)
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(CLASSIFIER_SEED)
        net.apply(lambda m: m.reset_parameters() if hasattr(m, "reset_parameters") else None)
        net.to(cfg.device).train()
        optimiser = torch.optim.AdamW(net.parameters(), weight_decay=1e-2)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 2e-3, total_steps=CLASSIFIER_STEPS)
        for _ in range(CLASSIFIER_STEPS):
            k = torch.randint(len(source.labels), (48,), generator=g)
            x, label = draw(source.bank, k, cfg.device), source.labels[k].to(cfg.device)
            x = torch.where(torch.rand(48, 1, 1, 1, generator=g).to(x.device) < .5, x.flip(3), x) + .02 * torch.randn(x.shape, generator=g).to(x.device)
            with torch.autocast(torch.device(cfg.device).type, torch.bfloat16, enabled=bool(cfg.amp)):
                logits = net(x)
            optimiser.zero_grad()
            classification(logits.float(), label, source.exclusive).backward()
            optimiser.step()
            schedule.step()


def mistakes(logits, label, exclusive):
    """[B, 1] (classes) or [B, n] (attributes), 1 where the classifier reads something else than `label`."""
    if exclusive:
        return (logits.argmax(1) != label.argmax(1)).float()[:, None]
    return ((logits > 0) != (label > .5)).float()


@torch.no_grad()
def measure(cfg, G, sets, wrong_mask=False):
    """Rows of metrics over held-out pictures, one a target, and a summary. See `evaluate`.

    Each set's pictures are translated under its own labels; with two sets, the first set's also under the second's (the
    authors' joint test), there with another set's mask if wrong_mask. Expressions of the studio start from neutral (Table 3).
    """
    data = make_data(cfg, test=True)
    sizes = [len(names) for names, _ in sets]
    toy = not cfg.data
    for (names, _), s in zip(sets, data.sets, strict=True):
        if names != s.names:
            raise UserError(f"trained on {' '.join(names)}, --data has {' '.join(s.names)}")
    judge = toyfaces.judge("identity", cfg.image_size, 2, cfg.device, cfg.cache) if toy else (None, None)
    readers = [classifier(cfg, d, s) for d, s in enumerate(data.sets)]
    rows, summary, notes = {}, {}, []
    for source, d in [(k, k) for k in range(len(sets))] + ([(0, 1)] if len(sets) > 1 else []):
        s, names, exclusive = data.sets[source], sets[d][0], sets[d][1]
        start = (s.labels[:, names.index("neutral")] > 0).nonzero()[:, 0] if source == d and exclusive and "neutral" in names else torch.arange(len(s.labels))
        sums = common.defaultdict(lambda: common.defaultdict(float))
        prefix = "" if source == d else "across: "
        for index in start.split(32):
            x, label = draw(s.bank, index, cfg.device), s.labels[index].to(cfg.device)
            faces = s.faces[index.to(cfg.device)] if toy else None
            own = label if source == d else torch.zeros(len(x), len(names), device=x.device)
            for k, (name, wanted, changes) in enumerate(targets(own, names, exclusive)):
                if not changes.any():
                    continue
                c = unified_label(wanted, d, sizes)
                if wrong_mask and source != d:
                    c[:, -len(sizes):] = c[:, -len(sizes):].flip(1)
                out = G(x, c)
                truth = toyfaces.render(counterfactual(faces, name, wanted[:, k]), cfg.image_size) if toy else None
                for kind, picture in (("", out), ("copy: ", x)) + ((("truth: ", truth),) if toy else ()):
                    wrong = mistakes(readers[d][0](picture), wanted, exclusive)
                    values = {"error": wrong[:, 0 if exclusive else k]}
                    if not exclusive:
                        others = [j for j, other in enumerate(names) if j != k and not (name in HAIR and other in HAIR)]
                        values["others"] = wrong[:, others].mean(1)
                    if toy:
                        kept = ((truth - x).abs().amax(1, keepdim=True) < .02).float()
                        values |= {"L1": (picture - truth).abs().flatten(1).mean(1) / 2, "SSIM": ssim(picture, truth),
                                   "identity": (judge[0](picture) * judge[0](x)).sum(1),
                                   "L1 outside": ((picture - x).abs() * kept).flatten(1).sum(1) / 2 / (3 * kept.flatten(1).sum(1)).clamp(min=1)}
                    elif kind == "":
                        values["L1 to input"] = (picture - x).abs().flatten(1).mean(1) / 2
                        values["back"] = (G(picture, unified_label(label, source, sizes)) - x).abs().flatten(1).mean(1) / 2
                    for what, value in values.items():
                        sums[kind + name][what] += value[changes].sum().item()
                    sums[kind + name]["n"] += changes.sum().item()
        table = {name: {k: v / value["n"] for k, v in value.items() if k != "n"} for name, value in sums.items()}
        for kind, title in (("", "all targets"), ("copy: ", "copy the input"), ("truth: ", "the true pictures")):
            mine = [table[kind + name] for name in names if kind + name in table]
            if mine:
                mean = {k: sum(row[k] for row in mine) / len(mine) for k in mine[0]}
                if not kind:
                    rows |= {prefix + name: table[name] for name in names if name in table}
                rows[prefix + title + ("" if len(sets) == 1 or prefix else f" {d + 1}")] = mean
                key = prefix + ("" if len(sets) == 1 or prefix else f"set {d + 1}: ") + {"": "", "copy: ": "copy ", "truth: ": "truth "}[kind]
                summary |= {key + k: v for k, v in mean.items()}
        if source == d:
            summary[("" if len(sets) == 1 else f"set {d + 1}: ") + "real error"] = readers[d][1]
    k = sum(sizes)
    notes = (f"error = share of translations that an independent ResNet-18 reads wrongly (real pictures: "
             f"{', '.join(f'{100 * e:.2f} %' for _, e in readers)}); one G of {common.n_parameters(G):,} parameters for {k} labels, where translators "
             f"of pairs would be {k * (k - 1)}; L1 in 0 ... 1")
    if toy:
        notes += f"; identity = cosine to the input, by a recogniser with equal error rate {judge[1]:.3f}"
    return rows, summary, notes


def ssim(a, b):
    return piq.ssim((a / 2 + .5).clamp(0, 1), (b / 2 + .5).clamp(0, 1), data_range=1., reduction="none")


def evaluate(cfg):
    """The paper's Table 3 protocol, and distances to the true counterfactual, on held-out pictures. Writes evaluation.json.

    error: share of translations whose new label the classifier does not read; others: whose other labels it reads wrongly;
    L1, SSIM: to the true counterfactual; identity: cosine to the input; L1 outside: change where the truth does not change.
    Photographs have no truth: L1 to the input, and of the way back.
    """
    G, _, sets = trained(cfg)
    rows, summary, notes = measure(cfg, G, sets)
    result = {"command": common.command(), "hardware": common.hardware(cfg), "commit": common.commit(), "notes": notes, "rows": rows, "values": summary}
    common.write_json(Path(cfg.run) / "evaluation.json", result)
    return result


@torch.no_grad()
def progressive(cfg, G, sets, passes=5):
    """Five random edits in a row, against the last label asked for at once: mean L1 to the truth, {"direct", "pass 5", "excess"}."""
    data = make_data(cfg, test=True)
    s, g = data.sets[0], torch.Generator().manual_seed(3)
    total = common.defaultdict(float)
    for index in torch.arange(len(s.labels)).split(32):
        x, label = draw(s.bank, index, cfg.device), s.labels[index].to(cfg.device)
        faces, chain = s.faces[index.to(cfg.device)], x
        for _ in range(passes):
            k = torch.randint(len(s.names), (), generator=g).item()
            name, label, _ = targets(label, s.names, s.exclusive)[k]
            faces = counterfactual(faces, name, label[:, k])
            chain = G(chain, unified_label(label, 0, data.sizes))
        truth, direct = toyfaces.render(faces, cfg.image_size), G(x, unified_label(label, 0, data.sizes))
        total["direct"] += (direct - truth).abs().mean().item() / 2 * len(x) / len(s.labels)
        total[f"pass {passes}"] += (chain - truth).abs().mean().item() / 2 * len(x) / len(s.labels)
    return dict(total) | {"excess": total[f"pass {passes}"] - total["direct"]}


# ====================================================================================================== ablation

SEEDS = (0, 1, 2)
OTHERS = tuple(name for name in EXPRESSIONS if name != "neutral")
# The trainings of each part, all on toy faces; a training that two parts need is done once.
PARTS = {
    "joint": {"expressions alone": dict(toy="expressions"), "joint": dict(toy="both")},
    "pairwise": {"expressions alone": dict(toy="expressions"), **{f"pair neutral-{e}": dict(toy="expressions", classes=("neutral", e)) for e in OTHERS}},
    "losses": {"attributes": {}, "without reconstruction": dict(lambda_rec=0.), "without classification": dict(lambda_cls=0.)},
    "triple": {"attributes": {}, "with triple": dict(lambda_triple=10.)},
}


def _ablation_run(cfg):
    """One training of the ablation and its measures (in a process of its own on a CPU)."""
    G = train(cfg)
    sets = [(s.names, s.exclusive) for s in make_data(cfg, test=True).sets]
    out = measure(cfg, G, sets)[1]
    if cfg.toy == "expressions" and not cfg.classes:                   # on the pictures of the other set, which it has never seen
        out |= {f"across: {k}": v for k, v in across(cfg, G).items()}
    if cfg.toy == "both":
        out |= {f"wrong mask: {k}": v for k, v in measure(cfg, G, sets, wrong_mask=True)[1].items() if k.startswith("across")}
    if cfg.toy == "attributes":
        out |= progressive(cfg, G, sets)
    return out


@torch.no_grad()
def across(cfg, G):
    """Expressions painted by a G that knows only the studio, on pictures in the wild: error of the classifier, L1 to the truth."""
    wild, studio = (toy_set(cfg, kind, TEST_PEOPLE[kind], TEST_SEED) for kind in ("attributes", "expressions"))
    reader, total = classifier(cfg, 0, studio)[0], common.defaultdict(float)
    for index in torch.arange(len(wild.labels)).split(32):
        x, faces = draw(wild.bank, index, cfg.device), wild.faces[index.to(cfg.device)]
        for name, wanted, _ in targets(torch.zeros(len(x), len(EXPRESSIONS), device=x.device), EXPRESSIONS, True):
            out, share = G(x, wanted), len(x) / len(wild.labels) / len(EXPRESSIONS)
            total["error"] += mistakes(reader(out), wanted, True).mean().item() * share
            total["L1"] += (out - toyfaces.render(faces.express(name), cfg.image_size)).abs().mean().item() / 2 * share
    return total


def ablate(cfg):
    """The paper's claims, on toy faces, three seeds; --part picks one. The thresholds stand here, and were set before running.

    joint     expressions on pictures of the set that has none, trained on both sets against the studio alone, and with the
              wrong mask. reproduced if joint errs less in every seed, and the wrong mask at least doubles joint's error.
    pairwise  one G for eight expressions against a G for each pair, with as many pictures in all. reproduced if the one errs
              at most as often in every seed.
    losses    without reconstruction: the change outside what should change at least 1.5 times as large; without
              classification: at least half of the labels not seen.
    triple    five edits in a row: excess = error after them minus error of the direct edit. reproduced if smaller with the
              triple loss in every seed, and the direct error not worse by 10 %.
    """
    if cfg.data:
        raise UserError("--ablate measures against the truth, which only toy faces have; leave --data out")
    folder = Path(cfg.run) / "ablation"
    if cfg.fresh:
        shutil.rmtree(folder, ignore_errors=True)
    parts = list(PARTS) if cfg.part == "all" else [cfg.part]
    runs = {name: change for part in parts for name, change in PARTS[part].items()}
    jobs = {(name, seed): dataclasses.replace(cfg, seed=seed, fresh=False, part="all", run=str(folder / f"{name.replace(' ', '-')}-{seed}"),
                                              **({"steps": cfg.steps // len(OTHERS)} if name.startswith("pair") else {}), **change)
            for seed in SEEDS for name, change in runs.items()}
    for one in jobs.values():
        last = Path(one.run) / "last.pt"
        if last.exists() and (steps := common.load_checkpoint(last)["config"]["steps"]) != one.steps:
            raise UserError(f"{one.run} was trained for {steps} steps, now {one.steps}; give the same --steps, another --run folder, or --fresh")
    for change in {tuple(sorted(change.items())): change for change in runs.values() if change.keys() <= {"toy", "classes"}}.values():
        one = dataclasses.replace(cfg, **change)                       # made before the processes, which would all make them
        for d, s in enumerate(make_data(one, test=True).sets):
            classifier(one, d, s)
    toyfaces.judge("identity", cfg.image_size, 2, cfg.device, cfg.cache)
    results = dict(zip(jobs, common.in_parallel(_ablation_run, list(jobs.values()), cfg.device), strict=True))

    def values(name, key):
        return np.array([results[name, seed][key] for seed in SEEDS])

    passed, rows, claims = {}, {}, []

    def row(title, name, **keys):
        for what, f in (("mean", np.mean), ("std", lambda v: np.std(v, ddof=1))):
            rows[f"{title}, {what}"] = {column: float(f(values(name, key))) for column, key in keys.items()}

    def claim(what, without, with_):
        claims.append({"what": what, "without": without, "with": with_})

    def text(v, percent=True):
        return f"{100 * v.mean():.1f} ± {100 * v.std(ddof=1):.1f} %" if percent else f"{v.mean():.4f} ± {v.std(ddof=1):.4f}"

    if "joint" in parts:
        alone, joint, wrong = values("expressions alone", "across: error"), values("joint", "across: error"), values("joint", "wrong mask: across: error")
        row("studio alone", "expressions alone", error="across: error", L1="across: L1")
        row("joint", "joint", error="across: error", L1="across: L1")
        row("joint, wrong mask", "joint", error="wrong mask: across: error", L1="wrong mask: across: L1")
        passed |= {"joint: errs less than alone in every seed": (joint < alone).all(),
                   "joint: the wrong mask at least doubles the error": (wrong >= 2 * joint).all()}
        claim("expressions misread, painted on the set without expression labels: trained on one set, on both", text(alone), text(joint))
    if "pairwise" in parts:
        pairs = np.mean([values(f"pair neutral-{e}", "error") for e in OTHERS], axis=0)
        one = values("expressions alone", "error")
        rows |= {"one for all, mean": {"error": float(one.mean())}, "one for all, std": {"error": float(one.std(ddof=1))},
                 "one for each pair, mean": {"error": float(pairs.mean())}, "one for each pair, std": {"error": float(pairs.std(ddof=1))}}
        passed["pairwise: one for all errs at most as often in every seed"] = (one <= pairs).all()
        claim("expressions misread (Table 3): seven translators of pairs, one StarGAN; as many pictures in all", text(pairs), text(one))
    if "losses" in parts:
        for name in PARTS["losses"]:
            row(name, name, error="error", others="others", L1="L1", identity="identity", outside="L1 outside")
        passed |= {"losses: without reconstruction the rest changes 1.5 times as much":
                   values("without reconstruction", "L1 outside").mean() >= 1.5 * values("attributes", "L1 outside").mean(),
                   "losses: without classification half of the labels are not seen": (values("without classification", "error") >= .5).all()}
    if "triple" in parts:
        for name in PARTS["triple"]:
            row(name + ", five edits", name, direct="direct", pass5="pass 5", excess="excess")
        without, with_ = values("attributes", "excess"), values("with triple", "excess")
        passed |= {"triple: less excess in every seed": (with_ < without).all(),
                   "triple: direct not worse by 10 %": values("with triple", "direct").mean() <= 1.1 * values("attributes", "direct").mean()}
        claim("L1 error that five edits in a row add: without and with GANnotation's triple loss", text(without, False), text(with_, False))
    verdict = "reproduced" if all(passed.values()) else "partly reproduced" if any(passed.values()) else "not reproduced"
    result = {"command": common.command(), "commit": common.commit(), "hardware": common.hardware(cfg), "torch": torch.__version__, "seeds": SEEDS,
              "steps": cfg.steps, "seconds": sum(common.read_jsonl(Path(one.run) / "metrics.jsonl")[-1]["seconds"] for one in jobs.values()),
              "rows": rows, "criteria": {k: bool(v) for k, v in passed.items()}, "verdict": verdict, "claims": claims,
              "runs": {f"{name}, seed {seed}": values for (name, seed), values in results.items()}}
    common.write_json(Path(cfg.run) / "ablation.json", result)
    print(common.table(result))
    print("; ".join(f"{k}: {'yes' if v else 'no'}" for k, v in passed.items()))


# ===================================================================================================== inference

def infer(cfg, files, target, source, out):
    """FILE...: photos. Writes one grid, <first photo>.png: input, one column a target, and back to the source label.

    Each photo is turned upright, cropped to its central square (a toy face: the whole picture) and resized.
    """
    photos = [common.open_image(file) for file in files]
    G, D, sets = trained(cfg)
    S, sizes = cfg.image_size, [len(names) for names, _ in sets]
    for file, photo in zip(files, photos, strict=True):
        side = min(photo.size)
        print(f"{file}: {photo.width} x {photo.height}, central square of {side} px, resized to {S}")
    x = torch.stack([common.to_tensor(common.square(photo, S)) for photo in photos]).to(cfg.device)
    known = [name for names, _ in sets for name in names]
    for name in (source or []) + [part.removeprefix("not-") for t in target or [] for part in t.split("+")]:
        if name not in known:
            raise UserError(f"{name}: unknown label; this generator knows {', '.join(known)}")
    names, exclusive = sets[0]
    with torch.no_grad():
        if source is not None:
            label = torch.tensor([[float(name in source) for name in names]] * len(x), device=cfg.device)
        elif D is None:
            raise UserError("there is no discriminator beside these weights to read what the photo shows; give --source, e.g. --source " + " ".join(names[-2:]))
        else:                                                          # D_cls learned from real pictures what they show
            logits = D(x)[1][:, :len(names)]
            hair = [k for k, name in enumerate(names) if exclusive or name in HAIR]
            label = (logits > 0).float()
            if hair:
                label[:, hair] = F.one_hot(logits[:, hair].argmax(1), len(hair)).to(label)
        for file, row in zip(files, label, strict=True):
            shown = " ".join(n for n, v in zip(names, row, strict=True) if v) or "none of the labels"
            print(f"{file}: {'given' if source is not None else 'read by D'} as {shown}")
        columns = {"input": x}
        if target:
            wanted = [(t, *wish(t, label, sets)) for t in target]
        else:
            wanted = [(name, w, d) for d, (own, e) in enumerate(sets)
                      for name, w, _ in targets(label if d == 0 else torch.zeros(len(x), len(own), device=x.device), own, e)]
        for name, w, d in wanted:
            columns[name] = G(x, unified_label(w, d, sizes))
        columns["back"] = G(columns[wanted[0][0]], unified_label(label, 0, sizes))
    folder = Path(out or Path(cfg.run) / "inferred")
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{Path(files[0]).stem}.png"
    grid(list(columns.values()), list(columns), max(1, 128 // S)).save(path)
    print(path)


def wish(text, label, sets):
    """"Blond_Hair+not-Young" -> (label wanted, data set). A hair colour or a class clears its rivals. label: [B, n_1], of the first set."""
    parts = text.split("+")
    homes = {d for part in parts for d, (names, _) in enumerate(sets) if part.removeprefix("not-") in names}
    if len(homes) > 1:
        raise UserError(f"--target {text}: labels of two data sets cannot be asked for at once; apply one to the result of the other")
    d = homes.pop()
    names, exclusive = sets[d]
    wanted = label.clone() if d == 0 else torch.zeros(len(label), len(names), device=label.device)
    for part in parts:
        name, on = part.removeprefix("not-"), not part.startswith("not-")
        rivals = [k for k, other in enumerate(names) if exclusive or (name in HAIR and other in HAIR)] if on else []
        wanted[:, rivals] = 0.
        wanted[:, names.index(name)] = float(on)
    return wanted, d


if __name__ == "__main__":
    common.cli(__name__)
