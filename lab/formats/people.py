"""DR-GAN's data sets: pictures of people in poses. CFP, Multi-PIE, or folders of people with poses.txt."""
import os
import re
from pathlib import Path

import numpy as np
import torch

from lab import UserError
from lab.formats import files_below, folders_below, is_test, pictures_in, text_of

# Yaw in degrees: the nine poses of Multi-PIE, and those of folders of people
YAWS = tuple(range(-60, 61, 15))
BINS = tuple(range(-90, 91, 15))
# Multi-PIE's cameras. Which side is which: ours
CAMERAS = {"090": -60, "080": -45, "130": -30, "140": -15, "051": 0,
           "050": 15, "041": 30, "190": 45, "200": 60}


def scan(root, test_people):
    """What is under root: pictures, who is shown and in which pose. The last n_test people are held out.

    test_people: so many; 0: those in folders called test, else as the data sets have it, see `held_out`.
    Returns lists of one length, in order of person and pose: `images` (paths), `who`, `pose` (indices).
    Further `people` (names), `poses` (yaw in degrees as text, or frontal, profile), `n_test`, `kind` (cfp,
    multipie, folders), `bad`, `notes`. UserError where this is no data set.
    """
    root = Path(root)
    found = scan_cfp(root) or scan_multipie(root) or scan_folders(root)
    if not found:
        n = len(files_below(root))
        raise UserError(f"{root}: found {n} pictures, but neither 001/frontal/ and 001/profile/ (CFP), nor "
                        "names like 001_01_01_051_07.png (Multi-PIE), nor folders of people with poses.txt "
                        "beside them; see --help")
    items, poses, kind = found["items"], found["poses"], found["kind"]
    if kind != "multipie":                                             # named from where the folders part
        above = os.path.commonpath([person for _, person, _ in items])
        items = [(path, Path(os.path.relpath(person, above)).as_posix(), k) for path, person, k in items]
    tested = people_in_test(root, items)
    items = sorted(items, key=lambda item: (item[1] in tested, in_order(item)))
    people = sorted({person for _, person, _ in items}, key=lambda person: (person in tested, person))
    number, n_test = {person: k for k, person in enumerate(people)}, test_people or len(tested)
    n_test = n_test or held_out(kind, len(people))
    counts = np.bincount([k for *_, k in items], minlength=len(poses))
    if (counts > 0).sum() < 2:
        only = poses[int(counts.argmax())]
        raise UserError(f"{root}: all {len(items)} pictures show the pose {only}; expected at least two poses"
                        + found.get("hint", ""))
    notes = {"kind": kind,
             "people": f"{len(people)} ({', '.join(people[:3])} ...), the last {n_test} held out"
                       + ", as their folders say" * bool(tested and not test_people),
             "poses": ", ".join(f"{pose} ({n})" for pose, n in zip(poses, counts, strict=True))}
    return dict(images=[path for path, *_ in items], who=[number[person] for _, person, _ in items],
                pose=[k for *_, k in items], n_test=n_test, people=tuple(f"{kind}/{p}" for p in people),
                poses=poses, kind=kind, bad=found["bad"], notes=notes | found.get("notes", {}))


def in_order(item):
    """By person and pose; Multi-PIE's light 07, the gallery's, before the others."""
    path, person, pose = item
    return person, pose, not path.stem.endswith("_07"), str(path)


def people_in_test(root, items):
    """The people whose pictures lie in folders called test, where others do not.

    UserError for somebody who is in both.
    """
    tested = {person for path, person, _ in items if is_test(path, root)}
    trained = {person for path, person, _ in items if not is_test(path, root)}
    names = {Path(person).name for person in tested} & {Path(person).name for person in trained}
    if tested and trained and names:
        raise UserError(f"{root}: {min(names)} is in test/ and elsewhere, too; expected a person in one of "
                        "them; give different people different names")
    return tested if trained else set()


