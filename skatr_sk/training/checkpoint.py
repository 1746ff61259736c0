"""Checkpoints: a run that was interrupted goes on as if it had not been."""

from __future__ import annotations

import hashlib
import json
import logging
import math
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import scipy
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from skorch.callbacks import Callback

from skatr_sk._checks import CheckpointWarning, NoEffectWarning, listed, warn
from skatr_sk._files import check_regular, write_whole
from skatr_sk._version import __version__
from skatr_sk.fields import Fields
from skatr_sk.training.callbacks import EarlyStopping, plain
from skatr_sk.training.processes import is_first
from skatr_sk.training.state import (
    Tensors,
    copied,
    digest_of,
    faults,
    generators_of,
    layout_of,
    part,
    put_back,
)

__all__ = ["Checkpoint", "content_of", "run_identity"]

_LOGGER = logging.getLogger("skatr_sk.training")
_FORMAT = 3
_KEY = "skatr_sk_checkpoint"
_DIGEST = "digest"
# Bytes of a header: a file that says more is not read, and more is not written.
_OF_HEADER, _OF_EPOCH, _OF_TENSOR = 1_000_000, 10_000, 1_000
_NAMES = {  # what safetensors calls the types that a run has
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I32": torch.int32,
    "I64": torch.int64,
    "BF16": torch.bfloat16,
    "F16": torch.float16,
    "F32": torch.float32,
    "F64": torch.float64,
}
# Whatever reading and comparing what is no checkpoint may raise.
_ODD = (
    ArithmeticError,
    AttributeError,
    LookupError,
    MemoryError,
    RuntimeError,
    SafetensorError,
    TypeError,
    ValueError,
)


class _Unfit(ValueError):
    """What is read is no checkpoint of the run; says why."""


def run_identity(settings: Mapping[str, Any]) -> str:
    """Spell what makes a run the same run: all that its result depends on but the versions."""
    return json.dumps(plain(settings), sort_keys=True)


def content_of(fields: Fields) -> str:
    """Shape and content of fields, for the identity of a run."""
    content = hashlib.blake2b(b"".join(fields.digests()), digest_size=16).hexdigest()
    return f"{fields.shape} {content}"


def _versions() -> dict[str, str]:
    """Versions of what computes the numbers; a build for another device has the same one."""
    found = {"numpy": np, "scipy": scipy, "torch": torch}
    versions = {name: str(module.__version__).partition("+")[0] for name, module in found.items()}
    return versions | {"skatr_sk": __version__}


