"""How a sequence is cut into chunks, decays between the tokens of one, and the gradients of their logarithms.

The recurrences that are computed in chunks multiply their state by exp(g) at each token, with g <= 0. From token j to a
later token i of the same chunk that is exp(cum_i - cum_j), where `cum` is the sum of g up to and including a token.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


class Chunks:
    """The sizes of a sequence that is cut into chunks.

    Attributes:
        b, t, h, p: batch, tokens, heads and the size of a head, of what is written to the state.
        g, n: heads that several of those share, and their size, of what it is written under.
        r, c, l: heads that share one, chunks, tokens of a chunk.
    """

    def __init__(self, values: Tensor, keys: Tensor, chunk: int) -> None:
        self.b, self.t, self.h, self.p = values.shape
        self.g, self.n = keys.shape[2:]
        self.r, self.c, self.l = self.h // self.g, -(-self.t // chunk), chunk

    def filled(self, tokens: Tensor, filling: float = 0.0) -> Tensor:
        """[b, t, ...] as [b, c, l, ...], with `filling` at the end."""
        missing = self.c * self.l - self.t
        if missing:
            tokens = torch.cat([tokens, tokens.new_full((self.b, missing, *tokens.shape[2:]), filling)], dim=1)
        return tokens.unflatten(1, (self.c, self.l))


def pairwise(late: Tensor, early: Tensor, dtype: torch.dtype) -> Tensor:
    """`exp(late_i - early_j)` for i >= j, else 0.

    Args:
        late, early: [..., tokens] in float64, since they grow large where the decay is strong, and what counts are
            small differences between them.
        dtype: of the result, in which the differences are taken without that loss.

    Returns:
        [..., tokens, tokens].
    """
    rounded_late, rounded_early = late.to(dtype), early.to(dtype)
    exponents = rounded_late[..., :, None] - rounded_early[..., None, :]
    if dtype != torch.float64:  # what rounding the two has lost
        exponents += (late - rounded_late).to(dtype)[..., :, None]
        exponents -= (early - rounded_early).to(dtype)[..., None, :]
    # The upper triangle may overflow, so it is overwritten, not multiplied by zero.
    return without_subnormals(exponents.exp_().tril_())


def without_subnormals(decays: Tensor) -> Tensor:
    """Set to 0, in place, decays so small that products with them are subnormal, which slows a CPU down many times.

    They are far below the rounding of anything that such a product is added to.
    """
    return F.threshold(decays, 1e8 * torch.finfo(decays.dtype).tiny, 0.0, inplace=True)


def crossing(pairs: Tensor) -> Tensor:
    """Sum of `pairs[i, j]` over j < t <= i, for each t; [..., l, l], which is overwritten, to [..., l].

    The difference of two sums over all tokens would do, but where the decay is strong the small result would drown in
    their rounding.
    """
    up_to = pairs.cumsum_(-1).tril_(-1).sum(-2)
    return F.pad(up_to[..., :-1], (1, 0))


def sum_from(values: Tensor) -> Tensor:
    """Sum of each token's value and those after it, along the last dimension."""
    return values.flip(-1).cumsum(-1).flip(-1)


def sum_before(values: Tensor) -> Tensor:
    """Sum of the values before each token, along the last dimension."""
    return F.pad(values[..., :-1], (1, 0)).cumsum(-1)
