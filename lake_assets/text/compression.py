"""Compressed bytes → plain bytes, in pieces of at most 1 MiB, whatever a file is called or claims to be.

What belongs here: gzip (of any number of members) and zstd (of any number of frames), recognised by their first bytes.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator
from itertools import chain

from lake_assets.text.refusals import ObjectRefused, Reason

PIECE_BYTES = 1 << 20
BOMB_BYTES = 1 << 30
BOMB_RATIO = 1000
# A frame that wants a larger window than the zstd tool itself allows is refused.
_ZSTD_WINDOW_BYTES = 1 << 27
# zstd cannot cap what one call returns: 4 bytes may stand for 128 KiB, so 1 KiB for 32 MiB at most.
_ZSTD_SLICE_BYTES = 1 << 10
_LAYERS = 3
_GZIP = b"\x1f\x8b"
_ZSTD = b"\x28\xb5\x2f\xfd"


def decompress(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """Gives the plain bytes of an object, non-empty and at most 1 MiB a piece; up to three layers are taken off.

    Raises:
        ObjectRefused: after all that could be read: `broken_compression`, or `bomb` when one layer gives over 1 GiB
            and over 1000 times what it was given.
    """
    pieces = _slices(chunks)
    for _ in range(_LAYERS):
        head, pieces = peek(pieces, len(_ZSTD))
        if head.startswith(_GZIP):
            pieces = _gunzip(pieces)
        elif head == _ZSTD or (head[1:] == b"\x2a\x4d\x18" and head[0] >> 4 == 5):
            pieces = _unzstd(pieces)
        else:
            break
    yield from pieces


def peek(pieces: Iterator[bytes], size: int) -> tuple[bytes, Iterator[bytes]]:
    """Gives the first `size` bytes, or what there is, and all pieces again; a refusal on the way comes after them."""
    taken: list[bytes] = []
    failure: ObjectRefused | None = None
    missing = size
    try:
        while missing > 0 and (piece := next(pieces, None)) is not None:
            taken.append(piece)
            missing -= len(piece)
    except ObjectRefused as refused:
        failure = refused
    return b"".join(taken)[:size], chain(taken, _failing(failure) if failure else pieces)


def _failing(failure: ObjectRefused) -> Iterator[bytes]:
    yield from ()
    raise failure


def _slices(chunks: Iterable[bytes]) -> Iterator[bytes]:
    for chunk in chunks:
        view = memoryview(chunk)
        for start in range(0, len(view), PIECE_BYTES):
            yield bytes(view[start : start + PIECE_BYTES])


class _Meter:
    """Counts what goes in and comes out of one layer."""

    def __init__(self) -> None:
        self.read_bytes = 0
        self.made_bytes = 0

    def add(self, made: bytes) -> bytes:
        self.made_bytes += len(made)
        if self.made_bytes > BOMB_BYTES and self.made_bytes > BOMB_RATIO * self.read_bytes:
            raise ObjectRefused(Reason.BOMB)
        return made


def _gunzip(pieces: Iterator[bytes]) -> Iterator[bytes]:
    engine, meter = zlib.decompressobj(zlib.MAX_WBITS | 16), _Meter()
    for piece in pieces:
        data = piece
        meter.read_bytes += len(piece)
        while data:
            if engine.eof:
                data = data.lstrip(b"\0")  # tapes and block devices pad with zeros
                if not data:
                    break
                engine = zlib.decompressobj(zlib.MAX_WBITS | 16)
            try:
                made = engine.decompress(data, PIECE_BYTES)
            except zlib.error as error:
                raise ObjectRefused(Reason.BROKEN_COMPRESSION) from error
            if made:
                yield meter.add(made)
            data = engine.unused_data if engine.eof else engine.unconsumed_tail
    if not engine.eof:
        if rest := engine.flush():
            yield meter.add(rest)
        raise ObjectRefused(Reason.BROKEN_COMPRESSION, "The gzip stream ends early; upload the object again.")


def _unzstd(pieces: Iterator[bytes]) -> Iterator[bytes]:
    from zstandard import ZstdDecompressor, ZstdError

    decompressor, meter = ZstdDecompressor(max_window_size=_ZSTD_WINDOW_BYTES), _Meter()
    engine, complete = decompressor.decompressobj(), True
    for piece in pieces:
        for start in range(0, len(piece), _ZSTD_SLICE_BYTES):
            data = piece[start : start + _ZSTD_SLICE_BYTES]
            meter.read_bytes += len(data)
            while data:
                if engine.eof:
                    engine = decompressor.decompressobj()
                try:
                    made = engine.decompress(data)
                except ZstdError as error:
                    raise ObjectRefused(Reason.BROKEN_COMPRESSION) from error
                yield from _slices([meter.add(made)])
                complete, data = engine.eof, engine.unused_data
    if not complete:
        raise ObjectRefused(Reason.BROKEN_COMPRESSION, "The zstd stream ends early; upload the object again.")
