"""Scaled patches: averaged within a patch, and a slab at a time where a field is large."""

import numpy as np
import pytest
import torch

from skatr_sk.lightcones import coarsen
from skatr_sk.summaries import patches as module
from skatr_sk.summaries.patches import scaled_patches, shares_of
from skatr_sk.summaries.scaling import BrightnessScaling
from skatr_sk.summaries.vit import patchify

SCALING = BrightnessScaling(softening=20.0, offset=-0.2, scale=0.7)


@pytest.mark.parametrize("subtract_mean", [False, True])
@pytest.mark.parametrize(
    ("patch", "voxels"), [((2, 3, 4), None), ((4, 3, 10), (2, 3, 5)), ((1, 2, 5), (2, 1, 3))]
)
def test_slab_by_slab_is_the_same(monkeypatch, rng, patch, voxels, subtract_mean):
    scaling = BrightnessScaling(20.0, -0.2, 0.7, subtract_mean)
    fields = torch.from_numpy(rng.normal(-20, 40, size=(2, 12, 6, 20)).astype(np.float16))
    whole = scaled_patches(fields, scaling, patch, voxels)
    cut = []
    real = module.patchify
    monkeypatch.setattr(module, "patchify", lambda *args: cut.append(1) or real(*args))
    monkeypatch.setattr(module, "_SLAB_CELLS", 2 * patch[0] * 6 * 20)  # two patches thick
    assert torch.equal(scaled_patches(fields, scaling, patch, voxels), whole)
    assert len(cut) == -(-12 // (2 * patch[0]))
    if voxels is None:
        assert torch.equal(whole, patchify(scaling(fields), patch))


@pytest.mark.parametrize("shape", [(8,), (8, 6), (8, 6, 10)], ids=str)
def test_cells_are_averaged_in_mk(rng, shape):
    fields = rng.normal(-20, 40, size=(3, *shape)).astype(np.float32)
    patch, factor = (4, 6, 10)[: len(shape)], (2, 3, 5)[: len(shape)]
    voxels = tuple(p // f for p, f in zip(patch, factor, strict=True))
    found = scaled_patches(torch.from_numpy(fields), SCALING, patch, voxels)
    if len(shape) == 3:
        coarse = coarsen(fields, factor)
    else:  # the same by hand
        split = [s for n, f in zip(shape, factor, strict=True) for s in (n // f, f)]
        coarse = fields.reshape(3, *split).mean(axis=tuple(range(2, 2 + 2 * len(shape), 2)))
    expected = patchify(SCALING(torch.from_numpy(coarse.astype(np.float32))), voxels)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_means_of_parts_that_do_not_divide():
    assert shares_of(3, 2).numpy() == pytest.approx(np.array([[2, 1, 0], [0, 1, 2]]) / 3)
    assert shares_of(2, 4).tolist() == [[1, 0], [1, 0], [0, 1], [0, 1]]
    for n, cells in [(7, 4), (4, 7), (10, 94)]:
        shares = shares_of(cells, n).numpy()
        assert shares.sum(axis=1) == pytest.approx(np.ones(n))
        assert shares.mean(axis=0) == pytest.approx(np.full(cells, 1 / cells))  # nothing is lost


def test_averages_do_not_lose_digits_to_autocast(rng):
    fields = torch.from_numpy(rng.normal(-20, 40, size=(2, 8, 8)).astype(np.float32))
    expected = scaled_patches(fields, SCALING, (4, 4), (2, 2))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(scaled_patches(fields, SCALING, (4, 4), (2, 2)), expected)
