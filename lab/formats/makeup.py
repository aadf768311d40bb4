"""PairedCycleGAN's data sets: faces with and without make-up, and where a face has its eyes and lips.

What cutting and warping need of a face is 30 anchors [30, 2], in pixels of the picture. They come from 68
landmarks or from a map of regions, so that a model trained with the one can be used with the other. Left and
right are the viewer's.
    0-3    left eye: left, right, top, bottom        4-7    right eye
    8-10   left brow: left, right, top               11-13  right brow
    14-17  mouth: left, right, top, bottom           18-20  nose: left, right, bottom
    21-26  outline: left and right at the height of eyes, nose, mouth
    27     chin                                      28, 29 the lips' inner edges, middle
"""
from collections import Counter
from pathlib import Path

import numpy as np
import torch

from common import KEEP_66
from lab import UserError
from lab.formats import IMAGE_FILES, folders_below, is_test, pictures_in, text_of, with_ending
from lab.formats.landmarks import check_axes, read_pts
from lab.images import picture_file

# Numbers of the regions in MT's maps
LABELS = dict(face=1, brows=(2, 3), eyes=(4, 5), nose=6, upper_lip=7, inner_mouth=8, lower_lip=9)
# Names of folders: is there make-up?
NAMES = {"makeup": 1, "make-up": 1, "with_makeup": 1, "after": 1, "made": 1, "non-makeup": 0, "no_makeup": 0,
         "non_makeup": 0, "without_makeup": 0, "before": 0, "bare": 0}


def scan(root):
    """What is under root: MT, or folders of pictures with and without make-up, each with landmarks.

    Returns lists of one length `images` (paths), `made` (1 with make-up, 0 without), `annotations` (paths),
    `test` (bool: lies in a folder called test, or, where none does, every tenth of each); `bad`, `notes`.
    UserError where this is no data set.
    """
    root = Path(root)
    found, bad = pictures_below(root)
    if not all(len(paths) > 1 for paths in found):
        names = " and one ".join("folder called " + ", ".join(n for n in NAMES if NAMES[n] == kind)
                                 for kind in (0, 1))
        raise UserError(f"{root}: {len(found[0])} pictures without make-up, {len(found[1])} with; expected "
                        f"images/non-makeup and images/makeup (MT), or one {names}, "
                        "two pictures or more in each")
    images, made, annotations, test = [], [], [], []
    for kind, paths in enumerate(found):
        pairs = [(path, annotation_of(path)) for path in paths]
        bad += [f"{path}: neither {path.stem}.pts beside it nor a map in segs/"
                for path, annotation in pairs if annotation is None]
        pairs = [pair for pair in pairs if pair[1] is not None]
        images += [path for path, _ in pairs]
        annotations += [annotation for _, annotation in pairs]
        made += [kind] * len(pairs)
        test += [k % 10 == min(9, len(pairs) - 1) for k in range(len(pairs))]
    by_folder = [is_test(path, root) for path in images]
    if 0 < sum(by_folder) < len(images):
        test = by_folder
        for kind in (0, 1):
            if not 0 < sum(it for it, of in zip(test, made, strict=True) if of == kind) < made.count(kind):
                raise UserError(f"{root}: pictures {('without', 'with')[kind]} make-up are all in test/, or "
                                "none is; expected some to train on and some to test on")
    kinds = Counter(".pts" if is_pts(a) else "maps" for a in annotations)
    notes = {"without make-up, with": f"{made.count(0)}, {made.count(1)}",
             "held out": f"{'in test folders' if test is by_folder else 'every tenth'}, {sum(test)}",
             "landmarks": ", ".join(f"{n} {kind}" for kind, n in sorted(kinds.items()))}
    return dict(images=images, made=made, annotations=annotations, test=test, bad=bad, notes=notes)


