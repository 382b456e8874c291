"""Seconds of the transformer's forward pass: on a CPU beside diffusers' one, on an accelerator at the released size.

    python -m benchmarks.transformer [compare | step] [--help]

`compare` is the default on a CPU and `step` elsewhere. Both print what they measure; neither asserts anything.
"""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from flax import nnx

from benchmarks.timing import medians
from spatia_jax.models.attention import attention
from spatia_jax.models.transformer import TransformerConfig, VideoTransformer
from spatia_jax.weights.convert import convert
from spatia_jax.weights.layouts import ReleasedSizes
from spatia_jax.weights.store import find_params, load_params


@dataclasses.dataclass(frozen=True)
class Compare:
    """Ours and WanTransformer3DModel, the same weights in float32, all cores, called in turn.

    Attributes:
        transformer: sizes; without control branch, which diffusers' model lacks.
        latents: frames, rows, columns.
        text_length: tokens of context.
        repeats: calls of each.
    """

    transformer: TransformerConfig = TransformerConfig(
        dim=768, ffn_dim=3584, num_heads=6, num_layers=12, control_layers=()
    )
    latents: tuple[int, int, int] = (5, 40, 40)  # 2000 tokens
    text_length: int = 512
    repeats: int = 7


@dataclasses.dataclass(frozen=True)
class Step:
    """One evaluation with the control branch and random bfloat16 weights; a guided denoising step takes two of them.

    Attributes:
        transformer: sizes.
        latents: frames, rows, columns; by default those of the opening clip, 121 frames of 1248 x 704 pixels.
        text_length: tokens of context.
        repeats: calls.
        peak_tflops: what the device can do in bfloat16 in 1e12 operations a second, for the share that is used (MFU).
    """

    transformer: TransformerConfig = TransformerConfig(dtype="bfloat16")
    latents: tuple[int, int, int] = (31, 44, 78)
    text_length: int = 512
    repeats: int = 5
    peak_tflops: float | None = None


def flops(config: TransformerConfig, latents: tuple[int, int, int], text_length: int) -> int:
    """Operations in the matrix products of one evaluation of one example, a multiply-add counted as two.

    With n tokens, r rows of text, width d and feed-forward width e, a block has 2 n d (6 d + 2 e) in linear maps of the
    tokens, 4 r d^2 in keys and values of the text, and 4 n (n + r) d in its two attentions. The control branch has m
    more blocks, each with a projection behind it, and one projection before the first.

    Args:
        config: sizes; its control branch, if any, reads all frames (no references).
        latents: frames, rows, columns.
        text_length: tokens of context.
    """
    frames, rows, columns = latents
    patch = int(np.prod(config.patch_size))
    n, r, d, e = frames * rows * columns // patch, text_length, config.dim, config.ffn_dim
    m = len(config.control_layers)
    block = 2 * n * d * (6 * d + 2 * e) + 4 * r * d**2 + 4 * n * (n + r) * d
    projections = (m + 1) * 2 * n * d**2 if m else 0
    channels = config.in_dim + config.out_dim + (config.control_in_dim if m else 0)
    embeddings = 2 * r * d * (config.text_dim + d) + 2 * frames * d * (config.freq_dim + 7 * d)
    return (config.num_layers + m) * block + projections + 2 * n * d * patch * channels + embeddings


def inputs(config: TransformerConfig, latents: tuple[int, int, int], text_length: int) -> dict[str, np.ndarray]:
    """Random latents, timesteps and context of one example, float32, and control latents where there is a branch."""
    rng = np.random.default_rng(0)

    def normal(*shape: int) -> np.ndarray:
        return rng.standard_normal((1, *shape), np.float32)

    arrays = {"latents": normal(*latents, config.in_dim), "context": normal(text_length, config.text_dim)}
    if config.control_layers:
        arrays["control"] = normal(*latents, config.control_in_dim)
    return arrays | {"timesteps": np.full((1, latents[0]), 500, np.float32)}


def forward(config: TransformerConfig) -> tuple[Callable[..., jax.Array], Any]:
    """The compiled `(params, **inputs) -> velocity`, and the shapes of params as a plain tree."""
    graphdef, abstract = nnx.split(nnx.eval_shape(lambda: VideoTransformer(config, rngs=nnx.Rngs(0))))
    call = jax.jit(lambda params, **arrays: nnx.merge(graphdef, nnx.State(params))(**arrays))
    return call, nnx.to_pure_dict(abstract)


