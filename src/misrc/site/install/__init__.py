"""Installing at the site, with root and without."""
