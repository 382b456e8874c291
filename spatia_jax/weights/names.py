"""Which network a checkpoint is of, and its tensors' official names where diffusers or transformers renamed them.

Sources: `scripts/convert_wan_to_diffusers.py` of diffusers (WanTransformer3DModel; AutoencoderKLWan in its 2.2 form)
and UMT5EncoderModel of transformers; tests/parity reads what these packages write. Only names differ, never shapes.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

SLOTS = ("transformer", "control", "lora", "autoencoder", "text_encoder", "depth")

# (slot, form, tensors that only such a checkpoint has)
_MARKS = (
    ("control", "official", ("vace_patch_embedding.weight", "vace_blocks.0.before_proj.weight")),
    ("transformer", "official", ("patch_embedding.weight", "blocks.0.self_attn.q.weight")),
    ("transformer", "diffusers", ("patch_embedding.weight", "blocks.0.attn1.to_q.weight")),
    ("autoencoder", "official", ("conv2.weight", "decoder.conv1.weight")),
    ("autoencoder", "diffusers", ("post_quant_conv.weight", "decoder.conv_in.weight")),
    ("text_encoder", "official", ("token_embedding.weight", "blocks.0.attn.q.weight")),
    ("text_encoder", "transformers", ("encoder.block.0.layer.0.SelfAttention.q.weight",)),
    ("depth", "transformers", ("backbone.embeddings.cls_token",)),
)
_LORA = re.compile(r"pipe\.dit\.(.+)\.lora_([AB])(?:\.default)?\.weight")

_Rules = tuple[tuple[str, str], ...]
_TRANSFORMER: _Rules = (
    (r"condition_embedder\.(time|text)_embedder\.linear_1\.", r"\1_embedding.0."),
    (r"condition_embedder\.(time|text)_embedder\.linear_2\.", r"\1_embedding.2."),
    (r"condition_embedder\.time_proj\.", "time_projection.1."),
    (r"^scale_shift_table$", "head.modulation"),
    (r"^proj_out\.", "head.head."),
    (r"\.scale_shift_table$", ".modulation"),
    (r"\.attn1\.", ".self_attn."),
    (r"\.attn2\.", ".cross_attn."),
    (r"\.to_([qkv])\.", r".\1."),
    (r"\.to_out\.0\.", ".o."),
    (r"^(blocks\.\d+)\.norm2\.", r"\1.norm3."),  # the norm before cross-attention
    (r"\.ffn\.net\.0\.proj\.", ".ffn.0."),
    (r"\.ffn\.net\.2\.", ".ffn.2."),
)
_AUTOENCODER: _Rules = (
    (r"^quant_conv\.", "conv1."),
    (r"^post_quant_conv\.", "conv2."),
    (r"\.conv_in\.", ".conv1."),
    (r"\.norm_out\.", ".head.0."),
    (r"\.conv_out\.", ".head.2."),
    (r"\.mid_block\.resnets\.0\.", ".middle.0."),
    (r"\.mid_block\.attentions\.0\.", ".middle.1."),
    (r"\.mid_block\.resnets\.1\.", ".middle.2."),
    (r"\.down_blocks\.(\d+)\.resnets\.", r".downsamples.\1.downsamples."),
    (r"\.up_blocks\.(\d+)\.resnets\.", r".upsamples.\1.upsamples."),
    (r"(\.\d+)\.norm1\.", r"\1.residual.0."),
    (r"(\.\d+)\.conv1\.", r"\1.residual.2."),
    (r"(\.\d+)\.norm2\.", r"\1.residual.3."),
    (r"(\.\d+)\.conv2\.", r"\1.residual.6."),
    (r"\.conv_shortcut\.", ".shortcut."),
)
_TEXT_ENCODER: _Rules = (
    (r"^(shared|encoder\.embed_tokens)\.", "token_embedding."),
    (r"^encoder\.final_layer_norm\.", "norm."),
    (
        r"^encoder\.block\.(\d+)\.layer\.0\.SelfAttention\.relative_attention_bias\.",
        r"blocks.\1.pos_embedding.embedding.",
    ),
    (r"^encoder\.block\.(\d+)\.layer\.0\.SelfAttention\.", r"blocks.\1.attn."),
    (r"^encoder\.block\.(\d+)\.layer\.0\.layer_norm\.", r"blocks.\1.norm1."),
    (r"^encoder\.block\.(\d+)\.layer\.1\.layer_norm\.", r"blocks.\1.norm2."),
    (r"^encoder\.block\.(\d+)\.layer\.1\.DenseReluDense\.wi_0\.", r"blocks.\1.ffn.gate.0."),
    (r"^encoder\.block\.(\d+)\.layer\.1\.DenseReluDense\.wi_1\.", r"blocks.\1.ffn.fc1."),
    (r"^encoder\.block\.(\d+)\.layer\.1\.DenseReluDense\.wo\.", r"blocks.\1.ffn.fc2."),
)
_RULES = {
    ("transformer", "diffusers"): _TRANSFORMER,
    ("autoencoder", "diffusers"): _AUTOENCODER,
    ("text_encoder", "transformers"): _TEXT_ENCODER,
}
_RESAMPLER = re.compile(r"(encoder\.down|decoder\.up)_blocks\.(\d+)\.(?:down|up)sampler\.(.+)")
_RESNET = re.compile(r"((?:encoder\.down|decoder\.up)_blocks\.\d+)\.resnets\.(\d+)\..+")


@dataclass(frozen=True)
class Naming:
    """What a checkpoint's names say.

    Attributes:
        slot: one of SLOTS.
        form: whose names they are: "official", "diffusers", or "transformers".
        stored: official name -> the name in the checkpoint.
    """

    slot: str
    form: str
    stored: dict[str, str]


def recognise(names: Iterable[str]) -> Naming | None:
    """The network that these tensor names are of; None when it is none of ours."""
    names = list(names)
    if lora := list(filter(_LORA.fullmatch, names)):  # other keys are ignored, as in the released loader
        return Naming("lora", "official", {_LORA.sub(r"pipe.dit.\1.lora_\2.default.weight", n): n for n in lora})
    for slot, form, marks in _MARKS:
        if set(marks) <= set(names):
            return Naming(slot, form, _stored_names(slot, form, names))
    return None


def _stored_names(slot: str, form: str, names: list[str]) -> dict[str, str]:
    rules = _RULES.get((slot, form), ())
    resamplers = _resampler_names(names) if slot == "autoencoder" else {}
    stored = {}
    for name in names:
        if name == "encoder.embed_tokens.weight" and "shared.weight" in names:
            continue  # one table under two names
        official = resamplers.get(name, name)
        for pattern, replacement in rules if official == name else ():
            official = re.sub(pattern, replacement, official)
        stored[official] = name
    return stored


def _resampler_names(names: list[str]) -> dict[str, str]:
    """Officially, a stage's resampler stands behind its residual blocks in one list: it needs their number."""
    blocks: dict[str, int] = defaultdict(int)
    for name in names:
        if match := _RESNET.fullmatch(name):
            blocks[match[1]] = max(blocks[match[1]], int(match[2]) + 1)
    official = {}
    for name in names:
        if match := _RESAMPLER.fullmatch(name):
            side, stage, rest = match.groups()
            samples = f"{side}samples"
            inner = samples.partition(".")[2]
            official[name] = f"{samples}.{stage}.{inner}.{blocks[f'{side}_blocks.{stage}']}.{rest}"
    return official
