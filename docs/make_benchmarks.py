"""docs/benchmarks.md, its pictures and the README's table, from benchmarks/results/.

    python docs/make_benchmarks.py                               writes them
    python docs/make_benchmarks.py --check                       whether they say what the results say; exit code 1: no
    python docs/make_benchmarks.py --results DIR --to FOLDER     a page of other results, into another folder

The text stands in benchmarks.template. Beside Markdown it has:

    {{name}}                     a table: the function of that name in benchmark_tables.py or storage_tables.py
    {{file:path.to.it*100|.0f}}  a number: of which results, where in them, times what, in which format
    <!-- with FILE -->           to <!-- end -->: left out where there are no such results
    <!-- without FILE -->        likewise, where there are

A table says itself where it is from. All of it is committed; tests/docs compares.
"""

import argparse
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))  # what judges a comparison there judges it here

import benchmark_tables
import storage_tables
from benchmark_pictures import PICTURES
from benchmark_tables import Results

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
TEMPLATE, README = ROOT / "docs" / "benchmarks.template", ROOT / "README.md"
PAGE, PICTURES_OF_IT = Path("benchmarks.md"), Path("pictures")
SIDE_BY_SIDE = ("compare_peers", "bench_storage", "bench_scale", "bench_nodes")
ONLY = re.compile(r"^<!-- (with|without) (\w+) -->\n(.*?)^<!-- end -->\n", re.MULTILINE | re.DOTALL)
TABLE = re.compile(r"^\{\{(\w+)\}\}$", re.MULTILINE)
NUMBER = re.compile(r"\{\{(\w+):([\w.]+)(?:\*([\d.e-]+))?\|([^}]+)\}\}")
MARKED = re.compile(r"(<!-- benchmarks: .*? -->\n).*?(<!-- end of benchmarks -->)", re.DOTALL)


def results_in(folder: Path) -> Results:
    """By file, those that are side by side first. An empty one is of a benchmark that can't run there."""
    found = {path.stem: json.loads(path.read_text()) for path in sorted(folder.glob("*.json")) if path.stat().st_size}
    return {name: found[name] for name in [*SIDE_BY_SIDE, *found] if name in found}


def page(template: str, results: Results) -> str:
    """KeyError, ValueError: the template names what isn't in the results."""
    text = ONLY.sub(lambda of: of[3] if (of[1] == "with") == (of[2] in results) else "", template)
    text = TABLE.sub(lambda of: table_named(of[1])(results), text)
    text = NUMBER.sub(lambda of: number_in(results[of[1]], of[2], float(of[3] or 1), of[4]), text)
    return re.sub(r"\n{3,}", "\n\n", text)


def table_named(name: str) -> Callable[[Results], str]:
    return getattr(storage_tables, name, None) or getattr(benchmark_tables, name)


def number_in(result: Any, path: str, factor: float, spec: str) -> str:
    for name in path.split("."):
        result = result[int(name)] if isinstance(result, list) else result[name]
    return format(result * factor if spec != "s" else str(result), spec)


def readme(text: str, results: Results) -> str:
    """With its table anew: what was asked, and what came of it. ValueError: there is no place for it."""
    own = {name: results[name] for name in SIDE_BY_SIDE if name in results}
    made = benchmark_tables.goals(own).replace("](../benchmarks", "](benchmarks")
    if not MARKED.search(text):
        raise ValueError("README.md has no <!-- benchmarks: ... --> and <!-- end of benchmarks -->")
    return MARKED.sub(lambda of: f"{of[1]}{made}\n{of[2]}" if made else of[1] + of[2], text)


def made(results: Results) -> dict[Path, str]:
    """The page and its pictures, by their paths below docs/."""
    pictures = {PICTURES_OF_IT / name: draw(results) for name, (needed, draw) in PICTURES.items() if needed in results}
    return {PAGE: page(TEMPLATE.read_text(), results), **pictures}


def committed() -> dict[Path, str]:
    results = results_in(RESULTS)
    files = {ROOT / "docs" / path: text for path, text in made(results).items()}
    return files | {README: readme(README.read_text(), results)}


def stale() -> list[str]:
    """The files that don't say any more what the results say, and pictures of what isn't there any more."""
    files = committed()
    left = [path for path in (ROOT / "docs" / PICTURES_OF_IT).glob("*.svg") if path not in files]
    wrong = [path for path, text in files.items() if not path.is_file() or path.read_text() != text]
    return [str(path.relative_to(ROOT)) for path in [*wrong, *left]]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--check", action="store_true", help="change nothing; exit code 1: something is stale")
    parser.add_argument("--results", type=Path, default=RESULTS, help="a folder with the benchmarks' JSON")
    parser.add_argument("--to", type=Path, help="a folder for the page and its pictures, in place of docs/")
    given = parser.parse_args()
    if given.check:
        for name in stale():
            print(f"{name} doesn't say what the results say: python docs/make_benchmarks.py", file=sys.stderr)
        sys.exit(1 if stale() else 0)
    files = committed()
    if given.to is not None:
        files = {given.to / path: text for path, text in made(results_in(given.results)).items()}
    for path, text in files.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    if given.to is not None:
        print(given.to / PAGE)


if __name__ == "__main__":
    main()
