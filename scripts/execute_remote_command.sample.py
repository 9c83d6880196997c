#!/usr/bin/env python3
# Program B under its old name and with its old words:
#   execute_remote_command.sample.py client_name:HOST client_cmd:COMMAND client_files:FILE,FILE
# HOST is a declared site (its id, an older id, or its address), COMMAND one of its programs as it is declared. What
# may run there, the site decides. Results and remote_program_exec.log come into the current directory.
import os
import sys

os.environ["PATH"] += ":/usr/local/bin"
os.execvp("misrc", ["misrc", "module", "command", *sys.argv[1:]])
