"""Other people's networks as torch modules: tiles (N, B, T, T) -> (N, K, T, T).

Each kind needs its own library, which is imported only where such a network is loaded.
A card may be hostile: what it says of a network is looked at before a library sees it.
"""

import re
from collections.abc import Callable, Mapping
from io import BytesIO
from typing import Any

import torch
from torch import Tensor, nn

from tileseg.cards.architecture import Architecture
from tileseg.errors import ModelError, RefusedError, last_line

__all__ = ["CodeNetwork", "OnnxNetwork", "build_smp", "open_onnx"]

_LARGEST = 2048  # channels, and any other number that a network is built of
_LONGEST = 32  # such numbers in a row
_LEVELS = 8  # of rows in rows
_WORD = re.compile(r"[\w.+-]{1,100}")

# A text of 8 letters, that number in any of the lengths that protobuf lets it have: the
# key of a file's name in a tensor whose numbers are elsewhere.
_ELSEWHERE = re.compile(rb"(?:\x08|\x88\x80*\x00)location", re.DOTALL)
_ORT_FORMAT = slice(4, 8), b"ORTM"


def _wanted(library: str, extra: str, what: str) -> ModelError:
    msg = f"{what}: needs {library}: pip install 'tileseg[{extra}]'"
    return ModelError(msg)


def build_smp(architecture: Architecture) -> nn.Module:
    """Return a network of segmentation_models_pytorch, with random weights.

    Args:
        architecture: its parameters are those of `smp.create_model`.

    Raises:
        ModelError: the library is not installed or cannot be loaded, or knows no such
            network.
        RefusedError: its parameters lead elsewhere, or ask for too much.
    """
    parameters = {**architecture.parameters, "encoder_weights": None}
    for name, value in parameters.items():
        if not (_WORD.fullmatch(str(name)) and _is_modest(value)):
            msg = (
                f"{architecture.name}: a network is not built with {name} = "
                f"{str(value)[:100]!r}: wanted plain names and numbers to {_LARGEST}"
            )
            raise RefusedError(msg)
    try:
        import segmentation_models_pytorch as smp
    except ImportError as err:
        name = "segmentation_models_pytorch"
        raise _wanted(name, "smp", architecture.name) from err
    except Exception as err:  # torchvision stops anyhow where it does not fit torch
        build = torch.__version__.partition("+")[2]
        index = f" --index-url https://download.pytorch.org/whl/{build}" * bool(build)
        msg = (
            f"{architecture.name}: segmentation_models_pytorch cannot be loaded: "
            f"{last_line(err)}; if that is torchvision, take the one for this torch: "
            f"pip install --force-reinstall --no-deps torchvision{index}"
        )
        raise ModelError(msg) from err
    try:
        module: nn.Module = smp.create_model(**parameters)
    except Exception as err:  # of a wrong argument anything
        msg = f"{architecture.name}: cannot be built: {last_line(err)}"
        raise ModelError(msg) from err
    return module


def _is_modest(value: object, levels: int = _LEVELS) -> bool:
    """Return whether an argument is a word, a small number, or some of these."""
    if isinstance(value, str):  # `hf-hub:` and `local-dir:` would be followed
        return _WORD.fullmatch(value) is not None
    if isinstance(value, Mapping):
        value = list(value.items())
    if isinstance(value, list | tuple):
        is_short = levels > 0 and len(value) <= _LONGEST
        return is_short and all(_is_modest(item, levels - 1) for item in value)
    return value is None or (isinstance(value, int | float) and abs(value) <= _LARGEST)


