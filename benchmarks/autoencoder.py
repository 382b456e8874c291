"""The autoencoder against diffusers' AutoencoderKLWan (its Wan2.2 form), at the released width, on the CPU.

Both hold the same random weights: the peer's, brought over by our importer. So the table also says how far the two
results are apart. Needs torch and diffusers (`scripts/setup.sh parity`) and about 10 GB of memory; takes minutes.

    python -m benchmarks.autoencoder --json outputs/autoencoder.json
"""

from __future__ import annotations

import dataclasses
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from flax import nnx

from benchmarks.timing import medians
from spatia_jax.errors import InputError, exit_status
from spatia_jax.io.atomic import write_json
from spatia_jax.models.autoencoder import Autoencoder, AutoencoderConfig
from spatia_jax.weights.autoencoder import from_official
from spatia_jax.weights.names import recognise

# Latents of the network itself, as the peer gives them.
CONFIG = AutoencoderConfig(latent_mean=(0.0,) * 48, latent_std=(1.0,) * 48)


@dataclass(frozen=True)
class Args:
    """What to measure.

    Attributes:
        frames: of the video, 1 + 4 n.
        height, width: in pixels, multiples of 16.
        repeats: rounds; each calls every function once.
        bf16_repeats: rounds of ours in bfloat16, which XLA's CPU backend only emulates; 0: none.
        json: a file for the numbers.
    """

    frames: int = 5
    height: int = 128
    width: int = 128
    repeats: int = 3
    bf16_repeats: int = 1
    json: Path | None = None


def main(args: Args) -> None:
    """Measures, prints a table, writes --json.

    Raises:
        InputError: torch or diffusers is not installed, or our autoencoder does not take the size.
    """
    peer = _peer()
    names = recognise(peer.state_dict()).stored
    params = from_official(CONFIG, {name: peer.state_dict()[stored].numpy() for name, stored in names.items()})
    shape = (1, args.frames, args.height, args.width, 3)
    video = jax.random.uniform(jax.random.key(0), shape, minval=-1.0, maxval=1.0)

    encode, decode = _ours(params)
    latents = encode(video)
    their_encode, their_decode = _theirs(peer, np.array(video), np.array(latents))
    differences = {
        "encode": np.abs(latents - their_encode()).max(),
        "decode": np.abs(decode(latents) - their_decode()).max(),
    }
    seconds = medians(
        {
            "ours encode": lambda: encode(video),
            "diffusers encode": their_encode,
            "ours decode": lambda: decode(latents),
            "diffusers decode": their_decode,
        },
        args.repeats,
    )
    if args.bf16_repeats:
        encode, decode = _ours(jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), params))
        bf16 = {"ours encode bf16": lambda: encode(video), "ours decode bf16": lambda: decode(latents)}
        seconds |= medians(bf16, args.bf16_repeats)

    print(f"{args.frames} x {args.height} x {args.width}, {os.cpu_count()} cores, medians of {args.repeats}, seconds")
    print(f"{'':8}{'ours':>8}{'diffusers':>11}{'ratio':>7}{'ours bf16':>11}{'max |difference|':>18}")
    for what, difference in differences.items():
        ours, theirs = seconds[f"ours {what}"], seconds[f"diffusers {what}"]
        bf16_seconds = seconds.get(f"ours {what} bf16", float("nan"))
        print(f"{what:8}{ours:8.2f}{theirs:11.2f}{ours / theirs:7.2f}{bf16_seconds:11.2f}{difference:18.1e}")
    if args.json:
        record = {
            "args": dataclasses.asdict(args) | {"json": None},
            "seconds": seconds,
            "max_difference": {what: float(difference) for what, difference in differences.items()},
        }
        write_json(args.json, record)


def _peer() -> Any:
    """The peer with random weights of the released shapes."""
    try:
        import torch
        from diffusers import AutoencoderKLWan
    except ImportError as error:
        raise InputError(f"no {error.name}; install the peers by `scripts/setup.sh parity`") from error
    torch.set_num_threads(os.cpu_count() or 1)
    torch.manual_seed(0)
    return AutoencoderKLWan(
        base_dim=CONFIG.dim,
        decoder_base_dim=CONFIG.dec_dim,
        z_dim=CONFIG.z_dim,
        dim_mult=list(CONFIG.dim_mult),
        num_res_blocks=CONFIG.num_res_blocks,
        temperal_downsample=list(CONFIG.temporal_downsample),
        is_residual=True,
        in_channels=3 * CONFIG.patch_size**2,
        out_channels=3 * CONFIG.patch_size**2,
        patch_size=CONFIG.patch_size,
        scale_factor_spatial=CONFIG.space_factor,
        scale_factor_temporal=CONFIG.time_factor,
    ).eval()


def _ours(params: nnx.State):
    """(encode, decode): video [b, t, h, w, 3] to latents [b, f, p, q, z] and back, clamped like the peer."""
    graph = nnx.graphdef(nnx.eval_shape(lambda: Autoencoder(CONFIG, rngs=nnx.Rngs(0))))
    params = jax.tree.map(jnp.asarray, params)
    encode = jax.jit(lambda params, video: nnx.merge(graph, params).encode(video))
    decode = jax.jit(lambda params, latents: jnp.clip(nnx.merge(graph, params).decode(latents), -1.0, 1.0))
    return lambda video: encode(params, video), lambda latents: decode(params, latents)


def _theirs(peer: Any, video: np.ndarray, latents: np.ndarray):
    """(encode, decode) of these inputs; results are channels last, like ours."""
    import torch

    def channels_first(array: np.ndarray) -> Any:
        return torch.from_numpy(np.ascontiguousarray(np.moveaxis(array, -1, 1)))

    pixels, codes = channels_first(video), channels_first(latents)

    @torch.inference_mode()
    def encode() -> np.ndarray:
        return np.moveaxis(peer.encode(pixels).latent_dist.mode().numpy(), 1, -1)

    @torch.inference_mode()
    def decode() -> np.ndarray:
        return np.moveaxis(peer.decode(codes).sample.numpy(), 1, -1)

    return encode, decode


if __name__ == "__main__":
    sys.exit(exit_status(lambda: main(tyro.cli(Args, description=__doc__))))
