"""GANnotation: a face follows landmarks, again and again.

Enrique Sanchez, Michel Valstar. "Triple consistency loss for pairing distributions in GAN-based face synthesis",
arXiv 1811.03492 (2018); published as "A recurrent cycle consistency loss for progressive face-to-face synthesis",
IEEE FG 2020, arXiv 2004.07165. Authors' code: ESanchezLozano/GANnotation.

The idea. A generator takes a face I and the landmarks s_t of the pose and expression wanted, one heatmap H per point,
and paints the same person so: I^ = G(I; H(s_t)). Trained with the usual cycle ("self-consistency") loss it hides its
input in its output, so the output is no longer an input like any other: fed back, it goes wrong. The triple consistency
loss asks that the result not depend on the route: s_i -> s_t -> s_n must end where s_i -> s_n ends.

The claim. With the triple loss a generated face can be edited again, many times over, and even a single pass gets
better. (The paper's evidence is pictures; it gives no number that we could confirm.) `--ablate` puts a number to it:
excess = error after five progressive passes minus error of the direct pass, with and without the loss.

Losses, by section of arXiv 1811.03492v1:
    [2.3.1] adversarial
    [2.3.2] pixel
    [2.3.3] self-consistency
    [2.3.4] triple consistency
    [2.3.5] identity preserving
    [2.3.6] perceptual
    [2.3.7] total variation

Run it:
    python gannotation.py --train                            toy faces, nothing to download
    python gannotation.py --train --data DIR                 300-VW videos, or photographs with .pts files
    python gannotation.py --evaluate                         held-out faces: direct, and after 1 ... 5 passes
    python gannotation.py --ablate                           with and without the triple loss, three seeds
    python gannotation.py --infer face.png --drive points.txt     (or another face's .pts; or nothing: a toy sweep)

Data sets: 300-VW as distributed, <id>/annot/000001.pts beside <id>/*.jpg or <id>/frames/*.jpg (take the frames out of
vid.avi once: ffmpeg -i vid.avi -start_number 1 %06d.jpg); or any folders of photographs with a .pts beside each, as in
300-W, where the second and third view are the same photograph bent to other people's landmarks.

What differs. The authors' *training* code (2019) is another method than the paper and than their published generator:
three channels of line drawings instead of heatmaps, no colour/mask output, no identity loss, WGAN-GP with four D steps
a G step, Adam betas (0.5, 0.9), learning rate x 0.1 every epoch, pixel and self weights 1 : 1. Here it is the paper's:
66 heatmaps, colour and mask, hinge loss, its weights; `--adversarial wgan-gp` switches the adversarial form. Batch size,
learning rate and D's norm could not be confirmed; see Config. Their published generator loads with --weights; --evaluate
and --infer feed it as their demo does, pictures in [0, 1], where ours are in [-1, 1].

Ours in both recipes: the consistency losses wait until faces move (`warm_up`), then ramp up. With the paper's weights from
the first step there is an easy way out: a generator that copies its input satisfies self and triple consistency
perfectly, and the mask makes copying trivial. SMALL, for 64 px and minutes, also weighs the pixel loss ten times the
paper's, for the same reason; the adversarial loss a tenth, because D's gradient speckles the face before it moves; and
self-consistency 30 instead of 100, which leaves less pull towards the input.
"""
import dataclasses
import math
import re
import shutil
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F
from PIL import Image

import common
import toyfaces
from common import PatchGAN, ResidualBlock, Run, UserError, conv_block, draw, frozen, grid, heatmaps, prepare, say


@dataclass
class Config(common.Settings):
    """The paper's recipe. [note] marks what is known from readers' notes of the paper only."""
    # data
    image_size: int = 128             # section 2.2
    points: int = 66                  # authors' demo: 68 without the inner mouth corners
    sigma: float = 1.75               # authors' demo, at 128 px (its "sigma=1" draws this width); scaled with image_size
    tight: float = 16.                # authors' demo: margin of the crop, per cent of the landmarks' mean side
    people: int = 4000                # ours: toy people to train on
    frames: int = 16                  # ours: toy pictures of each
    pose: float = .75                 # ours: range of the toy poses; 1 = yaw up to 60 degrees, which videos of talking people rarely reach
    # networks
    width: int = 64                   # authors' demo
    residual_blocks: int = 6          # authors' demo
    d_widths: tuple = (64, 128, 256, 512, 512)      # section 2.2: 128 x 128 -> 4 x 4 x 512
    # losses
    adversarial: str = field(default="hinge", metadata={"choices": ("hinge", "wgan-gp")})  # section 2.3.1; wgan-gp: authors' training code
    lambda_adv: float = 1.            # section 2.3.7
    lambda_pix: float = 10.           # section 2.3.7; authors' training code 100
    lambda_self: float = 100.         # section 2.3.7
    lambda_triple: float = 100.       # section 2.3.7
    lambda_id: float = 1.             # section 2.3.7
    lambda_pp: float = 10.            # section 2.3.7
    lambda_tv: float = 1e-4           # section 2.3.7
    lambda_gp: float = 10.            # authors' training code, for wgan-gp
    lambda_mask: float = 0.           # ours, off: weight of the mean of the mask, against copying (as in GANimation)
    perceptual: str = field(default="vgg", metadata={"choices": ("vgg", "recogniser")})    # section 2.3.6; recogniser: no weights needed
    light_cnn: str = ""               # ours: file with the authors' Light CNN-9 weights, for the identity loss on photographs
    # training
    steps: int = 100_000              # ours: the paper's length is not known; authors' code 30,000 batches of 64 before lr vanishes
    batch_size: int = 32              # ours: fits small GPUs; authors' training code 64
    lr: float = 1e-4                  # authors' training code
    betas: tuple = (.5, .999)         # section 3 [note]; authors' training code (0.5, 0.9)
    decay_from: float = .5            # ours: constant, then linear to 0; authors' code x 0.1 every epoch
    warm_up: float = .1               # ours: part of the training before the consistency losses start; see the docstring
    ramp: float = .1                  # ours: part of the training in which they grow to full weight
    d_steps: int = 1                  # ours: 1:1 with hinge, as authors' code; it uses 4 with wgan-gp


# For a processor: 64 px, a quarter of the width, minutes. All of it is ours; the docstring tells why for the weights.
SMALL = dict(
    image_size=64, width=16, d_widths=(32, 64, 128, 128), batch_size=8, people=500, frames=10, pose=.6,
    lambda_adv=.1, lambda_pix=100., lambda_self=30., perceptual="recogniser",
    steps=6500, lr=1e-3, warm_up=.69, ramp=.1, decay_from=.8,
)
INFER_FLAGS = {
    "--drive": dict(default="sweep", metavar="FILE", help="landmarks to follow: .pts, or rows of x1 y1 ... x66 y66; default: a toy sweep"),
    "--out": dict(default="", metavar="DIR", help="where to write (default: the run folder)"),
}
HEALTH = {"copying": "output closer to its input than to its target", "ignores-target": "same output for two targets",
          "D-won": "D scores every real picture above every generated one, by far", "nan": "a loss is not finite"}


# ========================================================================================================== data

