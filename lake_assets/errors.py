"""Every failure a user can meet, as a sentence: what, which one, what to do.

An error of this module never carries text of a document, and never a secret.
"""

from __future__ import annotations


class LakeError(Exception):
    """The base of all: its message is shown to the user as it is, without a traceback."""


class SettingsRefused(LakeError):
    """A setting is missing, or contradicts another one."""


class SourcesRefused(LakeError):
    """The sources file cannot be read, or declares something unknown."""


class ContractBroken(LakeError):
    """A frame does not have the columns and types that its table's contract declares."""


class TableConflict(LakeError):
    """Another writer kept winning the commit of one table."""


class ObjectGone(LakeError):
    """An object was claimed, and its bytes have been replaced or removed before they were read."""


class NodeFailed(LakeError):
    """The local OpenSearch node cannot be fetched, started or stopped."""


class IndexUnavailable(LakeError):
    """OpenSearch does not answer, or refuses everything that is sent to it."""


class PageFailed(LakeError):
    """Dagster's page cannot be started."""


class SearchRefused(LakeError):
    """A condition of a search cannot be understood, or does not fit the fields of the index."""


class CounterFailed(LakeError):
    """The counter that ids are numbered by cannot be reached, or refuses."""
