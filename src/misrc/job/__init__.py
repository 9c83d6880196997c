"""What a job is: spec, states, manifest, policy, receipt, ledger. Pure, standard library only, shared by both sides."""
