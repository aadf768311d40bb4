"""PairedCycleGAN: putting on someone else's make-up, and taking it off.

Huiwen Chang, Jingwan Lu, Fisher Yu, Adam Finkelstein. "PairedCycleGAN: Asymmetric Style Transfer for Applying and Removing
Makeup", CVPR 2018. The authors published neither code nor data.

The idea. Two functions that are not alike: G(x, y) puts the make-up of the reference y on the bare face x and needs both, F(y)
takes make-up off and needs one. Taken off again, the bare face must be found (as in CycleGAN); and G, given the reference's own
bare face and the first result as reference, must give the reference back, for which the style has to be in the first result.
A discriminator D_S looks at two faces and says whether they wear the *same* make-up. It learns that from pairs made by warping
the reference onto the source, W(x, y): nearly the right colours, the wrong face.

The claim. CycleGAN learns one look for everybody; here the reference is followed, and D_S is what makes its detail follow. The
paper shows that in pictures; on drawn faces the true result is known, so `--ablate` measures colours and whose style is worn.

Equations (the paper's order; its numbers we could not confirm):
    [L_G] adversarial, made-up faces
    [L_F] adversarial, bare faces
    [L_I] identity: the bare face again
    [L_S] style: the reference again
    [L_P] pairs: the same make-up?
    [L_R] sparsity of the change

Run it:
    python pairedcyclegan.py --train                                    toy faces, one generator for the whole face
    python pairedcyclegan.py --train --regions parts --run runs/parts   eyes and lips by networks of their own, over the rest of the face
    python pairedcyclegan.py --train --data MT --run runs/mt            images/{makeup,non-makeup}/ with segs/, or .pts files
    python pairedcyclegan.py --evaluate                                 colours, edges, identity, removal, against the truth
    python pairedcyclegan.py --ablate [--part style]                    with and without D_S; removal, pairs, regions: without [L_S], true pairs, parts
    python pairedcyclegan.py --infer me.jpg --reference star.jpg        also --strength .5
    python pairedcyclegan.py --infer star.jpg --remove                  the other way

Data sets: MT as PSGAN lays it out: images/makeup, images/non-makeup, segs/ with the same names, makeup.txt and non-makeup.txt
(left out: all pictures). Or makeup/ and non-makeup/ (also before/ and after/), each picture with NAME.pts beside it or a map in
segs/. Maps hold MT's numbers (see LABELS) and may have another size. Of either kind every tenth picture is held out: if several
pictures show one person, she may be in both parts.

Where the paper is silent or we could not read it, it is ours and says so below: widths, learning rate, batch, the weights' ramp.
The adversarial terms are logarithms, as the paper writes them, with the usual non-saturating side for G and F. The authors'
public followers differ: of three trainers that we know of, one gives D_S no loss but a gradient penalty, two have no D_S at all.
Ours, and off by default: noise on pictures between two stages, and mismatched pairs for D_S (--mismatch); the small recipe uses both.
The paper's three networks each see their part alone; here the one for skin sees the whole face, and eyes and lips are laid over it.

How the pieces fit. Faces are cut upright by their landmarks (eyes and mouth at the same place in every crop), because G's
convolutions see 41 pixels and cannot fetch a colour from farther away (instance norm adds averages of the square, no more). The
change that G draws is laid back on the photograph at its own size: where G changes nothing the photograph stays as it is.
"""
import dataclasses
import shutil
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F_
from PIL import Image

import common
import toyfaces
from common import PatchGAN, ResidualBlock, Run, UserError, conv_block, frozen, grid, prepare, say


@dataclass
class Config(common.Settings):
    """The paper's recipe, as far as it is known."""
    # data
    image_size: int = 256             # ours: the paper's faces have 400 px or more; its crops are not known
    load_size: int = 0                # ours: side of the stored pictures, of which faces are cut; 0 = 5/4 of image_size, or 7/4 for eyes and lips
    people: int = 2000                # ours: toy people without make-up, and as many others with
    pose: float = .25                 # ours: range of the toy poses; 1 = yaw up to 60 degrees
    variety: float = 1.               # ours: how much skin, light and wall differ between toy people; 0 = the same for all
    regions: str = field(default="parts", metadata={"choices": ("parts", "face")})   # the paper: parts; face = one G for the whole face
    # networks
    width: int = 64                   # ours: a public port's; the paper's is not known
    d_width: int = 64                 # 70 x 70 PatchGAN's
    # losses
    lambda_adv: float = .1            # the paper, as a public port quotes it: [L_G], [L_F] and [L_P] at first
    lambda_adv_end: float = .5        # likewise: ... and at the end
    lambda_P: float = 1.              # ours: [L_P] times this as well; 0 = no D_S (ablation)
    lambda_I: float = 1.              # the paper, as a public port quotes it
    lambda_S: float = 1.              # likewise; 0 = ablation
    lambda_R: float = .1              # likewise
    follow: bool = True               # the paper; --no-follow: G sees the source twice, a CycleGAN
    mismatch: bool = False            # ours, off: D_S is also shown that W(x, y) does not wear the make-up of another reference
    noise: float = 0.                 # ours, off: standard deviation of noise on pictures (-1 ... 1) between the two stages, against signals hidden in them
    pairs: str = field(default="warp", metadata={"choices": ("warp", "true")})       # the paper: warp; true = toy faces only, the truth itself
    # training
    warm_up: float = .1               # ours: share of the steps for F first (the paper: by a CycleGAN; here its way from x and back), and then for G alone
    ramp_from: float = .25            # ours (remembered, unconfirmed: 50 of 200 epochs): until here lambda_adv, then linearly to lambda_adv_end
    epochs: int = 200                 # ours (likewise)
    steps: int = 0                    # ours: 0 = epochs
    batch_size: int = 1               # ours: CycleGAN's
    lr: float = 1e-4                  # ours: unconfirmed as the paper's
    betas: tuple = (.5, .999)         # CycleGAN
    decay_from: float = 1.            # ours: constant; below 1: from this share of the steps on linear to 0
    part: str = field(default="all", metadata={"choices": ("all", "style", "removal", "pairs", "regions")})   # ours: of --ablate


# For a processor: 64 px, a quarter of the widths, all of it ours. One G for the whole face: three of them take half as long again. Few
# steps, so the adversarial terms begin heavier, and stay so: when they rose to .5, ripples came on skin and walls; and a heavier [L_R],
# without which G tinted the whole picture for F to tint back. Skins and lights less various: between very different ones W's colours are
# wrong, and D_S learns from W. And mismatched pairs for D_S, lest it tell W from G by its seams alone (a guess; `--ablate --part style`
# has both).
SMALL = dict(image_size=64, width=16, d_width=16, regions="face", people=1000, batch_size=2, steps=4000, lr=3e-4, decay_from=.5,
             lambda_adv=.3, lambda_adv_end=.3, lambda_R=1., noise=.1, variety=.3, mismatch=True)
INFER_FLAGS = {
    "--reference": dict(nargs="+", default=[], metavar="FILE", help="faces whose make-up is wanted"),
    "--remove": dict(action="store_true", help="take the make-up off instead"),
    "--strength": dict(type=float, default=1., metavar="S", help="0: nothing changes ... 1: as drawn"),
    "--out": dict(default="", metavar="DIR", help="where to write (default: inferred/ in the run folder)"),
}
HEALTH = {"style-ignored": "the same make-up whatever the reference", "copying": "output hardly differs from the bare face",
          "D-won": "D_Y tells every real picture from every generated one, by far", "nan": "a loss is not finite"}


# =========================================================================================== landmarks and crops
# What cutting and warping need of a face is 30 anchors [30, 2], pixels. They come from 68 landmarks or from a map of regions, so
# that a model trained with the one can be used with the other. Left and right are the viewer's.
#  0-3 left eye: left, right, top, bottom    4-7 right eye    8-10 left brow: left, right, top    11-13 right brow
#  14-17 mouth: left, right, top, bottom     18-20 nose: left, right, bottom     21-26 outline at the height of eyes, nose, mouth
#  27 chin     28, 29 the lips' inner edges, middle
LABELS = dict(face=1, brows=(2, 3), eyes=(4, 5), nose=6, upper_lip=7, inner_mouth=8, lower_lip=9)      # MT's maps
OUTLINE = torch.tensor([21, 23, 25, 27, 26, 24, 22, 12, 13, 11, 9, 10, 8])    # the face as a polygon: left side, chin, right side, brows
# Where a region is cut: centre as a share of the way from the eyes to the mouth, side in units of that way, size as a share of image_size
REGIONS = {"face": (.5, 3., 1.), "skin": (.5, 3., 1.), "eyes": (-.12, 1.1, .5), "lips": (1., 1.2, .5)}
LOOSE = 1.3                                                            # stored pictures: the square of the face times this


