#!/usr/bin/env bash
# tools/scenarios.sh [--all] [NAME…]   run the molecule scenarios on real hosts with systemd
#   --all         on every Debian, not on one; and without a NAME also those that have a file `full-only`, which says why
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

python_of() {
  podman run --rm --network none "localhost/misrc-test-debian:$1" \
    /usr/bin/python3 -c 'import sys; print("%d.%d" % sys.version_info[:2])'
}

# A bundle fits the Python that made it. For another Python its wheels are downloaded, and the bundle is made in a
# container of that release, as an administrator would make it on such a machine.
make_bundle() {
  local release=$1 python wheels platform options=()
  MISRC_BUNDLE=$HOME_OF_SCENARIOS/bundle-$release.tar
  export MISRC_BUNDLE MISRC_RELEASE=$release
  python=$(python_of "$release")
  if "$MISRC_VENV/bin/python" -c "import sys; sys.exit('%d.%d' % sys.version_info[:2] != '$python')"; then
    misrc bundle --api --output "$MISRC_BUNDLE" >/dev/null
    return
  fi
  wheels=$HOME_OF_SCENARIOS/wheels-$python
  mkdir -p "$wheels"
  for platform in 2_17 2_28 2_34; do options+=(--platform "manylinux_${platform}_$(uname -m)"); done
  rm -f "$wheels"/misrc-*.whl
  cp "$MISRC_ROOT"/.cache/wheels/misrc-*.whl "$wheels"
  "$MISRC_VENV/bin/pip" download --quiet --disable-pip-version-check --only-binary=:all: --python-version "$python" \
    "${options[@]}" --platform "manylinux2014_$(uname -m)" -c "$MISRC_ROOT/requirements.lock" -d "$wheels" \
    --find-links "$wheels" "$(echo "$wheels"/misrc-*.whl)[api]"
  podman run --rm --network none --volume "$HOME_OF_SCENARIOS:/work" "localhost/misrc-test-debian:$release" sh -euc "
    python3 -m venv /venv
    /venv/bin/pip install --quiet --disable-pip-version-check --no-index --find-links /work/wheels-$python 'misrc[api]'
    /venv/bin/misrc bundle --api --output /work/bundle-$release.tar >/dev/null"
}

# The images that scenarios name, of this release or of a fixed one.
make_images() {
  local release=$1 name
  shift
  # shellcheck disable=SC2046 # they are words
  "$MISRC_ROOT/tools/images.sh" "$release" $(for name in "$@"; do
    sed -n 's/^ *image: localhost.misrc-test-debian://p' "molecule/$name/molecule.yml"
  done | sed "s/\${MISRC_RELEASE:-bookworm}/$release/" | sort -u)
}

# A folder of this machine that hosts of one scenario share, as they would share one of a file server.
make_shared() {
  MISRC_SHARED=$HOME_OF_SCENARIOS/shared-$MISRC_HOSTS
  mkdir -p "$MISRC_SHARED"
  export MISRC_SHARED
}

make_environment scenarios
unpack_collections

CONTAINERS_CONF=$("$MISRC_ROOT/tools/images.sh" --settings)
ANSIBLE_COLLECTIONS_PATH=$("$MISRC_VENV/bin/python" -I -c \
  'from importlib.resources import files; print(files("misrc") / "collection")'):$HOME_OF_SCENARIOS/collections
MISRC_HOSTS=${MISRC_HOSTS:-misrc}
PATH=$MISRC_VENV/bin:$PATH
ANSIBLE_HOME=$HOME_OF_SCENARIOS/ansible
export CONTAINERS_CONF ANSIBLE_COLLECTIONS_PATH MISRC_HOSTS PATH ANSIBLE_HOME
export ANSIBLE_NOCOLOR=${NO_COLOR:+1} PY_COLORS=0 ANSIBLE_PIPELINING=1
cd "$MISRC_ROOT"
make_shared

releases=${MISRC_RELEASES:-bookworm}
names=()
all=
while [ $# -gt 0 ]; do
  case $1 in
    --all) releases=${MISRC_RELEASES:-bookworm trixie} all=1 ;;
    --)
      shift
      [[ " $* " =~ " -s "([^ ]+)" " ]] || fail "say which scenario: -s NAME"
      make_images "${releases%% *}" "${BASH_REMATCH[1]}"
      make_bundle "${releases%% *}"
      exec molecule "$@"
      ;;
    *) names+=("$1") ;;
  esac
  shift
done
if [ ${#names[@]} = 0 ]; then
  for folder in molecule/*/molecule.yml; do
    folder=${folder%/molecule.yml}
    if [ -n "$all" ] || [ ! -e "$folder/full-only" ]; then names+=("${folder#molecule/}"); fi
  done
fi

for release in $releases; do
  make_images "$release" "${names[@]}"
  make_bundle "$release"
  for name in "${names[@]}"; do
    say "Scenario $name on Debian $release"
    molecule test -s "$name"
  done
done
