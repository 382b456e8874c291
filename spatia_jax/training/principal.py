"""A start for training an autoencoder: principal components, written into its own weights.

The principal components of blocks of 2 frames of 16 x 16 pixels bring the procedural world back at 28.7 dB from 48
numbers. An autoencoder that starts from random weights needs thousands of steps to come near 24: it has to discover
linear algebra through norms, SiLUs and a pyramid. So the linear solution is written into the weights, and training
begins where that ends. For patches of 16 pixels and one halving of time:

    conv_in           patch -> its principal components s                                            (centre tap)
    time_conv         two frames of s -> mean m = (s1 + s2) / 2 and half difference d = (s1 - s2) / 2; the strongest
                      z_dim of both are kept. The first frame of a video skips this layer: its s stand where m do
    norm, SiLU, conv  all channels are offset to where SiLU has no curvature, by so much that the norm divides all
                      pixels nearly alike; the convolution behind them undoes the rest, by least squares
    decoder           the same backwards

(Enlarging by repetition and a 3 x 3 convolution cannot place sub-pixels freely: with patches of 8 and a halving of
space as well, the same start reaches 23.6 dB. That is why the tiny autoencoder halves only time.)
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Float, UInt8

from spatia_jax.errors import InputError
from spatia_jax.model import Model, Params
from spatia_jax.models.autoencoder import AutoencoderConfig, patchify
from spatia_jax.models.autoencoder_layers import Stream
from spatia_jax.pixels import to_signed

_CENTER = 2.4  # where the curvature of SiLU vanishes
_SPREAD = 0.3  # spread of the strongest channel, in units of the offset that brings it there
_RIDGE = 1e-6
_ROWS = 60_000  # samples of a least-squares fit

Matrix = Float[np.ndarray, "n m"]


def principal_start(model: Model, params: Params, videos: UInt8[np.ndarray, "n t h w 3"], seed: int = 0) -> Params:
    """Parameters of an autoencoder that reconstructs linearly.

    Args:
        params: fresh ones: residual branches end in zeros.
        videos: a sample of the training data, t odd; some tens of sequences.

    Raises:
        InputError: see `check`.
    """
    config = model.config.autoencoder
    check(config)
    rng = np.random.default_rng(seed)
    params = jax.tree.map(np.array, params)
    patches = np.asarray(jax.jit(lambda v: patchify(to_signed(v), config.patch_size))(videos))
    codes, means = _write_encoder(params["encoder"], config, patches)

    scale = float(np.sqrt(np.mean(np.square(codes))))
    features = _encoder_features(model, params, patches)
    fit = _least_squares(_rows(features), _rows(codes) / scale, rng)
    head = params["encoder"]["conv_out"]
    head["kernel"][:] = 0
    head["kernel"][2, 1, 1, :, : config.z_dim], head["bias"][: config.z_dim] = fit[:-1], fit[-1]
    params["to_moments"] = {"kernel": np.eye(2 * config.z_dim), "bias": np.zeros(2 * config.z_dim)}
    params["from_latents"] = {"kernel": scale * np.eye(config.z_dim), "bias": np.zeros(config.z_dim)}
    _write_decoder(model, params, patches, codes, means, rng)
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), params)


def check(config: AutoencoderConfig) -> None:
    """Raises InputError when this autoencoder cannot start from principal components."""
    plain = len(config.dim_mult) == 2 and len(set(config.dim_mult)) == 1
    if not plain or config.temporal_downsample != (True,) or config.spatial_downsample != (False,):
        raise InputError(
            "a principal start needs an autoencoder of two stages of one width that halves time only: "
            "dim_mult (1, 1), temporal_downsample (True,), spatial_downsample (False,)"
        )
    width = min(config.dim, config.dec_dim) * config.dim_mult[0]
    if config.z_dim > width:
        raise InputError(f"a principal start needs at least as many channels ({width}) as latents ({config.z_dim})")


def _write_encoder(encoder: Params, config, patches: np.ndarray) -> tuple[np.ndarray, int]:
    """Fills all but the head. Returns codes [n, f, p, q, z], and how many codes are means."""
    width = config.dim * config.dim_mult[0]
    basis, center = _principal(patches, width)
    encoder["conv_in"]["kernel"][:] = 0
    middle = config.patch_kernel // 2
    encoder["conv_in"]["kernel"][-1, middle, middle], encoder["conv_in"]["bias"] = basis, -center @ basis
    spatial = (patches - center) @ basis
    down = encoder["stages"][0]["resample"]
    down["conv"]["kernel"][:] = 0
    down["conv"]["kernel"][1, 1] = np.eye(width) / 2  # the shortcut brings the other half of a first frame
    first, second = spatial[:, 1::2], spatial[:, 2::2]
    spread = np.concatenate([_rows(first + second).std(0), _rows(first - second).std(0)]) / 2
    means = int(np.sum(np.argsort(-spread)[: config.z_dim] < width))
    differences = config.z_dim - means
    mix = np.zeros((2, width, width))
    for slot in range(means):
        mix[:, slot, slot] = 0.5
    for slot in range(differences):
        mix[:, slot, means + slot] = 0.5, -0.5
    time = down["time_conv"]["kernel"]
    time[:] = 0
    time[1:] = 2 * mix - np.eye(width)  # less the shortcut: half of both frames
    pairs = first @ mix[0] + second @ mix[1]
    return np.concatenate([spatial[:, :1], pairs], axis=1)[..., : config.z_dim], means


def _write_decoder(model: Model, params: Params, patches, codes, means: int, rng) -> None:
    config, decoder = model.config.autoencoder, params["decoder"]
    width, latents = config.dec_dim * config.dim_mult[0], config.z_dim
    decoder["conv_in"]["kernel"][:] = 0
    decoder["conv_in"]["kernel"][2, 1, 1] = np.eye(latents, width)
    split = np.zeros((width, 2, width))
    split[range(means), :, range(means)] = 1.0
    for slot in range(latents - means):
        split[means + slot, :, slot] = 1.0, -1.0
    up = decoder["stages"][0]["resample"]  # beside a shortcut that repeats each code in both of its frames
    up["time_conv"]["kernel"][:] = 0
    up["time_conv"]["kernel"][2] = (2 * split - np.eye(width)[:, None]).reshape(width, -1)
    up["conv"]["kernel"][:] = 0
    up["conv"]["kernel"][1, 1] = np.eye(width)

    features = _decoder_features(model, params, codes)
    fit = _fit_conv(features, patches, rng)
    head = decoder["conv_out"]
    head["kernel"][:] = 0
    head["kernel"][2], head["bias"] = fit[:-1].reshape(3, 3, width, -1), fit[-1]


def _encoder_features(model: Model, params: Params, patches: np.ndarray) -> np.ndarray:
    """What the encoder's last convolution sees."""
    encoder = params["encoder"]
    return _features(model, params, "encoder", patches, encoder["middle"]["after"])


