#!/bin/sh
# The module "stress distribution" at a site reached over SSH; its declaration says so. MISRC_SITE names another site.
PATH=$PATH:/usr/local/bin
exec misrc module run --scripts "$(dirname "$0")" "${MISRC_SITE:-univ-a}" stress_distribution "$@"
