"""What sources shine and gas takes up: X-rays, secondary electrons, Lyman series, collisions."""

from __future__ import annotations

import functools
import math

import torch
from torch import Tensor

from skatr_sk.lightcones._cosmology import HUBBLE, OMEGA_B

__all__ = [
    "BARYONS",
    "HELIUM",
    "HYDROGEN",
    "LYMAN_ALPHA",
    "XRAY_ELECTRONS",
    "collision_rate",
    "cross_section",
    "lyman_heat",
    "lyman_series",
    "recombination_rate",
    "xray_tables",
]

# Numbers of hydrogen and helium among baryons (nuclei), for a helium mass fraction of 0.245.
_HELIUM_MASS = 0.245
HYDROGEN = (1 - _HELIUM_MASS) / (1 - _HELIUM_MASS + _HELIUM_MASS / 4)
HELIUM = 1 - HYDROGEN
# Nuclei per cubic centimetre today: critical density 1.878e-29 h^2 g / cm^3 over the proton mass.
BARYONS = 1.8784e-29 * HUBBLE**2 * OMEGA_B * (1 - 0.75 * _HELIUM_MASS) / 1.67262e-24

LYMAN_ALPHA = 2.46606727e15  # Hz
_EV_ERG = 1.602177e-12
_EV_HZ = 2.417989e14

# Ionised fractions at which the rates of X-rays are tabulated.
XRAY_ELECTRONS = torch.tensor([1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 0.1, 0.3, 0.6, 0.9, 0.999])
_LN_ENERGY = (math.log(50.0), math.log(1e4), 400)  # eV

# Photons from Population II stars between Lyman lines n and n + 1, and the slope of the spectrum
# in frequency there (Barkana and Loeb 2005, astro-ph/0410129), n = 2 to 23.
_STELLAR_PHOTONS = 5000 * torch.tensor(
    [1.49494, 0.393277, 0.160398, 0.0729365, 0.0349985, 0.0174907, 0.0102821, 0.00730747]
    + [0.00544619, 0.00417057, 0.00326463, 0.00260298, 0.00210843, 0.00173139, 0.00143814]
    + [0.00118812, 0.000986257, 0.000828343, 0.0007029, 0.0006019, 0.000519604, 0.000451832],
    dtype=torch.float64,
)
_STELLAR_SLOPE = torch.tensor(
    [0.142018, -2.17044, 2.14591, -17.4677, -34.0605, -42.9493, -13.5722, 3.95519, 5.1087]
    + [5.73644, 6.11457, 6.3601, 6.52889, 6.65021, 0.00386785, -54.8366, -54.8176, -54.8015]
    + [-54.7877, -54.7758, -54.7655, -54.7564],
    dtype=torch.float64,
)
# Chance that a cascade from line n ends in a Lyman alpha photon (Pritchard and Furlanetto 2006,
# astro-ph/0508381), n = 2 to 23.
_RECYCLED = torch.tensor(
    [1, 0, 0.2609, 0.3078, 0.3259, 0.3353, 0.3410, 0.3448, 0.3476, 0.3496, 0.3512, 0.3524]
    + [0.3535, 0.3543, 0.3550, 0.3556, 0.3561, 0.3565, 0.3569, 0.3572, 0.3575, 0.3578],
    dtype=torch.float64,
)
# Powers of log10(T_k / 10 K), log10(T_s / 10 K), log10(tau / 10^5.7), and the coefficients of
# ln(energy / 1e-16 erg) that a continuum photon leaves in the gas while it redshifts through the
# line, and of the energy of an injected photon over it: our fit, 1 % and 13 % rms, to the energies
# that come with 21cmFAST (Reis, Fialkov and Barkana 2021, arXiv:2101.01777, after Furlanetto and
# Pritchard 2006, astro-ph/0605680), for T_k from 1.5 K, T_s from 2 to 160 K, tau from 4e4 to 5e6.
_LYMAN_HEAT = (
    ((0, 0, 0), 0.6024, -0.8951),
    ((0, 0, 1), 1.3503, 1.1135),
    ((0, 0, 2), 0.0247, -0.0993),
    ((0, 1, 0), -0.1371, -0.1847),
    ((0, 1, 1), 0.0128, 0.1410),
    ((0, 1, 2), 0.0081, 0.0310),
    ((0, 2, 0), 0.1476, 0.1272),
    ((0, 2, 1), -0.0117, -0.1083),
    ((0, 3, 0), -0.0622, -0.0275),
    ((1, 0, 0), -0.4370, -2.2747),
    ((1, 0, 1), -0.0247, 0.9284),
    ((1, 0, 2), 0.1362, 0.3703),
    ((1, 1, 0), -0.0122, -0.1677),
    ((1, 1, 1), -0.0104, 0.0119),
    ((1, 2, 0), 0.0081, 0.0884),
    ((2, 0, 0), -0.1139, -1.3171),
    ((2, 0, 1), -0.1839, -0.1932),
    ((2, 1, 0), 0.0050, -0.0230),
    ((3, 0, 0), 0.1263, -0.1513),
)


