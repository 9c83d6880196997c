#!/bin/sh
# Program C of the sample for a site with WebAPI: the same computation, with the same words. The site installs its own
# copy as execute_remote-side_program_api.sh, beside its execute_remote-side_program_ssh.sh (or beside the sample).
set -eu
here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
program=$here/execute_remote-side_program_ssh.sh
[ -x "$program" ] || program=$here/execute_remote-side_program_ssh.sample.sh
exec "$program" "$@"
