import dataclasses
import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

import gannotation
import makers
import test_drgan
import test_hostile
import test_iacyclegan
import test_pairedcyclegan
import test_pix2pix_cyclegan
import test_stargan
from conftest import PAPERS, in_turn, tiny_flags
from lab import cli
from lab.files import load_checkpoint, read_jsonl
from makers import photo_folder
from test_gannotation import TINY

ROOT = Path(gannotation.__file__).parent


def test_no_mode_prints_help_and_exits_with_2(call):
    code, out, err = call()
    assert code == 2 and "--train" in out and "--lambda-triple" in out
    assert err == "error: no mode was given; begin with --demo, or --train\n"


BAD_INPUT = (
    ("gannotation", "--train --batch-size -3", "--batch-size"),
    ("gannotation", "--train --batch-size 0", "at least 1"),
    ("gannotation", "--train --points 67", "66 or 68"),
    ("gannotation", "--train --d-steps 0", "--d-steps 0"),
    ("gannotation", "--train --betas .5", "expected two"),
    ("gannotation", "--train --lr nan", "--lr"),
    ("gannotation", "--train --decay-from 1.5", "--decay-from 1.5: expected at most 1"),
    ("gannotation", "--ablate --weights .", "leave --weights out"),
    ("gannotation", "--train --steps many", "--steps"),
    ("gannotation", "--train --nonsense", "--nonsense"),
    ("gannotation", "--train --data nowhere", "nowhere: no such folder"),
    ("gannotation", "--train --image-size 50", "multiple of 16"),
    ("gannotation", "--train --adversarial magic", "magic"),
    ("gannotation", "--evaluate", "last.pt"),
    ("gannotation", "--infer nothing.png", "nothing.png: no such file"),
    ("gannotation", "--infer . .", "expected one face"),
    ("gannotation", "--evaluate --weights nothing.pt", "nothing.pt"),
    ("gannotation", "--train --light-cnn nothing.pt", "nothing.pt"),
    ("stargan", "--train --n-critic 0", "--n-critic 0: expected at least 1"),
    ("stargan", "--train --scale small --steps 600", "--copy-steps 600: expected fewer than --steps"),
    ("stargan", "--train --image-size 50", "--image-size 50: expected a multiple of 16"),
    ("stargan", "--train --people 2 --attributes Black_Hair Fat", "--attributes Fat: toy faces have"),
    ("stargan", "--train --people 2 --classes happy bored --toy expressions", "--classes bored"),
    ("stargan", "--ablate --part everything", "everything"),
    ("stargan", "--ablate --data .", "only toy faces have"),
    ("drgan", "--train --images-per-subject 40", "--batch-size 64: expected at least 80"),
    ("drgan", "--train --head arcface", "arcface"),
    ("drgan", "--train --data .", "found 0 pictures, but neither"),
    ("drgan", "--ablate --data .", "only toy faces have"),
    ("drgan", "--evaluate", "no such checkpoint"),
    ("iacyclegan", "--train --image-size 50", "--image-size 50: expected a multiple of 4"),
    ("iacyclegan", "--train --data .", "expected photos/ and sketches/"),
    ("iacyclegan", "--ablate --data .", "only toy faces have"),
    ("iacyclegan", "--evaluate", "no such training"),
    ("pairedcyclegan", "--train --image-size 30", "--image-size 30: expected an even number"),
    ("pairedcyclegan", "--train --pairs true --data .", "only toy faces have a truth"),
    ("pairedcyclegan", "--train --data .", "expected images/non-makeup and images/makeup"),
    ("pairedcyclegan", "--ablate --data .", "only toy faces have"),
    ("pairedcyclegan", "--infer bare.png", "give --reference FILE"),
    ("pairedcyclegan", "--infer bare.png --remove --run r", "no such checkpoint"),
    ("pairedcyclegan", "--evaluate", "no such checkpoint"),
    ("pix2pix_cyclegan", "--train --patch 71", "invalid choice: 71"),
    ("pix2pix_cyclegan", "--train --model cyclegan --pool-size 1 --batch-size 4", "--pool-size 1"),
    ("pix2pix_cyclegan", "--train --steps 0", "--steps 0"),
    ("pix2pix_cyclegan", "--train --epochs 0", "--epochs 0"),
    ("pix2pix_cyclegan", "--train --data .", "side-by-side pairs A|B"),
    ("pix2pix_cyclegan", "--evaluate", "no such checkpoint"),
    ("pix2pix_cyclegan", "--ablate --data .", "leave --data out"),
    ("pix2pix_cyclegan", "--check --data a --data b", "--data a --data b: this paper reads one data set"),
)


