"""Which releases of TRL our trainers run on: ``python .ci/trl_releases.py 1.12.0 1.16.0``, or ``make trl-releases``.

Fetches each release's wheel without its dependencies and runs, in a process of its own with the wheel before everything
installed, the comparison of signatures (``rl_estimators.trl.upstream``) and a short training with each trainer. A row
for each release says

    ok          it trained: weights moved and are finite
    = stock     ``grpo`` with ``compat="trl"`` has every logged number and weight of that release's own GRPOTrainer
    ErrorName   what came instead; the messages follow the table

Exit code 1 if anything but ok. TRL's other dependencies are the installed ones.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
RELEASES = ("1.12.0", "1.13.0", "1.14.0", "1.16.0")
STEPS = 3
CHECKS = ("signatures", "grpo", "ppo_clip", "reinforce_pp", "gae", "gae_shared", "remax")


def main(arguments=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("releases", nargs="*", help="releases of TRL, or folders that hold a `trl` package")
    parser.add_argument("--within", nargs=2, metavar=("MODEL", "REPORT"), help=argparse.SUPPRESS)
    chosen = parser.parse_args(arguments)
    if chosen.within:
        return within(*map(Path, chosen.within))
    with tempfile.TemporaryDirectory() as scratch:
        found = {}
        build(Path(scratch, "model"))
        for release in chosen.releases or RELEASES:
            tree = Path(release) if Path(release, "trl").is_dir() else fetch(release, Path(scratch))
            found[release] = examine(tree, Path(scratch))
    return report(found)


def fetch(release, scratch):
    """Unpack the release's wheel and return the folder it lies in."""
    folder = scratch / release
    command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--only-binary=:all:"]
    subprocess.run([*command, "-d", str(folder), f"trl=={release}"], check=True)
    with zipfile.ZipFile(next(folder.glob("*.whl"))) as wheel:
        wheel.extractall(folder)
    return folder


def environment(*folders):
    path = [str(folder) for folder in (*folders, ROOT / "tests" / "trl")]
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([*path, os.environ.get("PYTHONPATH", "")]),
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
    }


def build(folder):
    """The tests' tiny model."""
    code = f"import toy, pathlib; toy.build(pathlib.Path({str(folder)!r}))"
    subprocess.run([sys.executable, "-c", code], env=environment(), check=True, capture_output=True)


def examine(tree, scratch):
    """What each check found with the package in ``tree``."""
    answer = scratch / "report.json"
    answer.unlink(missing_ok=True)
    command = [sys.executable, __file__, "--within", str(scratch / "model"), str(answer)]
    done = subprocess.run(command, env=environment(tree), capture_output=True, text=True)
    if not answer.exists():
        return {"signatures": f"NoReport: {done.stderr.strip()[-2000:]}"}
    return json.loads(answer.read_text())


def within(model, answer):
    """In the release's own process: run every check, and write down what came of it."""
    import toy
    import trl

    found = {"release": trl.__version__}
    for name in CHECKS:
        with tempfile.TemporaryDirectory() as folder:
            settings = toy.settings(folder, max_steps=STEPS)
            try:
                found[name] = run(name, model, settings)
            except Exception as error:  # whatever it is, it is the answer
                found[name] = f"{type(error).__name__}: {error}"
    answer.write_text(json.dumps(found))
    return 0


def run(name, model, settings):
    """One check: the word for the table."""
    import torch
    import toy

    from rl_estimators import trl as ours

    if name == "signatures":
        ours.upstream.check()
        return "ok"
    kinds = {
        "grpo": (ours.GRPOTrainer, ours.GRPOConfig, {"adv_estimator_kwargs": {"compat": "trl"}}),
        "ppo_clip": (ours.GRPOTrainer, ours.GRPOConfig, {"policy_loss": "ppo_clip", "beta": 0.01}),
        "reinforce_pp": (ours.ReinforcePPTrainer, ours.ReinforcePPConfig, {"num_generations": 1}),
        "gae": (ours.PPOTrainer, ours.PPOConfig, {"num_generations": 1}),
        "gae_shared": (ours.PPOTrainer, ours.PPOConfig, {"num_generations": 1, "critic": "shared"}),
        "remax": (ours.ReMaxTrainer, ours.ReMaxConfig, {"num_generations": 1}),
    }
    trainer, config, fields = kinds[name]
    before = toy.make(trainer, config(**{**settings, **fields}), model)
    start = toy.weights(before)
    done = toy.train(trainer, config(**{**settings, **fields}), model)
    finite = all(tensor.isfinite().all() for tensor in done.weights.values())
    moved = any(not torch.equal(start[key], done.weights[key]) for key in start)
    if not (finite and moved):
        return f"NotTrained: finite {finite}, moved {moved}"
    if name != "grpo":
        return "ok"
    import trl

    toy.same(done, toy.train(trl.GRPOTrainer, trl.GRPOConfig(**settings), model))
    return "= stock"


def report(found):
    """Print the table, then the messages; whether anything is amiss."""
    width = max(len(name) for name in CHECKS) + 3
    print("TRL".ljust(10) + "".join(name.ljust(width) for name in CHECKS))
    amiss = []
    for release, answers in found.items():
        words = {name: answers.get(name, "-") for name in CHECKS}
        amiss += [f"{release} {n}: {word}" for n, word in words.items() if word not in ("ok", "= stock")]
        label = str(answers.get("release", Path(release).name))
        print(
            label.ljust(10) + "".join(word.split(":")[0][: width - 1].ljust(width) for word in words.values())
        )
    print(*amiss, sep="\n", end="\n" if amiss else "")
    return int(bool(amiss))


if __name__ == "__main__":
    sys.exit(main())
