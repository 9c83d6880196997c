"""How MInt reaches a site: the verbs, two transfers, and what a failure means; over SSH, or through the API server."""
