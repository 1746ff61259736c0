"""The authors' public research code, where SKATR_PUBLIC names a checkout of it.

It is heidelberg-hepml/skatr on GitHub, which also needs einops, hydra-core and FrEIA. Nothing of it
is kept here. Its sizes and masks are those of its configuration of the pre-training.
"""

import importlib
import os
import sys
import types
from pathlib import Path
from types import SimpleNamespace

import torch
from torch.utils.data import DataLoader, TensorDataset

NAME = "public code"
_MODULES = {
    "jepa": "src.models.jepa",
    "masks": "src.utils.masks",
    "networks": "src.networks",
    "inn": "src.networks.inn",
}
_NEEDED = {"einops": "einops", "hydra": "hydra-core", "omegaconf": "omegaconf", "FrEIA": "FrEIA"}


def _load():
    """Import the checkout; None where none is asked for, and one sentence where it is not one."""
    given = os.environ.get("SKATR_PUBLIC")
    if not given:
        return None
    root = Path(given).expanduser().resolve()
    lacking = [
        str(path)
        for path in (Path(*name.split(".")) for name in _MODULES.values())
        if not (root / path).is_dir() and not (root / path.with_suffix(".py")).is_file()
    ]
    if lacking:
        raise SystemExit(
            f"SKATR_PUBLIC: expected a checkout of the authors' code (github.com/heidelberg-hepml/"
            f"skatr), found {root} without {', '.join(lacking)}"
        )
    absent = [pip for module, pip in _NEEDED.items() if importlib.util.find_spec(module) is None]
    if absent:
        raise SystemExit(f"SKATR_PUBLIC: the authors' code needs: pip install {' '.join(absent)}")
    # Of the ranks that its tests of calibration sort nothing is used here.
    sys.modules.setdefault("torchsort", types.ModuleType("torchsort"))
    sys.path.insert(0, str(root))
    found = {name: importlib.import_module(module) for name, module in _MODULES.items()}
    sys.path.remove(str(root))
    return SimpleNamespace(config=importlib.import_module("omegaconf").OmegaConf.create, **found)


PUBLIC = _load()


def with_public(references, make):
    """Add the public code to some references where there is a checkout: `make` gives the call."""
    return references if PUBLIC is None else references | {NAME: make()}


def _sizes(field_shape, patch_size, width, **others):
    return dict(
        arch="ViT",
        in_shape=[1, *field_shape],
        patch_shape=list(patch_size),
        hidden_dim=width,
        depth=4,
        num_heads=4,
        mlp_ratio=2.0,
        attn_drop=0.0,
        proj_drop=0.0,
        mlp_drop=0.0,
        learn_pos_encoding=True,
        use_mask_token=False,
        checkpoint_grads=False,
        use_head=False,
        use_input_conv=False,
    ) | dict(others)


class PublicJEPA:
    """Its pre-training: blocks of the two kinds by turns, one block for each of `n_masks`."""

    def __init__(self, field_shape, patch_size, width, n_masks=4):
        masking = dict(
            num_targets=n_masks,
            spatial_aspect=[0.75, 1.5],
            short_num_blocks=8,
            short_spatial_frac=[0.1, 0.2],
            short_redshift_frac=1,
            long_num_blocks=2,
            long_spatial_frac=[0.6, 0.8],
            long_redshift_frac=1,
        )
        predictor = dict(learn_pos_encoding=False, use_mask_token=True, in_dim=width)
        settings = dict(
            summary_net=None,
            ema_momentum=0.9997,
            momentum_schedule=False,
            sim="l1",
            augment=True,
            init_tgt_as_ctx=True,
            net=_sizes(field_shape, patch_size, width),
            predictor=_sizes(field_shape, patch_size, 48, **predictor),
            masking=masking,
            training=dict(gradient_norm=None),
        )
        self.model = PUBLIC.jepa.JEPA(PUBLIC.config(settings)).train()
        weights = self.model.parameters()
        self.optimizer = torch.optim.AdamW(weights, lr=1e-3, weight_decay=1e-3)

    def epoch(self, X, batch_size):
        """Train on each light cone of X (n, *field_shape) once; yield after each step."""
        loader = DataLoader(TensorDataset(X[:, None]), batch_size, shuffle=True, drop_last=True)
        for batch in loader:
            self.optimizer.zero_grad()
            self.model.update(self.optimizer, self.model.batch_loss(batch), step=0, total_steps=1)
            yield

    def n_hidden(self, n_draws=20):
        """Mean number of hidden patches of a light cone in a step, over the masks."""
        sizes = self.model.ctx_encoder.num_patches, self.model.cfg.masking
        draws = [PUBLIC.masks.JEPA_mask(*sizes, 1, "cpu")[0] for _ in range(n_draws)]
        return sum(hidden.shape[1] for masks in draws for hidden in masks) / n_draws


def public_summaries(field_shape, patch_size, width):
    """Return its way from scaled light cones to mean tokens, of random weights."""
    settings = PUBLIC.config(_sizes(field_shape, patch_size, width))
    encoder = PUBLIC.networks.ViT(settings).eval()

    @torch.inference_mode()
    def summaries(X, batch_size=32):
        return torch.cat([encoder(x[:, None]).mean(1) for x in X.split(batch_size)])

    return summaries


def _loader(X, y, batch_size):
    data = TensorDataset(torch.as_tensor(X), torch.as_tensor(y).float())
    return DataLoader(data, batch_size, shuffle=True)


def public_head(X, y, batch_size=32):
    """Return a function that trains its MLP of 360 hidden units for an epoch."""
    sizes = dict(units=[X.shape[1], 360, y.shape[1]], act="relu", out_act="sigmoid", drop=0.0)
    network = PUBLIC.networks.MLP(PUBLIC.config(sizes))
    optimizer = torch.optim.AdamW(network.parameters(), lr=5e-4, weight_decay=1e-3)
    loader = _loader(X, y, batch_size)

    def epoch():
        for summaries, wanted in loader:
            optimizer.zero_grad()
            (network(summaries) - wanted).abs().mean().backward()
            optimizer.step()

    return epoch


class PublicFlow:
    """Its invertible network: 6 blocks of splines of 10 bins, conditioners of width 128."""

    def __init__(self, X, y, batch_size=32):
        sizes = dict(
            dim=y.shape[1],
            cond_dim=X.shape[1],
            num_blocks=6,
            layers_per_block=2,
            internal_size=128,
            spline_bound=10,
            num_bins=10,
            permute_soft=True,
            latent_space="gaussian",
            dropout=0.0,
        )
        self.network = PUBLIC.inn.INN(PUBLIC.config(sizes)).train()
        weights = self.network.parameters()
        self.optimizer = torch.optim.AdamW(weights, lr=1e-4, weight_decay=1e-3)
        self.loader = _loader(X, (y - y.mean(0)) / y.std(0), batch_size)

    def epoch(self):
        for summaries, parameters in self.loader:
            self.optimizer.zero_grad()
            (-self.network.log_prob(parameters, summaries).mean()).backward()
            self.optimizer.step()

    @torch.inference_mode()
    def sample(self, X, n):
        """Draw `n` samples for each of some summaries, one after the other as it does."""
        return [self.network.sample_batch(x.expand(n, -1)) for x in torch.as_tensor(X).split(1)]
