#!/usr/bin/env bash
# tools/scenarios.sh [--all] [NAME…]   run the molecule scenarios (default: all of them) on real hosts with systemd
#   --all         on every Debian, not on one
#   -- WORDS      run `molecule WORDS` in the same environment, for work on one scenario:
#                 tools/scenarios.sh -- converge -s mint_node
# MISRC_RELEASES names the Debian releases, MISRC_HOSTS is the prefix of the hosts' names.
set -euo pipefail
MISRC_ROOT=$(cd "$(dirname "$0")/.." && pwd)
# shellcheck source=tools/prepare.sh
. "$MISRC_ROOT/tools/prepare.sh"
HOME_OF_SCENARIOS="$MISRC_ROOT/.cache/scenarios"
ANSIBLE_VERSION=12.3.0

reason=$("$MISRC_ROOT/tools/images.sh" --why-not) || fail "the scenarios cannot run: $reason"

# Two collections out of 40 MB of wheel, because all of it unpacked takes half a gigabyte.
unpack_collections() {
  local folder="$HOME_OF_SCENARIOS/collections" wheels
  [ -d "$folder/ansible_collections/containers/podman" ] && return
  wheels=$(mktemp -d)
  "$MISRC_VENV/bin/pip" download --quiet --no-deps --only-binary=:all: -d "$wheels" "ansible==$ANSIBLE_VERSION"
  "$MISRC_VENV/bin/python" - "$wheels" "$folder" <<'END'
import sys
import zipfile
from pathlib import Path

for wheel in Path(sys.argv[1]).glob("ansible-*.whl"):
    with zipfile.ZipFile(wheel) as archive:
        wanted = ("ansible_collections/containers/podman/", "ansible_collections/ansible/posix/")
        archive.extractall(sys.argv[2], [name for name in archive.namelist() if name.startswith(wanted)])
END
  rm -rf "$wheels"
}

make_environment scenarios
unpack_collections

CONTAINERS_CONF=$("$MISRC_ROOT/tools/images.sh" --settings)
ANSIBLE_COLLECTIONS_PATH=$("$MISRC_VENV/bin/python" -I -c \
  'from importlib.resources import files; print(files("misrc") / "collection")'):$HOME_OF_SCENARIOS/collections
MISRC_BUNDLE=$HOME_OF_SCENARIOS/bundle.tar
MISRC_HOSTS=${MISRC_HOSTS:-misrc}
PATH=$MISRC_VENV/bin:$PATH
ANSIBLE_HOME=$HOME_OF_SCENARIOS/ansible
export CONTAINERS_CONF ANSIBLE_COLLECTIONS_PATH MISRC_BUNDLE MISRC_HOSTS PATH ANSIBLE_HOME
export ANSIBLE_NOCOLOR=${NO_COLOR:+1} PY_COLORS=0 ANSIBLE_PIPELINING=1
cd "$MISRC_ROOT"
misrc bundle --output "$MISRC_BUNDLE" >/dev/null

releases=${MISRC_RELEASES:-bookworm}
names=()
while [ $# -gt 0 ]; do
  case $1 in
    --all) releases=${MISRC_RELEASES:-bookworm trixie} ;;
    --)
      shift
      export MISRC_RELEASE=${releases%% *}
      "$MISRC_ROOT/tools/images.sh" "$MISRC_RELEASE"
      exec molecule "$@"
      ;;
    *) names+=("$1") ;;
  esac
  shift
done
if [ ${#names[@]} = 0 ]; then
  for folder in molecule/*/molecule.yml; do names+=("$(basename "$(dirname "$folder")")"); done
fi

for release in $releases; do
  "$MISRC_ROOT/tools/images.sh" "$release"
  for name in "${names[@]}"; do
    say "Scenario $name on Debian $release"
    MISRC_RELEASE=$release molecule test -s "$name"
  done
done
