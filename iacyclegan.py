"""IACycleGAN: photo and sketch, synthesis and recognition improving each other.

Yuke Fang, Weihong Deng, Junping Du, Jiani Hu. "Identity-Aware CycleGAN for Face Photo-Sketch Synthesis and Recognition",
Pattern Recognition 2020, arXiv 2103.16019. No code of the authors is public.

The idea. CycleGAN between photos X and sketches Y learns a look, not a person. So a face recogniser of each modality judges,
too: what G_X draws of a photo must look to the recogniser of sketches like the real sketch of the same person. Then the
recognisers are tuned, with triplets of real and generated pictures; then the generators are trained anew with the better
recognisers; and again.

The claim. Better sketches and photos (SSIM, FSIM) and better recognition across the two than CycleGAN, and each round better
than the one before. (We could not read the paper's tables, so none of their digits is printed here.) `--ablate` measures it
on drawn people whose true sketch is known, also with a recogniser that no loss ever used, and with shuffled identities.

Equations (the order is the paper's; its numbers we could not confirm):
    [adv] adversarial, as in CycleGAN
    [cyc] cycle consistency
    [idp] identity perception
    [map] identity mapping
    [tri] triplet, for the recognisers

Run it:
    python iacyclegan.py --train                              toy faces and their pencil sketches: CycleGAN, then two rounds
    python iacyclegan.py --train --data CUFS [--vgg-face vgg_face.pth]
    python iacyclegan.py --evaluate                           every round: SSIM, FSIM, recognition both ways
    python iacyclegan.py --ablate                             three seeds, shuffled identities, a poor first round
    python iacyclegan.py --infer photo.jpg                    photo to sketch; --backward: sketch to photo

Data sets: CUFS and CUFSF, as distributed (CUHK_training_cropped_photos/photos beside CUHK_training_cropped_sketches/sketches ...)
and as people lay them out (photos/ and sketches/ in one folder, in one for each part, in train/ and test/). A photo and its sketch
have the same name but for endings such as -sz1, or the same sex and number (f-005-01.jpg, F2-005-01-sz1.jpg). Test people: where a
folder is named test...; else list_test.txt; else everybody's numbers (CUHK student 100, AR 43, XM2VTS 195, CUFSF 944; see `scan`).

A weight that cannot be. The paper gives lambda_idp = 3e7, and neither layer nor norm nor mean or sum. With features of length 1
the squared distance of two people is 2 - 2 cos, about 1: times 3e7 nothing else would be heard. As the mean over raw values of order
1 it is about 1 as well. A term of about 1 needs a mean of squares of 3e-8, features that differ by 1.8e-4 each: no usual convention.
So here: unit features, 2 - 2 cos, and a weight that makes the term as heavy as the cycle loss before the first step (`--lambda-idp
0`; the arithmetic is printed). `--idp raw-mean --lambda-idp 3e7` is one reading of the paper's number.

What is ours where the paper is silent: least squares for [adv] (CycleGAN's code), the identity mapping is CycleGAN's (G_X shown a
sketch leaves it as it is), margin .2 on unit features and all triplets of a batch, generators from scratch in every round,
recognisers go on. Pairs are paired by person: photo and sketch are cropped and mirrored independently, so there is no loss between
their pixels. The toy artist draws from memory: another mood, light and turn of the head than in the photo, and a caricature.

If the first round is poor, does tuning on it still help? (A reader asks.) At test time the recogniser sees generated pictures of
the same kind, so tuning on them closes a gap even when they are ugly; when they carry no identity at all, triplets are noise, and
the next generators follow a damaged judge. `--ablate` has the rows. `--warm-recogniser` tunes on real pictures alone before the
first round.
"""
import copy
import dataclasses
import re
import shutil
import sys
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import piq
import torch
import torch.nn as nn
import torch.nn.functional as F
import torchvision
from tqdm import tqdm

import common
import toyfaces
from common import ImagePool, PatchGAN, ResNet, Run, UserError, draw_crops, frozen, grid, prepare, say


@dataclass
class Config(common.Settings):
    """The paper's recipe; where it is silent, CycleGAN's code."""
    # data
    image_size: int = 256             # CycleGAN; the paper does not say
    load_size: int = 0                # CycleGAN: 256 cut at random from 286; 0 = in this proportion
    people: int = 200                 # ours: toy people to train on, a photo and a sketch each
    exaggeration: float = 1.3         # ours: how far the toy artist moves every proportion from the average
    # networks
    width: int = 64                   # CycleGAN
    residual_blocks: int = 9          # CycleGAN: for 256 px
    d_width: int = 64                 # CycleGAN
    vgg_face: str = ""                # the paper's recogniser: a file of VGG-Face weights; none = a small recogniser of toy faces
    vgg_bgr: bool = False             # ours: the file's network expects blue first, as Caffe's does
    # losses
    lambda_cyc: float = 10.           # the paper
    lambda_idp: float = 0.            # the paper: 3e7, which fits no usual convention; ours: 0 = as heavy as the cycle loss at the start
    lambda_map: float = 5.            # the paper
    idp: str = field(default="unit", metadata={"choices": ("unit", "raw-mean")})       # ours: unit features, 2 - 2 cos; raw-mean: see the docstring
    identities: str = field(default="right", metadata={"choices": ("right", "shuffled")})      # ours: shuffled = the control of --ablate
    glances: int = 0                  # ours, off: moved, noisy copies of a generated picture for [idp] and the tuning to look at; 0 = the picture itself
    margin: float = .2                # ours: FaceNet's; the paper does not say
    # training
    rounds: int = 2                   # ours: rounds after CycleGAN; the paper's chain, CycleGAN, tune, IACycleGAN, tune, is 1
    epochs: int = 200                 # the paper: 100 constant, 100 to zero; in every round
    steps: int = 0                    # ours: of the generators in every round; 0 = epochs
    batch_size: int = 1               # CycleGAN
    lr: float = 2e-4                  # the paper
    betas: tuple = (.5, .999)         # CycleGAN
    decay_from: float = .5            # the paper: half of the epochs constant, then linear to 0
    pool_size: int = 50               # CycleGAN
    recogniser_steps: int = 1000      # ours: the paper does not say
    recogniser_lr: float = 1e-4       # ours: likewise
    recogniser_people: int = 16       # ours: people in a batch, two real and two generated pictures each
    first: float = 1.                 # ours: share of the steps that the first round, CycleGAN, gets (ablation)
    tuned: bool = True                # the paper; --no-tuned: recognisers as they were (ablation)
    warm_recogniser: bool = False     # ours: tune the recognisers on real pictures before the first round, too


