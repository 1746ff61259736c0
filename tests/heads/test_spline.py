"""The splines: beside nflows, at their ends, and where weights are large."""

import pytest
import torch
from nflows.transforms.splines.rational_quadratic import rational_quadratic_spline

from skatr_sk.heads.spline import _UNIT_SLOPE, BOUND, log_slope, spline

SQUARE = {"left": -BOUND, "right": BOUND, "bottom": -BOUND, "top": BOUND}


def draw(n_bins=10, n=2000, scale=2.0):
    generator = torch.Generator().manual_seed(0)
    inputs = BOUND * (2 * torch.rand(3, n, generator=generator) - 1)
    return inputs.double(), scale * torch.randn(3, 3 * n_bins - 1, n, generator=generator).double()


@pytest.mark.parametrize("inverse", [False, True])
@pytest.mark.parametrize("n_bins", [2, 10])
def test_it_is_the_spline_of_nflows(n_bins, inverse):
    inputs, logits = draw(n_bins)
    logits = logits.clamp(-6, 6)  # within our bound
    outputs, places = spline(inputs, logits, inverse=inverse)
    widths, heights, slopes = logits.mT.contiguous().tensor_split([n_bins, 2 * n_bins], dim=-1)
    slopes = torch.nn.functional.pad(slopes, (1, 1)) + _UNIT_SLOPE
    wanted, log_jacobian = rational_quadratic_spline(
        inputs, widths, heights, slopes, inverse=inverse, **SQUARE
    )
    torch.testing.assert_close(outputs, wanted, rtol=1e-5, atol=1e-5)
    sign = -1 if inverse else 1
    torch.testing.assert_close(sign * log_slope(places), log_jacobian, rtol=1e-5, atol=1e-5)


def test_zeros_are_the_identity_and_nothing_is_bent_beyond_the_bounds():
    inputs, logits = draw()
    for inverse in (False, True):
        same, places = spline(inputs, 0 * logits, inverse=inverse)
        torch.testing.assert_close(same, inputs)
        torch.testing.assert_close(log_slope(places), 0 * inputs, atol=1e-7, rtol=0)
        far, places = spline(10 * inputs.sign() + inputs, logits, inverse=inverse)
        torch.testing.assert_close(far, 10 * inputs.sign() + inputs)
        torch.testing.assert_close(log_slope(places), 0 * inputs, atol=1e-7, rtol=0)


@pytest.mark.parametrize("scale", [3.0, 1e4])
def test_it_leads_back_in_float32(scale):
    """Logits are bounded: however large, bins keep a width that float32 can tell."""
    inputs, logits = (part.float() for part in draw(scale=scale))
    there, forth = spline(inputs, logits)
    back, places = spline(there, logits, inverse=True)
    assert torch.isfinite(log_slope(places)).all() and torch.isfinite(log_slope(forth)).all()
    errors = (back - inputs).abs()
    assert errors.median() < 1e-4 and (errors * log_slope(forth).exp()).max() < 1e-3


def test_what_is_no_number_spoils_nothing_else():
    inputs, logits = draw(n=50)
    spoilt_inputs, spoilt_logits = inputs.clone(), logits.clone()
    spoilt_inputs[0, 3], spoilt_logits[1, :, 7] = torch.nan, torch.nan
    outputs, places = spline(spoilt_inputs, spoilt_logits)
    bad = ~torch.isfinite(outputs)
    assert bad.nonzero().tolist() == [[0, 3], [1, 7]]
    wanted, expected = spline(inputs, logits)
    assert torch.equal(outputs[~bad], wanted[~bad])
    assert torch.equal(log_slope(places)[~bad], log_slope(expected)[~bad])
