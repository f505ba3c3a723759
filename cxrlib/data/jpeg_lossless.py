"""JPEG lossless streams of one component (ISO 10918-1 process 14), as many X-ray machines write them.

The one free decoder, GDCM, ends the whole process on a damaged stream. This one raises ValueError.

Huffman codes have no marks between them, so decoding is a walk from code to code. Many walks start at once, one in each
stretch of the stream. A walk that starts in the middle of a code soon falls into step with the right one. The right
walk enters each stretch where the one before it ended, and from where the two meet, the marks of the early walk hold.
"""

import re
import struct

import numpy as np

_BLOCK = 1 << 21  # bytes that are walked together: bounds memory
_STRETCH = 1 << 12  # bits of a stretch


def decode(stream: bytes) -> np.ndarray:
    """Pixels of a stream, (rows, columns) uint16. Raises ValueError if it is damaged, truncated or another JPEG."""
    head, body = _segments(stream)
    try:
        precision, rows, columns, samples = struct.unpack_from(">BHHB", head[0xC3])
        interval = struct.unpack_from(">H", head.get(0xDD, b"\0\0"))[0] or rows * columns
        predictor, point = head[0xDA][3], head[0xDA][5] & 15
        lengths, categories = _codes(head[0xC4], head[0xDA][2] >> 4)
    except (KeyError, IndexError, struct.error):
        raise ValueError("parts are missing") from None
    if (
        not 2 <= precision <= 16  # the standard's range for lossless coding
        or samples != 1
        or not rows
        or not columns
        or interval % columns
        or predictor not in range(1, 8)
        or point >= precision
    ):
        raise ValueError("parts are not possible")
    pixels = np.empty((rows, columns), np.uint16)
    pieces = re.split(rb"\xff[\xd0-\xd7]", body)  # restart marks
    starts = range(0, rows, interval // columns)
    if len(pieces) < len(starts):
        raise ValueError("truncated")
    for start, piece in zip(starts, pieces, strict=False):
        part = pixels[start : start + interval // columns]
        changes = _changes(piece.replace(b"\xff\0", b"\xff"), part.size, lengths, categories).reshape(part.shape)
        changes[0, :1] += np.uint16(1 << (precision - point - 1))
        part[:] = _sum(changes, predictor)
    return pixels << point


def _segments(stream: bytes) -> tuple[dict[int, bytes], bytes]:
    """Segments of a stream's head by code, of which tables (0xC4) add up, and the coded pixels that follow."""
    head, start = {}, 2
    while stream[start : start + 1] == b"\xff" and start + 4 <= len(stream):
        code, length = struct.unpack_from(">xBH", stream, start)
        if code == 0xFF:  # a filling byte
            start += 1
            continue
        data = stream[start + 4 : start + 2 + length]
        if code == 0xC3 and code in head:
            raise ValueError("two sizes")
        head[code] = head.get(code, b"") + data if code == 0xC4 else data
        start += 2 + length
        if code == 0xDA:
            end = re.compile(rb"\xff[^\0\xd0-\xd7]").search(stream, start)
            return head, stream[start : end.start() if end else len(stream)]
    raise ValueError("no pixels")


def _codes(tables: bytes, wanted: int) -> tuple[np.ndarray, np.ndarray]:
    """Length of the code at the start of 16 bits, and its category, (65536,) uint8 each. Length 0: no such code."""
    lengths, categories = np.zeros(65536, np.uint8), np.zeros(65536, np.uint8)
    start = 0
    while start < len(tables):
        counts = tables[start + 1 : start + 17]
        symbols = tables[start + 17 : start + 17 + sum(counts)]
        if tables[start] == wanted:
            code = 0
            ordered = iter(symbols)
            for length, count in enumerate(counts, 1):
                for _ in range(count):
                    here = slice(code, code + (1 << (16 - length)))
                    lengths[here], categories[here] = length, next(ordered, 255)
                    code = here.stop
            if code > 65536 or categories.max() > 16:
                raise ValueError("table")
            return lengths, categories
        start += 17 + len(symbols)
    raise ValueError("no table")


def _changes(data: bytes, count: int, lengths: np.ndarray, categories: np.ndarray) -> np.ndarray:
    """First ``count`` differences in coded bytes, (count,) uint16, modulo 65536."""
    steps = np.maximum(lengths + np.where(categories < 16, categories, 0), 1).astype(np.int64)
    found, have, entry = [], 0, 0
    for start in range(0, len(data), _BLOCK):
        padded = np.frombuffer(data[start : start + _BLOCK + 8] + bytes(8), np.uint8).astype(np.uint32)
        words = padded[:-3] << 24 | padded[1:-2] << 16 | padded[2:-1] << 8 | padded[3:]  # 32 bits from every byte
        bits = 8 * min(_BLOCK, len(data) - start)
        at, entry = _walk(words, steps, entry, bits)
        at = at[: count - have]
        codes = words[at >> 3] >> (16 - (at & 7)) & 0xFFFF
        length, category = lengths[codes].astype(np.int64), categories[codes].astype(np.int64)
        last = 8 * (len(data) - start)
        if not length.all() or (len(at) and at[-1] + steps[codes[-1]] > last):
            raise ValueError("no such code, or truncated")
        at = at + length
        extra = words[at >> 3] >> (32 - (at & 7) - category % 16) & ((1 << category % 16) - 1)
        low = extra < 1 << np.maximum(category - 1, 0)
        change = np.where(low & (category > 0), extra - (1 << category) + 1, extra)
        found.append(np.where(category == 16, 32768, change).astype(np.uint16))
        have += len(at)
        entry -= bits
        if have == count:
            return np.concatenate(found)
    raise ValueError("truncated")


def _walk(words: np.ndarray, steps: np.ndarray, entry: int, bits: int) -> tuple[np.ndarray, int]:
    """Where the codes start that are reached from bit ``entry``, and where the first one beyond ``bits`` does."""
    starts = np.arange(0, bits, _STRETCH)
    ends = np.minimum(starts + _STRETCH, bits)
    mark = np.zeros(bits, bool)
    at, running = starts.copy(), np.arange(len(starts))
    while len(running):
        here = at[running]
        mark[here] = True
        here = here + steps[words[here >> 3] >> (16 - (here & 7)) & 0xFFFF]
        at[running] = here
        running = running[here < ends[running]]
    for start, end, exit in zip(starts.tolist(), ends.tolist(), at.tolist(), strict=True):
        mine = []
        while entry < end and not mark[entry]:
            mine.append(entry)
            entry += int(steps[words[entry >> 3] >> (16 - (entry & 7)) & 0xFFFF])
        mark[start : min(entry, end)] = False
        mark[mine] = True
        entry = exit if entry < end else entry
    return np.flatnonzero(mark), entry


def _sum(changes: np.ndarray, predictor: int) -> np.ndarray:
    """Pixels from differences to the pixels left (a), above (b) and above left (c), all modulo 65536 (H.1.2.1).

    The first row is predicted from the left and the first column from above.
    """
    if predictor in (2, 4):
        first = changes if predictor == 4 else changes[:1]
        first[:] = np.cumsum(first, axis=1, dtype=np.uint16)
        return np.cumsum(changes, axis=0, dtype=np.uint16)
    changes[:, 0] = np.cumsum(changes[:, 0], dtype=np.uint16)
    if predictor == 1:
        return np.cumsum(changes, axis=1, dtype=np.uint16)
    changes[0] = np.cumsum(changes[0], dtype=np.uint16)
    for y in range(1, len(changes)):
        above, row = changes[y - 1].astype(np.int64), changes[y]
        if predictor == 3:
            row[1:] += changes[y - 1, :-1]
        elif predictor == 5:
            row[1:] += (np.diff(above) >> 1).astype(np.uint16)
            row[:] = np.cumsum(row, dtype=np.uint16)
        else:
            row[:] = _along(row.tolist(), above.tolist(), predictor)
    return changes


def _along(row: list[int], above: list[int], predictor: int) -> list[int]:
    """``_sum`` along one row for predictors 6 and 7, which halve what has just been found."""
    left = row[0]
    for x in range(1, len(row)):
        guess = above[x] + ((left - above[x - 1]) >> 1) if predictor == 6 else (left + above[x]) >> 1
        row[x] = left = (row[x] + guess) & 0xFFFF
    return row
