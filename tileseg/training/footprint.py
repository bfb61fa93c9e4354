"""How much memory a forward of a network takes, measured. Knows no cards."""

import weakref
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tileseg.base.memory import rss_mb, trim_heap
from tileseg.network.foreign import OnnxNetwork

__all__ = ["footprint"]


class _Held(TorchDispatchMode):
    """Counts the bytes of what torch's operators give, while they are held."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch's
        self.now = self.most = 0
        self._known: set[int] = set()

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Any,  # noqa: ANN401  (torch's)
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401  (what the operator gives)
        given = {_key(item) for item in _tensors((args, kwargs))}
        answer = func(*args, **(kwargs or {}))
        for item in _tensors(answer):
            if _key(item) not in given | self._known:
                self._note(item)
        return answer

    def _note(self, item: Tensor) -> None:
        storage, key = item.untyped_storage(), _key(item)
        size = storage.nbytes()
        self._known.add(key)
        self.now += size
        self.most = max(self.most, self.now)
        weakref.finalize(storage, self._forget, key, size).atexit = False

    def _forget(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.now -= size


def _tensors(values: Any) -> list[Tensor]:  # noqa: ANN401  (any tree)
    return [item for item in tree_leaves(values) if isinstance(item, Tensor)]


def _key(item: Tensor) -> int:
    return item.untyped_storage().data_ptr()


def footprint(module: nn.Module, tiles: Tensor) -> tuple[Any, int]:
    """Return a network's answer, and the bytes that it held at once on the way.

    What onnxruntime takes cannot be counted; it keeps it, so it is the process that
    became larger. The bytes are at least those of the answer. Of torch's operators
    their answers are counted, and half as much for what they take aside.
    """
    if isinstance(module, OnnxNetwork):
        trim_heap()
        before = rss_mb()
        answer = module(tiles)
        return answer, max(int((rss_mb() - before) * 1e6), answer.nbytes)
    with _Held() as held:
        answer = module(tiles)
    return answer, held.most * 3 // 2
