#!/usr/bin/env python3
"""The polling client of a site under the predecessor's name and arguments; programs run by the site's own policy.

    mi-system-remote.py SITE-ID BASE-URL TOKEN|login [debug] [retry:COUNT,SECONDS] [no_auth:CAFILE] [port:N]
                        [calc_base:DIR]

It uses the installation of `misrc-site.pyz install` of this account; MISRC_PREFIX names another one.
"""

from __future__ import annotations

import os
import sys

prefix = os.environ.get("MISRC_PREFIX")
share = f"{prefix}/share" if prefix else os.path.expanduser("~/.local/share/misrc")
places = [f"{share}/current", "/usr/libexec/misrc/current"]
found = [place for place in places if os.path.isdir(place)]
if not found:
    sys.exit("mi-system-remote: install misrc-site.pyz first (misrc-site.pyz install --site … --policy …)")
sys.path.insert(0, found[0])

# Imported only now, because the code of the installation is meant and no other.
from misrc.job import faults  # noqa: E402
from misrc.site.agent.legacy_command import main  # noqa: E402
from misrc.site.home import Home  # noqa: E402

faults.arm_from_environment()
sys.exit(main(sys.argv[1:], Home.locate(prefix), int(os.environ.get("MISRC_POLL", "30"))))