@pytest.mark.parametrize("paper, argv, message", BAD_INPUT)
def test_bad_input_is_one_line_and_exit_code_2(call, tmp_path, paper, argv, message):
    if "bare.png" in argv:
        Image.new("RGB", (40, 40)).save("bare.png")
    code, _, err = call(*argv.split(), "--device", "cpu", *call.cache, paper=paper)
    assert code == 2 and err.startswith("error: ") and err.count("\n") == 1 and message in err
    assert not list(tmp_path.glob("runs/**/last.pt"))
    assert paper != "pix2pix_cyclegan" or not (tmp_path / "runs").exists()


def test_wrong_data_folders_say_what_was_found_and_leave_a_run_untouched(call, tmp_path):
    code, _, err = call("--train", "--run", "r", *tiny_flags(TINY), *call.cache)
    assert code == 0, err
    before = {p: p.read_bytes() for p in (tmp_path / "r").rglob("*") if p.is_file()}
    (tmp_path / "empty").mkdir()
    code, _, err = call("--train", "--run", "r", "--data", "empty", *tiny_flags(TINY), *call.cache)
    assert code == 2 and "found 0 pictures" in err and err.count("\n") == 1
    root = photo_folder(tmp_path / "photos")
    for pts in root.rglob("*.pts"):
        pts.unlink()
    code, _, err = call("--train", "--run", "r", "--data", str(root), *tiny_flags(TINY), *call.cache)
    assert code == 2 and "found 12 pictures and 0 .pts" in err
    photo_folder(tmp_path / "photos")
    code, _, err = call("--train", "--run", "r", "--data", str(root), *tiny_flags(TINY), *call.cache)
    assert code == 2 and "data (was ''" in err and "--fresh" in err
    assert before == {p: p.read_bytes() for p in (tmp_path / "r").rglob("*") if p.is_file()}


def test_modes_combine_and_files_appear(call, tmp_path):
    from test_gannotation import face_file

    code, out, err = call(
        "--train", "--evaluate", "--infer", face_file(tmp_path), *tiny_flags(TINY), *call.cache
    )
    assert code == 0, err
    run = tmp_path / "runs" / "gannotation"
    for name in (
        "config.json",
        "last.pt",
        "metrics.jsonl",
        "losses.png",
        "evaluation.json",
        "inferred/face.gif",
        "samples/0000004.png",
    ):
        assert (run / name).exists(), name
    assert "pass 5" in out and "self-recovery ratio" in out
    result = json.loads((run / "evaluation.json").read_text())
    assert (
        result["command"].startswith("python gannotation.py --train")
        and result["hardware"]
        and result["rows"]["pass 5"]["SSIM"] <= 1
    )
    lines = read_jsonl(run / "metrics.jsonl")
    assert [line["step"] for line in lines] == [1, 2, 3, 4] and all(
        line["health"] in ("ok", "copying", "target-ignored", "D-won") for line in lines
    )


def test_stargan_trains_evaluates_infers_and_benches(call, tmp_path, monkeypatch):
    test_stargan.quick(monkeypatch)
    flags = tiny_flags(test_stargan.TINY)
    code, out, err = call(
        "--train",
        "--evaluate",
        "--infer",
        test_stargan.photo(tmp_path),
        "--target",
        "Blond_Hair",
        "--target",
        "not-Young",
        "--toy",
        "both",
        *flags,
        *call.cache,
        paper="stargan",
    )
    assert code == 0, err
    run = tmp_path / "runs" / "stargan"
    for name in (
        "config.json",
        "last.pt",
        "metrics.jsonl",
        "losses.png",
        "evaluation.json",
        "inferred/me.png",
        "samples/0000004.png",
    ):
        assert (run / name).exists(), name
    assert "across: happy" in out and "the true pictures" in out
    code, out, err = call("--bench", *flags, *call.cache, paper="stargan")
    assert code == 0 and "ms per step" in out and "G " in out, err


