"""Temperature, ionised fraction and spin temperature of the gas that stars have not ionised."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from skatr_sk.simulator.cosmology import (
    BARYONS,
    BOLTZMANN,
    HELIUM,
    HUBBLE,
    HUBBLE_RATE,
    HYDROGEN,
    PLANCK,
    PROTON_MASS,
    SPEED_OF_LIGHT,
    T_CMB,
    match_axes,
)
from skatr_sk.simulator.lyman_alpha import LYMAN_ALPHA, lyman_heat
from skatr_sk.simulator.sources import Light

__all__ = ["Gas", "evolve", "first_gas"]

_CLUMPING = 2.0
_HOTTEST = 5e4  # K
_T_21 = 0.0682  # K: energy of the 21 cm line over k_B
_A_10 = 2.85e-15  # 1/s
_LAMBDA_21 = 21.106114  # cm
_LYMAN_WIDTH = 4.983e7  # 1/s: damping of Lyman alpha, half width
_LYMAN_CM = 1215.67e-8
_LYMAN_DEPTH = 1.342881e-7  # cm^3 / s: Gunn-Peterson depth times H / n_HI


class Gas(NamedTuple):
    """State of the gas, each of shape (n, ...)."""

    T_k: Tensor  # kinetic temperature, K
    T_s: Tensor  # spin temperature, K
    x_e: Tensor  # ionised fraction, 0 to 1, by X-rays and left over from recombination


def first_gas(z: float, delta: Tensor) -> Gas:
    """Gas before the first stars, as recombination left it (RECFAST; Seager et al. 1999).

    For redshifts of 35 to 40. Where the density contrast (n, ...) is high, gas is warmer by the
    adiabatic index of Munoz 2023 (arXiv:2302.08506).
    """
    T_mean = 26.59 * ((1 + z) / 36.695) ** 1.93
    x_e = torch.full_like(delta, 2.06e-4)
    T_k = T_mean * (1 + (0.58 - 0.006 * (z - 10)) * delta)
    collisions = _collisions(z, delta, torch.full_like(delta, T_mean), x_e)
    T_s = (1 + collisions) / (1 / (T_CMB * (1 + z)) + collisions / T_mean)
    return Gas(T_k, T_s, x_e)


def _collisions(z: float, delta: Tensor, T_k: Tensor, x_e: Tensor) -> Tensor:
    """Coupling of spins by collisions.

    With hydrogen after Kuhlen, Madau and Montgomery 2006 (astro-ph/0510814), with electrons after
    Liszt 2001 (astro-ph/0103246).
    """
    t = T_k.clamp(1, 1e4)
    ln_t = t.log()
    hydrogen = 3.1e-11 * torch.exp(0.357 * ln_t - 32 / t)
    lg_t = ln_t / math.log(10)
    power = torch.exp(lg_t.square().square_() * lg_t.sqrt() / -1800)
    free = 10**-9.607 * torch.exp(0.5 * ln_t * power)
    rate = (1 - x_e) * hydrogen + x_e / HYDROGEN * free  # cm^3/s, for each nucleus
    density = HYDROGEN * BARYONS * (1 + z) ** 3
    return (1 + delta) * rate * (density * _T_21 / (_A_10 * T_CMB * (1 + z)))


def _spin_temperature(
    z: float, rate: Tensor, delta: Tensor, T_k: Tensor, x_e: Tensor, cmb: Tensor, flux: Tensor
) -> Tensor:
    """Spin temperature in K with the Wouthuysen-Field coupling of Hirata 2006 (astro-ph/0507102).

    The Hubble rate is in 1/s. The weight `cmb` of the microwave background is below 1 where the
    21 cm line is thick. The flux of Lyman alpha, photons/cm^2/s/Hz/sr, is that without scattering.
    """
    t_cmb = T_CMB * (1 + z)
    inverse = 1 / T_k
    collisions = _collisions(z, delta, T_k, x_e)
    depth = 1e-7 * _LYMAN_DEPTH * HYDROGEN * BARYONS * (1 + z) ** 3 / rate
    # Powers are faster as exponentials.
    xi = (depth * (1 + delta) * (1 - x_e) * inverse**2).log_().div_(3).exp_()
    strength = 8 * math.pi * _LYMAN_CM**2 * _LYMAN_WIDTH * _T_21 / (9 * _A_10 * t_cmb)
    coupling = strength * flux / (1 + xi * (2.98394 + xi * (1.53583 + xi * 3.85289)))
    plain = 1 - 0.0631789 * inverse + 0.115995 * inverse**2
    mixed = -0.401403 * inverse + 0.336463 * inverse**2
    colour = inverse - 0.405535 * inverse**2
    total = cmb / t_cmb + collisions * inverse
    coldness = torch.full_like(delta, 1 / t_cmb)  # 1 / T_s
    first, second, slope = coupling * plain, coupling * mixed, 0.405535 * inverse
    others = cmb + collisions
    for _ in range(5):  # to 0.01 mK; each brings a factor of eight
        alpha = torch.addcmul(first, second, coldness)
        colours = torch.addcmul(colour, slope, coldness)
        coldness = torch.addcmul(total, alpha, colours).div_(alpha.add_(others))
    return 1 / coldness.abs_()


def evolve(
    gas: Gas,
    z: float,
    z_before: float,
    hubble_rate: Tensor,
    growth: Tensor,
    slope: Tensor,
    density: Tensor,
    light: Light,
) -> Gas:
    """Take the gas from one redshift to the next, by one explicit step.

    Adiabatic cooling, Compton and X-ray heating, ionisation and recombination (Mesinger,
    Furlanetto and Cen 2011, arXiv:1003.3878, section 3), heating by the microwave background
    (Venumadhav et al. 2018, arXiv:1804.02406) and by Lyman alpha photons (Reis, Fialkov and
    Barkana 2021, arXiv:2101.01777). The gas is that at `z_before`, the light arrives at `z`, and
    the linear density contrast of the cells (n, ...) is extrapolated to today. Hubble rate in 1/s,
    growth factor and its derivative with respect to redshift are those at `z`, of shape (n,).
    """

    def cells(values: Tensor) -> Tensor:
        return match_axes(values.to(density.dtype), density)

    rate, growth, slope = cells(hubble_rate), cells(growth), cells(slope)
    time_step = cells((z_before - z) / (hubble_rate * (1 + z)))  # s
    dz = z - z_before
    delta = density * growth
    t, x_e = gas.T_k, gas.x_e
    baryons = BARYONS * (1 + z) ** 3
    t_cmb = T_CMB * (1 + z)

    # Ionisation; recombination is case A, a power law of 4.2e-13 cm^3/s at 10^4 K.
    recombination = 4.2e-13 * 1e4**0.7 * t.clamp(min=1).log_().mul_(-0.7).exp_()
    recombined = recombination * _CLUMPING * HYDROGEN * x_e**2 * baryons * (1 + delta)
    dx = (light.ions - recombined) * time_step
    # The microwave background couples less to a line that is thick.
    depth = 3 * PLANCK * _A_10 * SPEED_OF_LIGHT * _LAMBDA_21**2 / (32 * math.pi * BOLTZMANN)
    tau = depth * HYDROGEN * baryons * (1 - x_e) / (gas.T_s * rate)
    cmb = -torch.expm1(-tau) / tau
    # Expansion and collapse, more particles, Compton scattering.
    change = (2 / 3) * t * (3 / (1 + z) + slope * density / (1 + delta)) * dz
    change = change - dx * t / (1 + x_e)
    compton = 1.51e-4 * HUBBLE_RATE / (HUBBLE * hubble_rate) * t_cmb**4 / (1 + z)
    change = change - cells(compton) * x_e / (1 + x_e + HELIUM) * (t_cmb - t) * dz
    # X-rays and the microwave background.
    per_particle = 2 / 3 / (1 + x_e)
    change = change + light.heat * per_particle * time_step
    recoil = 0.75 * (t_cmb / _T_21) * _A_10 * HYDROGEN * (PLANCK / _LAMBDA_21) ** 2 / PROTON_MASS
    change = change + recoil / BOLTZMANN * (1 + 2 * t / _T_21) * per_particle * time_step
    # Lyman alpha.
    thickness = _LYMAN_DEPTH * HYDROGEN * baryons / rate * (1 + delta) * (1 - x_e)
    gain, loss = lyman_heat(t, gas.T_s, thickness)
    scattered = 4 * math.pi * LYMAN_ALPHA / (baryons * (1 + z) * SPEED_OF_LIGHT) / (1 + delta)
    lyman = (light.continuum * gain + light.injected * loss) * (scattered / BOLTZMANN)
    change = change - lyman * per_particle * dz

    x_e = (x_e + dx).clamp(0, 1 - 1e-7)
    T_k = torch.where(t < _HOTTEST, t + change, t)
    T_k = torch.where(T_k < 0, torch.full_like(t, t_cmb), T_k)
    flux = light.alpha * (1 + delta) + light.continuum + light.injected
    return Gas(T_k, _spin_temperature(z, rate, delta, T_k, x_e, cmb, flux), x_e)