def extremes(points, which):
    """The outermost of the points [m, 2], by letters: l(eft), r(ight); t(op), b(ottom) in the middle between those. [len(which), 2]"""
    if not len(points):
        raise ValueError("a part of the face is hidden in the map")
    x, y = points.unbind(1)
    from_middle = (x - (x.min() + x.max()) / 2).abs()
    middle = y.masked_fill(from_middle > from_middle.min() + .5 + .02 * (x.max() - x.min()), torch.nan)
    at = {"l": x.argmin, "r": x.argmax, "t": middle.nan_to_num(torch.inf).argmin, "b": middle.nan_to_num(-torch.inf).argmax}
    return points[torch.stack([at[letter]() for letter in which])]


def with_lips_apart(anchors):
    """Anchors [30, 2] whose inner edges of the lips lie one above the other, a little apart: of closed lips the spline would make a twist."""
    left, right, top, bottom = anchors[14:18]
    gap = (anchors[29] - anchors[28])[1].clamp(min=.03 * float((right - left).norm()))
    middle = torch.stack([(top[0] + bottom[0]) / 2, anchors[28:, 1].mean()])
    return torch.cat([anchors[:28], torch.stack([middle - torch.tensor([0., .5]) * gap, middle + torch.tensor([0., .5]) * gap])])


def anchors_of_points(points):
    """68 or 66 landmarks [n, 2] of a more or less upright face -> anchors [30, 2]."""
    if len(points) == 66:
        full = points.new_empty(68, 2)
        full[common.KEEP_66] = points
        full[[60, 64]] = full[[48, 54]]
        points = full
    eyes = [torch.stack([points[k], points[k + 3], points[[k + 1, k + 2]].mean(0), points[[k + 4, k + 5]].mean(0)]) for k in (36, 42)]
    mouth, nose, outline = points[[48, 54, 51, 57]], points[[31, 35, 33]], []
    for y in (points[36:48, 1].mean(), nose[2, 1], mouth[:2, 1].mean()):
        for half in (points[:9], points[8:17].flip(0)):                # the jaw from the temple to the chin
            k = int((half[:, 1] < y).sum().clamp(1, 8))
            t = ((y - half[k - 1, 1]) / (half[k, 1] - half[k - 1, 1]).clamp(min=1e-3)).clamp(0, 1)
            outline.append(half[k - 1] + t * (half[k] - half[k - 1]))
    return with_lips_apart(torch.cat([*eyes, points[[17, 21, 19, 22, 26, 24]], mouth, nose, torch.stack(outline), points[[8, 62, 66]]]))


def anchors_of_map(label):
    """A map of regions [H, W] with MT's numbers -> anchors [30, 2]. ValueError says what is missing; hidden brows are guessed."""
    def places(*numbers):
        y, x = np.isin(label, numbers).nonzero()
        return torch.tensor(np.stack([x, y], 1), dtype=torch.float32)

    def pair(numbers):
        return sorted((p for p in map(places, numbers) if len(p)), key=lambda p: p[:, 0].mean())

    eyes, brows, nose = pair(LABELS["eyes"]), pair(LABELS["brows"]), places(LABELS["nose"])
    upper, lower = places(LABELS["upper_lip"]), places(LABELS["lower_lip"])
    for name, number, found in (("two eyes", LABELS["eyes"], len(eyes) == 2), ("lips", (7, 9), len(upper) and len(lower)), ("nose", 6, len(nose))):
        if not found:
            raise ValueError(f"no {name} (MT's {number}) in the map")
    eyes = [extremes(eye, "lrtb") for eye in eyes]
    mouth, centre = extremes(torch.cat([upper, lower]), "lrtb"), torch.stack([eye.mean(0) for eye in eyes]).mean(0)
    lift = torch.tensor([0., .25 * float(mouth[:, 1].mean() - centre[1])])
    brows = [extremes(brow, "lrt") for brow in brows] if len(brows) == 2 else [eye[:3] - lift for eye in eyes]
    face, outline = places(*(LABELS[part] for part in ("face", "nose", "upper_lip", "inner_mouth", "lower_lip")), *LABELS["eyes"]), []
    for y in (centre[1], nose[:, 1].max(), mouth[:2, 1].mean()):
        outline.append(extremes(face[(face[:, 1] - y).abs() <= 1], "lr"))
    low, wings = face[face[:, 1] == face[:, 1].max()], nose[nose[:, 1] >= .7 * nose[:, 1].max() + .3 * nose[:, 1].min()]
    return with_lips_apart(torch.cat([*eyes, *brows, mouth, extremes(wings, "lrb"), *outline, low.mean(0, keepdim=True),
                                      extremes(upper, "b"), extremes(lower, "t")]))


def upright(anchors):
    """Of anchors [B, 30, 2]: the middle between the eyes [B, 2], and the way from there to the mouth [B, 2]."""
    eyes = (anchors[:, :2] + anchors[:, 4:6]).mean(1) / 2
    return eyes, anchors[:, 14:16].mean(1) - eyes


def place(anchors, region, size, mirror=None, turn=None):
    """How the squares of a region lie on pictures: (anchors in the square [B, 30, 2], to_picture, to_square), both of points [B, m, 2].

    anchors: [B, 30, 2] in the picture. The line from the eyes to the mouth runs down. mirror: [B] bool; of the region "eyes" the
    left eye is meant where it is true, mirrored, so that one network serves both. turn: [B] degrees. (Written without matrix products,
    which a GPU would round.)
    """
    along, sides, _ = REGIONS[region]
    eyes, way = upright(anchors)
    length = way.norm(dim=1, keepdim=True).clamp(min=1e-3)
    down, left = way / length, torch.zeros(len(anchors), dtype=torch.bool, device=anchors.device) if mirror is None else mirror
    start = torch.where(left[:, None], anchors[:, :2].mean(1), anchors[:, 4:6].mean(1)) if region == "eyes" else eyes
    centre = (start + along * way)[:, None]
    if turn is not None:
        s, c = turn.deg2rad().sin(), turn.deg2rad().cos()
        down = torch.stack([c * down[:, 0] - s * down[:, 1], s * down[:, 0] + c * down[:, 1]], 1)
    right = torch.stack([down[:, 1], -down[:, 0]], 1) * torch.where(left, -1., 1.)[:, None]
    right, down, scale = right[:, None], down[:, None], (sides * length / size)[:, None]                   # pixels of the picture per pixel

    def to_picture(p):
        q = (p - (size - 1) / 2) * scale
        return q[..., :1] * right + q[..., 1:] * down + centre

    def to_square(p):
        q = (p - centre) / scale
        return torch.stack([(q * right).sum(2), (q * down).sum(2)], 2) + (size - 1) / 2

    return to_square(anchors), to_picture, to_square


def pixels(h, w, device):
    """The places (x, y) of all pixels: [1, h * w, 2]."""
    y, x = torch.meshgrid(torch.arange(h, device=device), torch.arange(w, device=device), indexing="ij")
    return torch.stack([x, y], -1).float().reshape(1, -1, 2)


def look(pictures, where, size, padding="border"):
    """pictures [B, c, H, W] at the places `where` [B, size * size, 2], as [B, c, size, size] (size: a number or (h, w))."""
    h, w = size if isinstance(size, tuple) else (size, size)
    H, W = pictures.shape[2:]
    where = torch.stack([(where[..., 0] + .5) / W * 2 - 1, (where[..., 1] + .5) / H * 2 - 1], -1)
    return F_.grid_sample(pictures, where.reshape(-1, h, w, 2), mode="bilinear", padding_mode=padding, align_corners=False)


def disc(size, device):
    """1 in the middle of a square, softly 0 at its rim: [1, 1, size, size]."""
    r = (pixels(size, size, device) - (size - 1) / 2).norm(dim=2).reshape(1, 1, size, size) / (size / 2)
    return ((.98 - r) / .18).clamp(0, 1)


# ------------------------------------------------------------------------------------- W(x, y): the warped reference

def thin_plate(source, target):
    """The thin-plate spline (Bookstein 1989) that takes the points source [B, n, 2] to target: a function of points [B, m, 2].

    In float64: its products would lose whole pixels in the precision that a GPU takes by default.
    """
    B, n, _ = source.shape
    scale = source.amax((1, 2), keepdim=True).clamp(min=1.).double()
    knots = source / scale

    def basis(p):
        d2 = torch.cdist(p, knots).square()
        return torch.cat([d2 * (d2 + 1e-12).log(), torch.ones_like(d2[..., :1]), p], -1)                   # [B, m, n + 3]

    top = basis(knots)
    top[:, :, :n] += 1e-4 * torch.eye(n, device=source.device)         # two anchors may nearly coincide
    low = torch.cat([top[:, :, n:].transpose(1, 2), top.new_zeros(B, 3, 3)], 2)
    bent, _ = torch.linalg.solve_ex(torch.cat([top, low], 1), torch.cat([target, target.new_zeros(B, 3, 2)], 1).double())  # solve waits for the GPU
    return lambda p: (basis(p / scale) @ bent).float()


