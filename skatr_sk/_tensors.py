"""Files of tensors that are checked before they are believed, and the networks that they fill.

A file is safetensors: eight bytes that give the length of a JSON header, the header, the numbers.
Its metadata hold a header of ours, in JSON, and a digest of all bytes of the file with zeros in the
place of the digest: a flipped bit anywhere is found. Nothing is built, and no number is read,
before the header has been compared with the size of the file.
"""

from __future__ import annotations

import copy
import hashlib
import json
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from skatr_sk._checks import Kind, Problems, Rule, listed
from skatr_sk._files import check_regular, write_whole

__all__ = [
    "HISTORY",
    "MOST_LAYERS",
    "MOST_TOKENS",
    "Arrays",
    "Declared",
    "TensorFile",
    "arrays_of",
    "check_arrays",
    "check_header",
    "copied_module",
    "declare",
    "differences",
    "fill",
    "largest_axis",
    "of_arrays",
    "skeleton",
    "write_tensors",
]

_DIGEST_KEY = b'"skatr_sk_digest":"'  # as text of ours in a JSON header cannot contain it
_DIGEST_SIZE = 16
_NO_DIGEST = b"0" * (2 * _DIGEST_SIZE)
_MOST_HEADER = 8_000_000  # bytes; what JSON becomes in memory is some ten times as large
# What a header may ask for beside the tensors, whose sizes those of the file bound.
MOST_LAYERS, MOST_TOKENS = 1000, 1_000_000
_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "I64": torch.int64,
    "I32": torch.int32,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}
# All that Python makes of wrong values where it was not asked before.
_UNUSABLE = (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)


_Module = TypeVar("_Module", bound=nn.Module)
Arrays = dict[str, np.ndarray]  # tensors of a network by their names


def _is_history(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(row, dict) for row in value)


HISTORY = Rule(_is_history, "a list of an object for each epoch")


class Declared(NamedTuple):
    """What a header says of a tensor: the type by its name in safetensors, and the shape."""

    dtype: str
    shape: tuple[int, ...]


