"""Files that are no light cones, or not what they say: one function each, by a name that says it.

Each is written into a folder under a name of its own, and returns nothing; its fault must be named.
"""

import io
import os
import socket
import struct
import zipfile
import zlib

import h5py
import numpy as np
from h5py import h5d, h5p, h5s, h5t

from skatr_sk import save_lightcones
from tests.lightcones.layouts import FIELD, values, write_v3, write_v4

N = 6
CELLS = values(N)
LABELS = np.random.default_rng(1).uniform(1, 2, (N, 6))
HUGE = 10**9

CASES = {}  # by name: the file's name, and what writes it


def case(suffix):
    """Register a function that writes a file of this ending."""

    def register(function):
        name = function.__name__
        CASES[name] = f"{name}.{suffix}", function
        return function

    return register


def add(name, suffix, write):
    CASES[name] = f"{name}.{suffix}", write


# Numpy's arrays -----------------------------------------------------------------------------------


def header(descr="'<f4'", shape=f"({N}, 4, 4, 10)", extra="", version=1, length=None):
    text = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, {extra}}}\n".encode(
        "latin1"
    )
    width = 2 if version == 1 else 4
    n = len(text) if length is None else length
    return b"\x93NUMPY" + bytes([version, 0]) + n.to_bytes(width, "little") + text


BODY = CELLS.tobytes()
NPY = {
    "empty": b"",
    "magic_alone": b"\x93NUMPY",
    "text": b"not an array at all",
    "noise": np.random.default_rng(0).bytes(5000),
    "header_of_a_gigabyte": header(version=2, length=2**30) + BODY,
    "header_cut_short": header()[:40],
    "version_9": header(version=9) + BODY,
    "header_is_a_list": b"\x93NUMPY\1\0\7\0[1, 2]\n" + BODY,
    "header_is_code": b"\x93NUMPY\1\0\x1c\0__import__('os').abort()   \n" + BODY,
    "header_not_closed": b"\x93NUMPY\1\0\x05\0{'a':" + BODY,
    "header_nested": b"\x93NUMPY\1\0" + struct.pack("<H", 9000) + b"(" * 9000,
    "header_nested_minus": b"\x93NUMPY\1\0" + struct.pack("<H", 9000) + b"-" * 8999 + b"1",
    "header_not_text": b"\x93NUMPY\3\0\x08\0\0\0" + bytes(range(200, 208)) + BODY,
    "header_of_nulls": b"\x93NUMPY\1\0\x08\0" + bytes(8) + BODY,
    "extra_key": header(extra="'more': 1") + BODY,
    "no_shape": b"\x93NUMPY\1\0\x15\0{'descr': '<f4'     }\n" + BODY,
    "negative_shape": header(shape="(-6, 4, 4, 10)") + BODY,
    "two_negative": header(shape="(-6, -4, 4, 10)") + BODY,
    "float_shape": header(shape="(6.0, 4, 4, 10)") + BODY,
    "bool_shape": header(shape="(True, 4, 4, 10)") + BODY,
    "text_shape": header(shape="('6', 4, 4, 10)") + BODY,
    "huge_rows": header(shape=f"({HUGE}, 4, 4, 10)") + BODY,
    "more_than_addresses": header(shape=f"({10**30}, 4, 4, 10)") + BODY,
    "overflowing_product": header(shape="(4294967296, 4294967296, 2)") + BODY,
    "many_digits": header(shape=f"({'9' * 5000}, 4)") + BODY,
    "many_axes": header(shape=f"({'1, ' * 200})") + bytes(4),
    "no_rows": header(shape="(0, 4, 4, 10)"),
    "no_cells": header(shape="(6, 4, 0, 10)"),
    "one_axis": header(shape="(960,)") + BODY,
    "no_axis": header(shape="()") + bytes(4),
    "cut_short": header() + BODY[:-5],
    "odd_type": header("'<f3'") + BODY,
    "type_of_no_size": header("'<V0'") + BODY,
    "type_is_a_list": header("[('a', '<f4'), ('b', '<i4')]") + BODY,
    "type_is_deep": header("[" * 90 + "('a', '<f4')" + "]" * 90) + BODY,
    "type_is_an_array": header("'(100000,100000)<f4'") + BODY,
    "type_is_a_number": header("7") + BODY,
    "type_is_void": header("'|V1000000000'") + BODY,
    "objects": header("'|O'") + BODY,
    "texts": header("'<U4'") + BODY * 4,
    "times": header("'<M8[s]'") + BODY * 2,
    "complex": header("'<c8'") + BODY * 2,
    "flags": header("'|b1'") + BODY,
    "a_zip": b"PK\3\4" + BODY,
    "hdf5": b"\x89HDF\r\n\x1a\n" + BODY,
}
for _name, _bytes in NPY.items():
    add(f"npy_{_name}", "npy", lambda path, data=_bytes: path.write_bytes(data))


def _spoil(value, *where):
    cells = CELLS.copy()
    cells[(2, *where)] = value
    return cells


