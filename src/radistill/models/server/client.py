"""HTTP with an OpenAI-compatible server: many requests at once, tried again where that may help, errors on one line."""

import json
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.pool import ThreadPool
from typing import Any, TypeVar

import urllib3
from urllib3.exceptions import HTTPError, MaxRetryError

from radistill.errors import RadistillError
from radistill.files import shortened
from radistill.models.checkpoint import one_line
from radistill.models.server.settings import ServerSettings

KEY = "RADISTILL_SERVER_KEY"
"""The environment variable that has a server's key."""

LONGEST_PAUSE = 60.0
"""Seconds between two attempts of a request, at most."""

_BUSY = (408, 425, 429, 500, 502, 503, 504)
_TIMEOUT = urllib3.Timeout(connect=30, read=3600)

Job = TypeVar("Job")
Found = TypeVar("Found")


class Client:
    """Requests to one server."""

    def __init__(self, settings: ServerSettings) -> None:
        """Nothing is asked yet.

        Raises:
            RadistillError: if the key cannot be sent.
        """
        self.address = settings.url
        self._settings = settings
        self._key = os.environ.get(KEY, "").strip()
        if not (self._key.isascii() and self._key.isprintable()):
            raise RadistillError(f"{KEY}: has characters that no key has")
        # It would tell of every attempt; what comes of them all is told here.
        logging.getLogger("urllib3").setLevel(logging.ERROR)
        self._http = urllib3.PoolManager(num_pools=1, maxsize=settings.requests, block=True)

    def ask(self, path: str, content: dict[str, Any] | None = None, *, first: bool = False) -> Any:
        """The server's answer to a POST of `content`, or to a GET; `first` does not wait for one that is not there.

        Raises:
            RadistillError: if there is no answer after all attempts, or one that says no.
        """
        retries = urllib3.Retry(
            total=self._settings.retries,
            connect=0 if first else None,
            backoff_factor=1,
            backoff_max=LONGEST_PAUSE,
            status_forcelist=_BUSY,
            allowed_methods=None,
            raise_on_status=False,
            redirect=False,  # who else may have the key is not for a server to say
        )
        try:
            answer = self._http.request(
                "GET" if content is None else "POST",
                self.address + path,
                body=None if content is None else json.dumps(content),
                headers={"Content-Type": "application/json"}
                | ({"Authorization": f"Bearer {self._key}"} if self._key else {}),
                retries=retries,
                timeout=_TIMEOUT,
                redirect=False,
            )
        except HTTPError as error:
            reason = error.reason if isinstance(error, MaxRetryError) and error.reason else error
            raise self.error(f"cannot be reached ({one_line(reason)}); start it, or correct the address") from None
        if answer.status != 200:
            raise self._refusal(path, answer.status, answer.data)
        try:
            return answer.json()
        except ValueError:
            raise self.error(f"{path} is no JSON; is this an OpenAI-compatible server?") from None

    def error(self, message: str) -> RadistillError:
        """An error that names the server, and never its key."""
        return RadistillError(f"server {self.address}: {message.replace(self._key, '…') if self._key else message}")

    def _refusal(self, path: str, status: int, body: bytes) -> RadistillError:
        try:
            found = json.loads(body)
            found = found.get("error", found)
            said = str(found.get("message", found) if isinstance(found, dict) else found)
        except (ValueError, AttributeError):
            said = body.decode(errors="replace")
        said = f"{status}: {shortened(' '.join(said.split()))}"
        if status in (401, 403):
            return self.error(f"{'refuses' if self._key else 'wants'} the key in {KEY} ({said})")
        if status == 404:
            return self.error(f"has no {path} ({said}); vLLM and llama.cpp's server do")
        return self.error(f"{path} failed ({said})")

    def at_once(self, work: Callable[[Job], Found], jobs: Sequence[Job]) -> Iterator[tuple[Job, Found]]:
        """Do jobs, as many at once as the settings allow, and yield each with its result as soon as it is there.

        After an error no job is begun. Those that are under way are waited for, so that nothing that the server has
        done is lost.

        Raises:
            RadistillError: the first that a job has raised, at the end.
        """
        errors: list[RadistillError] = []

        def attempt(job: Job) -> tuple[Job, Found] | None:
            try:
                return None if errors else (job, work(job))
            except RadistillError as error:
                errors.append(error)
                return None

        if jobs:
            with ThreadPool(min(self._settings.requests, len(jobs))) as pool:
                yield from (done for done in pool.imap_unordered(attempt, jobs) if done is not None)
        if errors:
            raise errors[0]
