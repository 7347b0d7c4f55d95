"""How our ``compat`` stands to upstream's own numbers: ``python .ci/against_upstream.py``, or ``make against-upstream``.

Fetches the wheel of each release of verl and TRL without its dependencies and computes, in a process of its own with the
wheel before everything installed, the golden cases of ``tests/reference/cases.py`` by upstream's functions or trainers,
by ours with ``compat``, by ours without and by the definition. Writes two tables for each library to
``benchmarks/results/against_upstream.md``: the largest difference by release, and the cases in which upstream does not do
what its paper says, with the numbers. Exit code 1 if there is a difference that nobody has explained.
"""

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
TABLE = ROOT / "benchmarks/results/against_upstream.md"
RELEASES = (
    *("verl==0.8.0", "verl==0.9.0", "verl==0.9.1"),
    *("trl==1.12.0", "trl==1.13.0", "trl==1.14.0", "trl==1.16.0"),
)
TOLERANCE = 1e-4  # as in tests/parity/comparing.py, which is not imported here

# Why upstream is at odds with the definition, or with us.
TRAPS = {
    "verl": {
        "padding": "NaN or infinity at a masked position reaches valid tokens: 0 times NaN is NaN",
        "score": "one score that is not finite spoils its group, and the batch where that is whitened",
        "masked": "rewards on masked tokens count in the score, where estimators without groups drop them (our adapter for verl "
        "carries them to a valid token)",
        "empty": "a response without a valid token counts in its group, with score 0 (`compat` leaves it out)",
        "alone": "a group of one gets its raw score, or is refused; its own mean leaves 0 (`compat` takes the raw score over)",
        "rounding": "equal, or nearly equal, scores in fp32: the rounding error of their mean is divided by its own size",
        "reset": "the return starts anew at each masked token: tool output cuts a token off from the reward after it",
        "few": "a batch with fewer than two valid tokens to whiten is refused",
        "gpg": "its alpha counts scores of 0 where the paper counts groups of equal scores (`compat` takes that over)",
        "gdpo": "the batch's statistics are over tokens where the paper's are over responses (`compat` takes that over)",
        "holes": "returns at masked tokens are another token's advantage plus whatever value stands there",
        "bool": "a mask of bools is refused",
        "uids": '`grpo_vectorized`: the uids "1", "01" and "001" are one group',
        "bfloat16": "sums are kept in the rewards' own precision",
    },
    "trl": {
        "score": "one infinite score: the numbers of its group become 0, or the largest of fp32",
        "component": "a completion without one of its rewards is scored by the others, as if that one were average",
        "rounding": "equal, or nearly equal, scores in fp32: the rounding error of their mean is divided by its own size",
    },
}
UPSTREAM = {
    "verl": {
        "reinforce_pp": "reinforce_plus_plus",
        "reinforce_pp_baseline": "reinforce_plus_plus_baseline",
    },
    "trl": {"grpo": "GRPOTrainer", "rloo": "RLOOTrainer", "gdpo": "GRPOTrainer, normalize_then_sum"},
}
HEAD = f"""# `compat` against upstream's own numbers

Made by `make against-upstream`. The cases are those of `tests/reference/cases.py`, in fp32, advantages and returns at
valid tokens. A difference is relative to the largest of upstream's numbers in the case, or to 1 if that is less; in
brackets the number of cases that agree to {TOLERANCE:g}, of all. verl's functions get each case twice: as it stands, with
numbers at masked positions, and with 0 there. TRL's trainers get the cases' scores, in groups of two and of three.
"""
WRONG = """
Every case that does not agree, and every one in which upstream agrees with `compat` and not with the definition, is one of
these. The numbers are of the one that is furthest from the definition, at the token where it is. "Ours" is what you get
without `compat`. A blank: upstream raised an error, or the case is beside the golden ones and `compat` was not asked.
"""


def main(arguments=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "releases", nargs="*", help="verl==0.9.1, trl==1.16.0, ..., or folders that hold one of the packages"
    )
    parser.add_argument("--to", type=Path, default=TABLE, help="where the tables go")
    parser.add_argument("--within", nargs=3, metavar=("LIBRARY", "MODEL", "REPORT"), help=argparse.SUPPRESS)
    chosen = parser.parse_args(arguments)
    if chosen.within:
        return within(*chosen.within)
    found = {"verl": {}, "trl": {}}
    with tempfile.TemporaryDirectory() as scratch:
        for release in chosen.releases or RELEASES:
            tree = Path(release) if Path(release).is_dir() else fetch(release, Path(scratch))
            library = "verl" if (tree / "verl").is_dir() else "trl"
            answer = examine(library, tree, Path(scratch))
            found[library][answer["release"]] = answer["rows"]
            print(f"{library} {answer['release']}: {len(answer['rows'])} comparisons", flush=True)
    chosen.to.write_text(report(found))
    return int(bool(unexplained(found)))


