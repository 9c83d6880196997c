"""The API server: what sites that open no port, and workflows, ask."""
