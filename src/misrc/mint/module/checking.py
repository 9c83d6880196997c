"""What is wrong with a module file, in words that its author can act on.

Three steps: is it XML that may be read, does it fit our schema (`modulesxml/`), and does it keep the rules that a
schema cannot say (`rules.py`). The file is a stranger's: no entity is expanded, no other file is opened, not even the
schema that it names itself.
"""

from __future__ import annotations

import difflib
import re
from functools import cache
from pathlib import Path
from typing import Any

from lxml import etree

from ...job.errors import BadRequest
from ..messages.catalog import say
from . import document
from .findings import ERROR, Finding, find
from .rules import check_rules

MAX_FILE_BYTES = 8 << 20
MAX_FINDINGS = 100
NAMES = {
    tag: tag.rpartition("}")[2]
    for tags in (document.MODULE_TAGS, document.RESOURCE_TAGS, document.PORT_TAGS)
    for tag in tags.values()
}
TAGS = [f"{{{document.NAMESPACE}}}{name}" for name in ("modules", "module", "port")] + list(NAMES)
# Of a list of elements that could follow, these are the ones that a file cannot do without.
NEEDED = (
    "dc:title",
    "dc:date",
    "predictionModel",
    "version",
    "objectPath",
    "resourceRequests",
    "pbsNodeGroup",
    "outputPorts",
    "name",
    "descriptor",
    "type",
    "module",
)
# The element whose content is wrong → the message that says how it is written.
REMEDIES = {
    "dc:identifier": "identifier",
    "dc:title": "title",
    "dc:date": "date",
    "creatorId": "creator_id",
    "predictionModel": "model",
    "deleted": "truth",
    "required": "truth",
    "version": "version",
    "objectPath": "object_path",
    "pbsMinCores": "cores",
    "pbsMaxCores": "cores",
    "pbsBaseCores": "cores",
    "name": "port_name",
    "descriptor": "descriptor",
    "type": "type",
    "depth": "depth",
}


def check_file(path: Path, local: bool = False) -> list[Finding]:
    """Everything that is wrong with a file; `local` for modules that use no site. BadRequest if it cannot be read."""
    return check_bytes(read_file(path), local)


def read_file(path: Path) -> bytes:
    """The bytes of a module file; BadRequest if there are none, or too many."""
    try:
        with path.open("rb") as file:
            data = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise BadRequest(say("module.file", path=path, why=error.strerror)) from None
    if len(data) > MAX_FILE_BYTES:
        raise BadRequest(say("module.file", path=path, why=say("module.too_long")))
    return data


def check_bytes(data: bytes, local: bool = False) -> list[Finding]:
    """Everything that is wrong with the bytes of a file, in the order of its lines."""
    try:
        root = etree.fromstring(data, document.make_parser())
    except etree.XMLSyntaxError as error:
        return [_explain_syntax(error)]
    if root.getroottree().docinfo.internalDTD is not None or root.getroottree().docinfo.doctype:
        return [find(ERROR, 1, "", "doctype")]
    if any(node.tag is etree.Entity for node in root.iter()):
        return [find(ERROR, root.sourceline, "", "doctype")]
    encoding = root.getroottree().docinfo.encoding or "UTF-8"
    if encoding.upper() not in ("UTF-8", "US-ASCII", "ASCII"):
        return [find(ERROR, 1, "", "encoding", why=encoding)]
    found = _check_schema(root)
    seen = {(finding.line, finding.element) for finding in found}
    found += [finding for finding in check_rules(root, local) if (finding.line, finding.element) not in seen]
    return sorted(found, key=lambda finding: finding.line)[:MAX_FINDINGS]


