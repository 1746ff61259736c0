"""A step of the pre-training, and summaries, beside a plain loop and the authors' public code.

The published sizes, in turn in one run. Ours has two masks, a union of blocks of each kind, as
``SKATRTransformer.published`` has; the plain loop has four, two of each. The public code has four,
of which each is a single block. So rows follow with equal masks, and for each token predicted.
"""

import statistics
import time
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from skorch.callbacks import Callback

from skatr_sk import SKATRTransformer
from skatr_sk.summaries.masking import LONG, SHORT, BlockMask, sample_masks
from tests.benchmarks import public
from tests.benchmarks.references import TWO, PlainJEPA
from tests.benchmarks.table import counter, matrix_rate, operations, seconds

SIZES = {
    "28 x 28 x 136, width 96, batch 32": ((28, 28, 136), (7, 7, 8), 96, 32),
    "28 x 28 x 470, width 144, batch 4": ((28, 28, 470), (4, 4, 10), 144, 4),
    "28 x 28 x 470, width 360, batch 4": ((28, 28, 470), (4, 4, 10), 360, 4),
}
ONE_BLOCK = [BlockMask(n_blocks=1, scale=mask.scale) for mask in (LONG, SHORT)]


class Step(Callback):
    """Record what a step costs in ``history_``, since callbacks are copied before the training.

    The mean seconds from the end of a step to the end of the next; `counted`, the mean operations
    of all steps.
    """

    def __init__(self, counted=False):
        self.counted = counted

    def on_epoch_begin(self, net, **kwargs):
        self.ends_, self.operations_ = [], []

    def on_batch_begin(self, net, **kwargs):
        self.counter_ = counter() if self.counted else nullcontext()
        self.counter_.__enter__()

    def on_batch_end(self, net, **kwargs):
        self.counter_.__exit__(None, None, None)
        self.ends_.append(time.perf_counter())
        if self.counted:
            self.operations_.append(self.counter_.get_total_flops())

    def on_epoch_end(self, net, **kwargs):
        first, *_, last = self.ends_
        net.history.record("step_seconds", (last - first) / (len(self.ends_) - 1))
        if self.counted:
            net.history.record("step_operations", float(np.mean(self.operations_)))


def cones(n, *field_shape):
    return np.random.default_rng(0).normal(-20, 50, (n, *field_shape)).astype(np.float32)


def published(
    X, patch_size, embed_dim, batch_size, masks="multiblock", counted=False, **parameters
):
    """Pre-train for an epoch as published but for the masks and what else is given."""
    skatr = SKATRTransformer.published(
        patch_size=patch_size,
        embed_dim=embed_dim,
        max_epochs=1,
        batch_size=batch_size,
        validation_fraction=0,
        callbacks=[Step(counted)],
        device="cpu",
        random_state=0,
        **parameters,
    )
    return skatr.set_params(objective__masks=masks).fit(X)


def n_hidden(skatr, n_draws=100):
    """Mean number of hidden patches of a light cone in a step, over the masks."""
    generator, grid = torch.Generator().manual_seed(0), skatr.architecture_.grid_shape
    draws = [skatr.objective.draw(1, grid, generator) for _ in range(n_draws)]
    return sum(hidden.shape[1] for pairs in draws for _, hidden in pairs) / n_draws


@pytest.mark.parametrize("what", SIZES)
def test_pretraining_step(what, table, torch_seed):
    """At most a quarter of the public code's with four masks, and half at equal masks."""
    field_shape, patch_size, width, batch_size = SIZES[what]
    small = field_shape[2] == 136
    n_steps = 2 if small else 1
    X = cones((n_steps + 1) * batch_size, *field_shape)
    sizes = field_shape, patch_size, width
    fields = torch.from_numpy(X[batch_size:])

    def ours(masks="multiblock"):
        return published(X, *sizes[1:], batch_size, masks).history_[0]["step_seconds"]

    def of(loop):
        next(loop.epoch(fields, batch_size))  # as ours, its first step is not timed
        return lambda: seconds(list, loop.epoch(fields, batch_size)) / n_steps

    one = published(X, *sizes[1:], batch_size, counted=True)
    floor = one.history_[0]["step_operations"] / matrix_rate()
    hidden = batch_size * n_hidden(one)

    loops = {"plain loop, four masks": PlainJEPA(*sizes)}
    if public.PUBLIC:
        loops["public code, four masks"] = public.PublicJEPA(*sizes)
    references = {name: of(loop) for name, loop in loops.items()}
    if width < 360:
        references["plain loop, two masks"] = of(PlainJEPA(*sizes, masks=TWO))
    limits = {"public code, four masks": 0.25, "plain loop, two masks": 0.5}
    options = dict(pairs=3, warm_up=False, check=False)
    name = f"step of pre-training, {what}"
    rows = table.compare(
        f"{name}, two masks", ours, references, limit=limits, floor=floor, in_readme=True, **options
    )
    for row in rows:
        if row.against in loops:
            of_reference = row.reference / batch_size / loops[row.against].n_hidden()
            table.add(
                f"{name}, for each token predicted",
                row.ours / hidden,
                of_reference,
                against=row.against,
            )
    if public.PUBLIC and small:
        equal = {"public code, the same masks": of(public.PublicJEPA(*sizes, n_masks=2))}
        title = f"{name}, two masks of one block"
        rows += table.compare(title, lambda: ours(ONE_BLOCK), equal, limit=0.5, **options)
    table.check(rows)


