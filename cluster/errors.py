"""The error tree. Messages are written for the reader who has to act on them.

HeadraceError
  UserError (ValueError)        the caller can mend it
    ConfigError                 a configuration file or value
    DataError                   a data file, a dataset or a manifest
    ArtifactError               an adapter directory that cannot be trusted
  NotFoundError                 what was named is not there
  ConflictError                 the state does not allow this now
  SwapError                     a version could not be brought into service
    VerificationError           a replica cannot serve what the trainer made
  DiskFullError                 there is no room for what is published
  UnavailableError              the control plane does not answer now
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pydantic import ValidationError

_MAX_LINE = 1000


class HeadraceError(Exception):
    """Base of every error raised on purpose."""


class UserError(HeadraceError, ValueError):
    """Something the caller gave is wrong; the message says what to change."""


class ConfigError(UserError):
    """A configuration file is missing, unreadable or holds a wrong value."""


class DataError(UserError):
    """A data file, a dataset or its manifest is missing or broken."""


class ArtifactError(UserError):
    """An adapter directory is incomplete, altered or not what its manifest says."""


class NotFoundError(HeadraceError):
    """What was named does not exist, or not for the caller."""


class ConflictError(HeadraceError):
    """The request is well formed, but the present state does not allow it."""


class DiskFullError(HeadraceError):
    """The disk has no room for what is published; nothing of it was."""


class SwapError(HeadraceError):
    """A new version was not proved on every replica; the serving version is untouched."""


class VerificationError(SwapError):
    """A replica's engine refuses it, or says other things with it than the trainer's model did."""


class UnavailableError(HeadraceError):
    """The control plane does not answer now. What was asked of it may have been done or not."""


def problems(error: ValidationError) -> str:
    """What does not fit a model, each field by its path, on one line."""
    found = error.errors()
    shown = [
        f"{'.'.join(map(str, item['loc'])) or 'file'}: {item['msg'].removeprefix('Value error, ')}"
        for item in found[:5]
    ]
    more = [f"{len(found) - 5} more"] if len(found) > 5 else []
    return "; ".join([*shown, *more])


def one_line(error: Exception) -> str:
    """What an error says, on one line: what relays a job's log passes on whole lines."""
    from pydantic import ValidationError

    text = problems(error) if isinstance(error, ValidationError) else str(error)
    return " ".join(text.split())[:_MAX_LINE]
