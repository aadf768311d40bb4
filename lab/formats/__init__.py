"""How data sets lie on a disk, and their annotation files: one module a paper.

    attributes   StarGAN: CelebA's list, folders of classes, RaFD's names
    landmarks    GANnotation: 300-W and 300-VW, .pts files, driving landmarks
    people       DR-GAN: CFP, Multi-PIE, folders of people with poses.txt
    sketches     IACycleGAN: CUFS and CUFSF, a photo and a sketch of each person
    makeup       PairedCycleGAN: MT, or two folders; where a face has its eyes and lips
    pairs        pix2pix and CycleGAN: pairs side by side, or two sets without pairs

Each has scan(root, ...): a dict with the files `images`, what is known of each, `bad` (a message for every
file that cannot be used) and `notes` (what --check prints). It decodes no picture. It raises UserError where
it finds no data set: what was found, what was expected, how to mend it. This file holds what they share and
the accounting of --check.
"""
import codecs
import concurrent.futures
import contextlib
import dataclasses
import hashlib
import os
from collections import Counter
from pathlib import Path

from lab import UserError
from lab.images import picture_size, report_bad

IMAGE_FILES = (".jpg", ".jpeg", ".jfif", ".png", ".bmp", ".webp", ".ppm", ".pgm", ".tif", ".tiff")
# Might have been meant as data: --check counts them
UNREAD = (".gif", ".jp2", ".avif", ".heic", ".heif", ".tga", ".jxl", ".npy", ".mat", ".avi", ".mp4", ".zip",
          ".7z", ".tar", ".gz", ".rar")
# Names of folders, in small letters, whose pictures are not trained on
TEST_NAMES = ("test", "testing", "testset", "test_set", "test_data", "val", "valid", "validation")


def text_of(path):
    """The text of an annotation file, of whatever encoding. UserError if it is no file.

    A pipe or a device would be read for ever.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: {'not a file' if path.exists() else 'no such file'}")
    raw = path.read_bytes()
    wide = raw.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))  # Notepad's "Unicode"
    text = raw.decode("utf-16" if wide else "utf-8-sig", errors="replace")
    return text.replace("\r\n", "\n").replace("\r", "\n")


def hidden(name):
    """Is this a name of what programs leave beside data: .ipynb_checkpoints, ._1.jpg, __MACOSX?"""
    return name.startswith(".") or name == "__MACOSX"


def is_run(folder):
    """Is this a training's folder, which lies among the data?"""
    return (Path(folder) / "metrics.jsonl").exists()


def is_test(path, root):
    """Does a folder between root and path say that what lies there is not to be trained on?"""
    return not set(TEST_NAMES).isdisjoint(part.lower() for part in Path(path).relative_to(root).parts[:-1])


def folders_below(root):
    """root and the folders below it, through links, each once, in order of name; without hidden ones.

    UserError for a folder that cannot be read. One that is not there counts as empty: whoever asked says what
    was expected.
    """
    def unreadable(error):
        if not isinstance(error, (FileNotFoundError, NotADirectoryError)):
            raise UserError(f"{error.filename}: {error.strerror}; make it readable, or take it out")

    found, seen = [], set(map(str, Path(root).resolve().parents))
    for folder, below, _ in os.walk(root, onerror=unreadable, followlinks=True):
        below[:] = [name for name in below if not (hidden(name) or is_run(Path(folder, name)))]
        real = os.path.realpath(folder)
        if real in seen:                                               # a link in a circle
            below.clear()
        else:
            seen.add(real)
            found.append(Path(folder))
    return sorted(found)


def files_below(root, endings=IMAGE_FILES):
    """The files below root whose names end like this, through links, in order of name."""
    return sorted(p for folder in folders_below(root) for p in pictures_in(folder, endings))


def fingerprint(folders):
    """A number for the names and sizes of the pictures below folders, wherever these are; "" for none."""
    told = [(str(p.relative_to(folder)), p.stat().st_size if p.exists() else 0)
            for folder in folders for p in files_below(folder)]
    return hashlib.sha256(repr(told).encode(errors="backslashreplace")).hexdigest()[:16] if folders else ""


def pictures_in(folder, endings=IMAGE_FILES):
    """The picture files of a folder, by their names' endings, in order of name; without hidden ones."""
    return sorted(p for p in Path(folder).iterdir() if p.suffix.lower() in endings and not hidden(p.name))