def write_tensors(
    path: str | os.PathLike[str], key: str, header: Mapping[str, Any], tensors: Mapping[str, Tensor]
) -> None:
    """Write tensors and a header under the name `key`, with their digest; whole or not at all."""
    bare = {name: values.detach().cpu().contiguous() for name, values in tensors.items()}
    # Large items first, as safetensors asks: every tensor then starts where its type may.
    order = sorted(bare, key=lambda name: (-bare[name].element_size(), name))
    entries: dict[str, Any] = {}
    end = 0
    for name in order:
        start, end = end, end + bare[name].nbytes
        shape = list(bare[name].shape)
        entries[name] = {"dtype": _NAMES[bare[name].dtype], "shape": shape}
        entries[name]["data_offsets"] = [start, end]
    metadata = {key: json.dumps(header), "skatr_sk_digest": _NO_DIGEST.decode()}
    text = json.dumps({"__metadata__": metadata} | entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    if len(text) > _MOST_HEADER:
        raise ValueError(
            f"{os.fspath(path)}: expected a header of at most {_MOST_HEADER} bytes, found "
            f"{len(text)}; shorten history_, which is the longest part of it."
        )
    parts: list[Any] = [len(text).to_bytes(8, "little"), text]
    parts += [bare[name].numpy().reshape(-1).view(np.uint8).data for name in order]
    parts[1] = text.replace(_DIGEST_KEY + _NO_DIGEST, _DIGEST_KEY + _digest(parts), 1)

    def write(temporary: Path) -> None:
        with open(temporary, "wb") as stream:
            stream.writelines(parts)

    write_whole(path, write, sum(map(len, parts)))


def _digest(parts: Iterable[Any]) -> bytes:
    digest = hashlib.blake2b(digest_size=_DIGEST_SIZE)
    for part in parts:
        digest.update(part)
    return digest.hexdigest().encode()


class TensorFile:
    """A file of tensors whose header has been read and agrees with its size.

    `what` it is and what it is `written_by` are said in messages; our header is the one of the name
    `key`. From the format `digested` on it must have a digest, up to `newest` it can be read.
    `elsewhere` says of headers of ours that other files have what reads these.

    Attributes
    ----------
    header : dict
        Ours, not yet checked but for its "format".
    declared : dict of Declared
        The tensors, each within the file.

    Raises
    ------
    OSError
        When it is no regular file, or may not be read.
    ValueError
        When it is none of ours, damaged, or of a newer format.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        key: str,
        *,
        what: str,
        written_by: str,
        newest: int,
        digested: int = 1,
        elsewhere: Mapping[str, str] | None = None,
    ) -> None:
        self.path, self.source = path, f"{what} {os.fspath(path)!r}"
        self.written_by = written_by
        size = check_regular(path).st_size
        with self._opened() as stream:
            self._start = stream.read(8)
            n = int.from_bytes(self._start, "little")
            if len(self._start) < 8 or n > min(size - 8, _MOST_HEADER):
                raise self._damaged(f"a header of {n} bytes in a file of {size}")
            self._start += stream.read(n)
        self._n_bytes = size - len(self._start)
        try:
            found = json.loads(self._start[8:].decode())
            metadata = found.pop("__metadata__", {})
            if not isinstance(metadata, dict):
                raise ValueError("metadata of another kind")
            self._spans = {name: self._span(entry) for name, entry in found.items()}
        except _UNUSABLE as error:
            raise self._damaged(_short(error)) from error
        end = 0
        for _, start, stop in sorted(self._spans.values(), key=lambda span: span[1:]):
            if start != end:
                raise self._damaged(f"tensors that overlap or leave bytes out at {end}")
            end = stop
        if end != self._n_bytes:
            raise self._damaged(f"{self._n_bytes} bytes of numbers where its header has {end}")
        self.declared = {name: declared for name, (declared, _, _) in self._spans.items()}
        if key not in metadata:
            raise ValueError(
                f"{self.source} is a safetensors file without a {key} header (found metadata keys "
                f"{sorted(map(str, metadata))}); expected one written by {written_by}."
                f"{''.join(mend for other, mend in (elsewhere or {}).items() if other in metadata)}"
            )
        with self.usable():
            self.header = json.loads(metadata[key])
            if not isinstance(self.header, dict):
                raise ValueError(f"expected an object, found {type(self.header).__name__}")
            number = self.header["format"]
            if isinstance(number, bool) or not isinstance(number, int) or number < 1:
                raise ValueError(f"format: expected an integer >= 1, found {number!r}")
            if number > newest:
                raise ValueError(
                    f"its format {number} is newer than {newest}; upgrade skatr_sk (this file was "
                    f"written by {self.header.get('version')})"
                )
        self._digested = b'"skatr_sk_digest"' in self._start or number >= digested

    @contextmanager
    def usable(self, what: str = "a header") -> Iterator[None]:
        """Say of what is wrong inside the block that this part of the file cannot be used."""
        try:
            yield
        except _UNUSABLE as error:
            raise ValueError(
                f"{self.source} has {what} that cannot be used: {_short(error)}. Copy it again, "
                f"or write it anew with {self.written_by}."
            ) from error

    def read(self) -> dict[str, Tensor]:
        """Read all tensors, and compare them with the digest."""
        with self._opened() as stream:
            data = bytearray(self._n_bytes)
            same = stream.read(len(self._start)) == self._start
            if not same or stream.readinto(data) < len(data) or stream.read(1):  # type: ignore[attr-defined]
                raise self._damaged("a file that is being written")
        if self._digested:
            at = self._start.find(_DIGEST_KEY) + len(_DIGEST_KEY)
            found = self._start[at : at + len(_NO_DIGEST)]
            bare = self._start[:at] + _NO_DIGEST + self._start[at + len(_NO_DIGEST) :]
            if at < len(_DIGEST_KEY) or found != _digest([bare, data]):
                raise self._damaged("another digest than its bytes have")
        tensors, whole = {}, torch.frombuffer(data or bytearray(1), dtype=torch.uint8)
        for name, (declared, start, stop) in self._spans.items():
            dtype = _DTYPES[declared.dtype]
            # A copy in memory of torch's own: a view of the file would start at any address.
            values = whole[start:stop].clone()
            values = values.ne(0) if dtype == torch.bool else values.view(dtype)
            tensors[name] = values.reshape(declared.shape)
        return tensors

    def _span(self, entry: Any) -> tuple[Declared, int, int]:
        """Return what is declared of a tensor, and where its bytes are, within the file."""
        dtype, shape, (start, stop) = entry["dtype"], entry["shape"], entry["data_offsets"]
        numbers = [*shape, start, stop]
        if any(type(number) is not int or number < 0 for number in numbers):
            raise ValueError(f"sizes of a tensor that are no numbers: {entry}")
        if dtype not in _DTYPES:
            raise ValueError(f"a tensor of type {dtype!r}, not one of {', '.join(_DTYPES)}")
        if stop > self._n_bytes or stop - start != math.prod(shape) * _DTYPES[dtype].itemsize:
            raise ValueError(f"a tensor of shape {shape} in the bytes {start} to {stop}")
        return Declared(dtype, tuple(shape)), start, stop

    @contextmanager
    def _opened(self) -> Iterator[BinaryIO]:
        try:
            with open(self.path, "rb") as stream:
                yield stream
        except PermissionError as error:
            mend = "give yourself the permission to read it (chmod u+r)"
            problem = f"expected a file that you may read, found no permission; {mend}"
            raise PermissionError(error.errno, problem, os.fspath(self.path)) from error
        except MemoryError as error:
            raise self._damaged("more bytes than there is memory for") from error
        except OSError as error:
            problem = f"{self.source} cannot be read: {error.strerror or error}"
            raise type(error)(error.errno, problem, os.fspath(self.path)) from error

    def _damaged(self, found: str) -> ValueError:
        return ValueError(
            f"{self.source} cannot be read as safetensors (found {found}): it is truncated, "
            f"damaged or of another kind. Copy it again, or write it anew with {self.written_by}."
        )


def _short(error: BaseException) -> str:
    """What is wrong, in a line of bounded length."""
    text = str(error) if not isinstance(error, KeyError) else f"{error} is missing"
    text = " ".join(text.split()) or type(error).__name__
    return text if len(text) <= 500 else text[:500] + " ..."


def check_header(owner: str, table: Mapping[str, Kind], found: Any) -> None:
    """Compare a part of a header with a table, names too; raise what is wrong, all of it."""
    problems = Problems(owner)
    if not isinstance(found, dict):
        raise ValueError(f"{owner}: expected an object, found {type(found).__name__}")
    for name in found.keys() - table.keys():
        problems.add(str(name)[:80], f"one of {', '.join(table)}", found[name])
    missing = {n: k for n, k in table.items() if n not in found and not k.optional}
    for name, kind in missing.items():
        problems.add(name, getattr(kind, "expected", "a value"), None)
    problems.check({n: kind for n, kind in table.items() if n in found}, found)
    problems.raise_if_any()


# Networks -----------------------------------------------------------------------------------------


_DRAWN = {"fill_", "kaiming_uniform_", "uniform_", "zero_"}  # how layers begin


class _Skeleton(TorchFunctionMode):
    """Weights have a shape and no memory, and there are at most `most` of them."""

    def __init__(self, most: int) -> None:
        super().__init__()
        self.left = most

    def __torch_function__(
        self, func: Callable, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in (torch.empty, torch.empty_like):
            if self.left == 0:
                raise ValueError("its sizes are those of a network of more tensors than it has")
            self.left -= func is torch.empty
            kwargs = kwargs | {"device": "meta"}
        elif func.__name__ in _DRAWN:
            tensor = kwargs["tensor"] if "tensor" in kwargs else args[0]
            if tensor.is_meta:
                return tensor
        return func(*args, **kwargs)


def skeleton(build: Callable[[], _Module], found: Mapping[str, Declared]) -> _Module:
    """Build a network without memory for its weights; it gets them by :func:`fill`.

    A ValueError says when it has many more tensors than were `found`.
    """
    with _Skeleton(3 * len(found) + 100):
        return build()


def declare(tensors: Mapping[str, Tensor]) -> dict[str, Declared]:
    """Say of tensors what a file that holds them declares."""
    return {
        name: Declared(_NAMES.get(values.dtype, str(values.dtype)), tuple(values.shape))
        for name, values in tensors.items()
    }


def check_arrays(owner: str, found: Any, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Raise a ValueError unless these are finite arrays of float32 by their names and shapes."""
    if not isinstance(found, dict) or found.keys() != shapes.keys():
        wanted = listed(shapes, len(shapes))
        raise ValueError(f"{owner}: expected arrays {wanted}, found {found!r:.80}")
    for name, shape in shapes.items():
        array = found[name]
        if not isinstance(array, np.ndarray) or array.dtype != np.float32 or array.shape != shape:
            wanted = f"an array of float32, of shape {shape}"
            raise ValueError(f"{owner}.{name}: expected {wanted}, found {array!r:.80}")
        if not np.isfinite(array).all():
            raise ValueError(f"{owner}.{name} has NaN or infinite values")


def largest_axis(found: Iterable[Declared]) -> int:
    """Length of the longest axis, which bounds the widths of a network."""
    return max((n for declared in found for n in declared.shape), default=1)


def differences(wanted: Mapping[str, Declared], found: Mapping[str, Declared]) -> list[str]:
    """Say where names, types and shapes of tensors are not those that are wanted."""
    problems = [f"{key} is missing" for key in wanted.keys() - found.keys()]
    problems += [f"{key} is not part of it" for key in found.keys() - wanted.keys()]
    for key in wanted.keys() & found.keys():
        for what, was, should in zip(("type", "shape"), found[key], wanted[key], strict=True):
            if was != should:
                problems.append(f"{key} has {what} {was}, expected {should}")
    return sorted(problems)


def fill(network: _Module, tensors: Mapping[str, Tensor]) -> _Module:
    """Give a skeleton its weights, which become its own; return it frozen, in evaluation mode.

    A ValueError says where a weight is not finite, and where constants of the network, which its
    sizes give, are others.
    """
    for name, built in network.state_dict().items():
        if not torch.isfinite(tensors[name]).all():
            raise ValueError(f"{name} has NaN or infinite values")
        if not built.is_floating_point() and not torch.equal(built, tensors[name]):
            raise ValueError(f"{name} is not what its sizes give")
    network.load_state_dict(dict(tensors), assign=True)
    return network.eval().requires_grad_(False)


def arrays_of(network: nn.Module) -> Arrays:
    """Return the tensors of a network as arrays, which need no torch to be read back."""
    return {name: values.detach().cpu().numpy() for name, values in network.state_dict().items()}


def of_arrays(build: Callable[[], _Module], arrays: Any) -> _Module:
    """Return a network of given arrays; a ValueError says where they do not fit it."""
    if not isinstance(arrays, dict) or not all(isinstance(v, np.ndarray) for v in arrays.values()):
        raise ValueError("expected the arrays of a network")
    # Copies in memory of torch's own: those given may be maps of a file that cannot be written.
    tensors = {name: torch.from_numpy(np.array(values)) for name, values in arrays.items()}
    found = declare(tensors)
    network = skeleton(build, found)
    if wrong := differences(declare(network.state_dict()), found):
        raise ValueError(f"a network of other sizes ({'; '.join(wrong[:5])})")
    return fill(network, tensors)


def copied_module(module: _Module) -> _Module:
    """Copy a module that has no hooks, and each tensor in one place.

    copy.deepcopy walks through the dictionaries of each layer, fifteen and most of them empty. That
    takes three to ten times as long: longer than a posterior's density of a few rows takes.
    """
    twin = module.__new__(type(module))
    for name, value in vars(module).items():
        twin.__dict__[name] = value.copy() if isinstance(value, dict | set) else value
    tables: tuple[dict[str, Any], ...] = (twin._parameters, twin._buffers)
    for own in tables:
        own.update({name: copy.deepcopy(tensor) for name, tensor in own.items()})
    for name, part in twin._modules.items():
        twin._modules[name] = None if part is None else copied_module(part)
    return twin
