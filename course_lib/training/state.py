"""The state of a training run in one safetensors file, which survives a kill at any moment.

Not accelerate's `save_state`: it writes a folder of several files, some of them pickles, not
atomically. Here a temporary file is written, flushed to disk and renamed over the old one. Its
header holds metadata in JSON (step, settings, a checksum over everything), its body the tensors:

| tensor                   | content                                                       |
|--------------------------|---------------------------------------------------------------|
| `model.<name>`           | the model's state_dict: parameters and buffers                |
| `optimizer.<name>.<key>` | the optimizer's state of a parameter, such as `exp_avg`       |
| `ema.<number>`           | EMA of the parameters, in their order (buffers have none)     |
| `history`                | (steps, 4): loss, lr, seconds, examples of every step         |
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

from course_lib.training.run import StepRecord, TrainingRun

FORMAT = "course_lib training state 2"


class StateError(ValueError):
    """A state that cannot be resumed: damaged, or of another run. It was not changed."""


def write_state(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> None:
    """Replace the file at `path` atomically; its folder is created if necessary.

    Args:
        path: of the safetensors file.
        tensors: of any dtype, on any device.
        metadata: anything that JSON can hold.

    Raises:
        OSError: the file cannot be written. The message has path, bytes needed and bytes free; the
            old file stays.
    """
    # copies: safetensors accepts no tensors that share memory (tied weights), nor strided ones
    copies = {
        name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in tensors.items()
    }
    metadata_json = json.dumps(metadata, sort_keys=True)
    checksum = _checksum(copies, metadata_json)
    header = {"format": FORMAT, "metadata": metadata_json, "checksum": checksum}
    content = save(copies, header)
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
        needed = f"{len(content) / 1e6:.1f} MB needed"
        free = f"{shutil.disk_usage(path.parent).free / 1e6:.1f} MB free"
        message = f"{error.strerror}: {needed}, {free}; the old file is unchanged"
        raise OSError(error.errno, message, str(path)) from error
    except BaseException:  # an interrupt
        part.unlink(missing_ok=True)
        raise
    if os.name != "nt":  # on Windows a folder has no handle to flush
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def read_state(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read a file of `write_state`.

    Args:
        path: of an existing file.

    Returns:
        Tensors on the CPU, and metadata.

    Raises:
        StateError: the file is truncated, altered, or no training state.
    """
    try:
        with safe_open(path, "pt") as file:
            header = file.metadata() or {}
            # clones do not depend on the file
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}
    except SafetensorError as error:
        raise StateError(_damaged(path, str(error))) from error
    if header.get("format") != FORMAT:
        raise StateError(
            f"state: {path} is not a training state of this version (its header lacks {FORMAT!r})"
        )
    if header.get("checksum") != _checksum(tensors, header.get("metadata", "")):
        raise StateError(_damaged(path, "its checksum does not match its content"))
    return tensors, json.loads(header["metadata"])


def _damaged(path: Path, reason: str) -> str:
    return f"state: {path} is damaged ({reason}); delete it to restart, or restore a copy of it"


