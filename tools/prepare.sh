# shellcheck shell=bash
# Sourced by ./demo, ./test and bench/run: brings a fresh Debian 12 or 13 to where misrc can run, and steps down from
# root to an unprivileged user. Doing it again costs nothing: every step looks first.
#
# Not covered: other systems. There the missing commands are named, and nothing is installed.

MISRC_PACKAGES=(python3 python3-venv openssh-server openssh-client rsync calculix-ccx procps)
MISRC_COMMANDS=(python3 /usr/sbin/sshd ssh ssh-keygen rsync ccx ps)

say() { printf '\033[1m%s\033[0m\n' "$*" >&2; }
fail() { printf 'misrc: %s\n' "$*" >&2; exit 2; }

missing_commands() {
  local name
  for name in "${MISRC_COMMANDS[@]}"; do
    command -v "$name" >/dev/null || printf '%s ' "$name"
  done
  python3 -c 'import ensurepip, venv' 2>/dev/null || printf 'python3-venv '
}

rsync_is_new_enough() {
  rsync --version 2>/dev/null | awk 'NR == 1 {split($3, v, "."); exit !(v[1] > 3 || (v[1] == 3 && v[2] >= 5))}'
}

as_root() {
  if [ "$(id -u)" = 0 ]; then "$@"; else sudo -n "$@"; fi
}

install_packages() {
  local missing
  missing=$(missing_commands)
  if [ -z "$missing" ] && rsync_is_new_enough; then return; fi
  if ! command -v apt-get >/dev/null || ! as_root true 2>/dev/null; then
    fail "these are missing: ${missing:-rsync>=3.5.0}. Ask an administrator to install: ${MISRC_PACKAGES[*]}"
  fi
  say "Installing Debian packages: ${MISRC_PACKAGES[*]}"
  as_root apt-get update -qq >&2
  as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${MISRC_PACKAGES[@]}" \
    >/dev/null || fail "apt-get could not install the packages"
  missing=$(missing_commands)
  [ -z "$missing" ] || fail "these are still missing: $missing"
  rsync_is_new_enough || fail "rsync 3.5.0 or later is needed; this system's security updates have it"
}

warn_loudly() {
  printf '\033[1;31m\n  %s\n\033[0m\n' "$*" >&2
}

# install_optional COMMAND PACKAGE WHAT: where the package cannot be had, WHAT is left out, and that is said loudly.
install_optional() {
  [ -z "${MISRC_STEPPED_DOWN:-}" ] || return 0
  command -v "$1" >/dev/null && return 0
  if command -v apt-get >/dev/null && as_root true 2>/dev/null; then
    say "Installing Debian packages: $2"
    { as_root apt-get update -qq && as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq \
      --no-install-recommends "$2"; } >/dev/null || say "apt-get could not install $2"
  fi
  command -v "$1" >/dev/null && return 0
  export MISRC_LEFT_OUT="${MISRC_LEFT_OUT:+$MISRC_LEFT_OUT; }$3 was left out: the package $2 cannot be installed"
}

# From root to the unprivileged user, for good. An ordinary user stays who it is.
step_down() {
  [ "$(id -u)" = 0 ] || return 0
  as_user exec "$@"
}

# as_user [exec] WORDS: this same command with WORDS as the unprivileged user, from a home that it can reach wherever
# the checkout lies.
as_user() {
  local how=
  if [ "${1:-}" = exec ]; then how=exec; shift; fi
  id "$MISRC_USER" >/dev/null 2>&1 || useradd --create-home --shell /bin/sh --password '*' "$MISRC_USER"
  local home
  home=$(getent passwd "$MISRC_USER" | cut -d: -f6)
  mkdir -p "$home/src"
  rsync -a --delete --exclude /.venv --exclude /.cache --exclude '__pycache__' "$MISRC_ROOT/" "$home/src/"
  chown -R "$MISRC_USER:" "$home/src"
  mkdir -p /run/sshd
  # What pip needs to find its index here, and what decides the language, may come along; nothing else does.
  local passed=(MISRC_STEPPED_DOWN=1) name
  for name in "${!PIP_@}" MISRC_LANG MISRC_LEFT_OUT NO_COLOR; do
    [ -z "${!name:-}" ] || passed+=("$name=${!name}")
  done
  $how setpriv --reuid "$MISRC_USER" --regid "$MISRC_USER" --init-groups --no-new-privs \
    env -i HOME="$home" USER="$MISRC_USER" PATH=/usr/local/bin:/usr/bin:/bin:/usr/sbin LANG="${LANG:-C.UTF-8}" \
    TERM="${TERM:-dumb}" CI="${CI:-}"  \
    "${passed[@]}" \
    "$home/src/$MISRC_ENTRY" "$@"
}

# The virtual environment with the locked versions, made anew when they change. `make_environment test` adds what only
# the tests need; `make_environment scenarios` is another environment, root's own, for the scenarios on real hosts.
make_environment() {
  MISRC_VENV="$MISRC_ROOT/.venv"
  local stamp extras=${1:-run}
  [ "$extras" != scenarios ] || MISRC_VENV="$MISRC_ROOT/.cache/scenarios/venv"
  stamp=$(cat "$MISRC_ROOT/requirements.lock" "$MISRC_ROOT/pyproject.toml" "$MISRC_ROOT/molecule/requirements.txt" \
    | sha256sum | cut -c1-16)
  if ! grep -qsx "$stamp $extras\|$stamp test" "$MISRC_VENV/stamp"; then
    say "Making the Python environment (once; about a minute)"
    rm -rf "$MISRC_VENV"
    "$(newest_python)" -m venv "$MISRC_VENV"
    local wanted=(-c "$MISRC_ROOT/requirements.lock" hatchling ansible-core ansible-runner pybase64 pydantic PyYAML rich lxml Pillow
      uvicorn uvloop httptools SQLAlchemy 'psycopg[binary]')
    if [ "$extras" = test ]; then wanted=(-r "$MISRC_ROOT/requirements.lock"); fi
    if [ "$extras" = scenarios ]; then wanted+=(-r "$MISRC_ROOT/molecule/requirements.txt"); fi
    "$MISRC_VENV/bin/pip" install --quiet --disable-pip-version-check "${wanted[@]}"
    echo "$stamp $extras" >"$MISRC_VENV/stamp"
  fi
  install_wheel
}

newest_python() {
  local name
  for name in /usr/bin/python3 python3.13 python3.12 python3.11 python3; do
    if "$name" -c 'import sys, venv; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then echo "$name"; return; fi
  done
  fail "Python 3.11 or later is needed"
}

# misrc itself is always used from its built wheel, never from the source tree.
install_wheel() {
  local stamp
  stamp=$(cd "$MISRC_ROOT" && find src plugins playbooks roles meta modulesxml galaxy.yml pyproject.toml -type f \
    ! -name '*.pyc' -print0 | sort -z | xargs -0 sha256sum | sha256sum | cut -c1-16)
  if [ "$(cat "$MISRC_VENV/wheel-stamp" 2>/dev/null)" = "$stamp" ]; then return; fi
  local wheels="$MISRC_ROOT/.cache/wheels"
  rm -rf "$wheels"
  "$MISRC_VENV/bin/pip" wheel --quiet --disable-pip-version-check --no-deps --no-build-isolation \
    -w "$wheels" "$MISRC_ROOT"
  "$MISRC_VENV/bin/pip" install --quiet --disable-pip-version-check --no-deps --force-reinstall "$wheels"/misrc-*.whl
  echo "$stamp" >"$MISRC_VENV/wheel-stamp"
}