def test_stargan_takes_two_data_folders(call, tmp_path):
    first, second = makers.celeba(tmp_path / "c")[0], makers.classes(tmp_path / "r")
    code, out, err = call(
        "--check",
        "--train",
        "--data",
        str(first),
        "--data",
        str(second),
        *tiny_flags(test_stargan.TINY),
        *call.cache,
        paper="stargan",
    )
    assert code == 0, err
    assert "Blond_Hair (" in out and "angry (" in out and "train/" in out and f"{first} and {second}" in out
    code, _, err = call("--train", "--data", str(first), "--data", "nowhere", *call.cache, paper="stargan")
    assert code == 2 and err == "error: --data nowhere: no such folder\n"


def test_drgan_trains_evaluates_infers_checks_and_benches(call, tmp_path, monkeypatch):
    test_drgan.quick(monkeypatch)
    flags = ["--scale", "small", *call.cache, *tiny_flags(test_drgan.TINY)]
    a, b = (makers.picture(tmp_path / f"{name}.png", k) for k, name in enumerate("ab"))
    code, out, err = call(
        "--train",
        "--evaluate",
        "--infer",
        a,
        b,
        "--pose",
        "0",
        "-15",
        "--images-per-subject",
        "2",
        *flags,
        paper="drgan",
    )
    assert (
        code == 0
        and not err
        and "verification FP" in out
        and "turned by 30 and more" in out
        and "confidence 0." in out
    ), err
    assert (tmp_path / "runs/drgan/inferred/a.gif").exists()
    code, out, _ = call("--bench", *flags, paper="drgan")
    assert code == 0 and "ms per step" in out and "D " in out
    code, out, _ = call("--check", "--data", str(makers.cfp(tmp_path / "cfp")), paper="drgan")
    assert (
        code == 0
        and "poses: frontal (48), profile (24)" in out
        and "people: 12 (001, 002, 003 ...), the last 4 held out" in out
    )


def test_iacyclegan_trains_evaluates_infers_checks_and_benches(call, tmp_path, monkeypatch):
    test_iacyclegan.quick(monkeypatch)
    flags = ["--scale", "small", *call.cache, *tiny_flags(test_iacyclegan.TINY)]
    makers.picture(tmp_path / "a.png", size=(30, 20))
    code, out, err = call("--train", "--evaluate", "--infer", "a.png", *flags, paper="iacyclegan")
    assert code == 0 and not err and "CycleGAN" in out and "round 1" in out and "FSIM" in out, err
    assert (tmp_path / "runs/iacyclegan/inferred/a_sheet.png").exists()
    code, out, _ = call("--bench", *flags, paper="iacyclegan")
    assert code == 0 and "ms per step" in out and "D " in out
    code, out, _ = call("--check", "--data", str(makers.cufs(tmp_path / "cufs")), paper="iacyclegan")
    assert code == 0 and "pairs: 16, 8 of them held out" in out, out


def test_pairedcyclegan_trains_evaluates_infers_checks_and_benches(call, tmp_path, monkeypatch):
    test_pairedcyclegan.quick(monkeypatch)
    flags = ["--scale", "small", *call.cache, *tiny_flags(test_pairedcyclegan.TINY)]
    a, b = (makers.picture(tmp_path / f"{name}.png", k) for k, name in enumerate("ab"))
    code, out, err = call(
        "--train",
        "--evaluate",
        "--infer",
        a,
        "--reference",
        b,
        "--strength",
        ".5",
        *flags,
        paper="pairedcyclegan",
    )
    assert (
        code == 0 and not err and "style match" in out and "make-up off" in out and "central square" in out
    ), err
    assert (tmp_path / "runs/pairedcyclegan/inferred/a_b.png").exists()
    code, out, _ = call("--bench", *flags, paper="pairedcyclegan")
    assert code == 0 and "ms per step" in out and "D " in out
    code, out, _ = call("--check", "--data", str(makers.mt(tmp_path / "mt")), paper="pairedcyclegan")
    assert code == 0 and "without make-up, with: 4, 4" in out and "held out: every tenth, 2" in out, out