def pictures_below(root):
    """([pictures without make-up, pictures with], messages about lines of lists that name nothing)."""
    found, bad = [[], []], []
    for folder in folders_below(root):
        parts = [part.lower() for part in folder.relative_to(root).parts]
        kind = next((NAMES[part] for part in reversed(parts) if part in NAMES), None)
        # PSGAN's landmarks/ holds pickles that are named as pictures
        if kind is not None and not {"segs", "landmarks"} & set(parts):
            found[kind] += pictures_in(folder)
    for kind, file in (1, root / "makeup.txt"), (0, root / "non-makeup.txt"):
        if file.exists():                                              # PSGAN's lists: only these, in order
            # Each once: else it might be held out and trained on
            lines = dict.fromkeys(map(str.strip, text_of(file).replace("\\", "/").splitlines()))
            wanted = [root / "images" / line for line in lines if line]
            bad += [f"{file}: names {path}, which is not there" for path in wanted if not path.exists()]
            found[kind] = [path for path in wanted if path.exists()]
    return found, bad


def annotation_of(picture):
    """Where the landmarks of a picture are: NAME.pts beside it, or a map in segs/; None = nowhere."""
    picture = picture.absolute()
    home = picture.parent
    folders = home.parent / "segs" / home.name, home.parent.parent / "segs" / home.name, home / "segs"
    maps = (with_ending(folder / picture.name, picture.suffix, ".png", *IMAGE_FILES) for folder in folders)
    return with_ending(picture, ".pts") or next(filter(None, maps), None)


def is_pts(annotation):
    return annotation.suffix.lower() == ".pts"


# =========================================================================================== anchors

def anchors_of(annotation, size):
    """Anchors [30, 2] from a .pts file or a map of regions, in pixels of the picture of `size` (w, h).

    UserError names the file.
    """
    w, h = size
    if is_pts(annotation):
        landmarks = read_pts(annotation)
        check_axes(landmarks, annotation)
        points = anchors_of_points(landmarks)
    else:
        points = anchors_of_map_file(annotation, w, h)
    x, y = points.unbind(1)
    outside = x.min() < -w or x.max() > 2 * w or y.min() < -h or y.max() > 2 * h
    if outside or upright(points[None])[1].norm() < 4:
        raise UserError(f"{annotation}: its landmarks do not lie on the picture ({w} x {h})")
    return points


def anchors_of_map_file(file, w, h):
    """Anchors from a picture file that holds a map of regions, of whatever size, in pixels of w x h."""
    with picture_file(file) as image:
        label = np.asarray(image)
    try:
        if label.ndim != 2:
            raise ValueError(f"{label.shape[2]} channels, expected one that holds MT's numbers")
        return (anchors_of_map(label) + .5) * torch.tensor([w / label.shape[1], h / label.shape[0]]) - .5
    except ValueError as error:
        raise UserError(f"{file}: {error}") from None


def anchors_of_points(points):
    """68 or 66 landmarks [n, 2] of a more or less upright face -> anchors [30, 2]."""
    if len(points) == 66:
        full = points.new_empty(68, 2)
        full[KEEP_66] = points
        full[[60, 64]] = full[[48, 54]]
        points = full
    eyes = [torch.stack([eye[0], eye[3], eye[1:3].mean(0), eye[4:].mean(0)])
            for eye in (points[36:42], points[42:48])]
    brows, mouth, nose = points[[17, 21, 19, 22, 26, 24]], points[[48, 54, 51, 57]], points[[31, 35, 33]]
    heights = points[36:48, 1].mean(), nose[2, 1], mouth[:2, 1].mean()
    jaws = points[:9], points[8:17].flip(0)                            # each from the temple to the chin
    outline = torch.stack([at_height(jaw, y) for y in heights for jaw in jaws])
    return with_lips_apart(torch.cat([*eyes, brows, mouth, nose, outline, points[[8, 62, 66]]]))


def at_height(jaw, y):
    """The point at height y of the line through the points of a jaw [9, 2], or its end that is nearest."""
    k = int((jaw[:, 1] < y).sum().clamp(1, 8))
    t = ((y - jaw[k - 1, 1]) / (jaw[k, 1] - jaw[k - 1, 1]).clamp(min=1e-3)).clamp(0, 1)
    return jaw[k - 1] + t * (jaw[k] - jaw[k - 1])