def held_out(kind, n):
    """How many of n people are tested on: Multi-PIE trains on 200; else a tenth, but ten of a small set."""
    return n - 200 if kind == "multipie" and n > 210 else max(n // 10, min(10, n // 3))


def scan_cfp(root):
    """<anything>/001/{frontal,profile}/01.jpg."""
    below, poses = folders_below(root), ("frontal", "profile")
    folders = [(k, f) for k, name in enumerate(poses) for f in below
               if f.name == name and f != root and "Fiducials" not in f.parts]
    items = [(path, folder.parent, k) for k, folder in folders for path in pictures_in(folder)]
    with_points = sum(fiducials_of(path) is not None for path, *_ in items)
    told = f"of {with_points} of {len(items)} pictures; of others the central square is cut"
    return items and dict(items=items, poses=poses, kind="cfp", bad=[], notes={"fiducials": told})


def scan_multipie(root):
    """Names like 001_01_01_051_07.png anywhere below: person, session, recording, camera, light.

    Cameras beyond 60 degrees and the two high ones are left out.
    """
    named = [(p, re.fullmatch(r"(\d{3})_\d\d_\d\d_(\d{3})_\d\d", p.stem)) for p in files_below(root)]
    items = [(p, m[1], YAWS.index(CAMERAS[m[2]])) for p, m in named if m and m[2] in CAMERAS]
    return items and dict(items=items, poses=tuple(map(str, YAWS)), kind="multipie", bad=[])


def scan_folders(root):
    """A folder for each person, and poses.txt: a line "folder/file yaw" for each picture, degrees."""
    path, items, bad, yaws = root / "poses.txt", {}, [], []
    if not path.exists():
        return None
    for line in filter(str.strip, text_of(path).splitlines()):
        try:
            name, yaw = picture_and_yaw(line.strip())
        except ValueError:
            bad.append(f"{path}: {line.strip()!r}; expected a picture and its yaw from -90 to 90 degrees, "
                       "e.g. 0000045/001.jpg -32.5")
            continue
        pose = min(range(len(BINS)), key=lambda k: abs(BINS[k] - yaw))
        if not (root / name).exists():
            bad.append(f"{path}: {name} is not there")
        elif items.get(root / name, (0, 0, pose))[2] != pose:
            bad.append(f"{path}: {name} has two lines with different poses")
        else:
            items[root / name] = root / name, (root / name).parent, pose
            yaws.append(abs(yaw))
    if not items:
        empty = f"{path}: empty; expected a line with a picture and its yaw in degrees for each picture"
        raise UserError((bad + [empty])[0])
    unnamed = len(files_below(root)) - len(items)
    hint = f"; {path} has no yaw above {max(yaws):.2f}: radians? It wants degrees" if max(yaws) <= 3.2 else ""
    return dict(items=list(items.values()), poses=tuple(map(str, BINS)), kind="folders", bad=bad, hint=hint,
                notes={"pictures without a line in poses.txt": unnamed})


def picture_and_yaw(line):
    """(name of the picture, yaw in degrees) of a line. ValueError for another."""
    name, _, yaw = re.sub(r"[,\s]+(?=\S*$)", "\t", line).rpartition("\t")
    yaw = float(yaw.rstrip("\N{DEGREE SIGN}"))
    if not abs(yaw) <= 97.5 or "\t" in name:                           # a further column: which is the yaw?
        raise ValueError
    return name.replace("\\", "/"), yaw


# =============================================================================================== CFP

def fiducials_of(path):
    """CFP's file of 30 points for a picture, or None if there is none."""
    parts = list(path.with_suffix(".txt").parts)
    if "Images" not in parts:
        return None
    parts[len(parts) - 1 - parts[::-1].index("Images")] = "Fiducials"
    return Path(*parts) if Path(*parts).exists() else None


def face_square(path, image):
    """(low [2], high [2]) of the square to cut from a PIL image, in pixels as landmarks.

    By CFP's fiducials if they are there, else the central square. In the files the points run from the brows
    to the chin; of a frontal face they cover its left half and the middle line. UserError names the file.
    """
    file, size = fiducials_of(path), np.array(image.size)
    if file is None:
        centre, half = size / 2 - .5, min(image.size) / 2
    else:
        low, high = extent_of(file, size)
        x = high[0] if path.parent.name == "frontal" else (low[0] + high[0]) / 2
        centre, half = np.array([x, .55 * low[1] + .45 * high[1]]), .85 * (high[1] - low[1])
    return torch.tensor(centre - half), torch.tensor(centre + half)


def extent_of(file, size):
    """The smallest and largest (x, y) in a file of fiducials, for a picture of this size [2]."""
    try:
        lines = filter(str.strip, text_of(file).splitlines())
        points = np.array([[float(v) for v in line.replace(",", " ").split()] for line in lines])
        low, high = points.min(0), points.max(0)
        near = (low > -size).all() and (high < 2 * size).all()
        if points.shape != (30, 2) or not near or not high[1] - low[1] > 4:
            raise ValueError
    except ValueError:
        raise UserError(f"{file}: expected 30 lines 'x,y' on the picture of {size[0]} x {size[1]}") from None
    return low, high


def official_pairs(paths, poses, root, kind):
    """CFP's own pairs of `kind` (FF or FP) among the pictures `paths` of an album with these poses.

    Pair_list_F.txt and Pair_list_P.txt number the pictures; Split/FF/01 ... 10 hold same.txt and diff.txt, a
    line "a,b" for each pair: a of list F, b of list F or, for FP, of list P. Returns a, b (indices into
    paths), same (bool), fold, each [M]; None without Protocol/ or with fewer than two folds of which nearly
    all pairs are there (a tenth of them may be unreadable; the rest of a fold is not the protocol's fold).
    UserError where Protocol/ is not as CFP distributes it.
    """
    root = Path(root).absolute()
    homes = [folder / "Protocol" for folder in (root, root.parent, root.parent.parent)]
    protocol = next(filter(Path.is_dir, homes), None)
    if protocol is None or "frontal" not in poses:
        return None
    place, rows = {name_of(path): k for k, path in enumerate(paths)}, []
    try:
        lists = [numbered(protocol / f"Pair_list_{letter}.txt") for letter in ("F", kind[1])]
        for fold, folder in enumerate(sorted((protocol / "Split" / kind).glob("[0-9]*"))):
            here, enough = [], True
            for same in (True, False):
                lines = text_of(folder / f"{'same' if same else 'diff'}.txt").split()
                named = [[table[int(i)] for table, i in zip(lists, line.split(","), strict=True)]
                         for line in lines]
                found = [(place[a], place[b], same, fold) for a, b in named if a in place and b in place]
                here += found
                enough = enough and len(found) >= .9 * len(named)
            rows += here if enough else []
    except (OSError, ValueError, KeyError) as error:
        why = str(error).splitlines()[0]
        raise UserError(f"{protocol}: not as CFP distributes it ({why}); expected Pair_list_F.txt, "
                        "Pair_list_P.txt, Split/FF/01/same.txt; or leave Protocol/ out: pairs are then drawn "
                        "by its rule") from None
    several = len({fold for *_, fold in rows}) > 1
    return [torch.tensor(column) for column in zip(*rows, strict=True)] if several else None


def name_of(path):
    """("001", "frontal", "01") of .../001/frontal/01.jpg."""
    return (*path.parts[-3:-1], path.stem)


def numbered(path):
    """{number: name_of(picture)} of CFP's list of pictures, a line "number file" for each."""
    rows = (line.split() for line in text_of(path).splitlines() if line.strip())
    return {int(number): name_of(Path(file)) for number, file in rows}
