#!/usr/bin/env bash
# tools/host_tests.sh [WORDS…]   what a deployed site lets through and lets jobs do, tried from another host
# Further words go to pytest. MISRC_RELEASES names the site's Debian releases (default: bookworm), MISRC_HOSTS is the
# prefix of the hosts' names, MISRC_KEEP_HOSTS=1 leaves them for a look.
#
# Runs as root, because only root starts containers with systemd. Hosts are made and removed here; nothing else is touched.
set -euo pipefail
MISRC_ROOT=$(cd "$(dirname "$0")/.." && pwd)
# shellcheck source=tools/prepare.sh
. "$MISRC_ROOT/tools/prepare.sh"

reason=$("$MISRC_ROOT/tools/images.sh" --why-not) || fail "the tests on real hosts cannot run: $reason"
make_environment scenarios
# MInt's host runs the same Python as this one: the environment is shown to it as it is.
own=$(. /etc/os-release && echo "$VERSION_CODENAME")
releases=${MISRC_RELEASES:-bookworm}
# shellcheck disable=SC2086 # the releases are words
"$MISRC_ROOT/tools/images.sh" "$own" $releases bullseye

CONTAINERS_CONF=$("$MISRC_ROOT/tools/images.sh" --settings)
MISRC_OWN_RELEASE=$own
export CONTAINERS_CONF MISRC_OWN_RELEASE
cd "$MISRC_ROOT"
files=(tests/test_onboarding_host.py tests/test_gate_host.py tests/test_site_host.py tests/test_job_units.py)
for release in $releases; do
  say "A deployed site on Debian $release"
  MISRC_RELEASE=$release "$MISRC_VENV/bin/python" -m pytest -q "${@:-${files[@]}}"
done
