"""VRF's sample-wise mix of two classifiers (Zhu, Cui, Zhang, NeurIPS 2024, arXiv 2411.06966).

    ω = sigmoid(−(d − a)/b),   P = ω·softmax(z_ft/T_ft) + (1 − ω)·softmax(z_zs/T_zs)

`vrf_mix` is the definition. `forward` and `backward` are what backend="reference" runs: the same
formulas with the gradients written out, some rows at a time, in float32 (float64 stays float64).
A class whose logit is −Inf has probability 0.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from robustft.backends.options import VrfOptions
from robustft.backends.tensors import sum_dtype

# Elements of a chunk of rows: 16 MB a temporary in float32.
_CHUNK = 1 << 22


def vrf_mix(
    logits_finetuned: Tensor,
    logits_zeroshot: Tensor,
    distance: Tensor,
    a: float,
    b: float,
    temperature_finetuned: float = 1.0,
    temperature_zeroshot: float = 1.0,
    log: bool = False,
) -> Tensor:
    """(Log-)probabilities [Q, K] of logits [Q, K] and distances [Q], differentiable by autograd."""
    t = ((distance - a) / b).unsqueeze(1)
    z = logits_finetuned / temperature_finetuned
    y = logits_zeroshot / temperature_zeroshot
    if log:
        return torch.logaddexp(logsigmoid(-t) + z.log_softmax(1), logsigmoid(t) + y.log_softmax(1))
    return torch.sigmoid(-t) * z.softmax(1) + torch.sigmoid(t) * y.softmax(1)


def forward(
    logits_finetuned: Tensor,
    logits_zeroshot: Tensor,
    distance: Tensor,
    options: VrfOptions,
) -> Tensor:
    """(Log-)probabilities [Q, K], contiguous, in the logits' dtype."""
    out = logits_finetuned.new_empty(logits_finetuned.shape)
    forward_into(logits_finetuned, logits_zeroshot, distance, out, options)
    return out


def forward_into(
    logits_finetuned: Tensor,
    logits_zeroshot: Tensor,
    distance: Tensor,
    out: Tensor,
    options: VrfOptions,
) -> None:
    """As `forward`, into a contiguous tensor; it may be one of the logits."""
    dtype = sum_dtype(logits_finetuned)
    for rows in _chunks(logits_finetuned):
        z, y, d = (x[rows].to(dtype) for x in (logits_finetuned, logits_zeroshot, distance))
        out[rows] = vrf_mix(z, y, d, *options)


def backward(
    logits_finetuned: Tensor,
    logits_zeroshot: Tensor,
    distance: Tensor,
    grad: Tensor,
    options: VrfOptions,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients to both logits, contiguous, in their dtype, and to the distance, in its dtype.

    With p, q the softmaxes and G the gradient that comes in. Of P: ∂z_ft = (ω/T)·p∘(G − <G, p>),
    ∂d = −<G, p − q>·ω(1−ω)/b. Of log P, with r = ω·p/P: ∂z_ft = (1/T)·(G∘r − p·<G, r>),
    ∂d = (ω·<G, 1−r> − (1−ω)·<G, r>)/b. A class masked in both models passes no gradient to log P.
    """
    a, b, temperature_finetuned, temperature_zeroshot, log = options
    dtype = sum_dtype(logits_finetuned)
    grad_finetuned = logits_finetuned.new_empty(logits_finetuned.shape)
    grad_zeroshot = logits_zeroshot.new_empty(logits_zeroshot.shape)
    grad_distance = distance.new_empty(distance.shape)
    for rows in _chunks(logits_finetuned):
        z, y, d, g = (
            x[rows].to(dtype) for x in (logits_finetuned, logits_zeroshot, distance, grad)
        )
        t = ((d - a) / b).unsqueeze(1)
        omega, rest = torch.sigmoid(-t), torch.sigmoid(t)
        log_p = (z / temperature_finetuned).log_softmax(1)
        log_q = (y / temperature_zeroshot).log_softmax(1)
        p, q = log_p.exp(), log_q.exp()
        if log:
            log_ratio = logsigmoid(-t) + log_p - logsigmoid(t) - log_q
            masked = (log_p == -torch.inf) & (log_q == -torch.inf)
            gr = g * torch.sigmoid(log_ratio).masked_fill(masked, 0)
            gs = g * torch.sigmoid(-log_ratio).masked_fill(masked, 0)
            sum_r, sum_s = gr.sum(1, keepdim=True), gs.sum(1, keepdim=True)
            dz, dy = gr - p * sum_r, gs - q * sum_s
            dd = (omega * sum_s - rest * sum_r) / b
        else:
            sum_p, sum_q = (g * p).sum(1, keepdim=True), (g * q).sum(1, keepdim=True)
            dz, dy = omega * p * (g - sum_p), rest * q * (g - sum_q)
            dd = (sum_q - sum_p) * omega * rest / b
        grad_finetuned[rows] = dz / temperature_finetuned
        grad_zeroshot[rows] = dy / temperature_zeroshot
        grad_distance[rows] = dd.squeeze(1)
    return grad_finetuned, grad_zeroshot, grad_distance


def _chunks(x: Tensor) -> list[slice]:
    size = max(1, _CHUNK // x.shape[1])
    return [slice(start, start + size) for start in range(0, x.shape[0], size)]
