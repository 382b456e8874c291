"""The released files in their exact layout: every tensor of the real ones, at small widths, with random values."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import ml_dtypes
import numpy as np
from safetensors.numpy import save_file
from weights.torch_zip import write_pth

import spatia_jax
from spatia_jax.models.autoencoder import AutoencoderConfig
from spatia_jax.models.depth import DepthConfig
from spatia_jax.models.text_encoder import TextEncoderConfig
from spatia_jax.models.transformer import TransformerConfig
from spatia_jax.weights.layouts import ReleasedSizes, official_shapes

SIZES = ReleasedSizes(  # as many tensors as the released ones, each small
    transformer=TransformerConfig(
        dim=12, ffn_dim=16, num_heads=2, in_dim=4, out_dim=4, text_dim=8, freq_dim=8, control_in_dim=8
    ),
    autoencoder=AutoencoderConfig(dim=4, dec_dim=4, z_dim=4),
    text_encoder=TextEncoderConfig(vocab_size=512, dim=8, attention_dim=8, ffn_dim=16, num_heads=2),
    depth=DepthConfig(
        dim=16, num_layers=4, num_heads=2, position_grid=(2, 4), feature_layers=(0, 1, 2, 3), neck_dims=(8, 8, 8, 8),
        fusion_dim=8, head_dim=8, input_size=(28, 56),
    ),
)  # fmt: skip
RANK = 3
TOKENIZER = Path(spatia_jax.__file__).parent / "assets" / "tiny" / "tokenizer.json"


def random_tensors(slot, dtype=np.float32):
    rng = np.random.default_rng(sum(map(ord, slot)))
    shapes = official_shapes(slot, SIZES)
    return {name: (0.2 * rng.normal(size=shape)).astype(dtype) for name, shape in shapes.items()}


def lora_tensors():
    rng = np.random.default_rng(9)
    tensors = {}
    for i in range(SIZES.transformer.num_layers):
        for layer, (inputs, outputs) in {
            "self_attn.q": (12, 12),
            "cross_attn.q": (12, 12),
            "ffn.0": (12, 16),
            "ffn.2": (16, 12),
        }.items():
            prefix = f"pipe.dit.blocks.{i}.{layer}"
            tensors[f"{prefix}.lora_A.default.weight"] = rng.normal(size=(RANK, inputs)).astype(np.float32)
            tensors[f"{prefix}.lora_B.default.weight"] = rng.normal(size=(outputs, RANK)).astype(np.float32)
    return tensors


def official_tensors():
    """The tensors of every slot under their official names."""
    return {
        "transformer": random_tensors("transformer"),
        "control": random_tensors("control"),
        "lora": lora_tensors(),
        "autoencoder": random_tensors("autoencoder"),
        "text_encoder": random_tensors("text_encoder", ml_dtypes.bfloat16),
        "depth": random_tensors("depth"),
    }


def write_release(folder, official):
    """Writes the files, nested as the download tools nest them, and returns the folder."""
    wan, spatia, anything = folder / "Wan2.2-TI2V-5B", folder / "Spatia", folder / "depth-anything"
    for directory in (wan / "google" / "umt5-xxl", spatia, anything):
        directory.mkdir(parents=True)
    names = list(official["transformer"])
    weight_map = {}
    for i in range(3):
        file = f"diffusion_pytorch_model-{i + 1:05d}-of-00003.safetensors"
        weight_map |= dict.fromkeys(names[i::3], file)
        save_file({name: official["transformer"][name] for name in names[i::3]}, wan / file)
    index = wan / "diffusion_pytorch_model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    write_pth(wan / "Wan2.2_VAE.pth", official["autoencoder"])
    write_pth(wan / "models_t5_umt5-xxl-enc-bf16.pth", official["text_encoder"])
    shutil.copy(TOKENIZER, wan / "google" / "umt5-xxl" / "tokenizer.json")
    save_file(official["control"], spatia / "control_weight_8500.safetensors")
    save_file(official["lora"], spatia / "lora_weights_10000.safetensors")
    save_file(official["depth"], anything / "model.safetensors")
    return folder