@pytest.mark.parametrize("model", ["pix2pix", "cyclegan"])
def test_pix2pix_cyclegan_trains_evaluates_infers_and_benches(call, tmp_path, monkeypatch, model):
    monkeypatch.setattr(importlib.import_module("pix2pix_cyclegan"), "TEST_PEOPLE", 12)
    flags = ["--model", model, "--scale", "small", *call.cache]
    flags += tiny_flags(test_pix2pix_cyclegan.TINY)
    Image.new("RGB", (30, 20), "red").save(tmp_path / "a.png")
    code, out, err = call("--train", "--evaluate", "--infer", "a.png", *flags, paper="pix2pix_cyclegan")
    assert (
        code == 0
        and not err
        and "sharpness" in out
        and Image.open(tmp_path / f"runs/{model}/inferred/a.png").size == (30, 20)
    )
    code, out, _ = call("--bench", *flags, paper="pix2pix_cyclegan")
    assert code == 0 and "ms per step: data" in out and "D " in out


def test_weights_of_the_authors_and_of_others(call, tmp_path):
    G = gannotation.Generator()
    torch.save({"state_dict": {"module." + k: v for k, v in G.state_dict().items()}}, "ours-named.pth")
    from test_gannotation import face_file

    code, _, err = call(
        "--infer", face_file(tmp_path), "--weights", "ours-named.pth", "--device", "cpu", *call.cache
    )
    assert code == 2 and "face.png" in err  # 80 x 80: not a 128-px crop
    torch.save({"state_dict": {"x": torch.zeros(1)}}, "wrong.pth")
    code, _, err = call("--evaluate", "--weights", "wrong.pth", "--device", "cpu", *call.cache)
    assert code == 2 and "missing: bottleneck" in err and "unexpected: x" in err and err.count("\n") == 1
    torch.save({"paper": "stargan", "nets": {"G": {}}, "config": {}}, "stargan.pt")
    code, _, err = call("--evaluate", "--weights", "stargan.pt", "--device", "cpu", *call.cache)
    assert code == 2 and "a checkpoint of stargan" in err


@pytest.mark.slow
def test_ablate_trains_both_variants_and_judges(call, tmp_path, monkeypatch):
    in_turn(monkeypatch)
    monkeypatch.setattr("lab.claims.SEEDS", (0, 1))
    argv = ["--ablate", *tiny_flags(TINY), "--warm-up", ".5", *call.cache]
    code, out, err = call(*argv)
    assert code == 0, err
    again = json.loads((tmp_path / "runs/gannotation/ablation.json").read_text())
    code, out, err = call(*argv)  # all done: only measured again
    assert (
        code == 0
        and json.loads((tmp_path / "runs/gannotation/ablation.json").read_text())["rows"] == again["rows"]
    )
    runs = tmp_path / "runs/gannotation/ablation"
    assert (
        load_checkpoint(runs / "warm-up-0" / "last.pt")["step"] == 2
        and load_checkpoint(runs / "with-triple-0" / "last.pt")["step"] == 4
    )
    code, _, err = call(*argv, "--steps", "6")
    assert code == 2 and "was trained for 4 steps, now 6" in err
    code, _, err = call(*argv, "--warm-up", "0")
    assert code == 2 and "before and after" in err
    result = json.loads((tmp_path / "runs/gannotation/ablation.json").read_text())
    assert (
        result["verdict"] in ("reproduced", "partly reproduced", "not reproduced") and result["seconds"] > 0
    )
    assert {"with triple, mean", "without triple, std", "with triple, seed 1"} <= result["rows"].keys()
    assert (tmp_path / "runs/gannotation/ablation.png").exists() and "excess at most half" in out


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        MemoryError(),
        RuntimeError("CUDNN_STATUS_ALLOC_FAILED"),
        "more than there is",
    ],
    ids=str,
)
def test_too_little_memory_is_one_line(call, monkeypatch, error):
    def train(cfg):
        if isinstance(error, Exception):
            raise error
        torch.empty(2**60)

    monkeypatch.setattr(gannotation, "train", train)
    code, _, err = call("--train", "--device", "cpu")
    assert code == 2 and err == "error: out of memory; give a smaller --batch-size, --image-size or network\n"


