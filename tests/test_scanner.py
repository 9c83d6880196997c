"""The scanner held against Python's own `json`: what it takes is what json takes, and means the same."""

from __future__ import annotations

import base64
import functools
import io
import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from misrc.api.legacy import scanner as fast
from misrc.wire import scanner as slow
from misrc.wire.bodies import Body, SourceChanged
from misrc.wire.content import Blob, FileSource
from misrc.wire.legacy import INPUTS_PLACE, RESULTS_PLACE, RETURN_PLACE, Call, Place
from misrc.wire.scanner import Limits, ScanError, Scanner, TooLarge, scan

pytestmark = pytest.mark.quick

PLACES: tuple[Place, ...] = (INPUTS_PLACE, RESULTS_PLACE, RETURN_PLACE, ("a", None), (0, "a"), (0, 1))
DECODERS = [fast.decode_block, slow.decode_block]
Decode = Callable[[bytes], bytes]


class Memory(io.BytesIO):
    """A sink whose bytes can be seen after its end."""

    data = b""
    closed_times = 0

    def close(self) -> None:
        if not self.closed:
            self.data = self.getvalue()
        self.closed_times += 1
        super().close()


def plain(value: Any) -> Any:
    """The document with each blob as the base64 text that json would give."""
    if isinstance(value, Blob):
        assert (value.size, value.sink.closed_times) == (len(value.sink.data), 1)
        return base64.b64encode(value.sink.data).decode()
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    return [plain(item) for item in value] if isinstance(value, list) else value


def cut(data: bytes, edges: list[int]) -> list[bytes]:
    """The data in pieces, cut at the given places (modulo its length)."""
    places = sorted({edge % (len(data) + 1) for edge in edges} | {0, len(data)})
    return [data[a:b] for a, b in zip(places, places[1:])]


def scanned(chunks: list[bytes], decode: Decode = fast.decode_block, limits: Limits | None = None) -> Any:
    return plain(scan(chunks, PLACES, lambda path: Memory(), limits, decode))


def base64_of(data: bytes) -> str:
    return base64.b64encode(data).decode()


TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
CONTENTS = st.binary(max_size=30).map(base64_of)
LEAVES = st.one_of(
    st.none(), st.booleans(), st.integers(-(10**17), 10**17), st.floats(allow_nan=False, allow_infinity=False), TEXTS,
    CONTENTS,
)  # fmt: skip
KEYS = st.one_of(st.sampled_from(["a", "calc-info", "parameter_files", "result_files", "content", "errors"]), TEXTS)
TREES = st.recursive(
    LEAVES,
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(KEYS, inner, max_size=4)),
    max_leaves=12,
)
FILES = st.dictionaries(TEXTS, CONTENTS, max_size=3)
OURS = st.one_of(
    st.builds(
        lambda files, more: {"calc-info": {"parameter_files": {n: [c, "m", "c"] for n, c in files.items()}, "x": more}},
        FILES, TREES,
    ),
    st.builds(
        lambda files, more: {"result_files": {n: {"mimetype1": more, "content": c} for n, c in files.items()}},
        FILES, TREES,
    ),
    st.builds(lambda content, more: [{"a": content, "b": more}], CONTENTS, TREES),
    st.builds(lambda a, b: {"a": [a, b]}, CONTENTS, CONTENTS),
)  # fmt: skip


def escape_some(text: str, draw: Callable[[int], int]) -> str:
    """The same JSON with some harmless characters of base64 written as escapes."""
    out = []
    inside = False
    for i, c in enumerate(text):
        if c == '"' and (i == 0 or text[i - 1] != "\\"):
            inside = not inside
        if inside and c in "+/=" and text[i - 1] != "\\":
            forms = [c, f"\\u{ord(c):04x}", f"\\u{ord(c):04X}"] + (["\\/"] if c == "/" else [])
            out.append(forms[draw(len(forms))])
        else:
            out.append(c)
    return "".join(out)


@st.composite
def documents(draw: st.DrawFn) -> bytes:
    """JSON texts of many looks: with and without escapes and white space."""
    value = draw(st.one_of(TREES, OURS))
    separators = draw(st.sampled_from([(",", ":"), (", ", ": "), (" ,\n", "\t:\r\n ")]))
    text = json.dumps(value, ensure_ascii=draw(st.booleans()), separators=separators)
    if draw(st.booleans()) and "\\" not in text:
        text = escape_some(text, lambda n: draw(st.integers(0, n - 1)))
    return (draw(st.sampled_from(["", " ", "\n\t"])) + text + draw(st.sampled_from(["", "\r\n "]))).encode()


EDGES = st.lists(st.integers(0, 1 << 16), max_size=12)


