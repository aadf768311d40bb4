"""What the notebooks share: pictures, an equation beside its code, one training step looked at from inside,
and exercises that the project's own tests check.

Nothing here knows an algorithm. Everything is asked of the papers' own files.
"""

import ast
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
from PIL import Image as Pictures  # noqa: E402
from PIL import ImageDraw  # noqa: E402

from lab import cli, demos  # noqa: E402
from lab.cli import loss_functions, tests_of, weight_field  # noqa: E402
from lab.files import load_checkpoint, read_jsonl  # noqa: E402
from lab.images import figure as empty_figure  # noqa: E402
from lab.run import Run  # noqa: E402

CACHE = str(ROOT / "runs" / "cache")
TITLE = 16  # px of a sheet above its pictures, where every title takes one line


def picture(image, width=None):
    """A PIL image as one of the notebook's, small on disk."""
    file = io.BytesIO()
    image.convert("RGB").save(file, "jpeg", quality=72)
    return Image(file.getvalue(), width=width or image.width)


def show(image, width=None):
    display(picture(image, width))


def plot(drawing):
    """A matplotlib figure made by lab.images.figure."""
    file = io.BytesIO()
    drawing.savefig(file, format="png", dpi=90)
    display(Image(file.getvalue()))


def figure(name, width=900, top=None):
    """A picture of notebooks/figures, or its first `top` rows of pixels."""
    image = Pictures.open(ROOT / "notebooks" / "figures" / name).convert("RGB")
    image = image.crop((0, 0, image.width, top or image.height))
    show(narrow(image, width), width)


def framed(picture, side, colour=(1, 1, 1), right=0):
    """A picture [1, 3, S, S] with a square of that side drawn around its middle, `right` px beside it."""
    picture, top = picture.clone(), (picture.shape[-1] - side) // 2
    square = picture[..., top : top + side, top + right : top + right + side]
    paint = torch.tensor(colour).float()[:, None, None]
    square[..., [0, -1], :], square[..., [0, -1]] = paint, paint
    return picture


