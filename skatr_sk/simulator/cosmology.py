"""The background and the variance of matter: distances, growth, transfer function, collapse.

Everything is a function of a batch of cosmologies, in float64: an argument of shape ``(n, ...)``
gives a result of shape ``(n, ...)``, its first axis counting cosmologies.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

__all__ = [
    "DELTA_CRITICAL",
    "HUBBLE",
    "HUBBLE_RATE",
    "OMEGA_B",
    "SPEED_OF_LIGHT",
    "Cosmology",
    "interpolate",
    "top_hat",
]

# Planck 2018 (arXiv:1807.06209, last column of table 2), but for Omega_m, which varies.
HUBBLE = 0.6766
OMEGA_B = 0.04897
_SIGMA_8 = 0.8102
_SPECTRAL_INDEX = 0.9665
_OMEGA_RADIATION = 8.6e-5
# Distances count photons, two massless neutrinos and one of 0.06 eV, which weighs as matter.
_OMEGA_MASSLESS, _OMEGA_NEUTRINO = 7.9e-5, 1.41e-3
_THETA_CMB = 2.728 / 2.7  # of Eisenstein and Hu
SPEED_OF_LIGHT = 2.99792458e10  # cm/s
HUBBLE_RATE = 3.2408e-18 * HUBBLE  # today, 1/s
_CRITICAL_DENSITY = 2.7754e11 * HUBBLE**2  # Msun / Mpc^3
DELTA_CRITICAL = 1.68
# Sheth and Tormen's mass function with the constants of Jenkins et al. 2001
# (Barkana and Loeb 2001, astro-ph/0010468).
_ST_A, _ST_P, _ST_NORM = 0.73, 0.175, 0.353

_LN_K = (math.log(1e-5), math.log(1e5), 1200)  # 1/Mpc
_LN_R = (math.log(1e-3), math.log(700.0), 160)  # Mpc


def interpolate(x: Tensor, start: float, step: float, table: Tensor) -> Tensor:
    """Interpolate linearly in tables over a uniform grid, constant beyond its ends.

    Parameters
    ----------
    x : Tensor of shape (n, ...)
    start, step : float
        The grid is ``start + i * step``.
    table : Tensor of shape (n, n_grid)
        One table for each row of `x`.

    Returns
    -------
    Tensor of the shape of `x`
    """
    place = ((x.to(table) - start) / step).clamp(0, table.shape[1] - 1).reshape(len(table), -1)
    low = place.long().clamp(max=table.shape[1] - 2)
    below, above = table.gather(1, low), table.gather(1, low + 1)
    return torch.lerp(below, above, place - low).view(x.shape)


def top_hat(x: Tensor) -> Tensor:
    """Fourier transform of a sphere of radius 1, normalised to 1 at ``x = k R = 0``."""
    x = x.clamp(min=1e-3)
    return 3 * (torch.sin(x) - x * torch.cos(x)) / x**3


class Cosmology:
    """A batch of flat cosmologies with warm dark matter.

    Parameters
    ----------
    omega_m : Tensor of shape (n,)
        Matter density today.
    m_wdm : Tensor of shape (n,)
        Mass of the dark matter particle in keV; infinity is cold dark matter.

    Notes
    -----
    The transfer function is the smooth one of Eisenstein and Hu 1999 (astro-ph/9710252), cut off
    for warm dark matter as in Bode, Ostriker and Turok 2001 (astro-ph/0010389) at the scale of
    Barkana, Haiman and Ostriker 2001 (astro-ph/0102304, eq. 4). Growth follows Carroll, Press and
    Turner 1992.

    Examples
    --------
    >>> import torch
    >>> cosmology = Cosmology(torch.tensor([0.31]), torch.tensor([float("inf")]))
    >>> cosmology.sigma(torch.tensor([[8 / 0.6766]])).item()  # in spheres of 8 Mpc/h
    0.810
    >>> round(cosmology.distance(torch.tensor([[5.0]])).item())  # Mpc
    7943
    """

    def __init__(self, omega_m: Tensor, m_wdm: Tensor) -> None:
        self.omega_m = omega_m.double()
        self.m_wdm = m_wdm.double()
        device = omega_m.device
        ln_k = torch.linspace(*_LN_K, dtype=torch.float64, device=device)
        ln_r = torch.linspace(*_LN_R, dtype=torch.float64, device=device)
        self._r_step = float(ln_r[1] - ln_r[0])
        k = ln_k.exp()
        power = k**_SPECTRAL_INDEX * self._transfer(k) ** 2  # (n, n_k), not normalised
        weight = k**3 / (2 * math.pi**2) * (ln_k[1] - ln_k[0])
        window = top_hat(ln_r.exp()[:, None] * k) ** 2
        norm_window = top_hat(8 / HUBBLE * k) ** 2
        self._norm = _SIGMA_8**2 / (power @ (weight * norm_window))
        variance = self._norm[:, None] * (power @ (weight * window).T)
        self._ln_sigma = 0.5 * variance.log()
        self._k_step = float(ln_k[1] - ln_k[0])
        self._ln_power = (self._norm[:, None] * power).clamp(min=1e-300).log()
        # Distances on a grid that is uniform in ln(1 + z).
        self._z_step = 0.004
        ln_a = torch.arange(0, math.log(320.0), self._z_step, dtype=torch.float64, device=device)
        ln_a = ln_a.expand(len(omega_m), -1)
        a = ln_a.exp()  # 1 + z
        matter = self.omega_m[:, None] + _OMEGA_NEUTRINO
        expansion = matter * a**3 + _OMEGA_MASSLESS * a**4 + 1 - matter - _OMEGA_MASSLESS
        integrand = 1e-5 * SPEED_OF_LIGHT * a / (100 * HUBBLE * expansion.sqrt())  # Mpc
        steps = (integrand[:, 1:] + integrand[:, :-1]) / 2 * self._z_step
        self._distance = torch.nn.functional.pad(steps.cumsum(1), (1, 0))
        self._ln_a = ln_a
        # Growth and its slope in ln(1 + z), where both are smooth.
        self._growth = self._grow(ln_a.exp() - 1)
        self._slope = torch.gradient(self._growth, spacing=self._z_step, dim=1, edge_order=2)[0]

    def _of(self, values: Tensor, like: Tensor) -> Tensor:
        """A number for each cosmology, shaped to go with `like`."""
        return values.view(-1, *[1] * (like.ndim - 1))

    def _transfer(self, k: Tensor) -> Tensor:
        """Transfer function at wave numbers of shape (n_k,), in 1/Mpc; shape (n, n_k)."""
        omega_m = self.omega_m[:, None]
        omhh = omega_m * HUBBLE**2
        obhh = OMEGA_B * HUBBLE**2
        f_b = OMEGA_B / omega_m
        z_equal = 2.5e4 * omhh * _THETA_CMB**-4 - 1
        k_equal = 0.0746 * omhh / _THETA_CMB**2
        b1 = 0.313 * omhh**-0.419 * (1 + 0.607 * omhh**0.674)
        b2 = 0.238 * omhh**0.223
        z_drag = 1291 * omhh**0.251 / (1 + 0.659 * omhh**0.828) * (1 + b1 * obhh**b2)
        y_drag = (1 + z_equal) / (1 + z_drag)
        r_drag = 31.5 * obhh * _THETA_CMB**-4 * 1000 / (1 + z_drag)
        r_equal = 31.5 * obhh * _THETA_CMB**-4 * 1000 / (1 + z_equal)
        ratio = ((1 + r_drag).sqrt() + (r_drag + r_equal).sqrt()) / (1 + r_equal.sqrt())
        horizon = 2 / (3 * k_equal) * (6 / r_equal).sqrt() * ratio.log()
        # Suppression of growth by baryons, without neutrinos.
        p_c = -(5 - (1 + 24 * (1 - f_b)).sqrt()) / 4
        p_cb = 0.0
        alpha = (1 - f_b) * (2 * (p_c + p_cb) + 5) / (4 * p_cb + 5)
        alpha = alpha * (1 - 0.553 * f_b + 0.126 * f_b**3) * (1 + y_drag) ** (p_c - p_cb)
        alpha = alpha * (
            1 + (p_cb - p_c) / 2 * (1 + 1 / ((4 * p_c + 3) * (4 * p_cb + 7))) / (1 + y_drag)
        )
        gamma = alpha.sqrt() + (1 - alpha.sqrt()) / (1 + (0.43 * k * horizon) ** 4)
        q = k * _THETA_CMB**2 / (omhh * gamma)
        log_term = (math.e + 1.84 * alpha.sqrt() / (1 - 0.949 * f_b) * q).log()
        cold = log_term / (log_term + q**2 * (14.4 + 325 / (1 + 60.5 * q**1.11)))
        density = (omega_m - OMEGA_B) * HUBBLE**2 / 0.15
        cutoff = 0.201 * density**0.15 * self.m_wdm[:, None] ** -1.15
        return cold * (1 + (0.361 * k * cutoff) ** 2.4) ** (-5 / 1.2)

    def power(self, k: Tensor) -> Tensor:
        """Linear power spectrum today, Mpc^3, at wave numbers of shape (n, ...) in 1/Mpc."""
        return interpolate(k.log(), _LN_K[0], self._k_step, self._ln_power).exp()

    def sigma(self, radius: Tensor) -> Tensor:
        """Standard deviation of matter in spheres today; radii of shape (n, ...) in Mpc."""
        return interpolate(radius.log(), _LN_R[0], self._r_step, self._ln_sigma).exp()

    def radius(self, mass: Tensor) -> Tensor:
        """Comoving radius, Mpc, that holds a mass in Msun at the mean density."""
        density = _CRITICAL_DENSITY * self._of(self.omega_m, mass)
        return (mass / (4 / 3 * math.pi * density)) ** (1 / 3)

    def expansion(self, z: Tensor) -> Tensor:
        """Hubble rate over that of today."""
        omega_m = self._of(self.omega_m, z)
        return (omega_m * (1 + z) ** 3 + _OMEGA_RADIATION * (1 + z) ** 4 + 1 - omega_m).sqrt()

    def matter_fraction(self, z: Tensor) -> Tensor:
        """Omega_m at a redshift."""
        return self._of(self.omega_m, z) * (1 + z) ** 3 / self.expansion(z) ** 2

    def _grow(self, z: Tensor) -> Tensor:
        """Linear growth factor, from its formula."""

        def unscaled(omega: Tensor) -> Tensor:
            return 2.5 * omega / (1 / 70 + omega * (209 - omega) / 140 + omega ** (4 / 7))

        today = unscaled(self._of(self.omega_m, z))
        return unscaled(self.matter_fraction(z)) / (today * (1 + z))

    def growth(self, z: Tensor) -> Tensor:
        """Linear growth factor, 1 today."""
        return interpolate((1 + z).log(), 0.0, self._z_step, self._growth)

    def growth_slope(self, z: Tensor) -> Tensor:
        """Derivative of the growth factor with respect to redshift; negative."""
        return interpolate((1 + z).log(), 0.0, self._z_step, self._slope) / (1 + z)

    def distance(self, z: Tensor) -> Tensor:
        """Comoving distance in Mpc."""
        return interpolate((1 + z).log(), 0.0, self._z_step, self._distance)

    def redshift(self, distance: Tensor) -> Tensor:
        """Redshift at comoving distances of shape (n, m) in Mpc."""
        above = torch.searchsorted(self._distance, distance.contiguous())
        above = above.clamp(1, self._distance.shape[1] - 1)
        near, far = self._distance.gather(1, above - 1), self._distance.gather(1, above)
        return (
            torch.lerp(
                self._ln_a.gather(1, above - 1),
                self._ln_a.gather(1, above),
                (distance - near) / (far - near),
            ).exp()
            - 1
        )

    def smallest_mass(self, z: Tensor, t_vir: Tensor) -> Tensor:
        """Mass in Msun of haloes of a virial temperature, K, of ionised gas.

        Barkana and Loeb 2001, eq. 26, with the overdensity of Bryan and Norman 1998.
        """
        omega = self.matter_fraction(z)
        overdensity = 18 * math.pi**2 + 82 * (omega - 1) - 39 * (omega - 1) ** 2
        spread = (omega / (self._of(self.omega_m, z) * overdensity)).sqrt()
        virial = (self._of(t_vir, z) / (0.6 * (1 + z))) ** 1.5
        return 7030.97 / HUBBLE * spread * virial

    def jeans_mass(self) -> Tensor:
        """Mass in Msun that the velocities of the dark matter keep from collapsing, shape (n,).

        Barkana, Haiman and Ostriker 2001, eq. 10, times 60: their simulated haloes.
        """
        density = (self.omega_m - OMEGA_B) * HUBBLE**2 / 0.15
        return 60 * 3.06e8 * density.sqrt() * self.m_wdm**-4 * (1.2 * density) ** 1.5

    def collapsed_fraction(self, z: Tensor, sigma_min: Tensor) -> Tensor:
        """Fraction of matter in haloes above a mass, after Sheth and Tormen.

        Parameters
        ----------
        z : Tensor of shape (n, ...)
        sigma_min : Tensor of the shape of `z`
            `sigma` today of the smallest mass.

        Returns
        -------
        Tensor of the shape of `z`, 0 to 1
            The integral of their mass function over all larger masses, in closed form.
        """
        peak = math.sqrt(_ST_A) * DELTA_CRITICAL / (sigma_min * self.growth(z))
        half = peak**2 / 2
        order = torch.tensor(0.5 - _ST_P, dtype=half.dtype, device=half.device)
        upper = torch.special.gammaincc(order, half) * math.gamma(0.5 - _ST_P)
        tail = 2**-_ST_P / math.sqrt(math.pi) * upper
        return _ST_NORM * (torch.erfc(half.sqrt()) + tail)

    def press_schechter(self, z: Tensor, sigma_min: Tensor) -> Tensor:
        """Fraction of matter in haloes above a mass, after Press and Schechter."""
        return torch.erfc(DELTA_CRITICAL / (math.sqrt(2) * sigma_min * self.growth(z)))
