"""What people's folders hold besides the data, and how else they spell, number and store it."""

import dataclasses
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import pix2pix_cyclegan
from lab import UserError, files, formats, images, toysets
from lab.files import load_checkpoint
from lab.formats import attributes, fingerprint, landmarks, makeup, named_pictures, pairs, people, sketches

ROOT = Path(__file__).parent.parent
NAMES = ("Black_Hair", "Blond_Hair", "Brown_Hair", "Male", "Young")


def picture(path, width=8, height=8):
    path.parent.mkdir(parents=True, exist_ok=True)
    tone = sum(map(ord, str(path))) % 255
    Image.new("RGB", (width, height), (tone, 99, 9)).save(path)
    return path


def pts(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = "".join(f"{x + 1:.1f} {y + 1:.1f}\n" for x, y in toysets.sweep(64, 2)[0].tolist())
    path.write_text(f"version: 1\nn_points: 68\n{{\n{rows}}}\n")


def classes(root):
    return attributes.scan(root, NAMES, (), 2000)


def table(rows, sep=" ", shown=str):
    """Lines of an attribute list: the k-th picture has the k-th attribute."""
    return "".join(
        sep.join([f"{k + 1:06d}.jpg"] + [shown(1 if k % 5 == j else -1) for j in range(5)]) + "\n"
        for k in range(rows)
    )


# ------------------------------------------------------------------------- hidden, nested, unread


def test_what_programs_leave_beside_data_is_no_data(tmp_path):
    for k in range(20):
        picture(tmp_path / ("angry", "happy")[k % 2] / f"{k}.png")
    picture(tmp_path / ".ipynb_checkpoints/0-checkpoint.png")
    picture(tmp_path / "angry/.ipynb_checkpoints/0-checkpoint.png")
    picture(tmp_path / "__MACOSX/angry/0.png")
    (tmp_path / "angry/._0.png").write_bytes(b"AppleDouble")
    found = classes(tmp_path)
    assert found["names"] == ("angry", "happy") and len(found["images"]) == 20


def test_a_hidden_folder_given_as_data_is_read(tmp_path):
    for k in range(20):
        picture(tmp_path / ".cache/set" / ("a", "b")[k % 2] / f"{k}.png")
    assert len(classes(tmp_path / ".cache/set")["images"]) == 20


def test_pictures_deeper_in_a_class_belong_to_it(tmp_path):
    for k in range(12):
        picture(tmp_path / f"angry/{k}.png")
        picture(tmp_path / f"sad/s1/{k}.png")
    assert dict(labels_of(classes(tmp_path))) == {"angry": 12, "sad": 12}


def labels_of(found):
    columns = zip(*found["labels"], strict=True)
    return [(name, int(sum(column))) for name, column in zip(found["names"], columns, strict=True)]


@pytest.mark.parametrize("layout", ["trainA/s1", "train/A"])
def test_two_sets_one_level_deeper(tmp_path, layout):
    for side in "AB":
        for k in range(12):
            picture(tmp_path / layout.replace("A", side) / f"{k}.png")
    found = pairs.scan(tmp_path, "cyclegan")
    assert not found["pairs"] and len(found["images"]) == 24
    assert all("B" in str(p.relative_to(tmp_path)) for p in found["train"][1] + found["test"][1])


def test_make_up_one_level_deeper(tmp_path):
    for kind in ("makeup", "non-makeup"):
        for k in range(6):
            picture(tmp_path / kind / f"s{k % 2}" / f"{k}.png")
            pts(tmp_path / kind / f"s{k % 2}" / f"{k}.pts")
    assert makeup.scan(tmp_path)["made"].count(1) == 6


def test_grey_maps_and_jfif_are_pictures_and_check_counts_what_is_not_read(tmp_path, call):
    for k in range(12):
        Image.new("L", (8, 8), k).save(picture(tmp_path / "d/a/x.png").with_name(f"{k}.pgm"))
        Image.new("RGB", (8, 8)).save(picture(tmp_path / "d/b/x.png").with_name(f"{k}.jfif"), "JPEG")
        Image.new("P", (8, 8)).save(tmp_path / f"d/a/{k}.gif")
    code, out, err = call("--check", "--data", str(tmp_path / "d"), paper="stargan")
    assert code == 0 and "not read: 12 .gif" in out and "pictures: 26" in out, err


# ------------------------------------------------------------------------------ parts and classes


def test_people_in_test_are_held_out(tmp_path):
    for person in range(12):
        part = "train" if person < 8 else "Test"
        for pose in ("frontal", "profile"):
            for k in (1, 2):
                picture(tmp_path / part / f"{person + 1:03d}" / pose / f"{k:02d}.jpg")
    found = people.scan(tmp_path, 0)
    held_out = found["people"][-found["n_test"] :]
    assert found["n_test"] == 4 and all("Test" in name for name in held_out)
    assert not any("Test" in name for name in found["people"][:8])


def test_a_person_in_both_parts_is_an_error(tmp_path):
    for part in ("train", "test"):
        for pose in ("frontal", "profile"):
            picture(tmp_path / part / "007" / pose / "01.jpg")
    with pytest.raises(UserError, match="007 is in test/ and elsewhere"):
        people.scan(tmp_path, 0)


def test_made_up_faces_in_test_are_held_out(tmp_path):
    for k in range(24):
        part, kind = "train" if k < 18 else "val", ("non-makeup", "makeup")[k % 2]
        picture(tmp_path / part / kind / f"{k}.png")
        pts(tmp_path / part / kind / f"{k}.pts")
    found = makeup.scan(tmp_path)
    assert [("val" in p.parts) for p in found["images"]] == found["test"] and sum(found["test"]) == 6


@pytest.mark.parametrize("name", ["Test", "testing", "val"])
def test_photographs_in_parts_of_other_names_are_held_out(tmp_path, name):
    for k in range(12):
        home = tmp_path / ("train" if k < 9 else name)
        picture(home / f"{k}.png")
        pts(home / f"{k}.pts")
    found = landmarks.scan(tmp_path)
    assert sum(found["test"]) == 3


def test_classes_that_only_test_has_are_an_error(tmp_path):
    for k in range(20):
        part, names = ("train", ("Angry", "Happy")) if k < 14 else ("test", ("angry", "happy"))
        picture(tmp_path / part / names[k % 2] / f"{k}.png")
    with pytest.raises(UserError, match="test/ has angry, happy, train/ has Angry, Happy.*case"):
        classes(tmp_path)


def test_cyclegans_folders_are_no_classes(tmp_path):
    for name in ("trainA", "trainB", "testA", "testB"):
        picture(tmp_path / name / "1.png")
    with pytest.raises(UserError, match="two sets of pictures.*--model cyclegan"):
        classes(tmp_path)


# ------------------------------------------------------------------------------------------ lists


def test_the_list_itself_goes_before_its_copies(tmp_path):
    for k in range(20):
        picture(tmp_path / f"images/{k + 1:06d}.jpg")
    head = " ".join(NAMES) + "\n"
    (tmp_path / "list_attr_celeba - Copy.txt").write_text("20\n" + head + table(20))
    (tmp_path / "list_attr_celeba.txt").write_text("12\n" + head + table(12))
    assert len(classes(tmp_path)["images"]) == 12
    (tmp_path / "list_attr_celeba.txt").rename(tmp_path / "list_attr_celeba-old.txt")
    with pytest.raises(UserError, match="Copy.txt, list_attr_celeba-old.txt; which one"):
        classes(tmp_path)


@pytest.mark.parametrize(
    "folder, ending",
    [("img_align_celeba/img_align_celeba", "jpg"), ("img_align_celeba_png", "png"), ("images", "JPG")],
)
def test_celeba_as_others_pack_it(tmp_path, folder, ending):
    for k in range(20):
        picture(tmp_path / folder / f"{k + 1:06d}.{ending}")
    (tmp_path / "list_attr_celeba.csv").write_text("image_id," + ",".join(NAMES) + "\n" + table(20, ","))
    assert len(classes(tmp_path)["images"]) == 20


def quoted(value):
    return f'"{value}"'


@pytest.mark.parametrize(
    "header, sep, shown",
    [
        (",".join(map(quoted, ("image_id", *NAMES))), ",", quoted),
        (",".join(("image_id", *NAMES)), ",", "{}.0".format),
        (",".join(("Image", *NAMES)), ",", lambda value: str(value > 0)),
        (";".join(("file", *NAMES)), ";", str),
        (",".join(("name", *(name.replace("_", " ") for name in NAMES))), ",", str),
    ],
)
def test_tables_as_spreadsheets_write_them(tmp_path, header, sep, shown):
    for k in range(20):
        picture(tmp_path / f"images/{k + 1:06d}.jpg")
    (tmp_path / "list_attr_celeba.csv").write_text(header + "\n" + table(20, sep, shown))
    found = classes(tmp_path)
    assert found["bad"] == [] and labels_of(found) == [(name, 4) for name in NAMES]


def test_a_table_with_a_nameless_index(tmp_path):
    for k in range(20):
        picture(tmp_path / f"images/{k + 1:06d}.jpg")
    rows = "".join(f"{k},{line}\n" for k, line in enumerate(table(20, ",").splitlines()))
    (tmp_path / "list_attr_celeba.csv").write_text(",image_id," + ",".join(NAMES) + "\n" + rows)
    assert labels_of(classes(tmp_path)) == [(name, 4) for name in NAMES]


def test_a_value_that_is_not_understood_is_quoted(tmp_path):
    for k in range(20):
        picture(tmp_path / f"images/{k + 1:06d}.jpg")
    text = table(20, ",").replace("-1", "maybe", 1)
    (tmp_path / "list_attr_celeba.csv").write_text("image_id," + ",".join(NAMES) + "\n" + text)
    assert "has 'maybe'; expected -1" in classes(tmp_path)["bad"][0]


def test_lists_written_on_windows(tmp_path):
    lines = []
    for person in range(12):
        for k in (0, 1):
            picture(tmp_path / f"p/{person:07d}/{k}.jpg")
            lines.append(f"{person:07d}\\{k}.jpg {-30 + 60 * k}")
    (tmp_path / "p/poses.txt").write_text("\r\n".join(lines))
    assert len(people.scan(tmp_path / "p", 0)["images"]) == 24
    for kind in ("makeup", "non-makeup"):
        for k in range(4):
            picture(tmp_path / f"m/images/{kind}/{k}.png")
            pts(tmp_path / f"m/images/{kind}/{k}.pts")
        (tmp_path / f"m/{kind}.txt").write_text("".join(f"{kind}\\{k}.png\r\n" for k in range(4)))
    found = makeup.scan(tmp_path / "m")
    assert len(found["images"]) == 8 and not found["bad"]


# ----------------------------------------------------------------------- units, numbers, endings


def test_radians_are_noticed(tmp_path):
    lines = []
    for person in range(12):
        for k in (0, 1):
            picture(tmp_path / f"{person:07d}/{k}.jpg")
            lines.append(f"{person:07d}/{k}.jpg {-0.52 + 1.04 * k:.2f}")
    (tmp_path / "poses.txt").write_text("\n".join(lines))
    with pytest.raises(UserError, match="all 24 pictures show the pose 0.*radians"):
        people.scan(tmp_path, 0)


def test_two_poses_of_one_picture_are_an_error(tmp_path):
    for person in range(12):
        for k in (0, 1):
            picture(tmp_path / f"{person}/{k}.jpg")
    lines = [f"{person}/{k}.jpg {60 * k}" for person in range(12) for k in (0, 1)]
    (tmp_path / "poses.txt").write_text("\n".join([*lines, "3/1.jpg -45"]))
    assert "3/1.jpg has two lines with different poses" in people.scan(tmp_path, 0)["bad"][0]


def test_frames_that_count_from_0_are_not_paired_with_their_neighbours(tmp_path):
    for k in range(1, 9):
        picture(tmp_path / f"001/{k - 1:06d}.png")
        pts(tmp_path / f"001/annot/{k:06d}.pts")
    with pytest.raises(UserError, match="count from 0.*-start_number 1"):
        landmarks.scan(tmp_path)
    pts(tmp_path / "001/annot/000000.pts")  # both count from 0
    assert len(landmarks.scan(tmp_path)["images"]) == 8


def test_endings_in_capitals(tmp_path):
    for k in range(6):
        picture(tmp_path / f"a/{k}.PNG")
        pts(tmp_path / f"a/{k}.PTS")
    assert len(landmarks.scan(tmp_path / "a")["images"]) == 6
    for kind in ("makeup", "non-makeup"):
        for k in range(6):
            picture(tmp_path / f"m/{kind}/{k}.jpg")
            pts(tmp_path / f"m/{kind}/{k}.PTS")
            picture(tmp_path / f"n/images/{kind}/{k}.jpg")
            picture(tmp_path / f"n/segs/{kind}/{k}.PNG")
    for root in ("m", "n"):
        found = makeup.scan(tmp_path / root)
        assert len(found["images"]) == 12 and not found["bad"]


# ---------------------------------------------------------------------------------- pairs, people


def test_pictures_that_are_no_pairs_are_noticed(tmp_path, capsys):
    for k in range(12):
        picture(tmp_path / f"square/train/{k}.png", 64, 64)
        picture(tmp_path / f"pairs/train/{k}.png", 128, 64)
    assert "64 x 64 each" in pairs.scan(tmp_path / "pairs", "pix2pix")["notes"]["kind"]
    assert "are they pairs" not in capsys.readouterr().out
    picture(tmp_path / "pairs/train/7.png", 64, 64)
    (tmp_path / "pairs/train/0.png").write_bytes(b"no picture")        # for whoever decodes it to name
    assert "64 x 64 each" in pairs.scan(tmp_path / "pairs", "pix2pix")["notes"]["kind"]
    assert "note: 1 of 12 pictures are no wider than high" in capsys.readouterr().out
    assert "32 x 64 each" in pairs.scan(tmp_path / "square", "pix2pix")["notes"]["kind"]
    assert "note: 12 of 12 pictures are no wider than high" in capsys.readouterr().out


def test_the_training_part_of_cuhk_alone(tmp_path):
    for k in range(24):
        name = f"{'fm'[k % 2]}-{k:03d}-01"
        picture(tmp_path / f"photos/{name}.jpg")
        picture(tmp_path / f"Sketchs/{name[0].upper()}2{name[1:]}-sz1.jpg")
    found = sketches.scan(tmp_path)
    assert len(found["pairs"]) == 24 and sum(found["test"]) == 6


def test_small_sets_are_told_the_rule(tmp_path):
    for k in range(24):
        picture(tmp_path / f"c/{k % 3}/{k}.png")
    with pytest.raises(UserError, match="every tenth picture of a class is held out, or what lies in test/"):
        classes(tmp_path / "c")
    for k in range(3):
        picture(tmp_path / f"s/photos/{k}.jpg")
        picture(tmp_path / f"s/sketches/{k}.jpg")
    with pytest.raises(UserError, match="at least four pairs"):
        sketches.scan(tmp_path / "s")


# ------------------------------------------------------------------------------- machine and files


def test_results_do_not_overwrite_each_other(tmp_path):
    for name in ("x", "x_sheet", "x_sheet_sheet"):
        picture(tmp_path / f"{name}.png")
    names = list(named_pictures([tmp_path]))
    written = [*names, *(f"{name}_sheet" for name in names)]
    assert len(set(written)) == 6


@pytest.mark.parametrize("backend", ["module://a_notebook_that_is_not_here", "Qt4Agg", "agg"])
def test_a_plot_needs_no_backend(tmp_path, backend):
    code = "import os; from lab import images; images.figure(1, 1).savefig('x.png'); "
    code += "print(os.environ['MPLBACKEND'])"
    env = os.environ | {"MPLBACKEND": backend, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0 and done.stdout.strip() == backend, done.stderr


def test_a_mapped_cache_file_is_not_renamed(tmp_path, monkeypatch):
    """As Windows has it."""
    replace = Path.replace

    def guarded(path, target):
        maps = Path("/proc/self/maps")
        assert not maps.exists() or str(path) not in maps.read_text()
        return replace(path, target)

    monkeypatch.setattr(Path, "replace", guarded)
    cfg = pix2pix_cyclegan.Config(cache=str(tmp_path), device="cpu")
    assert images.cached(cfg, "key", (2, 3), lambda array: array.fill(7)).eq(7).all()


def test_a_moved_data_set_is_the_same(tmp_path):
    for k in range(3):
        picture(tmp_path / f"a/train/{k}.png")
    before = fingerprint([str(tmp_path / "a")])
    (tmp_path / "a").rename(tmp_path / "b")
    assert fingerprint([tmp_path / "b"]) == before and fingerprint([]) == ""
    picture(tmp_path / "b/train/9.png")
    assert fingerprint([tmp_path / "b"]) != before


def test_a_training_goes_on_where_the_data_have_moved(call, tmp_path):
    import test_pix2pix_cyclegan
    from conftest import tiny_flags

    for k in range(12):
        picture(tmp_path / f"d/train/{k}.png", 64, 32)
    flags = ["--train", "--run", "r", *tiny_flags(test_pix2pix_cyclegan.TINY), *call.cache]
    code, _, err = call(*flags, "--data", "d", paper="pix2pix_cyclegan")
    assert code == 0, err
    more = [*flags, "--steps", "6"]
    code, out, err = call(*more, "--data", "./d/", paper="pix2pix_cyclegan")
    assert code == 0 and "continuing" in out and "note:" not in out, err
    (tmp_path / "d").rename(tmp_path / "moved")
    more[-1] = "8"
    code, out, err = call(*more, "--data", str(tmp_path / "moved"), paper="pix2pix_cyclegan")
    assert code == 0 and "with the same pictures" in out and "continuing" in out, err
    picture(tmp_path / "other/train/1.png", 64, 32)
    for k in range(12):
        picture(tmp_path / f"other/train/x{k}.png", 64, 32)
    code, _, err = call(*more, "--data", "other", paper="pix2pix_cyclegan")
    assert code == 2 and "another data" in err


def test_what_a_checkpoint_was_refused_for_is_told(tmp_path):
    torch.save({"state_dict": {}, "best": np.float64(0.3)}, tmp_path / "G.ckpt")
    with pytest.raises(UserError, match="numpy.*scalar.*weights_only=False.*torch.save"):
        load_checkpoint(tmp_path / "G.ckpt")
    (tmp_path / "page.ckpt").write_text("<!DOCTYPE html><html>Virus scan warning</html>")
    with pytest.raises(UserError, match="a web page"):
        load_checkpoint(tmp_path / "page.ckpt")


def test_bench_without_the_module_resource(monkeypatch):
    from lab import bench

    assert re.fullmatch(r"\d+\.\d\d GiB resident", bench.resident())
    monkeypatch.setitem(sys.modules, "resource", None)
    assert bench.resident() == "not known here"
    assert dataclasses.is_dataclass(pix2pix_cyclegan.Config)


def test_a_list_in_utf_16_is_read(tmp_path):
    for encoding in ("utf-16", "utf-16-be"):
        file = tmp_path / f"{encoding}.txt"
        file.write_bytes(("\ufeff" * (encoding == "utf-16-be") + "größe 1\n").encode(encoding))
        assert formats.text_of(file) == "größe 1\n"


def test_a_link_to_a_folder_above_is_not_followed(tmp_path):
    for name in ("a", "b"):
        picture(tmp_path / "set" / name / "1.png")
    os.symlink("..", tmp_path / "set/a/loop")
    assert formats.files_below(tmp_path / "set/a") == [tmp_path / "set/a/1.png"]
    os.symlink(tmp_path / "set/b", tmp_path / "set/a/more")            # another folder is
    assert len(formats.files_below(tmp_path / "set/a")) == 2


def test_a_run_within_the_data_is_no_data(tmp_path):
    for name in ("a", "b", "run/samples"):
        picture(tmp_path / name / "1.png")
    (tmp_path / "run/metrics.jsonl").write_text("")
    assert list(formats.folders_in(tmp_path)) == ["a", "b"] and len(formats.files_below(tmp_path)) == 2


def test_poses_with_a_degree_sign_are_read_and_with_a_further_column_refused():
    assert people.picture_and_yaw("a/1.jpg -30\N{DEGREE SIGN}") == ("a/1.jpg", -30)
    assert people.picture_and_yaw("a/my 1.jpg 30") == ("a/my 1.jpg", 30)
    with pytest.raises(ValueError):
        people.picture_and_yaw("a/1.jpg,-30,5")


def test_landmarks_with_x_and_y_in_each_others_place_are_refused():
    points = toysets.sweep(64, 3)[0]
    blank = Image.new("RGB", (64, 64))
    landmarks.check_points(points, blank, "a.jpg")
    with pytest.raises(UserError, match="a.jpg: the mouth lies beside the eyes; are its landmarks y x"):
        landmarks.check_points(points.flip(1), blank, "a.jpg")


def test_a_safetensors_file_says_how_to_convert_it(tmp_path):
    (tmp_path / "x.safetensors").write_bytes(b"\x08" + b"\0" * 7 + b"{}      ")
    with pytest.raises(UserError, match="safetensors.torch.load_file"):
        files.load_checkpoint(tmp_path / "x.safetensors")