def compare(args: Compare) -> None:
    """Prints median seconds of both, their ratio, ours in bfloat16, and how far the outputs are apart."""
    import diffusers
    import torch

    config = args.transformer
    torch.manual_seed(0)
    peer = diffusers.WanTransformer3DModel(
        patch_size=config.patch_size,
        num_attention_heads=config.num_heads,
        attention_head_dim=config.head_dim,
        in_channels=config.in_dim,
        out_channels=config.out_dim,
        text_dim=config.text_dim,
        freq_dim=config.freq_dim,
        ffn_dim=config.ffn_dim,
        num_layers=config.num_layers,
        eps=config.eps,
    ).eval()
    call, abstract = forward(config)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        peer.save_pretrained(folder / "transformer")
        convert(folder, folder / "ours", dataclasses.replace(ReleasedSizes(), transformer=config),
                networks=["transformer"], say=lambda line: None)  # fmt: skip
        params = load_params(find_params(folder / "ours", "transformer"), abstract)

    arrays = inputs(config, args.latents, args.text_length)
    narrow, _ = forward(dataclasses.replace(config, dtype="bfloat16"))
    narrow_params = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), params)
    # One timestep for all frames: its form for one a token costs diffusers more, and ours is the same.
    tensors = {
        "hidden_states": torch.from_numpy(np.ascontiguousarray(np.moveaxis(arrays["latents"], -1, 1))),
        "timestep": torch.from_numpy(arrays["timesteps"][:, 0]),
        "encoder_hidden_states": torch.from_numpy(arrays["context"]),
    }

    def theirs():
        with torch.inference_mode():
            return peer(**tensors).sample

    error = np.abs(np.asarray(call(params, **arrays)) - np.moveaxis(theirs().numpy(), 1, -1)).max()
    seconds = medians(
        {
            "ours": lambda: call(params, **arrays),
            "diffusers": theirs,
            "ours, bfloat16": lambda: narrow(narrow_params, **arrays),
        },
        args.repeats,
    )
    operations = flops(config, args.latents, args.text_length)
    print(f"{config}\nlatents {args.latents}, {args.text_length} rows of text, {operations / 1e9:.0f} GFLOP")
    print(f"{torch.get_num_threads()} threads, torch {torch.__version__}, diffusers {diffusers.__version__}")
    for name, median in seconds.items():
        print(f"{name}: {median:.3f} s, {operations / median / 1e9:.0f} GFLOP/s")
    print(f"ours / diffusers: {seconds['ours'] / seconds['diffusers']:.3f}; outputs differ by at most {error:.1e}")
    print_matmuls(config.dim, config.ffn_dim, args.latents, args.repeats)


def print_matmuls(inner: int, outer: int, latents: tuple[int, int, int], repeats: int) -> None:
    """Prints what one of the feed-forward's products does in both types: what bfloat16 costs or saves before us."""
    tokens = int(np.prod(latents)) // 4
    multiply = jax.jit(jnp.matmul)
    operands = {
        dtype: (jnp.ones((tokens, inner), dtype), jnp.ones((inner, outer), dtype)) for dtype in ("float32", "bfloat16")
    }
    seconds = medians({dtype: lambda pair=pair: multiply(*pair) for dtype, pair in operands.items()}, 3 * repeats)
    speeds = ", ".join(f"{dtype} {2e-9 * tokens * inner * outer / t:.0f} GFLOP/s" for dtype, t in seconds.items())
    print(f"one product [{tokens}, {inner}] x [{inner}, {outer}]: {speeds}")


def step(args: Step) -> None:
    """Prints median seconds, operations and their rate, and the same for one self-attention."""
    config = args.transformer
    call, abstract = forward(config)
    params = jax.jit(lambda: _random(abstract))()
    arrays = jax.device_put(inputs(config, args.latents, args.text_length))
    seconds = medians({"step": lambda: call(params, **arrays)}, args.repeats)["step"]
    operations = flops(config, args.latents, args.text_length)
    print(f"{config}\nlatents {args.latents}, {args.text_length} rows of text, on {jax.devices()[0].device_kind}")
    print(f"one evaluation: {seconds:.3f} s, {operations / 1e12:.3f} TFLOP, {operations / seconds / 1e12:.2f} TFLOP/s")
    if args.peak_tflops:
        print(f"MFU {operations / seconds / 1e12 / args.peak_tflops:.3f} of {args.peak_tflops:g} TFLOP/s")
    tokens = int(np.prod(args.latents) // np.prod(config.patch_size))
    for name, median in time_attention(tokens, config.num_heads, config.head_dim, args.repeats).items():
        print(f"self-attention, {name}: {median:.4f} s, {4e-12 * tokens**2 * config.dim / median:.2f} TFLOP/s")


def _random(abstract: Any) -> Any:
    """A bfloat16 tree of these shapes."""
    leaves, structure = jax.tree.flatten(abstract)
    keys = jax.random.split(jax.random.key(0), len(leaves))
    values = [0.02 * jax.random.normal(key, leaf.shape, jnp.bfloat16) for key, leaf in zip(keys, leaves, strict=True)]
    return jax.tree.unflatten(structure, values)


def time_attention(tokens: int, heads: int, head_dim: int, repeats: int) -> dict[str, float]:
    """Median seconds of self-attention in bfloat16: ours, and torch's where torch is installed and sees the device."""
    shape = (1, tokens, heads, head_dim)
    queries = jax.random.normal(jax.random.key(0), shape, jnp.bfloat16)
    attend = jax.jit(attention)
    functions: dict[str, Callable[[], Any]] = {"ours": lambda: attend(queries, queries, queries)}
    try:
        import torch
    except ModuleNotFoundError:
        return medians(functions, repeats)
    device = {"cpu": "cpu", "gpu": "cuda"}.get(jax.default_backend())
    if device == "cpu" or (device == "cuda" and torch.cuda.is_available()):
        tensor = torch.randn(shape, dtype=torch.bfloat16, device=device).transpose(1, 2)

        def theirs() -> None:
            torch.nn.functional.scaled_dot_product_attention(tensor, tensor, tensor)
            if device == "cuda":
                torch.cuda.synchronize()

        functions["torch"] = theirs
    return medians(functions, repeats)


def main() -> None:
    """Reads the command line and measures."""
    default = Compare() if jax.default_backend() == "cpu" else Step()
    args = tyro.cli(Compare | Step, default=default, prog="benchmarks.transformer", description=__doc__)
    if isinstance(args, Compare):
        compare(args)
    else:
        step(args)


if __name__ == "__main__":
    main()