def folders_in(folder):
    """{name in small letters: folder} of the folders in a folder, in order of name, without hidden ones."""
    found = (p for p in sorted(Path(folder).iterdir()) if p.is_dir() and not (hidden(p.name) or is_run(p)))
    return {p.name.lower(): p for p in found}


def with_ending(path, *endings):
    """The file that is named like path but for one of these endings, small or in capitals; or None."""
    files = (path.with_suffix(e) for ending in endings for e in (ending, ending.upper()))
    return next(filter(Path.exists, files), None)


def named_pictures(files):
    """{a name of its own: path} of picture files and of the pictures in folders.

    UserError for a folder without any.
    """
    named, taken = {}, set()
    for file in map(Path, files):
        found = pictures_in(file) if file.is_dir() else [file]
        if not found:
            raise UserError(f"{file}: no pictures in this folder")
        for path in found:
            name = unused(path.stem, taken)
            while f"{name}_sheet" in taken:                            # results: NAME.png, NAME_sheet.png
                taken.add(name)
                name = unused(path.stem, taken)
            taken |= {name, f"{name}_sheet"}
            named[name] = path
    return named


def unused(stem, taken):
    """stem, or stem_1, stem_2 ..., the first that is not among `taken`."""
    names = (stem + f"_{k}" * (k > 0) for k in range(len(taken) + 1))
    return next(name for name in names if name not in taken)


# =========================================================================================== --check

def check(scan, cfg):
    """Print what is under --data: a tree with counts and sizes, what the paper's scan(cfg) makes of it, and
    the memory it needs.

    scan(cfg): a dict with images, bad, notes and bytes_per_image. cfg.data: a folder, or a tuple of folders,
    each checked on its own. UserError for files that cannot be used, unless cfg.skip_bad.
    """
    if not cfg.data:
        print("no --data: toy faces are drawn from parameters; nothing to check")
        return
    several = isinstance(cfg.data, tuple)
    for folder in cfg.data if several else (cfg.data,):
        print_tree(Path(folder))
        print_found(scan(dataclasses.replace(cfg, data=(folder,) if several else folder)), cfg.skip_bad)


def print_tree(root, most=30):
    """The folders below root, at most so many, a line each: files by ending, sizes of pictures."""
    folders = {folder: [p.name for p in folder.iterdir() if not p.is_dir()] for folder in folders_below(root)}
    print(f"{root}  ({sum(map(len, folders.values()))} files)")
    unread = Counter(ending for names in folders.values() for name in names
                     if (ending := Path(name).suffix.lower()) in UNREAD and not hidden(name))
    if unread:
        counts = ", ".join(f"{count} {kind}" for kind, count in unread.most_common())
        print(f"  not read: {counts}; pictures end in {' '.join(IMAGE_FILES)}")
    for folder, names in list(folders.items())[:most]:
        kinds = Counter(Path(name).suffix.lower() or "(none)" for name in names)
        counts = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common())
        depth = len(folder.relative_to(root).parts)
        print("  " * depth + f"{folder.name if depth else '.'}/  " + counts + sizes_in(folder, names))
    if len(folders) > most:
        print(f"  ... and {len(folders) - most} more folders")


def sizes_in(folder, names):
    """The smallest and the largest of about 20 pictures among these files, as text."""
    pictures, sizes = [name for name in names if name.lower().endswith(IMAGE_FILES)], []
    for name in pictures[::max(1, len(pictures) // 20)]:
        with contextlib.suppress(UserError):
            sizes.append(picture_size(folder / name))
    if not sizes:
        return ""
    width, height = zip(*sizes, strict=True)
    return f"  {min(width)}-{max(width)} x {min(height)}-{max(height)} px"


def print_found(found, skip_bad):
    """What a scan found: its notes, pictures that cannot be read, memory. UserError for bad files."""
    for key, value in found["notes"].items():
        print(f"{key}: {value}")
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        unreadable = [error for error in pool.map(header_error, found["images"]) if error]
    print(f"unreadable pictures: {len(unreadable)}" + "".join(f"\n  {error}" for error in unreadable[:5]))
    size = len(found["images"]) * found["bytes_per_image"] / 2 ** 20
    print(f"decoded: {size:.0f} MiB as one uint8 array")
    report_bad(found["bad"] + unreadable, len(found["images"]) + len(found["bad"]), skip_bad)


def header_error(path):
    """What is wrong with a picture file, without decoding it; None if nothing is."""
    try:
        picture_size(path)
    except UserError as error:
        return str(error)
