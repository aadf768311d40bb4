"""The layouts of data sets and their annotation files."""
import os
import random
import re
import shutil
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import common
from lab import UserError, formats, images
from lab.formats import attributes, landmarks, makeup, pairs, people, sketches
from makers import (NAMES, PAPERS_FIVE, a_and_b, both_sides, celeba, cfp, classes, close_faces, cufs, mt,
                    mt_map, photo_folder, picture, posed, side_by_side, two_folders, write_pts)

def use(found, skip_bad=False):
    """What a paper does first with what was found: no bad files, or an error."""
    images.report_found(found, skip_bad)
    return found


def held_out_of(found, of):
    """Those of a list, one for each picture or pair, that are held out."""
    return [one for one, test in zip(of, found["test"], strict=True) if test]


# ---------------------------------------------------------------------------- files and folders

def test_text_of_any_encoding_but_of_files_only(tmp_path):
    (tmp_path / "a.txt").write_bytes("\ufeffgrün\n".encode() + b"\xff")
    assert formats.text_of(tmp_path / "a.txt") == "grün\n\ufffd"
    os.mkfifo(tmp_path / "pipe")
    for name, message in (("nowhere", "nowhere: no such file"), (".", "not a file"), ("pipe", "pipe: not a")):
        with pytest.raises(UserError, match=message):
            formats.text_of(tmp_path / name)


def test_folders_are_walked_through_links_once_and_in_order(tmp_path):
    for name in ("b", "a/c"):
        picture(tmp_path / "data" / name / "1.PNG")
    (tmp_path / "data/a/c/2.txt").write_text("no picture")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "data/b/again").symlink_to(tmp_path / "data")
    (tmp_path / "data/a/linked").symlink_to(tmp_path / "elsewhere")
    root = tmp_path / "data"
    assert [p.relative_to(root).as_posix() for p in formats.folders_below(root)] \
        == [".", "a", "a/c", "a/linked", "b"]
    assert formats.files_below(root) == [root / "a/c/1.PNG", root / "b/1.PNG"]
    assert formats.pictures_in(root / "a/c", (".txt",)) == [root / "a/c/2.txt"]
    assert formats.folders_below(tmp_path / "nowhere") == formats.files_below(tmp_path / "nowhere") == []


@pytest.mark.parametrize("make, scan, folder", [
    (photo_folder, landmarks.scan, "lfpw/trainset"), (cufs, sketches.scan, "train/photos"),
    (cfp, lambda root: people.scan(root, 0), "Data/Images/003/frontal"), (mt, makeup.scan, "images/makeup"),
])
def test_a_linked_folder_is_read_and_one_that_cannot_be_is_named(tmp_path, monkeypatch, make, scan, folder):
    folder = make(tmp_path / "data") / folder
    before = len(scan(tmp_path / "data")["images"])
    shutil.move(folder, tmp_path / "elsewhere")
    folder.symlink_to(tmp_path / "elsewhere")
    assert len(scan(tmp_path / "data")["images"]) == before > 2
    scandir = os.scandir

    def closed(path="."):
        if os.path.realpath(path) == str(tmp_path / "elsewhere"):
            raise PermissionError(13, "Permission denied", str(folder))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", closed)
    with pytest.raises(UserError, match=f"{re.escape(str(folder))}: Permission denied; make it readable"):
        scan(tmp_path / "data")


def test_named_pictures_have_a_name_of_their_own(tmp_path):
    for name in ("one/a.png", "one/b.png", "two/a.jpg"):
        picture(tmp_path / name)
    (tmp_path / "empty").mkdir()
    files = str(tmp_path / "one"), str(tmp_path / "two/a.jpg"), tmp_path / "one/a.png"
    named = formats.named_pictures(files)
    assert {name: path.name for name, path in named.items()} \
        == {"a": "a.png", "b": "b.png", "a_1": "a.jpg", "a_2": "a.png"}
    with pytest.raises(UserError, match="empty: no pictures in this folder"):
        formats.named_pictures([tmp_path / "empty"])
    assert formats.unused("a", {"a", "a_1"}) == "a_2" and formats.unused("b", {"a"}) == "b"


def test_the_size_of_a_picture_follows_its_exif(tmp_path):
    image, exif = Image.new("RGB", (30, 20)), Image.Exif()
    exif[274] = 6
    image.save(tmp_path / "a.jpg", exif=exif)
    assert images.picture_size(tmp_path / "a.jpg") == images.open_image(tmp_path / "a.jpg").size == (20, 30)


# -------------------------------------------------------------------------------------- --check

@dataclass
class Settings:
    data: str | tuple = ""
    skip_bad: bool = False


def test_check_draws_the_tree_and_names_bad_files(tmp_path, capsys):
    root = photo_folder(tmp_path / "photos")
    (root / "lfpw/trainset/image_0002.png").write_bytes(b"")
    def scan(cfg):
        return landmarks.scan(cfg.data) | {"bytes_per_image": 2 ** 20}
    with pytest.raises(UserError, match="image_0002.png: empty file .the only one of 12.; mend or remove"):
        formats.check(scan, Settings(str(root)))                       # training would refuse it, too
    capsys.readouterr()
    formats.check(scan, Settings(str(root), skip_bad=True))
    out = capsys.readouterr().out
    for word in (f"{root}  (24 files)", "\n    trainset/", "12 .png", "12 .pts", "96-96 x 96-96 px",
                 "68 (12 files)", "unreadable pictures: 1", "image_0002.png: empty file", "decoded: 12 MiB"):
        assert word in out
    formats.check(None, Settings())
    assert "toy faces" in capsys.readouterr().out


