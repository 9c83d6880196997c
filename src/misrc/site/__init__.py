"""The remote side: gate, runner, ledger, installer. Standard library only, Python 3.9 or later."""
