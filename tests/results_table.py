"""notebooks/results/README.md, made from the reports beside it:  python tests/results_table.py --write"""

import json
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / "notebooks" / "results"
HEAD = """# Results

Written by `python tests/results_table.py --write` from the reports in this folder.
Claims are measured on toy faces, whose truth is known, over three seeds, against bars that stood in the
docstring of `ablate` before the run. Reproduced: all are met. Partly: some of them; bars that only check that
nothing else got worse do not count. Of L1, dE, error and excess less is better, of SSIM, FSIM, IoU, R^2 and
rank-1 more. Each section names its commit, whose small recipe it is of: check it out to repeat the rows
(where there is a GPU, with `--device cpu`). A `+` marks a change that was committed right after the run. The
files have been rewritten since; where a recipe has changed, its rows are still those of the recipe before.

## Claims

| report | measure: the first, the second | the first | the second | verdict |
|---|---|---|---|---|
"""
REPLACED = """
## Experiments that were replaced

Their designs could not show the claim, or their recipes were too poor. New bars stood before the new runs.

- iacyclegan: the reader knew people by the colour of their skin, which no sketch tells, and the identity loss
  compared different crops of a face, so that most of it was noise; the chain went to round 3.
- drgan: everybody was seen in every pose, from which a classifier learns all about turning; 1,500 steps were
  too few to draw; the bar for what the feature tells of the pose lay below chance; six pictures of a person
  are recognised whatever happens to some.
- cyclegan: generators that did not begin by copying found the negative in one seed of three.
- pix2pix: maps painted every region in one colour for everybody, so nothing said whose face was wanted.
- pairedcyclegan: bars asked for more than the warped reference itself can give; a training without [L_S] and
  D_S stood for a CycleGAN; the warped reference brought irises and brows along; the make-up was faint.
- stargan: age showed in a few thin lines, which at 48 px nobody sees, not even in true pictures; now the old
  have grey hair and deep wrinkles. ("joint" and "triple" were measured with the older faces.)
"""


def reports():
    """{name: report} of the ablations, in order of name."""
    found = {path.stem: json.loads(path.read_text()) for path in sorted(FOLDER.glob("*.json"))}
    return {name: report for name, report in found.items() if "claims" in report}


def evaluations():
    """Sections on single trainings: NAME_evaluation.json is a copy of the evaluation.json of one."""
    text = "\n## Single trainings\n"
    for path in sorted(FOLDER.glob("*_evaluation.json")):
        r = json.loads(path.read_text())
        text += f"\n### {path.stem}\n\n`{r['command']}`, {r['hardware']}, commit {r['commit']}; {r['notes']}"
        text += f". [The report]({path.name}).\n"
        text += rows({"rows": {f"{name}, mean": row for name, row in r["rows"].items()}})
    return text


def cell(text):
    return "" if text is None else str(text).replace("|", "\\|")


def claims():
    lines = []
    for name, r in reports().items():
        for c in r["claims"]:
            lines.append(
                f"| [{name}](#{name}) | {cell(c['what'])} | {c['without']} | {c['with']} | {c['verdict']} |"
            )
    return "\n".join(lines) + "\n"


def mean_and_std(mean, std):
    """A cell; what rounding has left of a zero is 0."""
    found = [(mean, ".4g"), (std, ".2g")]
    return " ± ".join(format(0 if abs(v) < 1e-6 else v, form) for v, form in found if v is not None)


def rows(report):
    """The rows of a report, mean ± std over the seeds; rows with no measure in common are tables apart."""
    means = {
        n.removesuffix(", mean"): (row, report["rows"].get(n.removesuffix("mean") + "std", {}))
        for n, row in report["rows"].items()
        if n.endswith(", mean")
    }
    blocks = []
    for name, (row, std) in means.items():
        if not blocks or not any(row.keys() & other.keys() for other, _ in blocks[-1].values()):
            blocks.append({})
        blocks[-1][name] = row, std
    text = ""
    for block in blocks:
        for topic, columns in by_topic(list(dict.fromkeys(k for row, _ in block.values() for k in row))):
            lines = [
                [name, *(mean_and_std(row.get(c), std.get(c)) for c in columns)]
                for name, (row, std) in block.items()
            ]
            text += "\n" + grid([topic, *(c.removeprefix(f"{topic} ") for c in columns)], lines)
    return text


