"""The predecessor's protocol as text: what one side renders the other parses, and what is not of it is refused."""

from __future__ import annotations

import json
import string
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from misrc.job.codec import CodecError
from misrc.job.names import NameRefused
from misrc.job.states import JobState, Outcome
from misrc.wire import legacy_answers as answers
from misrc.wire.content import Blob
from misrc.wire.legacy import (
    BASE_PATH,
    STDERR_NAME,
    STDOUT_NAME,
    AddCalcinfo,
    AllowWaitCalc,
    CalcEnd,
    CalcParams,
    CalcParamsComplete,
    CalcProgress,
    CalcRequest,
    CalcStart,
    CalcStatus,
    Call,
    CancelWaitCalc,
    EndSend,
    GetCalcinfo,
    GetCalcResult,
    ReloadIni,
    Request,
    SendResults,
    parse_query,
    parse_request,
    render_request,
    split_parameters,
)
from misrc.wire.legacy_files import CalcInfo, InputFile, ResultFile, local_name
from misrc.wire.legacy_progress import STEPS, Delivery, Face, Progress, Status, face_of

pytestmark = pytest.mark.quick

IDS = st.uuids().map(str)
SITES = st.text(string.ascii_letters + string.digits + "._-", min_size=1, max_size=128)
WORDS = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=40)
INPUTS = st.builds(lambda content, *words: (content, *words), st.binary(max_size=50), WORDS, WORDS)
RESULTS = st.dictionaries(WORDS, INPUTS, max_size=4).map(
    lambda found: tuple(ResultFile(name, *value) for name, value in found.items())
)
INFOS = st.builds(
    CalcInfo,
    WORDS,
    SITES,
    WORDS,
    st.dictionaries(WORDS, INPUTS, max_size=4).map(
        lambda found: tuple(InputFile(name, *value) for name, value in found.items())
    ),
    st.lists(WORDS, unique=True, max_size=4).map(tuple),
)
OF_JOB = (AllowWaitCalc, CalcStatus, CalcProgress, GetCalcResult)
OF_SITE = (CalcParams, CalcParamsComplete, CalcStart, EndSend)
REQUESTS: st.SearchStrategy[Request] = st.one_of(
    st.builds(AddCalcinfo, INFOS),
    st.builds(CancelWaitCalc, IDS, st.sampled_from([None, "force", "x"])),
    *(st.builds(kind, IDS) for kind in OF_JOB),
    *(st.builds(kind, IDS, SITES) for kind in OF_SITE),
    st.builds(CalcEnd, IDS, SITES, st.sampled_from(["calc end", "abnormal"])),
    st.builds(CalcRequest, SITES),
    st.builds(SendResults, IDS, SITES, RESULTS),
    st.sampled_from([GetCalcinfo(), ReloadIni()]),
)
JOB = "0b6e3b0c-5c1d-4e4c-9a4e-6b1de5bb4d5a"


def received(request: Request) -> Request:
    """What a server understands of a request that went through bytes."""
    sent = render_request(request)
    path, _, query = sent.target.partition("?")
    body = json.loads(json.dumps(sent.document))
    return parse_request(Call(path.rpartition("/")[2]), parse_query(query), body)


@settings(deadline=None)
@given(REQUESTS)
def test_a_request_arrives_as_it_was_meant(request: Request) -> None:
    """Every call of both sides: parse(render(x)) is x, on its own path."""
    assert received(request) == request
    assert render_request(request).target.partition("?")[0] == f"{BASE_PATH}/{request.call.value}"


def test_every_call_has_its_request() -> None:
    """No call is without a typed request, and GET is GET where the page says so."""
    gets = {"calc-status", "calc-progress", "get-calc-result", "get-calcinfo", "calc-request", "calc-params"}
    assert {call.value for call in Call if call.method == "GET"} == gets
    assert {call.value for call in Call if call.of_site} == {
        "calc-request", "calc-params", "calc-params-complete", "calc-start", "calc-end", "send-results", "end-send",
    }  # fmt: skip


