"""Keep the generators of a training for --demo:  python tests/ship.py runs/stargan/last.pt

Writes notebooks/weights/<model>.pt, in half precision, with the command, machine and commit of the training.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from lab.demos import WEIGHTS, ship  # noqa: E402
from lab.files import load_checkpoint  # noqa: E402

if __name__ == "__main__":
    for last in sys.argv[1:]:
        saved = load_checkpoint(last)
        path = WEIGHTS / f"{saved['config'].get('model', saved['paper'])}.pt"
        print(f"{path}: {ship(last, path) / 2**20:.1f} MiB")
