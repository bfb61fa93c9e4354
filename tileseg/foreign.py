"""Other people's networks as torch modules: tiles (N, B, T, T) -> (N, K, T, T).

Each kind needs its own library, which is imported only where such a network is loaded.
"""

from collections.abc import Mapping
from io import BytesIO
from typing import Any

import torch
from torch import Tensor, nn

from tileseg.architecture import Architecture
from tileseg.errors import ModelError

__all__ = ["CodeNetwork", "OnnxNetwork", "build_smp", "run_in_parts", "wanted"]


def wanted(library: str, extra: str, what: str) -> ModelError:
    """Return the error of a library that is not installed."""
    msg = f"{what}: needs {library}: pip install 'tileseg[{extra}]'"
    return ModelError(msg)


def build_smp(architecture: Architecture) -> nn.Module:
    """Return a network of segmentation_models_pytorch, with random weights.

    Args:
        architecture: its parameters are those of `smp.create_model`.

    Raises:
        ModelError: the library is not installed, or knows no such network.
    """
    try:
        import segmentation_models_pytorch as smp
    except ImportError as err:
        name = "segmentation_models_pytorch"
        raise wanted(name, "smp", architecture.name) from err
    parameters = {**architecture.parameters, "encoder_weights": None}
    try:
        module: nn.Module = smp.create_model(**parameters)
    except (TypeError, ValueError, KeyError, RuntimeError, AttributeError) as err:
        reason = str(err).strip().splitlines()[-1][:300]
        msg = f"{architecture.name}: cannot be built: {reason}"
        raise ModelError(msg) from err
    return module


class CodeNetwork(nn.Module):
    """A TorchScript or torch.export archive: a program, which was trusted before."""

    def __init__(self, data: bytes, architecture: Architecture) -> None:
        """Load a program; whatever is in it may run.

        Args:
            data: the file.
            architecture: its kind, and as a parameter `batch`, how many tiles it takes
                at once, null for any.

        Raises:
            ModelError: it is no such archive.
        """
        super().__init__()
        self._batch = architecture.parameters.get("batch")
        try:
            if architecture.kind == "torchscript":
                self.program = torch.jit.load(BytesIO(data), map_location="cpu")
            else:
                self.program = torch.export.load(BytesIO(data)).module()
        except Exception as err:  # a program raises anything
            reason = str(err).strip().splitlines()[0][:300]
            kind = architecture.kind
            msg = f"{architecture.name}: cannot be loaded as {kind}: {reason}"
            raise ModelError(msg) from err

    def train(self, mode: bool = True) -> "CodeNetwork":  # noqa: FBT001, FBT002  (torch's)
        """Change nothing of an exported program, which knows one mode only."""
        if isinstance(self.program, torch.jit.ScriptModule):
            self.program.train(mode)
        self.training = mode
        return self

    def forward(self, tiles_NBTT: Tensor) -> Tensor:
        """Return what the network answers, (N, K, T, T)."""
        return run_in_parts(self.program, tiles_NBTT, self._batch)


class OnnxNetwork(nn.Module):
    """A network that onnxruntime runs, in fp32."""

    def __init__(self, data: bytes, parameters: Mapping[str, Any]) -> None:
        """Take a model's bytes.

        Args:
            data: the file; what it keeps outside itself is not looked for.
            parameters: `input` and `output`, names; `batch`, how many tiles it takes at
                once, null for any; `layout`, of tiles and answers, NCHW or NHWC.

        Raises:
            ModelError: onnxruntime is missing, or cannot run it.
        """
        super().__init__()
        self._data, self._names = data, (parameters["input"], parameters["output"])
        self._batch = parameters.get("batch")
        self._is_last = parameters.get("layout", "NCHW") == "NHWC"
        self._session = _session(data, "cpu")

    def to(self, *args: Any, **_kwargs: Any) -> "OnnxNetwork":  # noqa: ANN401  (torch's)
        """Go to the device that is named first, if one is."""
        device = str(args[0]) if args else ""
        if device.startswith(("cpu", "cuda")):
            self._session = _session(self._data, device)
        return self

    def forward(self, tiles_NBTT: Tensor) -> Tensor:
        """Return what the network answers, (N, K, T, T), in fp32."""
        return run_in_parts(self._run, tiles_NBTT, self._batch)

    def _run(self, tiles_NBTT: Tensor) -> Tensor:
        tiles = tiles_NBTT.float()
        if self._is_last:
            tiles = tiles.permute(0, 2, 3, 1)
        given, asked = self._names
        array = tiles.contiguous().cpu().numpy()
        (found,) = self._session.run([asked], {given: array})
        answers = torch.from_numpy(found).float().to(tiles_NBTT.device)
        return answers.permute(0, 3, 1, 2) if self._is_last else answers


def run_in_parts(forward: Any, tiles: Tensor, batch: int | None) -> Tensor:  # noqa: ANN401  (a module)
    """Return the answers of a network that takes just so many tiles at once."""
    if batch is None:
        answers: Tensor = forward(tiles)
        return answers
    parts = []
    for part in tiles.split(batch):
        lacking = batch - len(part)
        full = torch.cat((part, part.new_zeros(lacking, *part.shape[1:])))
        parts.append(forward(full)[: len(part)])
    return torch.cat(parts)


def _session(data: bytes, device: str) -> Any:  # noqa: ANN401  (onnxruntime is untyped)
    try:
        import onnxruntime as ort
    except ImportError as err:
        raise wanted("onnxruntime", "onnx", "an ONNX network") from err
    options = ort.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3  # errors; what matters is raised
    providers: list[Any] = ["CPUExecutionProvider"]
    kind, _, number = device.partition(":")
    if kind == "cuda":
        cuda = "CUDAExecutionProvider"
        if cuda not in ort.get_available_providers():
            msg = f"{device}: onnxruntime sees no GPU: pip install onnxruntime-gpu"
            raise ModelError(msg)
        providers.insert(0, (cuda, {"device_id": int(number or 0)}))
    try:
        return ort.InferenceSession(data, options, providers=providers)
    except Exception as err:  # onnxruntime's have no common name
        reason = str(err).strip().splitlines()[0][:300]
        msg = f"onnxruntime cannot run the network: {reason}"
        raise ModelError(msg) from err
