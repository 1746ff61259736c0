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


def first_gas(z: float, matter: Tensor) -> Gas:
    """Gas before the first stars, as recombination left it (RECFAST; Seager et al. 1999).

    For redshifts of 35 to 40. Where there is more matter than in the mean (n, ...), gas is warmer
    by the adiabatic index of Munoz 2023 (arXiv:2302.08506).
    """
    T_mean = 26.59 * ((1 + z) / 36.695) ** 1.93
    x_e = torch.full_like(matter, 2.06e-4)
    T_k = T_mean * (1 + (0.58 - 0.006 * (z - 10)) * (matter - 1))
    collisions = _collisions(z, matter, torch.full_like(matter, T_mean), x_e)
    T_s = (1 + collisions) / (1 / (T_CMB * (1 + z)) + collisions / T_mean)
    return Gas(T_k, T_s, x_e)


def _collisions(z: float, matter: Tensor, T_k: Tensor, x_e: Tensor) -> Tensor:
    """Coupling of spins by collisions.

    With hydrogen after Kuhlen, Madau and Montgomery 2006 (astro-ph/0510814), with electrons after
    Liszt 2001 (astro-ph/0103246).
    """
    t = T_k.clamp(1, 1e4)
    ln_t = t.log()
    hydrogen = (ln_t * 0.357).sub_(t.reciprocal_(), alpha=32).exp_()  # over 3.1e-11 cm^3/s
    # The square root of t, to a power that falls with log10(t)**4.5.
    power = ln_t.square().square_().mul_(ln_t.sqrt()).mul_(-(math.log(10) ** -4.5) / 1800).exp_()
    electrons = power.mul_(ln_t).mul_(0.5).exp_()  # over 10**-9.607 cm^3/s
    density = HYDROGEN * BARYONS * (1 + z) ** 3
    coupling = density * _T_21 / (_A_10 * T_CMB * (1 + z))  # for a rate of 1 cm^3/s a nucleus
    by_hydrogen = (1 - x_e).mul_(hydrogen).mul_(3.1e-11 * coupling)
    both = by_hydrogen.addcmul_(x_e, electrons, value=10**-9.607 / HYDROGEN * coupling)
    return both.mul_(matter)


def _spin_temperature(
    z: float, rate: Tensor, matter: Tensor, T_k: Tensor, x_e: Tensor, cmb: Tensor, flux: Tensor
) -> Tensor:
    """Spin temperature in K with the Wouthuysen-Field coupling of Hirata 2006 (astro-ph/0507102).

    The Hubble rate is in 1/s. The weight `cmb` of the microwave background is below 1 where the
    21 cm line is thick. The flux of Lyman alpha, photons/cm^2/s/Hz/sr, is that without scattering.
    """
    t_cmb = T_CMB * (1 + z)
    inverse = 1 / T_k
    squared = inverse * inverse
    collisions = _collisions(z, matter, T_k, x_e)
    depth = 1e-7 * _LYMAN_DEPTH * HYDROGEN * BARYONS * (1 + z) ** 3 / rate
    # Powers are faster as exponentials.
    xi = (1 - x_e).mul_(matter).mul_(squared).mul_(depth).log_().div_(3).exp_()
    thick = (xi * 3.85289).add_(1.53583).mul_(xi).add_(2.98394).mul_(xi).add_(1)
    strength = 8 * math.pi * _LYMAN_CM**2 * _LYMAN_WIDTH * _T_21 / (9 * _A_10 * t_cmb)
    coupling = (flux * strength).div_(thick)
    plain = (inverse * -0.0631789).add_(squared, alpha=0.115995).add_(1).mul_(coupling)
    mixed = (inverse * -0.401403).add_(squared, alpha=0.336463).mul_(coupling)
    # With c = 1 / T_s, Lyman alpha couples by plain + mixed * c to a colour temperature whose
    # inverse is colour + (1 - fixed) * c. So the mean of all that couples is a quadratic equation:
    # square * c**2 + linear * c = constant.
    colour = inverse.sub(squared, alpha=0.405535)
    fixed = (inverse * -0.405535).add_(1)
    constant = (cmb * (1 / t_cmb)).addcmul_(collisions, inverse).addcmul_(plain, colour)
    linear = (cmb + collisions).addcmul_(plain, fixed).addcmul_(mixed, colour, value=-1)
    square = mixed.mul_(fixed)
    root = linear.square().addcmul_(square, constant, value=4).clamp_(min=0).sqrt_()
    return root.add_(linear).div_(constant).mul_(0.5).abs_()


