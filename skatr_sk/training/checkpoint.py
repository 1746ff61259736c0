"""Checkpoints: a run that was interrupted goes on as if it had not been."""

from __future__ import annotations

import hashlib
import json
import logging
import textwrap
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from skorch.callbacks import Callback

from skatr_sk._files import write_whole
from skatr_sk.training.callbacks import EarlyStopping, plain

__all__ = ["Checkpoint"]

_LOGGER = logging.getLogger("skatr_sk.training")
_FORMAT = 2


@dataclass(eq=False, repr=False)
class Checkpoint(Callback):
    """Write the whole state of a run every few epochs, and go on from it when it is there.

    One safetensors file with a JSON header: weights, optimiser, generators, history and what
    early stopping knows. A resumed run equals one that was never interrupted; callbacks of the user
    alone start anew, for nobody else knows what they have to remember.
    """

    folder: str | Path  # made if it does not exist
    every: int  # epochs between two writes
    run: str  # identifies the run (parameters, data, seed): another run has a file of its own

    @property
    def path(self) -> Path:
        """File of the checkpoint: one a run, so that the folds of a search can share a folder."""
        digest = hashlib.blake2b(self.run.encode(), digest_size=8).hexdigest()
        return Path(self.folder) / f"checkpoint-{digest}.safetensors"

    def on_train_begin(self, net: Any, **kwargs: Any) -> None:
        """Resume where there is a file."""
        Path(self.folder).mkdir(parents=True, exist_ok=True)
        if self.path.exists():
            self._resume(net)
            _LOGGER.info("Resumed after epoch %d from %s.", len(net.history), self.path)

    def on_epoch_end(self, net: Any, **kwargs: Any) -> None:
        """Write every few epochs, and after the last."""
        epoch = len(net.history)
        if epoch % self.every == 0 or epoch == net.max_epochs or net.stop_:
            self._write(net)

    @staticmethod
    def _stopper(net: Any) -> EarlyStopping | None:
        return next((c for _, c in net.callbacks_ if isinstance(c, EarlyStopping)), None)

    @staticmethod
    def _generators(net: Any) -> dict[str, torch.Generator]:
        generators = {"shuffle": net.generator_, "torch": torch.default_generator}
        if hasattr(net.prepare, "generator"):
            generators["prepare"] = net.prepare.generator
        device = torch.device(net.device)
        if device.type == "cuda":
            index = torch.cuda.current_device() if device.index is None else device.index
            generators["cuda"] = torch.cuda.default_generators[index]
        return generators

    def _write(self, net: Any) -> None:
        tensors = {f"module.{k}": v for k, v in net.module_.state_dict().items()}
        optimizer = net.optimizer_.state_dict()["state"]
        tensors |= {f"optimizer.{i}.{k}": v for i, s in optimizer.items() for k, v in s.items()}
        tensors |= {f"generator.{k}": g.get_state() for k, g in self._generators(net).items()}
        header: dict[str, Any] = {"format": _FORMAT, "run": self.run, "stopped": net.stop_}
        header["history"] = net.history.to_list()
        if (stopper := self._stopper(net)) is not None:
            header["best"] = [stopper.best_loss_, stopper.best_epoch_]
            tensors |= {f"best.{k}": v for k, v in stopper.best_weights_.items()}
        whole = {k: v.detach().cpu().contiguous().clone() for k, v in tensors.items()}
        metadata = {"skatr_sk_checkpoint": json.dumps(plain(header))}
        write_whole(self.path, lambda path: save_file(whole, path, metadata=metadata))

    def _resume(self, net: Any) -> None:
        advice = "Remove the file to start anew, or name another checkpoint_dir."
        try:
            with safe_open(self.path, framework="pt") as stream:
                header = json.loads((stream.metadata() or {})["skatr_sk_checkpoint"])
                tensors = {key: stream.get_tensor(key) for key in stream.keys()}
        except (SafetensorError, KeyError, ValueError, OSError) as error:
            raise ValueError(f"{self.path} is no readable checkpoint: {error}. {advice}") from error
        if header.get("run") != self.run or header.get("format") != _FORMAT:
            raise ValueError(f"{self.path} was not written by this run. {advice}")
        try:
            self._restore(net, header, tensors)
        except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError) as error:
            why = textwrap.shorten(str(error), 200, placeholder=" ...")
            raise ValueError(f"{self.path} does not fit this run: {why}. {advice}") from error

    def _restore(self, net: Any, header: dict[str, Any], tensors: dict[str, torch.Tensor]) -> None:
        def part(prefix: str) -> dict[str, torch.Tensor]:
            return {k[len(prefix) :]: v for k, v in tensors.items() if k.startswith(prefix)}

        net.module_.load_state_dict(part("module."))
        parameters = [p for group in net.optimizer_.param_groups for p in group["params"]]
        state = net.optimizer_.state_dict()
        state["state"] = {}
        for key, value in part("optimizer.").items():
            index, name = key.split(".", 1)
            expected = parameters[int(index)].shape
            # The optimiser's kernels do not look at sizes: they would write beyond the tensor.
            if name != "step" and value.shape != expected:
                raise LookupError(f"{key} has shape {tuple(value.shape)}, not {tuple(expected)}")
            state["state"].setdefault(int(index), {})[name] = value
        net.optimizer_.load_state_dict(state)
        for name, generator in self._generators(net).items():
            if f"generator.{name}" in tensors:  # a run may go on on another device
                generator.set_state(tensors[f"generator.{name}"])
        net.history.extend(header["history"])
        net.stop_ = header["stopped"]
        if (stopper := self._stopper(net)) is not None:
            stopper.best_loss_, stopper.best_epoch_ = header["best"]
            stopper.best_weights_ = {k: v.to(net.device) for k, v in part("best.").items()}
