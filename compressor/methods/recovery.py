"""Recovery without training: refit an output projection so that fewer inputs say the same.

The default is a ridge regression centred on the weights that are kept, solved from sums over calibration tokens
(Grams), never from the activations themselves. FASP (arXiv 2501.09412) restores in closed form too; the centring on
the old weights matters at mild pruning, where a plain ridge is worse than doing nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from compressor.errors import StageError
from compressor.methods.importance import Moments, damped


@dataclass(frozen=True)
class Target:
    """Sums over calibration tokens of what the refitted projection should put out.

    Attributes:
        cross: (d, out) float64, X^T Y.
        total: (out,) float64, the sum of Y.
    """

    cross: Tensor
    total: Tensor


def dense_target(moments: Moments, weight: Tensor, bias: Tensor | None) -> Target:
    """The dense projection's own output as target, from the same Gram: Y = X W^T + b.

    Args:
        moments: of all inputs.
        weight: (out, d).
        bias: (out,) or None.
    """
    weight = weight.detach().double()
    cross, total = moments.gram @ weight.T, moments.total @ weight.T
    if bias is not None:
        cross = cross + torch.outer(moments.total, bias.detach().double())
        total = total + moments.n_tokens * bias.detach().double()
    return Target(cross, total)


def ridge(
    moments: Moments, target: Target, weight: Tensor, bias: Tensor | None, damping: float = 1e-2
) -> tuple[Tensor, Tensor | None]:
    """Centred ridge: B = B0 + (A^T A + l I)^-1 A^T (Y - A B0), with A the kept inputs and B0 their old weights.

    With a bias the fit runs through the means and the bias itself is not penalised; without one (Llama) there is no
    intercept. No input kept: the bias becomes the mean of the target.

    Args:
        moments: of the kept inputs (k of them).
        target: cross (k, out) of the kept inputs with the wanted outputs.
        weight: (out, k) old weights of the kept inputs.
        bias: (out,) or None.
        damping: l as a share of the mean diagonal of the Gram.

    Returns:
        The new (out, k) weight and (out,) bias, in the old dtype.

    Raises:
        StageError: inputs that are all zero, or a solution that is not finite.
    """
    n, old = moments.n_tokens, weight.detach().double().T  # (k, out)
    gram, cross = moments.gram, target.cross
    if bias is not None:
        gram = gram - torch.outer(moments.total, moments.mean)
        cross = cross - torch.outer(moments.mean, target.total)
    if weight.shape[1]:
        factor = torch.linalg.cholesky(damped(gram, damping))
        new = old + torch.cholesky_solve(cross - gram @ old, factor)
    else:
        new = old
    new_bias = None if bias is None else (target.total / n - moments.mean @ new).to(bias.dtype)
    if not bool(torch.isfinite(new).all()):
        raise StageError("the ridge solve gave values that are not finite", hint="use more calibration text")
    return new.T.to(weight.dtype), new_bias


def mean_bias(mean: Tensor, removed: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """The bias that gives back the removed units' average (FLAP, arXiv 2312.11983, equation 6): b + W_R mean(X_R).

    Args:
        mean: (d,) mean inputs of the dense projection.
        removed: column numbers.
        weight: (out, d).
        bias: (out,).
    """
    return (bias.double() + weight[:, removed].double() @ mean[removed]).to(bias.dtype)


def unit_scales(
    moments: Moments, target: Target, weight: Tensor, groups: Tensor, bias: Tensor | None = None, limit: float = 10.0
) -> Tensor:
    """One scale per kept unit by least squares (mask tuning of Kwon et al., arXiv 2204.09656, section 4.3).

    Column u of the design is the unit's own contribution X_u W_u^T; all scales are solved together.

    Args:
        moments: of the kept inputs (k).
        target: as in `ridge`.
        weight: (out, k).
        groups: (n_units, columns per unit) within the k columns.
        bias: (out,) or None; taken off the target.

    Returns:
        (n_units,) scales.

    Raises:
        StageError: a scale beyond `limit`, which as in the paper is not believed.
    """
    weight = weight.double()
    products = moments.gram * (weight.T @ weight)  # (k, k): sum over tokens and outputs of column contributions
    member = torch.zeros(weight.shape[1], len(groups), dtype=torch.float64)
    member[groups.flatten(), torch.arange(len(groups)).repeat_interleave(groups.shape[1])] = 1.0
    cross = target.cross if bias is None else target.cross - torch.outer(moments.total, bias.double())
    wanted = member.T @ (weight.T * cross).sum(dim=1)  # (n_units,)
    design = member.T @ products @ member
    scales: Tensor = torch.linalg.lstsq(design, wanted[:, None]).solution[:, 0]
    if not bool((scales.abs() <= limit).all()):
        raise StageError(
            f"mask tuning asks to scale a unit by {float(scales.abs().max()):.3g}, beyond {limit:g}: "
            "the cut is too deep or the text too little",
            hint="use the ridge recovery, or more calibration text",
        )
    return scales
