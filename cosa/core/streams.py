"""Standard output and error: no work is lost for want of a reader, and text is only text."""

from __future__ import annotations

import errno
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, TextIO

from cosa.core.text import visible

_BAR = re.compile(r"\r?(\x1b\[A)*")
"""With what tqdm begins when it draws a bar anew: back to its line."""


class Forgiving:
    """A text stream that drops what it cannot write.

    Whoever writes, libraries and warnings included: control characters and the like are written
    as escapes, and so is what the stream's encoding lacks.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self.lost: OSError | None = None
        """Why something is lost; None if nothing is, or the reader has gone, as ``head`` does."""

    def write(self, text: str) -> int:
        start = _BAR.match(text).end()
        written = text[:start] + visible(text[start:])
        encoding = getattr(self._stream, "encoding", None) or "utf-8"
        try:
            self._stream.write(written.encode(encoding, "backslashreplace").decode(encoding))
        except OSError as error:
            self._give_up(error)
        return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except OSError as error:
            self._give_up(error)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def _give_up(self, error: OSError) -> None:
        if error.errno != errno.EPIPE:
            self.lost = self.lost or error
        # What is buffered would be tried again, at the end in vain and with a traceback.
        with open(os.devnull, "w") as nowhere:
            os.dup2(nowhere.fileno(), self._stream.fileno())


@contextmanager
def forgiving_streams() -> Iterator[Forgiving]:
    """Let ``sys.stdout`` and ``sys.stderr`` be ``Forgiving`` in the block, closed ones included.

    Yields:
        What is ``sys.stdout`` in the block.
    """
    _open_the_closed()
    former = sys.stdout, sys.stderr
    with open(os.devnull, "w") as nowhere:
        streams = tuple(Forgiving(nowhere if stream is None else stream) for stream in former)
        sys.stdout, sys.stderr = streams
        try:
            yield streams[0]
        finally:
            for stream in streams:
                stream.flush()
            sys.stdout, sys.stderr = former


def _open_the_closed() -> None:
    """Open the null device in the place of closed standard streams.

    Else the next file to be opened would take their numbers, and the warnings of libraries.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            with suppress(OSError):  # the number is missing because no file may be opened
                os.open(os.devnull, os.O_RDWR)
