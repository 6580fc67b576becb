"""How are inverted lists of packed codes copied, thinned out, joined, and searched in a file?

FAISS packs four-bit codes in blocks of 32 vectors. It keeps such lists in memory only: neither of
its flags for memory-mapping (IO_FLAG_MMAP, IO_FLAG_MMAP_IFC) does anything for them in FAISS 1.15.
But its lists on disk, made for codes that are not packed, do not look at what they hold: a list
whose capacity is a whole number of blocks takes as many bytes packed as not. So packed lists are
written one after another, blocks and then ids, and mapped as lists on disk, read-only.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, Protocol

import numpy as np
from numpy.typing import NDArray
from shoal.shard.kernel import faiss
from shoal.shard.pace import pause

_ID_BYTES: Final = 8
# Lists that are gone through at once in the background: some milliseconds.
_LISTS_A_PIECE: Final = 128


class Sink(Protocol):
    """What bytes are written to."""

    def write(self, content: Any, /) -> int:
        """Write all of them."""
        ...


def sizes_of(lists: Any) -> NDArray[np.int64]:
    """Vectors in each list."""
    inverted = lists.invlists
    sizes = (inverted.list_size(number) for number in range(lists.nlist))
    return np.fromiter(sizes, dtype=np.int64, count=lists.nlist)


def write_lists(lists: Any, sink: Sink) -> NDArray[np.int64]:
    """Write lists as `map_lists` reads them. Returns their sizes."""
    inverted, packer = lists.invlists, lists.get_CodePacker()
    _check_packer(lists, packer)
    sizes = sizes_of(lists)
    for number in np.flatnonzero(sizes).tolist():
        size = int(sizes[number])
        blocks = -(-size // packer.nvec)
        codes = faiss.rev_swig_ptr(inverted.get_codes(number), blocks * packer.block_size)
        ids = np.zeros(blocks * packer.nvec, dtype="<i8")
        ids[:size] = faiss.rev_swig_ptr(inverted.get_ids(number), size)
        sink.write(codes)
        sink.write(ids)
    return sizes


def map_lists(empty: Any, path: Path, sizes: NDArray[np.int64]) -> None:
    """Put lists from a file in the place of empty ones. They can be searched, not changed.

    The file may be removed meanwhile, but not be written to. Raises ValueError if it is too short.
    """
    packer = empty.get_CodePacker()
    _check_packer(empty, packer)
    if len(sizes) != empty.nlist or (len(sizes) and sizes.min() < 0):
        raise ValueError(f"{path} is for {len(sizes)} lists, and the codebook has {empty.nlist}")
    capacities = -(-sizes // packer.nvec) * packer.nvec
    bytes_each = capacities * (packer.code_size + _ID_BYTES)
    ends = np.cumsum(bytes_each)
    total = int(ends[-1])
    if path.stat().st_size != total:
        raise ValueError(f"{path} has {path.stat().st_size} bytes, and {total} were written")
    mapped = faiss.OnDiskInvertedLists()
    mapped.nlist, mapped.code_size = empty.nlist, empty.code_size
    # The fields of FAISS's OnDiskOneList: size, capacity, offset.
    entries = np.stack([sizes, capacities, ends - bytes_each], axis=1).astype(np.uint64)
    mapped.lists.resize(empty.nlist)
    faiss.memcpy(mapped.lists.data(), faiss.swig_ptr(entries), entries.nbytes)
    mapped.filename, mapped.totsize, mapped.read_only = str(path), total, True
    # Its threads would read ahead what the kernel reads ahead anyway.
    mapped.prefetch_nthread = 0
    if total:
        mapped.do_mmap()
    mapped.this.disown()
    empty.replace_invlists(mapped, True)
    empty.ntotal = int(sizes.sum())


def copy_lists(source: Any, target: Any) -> None:
    """Copy all vectors of lists into empty ones, which are in memory."""
    inverted, added = source.invlists, target.invlists
    for number in np.flatnonzero(sizes_of(source)).tolist():
        size = inverted.list_size(number)
        added.add_entries(number, size, inverted.get_ids(number), inverted.get_codes(number))
        if number % _LISTS_A_PIECE == 0:
            pause()
    target.ntotal = source.ntotal


def keep(lists: Any, mask: NDArray[np.bool_]) -> None:
    """Leave out the vectors whose positions are not marked; those behind them move up."""
    if mask.all():
        return
    dead = np.packbits(~mask, bitorder="little")
    lists.remove_ids(faiss.IDSelectorBitmap(dead))
    pause()
    _close_ranks(lists, np.cumsum(mask) - 1)


def join(lists: Any, others: Sequence[Any]) -> None:
    """Move the vectors of other lists behind those of `lists`; the others are empty then."""
    for other in others:
        lists.merge_from(other, lists.ntotal)
        pause()


def _close_ranks(lists: Any, new_positions: NDArray[np.int64]) -> None:
    """Make lists whose dead were removed fit to be added to.

    Every vector gets its new position. And FAISS (1.15.1) leaves codes of removed vectors in the
    unused places of a list's last block, where an addition sets further bits without clearing them,
    so that the code of the new vector would be wrong: clear these places.
    """
    inverted, packer = lists.invlists, lists.get_CodePacker()
    used = _used_bits(packer)
    for number in range(lists.nlist):
        if number % _LISTS_A_PIECE == 0:
            pause()
        size = inverted.list_size(number)
        if size == 0:
            continue
        ids = faiss.rev_swig_ptr(inverted.get_ids(number), size)
        ids[:] = new_positions[ids]
        if last_used := size % packer.nvec:
            first = size // packer.nvec * packer.block_size
            codes = faiss.rev_swig_ptr(inverted.get_codes(number), first + packer.block_size)
            codes[first:] &= used[last_used]


def _used_bits(packer: Any) -> NDArray[np.uint8]:
    """Bits of a block that belong to its first n vectors, for each n below its capacity."""
    used = np.zeros((packer.nvec, packer.block_size), dtype=np.uint8)
    all_bits = np.full(packer.code_size, 0xFF, dtype=np.uint8)
    for count in range(1, packer.nvec):
        block = used[count - 1 : count].copy()
        packer.pack_1(all_bits, count - 1, block)
        used[count] = block[0]
    return used


def _check_packer(lists: Any, packer: Any) -> None:
    # Padded sub-quantisers would make a block longer than its vectors' codes.
    if packer.block_size != packer.nvec * lists.code_size:
        raise ValueError(
            f"a block of {packer.nvec} vectors takes {packer.block_size} bytes, but their codes "
            f"take {packer.nvec * lists.code_size}: such lists cannot be mapped"
        )
