"""What ours is timed beside: plain loops as one writes them from the papers, and bare libraries.

The plain JEPA is the method of arXiv:2410.18899 (section 3, tables 2 and 3) and of I-JEPA,
arXiv:2301.08243 (section 3): four masks, all patches embedded and those that are seen gathered
after that, PyTorch's own transformer layers, `DataLoader`, AdamW, and a loop over the weights for
the moving average. It shares no line with the package.
"""

import copy
import math
from itertools import pairwise

import h5py
import torch
from nflows.distributions.normal import StandardNormal
from nflows.flows.base import Flow
from nflows.nn.nets import ResidualNet
from nflows.transforms import (
    CompositeTransform,
    PiecewiseRationalQuadraticCouplingTransform,
    RandomPermutation,
)
from nflows.utils import create_alternating_binary_mask
from sklearn.neural_network import MLPRegressor
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

# Blocks of a union, and the share of the sky that each covers.
SHORT, LONG = (8, (0.1, 0.2)), (2, (0.6, 0.8))
FOUR, TWO = (LONG, SHORT, LONG, SHORT), (LONG, SHORT)


# The plain JEPA -----------------------------------------------------------------------------------


def hidden_columns(sky, mask, least_seen=0.15):
    """Draw which columns of patches a union of blocks hides, as booleans over the sky."""
    n_blocks, scale = mask
    while True:
        hidden = torch.zeros(sky, dtype=torch.bool)
        for _ in range(n_blocks):
            share = scale[0] + (scale[1] - scale[0]) * torch.rand(()).item()
            aspect = math.exp(math.log(0.75) + math.log(2) * torch.rand(()).item())
            sides = math.sqrt(share * aspect), math.sqrt(share / aspect)
            cells = [min(n, max(1, round(n * side))) for n, side in zip(sky, sides, strict=True)]
            top, left = (int(torch.randint(n - c + 1, ())) for n, c in zip(sky, cells, strict=True))
            hidden[top : top + cells[0], left : left + cells[1]] = True
        if (~hidden).float().mean() >= least_seen:
            return hidden.flatten()


def draw_masks(n, grid_shape, masks, per_sample=False):
    """Draw indices (n, n_seen) and (n, n_hidden) of patches for each mask.

    One draw for the whole batch or, `per_sample`, one for each light cone, cut to the fewest.
    """
    *sky, n_slices = grid_shape
    pairs = []
    for mask in masks:
        draws = [hidden_columns(sky, mask) for _ in range(n if per_sample else 1)]
        pair = []
        for of_columns in ([~draw for draw in draws], draws):
            columns = [draw.nonzero()[:, 0] for draw in of_columns]
            fewest = min(map(len, columns))
            columns = torch.stack([each[:fewest] for each in columns])
            patches = columns[..., None] * n_slices + torch.arange(n_slices)
            pair.append(patches.flatten(1).expand(n, -1))
        pairs.append(pair)
    return pairs


def gather(tokens, index):
    return tokens.gather(1, index[..., None].expand(-1, -1, tokens.shape[-1]))


class Transformer(nn.Module):
    """Position code, pre-norm blocks, and a norm at the end."""

    def __init__(self, n_in, grid_shape, dim, depth, n_heads=4, mlp_ratio=2):
        super().__init__()
        n_pairs = dim // 2 // len(grid_shape)
        axes = [torch.arange(float(n)) / n for n in grid_shape]
        self.register_buffer("places", torch.cartesian_prod(*axes))
        rates = torch.logspace(0, math.log10(max(grid_shape) / 2), n_pairs) * math.pi
        self.rates = nn.Parameter(rates.repeat(len(grid_shape), 1))
        self.embed = nn.Linear(n_in, dim)
        layer = nn.TransformerEncoderLayer(
            dim, n_heads, mlp_ratio * dim, 0.0, "gelu", batch_first=True, norm_first=True
        )
        self.blocks = nn.TransformerEncoder(layer, depth, nn.LayerNorm(dim), False)

    def code(self):
        phase = (self.places[:, :, None] * self.rates).flatten(1)
        code = torch.cat([phase.sin(), phase.cos()], dim=1)
        return functional.pad(code, (0, self.embed.out_features - code.shape[1]))

    def forward(self, patches, index=None):
        tokens = self.embed(patches) + self.code()
        return self.blocks(tokens if index is None else gather(tokens, index))


