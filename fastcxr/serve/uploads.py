"""Read the files of a multipart request into memory, within limits. Nothing is written to a disk."""

import asyncio
import logging
import re
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.requests import ClientDisconnect, Request

from fastcxr.data.imaging.memory import FileInMemory
from fastcxr.serve.options import MEGABYTE, ServeOptions
from fastcxr.serve.responses import RequestError
from fastcxr.serve.worker import ClientLeft

FILES_FIELD = "files"
MAX_TEXT_BYTES, MAX_TEXT_FIELDS = 1000, 8  # of fields that are no file
MAX_NAME_CHARACTERS = 255  # of a file; the end is kept, which has the suffix
MAX_HEADER_BYTES = 65_536  # of a part; it has the name of the file
MAX_DISCARDED_BYTES, DISCARD_SECONDS = 256 * MEGABYTE, 10.0  # of a rejected request
MULTIPART_FIX = "Send the files as multipart/form-data, as `curl -F files=@image.png` does"
SEPARATORS = re.compile(r"[/\\]+")


@dataclass
class Upload:
    """Files and text fields of a request."""

    files: list[FileInMemory] = field(default_factory=list)
    texts: dict[str, str] = field(default_factory=dict)


@dataclass
class _Part:
    name: str = ""
    file_name: str | None = None
    content: bytearray = field(default_factory=bytearray)


async def read_upload(request: Request, options: ServeOptions, text_names: Sequence[str] = ()) -> Upload:
    """Return the files of a request in the field `files`, and the values of the text fields `text_names`.

    Raises:
        RequestError: no or too many files, too many bytes, a body that is not multipart, or that arrives too slowly.
        ClientLeft: the client closed the connection before the end of the body.
    """
    reader, n_bytes = UploadReader(options, text_names), 0
    parser = reader.make_parser(find_boundary(request))
    validate_length(request, options)
    try:
        async with asyncio.timeout(options.body_seconds):
            async for chunk in request.stream():
                n_bytes += len(chunk)
                if n_bytes > options.max_request_bytes:
                    raise make_size_error("request", options.max_request_bytes)
                parser.write(chunk)
    except TimeoutError as error:
        problem = f"the request did not arrive within {options.body_seconds:g} s"
        raise RequestError(408, problem, "Send fewer or smaller files", code="E503") from error
    except ClientDisconnect as error:
        raise ClientLeft from error
    except FormParserError as error:
        raise RequestError(400, "the body is not valid multipart", MULTIPART_FIX, code="E504") from error
    return reader.finish()


def find_boundary(request: Request) -> bytes:
    """Return the boundary of a multipart request. Raises RequestError for another content type."""
    content_type, parameters = parse_options_header(request.headers.get("content-type", "").encode("latin-1"))
    if content_type != b"multipart/form-data":
        problem = f"the content type is {content_type.decode('latin-1')[:60]!r}, expected 'multipart/form-data'"
        raise RequestError(415, problem, MULTIPART_FIX, code="E504")
    if not parameters.get(b"boundary"):
        raise RequestError(400, "the content type has no boundary", MULTIPART_FIX, code="E504")
    return parameters[b"boundary"]


def validate_length(request: Request, options: ServeOptions) -> None:
    """Raise RequestError if the stated length of the body exceeds the limit."""
    length = request.headers.get("content-length", "0")
    if not length.isdecimal():
        raise RequestError(400, f"Content-Length is {length[:20]!r}, expected a number", MULTIPART_FIX, code="E504")
    if int(length) > options.max_request_bytes:
        raise make_size_error("request", options.max_request_bytes)


def make_size_error(unit: str, max_bytes: int) -> RequestError:
    """Return the error for a request or a file with too many bytes."""
    problem = f"the {unit} has more than {max_bytes / MEGABYTE:,g} MB"
    return RequestError(413, problem, "Send fewer or smaller files", code="E503")


async def discard_body(stream: AsyncIterator[bytes]) -> None:
    """Read and drop the rest of a rejected request: a client reads the response only after it has sent its body."""
    n_bytes = 0
    with suppress(TimeoutError, ClientDisconnect, asyncio.CancelledError):  # cancelled: the server stops
        async with asyncio.timeout(DISCARD_SECONDS):
            async for chunk in stream:
                n_bytes += len(chunk)
                if n_bytes > MAX_DISCARDED_BYTES:
                    return


