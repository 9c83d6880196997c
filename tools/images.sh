#!/usr/bin/env bash
# tools/images.sh [RELEASE…]     build the Debian images of the test hosts (default: bookworm), where they are not there yet
# tools/images.sh --settings     print the file for CONTAINERS_CONF with which containers run on this machine
# tools/images.sh --why-not      say why containers cannot run here, and exit with 1; nothing and 0 where they can
# tools/images.sh --try          the same, by building one image and starting a host from it
#
# The images are misrc-test-debian:RELEASE: Debian with systemd, sshd and Python, made of Debian's packages; no registry
# is asked. RELEASE-front is the same with nginx and PostgreSQL. Each carries a hash of what went in, and is kept until that changes.
#
# Not covered: machines without root; architectures other than the host's own.
set -euo pipefail
MISRC_ROOT=${MISRC_ROOT:-$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)}
NAME=${MISRC_IMAGE_NAME:-misrc-test-debian}
PACKAGES=systemd,systemd-sysv,dbus,libpam-systemd,python3,python3-apt,python3-venv,openssh-server,openssh-client,rsync
PACKAGES+=,sudo,git,logrotate,procps,iproute2,ca-certificates,passwd,netcat-openbsd,quota,acl

say() { printf '\033[1m%s\033[0m\n' "$*" >&2; }
fail() { printf 'misrc: %s\n' "$*" >&2; exit 2; }

# The mirror that this host uses, so that what works for its own packages works here; Debian's own elsewhere.
mirror() {
  local found
  found=$(apt-get indextargets --format '$(SITE) $(SUITE) $(CODENAME)' 2>/dev/null \
    | awk -v security="$1" '$1 ~ /^https?:/ && ($2 ~ /-security$/) == (security == "security") \
        && $1 ~ /\/debian(-security)?\/?$/ {print $1; exit}')
  if [ "$1" = security ]; then echo "${found:-http://deb.debian.org/debian-security}"
  else echo "${found:-http://deb.debian.org/debian}"; fi
}

sources() {
  local keyring=/usr/share/keyrings/debian-archive-keyring.gpg
  printf 'deb [signed-by=%s] %s %s main\n' "$keyring" "$(mirror main)" "$1"
  printf 'deb [signed-by=%s] %s %s-security main\n' "$keyring" "$(mirror security)" "$1"
}

# What every host looks like before anything of misrc: host keys are made at first boot, not baked in.
customize() {
  cat <<'END'
set -eu
root=$1
rm -f "$root"/etc/ssh/ssh_host_* "$root"/etc/machine-id
: >"$root/etc/machine-id"
printf '[Unit]\nDescription=Make SSH host keys\nBefore=ssh.service\nConditionPathExists=!/etc/ssh/ssh_host_ed25519_key\n\n[Service]\nType=oneshot\nExecStart=/usr/bin/ssh-keygen -A\n\n[Install]\nWantedBy=multi-user.target\n' >"$root/etc/systemd/system/test-host-keys.service"
chroot "$root" systemctl enable test-host-keys.service ssh.service
for unit in apt-daily.timer apt-daily-upgrade.timer systemd-resolved.service getty@tty1.service \
  systemd-networkd.service systemd-udevd.service; do
  chroot "$root" systemctl mask "$unit" || :
done
END
}

why_not() {
  [ "$(id -u)" = 0 ] || { echo "only root can start containers with systemd here"; return 1; }
  local name
  for name in podman mmdebstrap; do
    command -v "$name" >/dev/null || { echo "$name is not installed"; return 1; }
  done
  podman info >/dev/null 2>&1 || { echo "podman does not work here: $(podman info 2>&1 | tail -n 1)"; return 1; }
}

# runc, because crun refuses hybrid cgroups; lower limits, because without CAP_SYS_RESOURCE none can be raised.
settings() {
  local file="$MISRC_ROOT/.cache/containers.conf"
  mkdir -p "$MISRC_ROOT/.cache"
  {
    echo '[containers]'
    if (( (0x$(awk '/^CapEff/ {print $2}' /proc/self/status) >> 24 & 1) == 0 )); then
      echo 'default_ulimits = ["nofile=1024:4096", "nproc=4096:4096"]'
    fi
    echo 'default_sysctls = []'
    echo '[engine]'
    if [ "$(stat -fc %T /sys/fs/cgroup)" != cgroup2fs ] && command -v runc >/dev/null; then
      echo 'runtime = "runc"'
    fi
  } >"$file"
  echo "$file"
}

build() {
  local release=${1%-front} image="localhost/$NAME:$1" packages=$PACKAGES key folder
  [ "$release" = "$1" ] || packages+=,nginx-light,postgresql
  key=$( { echo "$release $packages"; sources "$release"; customize; } | sha256sum | cut -c1-16)
  # Two checkouts may want the same image at once.
  exec 9>"/run/lock/$NAME-$1.lock"
  flock 9
  if [ "$(podman image inspect --format '{{index .Labels "misrc.key"}}' "$image" 2>/dev/null)" = "$key" ]; then return; fi
  say "Building $image out of Debian packages (about a minute)"
  folder=$(mktemp -d /var/tmp/misrc-image.XXXXXX)
  # shellcheck disable=SC2064 # the folder's name now, not then
  trap "rm -rf '$folder'" EXIT
  customize >"$folder/customize"
  sources "$release" >"$folder/sources.list"
  mmdebstrap --quiet --variant=minbase --include="$packages" --customize-hook="sh '$folder/customize' \"\$1\"" \
    "$release" "$folder/root.tar" "$folder/sources.list" || fail "mmdebstrap could not build Debian $release"
  podman import --quiet --change "LABEL misrc.key=$key" --change 'CMD ["/sbin/init"]' "$folder/root.tar" "$image" \
    >/dev/null
  rm -rf "$folder"
}

# Whether a host with systemd really starts here; says why not, on its last line.
try_out() {
  local name="misrc-try-$$" state=
  CONTAINERS_CONF=$(settings)
  export CONTAINERS_CONF
  # shellcheck disable=SC2064 # the name now, not then
  trap "podman rm -f -t 0 '$name' >/dev/null 2>&1" EXIT
  podman run -d --name "$name" --privileged --systemd=always "localhost/$NAME:$1" /sbin/init >/dev/null || return 1
  for _ in $(seq 120); do
    state=$(podman exec "$name" systemctl is-system-running 2>/dev/null || :)
    case $state in running | degraded) return 0 ;; esac
    sleep 0.5
  done
  echo "systemd does not start in a container here (${state:-no answer})"
  return 1
}

case ${1:-bookworm} in
  --settings) settings ;;
  --why-not) why_not ;;
  --try)
    build bookworm
    try_out bookworm
    ;;
  *)
    reason=$(why_not) || fail "$reason"
    for release in "${@:-bookworm}"; do build "$release"; done
    ;;
esac
