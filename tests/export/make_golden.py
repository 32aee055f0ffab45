"""Write golden.json: tokens of transformers' modules with the seeded weights of tiny encoders.

python tests/export/make_golden.py     # needs the extra `oracle`; keeps every ninth channel
"""

import json
from pathlib import Path

from checkpoints import TINY, canonical
from oracle import load, tokens_of

from dinoreg_export.verify.compare import probe

GRID = (3, 4)


def main() -> None:
    """Write the file beside this one, with one encoder per line."""
    golden = {}
    for name, a in TINY.items():
        prefix = getattr(a, "prefix_tokens", 1)
        pixels = probe(GRID[0] * a.patch, GRID[1] * a.patch, count=1)
        tokens, cls = tokens_of(load(a, canonical(a)), pixels, prefix)
        golden[name] = {
            "grid": GRID,
            "tokens": [[round(float(v), 6) for v in row[::9]] for row in tokens[0]],
            "cls": [round(float(v), 6) for v in cls[0, ::9]],
        }
    text = ",\n".join(f"{json.dumps(name)}: {json.dumps(entry)}" for name, entry in golden.items())
    Path(__file__).with_name("golden.json").write_text(f"{{\n{text}\n}}\n", "utf-8")


if __name__ == "__main__":
    main()
