"""X-ray energy is shared out between heat, ionisations and Lyman alpha photons."""

import math

import torch

from skatr_sk.simulator.xrays import X_E, cross_section, xray_tables


def test_xray_energy_is_shared_out():
    """Heat, ionisations of 13.6 eV and Lyman alpha of 10.2 eV add up to what electrons bring."""
    x_e = X_E.double()
    heat, ions, alpha = xray_tables(torch.tensor(300.0))

    def over_spectrum(yields):
        """Integral over frequency, and the same with the energy that the electron is left with."""
        energy = torch.logspace(math.log10(300), 4, 2000, dtype=torch.float64)
        rate = cross_section(energy, x_e[:, None]) * energy**-2 * 2.418e14
        return torch.trapezoid(rate * yields(energy), energy)

    primaries = over_spectrum(torch.ones_like)
    # Most come from helium; the last electron of helium costs more.
    brought = over_spectrum(lambda energy: energy - (24.6 + x_e * 29.8)[:, None])
    shares = heat / 1.602e-12 / brought
    assert (torch.diff(shares[:-1]) > 0).all()
    assert 0.1 < shares[0] < 0.16
    assert 0.95 < shares[-1] < 1.05
    spent = heat / 1.602e-12 + 13.6 * (ions - primaries) + 10.2 * alpha
    assert ((spent / brought > 0.75) & (spent / brought < 1.05)).all()
    # Fewer photons, less of everything.
    falling = xray_tables(torch.tensor([200.0, 500.0, 2000.0]))
    assert (torch.diff(falling, dim=0) < 0).all()
