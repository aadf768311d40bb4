"""StarGAN: one generator for all domains, and for several data sets.

Yunjey Choi, Minje Choi, Munyoung Kim, Jung-Woo Ha, Sunghun Kim, Jaegul Choo. "StarGAN: Unified Generative Adversarial
Networks for Multi-Domain Image-to-Image Translation", CVPR 2018, arXiv 1711.09020. Authors' code: yunjey/stargan.

The idea. A domain is a label: black hair, young, happy. One generator takes the picture x and the label c wanted, spread
over the plane as extra channels, and paints y = G(x, c). One discriminator has two heads on one trunk: D_src says real or
generated, D_cls says which label; D_cls learns from real pictures and then tells G whether its label can be seen. Going
back to the source label must give x again (cycle). A mask vector lets one G learn from data sets that do not know each
other's labels.

The claim. Table 3: expressions that one StarGAN paints are misread less often by an independent classifier (2.12 %) than
those of translators trained for pairs of domains, with the parameters of one model (53.2 M, G and D). And: trained on two
data sets together it paints better expressions on the set that has none than trained on one; with the wrong mask vector the
transfer fails, so the mask is used. `--ablate` tests all of it on faces whose true counterfactual is known.

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
    python stargan.py --infer photo.jpg --target Blond_Hair  (also: --target not-Young, --source Black_Hair Young)

Data sets: CelebA as distributed (img_align_celeba/ or images/ with list_attr_celeba.txt, also its .csv form, beside it or
in Anno/); RaFD or anything else in class folders (<class>/*.jpg, or train/<class>/*.jpg with test/<class>/*.jpg), or flat
with names like Rafd090_01_Caucasian_female_angry_frontal.jpg (as we remember RaFD's; the paper uses three camera angles,
here 45, 90 and 135). Pictures are cropped to the central square, then resized: 178 of CelebA's 178 x 218; RaFD must be
cropped to faces before. RaFD alone takes fewer steps: the paper's 200 epochs are --steps 54270.

Where paper and authors' code differ. Learning rate: their code subtracts 1e-4 / 100,000 once every 1000 iterations, so it
ends at 9.99e-5 and not at 0 (the step lacks a factor of 1000); here it really decays to 0, as in the paper;
`--decay-from 1` gives theirs. Length: 200,000 iterations in the code, 20 epochs of CelebA = 250,750 in the paper. Test
split: their `(i + 1) < 2000` holds out 1999, whatever the size of the set, so 2300 pictures leave 301 to train on; here
2000 of the same shuffle, at most a tenth. Class loss: a sum over the attributes, divided by the batch (code). Instance
norm: running statistics off; theirs are collected and never used, and break the network when somebody calls eval().
Equation (8) puts the gradient penalty into G's objective too; it does not depend on G's parameters in their code, nor here.
Two hair colours: targets are the batch's own labels in another order, so they hold two colours only where the data do, as in
some of CelebA's pictures; those pictures are left out here.

Why D five times before G once? A Wasserstein critic is only worth following near its optimum; the penalty makes training
it that far safe. Why a mere mean, and a minus? W = sup_f E[f(x)] - E[f(G(x, c))] over 1-Lipschitz f *is* a difference of
means; D maximises it, optimisers minimise. Does G know that constant planes are a label? Only because of zero padding: a
constant added to a feature map is what instance norm removes; the border, where zeros are padded, tells the difference.
One D or two? One, with two heads. Is the source always neutral? Only in Table 3; training starts from every label. Labels
are 0 and 1, pictures in [-1, 1]: published weights that give garbage were mostly fed something else. A checkpoint of 256 px
does not fit a D of 128 px, whose class head is 2 x 2 and not 4 x 4; G alone fits any size. Every column looks the same, or
ghosts appear? `--check` shows what was read under --data (the folder above the class folders), the health word whether the
label arrives. Joint training with weak expressions: RaFD is forty times smaller than CelebA; train longer, at 128 px.
"""
import dataclasses
import inspect
import random
import re
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
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
    attributes: tuple = ("Black_Hair", "Blond_Hair", "Brown_Hair", "Male", "Young")    # section 5.2; toy faces: Beard for Male
    classes: tuple = field(default=(), metadata={"type": str})          # ours: use these classes of a set of class folders only; none = all
    partition: bool = False           # ours: CelebA's list_eval_partition.txt (0 to train, 2 to test) instead of the shuffle
    test_images: int = 2000           # section 5.2; ours: at most a tenth of the set
    image_size: int = 128             # section 5.2
    people: int = 20_000              # ours: toy pictures in the wild, each of another person
    studio: int = 600                 # ours: toy people in the studio, eight expressions each; RaFD has 67
    pose: float = .3                  # ours: range of the toy poses; CelebA is aligned
    walls: float = 1.                 # ours: how much walls and light differ between toy pictures, and between the sets; 0 = the same for all
    # networks
    width: int = 64                   # Table 4
    residual_blocks: int = 6          # Table 4
    d_width: int = 64                 # Table 5
    d_layers: int = 6                 # Table 5
    attention_mask: bool = False      # GANimation's output layer, off: not this paper's
    # losses
    lambda_cls: float = 1.            # section 3.1
    lambda_rec: float = 10.           # section 3.1
    lambda_gp: float = 10.            # section 4
    lambda_triple: float = 0.         # off: not this paper's; authors of the triple loss: 10
    lambda_mask: float = .02          # ours, with --attention-mask: mean of the mask, against copying; at .1 (GANimation's) few beards grew
    # training
    steps: int = 200_000              # authors' code, D's steps; the paper's 20 epochs of CelebA are 250,750
    batch_size: int = 16              # section 5.3
    n_critic: int = 5                 # section 5.3: D's steps for one of G
    lr: float = 1e-4                  # section 5.3
    betas: tuple = (.5, .999)         # section 5.3
    decay_from: float = .5            # section 5.3: half of the epochs constant, then linear to 0
    # evaluation
    part: str = field(default="all", metadata={"choices": ("all", "recipe", "joint", "pairwise", "losses", "triple")})   # ours: of --ablate