def _explain_syntax(error: Any) -> Finding:
    """The parser's words are for people who know XML; the place is what helps."""
    line = error.lineno or 1
    text = re.sub(r"(, line \d+, column \d+.*| line \d+ \(.*)", "", error.msg or "", flags=re.DOTALL)
    open_tag = re.match(r"Opening and ending tag mismatch: (\S+) line (\d+) and (\S+)", text)
    if open_tag:
        return find(ERROR, int(open_tag[2]), "", "unclosed", name=open_tag[1], other=open_tag[3], last=line)
    if "EntityRef" in text or "CharRef" in text:
        return find(ERROR, line, "", "ampersand")
    if "amplification" in text or "Entity" in text or "entity" in text:
        return find(ERROR, line, "", "doctype")
    if "Namespace prefix" in text:
        return find(ERROR, line, "", "prefix", why=text)
    if "encod" in text or "UTF-8" in text:
        return find(ERROR, line, "", "encoding", why=text)
    return find(ERROR, line, "", "syntax", why=text, column=(error.position or (0, 0))[1])


@cache
def _load_schema() -> Any:
    """Our schema, beside this module; in a checkout it lies in `modulesxml/`."""
    for folder in (Path(__file__).parent / "schema", Path(__file__).parents[4] / "modulesxml"):
        if folder.is_dir():
            return etree.XMLSchema(etree.parse(str(folder / "predictionModuleSchema.xsd")))
    raise FileNotFoundError("modulesxml")


def _check_schema(root: Any) -> list[Finding]:
    schema = _load_schema()
    for element in root.iter():
        # libxml2 would open what is named here.
        for name in (document.LOCATION_ATTRIBUTE, f"{{{document.XSI}}}noNamespaceSchemaLocation"):
            element.attrib.pop(name, None)
    if schema.validate(root):
        return []
    tree = root.getroottree()
    found: dict[tuple[int, str], Finding] = {}
    for entry in schema.error_log:
        finding = _explain(entry, *_locate(tree, entry))
        # Of several words about one element the first is the cause.
        found.setdefault((finding.line, finding.element), finding)
    return list(found.values())


def _locate(tree: Any, entry: Any) -> tuple[int, Any]:
    """Line and element of an error. libxml2's path names prefixes; where the file binds one of ours to something else,
    the element is the one on that line whose tag the error names."""
    try:
        element = tree.xpath(entry.path, namespaces={"dc": document.DC, "xsi": document.XSI})[0]
    except (etree.XPathError, IndexError, TypeError):
        named = re.match(r"Element '([^']+)'", entry.message)
        same_tag = tree.iter(named[1]) if named else ()
        element = next((found for found in same_tag if found.sourceline == entry.line), None)
    return (entry.line if element is None else element.sourceline or entry.line), element


def name_element(element: Any) -> str:
    """The way to an element from the root, as people write it."""
    parts: list[str] = []
    while element is not None and element.getparent() is not None:
        parent = element.getparent()
        same = [child for child in parent if child.tag == element.tag]
        many = element.tag.rpartition("}")[2] in ("module", "port")
        parts.append(short_name(element.tag) + (f"[{same.index(element) + 1}]" if many else ""))
        element = parent
    return "/".join(reversed(parts)) or (short_name(element.tag) if element is not None else "")


def short_name(tag: str) -> str:
    """`{…}title` as people write it; what is of no namespace of ours keeps its own."""
    space, _, name = tag.rpartition("}")
    return {"{" + document.DC: "dc:" + name, "{" + document.NAMESPACE: name, "": name}.get(
        space, f"{name} ({space[1:]})"
    )