class Faces:
    """All pictures in one uint8 array, and their landmarks; draws (I, H_i, I_t, H_t, H_n) by index, on the device.

    bank: [N, 3, b, b]; points: [N, n, 2] in bank pixels; first, last: [N] range of the pictures of the same person.
    photos: crop, turn, flip as the authors do, and bend stills; toy faces are already drawn in all poses: taken as they are.
    """

    def __init__(self, cfg, bank, points, first, last, photos, gap=(1, 10 ** 9)):
        self.cfg, self.bank, self.photos, self.gap = cfg, bank, photos, gap
        self.points, self.first, self.last = points.to(cfg.device), first, last
        self.generator = torch.Generator().manual_seed(cfg.seed)

    def __len__(self):
        return len(self.bank)

    def _uniform(self, *shape):
        return torch.rand(*shape, generator=self.generator)

    def _normal(self, *shape):
        return torch.randn(*shape, generator=self.generator)

    def partner(self, index):
        """Another picture of the same person, `gap` frames away: uniform over those on both sides; any, where there is none."""
        near, far = self.gap
        first, last = self.first[index], self.last[index]
        left = ((index - near) - (index - far).maximum(first) + 1).clamp(min=0)          # how many on the left side
        right = ((index + far).minimum(last) - (index + near) + 1).clamp(min=0)
        pick = (self._uniform(len(index)) * (left + right)).long()
        chosen = torch.where(pick < left, index - near - pick, index + near + pick - left)
        anywhere = first + (self._uniform(len(index)) * (last - first + 1)).long()
        return torch.where(left + right > 0, chosen, anywhere)

    def sample(self, batch_size):
        """Source I, its heatmaps H_i, target I_t of the same person, its heatmaps H_t, heatmaps H_n of a third shape.

        I, I_t: [B, 3, S, S] in [-1, 1]; H: [B, n, S, S] in [0, 1].
        """
        i = (self._uniform(batch_size) * len(self)).long()
        t, n = self.partner(i), self.partner(i)
        if not self.photos:
            I, I_t = self.draw(i), self.draw(t)
            s_i, s_t, s_n = (self.points[k.to(self.cfg.device, non_blocking=True)] for k in (i, t, n))
        else:
            # Rotations of 30, 15, 45 degrees for source, target, third, at most 40; one mirroring for all three: authors' code
            mirror = self._uniform(batch_size) < .5
            still = self.first[i] == self.last[i]
            I, s_i = self.view(i, 30., mirror)
            I_t, s_t = self.view(t, 15., mirror, still)
            _, s_n = self.view(n, 45., mirror, still, painted=False)
        return I, self.heat(s_i), I_t, self.heat(s_t), self.heat(s_n)

    def draw(self, index):
        return draw(self.bank, index, self.cfg.device)

    def heat(self, points):
        return heatmaps(points, self.cfg.image_size, self.cfg.sigma * self.cfg.image_size / 128)

    def view(self, index, angle=0., mirror=None, bend=None, painted=True):
        """A crop [B, 3, S, S] around the landmarks and the landmarks in it [B, n, 2]: turned, mirrored, bent, resampled once.

        angle: standard deviation in degrees, 0 = upright; the margin then also varies, 16 + 4 N(0, 1) per cent.
        bend: [B] bool: move the landmarks towards those of a random other picture, and the picture along with them.
        painted: if not, the landmarks alone are wanted, and None stands for the crop.
        """
        device, S, B = self.cfg.device, self.cfg.image_size, len(index)
        tight, turn = torch.full((B,), self.cfg.tight), torch.zeros(B)
        if angle:
            tight, turn = (tight + 4 * self._normal(B)).clamp(min=2), (angle * self._normal(B)).clamp(-40, 40)
        mirror = torch.zeros(B, dtype=torch.bool) if mirror is None else mirror
        k, turn, tight, mirror = (t.to(device, non_blocking=True) for t in (index, turn, tight, mirror))
        placed, to_bank = self.place(self.points[k], turn, tight, mirror)
        axis = torch.arange(S, device=device, dtype=torch.float32)
        pixels = torch.stack(torch.meshgrid(axis, axis, indexing="xy"), -1).flatten(0, 1).expand(B, -1, -1)        # [B, S*S, 2]
        if bend is not None and bend.any():
            other, amount = (self._uniform(B) * len(self)).long(), .7 * self._uniform(B) * bend          # all the way tears the picture
            other, amount = (t.to(device, non_blocking=True) for t in (other, amount))
            shape, _ = self.place(self.points[other], .3 * turn, tight, mirror)
            moved = placed + amount[:, None, None] * (shape - placed)
            # Each output pixel looks where the landmarks around it came from, a distance-weighted mean of their moves
            if painted:
                weight = torch.exp(-torch.cdist(pixels, moved, compute_mode="donot_use_mm_for_euclid_dist") ** 2 / (2 * (.07 * S) ** 2)) + 1e-6
                pixels = pixels + weight @ (placed - moved) / weight.sum(2, keepdim=True)
            placed = moved
        if not painted:
            return None, placed
        where = to_bank(pixels).reshape(B, S, S, 2)
        side = self.bank.shape[-1]
        image = F.grid_sample(self.draw(index), (where + .5) / side * 2 - 1, mode="bilinear", padding_mode="border", align_corners=False)
        return image, placed

    def place(self, points, turn, tight, mirror):
        """Landmarks in bank pixels -> crop pixels [B, n, 2], and the inverse map for any points of the crop."""
        S, centre = self.cfg.image_size, points.mean(1, keepdim=True)
        s, c = turn.deg2rad().sin(), turn.deg2rad().cos()
        m, s, c = (v[:, None] for v in (torch.where(mirror, -1., 1.), s, c))
        x, y = (points - centre).unbind(2)                             # no matrix products: a GPU would round them to eighths of a pixel
        turned = torch.stack([m * (c * x - s * y), s * x + c * y], 2)  # turn, then mirror x
        order = common.FLIP_68 if points.shape[1] == 68 else common.FLIP_66
        turned = torch.where(mirror[:, None, None], turned[:, order.to(turned.device, non_blocking=True)], turned)
        low, high = common.crop_box(turned, tight)
        scale = S / (high - low).clamp(min=1e-3)

        def to_bank(p):
            x, y = ((p + .5) / scale[:, None] + low[:, None]).unbind(2)
            return torch.stack([c * m * x + s * y, c * y - s * m * x], 2) + centre

        return (turned - low[:, None]) * scale[:, None] - .5, to_bank             # the box's corner is the crop's corner


CLOSE = dict(roll=0., shift=[0., .04], zoom=1.25)     # upright, the face filling the frame, as the paper's crop by landmarks leaves it


def toy_faces(cfg, people, seed):
    """`people` toy people, cfg.frames pictures each, turning and nodding; the same seed gives the same faces."""
    n, S = people * cfg.frames, cfg.image_size
    faces = toyfaces.frames(toyfaces.sample(people, seed, cfg.device), cfg.frames, seed + 1, cfg.pose).set(**CLOSE)
    bank = common.toy_bank(cfg, faces, S)
    points = toyfaces.landmarks(faces, S)
    first = torch.arange(n) // cfg.frames * cfg.frames
    return Faces(cfg, bank, common.to_66(points) if cfg.points == 66 else points, first, first + cfg.frames - 1, photos=False)