def inside(polygon, size):
    """Which pixels lie inside a polygon [B, k, 2] that its centre sees all of: bool [B, 1, size, size]."""
    p, centre = pixels(size, size, polygon.device)[:, None], polygon.mean(1, keepdim=True)[:, :, None]
    a, b = polygon[:, :, None], polygon.roll(-1, 1)[:, :, None]                                            # [B, k, 1, 2]

    def left_of(q, r):
        return (r - q)[..., 0] * (p - q)[..., 1] - (r - q)[..., 1] * (p - q)[..., 0] >= 0

    turns = torch.stack([left_of(a, b), left_of(b, centre), left_of(centre, a)])                           # [3, B, k, size * size]
    return (turns.all(0) | ~turns.any(0)).any(1).reshape(-1, 1, size, size)


LIFT = .05                                                             # added to colours in 0 ... 1 before they are divided: black is never quite black


def skin_colour(pictures, anchors):
    """The median colour within the outline of faces [B, 3, S, S]: [B, 3], in LIFT ... 1 + LIFT."""
    face = inside(anchors[:, OUTLINE.to(anchors.device, non_blocking=True)], pictures.shape[-1]).expand_as(pictures)
    return (pictures / 2 + .5 + LIFT).masked_fill(~face, torch.nan).flatten(2).nanmedian(2)[0]


def blended(x, pasted, mask, gain):
    """pasted, its colours times `gain` [B, 3] (at most 2.5, at least .4), where mask [B, 1, S, S] is 1; x where it is 0.

    The paper blends by Poisson's equation. Here skin is given the source's colour as a whole, by the ratio of the two faces' median
    colours: contrasts stay as ratios, and what differs at the rim (a lock of hair, a brow) does not run into the face.
    """
    toned = ((pasted / 2 + .5 + LIFT) * gain.clamp(.4, 2.5)[..., None, None] - .5 - LIFT) * 2
    return x + mask * (toned.clamp(-1, 1) - x)


# ========================================================================================================== data

class Album:
    """Pictures: bank uint8 [N, 3, L, L]; anchors [N, 30, 2] in its pixels; skin [N, 3]: see skin_colour; faces: the toyfaces.Face, or None."""

    def __init__(self, bank, anchors, faces=None):
        self.bank, self.anchors, self.faces = bank, anchors, faces
        self.skin = torch.cat([skin_colour(self.pictures(k, anchors.device), anchors[k.to(anchors.device)]) for k in torch.arange(len(bank)).split(64)])

    def __len__(self):
        return len(self.bank)

    def pictures(self, index, device):
        return common.draw(self.bank, index, device)