def _hydrogenic(energy: Tensor, charge: int) -> Tensor:
    """Cross section, cm^2, of one electron around a nucleus (Osterbrock 1989, eq. 2.4)."""
    threshold = 13.6 * charge**2
    x = (energy / threshold - 1).clamp(min=1e-8).sqrt()
    shape = torch.exp(4 - 4 * torch.atan(x) / x) / (1 - torch.exp(-2 * math.pi / x))
    return 6.3e-18 / charge**2 * (threshold / energy) ** 4 * shape * (energy >= threshold)


def _helium(energy: Tensor) -> Tensor:
    """Cross section, cm^2, of neutral helium (Verner et al. 1996, astro-ph/9601009)."""
    x = energy / 13.61 - 0.4434
    y = (x**2 + 2.136**2).sqrt()
    shape = ((x - 1) ** 2 + 2.039**2) * y ** (0.5 * 3.188 - 5.5)
    return 9.492e-16 * shape * (1 + (y / 1.469).sqrt()) ** -3.188 * (energy >= 24.59)


def cross_section(energy: Tensor, electrons: Tensor) -> Tensor:
    """Photoionisation cross section per nucleus of hydrogen or helium.

    Parameters
    ----------
    energy : Tensor
        Of the photon, in eV.
    electrons : Tensor
        Ionised fraction of hydrogen, and singly ionised fraction of helium; goes with `energy`.

    Returns
    -------
    Tensor
        In cm^2.
    """
    neutral = HYDROGEN * _hydrogenic(energy, 1) + HELIUM * _helium(energy)
    return (1 - electrons) * neutral + electrons * HELIUM * _hydrogenic(energy, 2)


