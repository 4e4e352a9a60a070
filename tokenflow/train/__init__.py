"""The training engine: one loop for every stage, DeepSpeed underneath, no knowledge of any model.

A stage is a `Task`; its modules are `Engine`s; `fit` trains them; a `Run` is the folder it leaves.
"""

from tokenflow.train.checkpoint import MAY_CHANGE, Checkpoints
from tokenflow.train.checkpoint_files import find_checkpoint
from tokenflow.train.config import TrainConfig, merge_deepspeed_config, offload_device, zero_stage
from tokenflow.train.engine import Engine, frozen
from tokenflow.train.guards import NonFiniteError, StopSignal
from tokenflow.train.hang import EXIT_HUNG, HangWatch
from tokenflow.train.hooks import ConsoleProgress, Hook
from tokenflow.train.loop import evaluate, fit
from tokenflow.train.memory import MemoryEstimate, estimate_memory
from tokenflow.train.run import EXIT_STOPPED, Run
from tokenflow.train.schedule import OptimizerConfig, ScheduleConfig, decay_matrices_only, learning_rate_at
from tokenflow.train.state import TrainState
from tokenflow.train.task import Engines, EvalResult, Metrics, OneModelTask, Task
from tokenflow.train.tracking import Tracker, TrackingConfig, read_rows

__all__ = [
    "EXIT_HUNG",
    "EXIT_STOPPED",
    "MAY_CHANGE",
    "Checkpoints",
    "ConsoleProgress",
    "Engine",
    "Engines",
    "EvalResult",
    "HangWatch",
    "Hook",
    "MemoryEstimate",
    "Metrics",
    "NonFiniteError",
    "OneModelTask",
    "OptimizerConfig",
    "Run",
    "ScheduleConfig",
    "StopSignal",
    "Task",
    "Tracker",
    "TrackingConfig",
    "TrainConfig",
    "TrainState",
    "decay_matrices_only",
    "estimate_memory",
    "evaluate",
    "find_checkpoint",
    "fit",
    "frozen",
    "learning_rate_at",
    "merge_deepspeed_config",
    "offload_device",
    "read_rows",
    "zero_stage",
]
