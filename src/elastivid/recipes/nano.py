"""Train `nano`: a FluxViT and a text tower in one space, elastic in tokens and in width.

    elastivid train nano --out runs/world --device cuda --set num_workers=16 --set minutes=7
    elastivid train nano --out runs/real --set init=runs/world --set world_steps=0,0 --set real_steps=240 \
        --set labelled=../shared/data/labelled [--set fold=0]
    elastivid train nano --out runs/masked --set init=nano --set world_steps=0,0 --set head_steps=50 \
        --set masked_steps=300 --set unlabelled=clips.jsonl

The loss is that of `elastivid.train.dual`: contrastive with hard negative captions at three operating points a step,
the dearest at full width teaching two with drawn token counts and widths (arXiv 2503.14237, 2504.12513); batches differ
in frames and frame size. A moving average of the weights is what gets kept. Stages: `heads` (what weights files lack,
alone), `plain` (scenes without clutter, one token count: shapes and motions are learned sooner), `world` (rendered
clips), `masked` (beside rendered clips as many without a label, of which hidden parts are predicted:
`elastivid.train.histograms`), `real` (labelled clips mixed in).

`masked` is a stage of this recipe and not one of its own because the encoder must stay in the space of the texts while
it sees real clips: a trunk that was trained by itself leaves it.

Full scale, as the shipped weights were made: 96 clips a step, 7.2 minutes on one H100 with 16 processor cores, 2,304
steps. Rendering is the bottleneck: 10 ms a clip and core. Expected: docs/benchmarks/front.md, demo.md and actions.md.
Over several processes the loss of the patch head is a mean of means, all else equals one process with the whole batch.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from elastivid.core.point import OperatingPoint
from elastivid.data.cache import ClipCache
from elastivid.data.clips import Clips, ClipSample, ClipStream
from elastivid.data.clips import collate as collate_clips
from elastivid.data.listing import Entry, read_entries
from elastivid.data.mixture import PATCH_PIXELS, REAL_READING, Mixture, MixtureConfig, Sample, collate
from elastivid.data.quarantine import Quarantine
from elastivid.data.sampling import Shapes
from elastivid.data.splits import folds_by_size
from elastivid.models.dual import PRESETS, FluxDual
from elastivid.models.text import TextTower
from elastivid.recipes._captioned import choice_rows
from elastivid.recipes._flux import start
from elastivid.train.checkpoint import LAST, load_checkpoint
from elastivid.train.dual import DEAR_TOKENS, DualLoss, add_words, draw_points
from elastivid.train.histograms import HistogramLoss
from elastivid.train.order import mixed
from elastivid.train.recipe import Exported, Recipe, RecipeConfig, Row
from elastivid.train.stages import Stage, TrainingError
from elastivid.weights.load import ALIASES, load

SHAPES = ((8, 112), (8, 168), (8, 168), (8, 168), (4, 168), (4, 224), (16, 112), (16, 168))  # frames, side in pixels
PLAIN_TOKENS = 64
FOLDS = 5
SEEDS = {"plain": 0, "world": 1, "real": 2, "masked": 3, "heads": 4}  # scenes of a stage are those of no other
EMA_DECAY = 0.998
BEFORE_BLOCKS = ("patch_embed.*", "cls_token", "positions", "position_affine.*")
CACHE_BYTES = 20 << 30
TRAINED_TOKENS = (32, 512)  # fewest and most that `draw_points` draws
POINTS = (  # what is evaluated: frames, side, tokens, width
    (8, 168, 512, 192),
    (8, 168, 128, 192),
    (8, 168, 128, 64),
    (4, 112, 64, 128),
)


@dataclass(frozen=True)
class NanoConfig(RecipeConfig):
    """Settings of `nano`.

    Args:
        head_steps: steps of the stage `heads`; wanted where `init` is a weights file.
        world_steps: steps of the stages `plain` and `world`; 0 leaves one out.
        masked_steps: steps of the stage `masked`; it needs `unlabelled` or `labelled`.
        real_steps: steps of the stage `real`; it needs `labelled`.
        masked_rate, real_rate: their learning rates.
        masked_weight: of the loss of predictions in `masked`, beside that of captions.
        real_share: share of labelled clips in the batches of `real`.
        frozen_blocks: first blocks of the video tower that `real` leaves as they are, with all that is before them: a
            few hundred labelled clips teach its end what classes are called, and spoil its beginning.
        init: run, checkpoint, shipped name or weights file to start from.
        labelled: list or folder of labelled clips.
        unlabelled: list or folder of clips for `masked`, beside the labelled ones; their labels are not used.
        cache: folder for the decoded frames of clips, and for the list of those that cannot be read.
        fold: fold of sources to leave out of the labelled clips, 0 to 4; -1 uses all.
        widths: what a layer may be run at: one, two or three heads.
        dear_tokens: what the dearest point of a step draws its tokens from; one core wants fewer than a GPU.
        shapes: frames and side of the clips of a batch, drawn evenly.
        scenes: scenes per attribute of an evaluation; compositions that training never draws.

    Raises:
        ValueError: no steps at all, steps on clips without clips, or a value that is out of range.
    """

    batch_size: int = 96
    save_every: int = 250
    head_steps: int = 0
    world_steps: tuple[int, int] = (1000, 3000)
    masked_steps: int = 0
    real_steps: int = 0
    masked_rate: float = 6e-4
    real_rate: float = 6e-4
    masked_weight: float = 3.0
    real_share: float = 0.4
    frozen_blocks: int = 0
    init: Path | None = None
    labelled: Path | None = None
    unlabelled: Path | None = None
    cache: Path = Path("runs")
    fold: int = -1
    widths: tuple[int, ...] = (64, 128, 192)
    dear_tokens: tuple[int, ...] = DEAR_TOKENS
    shapes: tuple[tuple[int, int], ...] = SHAPES
    scenes: int = 40

    def __post_init__(self) -> None:
        super().__post_init__()
        if not any((self.head_steps, *self.world_steps, self.masked_steps, self.real_steps)):
            raise ValueError(
                "head_steps, world_steps, masked_steps and real_steps are all 0, so there is nothing to train"
            )
        if self.real_steps and self.labelled is None:
            raise ValueError("real_steps needs labelled, a list or folder of labelled clips")
        depth = PRESETS["nano"].video.depth
        if not 0 <= self.frozen_blocks <= depth:
            raise ValueError(f"frozen_blocks must be 0 to {depth}, got {self.frozen_blocks}")
        if not self.dear_tokens or min(self.dear_tokens) < 1:
            raise ValueError(f"dear_tokens must be one or more counts of at least 1, got {self.dear_tokens}")
        if self.masked_steps and min(frames for frames, _ in self.shapes) < 2:
            raise ValueError(f"masked_steps needs shapes of 2 frames or more, got {self.shapes}")
        if self.masked_steps and self.labelled is None and self.unlabelled is None:
            raise ValueError("masked_steps needs unlabelled or labelled, a list or folder of clips")


class WithHeads(nn.Module):
    """The model, and the linear heads and the decoder that serve training only."""

    def __init__(self, model: FluxDual) -> None:
        super().__init__()
        self.model = model
        self.losses = DualLoss(model.dim, model.config.video.embed_dim)
        self.histograms = HistogramLoss(model.config.video)


class Beside(Dataset):
    """A rendered scene and a clip at every position."""

    def __init__(self, scenes: Mixture, clips: ClipStream) -> None:
        self.scenes, self.clips = scenes, clips

    def __getitem__(self, position: int) -> tuple[Sample, ClipSample]:
        return self.scenes[position], self.clips[position]


class Nano(Recipe):
    """See the module's text."""

    config_class = NanoConfig
    config: NanoConfig

    @classmethod
    def smoke(cls, config: NanoConfig) -> NanoConfig:
        """Two clips a step, a few steps."""
        return replace(
            config, batch_size=2, world_steps=(2, 4), shapes=((8, 112), (4, 112)), scenes=2, log_every=1, num_workers=0
        )

    @cached_property
    def clips(self) -> Clips:
        """The labelled clips without the fold that is left out."""
        return self._read(self._labelled())

    @cached_property
    def every_clip(self) -> Clips:
        """The unlabelled clips and the labelled ones without the fold that is left out, none with its label."""
        unlabelled = self.config.unlabelled
        entries = [*(read_entries(unlabelled) if unlabelled else ()), *self._labelled()]
        return self._read([replace(entry, label="") for entry in entries])

    def _labelled(self) -> list[Entry]:
        if self.config.labelled is None:
            return []
        entries = read_entries(self.config.labelled)
        kept = folds_by_size(entries, FOLDS) != self.config.fold
        return [entry for entry, keep in zip(entries, kept, strict=True) if keep]

    def _read(self, entries: Sequence[Entry]) -> Clips:
        cache = self.config.cache
        quarantine = Quarantine(cache / "quarantine.jsonl", len(entries))
        return Clips(entries, REAL_READING, quarantine, cache=ClipCache(cache / "clips", CACHE_BYTES))

    def build(self) -> nn.Module:
        """The dual encoder with the heads and the decoder of training, from `init` if that is given."""
        module = WithHeads(PRESETS["nano"].build())
        if self.config.init is None:
            start(module.model.video, None)
        else:
            begin(module, self.config.init)
        return module

    def stages(self) -> tuple[Stage, ...]:
        """`heads`, `plain`, `world`, `masked` and `real`, those of them that have steps."""
        config = self.config
        plain, world = config.world_steps
        no_decoder = ("*", "!histograms.*")
        blocks = [f"blocks.{number}.*" for number in range(config.frozen_blocks)]
        kept = [*BEFORE_BLOCKS, *blocks] if blocks else []
        above = (*no_decoder, *(f"!model.video.{name}" for name in kept))
        heads = ("losses.*", "histograms.*") if config.masked_steps else ("losses.*",)
        made = (  # steps, rate, warm-up, share of the rate at the end, what trains
            ("heads", config.head_steps, 5e-3, config.head_steps // 20, 0.05, heads),
            ("plain", plain, 2e-3, plain // 5, 0.85, no_decoder),
            ("world", world, 1.7e-3, 0 if plain else world // 20, 0.01, no_decoder),
            ("masked", config.masked_steps, config.masked_rate, config.masked_steps // 10, 0.01, ("*",)),
            ("real", config.real_steps, config.real_rate, config.real_steps // 20, 0.01, above),
        )
        shared: dict[str, Any] = {"ema_decay": EMA_DECAY, "betas": (0.9, 0.98)}
        return tuple(
            Stage(name, steps, rate, warmup_steps=warmup, final_share=final, trained=trained, **shared)
            for name, steps, rate, warmup, final, trained in made
            if steps
        )

    def dataset(self, stage: Stage) -> Dataset:
        """Rendered scenes; in stage `real` a share of labelled clips, in `masked` a clip beside each."""
        config = self.config
        scenes = MixtureConfig(
            length=stage.steps * config.batch_size,
            seed=config.seed * 1000 + SEEDS[stage.name],
            shapes=config.shapes[:1] if stage.name == "plain" else config.shapes,
            batch=config.batch_size,
            real_share=config.real_share if stage.name == "real" else 0.0,
            plain_share={"plain": 0.7, "world": 0.15}.get(stage.name, 0.0),
        )
        if stage.name == "real":
            return Mixture(scenes, self.clips)
        if self._predicts(stage):
            clips = ClipStream(self.every_clip, Shapes(config.shapes), config.batch_size, scenes.seed)
            return Beside(Mixture(scenes), clips)
        return Mixture(scenes)

    def collate(self, samples: Sequence[Any]) -> dict[str, Any]:
        """The batch of `elastivid.data.mixture.collate`, with words; clips beside scenes stand under `clips`."""
        if not isinstance(samples[0], tuple):
            return add_words(collate(samples), self._tokenizer)
        scenes, clips = zip(*samples, strict=True)
        return {**add_words(collate(scenes), self._tokenizer), "clips": collate_clips(clips)}

    @cached_property
    def _tokenizer(self) -> Any:
        return TextTower.from_file(output_dim=PRESETS["nano"].dim).tokenizer

    def step(
        self, module: nn.Module, batch: Any, stage: Stage, draws: torch.Generator
    ) -> tuple[Tensor, Mapping[str, Tensor]]:
        """The loss at three points, in stage `plain` at one, in `masked` at two, that of predictions added."""
        assert isinstance(module, WithHeads)
        if stage.name == "plain":
            return module.losses(module.model, batch, (OperatingPoint(tokens=PLAIN_TOKENS),))
        points = self._points(module.model, batch["frames"], draws)
        if not self._predicts(stage):
            return module.losses(module.model, batch, points)
        loss, report = module.losses(module.model, batch, points[::2])  # enough to remember
        clips = batch["clips"]["frames"].to(module.model.log_scale.device)
        base = int(torch.randint(2**31, (1,), generator=draws))
        seeds = [mixed(base, index) for index in batch["clips"]["indices"].tolist()]
        dear, _, cheap = self._points(module.model, clips, draws)
        assert dear.tokens is not None
        seen = (OperatingPoint(tokens=min(dear.tokens, tokens_of(clips) // 2)), cheap)
        predicted, parts = module.histograms(module.model.video, clips, module.model.transform, seeds, seen)
        return loss + self.config.masked_weight * predicted, {**report, **parts}

    def _predicts(self, stage: Stage) -> bool:
        """Whether there are clips beside the scenes."""
        return stage.name == "masked" or (stage.name == "heads" and self.config.masked_steps > 0)

    def _points(self, model: FluxDual, frames: Tensor, draws: torch.Generator) -> tuple[OperatingPoint, ...]:
        """Dear, medium and cheap, for clips (B, T, S, S, 3)."""
        config, depth = self.config, len(model.video.blocks)
        return draw_points(draws, tokens_of(frames), config.widths, depth, config.dear_tokens)

    def evaluate(self, module: nn.Module) -> list[Row]:
        """Share of right captions among captions wrong in one attribute, at four operating points."""
        assert isinstance(module, WithHeads)
        points = [(frames, side, OperatingPoint(tokens=t, width=width)) for frames, side, t, width in POINTS]
        return choice_rows(module.model, points, self.config.scenes)

    def exported(self, module: nn.Module) -> Exported:
        """The dual encoder without the heads, with the widths and token counts that plans may use."""
        assert isinstance(module, WithHeads)
        measured = {"trained_widths": list(self.config.widths), "trained_tokens": list(TRAINED_TOKENS)}
        return Exported(module.model, licence="Apache-2.0", measured=measured)


def tokens_of(frames: Tensor) -> int:
    """Tokens of one of the clips (B, T, S, S, 3)."""
    return int(frames.shape[1] * (frames.shape[2] // PATCH_PIXELS) ** 2)


def begin(module: WithHeads, init: Path) -> None:
    """Fill the model with that of a run, checkpoint or weights file; heads and decoder too where it holds them.

    Raises:
        TrainingError: it lacks parts of the model, or parts have other shapes.
        WeightsError: see `elastivid.weights.load.load`.
    """
    if str(init) in ALIASES or init.suffix == ".safetensors":
        found = {f"model.{name}": value for name, value in load(str(init)).state_dict().items()}
    else:
        state = load_checkpoint(init / LAST if init.is_dir() else init)
        found = state.get("average") or state["module"]
    wanted = module.state_dict()
    fitting = {name: value for name, value in found.items() if name in wanted and value.shape == wanted[name].shape}
    absent = sorted(name for name in wanted if name not in fitting)
    unfit = [name for name in absent if name.startswith("model.") or name in found]
    if unfit:
        raise TrainingError(f"{init} is no start for nano; missing or of another shape: {', '.join(unfit[:5])}")
    if absent:
        print(f"{init} does not hold {', '.join(sorted({n.split('.')[0] for n in absent}))}: they start anew",
              file=sys.stderr)  # fmt: skip
    module.load_state_dict({**wanted, **fitting})


RECIPE = Nano
