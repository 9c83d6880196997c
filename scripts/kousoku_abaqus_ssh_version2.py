#!/usr/bin/env python3
# The module "stress distribution" at a site reached over SSH; its declaration says so. MISRC_SITE names another site.
import os
import sys

os.environ["PATH"] += ":/usr/local/bin"
folder = os.path.dirname(os.path.abspath(__file__))
site = os.environ.get("MISRC_SITE", "univ-a")
os.execvp("misrc", ["misrc", "module", "run", "--scripts", folder, site, "stress_distribution", *sys.argv[1:]])
