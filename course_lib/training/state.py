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
import shutil
import time
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.utils import gather_object
from diffusers.training_utils import EMAModel
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from course_lib import files
from course_lib.training.run import StepRecord, TrainingRun

FORMAT = "course_lib training state 2"


class StateError(ValueError):
    """A state that this run cannot use: damaged, or of another run. It was not changed."""


def write_state(
    path: Path | str, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]
) -> None:
    """Replace the file at `path` atomically; its folder is created if necessary.

    Args:
        path: of the safetensors file.
        tensors: of any dtype, on any device.
        metadata: anything that JSON can hold.

    Raises:
        OSError: the file cannot be written. The message has path, bytes needed and bytes free; the
            old file stays.
    """
    path = Path(path)
    # copies: safetensors accepts no tensors that share memory (tied weights), nor strided ones
    copies = {
        name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in tensors.items()
    }
    metadata_json = json.dumps(metadata, sort_keys=True)
    checksum = _checksum(copies, metadata_json)
    header = {"format": FORMAT, "metadata": metadata_json, "checksum": checksum}
    content = save(copies, header)
    try:
        with files.replace_atomically(path) as part:
            part.write_bytes(content)
    except OSError as error:
        message = f"{error.strerror}: {len(content) / 1e6:.1f} MB needed"
        if path.parent.is_dir():
            message += f", {shutil.disk_usage(path.parent).free / 1e6:.1f} MB free"
        raise OSError(error.errno, f"{message}; the old file is unchanged", str(path)) from error


def read_state(path: Path | str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read a file of `write_state`.

    Args:
        path: of an existing file.

    Returns:
        Tensors on the CPU, and metadata.

    Raises:
        StateError: the file is truncated, altered, or no training state.
    """
    path = Path(path)
    _check_is_file(path)
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


def _check_is_file(path: Path) -> None:
    if path.exists() and not path.is_file():
        raise StateError(f"state: {path} is not a file; use another path")


def _saved_step(path: Path) -> int:
    """The step in a state's header; 0 if there is no state that could be resumed."""
    try:
        with safe_open(path, "pt") as file:
            return json.loads(file.metadata()["metadata"])["step"]
    except (OSError, SafetensorError, ValueError, KeyError, TypeError):
        return 0


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
    settings = _as_json(settings)
    differences = [
        f"{name} was {saved.get(name)!r} and is now {settings.get(name)!r}"
        for name in sorted(saved.keys() | settings.keys())
        if saved.get(name) != settings.get(name)
    ]
    if differences:
        raise StateError(f"state: {path} is of another run: {'; '.join(differences)}. {advice}")


def _as_json(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings as they come back from a file: JSON turns tuples into lists."""

    def to_python(value: Any) -> Any:
        if isinstance(value, np.generic):
            return value.item()
        raise TypeError(f"{type(value).__name__} is not JSON")

    try:
        return json.loads(json.dumps(settings, default=to_python, allow_nan=False))
    except (TypeError, ValueError) as error:
        raise ValueError(f"run_fingerprint: expected what JSON can hold, got {error}") from error


def _version(path: Path) -> tuple[int, ...] | None:
    """Changes whenever the file is replaced; None if there is none."""
    try:
        stat = path.stat()
    except FileNotFoundError:
        return None
    return stat.st_mtime_ns, stat.st_size, stat.st_ino


def discard_state(path: Path) -> None:
    """Delete a state, which need not exist; raises StateError if another run uses it."""
    try:
        with files.locked(path, wait=False):
            path.unlink(missing_ok=True)
    except TimeoutError as error:
        raise _in_use(path) from error


def _in_use(path: Path) -> StateError:
    advice = "stop that one (in a notebook, close its generator), or use another path"
    return StateError(f"state: {path} is in use by another run; {advice}")


class StateCheckpointer:
    """Saves a run in a file, and resumes from it when it is made; until `close`, it has the lock.

    Args:
        run: of `train`.
        path: of the file, or None to save nothing.
        save_every: seconds between two saves.
        settings: in JSON; those of the file must be equal.

    Raises:
        StateError: the file is of another run, damaged, not visible to all processes, or another
            process writes it.
        ValueError: settings that JSON cannot hold.
        OSError: the file's folder is read-only.
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
        self.saved_file: tuple[int, ...] | None = None
        self.saved_at = time.monotonic()
        self._lock = ExitStack()
        if path is None:
            return
        self.settings = _as_json(self.settings)
        try:
            self._start(path)
        except BaseException:
            self.close()
            raise

    def _start(self, path: Path) -> None:
        """Lock the file, in the main process, and resume from it, in all of them."""
        problem = self._claim(path) if self.run.accelerator.is_main_process else None
        for error in filter(None, gather_object([problem])):  # all processes have to stop
            raise error
        if path.exists():
            self._restore(path)
        steps = gather_object([self.saved_steps])
        if len(set(steps)) > 1:  # before the first save, which the others must not read
            raise StateError(
                f"state: the processes found steps {steps} in {path}; "
                "put it on a disk that all processes share"
            )

    def _claim(self, path: Path) -> Exception | None:
        """Lock the file, if it can be written; returns what prevents this run."""
        try:
            _check_is_file(path)
            files.check_writable(path)
            self._lock.enter_context(files.locked(path, wait=False))
            files.remove_stale_parts(path)
        except StateError as error:
            return error
        except TimeoutError:
            return _in_use(path)
        except OSError as error:
            return OSError(error.errno, f"{error.strerror}: cannot write the state", str(path))
        return None

    def close(self) -> None:
        """Release the lock."""
        self._lock.close()

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
        self.saved_file = _version(path)

    def is_due(self) -> bool:
        """Whether `save_every` seconds have passed since the last save."""
        return time.monotonic() - self.saved_at >= self.save_every

    def save(self) -> None:
        """Write the state in the main process, if there is a new and consistent one.

        Raises:
            StateError: another process has written a later step; a file system may not know locks.
        """
        run = self.run
        is_new = run.is_consistent and len(run.history) != self.saved_steps
        if self.path is None or not is_new or not run.accelerator.is_main_process:
            return
        is_foreign = _version(self.path) not in (None, self.saved_file)
        if is_foreign and _saved_step(self.path) > len(run.history):
            raise StateError(
                f"state: {self.path} was written by another run, which is at step "
                f"{_saved_step(self.path)}; step {len(run.history)} of this one is not saved"
            )
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
        self.saved_file = _version(self.path)
        self.saved_at = time.monotonic()
