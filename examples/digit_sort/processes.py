"""A command with everything it starts: its memory is counted and its processes are ended as one.

Ray gives its workers process groups of their own, so ending the command's group would leave them running.
They stay in the session the command was started in, though, and are its descendants.
"""

import os
import shutil
import subprocess
import time
from pathlib import Path
from types import TracebackType

import psutil


class ProcessTree:
    """A running command; leaving the ``with`` block ends it and all it started."""

    def __init__(self, command: list[str], environment: dict[str, str], folder: Path, log: Path) -> None:
        with log.open("wb") as file:
            self._main = subprocess.Popen(
                command,
                env=environment,
                cwd=folder,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self._known: set[psutil.Process] = set()
        self.peak_bytes = 0
        self.device_bytes = 0

    def __enter__(self) -> "ProcessTree":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def wait(self, seconds: float) -> int | None:
        """Return the command's exit status, or None if it is still running after ``seconds``."""
        try:
            return self._main.wait(seconds)
        except subprocess.TimeoutExpired:
            return None

    def measure(self) -> None:
        """Look at the memory of all processes together, our own included, and of the GPU; keep the highest seen."""
        self.peak_bytes = max(self.peak_bytes, sum(map(_memory, {psutil.Process(), *self.alive()})))
        self.device_bytes = max(self.device_bytes, device_memory())

    def alive(self) -> set[psutil.Process]:
        """Return the processes of this command that run now."""
        running = {process: process.info["ppid"] for process in psutil.process_iter(["ppid"])}
        ours = {process for process in running if process in self._known or self._in_session(process)}
        size = -1
        while len(ours) > size:
            size = len(ours)
            pids = {process.pid for process in ours}
            ours |= {process for process, parent in running.items() if parent in pids}
        self._known = {process for process in ours if _runs(process)}
        return set(self._known)

    def stop(self, patience: float = 5.0) -> None:
        """End every process, first by asking, then by force; raise if one is left even so."""
        for end in (psutil.Process.terminate, psutil.Process.kill, psutil.Process.kill):
            left = self.alive()  # anew each time: what is being ended may still start others
            for process in left:
                try:
                    end(process)
                except psutil.NoSuchProcess:
                    continue
            deadline = time.monotonic() + patience
            while self._main.poll() is None or self.alive():
                if time.monotonic() > deadline:
                    break
                time.sleep(0.1)
            else:
                return
        raise RuntimeError(f"these processes cannot be ended: {sorted(one.pid for one in self.alive())}")

    def _in_session(self, process: psutil.Process) -> bool:
        try:
            return os.getsid(process.pid) == self._main.pid
        except OSError:
            return False  # ended, or another user's


def device_memory() -> int:
    """Return the bytes in use on the first NVIDIA GPU, by whatever process; 0 where there is none.

    The driver's own tool is asked: a look through CUDA would itself take some hundred MiB of the GPU.
    """
    if shutil.which("nvidia-smi") is None:
        return 0
    ask = ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits"]
    try:
        answer = subprocess.run(ask, capture_output=True, text=True, timeout=20)
    except subprocess.TimeoutExpired:
        return 0
    first = answer.stdout.strip().partition("\n")[0]
    return int(first) << 20 if answer.returncode == 0 and first.isdigit() else 0


def _runs(process: psutil.Process) -> bool:
    """Tell whether the process still runs; one that only waits to be collected by its parent does not."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _memory(process: psutil.Process) -> int:
    """Return the process's memory in bytes; a page that n processes share counts 1/n in each, on Linux."""
    try:
        full = process.memory_full_info()
    except psutil.Error:
        return 0
    return getattr(full, "pss", full.uss)
