"""StarGAN's data sets: CelebA's list of attributes; folders named after their class; RaFD's names."""
import csv
import random
import re
from pathlib import Path

from lab import UserError
from lab.formats import TEST_NAMES, files_below, folders_in, pictures_in, text_of

HAIR = ("Black_Hair", "Blond_Hair", "Brown_Hair", "Gray_Hair")         # at most one of them holds


def class_names(classes, available):
    """All classes, or those of --classes, in alphabetical order. UserError for an unknown or a lone one."""
    for name in classes:
        if name not in available:
            raise UserError(f"--classes {name}: expected some of {', '.join(available)}")
    if len(classes) == 1:
        raise UserError(f"--classes {classes[0]}: expected at least two")
    return tuple(sorted(classes or available))


def scan(root, attributes, classes, test_images):
    """What is under root: CelebA, with these attributes of its list, or classes, all or these.

    Returns lists of one length `images` (paths), `labels` (0. or 1. for each name), `test` (bool); `names`;
    `exclusive`: does a picture have exactly one label? `bad`, `notes`. UserError where this is no data set.
    """
    root = Path(root)
    path = list_of(root)
    if path:
        found = scan_attributes(root, path, attributes, test_images)
    else:
        found = scan_classes(root, classes)
    total, held_out, bad = len(found["images"]), sum(found["test"]), found["bad"]
    if not 0 < held_out < total:
        rule = "a tenth" if path else "every tenth picture of a class"
        raise UserError(f"{root}: {total} pictures with labels, {held_out} of them held out; expected some "
                        f"of each; {rule} is held out, or what lies in test/ where there are train/ and "
                        "test/" + (f"; {bad[0]}" if bad else ""))
    columns = zip(found["names"], zip(*found["labels"], strict=True), strict=True)
    kind = "classes, one a picture" if found["exclusive"] else "attributes, any number a picture"
    without = found.get("left_out", 0)                                 # of two hair colours
    notes = {"kind": kind, "pictures": f"{total}, {held_out} of them held out"
             + f" ({without} more have two hair colours: left out)" * (without > 0),
             "labels": ", ".join(f"{name} ({int(sum(column))})" for name, column in columns)}
    return found | {"notes": notes}


# ============================================================================================ CelebA

def list_of(root):
    """CelebA's list under root, or None. UserError for several copies of it, none of the right name."""
    folders = root, root / "Anno"
    for name in ("list_attr_celeba.txt", "list_attr_celeba.csv"):
        for folder in folders:
            if (folder / name).exists():
                return folder / name
    others = [p for folder in folders for p in sorted(folder.glob("list_attr_celeba*"))
              if p.suffix.lower() in (".txt", ".csv")]
    if len(others) > 1:
        raise UserError(f"{root}: found {', '.join(p.name for p in others[:4])}; which one is it? "
                        "call it list_attr_celeba.txt")
    return others[0] if others else None


