"""Masked reconstruction: predict the voxels of hidden patches."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from skatr_sk._checks import Problems, shared_docs
from skatr_sk.summaries.objectives.base import MASKED_DOCS, MaskedNetwork, MaskedObjective
from skatr_sk.summaries.vit import Encoder
from skatr_sk.summaries.weights import Architecture

__all__ = ["Reconstruction", "ReconstructionNetwork"]


@shared_docs(**MASKED_DOCS)
@dataclass(kw_only=True, eq=False, repr=False)
class Reconstruction(MaskedObjective):
    """Predict the voxels of hidden patches from the visible ones [1]_, the rival of a JEPA.

    Parameters
    ----------
    {masks}
    {min_context}
    {loss}
    normalize_targets : bool, default=True
        Give the voxels of each patch zero mean and unit variance before the loss.
    {predictor_dim}
    predictor_depth : int, default=4
        Transformer blocks of the predictor.

    References
    ----------
    .. [1] He et al. (masked autoencoders), arXiv:2111.06377, section 3.

    Examples
    --------
    >>> from skatr_sk import SKATRTransformer
    >>> from skatr_sk.summaries import Reconstruction
    >>> SKATRTransformer(objective=Reconstruction(predictor_depth=2))
    SKATRTransformer(objective=Reconstruction(predictor_depth=2))
    """

    prevents_collapse = "normalize_targets=True"

    def check_sizes(self, problems: Problems, prefix: str, architecture: Architecture) -> None:
        """Note where nothing is left to predict, too."""
        super().check_sizes(problems, prefix, architecture)
        if self.normalize_targets and architecture.n_voxels == 1:
            wanted = f"False with patches of a single voxel (patch_size={architecture.patch_size})"
            mend = "normalised, such a patch is always 0: use larger patches"
            problems.add(f"{prefix}normalize_targets", wanted, True, mend)

    def network(
        self, encoder: Encoder, architecture: Architecture, *, pooling: str, n_parameters: int
    ) -> ReconstructionNetwork:
        """Return the encoder and the predictor of voxels."""
        predictor = self._predictor(architecture.n_voxels, architecture)
        return ReconstructionNetwork(encoder, predictor, normalize_targets=self.normalize_targets)


class ReconstructionNetwork(MaskedNetwork):
    """Predict the voxels of hidden patches from the encoder's tokens of visible ones."""

    def _raw_targets(self, patches: Tensor) -> Tensor:
        """Return the patches themselves."""
        return patches
