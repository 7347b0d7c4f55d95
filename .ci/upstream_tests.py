"""The hosts' own tests, without our package and with it: ``python .ci/upstream_tests.py``, or ``make upstream-tests``.

    python .ci/upstream_tests.py [verl] [ray] [trl] [--trl-tests FOLDER] [-k EXPRESSION]

    verl   the tests in verl's wheel of what we hook into or stand beside, that need no GPU
    ray    those of its workers, which start Ray: what the plugin is loaded into
    trl    TRL's tests of its GRPO trainer, by .ci/trl_tests.py; they are in no wheel, so it needs a checkout's folder

``verl`` without a word, and ``trl`` where a folder is given; ``ray`` takes long and has to be asked for. Each test of verl's is run twice, with the plugin kept out
(``VERL_USE_EXTERNAL_PLUGINS=none``) and with it, and the two outcomes are compared. Prints the tests that differ, the
counts, and the hooks that were in force in the second run. Exit code 1 if an outcome differs, if the plugin was not
loaded or did not load whole, or if a file listed here is not there.
"""

import argparse
import importlib
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

FILES = {
    "verl": (
        "trainer",
        "plugin",
        "test_protocol_on_cpu.py",
        "test_protocol_v2_on_cpu.py",
        "test_base_config_on_cpu.py",
        "experimental/agent_loop/test_agent_loop_extra_fields_schema_on_cpu.py",
        "experimental/agent_loop/test_audio_server_contract_on_cpu.py",
        "experimental/agent_loop/test_call_tool_on_cpu.py",
        "experimental/agent_loop/test_multimodal_position_ids_on_cpu.py",
        "experimental/agent_loop/test_qwen3_tool_parser_on_cpu.py",
        "experimental/agent_loop/test_tool_call_id_on_cpu.py",
        "experimental/fully_async_policy/test_async_genrm_config_on_cpu.py",
        "checkpoint_engine/test_fsdp_lora_only_checkpoint_on_cpu.py",
        "checkpoint_engine/test_global_steps_on_cpu.py",
        "checkpoint_engine/test_sglang_fusion_bucketing_on_cpu.py",
        "tools",
    ),
    "ray": (
        "single_controller/test_auto_padding_on_cpu.py",
        "single_controller/test_decorator_on_cpu.py",
        "single_controller/test_fused_workers_on_cpu.py",
        "single_controller/test_get_set_dispatch_collect_cpu.py",
        "single_controller/test_ray_local_envs_on_cpu.py",
        "single_controller/test_ray_utils_on_cpu.py",
    ),
}
WITHOUT, WITH = {"VERL_USE_EXTERNAL_PLUGINS": "none"}, {"VERL_USE_EXTERNAL_PLUGINS": "auto"}
PLUGIN = "rl_estimators.verl.plugin"
REPORT = "RLE_UPSTREAM_TESTS"  # where the process that runs the tests says what became of the plugin


