"""misrc: hand a part of a MInt workflow to a remote compute site, and prove what happened there."""

__version__ = "0.1.0"