for _name, _cells in {
    "nan": _spoil(np.nan, 1, 1, 1),
    "infinite": _spoil(-np.inf, 1, 1, 1),
    "fill_1e20": _spoil(1e20, 1, 1, 1),
    "fill_netcdf": _spoil(9.96921e36, 1, 1, 1),
    "fill_9999": _spoil(-9999, 1, 1, 1),
    "fill_999": _spoil(-999, 1, 1, 1),
    "fill_int16": _spoil(-32768, 1, 1, 1),
    "zeros": _spoil(0),
    "far_zeros": _spoil(0, ..., slice(7, None)),
    "near_zeros": _spoil(0, ..., slice(3)),
    "beyond_float32": _spoil(1, 0).astype(np.float64) * np.array([1e300] + [1] * 9),
}.items():
    add(f"npy_{_name}", "npy", lambda path, cells=_cells: np.save(path, cells))


@case("npy")
def npy_pickled(path):
    np.save(path, np.array([{"a": 1}], dtype=object), allow_pickle=True)


@case("npy")
def npy_of_400_gb_of_nothing(path):
    path.write_bytes(header(shape="(100000000, 10, 10, 10)"))
    os.truncate(path, 128 + 4 * 10**11)


@case("npy")
def npy_written_in_part(path):
    """As open_memmap leaves it, whose process died after two light cones."""
    cells = np.lib.format.open_memmap(path, "w+", np.float32, (N, 20, 20, 40))
    cells[:2] = values(2, (20, 20, 40))


# Archives of them ---------------------------------------------------------------------------------


def npy_bytes(array):
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


IMAGE, LABEL = npy_bytes(CELLS[0]), npy_bytes(LABELS[0])


def archive(path, members, kind=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", kind) as written:
        for name, data in members:
            written.writestr(name, data)


def image(**changes):
    return header(**({"shape": "(4, 4, 10)"} | changes)) + CELLS[0].tobytes()


NPZ = {
    "no_arrays": [],
    "no_image": [("other.npy", npy_bytes(np.arange(4.0)))],
    "image_of_no_array": [("image.npy", b"text")],
    "image_empty": [("image.npy", b"")],
    "image_a_folder": [("image.npy/", b"")],
    "image_without_ending": [("image", IMAGE)],
    "image_elsewhere": [("../image.npy", IMAGE)],
    "image_no_axis": [("image.npy", npy_bytes(np.float32(1)))],
    "image_no_cells": [("image.npy", npy_bytes(CELLS[0][:, :0]))],
    "image_negative": [("image.npy", image(shape="(-4, 4, 10)"))],
    "image_of_text": [("image.npy", npy_bytes(np.array(["a"] * 160)))],
    "image_of_flags": [("image.npy", npy_bytes(CELLS[0] > 0))],
    "image_of_objects": [("image.npy", image(descr="'|O'"))],
    "image_says_more": [("image.npy", image(shape="(1000000000, 4, 10)"))],
    "image_says_less": [("image.npy", image(shape="(4, 4, 9)"))],
    "image_nan": [("image.npy", npy_bytes(CELLS[0] * np.nan))],
    "label_empty": [("image.npy", IMAGE), ("label.npy", npy_bytes(np.zeros(0)))],
    "label_two_axes": [("image.npy", IMAGE), ("label.npy", npy_bytes(LABELS))],
    "label_of_text": [("image.npy", IMAGE), ("label.npy", npy_bytes(np.array(["a", "b"])))],
    "label_complex": [("image.npy", IMAGE), ("label.npy", npy_bytes(LABELS[0] * 1j))],
    "label_of_objects": [("image.npy", IMAGE), ("label.npy", header("'|O'", "(6,)") + bytes(48))],
    "label_structured": [
        ("image.npy", IMAGE),
        ("label.npy", npy_bytes(np.zeros(6, [("a", "f8"), ("b", "f8")]))),
    ],
    "label_of_10_12": [
        ("image.npy", IMAGE),
        ("label.npy", header("'<f8'", "(1000000000000,)") + bytes(48)),
    ],
    "label_is_raw": [("image.npy", IMAGE), ("label.npy", b"1 2 3 4 5 6")],
    "label_infinite": [("image.npy", IMAGE), ("label.npy", npy_bytes(LABELS[0] * np.inf))],
    "label_cut_short": [("image.npy", IMAGE), ("label.npy", LABEL[:-3])],
}
NPZ |= {
    f"stack_{name}": [("X.npy", npy_bytes(CELLS)), *members]
    for name, members in {
        "labels_of_other_rows": [("y.npy", npy_bytes(LABELS[:4]))],
        "labels_of_three_axes": [("y.npy", npy_bytes(LABELS[None]))],
        "labels_are_raw": [("y.npy", b"1 2 3")],
        "of_fewer_names": [("y.npy", npy_bytes(LABELS)), ("names.npy", npy_bytes(np.array(["a"])))],
        "in_another_unit": [("units.npy", npy_bytes(np.array("Jy")))],
        "of_half_seeds": [("seeds.npy", npy_bytes(np.arange(6.0) + 0.5))],
        "of_other_redshifts": [("redshifts.npy", npy_bytes(np.linspace(5, 9, 7)))],
        "redshifts_of_10_12": [("redshifts.npy", header("'<f8'", "(1000000000000,)") + bytes(48))],
    }.items()
}
NPZ |= {
    "stack_says_more": [("X.npy", header(shape="(1000000000, 4, 4, 10)") + bytes(640))],
    "stack_of_objects": [("X.npy", header("'|O'", "(6, 4, 4, 10)") + bytes(7680))],
    "stack_nan": [("X.npy", npy_bytes(CELLS * np.nan))],
}
for _name, _members in NPZ.items():
    add(f"npz_{_name}", "npz", lambda path, members=_members: archive(path, members))
for _name, _data in {
    "empty": b"",
    "letters_alone": b"PK",
    "text": b"not an archive",
    "hdf5": b"\x89HDF\r\n\x1a\n" + bytes(5000),
    "npy": IMAGE,
    "beginning_alone": b"PK\3\4" + bytes(500),
}.items():
    add(f"npz_{_name}", "npz", lambda path, data=_data: path.write_bytes(data))


def good_npz(path, **options):
    archive(path, [("image.npy", IMAGE), ("label.npy", LABEL)], **options)
    return bytearray(path.read_bytes())


@case("npz")
def npz_cut_short(path):
    path.write_bytes(good_npz(path)[:-30])


@case("npz")
def npz_flipped_bit(path):
    data = good_npz(path)
    data[300] ^= 4
    path.write_bytes(data)


@case("npz")
def npz_stack_flipped_bit(path):
    archive(path, [("X.npy", npy_bytes(CELLS))], kind=zipfile.ZIP_DEFLATED)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)


