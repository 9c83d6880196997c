"""The whole way of a webapi site, all of it real: MInt's side, the API server, the agent, the site's own programs."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from apiserver import USER, Api
from conftest import CLEAN, Site, free_port, make_site
from webmint import PROGRAMS, WebMint, make_web_mint


@dataclasses.dataclass
class Chain:
    """All parts, and what a test does to them."""

    root: Path
    api: Api
    site: Site
    mint: WebMint
    agent: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """The server's, as its clients are told it."""
        if self.api.config["tls"] is None:
            return f"http://127.0.0.1:{self.api.port}"
        return f"https://localhost:{self.api.port}"

    def configure(self, **changes: Any) -> None:
        """Install gate and agent at the site, the way a site does it."""
        token = self.site.root / "token"
        token.write_text(self.api.tokens["chain-agent"] + "\n", encoding="ascii")
        token.chmod(0o600)
        config = {"url": self.url, "ca": str(self.api.root / "tls/ca.pem"), "token": str(token), **changes}
        config = {key: value for key, value in config.items() if value is not None}
        path = self.site.root / "agent.json"
        path.write_text(json.dumps(config), encoding="utf-8")
        policy = self.site.root / "policy.json"
        policy.write_text(json.dumps(self.site.policy), encoding="utf-8")
        keys = str(self.site.root / "authorized_keys")
        words = ["--policy", str(policy), "--agent", str(path), "--authorized-keys", keys, "--yes"]
        self.site.people("install", "--site", self.site.name, *words)

    def start_agent(self) -> None:
        """The agent, as an ordinary process."""
        faults = ["--faults", str(self.site.faults)] if self.site.faults else []
        with (self.site.root / "agent.log").open("ab") as log:
            self.agent = subprocess.Popen(
                [
                    *("/usr/bin/python3", "-I", "-S", str(self.site.code), "--prefix", str(self.site.prefix)),
                    *faults,
                    "agent",
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=CLEAN,
            )

    def said(self) -> str:
        return (self.site.root / "agent.log").read_text(encoding="utf-8")

    def stop_agent(self) -> None:
        """SIGKILL."""
        if self.agent is not None:
            self.agent.kill()
            self.agent.wait()
            self.agent = None

    def starts(self) -> list[str]:
        """Job ids in the order in which programs were really started."""
        path = self.site.root / "starts"
        return path.read_text(encoding="ascii").split() if path.exists() else []

    def declare(self, **changes: Any) -> None:
        """Change the declaration at both MInt's node and the server."""
        self.mint.declaration.update(changes)
        self.mint.declare()
        self.api.declare(self.mint.declaration)


@contextlib.contextmanager
def chain(
    root: Path,
    policy: dict[str, Any] | None = None,
    faults: bool = False,
    database: str | None = None,
    server: dict[str, Any] | None = None,
    **declared: Any,
) -> Iterator[Chain]:
    """Everything runs, and is gone afterwards. The server listens on one port, also when it is started again."""
    site = make_site(root / "site-host", policy, faults)
    api = Api(root / "server", database, **{"listen": [f"127.0.0.1:{free_port()}"], **(server or {})})
    try:
        api.add_token("chain-mint", "--user", USER, "--scope", "workflow")
        api.add_token("chain-agent", "--user", USER, "--scope", "agent", "--site", site.name)
        declaration = {"id": site.name, "method": "webapi", "programs": copy.deepcopy(PROGRAMS), **declared}
        api.declare({**declaration, "api": {"url": "https://localhost:50443", "user": USER}})
        api.start()
        plain = api.config["tls"] is None
        url = f"http://127.0.0.1:{api.port}" if plain else f"https://localhost:{api.port}"
        receipt_key = " ".join((site.prefix / "config/site_key.pub").read_text().split()[:2])
        changes = {"receipt_keys": [receipt_key], **declared}
        mint = make_web_mint(
            root / "mint",
            url,
            None if plain else api.root / "tls/ca.pem",
            api.tokens["chain-mint"],
            site.name,
            **changes,
        )
        mint.site = site
        made = Chain(root, api, site, mint)
        made.configure(**({"ca": None} if plain else {}))
        made.start_agent()
        try:
            yield made
        finally:
            made.stop_agent()
    finally:
        site.stop_sshd()
        if api.process is not None and api.process.poll() is None:
            api.kill()
