"""An independent reader of .bin/.idx, written from the format with struct alone."""

from __future__ import annotations

import struct
from pathlib import Path


def read_dataset(prefix: Path) -> list[list[int]]:
    """The documents; every field of the index is checked."""
    index = prefix.with_name(prefix.name + ".idx").read_bytes()
    data = prefix.with_name(prefix.name + ".bin").read_bytes()
    assert index[:9] == b"MMIDIDX\0\0"
    version, code, count, documents = struct.unpack_from("<QBQQ", index, 9)
    assert version == 1 and documents == count + 1
    letter, size = {8: ("H", 2), 4: ("i", 4)}[code]
    at = 9 + 8 + 1 + 8 + 8
    lengths = struct.unpack_from(f"<{count}i", index, at)
    starts = struct.unpack_from(f"<{count}q", index, at + 4 * count)
    assert struct.unpack_from(f"<{count + 1}q", index, at + 12 * count) == tuple(range(count + 1))
    assert len(index) == at + 12 * count + 8 * (count + 1)
    assert len(data) == size * sum(lengths)
    position, result = 0, []
    for length, start in zip(lengths, starts, strict=True):
        assert start == position and length > 0
        result.append(list(struct.unpack_from(f"<{length}{letter}", data, start)))
        position += size * length
    return result
