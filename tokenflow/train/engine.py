"""One trained module: a thin wrapper over `deepspeed.initialize`, the same with and without ZeRO, on CPU and GPU.

An engine takes a *factory*, not a module, so that it decides how the module comes to be: whole on every rank, or
(ZeRO-3, models of billions of parameters) partitioned while it is built.

A GAN is two engines in one process. Three rules keep that exact at every ZeRO stage. In the generator's step the
discriminator is frozen (`frozen`) and its *bare* module is called (`engine.module(x)`), never the engine. Each
network behind the generator's output is passed backward once a forward pass (ZeRO-3 has freed its weights after
that), so gradients that are needed twice, as for an adaptive weight, are computed at a detached copy of the output.
And only `backward` may reach an engine's output: DeepSpeed takes any other gradient there for its own.

ZeRO-3: every rank must run the same modules in the same order, in evaluation and sampling too.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from tokenflow.train import distributed
from tokenflow.train.config import TrainConfig, merge_deepspeed_config, offload_device, zero_stage
from tokenflow.train.ema import WeightAverage
from tokenflow.train.gradients import BufferSnapshot, GradientWatch, discard_gradients
from tokenflow.train.offload import NO_RESUME, in_swappable_order, with_own_swap_folder
from tokenflow.train.optimizers import make_optimizer
from tokenflow.train.schedule import OptimizerConfig, ScheduleConfig, learning_rate_at
from tokenflow.train.state import forked_rng
from tokenflow.train.universal import SHARDS, make_universal
from tokenflow.train.weights import iterate_state, load_state, read_tensors, write_tensors

ParameterGroups = Callable[[nn.Module], list[dict[str, Any]]]


class Engine:
    """A module with its optimiser, schedule, ZeRO stage and, if asked, a running average of its weights."""

    def __init__(
        self,
        factory: Callable[[], nn.Module],
        *,
        name: str,
        train: TrainConfig,
        optimizer: OptimizerConfig,
        schedule: ScheduleConfig | None = None,
        deepspeed: dict[str, Any] | None = None,
        deepspeed_source: str = "the DeepSpeed JSON",
        parameter_groups: ParameterGroups | None = None,
        ema_decay: float | None = None,
        weights: Mapping[str, Tensor] | str | Path | None = None,
        construction: Literal["whole", "sharded"] = "whole",
    ) -> None:
        """Build the module and its engine. Every rank must do so together.

        Args:
            factory: Makes the module; its random draws are a function of the seed and the engine's name.
            name: Names the engine in logs and checkpoints, such as `generator`.
            train: Batch sizes, clipping, precision, steps and seed.
            optimizer: Which optimiser.
            schedule: Learning rate over the steps; constant by default.
            deepspeed: The DeepSpeed JSON as a dictionary; ZeRO is off without it.
            deepspeed_source: The JSON's name for error messages.
            parameter_groups: Splits the module's parameters into groups (own `weight_decay`, and `learning_rate_scale`
                times the schedule); one group of all trainable parameters by default.
            ema_decay: Decay of a running average of the weights; none by default.
            weights: Initial weights, streamed in one parameter at a time.
            construction: `sharded` builds inside `deepspeed.zero.Init` under ZeRO-3, so that no rank ever holds the
                whole module. A parent's `__init__` then sees its children's parameters empty: what it writes into
                them is lost, so give `weights`.
        """
        import deepspeed as library

        self.name = name
        self.train_config = train
        self.optimizer_config = optimizer
        self.schedule = schedule or ScheduleConfig()
        json = deepspeed or {}
        merged = merge_deepspeed_config(
            json, train, optimizer, world_size=distributed.world_size(), source=deepspeed_source
        )
        self.stage = zero_stage(json)
        self.offload = offload_device(json)
        if self.offload == "nvme":
            merged = with_own_swap_folder(merged)
        module = _build(
            factory, name=name, train=train, sharded=self.stage == 3 and construction == "sharded", json=merged
        )
        if weights is not None:
            load_state(module, weights)
        groups = parameter_groups(module) if parameter_groups else [{"params": _trained(module)}]
        if self.offload == "nvme":
            groups = in_swappable_order(groups, module=module, deepspeed=json, world_size=distributed.world_size())
        client = make_optimizer(module, groups, optimizer, offload=self.offload)
        self._engine = library.initialize(model=module, optimizer=client, config=merged, dist_init_required=False)[0]
        self._watch = GradientWatch(self.module)
        self._buffers = BufferSnapshot(self.module)
        self._has_gradients = False
        self.average = WeightAverage(self.module, decay=ema_decay) if ema_decay is not None else None
        self.learning_rate = learning_rate_at(0, steps=train.steps, optimizer=optimizer, schedule=self.schedule)
        """Learning rate of the last step taken."""
        self.gradient_norm: float | Tensor | None = None
        """Global gradient norm of the last step taken, before clipping."""

    @property
    def module(self) -> nn.Module:
        """The bare module: for evaluation, and for the frozen side of a GAN's step."""
        return self._engine.module

    @property
    def device(self) -> torch.device:
        """Where this rank computes."""
        return torch.device(self._engine.device)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Forward pass that `backward` can follow."""
        return self._engine(*args, **kwargs)

    def autocast(self) -> AbstractContextManager[Any]:
        """The precision of this engine's forward pass, for calls of the bare module."""
        if self.train_config.precision != "bf16_autocast":
            return nullcontext()
        return torch.autocast(self.device.type, dtype=torch.bfloat16)

    def start_step(self) -> None:
        """Begin an optimiser step: what `discard_gradients` will return to."""
        self._watch.reset()
        self._buffers.take()
        self._has_gradients = False

    def start_micro_batch(self, *, last: bool) -> None:
        """Begin a micro-batch; ZeRO reduces gradients differently on the last of a step."""
        self._engine.set_gradient_accumulation_boundary(last)

    def backward(self, loss: Tensor) -> None:
        """Add a micro-batch's gradients; the loss is divided by the number of micro-batches here.

        Args:
            loss: Scalar. Call it on every micro-batch of a step or on none: an engine without a backward pass (a
                discriminator before its start) takes no step and keeps its optimiser state.
        """
        self._has_gradients = True
        self._engine.backward(loss)

    def non_finite_gradient(self) -> Tensor:
        """Float scalar on this rank: 1 if a gradient of this step held NaN or infinity, else 0."""
        found = self._watch.non_finite()
        return torch.zeros((), device=self.device) if found is None else found

    def discard_gradients(self) -> None:
        """Forget this step: its gradients on every rank, and what its forward passes did to running statistics."""
        if self._has_gradients:
            discard_gradients(self._engine)
        self._buffers.restore()
        self._has_gradients = False

    def step(self, step: int) -> bool:
        """Update the weights, and their average, with the step's gradients.

        Args:
            step: Index of the step, from 0: what the learning rate depends on.

        Returns:
            Whether there was anything to update with.
        """
        if not self._has_gradients:
            return False
        self.learning_rate = learning_rate_at(
            step, steps=self.train_config.steps, optimizer=self.optimizer_config, schedule=self.schedule
        )
        for group in self._engine.optimizer.param_groups:
            group["lr"] = self.learning_rate * group.get("learning_rate_scale", 1.0)
        if self.stage == 0:
            gradients = [p.grad for p in self.module.parameters() if p.grad is not None]
            self.gradient_norm = torch.nn.utils.get_total_norm(gradients)
        self._engine.step()
        if self.stage > 0:
            self.gradient_norm = self._engine.get_global_grad_norm()
        self._has_gradients = False
        if self.average is not None:
            self.average.update()
        return True

    @contextmanager
    def averaged_weights(self) -> Iterator[None]:
        """Compute with the running average inside this context; with the weights themselves if there is none."""
        with self.average.swapped_in() if self.average is not None else nullcontext():
            yield

    def train(self, mode: bool = True) -> None:
        """Put the module into training or evaluation mode."""
        self.module.train(mode)

    def gathered_state_dict(self) -> dict[str, Tensor]:
        """The module's whole state on rank 0's CPU, {} elsewhere. Every rank must call it (ZeRO-3 gathers)."""
        return _on_main(iterate_state(self.module))

    def gathered_average(self) -> dict[str, Tensor]:
        """As `gathered_state_dict`, with the running average (fp32) in place of the parameters."""
        return _on_main(self.average.iterate_state()) if self.average is not None else self.gathered_state_dict()

    def load_weights(self, source: Mapping[str, Tensor] | str | Path, *, strict: bool = True) -> None:
        """Replace the weights (not the optimiser's state) from tensors, a safetensors file or a folder of them.

        Raises:
            ValueError: Names or shapes do not fit.
        """
        load_state(self.module, source, strict=strict)
        if hasattr(self._engine.optimizer, "refresh_fp32_params"):
            self._engine.optimizer.refresh_fp32_params()
        if self.average is not None:
            self.average.reset()

    def save(self, folder: Path) -> dict[str, Any]:
        """Write everything this engine needs to go on. Every rank must call it; the folder must exist.

        Returns:
            What `load` needs besides the folder, for JSON.
        """
        # Lets ds_to_universal read ZeRO-1 and 2 shards, for a resume at another world size.
        client_state = (
            {"universal_checkpoint_info": {"universal_checkpoint_version": 0.2}} if self.stage in (1, 2) else {}
        )
        self._engine.save_checkpoint(str(folder), tag=SHARDS, client_state=client_state, save_latest=False)
        if distributed.is_main_process():
            (folder / "buffers").mkdir()
            (folder / "average").mkdir()
            # DeepSpeed's universal format leaves buffers out.
            write_tensors(self._saved_buffers().items(), folder / "buffers")
        distributed.barrier()
        if self.average is None:
            return {"stage": self.stage}
        self.average.save(folder / "average")
        return {"stage": self.stage, "average_updates": self.average.updates}

    def load(self, folder: Path, saved: Mapping[str, Any], *, world_size: int) -> None:
        """Read what `save` wrote. Every rank must call it.

        DeepSpeed's shards are pickles: load only what this project's own runs wrote.

        Args:
            folder: The engine's folder in the checkpoint.
            saved: What `save` returned.
            world_size: How many ranks wrote it; at another number of ranks the shards are first made universal.

        Raises:
            ValueError: Another ZeRO stage, a missing average or a shard that cannot be read.
        """
        if saved["stage"] != self.stage:
            raise ValueError(
                f"{folder} was written under ZeRO stage {saved['stage']}, this run uses stage {self.stage}. Keep the "
                "stage, or begin another run with another --output (and --init_from, where the stage has it)."
            )
        if self.offload == "nvme":
            raise ValueError(f"{folder} cannot be loaded: {NO_RESUME}, or start afresh with --resume none.")
        universal = self.stage > 0 and world_size != distributed.world_size()
        tag = make_universal(folder) if universal else SHARDS
        self._engine._config.load_universal_checkpoint = universal
        try:
            loaded, _ = self._engine.load_checkpoint(str(folder), tag=tag)
        finally:
            self._engine._config.load_universal_checkpoint = False
        if loaded is None:
            raise ValueError(f"{folder}: DeepSpeed found no shards under {tag!r}; the checkpoint is incomplete")
        if universal:
            self._load_buffers(folder / "buffers")
        if self.average is not None:
            if "average_updates" not in saved:
                raise ValueError(f"{folder} holds no running average, but train.ema_decay asks for one")
            self.average.load(folder / "average", updates=saved["average_updates"])

    def _saved_buffers(self) -> dict[str, Tensor]:
        saved = set(self.module.state_dict(keep_vars=True))
        return {name: buffer.detach().cpu() for name, buffer in self.module.named_buffers() if name in saved}

    def _load_buffers(self, folder: Path) -> None:
        buffers = dict(self.module.named_buffers())
        if not any(folder.iterdir()):
            return
        for name, tensor in read_tensors(folder):
            buffers[name].copy_(tensor)


