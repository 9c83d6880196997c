# shellcheck shell=bash
# Sourced by ./test, after prepare.sh: the tests on real hosts (molecule/, tools/host_tests.sh). Only root can make hosts;
# they wait more than they compute, so they run beside the tests on processes, each lane with a log of its own.
#
# Where hosts cannot be made the lanes are left out, and that is said loudly.

MISRC_LANES=()

# start_real_hosts [--all]: on one Debian, or on every one and with the scenarios that only run then.
start_real_hosts() {
  local reason releases=bookworm
  [ "${1:-}" != --all ] || releases="bookworm trixie"
  install_container_packages
  MISRC_LANE_LOGS=$(mktemp -d)
  if reason=$("$MISRC_ROOT/tools/images.sh" --why-not) && reason=$("$MISRC_ROOT/tools/images.sh" --try 2>&1); then
    (make_environment scenarios)
    start_lane "scenarios (molecule/)" "$MISRC_ROOT/tools/scenarios.sh" "$@"
    start_lane "a deployed site (tools/host_tests.sh)" env MISRC_RELEASES="$releases" "$MISRC_ROOT/tools/host_tests.sh"
  else
    export MISRC_LEFT_OUT="the tests on real hosts (molecule/, tools/host_tests.sh) were left out: ${reason##*$'\n'}"
    warn_loudly "NOT TESTED: $MISRC_LEFT_OUT"
  fi
}

start_lane() {
  local name=$1
  shift
  say "Beside the other tests: $name"
  # A session of its own, so that all of it can be ended at once.
  setsid "$@" >"$MISRC_LANE_LOGS/${#MISRC_LANES[@]}" 2>&1 </dev/null &
  MISRC_LANES+=("$!=$name")
}

# Waits for the lanes, shows what they printed, and fails if one has failed.
join_real_hosts() {
  local number lane status=0
  for number in "${!MISRC_LANES[@]}"; do
    lane=${MISRC_LANES[$number]}
    if wait "${lane%%=*}"; then say "Passed: ${lane#*=}"; else status=1; warn_loudly "FAILED: ${lane#*=}"; fi
    cat "$MISRC_LANE_LOGS/$number"
  done
  rm -rf "${MISRC_LANE_LOGS:-}"
  return $status
}

end_real_hosts() {
  local lane
  for lane in "${MISRC_LANES[@]}"; do kill -- "-${lane%%=*}" 2>/dev/null || :; done
}

# Where the packages cannot be had, the lanes are left out and the rest is still tested.
install_container_packages() {
  local packages=(podman runc netavark aardvark-dns iptables mmdebstrap)
  if command -v podman >/dev/null && command -v mmdebstrap >/dev/null; then return; fi
  command -v apt-get >/dev/null || return 0
  say "Installing Debian packages: ${packages[*]}"
  { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends \
    "${packages[@]}"; } >/dev/null || say "apt-get could not install them"
}