def _decoder_features(model: Model, params: Params, codes: np.ndarray) -> np.ndarray:
    """What the decoder's last convolution sees."""
    blocks = params["decoder"]["stages"][1]["blocks"]
    return _features(model, params, "decoder", codes, blocks[model.config.autoencoder.num_res_blocks])


def _features(model: Model, params: Params, half: str, inputs: np.ndarray, last: Params) -> np.ndarray:
    """Runs encoder or decoder up to its last convolution.

    On the way it offsets all channels to where SiLU has no curvature, through the bias of the trunk's last block and
    the scale of the norm.
    """
    last["conv2"]["bias"][:] = 0
    offset = _rows(_run(model, params, half, "trunk", inputs)).std(0).max() / _SPREAD
    last["conv2"]["bias"][:], params[half]["norm_out"]["scale"][:] = offset, _CENTER
    return _run(model, params, half, "features", inputs)


def _run(model: Model, params: Params, half: str, upto: str, inputs: np.ndarray) -> np.ndarray:
    module = getattr(nnx.merge(model.graph("autoencoder"), nnx.State(jax.tree.map(jnp.asarray, params))), half)

    def one(frames):
        frames = module.trunk(frames[None], Stream())
        return (frames if upto == "trunk" else module.activate(frames))[0]

    run = jax.jit(one)
    return np.stack([np.asarray(run(frames)) for frames in inputs])


def _principal(x: np.ndarray, count: int) -> tuple[Matrix, np.ndarray]:
    """Basis [d, count] and mean of the rows of x. Half whitened: a component of spread r gets the spread sqrt(r)."""
    x = _rows(x).astype(np.float64)
    center = x.mean(0)
    power, basis = np.linalg.eigh((x - center).T @ (x - center) / len(x))
    basis = basis[:, ::-1][:, :count]
    return basis / np.maximum(power[::-1][:count], 1e-8) ** 0.25, center


def _rows(x: np.ndarray) -> np.ndarray:
    return x.reshape(-1, x.shape[-1])


def _fit_conv(x: Float[np.ndarray, "n t h w c"], y: Float[np.ndarray, "n t h w d"], rng) -> Matrix:
    """A 3 x 3 convolution and a bias [9 c + 1, d] from x to y, by least squares over sampled pixels."""
    n, t, h, w, _ = x.shape
    padded = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1), (0, 0)))
    count = min(_ROWS, n * t * h * w)
    at = np.unravel_index(rng.choice(n * t * h * w, count, replace=False), (n, t, h, w))
    taps = [padded[at[0], at[1], at[2] + i, at[3] + j] for i in range(3) for j in range(3)]
    return _least_squares(np.concatenate(taps, axis=1), y[at], rng)


def _least_squares(x: Matrix, y: Matrix, rng) -> Matrix:
    """Ridge regression with a bias, its last row; the ridge is relative to the mean power of x."""
    if len(x) > _ROWS:
        chosen = rng.choice(len(x), _ROWS, replace=False)
        x, y = x[chosen], y[chosen]
    x, y = x.astype(np.float64), y.astype(np.float64)
    center, target = x.mean(0), y.mean(0)
    gram = (x - center).T @ (x - center)
    gram += _RIDGE * np.trace(gram) / len(gram) * np.eye(len(gram))
    kernel = np.linalg.solve(gram, (x - center).T @ (y - target))
    return np.concatenate([kernel, (target - center @ kernel)[None]])
