"""One clear sentence for whatever goes wrong between here and the hub."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from huggingface_hub import constants
from huggingface_hub.errors import (
    EntryNotFoundError,
    FileMetadataError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from frozenllm.core.weights.ranges import TransportError


@contextmanager
def explained(repository: str, revision: str | None, what: str) -> Iterator[None]:
    """Turn errors of huggingface_hub and its HTTP client into a `ValueError`.

    Args:
        repository: ``org/name``.
        revision: What the user asked for, or the commit.
        what: The file or layers that were to be read.

    Raises:
        ValueError: One sentence.
    """
    try:
        yield
    except (HfHubHTTPError, TransportError, LocalEntryNotFoundError, HFValidationError, ConnectionError) as error:
        raise ValueError(_sentence(error, repository, revision, what)) from error
    except FileMetadataError as error:
        raise ValueError(f"{constants.ENDPOINT}: does not answer as a hub does ({_first(error)}).") from error


def _sentence(error: Exception, repository: str, revision: str | None, what: str) -> str:
    hub, name = constants.ENDPOINT, repository + (f"@{revision}" if revision else "")
    cause = error.__cause__
    if isinstance(error, LocalEntryNotFoundError) and isinstance(cause, Exception):
        return _sentence(cause, repository, revision, what)  # why it had to be looked for in the cache
    if isinstance(error, HFValidationError):
        return f"{repository!r}: no such file or folder, and not a name that a hub repository can have."
    if isinstance(error, GatedRepoError):
        return (
            f"{name}: access to this repository is gated; accept its licence at {hub}/{repository}, then log in with "
            '"hf auth login" or set HF_TOKEN.'
        )
    if isinstance(error, RepositoryNotFoundError):
        return (
            f"{repository}: no such file or folder here, and no such repository on {hub}; if it is private, log in "
            'with "hf auth login" or set HF_TOKEN.'
        )
    if isinstance(error, RevisionNotFoundError):
        return f"{repository}: has no revision {revision!r} on {hub}."
    if isinstance(error, OfflineModeIsEnabled | LocalEntryNotFoundError):
        return f"{name}: {what} is not in the cache, and offline mode is on (HF_HUB_OFFLINE)."
    if isinstance(error, EntryNotFoundError):
        return f"{name}: has no {what} on {hub}."
    if isinstance(error, HfHubHTTPError):
        status = error.response.status_code
        if status in (401, 403):
            return (
                f'{name}: {hub} refused access to {what} (status {status}); log in with "hf auth login" or set '
                "HF_TOKEN to a token that may read it."
            )
        if status >= 500 or status in (408, 429):
            return f"{name}: {hub} could not serve {what} (status {status}); try again later."
        return f"{name}: {hub} answered the request for {what} with status {status}."
    return f"{name}: {what} is not in the cache, and {hub} cannot be reached ({_first(error)})."


def _first(error: Exception) -> str:
    """First line of a message, without its full stop."""
    return (str(error) or type(error).__name__).splitlines()[0].rstrip(".")[:200]