def test_the_body_of_a_registration_is_as_the_page_says() -> None:
    """Positive control against the letter of the protocol, not against our own parser."""
    files = (InputFile("d/a.dat", b"hi", "text/plain;", "charset=us-ascii"), InputFile("b", b"", "", ""))
    info = CalcInfo("/opt/run.sh", "nims-dev", "1 2", files, ("o.txt", STDOUT_NAME))
    assert render_request(AddCalcinfo(info)).document == {
        "calc-info": {
            "command": "/opt/run.sh",
            "remote-site": "nims-dev",
            "parameters": "1 2",
            "parameter_files": {"d/a.dat": ["aGk=", "text/plain;", "charset=us-ascii"], "b": ["", "", ""]},
            "result_files": {
                "o.txt": {"content": "", "mimetype1": "", "mimetype2": ""},
                STDOUT_NAME: {"content": "", "mimetype1": "", "mimetype2": ""},
            },
        }
    }
    assert list(info.local_names()) == ["a.dat"]
    assert info.parameter_files[1].missing and not info.parameter_files[0].missing


def test_a_get_with_a_body_is_read_from_its_query() -> None:
    """The workflow's client sends a JSON body with GET: it is ignored, whatever it says."""
    assert parse_request(Call.CALC_STATUS, {"accept_id": JOB}, {"accept_id": "x", "y": 1}) == CalcStatus(JOB)


GOOD = {
    "calc-info": {
        "command": "c", "remote-site": "s", "parameters": "", "parameter_files": {"a": ["", "", ""]},
        "result_files": {"r": {"content": "", "mimetype1": "", "mimetype2": ""}},
    }
}  # fmt: skip


def changed(path: list[Any], value: Any) -> Any:
    document = json.loads(json.dumps(GOOD))
    place = document
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    return document


@pytest.mark.parametrize(
    "document",
    [
        None, [], {}, {"calc-info": []}, {**GOOD, "x": 1}, changed(["calc-info", "x"], 1),
        changed(["calc-info", "command"], ["c"]), changed(["calc-info", "command"], "c\0"),
        changed(["calc-info", "command"], "c" * (1 << 17)), changed(["calc-info", "remote-site"], "a b"),
        changed(["calc-info", "remote-site"], ""), changed(["calc-info", "remote-site"], "s\n"),
        changed(["calc-info", "parameters"], 5), changed(["calc-info", "parameter_files"], []),
        changed(["calc-info", "parameter_files", "a"], ["", ""]),
        changed(["calc-info", "parameter_files", "a"], ["", "", "", ""]),
        changed(["calc-info", "parameter_files", "a"], [None, "", ""]),
        changed(["calc-info", "parameter_files", "a"], ["aGk", "", ""]),
        changed(["calc-info", "parameter_files", "a"], ["aGk=aGk=", "", ""]),
        changed(["calc-info", "parameter_files", "a"], ["aG k", "", ""]),
        changed(["calc-info", "parameter_files", "a"], ["aG_-", "", ""]),
        changed(["calc-info", "parameter_files", "a"], ["QR==", "", ""]),
        changed(["calc-info", "parameter_files", "a"], ["aGk=\n", "", ""]),
        changed(["calc-info", "result_files"], {str(i): {} for i in range(5000)}),
        changed(["calc-info", "result_files", "r"], {"content": ""}),
        changed(["calc-info", "result_files", "r", "mimetype1"], True),
    ],
)  # fmt: skip
def test_h38_h39_h50_a_registration_that_is_not_of_the_form(document: Any) -> None:
    """Unknown, missing and mistyped parts, and what is nearly base64, are refused; the legal neighbour is taken."""
    with pytest.raises(CodecError):
        parse_request(Call.ADD_CALCINFO, {}, document)
    assert isinstance(parse_request(Call.ADD_CALCINFO, {}, GOOD), AddCalcinfo)


@pytest.mark.parametrize(
    "accept_id",
    [JOB.upper(), "{" + JOB + "}", f"urn:uuid:{JOB}", JOB.replace("-", ""), JOB + "\n", JOB.replace("0", "０"), "",
     "' or 1=1", "{{7*7}}", "%s{0}", "../" + JOB],
)  # fmt: skip
def test_h48_an_id_that_is_not_canonical(accept_id: str) -> None:
    """Variants of a UUID and templates are refused as an id, in query and body."""
    for call in (Call.CALC_STATUS, Call.ALLOW_WAIT_CALC):
        values = {"accept_id": accept_id}
        with pytest.raises(CodecError):
            parse_request(call, values if call.method == "GET" else {}, values)
    assert parse_request(Call.ALLOW_WAIT_CALC, {}, {"accept_id": JOB}) == AllowWaitCalc(JOB)


