"""InstructBLIP: BLIP-2 whose queries have read the instruction before they look at the image.

Paper: "InstructBLIP: Towards General-purpose Vision-Language Models with Instruction Tuning", arXiv 2305.06500.

    queries = Q-Former(instruction, image);  answer = language model([W queries; instruction; answer])

Instruction and queries see each other in the Q-Former, so the same image gives other queries for another instruction.
The instruction is tokenised twice, by the Q-Former's tokenizer (BERT's) and by the language model's.

Video, either way: every frame passes by itself and all query outputs stand in order of time before the instruction
(the released evaluation; transformers' InstructBlipVideo), or frames are streamed through a memory whose tokens compete
for the attention of queries that know the instruction: with `AdaCM2` that is arXiv 2411.12593, with `MergingMemory`
MA-LMM (arXiv 2404.05726).

Where we depart from the released code: as `elastivid.models.blip2`.

Cost: see `elastivid.models.qformer`; frames by themselves cost the language model T*K prompts, streamed ones K.

Letters: B batch, T frames, H W pixels, K queries, L words, D channels of the Q-Former.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from elastivid.memory.base import VideoMemory
from elastivid.models.blip2 import Seeing, Speaking, TowerConfig, convert_reference, filled, read_reference
from elastivid.models.qformer import QFormerConfig

__all__ = ["InstructBlip", "InstructBlipConfig", "Instruction", "convert_reference", "from_folder"]


@dataclass(frozen=True)
class Instruction:
    """Words for the Q-Former: ids and validity (B, L)."""

    ids: Tensor
    valid: Tensor


@dataclass(frozen=True)
class InstructBlipConfig:
    """Sizes of the parts that are ours; the language model is handed to `build`."""

    tower: TowerConfig = field(default_factory=TowerConfig)
    qformer: QFormerConfig = field(default_factory=QFormerConfig)

    def build(self, language: nn.Module) -> InstructBlip:
        """A model around `language`."""
        return InstructBlip(self, language)

    @classmethod
    def from_reference(cls, config: Mapping[str, Any]) -> InstructBlipConfig:
        """Our config for an `InstructBlipConfig` or `InstructBlipVideoConfig` of transformers, as a dict."""
        reader = QFormerConfig.from_reference(
            config["qformer_config"], config["num_query_tokens"], takes_text=True, words=True
        )
        return cls(TowerConfig.from_reference(config["vision_config"]), reader)


class InstructBlip(nn.Module):
    """See the module's text."""

    def __init__(self, config: InstructBlipConfig, language: nn.Module) -> None:
        super().__init__()
        self.config = config
        self.seeing = Seeing(config.tower, config.qformer)
        self.speaking = Speaking(config.qformer.embed_dim, language)
        self.seeing.freeze_tower()

    def queries(self, images: Tensor, instruction: Instruction | None) -> Tensor:
        """Query outputs (B, K, D) of images (B, 3, H, W), or (B, T*K, D) of frames (B, T, 3, H, W) in order.

        Without an instruction queries pass alone, as in BLIP-2.
        """
        tokens, reader = self.seeing.tokens(images), self.seeing.qformer
        if tokens.ndim == 3:
            return reader(tokens, **_text(reader, instruction, 1)).queries
        batch, frames = tokens.shape[:2]
        out = reader(tokens.flatten(0, 1), **_text(reader, instruction, frames)).queries  # (B*T, K, D)
        return out.unflatten(0, (batch, frames)).flatten(1, 2)  # (B, T*K, D)

    def streamed(
        self, frames: Tensor, seconds: Tensor, memory: VideoMemory, instruction: Instruction | None
    ) -> tuple[Tensor, VideoMemory]:
        """Query outputs (B, K, D) after frames (B, T, 3, H, W) at times (B, T), and the memory then."""
        tokens, reader = self.seeing.tokens(frames), self.seeing.qformer  # (B, T, N, C)
        times = seconds[:, :, None].expand(tokens.shape[:3])  # (B, T, N)
        out = reader.stream(tokens, times, memory, **_text(reader, instruction, 1))
        assert out.queries is not None
        assert out.memory is not None
        return out.queries, out.memory

    def forward(
        self,
        images: Tensor,
        instruction: Instruction | None,
        ids: Tensor,
        valid: Tensor,
        labels: Tensor | None = None,
    ) -> Any:
        """What the language model returns for its own words `ids` (B, L); see `Speaking.forward`."""
        return self.speaking(self.queries(images, instruction), ids, valid, labels)

    def generate(
        self, images: Tensor, instruction: Instruction | None, ids: Tensor, valid: Tensor, **how: Any
    ) -> Tensor:
        """See `Speaking.generate`."""
        return self.speaking.generate(self.queries(images, instruction), ids, valid, **how)


def from_folder(folder: Path) -> InstructBlip:
    """A checkpoint in transformers' layout, such as that of Salesforce/instructblip-vicuna-7b, or of its video variant,
    with its language model.

    Raises:
        MissingExtraError, WeightsError: see `elastivid.models.blip2.from_folder`.
    """
    config, language = read_reference(folder, ("instructblip", "instructblipvideo"))
    return filled(InstructBlipConfig.from_reference(config).build(language), folder)


def _text(reader: Any, instruction: Instruction | None, frames: int) -> dict[str, Tensor]:
    """Arguments of the Q-Former, every row repeated for each of its frames."""
    if instruction is None:
        return {}
    text = reader.embed_text(instruction.ids).repeat_interleave(frames, dim=0)  # (B*T, L, D)
    return {"text": text, "text_valid": instruction.valid.repeat_interleave(frames, dim=0)}
