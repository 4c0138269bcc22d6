"""The hash of a vocabulary: which string each id stands for, added tokens included.

It is the first 64 bits of SHA-256 over one entry for each token, by ascending id (and then by bytes): the id, a space,
the number of bytes, a colon, the bytes of the token in UTF-8, a line end. src/train/data/vocabulary.cc computes the same from
the files alone, so that training needs no Python.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping


def vocabulary_hash(vocabulary: Mapping[str, int]) -> str:
    """16 hexadecimal digits."""
    entries = sorted((number, token.encode("utf-8")) for token, number in vocabulary.items())
    text = b"".join(b"%d %d:%b\n" % (number, len(token), token) for number, token in entries)
    return hashlib.sha256(text).hexdigest()[:16]