def fetch(release, scratch):
    """Unpack the release's wheel and return the folder it lies in."""
    folder = scratch / release
    command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--only-binary=:all:"]
    subprocess.run([*command, "-d", str(folder), release], check=True)
    with zipfile.ZipFile(next(folder.glob("*.whl"))) as wheel:
        wheel.extractall(folder)
    return folder


def examine(library, tree, scratch):
    """The rows that a process finds with the package in ``tree``."""
    answer = scratch / "report.json"
    answer.unlink(missing_ok=True)
    paths = [str(path) for path in (tree, ROOT / "tests", ROOT / "tests/trl")]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([*paths, os.environ.get("PYTHONPATH", "")]),
        "VERL_USE_EXTERNAL_PLUGINS": "none",  # its own functions, without us
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
        "TRL_EXPERIMENTAL_SILENCE": "1",
    }
    command = [
        sys.executable,
        "-W",
        "ignore",
        __file__,
        "--within",
        library,
        str(scratch / "model"),
        str(answer),
    ]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if not answer.exists():
        raise SystemExit(f"{library} in {tree}:\n{done.stderr.strip()[-3000:]}")
    return json.loads(answer.read_text())


def within(library, model, answer):
    """In the release's own process: compare, and write down what came of it."""
    import importlib
    import importlib.metadata

    import torch
    from parity import against_trl, against_verl

    torch.set_num_threads(1)
    if library == "verl":
        folder = Path(importlib.import_module("verl").__file__).parent
        release, rows = (folder / "version/version").read_text().strip(), against_verl.measure()
    else:
        build(model)
        release, rows = importlib.import_module("trl").__version__, against_trl.measure(model)
    Path(answer).write_text(json.dumps({"release": release, "rows": rows}))
    return 0


def build(folder):
    """A tiny untrained model for TRL's trainers, and its tokenizer."""
    import toy

    model = toy.digit_sort("model")
    tokenizer = model.build_tokenizer()
    model.build_model(tokenizer, 0).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


# ------------------------------------------------------------------------------------------------------- the tables


def report(found):
    """The page."""
    lines = [HEAD]
    for library, title in (("verl", "verl"), ("trl", "TRL")):
        lines += [f"## {title}\n", *agreement(library, found[library])]
        lines += [f"\n### Where {title} and the definition part", WRONG, *apart(library, found[library]), ""]
    return "\n".join(lines)


def agreement(library, releases):
    """The largest differences, a row for each estimator."""
    yield f"| estimator | upstream's | {' | '.join(releases)} | furthest apart in |"
    yield "|---" * (len(releases) + 3) + "|"
    for name in dict.fromkeys(row["estimator"] for rows in releases.values() for row in rows):
        cells, worst = [], None
        for rows in releases.values():
            own = [row for row in rows if row["estimator"] == name and not row.get("probe")]
            same = [row for row in own if row.get("difference", math.inf) <= TOLERANCE]
            worst = max(same, key=lambda row: row["difference"])
            cells.append(f"{worst['difference']:.1e} ({len(same)} of {len(own)})")
        furthest = worst["case"] if worst["difference"] else "none: equal to the bit"
        yield f"| `{name}` | {UPSTREAM[library].get(name, name)} | {' | '.join(cells)} | {furthest} |"


def apart(library, releases):
    """What goes wrong, then a row for each reason and estimator."""
    seen = {row["trap"] for rows in releases.values() for row in rows}
    yield from (f"- *{trap}*: {sentence}" for trap, sentence in TRAPS[library].items() if trap in seen)
    yield "\n| | estimator | releases | cases | furthest in | upstream | definition | ours | `compat` |"
    yield "|---" * 9 + "|"
    for trap in TRAPS[library]:
        for name in dict.fromkeys(row["estimator"] for rows in releases.values() for row in rows):
            own = {release: picked(rows, trap, name) for release, rows in releases.items()}
            own = {release: rows for release, rows in own.items() if rows}
            if own:
                said = "all" if len(own) == len(releases) else ", ".join(own)
                rows = [*own.values()][-1]
                row = max(rows, key=lambda row: row.get("from_definition", 0.0))
                yield f"| {trap} | `{name}` | {said} | {len(rows)} | {row['case']} | {shown(row)} |"


def picked(rows, trap, name):
    return [row for row in rows if row["trap"] == trap and row["estimator"] == name]


def shown(row):
    """Upstream's number, the definition's and ours; or what upstream raised."""
    if "error" in row:
        return f"{row['error']} | | | "
    found = (row["numbers"].get(key) for key in ("upstream", "definition", "ours", "compat"))
    return " | ".join("" if number is None else f"{number:.4g}" for number in found)


def unexplained(found):
    """Rows with a difference and no reason; printed."""
    rows = [
        (library, release, row)
        for library, releases in found.items()
        for release, rows in releases.items()
        for row in rows
        if row["trap"] == "unexplained"
    ]
    for row in rows:
        print("unexplained:", *row)
    return rows


if __name__ == "__main__":
    sys.exit(main())
