"""Gathers what the example learn_where_to_look wrote: one record, the tables of its page, and the picture.

python examples/learn_where_to_look.py -o look-out/
python examples/learn_where_to_look.py -o look-out/ --others --seeds 2
python examples/learn_where_to_look.py -o look-out/ --tune
python docs/make_learn_where_to_look.py look-out/
"""

from __future__ import annotations

import importlib.util
import itertools
import json
import re
import sys
from pathlib import Path
from types import ModuleType

from PIL import Image

DOCS = Path(__file__).parent
PAGE, RECORD = DOCS / "learn_where_to_look.md", DOCS / "learn_where_to_look.json"
PICTURE = DOCS / "images" / "learn_where_to_look.png"


def example() -> ModuleType:
    """The example's module."""
    spec = importlib.util.spec_from_file_location("look", DOCS.parent / "examples" / "learn_where_to_look.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["look"] = module  # its dataclass looks itself up there
    spec.loader.exec_module(module)
    return module


look = example()


def other_table(runs: list[dict]) -> str:
    """The croppers under other conditions."""
    lines = [
        "| what is different | reduction of the whole scene | recipe, % | box side, % | diffcrop, % | box side, % |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for other in look.OTHERS:
        job = look.Job("", 0, **other)
        cells = [", ".join(f"{name} {value:g}" for name, value in other.items()), f"{job.scene / job.crop:g}"]
        for method in look.CROPPERS:
            asked = look.asdict(look.Job(method, 0, **(look.BEST[method] | other)))
            ends = [r["history"][-1] for r in runs if r["job"] == asked | {"seed": r["job"]["seed"]}]
            cells += [look.spread([end[key] for end in ends]) for key in ("accuracy", "side")]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def means(runs: list[dict]) -> dict[tuple, list[float]]:
    """(method, rate, share, start) -> accuracies, on one tuning seed or on both."""
    found: dict[tuple, list[float]] = {}
    for r in runs:
        key = tuple(r["job"][name] for name in ("method", *look.GRID))
        found.setdefault(key, []).append(look.accuracy(r))
    return found


def best_settings(runs: list[dict]) -> dict[str, dict[str, float]]:
    """Of what was tried on both seeds, the best by method."""
    finals = {key: sum(values) for key, values in means(runs).items() if len(values) == len(look.TUNING_SEEDS)}
    best = {
        method: max((key for key in finals if key[0] == method), key=lambda key: finals[key]) for method in look.NAMES
    }
    return {method: dict(zip(look.GRID, key[1:], strict=True)) for method, key in best.items()}


def tuning_table(runs: list[dict]) -> str:
    """The accuracy of both croppers with every setting, on one seed or, of the best, on two."""
    found = means(runs)
    lines = [
        "| rate | localiser's share | box at the start | recipe, % | diffcrop, % |",
        "| --- | --- | --- | --- | --- |",
    ]
    for setting in itertools.product(*look.GRID.values()):
        cells = [" and ".join(f"{100 * value:.0f}" for value in found[(method, *setting)]) for method in look.CROPPERS]
        lines.append("| " + " | ".join([*map(str, setting), *cells]) + " |")
    return "\n".join(lines)


def tables(record: dict) -> dict[str, str]:
    return {
        "results": look.table(record["results"]),
        "others": other_table(record["others"]),
        "tuning": tuning_table(record["tuning"]),
    }


def main() -> None:
    folder = Path(sys.argv[1])
    record = {
        name: json.loads((folder / f"{name}.json").read_text())["runs"] for name in ("results", "others", "tuning")
    }
    for r in itertools.chain(record["others"], record["tuning"]):
        del r["history"][:-1], r["shown"]  # how these ended is enough
    RECORD.write_text(json.dumps(record, separators=(",", ":")).replace('{"job"', '\n{"job"') + "\n")
    page = PAGE.read_text()
    for name, table in tables(record).items():
        page, found = re.subn(
            rf"(<!-- {name}:begin -->\n).*?(<!-- {name}:end -->)", rf"\g<1>{table}\n\2", page, flags=re.DOTALL
        )
        if found != 1:
            raise SystemExit(f"{PAGE} has no place for {name}")
    PAGE.write_text(page)
    look.picture(record["results"], PICTURE)
    with Image.open(PICTURE) as picture:
        fewer = picture.convert("RGB").quantize(200)  # half the size
    fewer.save(PICTURE, optimize=True)
    print(best_settings(record["tuning"]))


if __name__ == "__main__":
    main()