class CodeNetwork(nn.Module):
    """A TorchScript or torch.export archive: a program, which was trusted before."""

    def __init__(self, data: bytes, kind: str) -> None:
        """Load a program; whatever is in it may run.

        Args:
            data: the file.
            kind: `torchscript` or `exported`.

        Raises:
            ModelError: it is no such archive.
        """
        super().__init__()
        self.shape: tuple[int | None, ...] = (None,) * 4
        """Of the tiles that it takes; None for any, and where it does not say."""
        try:
            if kind == "torchscript":
                self._program = torch.jit.load(BytesIO(data), map_location="cpu")
            else:
                exported = torch.export.load(BytesIO(data))
                self.shape = _input_shape(exported)
                self._program = exported.module()
        except Exception as err:  # a program raises anything
            msg = f"it cannot be loaded as {kind}: {last_line(err)}"
            raise ModelError(msg) from err

    def train(self, mode: bool = True) -> "CodeNetwork":  # noqa: FBT001, FBT002  (torch's)
        """Change nothing of an exported program, which knows one mode only."""
        if isinstance(self._program, torch.jit.ScriptModule):
            self._program.train(mode)
        self.training = mode
        return self

    def forward(self, tiles_NBTT: Tensor) -> Tensor:
        """Return what the network answers, (N, K, T, T)."""
        return _in_parts(self._program, tiles_NBTT, self.shape[0])


def _input_shape(program: torch.export.ExportedProgram) -> tuple[int | None, ...]:
    """Return the shape of the one input, None where it may be any."""
    (name,) = program.graph_signature.user_inputs
    (node,) = (node for node in program.graph.nodes if node.name == name)
    return tuple(
        side if isinstance(side, int) else None for side in node.meta["val"].shape
    )


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
            RefusedError: it keeps numbers outside itself.
        """
        super().__init__()
        self._data = data
        self._names = str(parameters.get("input")), str(parameters.get("output"))
        self._batch = batch = parameters.get("batch")
        if not (batch is None or (isinstance(batch, int) and batch > 0)):
            msg = f"an ONNX network takes no {batch!r} tiles at once"
            raise ModelError(msg)
        self._is_last = parameters.get("layout", "NCHW") == "NHWC"
        self._session = open_onnx(data, "cpu")

    def to(self, *args: Any, **_kwargs: Any) -> "OnnxNetwork":  # noqa: ANN401  (torch's)
        """Go to the device that is named first, if one is."""
        device = str(args[0]) if args else ""
        if device.startswith(("cpu", "cuda")):
            self._session = open_onnx(self._data, device)
        return self

    def forward(self, tiles_NBTT: Tensor) -> Tensor:
        """Return what the network answers, (N, K, T, T), in fp32."""
        return _in_parts(self._run, tiles_NBTT, self._batch)

    def _run(self, tiles_NBTT: Tensor) -> Tensor:
        tiles = tiles_NBTT.float()
        if self._is_last:
            tiles = tiles.permute(0, 2, 3, 1)
        given, asked = self._names
        array = tiles.contiguous().cpu().numpy()
        (found,) = self._session.run([asked], {given: array})
        answers = torch.from_numpy(found).float().to(tiles_NBTT.device)
        return answers.permute(0, 3, 1, 2) if self._is_last else answers


def _in_parts(
    forward: Callable[[Tensor], Tensor], tiles: Tensor, batch: int | None
) -> Tensor:
    """Return the answers of a network that takes just so many tiles at once."""
    if batch is None:
        return forward(tiles)
    parts = []
    for part in tiles.split(batch):
        lacking = batch - len(part)
        full = torch.cat((part, part.new_zeros(lacking, *part.shape[1:])))
        parts.append(forward(full)[: len(part)])
    return torch.cat(parts)


def open_onnx(data: bytes, device: str) -> Any:  # noqa: ANN401  (onnxruntime is untyped)
    """Return a session of onnxruntime.

    Args:
        data: a model with all that belongs to it.
        device: `cpu`, `cuda` or `cuda:1`.

    Raises:
        ModelError: onnxruntime is missing, sees no such device, or cannot run it.
        RefusedError: the model keeps numbers in another file, or is none of ONNX.
    """
    place, magic = _ORT_FORMAT
    if _ELSEWHERE.search(data) or data[place] == magic:
        # Where such a file is looked for depends on the folder that a worker is in.
        msg = "an ONNX network with weights in another file; save it as one .onnx file"
        raise RefusedError(msg)
    try:
        import onnxruntime as ort
    except ImportError as err:
        raise _wanted("onnxruntime", "onnx", "an ONNX network") from err
    options = ort.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 4  # what matters is raised
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
        msg = f"onnxruntime cannot run the network: {last_line(err)}"
        raise ModelError(msg) from err
