"""What a run of stage 4 or 5 is: image tokenizer, language model, projector, conversations (paper, section 3.4)."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any, Literal

import yaml

from tokenflow.data import ConversationConfig, ConversationSourceConfig
from tokenflow.language.config import LanguageConfig
from tokenflow.train import OptimizerConfig, ScheduleConfig, TrackingConfig, TrainConfig
from tokenflow.understanding.backbone import backbone_config
from tokenflow.understanding.batching import Packing
from tokenflow.understanding.config import Aspect, Features, Rotary, TemplateName, UnderstandingConfig
from tokenflow.understanding.lora import LoraOptions
from tokenflow.understanding.presets import preset

_CHOSEN = (
    *("features", "projector", "merge", "neighbourhood", "whiten", "coordinates", "rotary"),
    *("template", "system", "aspect", "max_length"),
)


@dataclass(frozen=True, kw_only=True)
class UnderstandingChoice:
    """How the language model sees and is spoken to. Sizes come from the language model and the image tokenizer."""

    preset: str
    """A name of `tokenflow.understanding.presets.PRESETS`; fields below that are null are its."""
    features: Features | None = None
    """What stands for an image (Table 8; `teacher`: Table 9)."""
    projector: str | None = None
    """`linear` or `mlpNx_gelu`."""
    merge: int | None = None
    """Neighbouring features on a side that become one position."""
    neighbourhood: int | None = None
    """Features on a side that the projector reads around each place."""
    whiten: bool | None = None
    """Whether a frozen layer whitens features before it, with the statistics of the first training pictures."""
    coordinates: int | None = None
    """Sines and cosines of its column, and of its row, that the projector reads beside a feature."""
    rotary: Rotary | None = None
    """Positions of features for the rotation: one after the other (`sequence`), or rows and columns (`grid`)."""
    template: TemplateName | None = None
    """How a conversation is written."""
    system: str | None = None
    """The system message; empty: none."""
    aspect: Aspect | None = None
    """How an image becomes square."""
    max_length: int | None = None
    """Positions of a row."""
    language: dict[str, Any] = field(default_factory=dict)
    """Fields of the language model's configuration that change no weight, such as `checkpointing`, `attention` or
    `embedding_deviation` (what the projector's output starts as)."""

    def config(self, language: LanguageConfig, tower: Any) -> UnderstandingConfig:
        """The model of a language model on an image tokenizer (configurations of both)."""
        base = preset(self.preset)
        fields = {name: getattr(base, name) for name in _CHOSEN}
        fields |= {name: value for name in _CHOSEN if (value := getattr(self, name)) is not None}
        changes = {name: _typed(value) for name, value in self.language.items()}
        try:
            language = dataclasses.replace(language, **changes)
        except TypeError as error:
            raise ValueError(f"model.language {sorted(changes)}: {error}") from error
        if self.max_length is None:
            fields["max_length"] = min(fields["max_length"], language.max_positions)
        return backbone_config(language, tower, **fields)


@dataclass(frozen=True, kw_only=True)
class UnderstandingRecipe:
    """A run of stage 4 (alignment) or 5 (instruction tuning), whole. The image tokenizer stays as it is."""

    name: str
    """Names the run's folder and its MLflow run."""
    tokenizer: str
    """Folder or hub id of the image tokenizer; of the teacher where features are its."""
    model: UnderstandingChoice
    """How the language model sees and is spoken to."""
    data: ConversationConfig
    """Conversations, and where their pictures lie."""
    train: TrainConfig
    """Steps, batch sizes, precision, intervals."""
    trains: Literal["projector", "everything", "lora"]
    """What learns: the `projector` alone (alignment); projector and language model; or projector and low-rank
    adapters of the language model, which the exported model has merged."""
    language: str | None = None
    """Folder or hub id of the language model to start from, under a new projector."""
    continue_from: str | None = None
    """Folder or hub id of a multimodal model to start from instead: what the alignment exported."""
    lora: LoraOptions = field(default_factory=LoraOptions)
    """Of `trains: lora`."""
    packing: Packing = "none"
    """`rows`: several conversations a row, up to max_length, which do not see one another; less is lost to padding."""
    construction: Literal["whole", "sharded"] = "whole"
    """`sharded`: under ZeRO-3 no rank ever holds the whole model; for billions of parameters."""
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    """Optimiser; vectors (norms, biases) are not decayed."""
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    """Learning rate over the steps."""
    evaluation_sources: tuple[ConversationSourceConfig, ...] = ()
    """Conversations whose loss an evaluation measures; when empty, the first of the training sources."""
    evaluation_conversations: int = 64
    """How many of them, at most."""
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    """MLflow."""

    def __post_init__(self) -> None:
        if (self.language is None) == (self.continue_from is None):
            raise ValueError(
                f"language is {self.language!r} and continue_from is {self.continue_from!r}; expected one of them: a "
                "language model, or a multimodal model that goes on learning."
            )
        if self.evaluation_conversations < 1:
            raise ValueError(f"evaluation_conversations is {self.evaluation_conversations}; expected at least 1")
        preset(self.model.preset)


def _typed(value: Any) -> Any:
    """A value that came from the command line as text, typed."""
    return yaml.safe_load(value) if isinstance(value, str) else value
