"""The life of a site at MInt: added, looked at, checked, its keys changed, retired."""
