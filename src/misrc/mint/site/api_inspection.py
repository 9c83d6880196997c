"""What `misrc site check` can know of a site that opens no port: MInt's own server, token and keys.

What the site itself does not allow, MInt cannot try there: nothing leads in. The site's own `agent --check` says how it
stands with the agent.
"""

from __future__ import annotations

from collections.abc import Iterator

from ...job.errors import BadRequest, MisrcError
from ..keys import fingerprint, read_public
from ..link.api_link import ApiLink
from ..messages.catalog import say
from ..signing import signing_key
from .declarations import Declaration
from .findings import Finding, fail, ok, skipped, warn


def inspect_api(declaration: Declaration) -> Iterator[Finding]:
    """All findings, in order."""
    yield _ask_server(declaration)
    yield _check_receipts(declaration)
    if declaration.site.signed:
        yield _check_signing()
    yield skipped("gate", say("note.no_port"))


def _ask_server(declaration: Declaration) -> Finding:
    site = declaration.site
    try:
        link = ApiLink.make(site)
    except BadRequest as error:
        return fail("server", str(error))
    try:
        link.greet()
        return ok("server", link.address)
    except MisrcError as error:
        return fail("server", str(error))
    finally:
        link.close()


def _check_receipts(declaration: Declaration) -> Finding:
    """Whoever holds the server could otherwise say what a site made."""
    keys = declaration.site.receipt_keys
    if keys:
        return ok("receipts", ", ".join(map(fingerprint, keys)))
    return warn("receipts", say("note.no_receipt_keys"))


def _check_signing() -> Finding:
    try:
        return ok("signing", fingerprint(read_public(signing_key())))
    except BadRequest as error:
        return fail("signing", str(error))