def test_step_of_axial_attention(table):
    """Half of the time of full attention, at the published size."""
    what = list(SIZES)[1]
    field_shape, *sizes = SIZES[what]
    X = cones(3 * sizes[-1], *field_shape)

    def step(attention):
        return published(X, *sizes, attention=attention).history_[0]["step_seconds"]

    table.compare(
        f"step of pre-training, {what}, two masks, axial attention",
        lambda: step("axial"),
        {"full attention": lambda: step("full")},
        limit=0.5,
        pairs=3,
        warm_up=False,
        in_readme=True,
    )


def test_step_with_compile(table, tmp_path, monkeypatch):
    """What compiling gains, and how long it takes; no limit, for it is at choice."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))  # nothing is compiled yet
    what = next(iter(SIZES))
    field_shape, *sizes = SIZES[what]
    X = cones(3 * sizes[-1], *field_shape)

    def step(compiled):
        return published(X, *sizes, compile=compiled).history_[0]["step_seconds"]

    first, later = (seconds(step, True) for _ in range(2))
    table.compare(
        f"step of pre-training, {what}, two masks, compile=True",
        lambda: step(True),
        {"compile=False": lambda: step(False)},
        pairs=5,
        warm_up=False,
    )
    table.add(f"compiling the steps of {what}", first - later, unit="s")


@pytest.mark.parametrize("what", list(SIZES)[:2])
def test_transform(what, table, torch_seed):
    """Summaries in float32 arithmetic as the default is, without a cache; at most two thirds."""
    field_shape, patch_size, width, batch_size = SIZES[what]
    X = cones(batch_size, *field_shape)
    skatr = SKATRTransformer.published(
        patch_size=patch_size,
        embed_dim=width,
        max_epochs=0,
        cache=None,
        device="cpu",
        random_state=0,
    ).fit(X[:2])
    plain, fields = PlainJEPA(field_shape, patch_size, width), torch.from_numpy(X)
    references = {"plain loop": lambda: plain.summaries(fields, batch_size)}
    if public.PUBLIC:
        summaries = public.public_summaries(field_shape, patch_size, width)
        references[public.NAME] = lambda: summaries(fields, batch_size)
    n_tokens = np.prod([n // p for n, p in zip(field_shape, patch_size, strict=True)])
    table.compare(
        f"summaries of {batch_size} light cones of {n_tokens} tokens, width {width}",
        lambda: skatr.transform(X),
        references,
        limit=0.67,
        pairs=9,
        floor=operations(lambda: skatr.transform(X)) / matrix_rate(),
        in_readme=True,
    )


def test_masks_are_free(table):
    """Drawing the two masks of a step, beside that step."""
    field_shape, patch_size, width, batch_size = next(iter(SIZES.values()))
    X = cones(4 * batch_size, *field_shape)
    step = published(X, patch_size, width, batch_size).history_[0]["step_seconds"]
    generator = torch.Generator().manual_seed(0)
    grid_shape = tuple(n // p for n, p in zip(field_shape, patch_size, strict=True))

    def draw():
        for mask in (SHORT, LONG):
            sample_masks(batch_size, grid_shape, mask, generator=generator)

    drawing = statistics.median(seconds(draw) for _ in range(20))
    table.add("drawing the masks of a step", drawing, step, against="that step", limit=0.02)