@case("npz")
def npz_stack_that_begins_elsewhere(path):
    """The two copies of its name's length disagree, so that its bytes would end beyond the file."""
    archive(path, [("X.npy", npy_bytes(CELLS))])
    data = bytearray(path.read_bytes())
    data[26:28] = b"\xff\xff"
    path.write_bytes(data)


@case("npz")
def npz_stack_of_nothing(path):
    archive(path, [("X.npy", header(shape="(400, 40, 40, 40)") + bytes(102_400_000))], 8)


@case("npz")
def npz_encrypted(path):
    data = good_npz(path)
    data[6] |= 1
    data[
        data.rfind(b"PK\1\2image") + 8 if b"PK\1\2image" in data else data.find(b"PK\1\2") + 8
    ] |= 1
    path.write_bytes(data)


@case("npz")
def npz_packed_otherwise(path):
    good_npz(path, kind=zipfile.ZIP_LZMA)


@case("npz")
def npz_of_unknown_packing(path):
    data = good_npz(path)
    at = data.find(b"PK\1\2")
    data[8:10] = data[at + 10 : at + 12] = b"\x63\0"
    path.write_bytes(data)


@case("npz")
def npz_directory_beyond_the_end(path):
    data = good_npz(path)
    at = data.rfind(b"PK\5\6")
    data[at + 16 : at + 20] = struct.pack("<I", 2**31)
    path.write_bytes(data)


@case("npz")
def npz_image_beyond_the_end(path):
    data = good_npz(path)
    at = data.find(b"PK\1\2")
    data[at + 42 : at + 46] = struct.pack("<I", 2**31)
    path.write_bytes(data)


@case("npz")
def npz_of_70_000_arrays(path):
    one = zipfile.ZipInfo("x.npy")
    entry = struct.pack("<4s6H3L5H2L", b"PK\1\2", 20, 20, 0, 0, 0, 0, 0, 0, 0, 5, 0, 0, 0, 0, 0, 0)
    listed = (entry + one.filename.encode()) * 70_000
    end = struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 65535, 65535, len(listed), 0, 0)
    path.write_bytes(listed + end)


@case("npz")
def npz_that_unpacks_a_thousandfold(path):
    archive(path, [("image.npy", header(shape="(400, 400, 400)") + bytes(256_000_000))], 8)


@case("npz")
def npz_with_a_header_of_a_gigabyte(path):
    """Some hundred bytes that unpack to a header of zeros."""
    start = b"\x93NUMPY\2\0" + struct.pack("<I", 2**30)
    archive(path, [("image.npy", start + bytes(100_000_000))], zipfile.ZIP_DEFLATED)


@case("npz")
def npz_with_a_label_that_unpacks_to_much(path):
    label = header("'<f8'", "(20000000,)") + bytes(160_000_000)
    archive(path, [("image.npy", IMAGE), ("label.npy", label)], zipfile.ZIP_DEFLATED)


# Stacks in HDF5 -----------------------------------------------------------------------------------


def stack(name, change=None, **datasets):
    """A file of light cones and labels, some of them given otherwise, and then changed."""

    def write(path):
        with h5py.File(path, "w") as file:
            for key, given in ({"data": CELLS, "labels": LABELS} | datasets).items():
                if given is not None:
                    file[key] = given
            if change is not None:
                change(file)

    add(f"stack_{name}", "h5", write)


