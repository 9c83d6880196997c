"""What is built for hosts without an index: the site's one file, wheels, and a bundle of all that a host needs."""
