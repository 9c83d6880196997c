"""Job specs that MInt signed, at a site that takes no others: over a real sshd, with real keys."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import time
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from agents import agent_host
from api_double import DoubleJob
from conftest import Mint, Site, eventually, make_mint, make_site, sha256
from oracle import Oracle

from misrc.job.manifest import Entry, digest_manifest, make_manifest, render_manifest
from misrc.job.spec import NAMESPACE, JobSpec, OpenRequest, render_open, render_spec

DAY = 86400


def make_key(path: Path) -> Path:
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "mint", "-f", str(path)], check=True)
    return path


def public(path: Path) -> str:
    return path.with_name(path.name + ".pub").read_text(encoding="ascii").strip()


def sign(key: Path, text: bytes, namespace: str = NAMESPACE) -> str:
    words = ["ssh-keygen", "-q", "-Y", "sign", "-f", str(key), "-n", namespace]
    return subprocess.run(words, input=text, capture_output=True, check=True).stdout.decode("ascii")


@dataclasses.dataclass
class SignedSite:
    """A site with `require_signature`, and the keys of MInt: two that are valid, one that is not."""

    site: Site
    key: Path
    following: Path
    stranger: Path

    def spec(self, job: str, inputs: Mapping[str, bytes] | None = None, **changes: Any) -> JobSpec:
        files = inputs or {}
        manifest = make_manifest(Entry(n, len(d), sha256(d)) for n, d in files.items())
        size = sum(map(len, files.values()))
        plain = JobSpec(job, self.site.name, "copy", {"words": "x"}, len(files), size, digest_manifest(manifest))
        return dataclasses.replace(plain, **{"issued": int(time.time()), **changes})

    def request(self, spec: JobSpec, signature: str | None, inputs: Mapping[str, bytes] | None = None) -> bytes:
        files = inputs or {}
        manifest = make_manifest(Entry(n, len(d), sha256(d)) for n, d in files.items())
        request = OpenRequest(spec, start=True, inline=manifest, signature=signature)
        return render_open(request) + b"".join(files[entry.name] for entry in manifest)

    def signed(self, job: str, key: Path | None = None, **changes: Any) -> bytes:
        spec = self.spec(job, **changes)
        return self.request(spec, sign(key or self.key, render_spec(spec)))

    def denied(self, code: str, job: str, request: bytes) -> None:
        Oracle(self.site).denied(f"open {job}".encode(), code, request, follow=False)

    def taken(self, request: bytes, job: str) -> None:
        result = self.site.gate(f"open {job}".encode(), request)
        assert result.status == 0, result.stderr
        assert self.site.wait(job).reply.outcome == "succeeded"


def make_signed(root: Path, **policy: Any) -> SignedSite:
    root.mkdir(parents=True)
    keys = [make_key(root / name) for name in ("mint", "mint_next", "stranger")]
    rules = {"require_signature": [public(keys[0]), public(keys[1])], **policy}
    return SignedSite(make_site(root / "site-host", rules), *keys)


@pytest.fixture(scope="module")
def signed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SignedSite]:
    made = make_signed(tmp_path_factory.mktemp("signed") / "lab")
    yield made
    made.site.stop_sshd()


def new() -> str:
    return str(uuid.uuid4())


def test_p21_a_signed_spec_is_taken_with_either_key(signed: SignedSite) -> None:
    """Several keys are valid at a time; the site keeps the signature beside the spec."""
    for key in (signed.key, signed.following):
        job = new()
        signed.taken(signed.signed(job, key), job)
        spec = signed.site.job_file(job, "spec.json").read_bytes()
        assert signed.site.job_file(job, "spec.sig").read_text().startswith("-----BEGIN SSH SIGNATURE-----")
        assert json.loads(spec)["issued"] > 0


def test_p21_no_or_wrong_signatures_are_refused(signed: SignedSite) -> None:
    """Missing, empty, garbage, of another key, made for another purpose, over another job: nothing is made."""
    job = new()
    spec = signed.spec(job)
    text = render_spec(spec)
    for signature in (
        None,
        "",
        "x",
        "ü",
        "\0",
        sign(signed.stranger, text),
        sign(signed.key, text, "misrc-receipt"),
        sign(signed.key, text, "file"),
        sign(signed.key, text + b"\n"),
        sign(signed.key, render_spec(signed.spec(new()))),
        sign(signed.key, text).replace("SSH SIGNATURE", "SSH SIGNATURES"),
        sign(signed.key, text)[:-60],
    ):
        signed.denied("E16", job, signed.request(spec, signature))
    signed.denied("E04", job, b"")
    signed.taken(signed.signed(job), job)


def test_p21_what_was_changed_after_signing_is_refused(signed: SignedSite) -> None:
    """Each field of the spec is covered, and a field that nobody knows is no spec."""
    inputs = {"a.txt": b"input"}
    job = new()
    spec = signed.spec(job, inputs)
    signature = sign(signed.key, render_spec(spec))
    changed = [
        dataclasses.replace(spec, program="noop", arguments={}),
        dataclasses.replace(spec, arguments={"words": "y"}),
        dataclasses.replace(spec, issued=int(time.time()) + 5),
    ]
    for other in changed:
        signed.denied("E16", job, signed.request(other, signature, inputs))
    evil = {"a.txt": b"evil!"}
    swapped = dataclasses.replace(spec, manifest=signed.spec(job, evil).manifest)
    signed.denied("E16", job, signed.request(swapped, signature, evil))
    signed.denied("E04", job, signed.request(spec, signature, inputs).replace(b'"program"', b'"extra":1,"program"', 1))
    fresh = new()
    moved = dataclasses.replace(spec, job=fresh)
    signed.denied("E16", fresh, signed.request(moved, signature, inputs))
    signed.taken(signed.request(spec, signature, inputs), job)


def test_p21_a_signature_must_cover_time_and_inputs(signed: SignedSite) -> None:
    """A signed spec without its time, or without its inputs' digest, is refused."""
    job = new()
    spec = signed.spec(job, issued=None)
    signed.denied("E16", job, signed.request(spec, sign(signed.key, render_spec(spec))))
    spec = dataclasses.replace(signed.spec(job), manifest=None, files=1, bytes=5)
    request = render_open(OpenRequest(spec, signature=sign(signed.key, render_spec(spec))))
    signed.denied("E16", job, request)
    signed.taken(signed.signed(job), job)


