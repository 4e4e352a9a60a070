"""Data: pictures, conversations about them, the training order and its cursor, the built-in world and its verifier."""

from tokenflow.data.codes import CodesDescription, codes_of, codes_of_conversations
from tokenflow.data.config import Cursor, DataConfig, SourceConfig
from tokenflow.data.conversation_config import ConversationConfig, ConversationSourceConfig
from tokenflow.data.conversation_loader import ConversationLoader
from tokenflow.data.conversation_sources import ConversationReader, ConversationSample
from tokenflow.data.evaluation import EvaluationBatches
from tokenflow.data.loader import Loader, TooManyBadSamples
from tokenflow.data.shape_shards import write_shapes
from tokenflow.data.sources import SampleReader, read_captions
from tokenflow.data.transforms import center_crop, decode_image, to_tensor, to_uint8

__all__ = [
    "CodesDescription",
    "ConversationConfig",
    "ConversationLoader",
    "ConversationReader",
    "ConversationSample",
    "ConversationSourceConfig",
    "Cursor",
    "DataConfig",
    "EvaluationBatches",
    "Loader",
    "SampleReader",
    "SourceConfig",
    "TooManyBadSamples",
    "center_crop",
    "codes_of",
    "codes_of_conversations",
    "decode_image",
    "read_captions",
    "to_tensor",
    "to_uint8",
    "write_shapes",
]