def _checksum(tensors: Mapping[str, Tensor], metadata_json: str) -> str:
    """sha256 over the metadata and over name, dtype, shape and bytes of every tensor."""
    digest = hashlib.sha256(metadata_json.encode())
    for name in sorted(tensors):
        tensor = tensors[name].contiguous()
        digest.update(f"\n{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def remove_stale_parts(path: Path) -> None:
    """Delete the temporary files of killed writers of `path`; those of running ones stay.

    Args:
        path: of the safetensors file, which need not exist.
    """
    for part in path.parent.glob(f"{path.name}.*.part"):
        pid = part.name.removesuffix(".part").rpartition(".")[2]
        if not (pid.isdecimal() and psutil.pid_exists(int(pid))):
            part.unlink(missing_ok=True)


def pack(model: nn.Module, optimizer: Any, ema: EMAModel | None) -> dict[str, Tensor]:
    """All tensors that a resumed run needs, by the names in this module's table.

    Args:
        model: without accelerate's wrapper.
        optimizer: torch's or accelerate's, over the parameters that require a gradient, in their
            order.
        ema: of all parameters of the model, or None.
    """
    tensors = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    names = trainable_names(model)
    for index, state in optimizer.state_dict()["state"].items():
        for key, value in state.items():
            if value is not None:
                tensors[f"optimizer.{names[index]}.{key}"] = value
    for number, shadow in enumerate(ema.shadow_params if ema is not None else ()):
        tensors[f"ema.{number}"] = shadow
    return tensors


def unpack(
    tensors: Mapping[str, Tensor], model: nn.Module, optimizer: Any, ema: EMAModel | None
) -> None:
    """Restore the tensors of `pack`, in place.

    Args:
        tensors: checked by `check_state`.
        model: see `pack`.
        optimizer: see `pack`.
        ema: see `pack`.
    """
    model.load_state_dict(_with_prefix("model.", tensors))
    states = {}
    for index, name in enumerate(trainable_names(model)):
        # a parameter's name may be the prefix of another's: only keys without a dot are its own
        state = _with_prefix(f"optimizer.{name}.", tensors)
        state = {key: value for key, value in state.items() if "." not in key}
        if state:
            states[index] = state
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": states, "param_groups": groups})
    for number, shadow in enumerate(ema.shadow_params if ema is not None else ()):
        shadow.copy_(tensors[f"ema.{number}"])


def _with_prefix(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors whose names start with a prefix, without it."""
    return {
        name.removeprefix(prefix): tensor
        for name, tensor in tensors.items()
        if name.startswith(prefix)
    }


def trainable_names(model: nn.Module) -> list[str]:
    """Names of the parameters of `model` that require a gradient, in the model's order."""
    return [name for name, parameter in model.named_parameters() if parameter.requires_grad]


def _trainable_fingerprint(model: nn.Module) -> str:
    """Number of trainable parameters and a hash of their names."""
    names = trainable_names(model)
    total = len(list(model.parameters()))
    digest = hashlib.sha256(" ".join(names).encode()).hexdigest()[:8]
    return f"{len(names)} of {total} parameters ({digest})"


def check_state(
    path: Path,
    tensors: Mapping[str, Tensor],
    saved: Mapping[str, Any],
    model: nn.Module,
    settings: Mapping[str, Any],
) -> None:
    """Check that a state belongs to a model and a run.

    Args:
        path: of the state, for the message.
        tensors: of the state.
        saved: settings in the state, by name.
        model: of the run.
        settings: of the run, by name.

    Raises:
        StateError: the message names what differs.
    """
    model_shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    state_shapes = {
        name: tuple(tensor.shape) for name, tensor in _with_prefix("model.", tensors).items()
    }
    advice = "Use another path, or delete it to restart"
    for name in model_shapes | state_shapes:
        in_state = state_shapes.get(name, "missing")
        in_model = model_shapes.get(name, "missing")
        if in_state != in_model:
            raise StateError(
                f"state: {path} is of another model: {name} is {in_state} in the state and "
                f"{in_model} in the model. {advice}"
            )
    settings = json.loads(json.dumps(settings))  # JSON turns tuples into lists
    differences = [
        f"{name} was {saved.get(name)!r} and is now {settings.get(name)!r}"
        for name in sorted(saved.keys() | settings.keys())
        if saved.get(name) != settings.get(name)
    ]
    if differences:
        raise StateError(f"state: {path} is of another run: {'; '.join(differences)}. {advice}")


class StateCheckpointer:
    """Saves a run in a file, and resumes from it when it is made.

    Args:
        run: of `train`.
        path: of the file, or None to save nothing.
        save_every: seconds between two saves.
        settings: in JSON; those of the file must be equal.

    Raises:
        StateError: the file is of another run, damaged, or not visible to all processes.
    """

    def __init__(
        self,
        run: TrainingRun,
        path: Path | None,
        save_every: float | int,
        settings: Mapping[str, Any],
    ):
        self.run = run
        self.path = path
        self.save_every = save_every
        self.settings = dict(settings) | {"trainable": _trainable_fingerprint(run.model)}
        self.saved_steps = 0
        self.saved_at = time.monotonic()
        if path is None:
            return
        if run.accelerator.is_main_process:
            remove_stale_parts(path)
        if path.exists():
            self._restore(path)
        steps = gather_object([self.saved_steps])
        if len(set(steps)) > 1:  # before the first save, which the others must not read
            raise StateError(
                f"state: the processes found steps {steps} in {path}; "
                "put it on a disk that all processes share"
            )

    def _restore(self, path: Path) -> None:
        run = self.run
        tensors, metadata = read_state(path)
        check_state(path, tensors, metadata["settings"], run.model, self.settings)
        unpack(tensors, run.model, run.optimizer, run.ema)
        run.history.extend(StepRecord(*row) for row in tensors["history"].tolist())
        run.lr_scheduler.load_state_dict(metadata["lr_schedule"])
        lrs = run.lr_scheduler.get_last_lr()
        for group, lr in zip(run.optimizer.param_groups, lrs, strict=True):
            group["lr"] = lr
        if run.ema is not None:
            run.ema.optimization_step = metadata["ema_step"]
        self.saved_steps = len(run.history)

    def is_due(self) -> bool:
        """Whether `save_every` seconds have passed since the last save."""
        return time.monotonic() - self.saved_at >= self.save_every

    def save(self) -> None:
        """Write the state in the main process, if there is a new and consistent one."""
        run = self.run
        is_new = run.is_consistent and len(run.history) != self.saved_steps
        if self.path is None or not is_new or not run.accelerator.is_main_process:
            return
        tensors = pack(run.model, run.optimizer, run.ema)
        tensors["history"] = torch.tensor(run.history, dtype=torch.float64)
        metadata = {
            "step": len(run.history),
            "settings": self.settings,
            "lr_schedule": run.lr_scheduler.state_dict(),
            "ema_step": run.ema and run.ema.optimization_step,
        }
        write_state(self.path, tensors, metadata)
        self.saved_steps = len(run.history)
        self.saved_at = time.monotonic()
