"""One connection to the Hugging Face Hub, and its failures as errors of wsmerge.

The Hub client reads its environment when it is imported. Here it is read when a call is made:

    HF_ENDPOINT                 address of the Hub; https://huggingface.co
    HF_TOKEN                    who asks; else the login that `hf auth login` stored, else nobody
    HF_HUB_OFFLINE              1, ON, YES or TRUE: nothing is asked. TRANSFORMERS_OFFLINE says the same
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from json import JSONDecodeError
from typing import TYPE_CHECKING, Final

from wsmerge.core.hub.windows import KEPT_BYTES
from wsmerge.errors import HubError

if TYPE_CHECKING:
    from huggingface_hub import HfApi

__all__ = ["Hub", "Patience", "status_of", "telling"]

_PUBLIC_ENDPOINT: Final = "https://huggingface.co"
_TRUE: Final = frozenset({"1", "ON", "YES", "TRUE"})
_NO_LOGIN_HINT: Final = "check the name; a private one needs a login: hf auth login, or HF_TOKEN"
_LATER_HINT: Final = "try again later: what is here already is used again"


@dataclass(frozen=True, slots=True)
class Patience:
    """How often a request is repeated that failed for a reason that may pass.

    Attributes:
        attempts: requests without a new byte until it is given up, the first one included.
        first_wait_s: seconds before the second; each later wait is twice as long.
        longest_wait_s: seconds that none of these waits exceeds.
        longest_demand_s: seconds that the Hub may ask for at most (`Retry-After`); what asks for more fails at once.
        timeout_s: seconds without any byte after which a connection counts as lost.
    """

    attempts: int = 6
    first_wait_s: float = 0.5
    longest_wait_s: float = 10.0
    longest_demand_s: float = 330.0
    timeout_s: float = 30.0


class Hub:
    """One connection to the Hub; nothing is asked when it is made. Threads may share it.

    Args:
        endpoint: address of the Hub; what `HF_ENDPOINT` says at the time of each call if None.
        token: who asks; what `HF_TOKEN` or the stored login says at the time of each call if None.
        patience: how often failing requests are repeated.
        kept_bytes: what is kept in memory at most of the files of each repository that is read by range.
    """

    def __init__(
        self,
        *,
        endpoint: str | None = None,
        token: str | None = None,
        patience: Patience | None = None,
        kept_bytes: int = KEPT_BYTES,
    ) -> None:
        self._endpoint = endpoint
        self._token = token
        self.patience = patience or Patience()
        self.kept_bytes = kept_bytes
        self._api: HfApi | None = None

    @property
    def endpoint(self) -> str:
        """Address of the Hub, without a slash at its end."""
        return (self._endpoint or os.environ.get("HF_ENDPOINT") or _PUBLIC_ENDPOINT).rstrip("/")

    @property
    def token(self) -> str | None:
        """Who asks; None where nobody is logged in, or the login is not to be used by itself.

        Raises:
            HubError: a token with characters that no header takes.
        """
        from huggingface_hub import get_token  # noqa: PLC0415 - what is local needs no Hub client

        is_explicit = os.environ.get("HF_HUB_DISABLE_IMPLICIT_TOKEN", "").upper() in _TRUE
        token = self._token if self._token is not None or is_explicit else get_token()
        if token is not None and not (token.isascii() and token.isprintable()):
            raise HubError(
                "the token holds characters that cannot be sent",
                where=self.endpoint,
                hint="it was copied wrongly: set HF_TOKEN anew, or log in again: hf auth login",
            )
        return token

    @property
    def offline(self) -> bool:
        """Whether the user forbids to ask the Hub."""
        told = os.environ.get("HF_HUB_OFFLINE") or os.environ.get("TRANSFORMERS_OFFLINE") or ""
        return told.upper() in _TRUE

    @property
    def api(self) -> HfApi:
        """The Hub client for this endpoint and token.

        Raises:
            HubError: as of `token`.
        """
        from huggingface_hub import HfApi  # noqa: PLC0415 - as above

        _ = self.token  # the client would fail on a bad one with an error of its own kind
        if self._api is None or self._api.endpoint != self.endpoint:
            self._api = HfApi(endpoint=self.endpoint, token=self._token)
        return self._api

    @property
    def headers(self) -> dict[str, str]:
        """Headers of a request to the Hub itself: who asks and with what. They are for no other host."""
        from huggingface_hub.utils import (  # type: ignore[attr-defined]  # it makes its names when asked  # noqa: PLC0415 - as above
            build_hf_headers,
        )

        return build_hf_headers(token=self.token or False, library_name="wsmerge")

    def refuse_offline(self, where: str, *, hint: str) -> None:
        """Raise if nothing may be asked.

        Raises:
            HubError: about `where`, with `hint` as what to do.
        """
        if self.offline:
            raise HubError("the Hub may not be asked: HF_HUB_OFFLINE is set", where=where, hint=hint)


@contextmanager
def telling(repo: str, revision: str | None = None) -> Iterator[None]:
    """Calls of the Hub client about `repo`, whose failures become errors of wsmerge.

    Raises:
        HubError: what failed, at which repository and revision, and what to do. A failed precondition (status 412) is
            let through as the client raised it.
    """
    from huggingface_hub import errors as hub  # noqa: PLC0415 - what is local needs no Hub client
    from huggingface_hub import utils  # noqa: PLC0415 - as above

    # Of the HTTP client, which differs between releases.
    transport_error: type[Exception] = hub.HTTPError  # type: ignore[attr-defined]  # the client makes it when asked
    bad_address: type[Exception] = utils.httpx.InvalidURL  # type: ignore[attr-defined]  # as above
    try:
        yield
    except hub.HfHubHTTPError as error:
        if status_of(error) == 412:
            raise
        raise _refused(error, f"{repo}@{revision}" if revision else repo) from error
    except (
        transport_error,
        bad_address,
        hub.OfflineModeIsEnabled,
        hub.EntryNotFoundError,
        hub.FileMetadataError,
        hub.HFValidationError,
        hub.XetDownloadError,
        JSONDecodeError,
    ) as error:
        raise _not_answered(error, f"{repo}@{revision}" if revision else repo) from error


def status_of(error: BaseException) -> int | None:
    """The HTTP status behind a failure: of the Hub client's error, or of the `HubError` that was made of it."""
    refused = error.__cause__ if isinstance(error, HubError) else error
    return getattr(getattr(refused, "response", None), "status_code", None)