def scan(cfg):
    """What is under cfg.data: pictures, their .pts, which belong to one video. Used by --check and by every training.

    Returns images, annotations, groups, test (lists of one length), bad (messages), notes, bytes_per_image. Raises
    UserError with what was found, what was expected and the nearest fix.
    """
    root = Path(cfg.data)
    images, annotations, groups, test, bad = [], [], [], [], []
    pictures = common.files_below(root)
    files, known = set(common.files_below(root, (".pts",))), set()
    without = []
    for picture in pictures:
        beside = picture.with_suffix(".pts")
        video = picture.parent.parent if picture.parent.name in ("frames", "images") else picture.parent
        number = int(picture.stem) if picture.stem.isdecimal() else -1
        in_video = video / "annot" / f"{number:06d}.pts"
        if beside in files:
            group = str(picture)                                       # a still: a group of its own
            pts = beside
        elif in_video in files:
            group, pts = str(video), in_video
        else:
            without.append(picture)
            continue
        known.add(pts)
        images.append(picture), annotations.append(pts), groups.append(group)
        test.append(any(word in ("test", "testset", "test_data") for word in picture.relative_to(root).parts))
    # Pictures in folders without any .pts (a read-me, demo pictures) do not matter; a lone one between annotated ones does
    homes = {p.parent for p in images}
    bad += [f"{p}: no {p.with_suffix('.pts').name} beside it" for p in without if p.parent in homes]
    bad += [f"{p}: no picture for it" for p in sorted(files - known) if images and p.parent.name != "annot"]
    if not images:
        videos = [p for p in common.files_below(root, (".avi",)) if p.name == "vid.avi"]
        if videos and files:
            hint = f"take the frames out first: ffmpeg -i {videos[0].name} -start_number 1 %06d.jpg, in each of the {len(videos)} folders"
        elif pictures:
            hint = f"{len(pictures)} pictures but no matching .pts; put NAME.pts beside NAME.jpg, or annot/000001.pts beside 000001.jpg"
        else:
            hint = "point --data at the folder that holds the pictures"
        raise UserError(f"{root}: found {len(pictures)} pictures and {len(files)} .pts files, none that belong together; "
                        f"expected <id>/annot/000001.pts with <id>/000001.jpg (300-VW) or image_0001.jpg with image_0001.pts (300-W); {hint}")
    sizes = common.Counter()
    bad += [f"{p}: not a file" for p in annotations if not p.is_file()]
    for pts in filter(Path.is_file, annotations):
        with open(pts, "rb") as file:
            match = re.search(rb"n_points\s*:\s*(\d+)", file.read(100))
        sizes[int(match.group(1)) if match else 0] += 1
    videos = len(set(groups))
    notes = {"pictures with landmarks": len(images), "points per file": ", ".join(f"{k} ({c} files)" for k, c in sorted(sizes.items())),
             "kind": "photographs, one of a kind" if videos == len(images) else f"{videos} videos",
             "held out": f"{sum(test)} in test folders" if any(test) else "every tenth " + ("picture" if videos == len(images) else "video")}
    side = round(1.5 * cfg.image_size)
    return dict(images=images, annotations=annotations, groups=groups, test=test, bad=bad, notes=notes, bytes_per_image=3 * side * side)


def check_points(points, picture, path):
    """A UserError if landmarks [n, 2] are not those of a face in this picture."""
    low, high = points.amin(0), points.amax(0)
    x, y = ((low + high) / 2 + .5).tolist()
    if not (0 <= x <= picture.width and 0 <= y <= picture.height and (high - low).max() < 2 * max(picture.size)):
        raise UserError(f"{path}: its landmarks lie outside the picture ({picture.width} x {picture.height})")


def photographs(cfg, test):
    """The training or the test part of cfg.data, decoded once: loose square crops around the landmarks, at 1.5 x image_size."""
    found = scan(cfg)
    common.report_bad(found["bad"], len(found["images"]) + len(found["bad"]), cfg.skip_bad)
    groups = {g: k for k, g in enumerate(dict.fromkeys(found["groups"]))}
    is_test = found["test"] if any(found["test"]) else [groups[g] % 10 == 9 for g in found["groups"]]
    if not any(is_test) or all(is_test):
        raise UserError(f"{cfg.data}: {len(groups)} pictures or videos are too few to hold some out; expected at least 10")
    mine = [k for k, is_ in enumerate(is_test) if is_ == test]
    images, annotations = [found["images"][k] for k in mine], [found["annotations"][k] for k in mine]
    side, bad = round(1.5 * cfg.image_size), []
    points = []
    for pts in annotations:
        try:
            p = common.read_pts(pts)
            if cfg.points == 68 and len(p) == 66:
                raise UserError(f"{pts}: 66 points, 68 wanted; add --points 66")
            points.append(common.to_66(p) if cfg.points == 66 else p)
        except UserError as error:
            bad.append(str(error))
            points.append(None)
    common.report_bad(bad, len(images), cfg.skip_bad)
    keep = [k for k, p in enumerate(points) if p is not None]
    images, points, mine = [images[k] for k in keep], torch.stack([points[k] for k in keep]), [mine[k] for k in keep]
    low, high = common.crop_box(points, 0)
    centre, half = (low + high) / 2, (high - low).amax(1, keepdim=True).clamp(min=4)            # twice the landmarks' longer side

    def decode(k):
        picture = common.open_image(images[k])
        check_points(points[k], picture, images[k])
        return np.asarray(common.crop(picture, centre[k] - half[k], centre[k] + half[k], side)).transpose(2, 0, 1)

    key = [(*map(float, c), float(h)) for c, h in zip(centre, half[:, 0], strict=True)]
    bank, good = common.decoded_bank(cfg, images, (3, side, side), decode, key)
    points = (points - (centre - half)[:, None]) * (side / (2 * half))[:, None] - .5
    group = torch.tensor([groups[found["groups"][mine[k]]] for k in good])
    first = torch.searchsorted(group, group)
    last = torch.searchsorted(group, group, right=True) - 1
    # Authors' code: frames of one video, more than 50 and at most 200 apart
    return Faces(cfg, bank, points[good], first, last, photos=True, gap=(51, 200))


TRAIN_SEED, TEST_SEED = 10_000, 20_000                                  # people drawn from other seeds are other people


def make_data(cfg, test=False):
    """The training faces, or faces of other people (test)."""
    if cfg.data:
        return photographs(cfg, test)
    return toy_faces(cfg, 64, TEST_SEED) if test else toy_faces(cfg, cfg.people, TRAIN_SEED + 10 * cfg.seed)


# ====================================================================================================== networks

