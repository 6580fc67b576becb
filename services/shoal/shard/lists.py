"""How are inverted lists of packed codes copied, thinned out, and searched in a file?

FAISS packs four-bit codes in blocks of 32 vectors. It keeps such lists in memory only: neither of
its flags for memory-mapping (IO_FLAG_MMAP, IO_FLAG_MMAP_IFC) does anything for them in FAISS 1.15.
But its lists on disk, made for codes that are not packed, do not look at what they hold: a list
whose capacity is a whole number of blocks takes as many bytes packed as not. So packed lists are
written one after another, blocks and then ids, and mapped as lists on disk, read-only.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final, Protocol

import numpy as np
from numpy.typing import NDArray
from shoal.shard.kernel import faiss
from shoal.shard.pace import pause

_ID_BYTES: Final = 8
# Vectors that are copied at once in the background: some milliseconds.
_PIECE_WORK: Final = 8_192
# What going to a list costs, in vectors.
_LIST_WORK: Final = 64


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
        blocks = _blocks(inverted, number, packer)
        ids = np.zeros(len(blocks) * packer.nvec, dtype="<i8")
        ids[: sizes[number]] = _ids(inverted, number)
        sink.write(blocks)
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


def copy_lists(source: Any, target: Any, mask: NDArray[np.bool_] | None = None) -> None:
    """Copy vectors of lists, mapped ones too, behind those of others, which are in memory.

    source, target: of one code; the source's ids are positions. mask: by position; None marks all.
    The copies' positions are the next ones of the target, in the order of the source's.

    It goes list by list, and pauses: FAISS thins out a whole index in one call, which takes a core
    for a fifth of a second with half a million vectors.
    """
    marked = np.ones(source.ntotal, np.bool_) if mask is None else mask
    positions = np.cumsum(marked) - 1 + target.ntotal
    thinned, packer = _Thinned(source, marked), target.get_CodePacker()
    used = _used_bits(packer)
    work = 0
    for number in np.flatnonzero(sizes := sizes_of(source)).tolist():
        ids, blocks = thinned.take(number)
        if len(ids):
            _append(target.invlists, number, positions[ids], blocks, packer.nvec)
            _clear_unused(target.invlists, number, packer, used)
        work += int(sizes[number]) + _LIST_WORK
        if work >= _PIECE_WORK:
            work = 0
            pause()
    target.ntotal += int(marked.sum())


class _Thinned:
    """Lists without the vectors that are not marked."""

    def __init__(self, lists: Any, marked: NDArray[np.bool_]) -> None:
        """marked: by position."""
        self._inverted, self._packer = lists.invlists, lists.get_CodePacker()
        self._marked = None if marked.all() else marked
        # Packed codes are thinned out in a list of their own.
        self._one = None
        if self._marked is not None and self._packer.nvec > 1:
            self._dead = faiss.IDSelectorBitmap(np.packbits(~marked, bitorder="little"))
            owned = lists.get_CodePacker()
            self._one = faiss.BlockInvertedLists(1, owned)
            owned.this.disown()

    def take(self, number: int) -> tuple[NDArray[np.int64], NDArray[np.uint8]]:
        """Ids and blocks of a list: to be read until the next one is taken."""
        inverted, packer, one = self._inverted, self._packer, self._one
        if one is not None:
            one.resize(0, 0)
            size = inverted.list_size(number)
            one.add_entries(0, size, inverted.get_ids(number), inverted.get_codes(number))
            one.remove_ids(self._dead)
            return _ids(one, 0), _blocks(one, 0, packer)
        ids, blocks = _ids(inverted, number), _blocks(inverted, number, packer)
        if self._marked is None:
            return ids, blocks
        kept = self._marked[ids]
        return ids[kept], blocks[kept]


def _append(
    inverted: Any, number: int, ids: NDArray[np.int64], blocks: NDArray[np.uint8], nvec: int
) -> None:
    """Copy vectors to the end of a list. nvec: vectors in a block."""
    size, added = inverted.list_size(number), len(ids)
    if size % nvec:
        inverted.add_entries(number, added, faiss.swig_ptr(ids), faiss.swig_ptr(blocks))
        return
    # Where whole blocks are full, FAISS's `add_entries` of packed lists (1.15.1) writes beyond a
    # list's memory if the list has a multiple of as many vectors as a block has bytes.
    inverted.resize(number, size + added)
    _ids(inverted, number)[size:] = ids
    first, width = size // nvec * blocks.shape[1], blocks.size
    codes = faiss.rev_swig_ptr(inverted.get_codes(number), first + width)
    codes[first:] = blocks.reshape(-1)


def _clear_unused(inverted: Any, number: int, packer: Any, used: NDArray[np.uint8]) -> None:
    """Clear the places of a list's last block in which there is no vector.

    FAISS (1.15.1) leaves there what was in the memory before, and the codes of removed vectors. An
    addition sets bits there without clearing any, so that the code of the new vector would be
    wrong.
    """
    size = inverted.list_size(number)
    if last := size % packer.nvec:
        _blocks(inverted, number, packer)[-1] &= used[last]


def _ids(inverted: Any, number: int) -> NDArray[np.int64]:
    """A list's ids, where they are."""
    ids: NDArray[np.int64] = faiss.rev_swig_ptr(
        inverted.get_ids(number), inverted.list_size(number)
    )
    return ids


def _blocks(inverted: Any, number: int, packer: Any) -> NDArray[np.uint8]:
    """A list's codes, where they are: uint8 [blocks, bytes of a block]."""
    count = -(-inverted.list_size(number) // packer.nvec)
    codes: NDArray[np.uint8] = faiss.rev_swig_ptr(
        inverted.get_codes(number), count * packer.block_size
    )
    return codes.reshape(count, packer.block_size)


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
