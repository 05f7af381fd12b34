"""Checks what a hub, or a mirror of it, answers before paths of the hub's cache are made of it."""

from __future__ import annotations

import logging
import re
from functools import cache
from typing import Any, ClassVar, Self
from urllib.parse import urlsplit

from huggingface_hub import constants, set_client_factory

from expert_store.checked_text import CheckedText, shown
from server.model.checkpoint.hub_session import bounded_client
from server.model.errors import ModelError

COMMIT, LINKED_ETAG = constants.HUGGINGFACE_HEADER_X_REPO_COMMIT, constants.HUGGINGFACE_HEADER_X_LINKED_ETAG
ETAG = "ETag"
NUM_ERRORS = 400  # the least status of an error
REMEDY = "check HF_ENDPOINT, or tell those who run that server"


class _Hash(CheckedText):
    """A text that follows the grammar of its class."""

    __slots__ = ()
    WHAT: ClassVar[str]
    GRAMMAR: ClassVar[re.Pattern[str]]

    @classmethod
    def check(cls, text: object) -> None:
        """Raise ValueError if a text does not follow the grammar."""
        if not isinstance(text, str) or not cls.GRAMMAR.fullmatch(text):
            raise ValueError(f"{shown(text)} is not {cls.WHAT}")


class Commit(_Hash):
    """The hash of a commit of a repository, which names a folder of the hub's cache."""

    __slots__ = ()
    WHAT, GRAMMAR = "the hash of a commit", re.compile(r"[0-9a-f]{40}")


class Sha256(_Hash):
    """The SHA-256 of a file."""

    __slots__ = ()
    WHAT, GRAMMAR = "a SHA-256", re.compile(r"[0-9a-f]{64}")


class EntityTag(_Hash):
    """The value of an ETag, which names a file of the hub's cache.

    It is an MD5, a SHA-1 or a SHA-256, with the number of its parts if storage made it of some, or a web server's time
    and size of a file; ``-gzip`` and the like may follow.
    """

    __slots__ = ()
    WHAT = "the ETag of a file"
    GRAMMAR = re.compile(
        r"([0-9a-f]{32}|[0-9a-f]{40}|[0-9a-f]{64}|[0-9a-f]{1,16}(-[0-9a-f]{1,16}){1,2})(-[0-9]{1,5})?(-[a-z]{2,8})?",
        re.IGNORECASE,
    )
    _HEADER = re.compile(r'(?:W/)?(?:"([^"]*)"|([^"]*))')

    @classmethod
    def of_header(cls, header: str) -> Self:
        """Return the value of a header, which may be weak and in quotes.

        Raises:
            ValueError: it is none.
        """
        found = cls._HEADER.fullmatch(header)
        return cls(header if found is None else found[1] or found[2])


@cache
def check_answers() -> None:
    """Have each answer to the hub's library checked before the library uses it, in this process.

    The library writes no lines of its own: they have signed links.
    """
    set_client_factory(_checked_client)
    logging.getLogger("huggingface_hub").handlers.clear()


def _checked_client() -> Any:  # a client of httpx or httpx2, as the library has it
    client = bounded_client()
    client.event_hooks["response"].append(_check)
    return client


def _check(answer: Any) -> None:
    """Raise ModelError if an answer has a commit or an ETag that is none.

    Those of an answer without a commit are not used. Neither are the ETags of errors and of what is not asked by HEAD.
    """
    commit = answer.headers.get(COMMIT)
    if commit is None:
        return
    try:
        Commit(commit)
        if answer.request.method == "HEAD" and answer.status_code < NUM_ERRORS:
            tag = answer.headers.get(LINKED_ETAG) or answer.headers.get(ETAG)
            if tag is not None:
                EntityTag.of_header(tag)
    except ValueError as error:
        url = urlsplit(str(answer.request.url))
        raise ModelError(f"{url.hostname} tells of {url.path} what can't be: {error}; {REMEDY}") from None