class Predictor(Transformer):
    def __init__(self, n_in, grid_shape, dim=48, depth=4):
        super().__init__(n_in, grid_shape, dim, depth)
        self.hidden = nn.Parameter(torch.zeros(dim))
        self.out = nn.Linear(dim, n_in)

    def forward(self, seen, seen_index, hidden_index):
        code = self.code().expand(len(seen), -1, -1)
        tokens = self.embed(seen) + gather(code, seen_index)
        asked = self.hidden + gather(code, hidden_index)
        return self.out(self.blocks(torch.cat([tokens, asked], dim=1))[:, seen.shape[1] :])


class PlainJEPA(nn.Module):
    """Predict what a moving average of the encoder says of the patches that are hidden."""

    def __init__(self, field_shape, patch_size, dim, depth=4, masks=FOUR, per_sample=False):
        super().__init__()
        self.patch_size, self.masks, self.per_sample = patch_size, masks, per_sample
        self.grid_shape = tuple(n // p for n, p in zip(field_shape, patch_size, strict=True))
        self.encoder = Transformer(math.prod(patch_size), self.grid_shape, dim, depth)
        self.target = copy.deepcopy(self.encoder).requires_grad_(False)
        self.predictor = Predictor(dim, self.grid_shape)
        self.optimizer = torch.optim.AdamW(
            [*self.encoder.parameters(), *self.predictor.parameters()], lr=1e-3, weight_decay=1e-3
        )

    def patches(self, fields):
        """Cut fields in mK, after [-120, -1] mK have become [0, 1]."""
        scaled = (fields.float() + 120) / 119
        (a, b, c), (p, q, r) = self.grid_shape, self.patch_size
        cut = scaled.reshape(len(fields), a, p, b, q, c, r)
        return cut.permute(0, 1, 3, 5, 2, 4, 6).flatten(4).flatten(1, 3)

    def forward(self, fields):
        turned = torch.rot90(fields, int(torch.randint(4, ())), dims=(1, 2))
        turned = turned.transpose(1, 2) if torch.rand(()) < 0.5 else turned
        patches = self.patches(turned)
        with torch.no_grad():
            targets = self.target(patches)
        loss = 0.0
        for seen, hidden in draw_masks(len(fields), self.grid_shape, self.masks, self.per_sample):
            predicted = self.predictor(self.encoder(patches, seen), seen, hidden)
            loss = loss + functional.l1_loss(predicted, gather(targets, hidden))
        return loss / len(self.masks)

    def step(self, fields, decay=0.9997):
        """Make one step of the optimiser and of the average; return the loss."""
        self.optimizer.zero_grad()
        loss = self(fields)
        loss.backward()
        self.optimizer.step()
        with torch.no_grad():
            for old, new in zip(self.target.parameters(), self.encoder.parameters(), strict=True):
                old.mul_(decay).add_(new, alpha=1 - decay)
        return loss.item()

    def epoch(self, X, batch_size):
        """Train on each light cone of X once; yield the loss of each step."""
        loader = DataLoader(TensorDataset(X), batch_size, shuffle=True, drop_last=True)
        for (fields,) in loader:
            yield self.step(fields)

    @torch.inference_mode()
    def summaries(self, X, batch_size=32):
        """Mean tokens of the encoder.

        Without dropout the mode of training says the same, and is twice as fast on a processor:
        in the other one PyTorch's layers take a path of their own, which has no flash attention.
        """
        return torch.cat([self.encoder(self.patches(x)).mean(1) for x in X.split(batch_size)])

    def n_hidden(self, n_draws=100):
        """Mean number of hidden patches of a light cone in a step, over the masks."""
        draws = [draw_masks(1, self.grid_shape, self.masks) for _ in range(n_draws)]
        return sum(hidden.shape[1] for pairs in draws for _, hidden in pairs) / n_draws


# Heads --------------------------------------------------------------------------------------------


class PlainHead:
    """An MLP on summaries: `DataLoader`, AdamW at the published rate, L1 on [0, 1]."""

    def __init__(self, X, y, hidden=(360,), batch_size=32):
        pairs = pairwise([X.shape[1], *hidden])
        layers = [layer for pair in pairs for layer in (nn.Linear(*pair), nn.ReLU())]
        self.network = nn.Sequential(*layers, nn.Linear(hidden[-1], y.shape[1]), nn.Sigmoid())
        self.optimizer = torch.optim.AdamW(self.network.parameters(), lr=5e-4, weight_decay=1e-3)
        data = TensorDataset(torch.as_tensor(X), torch.as_tensor(y).float())
        self.loader = DataLoader(data, batch_size, shuffle=True)

    def epoch(self):
        for summaries, wanted in self.loader:
            self.optimizer.zero_grad()
            functional.l1_loss(self.network(summaries), wanted).backward()
            self.optimizer.step()


def sklearn_head(X, y, hidden=(360,), batch_size=32):
    """Return a function that trains scikit-learn's MLPRegressor for an epoch, Adam at 5e-4."""
    head = MLPRegressor(
        hidden_layer_sizes=hidden, batch_size=batch_size, learning_rate_init=5e-4, random_state=0
    )
    return lambda: head.partial_fit(X, y)


def bare_flow(n_parameters=6, n_summary=360):
    """The published flow of nflows alone: 6 blocks of splines of 10 bins, conditioners of 128."""
    transforms = []
    for k in range(6):
        transforms.append(RandomPermutation(n_parameters))
        transforms.append(
            PiecewiseRationalQuadraticCouplingTransform(
                create_alternating_binary_mask(n_parameters, even=k % 2 == 0),
                lambda n_in, n_out: ResidualNet(
                    n_in, n_out, hidden_features=128, context_features=n_summary, num_blocks=1
                ),
                num_bins=10,
                tails="linear",
                tail_bound=5.0,
            )
        )
    return Flow(CompositeTransform(transforms), StandardNormal([n_parameters]))


class BareFlow:
    """Bare nflows in a plain loop: Adam at the published rate of 1e-4."""

    def __init__(self, X, y, batch_size=32):
        self.flow = bare_flow(y.shape[1], X.shape[1])
        self.optimizer = torch.optim.Adam(self.flow.parameters(), lr=1e-4)
        self.X, self.y, self.batch_size = torch.as_tensor(X), torch.as_tensor(y).float(), batch_size

    def epoch(self):
        self.flow.train()
        for rows in torch.randperm(len(self.X)).split(self.batch_size):
            self.optimizer.zero_grad()
            (-self.flow.log_prob(self.y[rows], self.X[rows]).mean()).backward()
            self.optimizer.step()

    @torch.inference_mode()
    def log_prob(self, X, y):
        self.flow.eval()
        return self.flow.log_prob(torch.as_tensor(y).float(), torch.as_tensor(X))

    @torch.inference_mode()
    def sample(self, X, n):
        self.flow.eval()
        return self.flow.sample(n, torch.as_tensor(X))


# Files --------------------------------------------------------------------------------------------


def read_in_order(path, batch_size, name="brightness_temp"):
    """Read a file by h5py alone, batch by batch in the order of its rows."""
    with h5py.File(path) as file:
        for start in range(0, len(file[name]), batch_size):
            file[name][start : start + batch_size]