def _electron_yields(energy: Tensor, electrons: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Heat fraction, ionisations and Lyman alpha photons per eV of an electron of some 100 eV.

    Our fit, to 0.03 in the heat fraction, to the Monte Carlo of Furlanetto and Stoever 2010
    (arXiv:0910.4410).
    """
    x, e = electrons.log10(), (energy.clamp(min=80.0) / 500).log10()
    heat = torch.sigmoid(
        4.3254 + 4.1193 * x + 1.0269 * x**2 + 0.0979 * x**3 + (-0.9211 - 0.1891 * x) * e
        + 0.2572 * e**2
    )  # fmt: skip
    ions = 0.03423 - 0.00017 * x - 0.00025 * x**2 - (0.00068 + 0.00033 * x) * e
    alpha = 0.03879 - 0.00068 * x + 0.00006 * x**2 + (0.00042 + 0.00018 * x) * e
    return heat, (1 - heat) * ions, (1 - heat) * alpha


@functools.cache
def _xray_tables() -> Tensor:
    """Rates above an energy, for a spectrum of photons per frequency of (1 eV / energy)^2."""
    ln_e = torch.linspace(*_LN_ENERGY, dtype=torch.float64)
    energy, electrons = ln_e.exp(), XRAY_ELECTRONS.double()[:, None]
    rates = []
    for kind in range(3):
        total = torch.zeros(len(electrons), len(energy), dtype=torch.float64)
        for threshold, number, sigma in (
            (13.6, HYDROGEN * (1 - electrons), _hydrogenic(energy, 1)),
            (24.59, HELIUM * (1 - electrons), _helium(energy)),
            (54.4, HELIUM * electrons, _hydrogenic(energy, 2)),
        ):
            left = (energy - threshold).clamp(min=0)
            heat, ions, alpha = _electron_yields(left, electrons)
            taken = (heat * left * _EV_ERG, 1 + ions * left, alpha * left)[kind]
            total += taken * number * sigma
        integrand = total * energy**-2 * energy * _EV_HZ  # d nu = energy d ln energy
        step = ln_e[1] - ln_e[0]
        pieces = (integrand[:, 1:] + integrand[:, :-1]) / 2 * step
        above = pieces.flip(1).cumsum(1).flip(1)
        rates.append(torch.nn.functional.pad(above, (0, 1)))
    return torch.stack(rates)


def xray_tables(lowest: Tensor) -> Tensor:
    """Heat, ionisations and Lyman alpha photons that X-rays above an energy give a nucleus.

    Parameters
    ----------
    lowest : Tensor of shape (...)
        Energy in eV below which no photon arrives.

    Returns
    -------
    Tensor of shape (..., 3, n_electrons)
        The integrals over frequency, up to 10 keV, of cross section times yield (erg, 1, 1) times
        a photon spectrum ``(energy / 1 eV)**-2``, at the ionised fractions `XRAY_ELECTRONS`.
    """
    lowest, tables = lowest.double(), _xray_tables().to(lowest.device)
    step = (_LN_ENERGY[1] - _LN_ENERGY[0]) / (_LN_ENERGY[2] - 1)
    place = ((lowest.log() - _LN_ENERGY[0]) / step).clamp(0, _LN_ENERGY[2] - 1)
    low = place.long().clamp(max=_LN_ENERGY[2] - 2)
    between = torch.lerp(tables[:, :, low], tables[:, :, low + 1], place - low)
    return between.movedim((0, 1), (-2, -1))


def _line(n: Tensor) -> Tensor:
    """Frequency of Lyman line n over that of Lyman alpha."""
    return 4 / 3 * (1 - 1 / n**2)


def lyman_series(z: Tensor, z_shells: Tensor) -> tuple[Tensor, Tensor]:
    """Photons per baryon in stars and Hz that reach Lyman alpha at z from shells around.

    Parameters
    ----------
    z : Tensor of shape (n, 1)
    z_shells : Tensor of shape (n, n_shells)
        Middle of the shells, growing outwards from `z`.

    Returns
    -------
    continuum, injected : Tensor of shape (n, n_shells)
        From photons that redshift into Lyman alpha, and from cascades of higher lines. Where the
        horizon of Lyman alpha falls between two shells, the outer one counts in part.
    """
    device = z.device
    n = torch.arange(2.0, 25.0, dtype=torch.float64, device=device)
    edges = _line(n)  # 23 of them bound 22 bands
    low, high, line = edges[:-1], edges[1:], n[:-1]
    slope, photons = _STELLAR_SLOPE.to(device), _STELLAR_PHOTONS.to(device)
    area = (high ** (slope + 1) - low ** (slope + 1)) / (slope + 1)
    ratio = ((1 + z_shells) / (1 + z))[..., None]
    emitted = low * ratio  # frequency at the source of what arrives as line n
    # In the last place a photon between lines n and n + 1 when it set out.
    reaches = ratio <= (1 - (line + 1) ** -2) / (1 - line**-2)
    spectrum = photons / area * emitted**slope / LYMAN_ALPHA
    parts = torch.where(reaches, _RECYCLED.to(device) * spectrum, 0)
    continuum, injected = parts[..., 0], parts[..., 1:].sum(-1)
    horizon = (1 + z) * (8 / 9) / (3 / 4) - 1
    seen = z_shells <= horizon
    first_dark = ~seen & torch.nn.functional.pad(seen[:, :-1], (1, 0))
    before = torch.nn.functional.pad(z_shells[:, :-1], (1, 0))
    share = torch.where(first_dark, (horizon - before) / (z_shells - before), 0).clamp(0, 1)
    inner = [torch.nn.functional.pad(part[:, :-1], (1, 0)) for part in (continuum, injected)]
    return continuum + share * inner[0], injected + share * inner[1]


def lyman_heat(t_kinetic: Tensor, t_spin: Tensor, tau: Tensor) -> tuple[Tensor, Tensor]:
    """Energy, erg, that a continuum and an injected photon leave in the gas.

    Parameters
    ----------
    t_kinetic, t_spin : Tensor
        In K.
    tau : Tensor
        Optical depth of Lyman alpha.
    """
    k = t_kinetic.clamp(1.5, 1000).log10() - 1
    s = t_spin.clamp(2, 160).log10() - 1
    g = tau.clamp(4e4, 5e6).log10() - 5.7
    powers_k, powers_s, powers_g = ((None, v, v * v, v * v * v) for v in (k, s, g))
    ln_energy, ratio = torch.zeros_like(k), torch.zeros_like(k)
    for (i, j, m), a, b in _LYMAN_HEAT:
        term = torch.ones_like(k)
        for power in (powers_k[i], powers_s[j], powers_g[m]):
            term = term if power is None else term * power
        ln_energy.add_(term, alpha=a)
        ratio.add_(term, alpha=b)
    continuum = 1e-16 * ln_energy.exp()
    return continuum, ratio * continuum


def collision_rate(t_kinetic: Tensor, electrons: Tensor) -> Tensor:
    """Rate of spin flips by collisions per hydrogen nucleus, cm^3/s.

    With hydrogen after Kuhlen, Madau and Montgomery 2006 (astro-ph/0510814), with electrons after
    Liszt 2001 (astro-ph/0103246).
    """
    t = t_kinetic.clamp(1, 1e4)
    hydrogen = 3.1e-11 * t**0.357 * torch.exp(-32 / t)
    free = 10 ** (-9.607 + 0.5 * t.log10() * torch.exp(-(t.log10() ** 4.5) / 1800))
    return (1 - electrons) * hydrogen + electrons / HYDROGEN * free


def recombination_rate(t_kinetic: Tensor) -> Tensor:
    """Recombination coefficient of hydrogen, case A, cm^3/s (a power law, 4.2e-13 at 10^4 K)."""
    return 4.2e-13 * (t_kinetic.clamp(min=1) / 1e4) ** -0.7
