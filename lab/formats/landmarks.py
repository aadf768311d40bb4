"""GANnotation's data sets: photographs or videos with landmarks (300-W, 300-VW); driving landmarks.

Points are [..., n, 2] as (x, y) in pixels, 0-based: the centre of the top left pixel is (0, 0).
"""
import re
import warnings
from collections import Counter
from pathlib import Path

import numpy as np
import torch

from lab import UserError
from lab.formats import files_below, is_test, text_of


def read_pts(path):
    """A .pts file -> float32 [n, 2], 0-based (the files count pixels from 1). UserError names the file."""
    try:
        text = text_of(path)
        n = int(re.search(r"n_points\s*:\s*(\d+)", text).group(1))
        numbers = text[text.index("{") + 1:text.index("}")].split()
        values = np.array(numbers, dtype=np.float32).reshape(-1, 2)
    except (OSError, ValueError, AttributeError):
        raise UserError(f"{path}: not a .pts file; expected 'version: 1', 'n_points: 68', '{{', "
                        "one 'x y' a line, '}'") from None
    if len(values) != n or n not in (66, 68) or not np.isfinite(values).all():
        raise UserError(f"{path}: {len(values)} points, header says {n}; expected 66 or 68 finite points")
    return torch.from_numpy(values - 1)


def read_drive(path):
    """Driving landmarks -> float32 [T, n, 2], 0-based, n = 66 or 68.

    A .pts file, or text with a frame a row, x1 y1 x2 y2 ... As in the authors' demo, rows whose first number
    is not positive (tracking lost) are left out. UserError names the file.
    """
    if str(path).lower().endswith(".pts"):
        return read_pts(path)[None]
    try:
        with warnings.catch_warnings():                                # loadtxt warns of an empty file
            warnings.simplefilter("ignore")
            rows = np.loadtxt(path, ndmin=2, dtype=np.float32, encoding="utf-8-sig")
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except (ValueError, OSError) as error:
        why = str(error).splitlines()[0][:80]
        raise UserError(f"{path}: not a table of numbers ({why}); "
                        "expected rows of x1 y1 ... x66 y66") from None
    if rows.shape[1] not in (132, 136):
        raise UserError(f"{path}: {rows.shape[1]} numbers a row; expected 132 (66 points) or 136 (68 points)")
    rows = rows[(rows[:, 0] > 0) & np.isfinite(rows).all(1)]
    if not len(rows):
        raise UserError(f"{path}: no row with landmarks (first number positive)")
    return torch.from_numpy(rows).reshape(len(rows), -1, 2) - 1


def check_points(points, picture, path):
    """UserError, naming `path`, if landmarks [n, 2] are not those of a face in this PIL image."""
    low, high = points.amin(0), points.amax(0)
    x, y = ((low + high) / 2 + .5).tolist()
    inside = 0 <= x <= picture.width and 0 <= y <= picture.height
    if not (inside and (high - low).max() < 2 * max(picture.size)):
        size = f"{picture.width} x {picture.height}"
        raise UserError(f"{path}: its landmarks lie outside the picture ({size}); "
                        "are they those of another picture, or of another size of it?")
    check_axes(points, path)


def check_axes(points, path):
    """UserError, naming `path`, if landmarks [n, 2] lie as if x were y."""
    across, down = (points[48:].mean(0) - points[36:48].mean(0)).abs()           # from the eyes to the mouth
    if across > 3 * down:
        raise UserError(f"{path}: the mouth lies beside the eyes; are its landmarks y x in place of x y?")


