#!/bin/sh
# The module "stress distribution" at a site by WebAPI: which way, the site's declaration says. MISRC_SITE names another site.
PATH=$PATH:/opt/misrc/bin exec misrc module run --scripts "$(dirname "$0")" "${MISRC_SITE:-company-b}" stress_distribution "$@"
