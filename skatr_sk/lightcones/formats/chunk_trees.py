"""B-trees of chunks, checked before HDF5 opens the dataset that they belong to.

HDF5 2.0 ends the process where it cannot read the header of such a tree. A file written in the
newest format (``libver="latest"``) has one for each dataset of several unlimited axes. The layout
is that of "HDF5 File Format Specification Version 3.0", sections III.A.2 (version 2 B-trees), IV.A
(object headers) and IV.A.2.i (data layout message).
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator

__all__ = ["HEADER", "check_tree_of"]

HEADER = b"OHDR"  # how the header of an object begins

_SIGNATURE = b"\x89HDF\r\n\x1a\n"  # how a file begins, perhaps after something of its user
_FIRST = 512  # bytes where it may begin, if not at 0; then at twice as many, and so on
_MOST_BLOCKS = 64  # of one header
_LAYOUT, _CONTINUED = 0x08, 0x10  # messages
_CHUNKED, _IN_TREE = 2, 5
_TREE, _TREE_TYPES = b"BTHD", (10, 11)  # of chunks, and of filtered ones
_TREE_BYTES = 38
_MASK = 0xFFFFFFFF


def check_tree_of(file: int, at: int) -> None:
    """Raise an OSError where the dataset whose header is at a byte has a damaged B-tree.

    `file` is a descriptor. A header that is damaged itself is left to HDF5, which refuses it.
    """
    for kind, message in _messages(file, at):
        if kind == _LAYOUT and (address := _tree(message)) is not None:
            header = _read(file, _TREE_BYTES, _base(file) + address)
            body, checksum = header[:-4], header[-4:]
            sound = len(header) == _TREE_BYTES and header[:5] == _TREE + b"\0"
            if not (sound and header[5] in _TREE_TYPES and _lookup3(body) == checksum):
                raise OSError(f"a damaged B-tree of chunks at byte {_base(file) + address}")


def _messages(file: int, at: int) -> Iterator[tuple[int, bytes]]:
    """Kind and content of each message of an object header of version 2."""
    start = _read(file, 6, at)
    if len(start) < 6 or start[:5] != HEADER + b"\2":
        return
    flags = start[5]
    here = at + 6 + 16 * bool(flags & 0x20) + 4 * bool(flags & 0x10)
    width = 1 << (flags & 3)
    blocks = [(here + width, int.from_bytes(_read(file, width, here), "little"))]
    for begin, size in blocks:
        block, here = _read(file, size, begin), 0
        while here + 4 <= len(block):
            kind, n, _ = struct.unpack_from("<BHB", block, here)
            here += 6 if flags & 4 else 4
            message = block[here : here + n]
            here += n
            if kind == _CONTINUED and len(message) == 16 and len(blocks) < _MOST_BLOCKS:
                address, size = struct.unpack("<QQ", message)
                # What lies between the signature of that block and its checksum.
                blocks.append((_base(file) + address + 4, size - 8))
            yield kind, message


def _tree(layout: bytes) -> int | None:
    """Address of the B-tree that a data layout message names, if it names one."""
    if len(layout) < 5 or layout[0] < 4 or layout[1] != _CHUNKED:
        return None
    after = 5 + layout[3] * layout[4]  # the sizes of a chunk
    if layout[after : after + 1] != bytes([_IN_TREE]) or len(layout) < after + 15:
        return None
    address: int = struct.unpack_from("<Q", layout, after + 7)[0]
    return None if address == 2**64 - 1 else address  # nothing was written yet


def _read(file: int, n: int, at: int) -> bytes:
    """Return `n` bytes, or what there is of them; none where there cannot be as many."""
    size = os.fstat(file).st_size
    return os.pread(file, n, at) if 0 <= n <= size and at < size else b""


def _base(file: int) -> int:
    """Byte from which addresses count."""
    at, size = 0, os.fstat(file).st_size
    while at < size and os.pread(file, len(_SIGNATURE), at) != _SIGNATURE:
        at = 2 * at or _FIRST
    return at if at < size else 0


def _lookup3(data: bytes) -> bytes:
    """Checksum of HDF5's metadata: Bob Jenkins' hash lookup3 of bytes, from zero."""
    a = b = c = (0xDEADBEEF + len(data)) & _MASK
    blocks = [data[i : i + 12].ljust(12, b"\0") for i in range(0, len(data), 12)]
    for block in blocks[:-1]:
        a, b, c = _mix(*_added(a, b, c, block))
    return _final(*_added(a, b, c, blocks[-1])).to_bytes(4, "little")


def _added(a: int, b: int, c: int, block: bytes) -> tuple[int, int, int]:
    x, y, z = struct.unpack("<III", block)
    return (a + x) & _MASK, (b + y) & _MASK, (c + z) & _MASK


def _turn(value: int, k: int) -> int:
    return (value << k | value >> 32 - k) & _MASK


def _mix(a: int, b: int, c: int) -> tuple[int, int, int]:
    for k in (4, 6, 8, 16, 19, 4):
        a, c = (a - c) & _MASK ^ _turn(c, k), (c + b) & _MASK
        a, b, c = b, c, a
    return a, b, c


def _final(a: int, b: int, c: int) -> int:
    for k in (14, 11, 25, 16, 4, 14, 24):
        c = ((c ^ b) - _turn(b, k)) & _MASK
        a, b, c = b, c, a
    return b
