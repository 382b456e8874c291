"""Camera paths as curves in SE(3): interpolation between key poses, timing, retracing, and how smooth a path is.

Between two poses a camera follows the geodesic T0 exp(t log(T0^-1 T1)), a screw motion of constant velocity. It is the
same curve whether the poses are camera-to-world or world-to-camera.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import jaxlie
from jaxtyping import Array, Float

from spatia_jax.cameras.camera import Cameras
from spatia_jax.errors import InputError


def linear(t: float | Array) -> float | Array:
    """Constant speed."""
    return t


def ease(t: float | Array) -> float | Array:
    """Speed up, slow down: 0..1 to 0..1 with no speed at both ends."""
    return t * t * (3 - 2 * t)


def interpolate(keyposes: Cameras, num_frames: int, timing: Callable = ease) -> Cameras:
    """A path through key poses, each stretch taking the same time.

    Args:
        keyposes: [k] views, k >= 1; neighbours less than half a turn apart.
        timing: progress along the whole path as a function of time, both 0..1.

    Returns: [num_frames] views, the first and last at the first and last key pose.

    Raises: InputError if there is no key pose or no frame.
    """
    if num_frames < 1 or not keyposes.shape or not len(keyposes):
        raise InputError(f"{num_frames} frames through cameras of shape {keyposes.shape}, expected at least 1 of both")
    return along(keyposes, timing(jnp.linspace(0.0, 1.0, num_frames)))


def resample(cameras: Cameras, num_frames: int) -> Cameras:
    """The same path in another number of frames, at the same relative speeds."""
    return interpolate(cameras, num_frames, timing=linear)


def there_and_back(cameras: Cameras) -> Cameras:
    """A path [n] and the way back [n - 1]: 2n - 1 views, the last exactly the first."""
    return Cameras.concatenate([cameras, cameras[-2::-1]]) if len(cameras) > 1 else cameras


def twists(cameras: Cameras) -> Float[Array, "steps 6"]:
    """From each view to the next, in camera coordinates: translation (metres or scene units), rotation (radians)."""
    world_from_cam = cameras.as_se3().inverse()
    before, after = (jaxlie.SE3(world_from_cam.wxyz_xyz[part]) for part in (slice(None, -1), slice(1, None)))
    return (before.inverse() @ after).log()


def smoothness(cameras: Cameras) -> Float[Array, " 2"]:
    """The largest change of motion between neighbouring frames: metres (or scene units) and radians per frame^2.

    Zero for a path of constant velocity; a cut or a corner stands out against `twists`.
    """
    change = jnp.diff(twists(cameras), axis=0).reshape(-1, 2, 3)
    return jnp.max(jnp.linalg.norm(change, axis=-1), axis=0, initial=0.0)


@jax.jit
def along(keyposes: Cameras, progress: Float[Array, " t"]) -> Cameras:
    """Views at 0..1 of the way through all key poses."""
    last = len(keyposes) - 1
    position = progress * last
    start = jnp.clip(jnp.floor(position).astype(jnp.int32), 0, max(last - 1, 0))
    end = jnp.minimum(start + 1, last)
    fraction = (position - start)[:, None]
    with jax.default_matmul_precision("highest"):
        pose = keyposes.as_se3()
        before, after = jaxlie.SE3(pose.wxyz_xyz[start]), jaxlie.SE3(pose.wxyz_xyz[end])
        between = before @ jaxlie.SE3.exp(fraction * (before.inverse() @ after).log())
    intrinsics = keyposes.intrinsics[start] * (1 - fraction) + keyposes.intrinsics[end] * fraction
    return Cameras.from_se3(between, intrinsics)