class Generator(nn.Module):
    """Section 2.2: two stride-2 convolutions, residual blocks, two transposed ones; a colour image C and a mask M.

        I^ = M * I + (1 - M) * C          M = 1 keeps the pixel of the input, M = 0 takes the painted one

    The layers of the authors' published generator: 8,621,888 parameters at 66 heatmaps, width 64, 6 blocks.
    forward(I, H): I [B, 3, S, S] in [-1, 1], H [B, n, S, S] in [0, 1], S a multiple of 4; returns I^ [B, 3, S, S] in
    [-1, 1], and M [B, 1, S, S] if with_mask.
    """

    def __init__(self, points=66, width=64, residual_blocks=6):
        super().__init__()
        w, act, norm = width, nn.LeakyReLU(.2), "instance-affine"
        self.down = nn.Sequential(
            *conv_block(3 + points, w, 7, 1, 3, norm, act, bias=False),               # w  x S   x S
            *conv_block(w, 2 * w, 4, 2, 1, norm, act, bias=False),                    # 2w x S/2 x S/2
            *conv_block(2 * w, 4 * w, 4, 2, 1, norm, act, bias=False))                # 4w x S/4 x S/4
        self.bottleneck = nn.Sequential(*(ResidualBlock(4 * w, "instance", act) for _ in range(residual_blocks)))
        self.up = nn.Sequential(
            *conv_block(4 * w, 2 * w, 4, 2, 1, norm, act, up=True, bias=False),       # 2w x S/2 x S/2
            *conv_block(2 * w, w, 4, 2, 1, norm, act, up=True, bias=False))           # w  x S   x S
        self.colour = nn.Conv2d(w, 3, 7, 1, 3, bias=False)
        self.mask = nn.Conv2d(w, 1, 7, 1, 3, bias=False)
        common.init_normal(self)                                                      # authors' code: N(0, 0.02)

    def paint(self, I, H):
        """C [B, 3, S, S] in [-1, 1] and M [B, 1, S, S] in [0, 1]."""
        first, w = self.down[0], self.down[0].weight                   # conv([I, H]) = conv(I) + conv(H): no gradient for H
        x = F.conv2d(I, w[:, :3], padding=first.padding) + F.conv2d(H, w[:, 3:], padding=first.padding)
        x = self.up(self.bottleneck(self.down[1:](x)))
        C, M = F.conv2d(x, torch.cat([self.colour.weight, self.mask.weight]), padding=3).split((3, 1), 1)      # one pass for both
        return torch.tanh(C), torch.sigmoid(M)

    def forward(self, I, H, with_mask=False):
        C, M = self.paint(I, H)
        I_hat = M * I + (1 - M) * C
        return (I_hat, M) if with_mask else I_hat


def authors_weights(state):
    """The authors' published state_dict -> ours, by key name."""
    rename = {"down_conv.": "down.", "feature_layer.": "up.", "colour_layer.0.": "colour.", "mask_layer.0.": "mask."}
    out = {}
    for key, value in state.items():
        key = key.removeprefix("module.")
        for theirs, ours in rename.items():
            key = re.sub("^" + re.escape(theirs), ours, key)
        key = re.sub(r"^bottleneck\.(\d+)\.conv1\.", r"bottleneck.\1.body.0.", key)
        key = re.sub(r"^bottleneck\.(\d+)\.conv2\.", r"bottleneck.\1.body.3.", key)
        out[key] = value
    return out


class LightCNN(nn.Module):
    """Light CNN-9 (Wu et al. 2018), for the identity loss on photographs. Only its weights are needed from outside.

    Max-feature-map: a convolution with twice the channels, of which the larger of each two goes on. Layer names are those
    of the published checkpoint. forward: [B, 1, 128, 128] grey in [0, 1] -> last pooling layer [B, 128, 8, 8], fc [B, 256].
    """

    class MFM(nn.Module):
        def __init__(self, c_in, c_out, kernel=3, padding=1, linear=False):
            super().__init__()
            self.filter = nn.Linear(c_in, 2 * c_out) if linear else nn.Conv2d(c_in, 2 * c_out, kernel, 1, padding)

        def forward(self, x):
            return torch.maximum(*self.filter(x).chunk(2, 1))

    class Group(nn.Module):
        def __init__(self, c_in, c_out):
            super().__init__()
            self.conv_a, self.conv = LightCNN.MFM(c_in, c_in, 1, 0), LightCNN.MFM(c_in, c_out)

        def forward(self, x):
            return self.conv(self.conv_a(x))

    def __init__(self):
        super().__init__()
        G, pool = self.Group, nn.MaxPool2d(2, 2, ceil_mode=True)
        self.features = nn.Sequential(self.MFM(1, 48, 5, 2), pool, G(48, 96), pool, G(96, 192), pool, G(192, 128), G(128, 128), pool)
        self.fc1 = self.MFM(8 * 8 * 128, 256, linear=True)

    def forward(self, grey):
        pool = self.features(grey)
        return pool, self.fc1(pool.flatten(1))


class FaceFeatures(nn.Module):
    """Phi of the identity loss: face -> (last pooling layer, fully connected layer) of a frozen recogniser.

    Light CNN-9 where cfg.light_cnn names its weights; else a small recogniser trained on toy people of its own (not the one
    that measures in --evaluate). images: [B, 3, S, S] in [-1, 1].
    """

    def __init__(self, cfg):
        super().__init__()
        self.light_cnn = bool(cfg.light_cnn)
        if self.light_cnn:
            state = common.load_checkpoint(cfg.light_cnn)
            state = {k.removeprefix("module."): v for k, v in state.get("state_dict", state).items()}
            self.net = common.load_weights(LightCNN(), {k: v for k, v in state.items() if not k.startswith("fc2.")}, cfg.light_cnn)
            self.net.eval().requires_grad_(False)
        else:
            if cfg.data:
                say("identity loss: no --light-cnn file; using a small recogniser of toy faces")
            self.net, _ = toyfaces.judge("identity", cfg.image_size, 1, cfg.device, cfg.cache)

    def forward(self, images):
        if self.light_cnn:
            r, g, b = images.split(1, 1)
            grey = (.299 * r + .587 * g + .114 * b) / 2 + .5
            return self.net(F.interpolate(grey, (128, 128), mode="bilinear", align_corners=False))
        pool = self.net.features(images)[-1]
        return pool, self.net.embed(pool)


class Perception(nn.Module):
    """Psi of the perceptual loss: relu1_2, relu2_2, relu3_3, relu4_3 of VGG-16, inputs normalised as VGG was trained.

    Needs torchvision's ImageNet weights, on disk or downloadable. Without them, or with cfg.perceptual = "recogniser", the four
    feature maps of a small recogniser of toy faces. (The authors' code feeds VGG pictures in [-1, 1], not normalised.)
    """

    def __init__(self, cfg):
        super().__init__()
        self.vgg = None
        if cfg.perceptual == "vgg":
            import torchvision
            for name, of_imagenet in ("mean", (.485, .456, .406)), ("std", (.229, .224, .225)):
                self.register_buffer(name, torch.tensor(of_imagenet)[:, None, None])
            try:
                self.vgg = torchvision.models.vgg16(weights=torchvision.models.VGG16_Weights.IMAGENET1K_V1).features[:23]
                for layer in self.vgg:
                    if isinstance(layer, nn.ReLU):
                        layer.inplace = False
                self.vgg.eval().requires_grad_(False)
            except (OSError, RuntimeError, ValueError):
                say("perceptual loss: VGG-16 weights are not on disk and cannot be downloaded; using the toy recogniser's features")
        if self.vgg is None:
            self.net, _ = toyfaces.judge("identity", cfg.image_size, 1, cfg.device, cfg.cache)

    def forward(self, images):
        if self.vgg is None:
            return self.net.features(images)
        x, maps = (images / 2 + .5 - self.mean) / self.std, []
        for k, layer in enumerate(self.vgg):
            x = layer(x)
            if k in (3, 8, 15, 22):
                maps.append(x)
        return maps


# ======================================================================================================== losses
# || . ||_1 is the *mean* absolute value over batch, channels and pixels of pictures in [-1, 1], as in the authors' code; the
# weights make sense with it only. That the paper means the 1-norm for self, triple and identity is not confirmed. TV is a sum.

