"""CoverageDisplay: expected coverage against nominal credibility."""

from __future__ import annotations

__all__ = ["CoverageDisplay"]

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike

from skatr_sk._checks import Choice, check_options, warn_no_effect
from skatr_sk.evaluation.calibration import posterior_draws, rank_levels, sbc_ranks, tarp_levels
from skatr_sk.evaluation.coverage import Coverage, expected_coverage
from skatr_sk.evaluation.displays.base import (
    COLORS,
    TRUTH,
    Display,
    merged,
    parameter_labels,
    prior_of,
)
from skatr_sk.evaluation.fitted import check_truths

_AXES_LABELS = {
    "highest_density": {"xlabel": "credibility of highest-density regions"},
    "tarp": {"xlabel": "credibility of TARP regions"},
    "ranks": {
        "xlabel": "rank of the truth, as a share",
        "ylabel": "cumulative share of light cones",
    },
}
_LINE = {"linewidth": 1.6}
_BAND = {"color": "0.5", "alpha": 0.22, "linewidth": 0}


@dataclass(kw_only=True, eq=False, repr=False)
class CoverageDisplay(Display):
    """Expected coverage of credible regions, with the uniform band of a calibrated posterior.

    It is that of Hermans et al., arXiv:2110.06581, of highest-density regions, of Lemos et al.,
    arXiv:2302.03026, of random ones (TARP), and of Talts et al., arXiv:1804.06788, of ranks.
    A curve below the diagonal means a posterior that is too narrow or shifted, above it one that is
    too wide. Make it with :meth:`from_levels`, :meth:`from_samples` or :meth:`from_estimator`.

    Parameters
    ----------
    curves : dict of str to Coverage
        What is drawn, with the names of the legend.
    xlabel, ylabel : str, default="credibility" and "expected coverage"
        Labels of the axes.

    Attributes
    ----------
    figure_, ax_ : matplotlib Figure and Axes
    lines_ : list of Line2D
        One a curve.
    bands_ : list
        One for each distinct number of light cones.
    legend_ : Legend

    Examples
    --------
    >>> import numpy as np
    >>> from skatr_sk.evaluation import CoverageDisplay
    >>> levels = np.random.default_rng(0).uniform(size=200)
    >>> display = CoverageDisplay.from_levels({"calibrated": levels, "narrow": levels**0.5})
    >>> [curve.calibrated for curve in display.curves.values()]
    [True, False]
    """

    curves: Mapping[str, Coverage]
    xlabel: str = "credibility"
    ylabel: str = "expected coverage"

    def __post_init__(self) -> None:
        if not isinstance(self.curves, Mapping) or not self.curves:
            raise ValueError(f"curves: expected a dict of name to Coverage, found {self.curves!r}.")

    def plot(
        self,
        ax: Any = None,
        *,
        kind: str = "coverage",
        line_kwargs: Mapping[str, Any] | None = None,
        band_kwargs: Mapping[str, Any] | None = None,
    ) -> Self:
        """Draw the curves, and return the display.

        Parameters
        ----------
        ax : Axes, default=None
            By default those of a new figure.
        kind : {"coverage", "difference"}, default="coverage"
            The coverage, or the coverage minus the credibility, which shows small deviations.
        line_kwargs, band_kwargs : dict, default=None
            Passed on to ``Axes.plot`` and ``Axes.fill_between``.
        """
        plt = self._pyplot("plot")
        kinds = {"kind": Choice("coverage", "difference")}
        check_options("CoverageDisplay.plot", kinds, {"kind": kind})
        given = ax is not None
        if not given:
            _, ax = plt.subplots(figsize=(6.4, 4.2), layout="constrained")
        self.ax_, self.figure_ = ax, ax.figure
        self.lines_: list[Any] = []
        self.bands_: list[Any] = []
        difference = kind == "difference"
        drawn: set[tuple[float, ...]] = set()
        for k, (name, curve) in enumerate(self.curves.items()):
            base = curve.credibility if difference else 0.0
            key = tuple(curve.high)
            if key not in drawn:
                drawn.add(key)
                label = f"{curve.confidence:.0%} band if calibrated" if len(drawn) == 1 else None
                band = merged({**_BAND, "label": label}, band_kwargs)
                edges = curve.low - base, curve.high - base
                self.bands_.append(ax.fill_between(curve.credibility, *edges, **band))
            shade = {"color": COLORS[k % len(COLORS)]}
            line = merged({**_LINE, **shade, "label": name}, line_kwargs)
            self.lines_ += ax.plot(curve.credibility, curve.coverage - base, **line)
        ax.plot([0, 1], [0, 0] if difference else [0, 1], label="calibrated", **TRUTH)
        ax.set(xlim=(0, 1), xlabel=self.xlabel)
        ax.set_ylabel("coverage minus credibility" if difference else self.ylabel)
        if not difference:
            ax.set(ylim=(0, 1), aspect="equal")
        # A curve that sags leaves the upper left free, one that bulges the lower right.
        owner, where = (ax, "best") if given else (self.figure_, "outside right center")
        self.legend_ = owner.legend(loc=where, fontsize="small", frameon=False)
        return self

    @classmethod
    def from_levels(
        cls,
        levels: ArrayLike | Mapping[str, ArrayLike],
        *,
        confidence: float = 0.99,
        ax: Any = None,
        **kwargs: Any,
    ) -> Self:
        """Draw from credibility levels of the truths, and return the display.

        Parameters
        ----------
        levels : array-like of shape (n_lightcones,), or a dict of names to such
            From ``highest_density_levels``, ``tarp_levels`` or ``rank_levels``.
        confidence : float, default=0.99
            Of the uniform band.
        ax, **kwargs
            As for the class (``xlabel``, ``ylabel``) and for :meth:`plot`.
        """
        named = levels if isinstance(levels, Mapping) else {"posterior": levels}
        curves = {str(k): expected_coverage(v, confidence=confidence) for k, v in named.items()}
        return cls._drawn(ax, {"curves": curves, **kwargs})

    @classmethod
    def from_samples(
        cls,
        samples: ArrayLike,
        y_true: ArrayLike,
        *,
        method: str = "tarp",
        parameter_names: Sequence[str] | None = None,
        random_state: int | np.random.Generator | None = 0,
        verbose: int = 0,
        **kwargs: Any,
    ) -> Self:
        """Draw from posterior samples, and return the display.

        Parameters
        ----------
        samples, y_true, random_state, verbose
            As for :func:`~skatr_sk.evaluation.tarp_levels`.
        method : {"tarp", "ranks"}, default="tarp"
            One curve of the joint posterior, or one of the ranks of each parameter.
        parameter_names : sequence of str, default=None
            For the legend of "ranks"; the others have one curve for all.
        **kwargs
            As for :meth:`from_levels`.
        """
        kinds = {"method": Choice("tarp", "ranks")}
        check_options("CoverageDisplay.from_samples", kinds, {"method": method})
        if method == "tarp":
            if parameter_names is not None:
                warn_no_effect("CoverageDisplay", ["parameter_names"], "method='tarp'")
            tarp = tarp_levels(samples, y_true, random_state=random_state, verbose=verbose)
            return cls.from_levels({"TARP": tarp}, **{**_AXES_LABELS[method], **kwargs})
        ranks = sbc_ranks(samples, y_true, random_state=random_state, verbose=verbose)
        labels = parameter_labels(parameter_names, None, ranks.shape[1])
        shares = rank_levels(ranks, np.shape(samples)[1], random_state=random_state)
        levels = {symbol: shares[:, i] for i, (symbol, _) in enumerate(labels)}
        return cls.from_levels(levels, **{**_AXES_LABELS[method], **kwargs})

    @classmethod
    def from_estimator(
        cls,
        estimator: Any,
        X: ArrayLike,
        y: ArrayLike,
        *,
        method: str = "highest_density",
        n_samples: int = 500,
        parameter_names: Sequence[str] | None = None,
        random_state: Any = 0,
        verbose: int = 0,
        **kwargs: Any,
    ) -> Self:
        """Sample a fitted posterior, draw, and return the display.

        Parameters
        ----------
        estimator, X, y, n_samples, random_state, verbose
            As for :func:`~skatr_sk.evaluation.posterior_draws`; `X` are light cones, or their
            summaries, that it was not fitted on, and `y` their true parameters.
        method : {"highest_density", "tarp", "ranks"}, default="highest_density"
        parameter_names : sequence of str, default=None
            For the legend of "ranks"; by default those of the estimator.
        **kwargs
            As for :meth:`from_levels`.
        """
        kinds = {"method": Choice(*_AXES_LABELS)}
        check_options("CoverageDisplay.from_estimator", kinds, {"method": method})
        cls._pyplot("from_estimator")
        check_truths(estimator, y, in_prior=True)
        wanted = y if method == "highest_density" else None
        common: dict[str, Any] = {"random_state": random_state, "verbose": verbose}
        samples, levels = posterior_draws(estimator, X, n_samples=n_samples, y=wanted, **common)
        if levels is not None:
            named = {"highest density": levels}
            return cls.from_levels(named, **{**_AXES_LABELS[method], **kwargs})
        if parameter_names is None and method == "ranks":
            parameter_names = prior_of(estimator)["parameter_names"]
        common |= {"method": method, "parameter_names": parameter_names}
        return cls.from_samples(samples, y, **common, **kwargs)
