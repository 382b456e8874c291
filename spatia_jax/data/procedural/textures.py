"""Surface textures of the procedural world: small tileable images, baked once per scene on the host.

Every texture is a square RGB image in [0, 1] that wraps around in both directions. It is drawn at twice its size and
averaged down, and carries its whole mip pyramid, so that the renderer never samples it finer than a pixel sees it.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

SIZE = 128
_DRAWN = 2 * SIZE
PALETTE = {
    "red": (0.78, 0.20, 0.17),
    "orange": (0.90, 0.52, 0.18),
    "yellow": (0.92, 0.78, 0.30),
    "green": (0.30, 0.58, 0.30),
    "teal": (0.18, 0.56, 0.56),
    "blue": (0.22, 0.40, 0.75),
    "purple": (0.52, 0.32, 0.66),
    "pink": (0.90, 0.56, 0.64),
    "white": (0.92, 0.91, 0.88),
    "grey": (0.55, 0.56, 0.58),
    "brown": (0.48, 0.32, 0.20),
    "beige": (0.83, 0.74, 0.60),
}


def noise(rng: np.random.Generator, falloff: float = 1.6, stretch: float = 1.0) -> np.ndarray:
    """Tileable multi-octave noise in [0, 1], amplitude 1/frequency^falloff; `stretch` > 1 draws it out along x."""
    y = np.fft.fftfreq(SIZE)[:, None] * SIZE
    x = np.fft.rfftfreq(SIZE)[None] * SIZE * stretch
    amplitude = 1.0 / np.maximum(np.hypot(x, y), 1.0) ** falloff
    amplitude[0, 0] = 0.0
    spectrum = np.fft.rfft2(rng.standard_normal((SIZE, SIZE))) * amplitude
    field = np.fft.irfft2(spectrum, s=(SIZE, SIZE))
    field = np.clip(0.5 + field / (4.0 * field.std() + 1e-9), 0.0, 1.0)
    return field.repeat(_DRAWN // SIZE, 0).repeat(_DRAWN // SIZE, 1)


def _mix(a, b, weight):
    return np.asarray(a) * (1.0 - weight[..., None]) + np.asarray(b) * weight[..., None]


def _grid(rows: float, columns: float):
    """Row and column coordinates of the drawn pixels, counted in cells."""
    y, x = np.mgrid[0:_DRAWN, 0:_DRAWN] / _DRAWN
    return y * rows, x * columns


def _cells(rng, rows, columns, offset=0.0):
    """Cells with every other row shifted by `offset`: distance to the joint along y, along x, and a number per cell."""
    y, x = _grid(rows, columns)
    row = np.floor(y).astype(int)
    x = x + offset * (row % 2)
    column = np.floor(x).astype(int) % columns
    value = rng.random((rows, columns))[row % rows, column]
    return 0.5 - np.abs(y % 1 - 0.5), 0.5 - np.abs(x % 1 - 0.5), value


def plaster(rng, a, b):
    return _mix(a, b, 0.35 * noise(rng, 1.4) + 0.15 * noise(rng, 0.7) - 0.1)


def stripes(rng, a, b):
    _, x = _grid(1, int(rng.integers(3, 7)))
    width = rng.uniform(0.25, 0.6)
    weight = (x % 1 < width).astype(float)
    return _mix(a, b, 0.9 * weight) * (0.88 + 0.2 * noise(rng, 1.2)[..., None])


def checker(rng, a, b):
    y, x = _grid(2, 2)
    weight = ((np.floor(y) + np.floor(x)) % 2) * 0.9
    return _mix(a, b, weight) * (0.82 + 0.3 * noise(rng, 1.5)[..., None])


def brick(rng, a, b):
    rows = int(rng.choice([4, 6, 8]))
    joint_y, joint_x, value = _cells(rng, rows, rows // 2, 0.5)
    mortar = np.minimum(joint_y, joint_x * 2.0) < 0.06
    body = np.asarray(a) * (0.72 + 0.4 * value + 0.25 * (noise(rng, 1.0) - 0.5))[..., None]
    return np.where(mortar[..., None], 0.4 * np.asarray(b) + 0.35, body)


def tiles(rng, a, b):
    count = int(rng.integers(2, 5))
    joint_y, joint_x, value = _cells(rng, count, count)
    grout = np.minimum(joint_y, joint_x) < 0.035
    body = _mix(a, b, 0.5 * value + 0.5 * noise(rng, 1.5)) * (0.85 + 0.2 * value[..., None])
    return np.where(grout[..., None], np.asarray(b) * 0.5, body)


def wood(rng, a, b):
    rows = int(rng.integers(3, 7))
    joint_y, joint_x, value = _cells(rng, rows, 2, 0.5)
    grain = noise(rng, 1.1, 8.0)
    body = _mix(a, b, 0.25 * value + 0.35 * grain) * (0.75 + 0.25 * value + 0.25 * grain)[..., None]
    return np.where(((joint_y < 0.03) | (joint_x < 0.008))[..., None], body * 0.55, body)


def stone(rng, a, b):
    """Irregular flagstones: nearest of scattered points on the torus."""
    points = (np.mgrid[0:4, 0:4].reshape(2, -1).T + rng.uniform(0.15, 0.85, (16, 2))) / 4
    y, x = _grid(1, 1)
    distances = np.stack([np.hypot((y - py + 0.5) % 1 - 0.5, (x - px + 0.5) % 1 - 0.5) for py, px in points])
    owner = distances.argmin(0)
    nearest = np.partition(distances, 1, axis=0)
    value = rng.random(16)[owner]
    body = _mix(a, b, 0.7 * value + 0.2 * noise(rng, 1.2)) * (0.75 + 0.4 * noise(rng, 1.3))[..., None]
    return np.where((nearest[1] - nearest[0] < 0.018)[..., None], np.asarray(b) * 0.4, body)


def marble(rng, a, b):
    y, x = _grid(1, 1)
    vein = np.sin(2 * np.pi * (x + y + 1.6 * noise(rng, 1.8)))
    return _mix(a, b, 0.8 * (1 - np.abs(vein)) ** 3 + 0.2 * noise(rng, 1.2))


def clouds(rng, a, b):
    """Photo-like blotches of two colours and their shade."""
    return _mix(a, b, noise(rng, 1.7)) * (0.65 + 0.55 * noise(rng, 1.3))[..., None]


def plaid(rng, a, b):
    y, x = _grid(*map(int, rng.integers(2, 5, 2)))
    weight = 0.4 * (np.abs(y % 1 - 0.5) < 0.18) + 0.4 * (np.abs(x % 1 - 0.5) < 0.18)
    return _mix(a, b, weight) * (0.9 + 0.2 * noise(rng, 0.6)[..., None])


def dots(rng, a, b):
    y, x = _grid(4, 4)
    inside = np.hypot(y % 1 - 0.5, (x + 0.5 * (np.floor(y) % 2)) % 1 - 0.5) < rng.uniform(0.2, 0.36)
    return _mix(a, b, 0.9 * inside) * (0.88 + 0.2 * noise(rng, 1.2)[..., None])


def leaves(rng, a, b):
    weight = noise(rng, 0.9)
    return _mix(np.asarray(a) * 0.35, np.asarray(a) * 1.15, np.clip(2.2 * weight - 0.6, 0, 1))


def flat(rng, a, b):
    return np.asarray(a) * (0.9 + 0.16 * noise(rng, 1.8)[..., None])


# --- textures that are stretched once over a face ---


def _frame(image, border, colour):
    y, x = _grid(1, 1)
    edge = np.minimum(0.5 - np.abs(y - 0.5), 0.5 - np.abs(x - 0.5))
    return np.where((edge < border)[..., None], np.asarray(colour), image)


def door(rng, a, b):
    y, x = _grid(1, 1)
    image = np.asarray(a) * (0.8 + 0.25 * noise(rng, 1.1, 0.2)[..., None])
    for top, bottom in ((0.08, 0.42), (0.5, 0.92)):
        rim = np.maximum(np.abs(y - (top + bottom) / 2) / (bottom - top), np.abs(x - 0.5) / 0.7) * 2
        image = np.where((rim < 1)[..., None], image * np.where(rim < 0.88, 0.86, 0.6)[..., None], image)
    knob = np.hypot((y - 0.47) * 2, x - 0.9) < 0.035
    return _frame(np.where(knob[..., None], (0.85, 0.75, 0.4), image), 0.03, np.asarray(b) * 0.7)


def window(rng, a, b):
    """A view of sky, hills and trees behind glazing bars."""
    y, x = _grid(1, 1)
    sky = _mix((0.62, 0.80, 0.97), (0.97, 0.97, 0.95), np.clip(y * 1.1 + 0.6 * (noise(rng, 1.9) - 0.5), 0, 1))
    hill = 0.62 + 0.25 * (noise(rng, 2.2)[:1] - 0.5)
    land = _mix((0.36, 0.52, 0.25), (0.60, 0.66, 0.38), noise(rng, 1.2))
    image = np.where((y > hill)[..., None], land, sky)
    columns = int(rng.integers(1, 4))
    bars = np.minimum(np.abs((x * columns) % 1 - 0.5) < 0.5 - 0.02 * columns, np.abs((y * 2) % 1 - 0.5) < 0.46)
    return _frame(np.where(bars[..., None], image, 0.9), 0.035, (0.93, 0.93, 0.91))


def picture(rng, a, b):
    """An abstract landscape in a frame."""
    y, _ = _grid(1, 1)
    image = _mix(a, b, np.clip(noise(rng, 1.8) * 1.6 - 0.3, 0, 1))
    ridge = 0.45 + 0.5 * (noise(rng, 2.2)[:1] - 0.5)
    image = np.where((y > ridge)[..., None], image[::-1] * 0.6 + 0.05, image)
    return _frame(
        _frame(image, 0.12, (0.93, 0.92, 0.88)), 0.045, rng.choice([0.12, 0.4, 0.75]) * np.array([1, 0.9, 0.75])
    )


def books(rng, a, b):
    """Four shelves of books."""
    colours = np.array(list(PALETTE.values()))
    image = np.zeros((_DRAWN, _DRAWN, 3))
    shelf = _DRAWN // 4
    for row in range(4):
        image[row * shelf : (row + 1) * shelf] = np.asarray(a) * 0.25
        x = 10
        while x < _DRAWN - 18:
            width, height = int(rng.integers(7, 16)), int(rng.integers(34, 54))
            colour = colours[rng.integers(len(colours))] * rng.uniform(0.6, 1.0)
            image[(row + 1) * shelf - height : (row + 1) * shelf, x : x + width - 1] = colour
            x += width + (12 if rng.random() < 0.12 else 0)
        image[row * shelf : row * shelf + 7] = np.asarray(a) * 0.9
    return _frame(image, 0.035, np.asarray(a) * 0.8)


def drawers(rng, a, b):
    """A cabinet front: two columns of drawers with knobs."""
    rows = int(rng.integers(2, 5))
    joint_y, joint_x, value = _cells(rng, rows, 2)
    wooden = np.asarray(a) * (0.78 + 0.1 * value + 0.25 * noise(rng, 1.1, 6.0))[..., None]
    image = np.where((np.minimum(joint_y, joint_x * 2) < 0.05)[..., None], wooden * 0.5, wooden)
    knob = (joint_y > 0.44) & (joint_x > 0.46)
    return np.where(knob[..., None], np.asarray(b) * 0.9, image)


def crate(rng, a, b):
    y, x = _grid(1, 1)
    image = wood(rng, a, b)
    brace = np.abs(y - x) < 0.08
    image = np.where(brace[..., None], image[:, ::-1] * 1.15, image)
    return _frame(image, 0.09, np.asarray(a) * 0.75)


def facade(rng, a, b):
    """The front of a house: a wall with rows of windows."""
    wall = brick(rng, a, b) if rng.random() < 0.5 else plaster(rng, a, b)
    y, x = _grid(3, 4)
    glass = (np.abs(y % 1 - 0.5) < 0.27) & (np.abs(x % 1 - 0.5) < 0.2)
    trim = (np.abs(y % 1 - 0.5) < 0.31) & (np.abs(x % 1 - 0.5) < 0.24)
    lit = np.array([0.35, 0.42, 0.5]) * (0.8 + 0.4 * noise(rng, 1.5)[..., None])
    return np.where(glass[..., None], lit, np.where(trim[..., None], 0.88, wall))


def sky(rng, a, b):
    """From the horizon (bottom row) to the zenith (top row), with clouds."""
    y, _ = _grid(1, 1)
    clear = _mix(a, b, np.clip(1.35 * y, 0, 1) ** 1.5)
    cloud = np.clip(3.0 * noise(rng, 1.7, 0.5) - 1.45, 0, 1) * 0.75 * np.clip((y - 0.1) * 4, 0, 1) * (y < 0.97)
    return _mix(clear, (0.98, 0.97, 0.96), cloud)


def bake(draw: Callable, rng: np.random.Generator, a, b) -> np.ndarray:
    """Draw a texture and its mip pyramid, packed as one uint32 (r | g << 8 | b << 16) a texel, level after level.

    Returns:
      uint32 [(4 SIZE² - 1) / 3]: level l has SIZE >> l texels a side and starts at 4 (SIZE² - (SIZE >> l)²) / 3.
    """
    level = np.clip(np.broadcast_to(draw(rng, np.asarray(a), np.asarray(b)), (_DRAWN, _DRAWN, 3)), 0.0, 1.0)
    packed = []
    while level.shape[0] > 1:
        level = (level[::2, ::2] + level[1::2, ::2] + level[::2, 1::2] + level[1::2, 1::2]) / 4
        r, g, b = np.moveaxis(np.round(level * 255).astype(np.uint32), -1, 0)
        packed.append((r | g << 8 | b << 16).ravel())
    return np.concatenate(packed)
