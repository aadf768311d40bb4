import importlib
import json
import re
import sys
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient


FOLDER = Path(__file__).parent.parent / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_the_notebook_runs_from_top_to_bottom(path):
    NotebookClient(nbformat.read(path, 4), timeout=600, resources={"metadata": {"path": FOLDER}}).execute()


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_the_notebook_is_stored_whole_and_small(path):
    cells = [cell for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == "code"]
    assert path.stat().st_size < 1e6 and len(json.loads(path.read_text())["cells"]) <= 30
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell["outputs"]]
    assert any({"image/png", "image/jpeg"} & output.get("data", {}).keys() for output in outputs)
    assert all(output["output_type"] != "error" for output in outputs)
    assert not re.search(
        r"/(tmp|home|root|work)/", json.dumps([output.get("text", "") for output in outputs])
    )  # no path of a machine


def test_there_is_one_for_every_paper():
    papers = {p.stem for p in FOLDER.parent.glob("*gan*.py")} | {"gannotation"}
    assert {path.stem[3:] for path in NOTEBOOKS} == papers | {"gan_to_domain_transfer"} and len(papers) == 6


# ------------------------------------------------------------------------------------- the exercises

SOLUTION = re.compile(r"<summary>Solution</summary>\s*```python\n(.*?)```", re.S)


def solutions():
    """[(module, name of its function, the solution)] of all notebooks."""
    found = []
    for path in NOTEBOOKS:
        cells = nbformat.read(path, 4).cells
        for before, cell in zip(cells, cells[1:], strict=False):
            for code in SOLUTION.findall(before.source):
                module = re.search(r"walk\.yours\((\w+),", cell.source)[1]
                name = re.search(r"def (\w+)", code)[1]
                found.append((path.stem[3:] if module == "paper" else module, name, code))
    return found


# What learners get wrong, as a change of the solution, and words of the test that must say so
MISTAKES = {
    ("common", "vanilla_G"): [
        ("(-fake)", "(fake)", "binary cross entropy"),
        (".mean()", ".sum()", "binary cross entropy"),
        ("softplus(-fake)", "relu(-fake)", "binary cross entropy"),
    ],
    ("stargan", "loss_gp"): [
        (".sum()", ".mean()", "sum of scores"),
        ("torch.rand(len(x_real), 1, 1, 1)", "torch.rand(())", "one alpha a picture"),
        ("flatten(1).norm(dim=1)", "norm()", "one norm a picture"),
    ],
    ("stargan", "loss_rec"): [
        (".abs()", ".pow(2)", "mean absolute difference"),
        (".mean()", ".sum()", "mean absolute difference"),
        (".abs()", "", "mean absolute difference"),
    ],
    ("stargan", "unified_label"): [
        ("if len(sizes) == 1:", "if False:", "one set is the label"),
        ("[*parts, mask]", "parts", "a mask behind"),
        ("mask[:, d] = 1", "mask[:, 0] = 1", "a mask behind"),
    ],
    ("gannotation", "loss_triple"): [
        ("(I_via - I_direct)", "(I_via - I_direct.detach())", "reaches both"),
        (".abs()", ".pow(2)", "compares two routes"),
        (".mean()", ".sum()", "compares two routes"),
    ],
    ("gannotation", "loss_tv"): [
        (" / len(I_hat)", "", "by hand"),
        ("(dy ** 2)", "dy.abs()", "by hand"),
        (" + (dx ** 2).sum()", "", "by hand"),
    ],
    ("pairedcyclegan", "loss_S"): [
        (".abs()", ".pow(2)", "by hand"),
        (".abs()", "", "by hand"),
        ("(y_back - y)", "(y_back.detach() - y)", "reaches what came back"),
    ],
    ("pairedcyclegan", "loss_P_D"): [
        ("torch.cat([fake, other])", "fake", "the result for false"),
        ("softplus(-real)", "softplus(real)", "takes W for real"),
        (".mean()", ".sum()", "takes W for real"),
    ],
    ("iacyclegan", "loss_idp"): [
        ("f.detach()", "f", "reaches the fake alone"),
        ("unit(f_fake, dim=1)", "f_fake", "two minus two cosines"),
        (".sum(1).mean()", ".mean()", "two minus two cosines"),
    ],
    ("iacyclegan", "loss_tri"): [
        (" and k != a", "", "by hand"),
        ("+ margin", "", "does not run together"),
        ("max(1, len(losses))", "len(who)", "by hand"),
    ],
    ("drgan", "fuse"): [
        (" / w.sum(1, keepdim=True).clamp(min=1e-6)", "", "whatever the scale"),
        ("(w[..., None] * f).sum(1) /", "f.sum(1) /", "by hand"),
        (".clamp(min=1e-6)", "", "no picture is trusted"),
    ],
    ("drgan", "drop_confidences"): [
        (">= drop", "< drop", "leaves at least one"),
        ("keep | (one & nobody)", "keep", "leaves at least one"),
        ("keep | (one & nobody)", "keep | one", "only where all would go"),
    ],
    ("drgan", "loss_id_G"): [
        ("cross_entropy(", "nll_loss(", "softmax log likelihoods"),
        ("(d_fake, y_d)\n", "(d_fake.detach(), y_d)\n", "probability minus label"),
        ("(d_fake, y_d)\n", "(d_fake, y_d, reduction='sum')\n", "softmax log likelihoods"),
    ],
    ("pix2pix_cyclegan", "loss_cgan_D"): [
        (") / 2", ")", "half the cross entropy"),
        ("softplus(-real)", "softplus(real)", "half the cross entropy"),
        (".mean()", ".sum()", "half the cross entropy"),
    ],
    ("pix2pix_cyclegan", "loss_cyc"): [
        ("x_rec).abs", "x_rec.detach()).abs", "gradient routes of cyclegan"),
        (".abs()", ".pow(2)", "mean absolute differences"),
        (".abs()", "", "mean absolute differences"),
    ],
    ("common", "receptive_field"): [
        ("reversed(", "list(", "what the gradient sees"),
        ("field = 1", "field = 0", "what the gradient sees"),
        ("(field - 1)", "field", "what the gradient sees"),
    ],
}


def checked(paper, name, code):
    """{test in words: why} of the tests that this code for the function fails."""
    sys.path.insert(0, str(FOLDER))
    import walk

    module = importlib.import_module(paper)
    space = dict(vars(module))
    exec(code, space)
    tests, failed = walk.failures(module, space[name])
    assert tests > 0
    return {test.removeprefix("test_").replace("_", " "): why for test, why in failed.items()}


@pytest.mark.slow
@pytest.mark.parametrize("paper, name, code", solutions(), ids=lambda v: v if len(v) < 30 else "")
def test_a_solution_of_the_notebooks_passes_and_usual_mistakes_are_told(paper, name, code):
    assert checked(paper, name, code) == {}
    for right, wrong, words in MISTAKES[paper, name]:
        assert right in code
        failed = checked(paper, name, code.replace(right, wrong))
        assert any(words in test for test in failed), failed


def test_exercises_are_not_solved_and_have_a_hint():
    for path in NOTEBOOKS:
        cells = nbformat.read(path, 4).cells
        for before, cell in zip(cells, cells[1:], strict=False):
            if "walk.yours" in cell.source and "NotImplementedError" in cell.source:
                name = re.search(r"def (\w+)", cell.source)[1]
                assert "<summary>Hint</summary>" in before.source and f"def {name}(" in before.source