@dataclass(eq=False, repr=False)
class Checkpoint(Callback):
    """Write the whole state of a run every few epochs, and go on from it when it is there.

    One safetensors file with a JSON header, in which there is a digest of all: weights, optimiser,
    generators, history and what early stopping and the guard know. A resumed run equals one that
    was never interrupted; callbacks of the user alone start anew, for nobody else knows what they
    have to remember. A state that cannot be written is a CheckpointWarning, once, and the run goes
    on.
    """

    folder: str | Path  # made if it does not exist
    every: int  # epochs between two writes
    run: str  # identifies the run (parameters, data, seed): another run has a file of its own
    # Header and tensors after the last epoch, where they are not written yet.
    latest_: tuple[str, Tensors] | None = field(default=None, init=False)
    epoch_: int = field(default=0, init=False)
    failed_: bool = field(default=False, init=False)

    @property
    def path(self) -> Path:
        """File of the checkpoint: one a run, so that the folds of a search can share a folder.

        Other versions of what computes have another one: a run that changes them half-way would
        equal neither.
        """
        return Path(self.folder) / f"{self._stem}-{_short(json.dumps(_versions()))}.safetensors"

    @property
    def _stem(self) -> str:
        return f"checkpoint-{_short(self.run)}"

    def on_train_begin(self, net: Any, **kwargs: Any) -> None:
        """Resume where there is a file."""
        self._make_folder()
        if self.path.exists():
            self._resume(net)
            self.epoch_ = len(net.history)
            _LOGGER.info("Resumed after epoch %d from %s.", self.epoch_, self.path)
            own = [name for name, _ in net.callbacks_ if not name.startswith("skatr_sk_")]
            if own and (self.epoch_ >= net.max_epochs or net.stop_):
                warn(
                    f"callbacks: {listed(own)} saw no epoch, for the run had ended when it was "
                    f"taken from {self.path}; remove the file to train with them.",
                    NoEffectWarning,
                )
            return
        if others := sorted(Path(self.folder).glob(f"{self._stem}-*.safetensors")):
            now = ", ".join(f"{name} {version}" for name, version in _versions().items())
            warn(
                f"checkpoint_dir: {others[-1]} is a checkpoint of this run by other versions than "
                f"{now}; it is left, and the run begins anew, for a run that goes on with other "
                "versions would equal neither.",
                CheckpointWarning,
            )

    def on_epoch_end(self, net: Any, **kwargs: Any) -> None:
        """Keep the state, and write it every few epochs and after the last."""
        self.epoch_ = len(net.history)
        self.latest_ = self._header(net), self._tensors(net)
        if self.epoch_ % self.every == 0 or self.epoch_ == net.max_epochs or net.stop_:
            self.write()

    def write(self) -> None:
        """Write the state after the last epoch that has ended, unless that is done."""
        if self.latest_ is None or not is_first():  # of several processes one writes
            return
        header, tensors = self.latest_
        whole = {k: v.cpu().contiguous().clone() for k, v in tensors.items()}  # no two share
        metadata = {_KEY: header, _DIGEST: digest_of(whole, header)}
        try:
            size = sum(values.nbytes for values in whole.values())
            write_whole(self.path, lambda path: save_file(whole, path, metadata=metadata), size)
        except (OSError, SafetensorError) as error:
            if not self.failed_:
                warn(
                    f"checkpoint_dir: the state after epoch {self.epoch_} could not be written to "
                    f"{self.path} ({error}); the training goes on, and tries again after the next "
                    "epochs. Make room, or name another folder in the next fit.",
                    CheckpointWarning,
                )
            self.failed_ = True
            return
        self.latest_, self.failed_ = None, False

    def whereabouts(self) -> str:
        """Say where the state is, and how to go on."""
        if self.epoch_ == 0:
            return "no epoch has ended yet, and nothing is written"
        if self.latest_ is not None:
            return f"the state could not be written to {self.path}"
        return (
            f"the state is in {self.path}: fit again with the same parameters and data to go on "
            "from there"
        )

    def _make_folder(self) -> None:
        try:
            Path(self.folder).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise type(error)(
                f"checkpoint_dir: expected a folder, or one that can be made, found "
                f"{str(self.folder)!r} ({error.strerror}); name another."
            ) from error

    @staticmethod
    def _stopper(net: Any) -> EarlyStopping | None:
        return next((c for _, c in net.callbacks_ if isinstance(c, EarlyStopping)), None)

    def _header(self, net: Any) -> str:
        """Spell all of the state that is no tensor."""
        # What is left of its steps when an epoch has ended is in its own figures.
        history = [plain(row | {"batches": []}) for row in net.history.to_list()]
        header: dict[str, Any] = {"format": _FORMAT, "run": self.run, "stopped": net.stop_}
        header |= {"history": history, "guard": net.guard.counts()}
        if (stopper := self._stopper(net)) is not None:
            header["best"] = plain([stopper.best_loss_, stopper.best_epoch_])
        text = json.dumps(header)
        if len(text) > _most(net.max_epochs):
            if not self.failed_:
                warn(
                    "checkpoint_dir: callbacks record more than "
                    f"{_OF_EPOCH} bytes an epoch; all but numbers is left out of {self.path}, and "
                    "of history_ where the run resumes.",
                    CheckpointWarning,
                )
            self.failed_ = True
            numbers = (int, float, type(None))
            few = [{k: v for k, v in row.items() if isinstance(v, numbers)} for row in history]
            text = json.dumps(header | {"history": few})
        return text

    def _tensors(self, net: Any) -> Tensors:
        """Copy the tensors of the state; those that steps change are as the guard found them."""
        tensors = copied(net.guard.good_)
        tensors |= {f"generator.{k}": g.get_state() for k, g in generators_of(net).items()}
        if (stopper := self._stopper(net)) is not None:
            tensors |= {f"best.{k}": v for k, v in stopper.best_weights_.items()}
        return tensors

    # Reading: nothing of a file is used before all of it has been compared -----------------------

    def _resume(self, net: Any) -> None:
        found = check_regular(self.path)
        try:
            header, tensors = self._read(net, found.st_size)
            self._restore(net, header, tensors)
        except OSError as error:
            why = error.strerror or error
            raise type(error)(
                error.errno, f"checkpoint cannot be read: {why}", str(self.path)
            ) from None
        except _ODD as error:
            why = textwrap.shorten(str(error), 300, placeholder=" ...")
            if not isinstance(error, _Unfit):
                why = f"it cannot be read ({type(error).__name__}: {why})"
            raise ValueError(
                f"{self.path}: expected a whole checkpoint of this run, found that {why}; remove "
                "the file to start anew, or name another checkpoint_dir."
            ) from error

    def _read(self, net: Any, size: int) -> tuple[dict[str, Any], Tensors]:
        """Return header and tensors of the file, which have its digest, and the run's layout."""
        with open(self.path, "rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
        # Quotes in the text of the header are escaped in that of the file.
        most = 2 * _most(net.max_epochs) + _OF_TENSOR * len(layout_of(net))
        if not 0 < length <= min(size - 8, most):
            raise _Unfit(f"its header of {length} bytes does not fit its {size} bytes, or the run")
        with safe_open(self.path, framework="pt") as stream:
            metadata = stream.metadata() or {}
            if _KEY not in metadata:
                raise _Unfit("it has no header of skatr_sk, and was not written by this run")
            header = json.loads(metadata[_KEY])
            if header.get("run") != self.run or header.get("format") != _FORMAT:
                raise _Unfit("it was not written by this run")
            self._compare(net, header, stream)
            tensors = {key: stream.get_tensor(key) for key in stream.keys()}
        if digest_of(tensors, metadata[_KEY]) != metadata.get(_DIGEST):
            raise _Unfit("it is not what was written, for it has another digest")
        return header, tensors

    def _compare(self, net: Any, header: dict[str, Any], stream: Any) -> None:
        """Compare the header, and names, shapes and types of tensors, with those of the run."""
        wrong = _wrong_in(header, net.max_epochs, self._stopper(net) is not None)
        wanted = layout_of(net)
        for name, generator in generators_of(net).items():
            wanted[f"generator.{name}"] = tuple(generator.get_state().shape), torch.uint8
        if header.get("best", [0, 0])[1]:
            of_module = {k: v for k, v in wanted.items() if k.startswith("module.")}
            wanted |= {k.replace("module.", "best.", 1): v for k, v in of_module.items()}
        found = set(stream.keys())
        if len(found) > 2 * len(wanted):
            raise _Unfit(f"it has {len(found)} tensors, where the run has {len(wanted)}")
        # A weight has moments after its first step, all of them; a run may change its device.
        moved = {_weight_of(key) for key in found}
        optional = {key for key in wanted if _weight_of(key) not in moved}
        optional |= {"generator.cuda", "generator.torch"}
        wrong += [f"{key} is missing" for key in wanted.keys() - found - optional]
        unknown = found - wanted.keys() - {"generator.cuda"}
        wrong += [f"{key} is not part of it" for key in unknown]
        for key in wanted.keys() & found:
            stored = stream.get_slice(key)
            shape, kind = tuple(stored.get_shape()), _NAMES.get(stored.get_dtype())
            if (shape, kind) != wanted[key]:
                wrong.append(f"{key} is {kind} {shape}, not {wanted[key][1]} {wanted[key][0]}")
        if wrong:
            raise _Unfit(f"it does not fit this run: {'; '.join(sorted(wrong)[:4])}")

    def _restore(self, net: Any, header: dict[str, Any], tensors: Tensors) -> None:
        """Let a net have the state."""
        if wrong := [fault for item in tensors.items() if (fault := faults(*item))]:
            raise _Unfit(f"it does not fit this run: {'; '.join(sorted(wrong)[:4])}")
        put_back(net, tensors)
        for name, generator in generators_of(net).items():
            if f"generator.{name}" in tensors:  # a run may go on on another device
                generator.set_state(tensors[f"generator.{name}"])
        net.history.extend(header["history"])
        net.stop_ = header["stopped"]
        net.guard.resume(net, header["guard"])
        if (stopper := self._stopper(net)) is not None:
            stopper.best_loss_, stopper.best_epoch_ = header["best"]
            best = part(tensors, "best.")
            stopper.best_weights_ = {k: v.to(net.device) for k, v in best.items()}


def _most(max_epochs: int) -> int:
    """Bytes that the header of a run may have."""
    return _OF_HEADER + _OF_EPOCH * max_epochs


def _short(text: str) -> str:
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def _weight_of(key: str) -> str | None:
    """Number of the weight whose moments a tensor is part of; None for another tensor."""
    return key.split(".")[1] if key.startswith("optimizer.") else None


def _wrong_in(header: dict[str, Any], max_epochs: int, stops_early: bool) -> list[str]:
    """Say what is wrong with a header beside the tensors."""
    history, best = header.get("history"), header.get("best", [math.inf, 0])
    rows = history if isinstance(history, list) else [None]
    wrong = []
    if [_epoch(row) for row in rows] != list(range(1, len(rows) + 1)) or len(rows) > max_epochs:
        wrong.append(f"its history is none of at most {max_epochs} epochs")
    if not isinstance(header.get("stopped"), bool):
        wrong.append("it does not say whether the run had stopped")
    whole = isinstance(best, list) and [type(one) for one in best] == [float, int]
    if not whole or not 0 <= best[1] <= len(rows) or ("best" in header) != stops_early:
        wrong.append("its best epoch is none of the run")
    return wrong


def _epoch(row: Any) -> int | None:
    """Number of the epoch of a row of the history that has what is needed to go on."""
    if not isinstance(row, dict) or not isinstance(row.get("dur"), float):
        return None
    return row.get("epoch") if isinstance(row.get("train_loss"), float) else None
