"""Temperature, electrons and spin temperature of the gas that stars have not ionised."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from skatr_sk.lightcones._cosmology import HUBBLE, HUBBLE_RATE, OMEGA_B, SPEED_OF_LIGHT, Cosmology
from skatr_sk.lightcones._radiation import (
    BARYONS,
    HELIUM,
    HYDROGEN,
    LYMAN_ALPHA,
    XRAY_ELECTRONS,
    collision_rate,
    lyman_heat,
    lyman_series,
    recombination_rate,
    xray_tables,
)
from skatr_sk.lightcones._sources import Shells

__all__ = ["T_CMB", "Gas", "evolve", "first_gas"]

_F_STAR = 0.05  # share of collapsed baryons in stars
_BAND_TOP = 2000.0  # eV: L_X is the luminosity between E_0 and here
_CLUMPING = 2.0
_HOTTEST = 5e4  # K

T_CMB = 2.728  # K
_T_21 = 0.0682  # K: energy of the 21 cm line over k_B
_A_10 = 2.85e-15  # 1/s
_LAMBDA_21 = 21.106114  # cm
_BOLTZMANN = 1.380658e-16  # erg / K
_PLANCK = 6.62607e-27  # erg s
_PROTON = 1.67262e-24  # g
_CRITICAL = 1.8784e-29 * HUBBLE**2 / 1.989e33  # Msun / cm^3
_YEAR = 3.15569e7  # s
_EV_HZ = 2.417989e14
_LYMAN_WIDTH = 4.983e7  # 1/s: damping of Lyman alpha, half width
_LYMAN_CM = 1215.67e-8
_LYMAN_DEPTH = 1.342881e-7  # cm^3 / s: Gunn-Peterson depth times H / n_HI


class Gas(NamedTuple):
    """State of the gas, each of shape (n, ...).

    Attributes
    ----------
    t_kinetic, t_spin : Tensor
        In K.
    electrons : Tensor
        Ionised fraction, 0 to 1, by X-rays and left over from recombination.
    """

    t_kinetic: Tensor
    t_spin: Tensor
    electrons: Tensor


def first_gas(z: float, delta: Tensor) -> Gas:
    """Gas before the first stars, as recombination left it (RECFAST; Seager et al. 1999).

    Parameters
    ----------
    z : float
        35 to 40.
    delta : Tensor of shape (n, ...)
        Density contrast. Dense gas is warmer by the adiabatic index of Munoz 2023
        (arXiv:2302.08506).
    """
    t_mean = 26.59 * ((1 + z) / 36.695) ** 1.93
    electrons = torch.full_like(delta, 2.06e-4)
    t_kinetic = t_mean * (1 + (0.58 - 0.006 * (z - 10)) * delta)
    t_cmb = T_CMB * (1 + z)
    collisions = _collisions(z, delta, torch.full_like(delta, t_mean), electrons)
    t_spin = (1 + collisions) / (1 / t_cmb + collisions / t_mean)
    return Gas(t_kinetic, t_spin, electrons)


def _collisions(z: float, delta: Tensor, t_kinetic: Tensor, electrons: Tensor) -> Tensor:
    """Coupling by collisions."""
    density = HYDROGEN * BARYONS * (1 + z) ** 3
    rate = collision_rate(t_kinetic, electrons)
    return (1 + delta) * rate * (density * _T_21 / (_A_10 * T_CMB * (1 + z)))


def _spin_temperature(
    z: float, expansion: Tensor, delta: Tensor, gas: Gas, cmb: Tensor, flux: Tensor
) -> Tensor:
    """Spin temperature with the Wouthuysen-Field coupling of Hirata 2006 (astro-ph/0507102).

    Parameters
    ----------
    expansion : Tensor
        Hubble rate, 1/s.
    gas : Gas
        Its spin temperature is not used.
    cmb : Tensor
        Weight of the microwave background, below 1 where the 21 cm line is thick.
    flux : Tensor
        Of Lyman alpha, photons/cm^2/s/Hz/sr, without scattering.
    """
    t_cmb = T_CMB * (1 + z)
    inverse = 1 / gas.t_kinetic
    collisions = _collisions(z, delta, gas.t_kinetic, gas.electrons)
    depth = 1e-7 * _LYMAN_DEPTH * HYDROGEN * BARYONS * (1 + z) ** 3 / expansion
    xi = (depth * (1 + delta) * (1 - gas.electrons) * inverse**2) ** (1 / 3)
    strength = 8 * math.pi * _LYMAN_CM**2 * _LYMAN_WIDTH * _T_21 / (9 * _A_10 * t_cmb)
    coupling = strength * flux / (1 + xi * (2.98394 + xi * (1.53583 + xi * 3.85289)))
    plain = 1 - 0.0631789 * inverse + 0.115995 * inverse**2
    mixed = -0.401403 * inverse + 0.336463 * inverse**2
    colour = inverse - 0.405535 * inverse**2
    total = cmb / t_cmb + collisions * inverse
    t_spin = torch.full_like(delta, t_cmb)
    for _ in range(5):  # to 0.01 mK; each brings a factor of eight
        alpha = coupling * (plain + mixed / t_spin)
        colours = alpha * (colour + 0.405535 * inverse / t_spin)
        t_spin = (cmb + alpha + collisions) / (total + colours)
    return t_spin.abs()


def _xray_scale(z: float, energy: Tensor, log_lx: Tensor) -> Tensor:
    """What multiplies the tables of X-rays: their number per volume and spectral shape."""
    per_star = 10**log_lx * _YEAR / _PLANCK / (_BAND_TOP / energy).log()  # photons/Msun * Hz
    per_hertz = per_star / (energy * _EV_HZ) ** 2 * energy**2
    return per_hertz * SPEED_OF_LIGHT * _F_STAR * OMEGA_B * _CRITICAL * (1 + z) ** 4


class _Light(NamedTuple):
    """What reaches the cells, each of shape (n, ...): by X-rays per nucleus, K/s, 1/s and flux.

    Attributes
    ----------
    heat, ions, alpha : Tensor
        Alpha is made in gas of the mean density.
    continuum, injected : Tensor
        Flux of stars, photons/cm^2/s/Hz/sr.
    """

    heat: Tensor
    ions: Tensor
    alpha: Tensor
    continuum: Tensor
    injected: Tensor


def _light(
    cosmology: Cosmology,
    z: float,
    shells: Shells,
    emission: Tensor,
    energy: Tensor,
    log_lx: Tensor,
    electrons: Tensor,
) -> _Light:
    """Sum the light of all shells, as one matrix product."""
    at_z = torch.full((len(energy), 1), z, dtype=torch.float64, device=energy.device)
    rate = HUBBLE_RATE * cosmology.expansion(at_z)[..., None]
    # Tables for the electron fractions that there are.
    grid = XRAY_ELECTRONS.to(electrons)
    x = electrons.clamp(float(grid[0]) * 1.001, float(grid[-1]) * 0.999)
    first, last = (torch.bucketize(torch.stack(torch.aminmax(x)), grid) - 1).tolist()
    grid = grid[first : last + 2]
    tables = xray_tables(torch.maximum(shells.transparent, energy[:, None]))[..., first : last + 2]
    tables = tables * _xray_scale(z, energy, log_lx)[:, None, None, None]
    heat, ions, alpha = tables.unbind(2)
    alpha = alpha * (SPEED_OF_LIGHT / (4 * math.pi * LYMAN_ALPHA) * BARYONS * (1 + z) ** 3 / rate)
    stars = torch.stack(lyman_series(at_z, shells.z), dim=2)
    stars = stars * ((1 + z) * (1 + shells.z))[..., None] ** 2
    stars = stars * (_F_STAR * SPEED_OF_LIGHT * BARYONS / (4 * math.pi))
    # In kelvin, heat is within the range of float32.
    weights = torch.cat([heat / _BOLTZMANN, ions, alpha, stars], dim=2).transpose(1, 2)
    sums = weights.to(emission.dtype) @ emission.flatten(2)
    sums = sums.unflatten(2, emission.shape[2:])
    by_xrays = sums[:, :-2].unflatten(1, (3, -1))
    low = (torch.bucketize(x, grid) - 1).clamp(min=0)
    share = ((x - grid[low]) / (grid[low + 1] - grid[low]))[:, None]
    low = low[:, None, None].expand(-1, 3, -1, *x.shape[1:])
    low_end, high_end = by_xrays.gather(2, low)[:, :, 0], by_xrays.gather(2, low + 1)[:, :, 0]
    return _Light(*torch.lerp(low_end, high_end, share).unbind(1), *sums[:, -2:].unbind(1))


def evolve(
    gas: Gas,
    cosmology: Cosmology,
    z: float,
    z_before: float,
    density: Tensor,
    shells: Shells,
    emission: Tensor,
    energy: Tensor,
    log_lx: Tensor,
) -> Gas:
    """Take the gas from one redshift to the next, by one explicit step.

    Adiabatic cooling, Compton and X-ray heating, ionisation and recombination (Mesinger,
    Furlanetto and Cen 2011, arXiv:1003.3878, section 3), heating by the microwave background
    (Venumadhav et al. 2018, arXiv:1804.02406) and by Lyman alpha photons (Reis, Fialkov and
    Barkana 2021, arXiv:2101.01777).

    Parameters
    ----------
    gas : Gas
        At `z_before`.
    density : Tensor of shape (n, ...)
        Linear density contrast of the cells, extrapolated to today.
    shells : Shells
        Around a point at `z`.
    emission : Tensor of shape (n, n_shells, ...)
        Share of the matter that collapses in each shell; zero where there is no light.
    energy, log_lx : Tensor of shape (n,)
        Threshold of self-absorption, eV; luminosity, log10 erg/s/(Msun/yr).

    Returns
    -------
    Gas
        At `z`.
    """
    at_z = torch.full((len(energy),), z, dtype=torch.float64, device=density.device)
    shape = (-1, *[1] * (density.ndim - 1))

    def cells(values: Tensor) -> Tensor:
        return values.to(density.dtype).view(shape)

    rate = HUBBLE_RATE * cosmology.expansion(at_z)
    expansion, growth = cells(rate), cells(cosmology.growth(at_z))
    slope = cells(cosmology.growth_slope(at_z))
    time_step = cells((z_before - z) / (rate * (1 + z)))  # s
    dz = z - z_before
    delta = density * growth
    t, x = gas.t_kinetic, gas.electrons
    baryons = BARYONS * (1 + z) ** 3

    light = _light(cosmology, z, shells, emission, energy, log_lx, x)
    flux = light.alpha * (1 + delta) + light.continuum + light.injected
    recombined = recombination_rate(t) * _CLUMPING * HYDROGEN * x**2 * baryons * (1 + delta)
    dx = (light.ions - recombined) * time_step
    # The microwave background couples less to a line that is thick.
    depth = 3 * _PLANCK * _A_10 * SPEED_OF_LIGHT * _LAMBDA_21**2 / (32 * math.pi * _BOLTZMANN)
    tau = depth * HYDROGEN * baryons * (1 - x) / (gas.t_spin * expansion)
    cmb = -torch.expm1(-tau) / tau
    t_cmb = T_CMB * (1 + z)
    change = (2 / 3) * t * (3 / (1 + z) + slope * density / (1 + delta)) * dz
    change = change - dx * t / (1 + x)
    compton = 1.51e-4 * HUBBLE_RATE / (HUBBLE * rate) * t_cmb**4 / (1 + z)
    change = change - cells(compton) * x / (1 + x + HELIUM) * (t_cmb - t) * dz
    per_particle = 2 / 3 / (1 + x)
    change = change + light.heat * per_particle * time_step
    recoil = 0.75 * (t_cmb / _T_21) * _A_10 * HYDROGEN * (_PLANCK / _LAMBDA_21) ** 2 / _PROTON
    change = change + recoil / _BOLTZMANN * (1 + 2 * t / _T_21) * per_particle * time_step
    thickness = _LYMAN_DEPTH * HYDROGEN * baryons / expansion * (1 + delta) * (1 - x)
    gain, loss = lyman_heat(t, gas.t_spin, thickness)
    scattered = 4 * math.pi * LYMAN_ALPHA / (baryons * (1 + z) * SPEED_OF_LIGHT) / (1 + delta)
    lyman = (light.continuum * gain + light.injected * loss) * (scattered / _BOLTZMANN)
    change = change - lyman * per_particle * dz
    electrons = (x + dx).clamp(0, 1 - 1e-7)
    t_new = torch.where(t < _HOTTEST, t + change, t)
    t_new = torch.where(t_new < 0, torch.full_like(t, t_cmb), t_new)
    new = Gas(t_new, gas.t_spin, electrons)
    return new._replace(t_spin=_spin_temperature(z, expansion, delta, new, cmb, flux))