def test_check_takes_several_folders_and_ends_with_what_is_bad(tmp_path, capsys):
    def scan(cfg):
        root, = cfg.data
        return attributes.scan(root, PAPERS_FIVE, (), 2000) | {"bytes_per_image": 3}
    first, second = celeba(tmp_path / "c")[0], classes(tmp_path / "r")
    (first / "img_align_celeba/000005.jpg").unlink()
    with pytest.raises(UserError, match="000005.jpg is not among.*--skip-bad"):
        formats.check(scan, Settings((str(first), str(second))))
    formats.check(scan, Settings((str(first), str(second)), skip_bad=True))
    out = capsys.readouterr().out
    for word in ("Blond_Hair (", "angry (", "\n  train/", "left out 1 of 40 files", "60, 30 of them held"):
        assert word in out


def test_check_draws_thirty_folders(tmp_path, capsys):
    for k in range(32):
        picture(tmp_path / "train" / f"{k:02d}" / "1.png")
    found = {"notes": {}, "images": [], "bad": [], "bytes_per_image": 0}
    formats.check(lambda cfg: found, Settings(str(tmp_path)))
    out = capsys.readouterr().out
    assert "\n    27/  1 .png  20-20 x 25-25 px\n  ... and 4 more folders\n" in out and "\n    28/" not in out


# ----------------------------------------------------------------------------- StarGAN: attributes

def scan_celeba(root, test_images=2000):
    return attributes.scan(root, PAPERS_FIVE, (), test_images)


@pytest.mark.parametrize("folder, csv", [("img_align_celeba", False), ("images", False), ("images", True)])
def test_celeba_as_distributed(tmp_path, folder, csv):
    root, rows = celeba(tmp_path / "Celeb A 脸", folder=folder, csv=csv)
    found = scan_celeba(root)
    assert len(found["images"]) == 40 and sum(found["test"]) == 4
    assert found["names"] == PAPERS_FIVE and not found["exclusive"] and not found["bad"]
    for path, label in zip(found["images"], found["labels"], strict=True):
        assert label == [float(rows[path.name][NAMES.index(name)] == "1") for name in found["names"]]


def test_pictures_with_two_hair_colours_are_left_out(tmp_path):
    root, _ = celeba(tmp_path / "c")
    path = root / "list_attr_celeba.txt"
    lines = path.read_text().splitlines()
    lines[2] = lines[2].split()[0] + " -1 1 1 -1 1 1"
    path.write_text("\n".join(lines))
    found = scan_celeba(root)
    assert len(found["images"]) == 39 and all(sum(label[:3]) == 1 for label in found["labels"])


def test_as_many_are_held_out_as_asked_for_whoever_is_left_out(tmp_path):
    root, rows = celeba(tmp_path / "c")
    first = list(rows)
    random.Random(1234).shuffle(first)
    path = root / "list_attr_celeba.txt"
    for name in first[:2]:                                             # these would have been held out
        path.write_text(re.sub(f"{name}.*", f"{name} -1 1 1 -1 1 1", path.read_text()))
    found = scan_celeba(root, 3)
    assert held_out_of(found, [p.name for p in found["images"]]) == first[2:5]
    assert sum(scan_celeba(root)["test"]) == 3                         # a tenth of 38


def test_the_authors_split(tmp_path):
    """Python's shuffle of the rows with seed 1234; the first ones are the test set."""
    root, rows = celeba(tmp_path / "c")
    names = list(rows)
    random.Random(1234).shuffle(names)
    found = scan_celeba(root, 3)
    assert held_out_of(found, [p.name for p in found["images"]]) == names[:3]


@pytest.mark.parametrize("split, held_out", [(True, 30), (False, 3)])
def test_class_folders(tmp_path, split, held_out):
    found = attributes.scan(classes(tmp_path / "faces", split), (), (), 0)
    assert found["names"] == ("angry", "happy", "neutral") and found["exclusive"]
    assert sum(found["test"]) == held_out
    for path, label in zip(found["images"], found["labels"], strict=True):
        assert found["names"][label.index(1.)] == path.parent.name and sum(label) == 1


def test_some_classes_only(tmp_path):
    root = classes(tmp_path / "faces")
    found = attributes.scan(root, (), ("neutral", "angry"), 0)
    assert found["names"] == ("angry", "neutral") and len(found["images"]) == 40
    with pytest.raises(UserError, match="--classes bored: expected some of angry, happy, neutral"):
        attributes.scan(root, (), ("bored", "angry"), 0)
    with pytest.raises(UserError, match="--classes angry: expected at least two"):
        attributes.scan(root, (), ("angry",), 0)


def test_rafds_own_names(tmp_path):
    for who in (1, 2, 10):
        for angle in ("000", "045", "090", "135"):
            for name in ("angry", "happy"):
                picture(tmp_path / f"Rafd{angle}_{who:02d}_Caucasian_female_{name}_frontal.jpg")
    found = attributes.scan(tmp_path, (), (), 0)
    assert len(found["images"]) == 18 and found["names"] == ("angry", "happy") and sum(found["test"]) == 6
    assert all("_10_" in p.name for p in held_out_of(found, found["images"]))


def replaced(old, new):
    return lambda rows, pictures: rows.write_text(rows.read_text().replace(old, new))


def first_lines(rows, pictures):
    rows.write_text("".join(rows.read_text().splitlines(True)[:30]))


