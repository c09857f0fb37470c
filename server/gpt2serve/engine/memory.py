"""Host memory that is kept for the next batch when one is done with it.

A page that the kernel has to hand out costs some microseconds, and a batch touches thousands of
them: without this, getting and returning them took a twentieth of a generation by 32 sequences
(docs/decisions/0004-kv-cache.md). Blocks come in size classes, so that batches of one shape, of
whichever model, find each other's.
"""

from __future__ import annotations

import mmap
from collections import OrderedDict

CLASSES_PER_DOUBLING = 8


def size_class(size: int) -> int:
    """The size of the block for `size` bytes: at most an eighth more, in whole pages."""
    step = max(1 << (size.bit_length() - 1), mmap.PAGESIZE * CLASSES_PER_DOUBLING)
    step //= CLASSES_PER_DOUBLING
    return -(-size // step) * step


class HostMemory:
    """Owned by the engine thread. What a block holds when it is taken is undefined."""

    def __init__(self) -> None:
        #: Bytes of blocks that nobody uses.
        self.kept = 0
        #: By size; the size that was used longest ago comes first.
        self._free: OrderedDict[int, list[mmap.mmap]] = OrderedDict()

    def take(self, size: int) -> mmap.mmap:
        """A block of at least `size` bytes. Raises `OSError` without memory.

        Pages that are never written take no memory. Huge pages are declined: with them the
        first byte of each row would zero two megabytes.
        """
        size = size_class(size)
        blocks = self._free.get(size)
        if blocks:
            self.kept -= size
            block = blocks.pop()
            if not blocks:
                del self._free[size]
            return block
        block = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        block.madvise(mmap.MADV_NOHUGEPAGE)
        return block

    def give(self, block: mmap.mmap) -> None:
        """Keep a block that `take` made and that nobody looks at any more."""
        self._free.setdefault(len(block), []).append(block)
        self._free.move_to_end(len(block))
        self.kept += len(block)

    def trim(self, limit: int) -> None:
        """Return blocks to the system until at most `limit` bytes are kept."""
        while self.kept > limit:
            size, blocks = next(iter(self._free.items()))
            blocks.pop()
            self.kept -= size
            if not blocks:
                del self._free[size]
