"""The state of a training run in one safetensors file that outlives a kill: the newest one, or the one before it.

A file is written beside the old one, flushed to the disk, and renamed over it, which no crash can do by halves. Its
header carries facts in JSON (step, settings, a checksum over everything), its body the tensors:

| tensors                    | what                                                                         |
|----------------------------|------------------------------------------------------------------------------|
| `model.<name>`             | the model's state_dict: parameters and buffers                               |
| `optimizer.<name>.<key>`   | what the optimizer remembers of a parameter, such as `exp_avg`               |
| `average.<number>`         | the moving average of the parameters, in their order (buffers have none)     |
| `rows`                     | loss, lr, seconds, examples of every step: the curve goes on where it ended  |
"""

import hashlib
import json
import os
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil
import torch
from accelerate.utils import gather_object
from diffusers.training_utils import EMAModel
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

FORMAT = "course_lib training state 1"


class StateError(ValueError):
    """A state that cannot be continued: damaged, or of another run. Nothing was changed on the disk."""


def write_state(path: Path, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
    """Replace the file at `path` in one piece; the folder is made if need be.

    path: the safetensors file. tensors: of any dtype, on any device. facts: anything JSON can say.
    Raises OSError, naming path, bytes needed and bytes free, when it cannot be written; the old file stays.
    """
    # copies: safetensors takes no two tensors that share memory (tied weights), nor one with gaps
    own = {
        name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in tensors.items()
    }
    words = json.dumps(facts, sort_keys=True)
    content = save(own, {"format": FORMAT, "facts": words, "checksum": _checksum(own, words)})
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        with part.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    except OSError as error:
        part.unlink(missing_ok=True)
        free = shutil.disk_usage(path.parent).free / 1e6
        message = f"{error.strerror}: {len(content) / 1e6:.1f} MB needed, {free:.1f} MB free; what was there is untouched"
        raise OSError(error.errno, message, str(path)) from error
    except BaseException:  # an interrupt: leave no half file behind
        part.unlink(missing_ok=True)
        raise
    if os.name != "nt":  # on Windows a folder has no handle to flush
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def read_state(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """What `write_state` wrote: tensors (on the CPU) and facts.

    path: an existing file. Raises StateError if it is truncated, altered, or no training state.
    """
    try:
        with safe_open(path, "pt") as file:
            header = file.metadata() or {}
            tensors = {
                name: file.get_tensor(name).clone() for name in file.keys()
            }  # the file itself may go
    except SafetensorError as error:
        raise StateError(_damaged(path, str(error))) from error
    if header.get("format") != FORMAT:
        raise StateError(
            f"state: {path} is not a training state of this version (expected {FORMAT!r} in its header)"
        )
    if header.get("checksum") != _checksum(tensors, header.get("facts", "")):
        raise StateError(_damaged(path, "its checksum does not match its content"))
    return tensors, json.loads(header["facts"])


def _damaged(path: Path, reason: str) -> str:
    return f"state: {path} is damaged ({reason}); delete it to begin anew, or put a copy of it in its place"


def _checksum(tensors: Mapping[str, Tensor], words: str) -> str:
    """sha256 over the facts and over name, type, shape and bytes of every tensor."""
    digest = hashlib.sha256(words.encode())
    for name in sorted(tensors):
        tensor = tensors[name].contiguous()
        digest.update(f"\n{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def remove_leftovers(path: Path) -> None:
    """Delete what a writer of `path` left behind when it was killed; a writer that still runs is left alone.

    path: the safetensors file, which need not exist.
    """
    for part in path.parent.glob(f"{path.name}.*.part"):
        writer = part.name.removesuffix(".part").rpartition(".")[2]
        if not (writer.isdecimal() and psutil.pid_exists(int(writer))):
            part.unlink(missing_ok=True)


def pack(model: nn.Module, optimizer: Any, average: EMAModel | None) -> dict[str, Tensor]:
    """All tensors that training needs to go on, by the names in this module's table.

    model: not wrapped. optimizer: torch's or accelerate's, over the parameters that require a gradient, in the
    model's order. average: of all the model's parameters.
    """
    tensors = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    names = trained(model)
    for index, memory in optimizer.state_dict()["state"].items():
        tensors |= {
            f"optimizer.{names[index]}.{key}": value
            for key, value in memory.items()
            if value is not None
        }
    if average is not None:
        tensors |= {
            f"average.{number}": shadow for number, shadow in enumerate(average.shadow_params)
        }
    return tensors


def unpack(
    tensors: Mapping[str, Tensor], model: nn.Module, optimizer: Any, average: EMAModel | None
) -> None:
    """Put what `pack` took out back, in place.

    tensors: of `pack`, checked by `check_state`. model, optimizer, average: as there.
    """
    part = {
        name.removeprefix("model."): tensor
        for name, tensor in tensors.items()
        if name.startswith("model.")
    }
    model.load_state_dict(part)
    memory: dict[int, dict[str, Tensor]] = {}
    for index, name in enumerate(trained(model)):
        start = f"optimizer.{name}."
        # a parameter's name may begin with another's: only a key without a dot is this one's
        found = {
            key.removeprefix(start): value
            for key, value in tensors.items()
            if key.startswith(start)
        }
        memory[index] = {key: value for key, value in found.items() if "." not in key}
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict(
        {"state": {i: found for i, found in memory.items() if found}, "param_groups": groups}
    )
    if average is not None:
        for number, shadow in enumerate(average.shadow_params):
            shadow.copy_(tensors[f"average.{number}"])


def trained(model: nn.Module) -> list[str]:
    """Names of the parameters that require a gradient, in the model's order.

    model: any.
    """
    return [name for name, parameter in model.named_parameters() if parameter.requires_grad]


def _which(model: nn.Module) -> str:
    """Which parameters are trained, in few words."""
    names, total = trained(model), len(list(model.parameters()))
    return f"{len(names)} of {total} parameters ({hashlib.sha256(' '.join(names).encode()).hexdigest()[:8]})"


def check_state(
    path: Path,
    tensors: Mapping[str, Tensor],
    saved: Mapping[str, Any],
    model: nn.Module,
    wanted: Mapping[str, Any],
) -> None:
    """Raise StateError, naming what differs, if a state is not of this model and these settings.

    path: of the state, for the message. tensors: what it holds. model: that is to go on. saved, wanted: settings,
    name to value, of the state and of the run.
    """
    here = {f"model.{name}": tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    there = {
        name: tuple(tensor.shape) for name, tensor in tensors.items() if name.startswith("model.")
    }
    advice = "Use another path, or delete it to begin anew"
    for name in here | there:
        if here.get(name) != there.get(name):
            shapes = f"{there.get(name, 'missing')} in the state and {here.get(name, 'missing')} in the model"
            raise StateError(
                f"state: {path} is of another model: {name.removeprefix('model.')} is {shapes}. {advice}"
            )
    wanted = json.loads(json.dumps(wanted))  # a tuple comes back as a list
    differing = sorted(
        name for name in saved.keys() | wanted.keys() if saved.get(name) != wanted.get(name)
    )
    if differing:
        how = "; ".join(
            f"{name} was {saved.get(name)!r} and is now {wanted.get(name)!r}" for name in differing
        )
        raise StateError(f"state: {path} is of another run: {how}. {advice}")


class Keeper:
    """Keeps a run in a file: goes on from it when it is made, and writes it when told.

    run: what `training.train` works on. path: the file, or None to keep nothing. save_every: seconds between two
    times at which `due` is true. settings: in JSON; those of the file must be equal. Raises StateError.
    """

    def __init__(
        self, run: Any, path: Path | None, save_every: float | int, settings: Mapping[str, Any]
    ):
        self.run, self.path, self.save_every = run, path, save_every
        self.settings = dict(settings) | {"trained": _which(run.model)}
        self.saved, self.last = 0, time.monotonic()
        if path is None:
            return
        if run.accelerator.is_main_process:
            remove_leftovers(path)
        if path.exists():
            self._restore(path)
        steps = gather_object([self.saved])
        if len(set(steps)) > 1:  # before the first save, which the others must not read
            raise StateError(
                f"state: the processes found steps {steps} in {path}; put it on a disk that all share"
            )

    def _restore(self, path: Path) -> None:
        run = self.run
        tensors, facts = read_state(path)
        check_state(path, tensors, facts["settings"], run.model, self.settings)
        unpack(tensors, run.model, run.optimizer, run.average)
        run.rows.extend(map(tuple, tensors["rows"].tolist()))
        run.scheduler.load_state_dict(facts["schedule"])
        for group, lr in zip(run.optimizer.param_groups, run.scheduler.get_last_lr(), strict=True):
            group["lr"] = lr
        if run.average is not None:
            run.average.optimization_step = facts["average"]
        self.saved = len(run.rows)

    def due(self) -> bool:
        """Whether it is time to save."""
        return time.monotonic() - self.last >= self.save_every

    def save(self) -> None:
        """Write the state, unless it is written, half made, or another process' duty."""
        run = self.run
        if (
            self.path is None
            or not run.whole
            or len(run.rows) == self.saved
            or not run.accelerator.is_main_process
        ):
            return
        tensors = pack(run.model, run.optimizer, run.average)
        tensors["rows"] = torch.tensor(run.rows, dtype=torch.float64)
        facts = {
            "step": len(run.rows),
            "settings": self.settings,
            "schedule": run.scheduler.state_dict(),
        }
        write_state(
            self.path, tensors, facts | {"average": run.average and run.average.optimization_step}
        )
        self.saved, self.last = len(run.rows), time.monotonic()
