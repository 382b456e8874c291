"""Paths that are told wrong, on purpose: what a mapper is measured with, and what the motion network learns from."""

from __future__ import annotations

import jax.numpy as jnp
import jaxlie
import numpy as np

from spatia_jax.cameras.camera import Cameras


def perturb(cameras: Cameras, clip_of: np.ndarray, degrees: float, percent: float, seed: int) -> Cameras:
    """The path as it would be told by something that drifts: evenly within each clip, always in the same direction.

    Every frame's motion from the one before is turned by its share of `degrees`, about one axis, and displaced, in one
    direction of the camera's axes, by `percent` of its own length. The first frame is told as it is.

    Args:
        clip_of: [t] the number of the clip that each frame belongs to.
    """
    rng = np.random.default_rng([seed, 7])
    axis, direction = (vector / np.linalg.norm(vector) for vector in rng.normal(size=(2, 3)))
    poses = cameras.as_se3()
    steps = jaxlie.SE3(poses.wxyz_xyz[1:]) @ jaxlie.SE3(poses.wxyz_xyz[:-1]).inverse()
    lengths = np.linalg.norm(np.diff(np.asarray(cameras.centers), axis=0), axis=-1)
    share = 1 / np.bincount(clip_of)[clip_of[1:]]
    turn = np.radians(degrees) * share[:, None] * axis
    shift = percent / 100 * lengths[:, None] * direction
    wrong = jaxlie.SE3.exp(jnp.asarray(np.concatenate([shift, turn], axis=-1), jnp.float32)) @ steps
    told = [np.asarray(poses.wxyz_xyz[0])]
    for step in np.asarray(wrong.wxyz_xyz):
        told.append(np.asarray((jaxlie.SE3(jnp.asarray(step)) @ jaxlie.SE3(jnp.asarray(told[-1]))).wxyz_xyz))
    return Cameras.from_se3(jaxlie.SE3(jnp.asarray(np.stack(told))).normalize(), cameras.intrinsics)
