"""Makers of small data sets in their official layouts, for the tests."""
import functools

import numpy as np
from PIL import Image

import common
from lab import images, toyfaces


def picture(path, seed=0, size=(20, 25)):
    """A picture of noise."""
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(seed).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)
    return str(path)


def drawn(path, image):
    """A picture [1, 3, S, S] in [-1, 1]."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(images.to_uint8(image)[0].permute(1, 2, 0).numpy()).save(path)
    return path


def write_pts(path, points):
    """A .pts file: points count from 1."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = "\n".join(f"{x + 1:.4f} {y + 1:.4f}" for x, y in points.tolist())
    path.write_text(f"version: 1\nn_points:  {len(points)}\n{{\n{rows}\n}}\n")


def flat_picture(path, size=(178, 218), colour=(120, 90, 60)):
    """A square of one colour; of a tall picture the rest is white."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image, (w, h) = Image.new("RGB", size, "white"), size
    image.paste(colour, (0, (h - w) // 2, w, (h + w) // 2) if h > w else (0, 0, w, h))
    image.save(path)


NAMES = ["5_o_Clock_Shadow", "Black_Hair", "Blond_Hair", "Brown_Hair", "Male", "Young"]
PAPERS_FIVE = tuple(NAMES[1:])


def celeba(root, n=40, folder="img_align_celeba", csv=False):
    """CelebA's layout: (root, {name of a picture: its values})."""
    rng, rows = np.random.default_rng(0), {}
    for k in range(n):
        name = f"{k + 1:06d}.jpg"
        flat_picture(root / folder / name, colour=tuple(int(v) for v in rng.integers(0, 255, 3)))
        hair = rng.permutation([1, -1, -1])
        rows[name] = ["-1", *map(str, hair), *(str(v) for v in rng.choice([-1, 1], 2))]
    if csv:
        lines = [",".join(row) for row in [["image_id", *NAMES], *([k, *v] for k, v in rows.items())]]
        (root / "list_attr_celeba.csv").write_text("\n".join(lines))
    else:
        lines = [str(n), " ".join(NAMES) + " ", *(k + "  " + "  ".join(v) for k, v in rows.items())]
        (root / "list_attr_celeba.txt").write_text("\n".join(lines) + "\n")
    return root, rows


def classes(root, split=True, n=10):
    """Folders of three expressions, with train/ and test/ above them or without."""
    for k, name in enumerate(("angry", "happy", "neutral")):
        for j in range(n):
            for part in ("train", "test") if split else ("",):
                flat_picture(root / part / name / f"{j}.jpg", (64, 48), (50 * k + 40, 10 * j, 90))
    return root


def photo_folder(root, n=12, size=96, style="300W", dotted=False):
    """Toy renders with .pts files, 1-based, as photographs (300W) or as videos, frames in folders `style`.

    dotted: a Gaussian dot at three landmarks, one a channel, instead of the render.
    """
    points, renders = some_faces(n, size)
    for k in range(n):
        if style == "300W":
            path = root / "lfpw" / "trainset" / f"image_{k + 1:04d}.png"
            pts = path.with_suffix(".pts")
        else:
            video, name = root / f"{k // 4:03d}", f"{k % 4 + 1:06d}"
            path, pts = video / style / f"{name}.jpg", video / "annot" / f"{name}.pts"
        if dotted:
            drawn(path, common.heatmaps(points[k:k + 1, [30, 48, 54]], size, 1.5) * 2 - 1)
        else:
            drawn(path, renders[k:k + 1])
        write_pts(pts, points[k])
    return root


@functools.cache
def some_faces(n, size):
    """(landmarks [n, 68, 2], pictures [n, 3, S, S]) of toy faces in any pose."""
    faces = toyfaces.sample(n, 77, pose=.5)
    return toyfaces.landmarks(faces, size), toyfaces.render(faces, size)


def cfp(root, people=12, fiducials=True, protocol=False):
    """A small CFP in its official layout."""
    for p in range(1, people + 1):
        for kind, n in (("frontal", 4), ("profile", 2)):
            for k in range(1, n + 1):
                name = f"{p:03d}/{kind}/{k:02d}"
                picture(root / "Data/Images" / f"{name}.jpg", 100 * p + 10 * k + n, (50, 60))
                if fiducials:
                    file = root / "Data/Fiducials" / f"{name}.txt"
                    file.parent.mkdir(parents=True, exist_ok=True)
                    file.write_text("\n".join(f"{10 + i / 2},{15 + i}" for i in range(30)))
    if protocol:
        cfp_protocol(root / "Protocol", people)
    return root