def test_p21_old_and_future_specs_are_refused(signed: SignedSite) -> None:
    """A spec that was signed too long ago, or in the future, is refused as stale; shortly before that it is taken."""
    now = int(time.time())
    for issued in (0, now - 7 * DAY - 60, now + 3600):
        job = new()
        signed.denied("E17", job, signed.signed(job, issued=issued))
    for issued in (now - 7 * DAY + 600, now + 300):
        job = new()
        signed.taken(signed.signed(job, issued=issued), job)


def test_p21_the_declared_age_counts(tmp_path: Path) -> None:
    """`signature_days` says how old a spec may be."""
    lab = make_signed(tmp_path / "lab", signature_days=1)
    job = new()
    lab.denied("E17", job, lab.signed(job, issued=int(time.time()) - 2 * DAY))
    lab.taken(lab.signed(job, issued=int(time.time()) - DAY + 600), job)


def test_p17_p21_a_replayed_spec_computes_nothing_again(signed: SignedSite) -> None:
    """The same spec again is the same job; signed anew it is still the same; deleted, it is gone."""
    job = new()
    request = signed.signed(job)
    signed.taken(request, job)
    signed.taken(request, job)
    signed.taken(signed.signed(job, issued=int(time.time()) + 30), job)
    assert (signed.site.root / "starts").read_text().split().count(job) == 1
    signed.site.gate(f"close {job}".encode())
    assert b"E07" in signed.site.gate(f"open {job}".encode(), request).stderr


def test_p21_a_retired_key_makes_no_jobs(tmp_path: Path) -> None:
    """What the old key signed is refused once the policy names only the new one; a job that was taken goes on."""
    lab = make_signed(tmp_path / "lab")
    running = new()
    spec = dataclasses.replace(lab.spec(running), program="sleep", arguments={"seconds": "2"})
    assert lab.site.gate(f"open {running}".encode(), lab.request(spec, sign(lab.key, render_spec(spec)))).status == 0
    lab.site.policy["require_signature"] = [public(lab.following)]
    lab.site.install()
    job = new()
    lab.denied("E16", job, lab.signed(job))
    lab.taken(lab.signed(job, lab.following), job)
    assert lab.site.wait(running).reply.outcome == "succeeded"


def test_a_site_without_the_key_takes_unsigned_and_signed_specs(site: Site, tmp_path: Path) -> None:
    """`require_signature` is the site's choice: without it a signature changes nothing, whosever it is."""
    key = make_key(tmp_path / "any")
    lab = SignedSite(site, key, key, key)
    for signature in (None, "not one"):
        job = new()
        lab.taken(lab.request(lab.spec(job), signature), job)


# -- through `misrc run`, over a real sshd --------------------------------------------------------------------------


def signing_mint(root: Path, site: Site, **changes: Any) -> Mint:
    site.start_sshd()
    mint = make_mint(root, site, **changes)
    mint.environment["XDG_CONFIG_HOME"] = str(root / "config")
    return mint


