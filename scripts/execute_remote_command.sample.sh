#!/bin/sh
# Program B under its old name. Copy it, and fill in what your module runs; or give the three words when you call it:
#   execute_remote_command.sh [client_name:HOST] [client_cmd:COMMAND] [client_files:FILE,FILE]
# HOST is a declared site (its id, an older id, or its address), COMMAND one of its programs as it is declared. What
# may run there, the site decides. Results and remote_program_exec.log come into the current directory.
client_name=univ-a
client_cmd="stress_distribution"
client_files=reduction_area.dat,tensile_strength.dat,yield_strength.dat

for word in "$@"; do
    case $word in
    client_name:*) client_name=${word#*:} ;;
    client_cmd:*) client_cmd=${word#*:} ;;
    client_files:*) client_files=${word#*:} ;;
    *) echo "execute_remote_command: unknown word: $word" >&2; exit 2 ;;
    esac
done

PATH=$PATH:/usr/local/bin
# exec: a stop of the workflow reaches misrc, which stops the job at the site.
exec misrc module command "client_name:$client_name" "client_cmd:$client_cmd" "client_files:$client_files"
