"""What the notebooks share: pictures, an equation beside its code, and one training step looked at from
inside.

Nothing here knows an algorithm. Everything is asked of the papers' own files.
"""

import contextlib
import dataclasses
import inspect
import io
import json
import sys
import tempfile
import textwrap
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402
from IPython.display import Image, Markdown, display  # noqa: E402

from lab import cli  # noqa: E402
from lab.cli import loss_functions, tests_of  # noqa: E402
from lab.files import read_jsonl  # noqa: E402
from lab.run import Run  # noqa: E402

CACHE = str(ROOT / "runs" / "cache")


def picture(image, width=None):
    """A PIL image as one of the notebook's, small on disk."""
    file = io.BytesIO()
    image.convert("RGB").save(file, "jpeg", quality=78)
    return Image(file.getvalue(), width=width or image.width)


def show(image, width=None):
    display(picture(image, width))


def plot(drawing):
    """A matplotlib figure made by lab.images.figure."""
    file = io.BytesIO()
    drawing.savefig(file, format="png", dpi=90)
    display(Image(file.getvalue()))


def figure(name, width=900, top=1.0):
    """A picture of notebooks/figures, or a share of it from the top."""
    from PIL import Image as Pictures

    image = Pictures.open(ROOT / "notebooks" / "figures" / name).convert("RGB")
    image = image.crop((0, 0, image.width, round(top * image.height)))
    if image.width > 1400:
        image = image.resize((1400, image.height * 1400 // image.width))
    show(image, width)


def code(function):
    """The source of a function of the project, as it stands in its file now."""
    function = inspect.unwrap(function)
    lines, first = inspect.getsourcelines(function)
    file = Path(inspect.getsourcefile(function)).name
    display(Markdown(f"`{file}:{first}`\n```python\n{textwrap.dedent(''.join(lines)).rstrip()}\n```"))


@contextlib.contextmanager
def quiet():
    """Without the words that a training prints."""
    with contextlib.redirect_stdout(io.StringIO()):
        yield


def settings(paper, **changes):
    """The paper's small recipe on this machine's processor, in a folder that is thrown away."""
    small = cli.recipe(paper, "small", changes.get("model", ""))
    defaults = dict(small, device="cpu", amp=False, cache=CACHE, run=tempfile.mkdtemp())
    return paper.Config(**(defaults | changes))


def watch(paper, cfg, train=None):
    """The last step of paper.train (or of `train`): what each loss was given, what it gave, and whom it
    moves.

    Returns a list of dicts: loss, shapes, value, update (the optimiser that stepped on it), moves (names of
    networks).
    """
    calls, rows, runs, backward, begin = [], [], [], torch.Tensor.backward, Run._begin
    originals = {name: f for name, f in loss_functions(paper).items() if name.startswith("loss_")}

    def recorded(name, f):
        def loss(*args, **kwargs):
            value = f(*args, **kwargs)
            shapes = [tuple(a.shape) for a in args if torch.is_tensor(a)]
            if torch.is_tensor(value) and value.requires_grad:
                calls.append(dict(loss=name, shapes=shapes, value=value))
            return value

        return loss

    def moved(value, net):
        weights = [p for p in net.parameters() if p.requires_grad]
        grads = torch.autograd.grad(value, weights, retain_graph=True, allow_unused=True) if weights else []
        return any(g is not None and g.abs().sum() > 0 for g in grads)

    def looked_at(total, *args, **kwargs):
        for call in calls:
            moves = [name for name, net in runs[-1].nets.items() if moved(call["value"], net)]
            rows.append(dict(call, value=call["value"].item(), moves=moves, update=""))
        calls.clear()
        return backward(total, *args, **kwargs)

    def begun(run, end):
        if run not in runs:
            runs.append(run)
            for name, optimiser in run.opts.items():
                optimiser.register_step_post_hook(
                    lambda *_, name=name: [row.update(update=name) for row in rows if not row["update"]]
                )
        begin(run, end)

    try:
        for name, f in originals.items():
            setattr(paper, name, recorded(name, f))
        torch.Tensor.backward, Run._begin = looked_at, begun
        with quiet():
            first = {"copy_steps": 0} if hasattr(cfg, "copy_steps") else {}
            (train or paper.train)(dataclasses.replace(cfg, steps=1, log_every=10, sample_every=10, **first))
    finally:
        torch.Tensor.backward, Run._begin = backward, begin
        for name, f in originals.items():
            setattr(paper, name, f)
    return rows


def equation(paper, name, rows=()):
    """One loss: its formula, its code, and what came in and out of it in the step that `watch` looked at."""
    code(getattr(paper, name))
    for row in rows:
        if row["loss"] == name:
            shapes = ", ".join(" x ".join(map(str, shape)) for shape in row["shapes"]) or "networks alone"
            moved = " and ".join(row["moves"]) or "nothing"
            display(Markdown(f"given {shapes}: **{row['value']:.4f}**; moves {moved}"))
            break


def routes(rows):
    """The table loss x network: who is moved by what."""
    nets = list(dict.fromkeys(net for row in rows for net in row["moves"]))
    table = {}
    for row in rows:
        table.setdefault(row["loss"], set()).update(row["moves"])
    lines = ["| loss | " + " | ".join(nets) + " |", "|---|" + "---|" * len(nets)]
    for loss, moved in table.items():
        lines.append(f"| `{loss}` | " + " | ".join("moved" if net in moved else "" for net in nets) + " |")
    display(Markdown("\n".join(lines)))


def train(paper, cfg, width=900):
    """A short training; its newest sample grid and line of the log stand below the cell, and change as it
    goes on."""
    grid, words = display(Markdown(""), display_id=True), display(Markdown(""), display_id=True)
    sample = Run.sample

    def live(self, step, image):
        sample(self, step, image)
        grid.update(picture(image, width))
        line = read_jsonl(self.folder / "metrics.jsonl")[-1]
        words.update(
            Markdown(f"step {step} of {self.cfg.steps}, {line['seconds']:.0f} s, health: {line['health']}")
        )

    Run.sample = live
    every = max(10, cfg.steps // 8)
    try:
        with quiet():
            paper.train(dataclasses.replace(cfg, log_every=every, sample_every=every))
    finally:
        Run.sample = sample


def result(name):
    """A report of notebooks/results: claims with their verdicts, as a table."""
    report = json.loads((ROOT / "notebooks" / "results" / f"{name}.json").read_text())
    lines = ["| claim | without | with | verdict |", "|---|---|---|---|"]
    for c in report.get("claims", []):
        lines.append(
            f"| {c['what']} | {c['without']} | {c['with']} | {c.get('verdict', report['verdict'])} |"
        )
    seeds = ", ".join(map(str, report["seeds"]))
    how = f"`{report['command']}`, seeds {seeds}, {report['hardware']}, commit {report['commit']}"
    display(Markdown("\n".join(lines) + "\n\n" + how))
    for criterion, met in report.get("criteria", {}).items():
        print(f"{'yes' if met else 'no ':4} {criterion}")


def rows(name, measure):
    """One measure of every row of a report of notebooks/results, mean and spread over its seeds."""
    found = json.loads((ROOT / "notebooks" / "results" / f"{name}.json").read_text())["rows"]
    lines = [f"| row | {measure} |", "|---|---|"]
    for row in found:
        if row.endswith(", mean") and measure in found[row]:
            std = found[row.removesuffix("mean") + "std"][measure]
            lines.append(f"| {row.removesuffix(', mean')} | {found[row][measure]:.4f} ± {std:.4f} |")
    display(Markdown("\n".join(lines)))


def says(function):
    """The docstring of a function, in lines that fit the page."""
    for line in inspect.getdoc(function).replace("\n" + 10 * " ", " ").splitlines():
        print(textwrap.fill(line, 100, subsequent_indent=" " * 10) if line else "")


def yours(paper, **functions):
    """The project's own tests of these functions, run on yours in their place."""
    import pytest

    for name, mine in functions.items():
        original, tests = getattr(paper, name), tests_of(name, ROOT / "tests")
        setattr(paper, name, mine)
        try:
            with contextlib.redirect_stdout(io.StringIO()) as said:
                ended = pytest.main(
                    ["-q", "-x", "-p", "no:cacheprovider", *(str(ROOT / "tests" / test) for test in tests)]
                )
        finally:
            setattr(paper, name, original)
        print(
            f"{name}: {len(tests)} tests "
            + ("passed" if ended == 0 else "FAILED\n" + said.getvalue()[-1500:])
        )
