"""What heads are timed beside: plain loops of torch, and the authors' flow where it is given.

SKATR_PUBLIC names a checkout of the authors' public code, which needs omegaconf and FrEIA; without
it the flow is compared with bare nflows.
"""

import os
import sys
import types

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

N, N_SUMMARY, N_PARAMETERS, BATCH = 3750, 360, 6, 32
BOX = np.tile([0.0, 1.0], (N_PARAMETERS, 1))


def summaries(n=N):
    """Summaries that know nothing of the parameters: the time is that of the steps."""
    rng = np.random.default_rng(0)
    X = rng.normal(size=(n, N_SUMMARY)).astype(np.float32)
    return X, rng.uniform(size=(n, N_PARAMETERS))


def _loop(module, loss, X, y, rate):
    optimizer = torch.optim.AdamW(module.parameters(), lr=rate, weight_decay=1e-3)
    rows = TensorDataset(torch.from_numpy(X), torch.from_numpy(y.astype(np.float32)))
    loader = DataLoader(rows, batch_size=BATCH, shuffle=True)

    def epoch():
        for inputs, targets in loader:
            optimizer.zero_grad()
            loss(inputs, targets).backward()
            optimizer.step()

    return epoch


def plain_head(X, y):
    """Return an epoch of the MLP 360-360-6 in a plain loop: DataLoader, L1, AdamW."""
    module = nn.Sequential(
        nn.Linear(N_SUMMARY, 360), nn.ReLU(), nn.Linear(360, N_PARAMETERS), nn.Sigmoid()
    )
    return _loop(module, lambda a, b: (module(a) - b).abs().mean(), X, y, 5e-4)


def public_flow():
    """Return the authors' flow, of 6 blocks of 128 with 10 bins; None where it is not given."""
    if not (checkout := os.environ.get("SKATR_PUBLIC")):
        return None
    sys.modules.setdefault("torchsort", types.ModuleType("torchsort"))  # imported, and not used
    sys.path.insert(0, checkout)
    try:
        from omegaconf import OmegaConf
        from src.networks.inn import INN
    finally:
        sys.path.remove(checkout)
    sizes = dict(dim=N_PARAMETERS, cond_dim=N_SUMMARY, num_blocks=6, layers_per_block=2)
    sizes |= dict(internal_size=128, spline_bound=10, num_bins=10, permute_soft=True)
    return INN(OmegaConf.create(sizes | dict(latent_space="gaussian", dropout=0.0)))


def flow_epoch(flow, X, y):
    """Return an epoch of a flow's maximum likelihood in a plain loop."""
    return _loop(flow, lambda a, b: -flow.log_prob(b, a).mean() / N_PARAMETERS, X, y, 1e-4)