def test_scale_auto_is_small_on_a_processor_and_on_a_gpu_medium_for_toys(monkeypatch):
    def scale(*argv):
        return cli.scale_of(cli.parser_of(gannotation).parse_args(["--train", *argv]))

    for cuda, found in ((False, ["small"] * 3), (True, ["medium", "paper", "small"])):
        monkeypatch.setattr(torch.cuda, "is_available", lambda cuda=cuda: cuda)
        assert [scale(), scale("--data", "x"), scale("--device", "cpu")] == found
        assert scale("--scale", "paper") == "paper"


@pytest.mark.slow
@pytest.mark.parametrize("name", PAPERS)
def test_the_medium_recipe_trains(call, monkeypatch, name):
    """A few people are enough to see that its settings fit together."""
    test_hostile.quick(monkeypatch)
    few = {
        k: v
        for k, v in dict(
            people=40, frames=8, copies=1, studio=2, rounds=0, recogniser_steps=2, copy_steps=1
        ).items()
        if k in {f.name for f in dataclasses.fields(importlib.import_module(name).Config)}
    }
    narrow = dict(
        steps=2, width=0.1 if name == "drgan" else 2, log_every=1, sample_every=2, batch_size=4, image_size=64
    )
    code, _, err = call(
        "--train", "--scale", "medium", "--device", "cpu", *tiny_flags(few | narrow), *call.cache, paper=name
    )
    assert code == 0 and not err


def test_bench_splits_the_step(call):
    code, out, err = call("--bench", *tiny_flags(TINY), *call.cache)
    assert code == 0, err
    for word in ("ms per step", "data", "D ", "G ", "pictures/s", "GFLOP", "matmul rate"):
        assert word in out


def test_check_tells_what_is_bad_and_what_decoding_takes(call, tmp_path):
    root = photo_folder(tmp_path / "photos")
    (root / "lfpw" / "trainset" / "image_0002.png").write_bytes(b"")
    code, out, err = call("--check", "--data", str(root))
    assert code == 2 and "empty file" in err and "image_0002.png: empty file" in out and "MiB" in out
    code, out, _ = call("--check")
    assert code == 0 and "toy faces" in out


# --------------------------------------------------------------------- every paper: equations, functions,
# tests, sources


@pytest.mark.parametrize("name", PAPERS)
def test_every_equation_has_a_function_and_every_loss_a_test(name):
    paper = importlib.import_module(name)
    listed = [label for label, _ in cli.equations(paper)]
    functions = cli.loss_functions(paper)
    assert listed
    for label in listed:
        assert any(f.__doc__.startswith(f"[{label}]") for f in functions.values()), (
            f"no function for [{label}]"
        )
    for loss, function in functions.items():
        assert any(function.__doc__.startswith(f"[{label}]") for label in listed), (
            f"{loss} names no listed equation"
        )
        assert cli.tests_of(name, loss, ROOT / "tests"), f"no test for {loss}"


@pytest.mark.parametrize("name", PAPERS)
def test_every_default_has_a_source(name):
    paper = importlib.import_module(name)
    comments = cli.sources(paper.Config)
    assert [f.name for f in dataclasses.fields(paper.Config) if not comments.get(f.name)] == []
    recipes = [vars(paper)[k] for k in vars(paper) if k.startswith(("SMALL", "MEDIUM"))]
    assert set().union(*recipes) <= {f.name for f in dataclasses.fields(paper.Config)}


def test_explain_prints_formula_place_weight_and_tests(call):
    code, out, _ = call("--explain")
    assert code == 0
    for word in (
        "[2.3.4] triple consistency",
        "L_triple = || G(I^; H(s_n)) - G(I; H(s_n)) ||_1",
        "gannotation.py:",
        "lambda_triple = 100.0 (section 2.3.7)",
        "small recipe",
        "test_gannotation.py::test_loss_triple_compares_two_routes_and_reaches_both",
    ):
        assert word in out
    assert "tests: none" not in out


def test_importing_has_no_side_effects(tmp_path):
    out = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(ROOT)!r}); import gannotation"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert not out.stdout and not list(tmp_path.iterdir())
