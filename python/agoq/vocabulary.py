"""The hash of a vocabulary: which string each id stands for, added tokens included.

It is FNV-1a with 64 bits over one entry for each token, by ascending id (and then by bytes): the id, a space, the
number of bytes, a colon, the bytes of the token in UTF-8, a line end. src/train/vocabulary.cc computes the same from
the files alone, so that training needs no Python.
"""

from __future__ import annotations

from collections.abc import Mapping

OFFSET, PRIME, MASK = 0xCBF29CE484222325, 0x100000001B3, (1 << 64) - 1


def vocabulary_hash(vocabulary: Mapping[str, int]) -> str:
    """16 hexadecimal digits."""
    value = OFFSET
    for number, text in sorted((number, token.encode("utf-8")) for token, number in vocabulary.items()):
        for byte in b"%d %d:%b\n" % (number, len(text), text):
            value = (value ^ byte) * PRIME & MASK
    return f"{value:016x}"
