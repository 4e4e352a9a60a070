"""The training loader of conversations."""

from typing import Any

from tokenflow.data.config import Cursor
from tokenflow.data.conversation_config import ConversationConfig
from tokenflow.data.conversation_sources import ConversationReader, Prepare, as_stored
from tokenflow.data.loader import OrderedLoader


class ConversationLoader(OrderedLoader):
    """Micro-batches of conversations; see OrderedLoader for the order and the cursor.

    batch: `samples`, list of what `prepare` makes of every ConversationSample; `index` int64 [m], the place of each
    in the run's global order. `prepare` runs in the workers and raises BadSample for a conversation that turns out to
    be unusable, such as one without an answer inside the longest text: it is named, counted and replaced.

    With grouping, the order depends on the global batch size: resume with the same one.
    """

    def __init__(
        self,
        config: ConversationConfig,
        *,
        global_batch_size: int,
        micro_batch_size: int,
        rank: int = 0,
        world_size: int = 1,
        seed: int,
        cursor: Cursor | None = None,
        prepare: Prepare = as_stored,
    ):
        self.config = config
        super().__init__(
            ConversationReader(config, seed=seed, global_batch_size=max(1, global_batch_size), prepare=prepare),
            config,
            collate=_as_list,
            global_batch_size=global_batch_size,
            micro_batch_size=micro_batch_size,
            rank=rank,
            world_size=world_size,
            cursor=cursor,
        )

    def _batch(self, content: list[Any]) -> dict[str, Any]:
        return {"samples": content}


def _as_list(samples: list[Any], _number: int) -> list[Any]:
    return samples
