#!/usr/bin/env bash
# tools/manual.sh [DIR]   builds the manual as HTML into .cache/manual, or DIR: en/ and ja/, to be read without a network
# A warning, such as a link to a heading that is gone, is an error.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
target=${1:-$root/.cache/manual}

# The tests' environment has the toolchain; without it, an environment for this alone is made once.
bin=${MISRC_PYTHON_BIN:-$root/.venv/bin}
if [ ! -x "$bin/sphinx-build" ]; then
  bin=$root/.cache/manual-venv/bin
  if [ ! -x "$bin/sphinx-build" ]; then
    python3 -m venv "$root/.cache/manual-venv"
    "$bin/pip" install --quiet --disable-pip-version-check -c "$root/requirements.lock" sphinx myst-parser
  fi
fi

for language in en ja; do
  source=$root/docs
  [ "$language" = en ] || source=$root/docs/ja
  MISRC_MANUAL_LANGUAGE=$language "$bin/sphinx-build" --quiet --fail-on-warning --fresh-env --builder html \
    --conf-dir "$root/tools/manual" --doctree-dir "$target/.doctrees/$language" --define "language=$language" \
    "$source" "$target/$language"
done
printf '%s\n' "$target/en/index.html" "$target/ja/index.html"
