"""Weights and moments that DeepSpeed's ZeRO shards over the processes, put together and taken apart again.

In bfloat16 the weights proper are float32 copies that the optimizer holds; the model's own are rounded from them.
"""

from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from rebus.train.named_state import MOMENTS


class ZeroState:
    """Reads and sets what an engine of DeepSpeed knows of parameters at stages 1 to 3; all processes call it alike."""

    def __init__(self, engine: Any) -> None:
        self.zero, self.stage = engine.optimizer, engine.zero_optimization_stage()
        self.flat: list[Tensor] = (
            self.zero.fp32_partitioned_groups_flat if self.stage == 3 else self.zero.single_partition_of_fp32_groups
        )
        """What AdamW sees: this process's share of the weights of each group, end to end."""
        self._link()

    def entries(self, parameter: nn.Parameter) -> dict[str, Tensor]:
        """Returns the whole ``weight`` in float32 and, once a step was taken, both moments and ``step``."""
        from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

        entries: dict[str, Any] = {"weight": safe_get_full_fp32_param(parameter)}
        if moments := self._moments():
            entries |= {name: safe_get_full_optimizer_state(parameter, name) for name in MOMENTS}
            entries["step"] = moments[0]["step"]
        return entries

    @torch.no_grad()
    def set_entries(self, parameter: nn.Parameter, entries: Mapping[str, Tensor]) -> None:
        """Sets the weight and its rounded copy, and the moments if they are given.

        Raises:
            ValueError: if other parameters have taken another number of steps: ZeRO counts them for all together.
        """
        values = {name: value.to(parameter.device) for name, value in entries.items()}
        if "step" in values:
            self._start_moments(values["step"])
        if self.stage == 3:
            self._set_shard(parameter, values)
        else:
            self._set_whole(parameter, values)

    def _set_whole(self, parameter: nn.Parameter, values: Mapping[str, Tensor]) -> None:
        from deepspeed.utils import safe_set_full_fp32_param, safe_set_full_optimizer_state

        parameter.copy_(values["weight"])
        safe_set_full_fp32_param(parameter, values["weight"])
        for name in MOMENTS:
            if name in values:
                safe_set_full_optimizer_state(parameter, values[name], name)

    def _set_shard(self, parameter: Any, values: Mapping[str, Tensor]) -> None:
        from deepspeed.runtime.zero.partition_parameters import ZeroParamStatus
        from deepspeed.utils import safe_set_local_fp32_param, safe_set_local_optimizer_state

        size = parameter.ds_tensor.numel()

        def own(value: Tensor) -> Tensor:
            padding = size * dist.get_world_size() - value.numel()
            return F.pad(value.flatten(), (0, padding)).narrow(0, size * dist.get_rank(), size)

        safe_set_local_fp32_param(parameter, own(values["weight"]))
        parameter.ds_tensor.copy_(own(values["weight"]))
        if parameter.ds_status == ZeroParamStatus.AVAILABLE:  # small ones are kept whole, too
            parameter.copy_(values["weight"])
        for name in MOMENTS:
            if name in values:
                safe_set_local_optimizer_state(parameter, own(values[name]), name)

    def _moments(self) -> list[dict[str, Tensor]]:
        return [self.zero.optimizer.state[flat] for flat in self.flat if self.zero.optimizer.state.get(flat)]

    def _start_moments(self, step: Tensor) -> None:
        if moments := self._moments():
            if moments[0]["step"].item() != step.item():
                got = f"{moments[0]['step'].item():g} and {step.item():g}"
                raise ValueError(f"all parameters must have taken as many steps under ZeRO, got {got}")
            return
        for flat in self.flat:
            zeros = {name: torch.zeros_like(flat) for name in MOMENTS}
            self.zero.optimizer.state[flat] = {"step": step.to(flat.device, copy=True), **zeros}
        self._link()

    def _link(self) -> None:
        """Tells each parameter where its moments are; DeepSpeed itself does so before all groups have theirs."""
        if self.stage < 3 and self._moments():
            from deepspeed.utils import lazy_init_hp_params_optimizer_state

            for group, flat in zip(self.zero.bit16_groups, self.flat, strict=True):
                lazy_init_hp_params_optimizer_state(group, flat, self.zero.optimizer.state)
