"""What a command has said so far: the last bytes of both streams, handed on as they come."""

from collections.abc import Callable

from longshot_dagster.core.sandbox import ExecResult, Stream


class Heard:
    """Of one command; used by one thread."""

    def __init__(self, keep_bytes: int, on_output: Callable[[Stream, bytes], None] | None) -> None:
        self._keep = keep_bytes
        self._on_output = on_output
        self._tails: dict[Stream, bytearray] = {"stdout": bytearray(), "stderr": bytearray()}
        self._truncated = False

    def add(self, stream: Stream, data: bytes) -> None:
        tail = self._tails[stream]
        tail += data
        if len(tail) > self._keep:
            del tail[: len(tail) - self._keep]
            self._truncated = True
        if self._on_output is not None and data:
            self._on_output(stream, data)

    def result(self, exit_code: int, duration_s: float, *, timed_out: bool = False) -> ExecResult:
        return ExecResult(
            exit_code=124 if timed_out else exit_code,
            stdout=bytes(self._tails["stdout"]),
            stderr=bytes(self._tails["stderr"]),
            timed_out=timed_out,
            truncated=self._truncated,
            duration_s=duration_s,
        )
