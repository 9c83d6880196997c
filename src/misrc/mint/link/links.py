"""The way to a site that its declaration names. Each way is loaded only where it is used: a waiting job stays small."""

from __future__ import annotations

from pathlib import Path

from ...job.interface import WEBAPI, Interface
from .link import Link


def make_link(site: Interface) -> Link:
    """A way to the site with a private folder of its own; BadRequest where a key or token for it is missing."""
    if site.method == WEBAPI:
        from .api_link import ApiLink

        return ApiLink.make(site)
    from .connection import Connection

    return Connection.make(site)


def join_link(site: Interface, folder: Path) -> Link:
    """The way that another process of the same job made: `folder` is its private folder."""
    if site.method == WEBAPI:
        from .api_link import ApiLink

        return ApiLink(site, folder)
    from .connection import Connection

    return Connection(site, folder)
