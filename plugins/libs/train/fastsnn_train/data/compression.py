"""Files as bytes and as text: compression by the first bytes, byte-order marks, errors with their offset."""

from __future__ import annotations

import bz2
import codecs
import contextlib
import gzip
import io
import lzma
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from fastsnn_train.data.documents import DataError

CHUNK = 1 << 20
PIECE = 1 << 9
"""Compressed bytes of zstd that are unpacked at once: a block of 128 KiB can take four, so at most 16 MiB come out."""
MAGIC = {b"\x1f\x8b": "gz", b"BZh": "bz2", b"\xfd7zXZ\x00": "xz", b"\x28\xb5\x2f\xfd": "zst", b"PK\x03\x04": "zip"}
SUFFIXES = (".gz", ".bz2", ".xz", ".zst", ".zip")
NULS = 0.05  # share of NUL bytes that no text has
MARKS = ((codecs.BOM_UTF8, "utf-8"), (codecs.BOM_UTF16_LE, "utf-16-le"), (codecs.BOM_UTF16_BE, "utf-16-be"))
POINTER = b"version https://git-lfs"


@contextlib.contextmanager
def open_decompressed(path: Path, member: str = "") -> Iterator[IO[bytes]]:
    """The bytes of a file (or of a member of a zip archive), decompressed."""
    with contextlib.ExitStack() as stack:
        try:
            file: IO[bytes] = stack.enter_context(path.open("rb"))
            if member:
                file = stack.enter_context(stack.enter_context(zipfile.ZipFile(file)).open(member))
                file = io.BufferedReader(file)  # type: ignore[type-var]
            head = file.peek(64)[:64]  # type: ignore[attr-defined]
            if head.startswith(POINTER):
                raise DataError(f"{path} is a git-lfs pointer, not the file itself; fetch it with: git lfs pull")
            yield stack.enter_context(decompressed(file, compression(head), path))
        except (EOFError, zlib.error, lzma.LZMAError, gzip.BadGzipFile, zipfile.BadZipFile) as error:
            raise DataError(f"{member_name(path, member)} is damaged or cut off: {error}") from None
        except RuntimeError as error:  # an encrypted archive
            raise DataError(f"{member_name(path, member)} cannot be read: {error}") from None


def compression(head: bytes) -> str:
    """gz, bz2, xz, zst or zip by the first bytes of a file; nothing where it is not compressed."""
    return next((name for magic, name in MAGIC.items() if head.startswith(magic)), "")


def decompressed(file: IO[bytes], how: str, path: Path) -> Any:
    """The stream inside a compressed one."""
    if how == "gz":
        return gzip.GzipFile(fileobj=file)
    if how == "bz2":
        return bz2.BZ2File(file)
    if how == "xz":
        return lzma.LZMAFile(file)
    if how == "zst":
        try:
            import zstandard
        except ImportError:
            raise DataError(f"{path} is compressed with zstd; install its reader: pip install zstandard") from None
        return io.BufferedReader(ZstdReader(file, zstandard, path))
    return file


class ZstdReader(io.RawIOBase):
    """The frames of a zstd file as a raw stream; a frame that is cut off is an error (zstandard's reader just ends)."""

    def __init__(self, file: IO[bytes], zstandard: Any, path: Path) -> None:
        self.file, self.zstandard, self.path = file, zstandard, path
        self.frame: Any = None  # the frame that is being read
        self.raw, self.held = b"", memoryview(b"")

    def readable(self) -> bool:
        """Yes."""
        return True

    def readinto(self, into: Any) -> int:
        """The next bytes."""
        while not self.held:
            self.raw = self.raw or self.file.read(PIECE)
            if not self.raw:
                if self.frame is not None:
                    raise DataError(f"{self.path} is damaged or cut off: its last zstd frame has no end")
                return 0
            self.frame = self.frame or self.zstandard.ZstdDecompressor().decompressobj()
            try:
                self.held = memoryview(self.frame.decompress(self.raw))
            except self.zstandard.ZstdError as error:
                raise DataError(f"{self.path} is damaged or cut off: {error}") from None
            self.raw = self.frame.unused_data
            if self.frame.eof:
                self.frame = None
        count = min(len(into), len(self.held))
        into[:count], self.held = self.held[:count], self.held[count:]
        return count


def member_name(path: Path, member: str) -> str:
    """How a file is called in messages."""
    return f"{path}/{member}" if member else str(path)


def decoded_chunks(file: IO[bytes], where: str) -> Iterator[str]:
    """The text of a stream in chunks: UTF-8, or UTF-16 with a byte-order mark; the mark is removed.

    Line ends are ``\\n`` whatever they were. Bytes that are no such text are an error that says where they stand, and
    so are NUL bytes in plenty: UTF-16 without its mark, or data.
    """
    head = file.read(CHUNK)
    mark, encoding = next(((m, e) for m, e in MARKS if head.startswith(m)), (b"", "utf-8"))
    if not mark and head.count(0) > len(head) * NULS:
        raise DataError(
            f"{where} is no text: {head.count(0) / len(head):.0%} of its bytes are NUL; UTF-16 without a byte-order "
            "mark is converted by iconv -f utf-16le -t utf-8"
        )
    decoder = codecs.getincrementaldecoder(encoding)()
    newlines = io.IncrementalNewlineDecoder(decoder, translate=True)
    begin, chunk = len(mark), head[len(mark) :]
    while True:
        pending = len(decoder.getstate()[0])
        try:
            text = newlines.decode(chunk, final=not chunk)
        except UnicodeDecodeError as error:
            raise no_text(where, error, begin - pending, encoding) from None
        if text:
            yield text
        if not chunk:
            return
        begin += len(chunk)
        chunk = file.read(CHUNK)


def no_text(where: str, error: UnicodeDecodeError, begin: int, encoding: str) -> DataError:
    """The error for bytes that are not text: which bytes, and their offset."""
    byte = f"0x{error.object[error.start]:02x}" if error.start < len(error.object) else "the end"
    return DataError(
        f"{where} is no {encoding.upper()} text: byte {byte} at offset {begin + error.start:,}; if it was written in "
        "another encoding, convert it (iconv -f latin1 -t utf-8)"
    )


def read_whole(path: str | Path) -> str:
    """The whole text of one file; `DataError` says what is wrong with it."""
    path = Path(path)
    try:
        with open_decompressed(path) as file:
            return "".join(decoded_chunks(file, str(path)))
    except (FileNotFoundError, IsADirectoryError, PermissionError) as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from None