# For a processor: 64 px and a quarter of the widths. All of it ours.
SMALL = dict(image_size=64, width=16, d_width=16, residual_blocks=3, steps=3000, lr=5e-4, recogniser_steps=300)
INFER_FLAGS = {
    "--backward": dict(action="store_true", help="the files are sketches: draw photos"),
    "--which": dict(type=int, default=None, metavar="N", help="generators of this round (0: CycleGAN); default: the last"),
    "--out": dict(default="", metavar="DIR", help="where to write (default: the run folder)"),
}
HEALTH = {"copying": "output hardly differs from its input", "collapsed": "outputs for different inputs look alike",
          "D-won": "D tells every real picture from every generated one", "nan": "a loss is not finite"}


# ========================================================================================================== data

class Pairs:
    """A photo and a sketch of each person. X, Y: uint8 [N, 3, L, L], the same index the same person.

    truth: (X', Y') where they are known: the photo of the very sitting that Y shows, the sketch of the very sitting of X; else
    (X, Y). sample(B): x, y [B, 3, S, S] of the same B people, each cropped and mirrored on its own (paired by person, not by
    pixel), and the targets of [idp]: other crops of the same two pictures, or of anybody's where identities are shuffled.
    """

    def __init__(self, cfg, X, Y, truth=None):
        self.cfg, self.X, self.Y, self.truth = cfg, X, Y, truth or (X, Y)
        self.generator = torch.Generator().manual_seed(cfg.seed)

    def __len__(self):
        return len(self.X)

    def view(self, bank, index, g=None):
        """Pictures `index`, each with a crop and mirroring of its own."""
        g = g or self.generator
        corner = torch.randint(bank.shape[-1] - self.cfg.image_size + 1, (2, len(index)), generator=g)
        return draw_crops(bank, index, *corner, self.cfg.image_size, self.cfg.device, torch.rand(len(index), generator=g) < .5)

    def sample(self, batch_size):
        index, anybody = torch.randint(len(self), (2, batch_size), generator=self.generator)
        shown = index if self.cfg.identities == "right" else anybody
        return *(self.view(bank, index) for bank in (self.X, self.Y)), *(self.view(bank, shown) for bank in (self.X, self.Y))

    def whole(self, index, banks=None):
        """Photos and sketches `index` for testing: [b, 3, S, S] each, the middle of the stored pictures."""
        corner = torch.full((len(index),), (self.X.shape[-1] - self.cfg.image_size) // 2)
        return [draw_crops(bank, index, corner, corner, self.cfg.image_size, self.cfg.device) for bank in banks or (self.X, self.Y)]


def load_size(cfg):
    """Side of the stored pictures, of which image_size is cut."""
    return cfg.load_size or cfg.image_size * 143 // 128


def pair_key(path):
    """What a photo and its sketch have in common: the name without the ending -sz1, in lower case."""
    return re.sub(r"-sz\d*$", "", path.stem.lower())


def matched(photos, sketches):
    """[(photo, sketch)] of the same people, and the names of those without a partner.

    By name; what is left over by CUHK student's sex and number: f-005-01 and f2-005-01.
    """
    def loose(path):
        m = re.fullmatch(r"([fm])\d?-(\d+)-\d+", pair_key(path))
        return m and m[1] + m[2]

    pairs, alone = [], [list(photos), list(sketches)]
    for key in (pair_key, loose):
        found = [{}, {}]
        for side, paths in zip(found, alone, strict=True):
            for path in paths:
                if key(path):
                    side.setdefault(key(path), []).append(path)
        both = [k for k, paths in found[0].items() if len(paths) == 1 and len(found[1].get(k, ())) == 1]      # ambiguous names stay alone
        pairs += [(found[0][k][0], found[1][k][0]) for k in both]
        alone = [[p for p in paths if key(p) not in both] for paths in alone]
    return sorted(pairs), alone[0] + alone[1]


HELD_OUT = {188: 100, 123: 43, 295: 195, 1194: 944}                     # CUHK student, AR, XM2VTS, CUFSF: pairs, and how many everybody tests on
A_TEST = re.compile(r"(?<!la)test")                                     # in the name of a part: testing, test/AR; but not latest


def parts_of(root):
    """{part: (photos, sketches)}: files under folders whose name, or their parent's, says photo or sketch; cropped ones before others."""
    found = {}
    for folder in common.folders_below(root):
        words = [part.lower() for part in folder.relative_to(root).parts]
        kind = next((k for word in reversed(words) for k, name in enumerate(("photo", "sketch")) if name in word), None)
        files = common.pictures_in(folder)
        if kind is not None and files:
            part = tuple(rest for word in words if (rest := re.sub(r"photos?|sketch(es)?|cropped|original|[_\- ]", "", word)))
            found.setdefault(part, ([], []))[kind].append(("cropped" not in str(folder).lower(), files))
    return {"/".join(part): tuple(min(side)[1] for side in sides) for part, sides in found.items() if all(sides)}


def scan(cfg):
    """What is under cfg.data: pairs of files, test (bool each); for --check images, bad, notes, bytes_per_image.

    Held out, where list_test.txt is there: its lines photo||sketch||.... Else, of parts named train... and test..., the latter; of
    others, CUHK student's whose sketch is not named F2-... or M2-... (the official 100), else as many as HELD_OUT says of about so
    many pairs, or a quarter, evenly spread over the names (which sort by sex).
    """
    root, pairs, test, bad, counts = Path(cfg.data), [], [], [], []
    lines = common.text_of(root / "list_test.txt").splitlines() if (root / "list_test.txt").exists() else ()
    listed, parts = {line.split("||")[0].strip().replace("\\", "/") for line in lines}, parts_of(root)
    split = any(map(A_TEST.search, parts))
    for part, sides in parts.items():
        both, alone = matched(*sides)
        bad += [f"{path}: no single partner of the same name; expected e.g. photos/f-005-01.jpg and sketches/f-005-01-sz1.jpg" for path in alone]
        official = [re.match(r"[fm]2-", sketch.stem.lower()) is not None for _, sketch in both]
        n = next((held for about, held in HELD_OUT.items() if abs(len(both) - about) < 4), len(both) // 4)
        named = split and (A_TEST.search(part) or "train" in part)
        for k, (photo, _) in enumerate(both):
            pairs.append(both[k])
            if named or listed:
                test.append(photo.relative_to(root).as_posix() in listed if listed else bool(A_TEST.search(part)))
            else:
                test.append(not official[k] if any(official) else (k + 1) * n // len(both) > k * n // len(both))
        counts.append(f"{part or '.'} ({len(both)})")
    if listed and pairs and not any(test):
        raise UserError(f"{root / 'list_test.txt'}: none of its {len(listed)} lines names a photo that was found, as {min(listed)!r}; expected names from "
                        f"{root} on, as {pairs[0][0].relative_to(root).as_posix()}||...")
    if not any(test) or all(test):
        raise UserError(f"{root}: {len(pairs)} pairs of photo and sketch, {sum(test)} of them held out; expected photos/ and sketches/ in one folder, in "
                        "train/ and test/, or in one for each part" + (f"; {bad[0]}" if bad else ""))
    return dict(pairs=pairs, test=test, images=[p for pair in pairs for p in pair], bad=bad, bytes_per_image=3 * load_size(cfg) ** 2,
                notes={"pairs": f"{len(pairs)}, {sum(test)} of them held out", "parts": ", ".join(counts)})


def padded(image, side):
    """A whole picture in a square, its edges repeated, resized to side x side. (CUFS: 200 x 250.)"""
    middle, half = torch.tensor([image.width, image.height]) / 2 - .5, max(image.size) / 2
    return common.crop(image, middle - half, middle + half, side)


TRAIN_SEED, TEST_SEED, TEST_PEOPLE = 60_000, 59_000, 400                # people drawn from other seeds are other people


def make_data(cfg, test=False):
    """Pairs to train on, or those of other people (test)."""
    L = load_size(cfg)
    if not cfg.data:
        count, seed = (TEST_PEOPLE, TEST_SEED) if test else (cfg.people, TRAIN_SEED + 10 * cfg.seed)
        photo = toyfaces.sample(count, seed, cfg.device, pose=.15, makeup=False).set(background=1.)
        memory = photo.take(toyfaces.sample(count, seed + 1, cfg.device, pose=.15), toyfaces.EXPRESSION + toyfaces.POSE + ("light", "light_strength"))
        drawn = [toyfaces.exaggerate(faces, cfg.exaggeration) for faces in (memory, photo)]
        X, Y = common.toy_bank(cfg, photo, L), common.toy_bank(cfg, drawn[0], L, pencil)
        return Pairs(cfg, X, Y, (common.toy_bank(cfg, memory, L), common.toy_bank(cfg, drawn[1], L, pencil)) if test else None)
    found = scan(cfg)
    common.report_bad(found["bad"], len(found["images"]) + len(found["bad"]), cfg.skip_bad)
    mine = [pair for pair, is_test in zip(found["pairs"], found["test"], strict=True) if is_test == test]
    files = [path for pair in mine for path in pair]
    bank, good = common.decoded_bank(cfg, files, (3, L, L), lambda k: np.asarray(padded(common.open_image(files[k]), L)).transpose(2, 0, 1), "padded")
    if len(good) == len(files):
        return Pairs(cfg, bank[0::2], bank[1::2])
    place = {k: n for n, k in enumerate(good)}                         # with --skip-bad: both or none
    whole = [k for k in range(0, len(files), 2) if k in place and k + 1 in place]
    if not whole:
        raise UserError(f"{cfg.data}: of none of {len(mine)} pairs both pictures can be read")
    return Pairs(cfg, *(bank[torch.tensor([place[k + side] for k in whole])] for side in (0, 1)))


def pencil(faces, size):
    """Pencil sketches as three equal channels; the faces are caricatures already."""
    return toyfaces.sketch(faces, size, 1.).expand(-1, 3, -1, -1)


# ====================================================================================================== networks
# G_X draws the sketch of a photo, G_Y the photo of a sketch: named by where they come from. ResNet: 11,378,179 parameters with
# 9 blocks; the 70 x 70 PatchGAN: 2,764,737.

def build(cfg):
    """G_X, G_Y, D_X, D_Y, weights from N(0, .02)."""
    widths = [cfg.d_width * min(2 ** k, 8) for k in range(4)]
    return (*(common.init_normal(ResNet(cfg.residual_blocks, cfg.width)) for _ in "XY"),
            *(common.init_normal(PatchGAN(3, widths, (2, 2, 2, 1), norm="instance")) for _ in "XY"))


class Recogniser(nn.Module):
    """phi: faces [B, 3, S, S] in [-1, 1] -> features [B, n]. forward: of unit length; raw: as the network gives them.

    VGG-Face (VGG-16 for 2622 people, up to fc7: 134,260,544 parameters) where cfg.vgg_face names its weights; else a small
    recogniser of toy people that are in neither training nor test set, for sketches and real photographs, too, of which it knows
    little at first. load=False: weights follow.
    """
    MEAN = (129.1863, 104.7624, 93.5940)                               # VGG-Face: R, G, B of 0 ... 255

    def __init__(self, cfg, load=True):
        super().__init__()
        self.vgg, self.bgr = bool(cfg.vgg_face), cfg.vgg_bgr
        self.register_buffer("mean", torch.tensor(self.MEAN)[:, None, None], persistent=False)
        if self.vgg:
            self.net = torchvision.models.vgg16(num_classes=2622)
            if load:
                common.load_weights(self.net, vgg_keys(common.load_checkpoint(cfg.vgg_face)), cfg.vgg_face)
            self.net.classifier = self.net.classifier[:4]              # fc6, ReLU, dropout, fc7 before its ReLU
        else:
            self.net = copy.deepcopy(toyfaces.judge("identity", cfg.image_size, 1, cfg.device, cfg.cache)[0]) if load else toyfaces.Judge("identity")
        self.eval().requires_grad_(True)                               # but batch norm keeps its statistics, dropout is off

    def raw(self, x):
        if not self.vgg:
            return self.net.embed(self.net.features(x)[-1])
        x = F.interpolate(x, (224, 224), mode="bilinear", align_corners=False)
        x = (x + 1) * 127.5 - self.mean
        return self.net(x.flip(1) if self.bgr else x)

    def forward(self, x):
        return F.normalize(self.raw(x), dim=1)


def vgg_keys(state):
    """VGG-Face's layer names (conv1_1 or conv_1_1 ... fc8), or torchvision's, as torchvision's."""
    first = {"1": 0, "2": 5, "3": 10, "4": 17, "5": 24}
    out = {}
    inner = state.get("state_dict", state)
    for key, value in (inner if isinstance(inner, dict) else state).items():
        key = key.removeprefix("module.")
        if m := re.fullmatch(r"conv_?(\d)_(\d)\.(weight|bias)", key):
            key = f"features.{first[m[1]] + 2 * (int(m[2]) - 1)}.{m[3]}"
        elif m := re.fullmatch(r"fc([678])\.(weight|bias)", key):
            key = f"classifier.{3 * (int(m[1]) - 6)}.{m[2]}"
        out[key] = value
    return out


# ======================================================================================================== losses
# || . ||_1 is the mean absolute value over batch, channels and pixels of pictures in [-1, 1], as in CycleGAN's code. [adv] with
# least squares, as there; the log form is the textbook's.

def loss_adv_D(D, real, fake):
    """[adv]  E[log D_Y(y)] + E[log(1 - D_Y(G_X(x)))], and the same for X; here with least squares, halved, minimised by D"""
    return common.lsgan_D(*D(torch.cat([real, fake])).chunk(2)) / 2    # one pass for both: instance norm mixes no pictures


def loss_adv_G(D, fake):
    """[adv]  G's side: (D_Y(G_X(x)) - 1)^2, minimised by G"""
    return common.lsgan_G(D(fake))


def loss_cyc(x, x_back):
    """[cyc]  E ||G_Y(G_X(x)) - x||_1 + E ||G_X(G_Y(y)) - y||_1; this is one of the two terms. Weight: lambda_cyc"""
    return (x_back - x).abs().mean()


def loss_idp(phi, real, fake, kind="unit"):
    """[idp]  E ||phi_Y(y) - phi_Y(G_X(x))||_2^2 + E ||phi_X(x) - phi_X(G_Y(y))||_2^2; this is one of the two terms

    real [B, 3, S, S]: the true picture, in the modality of fake, of the *same person*; fake [n B, 3, S, S]: see `glances`.
    unit: features of length 1, summed: 2 - 2 cos. raw-mean: features as they are, mean of the squares. The gradient reaches fake alone. Weight: lambda_idp
    """
    seen = phi if kind == "unit" else phi.raw
    squares = (seen(fake) - seen(real).detach().repeat(len(fake) // len(real), 1)) ** 2
    return squares.sum(1).mean() if kind == "unit" else squares.mean()


def glances(x, n, reach=3, noise=.1):
    """What a recogniser is shown of generated pictures x [B, 3, S, S]: n copies of all, each moved by up to `reach` px and with noise; x itself for n = 0.

    A recogniser can be deceived by dots that no eye takes for a face, and [idp] finds them; but not by such that hold in every place.
    """
    S, room = x.shape[-1], F.pad(x, (reach,) * 4, mode="replicate")
    moved = [room[..., a:a + S, b:b + S] for a, b in torch.randint(2 * reach + 1, (n, 2)).tolist()]
    return torch.cat([copy + noise * torch.randn_like(copy) for copy in moved]) if n else x


def loss_map(y, y_same):
    """[map]  E ||G_X(y) - y||_1 + E ||G_Y(x) - x||_1: what is a sketch already stays as it is. One of the two terms.

    y_same: G_X(y); or G_Y(x), with x. Weight: lambda_map
    """
    return (y_same - y).abs().mean()


def loss_tri(f, who, margin=.2):
    """[tri]  sum max(0, ||f_a - f_p||^2 - ||f_a - f_n||^2 + alpha), here the mean over the triplets that are above 0

    f: [M, n] unit features of real and generated pictures; who: [M]. Every triplet of the batch: a and p of one person, n of another.
    (With the hardest p and n alone all features ran together into one, where the loss is alpha and has no slope.) Weight: margin
    """
    who = who.to(f.device, non_blocking=True)
    distance, same = 2 - 2 * f @ f.T, who[:, None] == who[None, :]
    pair = same & ~torch.eye(len(who), dtype=torch.bool, device=f.device)
    loss = torch.relu(distance[:, :, None] - distance[:, None, :] + margin) * (pair[:, :, None] & ~same[:, None, :])      # a, p, n
    return loss.sum() / (loss > 0).sum().clamp(min=1)


# ====================================================================================================== training

def validate(cfg):
    """Raises UserError for settings that do not fit together."""
    positive = ("width", "d_width", "residual_blocks", "people", "recogniser_steps", "recogniser_people", "first")
    for name, fits, expected in (*((name, getattr(cfg, name) > 0, "more than 0") for name in positive),
                                 ("image_size", cfg.image_size % 4 == 0 and cfg.image_size >= 32, "a multiple of 4, at least 32"),
                                 ("load_size", load_size(cfg) >= cfg.image_size, f"at least --image-size {cfg.image_size}"),
                                 ("pool_size", not 0 < cfg.pool_size < cfg.batch_size, "at least --batch-size, or 0"),
                                 ("epochs", cfg.epochs or cfg.steps, "at least 1, or --steps"),
                                 ("lambda_idp", cfg.idp == "unit" or cfg.lambda_idp > 0, "a weight for --idp raw-mean; the paper's is 3e7")):
        if not fits:
            raise UserError(f"--{name.replace('_', '-')} {getattr(cfg, name)}: expected {expected}")


def of_round(cfg, r):
    """The settings of round r, in a folder of its own. What does not concern its generators is as in every other chain of rounds."""
    return dataclasses.replace(cfg, run=str(Path(cfg.run) / f"round{r}"), rounds=0, first=1., tuned=True, warm_recogniser=False,
                               **(dict(steps=max(1, round(cfg.steps * cfg.first)), identities="right") if r == 0 else {}))


def train(cfg):
    """The mutual optimisation. Writes cfg.run/round0, round1 ...; returns G_X, G_Y of the last round."""
    validate(cfg)
    if cfg.weights:
        raise UserError("--weights: every round starts from scratch; give it with --infer")
    data, held_out = make_data(cfg), make_data(cfg, test=True)
    phi = [Recogniser(cfg).to(cfg.device) for _ in "XY"]                                   # phi_X reads photos, phi_Y sketches
    cfg = dataclasses.replace(cfg, steps=cfg.steps or cfg.epochs * -(-len(data) // cfg.batch_size))
    if cfg.fresh:
        for old in Path(cfg.run).glob("round*"):
            shutil.rmtree(old)
        cfg.fresh = False
    chain = Path(cfg.run) / "chain.json"                               # what no round's own checkpoint tells: how the recognisers came to be
    ways = {name: getattr(cfg, name) for name in ("tuned", "warm_recogniser", "recogniser_steps", "recogniser_lr", "recogniser_people", "margin")}
    before = common.read_json(chain) if any(Path(cfg.run).glob("round*")) else {}
    if other := [f"{name} (was {before[name]!r}, now {now!r})" for name, now in ways.items() if before.get(name, now) != now]:
        raise UserError(f"{cfg.run}: its recognisers were made with another {', '.join(other)}; give the same settings, another --run folder, or --fresh")
    if not cfg.bench:
        common.write_json(chain, ways)
    for r in rounds_of(cfg):                                           # recognisers tuned on half of a training would mislead the rounds after it
        before = common.steps_of(Path(cfg.run) / f"round{r}" / "last.pt", cfg)
        if before != of_round(cfg, r).steps:
            raise UserError(f"{cfg.run}/round{r} was trained for {before} steps, now {of_round(cfg, r).steps}; give the same --steps, another --run folder, "
                            "or --fresh")
    if cfg.data and not cfg.vgg_face:
        say("no --vgg-face file: a small recogniser of toy faces begins, which knows little of photographs; see --warm-recogniser")
    if cfg.bench:
        return train_generators(of_round(cfg, 1), phi, data, held_out)
    if cfg.warm_recogniser:
        phi = tune(of_round(cfg, "warm"), phi, data, None)
    for r in range(cfg.rounds + 1):
        one = of_round(cfg, r)
        say(f"round {r}: " + ("CycleGAN, no recogniser" if r == 0 else "generators from scratch, with the recognisers of the round before"))
        G = train_generators(one, phi if r else None, data, held_out)                      # 1. recognisers fixed
        if 0 < cfg.stop_after < one.steps:
            break
        if cfg.tuned:
            phi = tune(one, phi, data, G)                                                  # 2. generators fixed
    return G


def train_generators(cfg, phi, data, held_out):
    """One round of synthesis, from scratch: CycleGAN, and with phi = (phi_X, phi_Y) the identity loss. Returns G_X, G_Y (on cfg.device)."""
    torch.manual_seed(cfg.seed)
    data = Pairs(cfg, data.X, data.Y)                                                      # its generator starts anew
    G_X, G_Y, D_X, D_Y = nets = [prepare(net, cfg) for net in build(cfg)]
    scale = nn.Module()                                                                    # lambda_idp, kept in the checkpoint
    scale.register_buffer("lambda_idp", torch.tensor(calibrated(cfg, G_X, G_Y, phi, data) if phi else 0.))
    pool_X, pool_Y = (ImagePool(cfg.pool_size, cfg.image_size, cfg.device) for _ in "XY")
    opt_G = torch.optim.Adam([*G_X.parameters(), *G_Y.parameters()], cfg.lr, cfg.betas, fused=True)
    opt_D = torch.optim.Adam([*D_X.parameters(), *D_Y.parameters()], cfg.lr, cfg.betas, fused=True)
    names = ("G_X", "G_Y", "D_X", "D_Y", "pool_X", "pool_Y", "scale")
    run = Run(cfg, dict(zip(names, (*nets, pool_X, pool_Y, scale), strict=True)), {"G": opt_G, "D": opt_D}, data, HEALTH)
    lambda_idp = scale.lambda_idp.item()

    L = {}
    for step, (x, y, x_of_person, y_of_person) in run.batches(cfg.batch_size):
        run.learning_rate(cfg.lr * common.linear_decay(step, cfg.steps, cfg.decay_from))

        # 1. G_X and G_Y: a sketch like the artist's, of this person, from which the photo can be found again
        y_fake, y_same = G_X(torch.cat([x, y])).chunk(2)                                   # one pass where one serves
        x_fake, x_back, x_same = G_Y(torch.cat([y, y_fake, x])).chunk(3)
        y_back = G_X(x_fake)
        with frozen(D_X, D_Y):
            L["adv_X"], L["adv_Y"] = loss_adv_G(D_Y, y_fake), loss_adv_G(D_X, x_fake)                             # [adv]
            L["cyc_x"] = cfg.lambda_cyc * loss_cyc(x, x_back)                                                     # [cyc]
            L["cyc_y"] = cfg.lambda_cyc * loss_cyc(y, y_back)                                                     # [cyc]
            L["map"] = cfg.lambda_map * (loss_map(y, y_same) + loss_map(x, x_same))                               # [map]
            if phi:
                with frozen(*phi):
                    L["idp_Y"] = lambda_idp * loss_idp(phi[1], y_of_person, glances(y_fake, cfg.glances), cfg.idp)      # [idp]
                    L["idp_X"] = lambda_idp * loss_idp(phi[0], x_of_person, glances(x_fake, cfg.glances), cfg.idp)      # [idp]
            run.update("G", sum(value for name, value in L.items() if not name.startswith("D_")))

        # 2. D_X and D_Y: real pictures 1; generated ones, new or from the pool, 0
        L["D_Y"] = loss_adv_D(D_Y, y, pool_Y(y_fake.detach()))                                                    # [adv]
        L["D_X"] = loss_adv_D(D_X, x, pool_X(x_fake.detach()))                                                    # [adv]
        run.update("D", L["D_X"] + L["D_Y"])

        # 3. What happened ----------------------------------------------------------------------------
        if run.logs(step):
            run.log(step, **report(cfg, (G_X, G_Y), (D_Y, D_X), held_out), lambda_idp=lambda_idp, **{f"L_{name}": value.detach() for name, value in L.items()})
        if run.samples(step):
            run.sample(step, sample_grid((G_X, G_Y), held_out))
    return G_X, G_Y


@torch.no_grad()
def calibrated(cfg, G_X, G_Y, phi, data, n=16):
    """cfg.lambda_idp, or if that is 0 what makes [idp] weigh as much as [cyc] before the first step. The arithmetic is printed."""
    x, y = data.whole(torch.arange(min(n, len(data))))
    y_fake, x_fake = G_X(x), G_Y(y)
    cyc = cfg.lambda_cyc * (loss_cyc(x, G_Y(y_fake)) + loss_cyc(y, G_X(x_fake))).item()
    idp = {kind: (loss_idp(phi[1], y, y_fake, kind) + loss_idp(phi[0], x, x_fake, kind)).item() for kind in ("unit", "raw-mean")}
    weight = cfg.lambda_idp or cyc / idp[cfg.idp]
    say(f"before the first step: cycle loss {cyc:.3g} with its weight; identity loss {idp['unit']:.3g} of unit features, {idp['raw-mean']:.3g} as raw mean; "
        f"lambda_idp {weight:.3g} makes it {weight * idp[cfg.idp]:.3g}, the paper's 3e7 {3e7 * idp['unit']:.2g} or {3e7 * idp['raw-mean']:.2g}")
    return weight


def tune(cfg, phi, data, G):
    """One round of recognition: phi_X and phi_Y, each with triplets of real pictures and, with G, of generated ones. Writes cfg.run/recognisers.pt.

    Every person in a batch shows two real and two generated pictures, each cropped and mirrored on its own. Batch norm keeps its
    statistics. Returns new recognisers.
    """
    if (Path(cfg.run) / "recognisers.pt").exists():
        return recognisers(cfg)
    torch.manual_seed(cfg.seed)                                        # of --glances
    phi, g = [copy.deepcopy(one) for one in phi], torch.Generator().manual_seed(cfg.seed)
    for name, one, real, other, paint in zip(("phi_X", "phi_Y"), phi, (data.X, data.Y), (data.Y, data.X), (1, 0), strict=True):
        optimiser, losses = torch.optim.Adam(one.parameters(), cfg.recogniser_lr, fused=True), []
        for _ in tqdm(range(cfg.recogniser_steps), f"tuning {name}", disable=not sys.stderr.isatty()):
            person = torch.randperm(len(data), generator=g)[:cfg.recogniser_people]
            shown = [data.view(real, person, g) for _ in range(2)]
            if G is not None:
                with torch.no_grad():
                    shown += [G[paint](data.view(other, person, g)) for _ in range(2)]
            shown, person = torch.cat(shown), person.repeat(len(shown))
            loss = loss_tri(one(glances(shown, min(1, cfg.glances))), person, cfg.margin)                         # [tri]
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            losses.append(loss.detach())
        first, last = (torch.stack(part).mean() for part in (losses[:20], losses[-20:]))
        say(f"{name}: triplet loss {first:.3f} at first, {last:.3f} at last")
    Path(cfg.run).mkdir(parents=True, exist_ok=True)
    nets = {name: one.state_dict() for name, one in zip(("phi_X", "phi_Y"), phi, strict=True)}
    common.save_checkpoint({"paper": Path(__file__).stem, "nets": nets}, Path(cfg.run) / "recognisers.pt")
    return phi


def recognisers(cfg):
    """phi_X, phi_Y as they were after the round in cfg.run. Were they not tuned then: of the newest round before it that has some, or as before any."""
    folder, name = Path(cfg.run), Path(cfg.run).name
    before = [f"round{r}" for r in range(int(name[5:]) - 1, -1, -1)] + ["roundwarm"] if re.fullmatch(r"round\d+", name) else []
    path = next((p for p in (folder / "recognisers.pt", *(folder.parent / one / "recognisers.pt" for one in before)) if p.exists()), None)
    if path is None or path.parent != folder:
        say(f"{folder}: holds no recognisers tuned after it; its drawings are read by those " + (f"of {path.parent}" if path else "that no round has tuned"))
    if path is None:
        return [Recogniser(cfg).to(cfg.device) for _ in "XY"]
    saved = common.load_checkpoint(path)
    common.check_paper(saved, path, Path(__file__).stem, ("nets",))
    return [common.load_weights(Recogniser(cfg, load=False), saved["nets"].get(name, {}), path).to(cfg.device) for name in ("phi_X", "phi_Y")]


@torch.no_grad()
def report(cfg, G, D, data, n=8):
    """The health word and the numbers behind it, on held-out people (L1 in units of the full range, 0 ... 1). Names ending in _Y are G_Y's.

    change: |G(x) - x|; spread: how much outputs for different inputs differ; error and baseline: L1 to the true picture of that
    person, of G and of a copy (which an artist's exaggeration keeps above 0).
    """
    pictures, values = data.whole(torch.linspace(0, len(data) - 1, min(n, len(data))).round().long()), {"health": "ok"}
    for k, suffix in enumerate(("", "_Y")):
        x, truth = pictures if k == 0 else pictures[::-1]
        y = G[k](x)
        real, fake = D[k](truth), D[k](y)
        values |= {f"change{suffix}": (y - x).abs().mean() / 2, f"spread{suffix}": (y - y.roll(1, 0)).abs().mean() / 2,
                   f"error{suffix}": (y - truth).abs().mean() / 2, f"baseline{suffix}": (x - truth).abs().mean() / 2}
        if values["health"] != "ok":
            continue
        if values[f"change{suffix}"] < .05 * values[f"baseline{suffix}"]:
            values["health"] = "copying"
        elif values[f"spread{suffix}"] < .1 * (truth - truth.roll(1, 0)).abs().mean() / 2:
            values["health"] = "collapsed"
        elif real.mean(dim=(1, 2, 3)).min() > .9 and fake.mean(dim=(1, 2, 3)).max() < .1:
            values["health"] = "D-won"
    return values


@torch.no_grad()
def sample_grid(G, data, n=6):
    """Held-out people: photo, drawn sketch, way back, true sketch; sketch, drawn photo, way back, true photo."""
    x, y = data.whole(torch.linspace(0, len(data) - 1, min(n, len(data))).round().long())
    y_fake, x_fake = G[0](x), G[1](y)
    titles = ("photo", "G_X(x)", "G_Y(G_X(x))", "true sketch", "sketch", "G_Y(y)", "G_X(G_Y(y))", "true photo")
    return grid([x, y_fake, G[1](y_fake), y, y, x_fake, G[0](x_fake), x], titles, scale=max(1, 128 // x.shape[-1]))


# ==================================================================================================== evaluation

def rounds_of(cfg):
    """The numbers of the rounds that cfg.run holds."""
    return sorted(int(p.parent.name[5:]) for p in Path(cfg.run).glob("round*/last.pt") if p.parent.name[5:].isdecimal())


@common.reads_checkpoint
def trained(cfg, r=None):
    """(G_X, G_Y) of round r (default: the last) of cfg.run, or of the file cfg.weights; and that round's settings."""
    found = rounds_of(cfg)
    if not cfg.weights and (not found or (r is not None and r not in found)):
        raise UserError(f"{cfg.run}: " + (f"has no round {r}, only {', '.join(map(str, found))}" if found else "no such training; train first, or give --run"))
    path = Path(cfg.weights or Path(cfg.run) / f"round{found[-1] if r is None else r}" / "last.pt")
    saved = common.load_checkpoint(path)
    common.check_paper(saved, path, Path(__file__).stem)
    one = dataclasses.replace(cfg, run=str(path.parent))
    common.adopt(one, saved, ("image_size", "load_size", "width", "residual_blocks", "exaggeration", "vgg_face", "vgg_bgr"))
    if saved["step"] < saved["config"]["steps"]:
        say(f"{path}: only {saved['step']} of {saved['config']['steps']} steps trained")
    nets = (ResNet(one.residual_blocks, one.width) for _ in "XY")
    return [prepare(common.load_weights(net, saved["nets"].get(name, {}), path), one).eval() for net, name in zip(nets, ("G_X", "G_Y"), strict=True)], one


def recognised(gallery, probes, k=1):
    """Share of probes [n, f] whose own gallery feature, of the same index, is among the k nearest by cosine."""
    similarity = F.normalize(probes, dim=1) @ F.normalize(gallery, dim=1).T
    rank = (similarity >= similarity.diagonal()[:, None]).sum(1)                           # features that are not finite have none
    return (rank.ge(1) & rank.le(k)).float().mean().item()


def grey_of(x):
    """[B, 3, S, S] -> [B, 1, S, S], luma."""
    return (x * x.new_tensor([.299, .587, .114])[:, None, None]).sum(1, keepdim=True)


@torch.no_grad()
def measure(cfg, G, phi, data):
    """G = (G_X, G_Y), or None for the true pictures, on people never trained on, {measure: number}. See `evaluate`."""
    out = {}
    for name, k, kind in (("sketch", 0, "sketch"), ("photo", 1, "identity")):              # G_X draws sketches, G_Y photos
        quality, readers = [], {"own": phi[1 - k], "untuned": Recogniser(cfg).to(cfg.device)}
        if not cfg.data:
            other = readers["other"] = toyfaces.judge(kind, cfg.image_size, 2, cfg.device, cfg.cache)[0]
            if name == "photo":
                readers["other grey"] = lambda x, other=other: other(grey_of(x).expand(-1, 3, -1, -1))
        features = {whose: ([], []) for whose in readers}
        for index in torch.arange(len(data)).split(16):
            source, target = data.whole(index)[::1 - 2 * k]
            truth = data.whole(index, data.truth)[1 - k]
            made = truth if G is None else G[k](source)
            grey = [grey_of(p) for p in (made, truth)]
            S = made.shape[-1]
            inner = [p[..., int(.3 * S):int(.85 * S), int(.2 * S):int(.8 * S)] for p in grey]              # brows to mouth
            fsim = piq.fsim(*map(common.to_unit, grey), data_range=1., chromatic=False, reduction="none").float()
            quality.append(torch.stack([common.ssim(*grey), fsim, common.ssim(*inner), (made - truth).abs().flatten(1).mean(1) / 2]))
            for whose, reader in readers.items():
                for side, picture in zip(features[whose], (target, made), strict=True):
                    side.append(reader(picture))
        values = torch.cat(quality, 1).mean(1).tolist()
        out |= {f"{name} {what}": value for what, value in zip(("SSIM", "FSIM", "SSIM inner", "L1"), values, strict=True)}
        for whose, (f, f_made) in features.items():
            out |= {f"{name} rank-{n} {whose}": recognised(torch.cat(f), torch.cat(f_made), n) for n in (1, 5)}
    return out


def evaluate(cfg):
    """Every round of cfg.run, on people never trained on. Writes evaluation.json.

    SSIM, FSIM and L1 (0 ... 1) to the true sketch or photo, grey; inner: from the brows to the mouth. rank-1, rank-5: the paper's
    protocol, one modality is translated and the nearest of all true pictures of that modality is looked for. own: by the
    recogniser tuned after that round; untuned: by the one before all rounds, the same in every row; other (toy faces): by one
    that took part in no loss. Toy faces: the truth of SSIM, FSIM, L1 is the very sitting; the pictures to be found are of another
    one. other grey: the same reader, shown photos without their colours, which no sketch tells. The last row says what the readers make of true
    pictures.
    """
    rows = {}
    for r in [None] if cfg.weights else rounds_of(cfg) or [None]:
        G, one = trained(cfg, r)
        data = make_data(one, test=True)
        rows["weights" if r is None else "CycleGAN" if r == 0 else f"round {r}"] = measure(one, G, recognisers(one), data)
    if not one.data:
        rows["the true pictures"] = measure(one, None, recognisers(one), data)
    notes = f"{len(data)} people never trained on; G_X {common.n_parameters(G[0]):,} parameters; chance of rank-1 {1 / len(data):.4f}"
    if not one.data:
        errors = [toyfaces.judge(kind, one.image_size, 2, one.device, one.cache)[1] for kind in ("sketch", "identity")]
        notes += f"; other readers: equal error rate {errors[0]:.3f} on sketches, {errors[1]:.3f} on photos"
    return common.evaluation(cfg, rows, notes)


# ====================================================================================================== ablation

SEEDS = (0, 1, 2)
# Chains of rounds. first: the share of its steps that round 0, CycleGAN, gets; tuned: whether the recognisers are tuned after it.
CHAINS = {"IACycleGAN": dict(rounds=3), "shuffled identities": dict(rounds=1, identities="shuffled"), "untuned recogniser": dict(rounds=1, tuned=False),
          "tuned on real pictures only": dict(rounds=1, tuned=False, warm_recogniser=True),
          "poor first round, 20 %": dict(rounds=1, first=.2), "poor first round, 5 %": dict(rounds=1, first=.05)}


def _first_round(cfg):
    train(cfg)                                                         # and hand no network from one process to another


def _ablation_run(cfg):
    """One chain of rounds and the measures of each (in a process of its own on a CPU), as {"round r: measure": number}."""
    train(cfg)
    data, out = make_data(cfg, test=True), {}
    for r in rounds_of(cfg):
        G, one = trained(cfg, r)
        phi = recognisers(one)
        out |= {f"round {r}: {name}": value for name, value in measure(one, G, phi, data).items()}
    return out | {f"true: {name}": value for name, value in measure(one, None, phi, data).items()}


def ablate(cfg):
    """The paper's claims, on toy faces, three seeds. The thresholds stand here, and were set before running.

    identity  rank-1 sketch to photo by the recogniser that no loss ever used: round 1 at least 5 points above CycleGAN; with
              shuffled identities less than 2 points above.
    rounds    round 2 at least 1 point above round 1, by the same recogniser.
    pictures  FSIM to the true sketch above CycleGAN's in every seed, SSIM not more than .01 below, SSIM of the inner face at least
              .02 above.
    poor      (the reader's question) round 1 after a first round of a twentieth of the steps is above CycleGAN of full length in
              every seed, and in the mean not below round 1 with recognisers that were not tuned at all.

    Writes ablation.json and a .png beside it. An interrupted ablation continues.
    """
    validate(cfg)
    folder = common.ablation_folder(cfg)
    base = dataclasses.replace(cfg, fresh=False, first=1., tuned=True, identities="right", steps=cfg.steps or cfg.epochs * -(-cfg.people // cfg.batch_size))
    jobs = {(name, seed): dataclasses.replace(base, seed=seed, run=str(folder / f"{re.sub('[^a-z0-9]+', '-', name.lower())}-{seed}"), **change)
            for seed in SEEDS for name, change in CHAINS.items()}
    study = common.Ablation(jobs)
    for seed in SEEDS:                                                 # before the processes, which would all draw and train them
        make_data(dataclasses.replace(base, seed=seed))
    make_data(base, test=True)
    for kind, seed in (("identity", 1), ("identity", 2), ("sketch", 2)):
        toyfaces.judge(kind, cfg.image_size, seed, cfg.device, cfg.cache)
    first = [dataclasses.replace(base, seed=seed, rounds=0, run=str(folder / f"first-{seed}")) for seed in SEEDS]
    common.in_parallel(_first_round, first, cfg.device)                # the same CycleGAN begins three of the chains
    for (name, seed), one in jobs.items():
        if "first" not in CHAINS[name] and not (Path(one.run) / "round0").exists():
            beside = Path(one.run) / "round0.part"                     # a kill leaves no half of a round
            shutil.rmtree(beside, ignore_errors=True)
            shutil.copytree(folder / f"first-{seed}" / "round0", beside, ignore=None if one.tuned else shutil.ignore_patterns("recognisers.pt"))
            beside.rename(Path(one.run) / "round0")
    study.run(_ablation_run, cfg.device)
    measures = [f"{what} {number}" for what in ("sketch", "photo") for number in ("SSIM", "FSIM", "SSIM inner", "L1", "rank-1 own", "rank-1 untuned",
                                                                                 "rank-1 other")] + ["photo rank-1 other grey"]
    for name, change in CHAINS.items():
        for r in range(change["rounds"] + 1):
            study.row(f"{name}: {f'round {r}' if r else 'CycleGAN'}", **{k: study.values(name, f"round {r}: {k}") for k in measures})

    study.row("the true pictures", **{k: study.values("IACycleGAN", f"true: {k}") for k in measures})

    def of(name, r, what="photo rank-1 other"):
        return study.values(name, f"round {r}: {what}")

    ours, poor = "IACycleGAN", "poor first round, 5 %"
    plain, one, two = (of(ours, r) for r in range(3))
    study.claim("identity", "rank-1 sketch to photo by an independent recogniser: CycleGAN, with identity loss (round 1)", plain, one, True,
                at_least_5_points_above=one.mean() - plain.mean() >= .05,
                with_shuffled_identities_no_gain=of("shuffled identities", 1).mean() - plain.mean() < .02)
    study.claim("rounds", "the same: round 1, round 2", one, two, True, at_least_1_point_above=two.mean() - one.mean() >= .01)
    before, after = ([of(ours, r, f"sketch {what}") for what in ("FSIM", "SSIM", "SSIM inner")] for r in (0, 1))
    study.claim("pictures", "FSIM to the true sketch: CycleGAN, round 1", before[0], after[0], FSIM_above_in_every_seed=(after[0] > before[0]).all(),
                SSIM_not_below=after[1].mean() >= before[1].mean() - .01, inner_SSIM_above=after[2].mean() >= before[2].mean() + .02)
    study.claim("poor", "rank-1 sketch to photo: CycleGAN of full length, round 1 after a first round of a twentieth", plain, of(poor, 1), True,
                above_CycleGAN_in_every_seed=(of(poor, 1) > plain).all(),
                not_below_untuned_recognisers=of(poor, 1).mean() >= of("untuned recogniser", 1).mean())
    study.write(cfg)


# ===================================================================================================== inference

@torch.no_grad()
def infer(cfg, files, backward, which, out):
    """FILE or folder ...: photos, or with --backward sketches; any size. Writes <name>.png, the result, and <name>_sheet.png: input, result, way back.

    Resized to the scale of the training, edges repeated to a square for the network and cut off again.
    """
    files = common.named_pictures(files)
    photos = [common.open_image(file) for file in files.values()]
    G, one = trained(cfg, which)
    there, back = G[::-1] if backward else G
    folder, side = Path(out or Path(cfg.run) / "inferred"), -(-load_size(one) // 4) * 4
    folder.mkdir(parents=True, exist_ok=True)
    for (name, file), photo in zip(files.items(), photos, strict=True):
        x = common.to_tensor(padded(photo, side))[None].to(cfg.device)
        y = there(x)
        w, h = (max(1, round(side * v / max(photo.size))) for v in photo.size)
        inside = ((side - w) // 2, (side - h) // 2, (side - w) // 2 + w, (side - h) // 2 + h)
        grid([y]).crop((0, 0, side, side)).crop(inside).save(folder / f"{name}.png")
        grid([x, y, back(y)], ["input", "photo" if backward else "sketch", "back"], max(1, 128 // side)).save(folder / f"{name}_sheet.png")
        print(f"{file}: {photo.width} x {photo.height} -> {folder / f'{name}.png'} ({w} x {h}), {name}_sheet.png")


if __name__ == "__main__":
    common.cli(__name__)