@contextmanager
def frozen(engine: Engine) -> Iterator[nn.Module]:
    """The bare module of an engine, its parameters frozen: for the discriminator in the generator's step.

    Gradients flow through it to its input, never into it, and its engine does not see the call.
    """
    parameters = _trained(engine.module)
    for parameter in parameters:
        parameter.requires_grad_(False)
    try:
        yield engine.module
    finally:
        for parameter in parameters:
            parameter.requires_grad_(True)


def _build(
    factory: Callable[[], nn.Module], *, name: str, train: TrainConfig, sharded: bool, json: dict[str, Any]
) -> nn.Module:
    import deepspeed as library

    with forked_rng():
        distributed.seed_all(train.seed, zlib.crc32(name.encode()))
        if not sharded:
            return factory().to(distributed.device())
        # The dtype comes from the configuration: a dtype argument is lost on CPU (DeepSpeed 0.19).
        with library.zero.Init(config_dict_or_path=json):
            return factory()


def _trained(module: nn.Module) -> list[nn.Parameter]:
    return [parameter for parameter in module.parameters() if parameter.requires_grad]


def _on_main(state: Iterator[tuple[str, Tensor]]) -> dict[str, Tensor]:
    whole = {}
    for name, tensor in state:
        if distributed.is_main_process():
            whole[name] = tensor
    return whole
