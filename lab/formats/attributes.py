"""StarGAN's data sets: CelebA's list of attributes; folders named after their class; RaFD's names."""
import random
import re
from pathlib import Path

from lab import UserError
from lab.formats import IMAGE_FILES, files_below, pictures_in, text_of

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
    lists = [p for folder in (root, root / "Anno") for p in sorted(folder.glob("list_attr_celeba*"))]
    if lists:
        found = scan_attributes(root, lists[0], attributes, test_images)
    else:
        found = scan_classes(root, classes)
    total, held_out, bad = len(found["images"]), sum(found["test"]), found["bad"]
    if not 0 < held_out < total:
        raise UserError(f"{root}: {total} pictures with labels, {held_out} of them held out; "
                        "expected some of each" + (f"; {bad[0]}" if bad else ""))
    columns = zip(found["names"], zip(*found["labels"], strict=True), strict=True)
    kind = "classes, one a picture" if found["exclusive"] else "attributes, any number a picture"
    notes = {"kind": kind, "pictures": f"{total}, {held_out} of them held out",
             "labels": ", ".join(f"{name} ({int(sum(column))})" for name, column in columns)}
    return found | {"notes": notes}


# ============================================================================================ CelebA

def scan_attributes(root, path, attributes, test_images):
    """CelebA's list `path` and its pictures. The first ones of the authors' shuffle are held out.

    Pictures with two hair colours are left out first: no target has two. Of the others test_images are held
    out, at most a tenth.
    """
    names, rows, told = table_of(path)
    for name in attributes:
        if name not in names:
            few = ", ".join(names[:6])
            raise UserError(f"--attributes {name}: {path} has {few} ... ({len(names)})")
    columns, there = [names.index(name) for name in attributes], pictures_of(root, path)
    images, labels, bad = {}, [], []
    if told is not None and told != str(len(rows)):
        bad.append(f"{path}: its first line says {told[:20]} pictures, {len(rows)} follow; "
                   "is it whole? if so, mend the number")
    random.Random(1234).shuffle(rows)                                  # authors' code
    for name, *values in rows:
        if len(values) != len(names) or set(values) - {"-1", "1", "0"}:
            bad.append(f"{path}: the line of {name} has {len(values)} values, "
                       f"expected {len(names)} of -1 and 1")
        elif name not in there:
            bad.append(f"{path}: {name} is not among the pictures")
        elif name in images:                                           # or one is held out, one trained on
            bad.append(f"{path}: {name} has two lines")
        else:
            images[name] = there[name]
            labels.append([float(values[k] == "1") for k in columns])
    hair = [k for k, name in enumerate(attributes) if name in HAIR]
    kept = [(image, label) for image, label in zip(images.values(), labels, strict=True)
            if sum(label[k] for k in hair) < 2]
    n_test = min(test_images, len(kept) // 10)
    return dict(images=[image for image, _ in kept], labels=[label for _, label in kept], bad=bad,
                test=[k < n_test for k in range(len(kept))], names=tuple(attributes), exclusive=False)


def table_of(path):
    """(names of attributes, rows [picture, value, ...], the number of rows that the first line promises).

    The .txt has a count, the names, then a line a picture with -1 or 1 for each; the .csv no count (None).
    """
    lines, told = text_of(path).replace(",", " ").splitlines(), None
    if path.suffix != ".csv":
        told, lines = lines[0].strip() if lines else "no", lines[1:]
    header = lines[0].split() if lines else []
    names = [name for name in header if name not in ("image_id", "filename")]
    return names, [line.split() for line in lines[1:] if line.strip()], told


def pictures_of(root, path):
    """{name: path} of CelebA's pictures. UserError if there are none."""
    folders = root / "img_align_celeba", root / "images", root / "Img" / "img_align_celeba", root
    there = {}
    for folder in folders[::-1]:                                       # the first one has the last word
        if folder.is_dir():
            there |= {p.name: p for p in folder.iterdir() if p.suffix.lower() in IMAGE_FILES}
    if not there:
        raise UserError(f"{root}: {path.name} but no pictures; "
                        f"expected them in {folders[0]} or {folders[1]}")
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

    Without test/ the third is None.
    """
    train, test = root / "train", root / "test"
    if train.is_dir() and test.is_dir():
        parts = (train, False), (test, True)
    else:
        parts = ((train if train.is_dir() else root, None),)
    return [(p, folder.name, is_test) for part, is_test in parts
            for folder in sorted(part.iterdir()) if folder.is_dir() for p in pictures_in(folder)]


def by_rafd_names(root):
    """The same of names like Rafd090_01_Caucasian_female_happy_frontal.jpg; every tenth person is held out.

    45, 90 and 135 degrees, three of the five angles, as in the paper.
    """
    pattern = re.compile(r"rafd(\d+)_(\d+)_.*_([a-z]+)_(frontal|left|right)$", re.I)
    named = [(p, pattern.match(p.stem)) for p in pictures_in(root)]
    return [(p, m[3].lower(), int(m[2]) % 10 == 0) for p, m in named if m and m[1] in ("045", "090", "135")]
