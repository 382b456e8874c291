"""DROID-SLAM's bundle adjustment (arXiv 2108.10869, section 3.2), step for step, for use with its network.

It differs from `bundle_adjustment.adjust` in its damping alone: every step is taken, poses are damped by a constant
and a share of their own curvature, and depths by what the network says of each pixel.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import jax.numpy as jnp
import jaxlie
from jax import lax
from jaxtyping import Array, Bool, Float

from spatia_jax.mapper import normal_equations as system
from spatia_jax.mapper.normal_equations import Unknowns
from spatia_jax.mapper.problem import Matches, Priors, Variables

WEIGHT_SCALE = 1e-3  # of the network's confidences


@dataclass(frozen=True)
class DroidDamping:
    """Attributes:
    constant, share: what is added to the diagonal of the poses' system: constant + share * diagonal.
    floor: added to every pixel's damping.
    max_disparity: a pixel that comes nearer than its inverse is given up (inverse depth 0).
    """

    constant: float = 0.1
    share: float = 1e-4
    floor: float = 1e-7
    max_disparity: float = 10.0


def droid_adjust(
    matches: Matches,
    damping: Float[Array, "v h w"],
    start: Variables,
    fixed: Bool[Array, " v"],
    iterations: int = 2,
    config: DroidDamping = DroidDamping(),
) -> Variables:
    """Gauss-Newton steps from `start`.

    Args:
        matches: weights are the network's confidences in (0, 1).
        damping: eta of every pixel.
        fixed: poses that hold the gauge.
        iterations: the original takes 2 for each step of the network.
    """
    packed = system.pack(replace(matches, weights=WEIGHT_SCALE * matches.weights), len(fixed))
    depth_damping = damping.reshape(len(fixed), -1) + config.floor
    priors, unknowns, own = Priors.none(start), Unknowns(), jnp.arange(1, 7)

    def step(variables: Variables, _):
        systems = system.build(variables, priors, packed, unknowns, None)
        diagonal = jnp.diagonal(systems.information, axis1=1, axis2=2)
        whole = jnp.zeros(1 + 6 * len(fixed)).at[systems.index].add(diagonal, mode="drop")[1:].reshape(-1, 6)
        information = systems.information.at[:, own, own].add(config.constant + config.share * whole)
        damped = replace(systems, information=information, depth=systems.depth + depth_damping)
        change = system.solve(damped, system.reduce(damped, 0.0, fixed, unknowns), unknowns)
        moved = variables.inverse_depth + change.inverse_depth.reshape(variables.inverse_depth.shape)
        moved = jnp.maximum(jnp.where(moved > config.max_disparity, 0.0, moved), 0.0)
        poses = (jaxlie.SE3.exp(change.poses) @ variables.poses).normalize()
        return replace(variables, poses=poses, inverse_depth=moved), None

    return lax.scan(step, start, None, length=iterations)[0]
