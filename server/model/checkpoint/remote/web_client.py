"""WebClient: reads ranges of files of web servers, with retries."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from expert_store.errors import (
    ShortReadError,
    SourceChangedError,
    SourceError,
    SourceGoneError,
    SourceTimeoutError,
    SourceUnreadableError,
)
from expert_store.sources.base import Bytes
from server.http_client.bounded_answers import AnswerLimits, bound
from server.http_client.reach import Reach
from server.model.checkpoint.remote.addresses import without_secrets
from server.model.checkpoint.remote.retries import NUM_TRIES, RETRIED, wait_before_retry
from server.redaction import quote, redact

if TYPE_CHECKING:
    import httpx

MAX_CONNECTIONS = 16
READ_SECONDS, CONNECT_SECONDS = 30.0, 10.0
MIN_PROGRESS_BYTES = 64 << 10  # of an answer that was cut, for the next try to count as the first
CONTENT_RANGE = re.compile(r"bytes (?:([0-9]{1,19})-([0-9]{1,19})|\*)/([0-9]{1,19})")
COMPLETE, PARTIAL, NO_SUCH_RANGE = 200, 206, 416
LIMITS = AnswerLimits(seconds=READ_SECONDS)
GONE = frozenset({404, 410})
REFUSED = frozenset({401, 403})


class Content(NamedTuple):
    """The bytes behind an address at some time."""

    nbytes: int
    version: str  # ETag, or else the time of the last change; empty if the server tells neither


class Link(NamedTuple):
    """Link to the bytes of a file, for now."""

    url: str
    version: str | None = None  # that its server tells; None before the first answer


class Address:
    """Address of a file, and the link that its server redirects to. Thread-safe.

    A link is kept, so that the server is asked once for each file. When it has expired, one thread asks for all.

    Args:
        url: of the file; user and password in it go to its own server alone.
        headers: returns further headers for its own server, such as a token.
        commit: of the file's repository, if the server tells one.
        has_checksum: whether the repository lists the checksum of the file, which is then its version.
    """

    def __init__(
        self,
        url: str,
        headers: Callable[[], Mapping[str, str]] = dict,
        commit: str | None = None,
        *,
        has_checksum: bool = False,
    ):
        self.url, self.name, self.headers, self.commit = url, without_secrets(url), headers, commit
        self.has_checksum = has_checksum
        self.link = Link(url)
        self.asking = threading.RLock()  # held while another link is asked for


class _FailedError(Exception):
    """A request failed, and another may succeed."""

    def __init__(self, error: SourceError, headers: Mapping[str, str] | None = None):
        super().__init__(str(error))
        self.error, self.headers = error, headers or {}
        self.has_progress = False  # many bytes came before it


class _RefusedError(Exception):
    """A request was answered with 401 or 403, as an expired link is."""

    def __init__(self, error: SourceError):
        super().__init__(str(error))
        self.error = error


class WebClient:
    """Reads ranges of files. Thread-safe.

    Args:
        max_connections: at the same time, over all files.
        limits: of an answer.
    """

    def __init__(self, max_connections: int = MAX_CONNECTIONS, limits: AnswerLimits = LIMITS):
        import httpx  # noqa: PLC0415  brings packages for terminals, which a server does not need otherwise

        self._http = httpx.Client(
            limits=httpx.Limits(max_connections=max_connections, max_keepalive_connections=max_connections),
            timeout=httpx.Timeout(READ_SECONDS, connect=CONNECT_SECONDS, pool=None),
            follow_redirects=True,  # to another host httpx sends no credentials
        )
        bound(self._http, limits, Reach())
        self._parallel = ThreadPoolExecutor(max_connections, thread_name_prefix="web-read")
        self._is_closed = threading.Event()
        self._addresses: dict[str, Address] = {}

    def address(
        self,
        url: str,
        headers: Callable[[], Mapping[str, str]] = dict,
        commit: str | None = None,
        *,
        has_checksum: bool = False,
    ) -> Address:
        """Return the address of a file, whose link all who read it share; see ``Address``."""
        return self._addresses.setdefault(url, Address(url, headers, commit, has_checksum=has_checksum))

    def look(self, address: Address) -> Content:
        """Return size and version of a file.

        Raises:
            SourceGoneError: there is none.
            SourceError: the server can't be reached, refuses, or gives no ranges.
        """
        found = Content(0, "")

        def once(link: Link) -> None:
            nonlocal found
            with self._answer(address, link.url, 0, 1) as answer:
                answer.read()
                found = _content(address, answer)
                address.link = Link(str(answer.url), found.version)
                found = _linked_content(address, answer, found)

        self._until_done(address, once)
        return found

    def read(self, address: Address, offset: int, target: Bytes, content: Content) -> None:
        """Fill a target from an offset of a file on; a connection that is cut is continued where it ended.

        Args:
            content: what the file was when it was opened.

        Raises:
            SourceChangedError: it is another one now.
            SourceError: it can't be read.
        """
        done = 0

        def once(link: Link) -> None:
            nonlocal done
            before, begin, end = done, offset + done, offset + len(target)
            try:
                with self._opened(address, link, begin, end, content) as (answer, version):
                    _check_range(address, answer, begin, end, Content(content.nbytes, version))
                    for chunk in answer.iter_raw():  # which are no more bytes than were asked for
                        target[done : done + len(chunk)] = np.frombuffer(chunk, np.uint8)
                        done += len(chunk)
            except _FailedError as failed:
                failed.has_progress = done - before >= MIN_PROGRESS_BYTES
                raise
            if done < len(target):
                raise _FailedError(SourceUnreadableError(address.name, "the server sends less than was asked for"))

        if len(target):
            self._until_done(address, once, content)

    def read_all(self, address: Address, parts: Sequence[tuple[int, Bytes]], content: Content) -> None:
        """Fill the targets of several offsets at the same time.

        Raises:
            SourceError: one can't be read; the other reads have ended.
        """
        if len(parts) == 1:
            self.read(address, *parts[0], content)
            return
        reads = [self._parallel.submit(self.read, address, *part, content) for part in parts]
        errors = [error for read in reads if (error := read.exception()) is not None]
        if errors:
            raise errors[0]

    def close(self) -> None:
        """Close the connections; what waits for a retry fails."""
        self._is_closed.set()
        self._parallel.shutdown()
        self._http.close()

    def _until_done(self, address: Address, once: Callable[[Link], None], content: Content | None = None) -> None:
        """Send a request to the address's link until it succeeds, or has failed too often.

        Args:
            content: that another link must have.
        """
        failures, has_asked = 0, False
        while True:
            with address.asking:
                link = address.link
            try:
                return once(link)
            except _RefusedError as refused:
                if has_asked or link.url == address.url:
                    raise refused.error from None
                has_asked = True
                self._renew(address, link, content)
            except _FailedError as failed:
                failures = 1 if failed.has_progress else failures + 1
                if failures >= NUM_TRIES or self._is_closed.wait(wait_before_retry(failures, failed.headers)):
                    raise failed.error from None

    @contextmanager
    def _opened(
        self, address: Address, link: Link, begin: int, end: int, content: Content
    ) -> Iterator[tuple[httpx.Response, str]]:
        """Ask for a range, and yield the answer and the version that the link's server tells.

        The first answer about a file that was opened without a look at it has the link for all later ones.
        """
        with ExitStack() as asking, ExitStack() as answering:
            if link.version is None:
                asking.enter_context(address.asking)
                link = address.link
            answer = answering.enter_context(self._answer(address, link.url, begin, end))
            if link.version is None:
                found = _content(address, answer)
                link = address.link = Link(str(answer.url), found.version)
                self._check(address, _linked_content(address, answer, found), content)
            asking.close()
            yield answer, link.version or ""

    def _renew(self, address: Address, expired: Link, content: Content | None) -> None:
        """Ask for another link, unless another thread has done so."""
        with address.asking:
            if address.link == expired:
                address.link = Link(address.url)
                found = self.look(address)
                if content is not None:
                    self._check(address, found, content)

    @staticmethod
    def _check(address: Address, found: Content, opened: Content) -> None:
        """Raise SourceChangedError if a file is not the one that was opened."""
        is_other = found.version != opened.version and "" not in {found.version, opened.version}
        if found.nbytes != opened.nbytes or is_other:
            address.link = Link(address.url)
            raise changed_error(address)

    @contextmanager
    def _answer(self, address: Address, link: str, begin: int, end: int) -> Iterator[httpx.Response]:
        """Ask for a range of bytes, and yield the answer, whose body may be read."""
        import httpx  # noqa: PLC0415

        headers = {"Range": f"bytes={begin}-{end - 1}"}
        if link == address.url:
            headers |= address.headers()
        try:
            with self._http.stream("GET", link, headers=headers) as answer:
                _check_status(address, answer)
                yield answer
        except httpx.TimeoutException as error:
            raise _FailedError(SourceTimeoutError(address.name, "the server does not answer")) from error
        except (httpx.HTTPError, httpx.InvalidURL, ValueError) as error:  # the last for names of hosts that are none
            reason = redact(str(error)) or type(error).__name__
            if "CERTIFICATE" in reason:
                raise SourceUnreadableError(
                    address.name, f"the server's certificate is not valid ({reason})"
                ) from error
            failure = SourceUnreadableError(address.name, f"the connection failed ({reason})")
            if isinstance(error, httpx.TransportError) and not isinstance(error, httpx.UnsupportedProtocol):
                raise _FailedError(failure) from error
            raise failure from error


def changed_error(address: Address) -> SourceChangedError:
    return SourceChangedError(address.name, "was changed on the server while it is served; restart this server")


def _check_status(address: Address, answer: httpx.Response) -> None:
    status = answer.status_code
    if status in {PARTIAL, NO_SUCH_RANGE}:
        return
    if status == COMPLETE:
        raise SourceUnreadableError(
            address.name, "the server sends whole files only; use one that answers requests with Range"
        )
    if status in GONE:
        raise SourceGoneError(address.name, f"the server answers {status}")
    quoted = quote(answer.read()) or redact(answer.reason_phrase)
    error = SourceUnreadableError(address.name, f"the server answers {status}: {quoted}")
    if status in REFUSED:
        raise _RefusedError(error)
    if status in RETRIED:
        raise _FailedError(error, answer.headers)
    raise error


def _content(address: Address, answer: httpx.Response) -> Content:
    found = CONTENT_RANGE.fullmatch(answer.headers.get("content-range", ""))
    if found is None:
        raise SourceUnreadableError(address.name, "the server does not tell how long the file is (Content-Range)")
    return Content(int(found[3]), answer.headers.get("etag") or answer.headers.get("last-modified", ""))


def _linked_content(address: Address, answer: httpx.Response, found: Content) -> Content:
    """Return what a file of a repository is by the first answer, which may tell the checksum of the complete file.

    Without a checksum in the answer and in the repository's list, the version is that of the file's server.

    Raises:
        SourceChangedError: the answer is about another commit.
    """
    if address.commit is None:
        return found
    told = (answer.history or [answer])[0].headers
    if told.get("x-repo-commit", address.commit) != address.commit:
        raise changed_error(address)
    tag = told.get("x-linked-etag", "").removeprefix("W/").strip('"')
    return Content(found.nbytes, tag) if tag or address.has_checksum else found


def _check_range(address: Address, answer: httpx.Response, begin: int, end: int, opened: Content) -> None:
    """Raise if an answer is about another file than the one that was opened, or has other bytes of it."""
    if _content(address, answer) != opened:
        raise changed_error(address)
    if answer.status_code == NO_SUCH_RANGE:
        raise ShortReadError(address.name, f"ends at byte {opened.nbytes}, inside the weights")
    found = CONTENT_RANGE.fullmatch(answer.headers["content-range"])
    assert found is not None
    if (found[1], found[2]) != (str(begin), str(end - 1)):
        given = answer.headers["content-range"]
        reason = f"the server sends {given} where bytes {begin}-{end - 1} were asked for"
        raise _FailedError(SourceUnreadableError(address.name, reason))
