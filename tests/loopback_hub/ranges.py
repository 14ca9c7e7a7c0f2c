"""Answers that are files, or one range of them (RFC 9110)."""

from __future__ import annotations

import re
from pathlib import Path

from tests.loopback_hub.wire import Answer, Call, Refusal, Slice

__all__ = ["bytes_answer", "file_answer"]

_RANGE = re.compile(r"bytes=(\d*)-(\d*)")


def file_answer(call: Call, path: Path, *, etag: str, headers: dict[str, str] | None = None) -> Answer:
    """A file on the disk, or the range of it that is asked for."""
    start, stop, answer = _ranged(call, path.stat().st_size, etag, headers)
    answer.body = Slice(path, start, stop)
    return answer


def bytes_answer(call: Call, content: bytes, *, etag: str, headers: dict[str, str] | None = None) -> Answer:
    """Bytes in memory, or the range of them that is asked for."""
    start, stop, answer = _ranged(call, len(content), etag, headers)
    answer.body = content[start:stop]
    return answer


def _ranged(call: Call, size: int, etag: str, headers: dict[str, str] | None) -> tuple[int, int, Answer]:
    common = {"Content-Type": "application/octet-stream", "Accept-Ranges": "bytes", "ETag": f'"{etag}"'}
    common |= headers or {}
    found = _RANGE.fullmatch(call.record.range or "")
    if found is None or not (found[1] or found[2]):
        return 0, size, Answer(200, common)
    if found[1]:
        start, stop = int(found[1]), min(int(found[2]) + 1, size) if found[2] else size
    else:
        start, stop = max(size - int(found[2]), 0), size
    if start >= stop:
        raise Refusal(416, "The range is not in the file", headers={"Content-Range": f"bytes */{size}"})
    return start, stop, Answer(206, common | {"Content-Range": f"bytes {start}-{stop - 1}/{size}"})
