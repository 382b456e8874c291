"""Where the pixels of one image are seen in another, without any learned weights.

Coarse to fine over an image pyramid. At the coarsest level every pixel is compared with all places within reach
(normalised correlation of windows); from there on the windows around the points of a grid are tracked down the levels
by inverse-compositional Gauss-Newton steps (Baker and Matthews 2004; the patch search of DIS flow, arXiv 1603.03590,
without its variational end). After each level a point that its neighbours contradict takes their median. Both
directions are matched: a match counts by how nearly the way back leads home, and by how well its window fixes it.

Everything has static shapes, so a matcher runs inside `jit` and `scan`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from spatia_jax.errors import InputError


class Matcher(Protocol):
    """A front end: correspondences between images, for `bundle_adjustment.Matches`."""

    def __call__(
        self,
        images: Float[Array, "v h w 3"],
        pairs: Int[Array, "p 2"],
        grid: tuple[int, int],
        start: Float[Array, "p 2 gh gw 2"] | None = None,
    ) -> tuple[Float[Array, "p 2 gh gw 2"], Float[Array, "p 2 gh gw 2"]]:
        """Matches of every pair in both directions.

        Args:
            images: colours in [0, 1].
            pairs: (i, j); direction 0 is i -> j, direction 1 is j -> i.
            grid: (rows, columns) of the pixels that are matched; the images' sizes are multiples of it.
            start: where the matches are expected, to be refined; None: they are searched.

        Returns:
            Matches and their weights (0..1), in pixels of the grid.
        """
        ...


@dataclass(frozen=True)
class PatchMatcher:
    """Settings of the matcher without weights; calling it matches (see `Matcher`).

    Attributes:
        coarsest_rows: the pyramid is halved while the image is at least this high.
        finest: level of the last refinement; 0 is the image itself, 1 half its size.
        reach: pixels of the coarsest level that the search goes in each direction.
        radius: of the tracked windows, in pixels of each level.
        steps: Gauss-Newton steps at each level.
        restart_levels: how many of the finest levels refine a given start.
        noise: standard deviation of grey values that a window has to overcome.
        consistency_px: distance from home, in pixels of an image of height 480 (in proportion, down to half), at which
            a match followed back has half its weight; none beyond three times that.
    """

    coarsest_rows: int = 24
    finest: int = 1
    reach: int = 5
    radius: int = 4
    steps: int = 6
    restart_levels: int = 2
    noise: float = 0.02
    consistency_px: float = 1.0

    def __post_init__(self):
        if min(self.radius, self.steps, self.reach) < 1:
            raise InputError(f"radius {self.radius}, steps {self.steps} and reach {self.reach} have to be at least 1")

    def __call__(self, images, pairs, grid, start=None):
        height, width = images.shape[1:3]
        rows, columns = grid
        if height % rows or width % columns or height // rows != width // columns:
            raise InputError(f"images of {width}x{height} on a grid of {columns}x{rows}; expected a whole factor")
        step = height // rows
        levels = self.pyramid(images)
        if start is not None:
            start = (start + 0.5) * step - 0.5

        def one_pair(given):
            (i, j), expected = given
            both = [jax.tree.map(lambda level, n=n: level[n], levels) for n in (i, j)]
            return self._match_both(*both, (rows, columns, step), expected)

        matches, weights = lax.map(one_pair, (pairs, start))
        return (matches + 0.5) / step - 0.5, weights

    def pyramid(self, images: Float[Array, "v h w 3"]) -> list[Float[Array, "v _ _"]]:
        """Grey images, each half the one before, smoothed before it is halved."""
        level = images @ jnp.array([0.299, 0.587, 0.114])
        levels = [level]
        while level.shape[1] % 2 == 0 and level.shape[2] % 2 == 0 and level.shape[1] // 2 >= self.coarsest_rows:
            level = _halve(level)
            levels.append(level)
        return levels

    def _match_both(self, source, target, grid, expected):
        """Matches [2, rows, columns, 2] in pixels of the image, and weights, of one pair of pyramids."""
        starts = (None, None) if expected is None else expected
        found = [
            self._track(a, b, grid, start)
            for (a, b), start in zip(((source, target), (target, source)), starts, strict=True)
        ]
        (there, certain_there), (back, certain_back) = found
        scale = self.consistency_px * max(source[0].shape[0] / 480, 0.5)  # small images are not matched to less
        weights = [
            certain * _consistency(one, other, grid, scale)[..., None]
            for one, other, certain in ((there, back, certain_there), (back, there, certain_back))
        ]
        return jnp.stack([there, back]), jnp.stack(weights)

    def _track(self, source, target, grid, start):
        """Matches [rows, columns, 2] of grid points in pixels of the image, and how certain each coordinate is."""
        rows, columns, step = grid
        x, y = jnp.meshgrid(jnp.arange(columns), jnp.arange(rows))
        points = (jnp.stack([x, y], axis=-1) + 0.5) * step - 0.5
        finest = min(self.finest, len(source) - 1)
        if start is None:
            flow, levels = self._search(source[-1], target[-1], points, 2 ** (len(source) - 1)), len(source)
        else:
            flow, levels = start - points, min(finest + self.restart_levels, len(source))
        certain = jnp.zeros_like(flow)
        for level in range(levels - 1, finest - 1, -1):
            flow, certain = self._refine(source[level], target[level], points, flow, 2**level)
            flow = _outvoted(flow, 2.0 * 2**level)
        return points + flow, certain

    def _search(self, source, target, points, scale):
        """Flow at the coarsest level: the best of all shifts within reach, by correlation of normalised windows."""
        size = 2 * self.radius + 1
        a, b = _normalised(source, size), _normalised(target, size)
        shifts = jnp.arange(-self.reach, self.reach + 1)
        height, width = source.shape
        padded = jnp.pad(b, self.reach)

        def score(shift):
            moved = lax.dynamic_slice(padded, shift + self.reach, (height, width))
            # Small shifts first: a flat window prefers to stay.
            return _box(a * moved, size) - 1e-3 * jnp.abs(shift).sum()

        candidates = jnp.stack(jnp.meshgrid(shifts, shifts, indexing="ij"), axis=-1).reshape(-1, 2)
        best = candidates[jnp.argmax(lax.map(score, candidates), axis=0)][..., ::-1] * 1.0  # (row, column) -> (x, y)
        at = jnp.round((points + 0.5) / scale - 0.5).astype(jnp.int32)
        flow = best[jnp.clip(at[..., 1], 0, height - 1), jnp.clip(at[..., 0], 0, width - 1)]
        return _outvoted(flow * scale, 1.0 * scale)

    def _refine(self, source, target, points, flow, scale):
        """Inverse-compositional steps at one level; flow stays in pixels of the image."""
        centers = (points + 0.5) / scale - 0.5
        window = 2 * self.radius + 1
        template = _windows(source, centers, window + 2)
        gradient = (
            jnp.stack(
                [
                    template[..., 1:-1, 2:] - template[..., 1:-1, :-2],
                    template[..., 2:, 1:-1] - template[..., :-2, 1:-1],
                ],
                -1,
            )
            / 2
        )
        template = _centred(template[..., 1:-1, 1:-1])
        ramp = jnp.exp(-0.5 * jnp.square(jnp.arange(-self.radius, self.radius + 1) / (0.6 * self.radius)))
        weight = ramp[:, None] * ramp
        hessian = jnp.einsum("...ijc,...ijd,ij->...cd", gradient, gradient, weight)
        inverse = _inverse_2x2(hessian + self.noise**2 * weight.sum() * jnp.eye(2))
        steepest = gradient * weight[..., None]

        def step(shift, _):
            error = _centred(_windows(target, centers + shift, window)) - template
            change = jnp.einsum("...cd,...ijd,...ij->...c", inverse, steepest, error)
            return shift - jnp.clip(change, -1.0, 1.0), None

        before = flow / scale
        shift, _ = lax.scan(step, before, None, length=self.steps)
        far = jnp.abs(shift - before).max(-1, keepdims=True) > self.radius  # it has slid away: no match of this window
        shift = jnp.where(far, before, shift)
        error = _centred(_windows(target, centers + shift, window)) - template
        noise = self.noise**2 + (jnp.square(error) * weight).sum((-2, -1)) / weight.sum()
        # Each coordinate as certain as its variance, the other one free, allows: half where it is one pixel.
        variance = jnp.stack([inverse[..., 0, 0], inverse[..., 1, 1]], -1) * noise[..., None] * 25
        certain = jnp.where(far, 0.0, 1 / (1 + variance))
        height, width = target.shape
        landed = centers + shift
        inside = (landed >= 0).all(-1) & (landed[..., 0] <= width - 1) & (landed[..., 1] <= height - 1)
        return shift * scale, certain * inside[..., None]


def _halve(images: Float[Array, "v h w"]) -> Float[Array, "v h2 w2"]:
    """Half the size; pixel centres stay where they are in normalised coordinates."""
    kernel = jnp.array([1.0, 3.0, 3.0, 1.0]) / 8
    for axis in (1, 2):
        pad = [(0, 0)] * 3
        pad[axis] = (1, 1)
        padded = jnp.pad(images, pad, mode="edge")
        size = images.shape[axis]
        taps = [kernel[k] * lax.slice_in_dim(padded, k, k + size - 1, 2, axis) for k in range(4)]
        images = taps[0] + taps[1] + taps[2] + taps[3]
    return images


def _box(image: Float[Array, "h w"], size: int) -> Float[Array, "h w"]:
    for axis in (0, 1):
        window = [1, 1]
        window[axis] = size
        image = lax.reduce_window(image, 0.0, lax.add, window, (1, 1), "SAME")
    return image / size**2


def _normalised(image: Float[Array, "h w"], size: int) -> Float[Array, "h w"]:
    """Without the local mean, and of local variance one where there is any."""
    share = _box(jnp.ones_like(image), size)
    image = image - _box(image, size) / share
    return image / jnp.sqrt(_box(image**2, size) / share + 1e-4)


def _centred(windows: Float[Array, "*n k k"]) -> Float[Array, "*n k k"]:
    return windows - windows.mean((-2, -1), keepdims=True)


def _windows(image: Float[Array, "h w"], centers: Float[Array, "r c 2"], size: int) -> Float[Array, "r c k k"]:
    """Windows around points between pixels: one shared fraction a window, so one slice and four products."""
    height, width = image.shape
    margin = size
    padded = jnp.pad(image, margin, mode="edge")
    limit = jnp.array([width - 1, height - 1]) + margin / 2
    position = jnp.clip(centers, -margin / 2, limit) + margin - size // 2
    corner = jnp.floor(position)
    fraction = (position - corner)[..., None, None]
    # By single pixels: XLA's CPU gather of whole windows is a loop with one iteration a window.
    columns, rows = jnp.moveaxis(corner.astype(jnp.int32), -1, 0)
    offsets = jnp.arange(size + 1)
    flat = (rows[..., None, None] + offsets[:, None]) * padded.shape[1] + columns[..., None, None] + offsets
    cut = padded.ravel().at[flat].get(mode="clip")
    fx, fy = fraction[..., 0, :, :], fraction[..., 1, :, :]
    across = cut[..., :-1] * (1 - fx) + cut[..., 1:] * fx
    return across[..., :-1, :] * (1 - fy) + across[..., 1:, :] * fy


def _inverse_2x2(matrix: Float[Array, "*n 2 2"]) -> Float[Array, "*n 2 2"]:
    a, b, d = matrix[..., 0, 0], matrix[..., 0, 1], matrix[..., 1, 1]
    adjugate = jnp.stack([jnp.stack([d, -b], -1), jnp.stack([-b, a], -1)], -2)
    return adjugate / (a * d - b * b)[..., None, None]


def _outvoted(flow: Float[Array, "r c 2"], tolerance: float) -> Float[Array, "r c 2"]:
    """Flow in which a point further than `tolerance` from the median of its 3 x 3 neighbours takes that median."""
    padded = jnp.pad(flow, ((1, 1), (1, 1), (0, 0)), mode="edge")
    rows, columns = flow.shape[:2]
    around = jnp.stack([padded[i : i + rows, j : j + columns] for i in range(3) for j in range(3)])
    median = jnp.sort(around, axis=0)[4]
    return jnp.where(jnp.abs(flow - median).max(-1, keepdims=True) > tolerance, median, flow)


def _consistency(there: Array, back: Array, grid: tuple[int, int, int], scale: float) -> Float[Array, "r c"]:
    """1 / (1 + (e / scale)^2), e the distance from home of a match followed back; 0 beyond 3 scales or the image."""
    rows, columns, step = grid
    x, y = jnp.meshgrid(jnp.arange(columns), jnp.arange(rows))
    home = (jnp.stack([x, y], axis=-1) + 0.5) * step - 0.5
    place = (there + 0.5) / step - 0.5
    flow_back = back - home
    corner = jnp.clip(jnp.floor(place), 0, jnp.array([columns - 2, rows - 2])).astype(jnp.int32)
    fraction = jnp.clip(place - corner, 0, 1)
    total = jnp.zeros_like(flow_back)
    for dx in (0, 1):
        for dy in (0, 1):
            share = jnp.where(dx, fraction[..., :1], 1 - fraction[..., :1]) * jnp.where(
                dy, fraction[..., 1:], 1 - fraction[..., 1:]
            )
            total += share * flow_back[corner[..., 1] + dy, corner[..., 0] + dx]
    error = jnp.linalg.norm(there + total - home + 1e-9, axis=-1)
    inside = (place >= 0).all(-1) & (place[..., 0] <= columns - 1) & (place[..., 1] <= rows - 1)
    return jnp.where(inside & (error < 3 * scale), 1 / (1 + jnp.square(error / scale)), 0.0)