def by_topic(columns, most=10):
    """[(topic, columns)]: too wide a table is cut into one for each first word, if columns share it."""
    topics = {}
    for column in columns:
        topics.setdefault(column.split()[0], []).append(column)
    if len(columns) > most and min(map(len, topics.values())) > 2:
        return list(topics.items())
    return [("", columns)]


def section(name, r):
    how = f"`{r['command']}`, {r['steps']} steps, seeds {', '.join(map(str, r['seeds']))}, {r['hardware']}, "
    how += f"{r['seconds'] / 3600:.1f} hours of training, commit {r['commit']}. [The report]({name}.json)."
    met = "\n".join(f"- {'met' if v else 'missed'}: {k}" for k, v in r.get("criteria", {}).items())
    return f"\n### {name}\n\n{how}\n{rows(r)}\n{met}\n"


def measured(name, title):
    """A table of time and memory: {"about": text, "columns": [...], "rows": [[...]]}."""
    path = FOLDER / f"{name}.json"
    if not path.exists():
        return ""
    r = json.loads(path.read_text())
    text = f"\n## {title}\n\n{r['about']}\n\n" + grid(r["columns"], r["rows"])
    return text + "\n".join(["", *r["notes"], ""] if "notes" in r else [])


def grid(columns, lines):
    """A table in Markdown."""
    head, *body = ["| " + " | ".join(map(cell, line)) + " |" for line in (columns, *lines)]
    return "\n".join([head, "|---" * len(columns) + "|", *body]) + "\n"


def on_gpu():
    """What tests/on_gpu.py reported: its report.json as on_gpu.json, of a further call as on_gpu_2.json.
    Without one: the older table gpu.json.
    """
    calls = [json.loads(path.read_text()) for path in sorted(FOLDER.glob("on_gpu*.json"))]
    if not calls:
        return measured("gpu", "On a GPU")
    r = {"command": "; ".join(call["command"] for call in calls)}
    for name in ("environment", "bench", "authors", "compile", "medium"):
        r[name] = {key: value for call in calls for key, value in call.get(name, {}).items()}
    env = next(iter(r["environment"].values()), {"reason": "environment not asked for"})
    known = "{device}, PyTorch {torch}, commit {commit}" if "device" in env else "{reason}"
    text = f"\n## On a GPU\n\n`{r['command']}`, {known.format_map(env)}.\n\n"
    keys, lines = ("total ms", "GFLOP", "share of the matmul rate", "peak GiB"), []
    for model, found in r["bench"].items():
        for scale in ("paper", "medium"):
            both = [found.get(scale, {}).get(precision, {}) for precision in ("bfloat16", "TF32")]
            cells = [" / ".join(str(p.get(k, "-")) for p in both) for k in keys]
            lines.append([model, scale, *cells, found.get("reason", "")])
    text += grid(["model", "recipe", *(f"{k}, bfloat16 / TF32" for k in keys), "ended early"], lines)

    lines = []
    for model, a in r["authors"].items():
        c = r["compile"].get(model, {})
        ms = [a.get(k) for k in ("theirs ms", "ours, bfloat16, ms")]
        ms += [c.get(k) for k in ("compiled ms", "reduce-overhead ms")]
        lines.append([model, *ms, "; ".join(part["reason"] for part in (a, c) if "reason" in part)])
    text += "\nA step in the manner of the authors' code, ours, and ours under `torch.compile`, in ms:\n\n"
    text += grid(["model", "authors' manner", "ours", "compiled", "with CUDA graphs", "ended early"], lines)

    lines = []
    for model, m in r["medium"].items():
        why = [*m.get("reasons", []), *([m["reason"]] if "reason" in m else [])]
        lines.append([model, ", ".join(m.get("last told", [])), m.get("seconds"), "; ".join(why)])
    text += "\nThe medium recipes beside each other, as long as the time allowed:\n\n"
    return text + grid(["model", "came to", "seconds of training", "ended early"], lines)


def page():
    text = HEAD + claims() + "\n## Every row\n" + "".join(section(name, r) for name, r in reports().items())
    text += evaluations() + REPLACED
    text += measured("speed", "Time and memory of a step") + measured("authors", "Beside the authors' manner")
    return text + on_gpu()


def write(name, report):
    """Keep a table of time and memory, and write the page anew."""
    (FOLDER / f"{name}.json").write_text(json.dumps(report, indent=1) + "\n")
    (FOLDER / "README.md").write_text(page())


if __name__ == "__main__":
    if "--write" in sys.argv:
        (FOLDER / "README.md").write_text(page())
    else:
        print(page())
