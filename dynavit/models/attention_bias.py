"""How the tokens that count are told to attention.

Shapes: B batch, P prefix tokens, n tokens present beside the prefix.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import pad

from dynavit.functional import log_mask

MaskForm = Literal["key", "identity"]


def attention_mask(mask: Tensor, num_prefix: int, training: bool, form: MaskForm) -> Tensor:
    """Hide tokens ``(B, n)`` from attention by their mask.

    In evaluation this is a boolean mask ``(B, 1, 1, P + n)``. In training it is the additive
    bias :func:`~dynavit.functional.log_mask`, either over keys alone, ``(B, 1, 1, P + n)``,
    or with DynamicViT's identity term, ``(B, 1, P + n, P + n)``, by which a token always sees itself.
    The values agree in every row that is read; the gradients to kept tokens do not.
    """
    keys = pad(mask, (num_prefix, 0), value=1.0)[:, None, None, :]
    if not training:
        return keys > 0.5
    if form == "identity":
        itself = torch.eye(keys.shape[-1], dtype=keys.dtype, device=keys.device)
        keys = keys + (1 - keys) * itself
    return log_mask(keys)


def proportional_bias(size: Tensor, num_prefix: int, dtype: torch.dtype) -> Tensor:
    """Return the bias ``(B, 1, 1, P + n)`` by which a key that stands for several patches counts as often.

    ToMe's proportional attention, Bolya et al. 2023, https://arxiv.org/abs/2210.09461, section 3.

    Args:
        size: ``(B, n)``, how many patches each token was merged from.
        num_prefix: P.
        dtype: of the tokens.
    """
    return pad(size.log(), (num_prefix, 0))[:, None, None, :].to(dtype)
