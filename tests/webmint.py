"""MInt's side of a site that is reached through the API server."""

from __future__ import annotations

import copy
import dataclasses
import os
from pathlib import Path
from typing import Any, cast

import yaml
from conftest import Mint, Site

PROGRAMS: dict[str, Any] = {
    "noop": {"inputs": {"*": "optional"}, "outputs": {"out.dat": "required", "deep/*": "optional"}},
    "copy": {
        "inputs": {"*": "optional"},
        "outputs": {"out.dat": "required"},
        "arguments": {"words": {"pattern": "[ -~]{0,200}", "default": "x"}},
    },
    "sleep": {
        "inputs": {"*": "optional"},
        "outputs": {"out.dat": "required"},
        "arguments": {"seconds": {"pattern": "[0-9]{1,4}(\\.[0-9])?", "default": "1"}},
    },
    "fail": {"outputs": {"out.dat": "optional"}},
}


@dataclasses.dataclass
class WebMint(Mint):
    """`misrc` with an inventory of one webapi site; its token lies in a file that only we read."""

    def declare(self) -> None:
        folder = self.root / "inventory/host_vars"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "site.yml").write_text(yaml.safe_dump({"misrc_site": self.declaration}), encoding="utf-8")

    def env(self) -> dict[str, str]:
        return {**super().env(), "XDG_CONFIG_HOME": str(self.root / "config")}

    @property
    def token_file(self) -> Path:
        return self.root / "config/misrc/keys" / f"{self.declaration['id']}.token"

    def write_token(self, token: str, mode: int = 0o600) -> None:
        self.token_file.parent.mkdir(parents=True, exist_ok=True)
        self.token_file.write_text(token + "\n", encoding="ascii")
        self.token_file.chmod(mode)

    def make_signing_key(self) -> str:
        """Make MInt's signing key; its public half."""
        done = self.command("signing-key", "make")
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()


def make_web_mint(
    root: Path, url: str, ca: Path | None, token: str, name: str = "test-site", **changes: Any
) -> WebMint:
    """MInt's side of the site `name` behind the API server at `url`."""
    root.mkdir(parents=True, exist_ok=True)
    declaration: dict[str, Any] = {
        "id": name,
        "method": "webapi",
        "api": {"url": url, "user": "mint", **({"ca": str(ca)} if ca else {})},
        "contacts": {"site": "admin@site.example", "mint": "ops@mint.example"},
        "retry": {"count": 20, "interval": 0.3},
        "programs": copy.deepcopy(PROGRAMS),
        **changes,
    }
    mint = WebMint(root, cast(Site, None), declaration)
    mint.declare()
    mint.write_token(token)
    os.makedirs(mint.state, exist_ok=True)
    return mint
