"""Rounding of weights: to the nearest, or column by column with the error carried on (GPTQ)."""

import torch

from iqvit.inttype import QParams

DAMPING = 0.01


def column_scales(weight: torch.Tensor, qparams: QParams, groups: int) -> torch.Tensor:
    """The input's scale for every column, float32 of a shape that broadcasts over the weight.

    weight: `[N, K]`, or `[N, C / groups, KH, KW]`. qparams: of the input.
    """
    scale = torch.from_numpy(qparams.scale.copy()).float()
    if not qparams.per_channel:
        return scale.expand(weight.shape[1:])[None]
    rows = scale.reshape(groups, -1, *[1] * (weight.ndim - 2))
    return rows.repeat_interleave(len(weight) // groups if groups > 1 else 1, 0).expand(
        -1, *weight.shape[1:]
    )


def weight_scale(weight: torch.Tensor, bits: int, granularity: str) -> torch.Tensor:
    """Scale `[N, 1]` of symmetric weights `[N, K]` in `-(2**(bits-1)-1) .. 2**(bits-1)-1`."""
    most = 2 ** (bits - 1) - 1
    largest = weight.abs().amax(1, keepdim=True)
    if granularity == "tensor":
        largest = largest.max().expand_as(largest)
    # An all-zero row has any scale; the mean of the others keeps multipliers in range.
    filler = largest[largest > 0].mean() if bool((largest > 0).any()) else torch.tensor(1.0)
    return torch.where(largest > 0, largest, filler) / most


def round_nearest(weight: torch.Tensor, scale: torch.Tensor, bits: int) -> torch.Tensor:
    """Integers `[N, K]` as float: round half up, saturated."""
    most = 2 ** (bits - 1) - 1
    return torch.floor(weight / scale + 0.5).clamp(-most, most)


def round_gptq(
    weight: torch.Tensor, scale: torch.Tensor, bits: int, gram: torch.Tensor
) -> torch.Tensor:
    """Integers `[N, K]` as float, minimising the error of the outputs on the calibration inputs.

    Columns are rounded one by one, largest `gram` diagonal first; what each loses is made up by the
    columns still free, as their correlation in `gram` (`[K, K]`, sum of x x^T over the calibration
    rows) allows. Frantar et al., GPTQ, arXiv 2210.17323, equations 2 and 3, with a fixed scale.
    """
    order = torch.argsort(gram.diagonal(), descending=True, stable=True)
    w = weight.double()[:, order].clone()
    hessian = gram.double()[order][:, order].clone()
    damping = DAMPING * hessian.diagonal().mean().clamp(min=1e-12)
    hessian.diagonal().add_(damping)
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(hessian))
    upper = torch.linalg.cholesky(inverse, upper=True)
    rounded = torch.empty_like(w)
    most = 2 ** (bits - 1) - 1
    steps = scale.double()[:, 0]
    block = 64
    for start in range(0, w.shape[1], block):
        end = min(start + block, w.shape[1])
        errors = torch.zeros(w.shape[0], end - start, dtype=torch.float64)
        for k in range(start, end):
            rounded[:, k] = torch.floor(w[:, k] / steps + 0.5).clamp(-most, most)
            error = (w[:, k] - rounded[:, k] * steps) / upper[k, k]
            w[:, k:end] -= error[:, None] * upper[k, k:end][None]
            errors[:, k - start] = error
        w[:, end:] -= errors @ upper[start:end, end:]
    result = torch.empty_like(rounded)
    result[:, order] = rounded
    return result.to(weight.dtype)
