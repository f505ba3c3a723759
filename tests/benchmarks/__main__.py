"""Measure and write ``outputs/bench/results.csv``: ``python -m tests.benchmarks [--only name] [--list]``.

Every ``bench_*.py`` here takes part. It has a tuple ``BENCHES`` of plain functions, or one function ``rows``, each
giving rows (``Row`` or a dict of the same keys); a bench is named after its function. ``--only`` takes part of the name
of a bench or of its file.
"""

import argparse
import importlib
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.benchmarks import rows


def benches(only: str = "") -> Iterator[tuple[str, Callable[[], list[rows.Row]]]]:
    """Names and functions of the benches; with ``only`` such as ``data.epochs`` no other file is imported."""
    file = only.split(".")[0] if "." in only else ""
    for path in sorted(Path(__file__).parent.glob(f"bench_{file or '*'}.py")):
        room = importlib.import_module(f"tests.benchmarks.{path.stem}")
        for bench in room.BENCHES if hasattr(room, "BENCHES") else (room.rows,):
            name = f"{path.stem.removeprefix('bench_')}.{bench.__name__}"
            if only in name:
                yield name, bench


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=__doc__)
    parser.add_argument("--only", default="", help="part of a bench's name")
    parser.add_argument("--list", action="store_true", help="name the benches and stop")
    given = parser.parse_args()
    chosen = list(benches(given.only))
    if given.list or not chosen:
        print("\n".join(name for name, _ in chosen or benches()))
        return 0 if given.list else 2
    failed = 0
    for name, bench in chosen:
        print(f"{name} …", flush=True)
        try:
            measured = [row if isinstance(row, rows.Row) else rows.Row(**row) for row in bench()]
        except Exception:
            traceback.print_exc()
            failed += 1
            continue
        rows.merge(measured)
        for row in measured:
            ratio = f"{row.ratio} x {row.baseline}" if row.ratio != "" else ""
            print(f"  {row.name}: {row.value} {row.unit}  {ratio}  target {row.target or '-'}", flush=True)
    print(rows.results())
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