# For a processor: 64 px, a quarter of G's width. All of it is ours. What takes time is to learn the way back: instance norm
# removes the absolute colours of the picture. So the learning rate is higher, steps are small and many, G is shallower, the way
# back weighs three times the paper's, and all toy faces in the wild stand before the same white wall in the same light (tanh
# saturates at white; a grey wall came back too bright). D steps twice for one of G: with once, G found a short cut that such
# a D does not see, the negative of the picture, whose negative is the picture again.
SMALL = dict(
    image_size=64, width=16, d_width=16, d_layers=5, people=4000, studio=200, walls=0.,   # 5 layers: the same 2 x 2 scores as at 128 px
    residual_blocks=3, batch_size=8, steps=10_000, n_critic=2, lr=7e-4, lambda_rec=30.,
)
INFER_FLAGS = {
    "--target": dict(action="append", default=None, metavar="LABEL", help="label to paint: Blond_Hair, not-Young, happy, or several, "
                     "joined by +; may be repeated; default: the paper's columns (each hair colour, the others flipped)"),
    "--source": dict(nargs="*", default=None, metavar="LABEL", help="labels that the photo has now; default: what D reads in it"),
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
    key: str = ""                                                      # which files; for the classifier's cache


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
            flip = torch.rand(batch_size, 1, 1, 1, generator=self.generator) < .5                  # section 5.3: flips
            x = draw(s.bank, index, self.cfg.device)
            flip, label = (t.to(x.device, non_blocking=True) for t in (flip, s.labels[index]))
            batches.append((torch.where(flip, x.flip(3), x), label))
        return batches


def toy_people(cfg, kind, count, seed):
    """Who is in a toy set: (names of the labels, faces, labels).

    "attributes": `count` people anywhere, one picture each, any expression and light. "expressions": `count` people in a
    studio, frontal, grey wall, the eight expressions. Neither knows the other's labels. The less cfg.walls, the more do wall and
    light of all pictures, of either set, come to be the same.
    """
    usual = dict(background=1., light=[.45, -.3, .84], light_strength=.6)
    if kind == "attributes":
        faces = toyfaces.sample(count, seed, cfg.device, pose=cfg.pose)
        age = torch.where(faces.age < .5, .6 * faces.age, .7 + .6 * (faces.age - .5))             # young or old
        faces = faces.set(zoom=1.25, age=age).alike(cfg.walls, **usual)                           # close, as CelebA
        names = tuple("Beard" if name == "Male" else name for name in cfg.attributes)              # toy people have no sex
        unknown = [name for name in names if name not in toyfaces.ATTRIBUTES]
        if unknown:
            raise UserError(f"--attributes {unknown[0]}: toy faces have {', '.join(toyfaces.ATTRIBUTES)}")
        labels = toyfaces.attributes(faces)[:, [toyfaces.ATTRIBUTES.index(name) for name in names]]
    else:
        names = class_names(cfg, EXPRESSIONS)
        people = toyfaces.sample(count, seed, cfg.device, pose=.15, expression=False, makeup=False)
        people = people.set(roll=0., shift=0., zoom=1.25, background=.7, light=[0., -.3, .954], light_strength=.4).alike(cfg.walls, **usual)
        neutral = people.express("neutral")
        strength = .85 + .3 * torch.rand(count, generator=torch.Generator().manual_seed(seed)).to(cfg.device)
        shows = [people.express(name) for name in names]
        shows = [f.set(**{k: getattr(neutral, k) + strength * (getattr(f, k) - getattr(neutral, k)) for k in toyfaces.EXPRESSION}) for f in shows]
        faces, labels = toyfaces.cat(shows), torch.eye(len(names)).repeat_interleave(count, 0)
    return names, faces, labels.cpu()


def toy_set(cfg, kind, count, seed):
    """toy_people, drawn."""
    names, faces, labels = toy_people(cfg, kind, count, seed)
    return LabelSet(names, kind == "expressions", common.toy_bank(cfg, faces, cfg.image_size), labels, faces)


def class_names(cfg, available):
    """All classes, or those of --classes, in alphabetical order."""
    unknown = [name for name in cfg.classes if name not in available]
    if unknown:
        raise UserError(f"--classes {unknown[0]}: expected some of {', '.join(available)}")
    if len(cfg.classes) == 1:
        raise UserError(f"--classes {cfg.classes[0]}: expected at least two")
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
    lines = common.text_of(path).replace(",", " ").splitlines()
    told, lines = (None, lines) if path.suffix == ".csv" else (lines[0].strip() if lines else "no", lines[1:])
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
    if told is not None and told != str(len(rows)):
        bad.append(f"{path}: its first line says {told[:20]} pictures, {len(rows)} follow; is it whole? if so, mend the number")
    random.Random(1234).shuffle(rows)                                  # authors' code: with this seed, its first rows are the test set
    seen = set()
    for row in rows:
        if len(row) != len(names) + 1 or set(row[1:]) - {"-1", "1", "0"}:
            bad.append(f"{path}: the line of {row[0]} has {len(row) - 1} values, expected {len(names)} of -1 and 1")
        elif row[0] not in there:
            bad.append(f"{path}: {row[0]} is not among the pictures")
        elif row[0] in seen:
            bad.append(f"{path}: {row[0]} has two lines")              # one of them might be held out, the other trained on
        else:
            seen.add(row[0])
            images.append(there[row[0]]), labels.append([float(row[1 + k] == "1") for k in columns]), kept.append(row[0])
    test = [k < min(cfg.test_images, len(images) // 10) for k in range(len(images))]
    if cfg.partition:
        lists = [p for folder in (root, root / "Eval") for p in sorted(folder.glob("list_eval_partition*"))]
        if not lists:
            raise UserError(f"--partition: no list_eval_partition.txt in {root}")
        part = dict(row for line in common.text_of(lists[0]).splitlines() if len(row := line.replace(",", " ").split()) == 2)
        keep = [k for k, name in enumerate(kept) if part.get(name) in ("0", "2")]
        images, labels, test = [images[k] for k in keep], [labels[k] for k in keep], [part[kept[k]] == "2" for k in keep]
    hair = [k for k, name in enumerate(cfg.attributes) if name in HAIR]
    keep = [k for k, label in enumerate(labels) if sum(label[j] for j in hair) < 2]                # see the docstring: two hair colours
    images, labels, test = ([values[k] for k in keep] for values in (images, labels, test))
    return dict(images=images, labels=labels, test=test, bad=bad, names=tuple(cfg.attributes), exclusive=False)


def scan_classes(cfg, root):
    """Class folders, with or without train/ and test/ above them; or RaFD's own file names."""
    parts = [(root / "train", False), (root / "test", True)]
    if not all(f.is_dir() for f, _ in parts):
        parts = [(root / "train" if (root / "train").is_dir() else root, None)]
    items = [(p, folder.name, is_test) for part, is_test in parts for folder in sorted(part.iterdir()) if folder.is_dir() for p in common.pictures_in(folder)]
    if not items:
        rafd = re.compile(r"rafd(\d+)_(\d+)_.*_([a-z]+)_(frontal|left|right)$", re.I)
        named = [(p, rafd.match(p.stem)) for p in common.pictures_in(root)]
        # 45, 90, 135 degrees: three of the five angles, as the paper; every tenth person is held out
        items = [(p, m[3].lower(), int(m[2]) % 10 == 0) for p, m in named if m and m[1] in ("045", "090", "135")]
    if not items:
        n = len(common.files_below(root))
        raise UserError(f"{root}: found {n} pictures, but neither list_attr_celeba.txt (CelebA) nor folders of pictures named after their "
                        f"class (RaFD: {root / 'train' / 'angry'}/*.jpg); point --data at the folder that holds them")
    names = class_names(cfg, sorted({name for _, name, _ in items}))
    items = [item for item in items if item[1] in names]
    if len(names) < 2:
        raise UserError(f"{root}: only one folder of pictures, {names[0]}; expected one for each class, or list_attr_celeba.txt beside it (CelebA)")
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
    s = LabelSet(found["names"], found["exclusive"], bank, torch.tensor([found["labels"][mine[k]] for k in good]))
    s.key = repr([(str(images[k]), images[k].stat().st_size, images[k].stat().st_mtime_ns) for k in good])
    return s


TRAIN_SEED, TEST_SEED, CLASSIFIER_SEED = 10_000, 20_000, 30_000         # people drawn from other seeds are other people
TEST_PEOPLE = {"attributes": 256, "expressions": 64}


def toy_kinds(cfg):
    return ("attributes", "expressions") if cfg.toy == "both" else (cfg.toy,)


def make_data(cfg, test=False):
    """The training sets, or held-out pictures of other people (test)."""
    if len(cfg.data) > 2:
        raise UserError(f"--data given {len(cfg.data)} times; expected one or two data sets")
    if cfg.data:
        sets = [photographs(cfg, root, test) for root in cfg.data]
        both = set(sets[0].names) & set(sets[-1].names)
        if len(sets) > 1 and both:
            raise UserError(f"--data {cfg.data[0]} and {cfg.data[1]} both have the label {sorted(both)[0]}; rename it in one of them")
        return Faces(cfg, sets)
    counts = TEST_PEOPLE if test else {"attributes": cfg.people, "expressions": cfg.studio}
    seed = TEST_SEED if test else TRAIN_SEED + 10 * cfg.seed
    return Faces(cfg, [toy_set(cfg, kind, counts[kind], seed + (kind == "expressions")) for kind in toy_kinds(cfg)])


# ======================================================================================================== labels

def unified_label(label, d, sizes):
    """[(7)]  c~ = [c_1, ..., c_n, m]:   known part c_d, zeros for the labels that data set d does not know, m one-hot over the sets

    label: [B, n_d] of data set d; sizes: (n_1, ..., n_D). With one data set there is no mask: c~ = c. Returns [B, sum n + D].
    """
    if len(sizes) == 1:
        return label
    parts = [label if k == d else label.new_zeros(len(label), n) for k, n in enumerate(sizes)]
    return torch.cat(parts + [torch.eye(len(sizes), dtype=label.dtype, device=label.device)[d].expand(len(label), -1)], 1)


def shuffled(label):
    """The labels of a batch in another order."""
    return label[torch.randperm(len(label)).to(label.device, non_blocking=True)]


def rivals(name, names, exclusive):
    """Indices of the labels of which at most one holds, `name` among them: all classes, the hair colours, or one attribute alone."""
    return [k for k, other in enumerate(names) if other == name or exclusive or (name in HAIR and other in HAIR)]


def targets(label, names, exclusive):
    """What to paint at test time: [(name, label wanted [B, n], whom it changes [B] bool), ...], one a column of the grid.

    Classes: each in turn. Attributes (authors' code): a hair colour is set and the other hair colours cleared; every other
    attribute is flipped.
    """
    columns = []
    for k, name in enumerate(names):
        wanted = label.clone()
        wanted[:, rivals(name, names, exclusive)] = 0.
        wanted[:, k] = 1. if exclusive or name in HAIR else 1 - label[:, k]
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
    patch scores, while the loss takes their mean: with P patches that mean is driven to be 1/P-Lipschitz. Reaches D only.
    Weight: lambda_gp
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
    """[mask]  y = M x + (1 - M) C,   minimised: E[M]

    Not this paper's: GANimation's output, a colour picture C and a mask M that keeps the input where it is 1, in
    Generator.forward. Nothing would stop M from saturating at 1, which copies; hence the penalty. Weight: lambda_mask
    """
    return M.mean()


# ====================================================================================================== training

def validate(cfg):
    """Raises UserError for settings that do not fit together."""
    side = 2 ** cfg.d_layers
    for name, fits, expected in (*((name, getattr(cfg, name) > 0, "at least 1") for name in ("n_critic", "width", "d_width", "d_layers", "people", "studio")),
                                 ("image_size", cfg.image_size % side == 0, f"a multiple of {side}, or other --d-layers")):
        if not fits:
            raise UserError(f"--{name.replace('_', '-')} {getattr(cfg, name)}: expected {expected}")


def build(cfg, sizes):
    """G and D for data sets with sizes[d] labels."""
    n_c = sum(sizes) + (len(sizes) if len(sizes) > 1 else 0)
    # Framework initialisation, as in the authors' code; D's labels do not include the mask
    return Generator(n_c, cfg.width, cfg.residual_blocks, cfg.attention_mask), Discriminator(sum(sizes), cfg.image_size, cfg.d_width, cfg.d_layers)


def train(cfg):
    """The paper's training, step by step. Writes cfg.run; returns G (on cfg.device)."""
    validate(cfg)
    torch.manual_seed(cfg.seed)
    data, held_out = make_data(cfg), make_data(cfg, test=True)
    G, D = build(cfg, data.sizes)
    if cfg.weights:
        load_networks(cfg.weights, common.load_checkpoint(cfg.weights), G, D)
    say(f"{len(data)} pictures, labels {' | '.join(' '.join(s.names) for s in data.sets)}; "
        f"G {common.n_parameters(G):,} parameters, D {common.n_parameters(D):,}")
    G, D = prepare(G, cfg), prepare(D, cfg)
    opt_G = torch.optim.Adam(G.parameters(), cfg.lr, cfg.betas, fused=True)
    opt_D = torch.optim.Adam(D.parameters(), cfg.lr, cfg.betas, fused=True)
    run = Run(cfg, {"G": G, "D": D}, {"G": opt_G, "D": opt_D}, data, HEALTH, about=[[list(s.names), s.exclusive] for s in data.sets])

    log = {}
    for step, batches in run.batches(cfg.batch_size):
        run.learning_rate(cfg.lr * common.linear_decay(step, cfg.steps, cfg.decay_from))
        for d, (x_real, label_org) in enumerate(batches):                                # one data set after the other: section 3.2
            exclusive, known, L = data.sets[d].exclusive, slice(sum(data.sizes[:d]), sum(data.sizes[:d + 1])), {}
            label_trg = shuffled(label_org)                                              # labels that occur, never two hair colours
            c_org, c_trg = unified_label(label_org, d, data.sizes), unified_label(label_trg, d, data.sizes)       # (7)

            # 1. D: real above generated, labels of real pictures ------------------------------------- (5)
            with torch.set_grad_enabled(step % cfg.n_critic == 0):                       # one G(x, c) for both steps, when G's turn comes
                x_fake, M = G(x_real, c_trg, True)
            src, cls = D(torch.cat([x_real, x_fake.detach()]))                           # D has no norm: one pass for both
            src_real, src_fake = src.chunk(2)
            L["D"] = loss_adv_D(src_real, src_fake)                                                               # (8)
            L["gp"] = cfg.lambda_gp * loss_gp(D, x_real, x_fake)                                                  # (8)
            L["cls_real"] = cfg.lambda_cls * loss_cls_real(cls[:len(x_real), known], label_org, exclusive)        # (2)
            run.update("D", L["D"] + L["gp"] + L["cls_real"])

            # 2. G, every n_critic steps of D: fool it, show the label, find the way back --------------- (6)
            if step % cfg.n_critic == 0:
                with frozen(D):
                    src_fake, cls_fake = D(x_fake)
                    L["adv"] = loss_adv_G(src_fake)                                                               # (8)
                    L["cls_fake"] = cfg.lambda_cls * loss_cls_fake(cls_fake[:, known], label_trg, exclusive)      # (3)
                    L["rec"] = cfg.lambda_rec * loss_rec(x_real, G(x_fake, c_org))                                # (4)
                    if cfg.lambda_triple:
                        c_n = unified_label(shuffled(label_org), d, data.sizes)
                        L["triple"] = cfg.lambda_triple * loss_triple(G, x_fake, c_n, G(x_real, c_n))             # [triple]
                    if cfg.attention_mask:
                        L["mask"] = cfg.lambda_mask * loss_mask(M)                                                # [mask]
                    run.update("G", sum(L[name] for name in L if name not in ("D", "gp", "cls_real")))
            log |= {f"L_{name}" + f"_{d + 1}" * (d > 0): value.detach() for name, value in L.items()}

        # 3. What happened ----------------------------------------------------------------------------
        if run.logs(step):
            run.log(step, **report(G, D, held_out, cfg, log), **log)
        if run.samples(step):
            run.sample(step, sample_grid(G, held_out))
    return G


def some(data, d, n):
    """n held-out pictures of set d, the same every time: x [n, 3, S, S], label [n, n_d], toy faces or None. (Classes lie one after the other.)"""
    s = data.sets[d]
    pick = torch.linspace(0, len(s.labels) - 1, n).round().long()
    return draw(s.bank, pick, data.cfg.device), s.labels[pick].to(data.cfg.device), s.faces and s.faces[pick.to(s.faces.yaw.device)]


@torch.no_grad()
def report(G, D, data, cfg, log, n=16):
    """The health word, and the numbers behind it, on 16 held-out pictures of each set (in units of the full range, 0 ... 1).

    change: |G(x, c) - x|; spread: how much outputs under different labels differ; grad_norm_off: root mean square of
    ||grad D|| - 1 in the last batch. Toy faces: error and baseline, L1 to the true counterfactual of G and of a copy. Names
    ending in _2 are the second data set's; the health word is that of the first set that is not well.
    """
    values = {"health": "ok"}
    for d, s in enumerate(data.sets):
        x, label, faces = some(data, d, n)
        reference = G(x, unified_label(label, d, data.sizes))
        changes, spreads, errors, baselines = [], [], [], []
        for k, (name, wanted, rows) in enumerate(targets(label, s.names, s.exclusive)):
            out = G(x, unified_label(wanted, d, data.sizes))
            changes.append((out - x).abs().mean() / 2)
            if rows.any():
                spreads.append((out - reference)[rows].abs().mean() / 2)
                if faces is not None:
                    truth = common.once(s, name, toyfaces.render, counterfactual(faces, name, wanted[:, k]), cfg.image_size)
                    errors.append((out - truth)[rows].abs().mean() / 2), baselines.append((x - truth)[rows].abs().mean() / 2)
        number = dict(change=changes, spread=spreads, error=errors, baseline=baselines)
        number = {k: sum(v) / len(v) for k, v in number.items() if v}
        suffix = f"_{d + 1}" * (d > 0)
        number["grad_norm_off"] = (log["L_gp" + suffix] / max(cfg.lambda_gp, 1e-9)).sqrt()
        real, fake, word = D(x)[0], D(out)[0], "ok"
        if number["change"] < .005:
            word = "copying"
        elif number["spread"] < .1 * number["change"]:
            word = "label-ignored"
        elif number["grad_norm_off"] > .5:
            word = "gp-off"
        elif real.min() > fake.max() and real.mean() - fake.mean() > 10:
            word = "D-won"
        values |= {k + suffix: v for k, v in number.items()}
        values["health"] = word if values["health"] == "ok" else values["health"]
    return values


@torch.no_grad()
def sample_grid(G, data, n=6):
    """Held-out pictures of the first set: input, each target (below toy faces' results: the truth), and the first one back."""
    x, label, faces = some(data, 0, n)
    columns, first = {"input": x}, None
    for d, other in enumerate(data.sets):                              # joint: the first set's pictures, under both sets' labels
        own = label if d == 0 else torch.zeros(n, len(other.names), device=x.device)
        for k, (name, wanted, _) in enumerate(targets(own, other.names, other.exclusive)):
            columns[name] = G(x, unified_label(wanted, d, data.sizes))
            first = columns[name] if first is None else first
            if faces is not None:
                truth = common.once(data, (n, name), toyfaces.render, counterfactual(faces, name, wanted[:, k]), x.shape[-1])
                columns[name] = torch.stack([columns[name], truth], 1).flatten(0, 1)
    columns["back"] = G(first, unified_label(label, 0, data.sizes))
    if faces is not None:                                              # two rows a face: results, and the truth below
        columns |= {name: torch.stack([columns[name], torch.ones_like(x)], 1).flatten(0, 1) for name in ("input", "back")}
    return grid(list(columns.values()), list(columns), scale=max(1, 128 // x.shape[-1]))


# ==================================================================================================== evaluation

@common.reads_checkpoint
def load_networks(path, saved, G, D=None):
    """Fill G (and D) from a checkpoint of ours, or from the authors' <n>-G.ckpt, with <n>-D.ckpt beside it if it is there."""
    if "paper" in saved:
        common.check_paper(saved, path, Path(__file__).stem)
        common.load_weights(G, saved["nets"].get("G", {}), path)
        if D is not None:
            common.load_weights(D, saved["nets"].get("D", {}), path)
        return
    common.load_weights(G, authors_G(saved), path)
    if D is not None and (beside := authors_D_file(path)):
        common.load_weights(D, authors_D(common.load_checkpoint(beside)), beside)


def authors_D_file(path):
    """200000-G.ckpt -> 200000-D.ckpt, if that exists; else None."""
    beside = Path(re.sub(r"G(\.\w+)$", r"D\1", str(path)))
    return beside if beside != Path(path) and beside.exists() else None


@common.reads_checkpoint
def trained(cfg):
    """(G, D or None, [(names, exclusive) of each data set]) of cfg.run or cfg.weights. cfg takes over its sizes and kind of data."""
    path = cfg.weights or Path(cfg.run) / "last.pt"
    saved = common.load_checkpoint(path)
    has_D = True
    if "paper" in saved:
        common.check_paper(saved, path, Path(__file__).stem)
        common.adopt(cfg, saved, ("image_size", "width", "residual_blocks", "d_width", "d_layers", "attention_mask", "attributes", "classes", "toy", "pose",
                                  "walls", "partition", "test_images"))
        sets = [(tuple(names), exclusive) for names, exclusive in saved["about"]]
    else:                                                              # the authors', or something that load_networks will refuse
        state, attributes, rafd = authors_G(saved), (tuple(cfg.attributes), False), (EXPRESSIONS, True)
        n_c = state["main.0.weight"].shape[1] - 3 if "main.0.weight" in state else len(cfg.attributes)
        known = {len(cfg.attributes) + 8 + 2: [attributes, rafd], 8: [rafd], len(cfg.attributes): [attributes]}      # joint: both and a mask of 2
        if n_c not in known:
            raise UserError(f"{path}: a generator of {n_c} labels; give their names with --attributes")
        sets, cfg.attention_mask, cfg.width = known[n_c], False, state.get("main.0.weight", torch.empty(cfg.width)).shape[0]
        cfg.residual_blocks = sum(bool(re.fullmatch(r"main\.\d+\.body\.0\.weight", k)) for k in state)
        cfg.image_size, has_D = max(128, cfg.image_size), bool(authors_D_file(path))                              # theirs are of 128 or 256 px
        D_state = authors_D(common.load_checkpoint(authors_D_file(path))) if has_D else {}
        if {"trunk.0.weight", "cls.weight"} <= D_state.keys():
            cfg.d_width, cfg.d_layers = D_state["trunk.0.weight"].shape[0], sum(bool(re.fullmatch(r"trunk\.\d+\.weight", k)) for k in D_state)
            cfg.image_size = D_state["cls.weight"].shape[-1] * 2 ** cfg.d_layers
    G, D = build(cfg, [len(names) for names, _ in sets])
    load_networks(path, saved, G, D if has_D else None)
    return prepare(G, cfg).eval(), prepare(D, cfg).eval() if has_D else None, sets


CLASSIFIER_STEPS, CLASSIFIER_PEOPLE = 800, {"attributes": 4000, "expressions": 250}


def classifier(cfg, data, d):
    """A ResNet-18 that reads the labels of data set d, and measures; the paper's Table 3. (net, names of its outputs, error on set d).

    Toy faces: trained on people of its own; the one for expressions knows all eight, in the studio and in the wild.
    Photographs: trained on the training part, as in the paper. Cached; minutes on two cores.
    """
    s = data.sets[d]
    if cfg.data:
        source, steps = photographs(cfg, cfg.data[d], test=False), CLASSIFIER_STEPS
        steps = min(max(steps, 10 * len(source.labels) // 48), 10 * steps)                          # ten epochs, within reason
        key = source.key
    else:
        kind, steps = toy_kinds(cfg)[d], CLASSIFIER_STEPS
        names, faces, labels = toy_people(dataclasses.replace(cfg, classes=()), kind, CLASSIFIER_PEOPLE[kind], CLASSIFIER_SEED)
        if kind == "expressions":
            wild = toy_people(cfg, "attributes", CLASSIFIER_PEOPLE[kind], CLASSIFIER_SEED)[1]
            faces, labels = toyfaces.cat([faces] + [wild.express(name) for name in names]), labels.repeat(2, 1)
        source = LabelSet(names, kind == "expressions", common.toy_bank(cfg, faces, cfg.image_size), labels)
        key = common.hashlib.sha256(source.bank.cpu().numpy()).hexdigest()
    key = repr((key, source.labels.tolist(), source.names, cfg.image_size, steps, inspect.getsource(train_classifier)))
    path = Path(cfg.cache) / f"stargan-classifier-{common.hashlib.sha256(key.encode()).hexdigest()[:16]}.pt"
    net = torchvision.models.resnet18(num_classes=len(source.names))
    if path.exists():
        net.load_state_dict(common.load_checkpoint(path)["net"])
        net.to(cfg.device)
    else:
        say(f"training a classifier of {' '.join(source.names)} (once, on {len(source.labels)} pictures) ...")
        train_classifier(net, cfg, source, steps)
        common.save_checkpoint({"net": net.state_dict()}, path)
    net.eval().requires_grad_(False)
    wrong = []
    for k in torch.arange(len(s.labels)).split(64):
        logits, label = net(draw(s.bank, k, cfg.device)), s.labels[k].to(cfg.device)
        shown = torch.tensor([source.names.index(name) for name in s.names], device=label.device)
        wrong.append((logits.argmax(1) != shown[label.argmax(1)]).float() if s.exclusive else ((logits > 0) != (label > .5)).float().mean(1))
    return net, source.names, torch.cat(wrong).mean().item()


@torch.enable_grad()
def train_classifier(net, cfg, source, steps):
    """AdamW, one cycle, flips and a little noise; softmax or summed sigmoids."""
    g = torch.Generator().manual_seed(CLASSIFIER_SEED)
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(CLASSIFIER_SEED)
        net.apply(lambda m: m.reset_parameters() if hasattr(m, "reset_parameters") else None)
        net.to(cfg.device).train()
        optimiser = torch.optim.AdamW(net.parameters(), weight_decay=1e-2)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 2e-3, total_steps=steps)
        for _ in range(steps):
            k = torch.randint(len(source.labels), (48,), generator=g)
            x, label = draw(source.bank, k, cfg.device), source.labels[k].to(cfg.device)
            x = torch.where(torch.rand(48, 1, 1, 1, generator=g).to(x.device) < .5, x.flip(3), x) + .02 * torch.randn(x.shape, generator=g).to(x.device)
            with torch.autocast(torch.device(cfg.device).type, torch.bfloat16, enabled=bool(cfg.amp)):
                logits = net(x)
            optimiser.zero_grad()
            classification(logits.float(), label, source.exclusive).backward()
            optimiser.step()
            schedule.step()


def judges(cfg, data):
    """What measures: a recogniser of toy people (or None), and a classifier for each data set."""
    identity = None if cfg.data else toyfaces.judge("identity", cfg.image_size, 2, cfg.device, cfg.cache)
    return identity, [classifier(cfg, data, d) for d in range(len(data.sets))]


@torch.no_grad()
def measure(cfg, G, data, jury, source, d, wrong_mask=False):
    """The held-out pictures of set `source` under the labels of set d: {"G" | "copy" | "truth": {label: {measure: mean}}}.

    Each target label in turn, on the pictures that it changes; expressions of their own set start from neutral (Table 3).
    copy: the input instead of G's output; truth: the true counterfactual. wrong_mask: with the other set's mask in c~.
    """
    s, names, exclusive = data.sets[source], data.sets[d].names, data.sets[d].exclusive
    identity, (reader, read_names, _) = jury[0], jury[1][d]
    index = torch.arange(len(s.labels))
    if source == d and exclusive and "neutral" in names:
        index = (s.labels[:, names.index("neutral")] > 0).nonzero()[:, 0]
    sums = {kind: {name: common.defaultdict(float) for name in names} for kind in ("G", "copy", "truth")}
    for part in index.split(32):
        x, label = draw(s.bank, part, cfg.device), s.labels[part].to(cfg.device)
        faces = s.faces and s.faces[part.to(cfg.device)]
        own = label if source == d else torch.zeros(len(x), len(names), device=x.device)
        for k, (name, wanted, rows) in enumerate(targets(own, names, exclusive)):
            c = unified_label(wanted, d, data.sizes)
            if wrong_mask:
                c[:, -len(data.sizes):] = c[:, -len(data.sizes):].flip(1)
            pictures = {"G": G(x, c), "copy": x}
            if faces is not None:
                pictures["truth"] = truth = toyfaces.render(counterfactual(faces, name, wanted[:, k]), cfg.image_size)
                kept = ((truth - x).abs().amax(1, keepdim=True) < .02).float()
            for kind, y in pictures.items():
                logits = reader(y)
                if exclusive:
                    values = {"error": (logits.argmax(1) != read_names.index(name)).float()}
                else:
                    wrong = ((logits > 0) != (wanted > .5)).float()
                    values = {"error": wrong[:, k]}
                    others = sorted(set(range(len(names))) - set(rivals(name, names, exclusive)))
                    if others:
                        values["others"] = wrong[:, others].mean(1)
                if faces is not None:
                    values |= {"L1": (y - truth).abs().flatten(1).mean(1) / 2,
                               "SSIM": common.ssim(y, truth),
                               "identity": (identity[0](y) * identity[0](x)).sum(1),
                               "L1 outside": ((y - x).abs() * kept).flatten(1).sum(1) / 2 / (3 * kept.flatten(1).sum(1)).clamp(min=1)}
                elif source == d:
                    values |= {"L1 to input": (y - x).abs().flatten(1).mean(1) / 2,
                               "back": (G(y, unified_label(label, d, data.sizes)) - x).abs().flatten(1).mean(1) / 2}
                for what, value in ({"n": torch.ones(len(x), device=x.device)} | values).items():
                    sums[kind][name][what] += value[rows].sum().item()
    return {kind: {name: {what: v / total["n"] for what, v in total.items() if what != "n"} for name, total in by_name.items() if total["n"]}
            for kind, by_name in sums.items()}


def average(by_name):
    """{label: {measure: number}} -> {measure: mean over the labels}."""
    return {what: sum(values[what] for values in by_name.values()) / len(by_name) for what in next(iter(by_name.values()), {})}


def evaluate(cfg):
    """The paper's Table 3 protocol, and distances to the true counterfactual, on held-out pictures. Writes evaluation.json.

    error: share of translations whose new label the classifier does not read; others: whose other labels it reads wrongly;
    L1, SSIM: to the true counterfactual; identity: cosine to the input; L1 outside: change where the truth does not change.
    Photographs have no truth: L1 to the input, and of the way back. Two sets: "across" are the first set's pictures under
    the second's labels (the authors' joint test).
    """
    G, _, sets = trained(cfg)
    data = make_data(cfg, test=True)
    if [(s.names, s.exclusive) for s in data.sets] != sets:
        raise UserError(f"trained on {len(sets)} data sets with the labels {' | '.join(' '.join(names) for names, _ in sets)}; "
                        f"found {' | '.join(' '.join(s.names) for s in data.sets)}; give --data the same, in the same order")
    jury, rows = judges(cfg, data), {}
    for source, d in [(k, k) for k in range(len(sets))] + [(0, 1)] * (len(sets) > 1):
        found, prefix = measure(cfg, G, data, jury, source, d), "" if source == d else "across: "
        rows |= {prefix + name: values for name, values in found["G"].items()}
        of = " ".join(sets[d][0][:2]) + " ..."
        rows |= {f"{prefix}{title} ({of})" if len(sets) > 1 else title: average(found[kind])
                 for kind, title in (("G", "all targets"), ("copy", "copy the input"), ("truth", "the true pictures")) if average(found[kind])}
    notes = f"error: read by an independent ResNet-18, itself wrong on {', '.join(f'{100 * error:.2f} %' for *_, error in jury[1])} of real pictures"
    notes += f"; one G of {common.n_parameters(G):,} parameters; L1 in 0 ... 1"
    if jury[0]:
        notes += f"; identity: cosine to the input, by a recogniser with equal error rate {jury[0][1]:.3f}"
    return common.evaluation(cfg, rows, notes)


@torch.no_grad()
def progressive(cfg, G, data, passes=5):
    """Five random edits in a row, against the last label asked for at once: mean L1 to the truth, {"direct", "pass 5", "excess"}."""
    s, g = data.sets[0], torch.Generator().manual_seed(3)
    total = common.defaultdict(float)
    for index in torch.arange(len(s.labels)).split(32):
        x, first = draw(s.bank, index, cfg.device), s.labels[index].to(cfg.device)
        label, chain = first, x
        for _ in range(passes):
            label = targets(label, s.names, s.exclusive)[torch.randint(len(s.names), (), generator=g).item()][1]
            chain = G(chain, unified_label(label, 0, data.sizes))
        faces = s.faces[index.to(cfg.device)]
        for k, name in enumerate(s.names):                             # an edit that was undone leaves the person as before
            changed = (label[:, k] != first[:, k]) & ((name not in HAIR) | (label[:, k] > .5))
            faces = counterfactual(faces, name, label[:, k]).where(changed, faces)
        truth, direct = toyfaces.render(faces, cfg.image_size), G(x, unified_label(label, 0, data.sizes))
        total["direct"] += (direct - truth).abs().mean().item() / 2 * len(x) / len(s.labels)
        total[f"pass {passes}"] += (chain - truth).abs().mean().item() / 2 * len(x) / len(s.labels)
    return dict(total) | {"excess": total[f"pass {passes}"] - total["direct"]}


# ====================================================================================================== ablation

SEEDS = (0, 1, 2)
OTHERS = tuple(name for name in EXPRESSIONS if name != "neutral")
# The trainings of each part; a training that two parts need is done once.
ATTRIBUTES, STUDIO = {"attributes": dict(toy="attributes")}, {"studio alone": dict(toy="expressions")}
PARTS = {
    "recipe": ATTRIBUTES,
    "joint": {**STUDIO, "joint": dict(toy="both")},
    "pairwise": {**STUDIO, **{f"pair neutral-{e}": dict(toy="expressions", classes=("neutral", e)) for e in OTHERS}},
    "losses": {**ATTRIBUTES, "without reconstruction": dict(toy="attributes", lambda_rec=0.), "without classification": dict(toy="attributes", lambda_cls=0.)},
    "triple": {**ATTRIBUTES, "with triple": dict(toy="attributes", lambda_triple=10.)},
}


def _ablation_run(cfg):
    """One training of the ablation and its measures (in a process of its own on a CPU)."""
    G, data = train(cfg), make_data(cfg, test=True)
    jury = judges(cfg, data)
    own = measure(cfg, G, data, jury, 0, 0)
    out = average(own["G"]) | {f"copy {k}": v for k, v in average(own["copy"]).items()} | {f"truth {k}": v for k, v in average(own["truth"]).items()}
    out |= {"real error": jury[1][0][2], "parameters": common.n_parameters(G) + common.n_parameters(build(cfg, data.sizes)[1])}
    if cfg.toy == "attributes":
        return out | progressive(cfg, G, data)
    if cfg.classes:
        return out
    # Expressions on pictures of the other set. The studio's G has never seen such pictures, and knows no mask.
    both = make_data(dataclasses.replace(cfg, toy="both"), test=True)
    jury, n = judges(dataclasses.replace(cfg, toy="both"), both), both.sizes[0]
    paint = G if cfg.toy == "both" else lambda x, c: G(x, c[:, n:-2])
    across = measure(cfg, paint, both, jury, 0, 1)
    out |= {f"across {k}": v for k, v in average(across["G"]).items()} | {f"across truth {k}": v for k, v in average(across["truth"]).items()}
    if cfg.toy == "both":
        out |= {f"wrong mask {k}": v for k, v in average(measure(cfg, G, both, jury, 0, 1, wrong_mask=True)["G"]).items()}
    return out


def ablate(cfg):
    """The paper's claims, on toy faces, three seeds; --part picks one. The thresholds stand here, and were set before running.

    recipe    translations under new attributes: at most 15 % misread in every seed (real pictures under 3 %), and L1 to the
              true counterfactual at most two thirds of that of copying the input.
    joint     expressions on pictures of the set that has none, trained on both sets against the studio alone (as many steps,
              each on a batch of either set: twice the pictures), and with the wrong mask. Joint errs less in every seed, and
              the wrong mask at least doubles its error.
    pairwise  one G for eight expressions against a G for each pair neutral-other, as many pictures in all: the one errs at
              most as often in every seed.
    losses    without reconstruction the change outside what should change is at least 1.5 times as large; without
              classification at least half of the labels are not seen.
    triple    five edits in a row: excess = error after them minus error of the direct edit. Smaller with the triple loss in
              every seed, and the direct error not worse by 10 %.

    Writes ablation.json, or ablation_<part>.json, and a .png beside it. An interrupted ablation continues.
    """
    validate(cfg)
    folder = common.ablation_folder(cfg)
    parts = list(PARTS) if cfg.part == "all" else [cfg.part]
    base = dataclasses.replace(cfg, fresh=False, part="all", classes=())
    jobs = {}
    for seed in SEEDS:
        for name, change in {name: change for part in parts for name, change in PARTS[part].items()}.items():
            steps = max(1, cfg.steps // len(OTHERS)) if name.startswith("pair") else cfg.steps
            jobs[name, seed] = dataclasses.replace(base, seed=seed, run=str(folder / f"{name.replace(' ', '-')}-{seed}"), **{"steps": steps, **change})
    study = common.Ablation(jobs)
    toy = "both" if set(parts) & {"joint", "pairwise"} else "attributes"
    first = dataclasses.replace(base, toy=toy)
    judges(first, make_data(first, test=True))                         # before the processes, which would all make them
    study.run(_ablation_run, cfg.device)
    values, row, claim = study.values, study.row, study.claim

    def standard(title, name, prefix="", **more):
        row(title, **{k: values(name, prefix + k) for k in ("error", "L1", "SSIM", "identity", "L1 outside")}, **more)

    if "recipe" in parts:
        for title, prefix in (("StarGAN", ""), ("copy the input", "copy "), ("the true pictures", "truth ")):
            standard(title, "attributes", prefix)
        error, L1, copy = (values("attributes", k) for k in ("error", "L1", "copy L1"))
        claim("recipe", "L1 to the true counterfactual under a new attribute: copying the input, StarGAN", copy, L1,
              at_most_15_per_cent_misread=(error <= .15).all(), real_pictures_under_3_per_cent=(values("attributes", "real error") < .03).all(),
              L1_at_most_two_thirds_of_copying=(L1 <= copy * 2 / 3).all())
    if "joint" in parts:
        alone, joint, wrong = values("studio alone", "across error"), values("joint", "across error"), values("joint", "wrong mask error")
        for title, name, prefix in (("studio alone", "studio alone", "across "), ("joint", "joint", "across "), ("joint, wrong mask", "joint", "wrong mask "),
                                    ("the true pictures", "joint", "across truth ")):
            standard(f"across: {title}", name, prefix)
        claim("joint", "expressions misread, on pictures of the set without such labels: trained on one set, on both", alone, joint, True,
              errs_less_in_every_seed=(joint < alone).all(), the_wrong_mask_at_least_doubles_the_error=(wrong >= 2 * joint).all())
    if "pairwise" in parts:
        pairs, one = np.mean([values(f"pair neutral-{e}", "error") for e in OTHERS], axis=0), values("studio alone", "error")
        row("one StarGAN for eight expressions", error=one, parameters=values("studio alone", "parameters"))
        row("one for each of seven pairs", error=pairs, parameters=sum(values(f"pair neutral-{e}", "parameters") for e in OTHERS))
        claim("pairwise", "expressions misread (Table 3): seven translators of pairs, one StarGAN; as many pictures in all", pairs, one, True,
              one_for_all_errs_at_most_as_often_in_every_seed=(one <= pairs).all())
    if "losses" in parts:
        for name in PARTS["losses"]:
            standard("all losses" if name == "attributes" else name, name)
        outside, blind = values("without reconstruction", "L1 outside"), values("without classification", "error")
        claim("losses", "change outside what should change: without reconstruction, with", outside, values("attributes", "L1 outside"),
              without_reconstruction_the_rest_changes_1_5_times_as_much=outside.mean() >= 1.5 * values("attributes", "L1 outside").mean(),
              without_classification_half_of_the_labels_are_not_seen=(blind >= .5).all())
    if "triple" in parts:
        for name, title in (("attributes", "without triple"), ("with triple", "with triple")):
            row(f"five edits, {title}", **{k: values(name, k) for k in ("direct", "pass 5", "excess")})
        without, with_ = values("attributes", "excess"), values("with triple", "excess")
        claim("triple", "L1 error that five edits in a row add: without and with GANnotation's triple loss", without, with_,
              less_excess_in_every_seed=(with_ < without).all(),
              direct_not_worse_by_10_per_cent=values("with triple", "direct").mean() <= 1.1 * values("attributes", "direct").mean())
    study.write(cfg)


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
    names, exclusive = sets[0]
    hair = [k for k, name in enumerate(names) if exclusive or name in HAIR]
    wanted = [(t, wish(t, sets)) for t in target or []]
    for name in source or []:
        if name not in names:
            raise UserError(f"--source {name}: unknown label; expected some of {', '.join(names)}")
    if source is not None and sum(names[k] in source for k in hair) > 1:
        raise UserError(f"--source {' '.join(source)}: only one of {', '.join(names[k] for k in hair)} can hold")
    with torch.no_grad():
        if source is not None:
            label = torch.tensor([[float(name in source) for name in names]] * len(x), device=cfg.device)
        elif D is None:
            raise UserError("there is no discriminator beside these weights to read what the photo shows; give --source, e.g. --source " + " ".join(names[-2:]))
        else:                                                          # D_cls learned from real pictures what they show
            logits = D(x)[1][:, :len(names)]
            label = (logits > 0).float()
            if hair:
                label[:, hair] = F.one_hot(logits[:, hair].argmax(1), len(hair)).to(label)
        for file, row in zip(files, label, strict=True):
            shown = " ".join(n for n, v in zip(names, row, strict=True) if v) or "none of the labels"
            print(f"{file}: {'given' if source is not None else 'read by D'} as {shown}")
        columns = {"input": x}
        blank = [label] + [torch.zeros(len(x), len(own), device=x.device) for own, _ in sets[1:]]
        if target:
            wanted = [(t, change(blank[d].clone()), d) for t, (change, d) in wanted]
        else:
            wanted = [(name, w, d) for d, (own, e) in enumerate(sets) for name, w, _ in targets(blank[d], own, e)]
        for name, w, d in wanted:
            columns[name] = G(x, unified_label(w, d, sizes))
        columns["back"] = G(columns[wanted[0][0]], unified_label(label, 0, sizes))
    folder = Path(out or Path(cfg.run) / "inferred")
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{Path(files[0]).stem}.png"
    grid(list(columns.values()), list(columns), max(1, 128 // S)).save(path)
    print(path)


def wish(text, sets):
    """"Blond_Hair+not-Young" -> (function that puts this into a label [B, n_d], d). Setting a hair colour or a class clears its rivals."""
    parts, known = text.split("+"), [name for names, _ in sets for name in names]
    names_asked = [part.removeprefix("not-") for part in parts]
    for name in names_asked:
        if name not in known:
            raise UserError(f"--target {name}: unknown label; this generator knows {', '.join(known)}")
    homes = {d for name in names_asked for d, (names, _) in enumerate(sets) if name in names}
    if len(homes) > 1:
        raise UserError(f"--target {text}: labels of two data sets cannot be asked for at once; apply one to the result of the other")
    d = homes.pop()
    names, exclusive = sets[d]
    if exclusive and (len(parts) > 1 or parts != names_asked):
        raise UserError(f"--target {text}: a picture has exactly one of {', '.join(names)}; ask for one of them")
    if sum(part in HAIR for part in parts) > 1:
        raise UserError(f"--target {text}: a face has one hair colour; ask for one of them")

    def change(label):
        for part, name in zip(parts, names_asked, strict=True):
            if part == name:
                label[:, rivals(name, names, exclusive)] = 0.
            label[:, names.index(name)] = float(part == name)
        return label

    return change, d


if __name__ == "__main__":
    common.cli(__name__)