@pytest.mark.parametrize("spoil, message", [
    (lambda rows, pictures: rows.write_text("2\nBlack_Hair Male\n000001.jpg 1 1\n"),
     "--attributes Blond_Hair.*has Black_Hair, Male"),
    (replaced("000003.jpg", "000003.jpg 1"), "000003.jpg has 7 values"),
    (lambda rows, pictures: (pictures / "000005.jpg").unlink(), "000005.jpg is not among"),
    (lambda rows, pictures: pictures.rename(pictures.parent / "elsewhere"), "expected them in"),
    (lambda rows, pictures: rows.unlink(), "only one folder of pictures.*list_attr_celeba.txt"),
    (lambda rows, pictures: rows.write_bytes(b"\xff\xfe\x00" * 50), "has no line of names"),
    (first_lines, "its first line says 40 pictures, 28 follow"),
    (replaced("000009.jpg", "000008.jpg"), "000008.jpg has two lines"),
    (lambda rows, pictures: (rows.unlink(), shutil.rmtree(pictures)), "found 0 pictures, but neither"),
    (lambda rows, pictures: rows.write_text("".join(rows.read_text().splitlines(True)[:7])),
     "5 pictures with labels, 0 of them held out; expected some of each; .*says 40 pictures, 5 follow"),
])
def test_spoilt_attributes_give_one_error(tmp_path, spoil, message):
    root, _ = celeba(tmp_path / "c")
    spoil(root / "list_attr_celeba.txt", root / "img_align_celeba")
    with pytest.raises(UserError, match=message):
        use(scan_celeba(root))


# --------------------------------------------------------------------------- GANnotation: landmarks

def test_read_pts_is_one_based_and_forgiving(tmp_path):
    rows = "\n".join(f"{k + 1}.5 {2 * k + 1}" for k in range(68))
    texts = {"a.pts": f"version: 1\nn_points:  68\n{{\n{rows}\n}}\n",
             "ü 脸.pts": f"\ufeffversion: 1\r\nn_points: 68\r\n{{\r\n{rows}\r\n}}"}
    for name, text in texts.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
        points = landmarks.read_pts(tmp_path / name)
        assert points.shape == (68, 2) and points.dtype == torch.float32
        assert points[0].tolist() == [.5, 0.] and points[67].tolist() == [67.5, 134.]


@pytest.mark.parametrize("text", [
    "", "n_points: 68\n{\n1 2\n}", "version: 1\nn_points: 68\n{\n" + "1 nan\n" * 68 + "}",
    "n_points: 68\n{\n" + "1 x\n" * 68 + "}", "n_points: 5\n{\n" + "1 2\n" * 5 + "}", "\x00\xff"])
def test_read_pts_names_the_bad_file(tmp_path, text):
    (tmp_path / "bad.pts").write_text(text, encoding="latin-1")
    with pytest.raises(UserError, match="bad.pts"):
        landmarks.read_pts(tmp_path / "bad.pts")


@pytest.mark.parametrize("n", [66, 68])
def test_driving_landmarks_are_one_based_and_lost_frames_left_out(tmp_path, n):
    rows = np.arange(1., 3 * 2 * n + 1).reshape(3, 2 * n)
    rows[1] = -1
    np.savetxt(tmp_path / "d.txt", rows)
    points = landmarks.read_drive(tmp_path / "d.txt")
    assert points.shape == (2, n, 2) and points[0, :2].tolist() == [[0, 1], [2, 3]]
    write_pts(tmp_path / "d.PTS", points[1])
    assert torch.equal(landmarks.read_drive(tmp_path / "d.PTS"), points[1:])


@pytest.mark.parametrize("text, message", [
    ("1 2 3\n", "3 numbers a row"), ("\n", "numbers a row; expected 132"), ("a b\n", "not a table"),
    ("-1 " * 132 + "\n", "no row with landmarks"), (None, "d.txt: no such file")])
@pytest.mark.filterwarnings("error")
def test_bad_driving_files(tmp_path, text, message):
    if text:
        (tmp_path / "d.txt").write_text(text)
    with pytest.raises(UserError, match=message):
        landmarks.read_drive(tmp_path / "d.txt")


@pytest.mark.parametrize("style, groups", [("300W", 11), ("frames", 3), (".", 3)])
def test_scan_knows_the_layouts_of_landmarks(tmp_path, style, groups):
    n = 12 if style != "300W" else 11
    found = landmarks.scan(photo_folder(tmp_path / "人 脸", n, style=style))
    assert len(found["images"]) == n and len(set(found["groups"])) == groups and not found["bad"]
    assert len(found["annotations"]) == n and not any(found["test"])
    assert found["notes"]["points per file"] == f"68 ({n} files)"
    for path, pts in zip(found["images"], found["annotations"], strict=True):
        assert path.stem == pts.stem


def test_folders_called_test_are_held_out(tmp_path):
    root = photo_folder(tmp_path / "photos", 4)
    shutil.copytree(root / "lfpw/trainset", root / "lfpw/testset")
    found = landmarks.scan(root)
    assert [p.parent.name == "testset" for p in found["images"]] == found["test"] and sum(found["test"]) == 4
    assert found["notes"]["held out"] == "4 in test folders"


def test_a_picture_or_a_pts_file_alone_is_named(tmp_path):
    home = photo_folder(tmp_path / "photos") / "lfpw/trainset"
    picture(tmp_path / "photos/demo.png")                              # in a folder without any .pts
    assert not landmarks.scan(tmp_path / "photos")["bad"]
    (home / "image_0004.pts").unlink()
    (home / "image_0005.png").unlink()
    bad = landmarks.scan(tmp_path / "photos")["bad"]
    assert bad == [f"{home / 'image_0004.png'}: no image_0004.pts beside it",
                   f"{home / 'image_0005.pts'}: no picture for it"]
    with pytest.raises(UserError, match="image_0004.*and 1 more of 12.*--skip-bad"):
        use(landmarks.scan(tmp_path / "photos"))


