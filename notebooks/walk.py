"""What the notebooks share: showing pictures, an equation beside its code, and one training step looked at from inside.

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

import common  # noqa: E402

CACHE = str(ROOT / "runs" / "cache")


def picture(image, width=None):
    """A PIL image as one of the notebook's, small on disk. (A palette would be smaller, but it loses the colour of an eye shadow.)"""
    file = io.BytesIO()
    image.convert("RGB").save(file, "jpeg", quality=78)
    return Image(file.getvalue(), width=width or image.width)


def show(image, width=None):
    display(picture(image, width))


def plot(drawing):
    """A matplotlib figure made by common.figure."""
    file = io.BytesIO()
    drawing.savefig(file, format="png", dpi=90)
    display(Image(file.getvalue()))


def figure(name, width=900, top=1.):
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
    defaults = dict(paper.SMALL, device="cpu", amp=False, cache=CACHE, run=tempfile.mkdtemp())
    return paper.Config(**(defaults | changes))


def watch(paper, cfg, train=None):
    """One step of paper.train (or of `train`), the last of its schedule: what each loss was given, what it gave, and whose weights it moves.

    Returns a list of dicts: loss, shapes, value, update (the optimiser that stepped on it), moves (names of networks).
    """
    calls, rows, update = [], [], common.Run.update
    originals = {name: f for name, f in common.loss_functions(paper).items() if name.startswith("loss_")}

    def recorded(name, f):
        def loss(*args, **kwargs):
            value = f(*args, **kwargs)
            values = value if isinstance(value, (tuple, list)) else [value]
            shapes = [tuple(a.shape) for a in args if torch.is_tensor(a)]
            calls.extend(dict(loss=name, shapes=shapes, value=v) for v in values if torch.is_tensor(v) and v.requires_grad)
            return value
        return loss

    def looked_at(self, name, loss):
        for call in calls:
            moves = []
            for net_name, net in self.nets.items():
                weights = [p for p in net.parameters() if p.requires_grad]
                if weights:
                    grads = torch.autograd.grad(call["value"], weights, retain_graph=True, allow_unused=True)
                    if any(g is not None and g.abs().sum() > 0 for g in grads):
                        moves.append(net_name)
            rows.append(dict(call, value=call["value"].item(), update=name, moves=moves))
        calls.clear()
        update(self, name, loss)

    try:
        for name, f in originals.items():
            setattr(paper, name, recorded(name, f))
        common.Run.update = looked_at
        with quiet():
            (train or paper.train)(dataclasses.replace(cfg, steps=1, log_every=10, sample_every=10))
    finally:
        common.Run.update = update
        for name, f in originals.items():
            setattr(paper, name, f)
    return rows


def equation(paper, name, rows=()):
    """One loss: its formula, its code, and what came in and out of it in the step that `watch` looked at."""
    code(getattr(paper, name))
    for row in rows:
        if row["loss"] == name:
            shapes = ", ".join(" x ".join(map(str, shape)) for shape in row["shapes"]) or "networks alone"
            display(Markdown(f"given {shapes}: **{row['value']:.4f}**; moves {' and '.join(row['moves']) or 'nothing'}"))
            break


def routes(rows):
    """The table loss x network: who is moved by what."""
    nets = list(dict.fromkeys(net for row in rows for net in row["moves"]))
    table = {}
    for row in rows:
        table.setdefault(row["loss"], set()).update(row["moves"])
    lines = ["| loss | " + " | ".join(nets) + " |", "|---|" + "---|" * len(nets)]
    lines += [f"| `{loss}` | " + " | ".join("moved" if net in moved else "" for net in nets) + " |" for loss, moved in table.items()]
    display(Markdown("\n".join(lines)))


def train(paper, cfg, width=900):
    """A short training; its newest sample grid and line of the log stand below the cell, and change as it goes on."""
    grid, words, sample = display(Markdown(""), display_id=True), display(Markdown(""), display_id=True), common.Run.sample

    def live(self, step, image):
        sample(self, step, image)
        grid.update(picture(image, width))
        line = common.read_jsonl(self.folder / "metrics.jsonl")[-1]
        words.update(Markdown(f"step {step} of {self.cfg.steps}, {line['seconds']:.0f} s, health: {line['health']}"))

    common.Run.sample = live
    try:
        with quiet():
            paper.train(dataclasses.replace(cfg, **dict.fromkeys(("log_every", "sample_every"), max(10, cfg.steps // 8))))
    finally:
        common.Run.sample = sample


def result(name):
    """A report of notebooks/results: claims with their verdicts, as a table."""
    report = json.loads((ROOT / "notebooks" / "results" / f"{name}.json").read_text())
    lines = ["| claim | without | with | verdict |", "|---|---|---|---|"]
    for c in report.get("claims", []):
        lines.append(f"| {c['what']} | {c['without']} | {c['with']} | {c.get('verdict', report['verdict'])} |")
    how = f"`{report['command']}`, seeds {', '.join(map(str, report['seeds']))}, {report['hardware']}, commit {report['commit']}"
    display(Markdown("\n".join(lines) + "\n\n" + how))
    for criterion, met in report.get("criteria", {}).items():
        print(f"{'yes' if met else 'no ':4} {criterion}")


def rows(name, measure):
    """One measure of every row of a report of notebooks/results, mean and spread over its seeds."""
    found = json.loads((ROOT / "notebooks" / "results" / f"{name}.json").read_text())["rows"]
    lines = [f"| row | {measure} |", "|---|---|"]
    lines += [f"| {row.removesuffix(', mean')} | {found[row][measure]:.4f} ± {found[row.removesuffix('mean') + 'std'][measure]:.4f} |"
              for row in found if row.endswith(", mean") and measure in found[row]]
    display(Markdown("\n".join(lines)))


def says(function):
    """The docstring of a function, in lines that fit the page."""
    for line in inspect.getdoc(function).replace("\n" + 10 * " ", " ").splitlines():
        print(textwrap.fill(line, 100, subsequent_indent=" " * 10) if line else "")


def yours(paper, **functions):
    """The project's own tests of these functions, run on yours in their place."""
    import pytest
    for name, mine in functions.items():
        original, tests = getattr(paper, name), common.tests_of(name, ROOT / "tests")
        setattr(paper, name, mine)
        try:
            with contextlib.redirect_stdout(io.StringIO()) as said:
                ended = pytest.main(["-q", "-x", "-p", "no:cacheprovider", *(str(ROOT / "tests" / test) for test in tests)])
        finally:
            setattr(paper, name, original)
        print(f"{name}: {len(tests)} tests " + ("passed" if ended == 0 else "FAILED\n" + said.getvalue()[-1500:]))