def scan_attributes(root, path, attributes, test_images):
    """CelebA's list `path` and its pictures. The first ones of the authors' shuffle are held out.

    Pictures with two hair colours are left out first: no target has two. Of the others test_images are held
    out, at most a tenth.
    """
    names, rows, told = table_of(path)
    if not names or {"1", "-1"} & set(names):
        raise UserError(f"{path}: has no line of names; expected a count, the attributes' names, then a line "
                        "a picture")
    for name in attributes:
        if attributes.count(name) > 1:
            raise UserError(f"--attributes {' '.join(attributes)}: {name} is there twice")
        if name not in names:
            few = ", ".join(names[:6])
            raise UserError(f"--attributes {name}: {path} has {few} ... ({len(names)})")
    columns, there = [names.index(name) for name in attributes], pictures_of(root, path)
    by_stem = {Path(name).stem: picture for name, picture in there.items()}     # lists say .jpg of .png, too
    images, labels, bad = {}, [], []
    if told is not None and told != str(len(rows)):
        bad.append(f"{path}: its first line says {told[:20]} pictures, {len(rows)} follow; "
                   "is it whole? if so, mend the number")
    random.Random(1234).shuffle(rows)                                  # authors' code
    for name, *values in rows:
        picture = there.get(name) or by_stem.get(Path(name).stem)
        odd = [value for value in values if truth_of(value) is None]
        if len(values) != len(names):
            bad.append(f"{path}: the line of {name} has {len(values)} values, expected {len(names)}")
        elif odd:
            bad.append(f"{path}: the line of {name} has {odd[0]!r}; expected -1, 0 or 1, True or False")
        elif picture is None:
            bad.append(f"{path}: {name} is not among the pictures")
        elif name in images:                                           # or one is held out, one trained on
            bad.append(f"{path}: {name} has two lines")
        else:
            images[name] = picture
            labels.append([truth_of(values[k]) for k in columns])
    hair = [k for k, name in enumerate(attributes) if name in HAIR]
    kept = [(image, label) for image, label in zip(images.values(), labels, strict=True)
            if sum(label[k] for k in hair) < 2]
    n_test = min(test_images, len(kept) // 10)
    return dict(images=[image for image, _ in kept], labels=[label for _, label in kept], bad=bad,
                test=[k < n_test for k in range(len(kept))], names=tuple(attributes), exclusive=False,
                left_out=len(images) - len(kept))


def table_of(path):
    """(names of attributes, rows [picture, value, ...], the number of rows that the first line promises).

    The .txt has a count, the names, then a line a picture with a value for each. The .csv has no count
    (None); its first column holds the pictures, or the second where the first is a nameless index.
    """
    lines = text_of(path).splitlines()
    if path.suffix.lower() != ".csv":
        told, lines = lines[0].strip() if lines else "no", lines[1:]
        rows = [line.replace(",", " ").split() for line in lines if line.strip()]
        names = [name for name in rows[0] if name not in ("image_id", "filename")] if rows else []
        return names, rows[1:], told
    first = lines[0] if lines else ""
    rows = csv.reader(lines, delimiter=";" if first.count(";") > first.count(",") else ",")
    rows = [[cell.strip() for cell in row] for row in rows if any(map(str.strip, row))]
    rows = [row[1:] for row in rows] if rows and not rows[0][0] else rows
    return [name.replace(" ", "_") for name in rows[0][1:]] if rows else [], rows[1:], None


def truth_of(value):
    """1. or 0. of a value in a list, None for one that is not understood."""
    words = {"true": 1., "yes": 1., "false": 0., "no": 0.}
    try:
        return words[value.lower()] if value.lower() in words else {1.: 1., 0.: 0., -1.: 0.}[float(value)]
    except (KeyError, ValueError):
        return None


def pictures_of(root, path):
    """{name: path} of CelebA's pictures. UserError if there are none."""
    inner = "img_align_celeba"
    names = [inner, f"{inner}/{inner}", f"{inner}_png", "images", f"Img/{inner}", f"Img/{inner}_png", "."]
    folders = [root / name for name in names if (root / name).is_dir()]
    there = {}
    for folder in folders[::-1]:                                       # the first one has the last word
        there |= {p.name: p for p in pictures_in(folder)}
    if not there:
        raise UserError(f"{root}: {path.name} but no pictures; expected them in {root / inner} or "
                        f"{root / 'images'}; looked into {', '.join(map(str, folders))}")
    return there


# =========================================================================================== classes

def scan_classes(root, classes):
    """Folders of classes, or RaFD's pictures by their names; of these classes only, if any are given."""
    items = in_folders(root) or by_rafd_names(root)
    if not items:
        n = len(files_below(root))
        raise UserError(f"{root}: found {n} pictures, but neither list_attr_celeba.txt (CelebA) nor folders "
                        f"of pictures named after their class (RaFD: {root / 'train' / 'angry'}/*.jpg); "
                        "point --data at the folder that holds them")
    names = class_names(classes, sorted({name for _, name, _ in items}))
    if len(names) < 2:
        raise UserError(f"{root}: only one folder of pictures, {names[0]}; expected one for each class, "
                        "or list_attr_celeba.txt beside it (CelebA)")
    items = [item for item in items if item[1] in names]
    if items[0][2] is None:                                            # no test folder: a tenth of each class
        mine = {name: [path for path, other, _ in items if other == name] for name in names}
        items = [(path, name, k % 10 == 9) for name in names for k, path in enumerate(mine[name])]
    return dict(images=[path for path, *_ in items], test=[test for *_, test in items], bad=[], names=names,
                labels=[[float(name == other) for other in names] for _, name, _ in items], exclusive=True)


def in_folders(root):
    """[(picture, class, is it held out?)] of class folders, with or without train/ and test/ above them.

    Without test/ (or val/) the third is None. Folders in a class's folder belong to the class. UserError
    where test/ has a class that train/ has not, and for the folders of CycleGAN.
    """
    parts = folders_in(root)
    if {"traina", "trainb"} <= parts.keys():
        raise UserError(f"{root}: found trainA/ and trainB/, two sets of pictures; expected a folder for "
                        "each class; rename them, or train pix2pix_cyclegan.py --model cyclegan")
    train, test = parts.get("train"), next((parts[name] for name in TEST_NAMES if name in parts), None)
    if train and test:
        trained, tested = ({p.name for p in folders_in(part).values() if files_below(p)}
                           for part in (train, test))
        if tested - trained:
            raise UserError(f"{root}: {test.name}/ has {', '.join(sorted(tested - trained)[:4])}, "
                            f"{train.name}/ has {', '.join(sorted(trained)[:4])}; expected the same names, "
                            "also in the case of their letters")
        parts = (train, False), (test, True)
    else:
        parts = ((train or root, None),)
    classes = [(folder, held_out) for part, held_out in parts for folder in folders_in(part).values()]
    for folder, _ in classes:
        if list_of(folder) or {"train", "test"} <= folders_in(folder).keys():
            raise UserError(f"{folder}: is a data set of its own, not a class; point --data at it")
    return [(p, folder.name, held_out) for folder, held_out in classes for p in files_below(folder)]


def by_rafd_names(root):
    """The same of names like Rafd090_01_Caucasian_female_happy_frontal.jpg; every tenth person is held out.

    45, 90 and 135 degrees, three of the five angles, as in the paper.
    """
    pattern = re.compile(r"rafd(\d+)_(\d+)_.*_([a-z]+)_(frontal|left|right)$", re.I)
    named = [(p, pattern.match(p.stem)) for p in pictures_in(root)]
    return [(p, m[3].lower(), int(m[2]) % 10 == 0) for p, m in named if m and m[1] in ("045", "090", "135")]
