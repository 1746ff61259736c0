"""Bars and log lines of what takes long, beside the training, which has its own."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tqdm.auto import tqdm

from skatr_sk.training.processes import is_first

__all__ = ["watched"]

_LONG = 2.0  # seconds after which a bar shows, and a line is logged


@contextmanager
def watched(
    title: str,
    total: int,
    unit: str,
    *,
    verbose: int,
    logger: logging.Logger | None = None,
    at_once: bool = False,
) -> Iterator[Callable[..., object]]:
    """Give a function to be told of each `n` more of a total; show a bar where `verbose`.

    The bar shows after two seconds, or `at_once`, and with it the figures that the function is told
    by name. What takes longer is logged at INFO, once while it goes on, with the minutes left, and
    once at its end. Of several processes the first speaks.
    """
    start, said = time.monotonic(), False
    quiet, delay = not (verbose and is_first()), 0.0 if at_once else _LONG
    bar = tqdm(total=total, desc=title, unit=unit, delay=delay, disable=quiet)
    done = 0

    def tell(n: int, **figures: float) -> None:
        nonlocal done, said
        done += n
        if figures:
            bar.set_postfix({k: f"{v:.3g}" for k, v in figures.items()}, refresh=False)
        bar.update(n)
        seconds = time.monotonic() - start
        if logger is not None and not said and seconds > _LONG and 0 < done < total:
            said = True
            minutes = seconds / done * (total - done) / 60
            logger.info("%s: %d of %d, about %.1f minutes to go.", title, done, total, minutes)

    with bar:
        yield tell
    seconds = time.monotonic() - start
    if logger is not None and seconds > _LONG:
        logger.info("%s: %d in %.0f s.", title, done, seconds)
