"""What every agent needs before it speaks: its configuration, the server's address, and a folder of its own."""

from __future__ import annotations

import contextlib
import dataclasses
import os
from typing import Callable, Iterator, Mapping, Optional

from ...job.agent import MAX_CONFIG_BYTES, PROXY_CREDENTIAL, AgentConfig, parse_agent_config
from ...job.codec import CodecError
from ...job.units import AGENT_FOLDER
from .. import files
from ..home import Home
from .credentials import read_secret
from .http_channel import Endpoint

CONFIG = "agent.json"
KEY = "agent"
ENVIRONMENT = {"PATH": "/usr/bin:/bin", "LANG": "C", "HOME": "/nonexistent"}


def read_config(home: Home) -> AgentConfig:
    """`agent.json` of this installation, which nobody else can write."""
    path = f"{home.config}/{CONFIG}"
    try:
        with open(path, "rb") as file:
            status = os.fstat(file.fileno())
            if status.st_uid not in (0, os.getuid()) or status.st_mode & 0o022:
                raise ValueError("belongs to, or can be written by, somebody else")
            return parse_agent_config(file.read(MAX_CONFIG_BYTES + 1))
    except FileNotFoundError:
        raise ValueError(f"{path} is missing: install again with --agent FILE") from None
    except (CodecError, ValueError) as error:
        raise ValueError(f"{path}: {error}") from None


def take_proxy_credential(config: AgentConfig, environment: Mapping[str, str]) -> AgentConfig:
    """The configuration with the proxy's secret where systemd has put it, if it has."""
    path = f"{environment.get('CREDENTIALS_DIRECTORY', '')}/{PROXY_CREDENTIAL}"
    return dataclasses.replace(config, proxy_credentials=path) if os.path.exists(path) else config


def make_endpoint(config: AgentConfig) -> Endpoint:
    """Where the server is and how it is reached."""
    path = config.proxy_credentials
    secret: Optional[Callable[[], str]] = None if path is None else lambda: read_secret(path).strip()
    return Endpoint(config.server, config.ca, config.via, secret)


@contextlib.contextmanager
def open_state(home: Home) -> Iterator[int]:
    """The folder where the agent keeps what is its own, open."""
    path = AGENT_FOLDER if home.of_host else f"{home.state}/agent"
    os.makedirs(path, mode=0o700, exist_ok=True)
    with files.opened(files.open_folder(path)) as folder:
        yield folder
