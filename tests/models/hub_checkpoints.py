"""Tiny random checkpoints of CLIP, SigLIP and SigLIP 2, saved as transformers saves them."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

WORDS = ["a", "dog", "runs", "red", "circle", "moves", "left", "the", "of", "in", "guitar", "plays", "street"]
KINDS = ("clip", "siglip", "siglip2")
TEXTS = ["a dog runs in the street", "Red Circle moves LEFT", "guitar", ""]


def save_checkpoint(folder: Path, kind: str, *, seed: int = 0, licence: str | None = "apache-2.0") -> Path:
    """Write a checkpoint of `kind`; returns its folder."""
    folder.mkdir(parents=True, exist_ok=True)
    vocabulary = _save_tokenizer(folder, kind)
    torch.manual_seed(seed)
    model = _model(kind, vocabulary)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2) if parameter.ndim else None
    model.save_pretrained(folder)
    _processor(kind).save_pretrained(folder)
    if licence:
        (folder / "README.md").write_text(f"---\nlicense: {licence}\ntags:\n- test\n---\n# A test\n")
    return folder


def full_model(folder: Path, kind: str):
    """transformers' own model of a checkpoint."""
    import transformers

    name = {"clip": "CLIPModel", "siglip": "SiglipModel", "siglip2": "Siglip2Model"}[kind]
    return getattr(transformers, name).from_pretrained(folder).eval()


def processor(folder: Path, kind: str):
    """transformers' own image processor of a checkpoint, the one that uses Pillow."""
    return type(_processor(kind)).from_pretrained(folder)


def _processor(kind: str):
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
    from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil
    from transformers.models.siglip2.image_processing_pil_siglip2 import Siglip2ImageProcessorPil

    if kind == "clip":
        return CLIPImageProcessorPil(size={"shortest_edge": 56}, crop_size={"height": 48, "width": 48})
    if kind == "siglip":
        return SiglipImageProcessorPil(size={"height": 48, "width": 48})
    return Siglip2ImageProcessorPil(patch_size=16, max_num_patches=20)


def _model(kind: str, vocabulary: int):
    import transformers

    common = {"hidden_size": 32, "intermediate_size": 72, "num_hidden_layers": 2, "num_attention_heads": 4}
    text = {**common, "vocab_size": vocabulary, "pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2}
    vision = {**common, "hidden_size": 32, "patch_size": 16}
    if kind == "clip":
        text |= {"max_position_embeddings": 16, "eos_token_id": vocabulary - 1, "projection_dim": 24}
        vision |= {"image_size": 48, "projection_dim": 24}
        config = transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=24)
        return transformers.CLIPModel(config)
    text |= {"max_position_embeddings": 16, "projection_size": 32}
    if kind == "siglip":
        config = transformers.SiglipConfig(text_config=text, vision_config={**vision, "image_size": 48})
        return transformers.SiglipModel(config)
    config = transformers.Siglip2Config(text_config=text, vision_config={**vision, "num_patches": 16})
    return transformers.Siglip2Model(config)


def _save_tokenizer(folder: Path, kind: str) -> int:
    """Write tokenizer.json and its config as hub repositories have them; returns the size of the vocabulary."""
    if kind == "clip":
        special = {"bos_token": "<|startoftext|>", "eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>"}
        listed = ["<unk>", *WORDS, "<|startoftext|>", "<|endoftext|>"]  # the end token has the highest number
    else:
        special = {"bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>"}
        listed = ["<bos>", "<pad>", "<eos>", "<unk>", *WORDS]
    vocabulary = {word: number for number, word in enumerate(listed)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    if kind != "siglip2":  # files of SigLIP 2 do not lower the case
        tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    end = special["eos_token"]
    parts = f"$A {end}" if kind != "clip" else f"{special['bos_token']} $A {end}"
    tokenizer.post_processor = processors.TemplateProcessing(
        single=parts, special_tokens=[(token, vocabulary[token]) for token in set(special.values()) - {"<pad>"}]
    )
    tokenizer.add_special_tokens([*set(special.values()), "<unk>"])
    tokenizer.save(str(folder / "tokenizer.json"))
    values = {**special, "unk_token": "<unk>", "tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": 16}
    (folder / "tokenizer_config.json").write_text(json.dumps(values))
    return len(vocabulary)
