"""DiVE's average and pairwise vector losses (Suzuki et al., AAAI 2026, arXiv 2511.09973).

    u_j = n(f_j) − n(f0_j),   v_j = n(g_j) − n(g0_j)          n: L2 normalisation, or the identity
    m   = α·m_prev + (1−α)·(1/2B) Σ_j (u_j + v_j)             a constant for the gradient
    AVL = (1/B) Σ_j ( |u_j − m|² + |v_j − m|² )
    PVL = (1/B) Σ_j |u_j − v_j|²

`dive_loss` is the definition. `forward` and `backward` are what backend="reference" runs: the same
formulas with the gradient written out, in float32 (float64 stays float64).
"""

from __future__ import annotations

import torch
from torch import Tensor

from robustft.backends.tensors import sum_dtype

# As in torch.nn.functional.normalize: rows shorter than this are divided by it instead.
EPS = 1e-12


def dive_loss(
    image: Tensor,
    image_pretrained: Tensor,
    text: Tensor,
    text_pretrained: Tensor,
    mean: Tensor,
    momentum: float = 0.99,
    normalize: bool = True,
) -> tuple[Tensor, Tensor, Tensor]:
    """(AVL, PVL, new mean) of features [B, D] and a mean [D], differentiable by autograd."""
    u, v = _difference_vectors(image, image_pretrained, text, text_pretrained, normalize)
    batch_mean = (u.sum(0) + v.sum(0)).detach() / (2 * len(u))
    new_mean = momentum * mean.to(u.dtype) + (1 - momentum) * batch_mean
    avl = ((u - new_mean).square().sum() + (v - new_mean).square().sum()) / len(u)
    pvl = (u - v).square().sum() / len(u)
    return avl, pvl, new_mean


def forward(
    image: Tensor,
    image_pretrained: Tensor,
    text: Tensor,
    text_pretrained: Tensor,
    mean: Tensor,
    momentum: float,
    normalize: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """(AVL, PVL, new mean), all float32 (float64 for float64 features)."""
    with torch.no_grad():
        return dive_loss(image, image_pretrained, text, text_pretrained, mean, momentum, normalize)


def backward(
    image: Tensor,
    image_pretrained: Tensor,
    text: Tensor,
    text_pretrained: Tensor,
    new_mean: Tensor,
    grad_avl: Tensor,
    grad_pvl: Tensor,
    normalize: bool,
) -> tuple[Tensor, Tensor]:
    """Gradients to image and text: (2/B)·[ ∂avl·(u − m) ± ∂pvl·(u − v) ], through n; contiguous."""
    u, v = _difference_vectors(image, image_pretrained, text, text_pretrained, normalize)
    apart = grad_pvl * (u - v)
    grad_u = (2 / len(u)) * (grad_avl * (u - new_mean) + apart)
    grad_v = (2 / len(v)) * (grad_avl * (v - new_mean) - apart)
    if normalize:
        grad_u = _normalize_backward(grad_u, image.to(sum_dtype(image)))
        grad_v = _normalize_backward(grad_v, text.to(sum_dtype(text)))
    return grad_u.to(image.dtype).contiguous(), grad_v.to(text.dtype).contiguous()


def _difference_vectors(
    f: Tensor, f0: Tensor, g: Tensor, g0: Tensor, normalize: bool
) -> tuple[Tensor, Tensor]:
    f, f0, g, g0 = (x.to(sum_dtype(x)) for x in (f, f0, g, g0))
    if normalize:
        f, f0, g, g0 = (_normalize(x) for x in (f, f0, g, g0))
    return f - f0, g - g0


def _normalize(x: Tensor) -> Tensor:
    return torch.nn.functional.normalize(x, dim=1, eps=EPS)


def _normalize_backward(grad: Tensor, x: Tensor) -> Tensor:
    """∂/∂x of n(x): the part of `grad` orthogonal to n(x), over |x|; all of it where |x| < EPS."""
    norm = x.norm(dim=1, keepdim=True)
    unit = x / norm.clamp_min(EPS)
    along = (unit * grad).sum(1, keepdim=True).masked_fill(norm < EPS, 0)
    return (grad - unit * along) / norm.clamp_min(EPS)
