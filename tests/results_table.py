"""README's table of results, made from notebooks/results/*.json:  python tests/results_table.py [--write]"""
import json
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent


def table():
    lines = ["| paper | claim, measured on toy faces | without | with | verdict | how |", "|---|---|---|---|---|---|"]
    for path in sorted((ROOT / "notebooks" / "results").glob("*.json")):
        r = json.loads(path.read_text())
        for claim in r["claims"]:
            verdict = claim.get("verdict", r["verdict"])
            lines.append(f"| [{path.stem}](notebooks/results/{path.name}) | {claim['what']} | {claim['without']} | {claim['with']} | {verdict} | "
                         f"`{r['command']}`, seeds {', '.join(map(str, r['seeds']))}, {r['hardware']}, commit {r['commit']} |")
    return "\n".join(lines) + "\n"


def write(name, command, text):
    """Put the text into README, between its marks of that name."""
    readme = (ROOT / "README.md").read_text()
    start, end = f"<!-- {name}: {command} -->\n", f"<!-- end of {name} -->"
    (ROOT / "README.md").write_text(readme[:readme.index(start) + len(start)] + text + readme[readme.index(end):])


if __name__ == "__main__":
    if "--write" in sys.argv:
        write("results", "python tests/results_table.py", table())
    print(table())
