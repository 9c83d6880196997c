#!/bin/sh
# The module "stress distribution" at a site over SSH: which way, the site's declaration says. MISRC_SITE names another site.
PATH=$PATH:/opt/misrc/bin exec misrc module run --scripts "$(dirname "$0")" "${MISRC_SITE:-univ-a}" stress_distribution "$@"
