"""Hostile weights: each file ends in a typed error that names it, soon and in little memory."""

import os

import numpy as np
import pytest
import torch

from skatr_sk import SKATRTransformer
from skatr_sk.summaries import JEPA
from skatr_sk.summaries.weights import read_encoder
from tests.robustness import stored
from tests.robustness.stored import assert_each_is_refused, at, look, rewrite

KEY = "skatr_sk"


def a_transformer():
    small = dict(embed_dim=8, depth=1, n_heads=2, max_epochs=1, device="cpu", random_state=0)
    objective = JEPA(predictor_dim=8, predictor_depth=1)
    fields = np.random.default_rng(0).normal(size=(8, 4, 4, 6)).astype(np.float32)
    return SKATRTransformer(**small, patch_size=2, objective=objective).fit(fields)


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    path = tmp_path_factory.mktemp("good") / "good.safetensors"
    a_transformer().save(path)
    return path


def wrong_headers(folder, good):
    """Headers that lie, each with its right digest."""
    values = {f"format {v!r}": at("format", value=v) for v in (0, "2", None, True, 99, 1e300, [2])}
    for name in ("embed_dim", "depth", "n_heads", "mlp_ratio"):
        wrong = [v for v in stored.WRONG_NUMBERS if not (name == "mlp_ratio" and v == 1.5)]
        values |= {f"{name} {v!r}": at("architecture", name, value=v) for v in wrong}
    for name in ("offset", "scale", "softening", "subtract_mean"):
        wrong = [None, "1", [1.0], 1e300, 10**400, float("nan"), float("inf")]
        wrong += [0, 0.0, -1.0, True] if name in ("scale", "softening") else []
        wrong = [v for v in wrong if (name, v) != ("softening", None)]
        values |= {f"{name} {str(v)[:9]}": at("scaling", name, value=v) for v in wrong}
    shapes = [
        [],
        [4, 4],
        [4, 4, 6, 1],
        [0, 4, 6],
        [10**9] * 3,
        "446",
        None,
        4,
        [4, 4, "6"],
        [5, 4, 6],
    ]
    for name in ("field_shape", "patch_size"):
        values |= {f"{name} {v!r}": at("architecture", name, value=v) for v in shapes}
    for value in ("meen", "auto", 3, None, ["mean"]):
        values |= {f"pooling {value!r}": at("pooling", value=value)}
    for value in ("linear", "none", 3, None, ["moments"]):
        values |= {f"embedding {value!r}": at("architecture", "embedding", value=value)}
    for value in ("axial", "none", 3, None, ["full"]):  # of an encoder of one block
        values |= {f"attention {value!r}": at("architecture", "attention", value=value)}
    for value in (3, "epochs", {"epoch": 1}, [1, 2], [[1]], None):
        values |= {f"history {value!r}": at("history", value=value)}
    values |= {
        f"{k} {v!r}": at(k, value=v) for k in ("architecture", "scaling") for v in (None, [], 3)
    }
    for i, (name, change) in enumerate(values.items()):
        yield name, rewrite(good, folder / f"header-{i}", KEY, header=change)


def wrong_tensors(folder, good):
    """Tensors of other types and shapes, each with the right digest."""
    _, kept = look(good, KEY)
    one = next(name for name, values in kept.items() if values.ndim == 2)
    cases = stored.wrong_types(kept) | {
        "none": {},
        "one is missing": {k: v for k, v in kept.items() if k != one},
        "one more": kept | {"more": torch.zeros(3)},
        "one is flat": kept | {one: kept[one].flatten()},
        "one is empty": kept | {one: torch.zeros(0)},
        "NaN": kept | {one: torch.full_like(kept[one], torch.nan)},
        "inf": kept | {one: torch.full_like(kept[one], -torch.inf)},
    }
    for i, (name, tensors) in enumerate(cases.items()):
        yield name, rewrite(good, folder / f"tensors-{i}", KEY, tensors=lambda _, t=tensors: t)


def test_hostile_weights(good, tmp_path):
    files = stored.not_regular(tmp_path) | stored.broken_containers(tmp_path, good, KEY)
    files |= dict(wrong_headers(tmp_path, good)) | dict(wrong_tensors(tmp_path, good))
    assert len(files) > 150
    assert_each_is_refused(files, "weights")


@pytest.mark.slow
def test_hostile_weights_in_a_process_each(good, tmp_path):
    files = stored.not_regular(tmp_path) | stored.broken_containers(tmp_path, good, KEY)
    for name, path in files.items():
        assert_each_is_refused({name: path}, "transformer")


def test_a_flipped_bit_is_found_anywhere(good, tmp_path):
    n_bits = 8 * good.stat().st_size
    n_header = 64 + 8 * int.from_bytes(good.read_bytes()[:8], "little")
    rng = np.random.default_rng(0)
    bits = [*range(64), n_header - 1, n_header, n_bits - 1]
    bits += rng.integers(n_bits, size=150).tolist() + rng.integers(n_header, size=150).tolist()
    for path in stored.flipped(tmp_path, good, bits).values():
        with pytest.raises(ValueError, match=path.name):
            read_encoder(path)


@pytest.mark.slow
def test_each_flipped_bit_of_the_header_is_found(good, tmp_path):
    n_header = 64 + 8 * int.from_bytes(good.read_bytes()[:8], "little")
    path = tmp_path / "flipped"
    whole = bytearray(good.read_bytes())
    for bit in range(0, n_header, 3):
        whole[bit // 8] ^= 1 << bit % 8
        path.write_bytes(whole)
        with pytest.raises(ValueError, match="flipped"):
            read_encoder(path)
        whole[bit // 8] ^= 1 << bit % 8
    path.write_bytes(whole)
    read_encoder(path)


def test_no_permission_says_so(good, tmp_path, monkeypatch):
    path = tmp_path / "closed"
    path.write_bytes(good.read_bytes())
    path.chmod(0)
    if os.access(path, os.R_OK):  # the superuser may

        def refuse(*args, **kwargs):
            raise PermissionError(13, "Permission denied", args[0])

        monkeypatch.setattr("builtins.open", refuse)
    with pytest.raises(PermissionError, match="permission.*chmod u\\+r.*closed"):
        read_encoder(path)