def scan(root):
    """What is under root: pictures with a .pts file each.

    Returns lists of one length: `images`, `annotations` (paths), `groups` (str: the frames of a video share
    one, a still has its own), `test` (bool: lies in a folder called test; where none does, the caller holds
    out every tenth group). Further `bad`, `notes`. UserError where this is no data set.
    """
    root = Path(root)
    pictures = files_below(root)
    files = {p.with_suffix(".pts"): p for p in files_below(root, (".pts",))}      # .PTS, too
    found = {picture: annotation_of(picture, files) for picture in pictures}
    images = [picture for picture in pictures if found[picture]]
    if not images:
        raise UserError(f"{root}: found {len(pictures)} pictures and {len(files)} .pts files, none that "
                        "belong together; expected <id>/annot/000001.pts with <id>/000001.jpg (300-VW) or "
                        f"image_0001.jpg with image_0001.pts (300-W); {way_out(root, pictures, files)}")
    for picture in pictures:
        check_numbering(picture, found[picture], files)
    annotations, groups = map(list, zip(*(found[picture] for picture in images), strict=True))
    test = [is_test(picture, root) for picture in images]
    # A picture without .pts matters among others that have one; demo pictures elsewhere do not
    homes, known = {p.parent for p in images}, set(annotations)
    bad = [f"{p}: no {p.with_suffix('.pts').name} beside it" for p in pictures
           if not found[p] and p.parent in homes]
    lonely = sorted(set(files.values()) - known)
    bad += [f"{p}: no picture for it" for p in lonely if p.parent.name != "annot"]
    bad += [f"{p}: not a file" for p in annotations if not p.is_file()]
    return dict(images=images, annotations=annotations, groups=groups, test=test, bad=bad,
                notes=notes_of(annotations, groups, test))


def annotation_of(picture, files):
    """(.pts, group) of a picture: NAME.pts beside it or annot/000001.pts of its video; else None.

    files: {NAME.pts: the file on the disk, whose ending may be in capitals}.
    """
    beside = picture.with_suffix(".pts")
    if beside in files:
        return files[beside], str(picture)
    if picture.stem.isdecimal():
        pts = video_of(picture) / "annot" / f"{int(picture.stem):06d}.pts"
        return (files[pts], str(video_of(picture))) if pts in files else None
    return None


def video_of(picture):
    """The folder of a frame's video."""
    return picture.parent.parent if picture.parent.name in ("frames", "images") else picture.parent


def check_numbering(picture, found, files):
    """UserError for a frame 0 beside landmarks that begin with 1: every frame would get its neighbour's."""
    if found or not picture.stem.isdecimal() or int(picture.stem) != 0:
        return
    first = video_of(picture) / "annot" / "000001.pts"
    if first in files:
        raise UserError(f"{picture}: the frames count from 0, {first} from 1; rename every frame to the next "
                        "number, or take them out again with ffmpeg -start_number 1")


def way_out(root, pictures, files):
    """What to do about a folder where no picture has a .pts file."""
    videos = [p for p in files_below(root, (".avi",)) if p.name == "vid.avi"]
    if videos and files:
        return (f"take the frames out first: ffmpeg -i {videos[0].name} -start_number 1 %06d.jpg, "
                f"in each of the {len(videos)} folders")
    if pictures:
        return (f"{len(pictures)} pictures but no matching .pts; put NAME.pts beside NAME.jpg, "
                "or annot/000001.pts beside 000001.jpg")
    return "point --data at the folder that holds the pictures"


def notes_of(annotations, groups, test):
    """What --check prints: how many, how many points, stills or videos, which are held out."""
    sizes, videos = Counter(), len(set(groups))
    for pts in filter(Path.is_file, annotations):
        with open(pts, "rb") as file:
            match = re.search(rb"n_points\s*:\s*(\d+)", file.read(100))
        sizes[int(match.group(1)) if match else 0] += 1
    stills = videos == len(groups)
    every_tenth = "every tenth " + ("picture" if stills else "video")
    return {"pictures with landmarks": len(annotations),
            "points per file": ", ".join(f"{k} ({c} files)" for k, c in sorted(sizes.items())),
            "kind": "single photographs" if stills else f"{videos} videos",
            "held out": f"{sum(test)} in test folders" if any(test) else every_tenth}