def evolve(
    gas: Gas,
    z: float,
    z_before: float,
    hubble_rate: Tensor,
    growth: Tensor,
    slope: Tensor,
    matter: Tensor,
    light: Light,
) -> Gas:
    """Take the gas from one redshift to the next, by one explicit step.

    Adiabatic cooling, Compton and X-ray heating, ionisation and recombination (Mesinger,
    Furlanetto and Cen 2011, arXiv:1003.3878, section 3), heating by the microwave background
    (Venumadhav et al. 2018, arXiv:1804.02406) and by Lyman alpha photons (Reis, Fialkov and
    Barkana 2021, arXiv:2101.01777). The gas is that at `z_before`, the light arrives at `z`, and
    the matter in the cells (n, ...) is over the mean. Hubble rate in 1/s, growth factor and its
    derivative with respect to redshift are those at `z`, of shape (n,).
    """

    def cells(values: Tensor) -> Tensor:
        return match_axes(values.to(matter.dtype), matter)

    rate = cells(hubble_rate)
    time_step = cells((z_before - z) / (hubble_rate * (1 + z)))  # s
    dz = z - z_before
    t, x_e = gas.T_k, gas.x_e
    neutral, thinness, share = 1 - x_e, 1 / matter, 1 / (1 + x_e)
    atoms = HYDROGEN * BARYONS * (1 + z) ** 3
    t_cmb = T_CMB * (1 + z)

    # Ionisation; recombination is case A, a power law of 4.2e-13 cm^3/s at 10^4 K.
    recombined = t.clamp(min=1).log_().mul_(-0.7).exp_().mul_(x_e).mul_(x_e).mul_(matter)
    case_a = 4.2e-13 * 1e4**0.7 * _CLUMPING * atoms
    dx = light.ions.sub(recombined, alpha=case_a).mul_(time_step)
    # The microwave background couples less to a line that is thick.
    depth = 3 * PLANCK * _A_10 * SPEED_OF_LIGHT * _LAMBDA_21**2 / (32 * math.pi * BOLTZMANN)
    minus_tau = (neutral / gas.T_s).mul_(-depth * atoms / rate)
    cmb = torch.expm1(minus_tau).div_(minus_tau)
    # Expansion and collapse, more particles.
    collapse = 2 / 3 * dz * slope / growth
    change = (thinness * cells(-collapse)).add_(cells(2 * dz / (1 + z) + collapse))
    change.addcmul_(dx, share, value=-1).mul_(t)
    # Compton scattering.
    compton = 1.51e-4 * HUBBLE_RATE / (HUBBLE * hubble_rate) * t_cmb**4 / (1 + z)
    electrons = (x_e / (x_e + (1 + HELIUM))).mul_(cells(compton * dz))
    change.addcmul_(electrons, t - t_cmb)
    # X-rays and the microwave background.
    recoil = 0.75 * (t_cmb / _T_21) * _A_10 * HYDROGEN * (PLANCK / _LAMBDA_21) ** 2 / PROTON_MASS
    recoil /= BOLTZMANN
    heat = light.heat.add(t, alpha=2 * recoil / _T_21).add_(recoil).mul_(time_step)
    # Lyman alpha.
    gain, loss = lyman_heat(t, gas.T_s, (neutral * matter).mul_(_LYMAN_DEPTH * atoms / rate))
    lyman = gain.mul_(light.continuum).addcmul_(light.injected, loss).mul_(thinness)
    scattered = 4 * math.pi * LYMAN_ALPHA * HYDROGEN / (atoms * (1 + z) * SPEED_OF_LIGHT)
    heat.sub_(lyman, alpha=dz * scattered / BOLTZMANN)
    change.addcmul_(heat, share, value=2 / 3)

    x_e = (x_e + dx).clamp_(0, 1 - 1e-7)
    T_k = change.masked_fill_(t >= _HOTTEST, 0).add_(t)
    T_k.masked_fill_(T_k < 0, t_cmb)
    flux = light.continuum.addcmul(light.alpha, matter).add_(light.injected)
    return Gas(T_k, _spin_temperature(z, rate, matter, T_k, x_e, cmb, flux), x_e)