def raw(name, of_type, data=None):
    """Put a dataset of a type that numpy has not into a file."""

    def change(file):
        space = h5s.create_simple((N, *FIELD))
        made = h5d.create(file.id, name.encode(), of_type(), space)
        if data is not None:
            made.write(h5s.ALL, h5s.ALL, data, mtype=of_type())

    return change


def _array_type():
    return h5t.array_create(h5t.NATIVE_FLOAT, (2,))


def _bits():
    return h5t.STD_B32LE.copy()


def _time():
    return h5t.UNIX_D32LE.copy()


def _enumeration():
    made = h5t.enum_create(h5t.NATIVE_INT32)
    made.enum_insert(b"a", 0)
    return made


def _opaque():
    return h5t.create(h5t.OPAQUE, 8)


def _odd_float():
    made = h5t.IEEE_F32LE.copy()
    made.set_fields(31, 28, 3, 0, 28)
    made.set_ebias(3)
    return made


COMPOUND = np.zeros((N, *FIELD), [("a", "f4"), ("b", "i4")])
for _what, _key in (("cells", "data"), ("labels", "labels")):
    for _name, _given in {
        "compound": COMPOUND[..., 0, 0, 0] if _key == "labels" else COMPOUND,
        "of_bytes": np.full((N, 6), b"text"),
        "of_text": np.full((N, 6), "text", dtype=h5py.string_dtype()),
        "of_flags": np.full((N, 6), True),
        "complex": np.ones((N, 6), np.complex64),
    }.items():
        stack(f"{_what}_{_name}", **{_key: _given})
stack("cells_null", data=h5py.Empty("f4"))
stack("cells_scalar", data=3.0)
for _name, _type in {
    "arrays": _array_type,
    "bits": _bits,
    "times": _time,
    "enumeration": _enumeration,
    "opaque": _opaque,
    "odd_numbers": _odd_float,
}.items():
    stack(f"cells_of_{_name}", raw("data", _type), data=None)
stack(
    "cells_of_references", lambda f: f.create_dataset("data", (N, 4, 4), h5py.ref_dtype), data=None
)
stack(
    "cells_of_lists", lambda f: f.create_dataset("data", (N, 4), h5py.vlen_dtype("f4")), data=None
)
stack("cells_of_one_axis", data=CELLS[:, 0, 0, 0])
stack("cells_of_no_rows", data=CELLS[:0], labels=LABELS[:0])
stack("cells_without_an_axis", data=CELLS[:, :, :0])
stack("cells_nan", data=_spoil(np.nan, 0, 0, 0))
stack("cells_fill", data=_spoil(1e20, 0, 0, 0))
stack("cells_are_a_group", lambda f: f.create_group("data"), data=None)
stack("cells_are_a_type", lambda f: f.__setitem__("data", np.dtype("f4")), data=None)
stack("labels_of_other_rows", labels=LABELS[:4])
stack("labels_of_no_columns", labels=LABELS[:, :0])
stack("labels_infinite", labels=LABELS * np.inf)
stack("seeds_of_64_bits", seeds=np.full(N, 2**64 - 1, np.uint64))
stack("seeds_float", seeds=np.arange(6.0) + 0.5)
stack("seeds_of_text", seeds=np.full(N, b"1"))
stack("seeds_compound", seeds=COMPOUND[:, 0, 0, 0])
stack("redshifts_short", redshifts=np.linspace(5, 9, 7))
stack("redshifts_nan", redshifts=np.full(10, np.nan))
stack("redshifts_negative", redshifts=np.linspace(-5, 9, 10))
stack("redshifts_to_and_fro", redshifts=np.r_[np.linspace(9, 5, 5), np.linspace(5.5, 9, 5)])
stack("redshifts_of_text", redshifts=np.full(10, b"5"))
INDEX = dict(brightness_temp=CELLS, data=None)
stack("index_of_another_shape", row_digest=np.zeros((N, 5), np.uint8), **INDEX)
stack("index_of_text", row_digest=np.full((N, 16), b"a"), **INDEX)
stack("index_of_other_cells", row_digest=np.ones((N, 16), np.uint8), **INDEX)
stack("nothing", data=None, labels=None)


def references(file):
    file["labels"].attrs.create("names", [file.ref] * 6, dtype=h5py.ref_dtype)


stack("names_are_references", references)


def attribute(name, key, value, of="labels"):
    def change(file):
        file[of].attrs[key] = value

    stack(name, change)


