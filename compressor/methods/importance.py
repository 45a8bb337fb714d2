"""Importance of heads and FFN neurons: one number per unit, larger is more worth keeping.

A unit is a group of input columns of an output projection (attention-out or FFN-down): one column for a neuron,
head_dim columns for a head, all query heads of a key/value head under grouped-query attention. `groups` (n_units,
columns per unit) names them, so that every score below works for neurons and heads alike.

The activations X enter as sums over real calibration tokens (`Moments`): Gram X^T X, sum of X, token count.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from compressor.errors import StageError


@dataclass(frozen=True)
class Moments:
    """Sums over calibration tokens of one projection's inputs.

    Attributes:
        gram: (d, d) float64, X^T X.
        total: (d,) float64, the sum of X.
        n_tokens: real tokens seen.
    """

    gram: Tensor
    total: Tensor
    n_tokens: int

    @property
    def mean(self) -> Tensor:
        return self.total / self.n_tokens

    @property
    def variance(self) -> Tensor:
        return self.gram.diagonal() / self.n_tokens - self.mean.square()

    def select(self, columns: Tensor) -> Moments:
        """The moments of some of the inputs."""
        return Moments(self.gram[columns][:, columns], self.total[columns], self.n_tokens)


def single_columns(n_columns: int) -> Tensor:
    """Groups of one column each: (n_columns, 1)."""
    return torch.arange(n_columns)[:, None]


def equal_groups(n_units: int, unit_width: int) -> Tensor:
    """Neighbouring columns in groups: (n_units, unit_width)."""
    return torch.arange(n_units * unit_width).view(n_units, unit_width)


def magnitude(weight: Tensor, groups: Tensor) -> Tensor:
    """Euclidean norm of the unit's output weights.

    Args:
        weight: (out, d) of the output projection.
        groups: (n_units, columns per unit).
    """
    return weight.double().square().sum(dim=0)[groups].sum(dim=-1).sqrt()


def wanda(weight: Tensor, moments: Moments, groups: Tensor) -> Tensor:
    """Mean of |W_ij| ||X_j||_2 over the unit's weights: Wanda (arXiv 2306.11695), structured as in FLAP's baseline."""
    norms = moments.gram.diagonal().clamp(min=0).sqrt()  # rounding may leave -1e-20 where a unit is always 0
    return (weight.double().abs().mean(dim=0) * norms)[groups].mean(dim=-1)


def fluctuation(weight: Tensor, moments: Moments, groups: Tensor) -> Tensor:
    """Var(X_j) ||W_:,j||^2 summed over the unit: what a bias cannot replace (FLAP, arXiv 2312.11983, equation 4)."""
    return (moments.variance * weight.double().square().sum(dim=0))[groups].sum(dim=-1)


def activation_mean(moments: Moments, groups: Tensor) -> Tensor:
    """Root mean square activation of the unit, in the spirit of Minitron (arXiv 2407.14679, section 2.2).

    Minitron aggregates mean |X| over batch and sequence; the Gram gives the quadratic mean without a further pass.
    """
    return (moments.gram.diagonal() / moments.n_tokens)[groups].mean(dim=-1).sqrt()


def taylor(mask_gradients: Tensor) -> Tensor:
    """First-order effect on the loss of removing a unit, |sum_b dL_b/dm| (Molchanov et al., arXiv 1906.10771).

    Args:
        mask_gradients: (n_batches, n_units) gradients with respect to a mask of ones.
    """
    return mask_gradients.double().sum(dim=0).abs()


def fisher(mask_gradients: Tensor) -> Tensor:
    """Diagonal empirical Fisher, sum_b (dL_b/dm)^2 (Kwon et al., arXiv 2204.09656, section 4)."""
    return mask_gradients.double().square().sum(dim=0)


def obs_removal_order(
    weight: Tensor, moments: Moments, groups: Tensor, block: int = 64, damping: float = 1e-2
) -> Tensor:
    """Order of removal by optimal brain surgery on the layer's output error (ZipLM, arXiv 2302.04089, section 3.1).

    With H = 2 X^T X / n + l I and S a unit's columns, removing S costs tr(W_S [(H^-1)_SS]^-1 W_S^T); the cheapest go
    first and what they did is moved onto the units left: W -= W_S [(H^-1)_SS]^-1 (H^-1)_S:. All kept counts fall out of
    one pass. Single columns leave `block` at a time (the exact one-by-one order costs some 30 times more); whole heads
    always one at a time.

    Args:
        weight: (out, d).
        groups: (n_units, columns per unit).
        block: columns that leave in one step.
        damping: l as a share of the mean diagonal of H.

    Returns:
        (n_units,) unit numbers, the first to be removed first.

    Raises:
        StageError: the inputs are all zero, so nothing tells the units apart.
    """
    weight = weight.detach().double().clone()
    inverse = _inverse(damped(2.0 * moments.gram / moments.n_tokens, damping))
    alive = torch.ones(len(groups), dtype=torch.bool)
    order: list[Tensor] = []
    per_step = max(1, block // groups.shape[1]) if groups.shape[1] == 1 else 1
    while bool(alive.any()):
        units = alive.nonzero().squeeze(1)
        costs = _removal_costs(weight, inverse, groups[units])
        leaving = units[costs.argsort(stable=True)[:per_step]]
        order.append(leaving)
        alive[leaving] = False
        if bool(alive.any()):
            _remove(weight, inverse, groups[leaving].flatten())
    return torch.cat(order)


def obs_scores(weight: Tensor, moments: Moments, groups: Tensor, block: int = 64, damping: float = 1e-2) -> Tensor:
    """`obs_removal_order` as a score: the place in the order, 0 for the first to go."""
    order = obs_removal_order(weight, moments, groups, block, damping)
    scores = torch.empty(len(order), dtype=torch.float64)
    scores[order] = torch.arange(len(order), dtype=torch.float64)
    return scores


def block_influence(layer_input: Tensor, layer_output: Tensor, mask: Tensor) -> float:
    """1 - mean cosine between a layer's input and output at real tokens (ShortGPT, arXiv 2403.03853, equation 1).

    Args:
        layer_input, layer_output: (B, T, H).
        mask: (B, T).
    """
    cosine = F.cosine_similarity(layer_input.double(), layer_output.double(), dim=-1)  # (B, T)
    return float(1.0 - cosine[mask.bool()].mean())


def keep_best(scores: Tensor, n_kept: int) -> tuple[int, ...]:
    """The units with the highest scores, in increasing order; of equals the first."""
    best = scores.argsort(descending=True, stable=True)[:n_kept]
    return tuple(sorted(best.tolist()))


def damped(matrix: Tensor, damping: float) -> Tensor:
    """The matrix with `damping` x its mean diagonal added to the diagonal.

    Raises:
        StageError: a zero or non-finite diagonal.
    """
    diagonal = float(matrix.diagonal().mean())
    if not diagonal > 0 or not bool(torch.isfinite(matrix).all()):
        raise StageError(
            f"the calibration activations are unusable: their mean square is {diagonal}",
            hint="check that the model is not already broken and that the calibration texts are not empty",
        )
    return matrix + damping * diagonal * torch.eye(len(matrix), dtype=matrix.dtype)


def _inverse(matrix: Tensor) -> Tensor:
    inverse: Tensor = torch.cholesky_inverse(torch.linalg.cholesky(matrix))
    return inverse


def _removal_costs(weight: Tensor, inverse: Tensor, groups: Tensor) -> Tensor:
    """tr(W_S [(H^-1)_SS]^-1 W_S^T) of each unit: (n_units,)."""
    if groups.shape[1] == 1:
        columns = groups[:, 0]
        costs: Tensor = weight[:, columns].square().sum(dim=0) / inverse.diagonal()[columns]
        return costs
    blocks = inverse[groups[:, :, None], groups[:, None, :]]  # (n_units, s, s)
    parts = weight.T[groups]  # (n_units, s, out)
    costs = (parts * torch.linalg.solve(blocks, parts)).sum(dim=(1, 2))
    return costs


def _remove(weight: Tensor, inverse: Tensor, columns: Tensor) -> None:
    """Take columns out of weight and inverse, in place, by the OBS update; their rows and columns become zero."""
    rows = inverse[columns]  # (s, d)
    moved = torch.linalg.solve(rows[:, columns], rows)  # (s, d)
    weight -= weight[:, columns] @ moved
    inverse -= rows.T @ moved
    weight[:, columns] = 0.0
    inverse[columns] = 0.0
    inverse[:, columns] = 0.0