def strings_at_places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[Any]:
    if any(
        len(p) == len(path) and all(w is None or (type(w), w) == (type(h), h) for w, h in zip(p, path)) for p in PLACES
    ):
        yield value
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield from strings_at_places(item, (*path, key))


def is_base64(value: Any) -> bool:
    try:
        return not isinstance(value, str) or base64_of(base64.b64decode(value, validate=True)) == value
    except ValueError:
        return False


@settings(max_examples=300, deadline=None)
@given(documents(), EDGES)
@example(b'{"a":["QUJD\\/\\u002b+/","QQ=="]}', list(range(40)))
def test_what_json_takes_is_taken_and_means_the_same(document: bytes, edges: list[int]) -> None:
    """Generated documents, cut anywhere: the same value as json.loads, with both decoders."""
    expected = json.loads(document)
    for decode in DECODERS:
        if all(is_base64(value) for value in strings_at_places(expected)):
            assert scanned(cut(document, edges), decode) == expected
        else:
            with pytest.raises(ScanError):
                scanned(cut(document, edges), decode)


MUTATIONS = st.lists(
    st.tuples(
        st.integers(0, 1 << 16),
        st.integers(0, 3),
        st.one_of(st.sampled_from(list(b'"\\{}[],:=/+A0u \n')), st.integers(0, 255)),
    ),
    min_size=1,
    max_size=4,
)


def mutated(document: bytes, mutations: list[tuple[int, int, int]]) -> bytes:
    data = bytearray(document)
    for place, what, byte in mutations:
        at = place % (len(data) + 1)
        if what == 0:
            data.insert(at, byte)
        elif what == 1:
            del data[at : at + 1]
        else:
            data[at : at + 1] = bytes([byte])
    return bytes(data)


@settings(max_examples=1000, deadline=None)
@given(documents(), MUTATIONS, EDGES)
@example(b'{"a":["QQ=="}', [(0, 3, 0x7B)], [])
@example(b'{"a":["QQ==","QQ=="]}', [(8, 0, 0x5C)], [9])
def test_what_json_refuses_is_refused(document: bytes, mutations: list[tuple[int, int, int]], edges: list[int]) -> None:
    """Damaged documents: nothing that json refuses is taken, and what is taken means the same."""
    document = mutated(document, mutations)
    for decode in DECODERS:
        try:
            value = scanned(cut(document, edges), decode)
        except ScanError:
            continue
        assert value == json.loads(document.decode("utf-8"))


def in_place(text: str) -> bytes:
    return ('{"result_files":{"n":{"content":"' + text + '","mimetype1":"","mimetype2":""}}}').encode()


@pytest.mark.parametrize("decode", DECODERS)
@pytest.mark.parametrize(
    "text",
    ["a", "aGk", "aGk==", "aG k", "aGk=\\n", "\\naGk=", "aGk=aGk=", "a===", "====", "=", "aG_-", "aG!!aGk=", "data:,x",
     "aG\\tk", "aGk\\", "aG\\x41k", "aG\\u004", "aGk\\u00e9", "aG\\\\k",
     "QQ==QQ==", "QQ==A", "QQ=A", "QR==", "QUF=", "Ａ", "A" * 5],
)  # fmt: skip
def test_h39_text_that_is_not_base64(text: str, decode: Decode) -> None:
    """Everything that lenient decoders skip or mend is refused, whole and byte by byte; the neighbour is taken."""
    for edges in ([], list(range(200))):
        with pytest.raises(ScanError):
            scanned(cut(in_place(text), edges), decode)
        good = scanned(cut(in_place("QUJ\\u0044aGk\\u003d"), edges), decode)
        assert good["result_files"]["n"]["content"] == "QUJDaGk="


@pytest.mark.parametrize(
    "document",
    [b'{"a":1,"a":2}', b'{"a":{"n":"QQ=="},"a":{"n":"QQ=="}}', b'{"a":["QQ=="],"a":["QQ=="]}', b'{"\\u0061":1,"a":2}',
     b"NaN", b"[Infinity]", b"[-Infinity]", b"[1e400]", b"[" + b"1" * 19 + b"]", b"[" * 17 + b"]" * 17,
     b'\xef\xbb\xbf{"x":1}', b'{"x":"\xff"}', b'{"x":"\xed\xa0\x80"}', b'["\\ud800"]', '{"x":1}'.encode("utf-16"),
     b"", b" ", b"{}{}", b"{} x", b"[1,]", b'{"a":[,"QQ=="]}', b'{"a":x"QQ=="}', b'{"a":["QQ==" "QQ=="]}',
     b'{"a"["QQ=="]}', b'{"a":["QQ=="', b'{"a":["QQ==', b"]", b",", b'{"a":["QQ==")', b'{"a":["QQ=="}', b'["a":1]'],
)  # fmt: skip
def test_h34_h35_h36_documents_that_are_refused(document: bytes) -> None:
    """Duplicates, numbers that are none, depth, wrong encodings, and text that only looks like JSON."""
    for edges in ([], list(range(60))):
        with pytest.raises(ScanError):
            scanned(cut(document, edges))
    assert scanned([b'{"a":["QQ=="],"b":[-0,1e300,"\\ud83d\\ude00"]}'])["b"] == [0, 1e300, "😀"]


