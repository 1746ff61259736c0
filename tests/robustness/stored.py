"""Files of weights and of models with any header and any bytes, right and wrong."""

import functools
import json
import os
import socket
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file

from skatr_sk._tensors import write_tensors
from tests.robustness import loading_models
from tests.robustness.trainings import warm_process


@functools.cache
def _child():
    """The process that loads for all tests, and our end of a pipe to it; it ends with this one."""
    return warm_process(loading_models.main)


def load_all(kind, paths):
    """Load files in a child process; return what it says of each."""
    (child, connection), found = _child(), []
    for path in paths:
        try:
            connection.send((kind, str(path)))
            found.append(connection.recv())
        except (EOFError, OSError):
            _child.cache_clear()
            child.join()
            raise AssertionError(
                f"the process ended, {child.exitcode}, while it read {path}"
            ) from None
    return found


def assert_each_is_refused(files, kind):
    """Each file has a typed error that names it."""
    found = load_all(kind, files.values())
    faults = {
        name: line
        for name, line in zip(files, found, strict=True)
        if not line["typed"] or os.path.basename(line["path"]) not in line["message"]
    }
    assert not faults, json.dumps(faults, indent=1)


def look(path, key):
    """Header and tensors of a file."""
    with safe_open(path, framework="pt") as stream:
        return json.loads(stream.metadata()[key]), load_file(path)


def rewrite(source, path, key, *, header=None, tensors=None):
    """Write a file anew, with its right digest, whose header and tensors functions have changed."""
    found, kept = look(source, key)
    found = header(found) if header else found
    write_tensors(path, key, found, tensors(kept) if tensors else kept)
    return path


def at(*keys, value):
    """Function that sets a value deep in a header."""

    def change(header):
        inside = header
        for key in keys[:-1]:
            inside = inside[key]
        inside[keys[-1]] = value
        return header

    return change


def raw(path, header, data=b"", *, length=None):
    """Write a safetensors file by hand, its header an object or text, and its length a lie."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    length = len(text) if length is None else length
    path.write_bytes(length.to_bytes(8, "little") + text + data)
    return path


def sparse(path, start, size):
    """Write a file that has a start and else says to be of a size, which is not on the disk."""
    with open(path, "wb") as stream:
        stream.write(start)
        stream.truncate(size)
    return path


def not_regular(folder):
    """Things that have a path and are no files."""
    os.mkfifo(folder / "fifo")
    (folder / "folder").mkdir()
    (folder / "loop").symlink_to("loop")
    (folder / "dangling").symlink_to("nowhere")
    with socket.socket(socket.AF_UNIX) as one:
        before = os.getcwd()
        os.chdir(folder)  # names of sockets are short
        try:
            one.bind("socket")
        finally:
            os.chdir(before)
    found = {name: folder / name for name in ("fifo", "folder", "loop", "dangling", "socket")}
    return found | {"device": Path("/dev/zero"), "null": Path("/dev/null")}


def broken_containers(folder, good, key):
    """Files whose header is not what it says, beside a good one with a header of a `key`."""
    whole = good.read_bytes()
    n = int.from_bytes(whole[:8], "little")
    start = json.loads(whole[8 : 8 + n])
    data = whole[8 + n :]

    def entry(name, *keys, value):
        changed = json.loads(json.dumps(start))
        inside = changed[name]
        for each in keys[:-1]:
            inside = inside[each]
        inside[keys[-1]] = value
        return changed

    one = next(name for name in start if name != "__metadata__")
    files = {
        "header of 1e9 bytes": raw(folder / "a", b"{}", length=10**9),
        "header of 2^63 bytes": raw(folder / "b", b"{}", length=2**63),
        "header of no bytes": raw(folder / "c", b""),
        "a sparse gigabyte of header": sparse(
            folder / "d", (10**9).to_bytes(8, "little"), 2 * 10**9
        ),
        "text that is not UTF-8": raw(folder / "e", b"\xff\xfe{}" * 20),
        "3000 nested lists": raw(folder / "f", b"[" * 100_000 + b"]" * 100_000),
        "a million objects": raw(folder / "g", b"[" + b"{}," * 2_000_000 + b"{}]"),
        "a number of 100000 digits": raw(folder / "h", b'{"a": ' + b"9" * 100_000 + b"}"),
        "a list": raw(folder / "i", [1, 2]),
        "metadata that is a list": raw(folder / "j", start | {"__metadata__": [1]}, data),
        "metadata that is a number": raw(folder / "k", start | {"__metadata__": {key: 3}}, data),
        "a tensor that is a number": raw(folder / "l", start | {one: 3}, data),
        "a tensor without a type": raw(folder / "m", start | {one: {"shape": [1]}}, data),
        "a type nobody knows": raw(folder / "n", entry(one, "dtype", value="F7"), data),
        "a type that is a list": raw(folder / "o", entry(one, "dtype", value=["F32"]), data),
        "a shape below zero": raw(folder / "p", entry(one, "shape", value=[-1, -8]), data),
        "a shape of text": raw(folder / "q", entry(one, "shape", value="many"), data),
        "a shape of flags": raw(folder / "r", entry(one, "shape", value=[True]), data),
        "1e12 numbers": raw(folder / "s", entry(one, "shape", value=[10**6, 10**6]), data),
        "offsets beyond the file": raw(
            folder / "t", entry(one, "data_offsets", value=[0, 10**12]), data
        ),
        "offsets below zero": raw(folder / "u", entry(one, "data_offsets", value=[-8, 8]), data),
        "tensors that overlap": raw(
            folder / "v",
            entry(one, "data_offsets", value=[8, 8 + start[one]["data_offsets"][1]]),
            data,
        ),
        "bytes that no tensor has": raw(folder / "w", start, data + b"\x00" * 8),
        "bytes that are missing": raw(folder / "x", start, data[:-8]),
        "a sparse terabyte": sparse(folder / "y", whole, 10**12),
    }
    stripped = json.loads(json.dumps(start))
    del stripped["__metadata__"]["skatr_sk_digest"]
    files["no digest"] = raw(folder / "z", stripped, data)
    for name, value in {"short": "0", "number": 3, "other": "0" * 32, "none": None}.items():
        changed = entry("__metadata__", "skatr_sk_digest", value=value)
        files[f"a digest that is {name}"] = raw(folder / f"digest-{name}", changed, data)
    return files


def flipped(folder, good, bits):
    """Copies of a file with one bit turned in each."""
    whole = good.read_bytes()
    files = {}
    for bit in bits:
        bit %= 8 * len(whole)
        changed = bytearray(whole)
        changed[bit // 8] ^= 1 << bit % 8
        files[f"bit {bit}"] = folder / f"bit-{bit}"
        files[f"bit {bit}"].write_bytes(changed)
    return files


WRONG_NUMBERS = [0, -1, 1.5, "4", None, True, [2], {}, 10**9, 10**30, float("nan"), float("inf")]


def wrong_types(tensors):
    """Tensors of other types in the place of each that could be one."""
    name = next(key for key, values in tensors.items() if values.dtype == torch.float32)
    kinds = [torch.bool, torch.int64, torch.int32, torch.uint8, torch.float64]
    return {str(kind): tensors | {name: tensors[name].to(kind)} for kind in kinds}