@pytest.mark.parametrize(
    "query", ["accept_id=a&accept_id=a", "&", "a", "=&" * 20, "a=%ff", "accept_id=" + JOB + "&x=1"]
)
def test_h27_a_query_that_says_a_thing_twice_or_too_much(query: str) -> None:
    """Repeated names, empty pairs, bytes that are no UTF-8 and unknown names are refused."""
    with pytest.raises(CodecError):
        parse_request(Call.CALC_STATUS, parse_query(query))
    assert parse_request(Call.CALC_STATUS, parse_query(f"accept_id={JOB}")) == CalcStatus(JOB)


@pytest.mark.parametrize("name", ["..", "/abs/..", "a/.", "", "a/", "a\0b", "-rf", ".bashrc", "x" * 300, "con", "a\\b"])
def test_p01_an_input_name_that_is_no_file_name(name: str) -> None:
    """The last part of a name becomes a path only if it is one; `..` is not."""
    with pytest.raises(NameRefused):
        local_name(name)
    assert local_name("../x") == local_name("/a/x") == "x"


def test_p02_inputs_that_fall_together() -> None:
    """Two inputs with the same last part, or that differ in case only, are refused."""
    with pytest.raises(NameRefused):
        CalcInfo("c", "s", "", (InputFile("x/..", b"", "", ""),), ()).local_names()
    for first, second in (("a/x", "b/x"), ("x", "X")):
        files = tuple(InputFile(name, b"1", "t", "c") for name in (first, second))
        with pytest.raises(NameRefused):
            CalcInfo("c", "s", "", files, ()).local_names()
    with pytest.raises(NameRefused):
        CalcInfo("c", "s", "", (), ("../etc/x",)).result_names()
    with pytest.raises(NameRefused):
        SendResults(JOB, "s", (ResultFile("a/../../x", b"", "", ""),)).result_names()
    assert CalcInfo("c", "s", "", (), (STDOUT_NAME, STDERR_NAME)).result_names() == (STDOUT_NAME, STDERR_NAME)


@pytest.mark.parametrize("text", [" a", "a ", "a  b", " "])
def test_parameters_with_empty_words_are_refused(text: str) -> None:
    """Single spaces part words, and nothing else does."""
    with pytest.raises(ValueError):
        split_parameters(text)
    assert split_parameters("") == ()
    assert split_parameters('a "b c" ;x\td') == ("a", '"b', 'c"', ";x\td")


@settings(deadline=None)
@given(st.sampled_from(sorted(Progress)), st.sampled_from(sorted(Status)))
def test_status_and_progress_have_a_colon_to_split_at(progress: Progress, status: Status) -> None:
    """The predecessor's client takes the second part at a colon, and crashes where there is none."""
    face = Face(progress, status)
    for answer, word, parse in (
        (answers.answer_status(face), status.value, answers.parse_status),
        (answers.answer_progress(face), progress.value, answers.parse_progress),
    ):
        entry = answer.document["errors"][0]
        assert (answer.http, entry["code"], entry["message"].split(":")[1]) == (200, 200, word)
        assert parse(answer.document) == word


@settings(deadline=None)
@given(INFOS, RESULTS, IDS)
def test_answers_arrive_as_they_were_meant(info: CalcInfo, files: tuple[ResultFile, ...], accept_id: str) -> None:
    """What the server builds, a client reads."""
    assert answers.parse_params(json.loads(json.dumps(answers.answer_params(info).document))) == info
    assert answers.parse_return(json.loads(json.dumps(answers.answer_results(files).document))) == files
    assert answers.parse_accepted(answers.answer_accepted(accept_id).document) == accept_id
    assert answers.parse_work(answers.answer_accepted(accept_id).document) == accept_id
    assert answers.parse_ok(answers.answer_ok().document).ok


@pytest.mark.parametrize("fault", list(answers.Fault))
def test_a_refusal_never_has_the_code_of_success(fault: answers.Fault) -> None:
    """Old clients compare the code with 200; add-calcinfo says its errors with 202, most others with 400."""
    for call in Call:
        answer = answers.answer_fault(call, fault, "no")
        with pytest.raises(answers.LegacyRefused):
            answers.parse_ok(answer.document)
        assert answer.http != 400 or call is not Call.ADD_CALCINFO
    assert answers.answer_fault(Call.ADD_CALCINFO, answers.Fault.FORBIDDEN, "no").http == 202
    assert answers.answer_fault(Call.CALC_START, answers.Fault.WRONG_STATE, "no").http == 400


@pytest.mark.parametrize("code", ["200", "400", "0300", 400, 201])
def test_a_code_that_is_not_the_number_200_is_no_success(code: Any) -> None:
    """Codes may be numbers or strings; the text "200" is not success."""
    document = {"errors": [{"code": code, "message": "m"}]}
    with pytest.raises(answers.LegacyRefused) as caught:
        answers.parse_params(document)
    assert (caught.value.code, caught.value.message) == (code, "m")
    assert answers.parse_work(document) is None


