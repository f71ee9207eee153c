"""Records that cannot be read: skipped and named, up to a limit."""

from megatron_llava.data.record_progress import RecordProgress


class BadRecords:
    """How many there were.

    allowed: what --max-bad-records says.

    Raises:
        ValueError: a negative limit.
    """

    def __init__(self, allowed: int) -> None:
        if allowed < 0:
            raise ValueError(f"--max-bad-records {allowed}: expected at least 0")
        self._allowed, self.count = allowed, 0

    def skip(self, message: str, progress: RecordProgress) -> None:
        """Count one more and print its message.

        Raises:
            ValueError: the message, where it is one more than is allowed.
        """
        self.count += 1
        if self.count <= self._allowed:
            progress.print_line(f"skipped: {message}")
        elif self._allowed == 0:
            raise ValueError(f"{message} (--max-bad-records N skips up to N such records)")
        else:
            raise ValueError(
                f"{message}; this is bad record {self.count}, --max-bad-records is {self._allowed}"
            )