def anchors_of_map(label):
    """A map of regions [H, W] with MT's numbers -> anchors [30, 2]. Hidden brows are guessed.

    ValueError says what is missing.
    """
    def places(*numbers):
        y, x = np.isin(label, numbers).nonzero()
        return torch.tensor(np.stack([x, y], 1), dtype=torch.float32)

    def pair(numbers):
        return sorted((p for p in map(places, numbers) if len(p)), key=lambda p: p[:, 0].mean())

    eyes, brows, nose = pair(LABELS["eyes"]), pair(LABELS["brows"]), places(LABELS["nose"])
    upper, lower = places(LABELS["upper_lip"]), places(LABELS["lower_lip"])
    for name, number, found in (("two eyes", LABELS["eyes"], len(eyes) == 2),
                                ("lips", (7, 9), len(upper) and len(lower)), ("nose", 6, len(nose))):
        if not found:
            raise ValueError(f"no {name} (MT's {number}) in the map")
    eyes = [extremes(eye, "lrtb") for eye in eyes]
    mouth, between = extremes(torch.cat([upper, lower]), "lrtb"), torch.stack(eyes).mean((0, 1))
    lift = torch.tensor([0., .25 * float(mouth[:, 1].mean() - between[1])])
    seen = len(brows) == 2
    brows = [extremes(brow, "lrt") for brow in brows] if seen else [eye[:3] - lift for eye in eyes]
    inner = [LABELS[part] for part in ("face", "nose", "upper_lip", "inner_mouth", "lower_lip")]
    face, heights = places(*inner, *LABELS["eyes"]), (between[1], nose[:, 1].max(), mouth[:2, 1].mean())
    outline = [extremes(face[(face[:, 1] - y).abs() <= 1], "lr") for y in heights]
    chin = face[face[:, 1] == face[:, 1].max()].mean(0, keepdim=True)
    wings = nose[nose[:, 1] >= .7 * nose[:, 1].max() + .3 * nose[:, 1].min()]
    return with_lips_apart(torch.cat([*eyes, *brows, mouth, extremes(wings, "lrb"), *outline, chin,
                                      extremes(upper, "b"), extremes(lower, "t")]))


def extremes(points, which):
    """The outermost of the points [m, 2], by letters: [len(which), 2]. ValueError if there are none.

    l(eft), r(ight); t(op), b(ottom): in the middle between those.
    """
    if not len(points):
        raise ValueError("a part of the face is hidden in the map")
    x, y = points.unbind(1)
    off = (x - (x.min() + x.max()) / 2).abs()
    middle = off <= off.min() + .5 + .02 * (x.max() - x.min())
    at = {"l": x.argmin, "r": x.argmax, "t": torch.where(middle, y, torch.inf).argmin,
          "b": torch.where(middle, y, -torch.inf).argmax}
    return points[torch.stack([at[letter]() for letter in which])]


def with_lips_apart(anchors):
    """Anchors [30, 2] whose inner edges of the lips lie one above the other, a little apart.

    Of closed lips the spline would make a twist.
    """
    left, right, top, bottom = anchors[14:18]
    gap = (anchors[29] - anchors[28])[1].clamp(min=.03 * float((right - left).norm()))
    middle = torch.stack([(top[0] + bottom[0]) / 2, anchors[28:, 1].mean()])
    half = torch.tensor([0., .5]) * gap
    return torch.cat([anchors[:28], torch.stack([middle - half, middle + half])])


def upright(anchors):
    """Of anchors [B, 30, 2]: the middle between the eyes [B, 2], the way from there to the mouth [B, 2]."""
    eyes = (anchors[:, :2] + anchors[:, 4:6]).mean(1) / 2
    return eyes, anchors[:, 14:16].mean(1) - eyes