def cfp_protocol(folder, people):
    """CFP's pairs: two people a fold, two pairs of the same and two of different people in each."""
    folder.mkdir()
    for letter, kind, n in (("F", "frontal", 4), ("P", "profile", 2)):
        lines = [f"../Data/Images/{p:03d}/{kind}/{k:02d}.jpg"
                 for p in range(1, people + 1) for k in range(1, n + 1)]
        numbered = "\n".join(f"{k + 1} {line}" for k, line in enumerate(lines))
        (folder / f"Pair_list_{letter}.txt").write_text(numbered)
    for kind, n in (("FF", 4), ("FP", 2)):
        for fold in range(people // 2):
            one, other = 2 * fold, 2 * fold + 1
            home = folder / f"Split/{kind}/{fold + 1:02d}"
            home.mkdir(parents=True)
            (home / "same.txt").write_text("".join(f"{4 * p + 1},{n * p + 2}\n" for p in (one, other)))
            (home / "diff.txt").write_text(f"{4 * one + 1},{n * other + 1}\n{4 * other + 1},{n * one + 2}\n")


def posed(root):
    """Twelve people in folders, poses.txt beside them."""
    lines = [f"{person:03d}/{k}.jpg {yaw}" for person in range(12) for k, yaw in enumerate((-60, 0, 30))]
    for k, line in enumerate(lines):
        picture(root / line.split()[0], k, (50, 60))
    (root / "poses.txt").write_text("\n".join(lines) + "\n")
    return root


def cufs(root, n=8):
    """CUHK student's names: photos and sketches that do not share one."""
    for k in range(n):
        sex = "fm"[k % 2]
        picture(root / "train/photos" / f"{sex}-{k:03d}-01.jpg", k)
        picture(root / "train/sketches" / f"{sex.upper()}2-{k:03d}-01-sz1.jpg", 50 + k)
        picture(root / "test/photos" / f"{sex}1-{k:03d}-01.jpg", k)
        picture(root / "test/sketches" / f"{sex}1-{k:03d}-01-sz1.jpg", 50 + k)
    return root


def both_sides(root, n, part="."):
    """n photos and n sketches of a part, by number."""
    for k in range(n):
        picture(root / part / "photos" / f"{k}.jpg", k)
        picture(root / part / "sketches" / f"{k}.png", k)


def close_faces(n=4, size=96, **fields):
    """Toy faces that fill the picture, without make-up: (faces, landmarks [n, 68, 2])."""
    faces = toyfaces.sample(n, 3, pose=.2, expression=False, makeup=False)
    faces = faces.set(beard=0., glasses=0., zoom=1.4, shift=[0., .03], **fields)
    return faces, toyfaces.landmarks(faces, size)


MT = {"skin": 1, "beard": 1, "brows": (2, 3), "eyes": (4, 5), "lips": (7, 9), "inner mouth": 8, "hair": 10,
      "glasses": 1, "clothes": 0, "background": 0}


def mt_map(face, size=96):
    """The map of regions of a toy face in MT's numbers."""
    label, points = toyfaces.regions(face, size)[0].numpy(), toyfaces.landmarks(face, size)[0]
    out = np.zeros_like(label)
    y, x = np.indices(label.shape)
    for name, number in MT.items():
        here = label == toyfaces.REGIONS.index(name)
        if name in ("brows", "eyes"):
            out[here] = np.where(x < float(points[27, 0]), *number)[here]
        elif name == "lips":
            out[here] = np.where(y < float((points[62, 1] + points[66, 1]) / 2), *number)[here]
        else:
            out[here] = number
    below = (y > float(points[28, 1])) & (y <= float(points[33, 1]) + 1)
    out[(abs(x - float(points[33, 0])) < .05 * size) & below & (out == 1)] = 6
    return out.astype(np.uint8)


def mt(root, n=4):
    """MT as PSGAN lays it out; maps of another size than the pictures."""
    _, renders, maps = made_up_faces(2 * n)
    for k in range(2 * n):
        kind, name = ("makeup", "non-makeup")[k % 2], f"p{k}.png"
        drawn(root / "images" / kind / name, renders[k:k + 1])
        label = root / "segs" / kind / name
        label.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(maps[k]).save(label)
        with open(root / f"{kind}.txt", "a") as file:
            file.write(f"{kind}/{name}\n")
    return root


def two_folders(root, n=4):
    """before/ and after/, a .pts file beside each picture."""
    points, renders, _ = made_up_faces(2 * n)
    for k in range(2 * n):
        path = root / ("before", "after")[k % 2] / f"{k}.jpg"
        write_pts(drawn(path, renders[k:k + 1]).with_suffix(".pts"), points[k])
    return root


@functools.cache
def made_up_faces(n):
    """(landmarks, pictures of 110 px, maps of 96 px) of close toy faces."""
    faces, points = close_faces(n, 110)
    return points, toyfaces.render(faces, 110), [mt_map(faces[k]) for k in range(n)]


def side_by_side(root, n=12, size=(40, 25), parts=("train", "test")):
    """Pairs A|B, halves not square: A red, B blue, brighter with the number."""
    w, h = size
    for part in parts:
        (root / part).mkdir(parents=True)
        for k in range(n):
            image = np.zeros((h, w, 3), np.uint8)
            image[:, :w // 2, 0], image[:, w // 2:, 2] = 100 + k, 100 + k
            Image.fromarray(image).save(root / part / f"图 {k}.png")
    return root


def a_and_b(root, counts=(6, 4), parts=("train", "test")):
    """trainA, trainB, testA, testB."""
    for part in parts:
        for side, n in zip("AB", counts, strict=True):
            (root / f"{part}{side}").mkdir(parents=True)
            for k in range(n):
                image = Image.new("L" if side == "B" else "RGB", (20, 25), 40 + k)
                image.save(root / f"{part}{side}" / f"{k}.png")
    return root
