"""A computation as the predecessor registers it, and its results: the parts of its documents that hold files.

The names are the other side's. They stay what they are until one of them is to become a path; `local_names` and
`result_names` are the only way there, and they refuse what `job/names.py` refuses.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Dict, Tuple

from ..job.codec import CodecError
from ..job.names import check_distinct, check_input_name, check_result_name
from .content import Content, content_size, parse_content, render_content

MISSING_OUTPUT = "Error"
MAX_FILES = 4096
MAX_WORDS = 64 << 10
MAX_TYPE = 256
SITE_ID = "[A-Za-z0-9._-]{1,128}"


@dataclass(frozen=True)
class InputFile:
    """One input as it is registered: `name` may have folders; mime and charset are words of `file -i -b`."""

    name: str
    content: Content
    mime: str
    charset: str

    @property
    def missing(self) -> bool:
        """Whether the workflow's side had no such file."""
        return content_size(self.content) == 0 and not self.mime and not self.charset


@dataclass(frozen=True)
class ResultFile:
    """One result. Where the site could not give it, `mimetype1` is `Error` and `mimetype2` says why."""

    name: str
    content: Content
    mimetype1: str
    mimetype2: str

    @property
    def failed(self) -> bool:
        """Whether this is the word that a result is missing, and not a result."""
        return self.mimetype1 == MISSING_OUTPUT


@dataclass(frozen=True)
class CalcInfo:
    """One computation as it is registered. `result_files` are names; their order is kept."""

    command: str
    remote_site: str
    parameters: str
    parameter_files: Tuple[InputFile, ...]
    result_files: Tuple[str, ...]

    def local_names(self) -> Dict[str, InputFile]:
        """The inputs that are there, by the name that they get at the site; raises NameRefused.

        As the predecessor's clients do, only the last part of a name counts. Names that fall together are refused,
        and the names of missing inputs must be names, too: some clients write an empty file there. The empty name is
        what those make of an empty list: a missing input.
        """
        found = [(local_name(file.name), file) for file in self.parameter_files if file.name or not file.missing]
        check_distinct(name for name, _ in found)
        return {name: file for name, file in found if not file.missing}

    def result_names(self) -> Tuple[str, ...]:
        """The names of the results, fit to become relative paths; raises NameRefused."""
        return checked_results(self.result_files)


def local_name(name: str) -> str:
    """The last part of an input's name, fit to become a file name; raises NameRefused."""
    last = name.split("/")[-1]
    check_input_name(last)
    return last


def checked_results(names: Tuple[str, ...]) -> Tuple[str, ...]:
    """The names, all fit to become relative paths that do not fall together; raises NameRefused.

    The empty name, which some clients make of an empty list, stays: there is never such a result.
    """
    for name in filter(None, names):
        check_result_name(name)
    check_distinct(filter(None, names))
    return names


def render_info(info: CalcInfo) -> Dict[str, Any]:
    """The value of `calc-info`."""
    return {
        "command": info.command,
        "remote-site": info.remote_site,
        "parameters": info.parameters,
        "parameter_files": {f.name: [render_content(f.content), f.mime, f.charset] for f in info.parameter_files},
        "result_files": {name: {"content": "", "mimetype1": "", "mimetype2": ""} for name in info.result_files},
    }


_INFO_KEYS = {"command", "remote-site", "parameters", "parameter_files", "result_files"}


def parse_calc_info(document: Any) -> CalcInfo:
    """The computation in `{"calc-info": …}`; raises CodecError."""
    if not isinstance(document, dict) or set(document) != {"calc-info"}:
        raise CodecError("calc-info is needed, and nothing else")
    info = document["calc-info"]
    if not isinstance(info, dict) or set(info) != _INFO_KEYS:
        raise CodecError(f"calc-info: {', '.join(sorted(_INFO_KEYS))} are needed, and nothing else")
    command, site, parameters = (
        _text(info[key], f"calc-info.{key}", MAX_WORDS) for key in ("command", "remote-site", "parameters")
    )
    if not re.fullmatch(SITE_ID, site, re.ASCII):
        raise CodecError("calc-info.remote-site: is not well formed")
    inputs = _files(info["parameter_files"], "calc-info.parameter_files")
    results = parse_results(info["result_files"], "calc-info.result_files")
    return CalcInfo(
        command, site, parameters, tuple(_input(n, v) for n, v in inputs.items()), tuple(r.name for r in results)
    )


def _input(name: str, value: Any) -> InputFile:
    where = f"calc-info.parameter_files.{name}"
    if not isinstance(value, list) or len(value) != 3:
        raise CodecError(f"{where}: a list of content, mime and charset is needed")
    mime, charset = (_text(word, where, MAX_TYPE) for word in value[1:])
    return InputFile(name, parse_content(value[0], where), mime, charset)


def render_results(files: Tuple[ResultFile, ...]) -> Dict[str, Any]:
    """The value of `result_files`."""
    return {
        f.name: {"content": render_content(f.content), "mimetype1": f.mimetype1, "mimetype2": f.mimetype2}
        for f in files
    }


def parse_results(value: Any, where: str = "result_files") -> Tuple[ResultFile, ...]:
    """The results in the value of `result_files`; names are not judged yet. Raises CodecError."""
    return tuple(_result(name, item, f"{where}.{name}") for name, item in _files(value, where).items())


def _result(name: str, value: Any, where: str) -> ResultFile:
    if not isinstance(value, dict) or set(value) != {"content", "mimetype1", "mimetype2"}:
        raise CodecError(f"{where}: content, mimetype1 and mimetype2 are needed, and nothing else")
    first, second = (_text(value[key], where, MAX_WORDS) for key in ("mimetype1", "mimetype2"))
    return ResultFile(name, parse_content(value["content"], where), first, second)


def _files(value: Any, where: str) -> Dict[str, Any]:
    if not isinstance(value, dict):
        raise CodecError(f"{where}: an object is needed")
    if len(value) > MAX_FILES:
        raise CodecError(f"{where}: more than {MAX_FILES} files")
    return value


def _text(value: Any, where: str, limit: int) -> str:
    if type(value) is not str:
        raise CodecError(f"{where}: a string is needed")
    if len(value) > limit or "\0" in value:
        raise CodecError(f"{where}: too long, or has a NUL")
    return value