attribute("names_are_numbers", "names", np.arange(6))
attribute("names_too_few", "names", ["a", "b"])
attribute("names_alike", "names", ["a"] * 6)
attribute("names_not_utf8", "names", np.array([b"\xff\xfe\xfa"] * 6))
attribute("names_one_text", "names", "a")
attribute("names_lists", "names", np.array([[["a", "b"]]], dtype=h5py.string_dtype()))
attribute("names_compound", "names", np.zeros(6, [("a", "f4")]))
attribute("units_are_numbers", "units", np.arange(6.0))
attribute("bounds_of_text", "bounds", ["a", "b"])
attribute("bounds_of_another_shape", "bounds", np.zeros((2, 6)))
attribute("bounds_nan", "bounds", np.full((6, 2), np.nan))
attribute("bounds_huge", "bounds", np.zeros((4000, 2)))
attribute("cell_size_text", "cell_mpc", "wide", of="data")
attribute("cell_size_zero", "cell_mpc", 0.0, of="data")
attribute("cell_size_negative", "cell_mpc", -1.5, of="data")
attribute("cell_size_nan", "cell_mpc", np.nan, of="data")
attribute("cell_size_empty", "cell_mpc", np.zeros(0), of="data")
attribute("cell_sizes_of_two_axes", "cell_mpc", [1.0, 1.0], of="data")
attribute("begins_text", "grid_begins", "far", of="data")
attribute("begins_nan", "grid_begins", [5.0, np.nan], of="data")
attribute("begins_alone", "grid_begins", 5.0, of="data")
attribute("cell_size_compound", "cell_mpc", np.zeros((), [("a", "f4")]), of="data")


# Never written, and more than there is.


def declared(name, key, shape, dtype="f4", write=(), **options):
    """A dataset of a shape, of which only some rows are written."""

    def change(file):
        made = file.create_dataset(key, shape, dtype, **options)
        for row in write:
            made[row] = 1 + np.random.default_rng(row).random(shape[1:])

    stack(name, change, **{key: None})


