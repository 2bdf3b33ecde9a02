"""``python -m tests.sim.refresh_golden``: write tests/sim/golden.json anew, and say what moved."""

from __future__ import annotations

import json

from tests.sim.golden_runs import GOLDEN, RUNS, committed, run


def main():
    before = committed() if GOLDEN.exists() else {}
    after = {name: run(name) for name in RUNS}
    for name, values in after.items():
        was = before.get(name, {})
        moved = [
            f"{key} {was.get(key)} -> {values[key]}"
            for key in values
            if was.get(key) != values[key]
        ]
        print(f"{name}: {', '.join(moved) or 'unchanged'}")
    GOLDEN.write_text(json.dumps(after, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
