"""Files of tensors: what is written is read back, by us and by safetensors, and nothing else."""

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import nn

from skatr_sk._checks import Integer
from skatr_sk._tensors import (
    TensorFile,
    arrays_of,
    check_header,
    declare,
    differences,
    fill,
    of_arrays,
    skeleton,
    write_tensors,
)

TENSORS = {
    "double": torch.linspace(0, 1, 5, dtype=torch.float64),
    "float": torch.ones(2, 3).T,
    "int": torch.tensor([[1, -2]]),
    "short": torch.tensor(7, dtype=torch.int32),
    "byte": torch.arange(3, dtype=torch.uint8),
    "flag": torch.tensor([True, False, True]),
    "empty": torch.zeros(0, 4),
    "none": torch.zeros(1, dtype=torch.int64).expand(0),
}


def opened(path, **options):
    return TensorFile(path, "own", what="file", written_by="write", newest=3, **options)


def test_all_types_and_shapes_come_back(tmp_path):
    write_tensors(tmp_path / "f", "own", {"format": 1, "text": "ä"}, TENSORS)
    stored = opened(tmp_path / "f")
    assert stored.header == {"format": 1, "text": "ä"}
    found = stored.read()
    for by in (found, load_file(tmp_path / "f")):
        assert by.keys() == TENSORS.keys()
        for name, values in TENSORS.items():
            assert by[name].dtype == values.dtype
            assert torch.equal(by[name], values)
    with safe_open(tmp_path / "f", framework="pt") as stream:
        assert set(stream.metadata()) == {"own", "skatr_sk_digest"}
    write_tensors(tmp_path / "g", "own", stored.header, dict(reversed(found.items())))
    assert (tmp_path / "g").read_bytes() == (tmp_path / "f").read_bytes()


def test_the_same_numbers_and_another_header_have_another_digest(tmp_path):
    for name, text in (("f", "a"), ("g", "b")):
        write_tensors(tmp_path / name, "own", {"format": 1, "text": text}, TENSORS)
    ours, other = (tmp_path / name for name in "fg")
    ours.write_bytes(ours.read_bytes().replace(b'\\"text\\": \\"a\\"', b'\\"text\\": \\"b\\"'))
    assert opened(other).read().keys() == TENSORS.keys()
    with pytest.raises(ValueError, match="another digest"):
        opened(ours).read()


def test_a_file_that_changes_while_it_is_read(tmp_path):
    write_tensors(tmp_path / "f", "own", {"format": 1}, TENSORS)
    stored = opened(tmp_path / "f")
    write_tensors(tmp_path / "f", "own", {"format": 2}, TENSORS)
    with pytest.raises(ValueError, match="being written"):
        stored.read()


def test_headers_are_compared_with_a_table():
    table = {"n": Integer(1), "m": Integer(1, optional=True)}
    check_header("header", table, {"n": 3})
    with pytest.raises(ValueError, match="(?s)header has 2 invalid.*k: expected one of n, m.*n: "):
        check_header("header", table, {"k": 1, "n": 0})
    with pytest.raises(ValueError, match="n: expected an integer >= 1, found None"):
        check_header("header", table, {})
    with pytest.raises(ValueError, match="expected an object, found list"):
        check_header("header", table, [])


def build():
    return nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 2))


def test_a_skeleton_takes_no_memory_and_draws_nothing(torch_seed):
    wanted = build()
    state = torch.get_rng_state()
    network = skeleton(build, declare(wanted.state_dict()))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(values.is_meta for values in network.parameters())
    assert not differences(declare(network.state_dict()), declare(wanted.state_dict()))
    filled = fill(network, wanted.state_dict())
    X = torch.randn(5, 3)
    assert torch.equal(filled(X), wanted(X))
    assert not filled.training and not any(p.requires_grad for p in filled.parameters())
    assert torch.equal(of_arrays(build, arrays_of(wanted))(X), wanted(X))


def test_networks_that_are_not_those_of_the_tensors(torch_seed):
    arrays = arrays_of(build())
    weight = arrays["0.weight"]
    faults = {
        r"0.weight has shape \(4, 2\), expected \(4, 3\)": {"0.weight": weight[:, :2]},
        "0.weight has type F64, expected F32": {"0.weight": weight.astype(np.float64)},
        "3.weight is not part of it": {"3.weight": weight},
        "0.weight has NaN or infinite values": {"0.weight": weight * np.nan},
    }
    for message, changed in faults.items():
        with pytest.raises(ValueError, match=message):
            of_arrays(build, arrays | changed)
    with pytest.raises(ValueError, match="0.bias is missing"):
        of_arrays(build, {k: v for k, v in arrays.items() if k != "0.bias"})
    with pytest.raises(ValueError, match="a network of more tensors"):
        of_arrays(lambda: nn.Sequential(*(nn.Linear(3, 3) for _ in range(10**9))), arrays)
