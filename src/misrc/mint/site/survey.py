"""`misrc site survey`: what MInt declares of a site, as a sheet that both parties sign."""

from __future__ import annotations

import datetime
import json
import sys
from pathlib import Path

from ...declare.interface import Site
from ...declare.inventory import read_variables
from ...declare.survey import Format, describe_site, render_survey
from ...declare.survey_words import Language
from ...job.errors import BadRequest
from ...job.public_keys import parse_public_key
from ..keys import public_file
from ..messages.catalog import language, say
from .declarations import Declaration, find_declaration


def write_survey(
    site: str, inventory: str | None, lang: Language | None, form: Format, output: str | None, as_json: bool
) -> int:
    """Print the sheet, or write it to `output`; how many questions are open is said on standard error."""
    declaration = find_declaration(site, inventory)
    declared = Site.model_validate(read_variables(declaration.path)["misrc_site"])
    chosen: Language = lang or ("ja" if language() == "ja" else "en")
    sheet = describe_site(declared, _job_key(declaration), chosen, datetime.date.today())
    text = render_survey(sheet, form)
    if output:
        _write(Path(output), text)
    if as_json:
        plain = {"site": site, "language": chosen, "format": form, "declaration": sheet.digest}
        print(json.dumps({**plain, "open": sheet.questions, "text": None if output else text}, ensure_ascii=False))
    elif not output:
        sys.stdout.write(text)
    if sheet.questions:
        print(f"misrc: {say('survey.open', count=len(sheet.questions))}", file=sys.stderr)
    return 0


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise BadRequest(say("bundle.write", path=path, why=error.strerror)) from None


def _job_key(declaration: Declaration) -> str | None:
    """The public half, never out of the private key: whoever makes a sheet may not be allowed to read that."""
    try:
        return parse_public_key(public_file(declaration.identity_place()).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