class UploadReader:
    """Files of a multipart body within limits; the parser calls the methods `_on_...`.

    It does not refer to its parser: in a cycle of references the files would stay in memory after the request.
    """

    def __init__(self, options: ServeOptions, text_names: Sequence[str]):
        self.options, self.text_names = options, text_names
        self.upload, self.part, self.is_complete = Upload(), _Part(), False
        self.header_name, self.header_value, self.headers = bytearray(), bytearray(), {}

    def make_parser(self, boundary: bytes) -> MultipartParser:
        """Return the parser of a body. Raises RequestError for an invalid boundary."""
        callbacks: Any = {
            "on_part_begin": self._on_part_begin, "on_part_data": self._on_part_data, "on_part_end": self._on_part_end,
            "on_header_field": self._on_header_field, "on_header_value": self._on_header_value,
            "on_header_end": self._on_header_end, "on_headers_finished": self._on_headers_finished,
            "on_end": self._on_end,
        }  # fmt: skip
        logging.getLogger(MultipartParser.__module__).setLevel(logging.CRITICAL)  # its warnings quote the body
        try:
            parser = MultipartParser(boundary, callbacks)
        except FormParserError as error:
            raise RequestError(400, "the boundary of the request is invalid", MULTIPART_FIX, code="E504") from error
        parser.max_header_size = MAX_HEADER_BYTES  # by default a name of 4,200 characters is an error
        return parser

    def finish(self) -> Upload:
        """Return the upload. Raises RequestError if the body ended too early, or has no file."""
        if not self.is_complete:
            raise RequestError(400, "the body of the request is incomplete", MULTIPART_FIX, code="E504")
        if not self.upload.files:
            raise RequestError(400, f"no file in the field {FILES_FIELD!r}", MULTIPART_FIX, code="E504")
        return self.upload

    def _on_part_begin(self) -> None:
        self.part, self.headers = _Part(), {}

    def _on_header_field(self, data: bytes, start: int, end: int) -> None:
        self.header_name += data[start:end]

    def _on_header_value(self, data: bytes, start: int, end: int) -> None:
        self.header_value += data[start:end]

    def _on_header_end(self) -> None:
        self.headers[bytes(self.header_name).lower()] = bytes(self.header_value)
        self.header_name, self.header_value = bytearray(), bytearray()

    def _on_headers_finished(self) -> None:
        kind, parameters = parse_options_header(self.headers.get(b"content-disposition", b""))
        if kind != b"form-data" or b"name" not in parameters:
            raise RequestError(400, "a part of the request has no name", MULTIPART_FIX, code="E504")
        name, file_name = _decode(parameters[b"name"]), parameters.get(b"filename")
        self.part = _Part(name, None if file_name is None else shorten_name(_decode(file_name)))
        is_file = file_name is not None
        if name != FILES_FIELD if is_file else name not in self.text_names:
            expected = " and ".join(map(repr, [FILES_FIELD, *self.text_names]))
            problem = f"the {'file' if is_file else 'text'} field {name[:60]!r} is unknown"
            raise RequestError(400, problem, f"The fields of this request are {expected}", code="E504")
        if is_file and len(self.upload.files) >= self.options.max_files:
            problem = f"the request has more than {self.options.max_files} files"
            raise RequestError(413, problem, "Send the others in another request", code="E503")

    def _on_part_data(self, data: bytes, start: int, end: int) -> None:
        n_bytes = len(self.part.content) + end - start
        if self.part.file_name is None and n_bytes > MAX_TEXT_BYTES:
            problem = f"the field {self.part.name!r} has more than {MAX_TEXT_BYTES:,} bytes"
            raise RequestError(413, problem, "Send a shorter value", code="E503")
        if n_bytes > self.options.max_file_bytes:
            raise make_size_error("file", self.options.max_file_bytes)
        self.part.content += memoryview(data)[start:end]

    def _on_part_end(self) -> None:
        part, self.part = self.part, _Part()
        if part.file_name is None:
            self.upload.texts[part.name] = _decode(bytes(part.content))
        elif part.file_name or part.content:  # a form without a chosen file sends an empty one
            self.upload.files.append(FileInMemory(part.file_name or "file", bytes(part.content)))

    def _on_end(self) -> None:
        self.is_complete = True


def _decode(text: bytes) -> str:
    try:
        return text.decode("utf-8")
    except UnicodeDecodeError:
        return text.decode("latin-1")


def shorten_name(name: str) -> str:
    """Return the name of an uploaded file without its folders, of at most MAX_NAME_CHARACTERS."""
    return SEPARATORS.split(name)[-1][-MAX_NAME_CHARACTERS:]
