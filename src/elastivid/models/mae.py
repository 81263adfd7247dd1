"""MAE: an image transformer that learned by rebuilding hidden patches; here as an encoder, and as a teacher of MVD.

Paper: "Masked Autoencoders Are Scalable Vision Learners", arXiv 2111.06377.

The encoder is that of `models.videomae` with cubes of one frame and a class token; frames beside each other are tokens
of one clip there, so to see frames apart give them one by one, as `models.mvd.image_targets` does. The class token's
row of the position table is added to the token when it is converted, and biases of keys, which cancel, are not kept.

Cost per frame of n patches: n D 3PP + 12 (n + 1) D^2 + 2 (n + 1)^2 D a block.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor

from elastivid.core.errors import require_known_keys
from elastivid.models.videomae import VideoMAEConfig, renamed

_BASE = VideoMAEConfig(tubelet_size=1, num_frames=1, class_token=True, pool="first", positions="learned")
PRESETS = {
    "tiny": replace(_BASE, embed_dim=48, depth=3, num_heads=4, patch_size=14, image_size=70),
    "base": _BASE,
    "large": replace(_BASE, embed_dim=1024, depth=24, num_heads=16),
    "huge": replace(_BASE, embed_dim=1280, depth=32, num_heads=16, patch_size=14),
}


_TRANSFORMERS = {  # transformers 5 renames a checkpoint's blocks when it loads them
    "embeddings.cls_token": "cls_token",
    "embeddings.position_embeddings": "pos_embed",
    "layers.": "blocks.",
    "attention.q_proj.": "attn.query.",
    "attention.k_proj.": "attn.key.",
    "attention.v_proj.": "attn.value.",
    "attention.o_proj.": "attn.proj.",
}


def from_reference(config: Mapping[str, Any]) -> VideoMAEConfig:
    """Our config for the arguments of the released encoder; `WeightsError` where a key is not known."""
    names = {"embed_dim", "depth", "num_heads", "patch_size", "mlp_ratio"}
    require_known_keys("image teacher config", config, names, {"img_size"})
    ours = {key: config[key] for key in names if key in config}
    return VideoMAEConfig(
        **ours,
        image_size=config["img_size"],
        tubelet_size=1,
        num_frames=1,
        class_token=True,
        pool="first",
        positions="learned",
    )


def convert_reference(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """State dict of the encoder for the released masked autoencoder or transformers' `ViTMAEModel`.

    Its decoder is left out. The class token's row of the position table is added to the token.
    """
    names = {k.removeprefix("vit."): v for k, v in state.items() if not k.startswith(("decoder", "mask_token"))}
    for old, new in _TRANSFORMERS.items():
        names = {k.replace(old, new): v for k, v in names.items()}
    ours = renamed(names)
    table = ours["positions"]
    return {**ours, "positions": table[1:], "cls_token": ours["cls_token"] + table[0]}