def main(arguments=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("parts", nargs="*", help="verl, ray, trl")
    parser.add_argument("--trl-tests", type=Path, help="the folder of a checkout of TRL with its tests")
    parser.add_argument("-k", default="", help="as for pytest")
    chosen = parser.parse_args(arguments)
    if odd := set(chosen.parts) - {*FILES, "trl"}:
        parser.error(f"there is no part {', '.join(sorted(odd))}; the parts are verl, ray, trl")
    if "trl" in chosen.parts and chosen.trl_tests is None:
        parser.error("trl needs --trl-tests, the folder tests of a checkout of TRL")
    parts = chosen.parts or ["verl", *(["trl"] if chosen.trl_tests else [])]
    worst = 0
    for part in parts:
        print(f"{part}:", flush=True)
        worst |= trls(chosen) if part == "trl" else verls(FILES[part], chosen.k)
    if "trl" not in parts:
        print("trl: not run; it needs TRL_TESTS=FOLDER, the folder tests of a checkout of TRL")
    return worst


def trls(chosen):
    trl_tests = sibling("trl_tests")
    return trl_tests.main([str(chosen.trl_tests), "-k", chosen.k])


def verls(files, keyword="", folder=None):
    """Run files of verl's twice and compare; 1 if anything is amiss."""
    folder = folder or Path(importlib.util.find_spec("verl").origin).parents[1] / "tests"
    if absent := [name for name in files if not (folder / name).exists()]:
        print(f"  this verl does not ship {', '.join(absent)}: mend FILES in {Path(__file__).name}")
        return 1
    with tempfile.TemporaryDirectory() as scratch:
        paths = [str(folder / name) for name in files]
        without, _ = outcomes(paths, keyword, WITHOUT, folder, Path(scratch, "without"))
        found, plugin = outcomes(paths, keyword, WITH, folder, Path(scratch, "with"))
    return compare(without, found) | judge(plugin)


def outcomes(paths, keyword, settings, root, answer):
    """Each test's outcome with the first line of its message, and what became of the plugin."""
    (answer / "verl" / "trainer").mkdir(parents=True)
    # One test reads a file of verl's from the working folder. Without an __init__.py this hides no package.
    (answer / "verl" / "trainer" / "config").symlink_to(root.parent / "verl" / "trainer" / "config")
    environment = {
        **os.environ,
        **settings,
        "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]),
        "HF_HUB_OFFLINE": "1",
        REPORT: str(answer / "plugin.json"),
    }
    command = [sys.executable, "-m", "pytest", "-q", "-W", "ignore", "-c", os.devnull, f"--rootdir={root}"]
    command += ["-p", Path(__file__).stem, "-p", "no:cacheprovider", "-p", "no:rerunfailures"]
    done = subprocess.run(
        [*command, "--junitxml", str(answer / "tests.xml"), "-k", keyword, *paths],
        cwd=answer,
        env=environment,
        capture_output=True,
        text=True,
    )
    if not (answer / "tests.xml").exists():
        raise SystemExit(done.stdout[-3000:] + done.stderr[-3000:])
    plugin = json.loads((answer / "plugin.json").read_text())
    return sibling("trl_tests").read(answer / "tests.xml"), plugin


def compare(without, found):
    """Print what differs and the counts; 1 if anything does."""
    changed = 0
    for test in sorted({*without, *found}):
        (before, _), (after, message) = (there.get(test, ("missing", "")) for there in (without, found))
        if before != after:
            changed += 1
            print(f"  {test}: {before} without our package, {after} with it: {message[:160]}")
    for label, there in (("without", without), ("with", found)):
        counts = Counter(word for word, _ in there.values())
        print(
            f"  {label:8s} " + (", ".join(f"{n} {word}" for word, n in sorted(counts.items())) or "no tests")
        )
    for message, n in Counter(
        m for word, m in without.values() if word in ("failure", "error")
    ).most_common():
        print(f"  fails without our package, {n} x {message[:160]}")
    return int(changed > 0 or not without)


def judge(plugin):
    """Print which hooks were in force; 1 if the comparison was one of nothing."""
    if not plugin["loaded"]:
        print(
            "  the plugin was not loaded in the second run: is rl-estimators installed in this environment?"
        )
        return 1
    print(f"  hooks in force at the end: {', '.join(plugin['applied']) or 'none'}")
    for trouble in (*plugin["failures"], *plugin["unhealthy"]):
        print(f"  not as it should be: {trouble}")
    return int(bool(plugin["failures"] or plugin["unhealthy"]))


def sibling(name):
    """Another of these commands as a module."""
    if str(Path(__file__).parent) not in sys.path:
        sys.path.append(str(Path(__file__).parent))
    return importlib.import_module(name)


# -------------------------------------------------------------------------------------------- as pytest's plugin


def pytest_sessionfinish(session, exitstatus):
    """What became of our plugin in the process that ran the tests."""
    if REPORT not in os.environ:
        return
    plugin = sys.modules.get(PLUGIN)
    patching = sys.modules.get("rl_estimators.patching")
    statuses = patching.report() if patching else []
    report = {
        "loaded": plugin is not None,
        "failures": getattr(plugin, "failures", []),
        "applied": [status.patch.name for status in statuses if status.state.name == "APPLIED"],
        "unhealthy": [str(status) for status in statuses if not status.healthy],
    }
    Path(os.environ[REPORT]).write_text(json.dumps(report))


if __name__ == "__main__":
    sys.exit(main())