def loss_adv_D(D, I, I_hat, cfg):
    """[2.3.1]  L_D = E[max(0, 1 - D(I))] + E[max(0, 1 + D(I^))]

    Real scores go above +1, generated ones below -1, minimised by D. With cfg.adversarial "wgan-gp" (authors' training
    code) -E[D(I)] + E[D(I^)] + lambda_gp GP instead. I: real pictures (the targets), I_hat: generated, detached;
    [B, 3, S, S] each. Scalar.
    """
    real, fake = D(torch.cat([I, I_hat])).chunk(2)                     # D has no batch norm: one pass for both
    loss = common.GAN_LOSSES[cfg.adversarial][0](real, fake)
    if cfg.adversarial == "wgan-gp":
        loss = loss + cfg.lambda_gp * common.gradient_penalty(D, I, I_hat)
    return loss


def loss_adv_G(D, I_hat):
    """[2.3.1]  L_G = -E[D(I^)]

    Minimised by G: the score rises without limit (hinge and WGAN alike). Weight: lambda_adv
    """
    return -D(I_hat).mean()


def loss_pixel(I_hat, I_t):
    """[2.3.2]  L_pix = || G(I; H(s_t)) - I_t ||_1

    Needs pairs: two frames of one video, or one photograph and the same bent. [B, 3, S, S] each. Weight: lambda_pix
    """
    return (I_hat - I_t).abs().mean()


def loss_self(G, I_hat, H_i, I):
    """[2.3.3]  L_self = || G(G(I; H(s_t)); H(s_i)) - I ||_1

    There and back again: I_hat = G(I; H(s_t)) asked for the source's own landmarks is the source. The loss that CycleGAN
    and StarGAN rely on, and that G can satisfy by hiding I in I_hat. Gradient through both passes. Weight: lambda_self
    """
    return (G(I_hat, H_i) - I).abs().mean()


def loss_triple(G, I_hat, H_n, I_n):
    """[2.3.4]  L_triple = || G(I^; H(s_n)) - G(I; H(s_n)) ||_1,   I^ = G(I; H(s_t))

    Two routes to a third shape s_n must meet: through a generated face, or directly (I_n = G(I; H(s_n))). If I^ hid I, the
    route over I^ would fall back to I, and the loss would see it. Gradient flows through both routes, as in the authors'
    code. I_hat, I_n: [B, 3, S, S]; H_n: [B, n, S, S]. Weight: lambda_triple
    """
    return (G(I_hat, H_n) - I_n).abs().mean()


def loss_identity(Phi, I_hat, I):
    """[2.3.5]  L_id = sum_{l in fc, pool} || Phi_l(I^) - Phi_l(I) ||_1

    Pose moves every pixel, so pixels cannot compare who it is; features of a frozen face recogniser can (the paper: Light
    CNN's last pooling and fully connected layer). Target not differentiated. Weight: lambda_id
    """
    with torch.no_grad():
        target = Phi(I)
    return sum((a - b).abs().mean() for a, b in zip(Phi(I_hat), target, strict=True))


def loss_perceptual(Psi, I_hat, I_t):
    """[2.3.6]  L_pp = sum_l || Psi_l(I^) - Psi_l(I_t) ||_2^2

    Psi_l: relu1_2, relu2_2, relu3_3, relu4_3 of VGG. The mean square per layer, summed, target not differentiated, is the
    authors' code's; the paper's norm is not confirmed. Weight: lambda_pp
    """
    with torch.no_grad():
        target = Psi(I_t)
    return sum(F.mse_loss(a, b) for a, b in zip(Psi(I_hat), target, strict=True))


def loss_tv(I_hat):
    """[2.3.7]  L_tv = sum_ij (I^_{i+1,j} - I^_{i,j})^2 + (I^_{i,j+1} - I^_{i,j})^2

    Total variation of the generated picture, against checkerboards; here the sum over pixels and channels, mean over the
    batch. (The authors' code takes means and divides by the batch twice: no effect at its weight.) Weight: lambda_tv
    """
    dy, dx = I_hat[..., 1:, :] - I_hat[..., :-1, :], I_hat[..., :, 1:] - I_hat[..., :, :-1]
    return ((dy ** 2).sum() + (dx ** 2).sum()) / len(I_hat)


# ====================================================================================================== training

def build(cfg):
    """G and D as the recipe says. Raises UserError for sizes that do not fit together."""
    for name, fits, expected in (("points", cfg.points in (66, 68), "66 or 68"), ("frames", cfg.frames > PASSES, f"at least {PASSES + 1}"),
                                 ("people", cfg.people > 0, "at least 1"), ("width", cfg.width > 0, "at least 1"),
                                 ("sigma", 0 < cfg.sigma <= cfg.image_size, "more than 0, at most --image-size"),
                                 ("warm-up", cfg.warm_up <= 1, "at most 1"),
                                 ("d-widths", all(cfg.d_widths) and len(cfg.d_widths) < 12, "up to 11 numbers above 0"),
                                 ("d-steps", cfg.d_steps > 0, "at least 1")):
        if not fits:
            raise UserError(f"--{name} {getattr(cfg, name.replace('-', '_'))}: expected {expected}")
    G = Generator(cfg.points, cfg.width, cfg.residual_blocks)
    D = PatchGAN(3, cfg.d_widths, (2,) * len(cfg.d_widths), norm=None, slope=.2, head_kernel=3, head_bias=False)
    if cfg.image_size % 2 ** len(cfg.d_widths) or cfg.image_size < 2 ** (len(cfg.d_widths) + 1):
        raise UserError(f"--image-size {cfg.image_size}: expected a multiple of {2 ** len(cfg.d_widths)}, at least {2 ** (len(cfg.d_widths) + 1)}")
    return G, common.init_normal(D)


def consistency_weight(step, cfg):
    """0 during the warm-up, then linearly to 1: see "SMALL departs" in the docstring above."""
    return min(1., max(0., (step - cfg.warm_up * cfg.steps) / max(1., cfg.ramp * cfg.steps)))


