#!/bin/sh
# Program C of the sample: the stress distribution in a notched round bar. The site installs its own copy as
# execute_remote-side_program_ssh.sh, beside remote-side_scripts/ and input_data/, and owns it from then on.
#
#   execute_remote-side_program_ssh.sh MESH ANALYSIS AMPLITUDE
#
# MESH      small | medium | large
# ANALYSIS  elastic (one load) | cyclic (peak, unloaded, peak, on the cyclic stress-strain curve)
# AMPLITUDE nominal stress amplitude in the net section, MPa, a whole number
#
# The current directory is the job's. It holds reduction_area.dat (%), tensile_strength.dat and
# yield_strength.dat (MPa); the program leaves XX.dat (stresses near the notch) and XX.inp (the deck).
set -eu
LC_ALL=C
export LC_ALL

refuse() {
    echo "stress_distribution: $1" >&2
    exit 2
}

helper() {
    script=$1
    shift
    # -E -s -B: what runs is what the site installed, whatever lies in the environment or in a home directory.
    /usr/bin/python3 -E -s -B "$here/remote-side_scripts/$script" "$@"
}

progress() {
    echo "$*" >>"${MISRC_PROGRESS:-/dev/null}"
}

[ $# -eq 3 ] || refuse "three arguments are needed: mesh, analysis, amplitude"
mesh=$1 analysis=$2 amplitude=$3
case $mesh in small | medium | large) ;; *) refuse "mesh must be small, medium or large" ;; esac
case $analysis in elastic | cyclic) ;; *) refuse "analysis must be elastic or cyclic" ;; esac
case $amplitude in '' | *[!0-9]* | ?????*) refuse "amplitude must be a whole number of at most four digits" ;; esac

here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
base=$here/input_data/$mesh/base.inp
[ -r "$base" ] || refuse "the site has not made its base model of this size"

progress 0 100 percent preparing
echo "stress_distribution: mesh $mesh, $analysis analysis, $amplitude MPa on the net section"
helper build_deck.py "$base" "$analysis" "$amplitude" XX.inp

# What a real program leaves behind, this one leaves on purpose: a copy of the confidential base model and a licence
# file. Nothing here deletes them. It is the site's policy that must hold them back, whether or not its program tidies
# up: returns names XX.dat and XX.inp only, withhold names secret/** and *.key.
mkdir -p secret
cp -- "$base" secret/base_model.inp
echo "SAMPLE LICENCE KEY 5d1f-not-a-real-one: held back by the site" >license.key

OMP_NUM_THREADS=2
export OMP_NUM_THREADS
helper run_solver.py

[ -s XX.dat ] || refuse "the solver wrote no results"
echo "stress_distribution: solved, $(wc -l <XX.dat) lines of results"