@pytest.mark.parametrize(
    "limits, document",
    [
        (Limits(items=3), b"[1,2,3,4]"), (Limits(items=3), b"[[],[],[]]"), (Limits(skeleton=9), b'["12345678"]'),
        (Limits(skeleton=9), b'{"123456789":1}'), (Limits(skeleton=9), b" " * 10 + b"1"), (Limits(depth=2), b"[[[]]]"),
        (Limits(text=7), b'{"a":["QUJDREVG"]}'), (Limits(total=5), b'{"a":["QUJD","QUJD"]}'),
        (Limits(files=1), b'{"a":["QUJD","QUJD"]}'),
    ],
)  # fmt: skip
def test_h36_every_limit_is_held_and_named(limits: Limits, document: bytes) -> None:
    """What is too large is refused as too large, and taken without the limit."""
    with pytest.raises(TooLarge):
        scanned([document], limits=limits)
    assert scanned([document]) == json.loads(document)


def test_sinks_are_closed_once_whatever_happens() -> None:
    """After an error, a cut or a sink's own failure no sink stays open, and none is closed twice."""
    for document in (in_place("QUJD"), in_place("QUJD")[:40], in_place("QUJD!QUJD"), in_place("QU")):
        sinks: list[Memory] = []

        def opened(path: object, sinks: list[Memory] = sinks) -> Memory:
            sinks.append(Memory())
            return sinks[-1]

        try:
            scan([document[:36], document[36:]], PLACES, opened)
        except ScanError:
            assert document != in_place("QUJD")
        assert [sink.closed_times for sink in sinks] == [1]


def test_a_sink_learns_which_file_it_is_for() -> None:
    """The way to the string is told before its first byte, with the file's name as it stands there."""
    seen: list[Any] = []

    def open_sink(path: Any) -> Memory:
        seen.append(path)
        return Memory()

    body = json.dumps({"calc-info": {"parameter_files": {"計/x": ["QUJD", "", ""], "y": ["", "", ""]}}}).encode()
    scanner = fast.request_scanner(Call.ADD_CALCINFO, open_sink)
    scanner.feed(body)
    document = scanner.finish()
    assert seen == [("calc-info", "parameter_files", "計/x", 0), ("calc-info", "parameter_files", "y", 0)]
    assert document["calc-info"]["parameter_files"]["y"][0] == Blob(0)


def test_calls_without_files_have_no_sinks() -> None:
    """In other calls nothing is streamed: the same text stays an ordinary, bounded string."""
    scanner = fast.request_scanner(Call.CALC_END, lambda path: pytest.fail("no sink is wanted"))
    scanner.feed(in_place("QUJD"))
    assert scanner.finish()["result_files"]["n"]["content"] == "QUJD"


@settings(max_examples=100, deadline=None)
@given(st.dictionaries(TEXTS, st.binary(max_size=3000), max_size=4), TREES)
def test_a_body_is_what_json_would_have_written(files: dict[str, bytes], more: Any) -> None:
    """A document with files, read back by json: nothing but their base64 was put in, and the length was foretold."""
    sources = {name: FileSource(len(data), functools.partial(io.BytesIO, data)) for name, data in files.items()}
    for body in (Body({"files": sources, "more": more}), fast.encode_result({"files": sources, "more": more})):
        for _ in range(2):
            sent = b"".join(body)
            assert len(sent) == len(body)
            expected = {"files": {name: base64_of(data) for name, data in files.items()}, "more": more}
            assert json.loads(sent) == expected


@pytest.mark.parametrize("claimed", [0, 2, 4, 1 << 20])
def test_a_file_that_changes_while_it_is_sent_breaks_the_body_off(claimed: int) -> None:
    """A file that is shorter or longer than was said never gives a complete body."""
    body = Body([FileSource(claimed, lambda: io.BytesIO(b"abc"))])
    with pytest.raises(SourceChanged):
        list(body)
    assert b"".join(Body([FileSource(3, lambda: io.BytesIO(b"abc"))])) == b'["YWJj"]'


def test_a_small_part_that_never_ends_takes_no_memory() -> None:
    """A key, a string or white space without end is refused at the limit."""
    for start in (b'{"', b'{"a":"', b" "):
        scanner = Scanner(PLACES, lambda path: Memory())
        scanner.feed(start)
        with pytest.raises(TooLarge):
            for _ in range(64):
                scanner.feed(b" " * (1 << 16))
