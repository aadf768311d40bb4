"""The data sets of pix2pix and CycleGAN: pairs side by side in one file, or two folders without pairs."""
import contextlib
from pathlib import Path

from lab import UserError, say
from lab.formats import TEST_NAMES, files_below, folders_in
from lab.images import picture_size


def scan(root, model):
    """What is under root: train/ with side-by-side pairs A|B, or trainA/ and trainB/ (also train/A, train/B).

    model: "pix2pix" needs pairs, "cyclegan" takes either. Returns `train`, `test`: (paths of A, paths of B),
    of pairs twice the same list; `pairs`: bool; `images`: all paths, each once; `bad`, `notes`. Held out is
    what lies in test/, else in val/, or in testA/ and testB/; else every tenth. UserError where this is no
    data set.
    """
    root = Path(root)

    there = folders_in(root)
    for part in {"train", *TEST_NAMES} & there.keys():                 # train/A is trainA
        sides = folders_in(there[part])
        if {"a", "b"} <= sides.keys():
            del there[part]
            there |= {f"{part}{side}": sides[side] for side in "ab"}

    def files(name):
        return files_below(there[name.lower()]) if name.lower() in there else []

    def held_out(side=""):
        return next(filter(None, (files(name + side) for name in TEST_NAMES)), [])

    def split(train, test):
        return (train, test) if test else ([p for k, p in enumerate(train) if k % 10 != 9], train[9::10])

    pairs = bool(files("train")) and (model == "pix2pix" or not (files("trainA") and files("trainB")))
    if pairs:
        one, other = split(files("train"), held_out())
        train, test, images = (one, one), (other, other), one + other
        counts = f"{len(one)} pairs to train on, {len(other)} held out"
    elif files("trainA") and files("trainB"):
        sides = [split(files(f"train{side}"), held_out(side)) for side in "AB"]
        (train_A, test_A), (train_B, test_B) = sides
        train, test, images = (train_A, train_B), (test_A, test_B), train_A + test_A + train_B + test_B
        counts = (f"{len(train_A)} A and {len(train_B)} B to train on, "
                  f"{len(test_A)} and {len(test_B)} held out")
    else:
        names = {p.name: ("/" if files_below(p) else "/ (no pictures)") * p.is_dir() for p in root.iterdir()}
        found = ", ".join(name + what for name, what in sorted(names.items())[:6]) or "nothing"
        raise UserError(f"{root}: found {found}; expected train/ (and test/ or val/) with side-by-side pairs "
                        "A|B, or trainA/ and trainB/ (and testA/, testB/)")
    if not pairs and model == "pix2pix":
        raise UserError(f"{root}: trainA/ and trainB/ hold no pairs; pix2pix needs side-by-side pairs in "
                        "train/; for unpaired pictures: --model cyclegan")
    if not all((*train, *test)):
        raise UserError(f"{root}: {counts}; expected some of each (at least ten to train on where there is "
                        "no test folder)")
    kind = f"pairs, side by side, {half_sizes(images)}" if pairs else "two sets without pairs"
    return dict(images=images, train=train, test=test, pairs=pairs, bad=[],
                notes={"kind": kind, "pictures": counts})


def half_sizes(paths):
    """The size of A and of B in the first pair, in words. Says so where pictures are no wider than high.

    Of many pictures about a thousand are looked at, since every training begins with this.
    """
    sizes, some = {}, paths[::max(1, len(paths) // 1000)]
    for path in some:
        with contextlib.suppress(UserError):                           # whoever decodes it will say so
            sizes[path] = picture_size(path)
    tall = [path for path, (w, h) in sizes.items() if w <= h]
    if tall:
        w, h = sizes[tall[0]]
        say(f"note: {len(tall)} of {len(some)} pictures are no wider than high, as {tall[0]}, {w} x {h}; "
            "are they pairs, side by side?")
    w, h = next(iter(sizes.values()), (0, 0))
    return f"{w // 2} x {h} each"


def half_of(image, which):
    """The left (A) or the right (B) half of a side-by-side pair, a PIL image."""
    w, h = image.size
    return image.crop((0, 0, w // 2, h) if which == "A" else (w - w // 2, 0, w, h))
