"""`align.train.job` with FSDP2 on CPU processes: accelerate shards on GPUs only, the code behind it does on gloo too.

Also ends the run after step $STOP_AFTER, and writes beside the job how many parameters were sharded.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import accelerate
from accelerate import PartialState
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType
from torch.distributed.tensor import DTensor

from align.train.job import main
from align.train.trainer import AlignTrainer

_init, _log, _step = accelerate.Accelerator.__init__, AlignTrainer.log, AlignTrainer.training_step


def init(self: Any, *args: Any, **kwargs: Any) -> None:
    _init(self, *args, **kwargs)
    if kwargs.get("fsdp_plugin") is not None:
        for state in (AcceleratorState, PartialState):
            state._shared_state["distributed_type"] = DistributedType.FSDP
        AcceleratorState._shared_state["fsdp_plugin"] = kwargs["fsdp_plugin"]


def log(self: Any, *args: Any, **kwargs: Any) -> None:
    _log(self, *args, **kwargs)
    if self.state.global_step == int(os.environ.get("STOP_AFTER", "-1")):
        raise RuntimeError("stopped by the test")


def training_step(self: Any, *args: Any, **kwargs: Any) -> Any:
    sharded = sum(isinstance(p, DTensor) for p in self.model.parameters())
    record = {"sharded": sharded, "parameters": len(list(self.model.parameters())), "first_step": self.state.global_step}
    path = Path(sys.argv[1]).parent / f"sharded-{os.environ['RANK']}.json"
    if not path.exists():
        path.write_text(json.dumps(record))
    return _step(self, *args, **kwargs)


accelerate.Accelerator.__init__ = init
AlignTrainer.log, AlignTrainer.training_step = log, training_step

if __name__ == "__main__":
    sys.exit(main())
