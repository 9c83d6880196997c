"""Find and parse the declarations in an inventory folder: `host_vars/*.yml`, one file per site."""

from __future__ import annotations

import json
import os
import stat
import sys
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from ..job.codec import CodecError, dump_json, encode
from ..job.errors import BadRequest
from ..job.interface import Interface
from ..job.policy import Policy, parse_policy
from .interface import Site
from .strict import explain

MAX_FILE_BYTES = 1 << 20


class _Loader(yaml.SafeLoader):
    """YAML without aliases (no bombs) and without duplicate keys."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("aliases are not taken")
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        keys = [self.construct_object(key, deep=deep) for key, _ in node.value]
        if len(set(map(str, keys))) != len(keys):
            raise yaml.YAMLError(f"a key stands twice at line {node.start_mark.line + 1}")
        return super().construct_mapping(node, deep=deep)


# Dates stay text: a day is written YYYY-MM-DD and parsed by its own rule.
_Loader.yaml_implicit_resolvers = {
    first: [(tag, regexp) for tag, regexp in rules if tag != "tag:yaml.org,2002:timestamp"]
    for first, rules in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


def read_variables(path: Path) -> dict[str, Any]:
    """One host_vars file as plain values; BadRequest names the file and the place."""
    try:
        # Without waiting for somebody to write, where it is a pipe.
        with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise BadRequest(f"{path}: not a plain file")
            data = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise BadRequest(f"{path}: {error.strerror}") from None
    return parse_variables(data, path)


def parse_variables(data: bytes, path: Path) -> dict[str, Any]:
    """The bytes of a host_vars file as plain values; BadRequest names `path` and the place."""
    if len(data) > MAX_FILE_BYTES:
        raise BadRequest(f"{path}: longer than 1 MiB")
    try:
        value = yaml.load(data, Loader=_Loader)
    except (yaml.YAMLError, ValueError) as error:
        raise BadRequest(f"{path}: {' '.join(str(error).split())}") from None
    except RecursionError:
        raise BadRequest(f"{path}: nested too deeply") from None
    if not isinstance(value, dict):
        raise BadRequest(f"{path}: a mapping is needed")
    return value


def parse_site(variables: dict[str, Any], path: Path) -> Interface:
    """The interface in a host_vars file; BadRequest names file, key and reason."""
    identity = variables.get("misrc_identity")
    if identity is not None and not (isinstance(identity, str) and identity.startswith("/")):
        raise BadRequest(f"{path}: misrc_identity: an absolute path is needed")
    try:
        return Site.model_validate(variables.get("misrc_site")).interface(identity)
    except ValidationError as error:
        place, fault = explain(error)
        raise BadRequest(f"{path}: misrc_site{'.' if place else ''}{place}: {fault}") from None


def load_sites(inventory: Path) -> dict[str, Interface]:
    """Every site of an inventory; a site id that stands in two files is refused."""
    return {name: site for name, (_, site) in load_declarations(inventory).items()}


def load_declarations(inventory: Path) -> dict[str, tuple[Path, Interface]]:
    """Every site of an inventory, with the file that declares it; a site id that stands in two files is refused."""
    found: dict[str, tuple[Path, Interface]] = {}
    for path in sorted([*inventory.glob("host_vars/*.yml"), *inventory.glob("host_vars/*/*.yml")]):
        variables = read_variables(path)
        if "misrc_site" not in variables:
            continue
        site = parse_site(variables, path)
        if site.id in found:
            raise BadRequest(f"{path}: misrc_site.id: {site.id} stands in another file too")
        found[site.id] = (path, site)
    return found


class _Dumper(yaml.SafeDumper):
    """YAML that the loader above takes: nothing is written as an alias."""

    def ignore_aliases(self, data: Any) -> bool:
        return True

    def represent_text(self, data: str) -> yaml.ScalarNode:
        """Unicode's own line breaks are escaped: a plain or single-quoted text would read back with a newline."""
        odd = not _LINE_BREAKS.isdisjoint(data)
        return self.represent_scalar("tag:yaml.org,2002:str", data, style='"' if odd else None)


_LINE_BREAKS = frozenset("\x85\u2028\u2029")
_Dumper.add_representer(str, _Dumper.represent_text)


def render_variables(variables: dict[str, Any]) -> str:
    """Plain values as the text of a host_vars file; reading it gives the same values."""
    return yaml.dump(variables, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=110)


def load_policy(path: Path) -> Policy:
    """A site's policy out of a `policy.json`, or out of a host_vars file (`.yml`); BadRequest names the place."""
    if path.suffix in (".yml", ".yaml"):
        return parse_policy(render_policy(path))
    try:
        with path.open("rb") as file:
            return parse_policy(file.read(MAX_FILE_BYTES + 1))
    except OSError as error:
        raise BadRequest(f"{path}: {error.strerror}") from None
    except ValueError as error:
        raise BadRequest(f"{path}: {error}") from None


def render_policy(path: Path) -> bytes:
    """The `misrc_policy` of a host_vars file as the JSON that a site installs, checked by the site's own rules."""
    variables = read_variables(path)
    if "misrc_policy" not in variables:
        raise BadRequest(f"{path}: there is no misrc_policy in it")
    return dump_policy(variables["misrc_policy"], str(path))


def dump_policy(value: Any, where: str) -> bytes:
    """A `misrc_policy` as JSON, checked by the site's own rules; a day that YAML read as a date is text again."""
    data = json.dumps(value, indent=2, ensure_ascii=False, default=str).encode() + b"\n"
    try:
        parse_policy(data)
    except (CodecError, ValueError) as error:
        raise BadRequest(f"{where}: misrc_policy: {error}") from None
    return data


def main() -> int:
    """Print every site of the inventory named on the command line as one JSON object (for `misrc.mint.sites`)."""
    try:
        sites = load_sites(Path(sys.argv[1]))
    except BadRequest as error:
        sys.stderr.write(f"{error}\n")
        return BadRequest.exit_code
    sys.stdout.buffer.write(dump_json({name: encode(site) for name, site in sites.items()}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
