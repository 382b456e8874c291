"""What a block's forward pass leaves for its backward pass, by name; the rest is computed again.

    none        everything stays
    dots        outputs of linear layers and of attention: norms, activations and sums are computed again
    hidden      as attention, and the hidden layer of the feed-forward, its largest product
    attention   the block's input and the output of attention, whose pass over all pairs of tokens is not repeated
    block       the block's input
    offload     the block's input, in the host's memory while it waits

From top to bottom they need less memory and more time.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, get_args

import jax
from jax.ad_checkpoint import checkpoint_name

Remat = Literal["none", "dots", "hidden", "attention", "block", "offload"]
ATTENTION = "attention"  # what attention's backward pass needs beside its inputs
HIDDEN = "hidden"  # before the activation
BLOCK_INPUT = "block_input"

_SAVE = jax.checkpoint_policies
_POLICIES: dict[str, Callable[..., Any]] = {
    "dots": _SAVE.save_from_both_policies(
        _SAVE.dots_with_no_batch_dims_saveable, _SAVE.save_only_these_names(ATTENTION)
    ),
    "hidden": _SAVE.save_only_these_names(ATTENTION, HIDDEN),
    "attention": _SAVE.save_only_these_names(ATTENTION),
    "block": _SAVE.nothing_saveable,
    "offload": _SAVE.save_and_offload_only_these_names(
        names_which_can_be_saved=[], names_which_can_be_offloaded=[BLOCK_INPUT],
        offload_src="device", offload_dst="pinned_host",
    ),
}  # fmt: skip
REMATS: tuple[Remat, ...] = get_args(Remat)


def rematerialised(body: Callable, remat: Remat) -> Callable:
    """The body `(carry, layer) -> (carry, output)` of a scan over blocks, which keeps no more than `remat` says."""
    if remat == "none":
        return body

    def named(carry: Any, layer: Any) -> Any:
        return body(jax.tree.map(lambda x: checkpoint_name(x, BLOCK_INPUT), carry), layer)

    # The loop itself keeps XLA from merging the two passes.
    return jax.checkpoint(named, policy=_POLICIES[remat], prevent_cse=False)
