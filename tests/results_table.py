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


if __name__ == "__main__":
    if "--write" in sys.argv:
        readme = ROOT / "README.md"
        text, start, end = readme.read_text(), "<!-- results: python tests/results_table.py -->\n", "<!-- end of results -->"
        readme.write_text(text[:text.index(start) + len(start)] + table() + text[text.index(end):])
    print(table())