def narrow(image, width):
    """A picture, made smaller if it is wider than that."""
    return image if image.width <= width else image.resize((width, image.height * width // image.width))


def code(function):
    """The source of a function of the project, as it stands in its file now, without its docstring."""
    function = inspect.unwrap(function)
    lines, first = inspect.getsourcelines(function)
    text = textwrap.dedent("".join(lines))
    body = ast.parse(text).body[0].body
    if ast.get_docstring(ast.parse(text).body[0]) and len(body) > 1:
        rows = text.splitlines()
        text = "\n".join(rows[: body[0].lineno - 1] + rows[body[0].end_lineno :])
    file = Path(inspect.getsourcefile(function)).name
    display(Markdown(f"`{file}:{first}`\n```python\n{text.rstrip()}\n```"))


def demo(paper, name="demo.png", width=900, **changes):
    """What the generator that comes with the repository draws: its --demo, of people never trained on."""
    cfg = settings(paper, **changes)
    cfg.weights = str(demos.WEIGHTS / f"{getattr(cfg, 'model', paper.__name__)}.pt")
    with quiet():
        demos.demo(paper, cfg)
    show(narrow(Pictures.open(Path(cfg.run) / name), width), width)
    note = load_checkpoint(cfg.weights)["note"]
    display(Markdown(f"Trained by `{note['command']}` ({note['hardware']})."))


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

    Returns a list of dicts: loss, shapes, value, weight (in the objective), update (the optimiser that
    stepped on it), moves (names of networks).
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
            field = weight_field(originals[call["loss"]].__doc__)
            weight = getattr(cfg, field) if field else 1.0
            rows.append(dict(call, value=call["value"].item(), weight=weight, moves=moves, update=""))
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


def equation(paper, name, rows=(), latex="", beside="", inside=()):
    """One loss: formula, code (and that of the functions `inside` it), and its value in a real step.

    rows: of `watch`; beside: what to compare it with, in words.
    """
    if latex:
        display(Markdown(f"$$\\displaystyle {latex}$$"))
    for function in (getattr(paper, name), *inside):
        code(function)
    for row in rows:
        if row["loss"] == name:
            shapes = ", ".join(" x ".join(map(str, shape)) for shape in row["shapes"]) or "features"
            weight = f", times its weight {row['weight']:g}: **{row['weight'] * row['value']:.4g}**"
            compared = f" (for comparison: {beside})" if beside else ""
            moved = " and ".join(row["moves"]) or "nothing"
            value = f"**{row['value']:.4f}**" + weight * (row["weight"] != 1)
            display(Markdown(f"given {shapes}: {value}{compared}; moves {moved}"))
            break


def objective(rows):
    """The whole objective in numbers, and who is moved by what: a table of every loss of `watch`."""
    nets, seen = list(dict.fromkeys(net for row in rows for net in row["moves"])), {}
    for row in rows:
        one = seen.setdefault(row["loss"], dict(row, moves=set()))
        one["moves"] |= set(row["moves"])
    lines = ["| loss | value | weight | value x weight | moves |", "|---|---|---|---|---|"]
    for loss, row in seen.items():
        weighted, moved = row["weight"] * row["value"], ", ".join(net for net in nets if net in row["moves"])
        lines.append(f"| `{loss}` | {row['value']:.4g} | {row['weight']:g} | {weighted:.4g} | {moved} |")
    display(Markdown("\n".join(lines)))


def train(paper, cfg, width=900, rows=1, curves=(), shown=0, face=0):
    """A short training: four faces of its newest grid while it goes on, then a film of one over the steps.

    rows: how many rows of the grid are of that face; curves: names of the log to draw over the steps; shown:
    how many rows of the newest grid (default: four faces'); face: which one the film follows.
    """
    grid, words, film = display(Markdown(""), display_id=True), display(Markdown(""), display_id=True), {}
    sample, high = Run.sample, (cfg.image_size + 2) * max(1, 128 // cfg.image_size)

    def live(self, step, image):
        sample(self, step, image)
        film[step] = image
        seen = 14 + (shown or 4 * rows) * high
        grid.update(picture(narrow(image.crop((0, 0, image.width, min(image.height, seen))), width), width))
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
    if film:
        some = dict(list(film.items())[:: -(-len(film) // 6)])
        show(strip(some, TITLE + face * rows * high, rows * high), width * 2 // 3)
    if curves:
        plot(drawn(read_jsonl(next(Path(cfg.run).rglob("metrics.jsonl"))), curves))


def strip(film, top, height):
    """That band of every grid of a film {step: grid}, one below the other, with the steps beside."""
    first = next(iter(film.values()))
    sheet = Pictures.new("RGB", (first.width + 60, TITLE + height * len(film)), "white")
    sheet.paste(first.crop((0, 0, first.width, TITLE)), (60, 0))
    for k, (step, grid) in enumerate(film.items()):
        sheet.paste(grid.crop((0, top, grid.width, top + height)), (60, TITLE + k * height))
        ImageDraw.Draw(sheet).text((2, TITLE + k * height + height // 2), f"step {step}", fill="black")
    return sheet.resize((sheet.width * 2 // 3, sheet.height * 2 // 3))


def drawn(log, names):
    """Numbers of a log over its steps, as curves."""
    sheet = empty_figure(7, 2.2)
    ax = sheet.add_subplot(xlabel="step")
    for name in names:
        known = [line for line in log if name in line]
        ax.plot([line["step"] for line in known], [line[name] for line in known], label=name)
    ax.set_ylim(bottom=0)
    ax.legend(fontsize=8, frameon=False)
    return sheet


def dots(name, what, rows, better="left"):
    """A report of notebooks/results as dots: one a seed, a line a row.

    rows: {what a reader calls it: (name of the training, measure, or several: their mean)}; better: "left" or
    "right".
    """
    runs = json.loads((ROOT / "notebooks" / "results" / f"{name}.json").read_text())["runs"]
    sheet = empty_figure(7, 0.6 + 0.32 * len(rows))
    ax = sheet.add_subplot(xlabel=f"{what} ({better} is better)")
    for k, (run, *measures) in enumerate(rows.values()):
        mine = [v for title, v in runs.items() if title.rpartition(", seed")[0] == run]
        values = [sum(v[measure] for measure in measures) / len(measures) for v in mine]
        mean = sum(values) / len(values)
        ax.plot(values, [-k] * len(values), "o", alpha=0.6, color="tab:blue")
        ax.text(mean, 0.25 - k, f"{mean:.3g}" if abs(mean) > 1e-6 else "0", fontsize=7, ha="center")
    ax.set_yticks([-k for k in range(len(rows))], list(rows), fontsize=8)
    ax.set_ylim(0.6 - len(rows), 0.6)
    left, right = ax.get_xlim()
    ax.set_xlim(min(0, left), 1.05 * right)
    ax.grid(axis="y", lw=0.3)
    plot(sheet)


def result(name):
    """A report of notebooks/results: claims with their verdicts, as a table."""
    report = json.loads((ROOT / "notebooks" / "results" / f"{name}.json").read_text())
    lines = ["| claim: of these two | the first | the second | verdict |", "|---|---|---|---|"]
    for c in report.get("claims", []):
        lines.append(f"| {c['what']} | {c['without']} | {c['with']} | {c['verdict']} |")
    seeds = ", ".join(map(str, report["seeds"]))
    how = f"`{report['command']}`, seeds {seeds}, {report['hardware']}, commit {report['commit']}"
    display(Markdown("\n".join(lines) + "\n\n" + how))
    met = [f"- {'met' if met else 'missed'}: {bar}" for bar, met in report.get("criteria", {}).items()]
    display(Markdown("Bars, set before the run:\n\n" + "\n".join(met)))


class Failed:
    """A plugin of pytest that collects what failed: {test: the first line of its error}."""

    def __init__(self):
        self.tests = {}

    def pytest_runtest_logreport(self, report):
        if report.failed:
            said = [line[1:].strip() for line in str(report.longrepr).splitlines() if line.startswith("E ")]
            self.tests[report.nodeid.rpartition("::")[2].partition("[")[0]] = said[0] if said else ""


def failures(paper, function):
    """The project's own tests of function.__name__, run on yours in its place: (number, {test: why}).

    {"": why}: the tests did not run.
    """
    import pytest

    name, failed = function.__name__, Failed()
    tests, original = tests_of(Path(paper.__file__).stem, name, ROOT / "tests"), getattr(paper, name)
    function.__doc__ = function.__doc__ or original.__doc__
    for test in tests:                                     # imported before, it may hold the original
        sys.modules.pop(test.partition(".py")[0], None)
    setattr(paper, name, function)
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            wanted = [str(ROOT / "tests" / test) for test in tests]
            ended = pytest.main(["-q", "-p", "no:cacheprovider", *wanted], [failed])
    finally:
        setattr(paper, name, original)
    if ended and not failed.tests:                         # nothing was collected, say
        failed.tests[""] = f"the tests did not run: {ended!r}"
    return len(tests), failed.tests


def yours(paper, function):
    """Checks your version of a function of the project, and says which of its properties it lacks."""
    name = function.__name__
    if "raise NotImplementedError" in inspect.getsource(function):
        print(f"{name}: not written yet. Write it in place of the line `raise NotImplementedError`.")
        return
    n, failed = failures(paper, function)
    print(f"{name}: {n} tests, " + ("all passed" if not failed else f"{len(failed)} failed:"))
    for test, why in failed.items():
        print(textwrap.fill(f"  - not so: {test.removeprefix('test_').replace('_', ' ')}. {why}", 100))