def test_folders_without_landmarks_say_what_was_found(tmp_path):
    with pytest.raises(UserError, match="found 0 pictures and 0 .pts.*expected <id>/annot.*point --data at"):
        landmarks.scan(tmp_path / "nothing-here")
    for k in range(3):
        picture(tmp_path / f"{k}.png")
    with pytest.raises(UserError, match="found 3 pictures and 0 .pts files.*put NAME.pts beside NAME.jpg"):
        landmarks.scan(tmp_path)


def test_videos_without_frames_get_the_command_that_makes_them(tmp_path):
    root = photo_folder(tmp_path / "videos", 8, style="frames")
    for jpg in root.rglob("*.jpg"):
        jpg.unlink()
    (root / "001" / "vid.avi").write_bytes(b"RIFF")
    with pytest.raises(UserError, match="ffmpeg -i vid.avi -start_number 1"):
        landmarks.scan(root)


def test_landmarks_outside_the_picture_are_refused():
    image, points = Image.new("RGB", (100, 80)), close_faces(1, 80)[1][0]
    landmarks.check_points(points, image, "it.png")
    for far in (points + 90, points - 90, (points - 40) * 9 + 40):
        with pytest.raises(UserError, match=r"it.png: its landmarks lie outside the picture \(100 x 80\)"):
            landmarks.check_points(far, image, "it.png")


# -------------------------------------------------------------------------------- DR-GAN: people

