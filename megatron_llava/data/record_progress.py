"""How far preprocessing is."""

import time
from typing import TextIO

_SECONDS_BETWEEN_LINES = 10.0


class RecordProgress:
    """Speed and time left: one line that is rewritten on a terminal, else a line every 10 s."""

    def __init__(self, total: int, stream: TextIO) -> None:
        self._total, self._stream, self._done = total, stream, 0
        self._terminal = stream.isatty()
        self._started = self._printed = time.monotonic()

    def advance(self) -> None:
        self._done += 1
        now = time.monotonic()
        if now - self._printed >= (0.2 if self._terminal else _SECONDS_BETWEEN_LINES):
            self._printed = now
            rate = self._done / (now - self._started)
            left = int((self._total - self._done) / rate)
            text = (
                f"{self._done}/{self._total} records, {rate:.1f} records/s, "
                f"{left // 3600}:{left // 60 % 60:02}:{left % 60:02} left"
            )
            self._stream.write(f"\r{text}\x1b[K" if self._terminal else f"{text}\n")
            self._stream.flush()

    def print_line(self, text: str) -> None:
        self._stream.write(f"\r{text}\x1b[K\n" if self._terminal else f"{text}\n")

    def finish(self) -> None:
        if self._terminal:
            self._stream.write("\r\x1b[K")
            self._stream.flush()