def _refused(error: Exception, where: str) -> HubError:
    """The Hub answered, and not with what was asked for."""
    from huggingface_hub import errors as hub  # noqa: PLC0415 - as in telling

    status = status_of(error)
    if isinstance(error, hub.GatedRepoError):
        message = "the Hub gives it only to those who accepted its terms"
        hint = "accept them on its page, then: hf auth login, or HF_TOKEN"
    elif isinstance(error, hub.RepositoryNotFoundError):
        message, hint = "the Hub has no such repository, or does not show it", _NO_LOGIN_HINT
    elif isinstance(error, hub.RevisionNotFoundError):
        message, hint = "the repository has no such revision", "name a branch, a tag or a commit of it"
    elif isinstance(error, hub.EntryNotFoundError):
        message, hint = f"the commit has no such file: {_first_line(error)}", "name a revision that has it"
    elif status == 401:
        message, hint = "the Hub does not know the token", "log in again: hf auth login, or set HF_TOKEN"
    elif status == 403:
        message, hint = f"the token may not do this: {_first_line(error)}", "use a token that may: hf auth login"
    elif status == 429:
        message, hint = "the Hub limits how much is asked", "wait some minutes; who is logged in may ask more"
    elif status is not None and status >= 500:
        message, hint = f"the Hub failed: status {status}", _LATER_HINT
    else:
        message, hint = f"the Hub refused: {_first_line(error)}", "see what it says"
    return HubError(message, where=where, hint=hint)


def _not_answered(error: Exception, where: str) -> HubError:
    """The Hub was not asked, not reached, or its answer makes no sense."""
    from huggingface_hub import errors as hub  # noqa: PLC0415 - as in telling

    if isinstance(error, hub.OfflineModeIsEnabled):
        message, hint = "the Hub may not be asked: HF_HUB_OFFLINE is set", "unset it, or use what is here"
    elif isinstance(error, hub.HFValidationError):
        message, hint = f"is no repository's name: {_first_line(error)}", "a repository is owner/name"
    elif isinstance(error, hub.EntryNotFoundError):
        message, hint = f"is not here, and the Hub cannot be reached: {_first_line(error)}", _LATER_HINT
    elif isinstance(error, (JSONDecodeError, hub.FileMetadataError)):
        message, hint = f"answers what cannot be: {_first_line(error)}", "check HF_ENDPOINT, and try again later"
    else:
        message, hint = f"the Hub cannot be reached: {_first_line(error)}", "check the network and HF_ENDPOINT"
    return HubError(message, where=where, hint=hint)


def _first_line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
