#!/bin/sh
# The module "stress distribution" at a site with WebAPI; its declaration says so. MISRC_SITE names another site.
PATH=$PATH:/usr/local/bin
exec misrc module run --scripts "$(dirname "$0")" "${MISRC_SITE:-company-b}" stress_distribution "$@"