class Pairs:
    """Faces without make-up (bare) and faces with it (made; toy faces: of other people). sample(B): x, y, w [B, 3, s, s] of one region.

    x bare, y made up, both cut alike; w: y's make-up in x's place, warped or (toy faces, pairs "true") as it truly is on x.
    """

    def __init__(self, cfg, bare, made, region):
        self.cfg, self.bare, self.made, self.region = cfg, bare, made, region
        self.size = square_size(cfg, region)
        self.generator = torch.Generator().manual_seed(cfg.seed)

    def __len__(self):
        return len(self.bare) + len(self.made)

    def view(self, pictures, anchors, mirror=None, turn=None):
        """The region of pictures [B, 3, L, L]: (squares [B, 3, s, s], anchors in them)."""
        inner, to_picture, _ = place(anchors, self.region, self.size, mirror, turn)
        return look(pictures, to_picture(pixels(self.size, self.size, anchors.device)), self.size), inner

    def cut(self, album, index, mirror=None, turn=None):
        return self.view(album.pictures(index, self.cfg.device), album.anchors[index.to(album.anchors.device, non_blocking=True)], mirror, turn)

    def warped(self, i, j, mirror=None, turn=None):
        """W(x, y): made[j] bent so that its anchors fall on those of bare[i], blended into it."""
        x, x_inner = self.cut(self.bare, i, mirror, turn)
        on_i, on_j = (k.to(x.device, non_blocking=True) for k in (i, j))
        y_inner, to_picture, _ = place(self.made.anchors[on_j], self.region, self.size, mirror, turn)
        where = thin_plate(x_inner, y_inner)(pixels(self.size, self.size, x.device).expand(len(x), -1, -1))
        bent = look(self.made.pictures(j, self.cfg.device), to_picture(where), self.size)
        outline, k = x_inner[:, OUTLINE.to(x.device, non_blocking=True)], self.size // 32 * 2 + 1
        if self.region not in ("face", "skin"):                        # some skin above the brows, too, but no hair
            outline[:, 7:] -= .25 * upright(x_inner)[1][:, None]
        mask = F_.avg_pool2d(inside(outline, self.size).float(), k, 1, k // 2)                             # a soft edge
        if self.region not in ("face", "skin"):
            mask = mask * disc(self.size, x.device)
        return blended(x, bent, mask, self.bare.skin[on_i] / self.made.skin[on_j])

    def true(self, i, j, mirror=None, turn=None):
        """The bare toy faces i, truly wearing the make-up of the faces j."""
        faces = self.bare.faces[i.to(self.cfg.device)].take(self.made.faces[j.to(self.cfg.device)], toyfaces.MAKEUP)
        return self.view(toyfaces.render(faces, self.bare.bank.shape[-1]), self.bare.anchors[i.to(self.cfg.device)], mirror, turn)[0]

    def sample(self, batch_size):
        i, j = (torch.multinomial(torch.ones(len(album)), batch_size, batch_size > len(album), generator=self.generator)      # nobody twice: a mismatched
                for album in (self.bare, self.made))                   # pair needs another reference
        def one_for_all(*range_):                                      # or D_S would know a mismatched pair by it
            return torch.empty(1).uniform_(*range_, generator=self.generator).to(self.cfg.device, non_blocking=True).expand(batch_size)
        mirror = one_for_all(-1, 1) > 0
        turn = one_for_all(-15, 15) if self.region == "eyes" else None                                                   # a disc may turn
        x, y = self.cut(self.bare, i, mirror, turn)[0], self.cut(self.made, j, mirror, turn)[0]
        w = x if not uses_pairs(self.cfg) else self.true(i, j, mirror, turn) if self.cfg.pairs == "true" else self.warped(i, j, mirror, turn)
        return x, y, w


def uses_pairs(cfg):
    """Is there a D_S?"""
    return cfg.follow and cfg.lambda_P > 0


def square_size(cfg, region):
    """Side of the squares that a region's networks see."""
    return round(cfg.image_size * REGIONS[region][2])


def load_size(cfg):
    """Side of the stored pictures: a face in its square is then about as large as stored; of parts, eyes fill half of image_size."""
    return cfg.load_size or cfg.image_size * (7 if cfg.regions == "parts" else 5) // 4


TRAIN_SEED, TEST_SEED, TEST_PEOPLE = 20_000, 50_000, 40


def toy_people(cfg, n, seed, made):
    """n calm people with neither beard nor glasses, upright and near; made: all of them wear make-up, else none does."""
    g = torch.Generator().manual_seed(seed + 1)
    faces = toyfaces.sample(n, seed, cfg.device, pose=cfg.pose, expression=False)
    faces = faces.set(beard=0., glasses=0., zoom=1.3, shift=[0., -.02], smile=torch.rand(n, generator=g) - .2)
    faces = faces.alike(cfg.variety, skin_rgb=[.8, .6, .48], light=[.2, -.3, .93], light_strength=.45, background=1.)
    alphas = {name: low + (high - low) * torch.rand(n, generator=g) for name, low, high in
              (("lip_alpha", .5, 1.), ("shadow_alpha", .4, .9), ("liner_alpha", .3, 1.), ("blush_alpha", .15, .6))}
    return faces.set(**alphas) if made else faces.no_makeup()


def toy_albums(cfg, test=False):
    """(bare, made) of different people."""
    n, seed, L = TEST_PEOPLE if test else cfg.people, TEST_SEED if test else TRAIN_SEED + 10 * cfg.seed, load_size(cfg)
    albums = []
    for made in (False, True):
        faces = toy_people(cfg, n, seed + 2 * made, made)
        anchors = torch.stack([anchors_of_points(p) for p in toyfaces.landmarks(faces, L).cpu()]).to(cfg.device)
        albums.append(Album(common.toy_bank(cfg, faces, L), anchors, faces))
    return albums


NAMES = {"makeup": 1, "make-up": 1, "with_makeup": 1, "after": 1, "made": 1, "non-makeup": 0, "no_makeup": 0, "non_makeup": 0, "without_makeup": 0, "before": 0,
         "bare": 0}


def annotation_of(picture):
    """Where the landmarks of a picture are: NAME.pts beside it, or a map in segs/; None = nowhere."""
    if picture.with_suffix(".pts").exists():
        return picture.with_suffix(".pts")
    folders = [picture.parent.parent / "segs" / picture.parent.name, picture.parent.parent.parent / "segs" / picture.parent.name, picture.parent / "segs"]
    for folder in folders:
        for ending in (picture.suffix, ".png"):
            if (folder / (picture.stem + ending)).exists():
                return folder / (picture.stem + ending)
    return None


def anchors_of(annotation, size):
    """Anchors from a .pts file or a map of regions, in pixels of the picture of `size` (w, h). UserError names the file."""
    w, h = size
    if annotation.suffix == ".pts":
        points = anchors_of_points(common.read_pts(annotation))
    else:
        with common.picture_file(annotation) as image:
            label = np.asarray(image)
        try:
            if label.ndim != 2:
                raise ValueError(f"{label.shape[2]} channels, expected one that holds MT's numbers")
            points = (anchors_of_map(label) + .5) * torch.tensor([w / label.shape[1], h / label.shape[0]]) - .5
        except ValueError as error:
            raise UserError(f"{annotation}: {error}") from None
    x, y = points.unbind(1)
    if x.min() < -w or x.max() > 2 * w or y.min() < -h or y.max() > 2 * h or upright(points[None])[1].norm() < 4:
        raise UserError(f"{annotation}: its landmarks do not lie on the picture ({w} x {h})")
    return points


def scan(cfg):
    """What is under cfg.data: pictures, made (0 or 1 each), annotations, test (bool each); for --check images, bad, notes, bytes_per_image."""
    root, found, bad = Path(cfg.data), {0: [], 1: []}, []
    for folder in common.folders_below(root):
        if folder.name.lower() in NAMES and not {"segs", "landmarks"} & set(folder.relative_to(root).parts):              # landmarks: PSGAN's, pickled
            found[NAMES[folder.name.lower()]] += common.pictures_in(folder)
    for name in ("makeup.txt", "non-makeup.txt"):                      # PSGAN's lists: only these, in this order
        if (root / name).exists():
            lines = common.text_of(root / name).splitlines()
            wanted = [root / "images" / line for line in dict.fromkeys(map(str.strip, lines)) if line]     # each once: the last are held out
            bad += [f"{root / name}: names {path}, which is not there" for path in wanted if not path.exists()]
            found[NAMES[name[:-4]]] = [path for path in wanted if path.exists()]
    if not all(len(paths) > 1 for paths in found.values()):
        raise UserError(f"{root}: {len(found[0])} pictures without make-up, {len(found[1])} with; expected images/non-makeup and images/makeup (MT), or one "
                        + " and one ".join(f"folder called {', '.join(n for n in NAMES if NAMES[n] == kind)}" for kind in (0, 1))
                        + ", two pictures or more in each")
    images, made, annotations, test = [], [], [], []
    for kind, paths in found.items():
        pairs = [(path, annotation_of(path)) for path in paths]
        bad += [f"{path}: neither {path.stem}.pts beside it nor a map in segs/" for path, annotation in pairs if annotation is None]
        pairs = [pair for pair in pairs if pair[1] is not None]
        for k, (path, annotation) in enumerate(pairs):
            images.append(path), made.append(kind), annotations.append(annotation), test.append(k % 10 == min(9, len(pairs) - 1))
    notes = {"without make-up, with": f"{made.count(0)}, {made.count(1)}", "held out": f"every tenth, {sum(test)}",
             "landmarks": ", ".join(f"{n} {kind}" for kind, n in sorted(common.Counter("maps" if a.suffix != ".pts" else ".pts" for a in annotations).items()))}
    return dict(images=images, made=made, annotations=annotations, test=test, bad=bad, notes=notes, bytes_per_image=3 * load_size(cfg) ** 2)


def loose(anchors):
    """The squares, LOOSE times the face's, that are stored: centre [B, 2], half a side [B]; upright, as the picture is."""
    along, sides, _ = REGIONS["face"]
    eyes, way = upright(anchors)
    return eyes + along * way, LOOSE * sides / 2 * way.norm(dim=1).clamp(min=1e-3)


def photographs(cfg, test):
    """(bare, made) of the training or the test part of cfg.data: loose squares around the faces, decoded once."""
    found, L = scan(cfg), load_size(cfg)
    common.report_bad(found["bad"], len(found["images"]) + len(found["bad"]), cfg.skip_bad)
    mine, anchors = [k for k, is_test in enumerate(found["test"]) if is_test == test], {}

    def locate(n):
        return anchors_of(found["annotations"][mine[n]], common.picture_size(found["images"][mine[n]]))

    common.decode_all(mine, locate, anchors, cfg.skip_bad)
    albums = []
    for kind in (0, 1):
        keep = [n for n in anchors if found["made"][mine[n]] == kind]
        if not keep:
            raise UserError(f"{cfg.data}: no picture {'with' if kind else 'without'} make-up can be used in the {'test' if test else 'training'} part")
        keep.sort()
        points, images = torch.stack([anchors[n] for n in keep]), [found["images"][mine[n]] for n in keep]
        centre, half = loose(points)
        low, high = centre - half[:, None], centre + half[:, None]

        def decode(k, images=images, low=low, high=high):
            return np.asarray(common.crop(common.open_image(images[k]), low[k], high[k], L)).transpose(2, 0, 1)

        bank, good = common.decoded_bank(cfg, images, (3, L, L), decode, low.tolist())
        inner = (points - low[:, None]) * (L / (2 * half))[:, None, None] - .5
        albums.append(Album(bank, inner[good].to(cfg.device)))
    return albums


def make_data(cfg, region, test=False):
    return Pairs(cfg, *(photographs(cfg, test) if cfg.data else toy_albums(cfg, test)), region)


# ====================================================================================================== networks

class Generator(nn.Module):
    """G (inputs=2: source and reference) and F (inputs=1): the source plus the change that is drawn, both in [-1, 1].

    A stem for each picture, three residual blocks of dilation 1, 2, 4, a convolution of dilation 2 against the grid that these
    leave, and the change. No stride: nothing has to lie on the same pixel twice. 1,055,491 parameters, G and F alike.
    forward(x [B, 3, H, W], y or nothing) -> [B, 3, H, W].
    """

    def __init__(self, inputs=2, width=64):
        super().__init__()
        w = 2 * width
        self.stems = nn.ModuleList(nn.Sequential(*conv_block(3, w // inputs, 7, 1, 3, "instance", nn.ReLU(), padding_mode="reflect")) for _ in range(inputs))
        self.trunk = nn.Sequential(*(ResidualBlock(w, padding_mode="reflect", dilation=d) for d in (1, 2, 4)),
                                   *conv_block(w, w, 3, 1, 2, "instance", nn.ReLU(), padding_mode="reflect", dilation=2),
                                   *conv_block(w, 3, 3, 1, 1, act=nn.Tanh(), padding_mode="reflect"))

    def forward(self, x, *reference):
        change = self.trunk(torch.cat([stem(picture) for stem, picture in zip(self.stems, (x, *reference), strict=True)], 1))
        return (x + change).clamp(-1, 1)

    def receptive_field(self):
        """Side of the square of input pixels that one output pixel sees: 41."""
        return common.receptive_field(nn.Sequential(self.stems[0], self.trunk))


def build(cfg):
    """G, F, D_X, D_Y, D_S, weights from N(0, .02). PatchGANs: 2,764,737 parameters each; D_S, of two pictures, 2,767,809."""
    widths = [cfg.d_width * min(2 ** k, 8) for k in range(4)]
    return [common.init_normal(net) for net in (Generator(2, cfg.width), Generator(1, cfg.width),
                                                *(PatchGAN(channels, widths, (2, 2, 2, 1), norm="instance") for channels in (3, 3, 6)))]


# ======================================================================================================== losses
# The D's maximise, G and F minimise what the paper writes. Here all are minimised: D's sign is turned, and G and F have the
# non-saturating form, -log D(fake) for log(1 - D(fake)) (Goodfellow et al. 2014). || . ||_1: mean over batch, channels and pixels.

def loss_G_D(D_Y, y, y_fake):
    """[L_G]  E_y[log D_Y(y)] + E_{x,y}[log(1 - D_Y(G(x, y)))], D's side"""
    return common.vanilla_D(*D_Y(torch.cat([y, y_fake])).chunk(2))     # one pass for both: instance norm mixes no pictures


def loss_G_G(D_Y, y_fake):
    """[L_G]  G's side: -E log D_Y(G(x, y)). Weight: lambda_adv"""
    return common.vanilla_G(D_Y(y_fake))


def loss_F_D(D_X, x, x_fake):
    """[L_F]  E_x[log D_X(x)] + E_y[log(1 - D_X(F(y)))], D's side"""
    return common.vanilla_D(*D_X(torch.cat([x, x_fake])).chunk(2))


def loss_F_F(D_X, x_fake):
    """[L_F]  F's side: -E log D_X(F(y)). Weight: lambda_adv"""
    return common.vanilla_G(D_X(x_fake))


def loss_I(x, x_back):
    """[L_I]  E ||F(G(x, y)) - x||_1: the bare face is found again.

    x_back: F(y_fake). With --noise x and y_fake carry the same noise. Weight: lambda_I
    """
    return (x_back - x).abs().mean()


def loss_S(G, y, x_fake, y_fake):
    """[L_S]  E ||G(F(y), G(x, y)) - y||_1: source the bare reference, style that of the *result*. Weight: lambda_S

    With --noise y and x_fake carry the same noise, y_fake another.
    """
    return (G(x_fake, y_fake) - y).abs().mean()


def loss_P_D(D_S, y, w, y_fake, other=None):
    """[L_P]  E[log D_S(y, W(x, y))] + E[log(1 - D_S(y, G(x, y)))], D's side: the warped reference wears the same, the result not yet

    other: another reference; then half of the false pairs are D_S(other, W(x, y)), and to look at w alone is not enough.
    """
    first, second = ([y, y], [w, y_fake]) if other is None else ([y, y, other], [w, y_fake, w])
    scores = D_S(torch.cat(first), torch.cat(second))
    return common.vanilla_D(scores[:len(y)], scores[len(y):])


def loss_P_G(D_S, y, y_fake):
    """[L_P]  G's side: -E log D_S(y, G(x, y)). Weight: lambda_adv, times lambda_P"""
    return common.vanilla_G(D_S(y, y_fake))


def loss_R(x, y_fake):
    """[L_R]  E ||G(x, y) - x||_1: as little change as will do. Weight: lambda_R"""
    return (y_fake - x).abs().mean()


# ====================================================================================================== training

def validate(cfg):
    """Raises UserError for settings that do not fit together."""
    for name, fits, expected in (*((name, getattr(cfg, name) > 0, "at least 1") for name in ("width", "d_width", "people")),
                                 ("image_size", cfg.image_size % 2 == 0 and cfg.image_size >= 48, "an even number, at least 48"),
                                 ("load_size", load_size(cfg) >= cfg.image_size, f"at least --image-size {cfg.image_size}"),
                                 ("epochs", cfg.epochs or cfg.steps, "at least 1, or --steps"),
                                 ("pairs", cfg.pairs == "warp" or not cfg.data, "warp with --data: only toy faces have a truth"),
                                 ("variety", cfg.variety <= 1, "at most 1"),
                                 ("mismatch", cfg.batch_size > 1 or not cfg.mismatch,
                                  "--batch-size 2 or more, for another reference in the batch; or --no-mismatch"),
                                 ("warm_up", cfg.warm_up <= .5, "at most 0.5"),
                                 ("ramp_from", cfg.ramp_from <= 1, "at most 1")):
        if not fits:
            raise UserError(f"--{name.replace('_', '-')} {getattr(cfg, name)}: expected {expected}")


def regions_of(cfg):
    return ("skin", "eyes", "lips") if cfg.regions == "parts" else ("face",)


def train(cfg):
    """A G and an F for each region, one after the other. Writes cfg.run/<region>; returns {region: (G, F)}."""
    validate(cfg)
    if cfg.weights:
        raise UserError("--weights: training starts from scratch; for --evaluate and --infer give --run")
    for region in set(REGIONS) - set(regions_of(cfg)):
        if not cfg.fresh and (Path(cfg.run) / region / "last.pt").exists():
            raise UserError(f"{cfg.run} holds a run of the region {region}, which is not one of --regions {cfg.regions}; give another --run folder, or --fresh")
    data = make_data(cfg, "face"), make_data(cfg, "face", test=True)
    for region in REGIONS if cfg.fresh else ():                        # all at once: later ones must not be taken for finished
        shutil.rmtree(Path(cfg.run) / region, ignore_errors=True)
    steps = cfg.steps or cfg.epochs * -(-max(len(data[0].bare), len(data[0].made)) // cfg.batch_size)
    nets = {}
    for region in regions_of(cfg):
        one = dataclasses.replace(cfg, run=str(Path(cfg.run) / region), steps=steps, fresh=False)
        nets[region] = train_region(one, *(Pairs(one, part.bare, part.made, region) for part in data))
        if cfg.bench or 0 < cfg.stop_after < steps:
            break
    return nets


def adversarial_weight(cfg, step):
    """lambda_adv until ramp_from, then linearly to lambda_adv_end."""
    share = max(0., step / cfg.steps - cfg.ramp_from) / max(1e-9, 1 - cfg.ramp_from)
    return cfg.lambda_adv + (cfg.lambda_adv_end - cfg.lambda_adv) * share


def train_region(cfg, data, held_out):
    """The paper's training, for one region. Writes cfg.run; returns G, F (on cfg.device)."""
    torch.manual_seed(cfg.seed)
    nets = G, F, D_X, D_Y, D_S = [prepare(net, cfg) for net in build(cfg)]
    say(f"{data.region}: {data.size} px, {len(data.bare)} bare faces, {len(data.made)} made up; G and F {common.n_parameters(G):,} parameters each, "
        f"which see {G.receptive_field()} px; D's {D_X.receptive_field()} px")
    opt_GF = torch.optim.Adam([*G.parameters(), *F.parameters()], cfg.lr, cfg.betas, fused=True)
    opt_D = torch.optim.Adam([*D_X.parameters(), *D_Y.parameters(), *D_S.parameters()], cfg.lr, cfg.betas, fused=True)
    toy = data.bare.faces is not None
    mean = (data.bare.anchors.cpu().mean(0) + .5) / data.bare.bank.shape[-1]               # for pictures without landmarks, as shares of the side
    about = {"toy": toy, "anchors": [[round(v, 3) for v in point] for point in mean.tolist()] if toy else None}
    run = Run(cfg, dict(zip(("G", "F", "D_X", "D_Y", "D_S"), nets, strict=True)), {"GF": opt_GF, "D": opt_D}, data, HEALTH, about)

    for step, (x, y, w) in run.batches(cfg.batch_size):
        run.learning_rate(cfg.lr * common.linear_decay(step, cfg.steps, cfg.decay_from))
        weight, L = adversarial_weight(cfg, step), {}
        first = cfg.follow and step <= cfg.warm_up * cfg.steps         # for F's sake: G sees no reference, and only x comes back
        blind = first or not cfg.follow
        fixed = not blind and step <= 2 * cfg.warm_up * cfg.steps      # then G, with F as it is; then both
        style = uses_pairs(cfg) and not first

        # 1. G and F --------------------------------------------------------------------------------------------------
        with frozen(D_X, D_Y, D_S, *[F] * fixed):
            n_x, n_y = (cfg.noise * torch.randn_like(p) if cfg.noise else 0. for p in (x, y))                     # drowns a signal; passes through
            y_fake = G(x, x if blind else y)
            x_fake, x_back = F(torch.cat([y, y_fake + n_y])).chunk(2)  # one pass for both
            L["G"] = weight * loss_G_G(D_Y, y_fake)                                                               # [L_G]
            if not fixed:
                L["F"] = weight * loss_F_F(D_X, x_fake)                                                           # [L_F]
            L["I"] = cfg.lambda_I * loss_I(x + n_y, x_back)                                                       # [L_I]
            if cfg.lambda_S and not first:                             # (at first F would have to keep what a blind G cannot know)
                x_seen = x_fake + n_x
                L["S"] = cfg.lambda_S * loss_S(G, y + n_x, x_seen, x_seen if blind else y_fake + n_y)             # [L_S]; blind: the other cycle
            if style:
                L["P"] = weight * cfg.lambda_P * loss_P_G(D_S, y, y_fake)                                         # [L_P]
            L["R"] = cfg.lambda_R * loss_R(x, y_fake)                                                             # [L_R]
            run.update("GF", sum(L.values()))

        # 2. The D's: real or not, bare or made up; the same make-up or not ----------------------------------------------
        L_D = {"D_Y": loss_G_D(D_Y, y, y_fake.detach()), "D_X": loss_F_D(D_X, x, x_fake.detach())}                # [L_G], [L_F]
        if style:
            L_D["D_S"] = loss_P_D(D_S, y, w, y_fake.detach(), y.roll(1, 0) if cfg.mismatch else None)             # [L_P]
        run.update("D", sum(L_D.values()))

        # 3. What happened --------------------------------------------------------------------------------------------
        if run.logs(step):
            run.log(step, **report(cfg, G, F, D_Y, held_out, blind), weight=weight,
                    **{f"L_{name}": value.detach() for name, value in (L | L_D).items()})
        if run.samples(step):
            run.sample(step, sample_grid(cfg, G, F, held_out, blind))
    return G, F


def few(data, n, m):
    """n held-out bare faces and m made-up ones, the same every time: x [n, 3, s, s], y [m, 3, s, s], every pair's truth [n, m, 3, s, s], the m indices.

    The truth of toy faces; of photographs, for want of it, W(x, y).
    """
    i, j = (torch.linspace(0, len(album) - 1, min(k, len(album))).round().long() for album, k in ((data.bare, n), (data.made, m)))
    pair = data.true if data.bare.faces is not None else data.warped
    truth = common.once(data, (n, m), lambda: torch.stack([pair(one.expand(len(j)), j) for one in i]))
    return data.cut(data.bare, i)[0], data.cut(data.made, j)[0], truth, j


def seen_by(G, blind):
    """G, or for a CycleGAN G that sees the source twice."""
    return (lambda x, y: G(x, x)) if blind else G


def all_pairs(G, x, y):
    """G of every x with every y: [n, m, 3, s, s]."""
    return torch.stack([G(one.expand_as(y), y) for one in x])


@torch.no_grad()
def report(cfg, G, F, D_Y, data, blind):
    """The health word and the numbers behind it, on held-out faces (L1, units of the full range, 0 ... 1).

    change: |G(x, y) - x|; spread: how much results of one face differ from reference to reference; error, copy: of G and of the bare
    face to the truth; removed, kept: of F(y), and of y itself, to the true bare face. Photographs: the "truth" is W, and F has none. W differs
    from reference to reference by their faces, too: a sixth to a fourth of that is make-up on toy faces, so style-ignored asks for little of it.
    """
    x, y, truth, j = few(data, 4, 4)
    out = all_pairs(seen_by(G, blind), x, y)
    values = {"change": (out - x[:, None]).abs().mean() / 2, "spread": (out - out.mean(1, keepdim=True)).abs().mean() / 2,
              "error": (out - truth).abs().mean() / 2, "copy": (x[:, None] - truth).abs().mean() / 2}
    if data.made.faces is not None:
        bare = bare_of(data, j)
        values |= {"removed": (F(y) - bare).abs().mean() / 2, "kept": (y - bare).abs().mean() / 2}
    real, fake = D_Y(y).mean((1, 2, 3)), D_Y(out.flatten(0, 1)).mean((1, 2, 3))
    word = "ok"
    if values["change"] < .1 * values["copy"]:
        word = "copying"
    elif not blind and values["spread"] < (.2 if data.made.faces is not None else .03) * (truth - truth.mean(1, keepdim=True)).abs().mean() / 2:
        word = "style-ignored"
    elif real.min() > fake.max() and real.mean() - fake.mean() > 10:
        word = "D-won"
    return {"health": word} | values


def bare_of(data, j):
    """The made-up toy faces j without their make-up, cut as `few` cuts."""
    def draw():
        faces = data.made.faces[j.to(data.cfg.device)].no_makeup()
        return data.view(toyfaces.render(faces, data.made.bank.shape[-1]), data.made.anchors[j.to(data.cfg.device)])[0]
    return common.once(data, ("bare", *j.tolist()), draw)


@torch.no_grad()
def sample_grid(cfg, G, F, data, blind=False):
    """Held-out people. Top: references; then each source with every reference's make-up, below the truth (photographs: W); last F(reference)."""
    x, y, truth, j = few(data, 4, 6)
    out, blank = all_pairs(seen_by(G, blind), x, y), torch.ones_like(x[:1])
    removed = [F(y)] + ([bare_of(data, j)] if data.made.faces is not None else [])
    columns = [torch.cat([blank, *(row for one in x for row in (one[None], blank)), *[blank] * len(removed)])]
    for k in range(len(y)):
        columns.append(torch.cat([y[k:k + 1], torch.stack([out[:, k], truth[:, k]], 1).flatten(0, 1), *(r[k:k + 1] for r in removed)]))
    return grid(columns, ["source", *(f"reference {k + 1}" for k in range(len(y)))], scale=max(1, 128 // x.shape[-1]))


# ============================================================================================= from square to picture

def lay(drawn, to_square, size):
    """What is drawn in squares [B, 3, s, s] where it belongs on pictures of size (h, w), and the softly rimmed disc: [B, 3, h, w], [B, 1, h, w]."""
    s, device = drawn.shape[-1], drawn.device
    laid = look(torch.cat([drawn, disc(s, device).expand(len(drawn), -1, -1, -1)], 1), to_square(pixels(*size, device)), size, padding="zeros")
    return laid[:, :3], laid[:, 3:]


@torch.no_grad()
def painted(cfg, nets, x, x_anchors, y=None, y_anchors=None):
    """What G changes in the pictures x [B, 3, L, L] for the references y, or without y what F changes: [B, 3, L, L], to be added.

    nets: {region: (G, F)}. Each region's change is laid in its place with a soft rim, eyes and lips over skin. The paper pastes the
    results by Poisson blending; adding the change alone keeps everything else.
    """
    total = torch.zeros_like(x)
    for region, (G, F) in nets.items():
        s = square_size(cfg, region)
        for left in (False, True)[:1 + (region == "eyes")]:
            mirror = torch.full((len(x),), left, device=x.device)
            _, to_picture, to_square = place(x_anchors, region, s, mirror)
            square = look(x, to_picture(pixels(s, s, x.device)), s)
            if y is None:
                drawn = F(square)
            else:
                drawn = G(square, look(y, place(y_anchors, region, s, mirror)[1](pixels(s, s, x.device)), s))
            laid, mask = lay(drawn - square, to_square, x.shape[-2:])
            total = total + mask * (laid - total)
    return total


@common.reads_checkpoint
def trained(cfg):
    """{region: (G, F)} of cfg.run, and about. cfg takes over what G and its data depend on."""
    if cfg.weights:
        raise UserError("--weights: a model is one or three pairs of networks; give the folder that holds them as --run")
    nets, about = {}, None
    names = ("skin", "eyes", "lips") if (Path(cfg.run) / "skin" / "last.pt").exists() else ("face",)
    for region in names:
        path = Path(cfg.run) / region / "last.pt"
        saved = common.load_checkpoint(path)
        common.check_paper(saved, path, Path(__file__).stem)
        common.adopt(cfg, saved, ("image_size", "load_size", "regions", "width", "pose", "variety", "follow"))
        about = {"toy": saved["about"]["toy"], "anchors": saved["about"]["anchors"]}
        if saved["step"] < saved["config"]["steps"]:
            say(f"{path}: only {saved['step']} of {saved['config']['steps']} steps trained")
        G, F = (prepare(common.load_weights(Generator(inputs, cfg.width), saved["nets"].get(name, {}), path), cfg).eval()
                for name, inputs in (("G", 2), ("F", 1)))
        nets[region] = seen_by(G, not cfg.follow), F
    return nets, about


# ==================================================================================================== evaluation

SOURCES, REFERENCES = 20, 20
PIECES = {"lips": ("lip_rgb", "lip_alpha"), "shadow": ("shadow_rgb", "shadow_alpha"), "liner": ("liner_alpha", "liner_wing"),
          "blush": ("blush_rgb", "blush_alpha")}


class Exam:
    """Every one of n bare toy faces with the make-up of every one of m others: the truth, and where each piece of it is.

    x [n, 3, L, L]; y [m, ...]; truth [n, m, 3, L, L]; where[piece] [n, m, L, L] bool: pixels that this piece alone changes by more than 2 %,
    of the shadow those that no reference's liner covers.
    """

    def __init__(self, cfg, bare, made):
        self.cfg, L = cfg, bare.bank.shape[-1]
        self.bare, self.made, self.n, self.m = bare, made, min(SOURCES, len(bare)), min(REFERENCES, len(made))
        self.i, self.j = torch.arange(self.n).repeat_interleave(self.m), torch.arange(self.m).repeat(self.n)
        self.x, self.y = bare.pictures(torch.arange(self.n), cfg.device), made.pictures(torch.arange(self.m), cfg.device)
        source, reference = bare.faces[self.i.to(cfg.device)], made.faces[self.j.to(cfg.device)]
        self.truth, self.where = self.square(toyfaces.render(source.take(reference, toyfaces.MAKEUP), L)), {}
        for piece, fields in PIECES.items():
            alone = self.square(toyfaces.render(source.take(reference, fields), L))
            self.where[piece] = (alone - self.x[:, None]).abs().amax(2) > .04
        self.where["shadow"] &= ~self.where["liner"].any(1, keepdim=True)

    def square(self, flat):
        return flat.unflatten(0, (self.n, self.m))

    def drawn(self, nets):
        """What nets make of every pair: [n, m, 3, L, L]."""
        out = []
        for i, j in zip(self.i.split(16), self.j.split(16), strict=True):
            x, a = self.x[i], self.bare.anchors[i]
            out.append((x + painted(self.cfg, nets, x, a, self.y[j], self.made.anchors[j])).clamp(-1, 1))
        return self.square(torch.cat(out))

    def laid(self, true):
        """W of every pair, or the truth, cut to the square of the networks and laid back on the source."""
        pairs, out = Pairs(self.cfg, self.bare, self.made, "face"), []
        for i, j in zip(self.i.split(16), self.j.split(16), strict=True):
            to_square = place(self.bare.anchors[i], "face", pairs.size)[2]
            laid, mask = lay((pairs.true if true else pairs.warped)(i, j) - pairs.cut(self.bare, i)[0], to_square, self.x.shape[-2:])
            out.append((self.x[i] + mask * laid).clamp(-1, 1))
        return self.square(torch.cat(out))

    @torch.no_grad()
    def marks(self, out):
        """The measures of `evaluate` for pictures out [n, m, 3, L, L]."""
        lab, true_lab = (common.rgb_to_lab(picture.flatten(0, 1)) for picture in (out, self.truth))
        off, followed = (lab - true_lab).norm(dim=1), {}
        values = {"L1": (out - self.truth).abs().mean() / 2}

        def mean(v, mask):                                             # [..., H, W] within mask, a number a picture; nan without any
            return (v * mask).sum((-2, -1)) / mask.sum((-2, -1)).float().where(mask.any(-1).any(-1), torch.tensor(torch.nan, device=v.device))

        for piece, where in self.where.items():
            values[f"dE {piece}"] = mean(off, where.flatten(0, 1)).nanmean()
            anywhere = where.any(1, keepdim=True).expand_as(where).flatten(0, 1)                                            # the same for all references
            mine, its = (self.square(mean(picture, anywhere[:, None])) for picture in (lab, true_lab))                      # [n, m, 3]
            mine, its = (colour - colour.mean(1, keepdim=True) for colour in (mine, its))
            followed[piece] = 1 - (mine - its).square().nansum() / its.square().nansum()
        values["follows liner"] = followed.pop("liner")
        values["follows"] = torch.stack(list(followed.values())).mean()
        slope, true_slope = (torch.stack(torch.gradient(picture.flatten(0, 1), dim=(2, 3))) for picture in (out, self.truth))   # [2, n m, 3, L, L]
        values["edges"] = mean((slope - true_slope).abs().mean((0, 2)) / 2, self.where["liner"].flatten(0, 1)).nanmean()
        touched = (self.truth - self.x[:, None]).abs().amax(2) > .01
        values["outside"] = mean((out - self.x[:, None]).abs().mean(2) / 2, ~touched).mean()
        anywhere = touched.any(1)[:, None, None]                                                                # [n, 1, 1, L, L]
        distance = torch.stack([((out - one[:, None]).abs() * anywhere).mean((2, 3, 4)) for one in self.truth.unbind(1)], 2)        # [n, m, m]
        values["style match"] = (distance.argmin(2) == torch.arange(self.m, device=out.device)).float().mean()
        judge = toyfaces.judge("identity", out.shape[-1], 2, self.cfg.device, self.cfg.cache)[0]
        seen = torch.cat([judge(part) for part in out.flatten(0, 1).split(64)])
        values["identity"] = (seen * judge(self.x).repeat_interleave(self.m, 0)).sum(1).mean()
        return {name: value.item() for name, value in values.items()}

    @torch.no_grad()
    def off(self, nets):
        """Taking make-up off the references, and the way back of a transfer; see `evaluate`."""
        L = self.x.shape[-1]
        bare = toyfaces.render(self.made.faces[slice(0, self.m)].no_makeup(), L)
        made, diagonal = self.made.anchors[:self.m], torch.arange(min(self.n, self.m))

        def removed(picture, anchors):
            return (picture + painted(self.cfg, nets, picture, anchors)).clamp(-1, 1)

        x, a = self.x[diagonal], self.bare.anchors[diagonal]
        on = (x + painted(self.cfg, nets, x, a, self.y[diagonal], made[diagonal])).clamp(-1, 1)
        noise = 4 / 255 * torch.randn(on.shape, generator=torch.Generator().manual_seed(0)).to(on.device)                # 2/255 of 0 ... 1
        worn = (self.y - bare).abs().amax(1, keepdim=True) > .04

        def L1(a, b, where):
            return ((a - b).abs() / 2).masked_select(where).mean().item()

        off, everywhere = removed(self.y, made), torch.ones_like(worn[:1])
        return {"F(y)": L1(off, bare, worn), "y itself": L1(self.y, bare, worn), "F(y) beside": L1(off, bare, ~worn),
                "back": L1(removed(on, a), x, everywhere), "back from noise": L1(removed(on + noise, a), x + noise, everywhere)}


def measure(cfg, nets, bare, made):
    """{row: {measure: number}} of a trained model on held-out toy people, with copying, W and the truth beside it. See `evaluate`."""
    exam = Exam(cfg, bare, made)
    pictures = {"G": exam.drawn(nets), "copy the bare face": exam.x[:, None].expand_as(exam.truth),
                "one look for all": exam.truth.mean(1, keepdim=True).expand_as(exam.truth), "W, the warped reference": exam.laid(true=False),
                "the truth": exam.laid(true=True)}
    return {row: exam.marks(out) for row, out in pictures.items()} | {"make-up off": exam.off(nets)}


def evaluate(cfg):
    """Transfers between people never trained on, against the truth. Writes evaluation.json.

    L1 (0 ... 1) and dE: the distance to the true result; dE is CIE76's in Lab, where the true lipstick, eye shadow, blush or liner is (shadow:
    where no liner is). follows: R^2 of the mean colours there, apart from their mean over the references, source by source: 1 follows each
    reference, .75 by half, 0 one look for all; of lips, shadow and blush, and of the liner. edges: L1 of the differences from pixel to pixel to the
    true ones, where the true liner is. outside: L1 to the bare face where the true make-up
    changes nothing. style match: how often the result is nearer (L1) to the truth for its own reference than to those for the others. identity:
    cosine to the bare face, of an independent recogniser: 1 for a copy, less for the truth. Rows beside G: the bare face; the mean of the true
    results of each face, about the best that a G without reference can do; W; the truth, cut to the networks' square and laid back.
    make-up off: L1 of F(y) and of y itself to the true bare face where y wears make-up, of F(y) also beside it; back: L1 of F(G(x, y)) to x, also
    with noise of 2/255 in between (to x with that noise). Photographs have no truth: then the change, and how much it differs from reference to
    reference, beside those of W.
    """
    nets, about = trained(cfg)
    bare, made = photographs(cfg, True) if cfg.data else toy_albums(cfg, True)
    if cfg.data:
        rows = {}
        for region, (G, _) in nets.items():
            with torch.no_grad():
                x, y, w, _ = few(Pairs(cfg, bare, made, region), SOURCES, REFERENCES)
                results = {"G": all_pairs(G, x, y), "W": w}
            for name, out in results.items():
                moved, apart = (out - x[:, None]).abs().mean() / 2, (out - out.mean(1, keepdim=True)).abs().mean() / 2
                rows[f"{region}: {name}"] = {"change": moved.item(), "spread": apart.item()}
        notes = f"no truth for photographs; {len(bare)} bare faces and {len(made)} made up were held out"
    else:
        rows = measure(cfg, nets, bare, made)
        error = toyfaces.judge("identity", load_size(cfg), 2, cfg.device, cfg.cache)[1]
        n, m = min(SOURCES, len(bare)), min(REFERENCES, len(made))
        notes = (f"{n} bare faces with the make-up of {m} others, nobody trained on; chance of style match {1 / m:.2f}; the recogniser has an equal "
                 f"error rate of {error:.3f}")
    return common.evaluation(cfg, rows, notes)


# ====================================================================================================== ablation

SEEDS = (0, 1, 2)
# There is no training of a CycleGAN: its G, which sees no reference, is at best the row "one look for all".
PARTS = {
    "style": {"neither [L_S] nor D_S": dict(lambda_S=0., lambda_P=0.), "without D_S": dict(lambda_P=0.), "D_S": dict(mismatch=False),
              "D_S, mismatched pairs": dict(mismatch=True)},
    "removal": {"D_S, mismatched pairs": dict(mismatch=True), "D_S without [L_S]": dict(lambda_S=0., mismatch=True)},
    "pairs": {"D_S, mismatched pairs": dict(mismatch=True), "D_S, true pairs": dict(pairs="true", mismatch=True)},
    "regions": {"whole face": dict(mismatch=True), "parts": dict(regions="parts", mismatch=True)},
}


def _ablation_run(cfg):
    """One training of the ablation and its measures (in a process of its own on a CPU), as {"row: measure": number}."""
    train(cfg)
    nets, _ = trained(one := dataclasses.replace(cfg))
    return {f"{row}: {name}": value for row, values in measure(one, nets, *toy_albums(one, True)).items() for name, value in values.items()}


def ablate(cfg):
    """The paper's claims, on toy faces, three seeds; --part picks one. The thresholds stand here, and were set before running.

    style    follows: at least .7 with D_S and mismatched pairs, and at most .3 with neither [L_S] nor D_S. dE (mean of lips, shadow, blush) at least
             30 % below that with neither, and in every seed below that of one look for all.
    D_S      with D_S as in the paper, and again with mismatched pairs: dE at least 5 % lower than without D_S in every seed, while outside is not worse
             by more than 5 % and identity within .02 of the truth's; style match higher in every seed, by 10 points in the mean; edges at least 10 %
             nearer in the mean; the person better kept than by W: outside lower, identity higher in the mean.
    removal  error of F(y) where y wears make-up: with [L_S] at least 5 % lower in every seed than without (both with D_S and mismatched pairs).
    pairs    D_S taught by warped references: dE in the mean at most 10 % above that with D_S taught by the true results, which only toy faces have;
             that one below one look for all.
    regions  dE of parts (three networks, as many pixels in all) at least 5 % below that of the whole face in every seed; both of larger pictures.

    Writes ablation.json, or ablation_<part>.json, and a .png beside it. An interrupted ablation continues.
    """
    validate(cfg)
    folder = common.ablation_folder(cfg)
    parts = list(PARTS) if cfg.part == "all" else [cfg.part]
    batch_size = max(2, cfg.batch_size)                                # mismatched pairs need another reference
    base = dataclasses.replace(cfg, fresh=False, part="all", regions="face", follow=True, pairs="warp", log_every=250, sample_every=1000,
                               batch_size=batch_size, steps=cfg.steps or cfg.epochs * -(-cfg.people // batch_size))
    jobs = {}
    for seed in SEEDS:
        for name, changed in {name: changed for part in parts for name, changed in PARTS[part].items()}.items():
            plain = "".join(c if c.isalnum() else "-" for c in name.lower()).strip("-")
            one = dataclasses.replace(base, seed=seed, run=str(folder / f"{plain}-{seed}"), **changed)
            if name in PARTS["regions"]:                               # pictures large enough for eyes and lips, for both
                one.load_size = load_size(dataclasses.replace(one, regions="parts"))
            one.steps = max(1, round(one.steps * square_size(one, "face") ** 2 / sum(square_size(one, r) ** 2 for r in regions_of(one))))
            validate(one)
            jobs[name, seed] = one
    study = common.Ablation(jobs, "*/last.pt")
    for size in {load_size(one) for one in jobs.values()}:             # before the processes, which would all draw and train them
        for seed in SEEDS:
            toy_albums(dataclasses.replace(base, seed=seed, load_size=size))
        toy_albums(dataclasses.replace(base, load_size=size), True)
        toyfaces.judge("identity", size, 2, cfg.device, cfg.cache)
    study.run(_ablation_run, cfg.device)

    def values(name, what, row="G"):
        return study.values(name, f"{row}: {what}")

    def dE(name, row="G"):
        return np.mean([values(name, f"dE {piece}", row) for piece in ("lips", "shadow", "blush")], axis=0)

    names = list(dict.fromkeys(name for name, _ in jobs))
    measures = ("L1", "dE lips", "dE shadow", "dE blush", "dE liner", "follows", "follows liner", "edges", "outside", "style match", "identity")
    for name in names:
        study.row(name, **{what: values(name, what) for what in measures})
    larger = [name for name in names if name in PARTS["regions"] and names[0] not in PARTS["regions"]][:1]
    for name, title in ((names[0], ""), *((name, ", larger pictures") for name in larger)):
        for row in ("copy the bare face", "one look for all", "W, the warped reference", "the truth"):
            study.row(row + title, **{what: values(name, what, row) for what in measures})
    for name in names:
        off = ("F(y)", "y itself", "F(y) beside", "back", "back from noise")
        study.row(f"make-up off: {name}", **{what: values(name, what, "make-up off") for what in off})
    paper, ours, neither, without = "D_S", "D_S, mismatched pairs", "neither [L_S] nor D_S", "without D_S"
    if "style" in parts:
        study.claim("style", "colours that follow the reference (R^2): with neither [L_S] nor D_S, with both and mismatched pairs",
                    values(neither, "follows"), values(ours, "follows"),
                    at_least_0_7_and_with_neither_at_most_0_3=values(ours, "follows").mean() >= .7 and values(neither, "follows").mean() <= .3,
                    dE_30_per_cent_below_neither=dE(ours).mean() <= .7 * dE(neither).mean(),
                    dE_below_one_look_for_all_in_every_seed=(dE(ours) < dE(ours, "one look for all")).all())
        for name in (paper, ours):
            kept = (values(name, "outside").mean() <= 1.05 * values(without, "outside").mean()
                    and abs(values(name, "identity").mean() - values(name, "identity", "the truth").mean()) <= .02)
            match = values(name, "style match") - values(without, "style match")
            study.claim(name, f"dE to the true make-up: without D_S, with {name}", dE(without), dE(name),
                        dE_5_per_cent_lower_in_every_seed_and_the_rest_kept=(dE(name) <= .95 * dE(without)).all() and kept,
                        style_match_10_points_higher=match.mean() >= .1 and (match > 0).all(),
                        edges_10_per_cent_nearer=values(name, "edges").mean() <= .9 * values(without, "edges").mean(),
                        person_better_kept_than_by_warping=values(name, "outside").mean() < values(name, "outside", "W, the warped reference").mean()
                        and values(name, "identity").mean() > values(name, "identity", "W, the warped reference").mean())
    if "removal" in parts:
        off = [values(name, "F(y)", "make-up off") for name in ("D_S without [L_S]", ours)]
        study.claim("removal", "L1 of F(y) to the true bare face where y wears make-up: without [L_S], with", *off,
                    lower_by_5_per_cent_in_every_seed=(off[1] <= .95 * off[0]).all())
    if "pairs" in parts:
        study.claim("pairs", "dE to the true make-up: D_S taught by the truth, by warped references", dE("D_S, true pairs"), dE(ours),
                    warped_at_most_10_per_cent_worse=dE(ours).mean() <= 1.1 * dE("D_S, true pairs").mean(),
                    true_pairs_below_one_look_for_all=dE("D_S, true pairs").mean() < dE(ours, "one look for all").mean())
    if "regions" in parts:
        study.claim("regions", "dE to the true make-up: one G for the face, eyes, lips and skin apart", dE("whole face"), dE("parts"),
                    dE_5_per_cent_lower_in_every_seed=(dE("parts") <= .95 * dE("whole face")).all())
    study.write(cfg)


# ===================================================================================================== inference

class Photo:
    """A picture of any size: image (RGB), its loose square x [1, 3, L, L] as the networks know them, anchors in that [1, 30, 2]."""

    def __init__(self, cfg, file, about):
        self.path, L = Path(file), load_size(cfg)
        self.image = common.open_image(self.path)
        w, h = self.image.size
        if (annotation := annotation_of(self.path)) is not None:
            points, how = anchors_of(annotation, self.image.size), f"landmarks from {annotation}"
        elif about["toy"]:                                             # drawn as those that were trained on
            points = torch.tensor(about["anchors"]) * min(w, h) + (torch.tensor([w, h]) - min(w, h)) / 2 - .5
            how = f"no landmarks: taken to lie as in the mean toy face, in the central square (a photograph needs {self.path.stem}.pts beside it)"
        else:
            raise UserError(f"{file}: no landmarks; put {self.path.stem}.pts beside it (68 points), or a map of regions into segs/{self.path.stem}.png")
        centre, half = loose(points[None])
        self.low, self.half = centre[0] - half, half
        self.x = common.to_tensor(common.crop(self.image, self.low, centre[0] + half, L))[None].to(cfg.device)
        self.anchors = ((points - self.low) * (L / (2 * half)) - .5)[None].to(cfg.device)
        print(f"{file}: {w} x {h}, {how}")

    def with_(self, total):
        """The whole picture with a change [1, 3, L, L] of its loose square, at the picture's own resolution."""
        left, top = (self.low + .5).floor().int().tolist()
        n = int((2 * self.half).ceil()) + 1
        box = left, top, left + n, top + n                             # pixels of the picture that the square touches, and beyond its border
        inside_ = [max(0, box[0]), max(0, box[1]), min(self.image.width, box[2]), min(self.image.height, box[3])]
        if inside_[0] >= inside_[2] or inside_[1] >= inside_[3]:
            return self.image
        size = inside_[3] - inside_[1], inside_[2] - inside_[0]
        where = pixels(*size, "cpu") + torch.tensor(inside_[:2]) - self.low
        laid = look(total.cpu(), where * (total.shape[-1] / (2 * self.half)) - .5, size, padding="zeros")
        out = np.array(self.image)
        part = out[inside_[1]:inside_[3], inside_[0]:inside_[2]]
        part[:] = common.to_uint8(torch.from_numpy(part.copy()).permute(2, 0, 1) / 127.5 - 1 + laid[0]).permute(1, 2, 0).numpy()
        return Image.fromarray(out)


def infer(cfg, files, reference, remove, strength, out):
    """FILE ...: bare faces for the make-up of every --reference, or, with --remove, faces to take it off. Any size.

    Writes <name>_<reference>.png, or <name>_bare.png, of the picture's own size, and sheet.png with all of them. Photographs need
    landmarks: NAME.pts beside, or a map in segs/.
    """
    if bool(reference) == remove:
        raise UserError("--infer: give --reference FILE, whose make-up is wanted, or --remove to take it off")
    if not 0 <= strength <= 1:
        raise UserError(f"--strength {strength}: expected 0 to 1")
    nets, about = trained(cfg)
    photos, styles = ([Photo(cfg, file, about) for file in names] for names in (files, reference))
    folder, taken, rows = Path(out or Path(cfg.run) / "inferred"), set(), []
    folder.mkdir(parents=True, exist_ok=True)
    for photo in photos:
        rows.append([photo.x])
        for style in styles or [None]:
            total = strength * painted(cfg, nets, photo.x, photo.anchors, *((style.x, style.anchors) if style else ()))
            stem = f"{photo.path.stem}_{style.path.stem if style else 'bare'}"
            taken.add(name := common.unused(stem, taken))
            photo.with_(total).save(folder / f"{name}.png")
            print(folder / f"{name}.png")
            rows[-1].append((photo.x + total).clamp(-1, 1))
    columns = [torch.cat(column) for column in zip(*rows, strict=True)]
    if styles:
        columns = [torch.cat(pair) for pair in zip([torch.ones_like(columns[0][:1]), *(style.x for style in styles)], columns, strict=True)]
    grid(columns, ["source", *([style.path.stem for style in styles] or ["bare"])], max(1, 160 // columns[0].shape[-1])).save(folder / "sheet.png")
    print(folder / "sheet.png")


if __name__ == "__main__":
    common.cli(__name__)
