"""How is an ONNX model run within a thread budget?"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from shoal.bundle.errors import BundleInvalidError, DeviceUnavailableError

Device = Literal["cpu", "cuda"]

_PROVIDERS: Final = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}


class OnnxSession:
    """A loaded model. `run` may be called from several threads; each call takes `threads` cores."""

    def __init__(self, path: Path, *, threads: int, device: Device) -> None:
        """Load the model. Raises BundleInvalidError or DeviceUnavailableError."""
        provider = _PROVIDERS[device]
        available = onnxruntime.get_available_providers()
        if provider not in available:
            raise DeviceUnavailableError(
                f"this onnxruntime cannot use {device}: install the `gpu` extra, whose "
                f"onnxruntime-gpu replaces onnxruntime (available: {', '.join(available)})"
            )
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        # A thread that spins for its next task takes a core from whatever runs beside it.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.log_severity_level = 3
        try:
            self._session = onnxruntime.InferenceSession(str(path), options, providers=[provider])
        except Exception as error:
            raise BundleInvalidError(f"{path} cannot be loaded by ONNX Runtime: {error}") from error
        if provider not in self._session.get_providers():
            raise DeviceUnavailableError(
                f"ONNX Runtime could not start on {device}: its libraries (CUDA 13, cuDNN 9) are "
                f"missing, or there is no device"
            )
        self._inputs = {each.name for each in self._session.get_inputs()}

    def run(self, encodings: Sequence[Any]) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Run one batch, padded to its longest text.

        Returns the model's first output (batch first) and the attention mask [batch, tokens].
        """
        longest = max((len(each.ids) for each in encodings), default=0)
        ids = np.zeros((len(encodings), longest), dtype=np.int64)
        types, mask = np.zeros_like(ids), np.zeros_like(ids)
        for row, each in enumerate(encodings):
            count = len(each.ids)
            ids[row, :count] = each.ids
            types[row, :count] = each.type_ids
            mask[row, :count] = 1
        feeds = {"input_ids": ids, "attention_mask": mask, "token_type_ids": types}
        outputs = self._session.run(
            None, {name: value for name, value in feeds.items() if name in self._inputs}
        )
        return outputs[0], mask


def batches(lengths: Sequence[int], max_tokens: int) -> Iterator[list[int]]:
    """Divide texts into batches of similar length, each at most `max_tokens` with its padding.

    Bounded by tokens, not texts: ONNX Runtime's arena grows with the largest batch and keeps it.
    Yields positions; a text that is longer than the bound stands alone.
    """
    batch: list[int] = []
    for position in sorted(range(len(lengths)), key=lengths.__getitem__):
        if batch and (len(batch) + 1) * max(lengths[position], 1) > max_tokens:
            yield batch
            batch = []
        batch.append(position)
    if batch:
        yield batch
