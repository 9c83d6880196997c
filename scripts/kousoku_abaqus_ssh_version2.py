#!/usr/bin/env python3
# The module "stress distribution" at a site over SSH: which way, the site's declaration says. MISRC_SITE names another site.
import os, sys; os.environ["PATH"] += ":/opt/misrc/bin"  # noqa: E401, E702
os.execvp("misrc", ["misrc", "module", "run", "--scripts", sys.path[0], os.environ.get("MISRC_SITE", "univ-a"), "stress_distribution", *sys.argv[1:]])  # noqa: E501
