"""Adversarial losses and regularisers. Logits are (B, 1) float32; losses are scalars, returned and never applied here."""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

LossName = Literal["hinge", "non_saturating", "relativistic"]


def d_loss(name: LossName, real_logits: Tensor, fake_logits: Tensor) -> Tensor:
    """Return the discriminator's loss.

    Source: hinge: Lim & Ye 2017; non_saturating: Goodfellow et al. 2014; relativistic: Huang et al. 2024 (R3GAN), equation 2,
    real and fake paired by their place in the batch.
    """
    if name == "hinge":
        return F.relu(1 - real_logits).mean() + F.relu(1 + fake_logits).mean()
    if name == "non_saturating":
        return F.softplus(-real_logits).mean() + F.softplus(fake_logits).mean()
    return F.softplus(fake_logits - real_logits).mean()


def g_loss(name: LossName, fake_logits: Tensor, real_logits: Tensor | None) -> Tensor:
    """Return the generator's loss; `real_logits` is needed by relativistic only. Sources as in `d_loss`."""
    if name == "hinge":
        return -fake_logits.mean()
    if name == "non_saturating":
        return F.softplus(-fake_logits).mean()
    assert real_logits is not None
    return F.softplus(real_logits - fake_logits).mean()


def gradient_penalty(logits: Tensor, images: Tensor) -> Tensor:
    """Return |d logit / d image|^2 of each image, (B,), differentiable again.

    On real images its mean is R1, on generated ones R2, before the factor gamma / 2.

    Args:
        logits: (B, 1), computed from `images` sample by sample.
        images: (B, 3, H, W), requiring gradients.

    Source: Mescheder et al. 2018, equation 9.
    """
    (gradient,) = torch.autograd.grad(logits.sum(), images, create_graph=True)
    return gradient.float().square().sum((1, 2, 3))


@torch.no_grad()
def add_orthogonal_gradient(network: nn.Module, strength: float) -> None:
    """Add the gradient of BigGAN's orthogonal regulariser to every weight matrix's gradient, in place.

    The regulariser is strength / 2 * |W W^T * (1 - I)|^2 for W (c_out, rest); class embeddings are left alone, as in the
    public code.

    Source: Brock et al. 2019, equation 3, with the off-diagonal mask of section 3.1.
    """
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Linear) and module.weight.grad is not None:
            matrix = module.weight.flatten(1)
            gram = matrix @ matrix.t()
            gram.fill_diagonal_(0)
            module.weight.grad.add_((gram @ matrix).view_as(module.weight), alpha=2 * strength)