@pytest.mark.parametrize(
    "document",
    [None, [], {}, {"errors": {}}, {"errors": []}, {"errors": ["x"]}, {"errors": [{"code": True, "message": ""}]},
     {"errors": [{"code": None}]}, {"errors": [{"code": 1.0}]}, {"errors": [{"code": 200, "message": 5}]}],
)  # fmt: skip
def test_what_is_no_frame_is_no_answer(document: Any) -> None:
    """A client takes nothing for an answer that has not the form."""
    with pytest.raises(CodecError):
        answers.parse_ok(document)


@pytest.mark.parametrize("message", ["running", "", "state:running", "status", "status:", "status:done"])
def test_a_status_that_is_not_of_the_form(message: str) -> None:
    """Ours does not crash where the predecessor's client does: it says that the answer has no status."""
    with pytest.raises(CodecError):
        answers.parse_progress({"errors": [{"code": 200, "message": message}]})


def test_every_state_of_ours_has_its_old_face() -> None:
    """No state and no delivery is without a face, and the end comes for each outcome."""
    for state in JobState:
        for delivery in Delivery:
            face = face_of(state, delivery, Outcome.SUCCEEDED if state is JobState.ENDED else None)
            assert (face is None) == (state in (JobState.RETRIEVED, JobState.CLOSED))
            assert face is None or (face.status is Status.NONE) == (state is not JobState.ENDED)
    for outcome in Outcome:
        face = face_of(JobState.ENDED, Delivery.RESULTS_HERE, outcome)
        good = Status.COMPLETED if outcome is Outcome.SUCCEEDED else Status.ABNORMAL
        assert face == Face(Progress.GOT_RETURN, good)


def test_a_job_walks_through_the_old_words_in_their_order() -> None:
    """The way of a job, step by step, gives the predecessor's progress values in order and never one before."""
    way = [
        (JobState.CREATED, Delivery.NOTHING), (JobState.QUEUED, Delivery.NOTHING),
        (JobState.QUEUED, Delivery.INPUTS_SENT), (JobState.QUEUED, Delivery.INPUTS_CONFIRMED),
        (JobState.RUNNING, Delivery.INPUTS_CONFIRMED), (JobState.HELD, Delivery.INPUTS_CONFIRMED),
        (JobState.ENDED, Delivery.INPUTS_CONFIRMED), (JobState.ENDED, Delivery.RESULTS_ARRIVING),
        (JobState.ENDED, Delivery.RESULTS_HERE),
    ]  # fmt: skip
    faces = [face_of(state, delivery, None) for state, delivery in way]
    seen = [face.progress for face in faces if face is not None]
    assert list(dict.fromkeys(seen)) == list(Progress)
    assert seen == sorted(seen, key=lambda p: p.order)


def test_the_steps_of_a_site_follow_each_other() -> None:
    """Each call has its turn where the one before leads to, and knows its own repetition. A client whose results were
    refused says end-send all the same."""
    steps = list(STEPS.values())
    assert [s.leads for s in steps] == list(Progress)[1:]
    assert all(step.takes(progress) for step, progress in zip(steps, list(Progress)[:-1], strict=True))
    skipping = {call for call, step in STEPS.items() if step.leads.order - step.needs.order > 1}
    assert skipping == {Call.END_SEND} and STEPS[Call.END_SEND].takes(Progress.CALC_END)
    assert STEPS[Call.CALC_START].repeats(Progress.RUNNING) and not STEPS[Call.CALC_START].repeats(steps[2].needs)


def test_a_streamed_content_stays_a_blob() -> None:
    """Where a scanner put a Blob, the typed value has it."""
    document = changed(["calc-info", "parameters"], "")
    document["calc-info"]["parameter_files"]["a"][0] = Blob(5)
    request = parse_request(Call.ADD_CALCINFO, {}, document)
    assert isinstance(request, AddCalcinfo) and request.info.parameter_files[0].content == Blob(5)


def test_a_japanese_site_id_is_not_taken_and_a_long_one_is() -> None:
    """Half-width letters and digits."""
    assert parse_request(Call.CALC_REQUEST, {"site_id": "a" * 128}) == CalcRequest("a" * 128)
    for bad in ("大学", "a" * 129, "a/b"):
        with pytest.raises(CodecError):
            parse_request(Call.CALC_REQUEST, {"site_id": bad})
