"""Checkpoints that somebody has damaged or made up: each a function of the bytes of a good one."""

import json
import os


def _parts(good):
    length = int.from_bytes(good[:8], "little")
    return json.loads(good[8 : 8 + length]), good[8 + length :]


def _whole(header, body):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + body


def _told(text):
    """What the package has written of the run is another text."""

    def damaged(good):
        header, body = _parts(good)
        header["__metadata__"]["skatr_sk_checkpoint"] = text
        return _whole(header, body)

    return damaged


def _inner(**change):
    """The header of the run says something else, without the digest of that."""

    def damaged(good):
        told = json.loads(_parts(good)[0]["__metadata__"]["skatr_sk_checkpoint"])
        return _told(json.dumps(told | change))(good)

    return damaged


def _digest(digest):
    def damaged(good):
        header, body = _parts(good)
        header["__metadata__"]["digest"] = digest
        return _whole(header, body)

    return damaged


def _tensors(prefix, **change):
    """The tensors of some names are described otherwise."""

    def damaged(good):
        header, body = _parts(good)
        for name in [name for name in header if name.startswith(prefix)]:
            header[name] = header[name] | change
        return _whole(header, body)

    return damaged


def _without(prefix):
    def damaged(good):
        header, body = _parts(good)
        return _whole({k: v for k, v in header.items() if not k.startswith(prefix)}, body)

    return damaged


def _many(n):
    """So many tensors of no size, and what the package has written of the run."""

    def damaged(good):
        nothing = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}
        told = {"__metadata__": _parts(good)[0]["__metadata__"]}
        return _whole({f"x{i}": nothing for i in range(n)} | told, b"")

    return damaged


def _flipped(share):
    def damaged(good):
        at = int(share * (len(good) - 1))
        return good[:at] + bytes([good[at] ^ 1]) + good[at + 1 :]

    return damaged


def _length(length):
    return lambda good: length.to_bytes(8, "little") + good[8:]


CASES = {
    "empty": lambda good: b"",
    "seven bytes": lambda good: good[:7],
    "half": lambda good: good[: len(good) // 2],
    "one byte short": lambda good: good[:-1],
    "one byte more": lambda good: good + b"\0",
    "zeros": lambda good: bytes(len(good)),
    "a pickle": lambda good: b"\x80\x04\x95\x0b\x00\x00\x00\x00\x00\x00\x00\x8c\x02os\x94.",
    "a zip": lambda good: b"PK\x03\x04" + bytes(1000),
    "an HDF5": lambda good: b"\x89HDF\r\n\x1a\n" + bytes(1000),
    "no header": _length(0),
    "a header of a gigabyte": _length(10**9),
    "a header of 2^64 - 1": _length(2**64 - 1),
    "a header of 40 megabytes": lambda good: _whole(b'"' + b"a" * 40_000_000 + b'"', b""),
    "a list": lambda good: _whole(b"[1, 2]", b""),
    "no UTF-8": lambda good: _whole(b'{"a\xff": 1}', b""),
    "no JSON": lambda good: _whole(b"{", b""),
    "nothing told": _told(""),
    "a list told": _told("[]"),
    "a number told": _told("3"),
    "a number of a million digits told": _told("9" * 1_000_000),
    "200,000 brackets told": _told("[" * 200_000),
    "nothing but brackets told": _told("[" + "{}," * 300_000 + "{}]"),
    "no digest": _digest(""),
    "another digest": _digest("0" * 32),
    "a digest of no text": _digest([0]),
    "another run": _inner(run="another"),
    "a run of no text": _inner(run=[]),
    "a newer format": _inner(format=99),
    "no history": _inner(history=None),
    "a history of lists": _inner(history=[[]] * 4),
    "a history of 50,000 epochs": _inner(history=[{"epoch": 1}] * 50_000),
    "a history of 10^6 rows": _inner(history=[{}] * 1_000_000),
    "a shorter history": _inner(history=[]),
    "stopped by a word": _inner(stopped="yes"),
    "no guard": _inner(guard=None),
    "a best epoch": _inner(best=[0.0, 1]),
    "300,000 tensors": _many(300_000),
    "moments of no size": _tensors("optimizer.0.exp_avg", shape=[0], data_offsets=[0, 0]),
    "moments of 10^18 numbers": _tensors("optimizer.0.exp_avg", shape=[10**9, 10**9]),
    "moments of another type": _tensors("optimizer.0.exp_avg", dtype="I32"),
    "moments of a negative shape": _tensors("optimizer.0.exp_avg", shape=[-1, 4]),
    "steps that overlap": _tensors("optimizer.1.step", data_offsets=[0, 4]),
    "weights of another type": _tensors("module.", dtype="I32"),
    "a generator of float8": _tensors("generator.torch", dtype="F8_E4M3"),
    "a type that does not exist": _tensors("generator.torch", dtype="Q7"),
    "no weights": _without("module."),
    "no generators": _without("generator."),
    "no metadata": _without("__metadata__"),
    **{f"a bit that flips at {share:.0%}": _flipped(share) for share in (0.01, 0.3, 0.6, 0.9, 1)},
}


def write(case, good, path):
    """Put a case in the place of a good checkpoint."""
    path.write_bytes(CASES[case](good))


# What is no regular file, and one that says it is longer than the disk.
def _sparse(good, path):
    path.write_bytes(good)
    os.truncate(path, 10**10)


PLACES = {
    "a pipe": lambda good, path: os.mkfifo(path),
    "a folder": lambda good, path: path.mkdir(),
    "a device": lambda good, path: path.symlink_to("/dev/zero"),
    "ten gigabytes": _sparse,
}
