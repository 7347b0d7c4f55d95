"""Make the virtual environment that the Makefile uses: ``python3 .ci/make_venv.py FOLDER``.

Runs on any Python 3, so that a wrong one is told what is wrong before anything is installed.
"""

import importlib.util
import os
import shutil
import subprocess
import sys
import time

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
WANTED = ((3, 10), (3, 13))  # from, up to but without
EXTRAS = "verl,trl,fast,see,dev"
FREE_GB = 5


def main(folder):
    refuse_unfit_machine(folder)
    started = time.time()
    log = os.path.join(folder, "install.log")
    step("making %s with Python %d.%d.%d" % ((os.path.relpath(folder),) + tuple(sys.version_info[:3])))
    subprocess.check_call([sys.executable, "-m", "venv", "--clear", folder])
    install = [
        os.path.join(folder, "bin", "python"),
        "-m",
        "pip",
        "install",
        "--no-input",
        "--progress-bar",
        "off",
    ]
    install += ["-c", os.path.join(ROOT, "constraints.txt"), "-e", "%s[%s]" % (ROOT, EXTRAS)]
    code = watch(install, log, started)
    if code:
        with open(log) as lines:
            sys.stderr.write("".join(lines.readlines()[-15:]))
        sys.exit("\nsetup: pip failed, see above and %s" % log)
    step("installed in %d s" % (time.time() - started))


def refuse_unfit_machine(folder):
    """Say what is missing while nothing has been touched."""
    low, high = WANTED
    if not low <= tuple(sys.version_info[:2]) < high:
        others = [name for name in ("python3.12", "python3.11", "python3.10") if works(name)]
        hint = "run: make %s PYTHON=%s" % ("smoke", others[0]) if others else "install Python 3.10 to 3.12"
        sys.exit(
            "setup: this is Python %d.%d, and verl 0.9 needs one from %d.%d to %d.%d; %s"
            % (tuple(sys.version_info[:2]) + low + (high[0], high[1] - 1) + (hint,))
        )
    for module in ("venv", "ensurepip"):
        if importlib.util.find_spec(module) is None:
            sys.exit(
                "setup: this Python has no %s; on Debian and Ubuntu: apt-get install python3-venv" % module
            )
    free = shutil.disk_usage(os.path.dirname(os.path.abspath(folder))).free / 1e9
    if free < FREE_GB:
        sys.exit("setup: %.1f GB of disk are free, the packages need %d GB" % (free, FREE_GB))


def works(python):
    """Whether a command of that name runs; pyenv leaves shims that do not."""
    return shutil.which(python) and subprocess.call([python, "-c", ""], stderr=subprocess.DEVNULL) == 0


def watch(command, log, started):
    """Run ``command`` into a log and keep saying on one line what it is doing."""
    rewrites = sys.stdout.isatty()
    said = 0.0
    with open(log, "w") as out, subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT) as process:
        while process.poll() is None:
            time.sleep(0.3)
            if time.time() - said > (0.2 if rewrites else 10.0):
                said = time.time()
                step("%3d s  %s" % (said - started, doing(log)), end="" if rewrites else "\n")
    if rewrites:
        sys.stdout.write("\r\033[K")
    return process.returncode


def doing(log):
    """The last thing that pip said it does."""
    with open(log) as lines:
        said = [
            line.strip()
            for line in lines
            if line.strip().startswith(("Collect", "Download", "Install", "Build"))
        ]
    return said[-1].split(" (")[0].split(": ")[0][:70] if said else "starting pip"


def step(text, end="\n"):
    start = "\r\033[K" if sys.stdout.isatty() else ""
    sys.stdout.write("%ssetup: %s%s" % (start, text, end))
    sys.stdout.flush()


if __name__ == "__main__":
    main(sys.argv[1])
