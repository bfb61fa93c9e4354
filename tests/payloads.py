"""Checkpoints that would run code if they were unpickled: bytes of every kind."""

import io
import os
import pickle
import tarfile
import warnings
import zipfile

import numpy as np
import torch
from safetensors.torch import save


class Evil:
    """What runs when it is unpickled: a folder appears."""

    def __init__(self, marker):
        self.marker = str(marker)

    def __reduce__(self):
        return os.mkdir, (self.marker,)


def pickled(marker, protocol=2):
    return pickle.dumps({"enc1.0.weight": Evil(marker)}, protocol=protocol)


def _torch_zip(marker):
    file = io.BytesIO()
    torch.save({"state": Evil(marker)}, file)
    return file.getvalue()


def _torch_legacy(marker):
    file = io.BytesIO()
    torch.save({"state": Evil(marker)}, file, _use_new_zipfile_serialization=False)
    return file.getvalue()


def _tar(marker):
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as tar:
        for name in ("pickle", "storages", "tensors", "sys_info"):
            info, data = tarfile.TarInfo(name), pickled(marker)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return file.getvalue()


def _zipped(marker, *, name, depth=1):
    data = pickled(marker)
    for _ in range(depth):
        file = io.BytesIO()
        with zipfile.ZipFile(file, "w") as folder:
            folder.writestr(name, data)
        data = file.getvalue()
    return data


def torchscript(_marker):
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        module = torch.jit.trace(torch.nn.Conv2d(3, 3, 1), torch.zeros(1, 3, 4, 4))
        torch.jit.save(module, file)
    return file.getvalue()


def _npy(marker):
    file = io.BytesIO()
    np.save(file, np.array([Evil(marker)], dtype=object), allow_pickle=True)
    return file.getvalue()


CHECKPOINTS = {
    "pickle": pickled,
    "pickle protocol 0": lambda marker: pickled(marker, 0),
    "pickle protocol 5": lambda marker: pickled(marker, 5),
    "torch zip": _torch_zip,
    "torch legacy": _torch_legacy,
    "torch tar": _tar,
    "torchscript": torchscript,
    "zip named as torch's": lambda m: _zipped(m, name="archive/data.pkl"),
    "nested zip": lambda m: _zipped(m, name="archive/data.pkl", depth=3),
    "zip that climbs": lambda m: _zipped(m, name="../../data.pkl"),
    "pt2": lambda m: _zipped(m, name="archive/serialized_state_dict.pt"),
    "npy of objects": _npy,
    "pickle behind a safetensors header": lambda m: (
        save({"x": torch.zeros(1)}) + pickled(m)
    ),
}