def train(cfg):
    """The paper's training, step by step. Writes cfg.run; returns G (on cfg.device)."""
    torch.manual_seed(cfg.seed)
    G, D = build(cfg)
    data, fixed = make_data(cfg), make_data(cfg, test=True)
    Phi, Psi = FaceFeatures(cfg), Perception(cfg)
    say(f"{len(data)} pictures; G {common.n_parameters(G):,} parameters, D {common.n_parameters(D):,}, one score sees {D.receptive_field()} px")
    if cfg.weights:
        load_generator(G, common.load_checkpoint(cfg.weights), cfg.weights)
    G, D, Phi, Psi = (prepare(net, cfg) for net in (G, D, Phi, Psi))
    opt_G = torch.optim.Adam(G.parameters(), cfg.lr, cfg.betas, fused=True)
    opt_D = torch.optim.Adam(D.parameters(), cfg.lr, cfg.betas, fused=True)
    run = Run(cfg, {"G": G, "D": D}, {"G": opt_G, "D": opt_D}, data, HEALTH, about={"perceptual": "recogniser" if Psi.vgg is None else "vgg"})

    L = {}
    for step, (I, H_i, I_t, H_t, H_n) in run.batches(cfg.batch_size):
        run.learning_rate(cfg.lr * common.linear_decay(step, cfg.steps, cfg.decay_from))
        with torch.set_grad_enabled(step % cfg.d_steps == 0):              # when G's turn comes
            I_hat, M = G(I, H_t, True)

        # 1. D: real above +1, generated below -1
        L["D"] = loss_adv_D(D, I_t, I_hat.detach(), cfg)                                           # [2.3.1]
        run.update("D", L["D"])

        # 2. G: fool D, meet the true picture, come back, make two routes meet, stay the same person
        if step % cfg.d_steps == 0:
            with frozen(D):
                L["adv"] = cfg.lambda_adv * loss_adv_G(D, I_hat)                                   # [2.3.1]
                L["pix"] = cfg.lambda_pix * loss_pixel(I_hat, I_t)                                 # [2.3.2]
                if w := consistency_weight(step, cfg):
                    if cfg.lambda_self:
                        L["self"] = w * cfg.lambda_self * loss_self(G, I_hat, H_i, I)              # [2.3.3]
                    if cfg.lambda_triple:
                        L["triple"] = w * cfg.lambda_triple * loss_triple(G, I_hat, H_n, G(I, H_n))  # [2.3.4]
                if cfg.lambda_id:
                    L["id"] = cfg.lambda_id * loss_identity(Phi, I_hat, I)                         # [2.3.5]
                if cfg.lambda_pp:
                    L["pp"] = cfg.lambda_pp * loss_perceptual(Psi, I_hat, I_t)                     # [2.3.6]
                L["tv"] = cfg.lambda_tv * loss_tv(I_hat)                                           # [2.3.7]
                if cfg.lambda_mask:
                    L["mask"] = cfg.lambda_mask * M.mean()                                         # ours
                run.update("G", sum(v for name, v in L.items() if name != "D"))

        # 3. What happened ------------------------------------------------------------------------------
        if run.logs(step):
            run.log(step, **report(G, D, fixed, cfg), **{f"L_{name}": value.detach() for name, value in L.items()})
        if run.samples(step):
            run.sample(step, sample_grid(G, fixed))
    return G


def fixed_batch(data, n, seed=0):
    """The same n samples every time, without touching the generator of the training."""
    state = data.generator.get_state()
    data.generator.manual_seed(seed)
    batch = data.sample(n)
    data.generator.set_state(state)
    return batch


@torch.no_grad()
def report(G, D, data, cfg):
    """The health word, and the numbers behind it, on 32 held-out samples (L1 in units of the full range, 0 ... 1)."""
    I, _, I_t, H_t, H_n = fixed_batch(data, 32)
    I_hat, I_n = G(I, H_t), G(I, H_n)
    error, to_input, change = ((a - b).abs().mean() / 2 for a, b in ((I_hat, I_t), (I_hat, I), (I_hat, I_n)))
    real, fake = D(I_t), D(I_hat)
    word = "ok"
    if to_input < error:
        word = "copying"
    elif change < .1 * (I - I_t).abs().mean() / 2:
        word = "ignores-target"
    elif real.min() > fake.max() and (real.mean() - fake.mean()) > 4:
        word = "D-won"
    return dict(health=word, error=error, baseline=(I - I_t).abs().mean() / 2)


