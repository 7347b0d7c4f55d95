"""Known vulnerabilities in what this package depends on directly: ``make audit``. It needs a network.

    python .ci/audit.py [OPTIONS OF PIP-AUDIT]     such as --service osv, or --ignore-vuln ID

Asks about the releases in this environment. pip-audit alone says that nothing was found also where it could not ask; here
that is an error. Exit code 0: every one was looked up, and none is known to be vulnerable; 1: one is; 2: nobody knows.
"""

import json
import subprocess
import sys
import tempfile
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

from packaging.requirements import Requirement
from packaging.version import Version


def main(options=()):
    releases, absent = direct()
    for name in absent:
        print(f"audit: {name} is not installed here, so it is not looked up")
    with tempfile.TemporaryDirectory() as scratch:
        wanted, answer = Path(scratch, "direct.txt"), Path(scratch, "answer.json")
        wanted.write_text("".join(f"{name}=={release}\n" for name, release in releases.items()))
        command = [
            sys.executable,
            "-m",
            "pip_audit",
            "--no-deps",
            "--disable-pip",
            "--progress-spinner",
            "off",
        ]
        command += ["--requirement", str(wanted), "--format", "json", "--output", str(answer), *options]
        done = subprocess.run(command, capture_output=True, text=True)
        found = json.loads(answer.read_text())["dependencies"] if answer.exists() else None
    if found is None:
        print("\n".join(done.stderr.strip().splitlines()[-3:]))
        print("audit: no answer, see above; is there a network? Nothing is known of these releases")
        return 2
    return judge(releases, found)


def direct():
    """Our direct dependencies with all extras but the developers' tools: the releases here, and what is not here."""
    releases, absent = {}, []
    for requirement in map(Requirement, requires("rl-estimators")):
        if requirement.marker and requirement.marker.evaluate({"extra": "dev"}):
            continue
        try:
            releases[requirement.name] = Version(version(requirement.name)).public
        except PackageNotFoundError:
            absent.append(requirement.name)
    return releases, absent


def judge(releases, found):
    """Print what is known of each, and return the exit code."""
    unknown = dict(releases)
    vulnerable = 0
    for one in found:
        if "skip_reason" in one:
            continue
        unknown.pop(one["name"], None)
        for hole in one["vulns"]:
            vulnerable += 1
            mended = ", ".join(hole["fix_versions"]) or "no release yet"
            print(f"audit: {one['name']} {one['version']}: {hole['id']}, mended in {mended}")
    known = len(releases) - len(unknown)
    print(f"audit: {known} of {len(releases)} direct dependencies looked up, {vulnerable} vulnerabilities")
    if vulnerable:
        return 1
    if unknown:
        print(f"audit: nothing is known of {', '.join(f'{n} {v}' for n, v in unknown.items())}")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
