#!/usr/bin/env bash
# tools/freeze.sh   keep what this version installs, so that later versions are tried with it: tests/releases/README.md
# It builds misrc-site-VERSION.pyz and the wheel, out of what is committed, and prints the lines for that page.
# Not covered: the dependencies of the wheel; it is run with those of the version that tries it.
set -euo pipefail
MISRC_ROOT=$(cd "$(dirname "$0")/.." && pwd)
# shellcheck source=tools/prepare.sh
. "$MISRC_ROOT/tools/prepare.sh"

cd "$MISRC_ROOT"
[ -z "$(git status --porcelain -- src plugins playbooks roles meta modulesxml galaxy.yml pyproject.toml)" ] \
  || fail "what would be frozen is not what is committed"
make_environment run
version=$("$MISRC_VENV/bin/python" -I -c 'import misrc; print(misrc.__version__)')
"$MISRC_VENV/bin/misrc" site build --output "tests/releases/misrc-site-$version.pyz" >/dev/null
cp "$MISRC_ROOT/.cache/wheels/misrc-$version-py3-none-any.whl" tests/releases/
chmod 0644 tests/releases/*"$version"*
for file in tests/releases/*"$version"*; do
  printf '| `%s` | `%s` |\n' "${file##*/}" "$(sha256sum "$file" | cut -d' ' -f1)"
done