def test_cfp_as_distributed(tmp_path):
    found = people.scan(cfp(tmp_path / "cfp"), 0)
    assert found["poses"] == ("frontal", "profile") and len(found["images"]) == 72 and found["n_test"] == 4
    assert found["people"] == tuple(f"cfp/{k:03d}" for k in range(1, 13)) and found["kind"] == "cfp"
    assert found["pose"][:6] == [0, 0, 0, 0, 1, 1] and found["who"] == [k // 6 for k in range(72)]
    inside = people.scan(tmp_path / "cfp/Data/Images", 0)
    assert inside["people"] == found["people"]                         # wherever --data points
    (tmp_path / "cfp/Data/Fiducials/001/frontal/01.txt").unlink()
    told = people.scan(tmp_path / "cfp", 0)["notes"]["fiducials"]
    assert told == "of 71 of 72 pictures; of others the central square is cut"


def test_held_out_people_of_the_data_sets():
    sets = ("cfp", 500), ("cfp", 50), ("multipie", 337), ("folders", 10_575), ("cfp", 15), ("multipie", 40)
    assert [people.held_out(*one) for one in sets] == [50, 10, 137, 1057, 5, 10]


def test_faces_of_cfp_are_cut_by_their_fiducials(tmp_path):
    root, image = cfp(tmp_path / "cfp", 1), Image.new("RGB", (100, 80))
    home = root / "Data/Images/001"
    low, high = people.face_square(home / "frontal/01.jpg", image)     # points from (10, 15) to (24.5, 44)
    assert ((low + high) / 2).tolist() == pytest.approx([24.5, .55 * 15 + .45 * 44])
    assert (high - low).tolist() == pytest.approx([1.7 * 29] * 2)
    low, high = people.face_square(home / "profile/01.jpg", image)
    assert ((low + high) / 2)[0].item() == pytest.approx((10 + 24.5) / 2)
    low, high = people.face_square(home / "frontal/99.jpg", image)     # no fiducials: the central square
    assert low.tolist() == [9.5, -.5] and high.tolist() == [89.5, 79.5]
    file = root / "Data/Fiducials/001/frontal/01.txt"
    assert people.fiducials_of(home / "frontal/01.jpg") == file
    assert people.fiducials_of(home / "frontal/99.jpg") is None is people.fiducials_of(Path("it.jpg"))
    flat, far = "\n".join(["5,5"] * 30), "\n".join(f"{k},1e9" for k in range(30))
    for text in ("1,2\nx,y", "1,2\n3,40", flat, far, "", "\n".join(["5"] * 30)):
        file.write_text(text)
        with pytest.raises(UserError, match="01.txt: expected 30 lines 'x,y' on the picture of 100 x 80"):
            people.face_square(home / "frontal/01.jpg", image)


def test_multipie_by_its_names(tmp_path):
    for person in range(1, 13):
        for camera in ("051", "190", "110", "080"):
            for light in ("00", "07"):
                picture(tmp_path / "data/session01" / f"{person:03d}_01_01_{camera}_{light}.png", person)
    found = people.scan(tmp_path, 2)
    # 110 is 75 degrees: left out
    assert len(found["images"]) == 12 * 3 * 2 and found["poses"] == tuple(map(str, people.YAWS))
    assert [people.YAWS[k] for k in found["pose"][:6]] == [-45, -45, 0, 0, 45, 45] and found["n_test"] == 2
    assert found["images"][2].name == "001_01_01_051_07.png"           # the gallery's light comes first


def test_folders_of_people_with_a_pose_file(tmp_path):
    lines = []
    for person in range(12):
        for k, yaw in enumerate((-88.2, -7.6, 0, 52.)):
            lines.append(f"{person:07d}/s1/{k:03d}.jpg{(' ', chr(9), ', ')[k % 3]}{yaw}")
            picture(tmp_path / f"{person:07d}/s1/{k:03d}.jpg", person)
    (tmp_path / "poses.txt").write_text("\n".join([*lines, lines[0]]))    # a picture named twice is one
    picture(tmp_path / "0000001/s1/extra.jpg")
    found = use(people.scan(tmp_path, 0))
    assert len(found["poses"]) == 13 and len(found["people"]) == 12 and len(found["images"]) == 48
    assert [found["poses"][k] for k in found["pose"][:4]] == ["-90", "-15", "0", "45"]
    assert found["people"][:2] == ("folders/0000000/s1", "folders/0000001/s1")
    assert found["notes"]["pictures without a line in poses.txt"] == 1
    more = "\n0000001/s1/009.jpg 3\n0000001/s1/001.jpg left\n0000001/s1/001.jpg 170"
    (tmp_path / "poses.txt").write_text("\n".join(lines) + more)
    found = people.scan(tmp_path, 0)
    assert len(found["bad"]) == 3 and len(found["images"]) == 48
    with pytest.raises(UserError, match="009.jpg is not there.*2 more of 51.*--skip-bad"):
        use(found)


@pytest.mark.parametrize("make, message", [
    (lambda root: picture(root / "a.jpg"), "found 1 pictures, but neither 001/frontal/"),
    (lambda root: (root / "poses.txt").write_text(""), "poses.txt: empty"),
    (lambda root: (root / "poses.txt").write_text("a.jpg left"), "'a.jpg left'; expected a picture and its"),
    (lambda root: (root / "poses.txt").mkdir(), "poses.txt: not a file"),
])
def test_spoilt_people_give_one_error(tmp_path, make, message):
    make(tmp_path)
    with pytest.raises(UserError, match=message):
        people.scan(tmp_path, 0)


def test_cfps_own_pairs(tmp_path):
    root = cfp(tmp_path / "cfp", protocol=True)
    (root / "Protocol/Split/FP/.DS_Store").write_text("")
    found = people.scan(root, 2)
    paths, who, pose = found["images"], torch.tensor(found["who"]), torch.tensor(found["pose"])
    for kind, second in (("FF", 0), ("FP", 1)):
        a, b, same, fold = people.official_pairs(paths, found["poses"], root, kind)
        assert len(a) == 6 * 4 and torch.equal(who[a] == who[b], same)
        assert (pose[a] == 0).all() and (pose[b] == second).all() and len(fold.unique()) == 6
    # only one fold of these people: no threshold from others
    assert people.official_pairs(paths[-12:], found["poses"], root, "FP") is None
    # 31 pictures of five people and of one of a sixth: only the two whole folds
    *_, fold = people.official_pairs(paths[-31:], found["poses"], root, "FP")
    assert sorted(fold.unique().tolist()) == [4, 5]
    assert people.official_pairs(paths, ("0", "15"), root, "FP") is None
    assert people.official_pairs(paths, found["poses"], root / "Data/Images", "FP") is not None
    (root / "Protocol/Split/FP/01/same.txt").write_text("1;2")
    with pytest.raises(UserError, match="not as CFP distributes it"):
        people.official_pairs(paths, found["poses"], root, "FP")
    shutil.rmtree(root / "Protocol")
    assert people.official_pairs(paths, found["poses"], root, "FP") is None


# --------------------------------------------------------------------------- IACycleGAN: sketches

def photos_of(found):
    return [photo for photo, _ in found["pairs"]]


def test_cuhk_student_pairs_by_sex_and_number(tmp_path):
    found = sketches.scan(cufs(tmp_path))
    assert len(found["pairs"]) == 16 and sum(found["test"]) == 8 and not found["bad"]
    assert found["images"] == [path for pair in found["pairs"] for path in pair]
    for photo, sketch in found["pairs"]:
        assert photo.parts[-3] == sketch.parts[-3] and photo.stem[0] == sketch.stem[0].lower()
        assert photo.stem.split("-")[1] == sketch.stem.split("-")[1]


def test_ambiguous_names_are_not_paired():
    photos = [Path("f1-001-01.jpg"), Path("f2-001-01.jpg"), Path("m-002-01.jpg")]
    pairs, alone = sketches.matched(photos, [Path("f3-001-01-sz1.jpg"), Path("M2-002-01-sz1.jpg")])
    assert pairs == [(Path("m-002-01.jpg"), Path("M2-002-01-sz1.jpg"))] and len(alone) == 3


def test_parts_with_and_without_lists(tmp_path):
    both_sides(tmp_path, 8, "AR"), both_sides(tmp_path, 4, "CUHK_FERET")
    found = sketches.scan(tmp_path)                                    # a quarter, spread over the names
    assert [p.relative_to(tmp_path).as_posix() for p in held_out_of(found, photos_of(found))] \
        == ["AR/photos/3.jpg", "AR/photos/7.jpg", "CUHK_FERET/photos/3.jpg"]
    (tmp_path / "list_test.txt").write_bytes(b"AR/photos/2.jpg||AR/sketches/2.png||AR/mat/2.mat||2\n\xff\n")
    found = sketches.scan(tmp_path)
    assert [p.name for p in held_out_of(found, photos_of(found))] == ["2.jpg"]


@pytest.mark.parametrize("photos, drawings, test", [
    ("CUHK_training_cropped_photos/photos", "CUHK_training_cropped_sketches/sketches",
     "CUHK_testing_cropped_{0}/{0}"),
    ("Training photo", "Training sketch", "Testing {}"),
    ("train/AR/photos", "train/AR/sketches", "test/AR/{}"),
])
def test_layouts_of_sketches(tmp_path, photos, drawings, test):
    for k in range(4):
        for folder, seed in ((photos, k), (drawings, 9 + k)):
            picture(tmp_path / folder / f"m-{k:03d}-01{'-sz1' * (folder == drawings)}.jpg", seed)
            other = test.format("photos" if folder == photos else "sketches")
            picture(tmp_path / other / f"m-{k:03d}-01.jpg", seed)
    picture(tmp_path / "CUHK_training_photo/photo/m-000-01.jpg")       # the uncropped ones come along, too
    found = sketches.scan(tmp_path)
    assert len(found["pairs"]) == 8 and sum(found["test"]) == 4 and not found["bad"]
    assert [("est" in str(p.relative_to(tmp_path))) for p in photos_of(found)] == found["test"]


def test_a_split_of_one_part_is_not_that_of_all(tmp_path):
    for part, n in (("CUHK_training", 5), ("CUHK_testing", 3), ("AR", 8), ("latest", 4)):
        both_sides(tmp_path, n, part)
    found = sketches.scan(tmp_path)
    held_out = [p.relative_to(tmp_path).parts[0] for p in held_out_of(found, photos_of(found))]
    assert Counter(held_out) == {"CUHK_testing": 3, "AR": 2, "latest": 1}


def test_a_part_without_sketches_is_told(tmp_path):
    both_sides(tmp_path, 8, "AR"), picture(tmp_path / "XM2VTS/photos/0.jpg")
    found = sketches.scan(tmp_path)
    assert len(found["pairs"]) == 8 and found["notes"]["left out"] == "xm2vts (photos without sketches)"


@pytest.mark.parametrize("n, held_out", [(123, 43), (121, 43), (40, 10)])
def test_published_splits_forgive_a_missing_picture(tmp_path, monkeypatch, n, held_out):
    def parts_of(root):
        sides = tuple([root / kind / f"{k}.jpg" for k in range(n)] for kind in ("photos", "sketches"))
        return {"AR": sides}, {}
    monkeypatch.setattr(sketches, "parts_of", parts_of)
    assert sum(sketches.scan(tmp_path)["test"]) == held_out


def test_a_list_that_names_nothing_is_named(tmp_path):
    both_sides(tmp_path, 4)
    (tmp_path / "list_test.txt").write_text("photos\\2.jpg||sketches\\2.png\n")
    found = sketches.scan(tmp_path)
    assert [p.name for p in held_out_of(found, photos_of(found))] == ["2.jpg"]
    (tmp_path / "list_test.txt").write_text("elsewhere/2.jpg||\n")
    with pytest.raises(UserError, match="list_test.txt: none of its 1 lines"):
        sketches.scan(tmp_path)


def test_cuhk_students_own_split_is_in_the_names_of_the_sketches(tmp_path):
    for k in range(6):
        picture(tmp_path / "photos" / f"f{'' if k < 4 else 1}-{k:03d}-01.jpg", k)
        picture(tmp_path / "sketches" / f"{'F2' if k < 4 else 'f1'}-{k:03d}-01-sz1.jpg", k)
    found = sketches.scan(tmp_path)
    assert [p.name for p in held_out_of(found, photos_of(found))] == ["f1-004-01.jpg", "f1-005-01.jpg"]


@pytest.mark.parametrize("make, message", [
    (lambda root: picture(root / "a.jpg"), "0 pairs of photo and sketch"),
    (lambda root: [picture(root / "photos/a.jpg"), picture(root / "sketches/b.jpg")],
     "no single partner of the same name"),
])
def test_spoilt_sketches_give_one_error(tmp_path, make, message):
    make(tmp_path)
    with pytest.raises(UserError, match=message):
        sketches.scan(tmp_path)


# ------------------------------------------------------------------------- PairedCycleGAN: make-up

def test_anchors_from_a_map_lie_where_those_from_landmarks_lie():
    faces, points = close_faces()
    sure = [*range(8), *range(14, 18), 27, 28, 29]
    for k in range(4):
        a, b = makeup.anchors_of_points(points[k]), makeup.anchors_of_map(mt_map(faces[k]))
        off = (a - b).norm(dim=1)
        assert a.shape == b.shape == (30, 2) and off[sure].mean() < 2 and off.max() < 9
        # The lips' inner edges lie one above the other, never quite closed
        for anchors in (a, b):
            gap, width = anchors[29, 1] - anchors[28, 1], (anchors[15] - anchors[14]).norm()
            assert anchors[28, 0] == anchors[29, 0] and gap >= .03 * width - 1e-4


def test_hidden_brows_are_guessed_and_missing_eyes_named():
    label = mt_map(close_faces()[0][0])
    shown = makeup.anchors_of_map(label)
    label[np.isin(label, (2, 3))] = 1
    assert (makeup.anchors_of_map(label)[8:14] - shown[8:14]).norm(dim=1).mean() < 6
    label[label == 4] = 1
    with pytest.raises(ValueError, match="no two eyes"):
        makeup.anchors_of_map(label)


def test_what_hides_part_of_a_map_does_no_harm_or_is_named():
    faces, points = close_faces()
    for k in range(4):
        label, x = mt_map(faces[k]), int(points[k, 51, 0])
        shown, lock = makeup.anchors_of_map(label), label[:, x - 6:x + 7]          # of hair, over the mouth
        lock[np.isin(lock, (7, 8, 9))] = 10
        assert (makeup.anchors_of_map(label) - shown).norm(dim=1).max() < 15
    label, y = mt_map(faces[0]), int(points[0, 48:60, 1].mean())
    label[y - 1:y + 2] = 10
    label[label == 1] = 10
    with pytest.raises(ValueError):
        makeup.anchors_of_map(np.where(label == 9, 10, label))


def test_66_points_give_the_same_anchors_as_68():
    _, points = close_faces(1)
    assert torch.equal(makeup.anchors_of_points(points[0]), makeup.anchors_of_points(common.to_66(points)[0]))


def test_extremes_by_hand():
    points = torch.tensor([[0., 5.], [4., 1.], [4., 9.], [8., 6.], [1., 0.]])
    assert makeup.extremes(points, "lrtb").tolist() == [[0, 5], [8, 6], [4, 1], [4, 9]]
    with pytest.raises(ValueError, match="hidden in the map"):
        makeup.extremes(points[:0], "l")


def test_upright_is_the_way_from_the_eyes_to_the_mouth():
    anchors = torch.zeros(1, 30, 2)
    anchors[0, [0, 1, 4, 5]] = torch.tensor([[10., 20.], [20., 20.], [30., 22.], [40., 22.]])
    anchors[0, 14:16] = torch.tensor([[20., 51.], [30., 51.]])
    eyes, way = makeup.upright(anchors)
    assert eyes.tolist() == [[25, 21]] and way.tolist() == [[0, 30]]


@pytest.mark.parametrize("make", [mt, two_folders])
def test_pictures_with_and_without_makeup_are_found_and_held_out(tmp_path, make):
    found = use(makeup.scan(make(tmp_path / "data")))
    assert len(found["images"]) == 8 and sum(found["test"]) == 2 and found["made"].count(1) == 4
    for path, made, annotation in zip(*(found[k] for k in ("images", "made", "annotations")), strict=True):
        assert path.stem == annotation.stem and made == (path.parent.name in ("makeup", "after"))
        anchors = makeup.anchors_of(annotation, images.picture_size(path))
        assert anchors.min() > -11 and anchors.max() < 121                # a chin may lie beyond


def test_a_map_scales_with_the_picture(tmp_path):
    Image.fromarray(mt_map(close_faces(1)[0][0])).save(tmp_path / "m.png")
    one, two = (makeup.anchors_of(tmp_path / "m.png", (s, s)) for s in (96, 192))
    assert torch.allclose((one + .5) * 2, two + .5)


def beyond_the_picture(root):
    write_pts(root / "images/makeup/p0.pts", 900 + close_faces(1)[1][0])


@pytest.mark.parametrize("spoil, message", [
    (lambda root: [p.unlink() for p in (root / "images/makeup").iterdir()],
     "4 pictures without make-up, 0 with; .* folder called non-makeup.* and one folder called makeup"),
    (lambda root: (root / "segs/makeup/p0.png").unlink(), "neither p0.pts beside it nor a map"),
    (lambda root: Image.new("L", (96, 96)).save(root / "segs/makeup/p0.png"), "no two eyes"),
    (lambda root: Image.new("RGB", (96, 96)).save(root / "segs/makeup/p0.png"), "3 channels"),
    (lambda root: (root / "segs/makeup/p0.png").write_bytes(b"?"), "p0.png: not a readable picture"),
    (beyond_the_picture, "do not lie on the picture"),
    (lambda root: (root / "makeup.txt").write_text("/nowhere/x.png\n" + (root / "makeup.txt").read_text()),
     "names /nowhere/x.png, which is not there"),
])
def test_spoilt_makeup_gives_one_error_or_is_left_out(tmp_path, spoil, message):
    root = mt(tmp_path / "data")
    spoil(root)
    with pytest.raises(UserError, match=message):
        for path in use(makeup.scan(root))["annotations"]:
            makeup.anchors_of(path, (110, 110))


def test_pickled_landmarks_and_links_do_not_matter(tmp_path):
    root = mt(tmp_path / "data")
    (root / "landmarks/makeup").mkdir(parents=True)
    (root / "landmarks/makeup/p0.png").write_bytes(b"a pickle")
    (root / "makeup.txt").unlink(), (root / "non-makeup.txt").unlink()
    linked = tmp_path / "linked"
    linked.mkdir()
    for name in ("images", "segs", "landmarks"):
        (linked / name).symlink_to(root / name)
    for folder in (root, linked):
        assert len(makeup.scan(folder)["images"]) == 8


# ------------------------------------------------------------------- pix2pix and CycleGAN: pairs

def test_validation_or_every_tenth_is_held_out(tmp_path):
    found = pairs.scan(side_by_side(tmp_path / "v", parts=("train", "val")), "pix2pix")
    assert len(found["train"][0]) == 12 == len(found["test"][0]) and found["pairs"]
    assert len(found["images"]) == 24
    found = pairs.scan(side_by_side(tmp_path / "t", parts=("train",)), "pix2pix")
    assert len(found["train"][0]) == 11 and len(found["test"][0]) == 1
    assert not set(found["train"][0]) & set(found["test"][0])


def test_unpaired_folders_as_distributed(tmp_path):
    found = pairs.scan(a_and_b(tmp_path / "d"), "cyclegan")
    assert list(map(len, found["train"])) == list(map(len, found["test"])) == [6, 4] and not found["pairs"]
    assert len(found["images"]) == 20 and found["train"][1][0] == tmp_path / "d/trainB/0.png"


def test_a_folder_with_both_gives_each_model_what_it_needs(tmp_path):
    root = side_by_side(a_and_b(tmp_path / "d"), parts=("train",))
    assert pairs.scan(root, "pix2pix")["pairs"] and not pairs.scan(root, "cyclegan")["pairs"]
    assert pairs.scan(side_by_side(tmp_path / "p"), "cyclegan")["pairs"]


@pytest.mark.parametrize("make, model, message", [
    (lambda root: side_by_side(root, parts=("all",)), "pix2pix",
     "found all/; expected train/ .* with side-by-side pairs"),
    (a_and_b, "pix2pix", "hold no pairs.*--model cyclegan"),
    (lambda root: side_by_side(root, 9, parts=("train",)), "pix2pix", "9 pairs to train on, 0 held out; exp"),
    (lambda root: a_and_b(root, parts=("train",)), "cyclegan", "6 A and 4 B to train on, 0 and 0 held out"),
    (lambda root: root.mkdir(), "cyclegan", "found nothing; expected"),
])
def test_spoilt_pairs_give_one_error(tmp_path, make, model, message):
    make(tmp_path / "d")
    with pytest.raises(UserError, match=message):
        pairs.scan(tmp_path / "d", model)


@pytest.mark.parametrize("width", [40, 41])
def test_half_of_a_pair(tmp_path, width):
    side_by_side(tmp_path, 1, (width, 25), ("train",))
    with Image.open(tmp_path / "train/图 0.png") as image:
        left, right = (np.asarray(pairs.half_of(image, which)) for which in "AB")
    assert left.shape == right.shape == (25, 20, 3)
    assert (left == [100, 0, 0]).all() and (right == [0, 0, 100]).all()


# ---------------------------------------------------------- annotation files that people's disks hold

def last_number(text, new):
    """The last number of a text replaced."""
    body = text.rstrip("}\n ")
    return body.rsplit(maxsplit=1)[0] + " " + new + text[len(body):]


SAME = {                                                               # other bytes, the same meaning
    "byte order mark": lambda b: b"\xef\xbb\xbf" + b,
    "windows lines": lambda b: b.replace(b"\n", b"\r\n"),
    "blank at the end": lambda b: b + b"\n \n",
}
OTHER = {
    "empty": lambda b: b"",
    "blank": lambda b: b" \n\n",
    "utf-16": lambda b: b.decode().encode("utf-16"),
    "latin-1": lambda b: b[:len(b) // 2] + b"\xe9\xff" + b[len(b) // 2:],
    "binary": lambda b: np.random.default_rng(0).bytes(2000),
    "zeros": lambda b: bytes(len(b)),
    "cut": lambda b: b[:len(b) // 2 + 1],
    "twice": lambda b: b + b,
    "first line lost": lambda b: b.split(b"\n", 1)[1] if b"\n" in b else b"",
    "nan": lambda b: last_number(b.decode(), "nan").encode(),
    "inf": lambda b: last_number(b.decode(), "-inf").encode(),
    "huge": lambda b: last_number(b.decode(), "1e30").encode(),
    "far": lambda b: last_number(b.decode(), "987654321").encode(),
    "word": lambda b: last_number(b.decode(), "left").encode(),
    "html": lambda b: b"<!DOCTYPE html><title>404</title>\n" * 4,
}


def read_people(root):
    found, image = use(people.scan(root, 0)), Image.new("RGB", (50, 60))
    paths, poses = found["images"], found["poses"]
    return found | {"squares": [people.face_square(path, image)[0].tolist() for path in paths],
                    "pairs": [people.official_pairs(paths, poses, root, kind) for kind in ("FF", "FP")]}


def read_landmarks(root):
    found = use(landmarks.scan(root))
    return found | {"points": [landmarks.read_pts(p).tolist() for p in found["annotations"]]}


def read_makeup(root):
    found = use(makeup.scan(root))
    return found | {"anchors": [makeup.anchors_of(p, (110, 110)).tolist() for p in found["annotations"]]}


FILES = {                                              # annotation file: what makes its data set and reads it
    "lfpw/trainset/image_0003.pts": (photo_folder, read_landmarks),
    "list_attr_celeba.txt": (lambda root: celeba(root)[0], lambda root: use(scan_celeba(root))),
    "list_attr_celeba.csv": (lambda root: celeba(root, csv=True)[0], lambda root: use(scan_celeba(root))),
    "Data/Fiducials/003/frontal/02.txt": (cfp, read_people),
    "Protocol/Pair_list_F.txt": (lambda root: cfp(root, protocol=True), read_people),
    "Protocol/Split/FF/01/same.txt": (lambda root: cfp(root, protocol=True), read_people),
    "poses.txt": (posed, read_people),
    "makeup.txt": (mt, read_makeup),
    "after/3.pts": (two_folders, read_makeup),
}


@pytest.fixture(scope="module", params=FILES)
def annotated(request, tmp_path_factory):
    """(root, annotation file, what reads it all) of a data set, made once."""
    make, read = FILES[request.param]
    root = make(tmp_path_factory.mktemp("formats") / "data")
    return root, root / request.param, read


def test_an_annotation_file_means_the_same_or_is_refused_in_one_line(annotated):
    root, path, read = annotated
    before, content = read(root), path.read_bytes()
    for name, change in (SAME | OTHER).items():
        path.write_bytes(change(content))
        try:
            found = read(root)
        except UserError as error:
            assert name not in SAME and "data" in str(error) and "\n" not in str(error), (name, error)
        else:
            assert name not in SAME or str(found) == str(before), name
    path.write_bytes(content)


@pytest.mark.parametrize("kind", ["folder", "no such file", "pipe"])
def test_an_annotation_that_is_no_file_is_refused_or_not_missed(annotated, kind):
    root, path, read = annotated
    content = path.read_bytes()
    path.unlink()
    {"folder": path.mkdir, "pipe": lambda: os.mkfifo(path)}.get(kind, lambda: None)()
    try:
        read(root)
    except UserError as error:
        assert "data" in str(error) and "\n" not in str(error)
    finally:
        path.rmdir() if kind == "folder" else path.unlink(missing_ok=True)
        path.write_bytes(content)


# ------------------------------------------------------------------------- what is not what it seems

def test_a_data_set_among_the_classes_is_none_of_them(tmp_path):
    celeba(tmp_path / "all/celeba")
    classes(tmp_path / "all/faces")
    with pytest.raises(UserError, match="celeba: is a data set of its own, not a class; point --data at it"):
        attributes.scan(tmp_path / "all", PAPERS_FIVE, (), 10)


def test_a_class_that_only_test_has_pictures_of_is_refused(tmp_path):
    root = classes(tmp_path / "r")
    for path in (root / "train/happy").iterdir():
        path.unlink()
    with pytest.raises(UserError, match="test/ has happy"):
        attributes.scan(root, (), (), 10)
