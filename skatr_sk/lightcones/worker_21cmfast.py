"""One light cone of 21cmFAST 3, in a process of its own: no module of the package is needed.

``run_21cmfast`` starts it as a script, with the inputs as JSON, and the file that it writes.
"""

from __future__ import annotations

import json
import sys
import tempfile
from typing import Any

import numpy as np

__all__ = ["simulate"]


def simulate(
    parameters: list[float],
    seed: int,
    field_shape: list[int],
    cell_size: float,
    redshift_min: float,
    cold: bool,
) -> dict[str, np.ndarray]:
    """Cells in mK, nearest first, and the redshifts of the slices.

    The parameters are m_WDM [keV], Omega_m, E_0 [eV], log10 L_X [erg/s/(Msun/yr)], log10 T_vir [K]
    and zeta. Everything else is as in the light cones that come with skatr_sk.
    """
    import py21cmfast

    m_wdm, omega_m, E_0, log10_L_X, log10_t_vir, zeta = parameters
    n_x, _, n_z = field_shape
    # Parameters of its globals, which hold until the function returns.
    steps: dict[str, Any] = dict(ZPRIME_STEP_FACTOR=1.1, NUM_FILTER_STEPS_FOR_Ts=10)
    dark_matter = dict(P_CUTOFF=False) if cold else dict(P_CUTOFF=True, M_WDM=m_wdm)
    with tempfile.TemporaryDirectory() as cache:
        made = py21cmfast.run_lightcone(
            redshift=redshift_min,
            user_params=dict(
                HII_DIM=n_x,
                DIM=3 * n_x,
                BOX_LEN=n_x * cell_size,
                N_THREADS=1,
                USE_INTERPOLATION_TABLES=True,
            ),
            cosmo_params=dict(OMm=omega_m),
            astro_params=dict(
                HII_EFF_FACTOR=zeta, L_X=log10_L_X, NU_X_THRESH=E_0, ION_Tvir_MIN=log10_t_vir
            ),
            flag_options=dict(
                USE_TS_FLUCT=True,
                USE_LYA_HEATING=True,
                USE_CMB_HEATING=True,
                USE_MASS_DEPENDENT_ZETA=False,
                INHOMO_RECO=False,
            ),
            random_seed=seed,
            write=False,
            direc=cache,
            **steps,
            **dark_matter,
        )
    cells = np.asarray(made.brightness_temp)
    redshifts = np.asarray(made.lightcone_redshifts)
    if cells.shape[:2] != tuple(field_shape[:2]) or cells.shape[2] < n_z:
        raise ValueError(f"21cmFAST made a light cone of shape {cells.shape}, not {field_shape}")
    if not np.isfinite(cells[..., :n_z]).all():
        raise ValueError("21cmFAST made a light cone with cells that are not finite")
    return dict(cells=cells[..., :n_z].astype(np.float32), redshifts=redshifts[:n_z])


if __name__ == "__main__":
    np.savez(sys.argv[2], **simulate(**json.loads(sys.argv[1])))  # type: ignore[arg-type]