def _explain(entry: Any, line: int, element: Any) -> Finding:
    """One error of the schema in plain words."""
    place = name_element(element) if element is not None else ""
    name = short_name(element.tag) if element is not None else ""
    expected = [short_name(tag) for tag in re.findall(r"\{[^}]*\}\w+", entry.message.rpartition("Expected is")[2])]
    kind, message = entry.type_name, entry.message
    if kind == "SCHEMAV_CVC_ELT_1":
        return _explain_root(line, element)
    if kind == "SCHEMAV_ELEMENT_CONTENT" and "Missing child" in message:
        needed = [word for word in expected if word in NEEDED] or expected
        return find(ERROR, line, place, "missing", name=name, missing=needed[0] if needed else "?")
    if kind == "SCHEMAV_ELEMENT_CONTENT" and element is not None:
        return _explain_unexpected(line, place, element, expected)
    if kind in ("SCHEMAV_CVC_ELT_3_1", "SCHEMAV_CVC_ELT_3_2_1"):
        return find(ERROR, line, place, "nil" if kind.endswith("3_1") else "nil_content", name=name)
    if kind.startswith("SCHEMAV_CVC_COMPLEX_TYPE_3") or kind == "SCHEMAV_CVC_TYPE_3_1_1":
        known = (document.NIL_ATTRIBUTE, document.LOCATION_ATTRIBUTE)
        extra = [short_name(key) for key in element.attrib if key not in known] if element is not None else []
        return find(ERROR, line, place, "attribute", name=name, attribute=", ".join(extra) or "?")
    if kind == "SCHEMAV_CVC_COMPLEX_TYPE_2_3":
        return find(ERROR, _line_of_text(element, line), place, "text", name=name)
    if name in REMEDIES and element is not None:
        text = element.text or ""
        key = "blanks" if text.strip() and text != text.strip() else "value"
        return find(ERROR, line, place, key, REMEDIES[name], value=_shorten(text))
    return find(ERROR, line, place, "schema", why=_strip_namespaces(message))


def _explain_root(line: int, element: Any) -> Finding:
    tag = element.tag if element is not None else ""
    if tag.rpartition("}")[2] == "modules":
        return find(ERROR, line, "modules", "namespace", namespace=document.NAMESPACE)
    return find(ERROR, line, short_name(tag), "root", name=short_name(tag))


def _line_of_text(element: Any, line: int) -> int:
    """The line of the first text between the children of an element."""
    for child in element if element is not None else ():
        tail = child.tail or ""
        if tail.strip():
            inside = int(etree.tostring(child, with_tail=False).count(b"\n"))
            return int(child.sourceline) + inside + tail[: len(tail) - len(tail.lstrip())].count("\n")
    return line


def _explain_unexpected(line: int, place: str, element: Any, expected: list[str]) -> Finding:
    """An element that stands where it must not: twice, unknown or misspelt, before its turn, or for a missing one."""
    name, parent = short_name(element.tag), element.getparent()
    before = [child for child in element.itersiblings(preceding=True) if child.tag == element.tag]
    if name == "port":
        return find(ERROR, line, place, "port_place")
    if before and name != "module":
        return find(ERROR, line, place, "twice", name=name, first=before[-1].sourceline)
    if name == "pbsNodesGroup" and parent.find(document.RESOURCE_TAGS["node_group"]) is not None:
        return find(ERROR, line, place, "both_groups")
    if element.tag not in TAGS:
        return _explain_unknown(line, place, element.tag)
    wanted = next((word for word in expected if word in NEEDED), expected[0] if expected else "-")
    if wanted in [short_name(child.tag) for child in element.itersiblings()]:
        return find(ERROR, line, place, "order", name=name, missing=wanted)
    if wanted in NEEDED:
        return find(
            ERROR,
            line,
            name_element(parent),
            "missing",
            "missing_before",
            name=short_name(parent.tag),
            missing=wanted,
            next=name,
        )
    return find(ERROR, line, place, "order", name=name, missing=wanted)


def _explain_unknown(line: int, place: str, tag: str) -> Finding:
    local, name = tag.rpartition("}")[2], short_name(tag)
    right = [short_name(known) for known in TAGS if known.rpartition("}")[2] == local]
    close = right or difflib.get_close_matches(local, [known.rpartition("}")[2] for known in TAGS], 1)
    if close:
        return find(ERROR, line, place, "unknown", "spelling", name=name, right=close[0])
    return find(ERROR, line, place, "unknown", name=name)


def _shorten(text: str | None) -> str:
    words = " ".join((text or "").split())
    return words if len(words) <= 60 else words[:59] + "…"


def _strip_namespaces(message: str) -> str:
    return re.sub(r"\{[^}]*\}", "", message).strip().rstrip(".")
