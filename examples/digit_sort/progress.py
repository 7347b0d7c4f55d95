"""One line that says what is happening now; on a terminal it rewrites itself."""

import shutil
import threading
import time
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import TextIO

ON_TERMINAL, IN_PIPE = 1.0, 10.0  # seconds after which the line is shown again though nothing changed


class Progress:
    """Shows the line until the ``with`` block ends; a thread keeps the clock in it going."""

    def __init__(self, stream: TextIO, clock: Callable[[], float] = time.monotonic) -> None:
        self._stream, self._clock, self._begin = stream, clock, clock()
        self._on_terminal = stream.isatty()
        self._text = "starting"
        self._lock, self._over = threading.Lock(), threading.Event()
        self._shown = self._begin
        self._thread = threading.Thread(target=self._keep_going, daemon=True)

    def __enter__(self) -> "Progress":
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        self._thread.join()
        if self._on_terminal:
            self._stream.write("\n")
            self._stream.flush()

    @property
    def seconds(self) -> float:
        """Seconds since the beginning."""
        return self._clock() - self._begin

    def show(self, text: str) -> None:
        """Say what is happening now."""
        with self._lock:
            if text != self._text:
                self._text = text
                self._write()

    def _keep_going(self) -> None:
        pause = ON_TERMINAL if self._on_terminal else IN_PIPE
        while not self._over.wait(timeout=max(0.1, self._shown + pause - self._clock())):
            with self._lock:
                if self._clock() - self._shown >= pause:
                    self._write()

    def _write(self) -> None:
        line = f"[{self.seconds:4.0f} s] {self._text}"
        if self._on_terminal:
            line = "\r\x1b[K" + line[: shutil.get_terminal_size().columns - 1]
        else:
            line += "\n"
        self._stream.write(line)
        self._stream.flush()
        self._shown = self._clock()


def describe_step(rewards: Sequence[float], steps: int, seconds: float) -> str:
    """Return what the line says during training.

    Args:
        rewards: one mean reward for each step so far.
        steps: how many there will be.
        seconds: time since the first step was done.
    """
    done = len(rewards)
    text = f"training: step {done} of {steps} done, mean reward {rewards[-1]:.3f}"
    if done == 1:
        return text
    left = seconds / (done - 1) * (steps - done)
    return f"{text} (first step {rewards[0]:.3f}), about {left:.0f} s left"