@torch.no_grad()
def sample_grid(G, data, n=8):
    """Held-out faces: input, target landmarks, mask, direct result, back again, over a third shape, truth."""
    I, H_i, I_t, H_t, H_n = fixed_batch(data, n)
    I_hat, M = G(I, H_t, True)
    columns = {"input": I, "target": H_t.amax(1, keepdim=True).expand(-1, 3, -1, -1) * 2 - 1, "mask": M.expand(-1, 3, -1, -1) * 2 - 1,
               "result": I_hat, "truth": I_t, "back": G(I_hat, H_i), "3rd direct": G(I, H_n), "3rd via result": G(I_hat, H_n)}
    return grid(list(columns.values()), list(columns), scale=max(1, 128 // I.shape[-1]))


# ==================================================================================================== evaluation

@common.reads_checkpoint
def load_generator(G, saved, path):
    """G's weights from a checkpoint of ours or from the authors' published generator. Returns the checkpoint's config, or {}."""
    if "paper" in saved:
        common.check_paper(saved, path, Path(__file__).stem)
        common.load_weights(G, saved["nets"].get("G", {}), path)
        return saved["config"]
    common.load_weights(G, authors_weights(saved.get("state_dict", saved)), path)
    return {}


@common.reads_checkpoint
def trained(cfg):
    """The generator of cfg.run (or cfg.weights), ready to use. cfg takes over the checkpoint's sizes and kind of data."""
    path = cfg.weights or Path(cfg.run) / "last.pt"
    saved = common.load_checkpoint(path)
    if "paper" in saved:
        common.check_paper(saved, path, Path(__file__).stem)
        common.adopt(cfg, saved, ("image_size", "points", "sigma", "tight", "width", "residual_blocks", "pose", "frames"))
    else:
        cfg.image_size, cfg.width, cfg.residual_blocks, cfg.points = 128, 64, 6, 66
    G = Generator(cfg.points, cfg.width, cfg.residual_blocks)
    config = load_generator(G, saved, path)
    G = prepare(G, cfg).eval()
    if not config:                                                     # the authors' demo feeds [0, 1] and reads the result as [-1, 1]
        mixed = G.forward
        G.forward = lambda I, H: mixed(I / 2 + .5, H)
    return G, config


PASSES, CHAINS = 5, 512


@torch.no_grad()
def progressive(G, I, H):
    """I -> s_1 -> s_2 -> ... : each result is the next input. H: list of heatmaps; returns the list of results."""
    out = []
    for H_k in H:
        I = G(I, H_k)
        out.append(I)
    return out


@torch.no_grad()
def measure(cfg, G):
    """Rows of metrics over held-out people: copy, direct and progressive passes 1 ... 5, self-recovery. See `evaluate`."""
    data = make_data(cfg, test=True)
    toy = not cfg.data
    judges = {kind: toyfaces.judge(kind, cfg.image_size, 2, cfg.device, cfg.cache) for kind in ("identity", "landmarks")} if toy else {}
    generator, sums, count = torch.Generator().manual_seed(1), common.defaultdict(lambda: common.defaultdict(float)), 0

    def add(row, x, truth, points):
        values = {"L1": (x - truth).abs().flatten(1).mean(1) / 2,
                  "SSIM": common.ssim(x, truth)}
        if toy:
            values["identity"] = (judges["identity"][0](x) * judges["identity"][0](truth)).sum(1)
            values["landmarks"] = (judges["landmarks"][0](x)[:, common.KEEP_66] - common.to_66(points)).norm(dim=2).mean(1)
        for name, value in values.items():
            sums[row][name] += value.sum().item()

    for start in range(0, CHAINS, 32):
        n = 32
        if toy:                                                        # six different pictures of each person
            person = torch.arange(start, start + n) % (len(data) // cfg.frames)
            order = torch.stack([torch.randperm(cfg.frames, generator=generator)[:PASSES + 1] for _ in range(n)])
            views = [(data.draw(k), data.points[k.to(cfg.device)]) for k in (person[:, None] * cfg.frames + order).unbind(1)]
        else:
            data.generator.manual_seed(start)
            i = (data._uniform(n) * len(data)).long()
            still = data.first[i] == data.last[i]
            views = [data.view(i)] + [data.view(data.partner(i), bend=still) for _ in range(PASSES)]
        (I, _), targets = views[0], views[1:]
        H = [data.heat(s) for _, s in targets]
        chain = progressive(G, I, H)
        for k, (truth, points) in enumerate(targets):
            add("the true pictures", truth, truth, points)
            add(f"copy {k + 1}", I, truth, points)
            add(f"direct {k + 1}", G(I, H[k]), truth, points)
            add(f"pass {k + 1}", chain[k], truth, points)
        # The paper's failure: a generated face, asked for another shape, returns to the original input
        I_b, (I_c, _) = G(I, H[0]), targets[1]
        again = G(I_b, H[1])
        sums["self-recovery"]["to input"] += (again - I).abs().mean().item() / 2 * n
        sums["self-recovery"]["to target"] += (again - I_c).abs().mean().item() / 2 * n
        sums["self-recovery"]["route gap"] += (again - G(I, H[1])).abs().mean().item() / 2 * n
        count += n
    rows = {row: {k: v / count for k, v in values.items()} for row, values in sums.items()}
    mean = {kind: {k: sum(rows[f"{kind} {j}"][k] for j in range(1, PASSES + 1)) / PASSES for k in rows[f"{kind} 1"]} for kind in ("copy", "direct")}
    back = rows.pop("self-recovery")
    table = {"copy the input": mean["copy"], "direct": mean["direct"], **{f"pass {k}": rows[f"pass {k}"] for k in range(1, PASSES + 1)},
             "direct to pass 5's target": rows[f"direct {PASSES}"]}
    table["the true pictures"] = {k: v / PASSES for k, v in rows["the true pictures"].items()}
    summary = {"copy": mean["copy"]["L1"], "direct": mean["direct"]["L1"], "direct / copy": mean["direct"]["L1"] / mean["copy"]["L1"],
               "pass 5": rows[f"pass {PASSES}"]["L1"], "excess": rows[f"pass {PASSES}"]["L1"] - rows[f"direct {PASSES}"]["L1"],
               "self-recovery ratio": back["to input"] / back["to target"], "route gap": back["route gap"]}
    notes = f"{CHAINS} chains of {PASSES} targets, held-out {'people' if toy else 'pictures (bent: the truth is a warp, not a photograph)'}; L1 in 0 ... 1"
    if toy:
        notes += f"; landmarks in px, last row = the judge's own error; identity judge's equal error rate {judges['identity'][1]:.3f}"
    return table, summary, notes


def evaluate(cfg):
    """L1, SSIM, identity similarity and landmark error to the true picture: direct, and after 1 ... 5 progressive passes.

    Writes evaluation.json. "excess" is pass 5's L1 minus the direct pass's to the same targets. "self-recovery ratio" is
    ||G(I^; s_c) - I|| / ||G(I^; s_c) - I_c||: below 1, a generated face falls back to the input it came from.
    """
    G, _ = trained(cfg)
    rows, summary, notes = measure(cfg, G)
    return common.evaluation(cfg, rows, notes, summary=", ".join(f"{k} {v:.4f}" for k, v in summary.items()), values=summary)


# ====================================================================================================== ablation

ABLATION = {"without triple": dict(lambda_triple=0.), "with triple": {}}
SEEDS = (0, 1, 2)


def _ablation_run(cfg):
    """One training of the ablation and its measures (in a process of its own on a CPU)."""
    G = train(cfg)
    if not cfg.stop_after:
        table, summary, _ = measure(cfg, G)
        return {"summary": summary, "rows": table}


def ablate(cfg):
    """The paper's claim: with and without the triple consistency loss, same budget, three seeds.

    Both variants are the same training until the consistency losses start (after the warm-up their weight is no longer 0),
    so that part is trained once per seed. reproduced if the mean excess with the loss is at most half of that without,
    smaller in every seed, and the mean direct error is not worse by more than 10 %; and, for the recipe, if direct is at
    most 0.40 x copying in every run with it. An interrupted ablation continues.
    """
    folder, warm_up = Path(cfg.run) / "ablation", int(cfg.warm_up * cfg.steps)
    if not 0 < warm_up < cfg.steps:
        raise UserError(f"--warm-up {cfg.warm_up} of {cfg.steps} steps: the ablation needs some steps before and after the consistency losses start")
    if cfg.fresh:
        shutil.rmtree(folder, ignore_errors=True)

    def job(name, seed, **change):
        return dataclasses.replace(cfg, seed=seed, fresh=False, run=str(folder / f"{name.replace(' ', '-')}-{seed}"), **{"stop_after": 0, **change})

    for earlier in folder.glob("*/last.pt"):
        if (steps := common.steps_of(earlier, cfg)) != cfg.steps:
            raise UserError(f"{folder} holds an ablation of {steps} steps; give --steps {steps}, another --run folder, or --fresh")
    make_data(cfg, test=True)
    for kind, seed in (("identity", 1), ("identity", 2), ("landmarks", 2)):
        toyfaces.judge(kind, cfg.image_size, seed, cfg.device, cfg.cache)
    trunks = [job("warm-up", seed, stop_after=warm_up) for seed in SEEDS]
    common.in_parallel(_ablation_run, trunks, cfg.device)
    jobs = [job(name, seed, **change) for seed in SEEDS for name, change in ABLATION.items()]
    for k, one in enumerate(jobs):
        common.branch(trunks[k // len(ABLATION)], one)
    results = common.in_parallel(_ablation_run, jobs, cfg.device)
    runs = {name: results[k::len(ABLATION)] for k, name in enumerate(ABLATION)}
    values = {name: {k: [r["summary"][k] for r in rs] for k in rs[0]["summary"]} for name, rs in runs.items()}
    rows = {f"{name}, {what}": {k: f(v) for k, v in values[name].items()} for name in ABLATION
            for what, f in (("mean", np.mean), ("std", lambda v: np.std(v, ddof=1)))}
    rows |= {f"{name}, seed {s}": {k: v[i] for k, v in values[name].items()} for i, s in enumerate(SEEDS) for name in ABLATION}
    with_, without = values["with triple"], values["without triple"]
    passed = {"excess at most half": np.mean(with_["excess"]) <= .5 * np.mean(without["excess"]),
              "smaller in every seed": all(a < b for a, b in zip(with_["excess"], without["excess"], strict=True)),
              "direct not worse by 10 %": np.mean(with_["direct"]) <= 1.1 * np.mean(without["direct"]),
              "direct at most 0.40 x copy": max(with_["direct / copy"]) <= .40}
    verdict = "reproduced" if all(passed.values()) else "partly reproduced" if passed["smaller in every seed"] else "not reproduced"
    result = {"command": common.command(), "commit": common.commit(), "hardware": common.hardware(cfg), "torch": torch.__version__,
              "seeds": SEEDS, "steps": cfg.steps, "seconds": sum(common.read_jsonl(Path(one.run) / "metrics.jsonl")[-1]["seconds"] for one in trunks + jobs),
              "rows": {name: {k: float(v) for k, v in row.items()} for name, row in rows.items()},
              "passes": {name: [[r["rows"][f"pass {k}"]["L1"] for k in range(1, PASSES + 1)] for r in rs] for name, rs in runs.items()},
              "criteria": {k: bool(v) for k, v in passed.items()}, "verdict": verdict,
              "claims": [{"what": "L1 error that five progressive edits add (mean ± std of three seeds)",
                          "without": "{:.4f} ± {:.4f}".format(*(rows[f"without triple, {s}"]["excess"] for s in ("mean", "std"))),
                          "with": "{:.4f} ± {:.4f}".format(*(rows[f"with triple, {s}"]["excess"] for s in ("mean", "std")))}]}
    common.write_json(Path(cfg.run) / "ablation.json", result)
    draw_ablation(result, Path(cfg.run) / "ablation.png")
    print(common.table(result))
    print("; ".join(f"{k}: {'yes' if v else 'no'}" for k, v in passed.items()))


def draw_ablation(result, path):
    """Error after each progressive pass, with and without the triple loss: one line a seed."""
    figure = common.figure(5, 3.2)
    ax = figure.add_subplot()
    for name, colour in (("without triple", "tab:red"), ("with triple", "tab:blue")):
        for k, line in enumerate(result["passes"][name]):
            ax.plot(range(1, PASSES + 1), line, color=colour, marker="o", lw=1, label=name if k == 0 else None)
        ax.axhline(result["rows"][f"{name}, mean"]["direct"], color=colour, ls=":", lw=1)
    ax.set(xlabel="progressive pass", ylabel="L1 to the true picture (0 ... 1)", xticks=range(1, PASSES + 1), ylim=(0, None))
    ax.set_title("dotted: the direct pass", fontsize=9)
    ax.legend(fontsize=8)
    figure.savefig(path, dpi=120)


# ===================================================================================================== inference

def read_drive(path):
    """Driving landmarks: a .pts file, or text with one frame a row, x1 y1 ... x66 y66 (or 68 points). [T, n, 2], 0-based.

    As in the authors' demo, rows whose first number is not positive (tracking lost) are left out.
    """
    if str(path).lower().endswith(".pts"):
        return common.read_pts(path)[None]
    try:
        rows = np.loadtxt(path, ndmin=2, dtype=np.float32, encoding="utf-8-sig")
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except (ValueError, OSError, UnicodeError) as error:
        raise UserError(f"{path}: not a table of numbers ({str(error).splitlines()[0][:80]}); expected rows of x1 y1 ... x66 y66") from None
    if rows.shape[1] not in (132, 136):
        raise UserError(f"{path}: {rows.shape[1]} numbers a row; expected 132 (66 points) or 136 (68 points)")
    rows = rows[(rows[:, 0] > 0) & np.isfinite(rows).all(1)]
    if not len(rows):
        raise UserError(f"{path}: no row with landmarks (first number positive)")
    return torch.from_numpy(rows).reshape(len(rows), -1, 2) - 1


def toy_sweep(size, n=40):
    """Landmarks of an average toy face that turns left and right while it runs through expressions: [n, 68, 2]."""
    face = toyfaces.sample(1, 0, pose=0, expression=False)
    face = face.set(**{name: mean for name, (mean, _) in toyfaces.GEOMETRY.items()}, **CLOSE)
    names = ("neutral", "happy", "surprised", "angry", "neutral")
    table, faces = torch.tensor([toyfaces.EXPRESSIONS[name] for name in names]), []
    for k in range(n):
        at = k / (n - 1) * (len(names) - 1)
        j = min(int(at), len(names) - 2)
        values = table[j] + (at - j) * (table[j + 1] - table[j])
        faces.append(face.set(**dict(zip(toyfaces.EXPRESSION, values.tolist(), strict=False)), gaze_x=0., yaw=35 * math.sin(2 * math.pi * k / (n - 1))))
    return toyfaces.landmarks(toyfaces.cat(faces), size)


def infer(cfg, files, drive, out):
    """FILE...: a face, or a face and its .pts. Writes <face>.gif (source, landmarks, direct, progressive) and a contact sheet.

    A generator of photographs needs the face's .pts, beside it or as the second file, and crops by it as in training. One
    of toy faces takes the whole picture as a toy frame, and puts the driving landmarks where toy faces have theirs.
    """
    pts = [f for f in files if f.lower().endswith(".pts")]
    pictures = [f for f in files if f not in pts]
    if len(pictures) != 1 or len(pts) > 1:
        raise UserError(f"--infer got {len(pictures)} pictures and {len(pts)} .pts files; expected one face, and at most one .pts for it")
    picture = common.open_image(pictures[0])
    shapes = toy_sweep(256) if drive == "sweep" else read_drive(drive)
    G, config = trained(cfg)
    S, toy = cfg.image_size, bool(config) and not config["data"]
    def fit(points):
        return common.to_66(points) if cfg.points == 66 else points

    if shapes.shape[1] < cfg.points:
        raise UserError(f"{drive}: {shapes.shape[1]} points; this generator needs {cfg.points}")
    shapes = fit(shapes)
    if toy:
        I = common.to_tensor(picture.resize((S, S), Image.Resampling.BICUBIC))[None]
        if drive != "sweep":                                           # median box of the drive -> box of an average toy face
            home = fit(toy_sweep(S))[:1]
            low, high = (t.median(0).values for t in common.crop_box(shapes, 0))
            home_low, home_high = common.crop_box(home, 0)
            shapes = (shapes - low) / (high - low) * (home_high - home_low) + home_low
        else:
            shapes = (shapes + .5) * S / 256 - .5
    else:
        beside = Path(pts[0]) if pts else Path(pictures[0]).with_suffix(".pts")
        if pts or beside.exists():
            points = fit(common.read_pts(beside))
            check_points(points, picture, pictures[0])
            low, high = common.crop_box(points[None], cfg.tight)
            picture = common.crop(picture, low[0], high[0], S)
        elif picture.size != (S, S):
            raise UserError(f"{pictures[0]}: {picture.width} x {picture.height} and no landmarks; give its .pts, or a crop of {S} x {S}")
        I = common.to_tensor(picture)[None]
        low, high = common.crop_box(shapes, cfg.tight)                 # every driving shape is cropped like a face: authors' demo
        shapes = (shapes - low[:, None]) * (S / (high - low))[:, None] - .5
    I, shapes = I.to(cfg.device), shapes.to(cfg.device)
    H = [heatmaps(s[None], S, cfg.sigma * S / 128) for s in shapes]
    with torch.no_grad():
        direct = [G(I, h) for h in H]
        chain = progressive(G, I, H)
    folder = Path(out or Path(cfg.run) / "inferred")
    folder.mkdir(parents=True, exist_ok=True)
    name, scale = Path(pictures[0]).stem, max(1, 256 // S)
    titles = ["input", "landmarks", "direct", "progressive"]
    dots = common.draw_points(shapes, S)
    common.write_gif([grid([I, dots[k:k + 1], direct[k], chain[k]], titles, scale) for k in range(len(H))], folder / f"{name}.gif")
    pick = torch.linspace(0, len(H) - 1, min(10, len(H))).round().long().tolist()
    sheet = grid([torch.cat([I, I])] + [torch.cat([direct[k], chain[k]]) for k in pick], ["input"] + [f"frame {k + 1}" for k in pick], max(1, 128 // S))
    sheet.save(folder / f"{name}.png")
    print(f"{folder / name}.gif, {folder / name}.png (upper row: direct; lower row: progressive, each frame from the one before)")


if __name__ == "__main__":
    common.cli(__name__)