ONE = dict(chunks=(1, *FIELD))
declared("cells_never_written", "data", (N, *FIELD))
declared("chunks_never_written", "data", (N, *FIELD), **ONE)
declared("chunks_written_in_part", "data", (N, *FIELD), write=[0, 1, 2], **ONE)
declared("chunks_without_the_last", "data", (N, *FIELD), write=range(N - 1), **ONE)
declared("cells_written_in_part", "data", (N, 20, 20, 40), write=[0, 1])
declared("packed_and_written_in_part", "data", (N, *FIELD), write=[2], compression="gzip", **ONE)
declared("huge_rows", "data", (HUGE, *FIELD), **ONE)
declared("huge_rows_one_written", "data", (HUGE, *FIELD), write=[0], **ONE)
declared("huge_rows_in_one_piece", "data", (HUGE, *FIELD))
declared("more_than_addresses", "data", (2**40, 2**20, 4), chunks=(1, 64, 4))
declared("huge_cone", "data", (1, 10**5, 10**5, 10**3), chunks=(1, 10, 10, 10))
declared("labels_never_written", "labels", (N, 6))
declared("labels_of_10_12", "labels", (N, 10**12 // N))
declared("labels_of_447_gb", "labels", (10**10, 6), "f8", chunks=(1000, 6))
declared("labels_in_chunks_never_written", "labels", (N, 6), chunks=(1, 6))
declared("redshifts_never_written", "redshifts", (N, 10))
declared("redshifts_huge", "redshifts", (HUGE, 470))
declared("seeds_never_written", "seeds", (N,), "i8", chunks=(2,))
declared("index_never_written", "row_digest", (N, 16), "u1", chunks=(2, 16))


@case("h5")
def stack_of_1000_cones_in_a_chunk(path):
    """1.5 GB that pack to 1.5 MB."""
    shape = (1000, 28, 28, 470)
    with h5py.File(path, "w") as file:
        made = file.create_dataset("data", shape, "f4", chunks=shape, compression="gzip")
        packer = zlib.compressobj()
        some = bytes(4 * 28 * 28 * 470 * 10)
        packed = b"".join(packer.compress(some) for _ in range(100)) + packer.flush()
        made.id.write_direct_chunk((0, 0, 0, 0), packed)


@case("h5")
def stack_that_unpacks_a_thousandfold(path):
    """In chunks of a cone each; all cones are the one that was packed."""
    with h5py.File(path, "w") as file:
        options = dict(chunks=(1, 100, 100, 100), compression="gzip")
        made = file.create_dataset("data", (100, 100, 100, 100), "f4", **options)
        packed = zlib.compress(bytes(4_000_000))
        for row in range(100):
            made.id.write_direct_chunk((row, 0, 0, 0), packed)


@case("h5")
def stack_of_many_rows_of_nothing(path):
    with h5py.File(path, "w") as file:
        options = dict(chunks=(10**7, 1), compression="gzip")
        made = file.create_dataset("data", (2 * 10**8, 1), "u1", **options)
        packed = zlib.compress(bytes(10**7))
        for chunk in range(20):
            made.id.write_direct_chunk((chunk * 10**7, 0), packed)


@case("h5")
def stack_with_a_chunk_that_is_not_packed_right(path):
    with h5py.File(path, "w") as file:
        made = file.create_dataset(
            "data", (1, *FIELD), "f4", chunks=(1, *FIELD), compression="gzip"
        )
        made.id.write_direct_chunk((0, 0, 0, 0), b"this is not what zlib writes")


@case("h5")
def stack_with_a_chunk_that_is_too_short(path):
    with h5py.File(path, "w") as file:
        made = file.create_dataset(
            "data", (1, *FIELD), "f4", chunks=(1, *FIELD), compression="gzip"
        )
        made.id.write_direct_chunk((0, 0, 0, 0), zlib.compress(bytes(50)))


@case("h5")
def stack_packed_by_a_filter_that_nobody_has(path):
    with h5py.File(path, "w") as file:
        made = h5p.create(h5p.DATASET_CREATE)
        made.set_chunk((1, *FIELD))
        made.set_filter(40_000, h5py.h5z.FLAG_OPTIONAL, (1,))
        space = h5s.create_simple((N, *FIELD))
        data = h5d.create(file.id, b"data", h5t.IEEE_F32LE, space, made)
        for row in range(N):
            data.write_direct_chunk((row, 0, 0, 0), CELLS[row].tobytes())


# Values in other files.


def virtual(source, name="data", shape=(N, *FIELD), unlimited=False):
    """A dataset whose values are those of the same name in another file."""

    def change(file):
        most = (None, *shape[1:]) if unlimited else shape
        layout = h5py.VirtualLayout(shape, "f4", maxshape=most)
        there = h5py.VirtualSource(source, name, shape, maxshape=most)
        if unlimited:
            layout[h5s.UNLIMITED and slice(0, h5s.UNLIMITED)] = there[slice(0, h5s.UNLIMITED)]
        else:
            layout[:] = there
        file.create_virtual_dataset(name, layout)

    return change


stack("virtual_of_itself", virtual("stack_virtual_of_itself.h5"), data=None)
stack("virtual_of_this_file", virtual("."), data=None)
stack("virtual_of_nothing", virtual("nowhere.h5"), data=None)
stack("virtual_of_a_device", virtual("/dev/zero"), data=None)
stack("virtual_labels", virtual("nowhere.h5", "labels", (N, 6)), labels=None)
stack("virtual_redshifts", virtual("nowhere.h5", "redshifts", (10,)))
stack("virtual_seeds", virtual("nowhere.h5", "seeds", (N,)))
stack("virtual_index", virtual("nowhere.h5", "row_digest", (N, 16)))
stack("virtual_of_another_name", virtual("nowhere.h5", "boxes"), data=None)


@case("h5")
def stack_virtual_without_end(path):
    with h5py.File(path, "w") as file:
        virtual(path.name, unlimited=True)(file)


def mutual(unlimited):
    def write(path):
        for one, other in ((path.name, "other.dat"), ("other.dat", path.name)):
            with h5py.File(path.parent / one, "w") as file:
                virtual(other, unlimited=unlimited)(file)

    return write


add("stack_virtual_of_each_other", "h5", mutual(False))
add("stack_virtual_of_each_other_without_end", "h5", mutual(True))


@case("h5")
def stack_virtual_of_a_pipe(path):
    os.mkfifo(path.parent / "pipe.dat")
    with h5py.File(path, "w") as file:
        virtual("pipe.dat", unlimited=True)(file)


def external(source, name="data", shape=(N, *FIELD)):
    def change(file):
        stored = [(source, 0, h5py.h5f.UNLIMITED)]
        file.create_dataset(name, shape, "f4", external=stored)

    return change


stack("external_device", external("/dev/zero"), data=None)
stack("external_nothing", external("nowhere.bin"), data=None)
stack("external_labels", external("nowhere.bin", "labels", (N, 6)), labels=None)


@case("h5")
def stack_external_pipe(path):
    os.mkfifo(path.parent / "pipe.dat")
    with h5py.File(path, "w") as file:
        external(str(path.parent / "pipe.dat"))(file)


def link(to, name="data"):
    return lambda file: file.__setitem__(name, to)


stack("link_to_nothing", link(h5py.ExternalLink("nowhere.h5", "/data")), data=None)
stack("link_to_itself", link(h5py.ExternalLink("stack_link_to_itself.h5", "/data")), data=None)
stack("link_to_a_device", link(h5py.ExternalLink("/dev/zero", "/data")), data=None)
stack("link_in_a_circle", link(h5py.SoftLink("/data")), data=None)
stack(
    "labels_link", lambda f: f.__setitem__("labels", h5py.ExternalLink("n.h5", "/a")), labels=None
)


@case("h5")
def stack_link_to_a_pipe(path):
    os.mkfifo(path.parent / "pipe.dat")
    with h5py.File(path, "w") as file:
        file["data"] = h5py.ExternalLink("pipe.dat", "/data")


# Trees.


def nested(n):
    def change(file):
        group = file
        for _ in range(n):
            group = group.create_group("g")

    return change


def crowded(file):
    for k in range(12_000):
        file.create_group(f"g{k}")


def circle(file):
    inner = file.create_group("a/b/c")
    inner["up"] = file["a"]
    inner["root"] = file["/"]


stack("nested_3000_deep", nested(3000))
stack("of_12_000_groups", crowded)
stack("of_groups_in_a_circle", circle, data=None)
stack("of_a_name_not_utf8", lambda f: f.create_group(b"\xff\xfe"))


# Bytes.


def damaged(name, damage):
    def write(path):
        save_lightcones(path, CELLS, LABELS, compression="gzip")
        data = bytearray(path.read_bytes())
        path.write_bytes(damage(data))

    add(f"hdf5_{name}", "h5", write)


def _overwritten(start, stop, value):
    def damage(data):
        data[start:stop] = bytes([value]) * (stop - start)
        return data

    return damage


damaged("empty", lambda data: b"")
damaged("signature_alone", lambda data: data[:8])
damaged("of_half", lambda data: data[: len(data) // 2])
damaged("without_the_end", lambda data: data[:-100])
damaged("text", lambda data: b"not HDF5 at all")
damaged("noise", lambda data: data[:8] + np.random.default_rng(0).bytes(4000))
damaged("superblock_99", _overwritten(8, 9, 99))
damaged("offsets_of_no_size", _overwritten(13, 15, 0))
damaged("end_of_file_wrong", _overwritten(40, 48, 255))
damaged("root_nowhere", _overwritten(64, 80, 254))
damaged("zeros_within", _overwritten(96, 600, 0))
damaged("ones_within", _overwritten(96, 600, 255))
damaged("npz", lambda data: b"PK\3\4" + data)
damaged("npy", lambda data: NPY["cut_short"])


def heap(name, first):
    """Texts of any length lie in a heap, whose objects are walked by their sizes."""

    def damage(data):
        at = data.find(b"GCOL") + 16
        data[at : at + 16] = first
        return data

    damaged(f"heap_{name}", damage)


heap("without_end", bytes(16))
heap("that_leads_back", struct.pack("<HHLQ", 1, 1, 0, 2**64 - 64))
heap("of_a_step_of_nothing", struct.pack("<HHLQ", 1, 1, 0, 2**64 - 16))
heap("of_too_much", struct.pack("<HHLQ", 1, 1, 0, 2**40))


def chunk_tree(name, byte):
    """What finds the chunks of a dataset that may grow along several axes."""

    def write(path):
        with h5py.File(path, "w", libver="latest") as file:
            file.create_dataset("images", data=CELLS, chunks=CELLS.shape, maxshape=(None,) * 4)
        data = bytearray(path.read_bytes())
        data[data.find(b"BTHD") + byte] ^= 1
        path.write_bytes(data)

    add(f"hdf5_chunk_tree_of_another_{name}", "h5", write)


for field, byte in {"signature": 0, "version": 4, "kind": 5, "depth": 12, "checksum": 37}.items():
    chunk_tree(field, byte)


@case("h5")
def hdf5_flipped_bit_in_a_cone(path):
    save_lightcones(path, CELLS, compression="gzip")
    with h5py.File(path) as file:
        chunk = file["brightness_temp"].id.get_chunk_info(0)
    data = bytearray(path.read_bytes())
    data[chunk.byte_offset + chunk.size // 2] ^= 1
    path.write_bytes(data)


@case("h5")
def hdf5_flipped_bit_without_checksum(path):
    save_lightcones(path, values(N, (6, 6, 40)))
    data = bytearray(path.read_bytes())
    data[data.find(values(N, (6, 6, 40))[1].tobytes()) + 2] ^= 64
    path.write_bytes(data)


# 21cmFAST -----------------------------------------------------------------------------------------


def simulation(name, change, write=write_v3, **given):
    def made(path):
        write(path, n_z=10, **given)
        with h5py.File(path, "r+") as file:
            change(file)

    add(f"simulation_{name}", "h5", made)


def replaced(key, value):
    """Put another thing in the place of a dataset."""

    def change(file):
        del file[key]
        if value is dict:
            file.create_group(key)
        elif callable(value):
            value(file)
        elif value is not None:
            file[key] = value

    return change


def inputs(group, **attributes):
    return lambda file: file[group].attrs.update(attributes)


BOX = "lightcones/brightness_temp"
simulation("without_box", replaced(BOX, None))
simulation("box_a_group", replaced(BOX, dict))
simulation("box_of_two_axes", replaced(BOX, np.ones((4, 10))))
simulation("box_of_four_axes", replaced(BOX, CELLS))
simulation("box_scalar", replaced(BOX, 1.0))
simulation("box_null", replaced(BOX, h5py.Empty("f4")))
simulation("box_of_text", replaced(BOX, np.full((4, 4, 10), b"a")))
simulation("box_compound", replaced(BOX, COMPOUND[0]))
simulation("box_of_no_cells", replaced(BOX, np.ones((4, 0, 10))))
simulation("box_virtual", replaced(BOX, virtual("nowhere.h5", BOX, (4, 4, 10))))
simulation("box_virtual_of_itself", replaced(BOX, virtual(".", BOX, (4, 4, 10))))
simulation("box_external", replaced(BOX, external("/dev/zero", BOX, (4, 4, 10))))
simulation("box_in_a_circle", replaced(BOX, h5py.SoftLink(f"/{BOX}")))
simulation("box_a_link", replaced(BOX, h5py.ExternalLink("nowhere.h5", "/a")))
simulation("box_never_written", replaced(BOX, lambda f: f.create_dataset(BOX, (4, 4, 10), "f4")))
simulation("box_huge", replaced(BOX, lambda f: f.create_dataset(BOX, (10**6, 10**6, 10), "f4")))
simulation("boxes_a_link", replaced("lightcones", h5py.ExternalLink("nowhere.h5", "/a")))
simulation("boxes_in_a_circle", replaced("lightcones", h5py.SoftLink("/lightcones")))
simulation("distances_a_group", replaced("distances", dict))
simulation("distances_of_text", replaced("distances", np.full(10, b"1")))
simulation("distances_too_few", replaced("distances", np.arange(9.0)))
simulation("distances_nan", replaced("distances", np.full(10, np.nan)))
simulation("distances_negative", replaced("distances", np.arange(-5.0, 5)))
simulation("distances_equal", replaced("distances", np.ones(10)))
simulation("distances_infinite", replaced("distances", np.array([*range(9), np.inf])))
simulation("distances_scalar", replaced("distances", 1.0))
simulation("distances_virtual", replaced("distances", virtual("n.h5", "distances", (10,))))
simulation(
    "distances_huge", replaced("distances", lambda f: f.create_dataset("distances", (HUGE,), "f4"))
)
simulation("nodes_a_group", replaced("node_redshifts", dict))
simulation("no_distances_no_size", replaced("distances", None), BOX_LEN=0.0)
simulation("no_distances_no_cells", replaced("distances", None), HII_DIM=0)
simulation("no_distances_size_nan", replaced("distances", None), BOX_LEN=np.nan)
simulation("density_of_matter_0", inputs("cosmo_params", OMm=0.0))
simulation("density_of_matter_negative", inputs("cosmo_params", OMm=-0.3))
simulation("density_of_matter_nan", inputs("cosmo_params", OMm=np.nan))
simulation("hubble_0", inputs("cosmo_params", hlittle=0.0))
simulation("hubble_infinite", inputs("cosmo_params", hlittle=np.inf))
simulation("luminosity_infinite", inputs("astro_params", L_X=np.inf))
simulation("luminosity_nan", inputs("astro_params", L_X=np.nan))
simulation("many_attributes", lambda f: inputs("_globals", **{f"a{k}": k for k in range(5000)})(f))
simulation("model_not_utf8", inputs("flag_options", SOURCE_MODEL=np.bytes_(b"\xff\xfe")))


def _root(**attributes):
    return lambda file: file.attrs.update(attributes)


simulation("seed_of_64_bits", _root(random_seed=np.uint64(2**64 - 1)))
simulation("seed_of_text", _root(random_seed="one"))
simulation("seeds_three", _root(random_seed=np.arange(3)))
simulation("seed_nan", _root(random_seed=np.nan))
simulation("buffer_negative", _root(lowz_buffer_pixels=-3), write_v4)
simulation("buffer_huge", _root(lowz_buffer_pixels=2**40), write_v4)
simulation("buffer_of_text", _root(highz_buffer_pixels="one"), write_v4)
simulation("buffer_nan", _root(highz_buffer_pixels=np.nan), write_v4)
simulation("buffers_three", _root(highz_buffer_pixels=np.arange(3)), write_v4)
simulation("node_of_text", _root(last_completed_node="one"), write_v4)
simulation("inputs_linked", replaced("InputParameters", h5py.ExternalLink("n.h5", "/a")), write_v4)


def _nodes_of_text(file):
    file.attrs["current_redshift"] = 7.0
    replaced("node_redshifts", np.full(5, b"6"))(file)


simulation("nodes_of_text", _nodes_of_text)
simulation("inputs_a_dataset", replaced("InputParameters", np.ones(3)), write_v4)
simulation("unfinished", _root(last_completed_node=2), write_v4)


# What is no file ----------------------------------------------------------------------------------

for _suffix in ("h5", "npz", "npy"):
    add(f"pipe_{_suffix}", _suffix, os.mkfifo)
    add(f"folder_{_suffix}", _suffix, os.mkdir)
    add(f"device_{_suffix}", _suffix, lambda path: path.symlink_to("/dev/zero"))
    add(f"link_in_a_circle_{_suffix}", _suffix, lambda path: path.symlink_to(path.name))
    add(f"link_to_nothing_{_suffix}", _suffix, lambda path: path.symlink_to("nowhere"))
    add(f"terminal_{_suffix}", _suffix, lambda path: path.symlink_to("/dev/tty"))


@case("h5")
def socket_h5(path):
    before = os.getcwd()
    os.chdir(path.parent)  # the path of a socket is short
    try:
        with socket.socket(socket.AF_UNIX) as made:
            made.bind(path.name)
    finally:
        os.chdir(before)