def test_p21_misrc_run_signs_for_a_site_that_asks(tmp_path: Path) -> None:
    """Unsigned it is refused with what to do; with `signed: true` small, large and dry runs are taken, also resumed."""
    site = make_site(tmp_path / "site-host")
    mint = signing_mint(tmp_path / "mint", site)
    made = mint.command("signing-key", "make")
    assert made.returncode == 0 and made.stdout.startswith("ssh-ed25519 "), made.stderr
    site.policy["require_signature"] = [made.stdout.strip()]
    site.install()
    refused = mint.command("run", site.name, "noop", "--results", "out")
    assert refused.returncode == 3 and "signed: true" in refused.stderr, refused.stderr
    mint.declaration["signed"] = True
    mint.declare()
    assert mint.command("run", site.name, "noop", "--dry-run").returncode == 0
    done = mint.command("run", site.name, "noop", "--results", "out")
    assert done.returncode == 0, done.stderr
    large = mint.file("large.bin", b"\7" * (3 << 20))
    done = mint.command("run", site.name, "copy", "--in", f"large.bin={large}", "--results", "big")
    assert done.returncode == 0, done.stderr
    assert (mint.root / "big/out.dat").stat().st_size == 3 << 20
    assert len(mint.starts()) == 2
    site.stop_sshd()


def test_p21_the_signing_key_changes_without_a_gap(tmp_path: Path) -> None:
    """show, next and finish: the site learns the next key first, and every moment one of both is taken."""
    site = make_site(tmp_path / "site-host")
    mint = signing_mint(tmp_path / "mint", site, signed=True)
    missing = mint.command("run", site.name, "noop", "--results", "out")
    assert missing.returncode == 2 and "signing-key make" in missing.stderr
    first = mint.command("signing-key", "make").stdout.strip()
    again = mint.command("signing-key", "make")
    assert again.returncode == 2, "a key is never written over"
    both = mint.command("signing-key", "next").stdout.split("\n")[:2]
    assert both[0] == first and both[1] != first
    site.policy["require_signature"] = both
    site.install()
    assert mint.command("run", site.name, "noop", "--results", "out").returncode == 0
    assert mint.command("signing-key", "finish").stdout.strip() == both[1]
    assert mint.command("signing-key").stdout.strip() == both[1]
    site.policy["require_signature"] = both[1:]
    site.install()
    assert mint.command("run", site.name, "noop", "--results", "out2").returncode == 0
    assert mint.command("signing-key", "finish").returncode == 2
    site.stop_sshd()


def test_a_stale_signature_is_made_anew_by_the_next_call(tmp_path: Path) -> None:
    """A call that lay too long before it reached the site is refused once, and the same call then signs anew."""
    site = make_site(tmp_path / "site-host")
    mint = signing_mint(tmp_path / "mint", site, signed=True, retry={"count": 0, "interval": 0})
    site.policy["require_signature"] = [mint.command("signing-key", "make").stdout.strip()]
    site.install()
    site.stop_sshd()
    assert mint.command("run", site.name, "noop", "--results", "out").returncode == 4
    (kept,) = mint.state.glob("jobs/*/announced.json")
    told = json.loads(kept.read_text())
    spec = json.loads(told["text"])
    old = json.dumps({**spec, "issued": 1000}, sort_keys=True, separators=(",", ":"))
    key = mint.root / "config/misrc/keys/spec_key"
    kept.write_text(json.dumps({"text": old, "signature": sign(key, old.encode())}))
    site.start_sshd()
    stale = mint.command("run", site.name, "noop", "--results", "out")
    assert stale.returncode == 3 and "same call again" in stale.stderr, stale.stderr
    done = mint.command("run", site.name, "noop", "--results", "out")
    assert done.returncode == 0, done.stderr
    assert len(mint.starts()) == 1
    site.stop_sshd()


# -- through an agent: the server in between can make no work -------------------------------------------------------


def test_p21_an_agent_takes_only_what_mint_signed(tmp_path: Path) -> None:
    """A server that makes work of its own, or changes MInt's, is refused and told why; what MInt signed runs."""
    key, stranger = make_key(tmp_path / "mint"), make_key(tmp_path / "stranger")
    with agent_host(tmp_path / "site-host", {"require_signature": [public(key)]}) as host:
        host.start()

        def ask(signer: Path | None, **late: Any) -> DoubleJob:
            job = new()
            lab = SignedSite(host.site, key, key, stranger)
            spec = lab.spec(job, {"a.txt": b"in"})
            text = render_spec(spec)
            manifest = make_manifest([Entry("a.txt", 2, sha256(b"in"))])
            shown = render_spec(dataclasses.replace(spec, **late)).decode()
            signature = sign(signer, text) if signer else None
            made = DoubleJob(job, shown, render_manifest(manifest).decode(), {"a.txt": b"in"}, signature=signature)
            host.double.release(made)
            ended = eventually(lambda: host.double.ended(job), what="the end")
            assert isinstance(ended, DoubleJob)
            return ended

        for signer, late in ((None, {}), (stranger, {}), (key, {"arguments": {"words": "evil"}}), (key, {"files": 2})):
            refused = ask(signer, **late)
            assert refused.outcome == "refused" and refused.reason in ("E16", "E14"), (refused.outcome, refused.reason)
        assert host.starts() == []
        assert ask(key).outcome == "succeeded"
        assert len(host.starts()) == 1
